from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_parity import assert_parity, both_forms, build, few, normal, seeds

from handmade import layers
from handmade.errors import ConfigError

sizes = st.integers(1, 9)


@both_forms
@few
@given(lead=st.lists(st.integers(0, 4), max_size=3), inputs=sizes, outputs=sizes, bias=st.booleans(), seed=seeds)
def test_linear_equals_torch(form, lead, inputs, outputs, bias, seed):
    ours = build(form, lambda: layers.Linear(inputs, outputs, bias=bias))
    assert_parity(ours, torch.nn.Linear(inputs, outputs, bias=bias), [normal(seed, *lead, inputs)])


@both_forms
@few
@given(lead=st.lists(st.integers(0, 4), max_size=3), rows=sizes, width=sizes, seed=seeds)
def test_embedding_equals_torch(form, lead, rows, width, seed):
    tokens = torch.randint(rows, lead, generator=torch.Generator().manual_seed(seed))
    ours = build(form, lambda: layers.Embedding(rows, width))
    assert_parity(ours, torch.nn.Embedding(rows, width), [tokens])


@both_forms
@pytest.mark.parametrize("token", [-1, 5])
def test_embedding_refuses_a_token_outside(form, token):
    with pytest.raises(IndexError):
        build(form, lambda: layers.Embedding(5, 3))(torch.tensor([[0, token]]))


@both_forms
@pytest.mark.parametrize("bias", [True, False])
def test_linear_under_autocast(form, bias):
    layer = build(form, lambda: layers.Linear(16, 8, bias=bias))
    x = normal(1, 3, 16).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.02, atol=0.1)
    y.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Linear(0, 3), "Linear: in_features = 0"),
        (lambda: layers.Linear(3, -1), "Linear: out_features = -1"),
        (lambda: layers.Linear(3, 2.0), "Linear: out_features = 2.0"),
        (lambda: layers.Embedding(0, 3), "Embedding: num_embeddings = 0"),
        (lambda: layers.Embedding(3, True), "Embedding: embedding_dim = True"),
    ],
)
def test_sizes_are_checked(make, message):
    with pytest.raises(ConfigError, match=f"{message}: must be a whole number from 1"):
        make()
