"""Cross-entropy: how surprised a model is by what came."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from handmade.errors import ConfigError
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
