"""What flows through a model's modules: each call in order, with what entered and what left.

For checks that name a place. They look at modules by hooks, whatever the modules are called.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from handmade.doctor.patient import Patient


@dataclass
class Call:
    """One call of one module."""

    path: str
    module: nn.Module
    depth: int
    """Calls that it stands in."""
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    entered: Tensor | None
    """A copy of the first tensor of numbers among the arguments. Token ids are none."""
    left: Tensor | None = None
    """A copy of the first tensor of numbers in what came back."""
    inner: int = 0
    """Calls of other modules inside this one."""

    @property
    def kind(self) -> str:
        return type(self.module).__name__

    @property
    def name(self) -> str:
        """For a person."""
        return f"{self.path or 'the model'} ({self.kind})"


@dataclass
class Flow:
    """The calls of a forward pass, in the order in which they begin."""

    calls: list[Call] = field(default_factory=list)
    open: list[Call] = field(default_factory=list)
    """Calls that have not ended: where the model is just now."""

    @property
    def where(self) -> str:
        """The path of the module that is running."""
        return self.open[-1].path if self.open else ""

    @property
    def leaves(self) -> list[Call]:
        """The calls in which no other module is called."""
        return [call for call in self.calls if not call.inner]


def first_of(thing: Any) -> Tensor | None:
    """The first floating tensor in what a module takes or returns, or None."""
    if torch.is_tensor(thing):
        return thing if thing.is_floating_point() else None
    if isinstance(thing, Mapping):
        thing = tuple(thing.values())
    if isinstance(thing, (list, tuple)):
        for one in thing:
            found = first_of(one)
            if found is not None:
                return found
    return None


def exchanged(thing: Any, old: Tensor, new: Tensor) -> Any:
    """`thing` with one tensor in it exchanged."""
    if thing is old:
        return new
    if type(thing) in (list, tuple):
        return type(thing)(exchanged(one, old, new) for one in thing)
    if type(thing) is dict:
        return {name: exchanged(one, old, new) for name, one in thing.items()}
    return thing


@contextlib.contextmanager
def followed(patient: Patient) -> Iterator[Flow]:
    """Every call of every module inside is written down."""
    flow, handles = Flow(), []

    def copied(thing: Any) -> Tensor | None:
        found = first_of(thing)
        return None if found is None else found.detach().clone()

    def begin(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        call = Call(path, module, len(flow.open), (args, kwargs), copied((args, kwargs)))
        for outer in flow.open:
            outer.inner += 1
        flow.calls.append(call)
        flow.open.append(call)

    def end(module: nn.Module, output: Any) -> None:
        if flow.open and flow.open[-1].module is module:
            flow.open.pop().left = copied(output)

    for path, module in patient.modules.items():

        def before(module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            begin(path, module, args, kwargs)

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            end(module, output)

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield flow
    finally:
        for handle in handles:
            handle.remove()


NUMBERED = re.compile(r"\d+\]?$")


def repeated(flow: Flow) -> list[Call]:
    """The calls of the model's blocks: the largest modules of one class that stand in a row (`blocks.0`, `layer2`,
    `blocks[1]` of a plain list), are made of others, and give back the shape that they take. Empty: none is seen."""
    groups: dict[tuple[type, str], list[Call]] = {}
    for call in flow.calls:
        if not call.inner or call.entered is None or call.left is None or not NUMBERED.search(call.path):
            continue
        if call.entered.shape == call.left.shape:
            groups.setdefault((type(call.module), NUMBERED.sub("", call.path)), []).append(call)

    def size(calls: list[Call]) -> tuple[int, int, int]:
        parameters = {id(p): p.numel() for call in calls for p in call.module.parameters()}
        return sum(parameters.values()), len(calls), -calls[0].depth

    return max(groups.values(), key=size, default=[])


def head_of(flow: Flow, logits: Tensor) -> Call | None:
    """The call of the module that made the logits, where one did. Shapes: logits (B, T, V), or (B, 1, V)."""
    for call in reversed(flow.calls):
        if call.inner or call.entered is None or call.left is None or call.left.shape[-1] != logits.shape[-1]:
            continue
        for left in (call.left, call.left.transpose(0, 1) if call.left.dim() == 3 else call.left):
            if left.numel() == logits.numel() and torch.equal(left.reshape(-1), logits.reshape(-1).to(left.dtype)):
                return call
            if left.dim() == 3 and left[:, -1:].shape == logits.shape and torch.equal(left[:, -1:].float(), logits):
                return call
    return None


def root_mean_square(x: Tensor) -> float:
    """sqrt(mean(x^2)), in float64."""
    return float(x.detach().double().square().mean().sqrt()) if x.numel() else 0.0


def spread(x: Tensor) -> float:
    """RMS of a tensor without what all its vectors share. Shapes: (..., C)."""
    x = x.double().flatten(0, -2)
    return root_mean_square(x - x.mean(0) if len(x) > 1 else x)


def first_bad(flow: Flow) -> Call | None:
    """The first call that makes what is not finite out of what is."""
    for call in flow.leaves:
        sound = call.entered is None or bool(call.entered.isfinite().all())
        if sound and call.left is not None and not call.left.isfinite().all():
            return call
    return None


MOST_POSITIONS = 32
"""As many say how a model begins, and a quick look stays quick."""


def short(patient: Patient, rows: int) -> Tensor:
    """Random rows, shorter than the context where the model allows it. Shapes: -> (rows, T)."""
    return patient.tokens(rows, patient.length if patient.form.full else min(patient.length, MOST_POSITIONS))
