"""What may be left out of a GPT to see what it is worth: queries and keys, the residual connections, the feed-forward
layer, the scale of the scores. (Caches, padding, causality: the variants in test_gpt.py.)"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layer_parity import both_forms, build, normal, run
from small_runs import text_data
from torch import Tensor

from handmade import attention, planning
from handmade.attention import Attention, MeanOfPast, record
from handmade.errors import ConfigError
from handmade.models.gpt import GPT, GPTConfig, parameter_count
from handmade.tasks import sizes
from handmade.training import TrainConfig

VOCAB, CONTEXT, WIDTH = 13, 16, 12
SHAPE = {"vocab_size": VOCAB, "context": CONTEXT, "layers": 3, "heads": 2, "width": WIDTH}


def make(form: str = "fused", **changes: Any) -> GPT:
    """A small model in float64, every parameter drawn, so that no zero and no 1 hides a mistake."""
    return build(form, lambda: GPT(GPTConfig(**{**SHAPE, **changes}))).double().eval()


def some_tokens(*shape: int) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(0))


def equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# --- the mean of the past --------------------------------------------------------------------------------------


def without_questions(mean: MeanOfPast, heads: int) -> Attention:
    """An attention with the same values and output, its queries and keys all zero."""
    twin = Attention(mean.width, heads, causal=True).to(mean.value.weight.dtype)
    missing, unexpected = twin.load_state_dict(mean.state_dict(), strict=False)
    assert {name.split(".")[0] for name in missing} == {"query", "key"}
    assert not unexpected
    with torch.no_grad():
        for layer in (twin.query, twin.key):
            layer.weight.zero_()
            layer.bias.zero_()
    return twin


def padding(starts: list[int], asked: int) -> Tensor:
    return torch.tensor([[[[column >= start for column in range(asked)]]] for start in starts])


MASKS = {
    "none": None,
    "padding": padding([0, 3, 6], 7),  # the last row sees one token
    "nothing": padding([0, 7, 2], 7),
    "each its own": normal(3, 3, 1, 7, 7) > 0,
    "for all rows": normal(4, 7, 7) > 0,
    "for all": torch.arange(7) > 2,
}


@both_forms
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("mask", MASKS)
def test_the_mean_is_attention_without_questions(form, heads, mask):
    ours = build(form, lambda: MeanOfPast(WIDTH)).double()
    theirs, x = without_questions(ours, heads), normal(0, 3, 7, WIDTH)
    found, truth = (run(lambda x, part=part: part(x, None, MASKS[mask]), [x]) for part in (ours, theirs))
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        equal(found[name], value)
    for name, parameter in ours.named_parameters():
        equal(parameter.grad, theirs.get_parameter(name).grad)


@both_forms
def test_a_model_of_means_is_a_gpt_without_questions(form):
    ours = make(form, mixing="mean")
    theirs = make(form)
    theirs.load_state_dict({**theirs.state_dict(), **ours.state_dict()})
    with torch.no_grad():
        for block in theirs.blocks:
            block.attention.query.weight.zero_()
            block.attention.query.bias.zero_()
    equal(ours(some_tokens(2, CONTEXT)), theirs(some_tokens(2, CONTEXT)))


FAR = 4096


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
def test_a_long_running_sum_stays_exact(dtype, most):
    # Values that do not cancel: the sum grows to 4,096, where bfloat16 has steps of 32 and float32 of 0.0005.
    values = (normal(0, 2, 1, FAR, 8) + 1).to(dtype)
    weights = normal(1, 2, 1, FAR, 8).to(dtype)
    mask = padding([0, 100], FAR)
    for hides in (None, mask):
        results = []
        for kind in (dtype, torch.float64):
            x = values.to(kind).detach().clone().requires_grad_()
            y = attention.running_mean(x, FAR, hides)
            (y * weights.to(kind)).sum().backward()
            results.append((y.detach().double(), x.grad.double()))
        for found, truth in zip(*results, strict=True):
            assert (found - truth).abs().max() <= most * truth.abs().max()
    alone = attention.running_mean(values, 1)  # the last one, as while decoding
    assert (alone[..., 0, :].double() - values.double().mean(-2)).abs().max() <= most


def test_the_triangle_is_exact_where_bfloat16_cannot_count():
    weights = attention.mean_weights(FAR, FAR, None, torch.zeros((), dtype=torch.bfloat16))
    expected = 1 / torch.arange(1, FAR + 1).double()
    assert ((weights[:, 0].double() - expected).abs() <= 2**-8 * expected).all()
    assert (weights.triu(1) == 0).all()


@both_forms
def test_the_weights_of_a_mean_are_recorded(form):
    model, tokens, starts = make(form, mixing="mean", layers=2), some_tokens(2, 6), torch.tensor([0, 2])
    with record() as maps:
        model(tokens, starts=starts)
    assert [tuple(part.shape) for part in maps] == [(2, 1, 6, 6)] * 2
    for row, start in enumerate(starts.tolist()):
        for t in range(6):
            share = 1 / (t - start + 1) if t >= start else 0.0
            equal(
                maps[1][row, 0, t],
                torch.tensor([share if start <= s <= t else 0.0 for s in range(6)], dtype=torch.float64),
            )
    cache = model.new_cache(2)
    with record() as steps:
        for part in tokens.split([4, 1, 1], dim=1):
            model(part, cache=cache, starts=starts)
    for index, rows in enumerate((slice(0, 4), slice(4, 5), slice(5, 6))):
        equal(steps[2 * index], maps[0][:, :, rows, : rows.stop])


@both_forms
def test_dropout_forgets_some_of_the_past(form):
    p, layer = 0.25, build(form, lambda: MeanOfPast(32, bias=False, dropout=0.25)).double()
    with torch.no_grad():
        for part in (layer.value, layer.output):
            part.weight.copy_(torch.eye(32))
    x = torch.eye(32).double().expand(8, -1, -1)  # values that are the identity: out come the weights
    torch.manual_seed(0)
    dropped = layer(x)
    weights = torch.ones(32, 32).double().tril() / torch.arange(1, 33)[:, None]
    kept, allowed = dropped != 0, weights.expand(8, -1, -1) != 0
    equal(dropped, torch.where(kept, weights / (1 - p), 0.0))
    assert abs(kept[allowed].double().mean() - (1 - p)) < 0.03  # 4,224 draws: a deviation of 0.007
    equal(layer.eval()(x), weights.expand(8, -1, -1))


def test_a_cache_of_means_has_no_keys():
    cache = make(mixing="mean").new_cache(3)
    assert [tuple(layer.keys.shape) for layer in cache.layers] == [(3, 1, CONTEXT, 0)] * 3
    assert [tuple(layer.values.shape) for layer in cache.layers] == [(3, 1, CONTEXT, WIDTH)] * 3


@both_forms
def test_what_does_not_fit_is_refused(form):
    layer, x = build(form, lambda: MeanOfPast(8)), torch.zeros(1, 3, 8)
    with pytest.raises(ConfigError, match="takes no memory and no rotation"):
        layer(x, x)
    with pytest.raises(ConfigError, match="takes no memory and no rotation"):
        layer(x, rotation=(x, x))
    with pytest.raises(ConfigError, match=r"mean of the past: dropout = 1\.0"):
        MeanOfPast(8, dropout=1.0)
    with pytest.raises(ConfigError, match="mean of the past: width = 0"):
        MeanOfPast(0)
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="must be a number above 0, or None"):
            Attention(8, 2, scale=scale)


# --- the scale of the scores -----------------------------------------------------------------------------------

DIVISORS = {"head": math.sqrt(WIDTH / 2), "width": math.sqrt(WIDTH), "none": 1.0}


def written_attention(layer: Attention, x: Tensor, divisor: float) -> Tensor:
    """One head after another, one token after another. (T, C) -> (T, C)."""
    queries, keys, values = (part.weight @ x.T + part.bias[:, None] for part in (layer.query, layer.key, layer.value))
    size, rows = layer.features, []
    for t in range(len(x)):
        heads = []
        for h in range(layer.heads):
            at = slice(h * size, (h + 1) * size)
            weights = ((queries[at, t] @ keys[at, : t + 1]) / divisor).exp()
            heads.append(values[at, : t + 1] @ weights / weights.sum())
        rows.append(layer.output.weight @ torch.cat(heads) + layer.output.bias)
    return torch.stack(rows)


@both_forms
@pytest.mark.parametrize("scale", DIVISORS)
def test_scores_are_divided_as_the_config_says(form, scale):
    layer = make(form, score_scale=scale, layers=1).blocks[0].attention
    x = normal(0, 1, 6, WIDTH, scale=0.3)
    equal(layer(x)[0], written_attention(layer, x[0], DIVISORS[scale]))


@pytest.mark.parametrize("scale", [0.05, 1.0, 2.0])
@pytest.mark.parametrize("causal", [False, True])
def test_the_scale_of_the_functions_is_the_kernel_s(scale, causal):
    queries, keys, values = (normal(seed, 2, 3, 5, 4) for seed in range(3))
    truth = run(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale), [queries, keys, values]
    )
    ways = [lambda q, k, v: attention.attend(q, k, v, causal=causal, scale=scale)]
    ways += [lambda q, k, v: attention.attention_weights(q, k, causal=causal, scale=scale) @ v]
    ways += [lambda q, k, v: attention.attend_by_products(q, k, v, causal=causal, scale=scale)]
    for way in ways:
        for name, value in run(way, [queries, keys, values]).items():
            equal(value, truth[name])


@both_forms
@pytest.mark.parametrize("scale", DIVISORS)
@pytest.mark.parametrize("learning", [True, False])
def test_the_scale_in_bfloat16(form, scale, learning):
    # While training on a CPU the fused form has a way of its own (`attend_by_products`).
    layer = make(form, score_scale=scale, layers=1).blocks[0].attention
    exact, x = copy.deepcopy(layer), normal(0, 1, 6, WIDTH, scale=0.3).to(torch.bfloat16)
    layer.to(torch.bfloat16)
    truth = written_attention(exact, x[0].double(), DIVISORS[scale])
    with torch.set_grad_enabled(learning):
        found = layer(x)[0].double()
    assert (found - truth).norm() < 0.02 * truth.norm()
    others = [written_attention(exact, x[0].double(), other) for name, other in DIVISORS.items() if name != scale]
    assert all((found - other).norm() > (found - truth).norm() for other in others)


@both_forms
@pytest.mark.parametrize("scale", DIVISORS)
def test_the_scale_in_what_is_recorded(form, scale):
    model, tokens = make(form, score_scale=scale, layers=1), some_tokens(1, 6)
    with torch.no_grad():
        part = model.blocks[0].attention
        x = model.blocks[0].attention_norm(model.embedding(tokens) + model.position.weight[:6])[0]
        queries, keys = (x @ layer.weight.T + layer.bias for layer in (part.query, part.key))
        with record() as maps:
            model(tokens)
    for h in range(2):
        at = slice(h * 6, (h + 1) * 6)
        scores = (queries[:, at] @ keys[:, at].T / DIVISORS[scale]).exp().tril()
        equal(maps[0][0, h], scores / scores.sum(-1, keepdim=True))


# --- the stream ------------------------------------------------------------------------------------------------


def composed(model: GPT, tokens: Tensor) -> Tensor:
    """The model's own parts, put together again by hand."""
    c = model.config
    x = model.embedding.weight[tokens] + model.position.weight[: tokens.shape[1]]
    for block in model.blocks:
        assert (block.feed_forward is None) == (c.hidden == 0)
        parts = [(block.attention_norm, block.attention)]
        parts += [] if c.hidden == 0 else [(block.feed_forward_norm, block.feed_forward)]
        for norm, part in parts:
            new = part(norm(x) if c.norm_placement == "pre" else x)
            new = x + new if c.residual else new
            x = norm(new) if c.norm_placement == "post" else new
    return model.norm(x) @ model.embedding.weight.T


@both_forms
@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("hidden", [None, 0])
def test_the_stream(form, placement, residual, hidden):
    model = make(form, norm_placement=placement, residual=residual, hidden=hidden)
    equal(model(some_tokens(2, 9)), composed(model, some_tokens(2, 9)))


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_without_the_stream_dropout_stays_where_it_was(placement):
    p = 0.25
    model = make(dropout=p, residual=False, norm="none", norm_placement=placement, hidden=0, layers=1)
    block, x = model.blocks[0], normal(0, 20, CONTEXT, WIDTH)
    whole = block.eval()(x)
    found = block.train()(x)
    kept = found != 0
    equal(found, torch.where(kept, whole / (1 - p), 0.0))
    assert abs(kept.double().mean() - (1 - p)) < 0.03  # 3,840 draws


# --- sizes and first weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden", [None, 5, 0])
@pytest.mark.parametrize("mixing", ["attention", "mean"])
def test_parameters_by_the_formula(mixing, hidden, bias):
    c = GPTConfig(**SHAPE, mixing=mixing, hidden=hidden, bias=bias, residual=False, score_scale="head")
    one, inner = int(bias), 4 * WIDTH if hidden is None else hidden
    norm = (1 + one) * WIDTH
    block = norm + (4 if mixing == "attention" else 2) * (WIDTH + one) * WIDTH
    if inner:
        block += norm + 2 * WIDTH * inner + one * (inner + WIDTH)
    expected = (VOCAB + CONTEXT) * WIDTH + c.layers * block + norm
    assert parameter_count(GPT(c)) == planning.parameters_of(c) == expected


def test_names_of_the_parameters():
    names = {name.split(".", 2)[2] for name in make(mixing="mean", hidden=0).state_dict() if name.startswith("blocks")}
    kinds = ("weight", "bias")
    assert names == {
        f"{part}.{kind}" for part in ("attention_norm", "attention.value", "attention.output") for kind in kinds
    }


@pytest.mark.parametrize(
    ("changes", "terms"), [({"hidden": 0}, 4), ({"mixing": "mean"}, 8), ({"residual": False}, 1), ({}, 8)]
)
def test_what_is_added_to_the_stream_is_scaled_by_how_much_is_added(changes, terms):
    c = GPTConfig(vocab_size=50, context=8, layers=4, heads=2, width=64, **changes)
    model = GPT(c, torch.Generator().manual_seed(0))
    assert len(model.residual_projections()) == (4 if c.hidden == 0 else 8)
    for layer in model.residual_projections():
        assert layer.weight.std().item() == pytest.approx(0.02 / math.sqrt(terms), rel=0.06)
    assert model.blocks[0].attention.value.weight.std().item() == pytest.approx(0.02, rel=0.06)


def test_zero_projections_without_a_feed_forward_layer():
    model = GPT(GPTConfig(**SHAPE, hidden=0, zero_projections=True, mixing="mean"))
    x = torch.randn(2, 5, WIDTH)
    torch.testing.assert_close(model.blocks[1](x), x, rtol=1e-6, atol=1e-6)


def kept_for_the_way_back(config: GPTConfig, rows: int, half: bool) -> int:
    """Bytes that the forward pass leaves for the backward pass, parameters aside."""
    model = GPT(config)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = some_tokens(rows, config.context)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = model(tokens)
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"mixing": "mean"}, {"hidden": 0}, {"residual": False}, {"mixing": "mean", "hidden": 0, "dropout": 0.1}],
    ids=str,
)
def test_memory_is_reckoned(changes, precision):
    c = GPTConfig(vocab_size=VOCAB, context=32, layers=3, heads=4, width=64, **changes)
    train = TrainConfig(batch=4, precision=precision, device="cpu")
    reckoned = planning.memory_needed(c, train) - 16 * planning.parameters_of(c)
    assert 1 <= reckoned / kept_for_the_way_back(c, 4, precision == "bfloat16") <= 2.2


@pytest.mark.parametrize(
    "asked", [{"mixing": "mean"}, {"residual": False}, {"hidden": 0}, {"score_scale": "none"}, {"score_scale": "width"}]
)
def test_what_is_picked_goes_with_what_is_left_out(asked):
    choice = sizes.choose(text_data(), 60.0, torch.device("cpu"), {"model": asked})
    c = GPTConfig(**{"vocab_size": VOCAB, **choice.tables["model"], **asked})
    assert (c.positions, c.query_key_norm) == (("learned", False) if asked == {"mixing": "mean"} else ("rotary", True))
    assert c.zero_projections == (asked != {"residual": False})
