"""The benchmark beside other packages: what they are given is the patient, and what they say is counted fairly."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import doctor_rivals as rivals
from benchmarks.rivals import PACKAGES, Model, asked
from handmade.doctor import checks
from handmade.doctor.checks import base

FILES = {path.stem: path for path in zoo.files()}


@pytest.mark.parametrize("name", ["heads", "time_first", "convolution", "encoder_layer"])
def test_one_hot_rows_are_the_same_as_their_ids(name: str) -> None:
    model = Model(zoo.make(FILES[name])).eval()
    tokens, targets = model.batch(rows=5)
    size = model.patient.vocab_size
    logits = model(tokens)
    assert logits.shape == (*tokens.shape, size)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    rows = torch.nn.functional.one_hot(tokens, size).float().requires_grad_()
    again = model(rows)
    torch.testing.assert_close(again, logits)
    again.square().sum().backward()
    assert rows.grad is not None
    assert rows.grad.any()
    second = Model(zoo.make(FILES[name]), classes_second=True).eval()
    torch.testing.assert_close(second(tokens), logits.transpose(1, 2))


def test_what_cannot_be_asked_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "anyone", lambda make: Model(make()).batch() and {})
    assert asked("anyone", lambda: zoo.make(FILES["gru"]))["checks"] == {}
    answer = asked("anyone", lambda: {"model": lambda tokens: None, "vocab_size": 5})
    assert answer["cannot"].startswith("it could not be called")
    broken = asked("handmade", functools.partial(dict, modell=None))
    assert broken["error"].startswith("ConfigError: 'modell' is nothing that the doctor knows.")


def line(kind: str, file: str, mistake: str | None = None, check: str | None = None, **said: Any) -> dict[str, Any]:
    found = {package: {"checks": said.get(package.split("-")[0], {}), "seconds": 1.0} for package in PACKAGES}
    return {
        "name": f"{file} {mistake or ''}".strip(),
        "kind": kind,
        "file": file,
        "mistake": mistake,
        "check": check,
        "found": found,
    }


LINES = [
    line("healthy", "a", torchtest2={"loss": "pass", "shape": "fail"}, torch={"TA1": "warn"}),
    line("sick", "a", "one", "batch", handmade={"batch": "fail"}, torchtest2={"loss": "fail", "shape": "fail"}),
    line("sick", "a", "two", "batch", torchtest2={"shape": "fail"}, neural={"causal": "fail"}, torch={"TA2": "warn"}),
    line("sick", "a", "three", "no such check", handmade={"batch": "fail"}),
    line("stranger", "b", handmade={"batch": "pass"}, torch={"TA1": "fail"}),
]


def test_found_is_what_fails_in_the_sick_twin_and_not_in_the_healthy_one() -> None:
    figures = rivals.compared(LINES)
    assert {name: one["found"] for name, one in figures["packages"].items()} == {
        "handmade": 1,
        "torchtest2": 1,
        "neural-net-checklist": 1,
        "torch-audit": 0,
    }
    assert [one["of"] for one in figures["packages"].values()] == [2] * 4, "a check that is not written has no part"
    assert figures["packages"]["torch-audit"]["found_or_warned"] == 1
    assert figures["packages"]["handmade"]["named"] == 1
    assert figures["others_together"] == 2
    assert figures["found_by_others_alone"] == ["a two"]
    assert figures["packages"]["torchtest2"]["false_alarms"] == ["a"]
    assert figures["packages"]["torch-audit"]["false_alarms"] == ["b"]
    assert figures["packages"]["torch-audit"]["false_alarms_or_warnings"] == ["a", "b"]
    assert figures["checks"]["batch"]["twins"] == 2
    text = rivals.table(figures)
    assert "| mistakes found | 1 of 2 | 1 of 2 | 1 of 2 | 0 of 2 | 2 |" in text
    assert "Found by others and not by us: a two" in text


def test_a_package_is_not_asked_what_it_cannot_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(rivals.can_ask(package, "batch") for package in PACKAGES)
    needs = base.check("schedules", "", reference="", needs=("train_step", "schedule"))(lambda patient: None)  # type: ignore
    monkeypatch.setitem(checks.BY_NAME, "schedules", needs)
    assert [package for package in PACKAGES if rivals.can_ask(package, "schedules")] == ["handmade"]
