"""`score-scale`: the factor between q k^T and the softmax, in every way in which attention is written."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmade import doctor
from handmade.doctor.checks.scores import constant_size, contracted
from handmade.layers.kernels import kernels
from handmade.models.gpt import GPT, GPTConfig

V, T, C, H = 23, 16, 32, 4
D = C // H
Weights = Callable[["Attention", Tensor, Tensor, Tensor], Tensor]


class Attention(nn.Module):
    """Attention whose scores are worked out by a function: (q, k (B, H, T, D), mask) -> what goes into the softmax."""

    def __init__(self, scores: Weights, size: int = D) -> None:
        super().__init__()
        self.size, self.scores = size, scores
        self.q, self.k, self.v = (nn.Linear(C, H * size) for _ in range(3))
        self.out = nn.Linear(H * size, C)
        self.temperature = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (H, self.size)).transpose(1, 2) for p in (self.q, self.k, self.v))
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = self.scores(self, q, k, future)
        mixed = scores.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Model(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(V, C), nn.Embedding(T, C)
        self.norm, self.attention = nn.LayerNorm(C), attention
        self.head = nn.Linear(C, V)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.place.weight[: tokens.shape[1]]
        return self.head(x + self.attention(self.norm(x)))


def look(model: nn.Module, **options: object) -> doctor.Finding:
    return doctor.examine(model, vocab_size=V, context=T, only=["score-scale"], **options)["score-scale"]


def scaled(factor: float) -> Weights:
    return lambda self, q, k, future: (q @ k.mT * factor).masked_fill(future, -math.inf)


def in_place(self: Attention, q: Tensor, k: Tensor, future: Tensor) -> Tensor:
    scores = torch.matmul(q, k.transpose(-2, -1))
    scores /= math.sqrt(self.size)
    scores.masked_fill_(future, -1e9)
    return scores


def by_batches(self: Attention, q: Tensor, k: Tensor, future: Tensor) -> Tensor:
    q, k = q.flatten(0, 1), k.flatten(0, 1)
    shut = torch.zeros(future.shape, dtype=q.dtype).masked_fill(future, -math.inf)
    return torch.baddbmm(shut, q, k.transpose(1, 2), alpha=self.size**-0.5).unflatten(0, (-1, H))


def capped(self: Attention, q: Tensor, k: Tensor, future: Tensor) -> Tensor:
    scores = torch.einsum("b h t d, b h s d -> b h t s", q, k).mul(self.size**-0.5)
    return torch.where(future, -math.inf, 30 * torch.tanh(scores / 30))


def turned(self: Attention, q: Tensor, k: Tensor, future: Tensor) -> Tensor:
    """Rotary positions, and a bias of distances."""
    angles = torch.arange(q.shape[2])[:, None] / 10 ** torch.arange(self.size // 2)
    cos, sin = angles.cos().repeat(1, 2).to(q), angles.sin().repeat(1, 2).to(q)

    def turn(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    distance = (torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])).float()
    scores = turn(q) @ turn(k).transpose(-1, -2) / torch.tensor(self.size).sqrt() - 0.5 * distance
    return scores + future.to(q.dtype) * -1e4


HEALTHY: dict[str, Weights] = {
    "after": scaled(D**-0.5),
    "before": lambda self, q, k, future: (q * D**-0.5 @ k.mT).masked_fill(future, -math.inf),
    "half each": lambda self, q, k, future: ((q / D**0.25) @ (k / D**0.25).mT).masked_fill(future, -math.inf),
    "in place": in_place,
    "by batches": by_batches,
    "capped": capped,
    "turned": turned,
    "in float32": lambda self, q, k, future: (q @ k.mT).float().div(D**0.5).masked_fill(future, -1e9).type_as(q),
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_right_scale_in_every_way_of_writing_it(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    found = look(Model(Attention(HEALTHY[name])).to(dtype))
    assert found.verdict == "healthy", found
    assert found.value == pytest.approx(1)


SLIPS = {
    "width": (C**-0.5, "width (32)"),
    "nothing": (1.0, "not divided"),
    "heads": (H**-0.5, "heads (4)"),
    "positions": (13**-0.5, "positions (13)"),  # the rows that it is examined with
    "context": (T**-0.5, "context (16)"),
    "times": (D**0.5, "multiplied"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_every_known_slip_is_named(slip: str) -> None:
    torch.manual_seed(0)
    factor, cause = SLIPS[slip]
    found = look(Model(Attention(scaled(factor))))
    assert found.verdict == "sick", found
    assert cause in found.cause
    assert found.value == pytest.approx(factor * D**0.5)
    assert found.where == "attention"
    assert look(Model(Attention(scaled(factor))), expect={"score_scale": True}).verdict == "healthy"


def test_scaled_twice() -> None:
    def twice(self: Attention, q: Tensor, k: Tensor, future: Tensor) -> Tensor:
        return (q * D**-0.5 @ k.mT / D**0.5).masked_fill(future, -math.inf)

    found = look(Model(Attention(twice)))
    assert (found.verdict, found.value) == ("suspicious", pytest.approx(D**-0.5))


def of_length_one(temperature: float) -> Weights:
    def scores(self: Attention, q: Tensor, k: Tensor, future: Tensor) -> Tensor:
        return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * temperature).masked_fill(future, -math.inf)

    return scores


def normed_by_hand(self: Attention, q: Tensor, k: Tensor, future: Tensor) -> Tensor:
    q, k = (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) for x in (q, k))
    return (q @ k.mT).masked_fill(future, -math.inf)


CHOICES: dict[str, tuple[Weights, str]] = {
    "a temperature": (of_length_one(10), "normed"),
    "no temperature": (of_length_one(1), "normed"),
    "normed by hand": (normed_by_hand, "normed"),
    "1 / D": (scaled(1 / D), "a factor of its own"),
    "learnt": (lambda self, q, k, future: (q @ k.mT * self.temperature).masked_fill(future, -math.inf), "parameter"),
    "mapped": (lambda self, q, k, future: (F.elu(q) @ k.mT).masked_fill(future, -math.inf), "not seen"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_may_be_meant_is_asked(name: str) -> None:
    torch.manual_seed(0)
    scores, cause = CHOICES[name]
    found = look(Model(Attention(scores)))
    assert found.verdict == "suspicious", found
    assert cause in found.cause
    assert "score_scale" in found.question
    assert look(Model(Attention(scores)), expect={"score_scale": True}).verdict == "healthy"


def test_cosines_times_the_root_of_the_head() -> None:
    torch.manual_seed(0)
    found = look(Model(Attention(of_length_one(D**0.5))))
    assert (found.verdict, found.value) == ("healthy", pytest.approx(1, abs=1e-3))


def test_a_scale_that_is_folded_into_the_weights_is_asked() -> None:
    # T5: W_q has 1/sqrt(D) of W_k's deviation, and the scores are not divided.
    torch.manual_seed(0)
    attention = Attention(scaled(1.0))
    with torch.no_grad():
        attention.q.weight.mul_(D**-0.5)
        attention.q.bias.mul_(D**-0.5)
    found = look(Model(attention))
    assert found.verdict == "suspicious", found
    assert "folded" in found.cause


@pytest.mark.parametrize(
    ("scale", "verdict"), [(None, "healthy"), (C**-0.5, "sick"), (1.0, "sick"), (0.12, "suspicious")]
)
def test_the_kernel_s_scale(scale: float | None, verdict: str) -> None:
    class Fused(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (p(x).unflatten(-1, (H, self.size)).transpose(1, 2) for p in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
            return self.out(y.transpose(1, 2).flatten(2))

    assert look(Model(Fused(scaled(1.0)))).verdict == verdict


def test_the_kernel_after_a_division_of_one_s_own() -> None:
    # The kernel divides too.
    class Fused(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (p(x).unflatten(-1, (H, self.size)).transpose(1, 2) for p in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(q / self.size**0.5, k, v, is_causal=True)
            return self.out(y.transpose(1, 2).flatten(2))

    found = look(Model(Fused(scaled(1.0))))
    assert (found.verdict, found.value) == ("suspicious", pytest.approx(D**-0.5))


def test_the_kernel_after_half_a_division_each() -> None:
    class Fused(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (p(x).unflatten(-1, (H, self.size)).transpose(1, 2) for p in (self.q, self.k, self.v))
            q, k = q * self.size**-0.25, k * self.size**-0.25
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
            return self.out(y.transpose(1, 2).flatten(2))

    found = look(Model(Fused(scaled(1.0))))
    assert (found.verdict, found.value) == ("healthy", pytest.approx(1))


@pytest.mark.parametrize("weights", [True, False])
def test_torch_s_own_attention(weights: bool) -> None:
    class Torch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(C, H, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            return self.attention(x, x, x, attn_mask=mask, need_weights=weights)[0]

    found = look(Model(Torch()))
    assert (found.verdict, found.value) == ("healthy", pytest.approx(1))


@pytest.mark.parametrize("first", [True, False])
def test_torch_s_own_encoder(first: bool) -> None:
    class Torch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(C, H, 2 * C, norm_first=first, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x, nn.Transformer.generate_square_subsequent_mask(x.shape[1]), is_causal=True)

    found = look(Model(Torch()))
    assert (found.verdict, found.value) == ("healthy", pytest.approx(1))
    assert "2 times" in found.measured


@pytest.mark.parametrize("kernel", ["reference", "fused"])
@pytest.mark.parametrize(("scale", "verdict"), [("head", "healthy"), ("width", "sick"), ("none", "sick")])
@pytest.mark.parametrize("options", [{}, {"positions": "rotary", "key_value_heads": 2}])
def test_ours(kernel: str, scale: str, verdict: str, options: dict) -> None:
    with kernels(kernel):
        model = GPT(GPTConfig(vocab_size=V, context=T, layers=1, heads=H, width=C, score_scale=scale, **options))
    assert look(model).verdict == verdict


def test_ours_with_normed_queries() -> None:
    config = GPTConfig(vocab_size=V, context=T, layers=1, heads=H, width=C, query_key_norm=True)
    assert look(GPT(config)).verdict == "healthy"


def test_heads_that_do_not_fill_the_width() -> None:
    torch.manual_seed(0)
    assert look(Model(Attention(scaled(24**-0.5), size=24))).verdict == "healthy"
    assert "width (32)" in look(Model(Attention(scaled(C**-0.5), size=16))).cause


def test_without_attention_nothing_is_said() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            triangle = torch.zeros(x.shape[1], x.shape[1]).masked_fill(
                torch.ones(x.shape[1], x.shape[1]).triu(1) > 0, -1e9
            )
            return triangle.softmax(-1) @ x

    class Loud(nn.Module):  # a head, and its softmax: no attention
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.randn(C, V))

        def forward(self, tokens: Tensor) -> Tensor:
            return (self.rows.T[tokens] @ self.rows).log_softmax(-1)

    for model in (Model(Mean()), Loud()):
        found = look(model)
        assert found.verdict == "not examined"
        assert "no attention is seen" in found.measured


def test_plain_tensors_as_weights_are_no_keys() -> None:
    # Weights that nobody registered: a projection by one is not taken for a score.
    class Loose(Attention):
        def __init__(self) -> None:
            super().__init__(scaled(D**-0.5))
            self.loose = torch.randn(C, C) * C**-0.5

        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x @ self.loose).softmax(-1))

    assert look(Model(Loose())).verdict == "healthy"


def test_parts() -> None:
    first, second = torch.zeros(2, 5, 3, 8), torch.zeros(2, 7, 3, 8)
    assert contracted("bqhd,bkhd->bhqk", first, second) == 8
    assert contracted("...qhd, ...khd -> ...hqk", first, second) == 8
    x = torch.randn(2, 3, 6, 8)
    assert constant_size(F.normalize(x, dim=-1))
    assert constant_size(F.normalize(x.transpose(1, 2).flatten(2), dim=-1).unflatten(-1, (3, 8)).transpose(1, 2))
    assert not constant_size(x)
    assert not constant_size(torch.ones(2, 3, 6, 8))  # all the same: a bias, no norm
