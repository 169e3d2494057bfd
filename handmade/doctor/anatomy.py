"""What a model is made of, also what torch does not know of: modules and tensors in plain attributes, lists and
objects, and what a function holds on to."""

from __future__ import annotations

import collections
import functools
import random
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter

INTERNAL = ("_parameters", "_buffers", "_modules")
LONG = 4096
"""A list or mapping with more entries is data, not anatomy: it is not looked into."""
ATOMS = (str, bytes, int, float, complex, bool, type(None), type, types.ModuleType, torch.dtype, torch.device)
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
CONTAINERS = (list, tuple, dict, set, collections.deque)


@functools.cache
def is_library(module: str) -> bool:
    """Whether a module of Python belongs to the language, to an installed library or to the doctor, and not to a
    person (or to the rest of ours)."""
    root = module.partition(".")[0]
    if root in ("__main__", "handmade"):
        return module.startswith("handmade.doctor")
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return root in sys.stdlib_module_names or "site-packages" in file or "dist-packages" in file


def is_object(value: Any) -> bool:
    """Whether a thing is an object of a person's own class (or an optimizer or schedule of torch), whose attributes may
    be looked into. Those of other libraries are left alone: some hold threads, files and locks."""
    if isinstance(value, (*ATOMS, *CONTAINERS, *GENERATORS, Tensor, types.FunctionType)):
        return False
    home = type(value).__module__ or ""
    return hasattr(value, "__dict__") and (home.startswith(("torch.nn", "torch.optim")) or not is_library(home))


def inside(value: Any, name: str = "", depth: int = 4) -> Iterator[tuple[str, Any]]:
    """(path, thing) for every tensor and module in a value: itself, or in lists, tuples, mappings and objects in it."""
    if isinstance(value, (Tensor, nn.Module)):
        yield name, value
    elif not depth or isinstance(value, ATOMS):
        return
    elif isinstance(value, (list, tuple)):
        if len(value) <= LONG:
            for index, one in enumerate(value):
                yield from inside(one, f"{name}[{index}]", depth - 1)
    elif isinstance(value, Mapping):
        if len(value) <= LONG:
            for key, one in value.items():
                yield from inside(one, f"{name}[{key!r}]", depth - 1)
    elif is_object(value):
        for key, one in vars(value).items():
            yield from inside(one, join(name, key), depth - 1)


def attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a person wrote on `self`, apart from what torch registered."""
    for name, value in vars(module).items():
        if name not in INTERNAL and not name.endswith("_hooks"):
            yield name, value


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def held_by(function: Any) -> list[Any]:
    """What a function holds on to: the object of a method, the arguments of a partial, what it closes over, and the
    globals that it names. Empty for what is no function of Python."""
    if isinstance(function, functools.partial):
        return [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, types.MethodType):
        return [function.__self__, function.__func__]
    if not isinstance(function, types.FunctionType):
        return []
    if is_library(function.__module__ or ""):
        return []
    names = [name for name in function.__code__.co_names if name in function.__globals__]
    cells = [cell.cell_contents for cell in function.__closure__ or () if holds(cell)]
    return [*cells, *(function.__defaults__ or ()), *(function.__globals__[name] for name in names)]


def holds(cell: types.CellType) -> bool:
    """Whether a cell of a closure has been filled."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def roots(model: Any) -> list[nn.Module]:
    """The modules that a patient stands on: itself, or what a function calls, or what a plain object holds."""
    if isinstance(model, nn.Module):
        return [model]
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()

    def visit(thing: Any, depth: int) -> None:
        if id(thing) in seen or isinstance(thing, ATOMS):
            return
        seen.add(id(thing))
        for _, one in inside(thing):
            if isinstance(one, nn.Module):
                found.setdefault(id(one), one)
        if depth:
            for one in held_by(thing):
                visit(one, depth - 1)

    visit(model, 3)
    known = {id(below) for one in found.values() for below in one.modules() if below is not one}
    return [one for one in found.values() if id(one) not in known]


def all_modules(model: Any) -> dict[str, nn.Module]:
    """Path -> module: all that torch knows, then `hidden` ones, each once; of a function, those of the modules that it
    calls. Empty where there is none."""
    found: dict[int, tuple[str, nn.Module]] = {}

    def visit(module: nn.Module, path: str) -> None:
        for below, one in module.named_modules(prefix=path):
            found.setdefault(id(one), (below, one))
        for below, one in list(module.named_modules(prefix=path)):
            for name, value in attributes(one):
                for where, thing in inside(value, join(below, name)):
                    if isinstance(thing, nn.Module) and id(thing) not in found:
                        visit(thing, where)

    tops = roots(model)
    for index, top in enumerate(tops):
        visit(top, "" if len(tops) == 1 else f"{type(top).__name__}[{index}]")
    return dict(found.values())


def hidden_modules(model: Any) -> dict[str, nn.Module]:
    """Path -> module that torch does not know: in a plain list, say. It is neither trained, saved nor moved."""
    known = {id(one) for top in roots(model) for one in top.modules()}
    return {path: module for path, module in all_modules(model).items() if id(module) not in known}


def loose_tensors(model: Any) -> dict[str, Tensor]:
    """Path -> tensor on `self` of a module (or of a plain object that it holds) that is neither parameter nor buffer,
    and no part of either; of a plain object without modules, its tensors."""
    modules = all_modules(model)
    known = {id(t) for one in modules.values() for t in (*one._parameters.values(), *one._buffers.values())}
    found: dict[int, tuple[str, Tensor]] = {}
    holders = [(path, list(attributes(module))) for path, module in modules.items()]
    if not isinstance(model, nn.Module):
        holders += [("", [(str(getattr(one, "__name__", "")), one)]) for one in (model, *held_by(model))]
    for path, entries in holders:
        for name, value in entries:
            for where, thing in inside(value, join(path, name)):
                if isinstance(thing, Tensor) and id(thing) not in known:
                    found.setdefault(id(thing), (where, thing))
    return dict(found.values())


def every_parameter(model: Any) -> dict[str, Parameter]:
    """Path -> parameter, each once; of hidden modules too."""
    found: dict[int, tuple[str, Parameter]] = {}
    for path, module in all_modules(model).items():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), (join(path, name), parameter))
    return dict(found.values())


def reachable(*things: Any) -> list[Any]:
    """All that an examination might change: modules, tensors, containers, objects of a person's own classes, functions
    and generators that can be reached from `things`, each once."""
    found: dict[int, Any] = {}
    waiting = list(things)
    while waiting:
        thing = waiting.pop()
        if id(thing) in found or isinstance(thing, ATOMS):
            continue
        if isinstance(thing, (Tensor, *GENERATORS)):
            found[id(thing)] = thing
        elif isinstance(thing, CONTAINERS):
            found[id(thing)] = thing
            if len(thing) <= LONG:
                waiting += thing.values() if isinstance(thing, dict) else thing
                waiting += [key for key in thing if isinstance(key, Tensor)] if isinstance(thing, dict) else []
        elif isinstance(thing, nn.Module) or is_object(thing):
            found[id(thing)] = thing
            waiting += vars(thing).values()
        elif isinstance(thing, (functools.partial, types.MethodType)):
            waiting += held_by(thing)
        elif isinstance(thing, types.FunctionType) and not is_library(thing.__module__ or ""):
            found[id(thing)] = thing
            waiting += held_by(thing)
    return list(found.values())
