"""What every module of a patient returns, in order, laid out by row and position.

B rows, T positions, F features.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from handmade.doctor.forms import tensors_in
from handmade.doctor.stirring import STEADY, seed_everything

if TYPE_CHECKING:
    from handmade.doctor.patient import Patient


@dataclass(frozen=True)
class Step:
    """What one module was given and returned in one of its runs."""

    path: str
    """Of the module; "" is the whole model; of a function of torch, `OPERATION` and its name."""
    run: int
    """How often it had run before, in this call."""
    output: Tensor | None
    """(B, T, F); T is 1 for what has no positions any more. None where it cannot be laid out so."""
    given: Tensor | None
    """The first tensor of features that it was given, laid out in the same way."""
    began: int
    ended: int
    """When, among all beginnings and ends of modules in this call."""

    @property
    def key(self) -> tuple[str, int]:
        """What `until` takes."""
        return self.path, self.run


class Enough(BaseException):
    """Ends a forward whose rest is of no interest. No `except Exception` of the patient's stops it."""


def traced(
    patient: Patient,
    tokens: Tensor,
    until: tuple[str, int] | None = None,
    operations: bool = False,
) -> list[Step]:
    """The steps of one call for rows of tokens (B, T), in the order in which they ended: see `Patient.trace`."""
    size = 1 if patient.form.single else patient.form.rows
    if size is None:
        return _traced(patient, tokens, until, operations)
    parts = []
    for first in range(0, len(tokens), size):
        rows = tokens[first : first + size]
        rows = torch.cat([rows, rows[-1:].expand(size - len(rows), -1)]) if len(rows) < size else rows
        parts.append(_traced(patient, rows, until, operations))
    return [
        replace(same[0], output=joined([one.output for one in same], len(tokens)),
                given=joined([one.given for one in same], len(tokens)))
        for same in zip(*parts, strict=False)
        if len({one.key for one in same}) == 1
    ]  # fmt: skip


def joined(tensors: Sequence[Tensor | None], rows: int) -> Tensor | None:
    """What several calls had, as the rows of one; None where one of them had none, or another shape."""
    known = [one for one in tensors if one is not None]
    if len(known) < len(tensors) or len({one.shape[1:] for one in known}) != 1:
        return None
    return torch.cat(known)[:rows]


def _traced(patient: Patient, tokens: Tensor, until: tuple[str, int] | None, operations: bool) -> list[Step]:
    rows, length = tokens.shape
    steps: list[Step] = []
    runs: Counter[str] = Counter()
    open_ones: dict[str, tuple[Tensor | None, int]] = {}
    handles = []
    time = count()

    def lay(things: Any) -> Tensor | None:
        return first_laid_out(things, rows, length, patient.form.time_first)

    def after(path: str, output: Any) -> None:
        given, began = open_ones.pop(path, (None, 0))
        steps.append(Step(path, runs[path], lay(output), given, began, next(time)))
        runs[path] += 1
        if until == steps[-1].key:
            raise Enough

    for path, module in patient.modules.items():

        def before(_: nn.Module, args: Any, named: Any, path: str = path) -> None:
            open_ones[path] = lay((args, list(named.values()))), next(time)

        def behind(_: nn.Module, __: Any, output: Any, path: str = path) -> None:
            after(path, output)

        handles += [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(behind)]

    def done(name: str, output: Any, given: Any) -> None:
        path = f"{OPERATION}{name}"
        open_ones[path] = lay(given), next(time)
        after(path, output)

    try:
        with Operations(done) if operations else contextlib.nullcontext():
            patient.call(tokens)
    except Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return steps


OPERATION = "operation "


class Operations(TorchFunctionMode):
    """Inside, every function of torch is told of: its name, what it returned and what it was given."""

    def __init__(self, done: Callable[[str, Any, Any], None]) -> None:
        super().__init__()
        self.done = done

    def __torch_function__(self, function: Any, kinds: Any, args: Any = (), named: Any = None) -> Any:
        output = function(*args, **(named or {}))
        self.done(str(getattr(function, "__name__", "")), output, (args, list((named or {}).values())))
        return output


Change = Callable[[Tensor], None]
"""Changes features (B, T, ...) in place."""


@dataclass(frozen=True)
class Alone:
    """What one module returned when it was asked by itself, with its input changed in several ways."""

    path: str
    began: int
    ended: int
    outputs: list[Tensor | None]
    """(B, T, F) for each change; None where it failed or cannot be laid out."""


def asked_alone(
    patient: Patient, tokens: Tensor, changes: Sequence[Change], skip: Callable[[nn.Module], bool]
) -> list[Alone]:
    """Every module that is given features by position, asked by itself once for each change of them, inner ones first.
    Of a model that takes one sequence or a fixed number of rows at a time, the first ones."""
    size = 1 if patient.form.single else patient.form.rows
    tokens = tokens if size is None else tokens[:size]
    rows, length = tokens.shape
    time_first = patient.form.time_first
    found: dict[str, Alone] = {}
    handles = []
    time = count()
    busy = False

    def ask(module: nn.Module, args: Any, named: Any, change: Change) -> Tensor | None:
        args, named = changed_in((args, named), rows, length, time_first, change)
        seed_everything(STEADY)
        try:
            return first_laid_out(module(*args, **named), rows, length, time_first)
        except Exception:
            return None

    for path, module in patient.modules.items():
        if skip(module):
            continue

        def before(module: nn.Module, args: Any, named: Any, path: str = path) -> None:
            nonlocal busy
            if busy or path in found:
                return
            given = first_laid_out((args, list(named.values())), rows, length, time_first)
            if given is not None and given.shape[1] == length:
                busy = True
                try:
                    outputs = [ask(module, args, named, change) for change in changes]
                finally:
                    busy = False
                found[path] = Alone(path, next(time), -1, outputs)

        def after(_: nn.Module, __: Any, ___: Any, path: str = path) -> None:
            if not busy and path in found and found[path].ended < 0:
                found[path] = replace(found[path], ended=next(time))

        handles += [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        with torch.no_grad(), patient.mode(training=False):
            patient.call(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return sorted(found.values(), key=lambda one: one.ended)


def changed_in(things: Any, rows: int, length: int, time_first: bool, change: Change) -> Any:
    """Arguments of a module, copied, with the first tensor of features in them changed."""
    done = False

    def visit(thing: Any) -> Any:
        nonlocal done
        if torch.is_tensor(thing):
            copy = thing.detach().clone(memory_format=torch.contiguous_format)
            view = None if done else laid_out(copy, rows, length, time_first)
            if view is not None and view.shape[1] == length:
                done = True
                change(view)
            return copy
        if type(thing) in (list, tuple):
            return type(thing)(visit(one) for one in thing)
        if type(thing) is dict:
            return {name: visit(one) for name, one in thing.items()}
        return thing

    return visit(things)


def first_laid_out(things: Any, rows: int, length: int, time_first: bool) -> Tensor | None:
    """The first tensor of features in things, as (B, T, F): a copy, for what is changed in place afterwards was what it
    was. None where there is none."""
    for tensor in tensors_in(things):
        view = laid_out(tensor, rows, length, time_first)
        if view is not None:
            return view.flatten(2).detach().clone()
    return None


def laid_out(tensor: Tensor, rows: int, length: int, time_first: bool = False) -> Tensor | None:
    """A view (B, T, ...) of a tensor of features; T is 1 where it has none and stands for whole rows. None where no row
    can be told (heads merged with rows), and for scores, which have a position on two axes.

    Axes are told by their sizes: choose `rows` and `length` unlike each other and unlike the sizes of features.
    """
    sizes = tuple(tensor.shape)
    if not tensor.is_floating_point() or not sizes or sizes.count(length) > 1:
        return None
    found: Tensor | None = None
    if sizes[:2] == (rows, length):
        found = tensor
    elif sizes[:2] == (length, rows):
        found = tensor.transpose(0, 1)
    elif sizes[0] == rows * length and length > 1:
        first = (length, rows) if time_first else (rows, length)
        found = tensor.unflatten(0, first)
        found = found.transpose(0, 1) if time_first else found
    elif rows == 1 and length in sizes:  # perhaps one sequence without a batch
        found = tensor.movedim(sizes.index(length), 0).unsqueeze(0)
    elif sizes[0] == rows:
        found = tensor.movedim(sizes.index(length), 1) if length in sizes else tensor.unsqueeze(1)
    elif rows == 1 and len(sizes) == 1:
        found = tensor[None, None]
    return found.unsqueeze(-1) if found is not None and found.dim() == 2 else found


class Embedded(TorchFunctionMode):
    """Inside, what tokens are turned into (rows of a table, looked up in whatever way) is a leaf of the graph.

    It takes the place of the first float tensor that any function of torch makes of the token ids, so that the model
    need not have a module for it. Shapes: `leaves` hold (the leaf, how its first axes lie: "BT", "TB", "T", "N").
    """

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.views = {"BT": tokens, "TB": tokens.T, "T": tokens[0], "N": tokens.flatten(), "NT": tokens.T.flatten()}
        self.leaves: list[tuple[Tensor, str]] = []
        self.marked: dict[int, tuple[Tensor, str]] = {}

    def __torch_function__(self, function: Any, kinds: Any, args: Any = (), named: Any = None) -> Any:
        output = function(*args, **(named or {}))
        if not torch.is_tensor(output) or output.dim() < 2:
            return output
        for one in tensors_in((args, list((named or {}).values()))):
            layout = self.layout(one)
            if layout is None:
                continue
            shape = self.views[layout].shape
            if output.shape[:-1] != shape:
                continue
            if output.is_floating_point():
                leaf = output.detach().clone().requires_grad_()
                self.leaves.append((leaf, layout))
                return leaf.clone()  # some change it in place
            self.marked[id(output)] = (output, layout)  # one-hot, not yet float
        return output

    def layout(self, tensor: Tensor) -> str | None:
        """How the tokens lie in a tensor, or None where it does not hold them."""
        if tensor.is_floating_point() or tensor.is_complex():
            return None
        if id(tensor) in self.marked:
            return self.marked[id(tensor)][1]
        for name, view in self.views.items():
            if tensor.shape == view.shape and tensor.dtype != torch.bool and torch.equal(tensor.to(view.dtype), view):
                return name
        return None


def reach_of(patient: Patient, tokens: Tensor, positions: list[int]) -> Tensor | None:
    """How strongly what a position of the first row says depends on what stood at every position of it:

        R[i, s] = max over features |d (v . logits[0, t_i]) / d embedding[0, s]|,        v random

    Shapes: -> (len(positions), T). None where no gradient comes through: ids are looked up in a way that is not seen,
    or the model does not let gradients flow.
    """
    size = 1 if patient.form.single else patient.form.rows
    tokens = tokens if size is None else tokens[:1].expand(size, -1) if len(tokens) < size else tokens[:size]
    rows, length = tokens.shape
    try:
        with torch.enable_grad(), patient.mode(training=False), Embedded(tokens) as inside:
            logits = patient.run(tokens)
            direction = torch.randn(logits.shape[-1], generator=patient.generator).to(logits)
            leaves = [leaf for leaf, _ in inside.leaves]
            found = torch.zeros(len(positions), length)
            for index, position in enumerate(positions):
                answer = logits[0, position] @ direction
                gradients = torch.autograd.grad(answer, leaves, retain_graph=True, allow_unused=True)
                for gradient, (_, layout) in zip(gradients, inside.leaves, strict=True):
                    if gradient is not None:
                        strength = gradient.abs().amax(-1).float().cpu()
                        if layout in ("TB", "NT"):
                            strength = strength.reshape(length, rows).T
                        found[index] = torch.maximum(found[index], strength.reshape(-1, length)[0])
    except Exception:
        return None
    return found if found.isfinite().all() and bool((found.amax(-1) > 0).all()) else None
