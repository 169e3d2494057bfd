"""The zoo over seeds, sizes and number types: who is examined, and what comes of it, check by check.

A cell is one way of making a patient. A twin is examined in every cell by the check that has to name it, and in the
first one by all; a healthy patient in every cell by all.
"""

from __future__ import annotations

import inspect
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handmade import doctor
from handmade.doctor import checks

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import zoo

SEEDS, SICK_SEEDS = tuple(range(10)), tuple(range(5))
SIZES: tuple[dict[str, Any], ...] = (
    {"width": 16, "heads": 2},
    {"width": 64, "heads": 8, "layers": 4},
    {"width": 256, "heads": 4, "layers": 6},
    {"vocab_size": 11},
    {"vocab_size": 500, "width": 64},
    {"context": 64},
)
HEALTHY_SIZES: tuple[dict[str, Any], ...] = ({"layers": 1}, {"heads": 1}, {"dropout": 0.0}, {"qk_norm": True})
"""In these some mistakes are none: the width of a single head is that of the model, say."""
TYPES = (torch.float64, torch.bfloat16)


@dataclass(frozen=True)
class Cell:
    """How a patient is made."""

    seed: int = 0
    sizes: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        said = [f"{name} {value}" for name, value in self.sizes.items()]
        return ", ".join([f"seed {self.seed}", *said, *([str(self.dtype)[6:]] if self.dtype != torch.float32 else [])])


def cells(sick: bool, quick: bool = False) -> list[Cell]:
    """All cells of a sick patient, or of a healthy one. The first one is the files' own sizes; `quick`: it alone."""
    seeds = SICK_SEEDS if sick else SEEDS
    sizes = SIZES if sick else SIZES + HEALTHY_SIZES
    more = () if sick else (1,)
    every = [Cell(seed) for seed in seeds]
    every += [Cell(seed, one) for one in sizes for seed in (0, *more)]
    every += [Cell(seed, {}, dtype) for dtype in TYPES for seed in (0, *more)]
    return every[:1] if quick else every


def options_of(path: Path) -> Mapping[str, inspect.Parameter]:
    """What `make` of a file takes."""
    return inspect.signature(zoo.load(path).make).parameters


def make(path: Path, mistake: str | None, cell: Cell) -> dict[str, Any] | None:
    """What a file gives the doctor in a cell. None where it has no such cell: it takes no such size, or has a number
    type that is its own."""
    takes = options_of(path)
    if not set(cell.sizes) <= set(takes):
        return None
    given = dict(cell.sizes)
    if "seed" in takes:
        given["seed"] = cell.seed
    elif cell != Cell(cell.seed):
        return None
    if cell.dtype != torch.float32 and "dtype" in takes:
        given["dtype"] = cell.dtype
    torch.manual_seed(cell.seed)
    made = zoo.make(path, mistake, **given)
    if cell.dtype != torch.float32 and "dtype" not in takes:
        model = made.get("model") if isinstance(made, Mapping) else None
        if not isinstance(model, nn.Module) or set(made) - {"model", "vocab_size", "context", "expect"}:
            return None
        model.to(cell.dtype)
    return made


@dataclass
class Tally:
    """What is known of one check."""

    found: int = 0
    missed: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """Sick twins of which it was only suspicious."""
    not_made: list[str] = field(default_factory=list)
    """Sick twins in which it could not be made."""
    well: int = 0
    alarms: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    """Healthy patients of which it was suspicious."""
    sick_values: list[float] = field(default_factory=list)
    healthy_values: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add_sick(self, name: str, finding: doctor.Finding) -> None:
        """One sick twin that this check has to name."""
        places = {"sick": None, "suspicious": self.asked, "not examined": self.not_made, "healthy": self.missed}
        place = places[finding.verdict]
        if place is None:
            self.found += 1
        else:
            place.append(f"{name}: {finding.measured}")
        self._keep(finding, self.sick_values)

    def add_healthy(self, name: str, finding: doctor.Finding) -> None:
        """One healthy patient."""
        if finding.verdict == "not examined":
            return
        self.well += 1
        for verdict, place in (("sick", self.alarms), ("suspicious", self.doubts)):
            if finding.verdict == verdict:
                place.append(f"{name}: {finding.measured}")
        self._keep(finding, self.healthy_values)

    def _keep(self, finding: doctor.Finding, values: list[float]) -> None:
        self.seconds.append(finding.seconds)
        if finding.value is not None:
            values.append(float(finding.value))
        if finding.limit is not None:
            self.limits.append(float(finding.limit))

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        all_sick = self.found + len(self.missed) + len(self.asked)
        return {
            "sick": all_sick,
            "found": self.found,
            "sensitivity": round(self.found / all_sick, 4) if all_sick else None,
            "missed": self.missed,
            "only_suspicious": self.asked,
            "not_examined_in_sick": self.not_made,
            "healthy": self.well,
            "false_alarms": self.alarms,
            "suspicious_in_healthy": self.doubts,
            "specificity": round(1 - len(self.alarms) / self.well, 4) if self.well else None,
            "value_in_healthy": distribution(self.healthy_values),
            "value_in_sick": distribution(self.sick_values),
            "limit": distribution(self.limits),
            "milliseconds": round(1000 * statistics.median(self.seconds), 2) if self.seconds else None,
        }


def distribution(values: Iterable[float]) -> dict[str, float] | None:
    """Smallest, median, largest; of the finite ones, and how many are not."""
    values = list(values)
    finite = [value for value in values if abs(value) < float("inf")]
    if not finite:
        return None
    found = {"min": min(finite), "median": statistics.median(finite), "max": max(finite)}
    found = {name: float(f"{value:.3g}") for name, value in found.items()}
    return {**found, **({"not finite": len(values) - len(finite)} if len(finite) < len(values) else {})}


@dataclass
class Grid:
    """The whole zoo, as far as it was examined."""

    checks: tuple[str, ...] = tuple(checks.BY_NAME)
    patients: dict[str, int] = field(default_factory=lambda: {"healthy": 0, "sick": 0, "cannot be called": 0})
    others: list[str] = field(default_factory=list)
    """Findings in sick twins that are not about their mistake, nor among those that it cannot but set off."""

    def __post_init__(self) -> None:
        self.tallies = {name: Tally() for name in self.checks}

    def examine(self, path: Path, mistake: str | None, cell: Cell, every: bool) -> doctor.Report | None:
        """One patient. `every`: by all checks, or by the one that has to name the mistake. None where it cannot be
        made or, by its number type, not be called."""
        made = make(path, mistake, cell)
        if made is None:
            return None
        file = zoo.load(path)
        name = f"{path.stem}{f' {mistake}' if mistake else ''} ({cell})"
        given = doctor.Given.of(made)
        if given.model is not None and cell.dtype != torch.float32 and doctor.Patient(given).failure:
            self.patients["cannot be called"] += 1
            return None
        wanted = self.checks if every else [file.MISTAKES[mistake]]
        report = doctor.examine(given, name=name, only=wanted, seed=cell.seed)
        self.patients["sick" if mistake else "healthy"] += 1
        if mistake is None:
            for finding in report.findings:
                self.tallies[finding.check].add_healthy(name, finding)
            return report
        expected = file.MISTAKES[mistake]
        self.tallies[expected].add_sick(name, report[expected])
        if every:
            allowed = {expected, *file.ALSO.get(mistake, ())}
            self.others += [f"{name}: {other}" for other in report.sick + report.suspicious if other not in allowed]
        return report

    def add(self, other: Grid) -> None:
        """What another grid, of other files, has seen."""
        for known, more in [(self, other), *((self.tallies[name], other.tallies[name]) for name in self.checks)]:
            for one in fields(known):
                if one.name not in ("checks", "patients"):
                    setattr(known, one.name, getattr(known, one.name) + getattr(more, one.name))
        for name, count in other.patients.items():
            self.patients[name] += count

    def run(self, path: Path, quick: bool = False) -> Grid:
        """A file of the zoo, its healthy patient and every twin in all its cells."""
        known = [mistake for mistake, check in zoo.load(path).MISTAKES.items() if check in self.checks]
        for mistake in (None, *known):
            for number, cell in enumerate(cells(mistake is not None, quick)):
                self.examine(path, mistake, cell, every=mistake is None or number == 0)
        return self


def of_file(path: Path, quick: bool = False) -> Grid:
    """The grid of one file, on one thread."""
    torch.set_num_threads(1)
    return Grid().run(path, quick)


def of_files(paths: Sequence[Path], quick: bool = False, say: Callable[[str], None] = lambda line: None) -> Grid:
    """The grid of many files, a process on each core."""
    every = Grid()
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for path, grid in zip(paths, pool.map(of_file, paths, [quick] * len(paths)), strict=True):
            every.add(grid)
            say(path.stem)
    return every
