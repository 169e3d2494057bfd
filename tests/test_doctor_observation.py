"""What is seen of a training is what happened, and torch is afterwards what it was."""

from __future__ import annotations

import sys
import threading
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim import optimizer as optimizer_module
from torch.optim.lr_scheduler import LinearLR, LRScheduler, SequentialLR, StepLR
from torch.utils.checkpoint import checkpoint

from handmade.doctor.events import (
    Backward,
    Changed,
    Clipped,
    Forward,
    Mode,
    Scheduled,
    Scored,
    Skipped,
    Stepped,
    Unscaled,
    Written,
)
from handmade.doctor.given import Given
from handmade.doctor.observation import Enough, Observation
from handmade.doctor.patient import Patient
from handmade.doctor.rehearsing import rehearse
from handmade.doctor.updates import updates

V = 7


def model_of(seed: int = 0, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(V, width), nn.Dropout(0.1), nn.Linear(width, V))


def tokens(rows: int = 2) -> torch.Tensor:
    return torch.randint(V, (rows, 5))


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())


def kinds(seen: Observation) -> list[str]:
    return [type(event).__name__ for event in seen.events]


def state_of_torch() -> list[object]:
    """Everything that an observation touches."""
    owners = [
        (torch.autograd, "backward"), (Optimizer, "zero_grad"), (Optimizer, "add_param_group"),
        (nn.Module, "zero_grad"), (nn.Module, "__call__"), (nn.Module, "train"), (LRScheduler, "step"),
        (SequentialLR, "step"), (F, "cross_entropy"), (F, "nll_loss"), (torch, "compile"),
        (torch.nn.utils, "clip_grad_norm_"), (torch.nn.utils.clip_grad, "clip_grad_norm_"),
        (torch.nn.utils, "clip_grad_value_"), (sys.modules[__name__], "cross_entropy"),
        (sys.modules[__name__], "clip_grad_norm_"),
        *((torch.amp.GradScaler, name) for name in ("__init__", "scale", "unscale_", "step")),
    ]  # fmt: skip
    hooks = [optimizer_module._global_optimizer_pre_hooks, optimizer_module._global_optimizer_post_hooks]
    return [*(vars(owner)[name] for owner, name in owners), "__setattr__" in vars(Optimizer), *map(len, hooks)]


def test_a_step_of_a_lecture_in_its_order():
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25)
    x = tokens()
    with Observation(model) as seen:
        model.train()
        optimizer.zero_grad()
        loss = loss_of(model, x)
        loss.backward()
        norm = clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        model.eval()
    assert kinds(seen) == ["Mode", "Zeroed", "Forward", "Scored", "Backward", "Clipped", "Stepped", "Mode"]
    mode, _, forward, scored, backward, clipped, stepped, _ = seen.events
    assert isinstance(mode, Mode)
    assert mode.training
    assert isinstance(forward, Forward)
    assert forward.module is model
    assert torch.equal(forward.integers[0], x[:, :-1])
    assert isinstance(scored, Scored)
    assert scored.mean == pytest.approx(loss.item())
    assert scored.classes == V
    assert isinstance(backward, Backward)
    assert backward.loss == pytest.approx(loss.item())
    assert backward.before == {}
    assert set(backward.after) == {id(p) for p in model.parameters()}
    assert isinstance(clipped, Clipped)
    assert (clipped.limit, clipped.norm, clipped.parameters) == (0.01, pytest.approx(float(norm)), 3)
    assert isinstance(stepped, Stepped)
    assert stepped.rates == [0.25]
    # The gradients that were stepped with are those that stand there still, entry by entry (28 of them are few).
    for parameter in model.parameters():
        assert torch.equal(stepped.gradients[id(parameter)], parameter.grad.flatten().double())


def test_nothing_stays_behind():
    before = state_of_torch()
    model = model_of()
    with Observation(model):
        assert state_of_torch() != before
        module = types.ModuleType("imported_meanwhile")
        sys.modules["imported_meanwhile"] = module
        exec("from torch.nn.utils import clip_grad_norm_\nfrom torch.nn.functional import cross_entropy", vars(module))
    assert state_of_torch() == before
    del sys.modules["imported_meanwhile"]
    assert module.clip_grad_norm_ is torch.nn.utils.clip_grad_norm_
    assert module.cross_entropy is F.cross_entropy


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Enough])
def test_nothing_stays_behind_after_an_error(error):
    before = state_of_torch()
    model = model_of()
    seen = Observation(model)

    def fails():
        with seen:
            loss_of(model, tokens()).backward()
            raise error

    with pytest.raises(error):
        fails()
    assert state_of_torch() == before
    events = len(seen.events)
    loss_of(model, tokens()).backward()
    assert len(seen.events) == events == 3


def test_names_in_a_module_that_is_not_loaded_are_found():
    space = {"clip": torch.nn.utils.clip_grad_value_}
    model = model_of()
    with Observation(model, spaces=[space]) as seen:
        loss_of(model, tokens()).backward()
        space["clip"](model.parameters(), 1e-4)
    (clipped,) = seen.of(Clipped)
    assert (clipped.kind, clipped.limit, clipped.norm) == ("value", 1e-4, None)
    assert space["clip"] is torch.nn.utils.clip_grad_value_


def test_what_a_script_does_to_gradients_itself_is_a_change_by_hand():
    model = model_of()
    with Observation(model) as seen:
        loss_of(model, tokens()).backward()
        for parameter in model.parameters():
            parameter.grad /= 4
        clip_grad_norm_(model.parameters(), 100.0)
    (changed,) = seen.of(Changed)
    for key, entries in changed.before.items():
        assert torch.allclose(changed.after[key] * 4, entries)


def test_a_gradient_that_is_cleared_by_hand_counts_as_none():
    model = model_of()
    with Observation(model) as seen:
        for _ in range(2):
            loss_of(model, tokens()).backward()
            for parameter in model.parameters():
                parameter.grad = None
    assert [one.before for one in seen.of(Backward)] == [{}, {}]
    assert len(seen.of(Changed)) == 1  # what comes after the last event is not looked at


def test_weights_that_are_moved_by_hand_are_a_step():
    model = model_of()
    with Observation(model) as seen:
        for _ in range(3):
            model.zero_grad()
            loss_of(model, tokens()).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.data.sub_(0.1 * parameter.grad)  # moves no version counter
    assert seen.updates == 2  # the third would be seen by what comes next
    assert [step.optimizer for step in seen.of(Stepped)] == [None, None]
    assert [len(update.backwards) for update in updates(seen.events)] == [1, 1]


def test_a_list_of_tensors_is_followed_without_a_module():
    weights = [torch.randn(V, 4, requires_grad=True), torch.randn(4, V, requires_grad=True)]
    with Observation() as seen:
        for _ in range(2):
            x = tokens()
            F.cross_entropy((weights[0][x] @ weights[1]).flatten(0, 1), x.flatten()).backward()
            for one in weights:
                one.data -= 0.1 * one.grad
                one.grad = None
    assert set(seen.parameters) == {id(one) for one in weights}
    assert seen.updates == 1


def test_decay_by_hand_before_a_step_is_no_step():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Observation(model) as seen:
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(model, tokens()).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(0.99)
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    assert [step.optimizer for step in seen.of(Stepped)] == [optimizer, optimizer]
    assert seen.updates == 2


def test_two_optimizers_one_after_the_other_make_one_update():
    model = model_of()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.SGD(model[2].parameters(), lr=0.2)
    with Observation(model) as seen:
        for _ in range(2):
            loss_of(model, tokens()).backward()
            first.step()
            second.step()
            model.zero_grad()
    assert seen.updates == 2
    whole = updates(seen.events)
    assert [[step.rates for step in update.steps] for update in whole] == [[[0.1], [0.2]]] * 2
    assert len(whole[1].keys) == 3


def test_a_closure_is_told_from_a_step():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = tokens()

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, x)
        loss.backward()
        return loss

    with Observation(model) as seen:
        optimizer.step(closure)
    (update,) = updates(seen.events)
    assert update.closure
    assert len(update.backwards) == 1


def test_writes_from_outside_are_seen_and_an_optimizer_s_own_are_not():
    class Own(torch.optim.SGD):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.rate = 0.1

        def step(self, closure=None):
            self.counted = True
            return super().step(closure)

    with Observation() as seen:
        model = model_of()
        optimizer = Own(model.parameters(), lr=0.1)
        StepLR(optimizer, 1)  # wraps optimizer.step
        loss_of(model, tokens()).backward()
        optimizer.lr = 1.0
        optimizer.rate = 2.0
        optimizer.lr = 3.0
        optimizer.step()
    found = [(event.name, event.value, event.known) for event in seen.of(Written)]
    assert found == [("lr", 1.0, False), ("rate", 2.0, True), ("lr", 3.0, False)]


def test_a_scaler_is_seen_to_scale_and_unscale():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with Observation(model) as seen:
        loss = loss_of(model, tokens())
        scaler.scale(loss).backward()
        clip_grad_norm_(model.parameters(), 1e9)
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 1e9)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        (scaler.scale(loss_of(model, tokens())) * float("inf")).backward()
        scaler.step(optimizer)
        scaler.update()
    first, second = seen.of(Clipped)
    assert first.scaler is scaler
    assert second.scaler is None
    backward = seen.of(Backward)[0]
    assert backward.scaled
    assert backward.loss == pytest.approx(8 * loss.item())
    assert [event.factor for event in seen.of(Unscaled)] == [0.125, 0.125]
    assert len(seen.of(Stepped)) == len(seen.of(Skipped)) == 1
    assert seen.updates == 2


def test_a_scheduler_made_of_others_is_stepped_once():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with Observation(model) as seen:
        parts = [LinearLR(optimizer, 0.5, total_iters=2), StepLR(optimizer, 1)]
        scheduler = SequentialLR(optimizer, parts, [2])
        optimizer.step()
        scheduler.step()
    (event,) = seen.of(Scheduled)
    assert event.scheduler is scheduler
    assert event.rates == [0.75]


def test_another_thread_is_not_seen():
    model = model_of()
    with Observation(model) as seen:
        other = threading.Thread(target=lambda: loss_of(model, tokens()).backward())
        other.start()
        other.join()
    assert not seen.of(Forward, Backward)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputing_in_a_backward_call_is_no_call(reentrant):
    class Recomputed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model_of()

        def forward(self, x):
            return checkpoint(self.inner[2], self.inner[0](x), use_reentrant=reentrant)

    model = Recomputed()
    with Observation(model) as seen:
        loss_of(model, tokens()).backward()
    assert [event.module for event in seen.of(Forward)] == [model]


def test_calls_without_gradients_are_not_kept():
    model = model_of()
    with Observation(model) as seen, torch.no_grad():
        loss_of(model, tokens())
    assert seen.events == []
    assert seen.modules == [model]


def test_compiling_is_left_out():
    model = model_of()
    with Observation() as seen:
        assert torch.compile(model, mode="max-autotune") is model
        assert torch.compile(dynamic=True)(model) is model
    assert seen.compiled


def test_enough_comes_through_except_exception_and_finally_runs():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    done = []
    seen = Observation(steps=2)

    def train():
        while True:
            try:
                optimizer.zero_grad()
                loss_of(model, tokens()).backward()
                optimizer.step()
                done.append("step")
            except Exception:
                done.append("caught")
            finally:
                done.append("finally")

    with pytest.raises(Enough), seen:
        train()
    # What comes after the second step, up to the next call, is seen as well: here zero_grad.
    assert done == ["step", "finally", "step", "finally", "finally"]
    assert kinds(seen)[-1] == "Zeroed"
    assert seen.ended == "it was ended after 2 steps"


def test_enough_is_raised_again_where_it_was_caught():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = 0
    with Observation(steps=1) as seen:
        for _ in range(5):
            try:
                loss = loss_of(model, tokens())
                calls += 1
                loss.backward()
                optimizer.step()
            except BaseException:
                continue
    assert calls == 1
    assert seen.updates == 1


def test_a_loop_that_never_steps_has_an_end():
    model = nn.Linear(2, 1)

    def train():
        while True:
            model(torch.ones(1, 2)).sum().backward()

    with pytest.raises(Enough), Observation(steps=3) as seen:
        train()
    assert "backward calls without a step" in seen.ended


# Rehearsing: a train_step that is watched leaves nothing either


def everything(optimizer: Optimizer, *others: object) -> list[object]:
    """What an optimizer and other things know, as comparable values."""
    moments = [
        {name: value.tolist() if torch.is_tensor(value) else value for name, value in known.items()}
        for known in optimizer.state.values()
    ]
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    return [moments, groups, sorted(vars(optimizer)), *(str(one.state_dict()) for one in others)]  # type: ignore[attr-defined]


def test_a_rehearsal_is_taken_back():
    model, outside = model_of(), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([*model.parameters(), outside], lr=0.5)
    scheduler = StepLR(optimizer, 1, gamma=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)

    def train_step():
        optimizer.zero_grad()
        scaler.scale(loss_of(model, tokens()) + outside.square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.lr = 1.0

    train_step()  # there are moments now
    del optimizer.lr
    before = everything(optimizer, scheduler, scaler)
    held = [value for known in optimizer.state.values() for value in known.values()]
    weights = outside.detach().clone()
    seen = rehearse(Patient(Given(model=model, vocab_size=V, train_step=train_step)))  # they are found in the closure
    assert seen.updates == 4
    assert everything(optimizer, scheduler, scaler) == before
    assert [id(value) for known in optimizer.state.values() for value in known.values()] == [id(one) for one in held]
    assert torch.equal(outside, weights)
    assert [step.rates for step in seen.of(Stepped)] == [[0.25], [0.125], [0.0625], [0.03125]]


@pytest.mark.parametrize("form", ["one", "pair", "several"])
def test_a_train_step_gets_the_batches_that_it_wants(form):
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handed = []

    def learn(x, y):
        handed.append(x)
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        optimizer.step()

    def one(batch):
        learn(*batch)

    def pair(x, y):
        learn(x, y)

    def several(batches):
        learn(*next(batches))

    x = tokens(6)
    given = Given(
        model=model,
        vocab_size=V,
        train_step={"one": one, "pair": pair, "several": several}[form],
        batches=[(row[None, :-1], row[None, 1:]) for row in x],
    )
    assert rehearse(Patient(given)).updates == 4
    assert [row.tolist() for row in handed] == [x[i : i + 1, :-1].tolist() for i in range(4)]
