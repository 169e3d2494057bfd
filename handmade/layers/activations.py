"""Activations: what stands between two linear maps and keeps them from being one.

Each has two faces: a function, which is the formula, and a layer, which takes PyTorch's kernel for the same
formula where there is one (see `kernels.py`). All work on any shape; all but softmax look at one number at a
time.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from handmade.errors import ConfigError
from handmade.layers.kernels import Module


def relu(x: Tensor) -> Tensor:
    """Keep what is positive.

        relu(x) = max(x, 0)

    Source: Nair and Hinton 2010, section 2.
    """
    # Not x.clamp(min=0): at 0 that passes the gradient on, where PyTorch's relu stops it, and its way back is slow.
    # Asked as "x <= 0", so that NaN stays NaN.
    return torch.where(x <= 0, 0, x)


def squared_relu(x: Tensor) -> Tensor:
    """The square of what is positive.

        squared_relu(x) = max(x, 0)^2

    Source: So et al. 2021, "Primer", section 4 (arXiv:2109.08668).
    """
    return relu(x).square()


def silu(x: Tensor) -> Tensor:
    """A number times how sure the sigmoid is of it. Also called swish.

        silu(x) = x * sigmoid(x) = x / (1 + exp(-x))

    Source: Hendrycks and Gimpel 2016, section 2 (arXiv:1606.08415).
    """
    return x * torch.sigmoid(x)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """A number times the chance that a standard normal draw is below it.

        gelu(x) = x * Phi(x) = x/2 * (1 + erf(x / sqrt(2)))                            approximate = "none"
        gelu(x) ~ x/2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))                approximate = "tanh"

    GPT-1 and GPT-2 use the second. Raises ConfigError for another `approximate`.
    Source: Hendrycks and Gimpel 2016, section 2 (arXiv:1606.08415).
    """
    _check_approximate(approximate)
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Scores to probabilities: positive, and with sum 1 along `dim`.

        softmax(x)_i = exp(x_i) / sum_j exp(x_j)

    Source: Bridle 1990; Goodfellow, Bengio and Courville 2016, equation 6.29.
    """
    # Taking the largest score off changes nothing in the fraction, and exp cannot overflow any more.
    # Its gradient is zero for the same reason, so none is computed.
    weights = torch.exp(x - x.amax(dim, keepdim=True).detach())
    return weights / weights.sum(dim, keepdim=True)


def _check_approximate(approximate: str) -> None:
    if approximate not in ("none", "tanh"):
        raise ConfigError(f"gelu: approximate = {approximate!r}: must be 'none' (exact) or 'tanh'.")


class ReLU(Module):
    """`relu` as a layer. Shapes: x (...) -> (...)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) if self.fused else relu(x)


class SquaredReLU(Module):
    """`squared_relu` as a layer. Shapes: x (...) -> (...)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.fused:
            return squared_relu(x)
        # Ours is for the way back, which decoding never goes.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _SquaredReLU.apply(x)
        return F.relu(x).square()


class _SquaredReLU(torch.autograd.Function):
    """The formula with its gradient, 2 max(x, 0) dy, taken in one pass.

    PyTorch has no kernel for it, and autograd's own way back through a square and a maximum makes four or five
    passes over what is the widest tensor of a GPT. A compiler writes such a loop by itself. It can be
    differentiated once; the formula, any number of times.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        differentiated_once("SquaredReLU")
        (positive,) = ctx.saved_tensors
        return torch.addcmul(gradient.new_zeros(()), positive, gradient, value=2)


def differentiated_once(layer: str) -> None:
    """Called where a gradient made by hand is taken: raises RuntimeError if that gradient is to be differentiated
    itself (`create_graph=True`), because its graph would lack what the forward pass kept, and be wrong in silence."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{layer}: the fused form can be differentiated once. Make the layer under kernels('reference') "
            "for second derivatives."
        )


class SiLU(Module):
    """`silu` as a layer. Shapes: x (...) -> (...)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x) if self.fused else silu(x)


class GELU(Module):
    """`gelu` as a layer. Shapes: x (...) -> (...). Raises ConfigError unless `approximate` is "none" or "tanh"."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        _check_approximate(approximate)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate) if self.fused else gelu(x, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class Softmax(Module):
    """`softmax` as a layer. Shapes: x (...) -> (...), sum 1 along `dim`."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x, self.dim) if self.fused else softmax(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
