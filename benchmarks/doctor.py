"""Figure of the doctor: of all sick twins of the zoo, how many does it name? Of all healthy patients, how many does it
alarm? By check, over seeds, sizes and number types; and the numbers that decide, beside their limits.

    python -m benchmarks doctor             # half an hour

Also the healthy strangers that are installed here, and the seconds for a model of 10 million parameters.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.doctor_grid import Grid, of_files, zoo
from benchmarks.record import RESULTS, save, spread
from handmade import doctor
from handmade.doctor import checks
from handmade.layers import cross_entropy
from handmade.models import GPT, GPTConfig
from handmade.presets import find
from handmade.randomness import seeded

LARGE, VOCABULARY = "nanogpt-gpu", 65
ROUNDS = 3


def strangers() -> dict[str, Any]:
    """Stranger -> what was found in it, or that its package is not here."""
    import strangers as known  # beside the zoo

    found: dict[str, Any] = {}
    for stranger in known.STRANGERS:
        if not stranger.present:
            found[stranger.name] = {"not_installed": stranger.package}
            continue
        report = doctor.examine(doctor.Given.of(stranger.make(0)), name=stranger.name)
        found[stranger.name] = {
            "sick": [f"{name}: {report[name].measured}" for name in report.sick],
            "suspicious": [f"{name}: {report[name].measured}" for name in report.suspicious],
            "healthy": len(report.of("healthy")),
            "not_examined": len(report.of("not examined")),
            "seconds": round(report.seconds, 2),
        }
    return found


def large() -> dict[str, Any]:
    """How long a model of 10 million parameters takes, with what belongs to its training."""
    preset = find(LARGE)
    config = GPTConfig.from_dict({**preset.model, "vocab_size": VOCABULARY})

    def build() -> GPT:
        return GPT(config, seeded(0, "initialization"))

    model = build()
    text = torch.randint(VOCABULARY, (8, config.context + 1), generator=seeded(0, "data"))
    given = doctor.Given(
        model=model,
        build=build,
        vocab_size=VOCABULARY,
        context=config.context,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0),
        batches=lambda: (text[:, :-1], text[:, 1:]),
        loss=cross_entropy,
    )
    reports = [doctor.examine(given) for _ in range(ROUNDS)]
    quick = [doctor.examine(model, vocab_size=VOCABULARY, context=config.context, quick=True) for _ in range(ROUNDS)]
    slowest = sorted(reports[0].findings, key=lambda finding: -finding.seconds)
    return {
        "model": f"{LARGE}, {VOCABULARY} tokens",
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "seconds": spread([report.seconds for report in reports], 3),
        "seconds_of_the_quick_look": spread([report.seconds for report in quick], 3),
        "slowest": {finding.check: round(finding.seconds, 2) for finding in slowest[:8]},
        "sick": reports[0].sick,
    }


def table(found: dict[str, Any]) -> str:
    """results/doctor.md."""
    rows = [
        "| check | sick, named | healthy, alarmed | value in the healthy | limit | value in the sick |",
        "| --- | ---: | ---: | --- | --- | --- |",
    ]
    for name, one in found["checks"].items():
        aside = [f"{len(one[key])} {said}" for key, said in ASIDE["sick"] if one[key]]
        doubts = [f"{len(one[key])} {said}" for key, said in ASIDE["healthy"] if one[key]]
        named = " ".join([f"{one['found']} of {one['sick']}", *(f"({said})" for said in aside)])
        alarmed = " ".join([f"{len(one['false_alarms'])} of {one['healthy']}", *(f"({said})" for said in doubts)])
        values = [shown(one[key]) for key in ("value_in_healthy", "limit", "value_in_sick")]
        rows.append(f"| {name} | {named} | {alarmed} | {' | '.join(values)} |")
    total = found["total"]
    rows += [
        "",
        f"All: {total['found']} of {total['sick']} sick twins named; {total['false_alarms']} false alarms in"
        f" {total['healthy']} answers of checks about {found['patients']['healthy']} healthy patients. Values:"
        " smallest, median, largest.",
    ]
    slow = found["large"]
    rows.append(
        f"A model of {slow['parameters'] / 1e6:.1f} million parameters: {slow['seconds']['median']:g} s on"
        f" {slow['threads']} threads, the quick look {slow['seconds_of_the_quick_look']['median']:g} s."
    )
    rows += ["", "| healthy stranger | sick | suspicious | seconds |", "| --- | --- | --- | ---: |"]
    for name, one in found["strangers"].items():
        if "not_installed" in one:
            rows.append(f"| {name} | not installed | | |")
        else:
            said = [", ".join(line.partition(":")[0] for line in one[key]) or "-" for key in ("sick", "suspicious")]
            rows.append(f"| {name} | {said[0]} | {said[1]} | {one['seconds']} |")
    for key, title in LISTS.items():
        lines = found[key]
        if lines:
            rows += ["", f"{title}:", "", *(f"- {line}" for line in lines)]
    return "\n".join(rows) + "\n"


ASIDE = {
    "sick": (("only_suspicious", "suspicious"), ("not_examined_in_sick", "not examined")),
    "healthy": (("suspicious_in_healthy", "suspicious"),),
}
LISTS = {
    "missed": "Missed",
    "alarmed": "False alarms",
    "others": "Found in a sick twin beside its mistake",
    "without_twin": "Checks without a sick twin",
}


def shown(values: dict[str, float] | None) -> str:
    if values is None:
        return "-"
    low, median, high = (f"{values[key]:.2g}" for key in ("min", "median", "max"))
    return low if low == high else f"{low} / {median} / {high}"


def figures(grid: Grid) -> dict[str, Any]:
    """What a grid comes to."""
    by_check = {name: tally.figures() for name, tally in grid.tallies.items()}
    return {
        "patients": grid.patients,
        "total": {
            "sick": sum(one["sick"] for one in by_check.values()),
            "found": sum(one["found"] for one in by_check.values()),
            "healthy": sum(one["healthy"] for one in by_check.values()),
            "false_alarms": sum(len(one["false_alarms"]) for one in by_check.values()),
        },
        "checks": by_check,
        "missed": [f"{name}: {line}" for name, one in by_check.items() for line in one["missed"]],
        "alarmed": [f"{name}: {line}" for name, one in by_check.items() for line in one["false_alarms"]],
        "others": grid.others,
        "without_twin": [name for name, one in by_check.items() if not one["sick"] and not one["not_examined_in_sick"]],
    }


def main(quick: bool = False) -> None:
    """`quick`: one cell of each, to try the benchmark itself."""
    began = time.perf_counter()
    seconds = lambda name: print(f"{name:20} {time.perf_counter() - began:7.0f} s", flush=True)  # noqa: E731
    grid = of_files(zoo.files(), quick, seconds)
    found = {**figures(grid), "strangers": strangers(), "large": large()}
    found["seconds"] = round(time.perf_counter() - began)
    text = table(found)
    print(text)
    about = "sick twins named and healthy patients alarmed, by check, over seeds, sizes and number types"
    save("doctor", about, {"checks_written": len(checks.ALL), **found})
    (RESULTS / "doctor.md").write_text(text, encoding="utf-8")
