"""Dropout: while training, forget a random part of what is known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from handmade.errors import ConfigError
from handmade.layers.kernels import Module


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Set every number to zero with chance `p`, and scale up what is left so that the mean stays.

        y = x * keep / (1 - p)        keep is 1 with chance 1 - p, else 0

    The scaling is done while training ("inverted"), so that evaluation does nothing at all. The draws come from
    torch's global generator, which this project keeps for dropout; where p is 0 or 1, or in evaluation, nothing
    is drawn. On the CPU the draws are those of `torch.nn.functional.dropout`, so one seed gives one mask.

    Shapes: x (...) -> (...).
    Source: Srivastava et al. 2014, section 10 (the scaling) and equation 3.
    """
    if not training or p == 0:
        return x
    if p == 1:
        return x * torch.zeros_like(x)
    scale = torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)
    return x * scale


FINE = 0.01  # smallest chance that steps of 1 / 65,536 come close enough to


def scales(x: Tensor, p: float) -> Tensor:
    """What dropout multiplies `x` by, 0 or 1 / (1 - p), from a quarter of the random numbers: each 64-bit draw is
    cut into four of 16 bits, and one of them is below `p` of their range with chance p, to within 1 / 131,072.

    For a CPU in eager mode, where drawing is most of what dropout costs: PyTorch's kernel took five times as long
    for (16, 256, 256) in bfloat16. Draws from torch's global generator. Shapes: x (...) -> (...), of x's type.
    """
    dropped = round(p * 65_536)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    parts = draws.view(torch.int16)[: x.numel()].view(x.shape)  # from -32,768 to 32,767
    return torch.ge(parts, dropped - 32_768, out=torch.empty(x.shape, dtype=x.dtype)).mul_(65_536 / (65_536 - dropped))


def on_cpu_eager(x: Tensor) -> bool:
    """Whether `x` is on a CPU and no compiler is looking."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class Dropout(Module):
    """`dropout` as a layer: active after `train()`, the identity after `eval()`. On a CPU the fused form takes its
    draws from `scales`, so that one seed gives another mask than `torch.nn.Dropout`'s, with the same chances.

    Shapes: x (...) -> (...). Raises ConfigError unless 0 <= p <= 1.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ConfigError(f"Dropout: p = {p!r}: must be from 0 to 1.")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.fused and self.training and FINE <= self.p < 1 and on_cpu_eager(x):
            return x * scales(x, self.p)
        return F.dropout(x, self.p, self.training) if self.fused else dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
