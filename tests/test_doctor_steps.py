"""The checks of a training step where the zoo does not reach: what looks odd and is healthy, and what was meant."""

from __future__ import annotations

import contextlib
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from handmade import doctor
from handmade.doctor import courses
from handmade.doctor.checks import BY_NAME, groups, rates, running, steps
from handmade.doctor.checks.groups import DEFAULT_DECAY

V = 11


class Tiny(nn.Module):
    """A model with something of every kind that a decay may fall on."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(V, width)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, V)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.embedding(x))))


def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


def batch(rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randint(V, (rows, 6))
    return x[:, :-1], x[:, 1:]


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor, **options: object) -> torch.Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), **options)  # type: ignore[arg-type]


def found(check: str, model: nn.Module | None = None, **given: object) -> doctor.Finding:
    return doctor.examine(model, only=[check], vocab_size=V, context=8, **given)[check]


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, after=lambda: None, before=lambda: None):
    """A train_step with nothing wrong."""

    def train_step():
        before()
        optimizer.zero_grad()
        loss_of(model, *batch()).backward()
        optimizer.step()
        after()

    return train_step


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


# The schedule


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


# What the optimizer holds


def test_a_frozen_parameter_may_be_missing_and_a_declared_one_too():
    model = tiny()
    model.embedding.weight.requires_grad_(False)
    rest = [*model.norm.parameters(), *model.head.parameters()]
    assert found("optimizer", model, optimizer=torch.optim.SGD(rest, lr=0.1)).verdict == "healthy"
    model.embedding.weight.requires_grad_(True)
    finding = found("optimizer", model, optimizer=torch.optim.SGD(rest, lr=0.1))
    assert finding.verdict == "sick"
    assert finding.where == "embedding.weight"
    optimizer = torch.optim.SGD(rest, lr=0.1)
    assert found("optimizer", model, optimizer=optimizer, expect={"frozen": ["embedding"]}).verdict == "healthy"


def test_a_wrapper_and_a_list_are_looked_into():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = tiny()
    first = torch.optim.SGD([*model.embedding.parameters(), *model.norm.parameters()], lr=0.1)
    second = Wrapper(torch.optim.Adam(model.head.parameters()))
    assert found("optimizer", model, optimizer=[first, second]).verdict == "healthy"
    assert found("optimizer", model, optimizer=second).verdict == "sick"
    assert found("optimizer", model, optimizer="AdamW").measured == "optimizer: a str has no param_groups"


def test_a_tied_weight_is_one_parameter():
    model = tiny()
    model.head.weight = model.embedding.weight
    assert found("optimizer", model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)).verdict == "healthy"
    with pytest.warns(UserWarning, match="duplicate"):
        twice = torch.optim.SGD([*model.embedding.parameters(), *model.head.parameters(), *model.norm.parameters()])
    finding = found("optimizer", model, optimizer=twice)
    assert finding.verdict == "sick"
    assert "more than once" in finding.measured


def split(model: nn.Module, decayed: list[nn.Parameter], decay: float = 0.1) -> torch.optim.Optimizer:
    known = {id(one) for one in decayed}
    rest = [one for one in model.parameters() if id(one) not in known]
    return torch.optim.AdamW([{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}])


def test_embeddings_may_be_decayed_or_not():
    model = tiny()
    matrices = [one for one in model.parameters() if one.dim() >= 2]
    assert found("weight-decay", model, optimizer=split(model, matrices)).verdict == "healthy"
    assert found("weight-decay", model, optimizer=split(model, [model.head.weight])).verdict == "healthy"


@pytest.mark.parametrize(
    ("decay", "expect", "verdict"),
    [
        (0.0, {}, "healthy"),
        (DEFAULT_DECAY, {}, "healthy"),
        (DEFAULT_DECAY, {"decayed": False}, "sick"),
        (0.1, {}, "sick"),
        (0.1, {"decayed": True}, "healthy"),
        (0.1, {"decayed": ["norm", "head.bias"]}, "healthy"),
        (0.1, {"decayed": ["norm"]}, "sick"),
    ],
)
def test_one_decay_for_all(decay, expect, verdict):
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=decay)
    finding = found("weight-decay", model, optimizer=optimizer, expect=expect)
    assert finding.verdict == verdict, finding
    if verdict == "sick":
        assert finding.value == decay


def test_torch_s_default_is_the_one_that_is_let_pass():
    assert torch.optim.AdamW(tiny().parameters()).defaults["weight_decay"] == DEFAULT_DECAY


def test_a_split_that_went_wrong_is_sick_however_small_the_decay():
    model = tiny()
    finding = found("weight-decay", model, optimizer=split(model, [model.head.weight, model.norm.weight], 1e-3))
    assert finding.verdict == "sick"
    assert finding.where == "norm.weight"


def test_a_norm_with_a_gain_of_two_axes_is_a_norm():
    class Normed(Tiny):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm((5, 8))

    model = Normed()
    finding = found("weight-decay", model, optimizer=split(model, [p for p in model.parameters() if p.dim() >= 2]))
    assert finding.verdict == "sick"
    assert finding.where == "norm.weight, norm.bias"


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
