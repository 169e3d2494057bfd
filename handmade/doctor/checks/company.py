"""A row of a batch knows nothing of the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from handmade.doctor.checks.base import Check, check
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious
from handmade.doctor.patient import Patient

LIMIT = 1e-5
"""How far a row's logits may move, relative to the largest, when its batch-mates change. To be measured."""


@check(
    "batch",
    "a row depends on its batch-mates",
    reference="Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3.1: what batch statistics do",
    quick=True,
    demonstration="""\
import torch
x = torch.randn(4, 8, 16)                       # B, T, C
wrong = (x - x.mean()) / x.std()                # over the whole batch
alone = (x[:1] - x[:1].mean()) / x[:1].std()
print((wrong[0] - alone[0]).abs().max())        # not zero: the others had a say
right = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)
alone = (x[:1] - x[:1].mean(-1, keepdim=True)) / x[:1].std(-1, keepdim=True)
print((right[0] - alone[0]).abs().max())        # zero
""",
)
def batch(patient: Patient) -> Finding:
    """The same row is read in two companies, and has to say the same:

        d = max |f([x, y])[0] - f([x, z])[0]| / max |f|

    A model whose rows depend on each other learns from its batch-mates, and answers differently when asked alone.

    Measured with matrices drawn anew and the same random numbers in both calls, in evaluation and in training mode. In
    training mode a batch norm mixes rows by design: of a model that answers for every position that is a fault (a token
    sees the statistics of the tokens that it has to predict), of one that answers for whole rows it is not. Tokens that
    go in as (T, B), with a recurrent layer that takes the batch second, are a question: the layer may be meant so, or
    its `batch_first=True` may be forgotten.
    """
    if patient.form.single or patient.form.rows == 1:
        raise NotExamined("the model takes one sequence at a time")
    tokens = patient.tokens(patient.form.rows or 4, min(patient.length, 32) if not patient.form.full else None)
    others = patient.other(tokens)
    others[0] = tokens[0]
    with patient.exposed():
        evaluated, trained = (apart(patient, tokens, others, training) for training in (False, True))
    by_design = [path for path, one in patient.modules.items() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    forgiven = evaluated <= LIMIT and bool(by_design) and not patient.every_position
    distance = evaluated if evaluated > LIMIT or forgiven else max(evaluated, trained)
    only = " in training" if evaluated <= LIMIT < distance else ""
    measured = f"a row's logits move by {distance:.2g} of the largest{only} when its batch-mates change"
    if distance > LIMIT:
        return sick(
            measured,
            "0",
            "something is computed over the batch: a mean, a norm, attention or recurrence along the wrong axis, or"
            " rows and positions mixed up by a view. A row learns from its neighbours and is answered differently alone",
            "compute over the last axis (features) only; batch_first=True in nn.LSTM, nn.GRU, nn.MultiheadAttention and"
            " nn.TransformerEncoder; check every .view and .transpose",
            value=distance,
            limit=LIMIT,
            where=by_design[0] if only and by_design else "",
        )
    second = [path for path, one in patient.modules.items() if isinstance(one, nn.RNNBase) and not one.batch_first]
    if patient.form.time_first and second and not patient.time_is_known:
        return suspicious(
            f"tokens were taken as (T, B): {second[0]} takes the batch second",
            "rows along the first axis",
            "given (B, T), it reads down the batch instead of along the text: the rows of a batch become one text",
            f"batch_first=True in {second[0]}, if tokens are (B, T)",
            'are tokens meant to go in as (T, B)? expect={"time_first": True}; as (B, T)? expect={"time_first": False}',
            value=distance,
            limit=LIMIT,
            where=second[0],
        )
    if forgiven:
        measured += "; in training its batch norm mixes them"
    return healthy(measured, "0", value=distance, limit=LIMIT)


def apart(patient: Patient, tokens: Tensor, others: Tensor, training: bool) -> float:
    """How far the first row's answer moves with its company, relative to its largest. Raises NotExamined where it is
    not finite."""
    with torch.no_grad(), patient.mode(training):
        first, second = patient.run(tokens)[0], patient.run(others)[0]
    if not (first.isfinite().all() and second.isfinite().all()):
        raise NotExamined("what it answers is not finite")
    return float((first - second).abs().max() / first.abs().max().clamp_min(1e-9))


CHECKS: tuple[Check, ...] = (batch,)
