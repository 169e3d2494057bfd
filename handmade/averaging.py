"""A running mean of the weights: smoother than the weights themselves, and often better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class RunningMean:
    """The mean of the weights over the last steps, which forgets the older ones.

        mean = d * mean + (1 - d) * weights          d = min(decay, s / (s + 9)) at step s, counted from 1

    d is small at first, so that the mean is not held back by the random weights it began with.
    Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; the form that forgets
    and the small beginning are those of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.decay = decay
        self.mean = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        torch._foreach_lerp_(self.mean, self.parameters, 1 - min(self.decay, step / (step + 9)))

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Inside, the model has the mean for its weights."""
        live = [parameter.detach().clone() for parameter in self.parameters]
        self._put(self.mean)
        try:
            yield
        finally:
            self._put(live)

    @torch.no_grad()
    def _put(self, weights: list[Tensor]) -> None:
        torch._foreach_copy_(self.parameters, weights)

    def restore(self, mean: Sequence[Tensor]) -> None:
        """Go on from a mean that was kept."""
        for own, kept in zip(self.mean, mean, strict=True):
            own.copy_(kept)
