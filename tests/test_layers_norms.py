from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_parity import assert_parity, both_forms, build, few, normal, run, seeds

from handmade import layers
from handmade.errors import ConfigError

leads = st.lists(st.integers(0, 4), max_size=3)
# A mean far from zero is where a variance taken as E[x^2] - E[x]^2 would lose its digits.
shifts = st.sampled_from([0.0, 3.0])


@both_forms
@few
@given(lead=leads, width=st.integers(2, 12), weight=st.booleans(), bias=st.booleans(), shift=shifts, seed=seeds)
def test_layer_norm_equals_torch(form, lead, width, weight, bias, shift, seed):
    ours = build(form, lambda: layers.LayerNorm(width, bias=bias, elementwise_affine=weight))
    theirs = torch.nn.LayerNorm(width, bias=bias, elementwise_affine=weight)
    assert_parity(ours, theirs, [normal(seed, *lead, width, shift=shift)])


@both_forms
@few
@given(lead=leads, width=st.integers(1, 12), weight=st.booleans(), scale=st.sampled_from([1e-3, 1.0, 30.0]), seed=seeds)
def test_rms_norm_equals_torch(form, lead, width, weight, scale, seed):
    ours = build(form, lambda: layers.RMSNorm(width, elementwise_affine=weight))
    theirs = torch.nn.RMSNorm(width, eps=1e-6, elementwise_affine=weight)
    assert_parity(ours, theirs, [normal(seed, *lead, width, scale=scale)])


@pytest.mark.parametrize("weight", [True, False])
def test_rms_norm_where_pytorch_has_the_kernel(monkeypatch, weight):
    # On a GPU and under a compiler the fused form calls PyTorch; here it is told that it is being compiled.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    ours = build("fused", lambda: layers.RMSNorm(6, elementwise_affine=weight))
    assert_parity(ours, torch.nn.RMSNorm(6, eps=1e-6, elementwise_affine=weight), [normal(1, 3, 6)])


@both_forms
@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.LayerNorm(64),
        lambda: layers.RMSNorm(64),
        lambda: layers.RMSNorm(64, elementwise_affine=False),
        lambda: layers.BatchNorm1d(64),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_under_autocast(form, make, dtype):
    layer = build(form, make)
    x = normal(5, 10, 64, shift=1.0).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), copy.deepcopy(layer).double()(x.double()), rtol=0.02, atol=0.02)
    y.double().sum().backward()
    assert x.grad.isfinite().all()


@both_forms
def test_zeros_and_large_numbers_stay_finite(form):
    for make in (lambda: layers.LayerNorm(8), lambda: layers.RMSNorm(8)):
        for dtype, large in ((torch.float32, 1e15), (torch.bfloat16, 1e15), (torch.float16, 6e4)):
            x = torch.stack([torch.zeros(8), large * torch.ones(8)]).to(dtype)
            layer = build(form, make).to(dtype)
            found = run(layer, [x])
            assert all(value.isfinite().all() for value in found.values())
            if isinstance(layer, layers.RMSNorm):  # not 0, as it would be if the sum of squares had overflowed
                torch.testing.assert_close(found["output 0"][1], layer.weight.detach())


@both_forms
def test_rms_norm_adds_up_in_float32(form):
    x = normal(6, 200, 96).to(torch.bfloat16)
    y = build(form, lambda: layers.RMSNorm(96, elementwise_affine=False))(x).double()
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    # Two roundings to bfloat16, of 2^-8 at most each, and no third.
    assert ((y - exact).abs() / exact.abs().clamp(min=1e-9)).max() <= 2.05 * 2**-8


@both_forms
def test_a_row_does_not_see_the_others(form):
    for make in (lambda: layers.LayerNorm(8), lambda: layers.RMSNorm(8)):
        layer, x = build(form, make), normal(2, 3, 5, 8)
        changed = x.clone()
        changed[:, 3:] += 1
        layer = layer.double()
        assert torch.equal(layer(x)[:, :3], layer(changed)[:, :3])


def test_rms_norm_kernel_can_be_differentiated_once_and_says_so():
    x = normal(4, 2, 6).requires_grad_()
    reference, fused = (build(f, lambda: layers.RMSNorm(6, elementwise_affine=False)) for f in ("reference", "fused"))
    assert torch.autograd.gradgradcheck(reference, x)
    with pytest.raises(RuntimeError, match=r"RMSNorm: .* kernels\('reference'\)"):
        torch.autograd.grad(fused(x).sum(), x, create_graph=True)


NORMS = {
    "1d": (layers.BatchNorm1d, torch.nn.BatchNorm1d, 0),
    "1d with length": (layers.BatchNorm1d, torch.nn.BatchNorm1d, 1),
    "2d": (layers.BatchNorm2d, torch.nn.BatchNorm2d, 2),
}


@both_forms
@pytest.mark.parametrize("kind", NORMS)
@few
@given(
    rows=st.integers(2, 6),
    channels=st.integers(1, 5),
    side=st.integers(1, 4),
    affine=st.booleans(),
    momentum=st.sampled_from([0.1, 0.0, 1.0, None]),
    seed=seeds,
)
def test_batch_norm_equals_torch(kind, form, rows, channels, side, affine, momentum, seed):
    make_ours, make_theirs, extra = NORMS[kind]
    ours = build(form, lambda: make_ours(channels, momentum=momentum, affine=affine))
    theirs = make_theirs(channels, momentum=momentum, affine=affine)
    shape = (rows, channels, *[side] * extra)
    assert_parity(ours, theirs, [normal(seed, *shape, shift=2.0)])  # assert_parity compares the buffers, too

    # Three batches on, the running statistics agree, and so does what is made of them in evaluation.
    ours, theirs = ours.double(), theirs.double()
    for step in range(3):
        x = normal(seed + step, *shape, shift=float(step))
        ours(x), theirs(x)
    assert ours.num_batches_tracked.item() == theirs.num_batches_tracked.item() == 3
    ours.eval(), theirs.eval()
    assert_parity(ours, theirs, [normal(seed + 9, 1, *shape[1:])])
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-12, atol=1e-12)


@both_forms
def test_batch_norm_of_an_empty_batch(form):
    ours = build(form, lambda: layers.BatchNorm1d(3))
    theirs = torch.nn.BatchNorm1d(3)
    theirs.load_state_dict(ours.state_dict())
    x = torch.zeros(0, 3)
    assert ours(x).shape == theirs(x).shape == (0, 3)
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


@both_forms
def test_batch_norm_of_one_row(form):
    for layer, x in (
        (layers.BatchNorm1d(3), torch.zeros(1, 3)),
        (layers.BatchNorm1d(3), torch.zeros(1, 3, 1)),
        (layers.BatchNorm2d(3), torch.zeros(1, 3, 1, 1)),
    ):
        with pytest.raises(ValueError, match="one value per channel"):
            layer(x)
        assert layer.num_batches_tracked == 0
        assert layer.eval()(x).isfinite().all()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(layers.BatchNorm1d(3), (4,)), (layers.BatchNorm1d(3), (4, 2)), (layers.BatchNorm2d(3), (4, 3))],
)
def test_batch_norm_refuses_another_shape(layer, shape):
    with pytest.raises(ValueError, match="x has shape"):
        layer(torch.zeros(shape))


@pytest.mark.parametrize("make", [layers.LayerNorm, layers.RMSNorm, layers.BatchNorm1d, layers.BatchNorm2d])
def test_arguments_are_checked(make):
    with pytest.raises(ConfigError, match=r"= 0: must be a whole number from 1"):
        make(0)
    with pytest.raises(ConfigError, match=r"eps = -1.0: must be above 0"):
        make(3, eps=-1.0)


@pytest.mark.parametrize("make", [layers.BatchNorm1d, layers.BatchNorm2d])
def test_momentum_is_checked(make):
    with pytest.raises(ConfigError, match=r"momentum = 1.5: must be from 0 to 1"):
        make(3, momentum=1.5)
