"""Every sick twin of the zoo is named for what it has, and nothing is found in the healthy ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo

from handmade import doctor
from handmade.doctor import checks

TWINS = zoo.twins()


def found_in(path: Path, mistake: str | None = None, only: tuple[str, ...] | None = None) -> doctor.Report:
    things = doctor.Given.of(zoo.make(path, mistake))
    return doctor.examine(things, name=f"{path.stem} {mistake or ''}".strip(), only=only)


def named(value: object) -> str:
    return value.stem if isinstance(value, Path) else str(value)


@pytest.mark.parametrize("path", zoo.files(), ids=named)
def test_nothing_is_found_in_the_healthy(path: Path) -> None:
    report = found_in(path)
    assert not report.sick, [report[name] for name in report.sick]
    assert not report.suspicious, [report[name] for name in report.suspicious]


@pytest.mark.parametrize(("path", "mistake"), TWINS, ids=named)
def test_the_mistake_is_named(path: Path, mistake: str) -> None:
    expected = zoo.load(path).MISTAKES[mistake]
    report = found_in(path, mistake, (expected,))
    assert expected in report.sick, report[expected]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "mistake"), TWINS, ids=named)
def test_no_other_mistake_is_named(path: Path, mistake: str) -> None:
    file = zoo.load(path)
    report = found_in(path, mistake)
    others = set(report.sick + report.suspicious) - {file.MISTAKES[mistake]} - set(file.ALSO.get(mistake, ()))
    assert not others, [report[name] for name in others]


def test_every_check_has_a_patient() -> None:
    """`same-batch` is seen in whole scripts alone: tests/test_doctor_watching.py."""
    assert {zoo.load(path).MISTAKES[mistake] for path, mistake in TWINS} == set(checks.BY_NAME) - {"same-batch"}
