"""A training that runs: in what mode the model is, whether its numbers are finite, whether its batches differ."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from handmade.doctor.checks.base import Check, check
from handmade.doctor.checks.steps import named, plural
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious
from handmade.doctor.patient import Patient
from handmade.doctor.rehearsing import Seen, observed
from handmade.doctor.updates import Update


@check(
    "training-mode",
    "the model is trained in evaluation mode",
    reference="PyTorch documentation, torch.nn.Module.train and eval",
    needs=(),
    demonstration="""\
import torch
from torch import nn
model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
def evaluate():
    model.eval()
    with torch.no_grad(): return model(torch.ones(1, 4)).mean()
evaluate()
print("after evaluating, dropout is on:", model[1].training)   # False: and so it stays
model.train()
print("after model.train():", model[1].training)
""",
)
def training_mode(patient: Patient) -> Finding:
    """Dropout and batch norms do something else in training than in evaluation, and `eval()` stays on until `train()`
    is called. So an evaluation that does not switch back turns dropout off for all that follows. The mode of the
    model is looked at in every call that a backward call follows.
    """
    seen = observed(patient)
    calls = seen.training()
    if not calls:
        raise NotExamined("no call of a module with parameters was seen before a backward call")
    off = [call for call in calls if not call.training]
    measured = f"in evaluation mode in {len(off)} of {plural(len(calls), 'training call')}"
    value = len(off) / len(calls)
    details: dict[str, Any] = {"value": value, "limit": 0.0}
    if not off:
        return healthy(measured, "none", **details)
    moody = sorted({name for call in off for name in depends_on_mode(call.module)})
    if not moody:
        return healthy(f"{measured}, and nothing in it depends on the mode", "none", **details)
    return sick(
        measured,
        "none",
        f"model.eval() was called and model.train() was not: what {', '.join(moody[:3])} does in training is not done",
        "call model.train() at the beginning of every training step, and after every evaluation",
        where=", ".join(moody[:3]),
        **details,
    )


def depends_on_mode(model: nn.Module) -> Iterator[str]:
    """Kinds of modules that do something else in training: those with a rate of dropout, and batch norms."""
    for module in model.modules():
        rates = [getattr(module, name, None) for name in ("p", "dropout", "dropout_p", "attn_dropout", "drop")]
        random = any(isinstance(rate, float) and rate > 0 for rate in rates)
        if random or isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield type(module).__name__


@check(
    "finite",
    "the loss or a gradient is not a finite number",
    reference="PyTorch documentation, torch.autograd.detect_anomaly",
    needs=(),
    demonstration="""\
import torch
x = torch.zeros(3, requires_grad=True)
loss = (x * x).sum().sqrt()                    # 0, but the root is infinitely steep there
loss.backward()
print(loss.item(), x.grad)                     # 0.0 and NaN: one step, and all weights are NaN
""",
)
def finite(patient: Patient) -> Finding:
    """A loss or gradient that is NaN or infinite makes every weight NaN in one step, and all that follows. Losses are
    looked at in every backward call, gradients at every step (in a few entries of each parameter). A step that a
    GradScaler left out is none.
    """
    seen = observed(patient)
    whole = seen.whole
    if not whole:
        raise NotExamined("no step was seen")
    losses = [loss for update in whole for loss in losses_of(update)]
    measured = f"losses {', '.join(f'{loss:.3g}' for loss in losses[:4])}" if losses else "gradients are finite"
    expected = "finite numbers"
    for place, update in enumerate(whole, 1):
        bad = [loss for loss in losses_of(update) if not math.isfinite(loss)]
        keys = [key for key, entries in update.stepped.items() if not bool(torch.isfinite(entries).all())]
        if not bad and not keys:
            continue
        what = f"at step {place} the loss is finite, and gradients of {plural(len(keys), 'parameter')} are not"
        if bad:
            what = f"the loss at step {place} is {bad[0]}"
        return sick(
            what,
            expected,
            "one such step makes all weights NaN: a logarithm of 0, a row masked as a whole, or numbers too large for "
            "their type",
            "find the first operation with torch.autograd.set_detect_anomaly(True)",
            where="" if bad else named(patient, keys),
            value=float(len(bad) + len(keys)),
            limit=0.0,
        )
    return healthy(measured, expected, value=0.0, limit=0.0)


def losses_of(update: Update) -> list[float]:
    """The losses of an update, without the scale of a GradScaler."""
    return [one.loss * (update.factor() if one.scaled else 1.0) for one in update.backwards if one.loss is not None]


@check(
    "same-batch",
    "every step sees the same batch",
    reference="PyTorch documentation, Reproducibility: what torch.manual_seed does",
    needs=(),
    demonstration="""\
import torch
def get_batch():
    torch.manual_seed(1337)                    # wrong: here it stands inside
    return torch.randint(100, (4,))
print(get_batch(), get_batch())                # twice the same
torch.manual_seed(1337)                        # right: once, at the beginning
print(torch.randint(100, (4,)), torch.randint(100, (4,)))
""",
)
def same_batch(patient: Patient) -> Finding:
    """A script that was watched handed its model the same tokens in every step: because a batch is drawn outside the
    loop, or because the seed is set again before each is drawn. It learns that batch by heart. Only looked at in whole
    scripts: a `train_step` may be handed one batch on purpose.
    """
    seen = observed(patient)
    if not seen.script:
        raise NotExamined("seen in whole scripts alone (--watch)")
    rows = [[call.integers[0] for call in seen_in(seen, update) if call.integers] for update in seen.updates]
    rows = [row for row in rows if row]
    if len(rows) < 3:
        raise NotExamined("fewer than 3 steps with tokens were seen")
    again = sum(equal(rows[0], row) for row in rows[1:]) + 1
    details: dict[str, Any] = {"value": float(again), "limit": float(len(rows) - 1)}
    if again < len(rows):
        return healthy(f"{len(rows)} steps, {len(rows) - again + 1} different batches", "different batches", **details)
    measured = f"the same tokens in all {len(rows)} steps"
    cause = "a batch is drawn once, outside the loop, or the seed is set again before each: it is learnt by heart"
    remedy = "draw a batch in every step; set the seed once, at the beginning"
    declared = patient.expects("same_batch")
    if declared:
        return healthy(f"{measured}, as was declared", "the same batch", **details)
    if declared is False:
        return sick(measured, "different batches", cause, remedy, **details)
    question = "Is every step meant to see all of the data, or this one batch? Then expect={'same_batch': True}"
    return suspicious(measured, "different batches", cause, remedy, question, **details)


def seen_in(seen: Seen, update: Update) -> list[Any]:
    return [call for call in seen.training() if any(call in one.recorded for one in update.backwards)]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )


CHECKS: tuple[Check, ...] = (training_mode, finite, same_batch)
