"""Gradient descent and its two kinds of momentum.

p parameter, g gradient (with weight decay added), v velocity, lr learning rate, mu momentum.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from handmade.optimizers.base import (
    KERNEL_DEVICES,
    Group,
    Optimizer,
    State,
    alike,
    decayed,
    decayed_all,
    laid_out,
    number,
)


class SGD(Optimizer):
    """Step against the gradient.

        p = p - lr * g

    Source: Robbins and Monro 1951, "A stochastic approximation method".
    Raises: ConfigError for an option out of range.
    """

    def __init__(self, parameters: ParamsT, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        gradient = decayed(parameter, gradient, group)
        parameter -= group["lr"] * gradient

    def update_all(self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group) -> None:
        gradients = decayed_all(parameters, gradients, group)
        torch._foreach_add_(parameters, gradients, alpha=-group["lr"])


class Momentum(Optimizer):
    """Let the steps add up, as a ball does that rolls downhill: a direction that lasts grows.

        v = mu * v + g            v starts at zero
        p = p - lr * v

    A steady gradient is followed with lr / (1 - mu) in the end, so `lr` is smaller than without momentum.

    Source: Polyak 1964; in this form Sutskever et al. 2013, section 2, with lr outside of v.
    Raises: ConfigError for an option out of range.
    """

    def __init__(self, parameters: ParamsT, lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def check(self, group: Group) -> None:
        momentum = group["momentum"]
        self.require("momentum", momentum, number(momentum) and 0 <= momentum < 1, "from 0 up to, not including, 1")

    def begin(self, state: State, parameter: Tensor) -> None:
        state["velocity"] = torch.zeros_like(parameter)

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        gradient, velocity = decayed(parameter, gradient, group), state["velocity"]
        velocity.copy_(group["momentum"] * velocity + gradient)
        parameter -= group["lr"] * velocity

    looks_ahead = False

    def update_all(self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group) -> None:
        for members in alike(parameters):
            if parameters[members[0]].device.type not in KERNEL_DEVICES:
                for i in members:
                    self.update(parameters[i], gradients[i], states[i], group)
                continue
            torch._fused_sgd_(
                [parameters[i] for i in members],
                [laid_out(gradients[i], parameters[i]) for i in members],
                [states[i]["velocity"] for i in members],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=0.0,
                nesterov=self.looks_ahead,
                maximize=False,
                is_first_step=False,
            )


class Nesterov(Momentum):
    """Momentum that looks ahead: step as if the next velocity were already known.

        v = mu * v + g
        p = p - lr * (g + mu * v)

    Source: Nesterov 1983; in this form Bengio, Boulanger-Lewandowski and Pascanu 2013, equation 7
    (arXiv:1212.0901), where p is already the point looked ahead to.
    Raises: ConfigError for an option out of range.
    """

    looks_ahead = True

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        gradient, velocity = decayed(parameter, gradient, group), state["velocity"]
        velocity.copy_(group["momentum"] * velocity + gradient)
        parameter -= group["lr"] * (gradient + group["momentum"] * velocity)
