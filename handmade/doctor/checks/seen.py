"""What can be told from a training that was watched, and from its `cross_entropy`, alone: no function was given to be
asked. They go by the names of the checks that ask."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor

from handmade.doctor.checks.base import Check, check
from handmade.doctor.checks.steps import plural
from handmade.doctor.events import Forward, Scored
from handmade.doctor.findings import Finding, NotExamined, healthy, sick
from handmade.doctor.patient import Patient
from handmade.doctor.rehearsing import Seen, observed

# Share of the targets that are the token so many places on. Of unrelated tokens 1/V are, of real text about 0.07.
ALIKE = 0.9
PLACES = (1, 0, 2, -1, -2, 3)
"""How far targets may be moved, likelier first."""


def pairs(seen: Seen) -> list[tuple[Tensor, Tensor]]:
    """(tokens, targets) of the same shape (B, T), as they came together in a backward call."""
    found = []
    for update in seen.updates:
        for one in update.backwards:
            calls = [e for e in one.recorded if isinstance(e, Forward) and parameters(e) and e.integers]
            scored = [e for e in one.recorded if isinstance(e, Scored)]
            if not calls or not scored:
                continue
            # An encoder-decoder is called with a source too: the tokens are those that the targets continue.
            several = [p for x in calls[-1].integers if (p := fitted(x, scored[-1].targets)) is not None]
            found += sorted(several, key=likeness)[:1]
    return found


def likeness(pair: tuple[Tensor, Tensor]) -> int:
    """0 for tokens whose targets are the next ones, 1 for those moved otherwise, 2 where they are others."""
    place = moved(*pair)
    return 2 if place is None else int(place[0] != 1)


def parameters(call: Forward) -> bool:
    return any(True for _ in call.module.parameters())


def fitted(tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor] | None:
    """Targets brought into the shape of the tokens. None where they are not one for each, or one less per row."""
    if tokens.dim() != 2:
        return None
    rows, length = tokens.shape
    if targets.numel() == tokens.numel():
        return tokens, targets.reshape(rows, length)
    if length > 1 and targets.numel() == rows * (length - 1):  # logits[:, :-1] beside tokens[:, 1:]
        return tokens[:, :-1], targets.reshape(rows, length - 1)
    return None


def moved(tokens: Tensor, targets: Tensor) -> tuple[int, float, bool] | None:
    """By how many places targets are moved, the share that agrees, and whether time is the first axis; None where they
    are not the tokens moved."""
    for place in PLACES:
        for first in (False, True):
            x, y = (tokens.T, targets.T) if first else (tokens, targets)
            size = x.shape[1] - abs(place)
            if size < 1:
                continue
            later, now = (x[:, place:], y[:, :size]) if place >= 0 else (x[:, :size], y[:, -size:])
            scored = now >= 0
            if scored.sum() < 4:
                continue
            share = float((later == now)[scored].float().mean())
            if share >= ALIKE:
                return place, share, first
    return None


@check(
    "targets",
    "targets are not the next tokens",
    reference="Bengio et al. 2003, A Neural Probabilistic Language Model (JMLR 3), section 2",
    needs=(),
)
def targets(patient: Patient) -> Finding:
    """A language model learns the token after each: y[t] = x[t + 1]. What went into the model and what its
    cross-entropy was given are laid beside each other, moved by -2 to 3 places.
    """
    seen = observed(patient)
    together = pairs(seen)
    if not together:
        raise NotExamined("tokens and targets of one shape were not seen together")
    found = [one for x, y in together if (one := moved(x, y)) is not None]
    if not found:
        raise NotExamined("the targets are not the tokens moved by some places: another task")
    place, count = Counter(one[0] for one in found).most_common(1)[0]
    share = sum(one[1] for one in found) / len(found)
    details: dict[str, Any] = {"value": float(place), "limit": 1.0}
    expected = "the token 1 place later"
    where = f"{plural(abs(place), 'place')} {'later' if place > 0 else 'earlier'}" if place else "that goes in there"
    measured = f"{100 * share:.0f} % of targets are the token {where}"
    if place == 1:
        return healthy(measured, expected, **details)
    cause, remedy = {
        0: ("the model is asked for the token that it sees: it learns to copy", "targets = tokens[:, 1:]"),
        -1: ("targets are moved the wrong way: the model is asked for the token before", "targets = tokens[:, 1:]"),
    }.get(place, ("targets are moved twice: by the data and by the loss, say", "move them in one place"))
    return sick(f"{measured}, in {count} of {len(found)} batches", expected, cause, remedy, **details)


@check(
    "loss-input",
    "the cross-entropy does not get logits",
    reference="PyTorch documentation, torch.nn.CrossEntropyLoss: the input is expected to contain the logits",
    needs=(),
)
def loss_input(patient: Patient) -> Finding:
    """`cross_entropy` takes the softmax itself, and wants logits; `nll_loss` wants log-probabilities. What was handed
    to them is looked at: rows that are positive and add up to 1 are probabilities. Log-probabilities are logits too.
    """
    seen = observed(patient)
    scored = [e for update in seen.updates for one in update.backwards for e in one.recorded if isinstance(e, Scored)]
    if not scored:
        raise NotExamined("no call of cross_entropy was seen")
    wrong = [one for one in scored if one.kind == "probabilities" or (one.negative and one.kind == "logits")]
    details: dict[str, Any] = {"value": len(wrong) / len(scored), "limit": 0.5}
    if 2 * len(wrong) < len(scored):
        return healthy(f"{scored[0].kind} in {plural(len(scored), 'call')}", "logits", **details)
    one = wrong[0]
    if one.negative:
        return sick(
            f"nll_loss was given {one.kind} in {plural(len(wrong), 'call')}",
            "log-probabilities",
            "there is no logarithm of a softmax in it: the loss is no likelihood and has no floor",
            "F.cross_entropy(logits, targets), or F.nll_loss(logits.log_softmax(-1), targets)",
            **details,
        )
    return sick(
        f"cross_entropy was given probabilities in {plural(len(wrong), 'call')}",
        "logits",
        "it takes another softmax: answers are squeezed into 0..1, the loss cannot fall far and gradients vanish",
        "give it the logits; softmax only when sampling",
        **details,
    )


SEEN: tuple[Check, ...] = (targets, loss_input)
