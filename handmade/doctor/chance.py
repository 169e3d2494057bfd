"""Chance inside a model: what a forward draws at random, what it multiplies by it, and what it gives without chance."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

SAME = {
    "_reshape_alias", "_to_copy", "_unsafe_view", "alias", "as_strided", "clone", "contiguous", "detach", "expand",
    "lift_fresh", "permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose",
    "unbind", "unsqueeze", "view", "cat", "stack",
}  # fmt: skip
"""Operations that move numbers and do not change them."""


@dataclass(frozen=True)
class Noise:
    """What is known of a tensor of random numbers."""

    mean: float | None = None
    between: tuple[float, float] | None = None
    """Evenly spread over this range, where it is."""

    def after(self, operation: str, number: float | None) -> Noise:
        """What is known after an operation with a number."""
        name = operation.rstrip("_")
        if name in SAME:
            return self
        mean, between, c = self.mean, self.between, number
        if name in ("bitwise_not", "logical_not"):
            return Noise(None if mean is None else 1 - mean)
        if name == "floor" and between is not None and between[0] >= 0 and between[1] <= 2:
            return Noise(max(0.0, between[1] - 1) / (between[1] - between[0]))
        if c is None:
            return Noise()
        if name in ("gt", "ge", "lt", "le"):
            if between is None:
                return Noise()
            below = min(1.0, max(0.0, (c - between[0]) / (between[1] - between[0])))
            return Noise(below if name in ("lt", "le") else 1 - below)
        moved = {"mul": lambda x: x * c, "div": lambda x: x / c, "add": lambda x: x + c, "sub": lambda x: x - c,
                 "rsub": lambda x: c - x}.get(name)  # fmt: skip
        if moved is None:
            return Noise()
        ends = sorted(map(moved, between)) if between else None
        return Noise(None if mean is None else moved(mean), (ends[0], ends[1]) if ends else None)


@dataclass(eq=False)
class Chance(TorchDispatchMode):
    """Inside it, all random numbers that modules draw are followed, whoever makes dropout of them and however:
    `nn.Dropout`, `F.dropout`, attention's own, or `x * (torch.rand(x.shape) > p) / (1 - p)`.

        with Chance(patient.modules) as chance, patient.mode(training=True):
            patient.call(tokens)
        chance.drops        paths of the modules in which something was multiplied by random numbers

    With `averaged`, what multiplies or is added at random is replaced by its mean: the forward without chance.
    """

    modules: Mapping[str, nn.Module]
    averaged: bool = False
    draws: list[str] = field(default_factory=list)
    """The module in which each random number was drawn."""
    drops: list[str] = field(default_factory=list)
    """The module of each multiplication by random numbers."""
    twice: list[tuple[str, str]] = field(default_factory=list)
    """The modules of two such multiplications with nothing between them."""
    ran: set[str] = field(default_factory=set)
    """The modules whose forward ran."""

    def __post_init__(self) -> None:
        super().__init__()
        self._stack: list[str] = []
        self._noise: dict[int, tuple[Tensor, Noise]] = {}  # the tensors are held, so that no id is given again
        self._dropped: dict[int, tuple[Tensor, str, bool]] = {}
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> Chance:
        self._hooks.enter_context(places(self.modules, self._stack, self.ran))
        super().__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        super().__exit__(*problem)
        self._hooks.close()
        self._noise.clear()
        self._dropped.clear()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch loads its compiler, four seconds of it, to keep it away from here

    @property
    def place(self) -> str:
        return self._stack[-1] if self._stack else ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        fused = self._inside_a_kernel(func, name, args, kwargs)
        if fused is not None:
            return fused
        kernel = any(part in name for part in ("dropout", "attention", "rnn"))  # tagged also where they draw nothing
        if torch.Tag.nondeterministic_seeded in func.tags and not kernel:
            out = func(*args, **kwargs)
            self.draws.append(self.place)
            if isinstance(out, Tensor):
                self._learn(out, drawn(name, args, kwargs))
            return out
        operands = [one for one in tensors_in(args, kwargs) if one.dim() > 0 or id(one) in self._noise]
        noisy = [one for one in operands if id(one) in self._noise]
        if not noisy:
            out = func(*args, **kwargs)
            self._follow(name, operands, args, out)
            return out
        if len(noisy) == len(operands):
            out = func(*args, **kwargs)
            known = self._noise[id(noisy[0])][1]
            known = known.after(name, number_in(args)) if len(noisy) == 1 or name in SAME else Noise()
            for one in tensors_in((out,), {}):
                self._learn(one, known)
            return out
        return self._mixed(func, name, args, kwargs, operands, noisy[0])

    def _learn(self, tensor: Tensor, noise: Noise) -> None:
        self._noise[id(tensor)] = (tensor, noise)
        self._dropped.pop(id(tensor), None)

    def _follow(self, name: str, operands: Sequence[Tensor], args: Any, out: Any) -> None:
        """Whatever is only moved or scaled stays dropped."""
        moved = name in SAME or (name.rstrip("_") in ("mul", "div") and len(operands) == 1 and len(args) > 1)
        origins = [self._dropped.get(id(one)) for one in operands]
        for one in tensors_in((out,), {}):
            first = origins[0] if origins else None
            if moved and first is not None and None not in origins:
                self._dropped[id(one)] = (one, first[1], first[2])
            else:
                self._dropped.pop(id(one), None)

    def _mixed(self, func: Any, name: str, args: Any, kwargs: Any, operands: Sequence[Tensor], noise: Tensor) -> Any:
        """An operation on random numbers and others."""
        base, known = name.rstrip("_"), self._noise[id(noise)][1]
        others = [one for one in operands if one is not noise]
        drop = (base == "mul" and len(others) == 1) or base in ("masked_fill", "where")
        if self.averaged and (drop or base in ("add", "sub")):
            out = without_chance(func, base, args, kwargs, noise, expectation(noise, known))
        else:
            out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            self._noise.pop(id(out), None)
            if drop:
                self._drop(others[0], out, whole=noise.numel() == others[0].numel())
            else:
                self._dropped.pop(id(out), None)
        return out

    def _drop(self, x: Tensor, out: Tensor, whole: bool) -> None:
        before = self._dropped.get(id(x))
        if before is not None and before[2] == whole:  # a whole layer or row dropped after single numbers is no repeat
            self.twice.append((before[1], self.place))
        self.drops.append(self.place)
        self._dropped[id(out)] = (out, self.place, whole)

    def _inside_a_kernel(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Kernels that have dropout in them, as on a GPU. None for what is none of them."""
        if name in ("native_dropout", "_fused_dropout"):
            p = args[1] if name == "native_dropout" else 1 - args[1]
            if p == 0 or (name == "native_dropout" and args[2] is False):
                return None
            self.draws.append(self.place)
            out = (args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)) if self.averaged else func(*args)
            self._drop(args[0], out[0], whole=True)
            return out
        given = [argument.name for argument in func._schema.arguments]
        for option in ("dropout_p", "dropout"):
            if option not in given:
                continue
            at = given.index(option)
            p = args[at] if at < len(args) else kwargs.get(option, 0.0)
            if "train" in given and args[given.index("train")] is False:
                p = 0.0
            if not p:
                return None
            self.draws.append(self.place)
            self.drops.append(self.place)
            if self.averaged:
                args = (*args[:at], 0.0, *args[at + 1 :]) if at < len(args) else args
                kwargs = {**kwargs, option: 0.0} if option in kwargs else kwargs
            return func(*args, **kwargs)
        return None


@contextlib.contextmanager
def places(modules: Mapping[str, nn.Module], stack: list[str], ran: set[str]) -> Iterator[None]:
    """Keeps in `stack` the paths of the modules whose forward is running, and in `ran` those of all that did."""
    handles = []
    for path, module in modules.items():

        def begin(_: nn.Module, __: Any, path: str = path) -> None:
            stack.append(path)
            ran.add(path)

        def end(_: nn.Module, __: Any, ___: Any, path: str = path) -> None:
            if path in stack:
                del stack[len(stack) - 1 - stack[::-1].index(path) :]

        handles.append(module.register_forward_pre_hook(begin))
        handles.append(module.register_forward_hook(end, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors_in(args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that an operation reads (not those it is told to write to)."""
    found = []
    for one in (*args, *(value for name, value in kwargs.items() if not name.startswith("out"))):
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, (list, tuple)):
            found += [inner for inner in one if isinstance(inner, Tensor)]
    return found


def number_in(args: Sequence[Any]) -> float | None:
    """The number with which an operation is done: its second operand."""
    for one in args[1:2]:
        if isinstance(one, (int, float)) and not isinstance(one, bool):
            return float(one)
        if isinstance(one, Tensor) and one.dim() == 0:
            return float(one)
    return None


def drawn(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Noise:
    """What is known of fresh random numbers."""
    base = name.rstrip("_").removesuffix("_like")
    numbers = [one for one in args if isinstance(one, (int, float)) and not isinstance(one, bool)]
    if base == "bernoulli":
        if name == "bernoulli_" and (numbers or "p" in kwargs):
            return Noise(float(numbers[0] if numbers else kwargs["p"]))
        chances = args[-1]
        if isinstance(chances, Tensor) and name == "bernoulli" and chances.numel():
            lowest, highest = chances.aminmax()
            return Noise(float(lowest) if lowest == highest else None)
        return Noise(0.5 if name == "bernoulli_" and len(args) == 1 else None)
    if base == "rand":
        return Noise(0.5, (0.0, 1.0))
    if base == "uniform":
        low, high = (float(numbers[0]), float(numbers[1])) if len(numbers) >= 2 else (0.0, 1.0)
        return Noise((low + high) / 2, (low, high) if high > low else None)
    if base == "randn":
        return Noise(0.0)
    if base == "normal":
        return Noise(float(numbers[0]) if numbers else 0.0)
    return Noise()


def expectation(noise: Tensor, known: Noise) -> float:
    """Its mean: known, or 1 where the numbers speak for it, or that of the numbers."""
    if known.mean is not None:
        return 1.0 if abs(known.mean - 1) < 1e-6 else known.mean
    values = noise.double()
    mean = float(values.mean())
    spread = float(values.std()) / math.sqrt(values.numel()) if values.numel() > 1 else math.inf
    return 1.0 if abs(mean - 1) <= 4 * spread else mean


def without_chance(func: Any, base: str, args: Any, kwargs: Any, noise: Tensor, mean: float) -> Any:
    """The operation with the mean of the random numbers in their place."""
    if base == "masked_fill":
        kept = args[0] * (1 - mean) + args[2] * mean
    elif base == "where":
        kept = mean * args[1] + (1 - mean) * args[2]
    else:
        others = [one for one in tensors_in(args, kwargs) if one is not noise]
        plain = torch.full_like(noise, mean, dtype=torch.promote_types(others[0].dtype, torch.bfloat16))
        return func(*(plain if one is noise else one for one in args), **kwargs)
    return args[0].copy_(kept) if func.overloadpacket.__name__.endswith("_") else kept


def paths_of(found: Sequence[str], most: int = 2) -> str:
    """Some paths, for a person, each once."""
    names = [path or "the model itself" for path in dict.fromkeys(found)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
