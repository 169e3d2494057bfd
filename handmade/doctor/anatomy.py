"""What a model is made of, also what torch does not know of: modules and tensors in plain attributes and lists."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.nn import Parameter

INTERNAL = ("_parameters", "_buffers", "_modules")
MOST = 1000
"""Entries of a list or mapping that are looked at: more are data."""


def inside(value: Any, name: str = "", depth: int = 3) -> Iterator[tuple[str, Any]]:
    """(path, thing) for every tensor and module in a value: itself, or in lists, tuples, mappings and objects of a
    person's own classes inside it (a layer that forgot to be an nn.Module)."""
    if isinstance(value, (Tensor, nn.Module)):
        yield name, value
    elif depth and isinstance(value, (list, tuple)):
        for index, one in enumerate(value[:MOST]):
            yield from inside(one, f"{name}[{index}]", depth - 1)
    elif depth and isinstance(value, Mapping) and not isinstance(value, nn.Module):
        for key, one in islice(value.items(), MOST):
            yield from inside(one, f"{name}[{key!r}]", depth - 1)
    elif depth and own_object(value):
        for key, one in vars(value).items():
            yield from inside(one, join(name, key), depth - 1)


NOT_OWN = {"torch", "numpy", "transformers", "tokenizers", "builtins"} | set(sys.stdlib_module_names)


def own_object(value: Any) -> bool:
    """Whether it is an instance of a class that somebody wrote, with attributes."""
    made = type(value)
    return (
        hasattr(value, "__dict__") and not isinstance(value, type) and made.__module__.partition(".")[0] not in NOT_OWN
    )


def attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a person wrote on `self`, apart from what torch registered."""
    for name, value in vars(module).items():
        if name not in INTERNAL and not name.endswith("_hooks"):
            yield name, value


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def all_modules(model: Any) -> dict[str, nn.Module]:
    """Path -> module: all that torch knows, then `hidden` ones, each once. Empty for what is no module."""
    found: dict[int, tuple[str, nn.Module]] = {}

    def visit(module: nn.Module, path: str) -> None:
        for below, one in module.named_modules(prefix=path):
            found.setdefault(id(one), (below, one))
        for below, one in list(module.named_modules(prefix=path)):
            for name, value in attributes(one):
                for where, thing in inside(value, join(below, name)):
                    if isinstance(thing, nn.Module) and id(thing) not in found:
                        visit(thing, where)

    if isinstance(model, nn.Module):
        visit(model, "")
    return dict(found.values())


def hidden_modules(model: Any) -> dict[str, nn.Module]:
    """Path -> module that torch does not know: in a plain list, say. It is neither trained, saved nor moved."""
    known = {id(one) for one in model.modules()} if isinstance(model, nn.Module) else set()
    return {path: module for path, module in all_modules(model).items() if id(module) not in known}


def loose_tensors(model: Any) -> dict[str, Tensor]:
    """Path -> tensor on `self` of a module that is neither parameter nor buffer, and no part of either."""
    modules = all_modules(model)
    known = {id(t) for one in modules.values() for t in (*one._parameters.values(), *one._buffers.values())}
    found: dict[int, tuple[str, Tensor]] = {}
    for path, module in modules.items():
        for name, value in attributes(module):
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
