"""Normalisation: bring numbers to a known size, so that no layer has to guess the scale of the one before.

LayerNorm and RMSNorm look at one feature vector and nothing else; BatchNorm looks at one channel of the whole
batch. All compute in float32 also for bfloat16 and float16 inputs, whose few bits have no room for a sum of
squares, and give back the dtype they were given.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from handmade.errors import ConfigError
from handmade.layers.activations import differentiated_once
from handmade.layers.kernels import Module
from handmade.layers.linear import require_sizes


class LayerNorm(Module):
    """Bring every feature vector to mean 0 and variance 1, then scale and shift it.

        y = weight * (x - mean(x)) / sqrt(var(x) + eps) + bias        mean and var over the last axis

    Shapes: x (..., width) -> (..., width); weight and bias (width,), or None.
    Raises ConfigError for a width below 1 or an eps that is not positive.
    Source: Ba, Kiros and Hinton 2016, equation 4 (arXiv:1607.06450).
    """

    def __init__(self, width: int, eps: float = 1e-5, bias: bool = True, elementwise_affine: bool = True) -> None:
        super().__init__()
        require_sizes("LayerNorm", width=width)
        require_eps("LayerNorm", eps)
        self.width, self.eps = width, eps
        self.weight = torch.nn.Parameter(torch.empty(width)) if elementwise_affine else None
        self.bias = torch.nn.Parameter(torch.empty(width)) if elementwise_affine and bias else None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weight 1, bias 0: nothing is drawn."""
        with torch.no_grad():
            if self.weight is not None:
                self.weight.fill_(1)
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps).to(x.dtype)
        wide = in_float32(x)
        mean = wide.mean(-1, keepdim=True)
        variance = (wide - mean).square().mean(-1, keepdim=True)  # divided by width, not width - 1
        y = (wide - mean) / (variance + self.eps).sqrt()
        if self.weight is not None:
            y = self.weight * y
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.width}, eps={self.eps}, weight={self.weight is not None}, bias={self.bias is not None}"


class RMSNorm(Module):
    """Bring every feature vector to a root mean square of 1, then scale it. LayerNorm without the mean.

        y = weight * x / sqrt(mean(x^2) + eps)                         mean over the last axis

    Shapes: x (..., width) -> (..., width); weight (width,), or None with `elementwise_affine=False`.
    Raises ConfigError for a width below 1 or an eps that is not positive.
    Source: Zhang and Sennrich 2019, equation 4 (arXiv:1910.07467).
    """

    def __init__(self, width: int, eps: float = 1e-6, elementwise_affine: bool = True) -> None:
        super().__init__()
        require_sizes("RMSNorm", width=width)
        require_eps("RMSNorm", eps)
        self.width, self.eps = width, eps
        self.weight = torch.nn.Parameter(torch.empty(width)) if elementwise_affine else None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weight 1: nothing is drawn."""
        if self.weight is not None:
            with torch.no_grad():
                self.weight.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused and x.device.type == "cpu" and not torch.compiler.is_compiling():
            # Ours by hand is for the way back, which decoding never goes.
            norm = _RootMeanSquare.apply if torch.is_grad_enabled() else by_root_mean_square
            if self.weight is None:
                return norm(x, self.eps)
            return (self.weight * norm(in_float32(x), self.eps)).to(x.dtype)
        if self.fused:
            # The kernel takes one dtype for both; with two it falls back to a slow way and warns.
            weight = None if self.weight is None else self.weight.to(x.dtype)
            return F.rms_norm(x, (self.width,), weight, self.eps)
        wide = in_float32(x)
        y = wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return (y if self.weight is None else self.weight * y).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.width}, eps={self.eps}, weight={self.weight is not None}"


class _BatchNorm(Module):
    """What BatchNorm1d and BatchNorm2d share: everything but how many axes x has."""

    axes: tuple[int, ...]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        require_sizes(name, num_features=num_features)
        require_eps(name, eps)
        if momentum is not None and not 0 <= momentum <= 1:
            raise ConfigError(f"{name}: momentum = {momentum!r}: must be from 0 to 1, or None for the plain mean.")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = torch.nn.Parameter(torch.empty(num_features)) if affine else None
        self.bias = torch.nn.Parameter(torch.empty(num_features)) if affine else None
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        self.register_buffer("running_mean", torch.empty(num_features))
        self.register_buffer("running_var", torch.empty(num_features))
        self.register_buffer("num_batches_tracked", torch.empty((), dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weight 1, bias 0, running mean 0, running variance 1, no batch seen: nothing is drawn."""
        with torch.no_grad():
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()
            if self.weight is not None and self.bias is not None:
                self.weight.fill_(1)
                self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        share = 0.0
        if self.training:
            self.num_batches_tracked.add_(1)
            share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        if self.fused:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, share, self.eps
            )
        shape = (1, -1) + (1,) * (x.dim() - 2)  # a number per channel, against x
        wide = in_float32(x)
        mean, variance = self.running_mean, self.running_var
        if self.training and x.numel() > 0:
            over = [axis for axis in range(x.dim()) if axis != 1]
            mean = wide.mean(over)
            variance = (wide - mean.view(shape)).square().mean(over)
            count = x.numel() // self.num_features
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                # The batch is divided by its count; what is kept for evaluation, by count - 1.
                unbiased = variance * (count / (count - 1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        y = (wide - mean.view(shape)) / (variance + self.eps).sqrt().view(shape)
        if self.weight is not None and self.bias is not None:
            y = self.weight.view(shape) * y + self.bias.view(shape)
        return y.to(x.dtype)

    def check(self, x: Tensor) -> None:
        name = type(self).__name__
        if x.dim() not in self.axes or x.shape[1] != self.num_features:
            axes = " or ".join(map(str, self.axes))
            raise ValueError(
                f"{name}: x has shape {tuple(x.shape)}: must have {axes} axes, "
                f"the second of them {self.num_features} long."
            )
        if self.training and x.numel() == self.num_features:
            raise ValueError(
                f"{name}: x has shape {tuple(x.shape)}: one value per channel has no variance to learn from. "
                "Take a larger batch, or call eval()."
            )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}"


class BatchNorm1d(_BatchNorm):
    """Bring every channel to mean 0 and variance 1 over the batch, then scale and shift it.

        y = weight * (x - mean(x)) / sqrt(var(x) + eps) + bias        mean and var over all axes but the second

    While training, the batch's own mean and variance are used, and running ones are kept:
    running = (1 - momentum) * running + momentum * batch; with `momentum=None`, the mean over all batches so far.
    In evaluation the running ones are used, so a row no longer depends on its batch-mates. A batch of no rows
    leaves the running ones as they are.

    Shapes: x (N, channels) or (N, channels, length) -> the same; weight, bias, running_mean and running_var
    (channels,).
    Raises ConfigError for an argument out of range; ValueError for another shape, and while training for a batch
    with one value per channel.
    Source: Ioffe and Szegedy 2015, algorithms 1 and 2 (arXiv:1502.03167).
    """

    axes = (2, 3)


class BatchNorm2d(_BatchNorm):
    """BatchNorm1d for images: mean and variance over the batch, the height and the width.

    Shapes: x (N, channels, height, width) -> the same.
    Raises and Source: as BatchNorm1d; images in section 3.2.
    """

    axes = (4,)


class _RootMeanSquare(torch.autograd.Function):
    """x * r with r = 1 / sqrt(mean(x^2) + eps), and its gradient, r * (dy - x * r^2 * mean(x * dy)).

    `F.rms_norm` is a fused kernel on a GPU. On the CPU it is made of parts, and autograd's way back through them
    takes several times as long as this one. In bfloat16 the sum of squares is taken in float32 and r is then
    rounded, so that no float32 copy of x is made. It can be differentiated once; the formula, any number of times.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        wide = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
        # The norm reads x once; x.square().mean() would write the squares down.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        r = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, r)
        return x * r.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        differentiated_once("RMSNorm")
        x, r = ctx.saved_tensors
        product = x * gradient
        share = product.sum(-1, keepdim=True, dtype=r.dtype).mul_(r).mul_(r).div_(-x.shape[-1])
        # `product` is not needed any more: its memory takes the result.
        result = torch.mul(x, share.to(x.dtype), out=product)
        return result.add_(gradient).mul_(r.to(x.dtype)), None


def by_root_mean_square(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) in as few calls as there are, which is what a single token costs: five, where
    `F.rms_norm` makes eight of it on a CPU. In bfloat16 the sum of squares is taken in float32."""
    wide = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    r = torch.addcmul(length.new_full((), eps), length, length, value=1 / x.shape[-1]).rsqrt_()
    return x * r.to(x.dtype)


def in_float32(x: Tensor) -> Tensor:
    """`x` with room for sums: bfloat16 and float16 become float32; wider ones stay."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def require_eps(layer: str, eps: float) -> None:
    """Raise ConfigError unless `eps` is positive."""
    if not eps > 0:
        raise ConfigError(f"{layer}: eps = {eps!r}: must be above 0.")
