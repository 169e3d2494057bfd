"""Optimizers that give every single weight its own rate, by how large its gradients have been.

p parameter, g gradient, lr learning rate; squares, roots and quotients are taken entry by entry.
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


class AdaGrad(Optimizer):
    """Divide by the root of all squared gradients so far: weights that rarely move take large steps.

        s = s + g²                s starts at zero
        p = p - lr * g / (sqrt(s) + eps)

    The sum only grows, so the rate falls to nothing; RMSProp forgets instead.

    Source: Duchi, Hazan and Singer 2011, "Adaptive subgradient methods", figure 1 (diagonal version).
    Raises: ConfigError for an option out of range.
    """

    def __init__(self, parameters: ParamsT, lr: float = 1e-2, eps: float = 1e-10, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, lr=lr, eps=eps, weight_decay=weight_decay)

    def check(self, group: Group) -> None:
        require_eps(self, group)

    def begin(self, state: State, parameter: Tensor) -> None:
        state["square_sum"] = torch.zeros_like(parameter)

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        gradient = decayed(parameter, gradient, group)
        state["square_sum"] += gradient.square()
        parameter -= group["lr"] * gradient / (state["square_sum"].sqrt() + group["eps"])

    def update_all(self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group) -> None:
        gradients = decayed_all(parameters, gradients, group)
        sums = [state["square_sum"] for state in states]
        torch._foreach_addcmul_(sums, gradients, gradients)
        step_by_root(parameters, gradients, sums, group)


class RMSProp(Optimizer):
    """AdaGrad that forgets: a running mean of the squared gradients in place of their sum.

        s = alpha * s + (1 - alpha) * g²              s starts at zero
        p = p - lr * g / (sqrt(s) + eps)

    Source: Tieleman and Hinton 2012, Coursera "Neural networks for machine learning", lecture 6e.
    Raises: ConfigError for an option out of range.
    """

    def __init__(
        self,
        parameters: ParamsT,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay)

    def check(self, group: Group) -> None:
        require_eps(self, group)
        alpha = group["alpha"]
        self.require("alpha", alpha, number(alpha) and 0 <= alpha < 1, "from 0 up to, not including, 1")

    def begin(self, state: State, parameter: Tensor) -> None:
        state["square_mean"] = torch.zeros_like(parameter)

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        gradient, mean, alpha = decayed(parameter, gradient, group), state["square_mean"], group["alpha"]
        mean.copy_(alpha * mean + (1 - alpha) * gradient.square())
        parameter -= group["lr"] * gradient / (mean.sqrt() + group["eps"])

    def update_all(self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group) -> None:
        gradients, alpha = decayed_all(parameters, gradients, group), group["alpha"]
        means = [state["square_mean"] for state in states]
        torch._foreach_mul_(means, alpha)
        torch._foreach_addcmul_(means, gradients, gradients, value=1 - alpha)
        step_by_root(parameters, gradients, means, group)


class Adam(Optimizer):
    """Momentum over RMSProp, both corrected for having started at zero.

        m = b1 * m + (1 - b1) * g                     m, v start at zero; t counts steps from 1
        v = b2 * v + (1 - b2) * g²
        p = p - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Without the correction, the first steps would be sqrt(1 - b2) / (1 - b1) of what they should be.
    Weight decay is added to the gradient, so it is divided by sqrt(v) as well; AdamW does not do that.
    `step` in the state is a plain whole number.

    Source: Kingma and Ba 2015, algorithm 1 (arXiv:1412.6980).
    Raises: ConfigError for an option out of range.
    """

    def __init__(
        self,
        parameters: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def check(self, group: Group) -> None:
        require_eps(self, group)
        betas = group["betas"]
        pair = isinstance(betas, (tuple, list)) and len(betas) == 2 and all(map(number, betas))
        right = "two numbers from 0 up to, not including, 1"
        self.require("betas", betas, pair and all(0 <= beta < 1 for beta in betas), right)

    def begin(self, state: State, parameter: Tensor) -> None:
        state["step"] = 0
        state["mean"] = torch.zeros_like(parameter)
        state["square_mean"] = torch.zeros_like(parameter)

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        self.move(parameter, decayed(parameter, gradient, group), state, group)

    def move(self, parameter: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        """The three lines of the formula."""
        (beta1, beta2), mean, square_mean = group["betas"], state["mean"], state["square_mean"]
        state["step"] += 1
        mean.copy_(beta1 * mean + (1 - beta1) * gradient)
        square_mean.copy_(beta2 * square_mean + (1 - beta2) * gradient.square())
        corrected_mean = mean / (1 - beta1 ** state["step"])
        corrected_square = square_mean / (1 - beta2 ** state["step"])
        parameter -= group["lr"] * corrected_mean / (corrected_square.sqrt() + group["eps"])

    kernel = staticmethod(torch._fused_adam_)

    def update_all(self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group) -> None:
        beta1, beta2 = group["betas"]
        # One call takes one step count. It differs only where a parameter had no gradient at some step.
        for members in alike(parameters, [state["step"] for state in states]):
            device = parameters[members[0]].device
            if device.type not in KERNEL_DEVICES:
                for i in members:
                    self.update(parameters[i], gradients[i], states[i], group)
                continue
            for i in members:
                states[i]["step"] += 1
            step = torch.full((), float(states[members[0]]["step"]), dtype=torch.float32, device=device)
            self.kernel(
                [parameters[i] for i in members],
                [laid_out(gradients[i], parameters[i]) for i in members],
                [states[i]["mean"] for i in members],
                [states[i]["square_mean"] for i in members],
                [],
                [step] * len(members),
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )


class AdamW(Adam):
    """Adam with weight decay taken out of the gradient: every weight shrinks by the same share.

        p = p - lr * weight_decay * p
        p = p - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)          m, v as in Adam

    Source: Loshchilov and Hutter 2019, algorithm 2 (arXiv:1711.05101); `lr` multiplies the decay too, as in
    every implementation in use.
    Raises: ConfigError for an option out of range.
    """

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        parameter -= group["lr"] * group["weight_decay"] * parameter
        self.move(parameter, gradient, state, group)

    kernel = staticmethod(torch._fused_adamw_)


def step_by_root(parameters: list[Tensor], gradients: list[Tensor], squares: list[Tensor], group: Group) -> None:
    """p = p - lr * g / (sqrt(squares) + eps) for a whole group, in place."""
    roots = torch._foreach_sqrt(squares)
    torch._foreach_add_(roots, group["eps"])
    torch._foreach_addcdiv_(parameters, gradients, roots, value=-group["lr"])


def require_eps(optimizer: Optimizer, group: Group) -> None:
    """eps keeps the quotient finite where a gradient has always been zero."""
    eps = group["eps"]
    optimizer.require("eps", eps, number(eps) and 0 <= eps < float("inf"), "a number from 0 up")
