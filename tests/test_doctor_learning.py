"""Whether a model can learn one batch, and whether a person's own steps teach it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from handmade import doctor
from handmade.doctor.checks.learning import CHECKS, CLEARLY, HARDLY, RATES, Adam, Batch
from handmade.doctor.given import Given
from handmade.doctor.patient import Patient

V = 11


class Recurrent(nn.Module):
    """A little GRU, with something after its head."""

    def __init__(self, vocabulary: int = V, end: Callable[[Tensor], Tensor] = lambda z: z) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(vocabulary, 16)
        self.rnn = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, vocabulary)
        self.end = end

    def forward(self, tokens: Tensor) -> Tensor:
        return self.end(self.head(self.rnn(self.embedding(tokens))[0]))


class Bigram(nn.Module):
    """A table of logits: it sees the last token alone."""

    def __init__(self, vocabulary: int = V) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, vocabulary)
        nn.init.zeros_(self.table.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)


class LastAlone(nn.Module):
    """An MLP over four tokens that says the next one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, 8)
        self.net = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, V))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(self.embedding(tokens[:, -4:]).flatten(1))


def found(model: Any, **given: Any) -> doctor.Finding:
    given = {"vocab_size": V, "context": 8, **given}
    return doctor.examine(model, only=["one-batch"], **given)["one-batch"]


def frozen(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (Recurrent(), {}),
        (Recurrent().double(), {}),
        (Bigram(), {}),
        (Bigram(500), {"vocab_size": 500}),
        (LastAlone(), {}),
        (Recurrent(end=lambda z: z.softmax(-1)), {}),
        (Recurrent(end=lambda z: z.transpose(1, 2)), {}),
    ],
    ids=["GRU", "float64", "bigram", "large bigram", "last position", "probabilities", "(B, V, T)"],
)
def test_whatever_can_learn_is_healthy(model: nn.Module, given: dict[str, Any]) -> None:
    finding = found(model, **given)
    assert finding.verdict == "healthy", finding
    assert finding.value is not None
    assert finding.value >= CLEARLY


@pytest.mark.parametrize(
    "model",
    [
        frozen(Recurrent()),
        Recurrent(end=lambda z: z.sigmoid()),
        Recurrent(end=lambda z: z * 0 + z.detach()),
        Recurrent(end=lambda z: z.clamp(-0.5, 0.5)),
        Recurrent(end=lambda z: torch.tanh(z.mean(1, keepdim=True).expand_as(z))),
    ],
    ids=["frozen", "sigmoid", "detached", "clamped", "the same everywhere"],
)
def test_what_cannot_learn_is_sick(model: nn.Module) -> None:
    finding = found(model)
    assert finding.verdict == "sick", finding


def test_a_function_is_not_examined() -> None:
    finding = found(lambda tokens: F.one_hot(tokens, V).float())
    assert finding.verdict == "not examined"
    assert "function" in finding.measured


def test_the_floor_is_what_a_bigram_pays() -> None:
    tokens = torch.tensor([[1, 2, 1, 3, 1, 2]])
    patient = Patient(Given(model=Bigram(), vocab_size=V, context=8))
    batch = Batch(patient, (tokens[:, :-1], tokens[:, 1:]))
    # After 1 comes 2, 3, 2; after 2 and 3 comes 1.
    thirds = -(2 / 3 * torch.tensor(2 / 3).log() + 1 / 3 * torch.tensor(1 / 3).log())
    assert batch.floors == pytest.approx([float(thirds) * 3 / 5])
    assert batch.before == pytest.approx([float(torch.tensor(float(V)).log())])


def test_the_steps_of_ours_are_those_of_adam() -> None:
    ours, theirs = nn.Linear(3, 3), nn.Linear(3, 3)
    theirs.load_state_dict(ours.state_dict())
    mine = Adam(list(ours.parameters()), RATES[0])
    reference = torch.optim.Adam(theirs.parameters(), lr=RATES[0], betas=(0.9, 0.95))
    for step in range(5):
        for model, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            (model(torch.full((2, 3), step + 1.0)).sin().sum() * 9).backward()
            if optimizer is reference:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# The person's own steps


def training(model: nn.Module, optimizer: Any, *, order: str = "zbs", scale: float = 1.0, draw: bool = False) -> Any:
    """A train step: z zero_grad, b backward, s step, in this order."""
    text = torch.randint(V, (4, 9), generator=torch.Generator().manual_seed(0))

    def step(batch: tuple[Tensor, Tensor]) -> None:
        x, y = batch
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten()) * scale
        for letter in order:
            {"z": optimizer.zero_grad, "b": loss.backward, "s": optimizer.step}[letter]()

    def drawing() -> None:
        rows = text[torch.randperm(4)[:2]]
        step((rows[:, :-1], rows[:, 1:]))

    if draw:
        return {"train_step": drawing}
    return {"train_step": step, "batches": lambda: (text[:, :-1], text[:, 1:])}


@pytest.mark.parametrize("draw", [False, True])
def test_own_steps_that_teach_are_healthy(draw: bool) -> None:
    model = Recurrent()
    finding = found(model, **training(model, torch.optim.Adam(model.parameters(), lr=0.03), draw=draw))
    assert finding.verdict == "healthy"
    assert "your" in finding.measured
    assert "Adam" not in finding.measured  # ours was not needed


@pytest.mark.parametrize("draw", [False, True])
@pytest.mark.parametrize(("order", "rate"), [("zb", 0.03), ("bzs", 0.03), ("zbs", 0.0)])
def test_steps_that_move_no_weight_are_sick(order: str, rate: float, draw: bool) -> None:
    model = Recurrent()
    finding = found(model, **training(model, torch.optim.Adam(model.parameters(), lr=rate), order=order, draw=draw))
    assert finding.verdict == "sick"
    assert "no weight has moved" in finding.measured


def test_an_optimizer_of_another_model_is_found_without_a_train_step() -> None:
    assert found(Recurrent(), optimizer=torch.optim.SGD(Recurrent().parameters(), lr=0.1)).verdict == "sick"
    model = Recurrent()
    assert found(model, optimizer=torch.optim.Adam(model.parameters(), lr=0.03)).verdict == "healthy"


@pytest.mark.parametrize("draw", [False, True])
@pytest.mark.parametrize(("scale", "rate"), [(-1.0, 0.03), (1.0, 50.0)])
def test_steps_that_make_it_worse_are_sick(scale: float, rate: float, draw: bool) -> None:
    model = Recurrent()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    finding = found(model, **training(model, optimizer, scale=scale, draw=draw))
    assert finding.verdict == "sick"
    assert "larger" in finding.cause


def test_a_slow_rate_is_no_fault_and_a_tiny_one_is_a_question() -> None:
    model = Recurrent()
    slow = found(model, **training(model, torch.optim.SGD(model.parameters(), lr=0.05)))
    assert slow.verdict == "healthy"
    assert slow.value is not None
    assert HARDLY < slow.value < CLEARLY
    tiny = torch.optim.Adam(model.parameters(), lr=1e-9)
    finding = found(model, **training(model, tiny))
    assert finding.verdict == "suspicious"
    assert "`schedule`" in finding.question


def test_a_warm_up_is_no_fault() -> None:
    model = Recurrent()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-9)
    given = training(model, optimizer)
    stated = found(model, **given, schedule=lambda step: 1e-3 * min(1.0, step / 10_000), steps=100_000)
    assert stated.verdict == "healthy"
    inner = given["train_step"]

    def warming(batch: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] += 1e-10
        inner(batch)

    assert found(model, **{**given, "train_step": warming}).verdict == "healthy"


def test_nothing_is_left_of_the_steps() -> None:
    model = Recurrent()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    found(model, optimizer=optimizer, **training(model, optimizer))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(generator, torch.get_rng_state())


def test_a_step_over_too_much_is_not_taken() -> None:
    model = Recurrent(vocabulary=200)
    model.rest = nn.Parameter(torch.zeros(3_000_000))
    called = []

    def step() -> None:
        model(torch.zeros(64, 64, dtype=torch.long))
        called.append(1)

    report = doctor.examine(model, vocab_size=200, context=8, train_step=step, only=["one-batch"])
    assert not called
    assert "4,096 tokens" in " ".join(report.notes)
    assert "your" not in report["one-batch"].measured


def test_the_demonstration_runs_and_shows_something() -> None:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(compile(CHECKS[0].demonstration, "one-batch", "exec"), {})
    logits, squashed = (float(line.split()[-1]) for line in shown.getvalue().splitlines())
    assert logits < 0.5 * squashed
