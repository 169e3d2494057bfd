"""Leave no trace: whatever an examination does to a model, and to what belongs to it, is undone."""

from __future__ import annotations

import collections
import contextlib
import io
import logging
import random
import types
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from handmade.doctor.anatomy import GENERATORS, holds, reachable

DATA = 1_000_000
"""Token ids with more entries than this are data: they are read, and not kept a second time."""


@contextlib.contextmanager
def undisturbed(*things: Any) -> Iterator[None]:
    """Weights, buffers, tensors in attributes, gradients, modes, `requires_grad`, hooks, lists and attributes of all
    that `things` hold, and all global generators and defaults, are at the end what they were at the beginning. What is
    printed, logged or warned inside is swallowed.

    An optimizer, a function that closes over its model, or an object of a person's own may be given as well as a
    module: see `anatomy.reachable`. What a program has drawn from an iterator, written to a file or sent away cannot be
    put back.
    """
    kept = Kept(*things)
    state = generators()
    wanted, dtype, level = torch.is_grad_enabled(), torch.get_default_dtype(), logging.root.manager.disable
    with contextlib.ExitStack() as after:  # all of it is done, also where one thing cannot be put back
        after.callback(logging.disable, level)
        after.callback(torch.set_default_dtype, dtype)
        after.callback(torch.set_grad_enabled, wanted)
        after.callback(set_generators, state)
        after.callback(kept.bring_back)
        after.enter_context(contextlib.redirect_stdout(io.StringIO()))
        after.enter_context(contextlib.redirect_stderr(io.StringIO()))
        after.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        yield


def generators() -> dict[str, Any]:
    """Where all global generators stand."""
    found: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 (whoever draws from the old one is watched too)
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        found["mps"] = torch.mps.get_rng_state()
    return found


def set_generators(state: dict[str, Any]) -> None:
    """Put them back."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])


class Kept:
    """What things were. Every tensor, list and dictionary stays the same object: an optimizer may hold it."""

    def __init__(self, *things: Any) -> None:
        self.restorers: list[Any] = []
        for thing in reachable(*things):
            if isinstance(thing, Tensor):
                if can_be_kept(thing):
                    self.restorers.append(Value(thing))
            elif isinstance(thing, GENERATORS):
                self.restorers.append(Drawn(thing))
            elif isinstance(thing, (list, dict, set, collections.deque)):
                self.restorers.append(Container(thing))
            elif isinstance(thing, types.FunctionType):
                self.restorers.append(Closure(thing))
            elif not isinstance(thing, tuple):
                self.restorers.append(Attributes(thing))

    def bring_back(self, generators: bool = True) -> None:
        """Put everything back, generators too if wanted. What fails is raised when all else is back."""
        problem: Exception | None = None
        with torch.no_grad():
            for one in self.restorers:
                if isinstance(one, Drawn) and not generators:
                    continue
                try:
                    one.bring_back()
                except Exception as failed:
                    problem = problem or failed
        if problem is not None:
            raise problem


def can_be_kept(tensor: Tensor) -> bool:
    """Whether a tensor has values of its own that somebody might change."""
    if (
        isinstance(tensor, (UninitializedBuffer, UninitializedParameter))
        or tensor.is_meta
        or tensor.layout != torch.strided
    ):
        return False
    return tensor.is_floating_point() or tensor.is_complex() or tensor.numel() <= DATA


class Attributes:
    """The attributes of a module or an object, and its class (torch's parametrizations change that)."""

    def __init__(self, owner: Any) -> None:
        self.owner, self.kind, self.before = owner, type(owner), dict(vars(owner))

    def bring_back(self) -> None:
        if type(self.owner) is not self.kind:
            self.owner.__class__ = self.kind
        now = vars(self.owner)
        if not same_entries(now, self.before):
            now.clear()
            now.update(self.before)


class Container:
    """What a list, a set or a mapping had in it."""

    def __init__(self, container: Any) -> None:
        self.container, self.before = container, container.copy()

    def bring_back(self) -> None:
        now, before = self.container, self.before
        if isinstance(now, dict):
            if not same_entries(now, before):
                now.clear()
                now.update(before)
        elif isinstance(now, set):
            now.clear()
            now.update(before)
        elif len(now) != len(before) or any(one is not other for one, other in zip(now, before, strict=True)):
            now.clear()
            now.extend(before)


class Closure:
    """What the variables of a function were: those that it closes over, and the globals that it names."""

    def __init__(self, function: types.FunctionType) -> None:
        self.function = function
        self.cells = [(cell, cell.cell_contents) for cell in function.__closure__ or () if holds(cell)]
        known = function.__globals__
        self.names = {name: known[name] for name in function.__code__.co_names if name in known}

    def bring_back(self) -> None:
        for cell, before in self.cells:
            cell.cell_contents = before
        self.function.__globals__.update(self.names)


class Drawn:
    """Where a generator of a person's own stood."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        if isinstance(generator, random.Random):
            self.state: Any = generator.getstate()
        elif isinstance(generator, np.random.Generator):
            self.state = generator.bit_generator.state
        else:
            self.state = generator.get_state()

    def bring_back(self) -> None:
        if isinstance(self.generator, random.Random):
            self.generator.setstate(self.state)
        elif isinstance(self.generator, np.random.Generator):
            self.generator.bit_generator.state = self.state
        else:
            self.generator.set_state(self.state)


class Value:
    """What a tensor held, where it held it, and its gradient."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.wanted = tensor, tensor.requires_grad
        self.place = tensor.data  # the same memory, which others may share; autograd does not count its changes
        self.value = self.place.clone()
        self.holder = tensor.grad if tensor.is_leaf else None
        self.gradient = None if self.holder is None else Value(self.holder)
        self.hooks = {
            name: dict(getattr(tensor, name) or {})
            for name in ("_backward_hooks", "_post_accumulate_grad_hooks")
            if tensor.is_leaf and hasattr(tensor, name)
        }

    def bring_back(self) -> None:
        tensor, place = self.tensor, self.place
        if not same_place(tensor, place):
            tensor.data = place  # it was resized, or `.data` was exchanged
        if not identical(place, self.value):
            place.copy_(self.value)
        if not tensor.is_leaf:
            return
        if tensor.requires_grad != self.wanted:
            tensor.requires_grad_(self.wanted)
        if self.gradient is not None:
            self.gradient.bring_back()
        if tensor.grad is not self.holder:
            tensor.grad = self.holder
        for name, before in self.hooks.items():
            now = getattr(tensor, name)
            if now is not None and not same_entries(now, before):
                now.clear()
                now.update(before)


def same_entries(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    """Whether two mappings hold the very same things in the same order."""
    return len(now) == len(before) and all(
        one is other and now[one] is before[other] for one, other in zip(now, before, strict=True)
    )


def same_place(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one piece of memory, seen alike."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.dtype == other.dtype
        and one.stride() == other.stride()
        and one.device == other.device
    )


def identical(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape and type are the same bit for bit: 0 is not -0 here, and NaN is itself."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.is_complex():
        one, other = torch.view_as_real(one.resolve_conj()), torch.view_as_real(other.resolve_conj())
    if not one.is_floating_point() or one.element_size() not in WHOLE:
        return torch.equal(one, other)
    whole = WHOLE[one.element_size()]
    return torch.equal(one.detach().view(whole), other.detach().view(whole))


WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
