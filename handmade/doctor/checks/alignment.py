"""Which token the model is asked for at each place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from handmade.doctor.checks.base import check
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious, worst_first
from handmade.doctor.patient import Patient
from handmade.doctor.puppet import Sizes
from handmade.doctor.reach import rehearsed
from handmade.doctor.scoring import Route, routes

SHIFTS = (1, 0, 2, -1, 3, -2)
RARE = (3, -2)
"""Looked at where no other is asked for."""
# Over 10 seeds, vocabularies 5..500 and English letters, contexts 8..64, 4..32 rows: the right shift gains 0.82..0.97
# of the loss of uniform logits (with label smoothing of 0.2 0.5..0.7, with softmax first 0.13..0.38), and no other
# shift gains more than 0.32 of that; never was it the wrong one. In the batches another agrees at 0..0.38 of places.
SECOND = 0.5
"""The next best shift may gain so much of what the best one does; else it cannot be said which is asked for."""
AGREE = 0.9
"""Targets of so many places are the token at one distance, or they are no shift of the inputs."""


@check(
    "targets",
    "the targets are not the next token",
    reference="Bengio et al. 2003 (JMLR 3:1137), section 2: the model of the next word given those before it",
    needs=(),
    demonstration="""\
import torch
import torch.nn.functional as F
text = torch.randint(20, (1, 9))
x, y = text[:, :-1], text[:, 1:]                 # y[t] is x[t + 1]: shifted once, in the data
copied = F.one_hot(x, 20) * 9.0                  # a model that repeats what it has just read
perfect = F.one_hot(y, 20) * 9.0                 # a model that knows the next token
for name, targets in (("right", y), ("not shifted", x)):
    print(name, "copying:", F.cross_entropy(copied.transpose(1, 2), targets).item(),
          "knowing:", F.cross_entropy(perfect.transpose(1, 2), targets).item())
twice = F.cross_entropy(perfect[:, :-1].transpose(1, 2), y[:, 1:]).item()
print("shifted twice: knowing costs", twice)     # the loss asks for x[t + 2]
""",
)
def targets(patient: Patient) -> Finding:
    """At place t the model is asked for the token at t + 1. Once between text and loss there has to be a shift by one:
    in the data, or in the loss, not in both, and in the right direction.

    The model's answers are made up: sure of the token s places on, for s = -2..3. The s of the lowest loss is what
    training asks for:

        s = argmin over s of loss(one_hot(x[t + s]), y)          healthy: s = 1

    With s = 0 the loss falls to nothing by copying; with s = 2 the next token is never learnt; with s < 0 the model is
    asked for what it has seen. Without loss and train_step only the batches are looked at.
    """
    if patient.expects("causal") is False:
        raise NotExamined("an encoder: its targets are no shift of the inputs")
    if patient.given.batches is None and patient.given.train_step is None:
        raise NotExamined("not given: batches, train_step")
    found, reasons = [], []
    with rehearsed(patient.given) as reach:
        sizes = Sizes(patient)
        places = shares(sizes) if patient.given.batches is not None else {}
        try:
            ways = routes(patient, reach) if len(places) != 1 else []
        except NotExamined as reason:
            ways = []
            reasons.append(str(reason))
        for route in ways:
            if patient.given.batches is None and route.name != "train_step":
                continue
            try:
                found.append(asked(sizes, route, places))
            except NotExamined as reason:
                reasons.append(str(reason))
            except Exception as problem:
                reasons.append(f"{route.name} failed: {type(problem).__name__}")
    if not found and places:
        found.append(drawn(places))
    if not found:
        raise NotExamined("; ".join(reasons))
    return worst_first(found)[0]


def shares(sizes: Sizes) -> dict[int, float]:
    """Shift -> share of the scored targets that are the token so many places on, in a batch of the person's own.
    Raises NotExamined for one whose targets are no tokens of these places."""
    inputs, wanted = sizes.batch()
    if wanted.dim() == 1 and len(wanted) == len(inputs):  # one target for a row: the token after it
        last = float((inputs[:, -1] == wanted).float().mean())
        if len(wanted) < 4 or last < AGREE:
            raise NotExamined("one target for every row: what stands after the row cannot be seen")
        return {0: last}
    if wanted.shape != inputs.shape:
        raise NotExamined(f"inputs are {tuple(inputs.shape)}, targets {tuple(wanted.shape)}: no shift of each other")
    if inputs.shape[1] < 4:
        raise NotExamined(f"rows of {inputs.shape[1]} are too short to see a shift")
    scored = wanted != sizes.given.ignore_index
    if sizes.given.padding is not None:
        scored &= wanted != sizes.given.padding
    found = {}
    for shift in SHIFTS:
        later, here = beside(inputs, shift), scored.clone()
        here[:, :][later < 0] = False
        found[shift] = float((later == wanted)[here].float().mean()) if here.any() else 0.0
    return found


def beside(tokens: Tensor, shift: int) -> Tensor:
    """The token `shift` places on; -1 where there is none. Shapes: (B, T) -> (B, T)."""
    found = torch.full_like(tokens, -1)
    length = tokens.shape[1]
    if shift >= 0:
        found[:, : length - shift] = tokens[:, shift:]
    else:
        found[:, -shift:] = tokens[:, :shift]
    return found


def sure_of(answers: Tensor, sizes: Sizes) -> Tensor:
    """Logits that say these tokens with nine tenths; uniform where an answer is below 0. (B, T) -> (B, T, V)."""
    said = F.one_hot(answers.clamp_min(0), sizes.vocabulary).float() * sizes.sure
    return said * (answers >= 0)[..., None]


def asked(sizes: Sizes, route: Route, places: dict[int, float]) -> Finding:
    """Which shift one way to the loss asks for."""
    uniform = route.aligned(lambda tokens: torch.zeros(*tokens.shape, sizes.vocabulary, device=tokens.device))
    losses: dict[int, float] = {}
    for shift in SHIFTS:
        if shift in RARE and any(loss < uniform for loss in losses.values()):
            break
        losses[shift] = route.aligned(lambda tokens, s=shift: sure_of(beside(tokens, s), sizes))  # type: ignore[misc]
    gains = {shift: uniform - loss for shift, loss in losses.items()}
    best = max(gains, key=lambda shift: gains[shift])
    others = max(gain for shift, gain in gains.items() if shift != best)
    if not gains[best] > 1e-3 * abs(uniform):
        raise NotExamined(f"{route.name} asks for no token near the one that is read: another task")
    if others > SECOND * gains[best]:
        raise NotExamined("the tokens of a batch repeat too much to see which one is asked for")
    return said_of(route.name, best, places, f"loss {losses[best]:.2f}, next token {losses[1]:.2f}")


def drawn(places: dict[int, float]) -> Finding:
    """The same where there are only batches."""
    best = max(places, key=lambda shift: places[shift])
    if places[best] < AGREE:
        raise NotExamined(
            f"targets are no shift of the inputs (at most {places[best]:.0%} of the places): another task"
        )
    if sorted(places.values())[-2:][0] > AGREE and len(places) > 1:
        raise NotExamined("the tokens of a batch repeat too much to see which one is asked for")
    if best == 0 and len(places) > 1:
        return suspicious(
            "targets are the inputs, not shifted",
            "targets are the inputs shifted by one",
            "if the loss does not shift by itself, the model learns to copy what it reads",
            "y = tokens[:, 1:], x = tokens[:, :-1]",
            "Does the loss shift by itself? Give `loss` or `train_step`, and it is seen.",
            value=0.0,
            limit=1.0,
        )
    return said_of("a batch", best, places, "no loss was seen")


def said_of(where: str, shift: int, places: dict[int, float], note: str) -> Finding:
    """The verdict for a shift."""
    words = {1: "the next token", 0: "the token just read"}.get(shift)
    words = words or (
        f"the token {shift} places on"
        if shift > 0
        else f"the token {-shift} {'place' if shift == -1 else 'places'} back"
    )
    data = max(places, key=lambda one: places[one]) if len(places) > 1 else None
    inside = f"; data shifted by {data}" if data is not None and places[data] >= AGREE else ""
    measured = f"{where} asks for {words} ({note}{inside})"
    expected = "the next token: one shift between text and loss"
    if shift == 1:
        return healthy(measured, expected, value=1.0, limit=1.0, where=where)
    if shift == 0:
        cause = "nothing is shifted: the loss falls to zero by copying, and the model cannot write"
        remedy = "shift once, in the data (y = tokens[:, 1:]) or in the loss (logits[:, :-1] against y[:, 1:])"
    elif shift > 1:
        cause = "targets are shifted more than once, in the data and again in the loss: the next token is never learnt"
        remedy = "shift once: take out the one in the loss, or give it the tokens as they are"
    else:
        cause = "targets are shifted the wrong way: the model is asked for what it has already seen"
        remedy = "y[t] = tokens[t + 1]: x = tokens[:, :-1], y = tokens[:, 1:]"
    return sick(measured, expected, cause, remedy, value=float(shift), limit=1.0, where=where)
