"""What a person's functions hold, so that their training can be rehearsed and nothing of it stays.

`train_step`, `evaluate`, `save` and their like are closures, methods or functions over globals. What they refer to is
walked through: generators of their own, optimizers, schedules, counters, lists of losses.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from handmade.doctor.findings import NotExamined
from handmade.doctor.given import Given, parts_of
from handmade.doctor.snapshot import Value, generators, set_generators, undisturbed

FUNCTIONS = ("train_step", "evaluate", "best", "save", "load", "batches", "loss", "schedule", "optimizer", "windows")
"""What of `Given` is walked through."""
MOST_THINGS = 5000
LARGEST_CONTAINER = 100_000
MOST_ENTRIES_WALKED = 200
LARGEST_TENSOR = 1 << 25
HOLDERS = ("torch.utils.data", "torch.amp", "types", "argparse")
"""Modules of libraries whose objects hold what is the person's; those of others are left alone."""

GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


def state_of(generator: Any) -> Any:
    """Where a generator stands."""
    if isinstance(generator, torch.Generator):
        return generator.get_state().clone()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state()


def set_state(generator: Any, state: Any) -> None:
    """Put it there."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal: tensors, arrays, and nests of them."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return (
            isinstance(one, Tensor)
            and isinstance(other, Tensor)
            and one.shape == other.shape
            and bool(torch.equal(one.cpu(), other.cpu().to(one.dtype)))
        )
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class Reach:
    """All that is held by what the person gave, and how it was when this was made."""

    def __init__(self, given: Given) -> None:
        self.given = given
        self.generators: dict[str, Any] = {}
        self.optimizers: list[Optimizer] = []
        self.schedulers: list[LRScheduler] = []
        self.modules: list[nn.Module] = []
        """Other than the model itself: an average of its weights, say."""
        self._cells: list[tuple[Any, Any]] = []
        self._globals: dict[tuple[int, str], tuple[dict[str, Any], str, Any]] = {}
        self._containers: list[tuple[Any, Any]] = []
        self._tensors: list[Tensor] = []
        self._seen: dict[int, Any] = {id(given): given}
        self._model = {id(one) for one in given.model.modules()} if isinstance(given.model, nn.Module) else set()
        self._walk()
        self._where = [(one, state_of(one)) for one in self.generators.values()]
        self._kept = [Value(tensor) for tensor in self._tensors]
        self._optimizers = [KeptOptimizer(one) for one in self.optimizers]
        self._schedules = [(one, dict(vars(one))) for one in self.schedulers]

    def _walk(self) -> None:
        queue = deque((name, getattr(self.given, name)) for name in FUNCTIONS)
        while queue and len(self._seen) < MOST_THINGS:
            path, thing = queue.popleft()
            if thing is None or isinstance(thing, (str, bytes, int, float, complex, type, types.ModuleType)):
                continue
            if id(thing) in self._seen:
                continue
            self._seen[id(thing)] = thing
            queue.extend((f"{path}.{name}" if name else path, one) for name, one in self._below(path, thing))

    def _below(self, path: str, thing: Any) -> Iterator[tuple[str, Any]]:
        """Note what it is, and say what is inside."""
        if isinstance(thing, GENERATORS):
            self.generators[path] = thing
        elif isinstance(thing, Optimizer):
            self.optimizers.append(thing)
        elif isinstance(thing, LRScheduler):
            self.schedulers.append(thing)
            yield "optimizer", thing.optimizer
        elif isinstance(thing, nn.Module):
            if id(thing) not in self._model:
                self.modules.append(thing)
        elif isinstance(thing, Tensor):
            if thing.is_floating_point() and thing.is_leaf and thing.numel() <= LARGEST_TENSOR:
                self._tensors.append(thing)
        elif isinstance(thing, types.FunctionType):
            yield from self._function(thing)
        elif isinstance(thing, types.MethodType):
            yield "", thing.__self__
            yield "", thing.__func__
        elif isinstance(thing, functools.partial):
            yield "", thing.func
            yield from ((str(i), one) for i, one in enumerate(thing.args))
            yield from thing.keywords.items()
        elif isinstance(thing, types.GeneratorType):
            frame = thing.gi_frame
            yield from (dict(frame.f_locals).items() if frame is not None else ())
        elif isinstance(thing, (list, tuple, dict, set, deque)):
            yield from self._container(thing)
        elif hasattr(thing, "__dict__") and not library(type(thing)):
            inner = vars(thing)
            self._containers.append((inner, dict(inner)))
            yield from list(inner.items())
            yield from methods_of(type(thing))

    def _function(self, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
        if library(function):
            return
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            with contextlib.suppress(ValueError):  # a name that was never bound
                self._cells.append((cell, cell.cell_contents))
                yield name, cell.cell_contents
        for name in names_in(function.__code__):
            if name in function.__globals__:
                value = function.__globals__[name]
                self._globals[id(function.__globals__), name] = (function.__globals__, name, value)
                yield name, value
        yield from ((str(i), one) for i, one in enumerate(function.__defaults__ or ()))
        yield from (function.__kwdefaults__ or {}).items()

    def _container(self, thing: Any) -> Iterator[tuple[str, Any]]:
        if not isinstance(thing, tuple) and len(thing) <= LARGEST_CONTAINER:
            self._containers.append((thing, dict(thing) if isinstance(thing, dict) else list(thing)))
        entries = thing.items() if isinstance(thing, dict) else enumerate(thing)
        for name, one in list(itertools.islice(entries, MOST_ENTRIES_WALKED)):
            yield str(name), one

    def states(self) -> dict[str, Any]:
        """Where every generator stands now: the global ones by the name of their library, then those that are held by
        the path to them."""
        return {**generators(), **{path: state_of(one) for path, one in self.generators.items()}}

    def set_states(self, states: dict[str, Any]) -> None:
        """Put all generators where `states` had them."""
        set_generators({name: state for name, state in states.items() if name not in self.generators})
        for path, one in self.generators.items():
            set_state(one, states[path])

    def scatter(self, seed: int) -> None:
        """Put all generators somewhere else."""
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (whoever draws from the old one is watched too)
        torch.manual_seed(seed)
        for one in self.generators.values():
            if isinstance(one, torch.Generator):
                one.manual_seed(seed)
            elif isinstance(one, random.Random):
                one.seed(seed)
            elif isinstance(one, np.random.Generator):
                one.bit_generator.state = type(one.bit_generator)(seed).state
            else:
                one.seed(seed)

    def as_new(self) -> None:
        """As a new process has it: counters, lists and schedules as they were when this was made, optimizers empty."""
        self._names_and_containers()
        for kept in self._optimizers:
            kept.bring_back()
            kept.optimizer.state.clear()

    def bring_back(self) -> None:
        """Everything as it was."""
        self._names_and_containers()
        for value in self._kept:
            value.bring_back()
        for kept in self._optimizers:
            kept.bring_back()
        for generator, state in self._where:
            set_state(generator, state)

    def _names_and_containers(self) -> None:
        for cell, value in self._cells:
            cell.cell_contents = value
        for names, name, value in self._globals.values():
            names[name] = value
        for container, before in self._containers:
            now = list(container.items()) if isinstance(container, dict) else list(container)
            was = list(before.items()) if isinstance(container, dict) else before
            if len(now) == len(was) and all(map(identical, now, was)):
                continue
            container.clear()
            if isinstance(container, (list, deque)):
                container.extend(before)
            else:
                container.update(before)
        for scheduler, before in self._schedules:
            vars(scheduler).clear()
            vars(scheduler).update(before)


def identical(one: Any, other: Any) -> bool:
    """The same object; of pairs, the same two."""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other) == 2:
        return one[0] is other[0] and one[1] is other[1]
    return one is other


def library(thing: Any) -> bool:
    """Whether a function or class belongs to a library, and so holds nothing of the person's."""
    module = getattr(thing, "__module__", None) or ""
    if isinstance(thing, type) and module.startswith(HOLDERS):
        return False
    first = module.split(".")[0]
    file = getattr(sys.modules.get(first), "__file__", None) or ""
    return first in sys.stdlib_module_names or (first != "handmade" and "-packages" in file)


def methods_of(kind: type) -> Iterator[tuple[str, Any]]:
    """The functions of a person's own class: what they refer to belongs to its objects."""
    for one in kind.__mro__:
        if not library(one):
            yield from ((name, f) for name, f in vars(one).items() if isinstance(f, types.FunctionType))


def names_in(code: types.CodeType) -> set[str]:
    """The global names that a function uses, its inner functions too."""
    found = set(code.co_names)
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            found |= names_in(one)
    return found


class KeptOptimizer:
    """What an optimizer was: the same dictionaries and tensors, with what they held."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.state = [(key, entries, dict(entries)) for key, entries in optimizer.state.items()]
        self.groups = [(group, {**group, "params": list(group["params"])}) for group in optimizer.param_groups]
        tensors = [one for _, _, entries in self.state for one in entries.values() if isinstance(one, Tensor)]
        tensors += [one for _, group in self.groups for one in group.values() if isinstance(one, Tensor)]
        self.tensors = [(one, one.detach().clone()) for one in tensors]

    @torch.no_grad()
    def bring_back(self) -> None:
        for tensor, value in self.tensors:
            tensor.copy_(value)
        self.optimizer.state.clear()
        for key, entries, before in self.state:
            entries.clear()
            entries.update(before)
            self.optimizer.state[key] = entries
        for group, before in self.groups:
            group.clear()
            group.update({**before, "params": list(before["params"])})
        self.optimizer.param_groups[:] = [group for group, _ in self.groups]


@contextlib.contextmanager
def rehearsed(given: Given) -> Iterator[Reach]:
    """Inside, the person's own functions may be run; afterwards optimizers, schedules, generators that they hold,
    counters and lists are as before. The model itself is put back by the examination."""
    reach = Reach(given)
    with undisturbed(*reach.modules):
        try:
            yield reach
        finally:
            reach.bring_back()


# Calling what was given


def draw(given: Given) -> Any:
    """One batch as the person has it. Raises NotExamined where there is none."""
    if given.batches is None:
        raise NotExamined("not given: batches")
    try:
        return given.batches() if callable(given.batches) else next(iter(given.batches))
    except StopIteration:
        raise NotExamined("batches: it is empty") from None


def cut_rows(batch: Any, rows: int, axis: int = 0) -> Any:
    """A batch with fewer rows: every tensor in it that has as many as the first one."""
    first = parts_of(batch)[0]
    if first.dim() < 2 or first.shape[axis] <= rows:
        return batch

    def cut(one: Any) -> Any:
        if not torch.is_tensor(one):
            return one
        if one.shape == first.shape:
            return one.narrow(axis, 0, rows)
        if axis == 0 and one.dim() and len(one) == len(first):
            return one[:rows]
        if one.numel() == first.numel():  # targets that are flattened
            return one.reshape(first.shape).narrow(axis, 0, rows).reshape(-1)
        return one

    if isinstance(batch, dict):
        return {name: cut(one) for name, one in batch.items()}
    if hasattr(batch, "_fields"):
        return type(batch)(*map(cut, batch))
    return type(batch)(map(cut, batch)) if isinstance(batch, (list, tuple)) else batch


def wanted(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The positional parameters of a function."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]


def takes_batch(given: Given) -> bool:
    """Whether `train_step` is given what it learns, and does not draw it by itself."""
    return given.train_step is not None and bool(wanted(given.train_step))


def take_step(given: Given, batch: Any) -> Any:
    """One step of the person's own on a batch: on one of its own drawing, where it draws by itself."""
    assert given.train_step is not None
    parameters = wanted(given.train_step)
    if not parameters:
        return given.train_step()
    if parameters[0].name == "batches":
        return given.train_step(itertools.repeat(batch))
    if len([one for one in parameters if one.default is one.empty]) == 2:
        return given.train_step(*parts_of(batch))
    return given.train_step(batch)


def call_evaluate(given: Given) -> Any:
    """`evaluate()`, or `evaluate(model)` where it wants one argument."""
    assert given.evaluate is not None
    needed = [one for one in wanted(given.evaluate) if one.default is one.empty]
    return given.evaluate(given.model) if needed else given.evaluate()
