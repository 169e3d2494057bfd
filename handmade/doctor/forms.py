"""How a patient is called, and how what it returns is read.

B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

AXES = {
    "BVT": "logits come as (B, V, T)",
    "NV": "logits come as (B * T, V)",
    "BV": "logits come for the last position alone",
}


@dataclass(frozen=True)
class Form:
    """How a patient is called, and how what comes back is read."""

    targets: bool = False
    """It wants targets."""
    single: bool = False
    """It takes one sequence (T,), without a batch."""
    time_first: bool = False
    """Tokens are (T, B)."""
    axes: str = "BTV"
    """Axes of the logits: "BTV", "BVT", "TBV", "NV" (B and T flattened), "BV" (the last position alone)."""
    full: bool = False
    """Rows must have all `context` positions."""
    kind: str = "logits"
    """"logits", "log-probabilities" or "probabilities"."""
    targets_name: str | None = None
    """The argument that takes targets; None: the second one."""
    inputs_name: str | None = None
    """The argument that takes tokens, where it has to be named; None: the first one."""
    nothing: tuple[str, ...] = ()
    """Other arguments that it insists on: they are given None."""
    ones: tuple[str, ...] = ()
    """Arguments that say which tokens are real: all are."""
    rows: int | None = None
    """It takes so many rows, and no other number."""

    def describe(self) -> list[str]:
        """What is unusual, for a person."""
        said = []
        if self.targets:
            said.append("forward is called with targets")
        if self.nothing:
            said.append(f"forward is called with {', '.join(f'{name}=None' for name in self.nothing)}")
        if self.ones:
            said.append(f"forward is called with {', '.join(self.ones)} of ones")
        if self.single:
            said.append("forward takes one sequence without a batch")
        if self.rows is not None:
            said.append(f"forward takes {self.rows} {'row' if self.rows == 1 else 'rows'} at a time")
        if self.time_first:
            said.append("tokens go in as (T, B)")
        if self.axes in AXES:
            said.append(AXES[self.axes])
        if self.full:
            said.append("rows always have the full context")
        if self.kind != "logits":
            said.append(f"forward returns {self.kind}")
        return said


def arguments_of(model: Any) -> list[inspect.Parameter]:
    """What a forward takes, without `self`, *args and **kwargs. Empty where that cannot be seen."""
    forward = model.forward if isinstance(model, nn.Module) else model
    try:
        found = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [one for one in found if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]


def is_target(name: str) -> bool:
    """Whether an argument of this name takes targets."""
    return "target" in name or "label" in name or name in ("y", "ys")


def forms_of(model: Any, attention_mask: str | None = None) -> list[Form]:
    """The forms to try, the usual ones first; `attention_mask`: the argument that says which tokens are real."""
    known = arguments_of(model)
    inputs = next((one.name for one in known[:1] if one.kind == one.KEYWORD_ONLY), None)
    others = known[1:]
    target = next((one.name for one in others if is_target(one.name)), None)
    wanted = [one.name for one in others if one.default is one.empty and not is_target(one.name)]
    ones = tuple(name for name in wanted if name in ("attention_mask", attention_mask))
    nothing = tuple(name for name in wanted if name not in ones and "mask" not in name)
    base = [Form(nothing=nothing, ones=ones, inputs_name=inputs)]
    if target is not None or len(others) > 0 or not known:
        base.append(Form(targets=True, targets_name=target, nothing=nothing if target else nothing[1:], ones=ones,
                         inputs_name=inputs))  # fmt: skip
    found = []
    for change in ({}, {"single": True}, {"time_first": True}, {"rows": 1}):
        found += [Form(**{**vars(one), **change}) for one in base]
    return found


def logits_in(returned: Any, vocabulary: int, rows: int | None = None, length: int | None = None) -> Tensor:
    """The logits in what a forward returned: a tensor, the first fitting one of a tuple, mapping or object, or
    `.logits`. Raises TypeError where there are none."""
    if torch.is_tensor(returned):
        return returned
    for name in ("logits", "output", "prediction"):
        found = returned.get(name) if isinstance(returned, Mapping) else getattr(returned, name, None)
        if torch.is_tensor(found) and found.dim():
            return found
    tensors = [one for one in tensors_in(returned) if one.dim() >= 1 and one.is_floating_point()]
    if rows is not None and length is not None:
        for tensor in tensors:
            if axes_of(tensor.shape, rows, length, vocabulary) is not None and tensor.shape[-1] == vocabulary:
                return tensor
    for tensor in tensors:
        if vocabulary in tensor.shape:
            return tensor
    if tensors:
        return tensors[0]
    raise TypeError(f"it returned {describe(returned)}")


def tensors_in(returned: Any, depth: int = 3) -> Iterator[Tensor]:
    """All tensors in what was returned: in tuples, lists, mappings and dataclasses."""
    if torch.is_tensor(returned):
        yield returned
    elif depth and isinstance(returned, Mapping):
        for one in returned.values():
            yield from tensors_in(one, depth - 1)
    elif depth and isinstance(returned, (list, tuple)):
        for one in returned:
            yield from tensors_in(one, depth - 1)
    elif depth and hasattr(returned, "__dataclass_fields__"):
        for one in vars(returned).values() if hasattr(returned, "__dict__") else ():
            yield from tensors_in(one, depth - 1)


def axes_of(shape: torch.Size, rows: int, length: int, vocabulary: int) -> str | None:
    """Which axes logits have, by their sizes."""
    sizes = tuple(shape)
    if sizes == (rows, 1, vocabulary) and length > 1:
        return "BV"
    known: dict[str, tuple[int, ...]] = {}
    if rows == 1:  # one sequence: a batch of one may be left out
        known = {"TV": (length, vocabulary), "V": (vocabulary,)}
    known |= {
        "BTV": (rows, length, vocabulary), "BVT": (rows, vocabulary, length), "TBV": (length, rows, vocabulary),
        "NV": (rows * length, vocabulary), "BV": (rows, vocabulary),
    }  # fmt: skip
    for name, expected in known.items():
        if sizes == expected:
            return {"TV": "BTV" if length > 1 else "BV", "V": "BV"}.get(name, name)
    if len(sizes) == 3 and sizes[:2] == (rows, length) and sizes[2] > vocabulary:
        return "BTV"  # a vocabulary rounded up
    return None


def kind_of(logits: Tensor, vocabulary: int, axes: str) -> str:
    """Whether these are logits, log-probabilities or probabilities."""
    along = 1 if axes == "BVT" else -1
    close = 1e-3 if logits.dtype in (torch.float32, torch.float64) else 0.03  # half precision sums to 1 less exactly
    logits = logits.double()
    if not logits.isfinite().all():
        return "logits"
    if (logits >= 0).all() and (logits.sum(along) - 1).abs().max() < close:
        return "probabilities"
    if (logits <= 1e-6).all() and logits.logsumexp(along).abs().max() < close:
        return "log-probabilities"
    return "logits"


def describe(thing: Any) -> str:
    """What came back, in a few words."""
    if torch.is_tensor(thing):
        return f"a tensor {tuple(thing.shape)}"
    if isinstance(thing, (list, tuple)):
        return f"a {type(thing).__name__} of {', '.join(describe(one) for one in thing[:4]) or 'nothing'}"
    if isinstance(thing, Mapping):
        return f"a mapping with {', '.join(map(str, list(thing)[:6])) or 'nothing'}"
    return "nothing" if thing is None else f"a {type(thing).__name__}"
