"""Leave no trace: whatever an examination does to a model is undone."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from handmade.doctor.anatomy import INTERNAL, all_modules, inside


@contextlib.contextmanager
def undisturbed(*models: Any) -> Iterator[None]:
    """Weights, buffers, tensors in attributes, gradients, modes, `requires_grad`, hooks and all global generators are
    at the end what they were at the beginning; what is printed inside is swallowed."""
    kept = [Kept(model) for model in models]
    state = generators()
    wanted = torch.is_grad_enabled()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for one in kept:
            one.bring_back()
        set_generators(state)
        torch.set_grad_enabled(wanted)


def generators() -> dict[str, Any]:
    """Where all global generators stand."""
    found: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 (whoever draws from the old one is watched too)
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def set_generators(state: dict[str, Any]) -> None:
    """Put them back."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


class Kept:
    """What a model was. Every tensor stays the same object: an optimizer may hold it."""

    def __init__(self, model: Any) -> None:
        modules = list(all_modules(model).values())
        self.attributes = [(one, dict(vars(one))) for one in modules]
        self.registered = [(one, {name: dict(vars(one)[name]) for name in INTERNAL}) for one in modules]
        self.hooks = [
            (entries, dict(entries))
            for one in modules
            for name, entries in vars(one).items()
            if name.endswith("_hooks") and hasattr(entries, "items")
        ]
        self.containers = [
            (value, value.copy())
            for one in modules
            for name, value in vars(one).items()
            if name not in INTERNAL and type(value) in (list, dict, set)
        ]
        tensors = {
            id(thing): thing
            for one in modules
            for value in vars(one).values()
            for _, thing in inside(value)
            if isinstance(thing, Tensor)
        }
        self.tensors = [Value(tensor) for tensor in tensors.values()]

    @torch.no_grad()
    def bring_back(self) -> None:
        """Put everything back."""
        for one, attributes in self.attributes:
            vars(one).clear()
            vars(one).update(attributes)
        for one, registered in self.registered:
            for name, entries in registered.items():
                put_back(vars(one)[name], entries)
        for entries, before in self.hooks:
            put_back(entries, before)
        for container, before in self.containers:
            if isinstance(container, list):
                container[:] = before
            else:
                put_back(container, before)
        for value in self.tensors:
            value.bring_back()


def put_back(container: Any, before: Any) -> None:
    container.clear()
    container.update(before)


class Value:
    """What a tensor held, and its gradient."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.value, self.wanted = tensor, tensor.detach().clone(), tensor.requires_grad
        self.holder = tensor.grad if tensor.is_leaf else None
        self.gradient = None if self.holder is None else self.holder.detach().clone()
        self.place = tensor.data_ptr()

    def bring_back(self) -> None:
        tensor = self.tensor
        if tensor.shape != self.value.shape or tensor.dtype != self.value.dtype or tensor.data_ptr() != self.place:
            tensor.data = self.value.clone()  # it was resized, or `.data` was exchanged
        elif not torch.equal(tensor, self.value):
            tensor.data.copy_(self.value)
        if not tensor.is_leaf:
            return
        if tensor.requires_grad != self.wanted:
            tensor.requires_grad_(self.wanted)
        if self.holder is not None and self.gradient is not None:
            self.holder.copy_(self.gradient)
        tensor.grad = self.holder
