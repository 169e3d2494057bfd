"""The doctor beside the checks of other packages, on the same zoo and the same healthy strangers.

    python -m benchmarks doctor_rivals      # 20 minutes; a killed call goes on

The packages go into an environment of their own, in the cache folder. A mistake is found by a package if any of its
checks fails on the sick twin and not on the healthy one: it need not say which mistake it is. Warnings count apart.
A false alarm is a healthy patient of which any check fails. `benchmarks/rivals.py` has how each is called.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import RESULTS, save
from benchmarks.rivals import PACKAGES, TAKEN
from handmade.corpora import cache_folder
from handmade.doctor import checks
from handmade.errors import ResourceError

ROOT = Path(__file__).parent.parent
RIVALS = ("torchtest2==0.1.0", "torch-audit==0.3.0", "x-transformers==2.31.10")
# neural-net-checklist asks for torchvision and pytest, which its own tests alone import; a torchvision for another
# build of torch than the one that is here cannot be loaded, and transformers would try to.
ALONE, ITS_NEEDS = "neural-net-checklist==1.1.0", ("numpy", "tqdm", "pillow")
OURS = "handmade"
OTHERS = tuple(name for name in PACKAGES if name != OURS)


def environment() -> Path:
    """The interpreter of the rivals' environment, made when it is not there. Raises ResourceError where pip fails."""
    folder = cache_folder() / "rivals"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if (folder / ".complete").exists():
        return python
    print(f"installing {', '.join((*RIVALS, ALONE))} in {folder}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True)
    version = importlib.util.find_spec("transformers") and importlib.import_module("transformers").__version__
    wanted = [*RIVALS, *ITS_NEEDS, f"torch=={torch.__version__.partition('+')[0]}", "safetensors"]
    wanted.append(f"transformers=={version}" if version else "transformers")
    for words in (wanted, ["--no-deps", ALONE]):
        made = subprocess.run([python, "-m", "pip", "install", "-q", *words], capture_output=True, text=True)
        if made.returncode:
            last = (made.stderr.strip().splitlines() or ["no message"])[-1]
            raise ResourceError(f"the rivals' packages could not be installed: {last}")
    (folder / ".complete").touch()
    return python


def versions(python: Path) -> dict[str, str]:
    """Of what is compared."""
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    names = {*(wanted.partition("==")[0] for wanted in (*RIVALS, ALONE)), "torch", "transformers"}
    return {
        one["name"]: one["version"]
        for one in json.loads(listed.stdout)
        if one["name"].replace("_", "-").lower() in names
    }


def failing(answer: dict[str, Any], warnings: bool) -> set[str]:
    """The checks that fail, or warn."""
    bad = ("fail", "warn") if warnings else ("fail",)
    return {name for name, verdict in answer.get("checks", {}).items() if verdict in bad}


def found(sick: dict[str, Any], well: dict[str, Any], warnings: bool = False) -> bool:
    """Whether anything is wrong with the sick twin that is right with the healthy one."""
    return bool(failing(sick, warnings) - failing(well, warnings))


def can_ask(package: str, check: str) -> bool:
    """Whether a package takes what a check of ours needs to see."""
    return package == OURS or set(checks.BY_NAME[check].needs) <= TAKEN[package]


def compared(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What all the patients come to. A mistake whose check is not written yet is left out."""
    lines = list(lines)
    well = {line["file"]: line["found"] for line in lines if line["kind"] == "healthy"}
    sick = [line for line in lines if line["kind"] == "sick" and line["check"] in checks.BY_NAME]
    healthy = [line for line in lines if line["kind"] != "sick"]
    by_check: dict[str, dict[str, Any]] = {}
    for line in sick:
        counts = by_check.setdefault(line["check"], {"twins": 0, **dict.fromkeys(PACKAGES, 0), "others together": 0})
        counts["twins"] += 1
        of = {package: found(line["found"][package], well[line["file"]][package]) for package in PACKAGES}
        for package, is_found in of.items():
            counts[package] += is_found
        counts["others together"] += any(of[package] for package in OTHERS)
    packages = {}
    for package in PACKAGES:
        answers = [line["found"][package] for line in lines]
        packages[package] = {
            "found": sum(one[package] for one in by_check.values()),
            "found_or_warned": sum(
                found(line["found"][package], well[line["file"]][package], warnings=True) for line in sick
            ),
            "of": len(sick),
            "cannot_be_asked": sum(not can_ask(package, line["check"]) for line in sick),
            "false_alarms": [line["name"] for line in healthy if failing(line["found"][package], False)],
            "false_alarms_or_warnings": [line["name"] for line in healthy if failing(line["found"][package], True)],
            "healthy": sum("checks" in line["found"][package] for line in healthy),
            "errors": [f"{line['name']}: {a['error']}" for line, a in zip(lines, answers, strict=True) if "error" in a],
            "seconds": round(sum(answer["seconds"] for answer in answers if "seconds" in answer)),
        }
    ours = [line for line in sick if line["check"] in failing(line["found"][OURS], False)]
    packages[OURS]["named"] = len(ours)
    return {
        "packages": packages,
        "others_together": sum(one["others together"] for one in by_check.values()),
        "checks": {name: by_check[name] for name in checks.BY_NAME if name in by_check},
        "found_by_others_alone": [
            line["name"]
            for line in sick
            if not found(line["found"][OURS], well[line["file"]][OURS])
            and any(found(line["found"][package], well[line["file"]][package]) for package in OTHERS)
        ],
    }


def table(figures: dict[str, Any]) -> str:
    """results/doctor_rivals.md."""
    packages = figures["packages"]
    rows = [
        "| | " + " | ".join([*packages, "the others together"]) + " |",
        "| --- |" + " ---: |" * (len(packages) + 1),
    ]

    def row(title: str, cells: Iterable[Any], together: Any = "") -> None:
        rows.append(f"| {title} | " + " | ".join(map(str, [*cells, together])) + " |")

    every = list(packages.values())
    row("mistakes found", (f"{one['found']} of {one['of']}" for one in every), figures["others_together"])
    row("found or warned of", (one["found_or_warned"] for one in every))
    row("cannot be asked", (one["cannot_be_asked"] for one in every))
    row("healthy, alarmed", (f"{len(one['false_alarms'])} of {one['healthy']}" for one in every))
    row("healthy, alarmed or warned of", (len(one["false_alarms_or_warnings"]) for one in every))
    row("failed by itself", (len(one["errors"]) for one in every))
    row("seconds for all", (one["seconds"] for one in every))
    for name, counts in figures["checks"].items():
        cells = (counts[package] if can_ask(package, name) else "not asked" for package in packages)
        row(f"{name} ({counts['twins']})", cells, counts["others together"])
    rows += ["", f"handmade names {packages[OURS]['named']} of {packages[OURS]['of']} by the right check."]
    alarms = {name: one["false_alarms"] for name, one in packages.items() if one["false_alarms"]}
    rows += ["", *(f"- {name} is alarmed by: {', '.join(names)}" for name, names in alarms.items())]
    if figures["found_by_others_alone"]:
        rows += ["", f"Found by others and not by us: {', '.join(figures['found_by_others_alone'])}"]
    return "\n".join(rows).rstrip() + "\n"


def of_now() -> str:
    """What the answers depend on, in a few letters: a killed call goes on only where nothing has changed."""
    folders = [*(ROOT / "tests" / "zoo").glob("*.py"), *(ROOT / "handmade" / "doctor").rglob("*.py")]
    paths = [ROOT / "tests" / "strangers.py", ROOT / "benchmarks" / "rivals.py", *folders]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()[:12]


def main() -> None:
    python = environment()
    answers = cache_folder() / f"rivals-{of_now()}.jsonl"
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    subprocess.run(
        [python, "-m", "benchmarks.rivals", str(answers)],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    figures = compared(lines)
    text = table(figures)
    print(text)
    about = "the same zoo and the same healthy strangers, by the doctor and by other packages"
    save("doctor_rivals", about, {"versions": versions(python), **figures})
    (RESULTS / "doctor_rivals.md").write_text(text, encoding="utf-8")
    answers.unlink()  # the next call measures anew
