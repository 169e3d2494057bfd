"""Healthy models that the doctor was not made for: nothing in them is sick."""

from __future__ import annotations

from typing import Any

import pytest
from strangers import OWN_WIDTH, STRANGERS, Stranger, torch_encoder

from handmade import doctor


def parameter(stranger: Stranger, *marks: pytest.MarkDecorator) -> Any:
    if stranger.package != "torch":
        missing = pytest.mark.skipif(not stranger.present, reason=f"{stranger.package} is not installed")
        marks = (*marks, pytest.mark.bench, missing)
    return pytest.param(stranger, id=stranger.name, marks=marks)


@pytest.mark.parametrize(
    "stranger",
    [parameter(stranger) for stranger in STRANGERS] + [parameter(stranger, pytest.mark.slow) for stranger in OWN_WIDTH],
)
def test_nothing_is_sick_in_a_stranger(stranger: Stranger) -> None:
    patient = doctor.Given.of(stranger.make(0))
    assert doctor.Patient(patient).failure is None
    report = doctor.examine(patient, name=stranger.name)
    assert not report.sick, [report[name] for name in report.sick]
    assert report.of("healthy")


def test_a_stranger_that_is_sick_is_found() -> None:
    given = torch_encoder(norm_first=True)(0)
    given["model"].embedding.register_forward_hook(lambda module, inputs, x: x - x.mean(0))
    assert doctor.examine(doctor.Given.of(given)).sick
