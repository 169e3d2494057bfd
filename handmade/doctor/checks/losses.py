"""Between logits and loss: what goes into the cross-entropy, and what is not scored.

The loss is asked wherever it stands: `loss`, a model that returns its own, `train_step`. It is given made-up logits,
and what it makes of them says what it does (handmade/doctor/scoring.py). `targets` is in alignment.py, `loss-mean` in
averages.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from handmade.doctor.checks.alignment import beside, sure_of, targets
from handmade.doctor.checks.averages import loss_mean
from handmade.doctor.checks.base import Check, check
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, worst_first
from handmade.doctor.patient import Patient
from handmade.doctor.puppet import PATIENCE, Puppet, Sizes, TooLong, hurried, number
from handmade.doctor.reach import call_evaluate, rehearsed
from handmade.doctor.scoring import COUNTED, Route, across, left_out, marks_in, marks_of

# Lowest loss over that of uniform logits. Over 10 seeds and V = 5..50,257: cross-entropy 0, with a z-loss of 1e-4 up to
# 0.003, with label smoothing of 0.1 0.15..0.24, of 0.2 0.28..0.44; softmax or sigmoid first 0.56 (V = 5), 0.64 (11),
# 0.74 (40), 0.84 (500), 0.91 (50,257).
FLOOR = 0.45
# How far a constant of 0 or 4 for every place moves the loss, over that of uniform logits: cross-entropy below 1e-5,
# z-loss of 1e-4 below 1e-3; log-softmax over time 0.39..0.75, over the batch 0.23..0.91.
MOVED = 0.05
STEPS = (1.0, 2.0, 4.0, 8.0, 16.0)


@check(
    "loss-input",
    "the cross-entropy does not get logits",
    reference="torch.nn.CrossEntropyLoss, documentation: the input is expected to contain the unnormalized logits",
    needs=(),
    demonstration="""\
import torch
import torch.nn.functional as F
target = torch.tensor([3])
for sure in (0.0, 5.0, 50.0):
    logits = F.one_hot(target, 40) * sure
    right = F.cross_entropy(logits, target).item()
    twice = F.cross_entropy(logits.softmax(-1), target).item()
    nll = F.nll_loss(logits, target).item()
    print(f"sure by {sure}: logits {right:.3f}, softmax first {twice:.3f}, nll of raw logits {nll:.3f}")
# softmax first stays above ln(1 + (V - 1) / e) - no certainty is enough; nll of raw logits falls without end
""",
)
def loss_input(patient: Patient) -> Finding:
    """The cross-entropy takes a softmax by itself: it wants logits z.

        loss(z, y) = ln sum exp z - z[y]

    Three things of it are measured, with answers in the kind that the model returns. Of an answer that is right, and
    ever surer, the loss goes to 0; with softmax (or a sigmoid) before it there is a floor, ln(1 + (V - 1) / e), and of
    plain negative log-likelihood it goes below 0. And a constant added to all logits of one place changes nothing; if
    it does, no softmax is there, or one over another axis. Log-softmax before it is harmless: it is the same twice.
    """
    return across(patient, lambda route: entered(patient, route))


def entered(patient: Patient, route: Route) -> Finding:
    sizes = Sizes(patient)
    vocabulary, kind = sizes.vocabulary, sizes.form.kind
    if vocabulary < 2:
        raise NotExamined("a vocabulary of one")
    generator = patient.generator
    shape = (route.rows, route.length)
    answers = torch.randint(1, vocabulary, shape, generator=generator).to(sizes.device)
    if patient.given.padding is not None:
        answers[answers == patient.given.padding] = (patient.given.padding + 1) % vocabulary
    sign = 2.0 * F.one_hot(answers, vocabulary).float() - 1.0
    # A loss that shifts inside holds the answer at t against the target at t + 1: both are tried.
    moved = torch.cat([sign[:, 1:], sign[:, :1]], 1)
    uniform = route.value(torch.zeros_like(sign), answers)
    curves = [[route.value(step * one, answers) for step in STEPS] for one in (sign, moved)]
    lowest = min(min(curve) for curve in curves)
    if uniform < -0.9 * math.log(vocabulary):
        raise NotExamined(f"{route.name} is {uniform:.2f} for a guess: its sign is turned")
    expected = "0 for a right and sure answer, unmoved by a constant"
    wide = torch.randn(*shape, vocabulary, generator=generator).to(sizes.device)
    wide = wide.log_softmax(-1) if kind != "logits" else wide
    before = route.value(wide, answers)
    constant = 4.0 * torch.randint(2, (*shape, 1), generator=generator).to(sizes.device)
    constant[:, 0] = 0.0
    constant[:, 1] = 4.0
    scale = max(abs(uniform), 1e-3)
    shifted = abs(route.value(wide + constant, answers) - before) / scale
    if lowest < -1e-3 * max(1.0, scale):
        probabilities = kind == "probabilities" or lowest > -1.01 * max(1.0, abs(uniform) * vocabulary)
        given = "probabilities" if probabilities else "raw logits"
        return sick(
            f"{route.name} falls to {lowest:.3g} for a right and sure answer",
            expected,
            f"a negative log-likelihood of {given}: there is no logarithm of a softmax, so the loss is no likelihood",
            "F.cross_entropy(logits, targets), or F.nll_loss(logits.log_softmax(-1), targets)",
            value=lowest,
            limit=0.0,
            where=route.name,
        )
    ratio = lowest / scale
    floor = math.log1p((vocabulary - 1) / math.e) / math.log(vocabulary)
    if abs(ratio / floor - 1) < 0.02:
        first = (
            "the model returns probabilities" if kind == "probabilities" else "a softmax (or sigmoid) stands before it"
        )
        return sick(
            f"{route.name} stays above {lowest:.3g} however sure the answer ({ratio:.0%} of that of a guess)",
            expected,
            f"{first}, and the cross-entropy takes another: answers are squeezed into 0..1, gradients vanish",
            "give the cross-entropy the logits: F.cross_entropy(logits, targets); softmax only when sampling",
            value=ratio,
            limit=FLOOR,
            where=route.name,
        )
    if kind == "logits" and shifted > MOVED:
        across_time = wide + 4.0 * torch.randint(2, (shape[0], 1, vocabulary), generator=generator).to(sizes.device)
        across_rows = wide + 4.0 * torch.randint(2, (1, shape[1], vocabulary), generator=generator).to(sizes.device)
        axes = {
            "time": abs(route.value(across_time, answers) - before) / scale,
            "the batch": abs(route.value(across_rows, answers) - before) / scale,
        }
        axis = min(axes, key=lambda name: axes[name])
        if axes[axis] <= MOVED / 10:
            return sick(
                f"a constant at one place moves {route.name} by {shifted:.0%}; one along {axis} does not",
                expected,
                f"the softmax is taken over {axis}, not over the vocabulary",
                "softmax over the last axis: F.log_softmax(logits, dim=-1), or F.cross_entropy on (N, V) or (B, V, T)",
                value=shifted,
                limit=MOVED,
                where=route.name,
            )
        raise NotExamined(f"{route.name} is no cross-entropy: a constant at one place moves it by {shifted:.0%}")
    if ratio > FLOOR:
        raise NotExamined(f"{route.name} is no cross-entropy: its lowest is {ratio:.0%} of that of a guess")
    note = ""
    if kind == "log-probabilities":
        note = "; log-softmax may stand there twice, which changes nothing"
    return healthy(
        f"{route.name} of a sure and right answer is {lowest:.2g}, a constant moves it by {shifted:.1g}{note}",
        expected,
        value=ratio,
        limit=FLOOR,
        where=route.name,
    )


@check(
    "loss-padding",
    "the loss counts padding",
    reference="torch.nn.CrossEntropyLoss, documentation: ignore_index, a target that adds nothing to the gradient",
    needs=(),
    demonstration="""\
import torch
import torch.nn.functional as F
targets = torch.tensor([[5, 7, 0, 0, 0, 0]])     # 0 fills the row up
logits = torch.zeros(1, 6, 10)
padded = logits.clone()
padded[:, 2:, 0] = 9.0                           # a model that has learnt to say "padding"
for name, options in (("counted", {}), ("left out", {"ignore_index": 0})):
    print(name, *(F.cross_entropy(z.transpose(1, 2), targets, **options).item() for z in (logits, padded)))
""",
)
def loss_padding(patient: Patient) -> Finding:
    """What the model says at places that are not scored is of no concern:

        loss(z, y) = loss(z', y)          z' differs from z where y is padding

    Else the model is trained to say padding, and its loss looks better the more of it there is. Which mark stands in
    such targets is seen in `batches`: `ignore_index`, or the padding id in a row of its own. Where `evaluate` and
    `padding` are given, the model's answers to padding are changed there too, and what it returns has to stay.
    """
    given = patient.given
    seen = marks_in(patient)
    findings, reasons = [], []
    try:
        findings.append(across(patient, lambda route: ignored_by(patient, route, seen)))
    except NotExamined as reason:
        reasons.append(str(reason))
    if given.evaluate is not None and given.padding is not None:
        try:
            findings.append(evaluated(patient, given.padding))
        except NotExamined as reason:
            reasons.append(str(reason))
    if not findings:
        raise NotExamined("; ".join(reasons))
    return worst_first(findings)[0]


def ignored_by(patient: Patient, route: Route, seen: set[int] | None) -> Finding:
    """Whether one way to the loss leaves out what is not scored."""
    if route.length < 4:
        raise NotExamined(f"{route.name} takes only rows of {route.length}")
    marks = marks_of(patient)
    moves = {mark: left_out(Sizes(patient), route, mark) for mark in marks}
    free = [mark for mark, moved in moves.items() if moved is not None and moved <= COUNTED]
    expected = "0: what is not scored does not count"
    for mark in marks:
        moved = moves[mark]
        if moved is None or moved <= COUNTED or (seen is not None and mark not in seen):
            continue
        if seen is None and free:
            raise NotExamined(f"targets may hold {mark} or {free[0]} where nothing is scored: give batches")
        return sick(
            f"{route.name} moves by {moved:.0%} when answers change where the target is {mark} (padding)",
            expected,
            "padding is scored like any token: the model learns to say it, and the loss looks better than it is",
            f"F.cross_entropy(..., ignore_index={mark}), or set such targets to -100",
            value=moved,
            limit=COUNTED,
            where=route.name,
        )
    if not free:
        raise NotExamined(f"{route.name} leaves no targets out, and no batch has any to leave out")
    return healthy(
        f"{route.name} does not move when answers change where the target is {' or '.join(map(str, free))}",
        expected,
        value=max(moves[mark] or 0.0 for mark in free),
        limit=COUNTED,
        where=route.name,
    )


def evaluated(patient: Patient, padding: int) -> Finding:
    """Whether `evaluate` leaves out padding, whatever it measures."""
    sizes = Sizes(patient)
    if not sizes.called or sizes.form.single:
        raise NotExamined("there is no model whose answers in evaluate could be made up")
    wrong = (padding + 1) % sizes.vocabulary

    def answering(at_padding: int, elsewhere: int) -> Callable[[Tensor], Tensor]:
        def make(tokens: Tensor) -> Tensor:
            answers = (beside(tokens, 1).clamp_min(0) + elsewhere) % sizes.vocabulary
            inside = (tokens == padding) & ((beside(tokens, 1) == padding) | (beside(tokens, 1) < 0))
            return sure_of(torch.where(inside, at_padding, answers), sizes)

        return make

    values = []
    with rehearsed(patient.given) as reach:
        states = reach.states()
        for make in (answering(padding, 0), answering(wrong, 0), answering(padding, 1)):
            reach.set_states(states)
            puppet = Puppet(sizes)
            try:
                with hurried(patient.given.model), puppet.speaking(make):
                    values.append(number(call_evaluate(patient.given), "evaluate"))
            except TooLong:
                raise NotExamined(f"evaluate takes more than {PATIENCE:g} s: give one over fewer batches") from None
    right, changed, worst = values
    if math.isclose(right, worst, rel_tol=1e-4):
        raise NotExamined("evaluate does not ask the model that was given for the next token")
    moved = abs(changed - right) / abs(worst - right)
    measured = f"evaluate says {right:.4g}, and {changed:.4g} when answers change inside the padding"
    if moved <= COUNTED:
        return healthy(measured, "no change", value=moved, limit=COUNTED, where="evaluate")
    return sick(
        measured,
        "no change",
        "padding is scored like any token, so the score says how much padding there is",
        f"count only where the target is not {padding}: right[scored].sum() / scored.sum()",
        value=moved,
        limit=COUNTED,
        where="evaluate",
    )


CHECKS: tuple[Check, ...] = (targets, loss_input, loss_mean, loss_padding)
