"""The learning rate, as it was stated and as it is used; a schedule that is walked through to its end."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_training import found, plain, tiny
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from handmade.doctor import courses


def by_hand(optimizer, rate, first: int = 0):
    done = first

    def before():
        nonlocal done
        for group in optimizer.param_groups:
            group["lr"] = rate(done)
        done += 1

    return before


def line(step: int) -> float:
    return 0.1 * (1 - step / 100)


@pytest.mark.parametrize("first", [0, 1, 3])
def test_a_training_that_is_a_little_ahead_is_healthy(first):
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = plain(model, optimizer, before=by_hand(optimizer, line, first))
    assert found("schedule", model, train_step=step, schedule=line).verdict == "healthy"


def test_groups_with_shares_of_the_rate_are_healthy():
    model = tiny()
    optimizer = torch.optim.SGD([{"params": model.embedding.parameters()}, {"params": model.head.parameters()}], lr=0.1)
    done = 0

    def before():
        nonlocal done
        optimizer.param_groups[0]["lr"] = line(done)
        optimizer.param_groups[1]["lr"] = 3 * line(done)
        done += 1

    assert (
        found("schedule", model, train_step=plain(model, optimizer, before=before), schedule=line).verdict == "healthy"
    )


def test_a_rate_that_is_a_multiple_of_the_stated_one():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = plain(model, optimizer, before=by_hand(optimizer, lambda step: 0.1 * line(step)))
    finding = found("schedule", model, train_step=step, schedule=line)
    assert finding.verdict == "sick"
    assert finding.measured == "every rate is 0.1 times the stated one"
    assert finding.value == pytest.approx(0.9)


def test_a_constant_rate_is_healthy_where_a_constant_is_stated():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert found("schedule", model, train_step=plain(model, optimizer), schedule=lambda step: 0.1).verdict == "healthy"
    assert found("schedule", model, train_step=plain(model, optimizer), schedule=line).verdict == "sick"


def test_a_rate_in_a_tensor():
    model = tiny()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1))
    done = 0

    def before():
        nonlocal done
        optimizer.param_groups[0]["lr"].fill_(line(done))
        done += 1

    assert (
        found("schedule", model, train_step=plain(model, optimizer, before=before), schedule=line).verdict == "healthy"
    )
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.1)


def per_epoch(optimizer):
    return StepLR(optimizer, step_size=10)


def per_step(optimizer):
    return CosineAnnealingLR(optimizer, T_max=5000)


def warm_up(optimizer):
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 1000))


@pytest.mark.parametrize(
    ("make", "steps", "verdict"),
    [
        (per_epoch, None, "not examined"),
        (per_epoch, 3000, "not examined"),
        (per_epoch, 100, "sick"),
        (per_step, None, "suspicious"),
        (per_step, 5000, "sick"),
        (per_step, 1_000_000, "not examined"),
        (warm_up, None, "suspicious"),
        (ReduceLROnPlateau, 5000, "healthy"),
    ],
)
def test_a_scheduler_that_is_not_stepped(make, steps, verdict):
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = make(optimizer)
    finding = found("schedule", model, train_step=plain(model, optimizer), schedule=scheduler, steps=steps)
    assert finding.verdict == verdict, finding
    assert verdict != "suspicious" or "steps=" in finding.question


@pytest.mark.parametrize("make", [per_step, warm_up, lambda o: OneCycleLR(o, max_lr=1.0, total_steps=5000)])
def test_a_scheduler_that_is_stepped_is_healthy_and_stays_where_it_was(make):
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = make(optimizer)
    optimizer.step()
    scheduler.step()
    before = scheduler.last_epoch, scheduler.get_last_lr(), optimizer.param_groups[0]["lr"]
    step = plain(model, optimizer, after=scheduler.step)
    finding = found("schedule", model, train_step=step, schedule=scheduler, optimizer=optimizer, steps=5000)
    assert finding.verdict == "healthy", finding
    assert (scheduler.last_epoch, scheduler.get_last_lr(), optimizer.param_groups[0]["lr"]) == before


def test_a_schedule_that_is_brought_to_where_it_was_left_is_healthy():
    """Several calls before the first step are no wrong order."""
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = warm_up(optimizer)
    started = False

    def before():
        nonlocal started
        if not started:
            for _ in range(5):
                scheduler.step()
            started = True

    step = plain(model, optimizer, before=before, after=scheduler.step)
    assert found("schedule", model, train_step=step, schedule=scheduler).verdict == "healthy"


@pytest.mark.parametrize("restarts", [None, True, False])
def test_a_rate_that_rises_again_is_a_question(restarts):
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = {"schedule": CosineAnnealingLR(optimizer, T_max=50), "steps": 100}
    expect = {} if restarts is None else {"restarts": restarts}
    finding = found("schedule", model, expect=expect, optimizer=optimizer, **given)
    assert finding.verdict == {None: "suspicious", True: "healthy", False: "sick"}[restarts]
    assert restarts is not None or "expect=" in finding.question


def test_restarts_that_say_so_are_meant():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=20)
    assert found("schedule", model, schedule=scheduler, steps=100).verdict == "healthy"


@pytest.mark.parametrize(
    ("rate", "bounds", "verdict"),
    [
        (lambda s: 1e-3 * min(1.0, s / 10), (1e-4, 1e-3), "healthy"),  # a warm-up comes from below
        (lambda s: 1e-3 * min(1.0, s / 1000), (1e-3, 1e-3), "sick"),  # and has to arrive
        (lambda s: 1e-3 * (1 - s / 105), (1e-4, 1e-3), "sick"),
        (lambda s: 1e-3 * (1 - s / 100), (0.0, 1e-3), "healthy"),
        (lambda s: 1e-3 * (1 - s / 99), None, "healthy"),
        (lambda s: 1e-3 * (1 - s / 98), None, "sick"),  # below 0 in the last step alone
        (lambda s: math.nan if s == 57 else 1e-3, None, "sick"),
    ],
)
def test_bounds(rate, bounds, verdict):
    finding = found("schedule", None, schedule=rate, steps=100, schedule_bounds=bounds)
    assert finding.verdict == verdict, finding


def test_a_walk_on_a_copy_follows_the_scheduler_itself():
    """Independent source: the scheduler, stepped beside its optimizer."""
    model = tiny()
    for make in (per_step, warm_up, lambda o: OneCycleLR(o, max_lr=1.0, total_steps=60)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = make(optimizer)
        path = courses.ahead_of(scheduler, 50)
        walked = []
        for place in range(50):
            walked.append((place, pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)))
            optimizer.step()
            scheduler.step()
        assert path == walked


def test_what_a_schedule_cannot_be():
    assert "neither a function" in found("schedule", None, schedule=3e-4, steps=10).measured
    assert found("schedule", None, schedule=line).verdict == "not examined"
