"""The doctor and the ladder: what a rung lacks, or is there to show, is found in its model, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from handmade import doctor, ladder
from handmade.ladder import RUNGS, SIDE_RUNGS, Rung
from handmade.ladder.rungs import CONTEXT, Settings
from handmade.randomness import seeded

VOCABULARY = 31


def model_of(rung: Rung) -> tuple[Any, ...]:
    settings = ladder.settings(rung)
    return settings.classes[0], settings.shape(VOCABULARY)


# Some differ from their parent in the training alone: one model is examined once.
DISTINCT = list({model_of(rung): rung for rung in (*SIDE_RUNGS, *reversed(RUNGS))}.values())


def patient(settings: Settings) -> dict[str, Any]:
    """A rung's model with the weights it begins with; one that counts has counted."""
    shape = settings.shape(VOCABULARY)
    model = settings.classes[0](shape, seeded(0, "initialization"))
    if settings.counted:
        model.fit(np.random.default_rng(0).integers(VOCABULARY, size=20_000))
    meant: dict[str, Any] = {}
    if settings.family == "gpt":
        meant = {"tied": shape.tied_head, **({"score_scale": True} if shape.query_key_norm else {})}
    given = {"vocab_size": VOCABULARY, "context": settings.model.get("context", CONTEXT), "expect": meant}
    return {"model": model, "trained": settings.counted, **given}


@pytest.mark.parametrize("rung", DISTINCT, ids=lambda rung: rung.name)
def test_exactly_what_a_rung_lacks_is_found(rung: Rung) -> None:
    report = doctor.examine(patient(ladder.settings(rung)), name=rung.name)
    assert set(report.sick) == set(rung.findings), report
    assert not report.suspicious, [report[name] for name in report.suspicious]


def test_another_training_is_no_other_model() -> None:
    known = {model_of(rung): rung.findings for rung in DISTINCT}
    assert all(rung.findings == known[model_of(rung)] for rung in (*RUNGS, *SIDE_RUNGS))


def test_the_ladder_leads_from_sick_to_healthy() -> None:
    """What a rung lacks, its parents lack too: an idea that has been added is not lost again."""
    known = {rung.name: rung for rung in RUNGS}
    for rung in RUNGS:
        parent = known.get(rung.parent or "")
        if parent is not None and parent.findings and ladder.settings(parent).family == ladder.settings(rung).family:
            assert set(rung.findings) <= set(parent.findings)
    assert not RUNGS[-1].findings
    lacking = {name for rung in RUNGS for name in rung.findings}
    assert lacking == {"past", "order"}
