from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from layer_parity import assert_parity, both_forms, build, few, normal, run, seeds
from torch import Tensor, nn

from handmade import attention
from handmade import cache as cache_module
from handmade.attention import (
    Attention,
    attend,
    attend_by_products,
    by_loops,
    by_softmax,
    by_triangle,
    record,
)
from handmade.cache import KeyValueCache, LayerCache, join_layers
from handmade.errors import ConfigError
from handmade.positions import Rotary

sizes = st.integers(1, 6)


class Ours(Attention):
    """Attention with its mask and rotation given beforehand, so that it takes what a layer of torch.nn takes."""

    def __init__(self, width: int, heads: int, *, fixed: dict | None = None, **options) -> None:
        super().__init__(width, heads, **options)
        self.fixed = fixed or {}

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        return super().forward(x, memory, **self.fixed)


class Theirs(nn.Module):
    """`torch.nn.MultiheadAttention` under our parameter names: one matrix of theirs is three of ours."""

    def __init__(self, width: int, heads: int, bias: bool, mask: Tensor | None = None, weights: bool = False) -> None:
        super().__init__()
        self.mask, self.weights = mask, weights
        for name in ("query", "key", "value", "output"):
            setattr(self, name, nn.Linear(width, width, bias))
        # In a tuple, so that its own parameters stay out of the state dict.
        self.torch = (nn.MultiheadAttention(width, heads, bias=bias, batch_first=True),)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        parts = [self.query, self.key, self.value]
        values = {
            "in_proj_weight": torch.cat([part.weight for part in parts]),
            "out_proj.weight": self.output.weight,
        }
        if self.query.bias is not None:
            values["in_proj_bias"] = torch.cat([part.bias for part in parts])
            values["out_proj.bias"] = self.output.bias
        memory = x if memory is None else memory
        options = {"need_weights": self.weights, "average_attn_weights": False}
        if self.mask is not None:  # theirs: True = may not, (B * H, T, S)
            shape = (len(x), self.torch[0].num_heads, x.shape[1], memory.shape[1])
            options["attn_mask"] = ~self.mask.expand(shape).flatten(0, 1)
        found = torch.func.functional_call(self.torch[0], values, (x, memory, memory), options)
        return found[1] if self.weights else found[0]


class Written(nn.Module):
    """What `MultiheadAttention` lacks: grouped heads, norms of queries and keys, rotation. PyTorch's kernels, and
    the rotation as a matrix for each position."""

    def __init__(self, width: int, heads: int, key_value_heads: int, norm: bool, mask: Tensor, table: tuple) -> None:
        super().__init__()
        features = width // heads
        self.sizes = (heads, key_value_heads, features)
        self.query, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.key = nn.Linear(width, key_value_heads * features)
        self.value = nn.Linear(width, key_value_heads * features)
        self.norm, self.mask, self.table = norm, mask, table

    def forward(self, x: Tensor) -> Tensor:
        heads, key_value_heads, features = self.sizes
        rows, new, _ = x.shape
        q = self.query(x).view(rows, new, heads, features).transpose(1, 2)
        k = self.key(x).view(rows, new, key_value_heads, features).transpose(1, 2)
        v = self.value(x).view(rows, new, key_value_heads, features).transpose(1, 2)
        if self.norm:
            q, k = F.rms_norm(q, (features,), eps=1e-6), F.rms_norm(k, (features,), eps=1e-6)
        if self.table:
            turns = rotation_matrices(*self.table).to(x.dtype)
            q, k = torch.einsum("tij,bhtj->bhti", turns, q), torch.einsum("tij,bhtj->bhti", turns, k)
        mixed = F.scaled_dot_product_attention(q, k, v, self.mask, enable_gqa=True)
        return self.output(mixed.transpose(1, 2).reshape(rows, new, heads * features))


def rotation_matrices(cosine: Tensor, sine: Tensor) -> Tensor:
    """(T, 1, D) each -> (T, D, D): feature i and i + D/2 turn together."""
    half = cosine.shape[-1] // 2
    matrices = []
    for c, s in zip(cosine[:, 0, half:].double(), sine[:, 0, half:].double(), strict=True):
        matrices.append(torch.cat((torch.cat((c.diag(), -s.diag()), 1), torch.cat((s.diag(), c.diag()), 1)), 0))
    return torch.stack(matrices)


def padded(starts: list[int], asked: int) -> Tensor:
    """The mask of left padding, written as loops: (B, 1, 1, S)."""
    return torch.tensor([[[[column >= start for column in range(asked)]]] for start in starts])


# --- the same result four ways ---------------------------------------------------------------------------------


@few
@given(length=st.integers(1, 8), width=sizes, scale=st.sampled_from([0.0, 1.0, 3.0]), seed=seeds)
def test_the_four_attentions_are_equal(length, width, scale, seed):
    scores, values = normal(seed, length, length, scale=scale), normal(seed + 1, length, width)
    identity = torch.eye(length, dtype=torch.float64)
    ways = {
        "loops": by_loops,
        "triangle": by_triangle,
        "softmax": by_softmax,
        # Queries that meet the identity as keys are the scores themselves, up to the scale.
        "attend": lambda s, v: attend(s * math.sqrt(length), identity, v, causal=True),
    }
    truth = run(
        lambda s, v: F.scaled_dot_product_attention(s, identity, v, is_causal=True, scale=1.0), [scores, values]
    )
    for name, way in ways.items():
        for part, value in run(way, [scores, values]).items():
            torch.testing.assert_close(value, truth[part], rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_scores_of_zero_give_the_mean_of_the_past():
    values = normal(0, 7, 3)
    means = values.cumsum(0) / torch.arange(1, 8).double()[:, None]
    for way in (by_loops, by_triangle, by_softmax):
        torch.testing.assert_close(way(torch.zeros(7, 7).double(), values), means, rtol=1e-12, atol=1e-12)


def test_by_softmax_does_not_overflow():
    scores, values = torch.full((3, 3), 1e4), torch.arange(3.0)[:, None]
    assert by_softmax(scores, values).flatten().tolist() == [0.0, 0.5, 1.0]


@few
@given(
    lead=st.lists(st.integers(1, 3), max_size=2),
    asking=sizes,
    asked=sizes,
    features=sizes,
    out=sizes,
    masked=st.booleans(),
    seed=seeds,
)
def test_attend_equals_the_kernel(lead, asking, asked, features, out, masked, seed):
    inputs = [
        normal(seed + i, *lead, *shape) for i, shape in enumerate([(asking, features), (asked, features), (asked, out)])
    ]
    mask = normal(seed + 3, *lead, asking, asked) > 0 if masked else None
    if mask is not None:
        mask[..., 0] = True  # rows with nothing to attend to have a test of their own
    truth = run(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask), inputs)
    for part, value in run(lambda q, k, v: attend(q, k, v, mask), inputs).items():
        torch.testing.assert_close(value, truth[part], rtol=1e-12, atol=1e-12)


@few
@given(asking=sizes, asked=sizes)
def test_the_causal_mask_is_aligned_to_the_lower_right(asking, asked):
    found = attention.causal_mask(asking, asked).tolist()
    assert found == [[s - asked <= t - asking for s in range(asked)] for t in range(asking)]


# --- Attention against torch.nn --------------------------------------------------------------------------------


@both_forms
@few
@given(
    rows=st.integers(1, 3),
    length=sizes,
    heads=st.integers(1, 3),
    features=st.integers(1, 4),
    bias=st.booleans(),
    causal=st.booleans(),
    seed=seeds,
)
def test_self_attention_equals_torch(form, rows, length, heads, features, bias, causal, seed):
    width = heads * features
    mask = torch.ones(length, length).tril().bool() if causal else None
    ours = build(form, lambda: Attention(width, heads, causal=causal, bias=bias))
    theirs = Theirs(width, heads, bias, mask)
    assert_parity(ours, theirs, [normal(seed, rows, length, width)])


@both_forms
@few
@given(asking=sizes, asked=sizes, heads=st.integers(1, 3), features=st.integers(1, 4), masked=st.booleans(), seed=seeds)
def test_cross_attention_equals_torch(form, asking, asked, heads, features, masked, seed):
    width, starts = heads * features, [0, asked // 2, asked - 1]
    mask = padded(starts, asked) if masked else None
    ours = build(form, lambda: Ours(width, heads, fixed={"mask": mask}))
    theirs = Theirs(width, heads, True, mask)
    assert_parity(ours, theirs, [normal(seed, 3, asking, width), normal(seed + 1, 3, asked, width)])


@both_forms
@few
@given(
    length=sizes,
    groups=st.integers(1, 2),
    each=st.integers(1, 3),
    pairs=st.integers(1, 3),
    norm=st.booleans(),
    rotary=st.booleans(),
    seed=seeds,
)
def test_grouped_heads_norms_and_rotation(form, length, groups, each, pairs, norm, rotary, seed):
    heads, features = groups * each, 2 * pairs
    width = heads * features
    table = Rotary(features, 16)(torch.arange(3, 3 + length)) if rotary else ()
    theirs = Written(width, heads, groups, norm, torch.ones(length, length).tril().bool(), table)
    options = {"key_value_heads": groups, "causal": True, "query_key_norm": norm}
    ours = build(form, lambda: Ours(width, heads, fixed={"rotation": table or None}, **options))
    assert_parity(ours, theirs, [normal(seed, 2, length, width)])


@both_forms
def test_a_causal_attention_stays_causal_under_a_mask(form):
    # A padding mask says nothing about the future; it must not take the triangle away.
    layer, x = build(form, lambda: Attention(8, 2, causal=True)).double(), normal(0, 2, 5, 8)
    mask = padded([0, 2], 5)
    triangle = torch.ones(5, 5).tril().bool()
    torch.testing.assert_close(layer(x, mask=mask), layer(x, mask=mask & triangle), rtol=0, atol=0)
    changed = x.clone()
    changed[:, -1] += 1
    assert torch.equal(layer(changed, mask=mask)[:, :-1], layer(x, mask=mask)[:, :-1])


@both_forms
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nothing_to_attend_to_gives_zeros_and_finite_gradients(form, dtype):
    mask = torch.ones(2, 1, 4, 4).bool()
    mask[0, :, 1] = False  # one token sees nothing
    mask[1] = False  # a row in which nobody sees anything
    layer = build(form, lambda: Ours(8, 2, key_value_heads=1, fixed={"mask": mask})).to(dtype)
    found = run(layer, [normal(1, 2, 4, 8).to(dtype)])
    assert all(value.isfinite().all() for value in found.values())
    # Zeros are mixed, so only the bias of the output is left.
    y = found["output 0"]
    assert torch.equal(y[0, 1], layer.output.bias)
    assert torch.equal(y[1], layer.output.bias.expand(4, 8))
    assert not torch.equal(y[0, 0], layer.output.bias)
    assert found["gradient of input 0"][1].abs().max() == 0


@both_forms
def test_a_row_does_not_depend_on_what_it_may_not_see(form):
    layer = build(form, lambda: Attention(8, 2)).double()
    x, memory, mask = normal(0, 2, 3, 8), normal(1, 2, 5, 8), padded([2, 0], 5)
    changed = memory.clone()
    changed[0, :2] = 1e6
    assert torch.equal(layer(x, changed, mask), layer(x, memory, mask))


@both_forms
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("length", [3, 64, 300])
def test_in_bfloat16_no_further_off_than_the_kernel(form, groups, length):
    # While training on a CPU, the fused form takes other ways in bfloat16 (`attend_by_products`, `attend_in_pieces`).
    options = {"key_value_heads": groups, "causal": True, "query_key_norm": True}
    ours = build(form, lambda: Attention(32, 2, **options))
    theirs = Written(32, 2, groups, True, torch.ones(length, length).tril().bool(), ())
    theirs.load_state_dict(ours.state_dict())
    for model in (ours, theirs):
        model.to(torch.bfloat16)
    x = normal(0, 4, length, 32).to(torch.bfloat16)
    found, other = run(ours, [x]), run(theirs, [x])
    for name, truth in run(copy.deepcopy(theirs).double(), [x.double()]).items():
        distance = [(part[name].double() - truth).norm() / truth.norm().clamp(min=1e-3) for part in (found, other)]
        assert distance[0] <= 2 * distance[1] + 0.002, name


MASKS = {
    "none": None,
    "padding": padded([0, 2, 6], 7),
    "each head its own": normal(3, 1, 2, 5, 7) > 0,
    "each row its own": normal(4, 3, 1, 5, 7) > -1,
    "one for all": normal(5, 5, 7) > 0,
    "nothing to see": torch.tensor([[[[True] * 7]], [[[False] * 7]], [[[True] * 7]]]),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("causal", [False, True])
def test_two_products_equal_the_formula(mask, causal):
    inputs = [normal(seed, 3, 2, length, 4) for seed, length in enumerate((5, 7, 7))]
    ways = [
        run(lambda q, k, v, way=way: way(q, k, v, MASKS[mask], causal, scale=0.3), inputs)
        for way in (attend, attend_by_products)
    ]
    for part, value in ways[0].items():
        torch.testing.assert_close(ways[1][part], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 17])
def test_pieces_equal_the_formula(length, monkeypatch):
    monkeypatch.setattr(attention, "PIECE", 2)
    inputs = [normal(seed, 3, 2, length, 4) for seed in range(3)]
    whole = run(lambda q, k, v: attend(q, k, v, causal=True, scale=0.3), inputs)
    pieces = run(lambda q, k, v: attention.attend_in_pieces(q, k, v, scale=0.3), inputs)
    for part, value in whole.items():
        torch.testing.assert_close(pieces[part], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("length", "calls"), [(128, 1), (129, 2), (512, 4), (2000, 4)])
def test_long_rows_are_learnt_in_pieces(length, calls, monkeypatch):
    seen = []
    way = attention.attend_by_products
    monkeypatch.setattr(
        attention, "attend_by_products", lambda q, k, *rest: seen.append(k.shape[2]) or way(q, k, *rest)
    )
    parts = [normal(seed, 1, 1, length, 4).bfloat16() for seed in range(3)]
    attention.attend_quickly(*parts, causal=True)
    assert len(seen) == calls
    assert seen[-1] == length


@both_forms
@pytest.mark.parametrize("starts", [None, [0, 9, 29, 0]])
def test_learning_to_look_at_a_memory_in_bfloat16(form, starts):
    mask = None if starts is None else padded(starts, 30)
    ours, theirs = build(form, lambda: Ours(32, 2, fixed={"mask": mask})), Theirs(32, 2, True, mask)
    theirs.load_state_dict(ours.state_dict())
    inputs = [normal(0, 4, 20, 32, scale=0.5).bfloat16(), normal(1, 4, 30, 32, scale=0.5).bfloat16()]
    truth = run(copy.deepcopy(theirs).double(), [part.double() for part in inputs])
    found, other = run(ours.bfloat16(), inputs), run(theirs.bfloat16(), inputs)
    for name, value in truth.items():
        distance = [(part[name].double() - value).norm() / value.norm().clamp(min=1e-3) for part in (found, other)]
        assert distance[0] <= 2 * distance[1] + 0.002, name


@both_forms
def test_a_memory_is_projected_once_for_many_questions(form):
    layer = build(form, lambda: Attention(8, 2, key_value_heads=1, query_key_norm=True)).double()
    x, memory, mask = normal(0, 2, 3, 8), normal(1, 2, 5, 8), padded([2, 0], 5)
    kept = layer.remember(memory)
    assert [tuple(part.shape) for part in kept] == [(2, 1, 5, 4)] * 2
    torch.testing.assert_close(layer(x, kept, mask), layer(x, memory, mask), rtol=1e-12, atol=1e-12)
    with pytest.raises(ConfigError, match="takes no rotation with a memory"):
        layer(x, memory, rotation=Rotary(4, 16)(slice(0, 3)))


# --- cache -----------------------------------------------------------------------------------------------------


@both_forms
@few
@given(
    chunks=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    groups=st.integers(1, 2),
    bias=st.booleans(),
    learning=st.booleans(),
    seed=seeds,
)
def test_cached_chunks_equal_one_pass(form, chunks, groups, bias, learning, seed):
    length = sum(chunks)
    layer = build(form, lambda: Attention(8, 2, key_value_heads=groups, causal=True, bias=bias)).double()
    x, table = normal(seed, 3, length, 8), Rotary(4, 16)(torch.arange(length))
    whole = layer(x, rotation=table)
    cache, done = LayerCache(3, groups, length, 4, like=x), 0
    for size in chunks:
        part = tuple(values[done : done + size] for values in table)
        with torch.set_grad_enabled(learning):
            found = layer(x[:, done : done + size], rotation=part, cache=cache, length=done)
        torch.testing.assert_close(found, whole[:, done : done + size], rtol=1e-12, atol=1e-12)
        done += size


@torch.no_grad()
def test_a_cache_keeps_small_matrices_joined_for_as_long_as_they_are_the_same(monkeypatch):
    layer, x = build("fused", lambda: Attention(8, 2, causal=True)).double(), normal(0, 1, 6, 8)
    cache = LayerCache(1, 2, 6, 4, like=x)
    joined = []
    monkeypatch.setattr(cache_module, "join_layers", lambda layers: joined.append(1) or join_layers(layers))

    def token(t):
        layer(x[:, t : t + 1], cache=cache, length=t)
        keys, values = layer.keys_and_values(x[:, t : t + 1])
        torch.testing.assert_close(cache.keys[:, :, t : t + 1], keys, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(cache.values[:, :, t : t + 1], values, rtol=1e-12, atol=1e-12)
        return len(joined)

    assert [token(0), token(1)] == [1, 1]
    layer.key.weight.mul_(2)  # as an optimizer does
    assert token(2) == 2
    layer.value.bias.add_(1)
    assert token(3) == 3
    layer.value.weight = torch.nn.Parameter(layer.value.weight * 3)
    assert token(4) == 4
    monkeypatch.setattr(attention, "KEPT", 63)
    assert token(5) == 4  # 64 numbers are many now: nothing is joined


def test_cache_limits():
    layer, x = Attention(8, 2, causal=True), normal(0, 2, 3, 8).float()
    cache = LayerCache(2, 2, 4, 4, like=x)
    layer(x, cache=cache, length=0)
    with pytest.raises(ConfigError, match="position 6 does not fit its capacity of 4"):
        layer(x, cache=cache, length=3)
    with pytest.raises(ConfigError, match="made for 2 rows, not 1"):
        layer(x[:1], cache=cache, length=0)


def test_cache_select_and_clear():
    cache = KeyValueCache(2, 3, 1, 4, 2, like=torch.zeros(()))
    for layer in cache.layers:
        layer.keys += torch.arange(3.0)[:, None, None, None]
        layer.values -= torch.arange(3.0)[:, None, None, None]
    cache.length = 2
    cache.select(torch.tensor([2, 0, 2, 1]))
    for layer in cache.layers:
        assert layer.keys[:, 0, 0, 0].tolist() == [2, 0, 2, 1]
        assert layer.values[:, 0, 3, 1].tolist() == [-2, 0, -2, -1]
    assert cache.length == 2
    cache.clear()
    assert cache.length == 0


@both_forms
def test_a_cache_takes_the_precision_of_autocast(form):
    layer, x = build(form, lambda: Attention(8, 2, causal=True, query_key_norm=True)), normal(0, 2, 4, 8).float()
    cache = LayerCache(2, 2, 4, 4, like=x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        parts = [layer(x[:, t : t + 1], cache=cache, length=t) for t in range(4)]
    assert cache.keys.dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat(parts, 1).float(), layer(x), rtol=0.05, atol=0.05)


# --- dropout ---------------------------------------------------------------------------------------------------


@both_forms
@pytest.mark.parametrize(
    ("causal", "dtype", "tolerance"),
    [(False, torch.float64, 1e-12), (True, torch.float64, 1e-12), (True, torch.bfloat16, 0.02)],
)
def test_dropout_forgets_weights_while_training_and_nothing_in_evaluation(form, causal, dtype, tolerance):
    width, p = 32, 0.25
    layer = build(form, lambda: Attention(width, 1, dropout=p, bias=False, causal=causal)).to(dtype)
    with torch.no_grad():
        for part in (layer.value, layer.output):
            part.weight.copy_(torch.eye(width))
    x = torch.eye(width, dtype=dtype).expand(8, -1, -1)  # values that are the identity: out come the weights
    weights = attention.attention_weights(layer.query(x), layer.key(x), causal=causal)
    torch.manual_seed(0)
    dropped = layer(x)
    kept, allowed = dropped != 0, weights != 0
    torch.testing.assert_close(dropped, torch.where(kept, weights / (1 - p), 0.0), rtol=tolerance, atol=tolerance)
    assert abs(kept[allowed].double().mean() - (1 - p)) < 0.03  # at least 4,224 draws: a deviation of 0.007
    layer.eval()
    before = torch.get_rng_state()
    torch.testing.assert_close(layer(x), weights, rtol=tolerance, atol=tolerance)
    assert torch.equal(torch.get_rng_state(), before)


# --- looking inside --------------------------------------------------------------------------------------------


@both_forms
def test_record_gives_the_weights(form):
    x, memory, mask = normal(0, 2, 3, 8).float(), normal(1, 2, 5, 8).float(), padded([0, 2], 5)
    ours, theirs = build(form, lambda: Attention(8, 2, dropout=0.5)), Theirs(8, 2, True, mask, weights=True)
    theirs.load_state_dict(ours.state_dict())
    with record() as maps:
        ours(x, memory, mask)
    ours(x, memory, mask)  # outside: not heard
    assert len(maps) == 1
    assert not maps[0].requires_grad
    torch.testing.assert_close(maps[0], theirs(x, memory).detach())
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(2, 2, 3))
    assert (maps[0][1, :, :, :2] == 0).all()


@both_forms
def test_recorders_may_be_nested(form):
    layer, x = build(form, lambda: Attention(4, 1, causal=True)), normal(0, 1, 3, 4).float()
    with record() as outer:
        layer(x)
        with record() as inner:
            layer(2 * x)
        with record() as empty:
            pass
        layer(3 * x)
    layer(x)
    assert [len(outer), len(inner), len(empty)] == [3, 1, 0]
    assert torch.equal(outer[1], inner[0])
    # Two that have heard the same are equal as lists; leaving one must not silence the other.
    with record() as first:
        with record() as second:
            layer(x)
        layer(x)
    assert [len(first), len(second)] == [2, 1]
    assert attention._recorders == []


def test_a_recorder_ends_with_an_error():
    with pytest.raises(RuntimeError, match="stop"), record():
        raise RuntimeError("stop")
    assert attention._recorders == []


@both_forms
def test_record_while_decoding_with_a_cache(form):
    layer, x = build(form, lambda: Attention(8, 2, key_value_heads=1, causal=True)).double(), normal(0, 2, 5, 8)
    with record() as whole:
        layer(x)
    cache = LayerCache(2, 1, 5, 4, like=x)
    with record() as maps:
        layer(x[:, :3], cache=cache, length=0)
        for t in (3, 4):
            layer(x[:, t : t + 1], cache=cache, length=t)
    assert [tuple(part.shape) for part in maps] == [(2, 2, 3, 3), (2, 2, 1, 4), (2, 2, 1, 5)]
    for part, rows in zip(maps, (slice(0, 3), slice(3, 4), slice(4, 5)), strict=True):
        torch.testing.assert_close(part, whole[0][:, :, rows, : part.shape[-1]], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(part.sum(-1), torch.ones_like(part.sum(-1)), rtol=1e-12, atol=1e-12)


# --- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((10, 3), {}, "3 heads do not divide the width 10"),
        ((12, 6), {"key_value_heads": 4}, "4 key/value heads do not divide 6 heads"),
        ((12, 0), {}, "heads = 0"),
        ((12, 6), {"key_value_heads": 0}, "key_value_heads = 0"),
        ((12, 6), {"dropout": 1.0}, "dropout = 1.0: must be from 0 up to, not including, 1"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        Attention(*arguments, **options)
