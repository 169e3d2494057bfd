from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from layer_parity import both_forms, few
from torch import Tensor, nn

from handmade.attention import record
from handmade.errors import ConfigError
from handmade.layers import kernels
from handmade.models.blocks import FeedForward, Head
from handmade.models.gpt import GPT, GPTConfig, parameter_count
from handmade.presets import MODERN, PRESETS

VOCAB, CONTEXT = 13, 16
SHAPE = {"vocab_size": VOCAB, "context": CONTEXT, "layers": 2, "heads": 2, "width": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt1": {"norm_placement": "post", "initialization": "normal"},
    "gpt2": {},
    "nanogpt": {"bias": False, "activation": "gelu"},
    "no positions": {"positions": "none", "activation": "relu"},
    "sinusoidal": {"positions": "sinusoidal", "activation": "silu", "head_bias": True},
    "modern": MODERN,
    "grouped": {
        "positions": "rotary",
        "key_value_heads": 1,
        "activation": "swiglu",
        "norm": "rms",
        "embedding_norm": True,
        "tied_head": False,
        "head_bias": True,
    },
    "pairs": {"pair_embedding": True, "embedding_norm": True, "norm": "rms", "positions": "rotary"},
    "shared": {"positions": "shared", "digit_tokens": (3, 8), "origin_token": 10},
    "bare": {"norm": "none", "positions": "learned", "query_key_norm": True},
    "mean": {"mixing": "mean"},
    "mean alone": {"mixing": "mean", "hidden": 0, "residual": False, "norm": "none", "positions": "none", "layers": 1},
    "no residual": {"residual": False, "score_scale": "none"},
    "no residual, post": {"residual": False, "norm_placement": "post", "positions": "rotary", "score_scale": "width"},
    "no feed-forward": {"hidden": 0, "key_value_heads": 1},
    "no feed-forward, post": {"hidden": 0, "norm_placement": "post", "mixing": "mean", "pair_embedding": True},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def make(variant: str, form: str = "fused", **changes: Any) -> GPT:
    """A small model in float64, every parameter drawn, so that no zero and no 1 hides a mistake."""
    with kernels(form):
        model = GPT(GPTConfig(**{**SHAPE, **VARIANTS[variant], **changes}))
    draw(model)
    return model.double().eval()


@torch.no_grad()
def draw(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.normal_(0, 0.4, generator=generator)


def some_tokens(*shape: int, vocab: int = VOCAB, seed: int = 0) -> Tensor:
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


def equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# --- what a causal model must not see --------------------------------------------------------------------------


@every_variant
@both_forms
def test_a_changed_future_token_leaves_past_logits_bit_equal(variant, form):
    model, tokens = make(variant, form).float(), some_tokens(2, CONTEXT)
    before = model(tokens)
    for t in (1, 7, CONTEXT - 1):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % VOCAB
        after = model(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert (after[:, t] != before[:, t]).any(-1).all()


@every_variant
@both_forms
def test_a_row_does_not_depend_on_its_batch_mates(variant, form):
    model, tokens = make(variant, form), some_tokens(3, 9)
    together = model(tokens)
    for row in range(3):
        equal(model(tokens[row : row + 1]), together[row : row + 1])
    other = tokens.clone()
    other[1:] = some_tokens(2, 9, seed=1)
    assert torch.equal(model(other)[0], together[0])


@every_variant
def test_every_position_sees_all_of_its_past(variant):
    model, tokens = make(variant), some_tokens(1, CONTEXT)
    before = model(tokens)[0, -1]
    for t in range(CONTEXT):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % VOCAB
        assert (model(changed)[0, -1] - before).abs().max() > 1e-9, t


# --- cache -----------------------------------------------------------------------------------------------------


@every_variant
@both_forms
@pytest.mark.parametrize("chunks", [[1] * CONTEXT, [5, 1, 7, 3], [CONTEXT]])
def test_cached_equals_uncached(variant, form, chunks):
    model, tokens = make(variant, form), some_tokens(2, CONTEXT)
    cache, found = model.new_cache(2), []
    for part in tokens.split(chunks, dim=1):
        found.append(model(part, cache=cache))
    assert cache.length == CONTEXT
    equal(torch.cat(found, dim=1), model(tokens))


STARTS = [0, 3, 9]


def left_padded(rows: list[Tensor], filler: int) -> Tensor:
    padded = torch.full((len(rows), CONTEXT), filler)
    for line, row in zip(padded, rows, strict=True):
        line[CONTEXT - len(row) :] = row
    return padded


@every_variant
@both_forms
@pytest.mark.parametrize("chunks", [None, [1] * CONTEXT, [4, 5, 1, 6]])
def test_left_padded_rows_equal_single_rows(variant, form, chunks):
    model, starts = make(variant, form), torch.tensor(STARTS)
    rows = [some_tokens(CONTEXT - start, seed=start) for start in STARTS]
    results = []
    for filler in (0, VOCAB - 1):
        tokens = left_padded(rows, filler)
        if chunks is None:
            results.append(model(tokens, starts=starts))
        else:
            cache = model.new_cache(3)
            parts = [model(part, cache=cache, starts=starts) for part in tokens.split(chunks, dim=1)]
            results.append(torch.cat(parts, dim=1))
    assert results[0].isfinite().all()  # at the padding too
    for index, (row, start) in enumerate(zip(rows, STARTS, strict=True)):
        equal(results[0][index : index + 1, start:], model(row[None]))
        assert torch.equal(results[0][index, start:], results[1][index, start:])  # whatever the padding is


@both_forms
def test_padding_has_no_part_in_the_gradient(form):
    model, starts = make("gpt2", form, tied_head=False), torch.tensor([4])
    tokens = torch.cat([torch.full((1, 4), 12), some_tokens(1, 5, vocab=12)], dim=1)  # token 12 is padding only
    model(tokens, starts=starts)[:, 4:].square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert (model.embedding.weight.grad[12] == 0).all()
    assert (model.embedding.weight.grad[tokens[0, 4]] != 0).any()


@pytest.mark.parametrize("variant", ["gpt2", "grouped", "pairs", "shared", "mean"])
def test_a_cache_goes_on_from_selected_rows(variant):
    model, tokens, chosen = make(variant), some_tokens(3, 6), torch.tensor([2, 2, 0, 1])
    cache = model.new_cache(3)
    model(tokens, cache=cache)
    cache.select(chosen)
    new = some_tokens(4, 2, seed=1)
    equal(model(new, cache=cache), model(torch.cat([tokens[chosen], new], dim=1))[:, 6:])


def test_a_failed_call_leaves_the_cache_as_it_was():
    model = make("gpt2")
    cache = model.new_cache(1)
    model(some_tokens(1, CONTEXT - 1), cache=cache)
    with pytest.raises(ConfigError, match=f"{CONTEXT + 1} tokens do not fit the context of {CONTEXT}"):
        model(some_tokens(1, 2), cache=cache)
    assert cache.length == CONTEXT - 1
    model(some_tokens(1, 1), cache=cache)


@every_variant
def test_more_tokens_than_the_context_are_refused(variant):
    with pytest.raises(ConfigError, match=f"{CONTEXT + 1} tokens do not fit the context of {CONTEXT}"):
        make(variant)(some_tokens(1, CONTEXT + 1))


def test_a_token_outside_the_vocabulary_is_refused():
    for form in ("reference", "fused"):
        for token in (-1, VOCAB):
            with pytest.raises(IndexError):
                make("gpt2", form)(torch.tensor([[token]]))


# --- the same model two ways, and by torch.nn -------------------------------------------------------------------


@every_variant
def test_reference_equals_fused(variant):
    fused, tokens = make(variant), some_tokens(2, CONTEXT)
    reference = make(variant, "reference")
    reference.load_state_dict(fused.state_dict())
    weights = torch.randn(2, CONTEXT, VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = []
    for model in (fused, reference):
        values.append(model(tokens))
        (values[-1] * weights).sum().backward()
    equal(values[0], values[1])
    theirs = dict(reference.named_parameters())
    for name, parameter in fused.named_parameters():
        torch.testing.assert_close(
            parameter.grad, theirs[name].grad, rtol=1e-11, atol=1e-11, msg=lambda m, n=name: n + m
        )


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "relu-squared": lambda x: torch.pow(torch.clamp(x, min=0), 2),
}


class Torch(nn.Module):
    """GPT-1 or GPT-2 made of `torch.nn.TransformerEncoderLayer`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        first = config.norm_placement == "pre"
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.places = nn.Embedding(config.context, config.width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width,
                config.heads,
                config.hidden_features,
                dropout=0.0,
                activation=ACTIVATIONS[config.activation],
                batch_first=True,
                norm_first=first,
                bias=config.bias,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width, bias=config.bias) if first else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.tokens(tokens) + self.places(torch.arange(length))
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        for layer in self.layers:
            x = layer(x, src_mask=future)
        return self.norm(x) @ self.tokens.weight.T


def theirs_by_our_names(model: Torch, read: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """`read` of each of their parameters (itself, or its gradient), under our names."""
    found = {"embedding.weight": read(model.tokens.weight), "position.weight": read(model.places.weight)}
    pairs: list[tuple[str, nn.Module]] = [("norm", model.norm)]
    for index, layer in enumerate(model.layers):
        at = f"blocks.{index}."
        pairs += [
            (at + "attention.output", layer.self_attn.out_proj),
            (at + "feed_forward.input", layer.linear1),
            (at + "feed_forward.output", layer.linear2),
            (at + "attention_norm", layer.norm1),
            (at + "feed_forward_norm", layer.norm2),
        ]
        for kind, whole in (("weight", layer.self_attn.in_proj_weight), ("bias", layer.self_attn.in_proj_bias)):
            if whole is not None:
                for name, part in zip(("query", "key", "value"), read(whole).chunk(3), strict=True):
                    found[f"{at}attention.{name}.{kind}"] = part
    for name, module in pairs:
        for kind, parameter in module.named_parameters():
            found[f"{name}.{kind}"] = read(parameter)
    return found


@both_forms
@pytest.mark.parametrize(
    "changes",
    [
        {"norm_placement": "post", "activation": "gelu"},
        {"norm_placement": "post", "activation": "gelu-tanh"},
        {"activation": "gelu-tanh"},
        {"activation": "gelu", "bias": False},
        {"activation": "relu"},
        {"activation": "silu"},
        {"activation": "relu-squared", "hidden": 10},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_the_whole_model_equals_torch(form, changes):
    ours = make("gpt2", form, layers=3, heads=4, **changes).train()
    theirs = Torch(ours.config).double()
    draw(theirs)
    state = theirs_by_our_names(theirs, lambda parameter: parameter.data)
    assert state.keys() == {name for name, _ in ours.named_parameters()}
    ours.load_state_dict({**state, "head.weight": state["embedding.weight"]})
    compare_values_and_gradients(ours, theirs, lambda: theirs_by_our_names(theirs, lambda parameter: parameter.grad))


def compare_values_and_gradients(
    ours: GPT, theirs: Callable[[Tensor], Tensor], gradients: Callable[[], dict[str, Tensor]]
) -> None:
    tokens = some_tokens(3, CONTEXT, vocab=ours.config.vocab_size)
    weights = torch.randn(3, CONTEXT, ours.config.vocab_size, generator=torch.Generator().manual_seed(0)).double()
    mine, other = ours(tokens), theirs(tokens)
    equal(mine, other)
    for value in (mine, other):
        (value * weights).mean().backward()
    expected = gradients()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


def modern(state: dict[str, Tensor], table: tuple[Tensor, Tensor], layers: int, heads: int, tokens: Tensor) -> Tensor:
    """The preset's "modern" model once more, with PyTorch's functions and the rotation as complex numbers."""

    def norm(x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=1e-6)

    def rotate(x: Tensor) -> Tensor:  # (B, H, T, D)
        turns = torch.complex(table[0][: x.shape[2]], table[1][: x.shape[2]])
        half = x.shape[-1] // 2
        z = torch.complex(x[..., :half], x[..., half:]) * turns
        return torch.cat((z.real, z.imag), dim=-1)

    x = state["embedding.weight"][tokens]
    for index in range(layers):
        part = {name.split(".", 2)[2]: value for name, value in state.items() if name.startswith(f"blocks.{index}.")}
        y = norm(x)
        q, k, v = (
            (y @ part[f"attention.{name}.weight"].T).unflatten(-1, (heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(rotate(norm(q)), rotate(norm(k)), v, is_causal=True)
        x = x + mixed.transpose(1, 2).flatten(2) @ part["attention.output.weight"].T
        x = x + F.relu(norm(x) @ part["feed_forward.input.weight"].T) ** 2 @ part["feed_forward.output.weight"].T
    return 15.0 * torch.tanh(norm(x) @ state["head.weight"].T / 15.0)


@both_forms
def test_the_modern_model_equals_its_formula(form):
    ours = make("modern", form, layers=3, heads=2).train()
    state = {name: value.detach().clone().requires_grad_() for name, value in ours.named_parameters()}
    table = (ours.rotary.cosine, ours.rotary.sine)
    compare_values_and_gradients(
        ours,
        lambda tokens: modern(state, table, 3, 2, tokens),
        lambda: {name: value.grad for name, value in state.items()},
    )


@pytest.mark.bench
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_the_whole_model_equals_hugging_face(placement):
    transformers = pytest.importorskip("transformers")
    ours = make("gpt2", layers=3, heads=4, norm_placement=placement)
    shape = {"vocab_size": VOCAB, "n_positions": CONTEXT, "n_embd": 16, "n_layer": 3, "n_head": 4}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    if placement == "pre":
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **off))
        names = {"embedding": "wte", "position": "wpe", "norm": "ln_f"}
    else:
        theirs = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**shape, **off, afn="gelu"))
        names = {"embedding": "tokens_embed", "position": "positions_embed"}
    theirs = theirs.double()
    draw(theirs)
    body = theirs.transformer
    linear = {"attention.output": "attn.c_proj", "feed_forward.input": "mlp.c_fc", "feed_forward.output": "mlp.c_proj"}
    norms = {"attention_norm": "ln_1", "feed_forward_norm": "ln_2"}

    def read_all(read: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, other in names.items():
            for kind, parameter in getattr(body, other).named_parameters():
                found[f"{name}.{kind}"] = read(parameter)
        for index, block in enumerate(body.h):
            at = f"blocks.{index}."
            parameters = dict(block.named_parameters())
            for name, other in {**linear, **norms}.items():
                weight = read(parameters[f"{other}.weight"])
                found[f"{at}{name}.weight"] = weight.T if name in linear else weight
                found[f"{at}{name}.bias"] = read(parameters[f"{other}.bias"])
            for kind in ("weight", "bias"):
                whole = read(parameters[f"attn.c_attn.{kind}"])
                for name, part in zip(("query", "key", "value"), whole.chunk(3, dim=-1), strict=True):
                    found[f"{at}attention.{name}.{kind}"] = part.T if kind == "weight" else part
        return found

    state = read_all(lambda parameter: parameter.data)
    ours.load_state_dict({**state, "head.weight": state["embedding.weight"]})
    compare_values_and_gradients(
        ours, lambda tokens: theirs(tokens).logits, lambda: read_all(lambda parameter: parameter.grad)
    )


# --- parts -----------------------------------------------------------------------------------------------------


@both_forms
def test_swiglu_equals_its_formula(form):
    with kernels(form):
        layer = FeedForward(6, 10, "swiglu").double()
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).double()
    gate = x @ layer.gate.weight.T + layer.gate.bias
    inner = gate / (1 + (-gate).exp()) * (x @ layer.input.weight.T + layer.input.bias)
    equal(layer(x), inner @ layer.output.weight.T + layer.output.bias)


@pytest.mark.parametrize(
    ("width", "hidden"),
    # 8/3 of the width keeps the parameters of 4 times the width in two matrices; rounded to 8.
    [(384, 1024), (256, 680), (4096, 10920), (1, 8)],
)
def test_swiglu_has_as_many_parameters_as_the_others(width, hidden):
    config = GPTConfig(vocab_size=2, width=width, heads=1, activation="swiglu")
    assert config.hidden_features == hidden
    assert config.hidden_features % 8 == 0
    assert config.replace(activation="gelu").hidden_features == 4 * width
    assert config.replace(hidden=5).hidden_features == 5


def test_the_cap_bends_the_logits():
    x = torch.linspace(-100, 100, 51, dtype=torch.float64)[:, None]
    head = Head(1, 1, cap=15.0).double()
    with torch.no_grad():
        head.weight.fill_(1)
    found = head(x)
    equal(found, 15 * torch.tanh(x / 15))
    assert found.abs().max() < 15
    assert (found.diff(dim=0) > 0).all()  # the order stays


@pytest.mark.parametrize("variant", ["gpt2", "modern"])
def test_logits_are_float32_under_autocast(variant):
    model, tokens = make(variant).float(), some_tokens(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens)
        cache = model.new_cache(2)
        steps = torch.cat([model(part, cache=cache) for part in tokens.split(1, dim=1)], dim=1)
    assert logits.dtype == steps.dtype == torch.float32
    exact = model(tokens)
    for found in (logits, steps):
        assert (found - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_hidden_and_head_are_the_model():
    model, tokens = make("grouped"), some_tokens(2, 5)
    hidden = model.hidden(tokens)
    assert hidden.shape == (2, 5, 16)
    assert torch.equal(model.head(hidden), model(tokens))
    assert model.context == model.config.context == CONTEXT


def test_record_sees_every_layer():
    model = make("grouped", layers=3)
    with record() as maps:
        model(some_tokens(2, 6))
    assert [tuple(part.shape) for part in maps] == [(2, 2, 6, 6)] * 3
    for part in maps:
        equal(part.sum(-1), torch.ones(2, 2, 6).double())
        assert (part.triu(1) == 0).all()


def enters_the_blocks(model: GPT, tokens: Tensor) -> Tensor:
    """The stream before the first block."""
    seen: list[Tensor] = []
    with model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        model(tokens)
    return seen[0]


@both_forms
def test_what_enters_the_blocks(form):
    model, tokens = make("pairs", form, positions="learned"), some_tokens(2, 6)
    found = enters_the_blocks(model, tokens)
    table, scale = model.pair_embedding.weight, model.embedding_norm.weight
    for row in range(2):
        for t in range(6):
            before = tokens[row, t - 1] if t else VOCAB  # nothing before: rows of its own
            x = (
                model.embedding.weight[tokens[row, t]]
                + table[before * VOCAB + tokens[row, t]]
                + model.position.weight[t]
            )
            equal(found[row, t], scale * x / (x.square().mean() + 1e-6).sqrt())


def test_dropout_is_for_training_alone():
    model = make("gpt2", dropout=0.5, attention_dropout=0.5)
    without = make("gpt2")
    tokens, before = some_tokens(2, 8), torch.get_rng_state()
    equal(model(tokens), without(tokens))
    assert torch.equal(torch.get_rng_state(), before)
    for field in ("dropout", "attention_dropout"):
        model = make("gpt2", **{field: 0.5}).train()
        assert not torch.allclose(model(tokens), model(tokens)), field


def test_a_dropout_that_is_turned_on_alone_acts():
    # Draws of a model that is otherwise in evaluation: its layers' modes are their own.
    model = make("gpt2", dropout=0.5).eval()
    tokens = some_tokens(2, 8)
    equal(model(tokens), model(tokens))
    model.blocks[0].dropout.train()
    assert not torch.allclose(model(tokens), model(tokens))


def dropped_once(found: Tensor, whole: Tensor, p: float) -> None:
    """`found` is `whole` with a share `p` of zeros and the rest scaled up once."""
    kept = (found - whole / (1 - p)).abs() < 1e-9
    assert torch.equal(kept, found.abs() > 1e-9)
    assert abs(kept.double().mean() - (1 - p)) < 0.05


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_dropout_is_where_the_paper_has_it(placement):
    # On the embeddings, and on what attention and feed-forward write; each once.
    p, tokens = 0.25, some_tokens(20, CONTEXT)
    model = make("gpt2", dropout=p, norm_placement=placement, norm="none")
    whole = enters_the_blocks(model, tokens)
    torch.manual_seed(0)
    dropped_once(enters_the_blocks(model.train(), tokens), whole, p)
    block = model.blocks[0]
    for silent, speaking in ((block.feed_forward, block.attention), (block.attention, block.feed_forward)):
        with torch.no_grad():
            silent.output.weight.zero_()
            silent.output.bias.zero_()
            speaking.output.weight.normal_(0, 0.4)
        dropped_once(block.train()(whole) - whole, block.eval()(whole) - whole, p)


# --- the first weights -----------------------------------------------------------------------------------------


def test_a_tied_head_is_the_embedding():
    model = GPT(GPTConfig(**SHAPE))
    assert model.head.weight is model.embedding.weight
    twin = copy.deepcopy(model).double()
    assert twin.head.weight is twin.embedding.weight
    untied = GPT(GPTConfig(**SHAPE, tied_head=False))
    assert parameter_count(untied) - parameter_count(model) == VOCAB * 16


def test_names_of_the_parameters():
    # Whole words, in the order of the forward pass; files on disk carry them.
    linear = ["weight", "bias"]
    block = [f"attention_norm.{kind}" for kind in linear] + [f"feed_forward_norm.{kind}" for kind in linear]
    block += [f"attention.{name}.{kind}" for name in ("query", "key", "value", "output") for kind in linear]
    block += [f"feed_forward.{name}.{kind}" for name in ("input", "output") for kind in linear]
    expected = {"embedding.weight", "position.weight", "norm.weight", "norm.bias", "head.weight"}
    expected |= {f"blocks.{index}.{name}" for index in range(2) for name in block}
    assert set(GPT(GPTConfig(**SHAPE)).state_dict()) == expected
    modern_names = set(GPT(GPTConfig(**SHAPE, **MODERN)).state_dict())
    assert modern_names == {"embedding.weight", "head.weight"} | {
        f"blocks.{index}.{name}.weight"
        for index in range(2)
        for name in (
            "attention.query",
            "attention.key",
            "attention.value",
            "attention.output",
            "feed_forward.input",
            "feed_forward.output",
        )
    }
    assert "blocks.0.feed_forward.gate.weight" in GPT(GPTConfig(**SHAPE, activation="swiglu")).state_dict()


@pytest.mark.parametrize("variant", ["gpt1", "gpt2", "modern"])
@pytest.mark.parametrize("initialization", ["torch", "normal", "gpt2", "fan-in"])
def test_one_generator_gives_one_model(variant, initialization):
    config = GPTConfig(**{**SHAPE, **VARIANTS[variant], "initialization": initialization})
    models = []
    for seed, other in ((7, 0), (7, 1), (8, 0)):
        torch.manual_seed(other)  # the global generator has no part in it
        models.append(GPT(config, torch.Generator().manual_seed(seed)).state_dict())
    same, again, different = models
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert any(not torch.equal(same[name], different[name]) for name in same)


def test_initialize_draws_every_parameter_anew():
    for initialization in ("torch", "normal", "gpt2", "fan-in"):
        config = GPTConfig(
            **SHAPE, initialization=initialization, activation="swiglu", tied_head=False, pair_embedding=True
        )
        model = GPT(config, torch.Generator().manual_seed(3))
        expected = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(math.nan)
        model.initialize(torch.Generator().manual_seed(3))
        for name, value in model.state_dict().items():
            assert torch.equal(value, expected[name]), name


def deviation(parameter: Tensor) -> float:
    return parameter.double().std().item()


def test_gpt2_initialization():
    model = GPT(GPTConfig(vocab_size=500, context=64, layers=8, heads=2, width=64), torch.Generator().manual_seed(0))
    assert deviation(model.embedding.weight) == pytest.approx(0.02, rel=0.03)
    assert deviation(model.position.weight) == pytest.approx(0.02, rel=0.06)
    for block in model.blocks:
        for layer in (block.attention.query, block.attention.key, block.attention.value, block.feed_forward.input):
            assert deviation(layer.weight) == pytest.approx(0.02, rel=0.06)
            assert (layer.bias == 0).all()
        for layer in (block.attention.output, block.feed_forward.output):
            assert deviation(layer.weight) == pytest.approx(0.02 / 4, rel=0.06)  # 16 terms in the stream
            assert (layer.bias == 0).all()
        for norm in (block.attention_norm, block.feed_forward_norm, model.norm):
            assert (norm.weight == 1).all()
            assert (norm.bias == 0).all()


def test_other_initializations():
    shape = {"vocab_size": 500, "layers": 2, "heads": 2, "width": 64, "positions": "rotary", "tied_head": False}

    def made(initialization: str) -> GPT:
        return GPT(GPTConfig(**shape, initialization=initialization), torch.Generator().manual_seed(0))

    normal = made("normal")
    assert deviation(normal.blocks[0].feed_forward.output.weight) == pytest.approx(0.02, rel=0.05)
    fan = made("fan-in")
    assert deviation(fan.embedding.weight) == pytest.approx(1, rel=0.05)
    assert deviation(fan.head.weight) == pytest.approx(64**-0.5, rel=0.05)
    assert deviation(fan.blocks[0].feed_forward.output.weight) == pytest.approx(256**-0.5, rel=0.05)
    plain = made("torch").blocks[0].feed_forward.input  # uniform within 1/sqrt(64): its deviation is that over sqrt(3)
    assert deviation(plain.weight) == pytest.approx(1 / 8 / math.sqrt(3), rel=0.05)
    assert plain.weight.abs().max() <= 1 / 8
    assert plain.bias.abs().max() > 0


def test_with_zero_projections_every_block_is_the_identity():
    for placement in ("pre", "post"):
        changes = {"zero_projections": True, "tied_head": False, "norm_placement": placement, "norm": "rms-plain"}
        model = GPT(GPTConfig(**{**SHAPE, **changes}))
        x = torch.randn(2, 5, 16)
        expected = x if placement == "pre" else model.blocks[0].attention_norm(x)
        for block in model.blocks:
            torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)
        assert (model(some_tokens(2, 5)) == 0).all()  # and the head knows nothing yet


def scaled_down(name: str) -> GPTConfig:
    """The preset's shape with at most 4 layers of 128 features."""
    config = GPTConfig.from_dict({**PRESETS[name].model, "vocab_size": min(PRESETS[name].vocab_size or 65, 2000)})
    heads = config.heads if config.width <= 128 else 4
    return config.replace(
        layers=min(config.layers, 4), context=min(config.context, 64), heads=heads, width=min(config.width, 128)
    )


def first_loss(config: GPTConfig) -> float:
    model = GPT(config, torch.Generator().manual_seed(0)).eval()
    rows = max(4, 256 // config.context)
    tokens, targets = (some_tokens(rows, config.context, vocab=config.vocab_size, seed=seed) for seed in (1, 2))
    with torch.no_grad():
        return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).item()


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.family == "gpt"])
def test_the_first_loss_is_that_of_a_guess(name):
    config = scaled_down(name)
    assert first_loss(config) == pytest.approx(math.log(config.vocab_size), abs=0.1)


def test_the_first_loss_of_gpt2_at_its_width():
    # Normed features times weights of N(0, 0.02) are logits with a variance of 0.02^2 * 768: half of it is above
    # the guess. So GPT-2 begins at 0.15 above ln V; that is its initialisation, not a mistake.
    config = GPTConfig(vocab_size=3000, context=64, layers=1, heads=12, width=768)
    assert first_loss(config) - math.log(3000) == pytest.approx(0.02**2 * 768 / 2, abs=0.06)


# --- config ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 6, "width": 512}, "GPTConfig.heads = 6: does not divide width = 512. Try 2, 4, 8"),
        ({"heads": 3, "width": 1_000_000_000}, "Try 1, 2, 4"),
        ({"layers": 0}, "GPTConfig.layers = 0: must be at least 1"),
        ({"vocab_size": 0}, "GPTConfig.vocab_size = 0: must be at least 1"),
        ({"hidden": -1}, "GPTConfig.hidden = -1: must be at least 0, which is no feed-forward layer"),
        ({"mixing": "mean", "positions": "rotary"}, "positions = 'rotary': must be none, learned or sinusoidal with"),
        (
            {"mixing": "mean", "query_key_norm": True},
            "query_key_norm = True: must be false with mixing = 'mean', which",
        ),
        ({"mixing": "mean", "key_value_heads": 1}, "key_value_heads = 1: must be none with mixing = 'mean'"),
        ({"mixing": "mean", "score_scale": "none"}, "score_scale = 'none': must be head with mixing = 'mean'"),
        ({"residual": False, "zero_projections": True}, "zero_projections = True: must be false with residual = false"),
        ({"score_scale": "heads"}, "must be one of head, width, none"),
        ({"key_value_heads": 3}, "GPTConfig.key_value_heads = 3: must be a divisor of heads = 2"),
        ({"key_value_heads": 0}, "GPTConfig.key_value_heads = 0: must be a divisor of heads = 2"),
        ({"positions": "rotary", "width": 6}, "rotary needs an even number of features a head, not 3"),
        ({"positions": "sinusoidal", "width": 15, "heads": 3}, "GPTConfig.width = 15: must be even"),
        ({"positions": "rotary", "rotary_base": 1.0}, "GPTConfig.rotary_base = 1.0: must be a number above 1"),
        ({"logit_cap": 0.0}, "GPTConfig.logit_cap = 0.0: must be a number above 0, or none"),
        ({"logit_cap": math.inf}, "GPTConfig.logit_cap = inf"),
        ({"vocab_size": 5000, "pair_embedding": True}, "GPTConfig.vocab_size = 5000: must be at most 1024"),
        ({"dropout": 1.0}, "GPTConfig.dropout = 1.0"),
        ({"attention_dropout": -0.1}, "GPTConfig.attention_dropout = -0.1"),
        ({"attention_dropout": math.nan}, "GPTConfig.attention_dropout = nan"),
        ({"positions": "rotery"}, "must be one of none, learned, sinusoidal, rotary, shared"),
        ({"positions": "shared"}, "digit_tokens = None: must be the first and the last digit, with shared positions"),
        (
            {"positions": "shared", "digit_tokens": (5, 4)},
            "digit_tokens = (5, 4): must be the first and the last",
        ),
        (
            {"positions": "shared", "digit_tokens": (2, 9), "origin_token": 9},
            "origin_token = 9: must be above digit_tokens = (2, 9)",
        ),
        ({"digit_tokens": (2, 9)}, "digit_tokens = (2, 9): must be none: it goes with positions = 'shared' alone"),
        ({"origin_token": 3}, "origin_token = 3: must be none: it goes with positions = 'shared' alone"),
        ({"activation": "gelu_new"}, "must be one of relu, gelu"),
        ({"layers": 2.5}, "GPTConfig.layers = 2.5: must be a whole number"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError) as caught:
        GPTConfig(**{**SHAPE, **changes})
    assert message in str(caught.value)


@few
@given(width=st.integers(1, 3000), heads=st.integers(1, 64))
def test_the_heads_that_are_suggested_divide(width, heads):
    if width % heads == 0:
        assert GPTConfig(vocab_size=2, width=width, heads=heads).head_features == width // heads
        return
    with pytest.raises(ConfigError) as caught:
        GPTConfig(vocab_size=2, width=width, heads=heads)
    near = [int(word) for word in str(caught.value).rstrip(".").rpartition("Try ")[2].split(", ")]
    divisors = sorted((n for n in range(1, width + 1) if width % n == 0), key=lambda n: (abs(n - heads), n))
    assert near == sorted(near)
    assert all(width % number == 0 for number in near)
    assert {abs(n - heads) for n in near} == {abs(n - heads) for n in divisors[: len(near)]}
