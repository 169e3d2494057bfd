"""Muon: momentum whose matrix is made orthogonal before the step.

B batch of matrices of one shape, r the smaller and c the larger side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from handmade.errors import ConfigError
from handmade.optimizers.base import Group, Optimizer, State, alike, number

# a, b, c. Chosen by the author so that small singular values grow fastest: the price is that they end between
# about 0.7 and 1.2, not at 1, which does not hurt training.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
TINY = 1e-7  # added to the norm: a gradient of zeros stays zeros


def orthogonalize(matrix: Tensor, steps: int = 5, precision: str = "float32") -> Tensor:
    """Nearly the nearest matrix with orthonormal rows (or columns): every singular value goes to about 1.

        X = M / |M|                             Frobenius norm, so no singular value is above 1
        repeat `steps` times:  A = X Xᵀ;  X = a X + (b A + c A²) X

    With X = U S Vᵀ, one round maps every singular value s to a s + b s³ + c s⁵ and leaves U and V alone.
    The products are computed in bfloat16 on request, else in float32 (float64 for a matrix of that type).

    Shapes: (..., r, c) -> (..., r, c). A tall matrix is turned over, so that A is small.
    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"
    (kellerjordan.github.io/posts/muon), which has the coefficients too.
    """
    tall = matrix.size(-2) > matrix.size(-1)
    x = normalized(matrix.mT if tall else matrix, precision)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


def normalized(matrix: Tensor, precision: str) -> Tensor:
    """M / |M| over the last two axes, in the type that the products are computed in."""
    x = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + TINY)
    return x.bfloat16() if precision == "bfloat16" else x


def orthogonalize_batch(batch: Tensor, steps: int = 5, precision: str = "float32") -> Tensor:
    """`orthogonalize` for a batch of matrices of one shape, in batched products.

    Shapes: (B, rows, columns) -> (B, rows, columns), in the type of the products.
    """
    x = normalized(batch, precision)
    short, long = sorted(x.shape[1:])
    pairs = steps // 2 if long > 2 * short else 0
    for _ in range(pairs):
        x = _two_rounds(x)
    for _ in range(steps - 2 * pairs):
        x = _round(x)
    return x


def _round(x: Tensor) -> Tensor:
    polynomial = _polynomial(_gram(x))
    left, right = (x, polynomial) if _tall(x) else (polynomial, x)
    return torch.baddbmm(x, left, right, beta=COEFFICIENTS[0])


def _two_rounds(x: Tensor) -> Tensor:
    # With P = a I + b A + c A², a round is X -> P X, so A -> P A P: the second P can be had from the small A
    # alone, and both be put on X at once. For sides of 1 to 4 that is four fifths of the multiplications.
    # Not three rounds at once: rounding in A grows twelvefold a round, and in bfloat16 that can diverge.
    gram = _gram(x)
    first = _with_identity(_polynomial(gram))
    second = _with_identity(_polynomial(torch.bmm(torch.bmm(first, gram), first)))
    # A product of polynomials of one symmetric matrix is symmetric, so it serves on either side.
    both = torch.bmm(second, first)
    return torch.bmm(x, both) if _tall(x) else torch.bmm(both, x)


def _with_identity(polynomial: Tensor) -> Tensor:
    polynomial.diagonal(dim1=1, dim2=2).add_(COEFFICIENTS[0])
    return polynomial


def _tall(x: Tensor) -> bool:
    return x.size(1) > x.size(2)


def _gram(x: Tensor) -> Tensor:
    # The smaller of X Xᵀ and Xᵀ X. Turning tall matrices over instead would cost three copies with a stride.
    return torch.bmm(x.mT, x) if _tall(x) else torch.bmm(x, x.mT)


def _polynomial(gram: Tensor) -> Tensor:
    return torch.baddbmm(gram, gram, gram, beta=COEFFICIENTS[1], alpha=COEFFICIENTS[2])


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
    Fused form: matrices of one shape are stacked and go through batched products.

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
        direction = orthogonalize(direction, group["steps"], group["precision"])
        rows, columns = direction.shape
        parameter -= group["lr"] * group["weight_decay"] * parameter
        parameter -= group["lr"] * math.sqrt(max(1, rows / columns)) * direction.view_as(parameter)

    def update_all(self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group) -> None:
        velocities = [state["velocity"] for state in states]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, gradients)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        shapes = [(parameter.size(0), parameter[0].numel()) for parameter in parameters]
        for members in alike(parameters, shapes):
            rows, columns = shapes[members[0]]
            batch = torch.stack([velocities[i].reshape(rows, columns) for i in members])
            if group["nesterov"]:
                batch.mul_(group["momentum"]).add_(torch.stack([gradients[i].reshape(rows, columns) for i in members]))
            batch = orthogonalize_batch(batch, group["steps"], group["precision"])
            some = [parameters[i] for i in members]
            directions = batch.to(some[0].dtype).view(-1, *some[0].shape).unbind()
            torch._foreach_add_(some, directions, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))
