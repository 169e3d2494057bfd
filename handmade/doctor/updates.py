"""What was seen of a training, put together step by step: which gradients went into which step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from handmade.doctor.events import (
    Backward,
    Changed,
    Clipped,
    Event,
    Forward,
    Gradients,
    Scored,
    Skipped,
    Stepped,
    Unscaled,
    cleared,
    joined,
)

UNIFORM = 1e-3
"""Gradients changed by one factor agree with it to this: half precision rounds to 1e-3."""


@dataclass
class Update:
    """Everything from the end of one step to the end of the next."""

    events: list[Event]
    steps: list[Stepped] = field(default_factory=list)
    """Of several optimizers, where they step one after the other; none where a GradScaler left it out."""
    waiting: Gradients = field(default_factory=dict)
    """The gradients that the last backward call before it left behind."""

    @cached_property
    def backwards(self) -> list[Backward]:
        return [event for event in self.events if isinstance(event, Backward)]

    def split(self) -> tuple[list[Event], list[Event], list[Event]]:
        """What came before the first backward call, among them, and after the last."""
        places = [place for place, event in enumerate(self.events) if isinstance(event, Backward)]
        if not places:
            return self.events, [], []
        return self.events[: places[0]], self.events[places[0] : places[-1]], self.events[places[-1] + 1 :]

    @property
    def closure(self) -> bool:
        return any(step.closure for step in self.steps)

    @cached_property
    def keys(self) -> list[int]:
        """ids of the parameters that are stepped and whose gradient was seen."""
        stepped = {key for step in self.steps for key in step.parameters}
        seen = {key for one in self.backwards for key in one.after}
        return sorted(stepped & seen)

    @cached_property
    def like(self) -> Gradients:
        """How many entries are looked at of every parameter."""
        return {key: entries for one in self.backwards for key, entries in one.after.items()}

    def added(self) -> list[Tensor]:
        """What every backward call added. Shapes: each (n,)."""
        return [
            joined(one.after, self.keys, self.like) - joined(one.before, self.keys, self.like) for one in self.backwards
        ]

    def stale(self) -> list[int]:
        """Parameters that still had a gradient when the first backward call came."""
        first = self.backwards[0].before
        return [key for key in self.keys if key in first and bool(first[key].any())]

    def lost(self) -> list[int]:
        """Parameters whose gradient was cleared after a backward call, with no step in between."""
        after = [one.after for one in self.backwards]
        then = [*[one.before for one in self.backwards[1:]], self.stepped]
        return [
            key
            for key in self.keys
            if any(
                key in had and bool(had[key].any()) and not (key in has and bool(has[key].any()))
                for had, has in zip(after, then, strict=True)
            )
        ]

    @property
    def stepped(self) -> Gradients:
        """The gradients that were stepped with."""
        found: Gradients = {}
        for step in self.steps:
            found.update({key: one for key, one in step.gradients.items() if key in step.parameters})
        return found

    def weights(self) -> list[float] | None:
        """For every backward call, its value over the mean loss of its own batch: 1 for a mean, 1/n for one divided
        by n. None where the mean cannot be known."""
        found = []
        for one in self.backwards:
            mean = mean_of(one.recorded)
            if mean is None or one.loss is None or abs(mean) < 1e-9:
                return None
            found.append(one.loss / mean)
        return found

    def factor(self) -> float:
        """What gradients were multiplied by between the last backward call and the step, clipping apart: a scale taken
        out, an average taken by hand."""
        product = self.steps[0].factor if self.steps else 1.0
        for event in self.split()[2]:
            if isinstance(event, Unscaled):
                product *= event.factor
            elif isinstance(event, Changed) and (ratio := divided(event)) is not None:
                product *= ratio
        return product

    def own_batches(self) -> bool:
        """Whether every backward call had tokens of its own. Two losses of one batch are no accumulation."""
        rows = [
            [f.integers[0] for f in one.recorded if isinstance(f, Forward) and f.integers] for one in self.backwards
        ]
        if not all(rows):
            return False
        firsts = [one[0] for one in rows]
        return not any(a.shape == b.shape and torch.equal(a, b) for i, a in enumerate(firsts) for b in firsts[i + 1 :])

    def clipped(self) -> bool:
        """Whether gradients were clipped, by a call or by hand, so that the step's are not their sum."""
        after = self.split()[2]
        return any(
            isinstance(event, Clipped) or (isinstance(event, Changed) and divided(event) is None) for event in after
        )


def updates(events: Iterable[Event]) -> list[Update]:
    """The updates in what was seen; what came after the last one is left out."""
    found: list[Update] = []
    window: list[Event] = []
    for event in events:
        if not isinstance(event, (Stepped, Skipped)):
            window.append(event)
            continue
        new = not found or any(isinstance(one, (Backward, Forward)) for one in window)
        if new:
            found.append(Update([]))
        found[-1].events += window
        if isinstance(event, Stepped):
            found[-1].steps.append(event)
        window = []
    return found


def mean_of(recorded: list[Forward | Scored]) -> float | None:
    """The mean loss of the batch that a backward call belongs to: of what was scored, the largest; else what the model
    returned as its loss."""
    scored = [one for one in recorded if isinstance(one, Scored)]
    if scored:
        largest = max(one.targets.numel() for one in scored)
        means = [one.mean for one in scored if one.targets.numel() == largest]
        return sum(means) / len(means)
    losses = [one.loss for one in recorded if isinstance(one, Forward) and one.loss is not None]
    return losses[-1] if losses else None


def ratio_of(before: Gradients, after: Gradients) -> float | None:
    """By what all of the gradients were multiplied; None where that was not one number."""
    keys = sorted(set(before) & set(after))
    if not keys or set(before) != set(after):
        return None
    a, b = joined(before, keys, before), joined(after, keys, after)
    square = float(a @ a)
    if not square or not bool(a.isfinite().all()) or not bool(b.isfinite().all()):
        return None
    ratio = float(a @ b) / square
    return ratio if float((b - ratio * a).norm()) <= UNIFORM * float(b.norm()) else None


def divided(event: Changed) -> float | None:
    """One over a whole number from 2 up, where gradients were divided by that: an average, or a scale taken out. None
    for any other change."""
    if cleared(event.after):
        return None
    ratio = ratio_of(event.before, event.after)
    if ratio is None or not 0 < ratio < 0.6:
        return None
    whole = round(1 / ratio)
    return 1 / whole if abs(1 / ratio - whole) < UNIFORM * whole else None
