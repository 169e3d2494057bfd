"""Copy the figures from results/ into README.md, docs/tasks.md, docs/translation.md and docs/doctor.md, between their
markers: `python -m benchmarks.readme`.

A test proves that they say what results/ says.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.doctor_rivals import OURS
from benchmarks.record import RESULTS
from benchmarks.translation import MAIN

Row = tuple[str, str]  # what was measured, what came out
README = Path(__file__).parent.parent / "README.md"


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def between(figures: dict[str, Any], digits: int) -> str:
    """Median, and the range of the runs."""
    median, low, high = (f"{figures[key]:.{digits}f}" for key in ("median", "min", "max"))
    return median if low == high else f"{median} ({low} to {high})"


def startup(found: dict[str, Any]) -> list[Row]:
    return [("`handmade --help`", f"{between(found['seconds']['handmade --help'], 2)} s")]


def step(found: dict[str, Any]) -> list[Row]:
    what = "A training step of the `nanogpt-cpu` shape, against the same model of `torch.nn` modules"
    return [(what, f"**{between(found['ratio_by_round'], 2)}** of its time")]


def sampling(found: dict[str, Any]) -> list[Row]:
    own, wide = found["shakespeare"], found["6 layers x 384"]
    rate, wide_rate = (shape["tokens_per_second"]["cached"]["median"] for shape in (own, wide))
    return [
        (
            "Sampling from the `shakespeare` shape, one stream: with the cache against without it, at full context",
            f"**{own['cached_over_uncached_at_full_context']:.1f} times** the rate; {rate:.0f} tokens/s",
        ),
        (
            "The same against Hugging Face's `generate`; and at 6 layers of width 384",
            f"**{own['cached_over_hugging_face']:.2f}** and **{wide['cached_over_hugging_face']:.2f} times** the rate"
            f" ({wide_rate:.0f} tokens/s)",
        ),
        ("Rate at token 1,000 against token 300", f"{own['at_1000_over_at_300']:.2f}"),
    ]


def threads(found: dict[str, Any]) -> list[Row]:
    one, every = (found["tokens_per_second"][f"shakespeare, {name}, 1 busy"] for name in ("one thread", "all threads"))
    what = "The same beside a process that keeps a core busy, on one thread, as it is done; on two"
    return [(what, f"**{between(one, 0)}** tokens/s; {between(every, 0)}")]


def demo(found: dict[str, Any]) -> list[Row]:
    what = f"`make demo`: validation loss; a 5-gram by counting has {found['counting_line']:.3f}"
    return [(what, f"**{between(found['val_loss'], 3)}** in {between(found['wall_seconds'], 0)} s of wall-clock")]


def time_to_loss(found: dict[str, Any]) -> list[Row]:
    slow, fast = found["seconds"]["nanogpt-cpu"], found["seconds"]["speedrun"]
    what = f"Training to {found['target']:.3f} on the whole validation split: `nanogpt-cpu` against `speedrun`"
    times = f"**{found['ratio_of_medians']:.1f} times** faster"
    return [(what, f"{times}: {between(slow, 1)} s against {between(fast, 1)} s")]


def shakespeare(found: dict[str, Any]) -> list[Row]:
    what = f"Preset `shakespeare`: best validation loss; nanoGPT reports {found['target']} on an A100"
    seeds = f"{'seed' if len(found['seeds']) == 1 else 'seeds'} {', '.join(map(str, found['seeds']))}"
    loss, seconds = between(found["best_loss"], 4), between(found["train_seconds"], 0)
    return [(what, f"**{loss}** in {seconds} s of training, {seeds}")]


def arithmetic(found: dict[str, Any]) -> list[Row]:
    rows = []
    for name, words in (
        ("addition, fresh splits", "Sums of two digits, 2,500 learnt and 7,500 asked (100,672 parameters)"),
        ("addition, three digits", "Sums of three digits, 10,000 learnt of 1,000,000 and 50,000 others asked"),
        ("expressions of two and three", "Expressions of two and three digits, 9,150 learnt and 3,050 asked"),
        ("fixed window, transformer", "The fixed-window transformer (101,201 parameters), sums of two digits"),
        ("fixed window, dense", "The dense net beside it (2,514,353 parameters), the same sums"),
        ("sums of up to ten digits, longer ones asked", "Sums of up to ten digits with shared positions"),
    ):
        case = found["cases"].get(name)
        if case is None:
            continue
        seeds = "seed" if len(case["seeds"]) == 1 else "seeds"
        rows.append(
            (
                f"{words}: whole answers right",
                f"**{100 * case['exact_match']:.2f} %** after {case['train_seconds']:.1f} s of training"
                f" (best {100 * case['best']:.2f} %, worst {100 * case['worst']:.2f} %,"
                f" {seeds} {', '.join(map(str, case['seeds']))})",
            )
        )
        if case.get("longer"):
            by_length = [f"{length} {100 * part:.1f} %" for length, part in case["longer"].items()]
            rows.append(("The same models, asked longer sums than any they were trained on", ", ".join(by_length)))
    return rows


def translation(found: dict[str, Any]) -> list[Row]:
    if MAIN not in found["cases"]:
        return []
    case = found["cases"][MAIN]
    run = found["runs"][f"{MAIN} | {case['seeds'][0]}"]
    threads = f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}"
    return [
        (
            f"Japanese to English, {run['sentences']:,} pairs never seen: BLEU with beam search ({threads})",
            f"**{between(case['bleu_beam'], 1)}**, greedy {between(case['bleu_greedy'], 1)}, after"
            f" {between(case['seconds'], 0)} s of training, seeds {', '.join(map(str, case['seeds']))}",
        )
    ]


def translating(found: dict[str, Any]) -> list[Row]:
    rows = []
    for name, figures in found.items():
        if isinstance(figures, dict) and "cached_over_uncached_by_rounds" in figures:
            times = between(figures["cached_over_uncached_by_rounds"], 1)
            rows.append((f"Translating, {name}: with the cache against without it", f"**{times} times** the rate"))
        elif isinstance(figures, dict) and set(figures) == {"seconds"}:
            rows.append((f"Translating, {name}", f"**{between(figures['seconds'], 1)} s**"))
    return rows


def doctor(found: dict[str, Any]) -> list[Row]:
    total, large = found["total"], found["large"]
    return [
        (
            "The doctor: sick models and trainings named by the right check, over seeds, sizes and number types",
            f"**{total['found']:,} of {total['sick']:,}**",
        ),
        (
            f"The doctor: false alarms about {found['patients']['healthy']:,} healthy ones",
            f"**{total['false_alarms']}** in {total['healthy']:,} answers",
        ),
        (
            f"The doctor: a model of {large['parameters'] / 1e6:.1f} million parameters; the quick look alone",
            f"**{between(large['seconds'], 1)} s**; {between(large['seconds_of_the_quick_look'], 1)} s",
        ),
    ]


def doctor_rivals(found: dict[str, Any]) -> list[Row]:
    packages = dict(found["packages"])
    own = packages.pop(OURS)
    alarms = {name: len(one["false_alarms"]) for name, one in packages.items()}
    fewest = min(alarms, key=lambda name: alarms[name])
    return [
        (
            f"The same mistakes, found by {', '.join(packages)} together; by the doctor",
            f"{found['others_together']} of {own['of']}; **{own['found']}**",
        ),
        (
            f"Healthy models and trainings of which the best of them ({fewest}) fails a check; the doctor",
            f"{alarms[fewest]} of {packages[fewest]['healthy']}; **{len(own['false_alarms'])}** of {own['healthy']}",
        ),
    ]


def figures() -> str:
    """The table of figures: what results/ has."""
    lines = ["| what | measured | file |", "| --- | --- | --- |"]
    machine = {}
    every = (
        time_to_loss, demo, shakespeare, arithmetic, translation, translating, step, sampling, threads, startup, doctor,
        doctor_rivals,
    )  # fmt: skip
    for rows in every:
        name = rows.__name__
        if not (RESULTS / f"{name}.json").exists():
            continue
        found = read(name)
        machine = found["machine"]
        lines += [f"| {what} | {value} | [{name}](results/{name}.json) |" for what, value in rows(found)]
    lines += [
        "",
        f"Median, and the range of the runs. {machine['processor']}, {machine['cores']} cores shared with other jobs,"
        f" torch {machine['torch']}; threads, seeds and day are in each file. Again: `python -m benchmarks`, and"
        " `python -m benchmarks NAME` for one line.",
    ]
    return "\n".join(lines)


def sample() -> str:
    """What the best model writes."""
    best = read("shakespeare")
    loss = best["runs"]["0"]["best"]
    text = best["sample"]["text"].rstrip()
    about = f"Preset `shakespeare`, validation loss {loss:.3f}, temperature {best['sample']['temperature']}:"
    return f"{about}\n\n```\n{text}\n```"


def ladder() -> str:
    """The table of the rungs; the picture beside it is written by `handmade ladder`."""
    table = (RESULTS / "ladder.md").read_text(encoding="utf-8")
    return f"<details>\n<summary>The table</summary>\n\n{table}\n</details>"


SUMS = {
    "addition, fresh splits": "sums of two digits, reversed and padded",
    "addition, twins together": "the same, twins on one side",
    "addition, forwards": "the same, written forwards",
    "addition, not padded": "the same, not padded",
    "addition, digits only": "the same, digits only",
    "addition, LSTM": "the same by an LSTM",
    "addition, MLP": "the same by an MLP",
    "fixed window, transformer": "the same by the fixed-window transformer",
    "fixed window, dense": "the same by the fixed-window dense net",
    "addition, three digits": "sums of three digits",
    "sums of up to ten digits, longer ones asked": "sums of up to ten digits, shared positions",
    "expressions of two and three": "expressions of two and three digits",
    "expressions of up to four": "expressions of up to four digits",
    "expressions of up to four, with steps": "the same, with steps",
}

TRAINED_ON = {
    "expressions of two and three": "two and three digits",
    "expressions of up to four": "two to four digits",
    "expressions of up to four, with steps": "two to four digits, with steps",
}


def sums() -> str:
    """All cases of arithmetic; expressions by how many digits they have, sums by length."""
    found = read("arithmetic")
    machine, cases = found["machine"], found["cases"]
    lines = ["| problems | whole answers right | tokens right | right of the trained | seconds | parameters |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for name, words in SUMS.items():
        case = cases[name]
        share = {"median": case["exact_match"], "min": case["worst"], "max": case["best"]}
        right = between({key: 100 * value for key, value in share.items()}, 2)
        tokens, trained = (f"{100 * case[key]:.1f} %" for key in ("token_accuracy", "train_exact_match"))
        seconds = f"{case['train_seconds']:.1f}"
        lines.append(f"| {words} | **{right} %** | {tokens} | {trained} | {seconds} | {case['parameters']:,} |")
    lines += ["", "Expressions never seen, by how many digits they have:", ""]
    lines += ["| trained on | 2 digits | 3 digits | 4 digits |", "| --- | ---: | ---: | ---: |"]
    for name, words in TRAINED_ON.items():
        kinds = [run["errors"]["length"] for run in found["runs"].values() if run["case"] == name]
        parts = [part_right([kind.get(f"{count} operands") for kind in kinds]) for count in (2, 3, 4)]
        lines.append(f"| {words} | {' | '.join(parts)} |")
    longer = cases["sums of up to ten digits, longer ones asked"]["longer"]
    lines += ["", "Sums with shared positions, trained on up to ten digits:", ""]
    lines += ["| " + " | ".join(longer) + " |", "|" + " ---: |" * len(longer)]
    lines += ["| " + " | ".join(f"{100 * part:.1f} %" for part in longer.values()) + " |"]
    seeds = ", ".join(map(str, cases["addition"]["seeds"]))
    lines += [
        "",
        f"Medians of seeds {seeds}, with the lowest and the highest; by digits, of all seeds together."
        f" {machine['processor']}, one or two threads a run, torch {machine['torch']}. Again: `{found['command']}`;"
        " every run, with its curve and its errors by kind, is in"
        " [results/arithmetic.json](../results/arithmetic.json).",
    ]
    return "\n".join(lines)


def part_right(kinds: list[dict[str, int] | None]) -> str:
    """The share of right answers over several runs; a dash where there were no such problems."""
    there = [kind for kind in kinds if kind]
    if not there:
        return "–"
    right, problems = (sum(kind[key] for kind in there) for key in ("right", "problems"))
    return f"{100 * right / problems:.1f} % of {problems // len(there):,}"


def translations() -> str:
    """The models of translation side by side, and what the best of them writes."""
    if not (RESULTS / "translation.md").exists():
        return "Not measured yet: `python -m benchmarks translation`."
    found = read("translation")
    machine = found["machine"]
    threads = sorted({run["threads"] for run in found["runs"].values()})
    lines = [
        (RESULTS / "translation.md").read_text(encoding="utf-8").rstrip(),
        "",
        f"{machine['processor']}, {' or '.join(map(str, threads))} thread{'s' if threads != [1] else ''} a run, torch"
        f" {machine['torch']}. Again: `{found['command']}`; every run is in"
        " [results/translation.json](../results/translation.json).",
    ]
    return "\n".join(lines)


def zoo() -> str:
    """How often the doctor is right, check by check, and beside other packages."""
    lines = []
    for name, title in (("doctor", "Check by check"), ("doctor_rivals", "Beside other packages")):
        page = RESULTS / f"{name}.md"
        if page.exists():
            text = page.read_text(encoding="utf-8").rstrip()
            lines.append(f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>\n")
    return "\n".join(lines)


PAGES = (README, *(README.parent / "docs" / f"{page}.md" for page in ("tasks", "translation", "doctor")))


def filled(text: str) -> str:
    """`text` with each marked block made anew."""
    blocks = (
        ("figures", figures),
        ("sample", sample),
        ("ladder", ladder),
        ("sums", sums),
        ("translation", translations),
        ("zoo", zoo),
    )
    for name, make in blocks:
        if f"<!-- {name}: " not in text:
            continue
        pattern = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda found, make=make: f"{found[1]}{make()}\n{found[2]}", text)
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
