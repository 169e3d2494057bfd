"""The examination: every check on one patient, and nothing left behind."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from handmade.doctor import checks
from handmade.doctor.checks.base import Check
from handmade.doctor.findings import Finding, NotExamined, Report, worst_first
from handmade.doctor.given import Given
from handmade.doctor.patient import Patient
from handmade.doctor.snapshot import undisturbed
from handmade.errors import ConfigError, did_you_mean

SECONDS = 60.0
"""No check is begun after so many seconds: what was not reached is not examined."""


def examine(
    model: Any = None,
    *,
    name: str = "",
    only: Iterable[str | Check] | None = None,
    extra: Iterable[Check] = (),
    quick: bool = False,
    seconds: float = SECONDS,
    seed: int = 0,
    **given: Any,
) -> Report:
    """Examine a model and what belongs to it; `given` are the fields of `Given`.

        report = examine(model, vocab_size=65, context=64, optimizer=optimizer, batches=get_batch)

    `model` may be a torch module, a function of token ids, or a `Given`, mapping or object that has all there is.
    `only`: names of checks, or checks of your own, and no others; `extra`: checks of your own beside all;
    `quick`: the quick ones alone. `seconds`: how long to go on beginning checks. `seed`: of the tokens that are drawn.

    Weights, modes, gradients and generators are as before afterwards. Raises ConfigError for a name that is not
    known or sizes that cannot be seen.
    """
    things = Given.of(model) if model is not None and not callable(model) else None
    if things is None:
        things = Given(model=model, **given)
    elif given:
        raise ConfigError("give either one thing that has all there is, or a model and keywords.")
    began = time.perf_counter()
    chosen = [*choose(only, quick), *extra]
    patient = Patient(things, name or name_of(things.model), seed)
    found = []
    for one in chosen:
        if time.perf_counter() - began > seconds:
            found.append(Finding(one.name, "not examined", f"no time: {seconds:g} s had passed"))
            continue
        found.append(make(one, patient))
    return Report(
        patient.name,
        worst_first(found),
        tuple(dict.fromkeys(patient.notes)),
        time.perf_counter() - began,
        {"torch": torch.__version__},
    )


def name_of(model: Any) -> str:
    """What to call a patient."""
    return getattr(model, "__name__", type(model).__name__) if model is not None else "no model"


def choose(only: Iterable[str | Check] | None, quick: bool) -> list[Check]:
    """The checks that are asked for. Raises ConfigError for a name that is not known."""
    if only is None:
        return [check for check in checks.ALL if check.quick or not quick]
    found = []
    for one in only:
        if isinstance(one, str) and one not in checks.BY_NAME:
            near = did_you_mean(one, checks.BY_NAME) or f" There are {', '.join(checks.BY_NAME)}."
            raise ConfigError(f"no check {one!r}.{near}")
        found.append(checks.BY_NAME[one] if isinstance(one, str) else one)
    return found


def make(check: Check, patient: Patient) -> Finding:
    """One check on one patient. What goes wrong inside it is the reason why it was not examined: the patient's code
    may fail anywhere."""
    began = time.perf_counter()
    try:
        for need in check.needs:
            if need == "callable":
                if patient.failure is not None:
                    raise NotExamined(patient.failure)
            else:
                patient.require(need)
        with undisturbed(*patient.given.belongings()), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = check.body(patient)
    except NotExamined as reason:
        found = Finding("", "not examined", str(reason))
    except Exception as problem:
        said = str(problem).strip().splitlines()
        found = Finding("", "not examined", f"it failed: {type(problem).__name__}: {said[0] if said else ''}")
    return replace(
        found, check=check.name, reference=found.reference or check.reference, seconds=time.perf_counter() - began
    )


def assert_healthy(model: Any = None, *, suspicious: bool = False, **options: Any) -> Report:
    """For a person's own tests: an AssertionError that lists what is wrong, or the report. With `suspicious`, open
    questions fail too. Takes what `examine` takes."""
    report = examine(model, **options)
    wrong = report.of("sick") + (report.of("suspicious") if suspicious else [])
    if wrong:
        lines = [f"{f.check}: {f.measured} (expected: {f.expected}). {f.question or f.remedy}" for f in wrong]
        raise AssertionError("\n".join([f"{report.patient} is not healthy:", *lines]))
    return report
