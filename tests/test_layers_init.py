"""What holds for every layer: its initialisation, and that it is there to be used."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import nn

import handmade
from handmade import layers

# name -> (ours, torch.nn's, the bound of the uniform draw | None for what is not drawn uniformly)
LAYERS = {
    "Linear": (lambda: layers.Linear(300, 200), lambda: nn.Linear(300, 200), 1 / math.sqrt(300)),
    "Linear without bias": (
        lambda: layers.Linear(50, 20, bias=False),
        lambda: nn.Linear(50, 20, bias=False),
        1 / math.sqrt(50),
    ),
    "Embedding": (lambda: layers.Embedding(300, 200), lambda: nn.Embedding(300, 200), None),
    "LayerNorm": (lambda: layers.LayerNorm(8), lambda: nn.LayerNorm(8), None),
    "RMSNorm": (lambda: layers.RMSNorm(8), lambda: nn.RMSNorm(8), None),
    "RMSNorm without weight": (
        lambda: layers.RMSNorm(8, elementwise_affine=False),
        lambda: nn.RMSNorm(8, elementwise_affine=False),
        None,
    ),
    "BatchNorm1d": (lambda: layers.BatchNorm1d(8), lambda: nn.BatchNorm1d(8), None),
    "BatchNorm2d": (lambda: layers.BatchNorm2d(8), lambda: nn.BatchNorm2d(8), None),
    "Conv2d": (
        lambda: layers.Conv2d(32, 64, (3, 5), groups=2),
        lambda: nn.Conv2d(32, 64, (3, 5), groups=2),
        1 / math.sqrt(16 * 3 * 5),
    ),
    "RNN": (lambda: layers.RNN(30, 100, 2), lambda: nn.RNN(30, 100, 2), 1 / math.sqrt(100)),
    "LSTM": (lambda: layers.LSTM(30, 100, 2), lambda: nn.LSTM(30, 100, 2), 1 / math.sqrt(100)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


@every_layer
def test_starts_as_torch_does(name):
    """The same seed gives torch.nn's own numbers (to the rounding of the bound), with its names and its order."""
    ours, theirs, _ = LAYERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = theirs().state_dict()
        torch.manual_seed(3)
        got = ours().state_dict()
    assert list(got) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-6, atol=1e-7, msg=key)


@every_layer
def test_draws_from_the_generator_and_nowhere_else(name):
    layer = LAYERS[name][0]()
    before = torch.get_rng_state()
    seen = []
    for seed in (1, 1, 2):
        with torch.no_grad():
            for value in layer.state_dict().values():
                value.fill_(7)
        layer.reset_parameters(torch.Generator().manual_seed(seed))
        seen.append({key: value.clone() for key, value in layer.state_dict().items()})
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(seen[0][key], seen[1][key]) for key in seen[0])
    if name in ("Linear", "Linear without bias", "Embedding", "Conv2d", "RNN", "LSTM"):
        assert not any(torch.equal(seen[0][key], seen[2][key]) for key in seen[0])
    assert not any((value == 7).any() for value in seen[0].values()), "something was not set again"


@every_layer
def test_follows_the_distribution_that_it_documents(name):
    make, _, bound = LAYERS[name]
    layer = make()
    layer.reset_parameters(torch.Generator().manual_seed(5))
    for key, value in layer.named_parameters():
        if bound is not None:
            assert value.abs().max() <= bound, key
            assert value.abs().max() >= 0.9 * bound or value.numel() < 50, key
            if value.numel() > 5000:
                assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03), key
                assert value.mean().item() == pytest.approx(0, abs=0.05 * bound), key
        elif name == "Embedding":
            assert value.std().item() == pytest.approx(1, rel=0.02)
            assert value.mean().item() == pytest.approx(0, abs=0.02)
            assert value.abs().max() > 3  # a normal draw, not a uniform one
        else:
            assert torch.equal(value, torch.full_like(value, float(key == "weight"))), key


def test_every_layer_is_exported():
    assert handmade.layers.LSTM is layers.LSTM
    for module in ("activations", "convolution", "dropout", "linear", "losses", "norms", "recurrent"):
        source = getattr(layers, module)
        for name, value in vars(source).items():
            public = inspect.isclass(value) and issubclass(value, nn.Module) and not name.startswith("_")
            if public:
                assert name in layers.__all__
                assert getattr(layers, name) is value


def test_layers_compile_without_a_break():
    """The choice of form and the kernels by hand leave no switch that a compiler stumbles over."""
    for form in ("reference", "fused"):
        with layers.kernels(form):
            model = nn.Sequential(
                layers.Embedding(11, 8),
                layers.LayerNorm(8),
                layers.Linear(8, 16),
                layers.SquaredReLU(),
                layers.GELU("tanh"),
                layers.RMSNorm(16),
                layers.RMSNorm(16, elementwise_affine=False),
                layers.Linear(16, 11),
            )
        tokens = torch.arange(11)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        loss = layers.cross_entropy(compiled(tokens), tokens, fused=form == "fused")
        got = torch.autograd.grad(loss, list(model.parameters()))
        loss = layers.cross_entropy(model(tokens), tokens, fused=form == "fused")
        expected = torch.autograd.grad(loss, list(model.parameters()))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
