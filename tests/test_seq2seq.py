"""The encoder-decoder transformer: against torch.nn, padded against single, cached against uncached."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from handmade.attention import record
from handmade.errors import ConfigError
from handmade.layers import kernels
from handmade.models.seq2seq import Memory, Seq2Seq, Seq2SeqConfig
from handmade.positions import sinusoidal
from handmade.training import seeded

TARGETS, SOURCES, PAD = 11, 13, 0
CONFIG = Seq2SeqConfig(vocab_size=TARGETS, source_vocab_size=SOURCES, context=12, heads=2, width=8)
LENGTHS = [7, 4, 1, 7]
both_forms = pytest.mark.parametrize("form", ["fused", "reference"])
VARIANTS: dict[str, dict[str, Any]] = {
    "2017": {},
    "modern": {
        "norm": "rms-plain",
        "norm_placement": "pre",
        "positions": "rotary",
        "activation": "relu-squared",
        "query_key_norm": True,
        "bias": False,
        "scale_embeddings": False,
    },
    "learned": {"positions": "learned", "norm_placement": "pre", "tied_head": False, "head_bias": True},
    "swiglu": {"positions": "none", "activation": "swiglu", "norm": "rms", "encoder_layers": 1, "decoder_layers": 3},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def make(variant: str = "2017", form: str = "fused", **changes: Any) -> Seq2Seq:
    """A small model in float64 whose parameters are all drawn, so that no weight of 1 or bias of 0 hides a mistake."""
    with kernels(form):
        model = Seq2Seq(CONFIG.replace(**{**VARIANTS[variant], **changes})).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return model


def sentences(lengths: list[int] = LENGTHS, seed: int = 0) -> Tensor:
    """Random source tokens, short rows padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, SOURCES, (len(lengths), max(lengths)), generator=generator)
    places = torch.arange(max(lengths))
    return rows.masked_fill(places >= torch.tensor(lengths)[:, None], PAD)


def targets(rows: int, length: int, seed: int = 5) -> Tensor:
    return torch.randint(TARGETS, (rows, length), generator=torch.Generator().manual_seed(seed))


def equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# --- against torch.nn ------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """The same model of `torch.nn.Transformer`, under torch's names."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.source_embedding = nn.Embedding(c.source_vocab_size, c.width)
        self.embedding = nn.Embedding(c.vocab_size, c.width)
        pre = c.norm_placement == "pre"
        options = {"dropout": 0.0, "activation": c.activation, "norm_first": pre, "batch_first": True}
        sizes = (c.width, c.heads, c.hidden_features)
        encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(*sizes, **options),
            c.encoder_layers,
            nn.LayerNorm(c.width) if pre else None,
            enable_nested_tensor=False,
        )
        decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(*sizes, **options), c.decoder_layers, nn.LayerNorm(c.width) if pre else None
        )
        self.transformer = nn.Transformer(
            c.width, c.heads, custom_encoder=encoder, custom_decoder=decoder, batch_first=True
        )

    def forward(self, source: Tensor, tokens: Tensor) -> Tensor:
        padded = source == PAD
        future = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        x = self.transformer(
            self.embed(source, self.source_embedding),
            self.embed(tokens, self.embedding),
            tgt_mask=future,
            src_key_padding_mask=padded,
            memory_key_padding_mask=padded,
        )
        return x @ self.embedding.weight.T

    def embed(self, tokens: Tensor, embedding: nn.Embedding) -> Tensor:
        width = self.config.width
        return embedding(tokens) * math.sqrt(width) + sinusoidal(torch.arange(tokens.shape[1]), width)


ATTENTIONS = {"attention": "self_attn", "cross": "multihead_attn"}
PARTS = {"feed_forward.input": "linear1", "feed_forward.output": "linear2"}


def to_torch(values: dict[str, Tensor], config: Seq2SeqConfig) -> dict[str, Tensor]:
    """Our tensors (parameters, or their gradients) under torch's names: three matrices of ours are one of theirs."""
    found = {name: values[name] for name in ("source_embedding.weight", "embedding.weight")}
    stacks = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
    for stack, layers in stacks.items():
        norms = ["attention_norm", *(["cross_norm"] if stack == "decoder" else []), "feed_forward_norm"]
        for index in range(layers):
            ours, theirs = f"{stack}.{index}", f"transformer.{stack}.layers.{index}"
            for kind in ("weight", "bias"):
                for name, other in ATTENTIONS.items():
                    if f"{ours}.{name}.query.{kind}" not in values:
                        continue
                    parts = [values[f"{ours}.{name}.{part}.{kind}"] for part in ("query", "key", "value")]
                    found[f"{theirs}.{other}.in_proj_{kind}"] = torch.cat(parts)
                    found[f"{theirs}.{other}.out_proj.{kind}"] = values[f"{ours}.{name}.output.{kind}"]
                for name, other in PARTS.items():
                    found[f"{theirs}.{other}.{kind}"] = values[f"{ours}.{name}.{kind}"]
                for place, name in enumerate(norms, start=1):
                    found[f"{theirs}.norm{place}.{kind}"] = values[f"{ours}.{name}.{kind}"]
        last = "encoder_norm" if stack == "encoder" else "norm"
        if config.norm_placement == "pre":
            for kind in ("weight", "bias"):
                found[f"transformer.{stack}.norm.{kind}"] = values[f"{last}.{kind}"]
    return found


@both_forms
@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_it_is_that_of_torch_in_value_and_gradient(form: str, placement: str, activation: str) -> None:
    ours = make(form=form, norm_placement=placement, activation=activation, encoder_layers=3)
    plain = Plain(ours.config).double()
    plain.load_state_dict(to_torch({name: value.detach() for name, value in ours.named_parameters()}, ours.config))
    source, tokens = sentences(), targets(4, 5)
    found, expected = ours(source, tokens), plain(source, tokens)
    equal(found, expected)
    weights = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for logits in (found, expected):
        (logits * weights).sum().backward()
    gradients = to_torch({name: value.grad for name, value in ours.named_parameters()}, ours.config)
    theirs = dict(plain.named_parameters())
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        equal(gradient, theirs[name].grad)


# --- padding ---------------------------------------------------------------------------------------------------


@both_forms
@each_variant
def test_a_padded_batch_is_what_single_sentences_are(form: str, variant: str) -> None:
    model, source, tokens = make(variant, form), sentences(), targets(4, 5)
    logits, memory = model(source, tokens), model.encode(source)
    assert memory.mask is not None
    assert memory.mask.sum(1).tolist() == LENGTHS
    for row, length in enumerate(LENGTHS):
        alone = source[row : row + 1, :length]
        assert model.encode(alone).mask is None
        equal(logits[row], model(alone, tokens[row : row + 1])[0])
        equal(memory.states[row, :length], model.encode(alone).states[0])


@each_variant
def test_padding_says_nothing_and_learns_nothing(variant: str) -> None:
    model, source, tokens = make(variant), sentences(), targets(4, 5)
    logits = model(source, tokens)
    logits.square().sum().backward()
    assert (model.source_embedding.weight.grad[PAD] == 0).all()
    with torch.no_grad():
        model.source_embedding.weight[PAD] = 100.0
    assert torch.equal(model(source, tokens), logits)
    wider = torch.cat([source, torch.full((4, 3), PAD)], dim=1)
    equal(model(wider, tokens), logits)


def test_another_token_may_fill_up() -> None:
    model, source, tokens = make(), sentences(), targets(4, 5)
    other = make(padding=12)
    moved = torch.where(source == PAD, 12, torch.where(source == 12, 1, source))
    plain = torch.where(source == 12, 1, source)
    equal(other(moved, tokens), model(plain, tokens))


def test_a_sentence_of_nothing_is_answered_without_nan() -> None:
    model, source = make(), sentences()
    source[2] = PAD
    logits = model(source, targets(4, 5))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@each_variant
def test_no_target_token_is_seen_before_it_comes(variant: str) -> None:
    model, source, tokens = make(variant), sentences(), targets(4, 6)
    logits = model(source, tokens)
    for place in range(6):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % TARGETS
        different = (model(source, changed) != logits).any(dim=2)
        assert not different[:, :place].any()
        assert different[:, place:].all()


# --- cache -----------------------------------------------------------------------------------------------------


@both_forms
@each_variant
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("pieces", [[6], [1] * 6, [3, 1, 2]])
def test_cached_equals_uncached(form: str, variant: str, beams: int, pieces: list[int]) -> None:
    model, source, tokens = make(variant, form), sentences(), targets(4 * beams, 6)
    memory = model.encode(source)
    cache = model.new_cache(memory, beams)
    found = torch.cat([model.decode(part, memory, cache) for part in tokens.split(pieces, dim=1)], dim=1)
    assert cache.length == 6
    equal(found, model.decode(tokens, memory))
    equal(found, model(source.repeat_interleave(beams, 0), tokens))


@both_forms
@each_variant
def test_beams_are_reordered_and_sentences_dropped(form: str, variant: str) -> None:
    model, source, tokens = make(variant, form), sentences(), targets(12, 8)
    memory = model.encode(source)
    cache = model.new_cache(memory, 3)
    model.decode(tokens[:, :3], memory, cache)
    history = tokens[:, :3]
    # Beams change within their sentences; then two sentences are dropped and the others swapped; then all stay.
    for rows in ([2, 2, 0, 3, 5, 4, 8, 7, 6, 9, 9, 9], [9, 10, 11, 4, 4, 3], [0, 1, 2, 3, 4, 5]):
        chosen = torch.tensor(rows)
        cache.select(chosen)
        history, source = history[chosen], source.repeat_interleave(3, 0)[chosen][::3]
        new = targets(len(rows), 1, seed=len(rows) + cache.length)
        history = torch.cat([history, new], dim=1)
        # What is dropped from the cache need not be dropped from the memory that is handed in.
        found = model.decode(new, memory, cache)
        equal(found[:, 0], model(source.repeat_interleave(3, 0), history)[:, -1])


def test_a_cache_may_grow() -> None:
    model, source, tokens = make(), sentences([3, 5]), targets(2, 4)
    memory = model.encode(source)
    cache = model.new_cache(memory)
    model.decode(tokens[:, :3], memory, cache)
    rows = torch.tensor([1, 0, 1, 1])
    cache.select(rows)
    equal(model.decode(tokens[rows][:, 3:], memory, cache)[:, 0], model(source, tokens)[rows, -1])


def test_rows_that_are_not_whole_groups_are_refused() -> None:
    model, source = make(), sentences([3, 5])
    memory = model.encode(source)
    cache = model.new_cache(memory, 2)
    for rows in ([0, 1, 2], [0, 2, 1, 3]):
        with pytest.raises(ConfigError, match="in whole groups of 2, each of one sentence"):
            cache.select(torch.tensor(rows))
    with pytest.raises(ConfigError, match="3 rows of tokens do not come in equal groups for 2 sentences"):
        model.decode(targets(3, 2), memory)
    with pytest.raises(ConfigError, match="made for 4 rows, not 2"):
        model.decode(targets(2, 2), memory, cache)


@each_variant
def test_a_memory_is_selected(variant: str) -> None:
    model, source, tokens = make(variant), sentences(), targets(2, 4)
    rows = torch.tensor([2, 1])
    memory = model.encode(source).select(rows)
    assert memory.rows == 2
    equal(model.decode(tokens, memory), model(source[rows], tokens))
    assert Memory(torch.zeros(3, 2, 1)).select(rows).mask is None


def test_keys_and_values_of_the_memory_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, source = make(), sentences()
    memory = model.encode(source)
    cache = model.new_cache(memory, 3)
    assert [tuple(part.shape) for pair in cache.memories for part in pair] == [(4, 2, 7, 4)] * 4
    for block in model.decoder:
        monkeypatch.setattr(block.cross, "keys_and_values", None)
    model.decode(targets(12, 1), memory, cache)


@each_variant
def test_every_parameter_learns(variant: str) -> None:
    model, source, tokens = make(variant), sentences(), targets(4, 5)
    nn.functional.cross_entropy(model(source, tokens).flatten(0, 1), tokens.flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # A bias of keys adds the same to all scores of a query: a softmax does not see it.
        assert (parameter.grad.abs().max() > 1e-12) == (not name.endswith("key.bias")), name


# --- the rest --------------------------------------------------------------------------------------------------


def test_fused_and_reference_are_equal() -> None:
    source, tokens = sentences(), targets(4, 5)
    for variant in VARIANTS:
        equal(make(variant)(source, tokens), make(variant, "reference")(source, tokens))


@each_variant
def test_hidden_and_head_are_the_model(variant: str) -> None:
    model, source, tokens = make(variant), sentences(), targets(4, 5)
    hidden = model.decode_hidden(tokens, model.encode(source))
    assert hidden.shape == (4, 5, 8)
    assert torch.equal(model.head(hidden), model(source, tokens))


def test_logits_are_float32_under_autocast_and_near_the_exact_ones() -> None:
    for variant in VARIANTS:
        model, source, tokens = make(variant).float(), sentences(), targets(4, 5)
        exact = model(source, tokens)
        with torch.autocast("cpu", torch.bfloat16):
            learning = model(source, tokens)
            with torch.no_grad():
                memory = model.encode(source)
                cache = model.new_cache(memory)
                steps = [model.decode(part, memory, cache) for part in tokens.split(1, dim=1)]
        for found in (learning, torch.cat(steps, dim=1)):
            assert found.dtype == torch.float32
            assert (found - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_record_tells_the_attentions_apart() -> None:
    model, source = make(encoder_layers=1, decoder_layers=2), sentences()
    with record() as maps:
        model(source, targets(4, 5))
    # The encoder's, then of each decoder layer its own and the one over the source.
    assert [tuple(part.shape[2:]) for part in maps] == [(7, 7), (5, 5), (5, 7), (5, 5), (5, 7)]
    for weights in maps:
        equal(weights.sum(-1), torch.ones(weights.shape[:-1]).double())
    assert (maps[2][1, :, :, 4:] == 0).all()


def test_a_sentence_that_is_too_long() -> None:
    model = make()
    with pytest.raises(ConfigError, match=r"A source of 13 tokens does not fit the 12 positions .* Split it"):
        model.encode(sentences([13]))
    memory = model.encode(sentences([12]))
    cache = model.new_cache(memory)
    model.decode(targets(1, 12), memory, cache)
    with pytest.raises(ConfigError, match=r"A target of 13 tokens does not fit"):
        model.decode(targets(1, 1), memory, cache)


@pytest.mark.parametrize("initialization", ["torch", "normal", "gpt2", "fan-in", "xavier"])
def test_the_seed_decides_the_weights(initialization: str) -> None:
    config = CONFIG.replace(initialization=initialization, tied_head=False)
    one, other, another = (Seq2Seq(config, seeded(seed, "initialization")).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[name], other[name]) for name in one)
    drawn = [name for name in one if not name.endswith("bias") and "norm" not in name]
    assert not any(torch.equal(one[name], another[name]) for name in drawn)


def test_xavier_is_that_of_torch_in_its_spread() -> None:
    model = Seq2Seq(CONFIG.replace(width=96, tied_head=False, bias=True), torch.Generator().manual_seed(0))
    other = torch.empty(384, 96)
    nn.init.xavier_uniform_(other)
    weight = model.encoder[0].feed_forward.input.weight
    bound = math.sqrt(6 / (96 + 384))
    assert weight.abs().max() < bound
    assert abs(weight.std() - other.std()) < 0.02 * other.std()
    assert abs(model.embedding.weight.std() * math.sqrt(96) - 1) < 0.1
    assert abs(model.head.weight.std() * math.sqrt(96) - 1) < 0.1
    assert (model.encoder[0].feed_forward.input.bias == 0).all()


def test_what_writes_into_the_stream_is_scaled_or_zero() -> None:
    plain, scaled, zero = (
        Seq2Seq(CONFIG.replace(initialization=kind, zero_projections=none), torch.Generator().manual_seed(0))
        for kind, none in (("normal", False), ("gpt2", False), ("gpt2", True))
    )
    for stack, terms in (("encoder", 2 * 2), ("decoder", 2 * 3)):
        for index in range(2):
            for part in ("attention.output", "feed_forward.output", *(["cross.output"] if terms == 6 else [])):
                name = f"{stack}.{index}.{part}.weight"
                torch.testing.assert_close(scaled.state_dict()[name] * math.sqrt(terms), plain.state_dict()[name])
                assert (zero.state_dict()[name] == 0).all()


def test_one_matrix_for_all_three() -> None:
    model = make(vocab_size=SOURCES, tied_embeddings=True)
    assert model.source_embedding.weight is model.embedding.weight is model.head.weight
    assert not any("wave" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads = 3: does not divide width = 8. Try 1, 2, 4."),
        ({"width": 6, "positions": "rotary"}, "rotary needs an even number of features a head, not 3"),
        ({"width": 7, "heads": 1}, "width = 7: must be even for sinusoidal positions"),
        ({"decoder_layers": 0}, "decoder_layers = 0: must be at least 1"),
        ({"hidden": 0}, "hidden = 0: must be at least 1"),
        ({"dropout": 1.0}, "dropout = 1.0: must be at least 0 and below 1"),
        ({"padding": 13}, "padding = 13: must be a token of the source vocabulary"),
        ({"tied_embeddings": True}, "needs one vocabulary, not 13 source and 11 target tokens"),
        ({"rotary_base": 1.0}, "rotary_base = 1.0: must be a number above 1"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CONFIG.replace(**changes)
