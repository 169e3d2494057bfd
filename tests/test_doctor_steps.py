"""The checks of a training step where the zoo does not reach: what looks odd and is healthy, and what was meant."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
import torch.nn.functional as F
from tiny_training import V, batch, found, loss_of, plain, tiny
from torch import nn

from handmade import doctor
from handmade.doctor.checks import BY_NAME, groups, rates, running, steps

# Accumulation


def accumulating(model: nn.Module, optimizer: torch.optim.Optimizer, each, n: int = 3, last=lambda: None):
    def train_step():
        optimizer.zero_grad()
        for _ in range(n):
            each(*batch())
        last()
        optimizer.step()

    return train_step


def test_a_sum_that_is_divided_by_the_count_of_tokens_is_healthy():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def divide():
        for parameter in model.parameters():
            parameter.grad /= 3 * 3 * 5

    each = lambda x, y: loss_of(model, x, y, reduction="sum").backward()  # noqa: E731
    finding = found("accumulation", model, train_step=accumulating(model, optimizer, each, last=divide))
    assert finding.verdict == "healthy", finding
    assert finding.value < 1e-6
    assert found("accumulation", model, train_step=accumulating(model, optimizer, each)).verdict == "sick"


@pytest.mark.parametrize("extra", [0.0, 0.1])
def test_smoothing_and_a_second_loss_are_no_wrong_weight(extra):
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def each(x, y):
        loss = loss_of(model, x, y, label_smoothing=0.1)
        ((loss + extra * loss.detach() * model.head.weight.square().mean().sqrt()) / 3).backward()

    finding = found("accumulation", model, train_step=accumulating(model, optimizer, each))
    assert finding.verdict == "healthy", finding
    assert finding.value < 1e-6


def test_two_losses_of_one_batch_are_no_accumulation():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train_step():
        optimizer.zero_grad()
        x, y = batch()
        logits = model(x).flatten(0, 1)
        F.cross_entropy(logits, y.flatten()).backward(retain_graph=True)
        logits.square().mean().backward()
        optimizer.step()

    finding = found("accumulation", model, train_step=train_step)
    assert finding.verdict == "healthy", finding
    assert "of one batch" in finding.measured


def test_micro_batches_over_several_calls_of_train_step():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = 0

    def step_of(share):
        def train_step():
            nonlocal calls
            calls += 1
            (loss_of(model, *batch()) * share).backward()
            if calls % 4 == 0:
                optimizer.step()
                optimizer.zero_grad()

        return train_step

    assert found("accumulation", model, train_step=step_of(1 / 4)).verdict == "healthy"
    finding = found("accumulation", model, train_step=step_of(1))
    assert finding.verdict == "sick"
    assert finding.value == pytest.approx(3.0)


def test_a_closure_is_not_judged():
    model = tiny()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    x, y = batch()

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        return loss

    finding = found("accumulation", model, train_step=lambda: optimizer.step(closure))
    assert finding.verdict == "not examined"
    assert "optimizer.step" in finding.measured


def test_a_step_that_the_scaler_left_out_is_none():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    calls = 0

    def train_step():
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = loss_of(model, *batch())
        scaler.scale(loss * (float("inf") if calls == 2 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()

    report = doctor.examine(model, vocab_size=V, train_step=train_step, only=["accumulation", "finite"])
    assert not report.sick, report.findings
    assert not report.of("not examined"), report.findings


def test_a_frozen_part_keeps_its_gradient_in_peace():
    """Gradients of what no optimizer holds are nobody's concern here."""
    model = tiny()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    finding = found("accumulation", model, train_step=plain(model, optimizer))
    assert finding.verdict == "healthy", finding


def test_gradients_set_by_hand_are_no_missing_backward():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train_step():
        parameters = list(model.parameters())
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss_of(model, *batch()), parameters), strict=True
        ):
            parameter.grad = gradient
        optimizer.step()

    assert found("accumulation", model, train_step=train_step).verdict == "not examined"


def test_gradients_that_are_all_zero():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train_step():
        optimizer.zero_grad()
        (loss_of(model, *batch()) * 0.0).backward()
        optimizer.step()

    finding = found("accumulation", model, train_step=train_step)
    assert finding.verdict == "sick"
    assert finding.measured == "all gradients are exactly 0, in all 4 steps"


def test_sparse_gradients():
    model = nn.Sequential(nn.Embedding(V, 4, sparse=True), nn.Linear(4, V))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert found("accumulation", model, train_step=plain(model, optimizer)).verdict == "healthy"


def test_what_train_step_does_wrong_is_the_reason():
    model = tiny()

    def train_step():
        raise KeyError("no such batch")

    report = doctor.examine(model, vocab_size=V, train_step=train_step, only=["accumulation", "clipping", "finite"])
    assert {f.measured for f in report.findings} == {"train_step failed: KeyError: 'no such batch'"}
    finding = found("accumulation", model, train_step=lambda: loss_of(model, *batch()).backward())
    assert finding.measured == "train_step was called 16 times and made no step of an optimizer"
    assert "give batches" in found("accumulation", model, train_step=lambda batch: None).measured


# Clipping


@pytest.mark.parametrize(("asked", "verdict"), [(True, "healthy"), (False, "not examined")])
def test_a_scaler_that_is_off_does_no_harm(asked, verdict):
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def train_step():
        optimizer.zero_grad()
        scaler.scale(loss_of(model, *batch())).backward()
        if asked:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    assert found("clipping", model, train_step=train_step).verdict == verdict


def test_clipping_by_value_and_twice_is_healthy():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train_step():
        optimizer.zero_grad()
        loss_of(model, *batch()).backward()
        nn.utils.clip_grad_value_(model.parameters(), 1e-3)
        nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        optimizer.step()

    finding = found("clipping", model, train_step=train_step)
    assert finding.verdict == "healthy"
    assert finding.measured.startswith("value at 0.001 and norm at 1e+09, before the step; it bites in 4 of 8 calls")


def test_averaging_while_there_is_a_scale_is_no_clipping():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def train_step():
        optimizer.zero_grad()
        for _ in range(2):
            scaler.scale(loss_of(model, *batch())).backward()
        for parameter in model.parameters():
            parameter.grad /= 2
        scaler.step(optimizer)
        scaler.update()

    report = doctor.examine(model, vocab_size=V, train_step=train_step, only=["clipping", "accumulation"])
    assert report["accumulation"].verdict == "healthy", report["accumulation"]
    assert report["clipping"].verdict == "not examined", report["clipping"]


@pytest.mark.parametrize("unscaled", [True, False])
def test_a_fused_optimizer_takes_the_scale_out_itself(unscaled):
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def train_step():
        optimizer.zero_grad()
        for _ in range(2):
            scaler.scale(loss_of(model, *batch()) / 2).backward()
        if unscaled:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    report = doctor.examine(model, vocab_size=V, train_step=train_step, only=["accumulation", "clipping"])
    assert report["accumulation"].verdict == "healthy", report["accumulation"]
    assert report["accumulation"].value < 1e-6
    assert report["clipping"].verdict == ("healthy" if unscaled else "sick"), report["clipping"]


# Modes and numbers


def test_evaluation_mode_matters_only_where_something_depends_on_it():
    model = nn.Sequential(nn.Embedding(V, 4), nn.Linear(4, V))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert found("training-mode", model, train_step=plain(model, optimizer, before=model.eval)).verdict == "healthy"
    dropping = tiny()
    optimizer = torch.optim.SGD(dropping.parameters(), lr=0.1)
    finding = found("training-mode", dropping, train_step=plain(dropping, optimizer, before=dropping.eval))
    assert (finding.verdict, finding.where, finding.value) == ("sick", "Dropout", 1.0)


def test_a_model_that_was_given_in_evaluation_mode_is_trained_in_training_mode():
    """Its loop may call train() outside of train_step: that is not looked at."""
    model = tiny().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert found("training-mode", model, train_step=plain(model, optimizer)).verdict == "healthy"
    assert not model.training


def test_a_gradient_that_is_not_finite_is_found_where_the_loss_is():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def train_step():
        optimizer.zero_grad()
        x, y = batch()
        (loss_of(model, x, y) + (model.head.bias * 0).square().sum().sqrt()).backward()
        optimizer.step()

    finding = found("finite", model, train_step=train_step)
    assert finding.verdict == "sick", finding
    assert finding.measured == "at step 1 the loss is finite, and gradients of 1 parameter are not"
    assert finding.where == "head.bias"


def test_the_same_batch_is_only_asked_of_a_whole_script():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert found("same-batch", model, train_step=plain(model, optimizer)).verdict == "not examined"


MINE = [check for module in (steps, rates, groups, running) for check in module.CHECKS]


@pytest.mark.parametrize("check", MINE, ids=lambda check: check.name)
def test_demonstrations_run_by_themselves_and_show_a_difference(check):
    assert BY_NAME[check.name] is check
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(check.demonstration, check.name, "exec"), {})
    lines = printed.getvalue().splitlines()
    assert len(lines) >= 1
    assert len({line.rpartition(":")[2].strip() for line in lines}) == len(lines)
