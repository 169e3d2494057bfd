"""The scale of attention scores.

B rows, T positions that ask, S that are asked, H heads, D features of a head, C of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode

from handmade.doctor.checks.base import Check, check
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious
from handmade.doctor.flow import Flow, followed, root_mean_square
from handmade.doctor.patient import Patient

# The factor is read off the code as it runs, so it is right to rounding: healthy models of all layouts have
# factor * sqrt(D) = 1.000. With the width of two heads it is 0.71. Gemma 2 divides by the root of 144 with heads of
# 128, on purpose: 0.94.
LOWEST, HIGHEST = 0.8, 1.25
LIKE = 0.02
"""How near a factor has to be to a known mistake's, as a part of it."""
MANY = 8
"""Lengths of vectors, from which on it is no chance that all are the same."""


@check(
    "score-scale",
    "attention scores are scaled by the wrong width",
    reference="Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.1 and footnote 4",
    quick=True,
    demonstration="""\
import torch
for head in (16, 64, 256):                             # features of a head, in a model of width 512
    q, k = torch.randn(64, head), torch.randn(64, head)
    for name, scale in (("1", 1), ("1/sqrt(512)", 512**-0.5), ("1/sqrt(head)", head**-0.5)):
        scores = q @ k.T * scale
        top = scores.softmax(-1).amax(-1).mean()
        print(f"head {head:3d}  times {name:12s} scores {scores.std():5.2f}  largest weight {top:.2f} of 1/64 = 0.016")
""",
)
def score_scale(patient: Patient) -> Finding:
    """A score is a sum of D products, D the features of one head. With queries and keys of variance 1 it has variance
    D, so that it is divided by the root of D:

        scores = factor * q k^T,       factor * sqrt(D) = 1

    Divided by the root of the model's width instead, with H heads, it is 1/sqrt(H) of that: attention begins too flat
    and learns slowly. Divided by nothing it is sqrt(D) times that: a softmax of large scores puts all weight on one
    position and passes no gradient to the others.

    The factor is followed through the model's own calls (torch.overrides.TorchFunctionMode): from the projections
    through every scalar that is multiplied or divided by, through q @ k^T (matmul, bmm, baddbmm, einsum) to the
    softmax; of `scaled_dot_product_attention`, its `scale`. torch's MultiheadAttention has its own, which is right.

    Queries and keys that are normed have a length of their own, which stands in place of sqrt(D).

    Sick is a factor that stands for a known slip: the model's width, nothing, the number of heads, positions or rows,
    a multiplication in place of the division. Another one may be meant (normed queries and keys with a temperature,
    muP's 1/D, a scale folded into the weights as in T5): that is a question.
    """
    tokens = patient.tokens(2, patient.length if patient.form.full else min(patient.length, 13))
    with followed(patient) as flow, Watcher(flow) as watcher:
        patient.logits(tokens)
    seen = watcher.seen
    if not seen:
        raise NotExamined("no attention is seen: no softmax of products of queries and keys")
    worst = max(seen, key=lambda one: abs(math.log(max(one.ratio, 1e-12))))
    expected = f"1 / sqrt({worst.features}) = {worst.features**-0.5:.3g}, {worst.features} the features of a head"
    measured = f"scores are q k^T times {worst.factor:.3g}"
    details = {"value": worst.ratio, "limit": 1.0, "where": worst.where}
    if LOWEST <= worst.ratio <= HIGHEST:
        measured = f"{measured} wherever attention is seen ({len(seen)} times)"
        return healthy(measured, expected, value=worst.ratio, limit=1.0)
    if patient.expects("score_scale"):
        return healthy(f"{measured}, as declared", expected, value=worst.ratio, limit=1.0)
    others = sum(not LOWEST <= one.ratio <= HIGHEST for one in seen)
    measured += f" in {worst.where or 'the model'}" + (f" and {others - 1} other places" if others > 1 else "")
    slip = slip_of(worst, tokens.shape[0], patient.context)
    why_not = reason_to_ask(worst, patient.untrained)
    flat = "too flat: every position is listened to alike, and q and k get little gradient"
    sharp = "too sharp: one position gets all the weight, and the others no gradient"
    effect = f"attention begins {flat if worst.ratio < 1 else sharp}"
    remedy = f"scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1)), here {worst.features}"
    if slip and not why_not:
        return sick(measured, expected, f"{slip}; {effect}", remedy, **details)
    cause = f"{why_not or slip or 'a factor of its own'}; if it is not meant, {effect}"
    question = "is this scale meant? expect={'score_scale': True}"
    return suspicious(measured, expected, cause, remedy, question, **details)


def slip_of(one: Attending, rows: int, context: int) -> str:
    """Which known mistake a factor stands for, in words; empty for none."""
    heads = one.shape[-3] if len(one.shape) >= 4 else None
    positions = one.shape[-2] if len(one.shape) >= 2 else None
    width = heads * one.features if one.width is None and heads is not None else one.width
    slips: list[tuple[str, float | None]] = [
        ("it is not divided at all", 1.0),
        ("it is divided by the root of the model's width {}", width),
        ("it is divided by the root of the positions {}", positions),
        ("it is divided by the root of the context {}", context),
        ("it is divided by the root of the number of heads {}", heads),
        ("it is divided by the root of the rows {}", rows),
    ]
    if near(one.factor, math.sqrt(one.features)):
        return f"it is multiplied by the root of {one.features} in place of divided"
    for said, size in slips:
        if size is not None and near(one.factor, size**-0.5):
            return said.format(f"({size})" if size != 1 else "")
    return ""


def near(factor: float, other: float) -> bool:
    return abs(factor / other - 1) < LIKE


def reason_to_ask(one: Attending, untrained: bool) -> str:
    """Why an unusual factor may be meant; empty for no such reason."""
    if one.learned:
        return "the factor is a parameter"
    if one.query is None or one.key is None:
        return "queries and keys are not seen"
    if one.normed:
        return "queries and keys are normed, so the factor is a temperature"
    if one.lost:
        return "where queries and keys come from is not seen: part of the scale may stand there"
    asked, key = root_mean_square(one.query), root_mean_square(one.key)
    if min(asked, key) > 0 and near(one.factor, 1.0):
        # T5 draws W_q with 1/sqrt(D) of W_k's deviation.
        folded = abs(math.log(asked / key) + 0.5 * math.log(one.features))
        if folded < abs(math.log(asked / key)) or not untrained:
            return "queries are that much smaller than keys: the scale may be folded into their weights"
    return ""


def constant_size(x: Tensor) -> bool:
    """Whether all vectors are equally long, of each head or of all heads together, and point in different directions.
    Shapes: (..., T, D), (B, H, T, D), (B, T, H, D)."""
    x = x.double()
    lengths = [x.square().sum(-1)]
    if x.dim() == 4:
        lengths += [x.square().sum((1, 3)), x.square().sum((2, 3))]
    units = torch.nn.functional.normalize(x.flatten(0, -2), dim=-1)
    if float(units.mean(0).norm()) > 0.95:  # all the same vector, which a bias makes
        return False
    for length in lengths:
        # A head may have a gain of its own. Sums over two heads of two rows are alike by chance in one model of 1,000.
        mean = length.mean(-1, keepdim=True)
        many = length.shape[-1] > 1 and length.numel() >= MANY
        if many and (mean > 0).all() and ((length / mean - 1).abs() < 0.02).all():
            return True
    return False


# ---------------------------------------------------------------------------------------------------------------
# Following the factor


@dataclass(frozen=True)
class Known:
    """What is known of a tensor on its way from a projection to the softmax."""

    factor: float = 1.0
    """All scalars that it was multiplied by since the projection."""
    learned: bool = False
    """One of them is a parameter."""
    weight: bool = False
    """It is a parameter, or a view of one."""
    width: int | None = None
    """Features that the projection reads."""
    scores: Attending | None = None
    """Of what it is the scores."""
    lost: bool = False
    """It comes out of a call that is not followed: what stands before that is not known."""


@dataclass(frozen=True)
class Attending:
    """One attention that was seen."""

    where: str
    features: int
    factor: float
    query: Tensor | None = field(default=None, repr=False)
    key: Tensor | None = field(default=None, repr=False)
    width: int | None = None
    learned: bool = False
    lost: bool = False
    shape: tuple[int, ...] = ()
    """Of the scores."""

    @cached_property
    def normed(self) -> bool:
        """Whether queries and keys are brought to one length."""
        return all(x is not None and constant_size(x) for x in (self.query, self.key))

    @cached_property
    def ratio(self) -> float:
        """1 for the factor that the head's size asks for; of normed queries and keys, for the one that their lengths
        ask for."""
        size = 1.0
        if self.normed and self.query is not None and self.key is not None:
            size = root_mean_square(self.query) * root_mean_square(self.key)
        return abs(self.factor) * size * math.sqrt(self.features)


SAME = {
    "__get__", "view", "reshape", "transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "split",
    "chunk", "unbind", "tensor_split", "__getitem__", "select", "narrow", "contiguous", "clone", "detach", "to", "type",
    "type_as", "float", "half", "bfloat16", "double", "unsqueeze", "squeeze", "expand", "expand_as", "repeat",
    "repeat_interleave", "flatten", "unflatten", "view_as", "reshape_as", "adjoint", "index_select", "gather", "roll",
    "flip", "masked_fill", "masked_fill_", "add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__",
    "rsub", "__rsub__", "neg", "dropout", "tril", "triu", "nan_to_num", "clamp", "clip", "clamp_min", "clamp_max",
    "maximum", "minimum", "tanh", "addcmul", "complex", "real", "imag", "view_as_complex", "view_as_real",
    "identity", "masked_scatter", "index_fill",
    "scatter", "fill_diagonal_", "requires_grad_", "squeeze_", "unsqueeze_", "tril_", "triu_", "pad",
}  # fmt: skip
"""Calls whose result has the factor of their first tensor that has one. `tanh` stands in a cap on scores."""
CHOICES = {"where", "cat", "concat", "concatenate", "stack", "hstack", "vstack"}
"""Calls that put tensors together: the factor of the first that has one."""
TIMES = {"mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__"}
OVER = {"div", "div_", "divide", "divide_", "true_divide", "true_divide_", "__truediv__", "__itruediv__"}
PROJECTIONS = {"linear": 1, "conv1d": 1, "bilinear": 1}
"""Calls with a weight as the second argument, and which of its axes is what they read."""
NORMS = {"layer_norm", "rms_norm", "normalize", "group_norm", "embedding", "batch_norm", "instance_norm"}
PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "baddbmm", "addmm", "addbmm", "einsum"}
SOFTMAX = {"softmax", "exp", "exp_", "log_softmax", "exp2"}


class Watcher(TorchFunctionMode):
    """Follows what tensors are multiplied by, on their way to a softmax."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow
        self.seen: list[Attending] = []
        # By identity, and held, so that no other tensor gets the same.
        self.known: dict[int, tuple[Tensor, Known]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            self.fused(*args, **kwargs)
        elif name == "multi_head_attention_forward":
            self.torchs_own(*args, **kwargs)
        elif name in SOFTMAX:
            self.softmax(args[0] if args else next(iter(kwargs.values()), None))
        prepared = self.product(name, args, kwargs) if name in PRODUCTS else None
        result = func(*args, **kwargs)
        if prepared is None:
            prepared = self.after(name, args, kwargs)
        if prepared is not None:
            if name in PRODUCTS and prepared.scores is not None:
                prepared = replace(prepared, scores=replace(prepared.scores, shape=tuple(result.shape)))
            for one in result if isinstance(result, (tuple, list)) else (result,):
                self.keep(one, prepared)
        return result

    # What is known of a tensor

    def keep(self, tensor: Any, known: Known) -> None:
        if isinstance(tensor, Tensor):
            self.known[id(tensor)] = (tensor, known)

    def of(self, tensor: Any) -> Known | None:
        if id(tensor) in self.known:
            return self.known[id(tensor)][1]
        return Known(weight=True) if isinstance(tensor, Parameter) else None

    def first(self, things: Any) -> Known | None:
        """What is known of the first tensor, in calls that give on what they take; activations before weights."""
        weight = None
        for one in things:
            found = self.first(one) if isinstance(one, (tuple, list)) else self.of(one)
            if found is not None and not found.weight:
                return found
            weight = weight or found
        return weight

    # Calls

    def after(self, name: str, args: Any, kwargs: Any) -> Known | None:
        things = (*args, *kwargs.values())
        if name in SAME or name in CHOICES:
            return self.first(things)
        if (name in TIMES or name in OVER) and len(things) >= 2:
            return self.scaled(things[0], things[1], over=name in OVER)
        if name in PROJECTIONS:
            weight = things[1] if len(things) > 1 else None
            return Known(width=weight.shape[PROJECTIONS[name]] if isinstance(weight, Tensor) else None)
        if name in NORMS:
            return Known()
        tensors = [one for one in things if isinstance(one, Tensor)]
        # Nothing is known of a table that no activation went into.
        return Known(lost=True) if any(self.of(one) is not None for one in tensors) else None

    def scaled(self, first: Any, second: Any, over: bool) -> Known | None:
        known, other = self.of(first), second
        if known is None or (known.weight and self.of(second) is not None and not over):
            if not over:
                known, other = self.of(second), first
            if known is None:
                return None
        number, learned = number_of(other)
        if number is None or number == 0:
            return known
        factor = known.factor / number if over else known.factor * number
        known = replace(known, factor=factor, learned=known.learned or learned)
        return known

    def product(self, name: str, args: Any, kwargs: Any) -> Known | None:
        """A projection, or queries times keys, or something else: the factor of both goes on."""
        things = [one for one in (*args, *kwargs.values()) if isinstance(one, (Tensor, tuple, list))]
        tensors = [one for thing in things for one in (thing if isinstance(thing, (tuple, list)) else (thing,))]
        tensors = [one for one in tensors if isinstance(one, Tensor)]
        added = name in ("baddbmm", "addmm", "addbmm")
        first, second = tensors[-2:] if len(tensors) >= 2 else (None, None)
        if first is None or second is None or len(tensors) > 2 + added:
            return None
        if name == "__rmatmul__":
            first, second = second, first
        one, other = self.of(first), self.of(second)
        features = contracted(args[0], first, second) if name == "einsum" else first.shape[-1]
        if one is None and other is None:
            return None
        if (one is not None and one.weight) or (other is not None and other.weight):
            return Known(width=features)
        if one is None or other is None:  # a table that turns, or a weight that is no parameter
            known = one or other or Known()
            return Known(known.factor, known.learned, width=features, lost=known.lost or known.factor != 1)
        factor = one.factor * other.factor * (float(kwargs.get("alpha", 1)) if added else 1.0)
        learned, lost = one.learned or other.learned, one.lost or other.lost
        attending = Attending(self.flow.where, features, factor, first, across(second, first), one.width, learned, lost)
        return Known(factor, learned, scores=attending)

    def softmax(self, x: Any) -> None:
        known = self.of(x)
        if known is not None and known.scores is not None:
            self.seen.append(replace(known.scores, factor=known.factor, learned=known.learned))

    def fused(self, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> None:
        scale = kwargs.get("scale")
        one, other = self.of(query), self.of(key)
        features = query.shape[-1]
        number, learned = (features**-0.5, False) if scale is None else number_of(scale)
        factor = (1.0 if number is None else number) * (one or Known()).factor * (other or Known()).factor
        learned = learned or (one or Known()).learned or (other or Known()).learned
        lost = one is None or other is None or one.lost or other.lost
        width = (one or Known()).width
        shape = (*query.shape[:-1], key.shape[-2])
        self.seen.append(Attending(self.flow.where, features, factor, query, key, width, learned, lost, shape))

    def torchs_own(self, query: Tensor, key: Tensor, value: Tensor, width: int, heads: int, *_: Any, **__: Any) -> None:
        features = width // heads
        self.seen.append(Attending(self.flow.where, features, features**-0.5, width=width))


def number_of(thing: Any) -> tuple[float | None, bool]:
    """A number, a tensor of one, or one that has the same number everywhere; and whether it is learnt. None for
    anything else."""
    if isinstance(thing, (int, float)):
        return float(thing), False
    if isinstance(thing, Tensor) and thing.numel() and not thing.is_complex():
        with torch._C.DisableTorchFunction():
            flat = thing.detach().reshape(-1)
            if thing.numel() == 1 or bool((flat == flat[0]).all()):
                return float(flat[0]), isinstance(thing, Parameter)
    return None, False


def contracted(equation: Any, first: Tensor, second: Tensor) -> int:
    """How many products einsum sums for each number of its result."""
    if not isinstance(equation, str) or "->" not in equation:
        return first.shape[-1]
    inputs, result = equation.replace(" ", "").split("->")
    names = inputs.split(",")
    shared = (set(names[0]) & set(names[-1])) - set(result) - {"."}
    sizes = dict(zip(reversed(names[0].replace("...", "")), reversed(first.shape), strict=False))
    return math.prod(sizes.get(name, 1) for name in shared)


def across(key: Tensor, query: Tensor) -> Tensor:
    """Keys with their features last, as queries have them. Shapes: (..., D, S) -> (..., S, D)."""
    return key.transpose(-2, -1) if key.dim() >= 2 and key.shape[-2] == query.shape[-1] else key


CHECKS: tuple[Check, ...] = (score_scale,)
