"""What a position sees: the past, all of it, and never the future. How it is asked: `handmade.doctor.probing`.

B rows, T positions, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from handmade.doctor.checks.base import Check, check
from handmade.doctor.checks.company import row_mixing
from handmade.doctor.findings import Finding, NotExamined, healthy, sick
from handmade.doctor.patient import Patient
from handmade.doctor.probing import (
    LARGE,
    SEEN,
    SMALL,
    answers,
    length_of,
    met,
    moved,
    named,
    replaced,
    rows_of,
)
from handmade.doctor.stirring import weights_of
from handmade.doctor.tracing import reach_of

# future

HIDDEN = SEEN
"""What may come through from a later token.

Causal models of all layouts, sizes and types: exactly 0 in value and in gradient, since a masked weight is exactly 0;
convolutions by Fourier transform round and leave up to 4e-7. Twins that look ahead: 2e-3 (a mask of -10 instead of
minus infinity) to 2.
"""


@check(
    "future",
    "a future token changes the past",
    reference="Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.3: leftward information flow has to be prevented",
    quick=True,
    demonstration="""\
import torch
scores = torch.randn(5, 5)                                # T queries, T keys
values = torch.randn(5, 4)
allowed = torch.ones(5, 5).tril().bool()
for name, masked in (("no mask", scores), ("mask", scores.masked_fill(~allowed, float("-inf")))):
    other = values.clone()
    other[4] += 1                                         # the last token changes
    weights = masked.softmax(-1)
    print(name, (weights @ other - weights @ values)[:4].abs().max())  # what the first four notice: 0 with the mask
""",
)
def future(patient: Patient) -> Finding:
    """What is said at position t may depend on tokens up to t alone:

        max over t < s of |logits[t](x) - logits[t](x with another token at s)| = 0
        max over t < s of |d logits[t] / d embedding[s]| = 0

    A model that sees the token it has to predict learns to copy it: its loss falls far too low, and what it generates,
    where there is no future to look at, is noise.

    One later token at a time is changed, in evaluation and in training mode; the gradient is taken at what the model
    makes of the tokens (the first float tensor that comes out of them). The first module whose output at an earlier
    position changes, while its input does not, is named.
    """
    if not patient.every_position:
        return healthy("only the last position is answered, and no token is later", "no later token counts")
    length = length_of(patient)
    with patient.exposed():
        tokens = rows_of(patient, length)
        places = sorted({1, length - 1} if patient.size > LARGE else {1, length // 2, length - 1})
        worst, place, training = 0.0, 0, False
        for mode in (False, True):
            before = answers(patient, tokens, mode)
            for one in places:
                there = moved(before[:one], answers(patient, replaced(patient, tokens, one), mode)[:one])
                if there > worst and not (mode and worst > HIDDEN):
                    worst, place, training = there, one, mode
        slope = leak_of_gradient(patient, tokens)
        where = leaking(patient, tokens, place, training) if worst > HIDDEN else ""
        aside = row_mixing(patient, tokens, training) if worst > HIDDEN else 0.0
    found = max(worst, slope or 0.0)
    if aside > SEEN:
        raise NotExamined(
            f"other rows are seen{' in training mode' if training else ''}, and later tokens with them: look at `batch`"
        )
    measured = f"another later token moves earlier logits by {worst:.2g} of the largest"
    measured += ", its gradient is not seen" if slope is None else f", {slope:.2g} of the gradient"
    if found <= HIDDEN:
        return healthy(measured, "0", value=found, limit=HIDDEN)
    if patient.expects("causal") is False:
        return healthy(f"{measured}, as was meant", "any", value=found, limit=HIDDEN)
    only = " in training mode" if training else ""
    return sick(
        f"{measured}{only}",
        "0",
        "an earlier position sees what comes later: a mask that is missing, upside down, transposed or applied after"
        " the softmax, a norm or mean over time, a convolution that is padded on both sides. What is to be predicted is"
        " seen in training and is not there when text is generated",
        "mask scores where key > query with -inf before the softmax; pad convolutions on the left only; an encoder:"
        ' expect={"causal": False}',
        value=found,
        limit=HIDDEN,
        where=where,
    )


def leak_of_gradient(patient: Patient, tokens: Tensor) -> float | None:
    """The largest gradient of an earlier position's logits with respect to a later token's embedding, relative to that
    of those that it may see."""
    length = tokens.shape[1]
    positions = sorted({0, length // 2, length - 2})
    reach = reach_of(patient, tokens, positions)
    if reach is None:
        return None
    return max(
        float(one[t + 1 :].max() / one[: t + 1].max().clamp_min(1e-30)) for t, one in zip(positions, reach, strict=True)
    )


def leaking(patient: Patient, tokens: Tensor, place: int, training: bool) -> str:
    """The first module that brings a token at `place` to earlier positions: it comes out there, and did not go in."""

    def differs(one: Tensor | None, other: Tensor | None) -> bool:
        if one is None or other is None or one.shape != other.shape or one.shape[1] != tokens.shape[1]:
            return False
        return moved(one[0, :place], other[0, :place]) > HIDDEN

    rows = (tokens, replaced(patient, tokens, place))
    try:
        traces = [patient.trace(row, training=training) for row in rows]
    except NotExamined:
        return ""
    for one, other in zip(*traces, strict=False):
        if one.key == other.key and differs(one.output, other.output) and not differs(one.given, other.given):
            return named(patient, one.path)
    return named(patient, "") if "" in patient.modules else ""


# past


@check(
    "past",
    "earlier tokens do not count",
    reference="Bengio et al. 2003, A Neural Probabilistic Language Model (JMLR 3), section 1: why more than one word",
    quick=True,
    demonstration="""\
import torch
from torch import nn
blocks = [nn.Linear(8, 8) for _ in range(2)]              # built ...
mix = torch.ones(5, 5).tril() / torch.arange(1, 6)[:, None]
x = torch.randn(5, 8)
other = torch.cat([torch.randn(1, 8), x[1:]])             # another first token
print((other - x)[-1].abs().max())                        # ... and never called: the last position does not notice
print(((mix @ blocks[0](other)) - (mix @ blocks[0](x)))[-1].abs().max())  # called: it does
""",
)
def past(patient: Patient) -> Finding:
    """What is said last has to depend on earlier tokens:

        r = max d such that |logits[T-1](x) - logits[T-1](x with another token at T-1-d)| > 0

    A model that sees its last token alone counts pairs of tokens, whatever else it is made of, and cannot become better
    than that.

    The tokens at all distances (of a large model at 1, 4, 13 and the first) are changed one at a time. Where none
    counts, modules that have parameters and never ran are named.
    """
    length = length_of(patient)
    asked = (
        (1, 4, 13) if patient.size > LARGE else (1, 2, 3, 5, 8, 13, 21) if patient.size > SMALL else range(1, length)
    )
    distances = sorted({d for d in (*asked, length - 1) if d < length})
    with patient.exposed():
        tokens = rows_of(patient, length) if patient.size else met(patient, length)
        before = answers(patient, tokens)

        def effect(distance: int) -> float:
            return moved(before[-1], answers(patient, replaced(patient, tokens, length - 1 - distance))[-1])

        effects = {distance: effect(distance) for distance in distances}
        reach, strongest = max((d for d, there in effects.items() if there > SEEN), default=0), max(effects.values())
        ahead = aside = 0.0
        if strongest <= SEEN:
            aside = row_mixing(patient, tokens)
            if patient.every_position:
                ahead = moved(before[:-1], answers(patient, replaced(patient, tokens, length - 1))[:-1])
    measured = f"tokens up to {reach} of {length - 1} positions back change what is said last, by up to {strongest:.2g}"
    meant = patient.expects("past")
    if reach and meant is False:
        return sick(
            measured, "no earlier token counts", "a bigram was declared, and earlier tokens change what is said",
            'leave expect={"past": False} out, or take away what mixes positions', value=strongest, limit=SEEN,
        )  # fmt: skip
    if reach:
        return healthy(measured, "at least 1", value=strongest, limit=SEEN)
    if meant is False:
        return healthy("no earlier token counts, as was meant", "none", value=strongest, limit=SEEN)
    if ahead > SEEN:
        raise NotExamined("the last position sees no earlier one, but earlier ones see it: look at `future`")
    if aside > SEEN:
        raise NotExamined("the last position sees no earlier one, but other rows: look at `batch`")
    idle = never_run(patient)
    what = f"built and never called: {', '.join(idle[:4])}{' ...' if len(idle) > 4 else ''}" if idle else (
        "attention that sees only its own position (a mask of the diagonal, a softmax over one key), or nothing that"
        " mixes positions at all"
    )  # fmt: skip
    return sick(
        f"none of {len(distances)} tokens asked about, 1 to {length - 1} positions back, changes what is said last",
        "the past counts",
        f"{what}. Only the last token is seen, so it can learn no more than pairs of tokens",
        'call every block in forward; mask the future only, not the past; a bigram: expect={"past": False}',
        value=strongest,
        limit=SEEN,
        where=idle[0] if idle else "",
    )


def never_run(patient: Patient) -> list[str]:
    """Modules that were not called and whose weights nobody else used (some are handed to a function): the outermost
    ones, but for mere lists."""
    with patient.exposed(), patient.outputs() as ran:
        weights = [one for one in weights_of(patient.given.model).values() if one.requires_grad]
        said = patient.run(rows_of(patient, length_of(patient)))
        if not said.requires_grad:
            return []
        gradients = torch.autograd.grad(said.sum(), weights, allow_unused=True)
    used = {id(one) for one, gradient in zip(weights, gradients, strict=True) if gradient is not None}
    idle: list[str] = []
    for path, module in patient.modules.items():
        own = list(module.parameters())
        called = path in ran or any(id(one) in used for one in own)
        within = any(path.startswith((f"{one}.", f"{one}[")) for one in idle)
        if own and not called and not within and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            idle.append(path)
    return idle


CHECKS: tuple[Check, ...] = (future, past)
