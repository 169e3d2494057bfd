"""Whether a tensor looks like a constant table: a mask, positions, sines, slopes. Weights do not."""

from __future__ import annotations

import torch
from torch import Tensor

LOOKED_AT = 256
"""Entries along each axis that are looked at."""
EXACT = 1e-3
"""A line obeys its law to this part of its largest number. Tables of sines in float32 with 5,000 positions are off by
3e-4; random lines of six numbers by 0.3 and more."""


def is_counted(tensor: Tensor) -> bool:
    """Whether it holds whole numbers, which have no gradient."""
    return not tensor.is_floating_point() and not tensor.is_complex()


def table(tensor: Tensor) -> str | None:
    """What kind of constant a tensor looks like, in a word or two, or None. Shapes: any.

    One number is a scale. Numbers on the unit circle are rotations. Two or three distinct numbers in many are a mask.
    Whole numbers count something. And sines, slopes, rates and distances obey, along one axis,

        x[t + 1] + x[t - 1] = c x[t]        c = 2 cos w for sines, 2 for straight lines, r + 1/r for powers of r

    Numbers that are all the same are none of this: a gain or a bias begins so.
    """
    values = tensor.detach()
    for axis in range(values.dim()):
        values = values.narrow(axis, 0, min(values.shape[axis], LOOKED_AT))
    if tensor.numel() == 1:
        return "one number"
    if values.is_complex():
        return "rotations" if bool((values.abs() - 1).abs().max() < EXACT) else None
    if not values.is_floating_point():
        return "whole numbers"
    exact = EXACT + 8 * torch.finfo(values.dtype).eps
    values = values.double()
    distinct = values.unique().numel()
    if distinct == 1:
        return None
    if distinct <= 3 and values.numel() > 3:
        return "a mask"
    if not values.isfinite().all():
        return None
    if bool((values == values.round()).all()):
        return "whole numbers"
    return "lines that obey a law" if any(lawful(values, axis, exact) for axis in range(values.dim())) else None


def lawful(values: Tensor, axis: int, exact: float) -> bool:
    """Whether all lines along an axis obey the law."""
    if values.shape[axis] < 4:
        return False
    lines = values.movedim(axis, -1)
    ends, middle = lines[..., 2:] + lines[..., :-2], lines[..., 1:-1]
    c = (ends * middle).sum(-1) / middle.square().sum(-1).clamp_min(1e-30)
    wrong = (ends - c[..., None] * middle).abs().amax(-1)
    return bool((wrong <= exact * lines.abs().amax(-1)).all())
