from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_parity import assert_parity, both_forms, build, few, normal, run, seeds

from handmade import layers
from handmade.errors import ConfigError


def pairs(least: int, most: int):
    return st.one_of(st.integers(least, most), st.tuples(st.integers(least, most), st.integers(least, most)))


@both_forms
@few
@given(
    rows=st.integers(0, 3),
    groups=st.integers(1, 3),
    inputs=st.integers(1, 2),
    outputs=st.integers(1, 2),
    kernel=pairs(1, 3),
    stride=pairs(1, 3),
    padding=pairs(0, 2),
    dilation=pairs(1, 2),
    bias=st.booleans(),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    seed=seeds,
)
def test_conv_equals_torch(form, rows, groups, inputs, outputs, kernel, stride, padding, dilation, bias, size, seed):
    arguments = (groups * inputs, groups * outputs, kernel, stride, padding, dilation, groups, bias)
    ours = build(form, lambda: layers.Conv2d(*arguments))
    assert_parity(ours, torch.nn.Conv2d(*arguments), [normal(seed, rows, groups * inputs, *size)])


@both_forms
@few
@given(
    rows=st.integers(0, 3),
    channels=st.integers(1, 3),
    kernel=st.sampled_from([2, 3, (2, 3)]),
    stride=st.one_of(st.none(), pairs(1, 3)),
    padding=st.sampled_from([0, 1, (0, 1)]),
    dilation=pairs(1, 2),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    ties=st.booleans(),
    seed=seeds,
)
def test_pool_equals_torch(form, rows, channels, kernel, stride, padding, dilation, size, ties, seed):
    arguments = (kernel, stride, padding, dilation)
    x = normal(seed, rows, channels, *size, shift=-2.0)  # below zero: a padding of zeros would win
    if ties:
        x = x.round().clamp(min=-2)  # the gradient goes to the first of the largest
    assert_parity(build(form, lambda: layers.MaxPool2d(*arguments)), torch.nn.MaxPool2d(*arguments), [x])


@both_forms
def test_one_image_without_a_batch(form):
    x = normal(1, 4, 7, 6)
    assert_parity(build(form, lambda: layers.Conv2d(4, 6, 3, groups=2)), torch.nn.Conv2d(4, 6, 3, groups=2), [x])
    assert_parity(build(form, lambda: layers.MaxPool2d(2)), torch.nn.MaxPool2d(2), [x])


@both_forms
def test_pool_passes_nan_on(form):
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 1] = float("nan")
    y = build(form, lambda: layers.MaxPool2d(2))(x)
    assert y.isnan().flatten().tolist() == [True, False, False, False]


@both_forms
def test_conv_under_autocast(form):
    layer, x = build(form, lambda: layers.Conv2d(3, 4, 3)), normal(2, 2, 3, 6, 6).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.03, atol=0.1)


@both_forms
def test_an_image_smaller_than_the_window_is_an_error(form):
    for layer in (build(form, lambda: layers.Conv2d(1, 1, 5)), build(form, lambda: layers.MaxPool2d(5))):
        with pytest.raises(RuntimeError, match="size"):
            run(layer.double(), [normal(1, 1, 1, 4, 4)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Conv2d(0, 1, 1), "in_channels = 0: must be a whole number from 1"),
        (lambda: layers.Conv2d(4, 6, 3, groups=4), "groups = 4: must divide out_channels = 6"),
        (lambda: layers.Conv2d(3, 4, 3, groups=2), "groups = 2: must divide in_channels = 3"),
        (lambda: layers.Conv2d(1, 1, 0), "kernel_size = 0: must be a whole number from 1"),
        (lambda: layers.Conv2d(1, 1, (1, 2, 3)), r"kernel_size = \(1, 2, 3\): must be"),
        (lambda: layers.Conv2d(1, 1, 1, stride=0), "stride = 0: must be"),
        (lambda: layers.Conv2d(1, 1, 1, padding=-1), "padding = -1: must be a whole number from 0"),
        (lambda: layers.Conv2d(1, 1, 1, dilation=0), "dilation = 0: must be"),
        (lambda: layers.MaxPool2d(0), "MaxPool2d: kernel_size = 0"),
        (lambda: layers.MaxPool2d(2, padding=2), "padding = 2: must be at most half of kernel_size = 2"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
