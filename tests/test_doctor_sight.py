"""What the doctor sees of sight: models of many kinds, and which of the checks find something in each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from handmade import doctor
from handmade.doctor import Given, Patient
from handmade.doctor.tracing import reach_of

WIDTH, HEADS, VOCABULARY, CONTEXT = 16, 2, 23, 20
CHECKS = ("future", "past", "order", "context-end", "batch")


def turned(x: Tensor) -> Tensor:
    """Rotary positions."""
    place = torch.arange(x.shape[-2])[:, None] * 100.0 ** -torch.linspace(0, 1, x.shape[-1] // 2)
    cos, sin = place.cos().to(x), place.sin().to(x)
    one, other = x.chunk(2, -1)
    return torch.cat([one * cos - other * sin, one * sin + other * cos], -1)


class Attention(nn.Module):
    def __init__(self, mask: str = "causal", positions: str = "none", norm: int = -1) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mask, self.positions, self.norm = mask, positions, norm

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[1]
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if self.positions == "rotary":
            q, k = turned(q), turned(k)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        back = torch.arange(T)[:, None] - torch.arange(T)
        if self.positions == "distance":
            scores = scores - back.clamp(min=0) / 4
        hidden = {
            "causal": back < 0,
            "window": (back < 0) | (back > 4),
            "itself": back != 0,
            "transposed": back > 0,
            "one ahead": back < -1,
            "none": back > T,
            "in training alone": (back < 0) if self.training else back > T,
            "in evaluation alone": (back < 0) if not self.training else back > T,
        }.get(self.mask, back < 0)
        if self.mask == "a large number":
            scores = scores - 1e4 * hidden
        elif self.mask == "a small number":
            scores = scores - 10.0 * hidden
        elif self.mask != "after the softmax":
            scores = scores.masked_fill(hidden, -torch.inf)
        weights = scores.softmax(self.norm)
        if self.mask == "after the softmax":
            weights = weights.masked_fill(hidden, 0)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Linear(nn.Module):
    """Linear attention without positions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        sums, norm = (k[..., None] * v[..., None, :]).cumsum(1), (q * k.cumsum(1)).sum(-1, keepdim=True)
        return torch.einsum("btc,btcd->btd", q, sums) / norm


class Convolution(nn.Module):
    def __init__(self, pad: str, dilation: int = 1) -> None:
        super().__init__()
        self.reach, self.pad = 2 * dilation, pad
        padding = {"left": 0, "cut": self.reach, "both": dilation}[pad]
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=padding, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(1, 2)
        y = self.conv(F.pad(y, (self.reach, 0)) if self.pad == "left" else y)
        return y[..., : x.shape[1]].transpose(1, 2)


class Fourier(nn.Module):
    """A causal convolution as long as the row: it rounds everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(WIDTH, 512) / 8)

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[1]
        product = torch.fft.rfft(x.transpose(1, 2), 2 * T) * torch.fft.rfft(self.kernel[:, :T], 2 * T)
        return torch.fft.irfft(product, 2 * T)[..., :T].transpose(1, 2)


class Shift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 1, -1))


class Recurrent(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, WIDTH, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class Norm(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(self.axes, keepdim=True)) / (x.std(self.axes, keepdim=True) + 1e-3)


class Model(nn.Module):
    """Blocks of something that mixes positions, and something that does not."""

    context = CONTEXT

    def __init__(self, mix: Callable[[int], nn.Module], positions: str = "none", norm: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.mixes = nn.ModuleList([mix(layer) for layer in range(2)])
        self.norms = nn.ModuleList([norm or nn.LayerNorm(WIDTH) for _ in range(2)])
        self.dense = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))] * 2)
        self.head, self.positions = nn.Linear(WIDTH, VOCABULARY), positions
        self.dropout = nn.Dropout(0.1)
        for one in self.parameters():
            if one.dim() > 1:
                nn.init.normal_(one, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        h, place = self.token(x), torch.arange(x.shape[1])
        if self.positions == "wrapped":
            place = place % CONTEXT
        elif self.positions == "held":
            place = place.clamp(max=CONTEXT - 1)
        h = h + self.place(place) if self.positions != "none" else h
        for mix, norm, dense in zip(self.mixes, self.norms, self.dense, strict=True):
            h = h + self.dropout(mix(norm(h)))
            h = h + dense(h)
        return self.head(h)


# What it is -> the model, and what is found.
KINDS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "learned": (lambda: Model(lambda _: Attention(), "learned"), ""),
    "wrapped": (lambda: Model(lambda _: Attention(), "wrapped"), "context-end"),
    "held": (lambda: Model(lambda _: Attention(), "held"), "context-end"),
    "no positions": (lambda: Model(lambda _: Attention()), "order"),
    "no positions, a window": (lambda: Model(lambda _: Attention("window")), "order"),
    "linear attention": (lambda: Model(lambda _: Linear()), "order"),
    "rotary": (lambda: Model(lambda _: Attention(positions="rotary")), ""),
    "rotary in the second layer": (lambda: Model(lambda i: Attention(positions=["", "rotary"][i])), ""),
    "rotary, a window": (lambda: Model(lambda _: Attention("window", "rotary")), ""),
    "by distance": (lambda: Model(lambda _: Attention(positions="distance")), ""),
    "masked with -10000": (lambda: Model(lambda _: Attention("a large number", "rotary")), ""),
    "masked with -10": (lambda: Model(lambda _: Attention("a small number", "rotary")), "future"),
    "not masked": (lambda: Model(lambda _: Attention("none", "rotary")), "future"),
    "one ahead": (lambda: Model(lambda _: Attention("one ahead", "rotary")), "future"),
    "masked late": (lambda: Model(lambda _: Attention("after the softmax", "rotary")), "future"),
    "masked in training": (lambda: Model(lambda _: Attention("in training alone", "rotary")), "future"),
    "masked in evaluation": (lambda: Model(lambda _: Attention("in evaluation alone", "rotary")), "future"),
    "softmax over queries": (lambda: Model(lambda _: Attention(norm=-2)), "future"),
    "transposed": (lambda: Model(lambda _: Attention("transposed", "rotary")), "future"),
    "itself": (lambda: Model(lambda _: Attention("itself", "learned")), "past"),
    "nothing mixes": (lambda: Model(lambda _: nn.Linear(WIDTH, WIDTH)), "past"),
    "padded left": (lambda: Model(lambda _: Convolution("left")), ""),
    "cut": (lambda: Model(lambda _: Convolution("cut", 2)), ""),
    "padded on both sides": (lambda: Model(lambda _: Convolution("both")), "future"),
    "fourier": (lambda: Model(lambda _: Fourier()), ""),
    "shift": (lambda: Model(lambda _: Shift()), ""),
    "recurrent": (lambda: Model(lambda _: Recurrent(batch_first=True)), ""),
    "batch second": (lambda: Model(lambda _: Recurrent(), "learned"), "batch"),
    "normed over time": (lambda: Model(lambda _: Attention(), "learned", Norm(1)), "future"),
    "normed over time and features": (lambda: Model(lambda _: Attention(), "learned", Norm(1, 2)), "future"),
    "normed over rows": (lambda: Model(lambda _: Attention(), "learned", Norm(0)), "batch"),
    "normed over everything": (lambda: Model(lambda _: Attention(), "learned", Norm(0, 1, 2)), "batch"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_what_it_has_and_nothing_else(kind: str) -> None:
    make, expected = KINDS[kind]
    report = doctor.examine(make(), only=CHECKS)
    assert report.sick == ([expected] if expected else []), report.findings
    assert report.suspicious == []
    if not expected:
        assert not report.of("not examined")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["rotary", "no positions", "not masked"])
def test_the_type_of_numbers_changes_nothing(kind: str, dtype: torch.dtype) -> None:
    make, expected = KINDS[kind]
    report = doctor.examine(make().to(dtype), only=CHECKS)
    assert report.sick == ([expected] if expected else [])
    assert not report.of("not examined")


def zeroed(model: nn.Module) -> nn.Module:
    """All that ends a branch begins at zero, as in many models."""
    for name, one in model.named_parameters():
        if name.endswith(("out.weight", "2.weight", "head.weight")):
            nn.init.zeros_(one)
    return model


def test_zeros_hide_nothing() -> None:
    for kind in ("not masked", "no positions", "rotary"):
        make, expected = KINDS[kind]
        assert doctor.examine(zeroed(make()), only=CHECKS).sick == ([expected] if expected else [])


def test_saturated_scores_hide_nothing() -> None:
    for kind in ("not masked", "rotary"):
        make, expected = KINDS[kind]
        model = make()
        for name, one in model.named_parameters():
            if name.endswith("qkv.weight"):
                one.data *= 1e4
        assert doctor.examine(model, only=CHECKS).sick == ([expected] if expected else [])


# future


class Adds(nn.Module):
    """A table of pairs to which something is added."""

    def __init__(self, leak: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, VOCABULARY)
        self.leak = leak

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x)
        return h + self.leak(x, h)


def test_a_leak_without_a_gradient_is_seen_by_value() -> None:
    report = doctor.examine(Adds(lambda x, h: F.one_hot(x.roll(-1, 1), VOCABULARY)), only=["future"])
    assert report.sick == ["future"]


def test_a_leak_without_a_value_is_seen_by_gradient() -> None:
    report = doctor.examine(Adds(lambda x, h: h.roll(-1, 1) - h.roll(-1, 1).detach()), only=["future"])
    assert report.sick == ["future"]
    assert report["future"].value == pytest.approx(1, rel=1)


def test_a_leak_that_is_tiny_is_none() -> None:
    """Rounding is not sight."""
    assert doctor.examine(Adds(lambda x, h: 1e-7 * h.mean(1, keepdim=True)), only=["future"]).sick == []
    assert doctor.examine(Adds(lambda x, h: 1e-3 * h.mean(1, keepdim=True)), only=["future"]).sick == ["future"]


@pytest.mark.parametrize(
    ("look_up", "seen"),
    [
        (lambda table, x: F.embedding(x, table), True),
        (lambda table, x: table[x], True),
        (lambda table, x: F.one_hot(x, VOCABULARY).float() @ table, True),
        (lambda table, x: table.index_select(0, x.flatten()).unflatten(0, x.shape), True),
        (lambda table, x: table.detach()[x - 1 + 1] * 2, True),
        (lambda table, x: torch.stack([torch.stack([table[i] for i in row]) for row in x.tolist()]), False),
    ],
)
def test_the_gradient_is_taken_however_tokens_are_looked_up(look_up: Any, seen: bool) -> None:
    table = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    patient = Patient(Given(lambda x: look_up(table, x).cumsum(1) @ table.T, vocab_size=VOCABULARY, context=CONTEXT))
    assert patient.failure is None
    found = reach_of(patient, patient.tokens(2, 5), [0, 3])
    assert (found is not None) == seen
    if found is not None:
        assert (found > 0).tolist() == [[True, False, False, False, False], [True, True, True, True, False]]


def test_the_module_that_leaks_first_is_named() -> None:
    mixed = Model(lambda layer: Attention(["causal", "none"][layer], "rotary"))
    assert doctor.examine(mixed, only=["future"])["future"].where == "mixes.1 (Attention)"
    padded = doctor.examine(Model(lambda _: Convolution("both")), only=["future"])
    assert padded["future"].where == "mixes.0.conv (Conv1d)"
    training = doctor.examine(KINDS["masked in evaluation"][0](), only=["future"])["future"]
    assert training.where == "mixes.0 (Attention)"
    assert "in training mode" in training.measured


# past


def test_modules_that_were_never_called_are_named() -> None:
    class Forgets(Model):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.dense[0](self.token(x)), self.head.weight)  # the head is not called, and used

    finding = doctor.examine(Forgets(lambda _: Attention(), "learned"), only=["past"])["past"]
    assert finding.verdict == "sick"
    assert finding.where == "place"
    assert "place, mixes.0, mixes.1, norms.0" in finding.cause


def test_how_far_back_is_said() -> None:
    for mix, reach in (
        (Attention, 18),
        (lambda: Convolution("left"), 4),
        (lambda: Convolution("left", 3), 12),
        (Shift, 2),
    ):
        measured = doctor.examine(Model(lambda _, mix=mix: mix()), only=["past"])["past"].measured
        assert f"up to {reach} of 18 positions back" in measured


# What was meant


@pytest.mark.parametrize(
    ("kind", "check", "declared", "sick"),
    [
        ("not masked", "future", {"causal": False}, False),
        ("not masked", "future", {"causal": True}, True),
        ("learned", "future", {"causal": False}, False),
        ("nothing mixes", "past", {"past": False}, False),
        ("learned", "past", {"past": False}, True),
        ("no positions", "order", {"positions": False}, False),
        ("no positions", "order", {"positions": True}, True),
        ("learned", "order", {"positions": False}, True),
    ],
)
def test_what_was_meant_decides(kind: str, check: str, declared: dict[str, bool], sick: bool) -> None:
    finding = doctor.examine(KINDS[kind][0](), only=[check], expect=declared)[check]
    assert (finding.verdict == "sick") == sick, finding


# Functions


def test_functions_are_seen_into_as_well() -> None:
    torch.manual_seed(0)
    E, P, W = (torch.randn(*shape) / 4 for shape in ((VOCABULARY, WIDTH), (CONTEXT, WIDTH), (3, WIDTH, 3 * WIDTH)))

    def answer(x: Tensor, kind: str) -> Tensor:
        T = x.shape[1]
        h = E[x] + (P[torch.arange(T) % CONTEXT] if kind == "wrapped" else 0)
        for w in W:
            q, k, v = (h @ w).chunk(3, -1)
            q, k = (turned(q), turned(k)) if kind == "rotary" else (q, k)
            scores = (q @ k.mT / 4).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
            h = h + scores.softmax(-1) @ v
        return h @ E.T

    for kind, expected in (("rotary", []), ("none", ["order"]), ("wrapped", ["context-end"])):
        found = doctor.examine(
            lambda x, kind=kind: answer(x, kind), only=CHECKS, vocab_size=VOCABULARY, context=CONTEXT
        )
        assert found.sick == expected, found.findings


# context-end


def test_rows_of_one_token_have_to_work() -> None:
    class Squeezed(Model):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.shape[1] > 1 else super().forward(x.squeeze())

    finding = doctor.examine(Squeezed(lambda _: Attention(), "learned"), only=["context-end"])["context-end"]
    assert finding.verdict == "sick"
    assert "a row of one token fails" in finding.measured


def test_a_context_that_is_stated_has_to_be_there() -> None:
    finding = doctor.examine(KINDS["learned"][0](), context=50, only=["context-end"])["context-end"]
    assert finding.verdict == "sick"
    assert (finding.value, finding.limit) == (CONTEXT, 50)


def test_a_context_that_nobody_states_has_no_end_or_an_error_at_it() -> None:
    recurrent = KINDS["recurrent"][0]()
    recurrent.context = None
    assert "none was found" in doctor.examine(recurrent, only=["context-end"])["context-end"].measured
    learned = KINDS["learned"][0]()
    learned.context = None
    assert (
        "longer ones are refused: IndexError" in doctor.examine(learned, only=["context-end"])["context-end"].measured
    )


# batch


def test_causal_over_the_batch_is_seen_in_the_last_row() -> None:
    """Of an LSTM that reads down the batch, the first row sees nothing of the others."""
    found = doctor.examine(Model(lambda _: Recurrent()), only=["batch"], expect={"time_first": False})
    assert found.sick == ["batch"]


def test_tokens_with_time_first_are_a_question_for_a_recurrent_layer() -> None:
    model = Model(lambda _: Recurrent())
    found = doctor.examine(model, only=["batch"])["batch"]
    assert found.verdict == "suspicious"
    assert found.where == "mixes.0.rnn"
    assert doctor.examine(model, only=["batch"], expect={"time_first": True})["batch"].verdict == "healthy"
    batch = torch.zeros(3, CONTEXT, dtype=torch.long)
    assert doctor.examine(model, only=["batch"], batches=[(batch, batch)]).sick == ["batch"]
    assert doctor.examine(model, only=["batch"], batches=[(batch.T, batch.T)])["batch"].verdict == "healthy"


def test_a_batch_norm_is_a_fault_where_every_position_is_answered() -> None:
    class Normed(nn.Module):
        def __init__(self, last: bool) -> None:
            super().__init__()
            self.token, self.norm = nn.Embedding(VOCABULARY, WIDTH), nn.BatchNorm1d(WIDTH)
            self.head, self.last = nn.Linear(WIDTH, VOCABULARY), last

        def forward(self, x: Tensor) -> Tensor:
            y = self.head(self.norm(self.token(x).cumsum(1).transpose(1, 2)).transpose(1, 2))
            return y[:, -1] if self.last else y

    report = doctor.examine(Normed(last=False), only=["batch", "future"])
    assert report.sick == ["batch"]
    assert report["batch"].where == "norm"
    assert "look at `batch`" in report["future"].measured
    assert doctor.examine(Normed(last=True), only=["batch"])["batch"].verdict == "healthy"
