"""What can happen in a training, and how gradients are written down: a few entries of each.

Adding up, scaling and clearing are linear, so a few entries tell them as well as all would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

ENTRIES = 256
"""Entries of every gradient that are looked at."""

Gradients = dict[int, Tensor]
"""id of a parameter -> some entries of its gradient; without those that have none."""


@dataclass(eq=False)
class Forward:
    """A call, with gradients, of a module that is no part of another call."""

    module: nn.Module
    integers: list[Tensor]
    """Whole numbers among its arguments: tokens, then perhaps targets."""
    training: bool
    """The mode it was in."""
    loss: float | None
    """A scalar in what it returned."""
    shape: tuple[int, ...]
    """Of the largest tensor that it returned."""


@dataclass(eq=False)
class Scored:
    """A call of `cross_entropy` or `nll_loss` with gradients."""

    mean: float
    """The mean over what is scored, whatever the reduction was."""
    classes: int
    targets: Tensor
    kind: str
    """What went in: "logits", "probabilities" or "log-probabilities"."""
    negative: bool
    """Whether it was `nll_loss`, which wants log-probabilities."""


@dataclass(eq=False)
class Backward:
    """A call of `backward`."""

    loss: float | None
    """Its value, with whatever it was multiplied by; None for what is no scalar."""
    scaled: bool
    """Whether it came out of `GradScaler.scale`, be the scaler on or off."""
    before: Gradients
    after: Gradients
    recorded: list[Forward | Scored]
    """What was called with gradients since the backward call before."""


@dataclass(eq=False)
class Changed:
    """Gradients that the script itself changed: by hand."""

    before: Gradients
    after: Gradients


@dataclass(eq=False)
class Zeroed:
    """A call of `zero_grad`."""

    owner: Any


@dataclass(eq=False)
class Clipped:
    """A call of `clip_grad_norm_` or `clip_grad_value_`."""

    kind: str
    """"norm" or "value"."""
    limit: float
    norm: float | None
    """The norm before; None for clipping by value."""
    parameters: int
    """How many parameters it was given."""
    gradients: int
    """How many of those had a gradient."""
    before: Gradients
    after: Gradients
    scaler: GradScaler | None
    """The scaler whose scale the gradients still have."""


@dataclass(eq=False)
class Unscaled:
    """A call of `GradScaler.unscale_`, by the script or by `GradScaler.step`."""

    scaler: GradScaler
    factor: float
    """What it multiplied gradients by: one over the scale."""


@dataclass(eq=False)
class Skipped:
    """A `GradScaler.step` that left the optimizer's step out, since gradients were not finite."""


@dataclass(eq=False)
class Stepped:
    """A step of an optimizer, or of a script that changes weights by hand."""

    optimizer: Optimizer | None
    rates: list[float]
    """Of every group."""
    default: float | None
    """What `optimizer.defaults["lr"]` said, which no step reads."""
    gradients: Gradients
    factor: float
    """What the optimizer itself multiplies gradients by: a fused one takes the scale out."""
    closure: bool
    """Whether a backward call came within it."""
    names: frozenset[str]
    """What its groups have: "lr", and whatever was written there."""
    parameters: frozenset[int]
    """ids of what it steps."""


@dataclass(eq=False)
class Mode:
    """A call of `train()` or `eval()`."""

    module: nn.Module
    training: bool


@dataclass(eq=False)
class Written:
    """A write to a plain attribute of an optimizer, from outside it."""

    optimizer: Optimizer
    name: str
    value: Any
    known: bool
    """Whether there was such an attribute before."""


@dataclass(eq=False)
class Scheduled:
    """A call of `scheduler.step`."""

    scheduler: LRScheduler
    rates: list[float]
    """Of the optimizer's groups, afterwards."""


Event = (
    Forward | Scored | Backward | Changed | Zeroed | Clipped | Unscaled | Skipped | Stepped | Mode | Written | Scheduled
)


def some(tensor: Tensor) -> Tensor:
    """A few entries of a tensor, spread over it. Shapes: any -> (fewer than 2 * ENTRIES,) float64."""
    dense = tensor.detach()
    dense = (dense.to_dense() if dense.is_sparse else dense).reshape(-1)
    return dense[:: max(1, dense.numel() // ENTRIES)].to("cpu", torch.float64, copy=True)


def same(first: Gradients, second: Gradients) -> bool:
    """Whether two samples are equal. Zeros are equal to none at all, and NaN to NaN."""
    for key in {**first, **second}:
        a, b = first.get(key), second.get(key)
        if a is None or b is None:
            there = a if a is not None else b
            if there is not None and bool(there.any()):
                return False
        elif not torch.equal(a, b) and not torch.allclose(a, b, rtol=0, atol=0, equal_nan=True):
            return False
    return True


def cleared(gradients: Gradients) -> bool:
    """Whether there is nothing in them."""
    return not any(bool(one.any()) for one in gradients.values())


def joined(gradients: Gradients, wanted: list[int], like: Gradients) -> Tensor:
    """The entries of some parameters one after the other, zeros where there is no gradient; `like` has the lengths.
    Shapes: -> (n,) float64."""
    parts = [gradients.get(key, torch.zeros_like(like[key])) for key in wanted]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def rates_of(optimizer: Any) -> list[float]:
    """The learning rate of every group; NaN where a group has none."""
    return [float(group.get("lr", math.nan)) for group in optimizer.param_groups]


def is_tokens(thing: Any) -> bool:
    return torch.is_tensor(thing) and thing.dtype in (torch.int64, torch.int32) and thing.dim() >= 1


def flat(thing: Any, depth: int = 3) -> list[Any]:
    """What is in lists, tuples and mappings, and in objects that are mappings as well."""
    if depth and isinstance(thing, (list, tuple)):
        return [inner for one in thing for inner in flat(one, depth - 1)]
    if depth and callable(getattr(thing, "keys", None)) and callable(getattr(thing, "values", None)):
        several: list[Any] = list(thing.values())
        return [inner for one in several for inner in flat(one, depth - 1)]
    return [thing]


def subclasses(kind: type) -> list[type]:
    """All of them, each once."""
    found: dict[type, None] = {}
    below: list[type] = kind.__subclasses__()
    for one in below:
        found.update(dict.fromkeys([one, *subclasses(one)]))
    return list(found)


def leaves(loss: Tensor) -> list[Tensor]:
    """What a backward call from here would give a gradient to: the tensors at the ends of its graph."""
    found: list[Tensor] = []
    seen: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found
