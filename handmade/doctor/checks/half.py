"""What half precision does to a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from handmade.doctor.checks.base import Check, check
from handmade.doctor.findings import Finding, NotExamined, healthy, sick
from handmade.doctor.flow import Flow, first_bad, followed, root_mean_square, short, spread
from handmade.doctor.patient import Patient

HALVES = (torch.float16, torch.bfloat16)
# Healthy models over the same grid, in bfloat16, which is the worse one: 0.00..0.045. A norm that overflowed unseen: 1.
MOST_APART = 0.3


@check(
    "half-precision",
    "half precision overflows",
    reference="Micikevicius et al. 2018, 'Mixed Precision Training' (arXiv:1710.03740), section 3",
    demonstration="""\
import torch
print(torch.finfo(torch.float16).max)                  # 65504
x = torch.full((4,), 300.0).half()
print("RMS by squares in float16:", x.square().mean().sqrt(), "in float32:", x.float().square().mean().sqrt().half())
try:
    torch.zeros(2).half().masked_fill(torch.tensor([True, False]), -1e9)
except RuntimeError as problem:
    print("a mask of -1e9:", problem)
print("a mask of -inf:", torch.zeros(2).half().masked_fill(torch.tensor([True, False]), float("-inf")))
""",
)
def half_precision(patient: Patient) -> Finding:
    """float16 ends at 65,504 and bfloat16 has 8 bits of precision. The model is run as a copy in each, and held against
    itself in float32:

        d = RMS(half - float32) / RMS(float32)          of the logits; below the line without what all positions share

    A square above 65,504 (a feature above 255 in a norm written by hand), scores that are not scaled, or a mask of -1e9
    give inf, then NaN; or, silently, a norm that divides by infinity. Masks are filled with minus infinity or with
    torch.finfo(x.dtype).min, and norms take their squares in float32.

    expect={"half_precision": False}: it never runs in half precision, and is not examined.
    """
    if patient.expects("half_precision") is False:
        raise NotExamined("it is declared never to run in half precision")
    if not isinstance(patient.model, nn.Module):
        raise NotExamined("the model is a function: its dtype cannot be changed")
    tokens = short(patient, 2)
    with cast(patient, torch.float32):
        full = patient.logits(tokens)
        again = patient.logits(tokens)
    if not torch.equal(full.nan_to_num(), again.nan_to_num()):
        raise NotExamined("two calls in float32 differ already, in evaluation mode: see `dropout`")
    if not full.isfinite().any():
        raise NotExamined("the logits are not finite in float32 either")
    finite = full.isfinite()
    apart: dict[torch.dtype, float] = {}
    reasons = []
    for kind in HALVES:
        name = str(kind).removeprefix("torch.")
        try:
            half, flow = in_half(patient, kind, tokens)
        except Unable as problem:
            said, flow = str(problem), problem.flow
            if "overflow" in said:
                where = flow.open[-1].name if flow.open else ""
                return sick(
                    f"it stops in {name}{f', in {where}' if where else ''}: {said}",
                    f"logits as in float32, up to {MOST_APART:g} of their RMS",
                    f"a number written in the code does not fit {name}, which ends at {torch.finfo(kind).max:g}:"
                    " mostly a mask of -1e9",
                    "fill masks with float('-inf'), or with torch.finfo(scores.dtype).min",
                    where=flow.where,
                )
            reasons.append(f"{name}: {said}")
            continue
        bad = ~half.isfinite() & finite
        if bad.any():
            call = first_bad(flow)
            return sick(
                f"{float(bad.float().mean()):.0%} of the logits are inf or NaN in {name}"
                + (f", first in {call.name}" if call is not None else ""),
                "finite logits, as in float32",
                f"a number above {torch.finfo(kind).max:g} on the way: large activations or weights, scores that are"
                " not scaled, squares that are summed in half precision",
                "scale scores before they are summed, take squares and sums of a norm in float32",
                where="" if call is None else call.path,
            )
        wide, narrow = full.masked_fill(~finite, 0.0), half.masked_fill(~finite, 0.0)
        # Where the logits are little else than a bias, its rounding is no fault.
        apart[kind] = root_mean_square(narrow - wide) / max(spread(wide), 0.1 * root_mean_square(wide), 1e-6)
    if not apart:
        raise NotExamined("it cannot be cast: " + "; ".join(reasons))
    patient.notes += [f"half precision: not run in {reason}" for reason in reasons]
    worst = max(apart, key=lambda kind: apart[kind])
    value = apart[worst]
    measured = ", ".join(f"{str(kind).removeprefix('torch.')} {value:.2g}" for kind, value in apart.items())
    measured = f"logits differ from float32's, relative to their RMS: {measured}"
    if value <= MOST_APART:
        return healthy(measured, f"at most {MOST_APART:g}", value=value, limit=MOST_APART)
    return sick(
        measured,
        f"at most {MOST_APART:g}",
        "a number overflowed and was taken back unseen (divided by, or clipped), or sums lose their small terms",
        "take the squares and sums of norms, softmax and rotary angles in float32, and cast back afterwards",
        value=value,
        limit=MOST_APART,
    )


class Unable(Exception):
    """A model cannot be run in a dtype, and how far it came."""

    def __init__(self, problem: Exception, flow: Flow) -> None:
        super().__init__((str(problem).strip() or type(problem).__name__).splitlines()[0])
        self.flow = flow


def in_half(patient: Patient, kind: torch.dtype, tokens: Tensor) -> tuple[Tensor, Flow]:
    """The logits of a copy in half precision, or where tensors of two dtypes meet, with autocast; and what flowed.
    Raises Unable."""
    flow = Flow()
    try:
        with cast(patient, kind), followed(patient) as flow:
            return patient.logits(tokens), flow
    except Exception as problem:
        if "dtype" not in str(problem):
            raise Unable(problem, flow) from problem
    try:
        autocast = torch.autocast(tokens.device.type, dtype=kind)
        with cast(patient, torch.float32), followed(patient) as flow, autocast:
            return patient.logits(tokens), flow
    except Exception as problem:
        raise Unable(problem, flow) from problem


@contextlib.contextmanager
def cast(patient: Patient, kind: torch.dtype) -> Iterator[None]:
    """All modules, hidden ones too, in a dtype. Afterwards they have the tensors that they had."""
    modules = list(patient.modules.values())
    parameters = [(p, p.data) for one in modules for p in one._parameters.values() if p is not None]
    buffers = [(one, dict(one._buffers)) for one in modules]
    try:
        for one in modules:
            one._apply(lambda t: t.to(kind) if t.is_floating_point() else t)  # as half() does: a complex one stays
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for one, before in buffers:
            one._buffers.update(before)


CHECKS: tuple[Check, ...] = (half_precision,)
