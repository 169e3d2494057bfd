"""Every sick twin of the zoo is named for what it has, and nothing is found in the healthy ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo

from handmade import doctor
from handmade.doctor import checks

# A check of which nothing is written yet cannot be asked for.
TWINS = [(path, mistake) for path, mistake in zoo.twins() if zoo.load(path).MISTAKES[mistake] in checks.BY_NAME]


def found_in(path: Path, mistake: str | None = None) -> doctor.Report:
    return doctor.examine(doctor.Given.of(zoo.make(path, mistake)), name=f"{path.stem} {mistake or ''}".strip())


@pytest.mark.parametrize("path", zoo.files(), ids=lambda path: path.stem)
def test_nothing_is_found_in_the_healthy(path: Path) -> None:
    report = found_in(path)
    assert not report.sick, [report[name] for name in report.sick]
    assert not report.suspicious, [report[name] for name in report.suspicious]


@pytest.mark.parametrize(("path", "mistake"), TWINS, ids=lambda value: value.stem if isinstance(value, Path) else value)
def test_the_mistake_is_named(path: Path, mistake: str) -> None:
    file = zoo.load(path)
    report = found_in(path, mistake)
    expected = file.MISTAKES[mistake]
    assert expected in report.sick, report[expected]
    others = set(report.sick + report.suspicious) - {expected} - set(file.ALSO.get(mistake, ()))
    assert not others, [report[name] for name in others]
