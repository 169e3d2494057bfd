"""A row of a batch knows nothing of the others."""

from __future__ import annotations

from handmade.doctor.checks.base import Check, check
from handmade.doctor.findings import Finding, NotExamined, healthy, sick
from handmade.doctor.patient import Patient

# A row alone and among others goes through products of other shapes, which round differently. Relative to the largest
# logit, healthy models of all sizes and types in results/doctor.json stay below 2e-5 in float32; a batch norm in
# training mode moves them by more than 1e-2.
LIMIT = 1e-3


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
""",
)
def batch(patient: Patient) -> Finding:
    """The same row is read in two companies, and has to say the same:

        d = max |f([x, y])[0] - f([x, z])[0]| / max |f|

    It is the first row once, and the last row once: where a view has mixed rows and positions up, a causal model lets
    each row see only those before it. A model whose rows depend on each other learns from its batch-mates, and answers
    differently when asked alone.
    """
    if patient.form.single:
        raise NotExamined("the model takes one sequence at a time")
    tokens = patient.tokens(4)
    alone = patient.logits(tokens)
    scale = float(alone.abs().max().clamp_min(1e-6))
    distance = 0.0
    for row in (0, -1):
        others = patient.other(tokens)
        others[row] = tokens[row]
        distance = max(distance, float((alone[row] - patient.logits(others)[row]).abs().max()) / scale)
    measured = f"a row's logits move by {distance:.2g} of the largest when its batch-mates change"
    if distance <= LIMIT:
        return healthy(measured, "0", value=distance, limit=LIMIT)
    return sick(
        measured,
        "0",
        "something is computed over the batch: a mean, a norm, or rows and positions mixed up by a view",
        "compute over the last axis (features) only; check every .view and .transpose",
        value=distance,
        limit=LIMIT,
    )


CHECKS: tuple[Check, ...] = (batch,)
