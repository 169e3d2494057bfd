from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_parity import both_forms, build, few, normal, run, seeds

from handmade import layers
from handmade.errors import ConfigError
from handmade.layers.dropout import scales


@few
@given(shape=st.lists(st.integers(0, 6), max_size=3), p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), seed=seeds)
def test_the_formula_equals_torch_under_one_seed(shape, p, seed):
    ours, theirs = build("reference", lambda: layers.Dropout(p)), torch.nn.Dropout(p)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = normal(seed, *shape).to(dtype)
        torch.manual_seed(seed)
        expected, drawn = run(theirs, [x]), torch.get_rng_state()
        torch.manual_seed(seed)
        got = run(ours, [x])
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], value) for name, value in expected.items())
        assert torch.equal(torch.get_rng_state(), drawn), "must draw as much as torch.nn.Dropout"


@few
@given(shape=st.lists(st.integers(0, 6), max_size=3), p=st.sampled_from([0.0, 0.001, 0.1, 0.5, 0.9, 1.0]), seed=seeds)
def test_the_kernel_equals_the_formula_with_its_mask(shape, p, seed):
    layer = build("fused", lambda: layers.Dropout(p))
    for dtype, near in ((torch.float64, 1e-4), (torch.float32, 1e-4), (torch.bfloat16, 0.01)):
        x = normal(seed, *shape).to(dtype).requires_grad_()
        torch.manual_seed(seed)
        y = layer(x)
        y.sum().backward()
        kept = (x.grad != 0).to(dtype)
        # the chance is a multiple of 1 / 65,536, and the scale is that of the chance
        torch.testing.assert_close(y, x * kept / max(1 - p, 1e-9), rtol=near, atol=0)
        torch.testing.assert_close(x.grad, kept / max(1 - p, 1e-9), rtol=near, atol=0)
        assert y.dtype == dtype


def test_the_four_parts_of_a_draw_are_independent():
    torch.manual_seed(0)
    kept = (scales(torch.empty(400_000), 0.3) != 0).double()
    assert kept.mean().item() == pytest.approx(0.7, abs=0.004)
    parts = kept.view(-1, 4)
    assert parts.mean(0).tolist() == pytest.approx([0.7] * 4, abs=0.007)
    together = torch.corrcoef(parts.T) - torch.eye(4)
    assert together.abs().max() < 0.015  # about five standard deviations of 1 / sqrt(100,000)
    assert not torch.equal(kept, (scales(torch.empty(400_000), 0.3) != 0).double())


@both_forms
def test_keeps_the_mean_and_the_share(form):
    torch.manual_seed(0)
    y = build(form, lambda: layers.Dropout(0.2))(torch.ones(100_000))
    assert sorted(set(y.tolist())) == pytest.approx([0.0, 1.25], rel=1e-4)
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
