"""What a norm is taken over.

B rows, T positions, H heads, C or D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from handmade.doctor.checks.base import Check, check
from handmade.doctor.findings import Finding, NotExamined, healthy, sick
from handmade.doctor.flow import Flow, exchanged, first_of, followed, root_mean_square
from handmade.doctor.patient import Patient

# A norm gives the same for twice its input: how far the two are apart, against their RMS. Norms over any axis (layer,
# RMS, L2, batch, group, instance; by hand, torch's, ours; width 16..256, float64, float32, bfloat16): 0..0.0012.
# Dropout, activations, attention: 1.0..3.0.
SAME = 0.05
# It moves each number by what its set has in common, so that input and output go together. The same norms: 0.72..1.00.
# What mixes positions on purpose and gives the same for twice its input: up to 0.26.
TOGETHER = 0.5
# What other places move by, of what the place itself moves by. Over features: 0 exactly. Over time, rows, all of them
# (zoo, width 16..256, 5 to 14 positions): 0.10..0.47.
LIMIT = 1e-3

MOST_NORMS = 60
"""So many are examined, from the first one on."""


@check(
    "norm-axis",
    "a norm is taken over positions or rows",
    reference="Ba, Kiros and Hinton 2016 (arXiv:1607.06450), section 3; Ioffe and Szegedy 2015 (arXiv:1502.03167)",
    quick=True,
    demonstration="""\
import torch
x = torch.randn(2, 8, 16)                              # B, T, C
for name, axes in (("features", (-1,)), ("time", (1,)), ("time and features", (1, 2)), ("batch", (0,))):
    norm = lambda x: (x - x.mean(axes, keepdim=True)) / x.std(axes, keepdim=True)
    later, other = x.clone(), x.clone()
    later[0, 7] += 1                                   # the last position
    other[1] += torch.randn(8, 16)                     # the other row
    print(f"over {name:18s} an earlier position moves {(norm(later) - norm(x))[0, :7].abs().max():.2f},"
          f" a batch-mate {(norm(other) - norm(x))[0].abs().max():.2f}")
""",
)
def norm_axis(patient: Patient) -> Finding:
    """A norm of a sequence model takes its statistics over the features of one position of one row, and nothing else:

        y[b, t] = (x[b, t] - mean_c x[b, t]) / std_c x[b, t]

    Taken over time it tells each position about later ones; taken over the batch, each row about others, and alone it
    answers differently. Over heads in place of a head's features, it says nothing of how long a vector is.

    A norm is known by what it does, not by its name: a module that calls no other, or one of torch's functions for
    norms, whose output has the shape of its input, is the same for twice the input, and goes with the input. Each is
    given random numbers, some of which are then exchanged at one position, in one row or one head: what else moves
    tells its axes. Norms that stand as plain arithmetic inside a forward are not seen; `future` and `batch` see what
    they do.
    """
    seen = norms_of(patient)
    if not seen:
        raise NotExamined("no norm is seen: no module and no call of torch's that brings numbers to one size")
    wrong = [(norm, over) for norm, over in seen if over.axis]
    if not wrong:
        largest = max(over.moved for _, over in seen)
        said = f"{len(seen)} norm{'s' if len(seen) > 1 else ''}: nothing else moves when one position is changed"
        return healthy(said, "over features alone", value=largest, limit=LIMIT)
    norm, over = wrong[0]
    cause = {
        "time": "its statistics are taken over positions: what comes later is told to what stands before",
        "batch": "its statistics are taken over the rows of a batch: a row answers differently in other company",
        "heads": "its statistics are taken over heads, of each feature: no head's vector gets the same length",
    }[over.axis]
    what = {"time": "other positions", "batch": "other rows", "heads": "other heads"}[over.axis]
    mode = f" (in {'training' if over.training else 'evaluation'})" if over.one_mode else ""
    several = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return sick(
        f"{norm.name}{several}: {what} move by {over.moved:.2g} of what one changes by{mode}",
        "0: a norm over features alone",
        cause,
        "take mean and variance over the last axis of (B, T, C): x.mean(-1, keepdim=True); nn.LayerNorm(C)",
        value=over.moved,
        limit=LIMIT,
        where=norm.path,
    )


@dataclass
class Norm:
    """Something that may be a norm, and what it was called with."""

    path: str
    kind: str
    entered: Tensor
    again: Callable[[Tensor], Tensor]
    """Calls it again with another tensor."""
    module: nn.Module | None = None

    @property
    def name(self) -> str:
        return f"{self.path or 'the model'} ({self.kind})"


@dataclass
class Over:
    """What a norm is taken over, besides features."""

    axis: str = ""
    """"time", "batch", "heads"; empty for none of them."""
    moved: float = 0.0
    training: bool = False
    one_mode: bool = False
    """In one mode alone."""


def norms_of(patient: Patient) -> list[tuple[Norm, Over]]:
    """Every norm that is seen in a model, in the order in which they run, modules first; and what each is over."""
    rows = 1 if patient.form.single else 3
    length = patient.length if patient.form.full else length_for(patient)
    tokens = patient.tokens(rows, length)
    with followed(patient) as flow, Functions(flow) as functions:
        patient.logits(tokens)
    seen: list[tuple[Norm, Over]] = []
    for norm in (*modules_in(flow), *functions.norms()):
        own = any(norm.path == other.path and other.module is not None for other, _ in seen)
        if own or len(seen) == MOST_NORMS:
            continue  # a module's own call of a function is the module
        over = examined(norm, Axes.of(norm.entered, rows, length), patient)
        if over is not None:
            seen.append((norm, over))
    return seen


@dataclass
class Axes:
    """Which axis is which, of what enters a norm."""

    batch: int | None
    time: int | None
    rest: tuple[int, ...]
    rows: int
    length: int

    @classmethod
    def of(cls, x: Tensor, rows: int, length: int) -> Axes:
        sizes = list(x.shape)
        # A batch flattened with positions or heads is found by its size too.
        time = next((i for i, size in enumerate(sizes) if size == length), None)
        batch = next((i for i, size in enumerate(sizes) if size == rows and i != time), None)
        if time is None and len(sizes) <= 2 and sizes and sizes[0] == rows * length:
            return cls(None, 0, tuple(range(1, len(sizes))), rows, length)
        if batch is None and rows > 1:
            batch = next((i for i, s in enumerate(sizes[:-1]) if s > rows and s % rows == 0 and i != time), None)
        rest = tuple(i for i in range(len(sizes)) if i not in (batch, time))
        return cls(batch, time, rest, rows, length)


def length_for(patient: Patient) -> int:
    """A length that is no size of any weight, so that axes can be told apart by their sizes."""
    sizes = {size for one in patient.modules.values() for p in one.parameters(recurse=False) for size in p.shape}
    lengths = [length for length in (11, 13, 7, 10, 14, 9, 6, 5) if length <= patient.length]
    fitting = [n for n in lengths if n not in sizes and not any(size % n == 0 for size in sizes)]
    return (fitting or [n for n in lengths if n not in sizes] or lengths or [patient.length])[0]


FUNCTIONS = {"layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm", "normalize"}


class Functions(TorchFunctionMode):
    """Writes down the calls of torch's own functions for norms."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow
        self.calls: list[tuple[str, str, Callable[..., Any], Any, Any]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in FUNCTIONS and args and isinstance(args[0], Tensor):
            kept = (args[0].detach().clone(), *args[1:])
            self.calls.append((self.flow.where, func.__name__, func, kept, kwargs))
        return func(*args, **kwargs)

    def norms(self) -> Iterator[Norm]:
        """Each call of a function, to be made again."""
        for path, name, func, args, kwargs in self.calls:
            if args[0].dim() >= 2:
                call = partial(self.again, func, args[1:], kwargs)
                yield Norm(path, f"F.{name}", args[0], call)

    @staticmethod
    def again(func: Callable[..., Any], rest: Any, kwargs: Any, x: Tensor) -> Tensor:
        found: Tensor = func(x, *rest, **kwargs)
        return found


def modules_in(flow: Flow) -> Iterator[Norm]:
    """Modules that call no other and give back the shape that they take, each once."""
    done: set[str] = set()
    for call in flow.leaves:
        if call.entered is None or call.left is None or call.entered.shape != call.left.shape or call.path in done:
            continue
        if call.entered.dim() < 2 or isinstance(call.module, (nn.RNNBase, nn.modules.conv._ConvNd, nn.Linear)):
            continue
        done.add(call.path)
        yield Norm(call.path, call.kind, call.entered, again_of(call.module, *call.arguments), call.module)


def again_of(module: nn.Module, args: Any, kwargs: Any) -> Callable[[Tensor], Tensor]:
    """Call a module again with another first tensor."""

    def again(x: Tensor) -> Tensor:
        old = first_of((args, kwargs))
        assert old is not None
        new_args, new_kwargs = exchanged((args, kwargs), old, x)
        found = first_of(module(*new_args, **new_kwargs))
        assert found is not None
        return found

    return again


@torch.no_grad()
def examined(norm: Norm, axes: Axes, patient: Patient) -> Over | None:
    """What it is taken over, or None for what is no norm."""
    found = {}
    for training in (False, True):
        if norm.module is not None:
            norm.module.train(training)
        elif training:
            break
        over = in_one_mode(norm, axes, patient.generator)
        if over is not None:
            found[training] = over
    if not found:
        return None
    training, worst = max(found.items(), key=lambda item: (bool(item[1].axis), item[1].moved))
    worst.training = training
    worst.one_mode = norm.module is not None and not (len(found) == 2 and all(over.axis for over in found.values()))
    if not patient.every_position and training and worst.one_mode and worst.axis == "batch":
        # One prediction a row, statistics of its own in evaluation: BatchNorm as it was meant.
        return Over(moved=0.0)
    return worst


def in_one_mode(norm: Norm, axes: Axes, generator: torch.Generator) -> Over | None:
    x = torch.randn(norm.entered.shape, generator=generator).to(norm.entered)
    other = torch.randn(norm.entered.shape, generator=generator).to(norm.entered)
    try:
        y, doubled = norm.again(x).double(), norm.again(2 * x).double()
    except Exception:
        return None
    size = root_mean_square(y)
    if y.shape != x.shape or not size or not y.isfinite().all():
        return None
    if root_mean_square(doubled - y) > SAME * size or together(x.double(), y) < TOGETHER:
        return None
    worst = Over()
    for name, axis in (("batch", axes.batch), ("time", axes.time), ("heads", None)):
        if name == "heads":
            axis = axes.rest[0] if len(axes.rest) >= 2 else None
            if axis is not None and features_too(norm, x, other, y, axes.rest):
                continue
        if axis is None or x.shape[axis] < 2:
            continue
        moved = influence(norm, x, other, y, axis, x.shape[axis] // axes.rows if name == "batch" else 1)
        if moved > max(worst.moved, LIMIT):
            worst = Over(name, moved)
    return worst


def together(x: Tensor, y: Tensor) -> float:
    """How much input and output go together: mean |correlation| of each feature over the places, or of all numbers,
    whichever is more. A gain of each feature's own does not count."""
    flat = x.flatten(0, -2), y.flatten(0, -2)
    centred = [part - part.mean(0) for part in flat]
    product = (centred[0] * centred[1]).sum(0)
    sizes = centred[0].square().sum(0).sqrt() * centred[1].square().sum(0).sqrt()
    each = float((product.abs() / sizes.clamp_min(1e-12)).mean()) if len(flat[0]) > 2 else 0.0
    whole = torch.corrcoef(torch.stack((x.flatten(), y.flatten())))[0, 1].abs()
    return max(each, float(whole.nan_to_num()))


def influence(norm: Norm, x: Tensor, other: Tensor, y: Tensor, axis: int, step: int = 1) -> float:
    """What stands elsewhere along an axis moves by, when the last place of it is exchanged, against that place."""
    last = x.shape[axis] - step
    changed = torch.cat((x.narrow(axis, 0, last), 3 * other.narrow(axis, last, step)), axis)
    difference = (norm.again(changed).double() - y).abs()
    here = float(difference.narrow(axis, last, step).amax())
    return float(difference.narrow(axis, 0, last).amax()) / max(here, 1e-12)


def features_too(norm: Norm, x: Tensor, other: Tensor, y: Tensor, rest: tuple[int, ...]) -> bool:
    """Whether it is taken over the last of these axes, the features, as well."""
    return influence(norm, x, other, y, rest[-1]) > LIMIT


CHECKS: tuple[Check, ...] = (norm_axis,)
