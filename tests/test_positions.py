from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_parity import few, normal, run, seeds

from handmade.errors import ConfigError
from handmade.positions import Rotary, frequencies, positions_of, shared_positions, sinusoidal, turn

CPU = torch.device("cpu")


# --- where a token stands --------------------------------------------------------------------------------------


def test_positions_follow_the_cache():
    assert positions_of(0, 4, None, CPU).tolist() == [0, 1, 2, 3]
    assert positions_of(5, 2, None, CPU).tolist() == [5, 6]


@given(length=st.integers(0, 5), new=st.integers(1, 5), starts=st.lists(st.integers(0, 10), min_size=1, max_size=3))
def test_positions_of_a_padded_row_count_from_its_start(length, new, starts):
    found = positions_of(length, new, torch.tensor(starts), CPU).tolist()
    assert found == [[max(0, column - start) for column in range(length, length + new)] for start in starts]


# --- shared by digits of the same worth -------------------------------------------------------------------------

DIGITS, ORIGINS = (3, 6), 8  # 0 .. 2 and 7 are signs, 8 and above origins


def one_by_one(row: list[int], origins: int | None) -> list[int]:
    """Token by token, as it is said."""
    origin, digits, found = 0, 0, []
    for token in row:
        if origins is not None and token >= origins:
            origin, digits = token - origins, 0
            found.append(origin)
        elif DIGITS[0] <= token <= DIGITS[1]:
            digits += 1
            found.append(origin + digits)
        else:
            found.append(origin + digits + 1)
            digits = 0
    return found


@given(
    rows=st.integers(1, 12).flatmap(
        lambda size: st.lists(st.lists(st.integers(0, 11), min_size=size, max_size=size), min_size=1, max_size=3)
    ),
    origins=st.sampled_from([None, ORIGINS]),
    cut=st.integers(0, 12),
)
def test_shared_positions_equal_those_counted_one_by_one(rows, origins, cut):
    """At once, and in two parts of which the second goes on from where the first stood."""
    tokens = torch.tensor(rows)
    found, place = shared_positions(tokens, DIGITS, origins)
    assert found.tolist() == [one_by_one(row, origins) for row in rows]
    if 0 < cut < tokens.shape[1]:
        first, middle = shared_positions(tokens[:, :cut], DIGITS, origins)
        second, end = shared_positions(tokens[:, cut:], DIGITS, origins, middle)
        assert torch.equal(torch.cat((first, second), dim=1), found)
        assert all(torch.equal(one, other) for one, other in zip(end, place, strict=True))


def test_shared_positions_of_the_docstring():
    characters = "0123456789+=ab"
    row = torch.tensor([[characters.index(character) for character in "b21+43=b64"]])
    assert shared_positions(row, (0, 9), 12)[0].tolist() == [[1, 2, 3, 4, 2, 3, 4, 1, 2, 3]]


# --- sinusoidal ------------------------------------------------------------------------------------------------


def waves(positions: list[int], width: int, base: float) -> np.ndarray:
    """The paper's formula, number by number, in float64."""
    found = np.empty((len(positions), width))
    for row, p in enumerate(positions):
        for i in range(width // 2):
            angle = p / base ** (2 * i / width)
            found[row, 2 * i], found[row, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return found


@pytest.mark.parametrize(("width", "base"), [(2, 10_000.0), (6, 10_000.0), (16, 100.0)])
def test_sinusoidal_equals_the_formula(width, base):
    positions = [0, 1, 2, 7, 100, 1023]
    found = sinusoidal(torch.tensor(positions), width, base)
    assert found.dtype == torch.float32
    # An angle of 1,023 has 6e-5 between two float32 numbers.
    np.testing.assert_allclose(found.numpy(), waves(positions, width, base), rtol=0, atol=1.2e-4)
    np.testing.assert_allclose(found[:4].numpy(), waves(positions[:4], width, base), rtol=0, atol=1e-6)


def test_a_pair_shares_its_frequency():
    # So a step of k is one rotation of the pair, wherever it begins; and a pair never leaves the unit circle.
    table = torch.view_as_complex(sinusoidal(torch.arange(40), 8).double().unflatten(-1, (4, 2)))  # sin + i cos
    torch.testing.assert_close(table.abs(), torch.ones(40, 4).double(), rtol=0, atol=1e-6)
    step = table[5:] / table[:-5]
    torch.testing.assert_close(step, step[:1].expand_as(step), rtol=0, atol=1e-5)


def test_sinusoidal_of_rows():
    positions = torch.tensor([[0, 0, 1], [2, 3, 4]])
    found = sinusoidal(positions, 4)
    assert found.shape == (2, 3, 4)
    assert torch.equal(found[1, 0], sinusoidal(torch.tensor(2), 4))


# --- rotary ----------------------------------------------------------------------------------------------------


def turned(x: np.ndarray, positions: list[int], base: float) -> np.ndarray:
    """Every pair (i, i + D/2) turned by position * base^(-2i/D), number by number. x: (T, D)."""
    half, y = x.shape[1] // 2, np.empty_like(x)
    for t, p in enumerate(positions):
        for i in range(half):
            angle = p * base ** (-2 * i / x.shape[1])
            y[t, i] = x[t, i] * math.cos(angle) - x[t, i + half] * math.sin(angle)
            y[t, i + half] = x[t, i] * math.sin(angle) + x[t, i + half] * math.cos(angle)
    return y


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("features", "base"), [(2, 10_000.0), (8, 10_000.0), (6, 50.0)])
def test_rotary_equals_the_formula(features, base, fused):
    positions, x = [0, 1, 5, 63], normal(0, 4, features)
    table = Rotary(features, 64, base)(torch.tensor(positions))
    found = turn(x[None, :, None], table, fused)[0, :, 0]
    np.testing.assert_allclose(found.numpy(), turned(x.numpy(), positions, base), rtol=0, atol=2e-5)
    torch.testing.assert_close(found[0], x[0], rtol=0, atol=0)  # position 0 is not turned


@few
@given(rows=st.integers(1, 3), new=st.integers(1, 5), heads=st.integers(1, 3), pairs=st.integers(1, 4), seed=seeds)
def test_rotary_reference_equals_fused(rows, new, heads, pairs, seed):
    table = Rotary(2 * pairs, 32)(torch.arange(7, 7 + new))
    x = [normal(seed, rows, new, heads, 2 * pairs)]
    fused = run(lambda x: turn(x, table, True), x)
    for name, value in run(lambda x: turn(x, table, False), x).items():
        torch.testing.assert_close(value, fused[name], rtol=1e-12, atol=1e-12)


@few
@given(query=st.integers(0, 60), key=st.integers(0, 60), shift=st.integers(0, 60), seed=seeds)
def test_scores_depend_on_the_distance_alone(query, key, shift, seed):
    rotary = Rotary(8, 128).double()
    # Exact tables: what is rounded to float32 is the angle's, not the property's.
    angles = torch.arange(128).double()[:, None] * frequencies(8, 10_000.0).double()
    rotary.cosine, rotary.sine = angles.cos(), angles.sin()
    q, k = normal(seed, 1, 1, 1, 8), normal(seed + 1, 1, 1, 1, 8)

    def score(a: int, b: int) -> float:
        return (turn(q, rotary(torch.tensor([a]))) * turn(k, rotary(torch.tensor([b])))).sum().item()

    assert score(query + shift, key + shift) == pytest.approx(score(query, key), abs=1e-10)
    if query != key:
        assert score(query, key) != pytest.approx(score(key, query), abs=1e-10)  # it knows which came first


def test_a_turn_keeps_the_length():
    x = normal(0, 2, 5, 3, 8)
    y = turn(x, Rotary(8, 16)(slice(3, 8)))
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("fused", [True, False])
def test_rotary_takes_a_slice_a_list_or_a_list_for_each_row(fused):
    rotary, x = Rotary(4, 16), normal(0, 2, 3, 2, 4)
    by_slice = turn(x, rotary(slice(2, 5)), fused)
    assert torch.equal(turn(x, rotary(torch.tensor([2, 3, 4])), fused), by_slice)
    each = turn(x, rotary(torch.tensor([[2, 3, 4], [0, 0, 1]])), fused)
    assert torch.equal(each[0], by_slice[0])
    assert torch.equal(each[1], turn(x, rotary(torch.tensor([0, 0, 1])), fused)[1])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rotary_keeps_the_number_type(fused, dtype):
    x, table = normal(0, 1, 4, 2, 8), Rotary(8, 16)(slice(0, 4))
    y = turn(x.to(dtype), table, fused)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), turn(x, table), rtol=0.02, atol=0.02)


def test_rotary_is_not_saved():
    assert Rotary(4, 16).state_dict() == {}


@pytest.mark.bench
def test_rotary_equals_hugging_face():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    from transformers import LlamaConfig

    config = LlamaConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=64)
    positions, x = torch.arange(20)[None], normal(0, 1, 20, 4, 8).float()
    cosine, sine = llama.LlamaRotaryEmbedding(config)(x, positions)
    theirs, _ = llama.apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cosine, sine)
    ours = turn(x, Rotary(8, 64)(slice(0, 20)))
    torch.testing.assert_close(ours.transpose(1, 2), theirs, rtol=0, atol=1e-6)


# --- errors ----------------------------------------------------------------------------------------------------


def test_odd_sizes_are_refused():
    with pytest.raises(ConfigError, match="width = 5 must be even"):
        sinusoidal(torch.arange(3), 5)
    with pytest.raises(ConfigError, match="a head of 3 features must be even"):
        Rotary(3, 8)
