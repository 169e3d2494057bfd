"""What a person's functions hold is found, and put back."""

from __future__ import annotations

import functools
import logging
import random
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from handmade.doctor.given import Given
from handmade.doctor.reach import Reach, cut_rows, rehearsed, same, take_step

STEPS = 0


class Trainer:
    """Counts in attributes, in a list, in a namespace of its own."""

    def __init__(self) -> None:
        self.number, self.losses, self.recent = 0, [3.0], deque([1], maxlen=2)
        self.state = SimpleNamespace(epoch=0)
        self.average = nn.Linear(2, 2)
        self.shadow = {"weight": torch.zeros(2)}

    def step(self) -> None:
        global STEPS
        STEPS += 1
        self.number += 1
        self.losses.append(2.0)
        self.recent.append(2)
        self.state.epoch += 1
        self.extra = "new"
        with torch.no_grad():
            self.average.weight.zero_()
            self.shadow["weight"] += 1


def test_counters_lists_and_averages_are_put_back() -> None:
    trainer = Trainer()
    weight = trainer.average.weight.clone()
    with rehearsed(Given(train_step=trainer.step)):
        trainer.step()
        assert (STEPS, trainer.number, trainer.state.epoch) == (1, 1, 1)
    assert (STEPS, trainer.number, trainer.state.epoch) == (0, 0, 0)
    assert trainer.losses == [3.0]
    assert trainer.recent == deque([1], maxlen=2)
    assert not hasattr(trainer, "extra")
    assert torch.equal(trainer.average.weight, weight)
    assert torch.equal(trainer.shadow["weight"], torch.zeros(2))


def test_a_variable_of_an_enclosing_function_is_put_back() -> None:
    number = 0

    def step() -> int:
        nonlocal number
        number += 1
        return number

    with rehearsed(Given(train_step=functools.partial(step))):
        step()
        assert number == 1
    assert number == 0


def test_generators_are_found_wherever_they_are_held() -> None:
    first, second = torch.Generator().manual_seed(1), np.random.default_rng(2)
    third, fourth = random.Random(3), np.random.RandomState(4)
    loader = DataLoader(TensorDataset(torch.arange(4)), shuffle=True, generator=torch.Generator().manual_seed(5))

    def batches(one: Any = third) -> Any:
        return first, second, one

    reach = Reach(Given(batches=batches, evaluate=lambda: fourth.rand(), train_step=lambda: next(iter(loader))))
    assert len(reach.generators) == 5
    before = reach.states()
    drawn = torch.rand(3, generator=first), second.random(3), third.random(), fourth.rand(), next(iter(loader))
    assert not any(same(before[path], reach.states()[path]) for path in reach.generators)
    reach.set_states(before)
    again = torch.rand(3, generator=first), second.random(3), third.random(), fourth.rand(), next(iter(loader))
    assert same(list(drawn), list(again))
    reach.scatter(9)
    assert not same(torch.rand(3, generator=first), drawn[0])


def test_an_optimizer_and_its_schedule_are_put_back_and_can_be_made_new() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        schedule.step()

    step()
    group, state = optimizer.param_groups[0], optimizer.state[model.weight]
    average, rate = state["exp_avg"].clone(), group["lr"]
    with rehearsed(Given(model=model, train_step=step)) as reach:
        step()
        assert group["lr"] < rate
        reach.as_new()
        assert not optimizer.state
        assert schedule.last_epoch == 1
        step()
    assert optimizer.param_groups[0] is group
    assert optimizer.state[model.weight] is state
    assert group["lr"] == rate
    assert torch.equal(state["exp_avg"], average)
    assert schedule.last_epoch == 1


def test_a_library_is_left_alone() -> None:
    log = logging.getLogger("handmade-test")

    def step() -> None:
        log.warned = True  # type: ignore[attr-defined]

    with rehearsed(Given(train_step=step)):
        step()
    assert vars(log).pop("warned")


def test_a_batch_is_cut_whatever_holds_it() -> None:
    x, y = torch.arange(12).view(4, 3), torch.arange(12).view(4, 3) + 1
    assert [len(one) for one in cut_rows((x, y), 2)] == [2, 2]
    halves = cut_rows({"inputs": x, "targets": y}, 2)
    assert {name: len(one) for name, one in halves.items()} == {"inputs": 2, "targets": 2}
    inputs, targets = cut_rows((x.T, y.T.reshape(-1)), 2, 1)  # time first, targets flat
    assert inputs.shape == (3, 2)
    assert torch.equal(targets, y[:2].T.reshape(-1))
    assert cut_rows((x, y), 9)[0] is x


def test_a_step_is_given_what_it_takes() -> None:
    seen: list[Any] = []
    batch = (torch.zeros(1, 2), torch.ones(1, 2))
    take_step(Given(train_step=lambda: seen.append("none")), batch)
    take_step(Given(train_step=lambda one: seen.append(one)), batch)
    take_step(Given(train_step=lambda x, y: seen.append((x, y))), batch)
    take_step(Given(train_step=lambda batches: seen.append((next(batches), next(batches)))), batch)
    assert seen[0] == "none"
    assert seen[1] is batch
    assert seen[2][1] is batch[1]
    assert seen[3] == (batch, batch)
