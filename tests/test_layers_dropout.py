from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_parity import both_forms, build, few, normal, run, seeds

from handmade import layers
from handmade.errors import ConfigError


@both_forms
@few
@given(shape=st.lists(st.integers(0, 6), max_size=3), p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), seed=seeds)
def test_equals_torch_under_one_seed(form, shape, p, seed):
    ours, theirs = build(form, lambda: layers.Dropout(p)), torch.nn.Dropout(p)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = normal(seed, *shape).to(dtype)
        torch.manual_seed(seed)
        expected, drawn = run(theirs, [x]), torch.get_rng_state()
        torch.manual_seed(seed)
        got = run(ours, [x])
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], value) for name, value in expected.items())
        assert torch.equal(torch.get_rng_state(), drawn), "must draw as much as torch.nn.Dropout"


@both_forms
def test_keeps_the_mean_and_the_share(form):
    torch.manual_seed(0)
    y = build(form, lambda: layers.Dropout(0.2))(torch.ones(100_000))
    assert sorted(set(y.tolist())) == pytest.approx([0.0, 1.25])
    assert (y == 0).double().mean().item() == pytest.approx(0.2, abs=0.006)  # more than four standard deviations


@both_forms
def test_evaluation_draws_nothing_and_changes_nothing(form):
    layer = build(form, lambda: layers.Dropout(0.5)).eval()
    x, before = normal(1, 50), torch.get_rng_state()
    assert torch.equal(layer(x), x)
    assert torch.equal(torch.get_rng_state(), before)
    assert (layer.train()(x) == 0).any()


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_refuses_a_chance_out_of_range(p):
    with pytest.raises(ConfigError, match=r"Dropout: p = .*: must be from 0 to 1"):
        layers.Dropout(p)
