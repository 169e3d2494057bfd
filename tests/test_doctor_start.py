"""`initial-loss`, `growth`, `half-precision`: how a model begins."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmade import doctor
from handmade.doctor import checks
from handmade.doctor.checks.start import excess
from handmade.doctor.flow import followed, repeated
from handmade.doctor.given import Given
from handmade.doctor.patient import Patient
from handmade.models.gpt import GPT, GPTConfig
from handmade.presets import PRESETS

T = 16
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def look(check: str, model: nn.Module, vocabulary: int = 40, **options: object) -> doctor.Finding:
    return doctor.examine(model, vocab_size=vocabulary, context=T, only=[check], **options)[check]


class Block(nn.Module):
    """Pre-norm, post-norm, or without norms."""

    def __init__(self, width: int, placement: str) -> None:
        super().__init__()
        self.placement = placement
        self.norm = nn.LayerNorm(width) if placement != "none" else nn.Identity()
        self.past = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def part(self, x: Tensor) -> Tensor:
        mean = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None].to(x)
        return self.past(mean) + self.down(torch.relu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.part(x)) if self.placement == "post" else x + self.part(self.norm(x))


def cast(model: Model, dtype: torch.dtype) -> Model:
    """Blocks in a plain list too."""
    for block in model.blocks:
        block.to(dtype)
    return model.to(dtype)


class Model(nn.Module):
    """Blocks between an embedding and a head, in the usual ways."""

    def __init__(
        self,
        vocabulary: int = 40,
        width: int = 32,
        layers: int = 2,
        placement: str = "pre",
        final: bool = True,
        tied: bool = False,
        deviation: float | None = None,
        scale: float = 1.0,
        plain_list: bool = False,
    ) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(vocabulary, width), nn.Embedding(T, width)
        blocks = [Block(width, placement) for _ in range(layers)]
        self.blocks = blocks if plain_list else nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width) if final else nn.Identity()
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.scale = scale
        if tied:
            self.head.weight = self.embedding.weight
        if deviation is not None:
            for p in self.parameters():
                if p.dim() > 1:
                    nn.init.normal_(p, std=deviation)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.place.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x) * self.scale)


# --- the first loss --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocabulary", "width", "layers"), [(11, 16, 1), (40, 32, 2), (300, 64, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_first_loss_near_ln_v(vocabulary: int, width: int, layers: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sizes = {"vocabulary": vocabulary, "width": width, "layers": layers}
    models = {
        "torch's defaults": Model(**sizes),
        "post-norm": Model(**sizes, placement="post"),
        "no final norm": Model(**sizes, final=False),
        "std 0.02": Model(**sizes, deviation=0.02),
        "tied, std 0.02": Model(**sizes, deviation=0.02, tied=True),
        "tied, std 1, scaled": Model(**sizes, tied=True, scale=width**-0.5),
    }
    for name, model in models.items():
        found = look("initial-loss", model.to(dtype), vocabulary)
        assert found.verdict == "healthy", (name, found)
        assert found.value is not None
        assert -1e-6 <= found.value < 0.8


@pytest.mark.parametrize(("vocabulary", "width", "layers"), [(11, 16, 1), (40, 32, 2), (300, 64, 3)])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_head_of_large_rows(vocabulary: int, width: int, layers: int, tied: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Model(vocabulary, width, layers, tied=tied)
    nn.init.normal_(model.head.weight)
    found = look("initial-loss", model.to(dtype), vocabulary)
    assert found.verdict == "sick", found
    assert found.where == "head"
    assert found.value > 2.5
    assert look("initial-loss", model, vocabulary, expect={"initial_loss": True}).verdict == "healthy"
    assert look("initial-loss", model, vocabulary, trained=True).verdict == "not examined"


def test_the_loss_is_that_of_the_cross_entropy() -> None:
    # Against torch's own, averaged over all tokens as targets.
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 7, dtype=torch.float64) * 3
    rows = logits.view(6, 7)
    losses = [F.cross_entropy(rows, torch.full((6,), token)) for token in range(7)]
    assert excess(logits) == pytest.approx(float(torch.stack(losses).mean()) - math.log(7))
    without = torch.randint(7, (2, 3))
    kept = torch.stack([row[[i for i in range(7) if i != int(t)]] for row, t in zip(rows, without.flatten())])  # noqa: B905
    assert excess(logits, without) == pytest.approx(excess(kept[None]))


def test_which_layer_blows_up() -> None:
    torch.manual_seed(0)
    embedding = Model(placement="none", final=False)
    nn.init.normal_(embedding.embedding.weight, std=40)
    inside = Model(placement="none", final=False)
    nn.init.normal_(inside.blocks[1].down.weight, std=20)

    class Loose(Model):  # the head is no module
        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens)
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.embedding.weight.T

    for model, where in ((embedding, "embedding"), (inside, "blocks.1.down"), (Loose(), "norm")):
        found = look("initial-loss", model)
        assert (found.verdict, found.where) == ("sick", where), found
        assert where in found.cause


def test_the_same_tokens_favoured_everywhere_is_a_question() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(300, 32), nn.Linear(32, 300))
    with torch.no_grad():  # the logarithm of Zipf's frequencies
        model[1].bias.copy_(-3 * torch.arange(1, 301).log())
    found = look("initial-loss", model, 300)
    assert found.verdict == "suspicious", found
    assert "every position" in found.measured
    assert look("initial-loss", model, 300, expect={"initial_loss": True}).verdict == "healthy"


def test_repeating_the_input_is_a_question() -> None:
    # Tied rows of N(0, 1) in a wide model: scaled well for all tokens but the one that stands there.
    torch.manual_seed(0)
    model = Model(40, 256, 1, tied=True, scale=1 / 16)
    found = look("initial-loss", model)
    assert found.verdict == "suspicious", found
    assert found.value > 4
    assert "favours the token" in found.measured


def test_logits_that_are_not_finite() -> None:
    torch.manual_seed(0)
    model = Model()
    with torch.no_grad():
        model.blocks[1].up.weight[0, 0] = math.nan
    found = look("initial-loss", model)
    assert found.verdict == "sick"
    assert "blocks.1" in found.where


def test_a_vocabulary_that_is_rounded_up() -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Model(48)

        def forward(self, tokens: Tensor) -> Tensor:
            logits = self.inner(tokens)
            return torch.cat((logits[..., :40], torch.full_like(logits[..., 40:], -math.inf)), -1)

    assert look("initial-loss", Rounded(), 40).verdict == "healthy"
    assert look("initial-loss", Model(48), 40).verdict == "healthy"


# --- growth ----------------------------------------------------------------------------------------------------

SIZES = [(16, 1), (32, 2), (64, 4)]


@pytest.mark.parametrize(("width", "layers"), SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stream_that_is_normed_before_the_head(width: int, layers: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sizes = {"width": width, "layers": layers}
    models = {
        "pre": Model(**sizes),
        "post": Model(**sizes, placement="post", final=False),
        "post and final": Model(**sizes, placement="post"),
        "std 0.02": Model(**sizes, deviation=0.02, tied=True),
        "no norms": Model(**sizes, placement="none", final=False),
        "plain list": Model(**sizes, plain_list=True),
    }
    for name, model in models.items():
        found = look("growth", cast(model, dtype))
        assert found.verdict == "healthy", (name, found)


@pytest.mark.parametrize(("width", "layers"), SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plain_list", [True, False])
def test_no_norm_before_the_head(width: int, layers: int, dtype: torch.dtype, plain_list: bool) -> None:
    torch.manual_seed(0)
    for options in ({}, {"deviation": 0.02, "tied": True}):
        model = Model(width=width, layers=layers, final=False, plain_list=plain_list, **options)
        found = look("growth", cast(model, dtype))
        assert found.verdict == "sick", found
        assert found.value == pytest.approx(1, abs=0.1)
        assert "head(norm(x))" in found.remedy


@pytest.mark.parametrize("final", [True, False])
def test_projections_that_are_zero_at_the_start(final: bool) -> None:
    # The blocks add nothing yet; what is in them tells whether they norm what they read.
    torch.manual_seed(0)
    model = Model(final=final)
    for block in model.blocks:
        for part in (block.past, block.down):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
    assert look("growth", model).verdict == ("healthy" if final else "sick")


@pytest.mark.parametrize("final", [True, False])
def test_torch_s_own_encoder(final: bool) -> None:
    class Torch(nn.Module):
        def __init__(self, first: bool) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(40, 32), nn.Linear(32, 40)
            layer = nn.TransformerEncoderLayer(32, 4, 64, norm_first=first, batch_first=True)
            norm = nn.LayerNorm(32) if final else None
            self.encoder = nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)

        def forward(self, tokens: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
            return self.head(self.encoder(self.embedding(tokens), mask, is_causal=True))

    torch.manual_seed(0)
    assert look("growth", Torch(first=False)).verdict == "healthy"
    assert look("growth", Torch(first=True)).verdict == ("healthy" if final else "sick")


def test_blocks_that_multiply_the_stream() -> None:
    torch.manual_seed(0)
    for layers in (2, 6):
        model = Model(layers=layers, placement="none")
        for block in model.blocks:
            nn.init.normal_(block.up.weight)
            nn.init.normal_(block.down.weight)
        found = look("growth", model)
        assert found.verdict == "sick", found
        assert found.value > 5 * found.limit
        # Massive activations of a model that has learnt are another matter.
        assert look("growth", model, trained=True).verdict == "healthy"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_ones_have_no_blocks(kind: type[nn.RNNBase]) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.cell, self.head = nn.Embedding(40, 32), kind(32, 32, 2), nn.Linear(32, 40)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.cell(self.embedding(tokens).transpose(0, 1))[0].transpose(0, 1))

    found = look("growth", Recurrent())
    assert found.verdict == "healthy", found
    assert "the embeddings grow" in found.measured


@pytest.mark.parametrize("deviation", [0.02, 1.0, 5.0])
def test_bounded_activations_are_no_norms(deviation: float) -> None:
    # A WaveNet: what its blocks add is bounded, and nothing is normed.
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filter, self.gate, self.out = (nn.Linear(32, 32) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.out(torch.tanh(self.filter(x)) * torch.sigmoid(self.gate(x)))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 32), Gated(), Gated(), nn.Linear(32, 40))
    nn.init.normal_(model[0].weight, std=deviation)
    found = look("growth", model)
    assert found.verdict == "healthy", found
    assert "nothing is normed" in found.measured


def test_normed_queries_are_no_norm_of_the_stream() -> None:
    for zero in (False, True):
        config = GPTConfig(
            vocab_size=40,
            context=T,
            layers=2,
            heads=2,
            width=32,
            norm="none",
            query_key_norm=True,
            zero_projections=zero,
        )
        assert look("growth", GPT(config)).verdict == "healthy"


def test_which_modules_are_the_blocks() -> None:
    def paths(model: nn.Module) -> list[str]:
        patient = Patient(Given(model, vocab_size=40, context=T))
        with followed(patient) as flow:
            patient.logits(patient.tokens(2, 5))
        return [call.path for call in repeated(flow)]

    class Shared(Model):  # one block, three times
        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens)
            for _ in range(3):
                x = self.blocks[0](x)
            return self.head(self.norm(x))

    assert paths(Model(layers=3)) == ["blocks.0", "blocks.1", "blocks.2"]
    assert paths(Model(plain_list=True)) == ["blocks[0]", "blocks[1]"]
    assert paths(Shared()) == ["blocks.0"] * 3
    assert paths(nn.Sequential(nn.Embedding(40, 8), nn.Linear(8, 40))) == []
    assert look("growth", Shared()).verdict == "healthy"
    assert look("growth", Shared(final=False)).verdict == "sick"


# --- half precision --------------------------------------------------------------------------------------------


class Around(nn.Module):
    """A model around something that is done to (B, T, C)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.embedding, self.inner, self.head = nn.Embedding(40, 32), inner, nn.Linear(32, 40)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.inner(self.embedding(tokens)))


class Attend(nn.Module):
    def __init__(self, fill: float) -> None:
        super().__init__()
        self.fill = fill

    def forward(self, x: Tensor) -> Tensor:
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        fill = torch.finfo(x.dtype).min if self.fill == 0 else self.fill
        return (x @ x.mT / 32**0.5).masked_fill(future, fill).softmax(-1) @ x


class Norm(nn.Module):
    def __init__(self, wide: bool) -> None:
        super().__init__()
        self.wide = wide

    def forward(self, x: Tensor) -> Tensor:
        wide = (x.float() if self.wide else x) * 100  # a stream of RMS 100
        return (wide / (wide.square().sum(-1, keepdim=True) / 32).sqrt()).type_as(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_fits_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for inner in (Attend(0), Attend(-math.inf), Attend(-1e4), Norm(wide=True), nn.LayerNorm(32)):
        model = Around(inner).to(dtype)
        before = [(p, p.data_ptr(), p.dtype) for p in model.parameters()]
        found = look("half-precision", model)
        assert found.verdict == "healthy", (inner, found)
        assert found.value < 0.1
        assert "float16" in found.measured
        assert "bfloat16" in found.measured
        assert before == [(p, p.data_ptr(), p.dtype) for p in model.parameters()]


def test_a_mask_that_float16_cannot_hold() -> None:
    found = look("half-precision", Around(Attend(-1e9)))
    assert found.verdict == "sick", found
    assert found.where == "inner"
    assert "-inf" in found.remedy
    assert look("half-precision", Around(Attend(-1e9)), expect={"half_precision": False}).verdict == "not examined"


def test_a_norm_that_overflows_unseen() -> None:
    # Divided by infinity, every vector is zero: nothing is inf or NaN behind it.
    torch.manual_seed(0)
    found = look("half-precision", Around(Norm(wide=False)))
    assert found.verdict == "sick", found
    assert found.value == pytest.approx(1, abs=0.5)
    assert math.isfinite(found.value)


def test_an_overflow_that_stays() -> None:
    class Loud(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 300) * (x * 300) / 300**2

    torch.manual_seed(0)
    found = look("half-precision", Around(Loud()))
    assert found.verdict == "sick", found
    assert found.where == "inner"
    assert "inf or NaN in float16" in found.measured


def test_one_that_mixes_dtypes_is_run_with_autocast() -> None:
    class Mixing(nn.Module):
        def __init__(self, fill: float) -> None:
            super().__init__()
            self.fill = fill
            self.loose = torch.randn(32, 32) / 32**0.5  # nothing casts it

        def forward(self, x: Tensor) -> Tensor:
            scores = x @ (x @ self.loose).mT / 32**0.5
            return scores.masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1) > 0, self.fill).softmax(-1) @ x

    torch.manual_seed(0)
    assert look("half-precision", Around(Mixing(-math.inf))).verdict == "healthy"
    assert look("half-precision", Around(Mixing(-1e9))).verdict == "sick"


def test_one_that_cannot_be_cast_is_not_examined() -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise ValueError("only float32")
            return x

    found = look("half-precision", Around(Wide()))
    assert found.verdict == "not examined"
    assert "only float32" in found.measured
    assert (
        doctor.examine(lambda tokens: F.one_hot(tokens, 40).float(), vocab_size=40, only=["half-precision"])[
            "half-precision"
        ].verdict
        == "not examined"
    )


def test_a_complex_table_stays_complex() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("turns", torch.polar(torch.ones(T, 16), torch.rand(T, 16)))

        def forward(self, x: Tensor) -> Tensor:
            pairs = torch.view_as_complex(x.float().unflatten(-1, (16, 2)))
            return torch.view_as_real(pairs * self.turns[: x.shape[1]]).flatten(-2).type_as(x)

    torch.manual_seed(0)
    assert look("half-precision", Around(Turned())).verdict == "healthy"


# --- ours ------------------------------------------------------------------------------------------------------

SMALL = {"context": T, "layers": 2, "heads": 2, "width": 32}


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.family == "gpt"])
def test_every_preset_of_ours_begins_well(name: str) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig.from_dict({**PRESETS[name].model, **SMALL, "vocab_size": 40}))
    checks = ["initial-loss", "growth", "half-precision", "score-scale", "norm-axis"]
    report = doctor.examine(model, vocab_size=40, context=T, only=checks)
    assert [finding.verdict for finding in report.findings] == ["healthy"] * 5, report.findings


@pytest.mark.parametrize("name", ["initial-loss", "growth", "half-precision", "score-scale", "norm-axis"])
def test_the_demonstrations_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(checks.BY_NAME[name].demonstration, {})
    assert len(capsys.readouterr().out.splitlines()) >= 3
    assert len(checks.BY_NAME[name].demonstration.splitlines()) <= 12
