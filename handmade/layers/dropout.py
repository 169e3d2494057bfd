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


class Dropout(Module):
    """`dropout` as a layer: active after `train()`, the identity after `eval()`.

    Shapes: x (...) -> (...). Raises ConfigError unless 0 <= p <= 1.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ConfigError(f"Dropout: p = {p!r}: must be from 0 to 1.")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training) if self.fused else dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
