from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_parity import assert_parity, both_forms, build, few, normal, run, seeds

from handmade import layers
from handmade.errors import ConfigError


class TorchSquaredReLU(torch.nn.Module):
    """torch.nn has none: its formula in torch.nn's words."""

    def forward(self, x):
        return torch.nn.functional.relu(x).pow(2)


PAIRS = {
    "relu": (layers.ReLU, torch.nn.ReLU),
    "squared_relu": (layers.SquaredReLU, TorchSquaredReLU),
    "silu": (layers.SiLU, torch.nn.SiLU),
    "gelu": (layers.GELU, torch.nn.GELU),
    "gelu_tanh": (lambda: layers.GELU("tanh"), lambda: torch.nn.GELU("tanh")),
    "softmax": (layers.Softmax, lambda: torch.nn.Softmax(-1)),
    "softmax_rows": (lambda: layers.Softmax(dim=0), lambda: torch.nn.Softmax(0)),
}
every_activation = pytest.mark.parametrize("name", PAIRS)
FUNCTIONS = {
    "relu": layers.relu,
    "squared_relu": layers.squared_relu,
    "silu": layers.silu,
    "gelu": layers.gelu,
    "gelu_tanh": lambda x: layers.gelu(x, "tanh"),
    "softmax": layers.softmax,
    "softmax_rows": lambda x: layers.softmax(x, 0),
}


@both_forms
@every_activation
@few
@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), scale=st.sampled_from([0.1, 1.0, 8.0]), seed=seeds)
def test_equals_torch(name, form, shape, scale, seed):
    ours, theirs = PAIRS[name]
    if 0 in shape and "softmax" in name:
        shape = [max(size, 1) for size in shape]
    assert_parity(build(form, ours), theirs(), [normal(seed, *shape, scale=scale)])


@both_forms
@every_activation
def test_special_values(name, form):
    ours, theirs = PAIRS[name]
    inf = math.inf
    x = torch.tensor([[0.0, -0.0, 1e4, -1e4, 3.0], [1.0, 2.0, -inf, 0.0, 0.0], [math.nan, 1.0, 2.0, 3.0, 0.0]])
    if name == "relu" or name == "squared_relu":
        x[1, 0] = inf
    x = x.double()
    if name.startswith(("silu", "gelu")):
        x[1, 2] = -30.0  # the formula is 0 * inf there, in torch.nn too
    layer = build(form, ours)
    ours, theirs = run(layer, [x]), run(theirs(), [x])
    with torch.no_grad():
        ours["output 0, without gradients"] = layer(x)
    theirs["output 0, without gradients"] = theirs["output 0"]
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-12, atol=1e-12, equal_nan=True, msg=key)


@every_activation
def test_functions_are_the_formulas(name):
    x = normal(1, 4, 6)
    torch.testing.assert_close(FUNCTIONS[name](x), PAIRS[name][1]()(x), rtol=1e-12, atol=1e-12)


@both_forms
def test_softmax_does_not_overflow(form):
    y = build(form, layers.Softmax)(torch.tensor([1e30, 1e30, -1e30]))
    assert y.tolist() == [0.5, 0.5, 0.0]


@both_forms
@every_activation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_its_dtype(name, form, dtype):
    ours, theirs = PAIRS[name]
    x = normal(3, 5, 7)
    y = build(form, ours)(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), theirs()(x), rtol=0.03, atol=0.02)


def test_squared_relu_kernel_can_be_differentiated_once_and_says_so():
    x = normal(4, 6).requires_grad_()
    (first,) = torch.autograd.grad(build("reference", layers.SquaredReLU)(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(second, 2.0 * (x > 0))
    with pytest.raises(RuntimeError, match=r"SquaredReLU: .* kernels\('reference'\)"):
        torch.autograd.grad(build("fused", layers.SquaredReLU)(x).sum(), x, create_graph=True)


@pytest.mark.parametrize("make", [lambda: layers.GELU("tan"), lambda: layers.gelu(torch.zeros(1), "tan")])
def test_gelu_refuses_an_unknown_form(make):
    with pytest.raises(ConfigError, match=r"'tan': must be 'none' .* or 'tanh'"):
        make()
