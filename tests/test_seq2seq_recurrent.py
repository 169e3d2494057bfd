"""The LSTM encoder-decoders against torch.nn.LSTM with packed rows and attentions written another way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from handmade.attention import record
from handmade.errors import ConfigError
from handmade.layers import kernels
from handmade.models.seq2seq_recurrent import Seq2SeqLSTM, Seq2SeqLSTMConfig, turned_around
from handmade.training import seeded

TARGETS, SOURCES, PAD, WIDTH = 11, 13, 0, 6
CONFIG = Seq2SeqLSTMConfig(vocab_size=TARGETS, source_vocab_size=SOURCES, width=WIDTH)
LENGTHS = [7, 4, 1, 7]
both_forms = pytest.mark.parametrize("form", ["fused", "reference"])
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"attention": "none", "layers": 2},
    "none, forward": {"attention": "none", "reverse_source": False},
    "additive": {"attention": "additive"},
    "additive, deep": {"attention": "additive", "layers": 3, "bidirectional": False, "reverse_source": True},
    "multiplicative": {"attention": "multiplicative", "layers": 2},
    "multiplicative, both ways": {"attention": "multiplicative", "layers": 2, "bidirectional": True},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def make(variant: str, form: str = "fused", **changes: Any) -> Seq2SeqLSTM:
    with kernels(form):
        model = Seq2SeqLSTM(CONFIG.replace(**{**VARIANTS[variant], **changes})).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return model


def sentences(lengths: list[int] = LENGTHS, seed: int = 0) -> Tensor:
    """Random source tokens, short rows padded on the right."""
    rows = torch.randint(1, SOURCES, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    return rows.masked_fill(torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None], PAD)


def targets(rows: int, length: int, seed: int = 5) -> Tensor:
    return torch.randint(TARGETS, (rows, length), generator=torch.Generator().manual_seed(seed))


def equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# --- against torch.nn ------------------------------------------------------------------------------------------


def plain(model: Seq2SeqLSTM, weights: dict[str, Tensor], source: Tensor, tokens: Tensor) -> Tensor:
    """The same model of torch's LSTMs with packed rows, one sentence and one token after another. `weights` are ours,
    by name."""
    c = model.config

    def lstm(names: list[str], x: Tensor, state: Any = None) -> Any:
        """A stack of ours is one LSTM of torch's; a name with two parts is read both ways."""
        both = "|" in names[0]
        cell = nn.LSTM(x.shape[-1], WIDTH, len(names), batch_first=True, bidirectional=both).double()
        given = {}
        for layer, name in enumerate(names):
            for way, part in enumerate(name.split("|")):
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    given[f"{kind}_l{layer}{'_reverse' * way}"] = weights[f"{part}.{kind}_l0"]
        return torch.func.functional_call(cell, given, (x, state))

    rows = []
    for sentence, row in zip(source, tokens, strict=True):
        words = sentence[sentence != PAD]
        words = words.flip(0) if c.backwards else words
        x = weights["source_embedding.weight"][words][None]
        ways = [f"encoder.forward_cells.{i}" for i in range(c.layers)]
        if c.both_ways:
            ways = [f"{name}|{name.replace('forward', 'backward')}" for name in ways]
        h, last = lstm(ways, x)
        h = h.flip(1) if c.backwards else h
        states = [(last[0][i : i + 1], last[1][i : i + 1]) for i in range(c.layers)]
        if c.both_ways:  # torch's order: forward, backward of each layer
            backward = [(last[0][2 * i + 1], last[1][2 * i + 1]) for i in range(c.layers)]
            states = [
                (torch.tanh(s @ weights[f"first.{i}.weight"].T + weights[f"first.{i}.bias"])[None], cell[None])
                for i, (s, cell) in enumerate(backward)
            ]
        outputs = []
        for token in row:
            y = weights["embedding.weight"][token][None, None]  # (1, 1, C)
            if c.attention == "additive":
                y, states[0] = bahdanau(weights, lstm, y, h, states[0])
            for index in range(len(model.cells)):
                place = index + (c.attention == "additive")
                y, states[place] = lstm([f"cells.{index}"], y, states[place])
            if c.attention == "multiplicative":
                y = luong(weights, y, h)
            outputs.append(y[0, 0] @ weights["head.weight"].T + weights["head.bias"])
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def bahdanau(weights: dict[str, Tensor], lstm: Any, y: Tensor, h: Tensor, state: Any) -> tuple[Tensor, Any]:
    """One step, one source token after another."""
    w, u = weights["additive.query.weight"], weights["additive.key.weight"]
    v = weights["additive.energy.weight"][0]
    scores = torch.stack([v @ torch.tanh(w @ state[0][0, 0] + u @ vector) for vector in h[0]])
    context = sum(share * vector for share, vector in zip(scores.softmax(0), h[0], strict=True))
    _, state = lstm(["additive.cell"], torch.cat([y, context[None, None]], dim=2), state)
    t = weights["additive.readout.weight"] @ torch.cat([state[0][0, 0], y[0, 0], context])
    t = t + weights["additive.readout.bias"]
    return torch.maximum(t[::2], t[1::2])[None, None], state


def luong(weights: dict[str, Tensor], s: Tensor, h: Tensor) -> Tensor:
    scores = torch.einsum("c,cd,jd->j", s[0, 0], weights["multiplicative.key.weight"], h[0])
    context = torch.einsum("j,jd->d", scores.exp() / scores.exp().sum(), h[0])
    return torch.tanh(weights["multiplicative.output.weight"] @ torch.cat([context, s[0, 0]]))[None, None]


@both_forms
@each_variant
def test_it_is_that_of_torch_in_value_and_gradient(form: str, variant: str) -> None:
    model, source, tokens = make(variant, form), sentences([5, 2, 3]), targets(3, 4)
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    found, expected = model(source, tokens), plain(model, weights, source, tokens)
    equal(found, expected)
    factors = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for logits in (found, expected):
        (logits * factors).sum().backward()
    for name, parameter in model.named_parameters():
        equal(parameter.grad, weights[name].grad)
        assert parameter.grad.abs().max() > 1e-12, name


# --- padding ---------------------------------------------------------------------------------------------------


@both_forms
@each_variant
def test_a_padded_batch_is_what_single_sentences_are(form: str, variant: str) -> None:
    model, source, tokens = make(variant, form), sentences(), targets(4, 5)
    logits, memory = model(source, tokens), model.encode(source)
    assert memory.mask.sum(1).tolist() == LENGTHS
    for row, length in enumerate(LENGTHS):
        alone = source[row : row + 1, :length]
        assert model.encode(alone).mask is None
        equal(logits[row], model(alone, tokens[row : row + 1])[0])
        equal(memory.states[row, :length], model.encode(alone).states[0])


@both_forms
@each_variant
def test_padding_says_nothing_and_learns_nothing(form: str, variant: str) -> None:
    model, source, tokens = make(variant, form), sentences(), targets(4, 5)
    logits = model(source, tokens)
    logits.square().sum().backward()
    assert (model.source_embedding.weight.grad[PAD] == 0).all()
    with torch.no_grad():
        model.source_embedding.weight[PAD] = 100.0
    assert torch.equal(model(source, tokens), logits)
    wider = torch.cat([source, torch.full((4, 3), PAD)], dim=1)
    equal(model(wider, tokens), logits)


@both_forms
@each_variant
def test_a_sentence_of_nothing_is_answered_without_nan(form: str, variant: str) -> None:
    model, source = make(variant, form), sentences()
    source[2] = PAD
    with record() as maps:
        logits = model(source, targets(4, 5))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert all((weights[2] == 0).all() for weights in maps)
    with torch.no_grad():
        model.source_embedding.weight[PAD] = 100.0
    assert torch.equal(model(source, targets(4, 5)), logits)


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


def test_turned_around() -> None:
    assert turned_around(4, torch.tensor([4, 2, 0]), torch.device("cpu")).tolist() == [
        [3, 2, 1, 0],
        [1, 0, 2, 3],
        [0, 1, 2, 3],
    ]
    assert turned_around(3, None, torch.device("cpu")).tolist() == [[2, 1, 0]]


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
    for rows in ([2, 2, 0, 3, 5, 4, 8, 7, 6, 9, 9, 9], [9, 10, 11, 4, 4, 3], [0, 1, 2, 3, 4, 5]):
        chosen = torch.tensor(rows)
        cache.select(chosen)
        history, source = history[chosen], source.repeat_interleave(3, 0)[chosen][::3]
        new = targets(len(rows), 1, seed=len(rows) + cache.length)
        history = torch.cat([history, new], dim=1)
        found = model.decode(new, memory, cache)
        equal(found[:, 0], model(source.repeat_interleave(3, 0), history)[:, -1])


@each_variant
def test_a_memory_is_selected(variant: str) -> None:
    model, source, tokens = make(variant), sentences(), targets(2, 4)
    rows = torch.tensor([2, 1])
    equal(model.decode(tokens, model.encode(source).select(rows)), model(source[rows], tokens))


@each_variant
def test_rows_that_are_not_whole_groups_are_refused(variant: str) -> None:
    model = make(variant)
    memory = model.encode(sentences([3, 5]))
    cache = model.new_cache(memory, 2)
    with pytest.raises(ConfigError, match="in whole groups of 2, each of one sentence"):
        cache.select(torch.tensor([0, 2, 1, 3]))
    with pytest.raises(ConfigError, match="3 rows of tokens do not come in equal groups for 2 sentences"):
        model.decode(targets(3, 2), memory)
    with pytest.raises(ConfigError, match="made for 4 rows, not 2"):
        model.decode(targets(2, 2), memory, cache)


# --- the rest --------------------------------------------------------------------------------------------------


@each_variant
def test_hidden_and_head_are_the_model(variant: str) -> None:
    model, source, tokens = make(variant), sentences(), targets(4, 5)
    hidden = model.decode_hidden(tokens, model.encode(source))
    assert hidden.shape == (4, 5, WIDTH)
    assert torch.equal(model.head(hidden), model(source, tokens))
    assert model.context is None


@both_forms
@each_variant
def test_near_the_exact_logits_under_autocast(form: str, variant: str) -> None:
    model, source, tokens = make(variant, form).float(), sentences(), targets(4, 5)
    exact = model(source, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        learning = model(source, tokens)
        learning.sum().backward()
        with torch.no_grad():
            memory = model.encode(source)
            cache = model.new_cache(memory)
            steps = [model.decode(part, memory, cache) for part in tokens.split(1, dim=1)]
    for found in (learning, torch.cat(steps, dim=1)):
        assert found.dtype == torch.float32
        assert (found - exact).abs().mean() < 0.05 * exact.abs().mean()


@both_forms
@pytest.mark.parametrize("variant", ["additive", "additive, deep", "multiplicative", "multiplicative, both ways"])
def test_record_hears_the_alignment(form: str, variant: str) -> None:
    model, source, tokens = make(variant, form), sentences(), targets(4, 5)
    with record() as maps:
        model(source, tokens)
    (weights,) = maps
    assert weights.shape == (4, 1, 5, 7)
    assert not weights.requires_grad
    equal(weights.sum(-1), torch.ones(4, 1, 5).double())
    assert (weights[1, :, :, 4:] == 0).all()
    with record() as single:
        model(source[1:2, :4], tokens[1:2])
    equal(single[0][0], weights[1, :, :, :4])


def test_annotations_stand_in_the_order_of_the_source() -> None:
    # Read from the right, a token is known to those on its left and to none on its right.
    model = make("multiplicative", layers=1, reverse_source=True)
    states, changed = (model.encode(torch.tensor([[3, 5, third, 9]])).states for third in (7, 8))
    assert (states != changed).any(2).tolist() == [[True, True, True, False]]


@each_variant
def test_the_seed_decides_the_weights_and_nothing_else_is_drawn(variant: str) -> None:
    config = CONFIG.replace(**VARIANTS[variant])
    before = torch.get_rng_state()
    one, other, another = (Seq2SeqLSTM(config, seeded(seed, "initialization")).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any(torch.equal(one[name], another[name]) for name in one)


def test_what_was_published_is_the_default() -> None:
    shape = [(CONFIG.replace(attention=kind).both_ways, CONFIG.replace(attention=kind).backwards) for kind in KINDS]
    assert shape == [(False, True), (True, False), (False, False)]


KINDS = ("none", "additive", "multiplicative")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers = 0: must be at least 1"),
        ({"dropout": 1.0}, "dropout = 1.0: must be at least 0 and below 1"),
        ({"padding": 13}, "padding = 13: must be a token of the source vocabulary"),
        ({"attention": "none", "bidirectional": True}, "bidirectional = True: must be false without attention"),
        ({"reverse_source": True}, "must be false for an encoder that reads both ways"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CONFIG.replace(**changes)
