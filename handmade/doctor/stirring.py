"""Other weights, other numbers, for as long as something is measured: so that nothing hides."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from handmade.doctor.anatomy import every_parameter, loose_tensors
from handmade.doctor.snapshot import Kept

if TYPE_CHECKING:
    from handmade.doctor.patient import Patient

NEARLY_ZERO = 1e-3
"""A parameter with no entry above this hides what is behind it: an output projection or a gain that begins at zero."""
STEADY = 20200101
HALF = (torch.float16, torch.bfloat16)


def seed_everything(seed: int) -> None:
    """Put all global generators at one place."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (whoever draws from the old one is held still too)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed writes a traceback down where CUDA sleeps: 5 ms
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def weights_of(model: Any) -> dict[str, Tensor]:
    """Path -> tensor that is learnt: parameters, and tensors in plain attributes that want gradients. Of a model that
    is frozen as a whole, all parameters."""
    found: dict[str, Tensor] = {**every_parameter(model), **loose_tensors(model)}
    found = {name: one for name, one in found.items() if one.is_floating_point() and one.is_leaf and one.numel()}
    learnt = {name: one for name, one in found.items() if one.requires_grad}
    return learnt or {name: one for name, one in found.items() if isinstance(one, nn.Parameter)}


def two_valued(tensor: Tensor) -> bool:
    """Whether a tensor is a mask kept as a parameter: it holds two values alone, or one that stands for infinity."""
    flat = tensor.detach().flatten()
    low, high = flat.min(), flat.max()
    return bool(((flat == low) | (flat == high)).all() and low != high) or bool(flat.abs().max() > 1e4)


@contextlib.contextmanager
def drawn_anew(weights: Iterable[Tensor], generator: torch.Generator, gain: float = 1.0) -> Iterator[None]:
    """Inside, these are drawn from a normal distribution: matrices with deviation gain / sqrt(size of the last axis),
    so that features of size one stay so for a gain of 1, anything with fewer axes with 0.1."""
    before = [(one, one.data, one.detach().clone()) for one in weights]
    try:
        for one, place, _ in before:
            deviation = gain * one.shape[-1] ** -0.5 if one.dim() >= 2 else 0.1
            # `.data`: the count of changes that autograd keeps is the person's.
            place.copy_(torch.randn(one.shape, generator=generator) * deviation)
        yield
    finally:
        for _, place, value in before:
            place.copy_(value)


@contextlib.contextmanager
def in_full_precision(patient: Patient) -> Iterator[None]:
    """Inside, what is in half precision is in float32, where the model stands that: rounding is no leak. Tensors
    outside modules stay as they are."""
    tensors = [t for one in patient.modules.values() for t in (*one._parameters.values(), *one._buffers.values())]
    if not any(one is not None and one.dtype in HALF for one in tensors):
        yield
        return
    kept = Kept(patient.given.model)
    try:
        for one in tensors:
            if one is not None and one.dtype in HALF:
                one.data = one.data.float()
        try:
            patient.logits(patient.tokens(1))
        except Exception:
            kept.bring_back()
        yield
    finally:
        kept.bring_back()
