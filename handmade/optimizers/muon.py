"""Muon: momentum whose matrix is made orthogonal before the step.

B batch of matrices of one shape, r the smaller and c the larger side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from handmade.errors import ConfigError
from handmade.optimizers.base import Group, Optimizer, State, number

# Chosen by the author so that small singular values grow fastest; they end between about 0.7 and 1.2, not at 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
TINY = 1e-7  # added to the norm: a gradient of zeros stays zeros


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearly the nearest matrix with orthonormal rows (or columns): every singular value goes to about 1.

        X = M / |M|                             Frobenius norm, so no singular value is above 1
        repeat `steps` times:  A = X Xᵀ;  X = a X + (b A + c A²) X

    With X = U S Vᵀ, one round maps every singular value s to a s + b s³ + c s⁵ and leaves U and V alone.

    Shapes: (..., r, c) -> (..., r, c). A tall matrix is turned over, so that A is small.
    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", section
    "Definition"; the iteration is Newton and Schulz's.
    """
    tall = matrix.size(-2) > matrix.size(-1)
    x = matrix.mT if tall else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + TINY)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def orthogonalize_batch(x: Tensor, steps: int = 5) -> Tensor:
    """`orthogonalize` for a batch of matrices of one shape that are not tall, in batched products.

    Shapes: (B, r, c) with r <= c -> (B, r, c). `x` is already divided by its norm.
    """
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


class Muon(Optimizer):
    """Momentum for matrices, made orthogonal, so that a step turns all directions by the same amount.

        v = mu * v + g                                       v starts at zero
        o = orthogonalize(g + mu * v)                        without Nesterov: orthogonalize(v)
        p = p - lr * weight_decay * p
        p = p - lr * sqrt(max(1, rows / columns)) * o

    For the weights of hidden layers; embeddings, head and vectors belong to AdamW (`build_optimizers` sorts
    them). A weight with more than two axes (a convolution's) is taken as a matrix of its first axis by the
    rest; fewer than two axes are refused.

    `precision="bfloat16"` computes the Newton-Schulz products in bfloat16; the rest keeps the parameter's
    type. With "float32" they are computed in float32, or float64 for parameters of that type.
    Fused form: matrices of one shape, turned over where tall, are stacked and go through batched products.

    Source: as `orthogonalize`; decoupled weight decay: Liu et al. 2025 (arXiv:2502.16982), section 2.2.
    Raises: ConfigError for an option out of range or a parameter with fewer than two axes.
    """

    def __init__(
        self,
        parameters: ParamsT,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        nesterov: bool = True,
        steps: int = 5,
        precision: str = "float32",
    ) -> None:
        super().__init__(
            parameters,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=nesterov,
            steps=steps,
            precision=precision,
        )

    def check(self, group: Group) -> None:
        momentum, steps, precision = group["momentum"], group["steps"], group["precision"]
        self.require("momentum", momentum, number(momentum) and 0 <= momentum < 1, "from 0 up to, not including, 1")
        self.require("steps", steps, isinstance(steps, int) and steps >= 1, "a whole number from 1 up")
        self.require("precision", precision, precision in ("float32", "bfloat16"), "'float32' or 'bfloat16'")
        for parameter in group["params"]:
            if parameter.ndim < 2:
                raise ConfigError(
                    f"Muon takes matrices; a parameter of shape {tuple(parameter.shape)} is not one. "
                    "Give vectors to AdamW, or use build_optimizers."
                )

    def begin(self, state: State, parameter: Tensor) -> None:
        state["velocity"] = torch.zeros_like(parameter)

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        momentum, velocity = group["momentum"], state["velocity"]
        velocity.copy_(momentum * velocity + gradient)
        direction = (gradient + momentum * velocity if group["nesterov"] else velocity).flatten(1)
        direction = orthogonalize(direction.to(_working_type(parameter, group)), group["steps"])
        rows, columns = direction.shape
        parameter -= group["lr"] * group["weight_decay"] * parameter
        scale = math.sqrt(max(1, rows / columns))
        parameter -= group["lr"] * scale * direction.to(parameter.dtype).view_as(parameter)

    def update_all(self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group) -> None:
        momentum = group["momentum"]
        velocities = [state["velocity"] for state in states]
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, gradients)
        if group["nesterov"]:
            directions = list(torch._foreach_mul(velocities, momentum))
            torch._foreach_add_(directions, gradients)
        else:
            directions = velocities
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        alike: dict[tuple[object, ...], list[int]] = {}
        for i, parameter in enumerate(parameters):
            rows = parameter.size(0)
            columns = parameter.numel() // max(rows, 1)
            key = (min(rows, columns), max(rows, columns), parameter.device, parameter.dtype)
            alike.setdefault(key, []).append(i)
        for members in alike.values():
            flat = [directions[i].flatten(1) for i in members]
            tall = [direction.size(0) > direction.size(1) for direction in flat]
            batch = torch.stack([d.mT if t else d for d, t in zip(flat, tall, strict=True)])
            batch /= batch.norm(dim=(1, 2), keepdim=True) + TINY
            batch = batch.to(_working_type(parameters[members[0]], group))
            batch = orthogonalize_batch(batch, group["steps"])
            for i, turned, direction in zip(members, tall, batch.unbind(), strict=True):
                direction = direction.mT if turned else direction
                scale = math.sqrt(max(1, direction.size(0) / direction.size(1)))
                parameters[i].add_(direction.reshape(parameters[i].shape), alpha=-group["lr"] * scale)


def _working_type(parameter: Tensor, group: Group) -> torch.dtype:
    if group["precision"] == "bfloat16":
        return torch.bfloat16
    return torch.promote_types(parameter.dtype, torch.float32)
