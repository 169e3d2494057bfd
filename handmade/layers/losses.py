"""Cross-entropy: how surprised a model is by what came."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from handmade.errors import ConfigError
from handmade.layers.activations import differentiated_once
from handmade.layers.kernels import Module

IGNORED = -100  # the target of a position that is not scored


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    fused: bool = True,
) -> Tensor:
    """The surprise, in nats, at the targets under the logits; summed, or the mean over scored targets.

        log p_i = x_i - log sum_j exp(x_j)
        loss    = -(1 - s) * log p_target - s * mean_i(log p_i)            s is the label smoothing

    A target of -100 is not scored: it adds nothing to the sum and is not counted in the mean. Where no target is
    scored, the mean is 0 with a gradient of 0 (PyTorch's is NaN): a batch with nothing to learn teaches nothing
    and must not ruin a model. The result is float32, also for bfloat16 and float16 logits, because a sum over
    thousands of classes has no room in their 8 or 11 bits; it is float64 for float64 logits.

    The sum and the count of several batches are to be added up, each for itself, and divided once. A mean of
    means is wrong as soon as anything is ignored.

    Shapes: logits (..., classes), targets (...) int64 -> a scalar. The classes are the last axis, always.
    Raises ConfigError for a smoothing outside 0 .. 1 or an unknown reduction; a target that is neither -100 nor a
    class raises PyTorch's own error.
    Source: Goodfellow, Bengio and Courville 2016, equation 6.30; smoothing: Szegedy et al. 2016, section 7
    (arXiv:1512.00567).
    """
    _check(label_smoothing, reduction)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    scored = targets != IGNORED
    if fused:
        total = F.cross_entropy(
            logits.flatten(0, -2),
            targets.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
    else:
        # Taking the largest logit off changes nothing in log p, and exp cannot overflow any more.
        shifted = logits - logits.amax(-1, keepdim=True).detach()
        log_p = shifted - shifted.exp().sum(-1, keepdim=True).log()
        # Only -100 is replaced, so that any other target outside the classes still raises an error.
        at_target = log_p.gather(-1, targets.where(scored, 0).unsqueeze(-1)).squeeze(-1)
        loss = -at_target
        if label_smoothing > 0:
            loss = -(1 - label_smoothing) * at_target - label_smoothing * log_p.mean(-1)
        total = loss.where(scored, 0).sum()
    if reduction == "sum":
        return total
    return total / scored.sum().clamp(min=1)


AT_ONCE = 2**21  # logits of a piece: what a CPU's caches can hold


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    fused: bool = True,
) -> Tensor:
    """`cross_entropy(x W^T + b, targets)`: of a head and its logits, which the fused form never has all at once.

    The rows are taken piece by piece: the logits of a piece, its loss, and at once its gradient, which is

        dL / d logit_i = p_i - (1 - s) [i is the target] - s / classes        s is the label smoothing

    so that only the gradients of x, W and b are kept. With thousands of classes the logits are by far the largest
    tensor of a small model, and a CPU spends more time to get memory for them than to compute them. Rows that are not
    scored are left out. Under autocast the products are in its low precision, and the rest is in float32.

    Shapes: x (..., C), weight (classes, C), bias (classes,), targets (...) int64 -> a scalar.
    Raises and the rest: as `cross_entropy`. The fused form can be differentiated once.
    """
    _check(label_smoothing, reduction)
    if not fused:
        logits = F.linear(x, weight, bias)
        return cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction=reduction, fused=False)
    scored = (targets != IGNORED).flatten()
    rows, answers = x.flatten(0, -2), targets.flatten()
    if not scored.all():
        rows, answers = rows[scored], answers[scored]
    kind = x.device.type
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    learning = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (x, weight, bias))
    total = _LinearCrossEntropy.apply(rows, weight, bias, answers, label_smoothing, precision, learning)
    return total if reduction == "sum" else total / max(1, len(answers))


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum over all rows. Shapes: x (N, C), weight (V, C), bias (V,) or None, targets (N,)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        smoothing: float,
        precision: torch.dtype,
        learning: bool,
    ) -> Tensor:
        classes = len(weight)
        low, low_bias = weight.to(precision), None if bias is None else bias.to(precision)
        wide = torch.promote_types(precision, torch.float32)
        total = torch.zeros((), dtype=wide, device=x.device)
        of_x = torch.empty_like(x) if learning else None
        of_weight = torch.zeros_like(weight) if learning else None
        of_bias = torch.zeros_like(bias) if learning and bias is not None else None
        rows = max(1, AT_ONCE // classes)
        with torch.autocast(x.device.type, enabled=False):
            for first in range(0, len(x), rows):
                piece, answers = x[first : first + rows].to(precision), targets[first : first + rows, None]
                logits = F.linear(piece, low, low_bias).to(wide)
                p = logits.softmax(-1)
                # log sum exp(x), from where p is largest: there it has not become zero.
                normalizer = logits.amax(-1) - p.amax(-1).log()
                total += normalizer.sum() - (1 - smoothing) * logits.gather(1, answers).sum()
                if smoothing > 0:
                    total -= smoothing * logits.mean(-1).sum()
                if of_x is None or of_weight is None:
                    continue
                if smoothing > 0:
                    p -= smoothing / classes
                p.scatter_add_(1, answers, p.new_full(answers.shape, smoothing - 1))
                gradient = p.to(precision)
                of_x[first : first + rows] = gradient @ low
                of_weight += gradient.T @ piece
                if of_bias is not None:
                    of_bias += p.sum(0)
        ctx.save_for_backward(of_x, of_weight, of_bias)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        differentiated_once("linear_cross_entropy")
        found = [None if part is None else part * gradient.to(part.dtype) for part in ctx.saved_tensors]
        return (*found, None, None, None, None)


class CrossEntropy(Module):
    """`cross_entropy` as a layer.

    Shapes: logits (..., classes), targets (...) -> a scalar.
    Raises ConfigError for a smoothing outside 0 .. 1 or a reduction that is not "mean" or "sum".
    """

    def __init__(self, label_smoothing: float = 0.0, reduction: str = "mean") -> None:
        super().__init__()
        _check(label_smoothing, reduction)
        self.label_smoothing, self.reduction = label_smoothing, reduction

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(
            logits,
            targets,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            fused=self.fused,
        )

    def extra_repr(self) -> str:
        return f"label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"


def _check(label_smoothing: float, reduction: str) -> None:
    if not 0 <= label_smoothing <= 1:
        raise ConfigError(f"cross_entropy: label_smoothing = {label_smoothing!r}: must be from 0 to 1.")
    if reduction not in ("mean", "sum"):
        raise ConfigError(f"cross_entropy: reduction = {reduction!r}: must be 'mean' or 'sum'.")
