"""What is said of a loss: which token it asks for, what goes into it, what it is divided by, what it leaves out."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from handmade import doctor
from handmade.doctor import checks
from handmade.doctor.checks.losses import CHECKS

V = 11


class Model(nn.Module):
    """A little GRU that returns logits."""

    def __init__(self, vocabulary: int = V, width: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Any:
        return self.head(self.dropout(self.rnn(self.embedding(tokens))[0]))


def flat(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return logits.flatten(0, 1), targets.flatten()


def entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(*flat(logits, targets))


def each(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")


def rows(vocabulary: int = V, count: int = 4, length: int = 13, seed: int = 0) -> Tensor:
    return torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))


def found(name: str, model: Any = None, **given: Any) -> doctor.Finding:
    given = {"vocab_size": V, "context": 8, **given}
    return doctor.examine(Model() if model is None else model, only=[name], **given)[name]


# loss-input, loss-mean, loss-padding: one table of losses

LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], dict[str, str]]] = {
    "cross-entropy": (entropy, {}),
    "sum": (lambda z, y: F.cross_entropy(*flat(z, y), reduction="sum"), {}),
    "label smoothing": (lambda z, y: F.cross_entropy(*flat(z, y), label_smoothing=0.2), {}),
    "z-loss": (lambda z, y: entropy(z, y) + 1e-4 * z.logsumexp(-1).square().mean(), {}),
    "soft cap": (lambda z, y: entropy(30 * torch.tanh(z / 30), y), {}),
    "log-softmax twice": (lambda z, y: entropy(z.log_softmax(-1), y), {}),
    "nll of log-softmax": (lambda z, y: F.nll_loss(*flat(z.log_softmax(-1), y)), {}),
    "sum over scored / count": (lambda z, y: each(z, y).sum() / (y != -100).sum(), {}),
    "softmax first": (lambda z, y: entropy(z.softmax(-1), y), {"loss-input": "sick"}),
    "sigmoid first": (lambda z, y: entropy(z.sigmoid(), y), {"loss-input": "sick"}),
    "nll of logits": (lambda z, y: F.nll_loss(*flat(z, y)), {"loss-input": "sick", "loss-mean": "not examined"}),
    "nll of probabilities": (
        lambda z, y: F.nll_loss(*flat(z.softmax(-1), y)),
        {"loss-input": "sick", "loss-mean": "not examined"},
    ),
    "softmax over the batch": (
        lambda z, y: F.nll_loss(*flat(z.log_softmax(0), y)),
        {"loss-input": "sick", "loss-mean": "not examined"},
    ),
    "mean of rows": (lambda z, y: (each(z, y).sum(1) / (y != -100).sum(1)).mean(), {"loss-mean": "sick"}),
    "over all places": (lambda z, y: each(z, y).mean(), {"loss-mean": "sick"}),
    "padding counted": (
        lambda z, y: entropy(z, y.clamp_min(0)),
        {"loss-padding": "sick", "loss-mean": "not examined"},
    ),
    "no targets left out": (
        lambda z, y: -z.log_softmax(-1).gather(-1, y[..., None]).mean(),
        {"loss-padding": "not examined", "loss-mean": "not examined"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_judged_by_what_it_makes_of_made_up_logits(name: str) -> None:
    loss, expected = LOSSES[name]
    only = ["loss-input", "loss-mean", "loss-padding"]
    report = doctor.examine(Model(), vocab_size=V, context=8, loss=loss, only=only)
    assert {f.check: f.verdict for f in report.findings} == {one: expected.get(one, "healthy") for one in only}


@pytest.mark.parametrize("vocabulary", [2, 5, 500])
def test_the_floor_of_a_softmax_before_the_cross_entropy_is_the_one_of_the_formula(vocabulary: int) -> None:
    finding = found("loss-input", Model(vocabulary), vocab_size=vocabulary, loss=lambda z, y: entropy(z.softmax(-1), y))
    assert finding.verdict == "sick"
    floor = math.log1p((vocabulary - 1) / math.e) / math.log(vocabulary)
    assert finding.value == pytest.approx(floor, rel=1e-3)
    assert "softmax" in finding.cause


def test_softmax_over_time_is_told_from_softmax_over_the_batch() -> None:
    over_time = found("loss-input", loss=lambda z, y: F.nll_loss(*flat(z.log_softmax(1), y)))
    over_batch = found("loss-input", loss=lambda z, y: F.nll_loss(*flat(z.log_softmax(0), y)))
    assert (over_time.verdict, over_batch.verdict) == ("sick", "sick")
    assert "over time" in over_time.cause
    assert "over the batch" in over_batch.cause


class Ending(Model):
    """The same with something after the head."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.end = end

    def forward(self, tokens: Tensor) -> Tensor:
        return self.end(super().forward(tokens))


@pytest.mark.parametrize(
    ("end", "loss", "verdict"),
    [
        (lambda z: z.softmax(-1), entropy, "sick"),
        (lambda z: z.softmax(-1), lambda p, y: F.nll_loss(*flat(p.log(), y)), "healthy"),
        (lambda z: z.softmax(-1), lambda p, y: F.nll_loss(*flat(p, y)), "sick"),
        (lambda z: z.log_softmax(-1), entropy, "healthy"),
        (lambda z: z.log_softmax(-1), lambda p, y: F.nll_loss(*flat(p, y)), "healthy"),
    ],
)
def test_what_the_model_returns_and_what_the_loss_takes_have_to_fit(end: Any, loss: Any, verdict: str) -> None:
    assert found("loss-input", Ending(end), loss=loss).verdict == verdict


def hard_coded(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.view(4 * 12, V), targets.reshape(4 * 12))


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        lambda z, y: F.cross_entropy(z.transpose(1, 2), y),
        lambda z, y: {"loss": entropy(z, y), "accuracy": 0.0},
        lambda z, y: (entropy(z, y), 3),
        hard_coded,
    ],
    ids=["flattened", "transposed", "mapping", "tuple", "sizes written down"],
)
def test_a_loss_is_called_as_it_wants_to_be(loss: Any) -> None:
    text = rows()
    for name in ("targets", "loss-input", "loss-padding"):
        finding = found(name, loss=loss, batches=[(text[:, :-1], text[:, 1:])])
        assert finding.verdict == "healthy", finding


def test_a_loss_that_fails_or_is_no_number_is_not_examined() -> None:
    assert "ZeroDivisionError" in found("loss-input", loss=lambda z, y: 1 / 0).measured
    assert "no single number" in found("loss-input", loss=each).measured
    assert found("loss-input").verdict == "not examined"
    assert "no cross-entropy" in found("loss-input", loss=lambda z, y: z.square().mean()).measured


def test_a_batch_of_one_size_cannot_tell_a_sum_from_a_mean() -> None:
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        assert targets.shape == (3, 8)
        return each(logits, targets).mean()

    assert "cannot be told apart" in found("loss-mean", loss=loss).measured


# targets: data shift + loss shift


@pytest.mark.parametrize("in_loss", [0, 1])
@pytest.mark.parametrize("in_data", [-1, 0, 1, 2])
def test_one_shift_between_text_and_loss_is_healthy(in_data: int, in_loss: int) -> None:
    text, first, last = rows(), 2, 10
    batch = text[:, first:last], text[:, first + in_data : last + in_data]

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return entropy(logits[:, : logits.shape[1] - in_loss], targets[:, in_loss:])

    finding = found("targets", loss=loss, batches=lambda: batch)
    assert finding.verdict == ("healthy" if in_data + in_loss == 1 else "sick"), finding
    assert finding.value == in_data + in_loss


def test_targets_that_are_not_scored_do_not_count() -> None:
    text = rows(length=16)
    targets = text[:, 1:].clone()
    targets[:, :9] = -100
    assert found("targets", loss=entropy, batches=[(text[:, :-1], targets)]).verdict == "healthy"
    padded = text[:, 1:].clone()
    padded[:, 9:] = 0
    loss = nn.CrossEntropyLoss(ignore_index=0)
    assert found("targets", loss=loss, batches=[(text[:, :-1], padded)], padding=0).verdict == "healthy"


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (torch.full((4, 12), 3), "another task"),
        (rows(seed=5)[:, 1:], "another task"),
        (torch.tensor([1, 2, 3, 4]), "one target for every row"),
        (rows(count=4, length=9), "no shift of each other"),
    ],
)
def test_a_task_that_is_no_language_model_is_not_examined(targets: Tensor, said: str) -> None:
    finding = found("targets", loss=entropy, batches=[(rows()[:, :-1], targets)])
    assert finding.verdict == "not examined"
    assert said in finding.measured


def test_tokens_that_repeat_cannot_tell_shifts_apart() -> None:
    same = torch.full((4, 12), 3)
    finding = found("targets", loss=entropy, batches=[(same, same)])
    assert finding.verdict == "not examined"
    assert "repeat" in finding.measured


def test_the_last_token_as_the_only_target_is_sick() -> None:
    text = rows(count=8)
    assert found("targets", batches=[(text, text[:, -1])]).verdict == "sick"


def test_without_a_loss_the_batches_are_looked_at() -> None:
    text = rows()
    assert found("targets", batches=[(text[:, :-1], text[:, 1:])]).verdict == "healthy"
    finding = found("targets", batches=[(text, text.clone())])
    assert finding.verdict == "suspicious"
    assert "Give `loss` or `train_step`" in finding.question
    assert found("targets", batches=[(text[:, 1:], text[:, :-1])]).value == -1


def test_an_encoder_has_other_targets() -> None:
    text = rows()
    finding = found("targets", batches=[(text, text)], loss=entropy, expect={"causal": False})
    assert finding.verdict == "not examined"


def test_targets_of_a_model_that_takes_time_first_may_be_flat() -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.rnn, self.head = nn.Embedding(V, 8), nn.GRU(8, 8), nn.Linear(8, V)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.rnn(self.embedding(tokens))[0])

    text = rows(count=5, length=13).T.contiguous()
    loss = nn.CrossEntropyLoss()
    right = found("targets", TimeFirst(), loss=loss, batches=[(text[:-1], text[1:].reshape(-1))])
    wrong = found("targets", TimeFirst(), loss=loss, batches=[(text[:-1], text[:-1].reshape(-1))])
    assert (right.verdict, right.value) == ("healthy", 1)
    assert (wrong.verdict, wrong.value) == ("sick", 0)


# A model that returns its own loss


class Tied(nn.Module):
    """Its head is no module, its loss is a field of an object."""

    def __init__(self, shift: int = 1, of: str = "logits") -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, 16)
        self.rnn = nn.GRU(16, 16, batch_first=True)
        self.shift, self.of = shift, of

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        hidden = self.rnn(self.embedding(input_ids))[0]
        logits = hidden @ self.embedding.weight.T
        if labels is None:
            return SimpleNamespace(logits=logits, loss=None)
        scored = logits if self.of == "logits" else F.linear(hidden * 2, self.embedding.weight)
        loss = entropy(scored[:, : logits.shape[1] - self.shift], labels[:, self.shift :])
        return SimpleNamespace(logits=logits, loss=loss)


@pytest.mark.parametrize(("shift", "in_data"), [(1, 0), (0, 1), (0, 0), (1, 1)])
def test_a_model_may_shift_by_itself(shift: int, in_data: int) -> None:
    text = rows()
    batch = {"input_ids": text[:, :10], "labels": text[:, in_data : 10 + in_data]}
    finding = found("targets", Tied(shift), batches=[batch])
    assert finding.where == "the model's own loss"
    assert finding.value == shift + in_data
    assert finding.verdict == ("healthy" if shift + in_data == 1 else "sick")


def test_a_loss_of_other_logits_than_those_returned_is_not_examined() -> None:
    finding = found("loss-input", Tied(of="others"))
    assert finding.verdict == "not examined"
    assert "not taken from the logits" in finding.measured


# A train step


def stepper(model: nn.Module, loss: Callable[..., Tensor], take: bool) -> Any:
    """A train step that draws its own batch, or takes one; with a counter, and an optimizer with a state."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    text = rows(count=6)
    counts = {"steps": 0}

    def draw() -> tuple[Tensor, Tensor]:
        some = text[torch.randperm(6)[:4]]
        return some[:, :-1], some[:, 1:]

    def learn(batch: tuple[Tensor, Tensor]) -> None:
        counts["steps"] += 1
        optimizer.zero_grad()
        loss(model(batch[0]), batch[1]).backward()
        optimizer.step()

    step = learn if take else (lambda: learn(draw()))
    return SimpleNamespace(step=step, optimizer=optimizer, counts=counts, draw=draw)


@pytest.mark.parametrize("take", [True, False])
def test_a_loss_inside_a_train_step_is_seen_too(take: bool) -> None:
    model = Model()
    right = stepper(model, entropy, take)
    twice = stepper(model, lambda z, y: entropy(z[:, :-1], y[:, 1:]), take)
    batches = right.draw if take else None
    assert found("targets", model, train_step=right.step, batches=batches).verdict == "healthy"
    finding = found("targets", model, train_step=twice.step, batches=batches)
    assert (finding.verdict, finding.value, finding.where) == ("sick", 2, "train_step")


@pytest.mark.parametrize(("in_data", "verdict"), [(0, "healthy"), (1, "sick")])
def test_a_model_with_dropout_and_a_loss_of_its_own_is_seen_inside_a_train_step(in_data: int, verdict: str) -> None:
    model, text = Tied(), rows()
    model.rnn = nn.GRU(16, 16, num_layers=2, dropout=0.5, batch_first=True)

    def step() -> None:
        model.train()
        model(text[:, :10], labels=text[:, in_data : 10 + in_data]).loss.backward()

    finding = found("targets", model, train_step=step)
    assert (finding.verdict, finding.where) == (verdict, "train_step")


def test_a_mask_may_be_made_from_the_inputs() -> None:
    model = Model()

    def step(batch: tuple[Tensor, Tensor]) -> None:
        x, y = batch
        scored = x != 0
        ((each(model(x), y) * scored).sum() / scored.sum()).backward()

    text = rows()
    text[:, 7:] = 0
    batches = [(text[:, :-1], text[:, 1:])]
    for name in ("loss-padding", "loss-mean"):
        finding = found(name, model, train_step=step, batches=batches, padding=0)
        assert finding.verdict == "healthy", finding


def test_targets_can_be_chosen_for_a_train_step_that_takes_a_batch() -> None:
    model = Model()
    squashed = stepper(model, lambda z, y: entropy(z.softmax(-1), y), take=True)
    by_rows = stepper(model, lambda z, y: (each(z, y).sum(1) / (y != -100).sum(1)).mean(), take=True)
    own = stepper(model, entropy, take=False)
    finding = found("loss-input", model, train_step=squashed.step, batches=squashed.draw)
    assert (finding.verdict, finding.where) == ("sick", "train_step")
    assert found("loss-mean", model, train_step=by_rows.step, batches=by_rows.draw).verdict == "sick"
    finding = found("loss-input", model, train_step=own.step)
    assert "draws its own targets" in finding.measured


def test_nothing_is_left_of_a_train_step_that_was_run() -> None:
    model = Model()
    training = stepper(model, entropy, take=False)
    training.step()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    momentum = [state["momentum_buffer"].clone() for state in training.optimizer.state.values()]
    backward, generator = torch.autograd.backward, torch.get_rng_state()
    report = doctor.examine(model, vocab_size=V, context=8, train_step=training.step, optimizer=training.optimizer)
    assert report["targets"].verdict == "healthy"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    now = [state["momentum_buffer"] for state in training.optimizer.state.values()]
    assert all(map(torch.equal, momentum, now))
    assert training.counts == {"steps": 1}
    assert torch.equal(generator, torch.get_rng_state())
    assert torch.autograd.backward is backward
    assert "forward" not in vars(model)


# Padding, and averages in an evaluation


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({"padding": 0, "batches": "padded"}, "sick"),
        ({"padding": 0, "batches": "masked"}, "healthy"),
        ({"padding": 0}, "not examined"),
        ({}, "healthy"),
        ({"batches": "masked"}, "healthy"),
    ],
)
def test_the_batches_tell_what_is_not_scored(given: dict[str, Any], verdict: str) -> None:
    text = rows()
    text[:, 7:] = 0
    targets = text[:, 1:].clone()
    if given.get("batches") == "masked":
        targets[targets == 0] = -100
    given = {**given, "batches": [(text[:, :-1], targets)]} if "batches" in given else given
    assert found("loss-padding", loss=entropy, **given).verdict == verdict


@pytest.mark.parametrize(("weighted", "verdict"), [(True, "healthy"), (False, "sick")])
@pytest.mark.parametrize("perplexity", [True, False])
def test_an_evaluation_weighs_targets_and_not_batches(weighted: bool, perplexity: bool, verdict: str) -> None:
    model, text = Model(), rows(count=9)

    def evaluate() -> float:
        total, count = 0.0, 0
        for some in text.split(4):  # 4, 4, 1
            scored = some[:, 1:].numel() if weighted else 1
            total, count = total + entropy(model(some[:, :-1]), some[:, 1:]).item() * scored, count + scored
        return math.exp(total / count) if perplexity else total / count

    finding = found("loss-mean", model, evaluate=evaluate)
    assert finding.verdict == verdict
    assert finding.value == pytest.approx(1.0 if weighted else 4.0)


def test_batches_of_equal_size_need_no_weights() -> None:
    model, text = Model(), rows(count=8)

    def evaluate() -> float:
        return sum(entropy(model(some[:, :-1]), some[:, 1:]).item() for some in text.split(4)) / 2

    assert found("loss-mean", model, evaluate=evaluate).verdict == "healthy"


# What `--explain` shows


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_the_demonstration_runs_and_shows_something(check: doctor.Check) -> None:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(compile(check.demonstration, check.name, "exec"), {})
    assert len(shown.getvalue().splitlines()) >= 2
    assert checks.BY_NAME[check.name] is check
    assert check.idea
    assert check.reference
