"""Muon against the formula of its write-up, in numpy, matrix by matrix; against torch.optim.Muon; its result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handmade.errors import ConfigError
from handmade.layers.kernels import kernels
from handmade.optimizers import Muon, orthogonalize
from handmade.optimizers.muon import orthogonalize_batch

FORMS = ("reference", "fused")
# Square, flat, tall, twins in one batch, sides far apart (the fused form works on the small matrix there), a row.
SHAPES = ((6, 6), (4, 6), (6, 4), (6, 6), (3, 12), (12, 3), (3, 12), (1, 5), (7, 1))


def newton_schulz(g: np.ndarray, rounds: int) -> np.ndarray:
    """X <- a X + b X XᵀX + c X XᵀX XᵀX, as one polynomial in X, never turned over."""
    x = g / (np.sqrt((g * g).sum()) + g.dtype.type(1e-7))
    a, b, c = (g.dtype.type(number) for number in (3.4445, -4.7750, 2.0315))
    for _ in range(rounds):
        cube = x @ x.T @ x
        x = a * x + b * cube + c * (cube @ x.T @ x)
    return x


class Written:
    """Muon from the write-up, for one matrix: B = mu B + G, then U = NS(G + mu B), then the step."""

    def __init__(self, weight: np.ndarray, lr: float, momentum: float, decay: float, nesterov: bool, rounds: int):
        self.weight, self.buffer = weight, np.zeros_like(weight)
        self.lr, self.momentum, self.decay, self.nesterov, self.rounds = lr, momentum, decay, nesterov, rounds

    def step(self, g: np.ndarray) -> None:
        number = self.weight.dtype.type
        self.buffer = number(self.momentum) * self.buffer + g
        seen = g + number(self.momentum) * self.buffer if self.nesterov else self.buffer
        update = newton_schulz(seen, self.rounds)
        rows, columns = self.weight.shape
        self.weight = self.weight * number(1 - self.lr * self.decay)
        self.weight = self.weight - number(self.lr * max(1, rows / columns) ** 0.5) * update


def matrices(seed: int, steps: int) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    generator = np.random.default_rng(seed)
    draw = lambda: [generator.standard_normal(shape, dtype=np.float32) for shape in SHAPES]  # noqa: E731
    return draw(), [draw() for _ in range(steps)]


def run_ours(form: str, dtype: torch.dtype, weights: Any, gradients: Any, **options: Any) -> list[np.ndarray]:
    parameters = [torch.nn.Parameter(torch.from_numpy(weight).to(dtype)) for weight in weights]
    with kernels(form):
        optimizer = Muon([{"params": parameters[:5]}, {"params": parameters[5:], "lr": 0.07}], **options)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.from_numpy(gradient).to(dtype)
        optimizer.step()
    return [parameter.detach().double().numpy() for parameter in parameters]


def run_written(dtype: Any, weights: Any, gradients: Any, lr: float, **options: Any) -> list[np.ndarray]:
    results = []
    for place, weight in enumerate(weights):
        written = Written(weight.astype(dtype), lr if place < 5 else 0.07, **options)
        for step in gradients:
            written.step(step[place].astype(dtype))
        results.append(written.weight.astype(np.float64))
    return results


def distance(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    return float(np.sqrt(sum(((p - q) ** 2).sum() for p, q in zip(left, right, strict=True))))


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    lr=st.floats(1e-3, 0.1),
    momentum=st.floats(0, 0.98),
    decay=st.floats(0.01, 0.3),
    nesterov=st.booleans(),
    rounds=st.integers(1, 7),
)
def test_equal_to_the_write_up(
    form: str, seed: int, lr: float, momentum: float, decay: float, nesterov: bool, rounds: int
) -> None:
    weights, gradients = matrices(seed, 20)
    written = {"lr": lr, "momentum": momentum, "decay": decay, "nesterov": nesterov, "rounds": rounds}
    options = {"lr": lr, "momentum": momentum, "weight_decay": decay, "nesterov": nesterov, "steps": rounds}
    exact = run_written(np.float64, weights, gradients, **written)
    assert distance(run_ours(form, torch.float64, weights, gradients, **options), exact) < 1e-12
    own = distance(run_ours(form, torch.float32, weights, gradients, **options), exact)
    assert own <= 4 * distance(run_written(np.float32, weights, gradients, **written), exact) + 1e-7


@pytest.mark.parametrize("form", FORMS)
def test_100_steps_with_the_defaults(form: str) -> None:
    weights, gradients = matrices(5, 100)
    exact = run_written(np.float64, weights, gradients, lr=0.02, momentum=0.95, decay=0.0, nesterov=True, rounds=5)
    assert distance(run_ours(form, torch.float64, weights, gradients), exact) < 1e-12


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (64, 16), (24, 32)])
def test_near_torch_muon(shape: tuple[int, int], precision: str, form: str) -> None:
    """torch.optim.Muon computes in bfloat16; its own distance from float64 is the yardstick."""
    generator = torch.Generator().manual_seed(3)
    begin, gradients = torch.randn(shape, generator=generator), torch.randn(10, *shape, generator=generator)
    ends = {}
    with kernels(form):
        makers = {
            "exact": lambda p: Muon(p, lr=0.02, weight_decay=0.1),
            "ours": lambda p: Muon(p, lr=0.02, weight_decay=0.1, precision=precision),
            "torch": lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=0.1, adjust_lr_fn="original"),
        }
        for name, maker in makers.items():
            dtype = torch.float64 if name == "exact" else torch.float32
            parameter = torch.nn.Parameter(begin.to(dtype, copy=True))
            optimizer = maker([parameter])
            for gradient in gradients:
                parameter.grad = gradient.to(dtype)
                optimizer.step()
            ends[name] = parameter.detach().double()
    moved = (ends["exact"] - begin.double()).norm()
    theirs, own = (ends["torch"] - ends["exact"]).norm(), (ends["ours"] - ends["exact"]).norm()
    assert theirs < 0.05 * moved  # the same formula: only the precision differs
    assert own < (4 * theirs if precision == "bfloat16" else 1e-4 * moved)


def shaped_by(singular: torch.Tensor, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """A matrix with these singular values."""
    generator, singular = torch.Generator().manual_seed(seed), singular.double()
    left, _ = torch.linalg.qr(torch.randn(rows, len(singular), generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(columns, len(singular), generator=generator, dtype=torch.float64))
    return left @ torch.diag(singular) @ right.T


@pytest.mark.parametrize("shape", [(16, 16), (16, 24), (24, 16), (16, 80), (80, 16)])
def test_singular_values_go_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    singular = torch.logspace(0, -2, 16, dtype=torch.float64)
    matrix = 1000 * shaped_by(singular, *shape)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    for result in (orthogonalize(matrix), orthogonalize_batch(torch.stack([matrix, -matrix]))[0]):
        assert result.shape == shape
        inner = u.T @ result @ vt.T  # diagonal when the singular vectors are those of the matrix
        diagonal = inner.diagonal()
        assert (inner - torch.diag(diagonal)).abs().max() < 1e-9
        assert diagonal.min() > 0.65
        assert diagonal.max() < 1.25
        # Each singular value by itself, as a plain number.
        for before, after in zip((s / s.square().sum().sqrt()).tolist(), diagonal.tolist(), strict=True):
            for _ in range(5):
                before = 3.4445 * before - 4.7750 * before**3 + 2.0315 * before**5
            assert after == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (48, 192), (192, 48)])
def test_bfloat16_ends_in_the_same_band(shape: tuple[int, int]) -> None:
    count = min(shape)
    matrix = shaped_by(torch.logspace(0, -1.5, count, dtype=torch.float64), *shape).float()
    for result in (
        orthogonalize(matrix, precision="bfloat16"),
        orthogonalize_batch(matrix[None], precision="bfloat16")[0],
    ):
        values = torch.linalg.svdvals(result.double())
        assert values.min() > 0.6
        assert values.max() < 1.3


@pytest.mark.parametrize("end", [1, 2, 3])
@pytest.mark.parametrize("shape", [(4, 16), (16, 4), (4, 9), (4, 6)])
def test_bfloat16_never_diverges(shape: tuple[int, int], end: int) -> None:
    """Rounding in the Gram matrix grows with every round that does not go back to X; with three such rounds one
    matrix in a few dozen of these ends at singular values in the hundreds."""
    batch = torch.stack([shaped_by(torch.logspace(0, -end, 4), *shape, seed=seed) for seed in range(200)]).float()
    values = torch.linalg.svdvals(orthogonalize_batch(batch, precision="bfloat16").double())
    assert values.max() < 1.4


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (16, 4), (6, 9)])
def test_a_batch_is_its_matrices_one_by_one(shape: tuple[int, int], precision: str) -> None:
    batch = torch.stack([shaped_by(torch.logspace(0, -end, min(shape)), *shape, seed=end) for end in (1, 2)])
    together = orthogonalize_batch(batch, precision=precision).double()
    near = 1e-10 if precision == "float32" else 0.06  # these are float64
    for matrix, result in zip(batch, together, strict=True):
        alone = orthogonalize_batch(matrix[None], precision=precision)[0].double()
        assert (result - alone).norm() < near * alone.norm()
        formula = orthogonalize(matrix)
        assert (result - formula).norm() < 2 * near * formula.norm()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gradient_of_zeros_moves_nothing(form: str, precision: str) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 8))
    with kernels(form):
        optimizer = Muon([weight], precision=precision)
    weight.grad = torch.zeros(2, 8)
    optimizer.step()
    assert torch.equal(weight, torch.ones(2, 8))


@pytest.mark.parametrize("form", FORMS)
def test_a_convolution_is_a_matrix_of_its_first_axis_by_the_rest(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    begin, gradient = torch.randn(2, 4, 3, 5, 2, generator=generator, dtype=torch.float64)
    ends = []
    for shape in ((4, 3, 5, 2), (4, 30)):
        weight = torch.nn.Parameter(begin.view(shape).clone())
        with kernels(form):
            optimizer = Muon([weight])
        weight.grad = gradient.view(shape)
        optimizer.step()
        ends.append(weight.detach().view(-1))
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], begin.view(-1))


def test_a_vector_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"shape \(3,\).*AdamW"):
        Muon([torch.nn.Parameter(torch.ones(3))])
