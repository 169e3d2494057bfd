"""Where a learning rate goes: a stated schedule, walked through to its end on a copy."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
)

from handmade.doctor.findings import Finding, sick, suspicious
from handmade.doctor.patient import Patient

CLOSE = 1e-6
"""Relative: rates are Python floats, which a schedule computes the same way twice; a float32 tensor rounds to 1e-7."""
SAMPLES = 2000
"""Places of a long schedule that are looked at."""
MOST_STEPS = 20_000
"""A torch scheduler has to go through every step: 15 microseconds each."""
AGAIN = 0.1
"""How far, of its whole range, a rate may rise after it has fallen."""


def length_of(scheduler: LRScheduler) -> int | None:
    """Over how many calls a scheduler reaches: its end, or the end of its warm-up. None where it has neither."""
    inner = [length for one in getattr(scheduler, "_schedulers", ()) if (length := length_of(one)) is not None]
    if inner:
        return max([*inner, *getattr(scheduler, "_milestones", ())])
    if isinstance(scheduler, CosineAnnealingWarmRestarts):
        return int(scheduler.T_0)
    for name in ("total_steps", "T_max", "total_iters", "step_size", "total_size"):
        value = getattr(scheduler, name, None)
        if isinstance(value, (int, float)):
            return int(value)
    if isinstance(scheduler, LambdaLR):
        places = [0, *(int(2 ** (power / 2)) for power in range(34))]
        try:
            shares = [float(scheduler.lr_lambdas[0](place)) for place in places]
        except Exception:
            return None
        top = max(shares)
        first = next(place for place, share in zip(places, shares, strict=True) if share >= 0.99 * top)
        # Without a warm-up: where it has lost a tenth.
        return first or next((p for p, share in zip(places, shares, strict=True) if share < 0.9 * top), None)
    return None


def walked(patient: Patient) -> Finding | None:
    """The stated schedule from its beginning to its end."""
    given = patient.given
    if given.schedule is None or given.steps is None or isinstance(given.schedule, ReduceLROnPlateau):
        return None
    path = ahead_of(given.schedule, given.steps) if isinstance(given.schedule, LRScheduler) else None
    if path is None:
        places = sorted({*range(min(given.steps, 200)), *torch.linspace(0, given.steps - 1, SAMPLES).long().tolist()})
        path = [(place, float(given.schedule(place))) for place in places]
    else:
        patient.notes.append(f"the schedule was walked through for {len(path)} of {given.steps} steps")
    for place, rate in path:
        if not math.isfinite(rate) or rate < 0:
            return sick(
                f"the rate at step {place} is {rate:.3g}",
                "0 or more",
                "below 0 the step goes up the slope, and what was learnt is undone",
                f"let the decay end at step {given.steps}, and keep the rate at its last value after that",
                value=rate,
                limit=0.0,
            )
    if given.schedule_bounds is not None and (found := outside(path, given.schedule_bounds)) is not None:
        return found
    return again(patient, path)


def outside(path: Sequence[tuple[int, float]], bounds: tuple[float, float]) -> Finding | None:
    """The first place where a schedule is out of its bounds. A warm-up may come from below."""
    low, high = bounds
    warming, last = True, -math.inf
    for place, rate in path:
        warming = warming and rate >= last and rate < low
        last = rate
        over, under = rate > high * (1 + CLOSE), rate < low * (1 - CLOSE) and not warming
        if over or under:
            return sick(
                f"the rate at step {place} is {rate:.3g}",
                f"from {low:.3g} to {high:.3g}, as was stated",
                "the schedule leaves the bounds it states: its last rates are those of another count of steps, or its "
                "warm-up ends above its peak",
                "clamp the share of the decay to 0..1, and let warm-up and decay meet",
                value=rate,
                limit=high if over else low,
            )
    if warming:
        return sick(
            f"the rate rises to {last:.3g} in {len(path)} steps and never comes to {low:.3g}",
            f"from {low:.3g} to {high:.3g}, as was stated",
            "the warm-up is longer than the training",
            "make the warm-up a small share of the steps",
            value=last,
            limit=low,
        )
    return None


def again(patient: Patient, path: Sequence[tuple[int, float]]) -> Finding | None:
    """A rate that rises again after it has fallen."""
    scheduler = patient.given.schedule
    if isinstance(scheduler, (CosineAnnealingWarmRestarts, CyclicLR, OneCycleLR)) or patient.expects("restarts"):
        return None
    rates = [rate for _, rate in path]
    span = max(rates) - min(rates)
    top, bottom = -math.inf, math.inf
    for place, rate in path:
        top = max(top, rate)
        bottom = min(bottom, rate) if top - rate > AGAIN * span else bottom
        if span and rate - bottom > AGAIN * span:
            measured = f"the rate falls to {bottom:.3g} and is back at {rate:.3g} at step {place}"
            cause = "a cosine that is longer than its half period rises again; so does one that is made anew per epoch"
            remedy = f"let it reach over all {patient.given.steps} steps"
            details: dict[str, Any] = {"value": (rate - bottom) / span, "limit": AGAIN}
            if patient.expects("restarts") is False:
                return sick(measured, "no rise after a fall", cause, remedy, **details)
            question = "Are restarts meant? Then expect={'restarts': True}; if not, False"
            return suspicious(measured, "no rise after a fall", cause, remedy, question, **details)
    return None


def ahead_of(scheduler: LRScheduler, steps: int) -> list[tuple[int, float]]:
    """(step, rate of the first group) of a torch scheduler, from where it stands, on a copy that moves nothing."""
    optimizer = SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": 1.0} for _ in scheduler.optimizer.param_groups])
    for group, original in zip(optimizer.param_groups, scheduler.optimizer.param_groups, strict=True):
        group.update({name: copy.deepcopy(value) for name, value in original.items() if name != "params"})
    optimizer.step()
    twin = copied(scheduler, optimizer)
    path = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place in range(min(steps, MOST_STEPS)):
            path.append((place, float(optimizer.param_groups[0]["lr"])))
            try:
                twin.step()
            except ValueError:  # OneCycleLR ends with an error
                break
    return path


def copied(scheduler: LRScheduler, optimizer: Optimizer) -> LRScheduler:
    """A scheduler as it stands, with another optimizer."""
    twin = copy.copy(scheduler)
    inner = [copied(one, optimizer) for one in getattr(scheduler, "_schedulers", ())]
    held = {name: value for name, value in vars(scheduler).items() if name not in ("optimizer", "_schedulers", "step")}
    vars(twin).update(copy.deepcopy(held))
    twin.optimizer = optimizer
    if inner:
        twin._schedulers = inner  # type: ignore[attr-defined]
    return twin
