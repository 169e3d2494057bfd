"""The zoo over seeds, sizes and number types; and the grid itself, which has to see what is missed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import zoo

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import doctor as report
from benchmarks import doctor_grid
from benchmarks.doctor_grid import Cell, Grid, cells, make


@pytest.mark.slow
@pytest.mark.parametrize("path", zoo.files(), ids=lambda path: path.stem)
def test_every_cell_of_the_zoo(path: Path) -> None:
    grid = Grid()
    grid.run(path)
    found = report.figures(grid)
    assert grid.patients["healthy"] > 1
    assert not found["missed"]
    assert not found["alarmed"]
    assert not found["others"]
    for name, one in found["checks"].items():
        assert not one["only_suspicious"], name
        assert not one["suspicious_in_healthy"], name


@pytest.mark.parametrize("path", zoo.files(), ids=lambda path: path.stem)
def test_every_mark_is_a_mistake_and_every_twin_can_be_made(path: Path) -> None:
    file = zoo.load(path)
    marks = [found["names"] for line in path.read_text().splitlines() if (found := zoo.MARK.match(line))]
    assert {name.strip() for names in marks for name in names.split(",")} == set(file.MISTAKES)
    assert set(file.ALSO) <= set(file.MISTAKES)
    for mistake in (None, *file.MISTAKES):
        assert make(path, mistake, Cell(1)) is not None, mistake
    assert len({zoo.source(path, mistake) for mistake in (None, *file.MISTAKES)}) == 1 + len(file.MISTAKES)


PATIENT = """
import torch
import torch.nn as nn

MISTAKES = {"mixed": "batch", "harmless": "batch"}
ALSO = {}


class Model(nn.Module):
    def __init__(self, vocab_size, width):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, tokens):
        x = self.embedding(tokens).cumsum(1)
        # x = x - x.mean(0)  # sick: mixed
        # x = x - x.mean(2, keepdim=True)  # sick: harmless
        return self.head(x)


def make(seed=0, vocab_size=11, width=8, context=6):
    torch.manual_seed(seed)
    return {"model": Model(vocab_size, width), "vocab_size": vocab_size, "context": context}
"""


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    path = tmp_path / "patient.py"
    path.write_text(PATIENT)
    return path


def test_a_cell_is_a_seed_a_size_and_a_number_type(patient: Path) -> None:
    first, again, other = (make(patient, None, Cell(seed))["model"].head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert make(patient, None, Cell(0, {"width": 16}))["model"].head.in_features == 16
    assert make(patient, None, Cell(0, {"layers": 2})) is None, "it has no layers to choose"
    assert make(patient, None, Cell(0, {}, torch.bfloat16))["model"].head.weight.dtype == torch.bfloat16
    assert len(set(map(str, cells(True)))) == len(cells(True))
    assert {str(cell) for cell in cells(True)} < {str(cell) for cell in cells(False)}


def test_the_grid_sees_what_is_found_and_what_is_missed(patient: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"SEEDS": (0, 1), "SICK_SEEDS": (0,), "SIZES": ({"width": 16},), "HEALTHY_SIZES": ({"layers": 1},)}
    for name, value in few.items():
        monkeypatch.setattr(doctor_grid, name, value)
    grid = Grid(("batch",))
    grid.run(patient)
    found = report.figures(grid)
    batch = found["checks"]["batch"]
    assert batch["found"] == sum(make(patient, "mixed", cell) is not None for cell in cells(True))
    assert len(found["missed"]) == batch["found"] == 4
    assert all(line.startswith("batch: patient harmless (") for line in found["missed"])
    assert batch["sick"] == 2 * batch["found"]
    assert batch["sensitivity"] == 0.5
    assert batch["specificity"] == 1.0
    assert not batch["false_alarms"]
    assert batch["value_in_healthy"]["max"] < batch["limit"]["min"] < batch["value_in_sick"]["max"]


def test_grids_of_two_files_add_up(patient: Path) -> None:
    one, other, both = Grid(("batch",)), Grid(("batch",)), Grid(("batch",))
    one.examine(patient, "mixed", Cell(), every=True)
    other.examine(patient, None, Cell(), every=True)
    both.examine(patient, "mixed", Cell(), every=True)
    both.examine(patient, None, Cell(), every=True)
    one.add(other)
    one.tallies["batch"].seconds, both.tallies["batch"].seconds = [], []
    assert one == both
    assert one.tallies == both.tallies
    assert one.patients == {"healthy": 1, "sick": 1, "cannot be called": 0}
    assert one.tallies["batch"].healthy_values
    assert one.tallies["batch"].sick_values


def test_the_grid_sees_a_false_alarm(patient: Path) -> None:
    patient.write_text(PATIENT.replace("        # x = x - x.mean(0)  # sick: mixed", "        x = x - x.mean(0)"))
    grid = Grid(("batch",))
    grid.examine(patient, None, Cell(3), every=True)
    found = report.figures(grid)
    assert len(found["alarmed"]) == 1
    assert found["alarmed"][0].startswith("batch: patient (seed 3): a row's logits move")
    assert found["total"] == {"sick": 0, "found": 0, "healthy": found["total"]["healthy"], "false_alarms": 1}
    assert found["without_twin"] == list(grid.tallies)


def test_the_table_says_it_all(patient: Path) -> None:
    grid = Grid(("batch",))
    grid.run(patient, quick=True)
    spread = {"median": 1.0, "min": 1.0, "max": 1.0}
    large = {"parameters": 10_000_000, "threads": 2, "seconds": spread, "seconds_of_the_quick_look": spread}
    known = {"known": {"sick": ["future: 3"], "suspicious": [], "seconds": 0.1}, "absent": {"not_installed": "it"}}
    text = report.table({**report.figures(grid), "strangers": known, "large": large})
    assert "| batch | 1 of 2 | 0 of 1 |" in text
    assert "| known | future | - | 0.1 |" in text
    assert "| absent | not installed |" in text
    assert "- batch: patient harmless (seed 0): a row's logits move" in text
