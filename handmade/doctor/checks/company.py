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

        d = max |f([x, y])[0] - f([x, z])[0]| / max |f|        and the same for the last row

    A model whose rows depend on each other learns from its batch-mates, and answers differently when asked alone.

    Measured with matrices drawn anew and the same random numbers in both calls, in evaluation and in training mode. In
    training mode a batch norm mixes rows by design: of a model that answers for every position that is a fault (a token
    sees the statistics of the tokens that it has to predict), of one that answers for whole rows it is not. Tokens that
    go in as (T, B), with a recurrent layer that takes the batch second, are a question: the layer may be meant so, or
    its `batch_first=True` may be forgotten.
    """
    if patient.form.single or patient.form.rows == 1:
        raise NotExamined("the model takes one sequence at a time")
    tokens = patient.tokens(patient.form.rows or 3, patient.length if patient.form.full else min(patient.length, 24))
    with patient.exposed():
        evaluated, trained = (row_mixing(patient, tokens, training) for training in (False, True))
    forgiven = evaluated <= LIMIT < trained and not patient.every_position
    distance = evaluated if evaluated > LIMIT or forgiven else max(evaluated, trained)
    norms = [path for path, one in patient.modules.items() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    only = " in training" if evaluated <= LIMIT < distance else ""
    measured = f"a row's logits move by {distance:.2g} of the largest{only} when its batch-mates change"
    if distance > LIMIT:
        return sick(
            measured,
            "0",
            "something is computed over the batch: a mean, a norm, attention, recurrence along a wrong axis; or rows"
            " and positions are mixed up by a view. A row learns from its neighbours, and is answered otherwise alone",
            "compute over the last axis (features) only; batch_first=True in nn.LSTM, nn.GRU, nn.MultiheadAttention and"
            " nn.TransformerEncoder; check every .view and .transpose",
            value=distance,
            limit=LIMIT,
            where=norms[0] if only and norms else "",
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
        measured += ", in training by more, as a batch norm has it"
    return healthy(measured, "0", value=distance, limit=LIMIT)


def row_mixing(patient: Patient, tokens: Tensor, training: bool = False) -> float:
    """How far what is said about the first row moves when those behind it are others, and about the last one when those
    before it are: the larger of both, relative to the largest entry. 0 where there is one row alone.
    Raises NotExamined where what is said is not finite."""
    if len(tokens) < 2:
        return 0.0
    others = patient.other(tokens)
    with torch.no_grad(), patient.mode(training):
        before = patient.run(tokens)
        first = patient.run(torch.cat([tokens[:1], others[1:]]))[0]
        last = patient.run(torch.cat([others[:-1], tokens[-1:]]))[-1]
    if not (before.isfinite().all() and first.isfinite().all() and last.isfinite().all()):
        raise NotExamined("what it answers is not finite")
    scale = before.abs().max().clamp_min(1e-9)
    return float(max((first - before[0]).abs().max(), (last - before[-1]).abs().max()) / scale)


CHECKS: tuple[Check, ...] = (batch,)
