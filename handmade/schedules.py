"""Learning rates over time: pure functions of the fraction of training done, and the one place that sets them.

    for step in range(steps):
        rates = apply(optimizers, config, step / steps)       # rates are read back: log these
        ...

The fraction of step s (counted from 0) of n is s / n: what has been done before it. It never reaches 1, so a
decay to zero does not waste the last step; and warm-up does not begin at zero, so the first step learns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from handmade.config import Config

FIRST = 0.01  # where warm-up begins, as a share of the peak


@dataclass(frozen=True)
class ScheduleConfig(Config):
    """The shape of the learning rate over training. Lengths are fractions of training, not steps."""

    name: Literal["constant", "cosine", "linear", "stable-then-decay", "inverse-root"] = "cosine"
    """What follows the warm-up: the peak, half a cosine down, a line down, the peak and then a line down, or one over
    the root of the step, as Vaswani et al. 2017 had it."""
    warmup: float = 0.05
    """Fraction of training in which the rate rises in a line to its peak."""
    decay: float = 0.6
    """Fraction of training, at its end, in which "stable-then-decay" goes down."""
    final: float = 0.1
    """Where the rate ends, as a share of the peak. "constant" ends at the peak, "inverse-root" where the root says."""

    def check(self) -> None:
        self.require("warmup", 0 <= self.warmup < 1, "from 0 up to, not including, 1")
        self.require("final", 0 <= self.final <= 1, "from 0 to 1")
        self.require("decay", 0 < self.decay <= 1, "above 0 and up to 1")
        if self.name == "inverse-root":
            self.require("warmup", self.warmup > 0, "above 0: the root counts from its end")
        if self.name == "stable-then-decay":
            right = f"at most 1 - warmup = {1 - self.warmup:g}"
            self.require("decay", self.warmup + self.decay <= 1 + 1e-9, right)


def multiplier(config: ScheduleConfig, fraction: float) -> float:
    """The learning rate as a share of its peak when `fraction` (0 to 1) of training is done.

    Never zero before the end. Raises ValueError for a fraction outside 0 to 1.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction of training done = {fraction!r}: must be from 0 to 1.")
    if fraction < config.warmup:
        return FIRST + (1 - FIRST) * fraction / config.warmup
    after = (fraction - config.warmup) / (1 - config.warmup)  # share of what follows the warm-up
    if config.name == "constant":
        return 1.0
    if config.name == "inverse-root":
        return inverse_root(fraction, config.warmup)
    if config.name == "cosine":
        return config.final + (1 - config.final) * cosine(after)
    if config.name == "linear":
        return config.final + (1 - config.final) * linear(after)
    into_decay = max(0.0, (fraction - (1 - config.decay)) / config.decay)
    return config.final + (1 - config.final) * linear(into_decay)


def cosine(fraction: float) -> float:
    """From 1 to 0 along half a cosine: (1 + cos(pi x)) / 2. Source: Loshchilov and Hutter 2017, equation 5
    (arXiv:1608.03983)."""
    return (1 + math.cos(math.pi * fraction)) / 2


def linear(fraction: float) -> float:
    """From 1 to 0 in a line."""
    return 1 - fraction


def inverse_root(fraction: float, warmup: float) -> float:
    """From 1 at the end of the warm-up along 1 / sqrt(step): sqrt(warm-up / x), steps as fractions of training.

    With a peak of width^-0.5 (warm-up steps)^-0.5 and the line of the warm-up it is
    rate = width^-0.5 min(step^-0.5, step (warm-up steps)^-1.5).
    Source: Vaswani et al. 2017, section 5.3, equation 3 (arXiv:1706.03762).
    """
    return math.sqrt(warmup / fraction)


def apply(optimizers: Iterable[torch.optim.Optimizer], config: ScheduleConfig, fraction: float) -> dict[str, float]:
    """Set the rate of every param group to its peak (`initial_lr`) times the multiplier.

    The rate lives in the param group; an attribute `optimizer.lr` would be read by nobody. Returns name ->
    rate as read back from the groups. A group without `initial_lr` has its present rate for a peak; one
    without a `name` is called `group 0`, `group 1`, ... by its place.
    """
    optimizers = list(optimizers)
    share = multiplier(config, fraction)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * share
    return rates(optimizers)


def rates(optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, float]:
    """Name of param group -> the learning rate its next step will use."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {group.get("name", f"group {place}"): float(group["lr"]) for place, group in enumerate(groups)}
