"""What evaluation, best weights and checkpoints leave behind, and what the doctor leaves of them."""

from __future__ import annotations

import contextlib
import copy
import io
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from handmade import doctor
from handmade.doctor.checks.keeping import CHECKS

V = 11
TEXT = torch.randint(V, (8, 9), generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """A little model with dropout, and batch statistics where they are asked for."""

    def __init__(self, dropout: float = 0.2, norm: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, 16)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.BatchNorm1d(16) if norm else None
        self.head = nn.Linear(16, V)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.dropout(self.embedding(tokens).cumsum(1))
        if self.norm is not None:
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.head(x)


def loss_of(model: nn.Module, rows: Tensor = TEXT) -> Tensor:
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def found(name: str, model: nn.Module, **given: Any) -> doctor.Finding:
    return doctor.examine(model, vocab_size=V, context=8, only=[name], **given)[name]


# evaluation


def evaluating(
    model: nn.Module, inside: Callable[[], Any] = lambda: None, *, begin: bool = True, end: bool = True
) -> Any:
    def evaluate() -> float:
        if begin:
            model.eval()
        with torch.no_grad():
            value = float(loss_of(model))
        inside()
        if end:
            model.train()
        return value

    return evaluate


def test_an_evaluation_that_changes_nothing_is_healthy() -> None:
    model = Model()
    assert found("evaluation", model, evaluate=evaluating(model)).verdict == "healthy"
    assert found("evaluation", model, evaluate=lambda given: evaluating(given)()).verdict == "healthy"
    assert found("evaluation", model, evaluate=lambda: {"train": 1.0, "val": evaluating(model)()}).verdict == "healthy"


def draw_torch() -> None:
    torch.rand(1)


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        (draw_torch, "torch's generator"),
        (lambda: random.random(), "python's generator"),
        (lambda: np.random.rand(), "numpy's generator"),  # noqa: NPY002
        (lambda: torch.set_grad_enabled(False), "gradients are left off"),
    ],
)
def test_what_an_evaluation_changes_is_named(inside: Callable[[], Any], said: str) -> None:
    model = Model()
    finding = found("evaluation", model, evaluate=evaluating(model, inside))
    assert finding.verdict == "sick"
    assert said in finding.measured
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("own", "shuffle", "meant", "verdict"),
    [
        (True, False, None, "healthy"),
        (True, True, None, "healthy"),
        (False, False, None, "suspicious"),
        (False, False, True, "healthy"),
        (False, False, False, "sick"),
        (False, True, True, "sick"),
    ],
)
def test_the_seed_of_a_data_loader_is_asked_about(own: bool, shuffle: bool, meant: bool | None, verdict: str) -> None:
    """What it draws to shuffle is no such seed."""
    model, rows = Model(), list(range(6))
    generator = torch.Generator() if own else None

    def walk() -> None:
        assert len(list(DataLoader(rows, batch_size=2, shuffle=shuffle, generator=generator))) == 3

    expect = {} if meant is None else {"evaluation_draws": meant}
    finding = found("evaluation", model, evaluate=evaluating(model, walk), expect=expect)
    assert finding.verdict == verdict
    assert ("DataLoader" in finding.measured) == (not own and not shuffle)
    before = torch.get_rng_state()
    iter(DataLoader(rows))
    assert not torch.equal(before, torch.get_rng_state())  # nothing stays patched


def test_gradients_weights_and_averages_of_an_evaluation() -> None:
    model = Model(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def adds() -> None:
        loss_of(model).backward()

    def steps() -> None:
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()

    def halves_rate() -> None:
        optimizer.param_groups[0]["lr"] /= 2

    given = {"optimizer": optimizer}
    assert "gradients" in found("evaluation", model, evaluate=evaluating(model, adds), **given).measured
    assert "weights" in found("evaluation", model, evaluate=evaluating(model, steps), **given).measured
    finding = found("evaluation", model, evaluate=evaluating(model, halves_rate), **given)
    assert "the optimizer's state" in finding.measured
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert not optimizer.state


def test_training_mode_while_evaluating_is_named_as_such() -> None:
    with_dropout, with_norm = Model(), Model(dropout=0.0, norm=True)
    for model in (with_dropout, with_norm):
        finding = found("evaluation", model, evaluate=evaluating(model, begin=False))
        assert finding.verdict == "sick"
        assert "training mode while it is evaluated" in finding.measured
    assert "buffers" in finding.measured
    plain = Model(dropout=0.0)
    assert found("evaluation", plain, evaluate=evaluating(plain, begin=False)).verdict == "healthy"


def test_the_mode_that_is_left_matters_where_nobody_puts_it_back() -> None:
    model, plain = Model(), Model(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(train: bool) -> None:
        if train:
            model.train()
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()

    left = evaluating(model, end=False)
    finding = found("evaluation", model, evaluate=left)
    assert finding.verdict == "suspicious"
    assert "`train_step`" in finding.question
    assert found("evaluation", model, evaluate=left, train_step=lambda: step(True)).verdict == "healthy"
    assert found("evaluation", model, evaluate=left, train_step=lambda: step(False)).verdict == "sick"
    assert found("evaluation", plain, evaluate=evaluating(plain, end=False)).verdict == "healthy"


def test_generators_of_ones_own_count_if_training_draws_from_them() -> None:
    model, order, own = Model(), torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = TEXT[torch.randperm(8, generator=generator)[:4]]
        return rows[:, :-1], rows[:, 1:]

    def evaluate(generator: torch.Generator, seed: int | None) -> float:
        if seed is not None:
            generator.manual_seed(seed)
        model.eval()
        x, y = batch(generator)
        with torch.no_grad():
            value = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        model.train()
        return float(value)

    given = {"batches": lambda: batch(order)}
    shared = found("evaluation", model, evaluate=lambda: evaluate(order, None), **given)
    assert shared.verdict == "sick"
    assert "order" in shared.measured
    part = found("evaluation", model, evaluate=lambda: evaluate(own, None), **given)
    assert part.verdict == "suspicious"
    assert "luckiest" in part.cause
    assert found("evaluation", model, evaluate=lambda: evaluate(own, 3), **given).verdict == "healthy"
    assert order.initial_seed() == 1
    assert torch.equal(order.get_state(), torch.Generator().manual_seed(1).get_state())


def test_a_long_evaluation_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handmade.doctor.puppet.PATIENCE", 0.05)
    model = Model()

    def evaluate() -> float:
        began = time.thread_time()
        while time.thread_time() - began < 30:
            loss_of(model)
        return 0.0

    finding = found("evaluation", model, evaluate=evaluate)
    assert finding.verdict == "not examined"
    assert "takes more than" in finding.measured


# best weights


@pytest.mark.parametrize(
    ("keep", "verdict"),
    [
        (lambda model: model.state_dict(), "sick"),
        (lambda model: dict(model.state_dict()), "sick"),
        (lambda model: copy.copy(model), "sick"),
        (lambda model: {k: v.detach().cpu() for k, v in model.state_dict().items()}, "sick"),
        (lambda model: {k: v.detach().numpy() for k, v in model.named_parameters()}, "sick"),
        (lambda model: list(model.parameters()), "sick"),
        (lambda model: {"epoch": 3, "model": model.state_dict()}, "sick"),
        (lambda model: copy.deepcopy(model.state_dict()), "healthy"),
        (lambda model: copy.deepcopy(model), "healthy"),
        (lambda model: {k: v.detach().numpy().copy() for k, v in model.named_parameters()}, "healthy"),
        (lambda model: [p.detach().clone() for p in model.parameters()], "healthy"),
        (lambda model: {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}, "healthy"),
        (lambda model: None, "not examined"),
        (lambda model: "best.pt", "not examined"),
    ],
)  # fmt: skip
def test_what_is_kept_must_not_move(keep: Callable[[nn.Module], Any], verdict: str) -> None:
    model = Model()
    kept = keep(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert found("best-weights", model, best=lambda: kept).verdict == verdict
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_buffers_that_training_changes_have_to_be_kept_too() -> None:
    model = Model(norm=True)
    state = {name: v.clone() for name, v in model.named_parameters()} | dict(model.named_buffers())
    finding = found("best-weights", model, best=lambda: state)
    assert finding.verdict == "sick"
    assert "running" in finding.measured


def test_what_is_kept_only_by_an_evaluation_is_waited_for() -> None:
    model, kept = Model(), {}

    def evaluate() -> float:
        kept["state"] = model.state_dict()
        return 1.0

    assert found("best-weights", model, best=lambda: kept.get("state"), evaluate=evaluate).verdict == "sick"
    assert kept == {}


# checkpoints


class Session:
    """A training that can be saved and loaded, with something left out."""

    def __init__(self, without: str = "", model: nn.Module | None = None) -> None:
        torch.manual_seed(0)
        self.without = without
        self.model = Model() if model is None else model
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.order = torch.Generator().manual_seed(5)
        self.number = 0

    def batch(self) -> Tensor:
        return TEXT[torch.randperm(8, generator=self.order)[:4]]

    def step(self) -> None:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = 0.01 / (1 + self.number)
        self.number += 1
        self.optimizer.zero_grad()
        loss_of(self.model, self.batch()).backward()
        self.optimizer.step()

    def parts(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "number": self.number,
            "order": self.order.get_state(), "torch": torch.get_rng_state(),
        }  # fmt: skip

    def save(self, path: Any) -> None:
        torch.save({name: part for name, part in self.parts().items() if name != self.without}, path)

    def load(self, path: Any) -> None:
        parts = torch.load(path)
        for name, bring_back in (
            ("model", self.model.load_state_dict), ("optimizer", self.optimizer.load_state_dict),
            ("order", self.order.set_state), ("torch", torch.set_rng_state),
            ("number", lambda number: setattr(self, "number", number)),
        ):  # fmt: skip
            if name in parts:
                bring_back(parts[name])

    def given(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "train_step": self.step, "save": self.save, "load": self.load}


@pytest.mark.parametrize(
    ("without", "verdict", "said"),
    [
        ("", "healthy", "logits, optimizer, generators, the next step come back"),
        ("model", "sick", "tensors did not come back"),
        ("optimizer", "sick", "the optimizer comes back empty"),
        ("order", "sick", "order does not come back"),
        ("torch", "sick", "torch's generator does not come back"),
        ("number", "suspicious", "the next step differs"),
    ],
)
def test_what_does_not_come_back_has_a_name(without: str, verdict: str, said: str) -> None:
    session = Session(without)
    finding = found("checkpoint", session.model, **session.given())
    assert finding.verdict == verdict, finding
    assert said in finding.measured


def test_nothing_is_left_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    session = Session()
    session.step()
    before = copy.deepcopy(session.parts())
    assert found("checkpoint", session.model, **session.given()).verdict == "healthy"
    after = session.parts()
    assert list(tmp_path.iterdir()) == []
    assert after["number"] == before["number"] == 1
    for name in ("order", "torch"):
        assert torch.equal(after[name], before[name])
    assert all(torch.equal(after["model"][name], value) for name, value in before["model"].items())
    for index, state in before["optimizer"]["state"].items():
        assert all(torch.equal(after["optimizer"]["state"][index][name], value) for name, value in state.items())


def test_paths_and_folders_are_given_as_they_are_wanted() -> None:
    session = Session()

    def with_folder(path: Path) -> None:
        session.save(path / "state.pt")  # neither a text nor a folder that is not there yet

    given = {**session.given(), "save": with_folder, "load": lambda path: session.load(path / "state.pt")}
    assert found("checkpoint", session.model, **given).verdict == "healthy"

    def broken(path: Any) -> None:
        raise OSError("no space")

    finding = found("checkpoint", session.model, **{**given, "save": broken})
    assert finding.verdict == "not examined"
    assert "no space" in finding.measured


def test_an_optimizer_without_a_state_need_not_be_saved() -> None:
    model = Model(dropout=0.0)
    given = {
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "save": lambda path: torch.save(model.state_dict(), path),
        "load": lambda path: model.load_state_dict(torch.load(path)),
    }
    assert found("checkpoint", model, **given).verdict == "healthy"
    without = {name: given[name] for name in ("save", "load")}
    finding = found("checkpoint", model, **without)
    assert finding.verdict == "healthy"
    assert "only weights were seen" in finding.measured


@pytest.mark.parametrize(("without", "verdict"), [("", "healthy"), ("order", "sick")])
def test_the_order_of_the_data_is_looked_at_where_no_step_can_be_taken(without: str, verdict: str) -> None:
    session = Session(without)
    given = {"save": session.save, "load": session.load, "batches": lambda: (session.batch(),) * 2}
    assert found("checkpoint", session.model, **given).verdict == verdict


@pytest.mark.parametrize("whole", [True, False])
def test_another_model_that_load_returns_is_looked_at(whole: bool) -> None:
    model = Model()

    def load(path: Any) -> dict[str, Any]:
        other = Model()
        state = torch.load(path)
        other.load_state_dict(state if whole else {"head.bias": state["head.bias"]}, strict=whole)
        return {"model": other, "step": 3}

    finding = found("checkpoint", model, save=lambda path: torch.save(model.state_dict(), path), load=load)
    assert finding.verdict == ("healthy" if whole else "sick")
    assert whole or "load_state_dict missed 2" in finding.measured


def test_parts_that_torch_does_not_know_are_not_saved() -> None:
    class Listed(Model):
        def __init__(self) -> None:
            super().__init__()
            self.more = [nn.Linear(16, 16)]

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.more[0](self.embedding(tokens)))

    session = Session(model=Listed())
    finding = found("checkpoint", session.model, **session.given())
    assert finding.verdict == "sick"
    assert "more[0]" in finding.measured
    assert "nn.ModuleList" in finding.remedy


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_the_demonstration_runs_and_shows_something(check: doctor.Check) -> None:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(compile(check.demonstration, check.name, "exec"), {})
    assert len(shown.getvalue().splitlines()) >= 2
