"""Schedules against torch's own and closed forms; and what is logged is what moves the weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handmade.errors import ConfigError
from handmade.optimizers import SGD, OptimizerConfig, build_optimizers
from handmade.schedules import ScheduleConfig, apply, multiplier, rates

NAMES = ("constant", "cosine", "linear", "stable-then-decay")


def configs() -> st.SearchStrategy[ScheduleConfig]:
    return st.builds(
        ScheduleConfig,
        name=st.sampled_from(NAMES),
        warmup=st.sampled_from([0.0, 0.01, 0.1, 0.4]),
        decay=st.sampled_from([0.1, 0.5, 0.6]),
        final=st.sampled_from([0.0, 0.1, 1.0]),
    )


def torch_rates(maker: Any, steps: int, peak: float = 0.3) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = maker(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def our_rates(config: ScheduleConfig, steps: int, peak: float = 0.3) -> list[float]:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    found = []
    for step in range(steps):
        apply([optimizer], config, step / steps)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_equals_torch(final: float) -> None:
    theirs = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50, eta_min=0.3 * final), 50)
    assert our_rates(ScheduleConfig(name="cosine", warmup=0, final=final), 50) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_linear_equals_torch(final: float) -> None:
    theirs = torch_rates(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, final, 50), 50)
    assert our_rates(ScheduleConfig(name="linear", warmup=0, final=final), 50) == pytest.approx(theirs, abs=1e-12)


def test_stable_then_decay_equals_torch_in_pieces() -> None:
    def pieces(optimizer: torch.optim.Optimizer) -> Any:
        schedulers = torch.optim.lr_scheduler
        up = schedulers.LinearLR(optimizer, 0.01, 1.0, 20)
        flat = schedulers.ConstantLR(optimizer, 1.0)
        down = schedulers.LinearLR(optimizer, 1.0, 0.2, 60)
        return schedulers.SequentialLR(optimizer, [up, flat, down], [20, 140])

    config = ScheduleConfig(name="stable-then-decay", warmup=0.1, decay=0.3, final=0.2)
    assert our_rates(config, 200) == pytest.approx(torch_rates(pieces, 200), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    # warm-up over the first fifth, floor 0.5, decay over the last half; by hand
    [
        ("constant", [0.01, 0.505, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.01, 0.505, 1.0, 0.75 + 0.25 * math.cos(math.pi / 4), 0.75, 0.5]),
        ("linear", [0.01, 0.505, 1.0, 0.875, 0.75, 0.5]),
        ("stable-then-decay", [0.01, 0.505, 1.0, 1.0, 0.9, 0.5]),
        ("inverse-root", [0.01, 0.505, 1.0, 0.5**0.5, (1 / 3) ** 0.5, 0.2**0.5]),
    ],
)
def test_values_by_hand(name: str, expected: list[float]) -> None:
    config = ScheduleConfig(name=name, warmup=0.2, decay=0.5, final=0.5)  # type: ignore[arg-type]
    found = [multiplier(config, fraction) for fraction in (0.0, 0.1, 0.2, 0.4, 0.6, 1.0)]
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_schedule_of_2017_is_that_of_the_paper() -> None:
    """Vaswani et al. 2017, equation 3, with steps counted from 1: rate = d^-0.5 min(step^-0.5, step warmup^-1.5)."""
    width, warmup, steps = 512, 400, 10_000
    config = ScheduleConfig(name="inverse-root", warmup=warmup / steps)
    peak = width**-0.5 * warmup**-0.5
    for step in (100, 200, 400, 401, 1000, 9999):
        theirs = width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        # Ours begins at a hundredth of the peak, not at nothing.
        assert peak * multiplier(config, step / steps) == pytest.approx(theirs, abs=0.01 * peak)
        if step >= warmup:
            assert peak * multiplier(config, step / steps) == pytest.approx(theirs, rel=1e-12)


def test_a_root_that_counts_from_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="warmup"):
        ScheduleConfig(name="inverse-root", warmup=0.0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(config=configs(), steps=st.integers(1, 400))
def test_every_step_learns_and_the_shape_is_up_then_down(config: ScheduleConfig, steps: int) -> None:
    shares = [multiplier(config, step / steps) for step in range(steps)]
    assert all(0 < share <= 1 for share in shares)  # the first step under warm-up, and the last of a decay to zero
    peak = shares.index(max(shares))
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    # A hair of slack: rounding in the cosine.
    assert all(later <= sooner + 1e-12 for sooner, later in zip(shares[peak:], shares[peak + 1 :], strict=False))
    ending = 1.0 if config.name == "constant" else config.final
    assert multiplier(config, 1.0) == pytest.approx(ending, abs=1e-12)
    assert multiplier(config, config.warmup) == pytest.approx(1.0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(config=configs(), fraction=st.floats(0, 0.999))
def test_no_jumps(config: ScheduleConfig, fraction: float) -> None:
    near = 1e-6
    steepest = max(1 / (config.warmup or 1), math.pi / (1 - config.warmup), 1 / config.decay)
    assert abs(multiplier(config, fraction + near) - multiplier(config, fraction)) <= 1.01 * steepest * near


@pytest.mark.parametrize("fraction", [-0.01, 1.01, float("nan")])
def test_a_fraction_outside_training_is_an_error(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        multiplier(ScheduleConfig(), fraction)


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_what_is_returned_is_what_the_groups_hold(name: str) -> None:
    model = torch.nn.ModuleDict({"head": torch.nn.Linear(3, 4), "in": torch.nn.Embedding(4, 3)})
    model["hidden"] = torch.nn.Linear(3, 3)
    config = OptimizerConfig(name=name, learning_rate=0.5, vector_learning_rate=0.2)  # type: ignore[arg-type]
    optimizers = build_optimizers(model, config)
    schedule = ScheduleConfig(name="linear", warmup=0.0, final=0.0)
    for fraction in (0.75, 0.25, 0.25):  # in any order, as often as one likes: the peak is not lost
        said = apply(optimizers, schedule, fraction)
        held = {group["name"]: group["lr"] for optimizer in optimizers for group in optimizer.param_groups}
        assert said == held == rates(optimizers)
        assert said["matrices"] == pytest.approx(0.5 * (1 - fraction))
        assert said["vectors"] == pytest.approx(0.2 * (1 - fraction))


def test_a_step_moves_by_multiplier_times_rate_times_gradient() -> None:
    """The classic mistake is a rate written to `optimizer.lr`, which nothing reads: every step is at the peak."""
    weights = [torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2)]
    peaks = (0.5, 2.0)
    optimizer = SGD([{"params": [weight], "lr": peak} for weight, peak in zip(weights, peaks, strict=True)])
    gradient = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    config = ScheduleConfig(name="cosine", warmup=0.25, final=0.1)
    for step in range(8):
        said = apply([optimizer], config, step / 8)
        optimizer.lr = 100.0  # type: ignore[attr-defined]
        before = [weight.detach().clone() for weight in weights]
        for weight in weights:
            weight.grad = gradient.clone()
        optimizer.step()
        # The same shape written once more, from its definition.
        share = 0.01 + 0.99 * step / 2 if step < 2 else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 2) / 6))
        for place, (weight, peak) in enumerate(zip(weights, peaks, strict=True)):
            torch.testing.assert_close(before[place] - weight.detach(), share * peak * gradient, rtol=1e-12, atol=1e-12)
            assert said[f"group {place}"] == pytest.approx(share * peak)


def test_the_peak_survives_a_state_dict() -> None:
    config = ScheduleConfig(name="linear", warmup=0.0, final=0.0)
    first, second = (SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr) for lr in (0.4, 9.0))
    apply([first], config, 0.5)
    second.load_state_dict(first.state_dict())
    assert apply([second], config, 0.25)["group 0"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "cosin"},
        {"warmup": 1.0},
        {"warmup": -0.1},
        {"final": 1.1},
        {"final": -0.1},
        {"decay": 0.0},
        {"decay": 0.9, "warmup": 0.2, "name": "stable-then-decay"},
    ],
)
def test_a_config_out_of_range_names_the_field(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        ScheduleConfig(**bad)


def test_lengths_that_fill_training_exactly_are_allowed() -> None:
    config = ScheduleConfig(name="stable-then-decay", warmup=0.7, decay=0.3)  # 0.7 + 0.3 in floats is not 1 - 0
    assert multiplier(config, 0.7) == pytest.approx(1.0)
