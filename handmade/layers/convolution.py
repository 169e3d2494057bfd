"""Conv2d and MaxPool2d: one rule for every window of an image.

N images, C channels, H and W an image's height and width, K channels out, I and J a window's height and width,
P and Q how many windows fit below and beside each other.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from handmade.errors import ConfigError
from handmade.layers.kernels import Module
from handmade.layers.linear import require_sizes

Pair = tuple[int, int]


def windows(x: Tensor, size: Pair, stride: Pair, padding: Pair, dilation: Pair, fill: float = 0.0) -> Tensor:
    """Every window of `x`, as a view wherever there is no padding: "unfolding" an image.

        y[..., p, q, i, j] = x[..., p * stride + i * dilation - padding, q * stride + j * dilation - padding]

    What lies outside x reads as `fill`.
    Shapes: x (..., H, W) -> (..., P, Q, I, J), P = (H + 2 padding - dilation (I - 1) - 1) // stride + 1, Q alike.
    """
    if padding != (0, 0):
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=fill)
    # A dilated window covers `span` pixels and looks at every `dilation`-th of them.
    span = [step * (length - 1) + 1 for length, step in zip(size, dilation, strict=True)]
    # The first unfold puts its axis last, so the image's width is second to last when it is its turn.
    x = x.unfold(-2, span[0], stride[0]).unfold(-2, span[1], stride[1])
    return x[..., :: dilation[0], :: dilation[1]]


class Conv2d(Module):
    """The same small linear map for every window of an image.

        y[n, k, p, q] = b[k] + sum over c, i, j of W[k, c, i, j] * window[n, c, p, q, i, j]

    With groups, the channels in and out are split alike, and each part out sees only its part in.

    Shapes: x (N, C, H, W) or (C, H, W) -> (N, K, P, Q) or (K, P, Q); weight (K, C / groups, I, J), bias (K,).
    Raises ConfigError for a size out of range, or groups that do not divide the channels.
    Source: Goodfellow, Bengio and Courville 2016, equation 9.7 (no flip, as everywhere in deep learning).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        require_sizes("Conv2d", in_channels=in_channels, out_channels=out_channels, groups=groups)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ConfigError(f"Conv2d: groups = {groups}: must divide {name} = {channels}.")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = pair("Conv2d", "kernel_size", kernel_size, 1)
        self.stride = pair("Conv2d", "stride", stride, 1)
        self.padding = pair("Conv2d", "padding", padding, 0)
        self.dilation = pair("Conv2d", "dilation", dilation, 1)
        self.weight = torch.nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = torch.nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weight and bias uniform in +-1/sqrt(numbers in a window, over a group's channels): torch.nn's default."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        with torch.no_grad():
            self.weight.uniform_(-bound, bound, generator=generator)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        seen = windows(x, self.kernel_size, self.stride, self.padding, self.dilation)
        seen = seen.unflatten(-5, (self.groups, self.in_channels // self.groups))
        weight = self.weight.unflatten(0, (self.groups, self.out_channels // self.groups))
        y = torch.einsum("...gcpqij,gkcij->...gkpq", seen, weight).flatten(-4, -3)
        # Under autocast y is in low precision; the sum must not lift it back to float32.
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}"
        )


class MaxPool2d(Module):
    """The largest number of every window. Where several are largest, the first one gets the gradient.

        y[n, c, p, q] = max over i, j of window[n, c, p, q, i, j]

    Outside the image lies -infinity, so padding never wins. The stride is the window's size unless given.

    Shapes: x (N, C, H, W) or (C, H, W) -> (N, C, P, Q) or (C, P, Q).
    Raises ConfigError for a size out of range, or a padding above half the window (a window could lie outside).
    Source: Goodfellow, Bengio and Courville 2016, section 9.3.
    """

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None = None,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
    ) -> None:
        super().__init__()
        self.kernel_size = pair("MaxPool2d", "kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else pair("MaxPool2d", "stride", stride, 1)
        self.padding = pair("MaxPool2d", "padding", padding, 0)
        self.dilation = pair("MaxPool2d", "dilation", dilation, 1)
        if any(2 * edge > size for edge, size in zip(self.padding, self.kernel_size, strict=True)):
            raise ConfigError(
                f"MaxPool2d: padding = {padding!r}: must be at most half of kernel_size = {kernel_size!r}."
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return F.max_pool2d(x, self.kernel_size, self.stride, self.padding, self.dilation)
        seen = windows(x, self.kernel_size, self.stride, self.padding, self.dilation, fill=-math.inf)
        return seen.flatten(-2).max(-1).values

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"


def pair(layer: str, name: str, value: int | Pair, least: int) -> Pair:
    """(height, width) from one number for both or two. Raises ConfigError for what is not a whole number >= least."""
    both = value if isinstance(value, tuple) else (value, value)
    if len(both) != 2 or any(not isinstance(n, int) or isinstance(n, bool) or n < least for n in both):
        raise ConfigError(f"{layer}: {name} = {value!r}: must be a whole number from {least}, or two of them.")
    return both
