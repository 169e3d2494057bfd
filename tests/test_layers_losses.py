from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_parity import assert_parity, both_forms, build, few, normal, seeds

from handmade import layers
from handmade.errors import ConfigError


class TorchCrossEntropy(torch.nn.Module):
    """torch.nn wants the classes second, so everything else is made one axis."""

    def __init__(self, label_smoothing, reduction):
        super().__init__()
        self.loss = torch.nn.CrossEntropyLoss(label_smoothing=label_smoothing, reduction=reduction)

    def forward(self, logits, targets):
        return self.loss(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def some_targets(seed, classes, shape, ignored):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, shape, generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < ignored] = layers.IGNORED
    if targets.numel():
        targets.view(-1)[0] = 0  # one is scored: where none is, PyTorch's mean is NaN
    return targets


@both_forms
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@few
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    classes=st.integers(1, 9),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    ignored=st.sampled_from([0.0, 0.5, 1.0]),
    scale=st.sampled_from([0.1, 1.0, 20.0]),
    seed=seeds,
)
def test_equals_torch(form, reduction, shape, classes, smoothing, ignored, scale, seed):
    ours = build(form, lambda: layers.CrossEntropy(label_smoothing=smoothing, reduction=reduction))
    targets = some_targets(seed, classes, shape, ignored)
    assert_parity(ours, TorchCrossEntropy(smoothing, reduction), [normal(seed, *shape, classes, scale=scale), targets])


@both_forms
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(2, 3), (0,), (0, 4)])
def test_nothing_scored_is_a_loss_of_zero(form, smoothing, shape):
    logits = normal(1, *shape, 5).requires_grad_()
    targets = torch.full(shape, layers.IGNORED)
    for reduction in ("mean", "sum"):
        loss = layers.cross_entropy(
            logits, targets, label_smoothing=smoothing, reduction=reduction, fused=form == "fused"
        )
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == 0
        assert torch.equal(gradient, torch.zeros_like(gradient))


@both_forms
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_scored_in_float32(form, dtype):
    # 4,096 equal logits: their sum of exponentials is lost in bfloat16, and the loss must be log(4096) to 1e-6.
    logits = torch.full((3, 4096), 2.5, dtype=dtype, requires_grad=True)
    targets = torch.tensor([0, 17, 4095])
    loss = layers.cross_entropy(logits, targets, fused=form == "fused")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(4096), abs=1e-6)
    loss.backward()
    assert logits.grad.dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        again = layers.cross_entropy(logits, targets, fused=form == "fused")
    assert again.dtype == torch.float32
    assert again.item() == loss.item()


@both_forms
def test_sums_of_batches_add_up_to_the_mean_of_all(form):
    logits, targets = normal(2, 8, 10, 7), some_targets(3, 7, (8, 10), 0.6)
    targets[:3] = layers.IGNORED  # a mean of means would count these as well
    fused = form == "fused"
    total = sum(layers.cross_entropy(x, y, reduction="sum", fused=fused) for x, y in zip(logits, targets, strict=True))
    mean = layers.cross_entropy(logits, targets, fused=fused)
    torch.testing.assert_close(total / (targets != -100).sum(), mean, rtol=1e-12, atol=1e-12)


@both_forms
def test_large_and_masked_logits(form):
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, -math.inf, 0.0]])
    loss = layers.cross_entropy(logits, torch.tensor([2, 0]), reduction="sum", fused=form == "fused")
    assert loss.item() == pytest.approx(1e4 + math.log(2))


@both_forms
@pytest.mark.parametrize("target", [-1, 5, -99])
def test_a_target_outside_the_classes_is_an_error(form, target):
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        layers.cross_entropy(torch.zeros(2, 5), torch.tensor([0, target]), fused=form == "fused")


class Headed(torch.nn.Module):
    """A linear layer and the cross-entropy behind it: ours in one, torch's in two."""

    def __init__(self, targets, width, classes, bias, ours, **options):
        super().__init__()
        self.head = torch.nn.Linear(width, classes, bias)
        self.targets, self.ours, self.options = targets, ours, options

    def forward(self, x):
        if self.ours is None:
            options = {name: value for name, value in self.options.items() if name != "reduction"}
            total = TorchCrossEntropy(options["label_smoothing"], "sum")(self.head(x), self.targets)
            scored = (self.targets != layers.IGNORED).sum().clamp(min=1)
            return total / scored if self.options["reduction"] == "mean" else total
        fused = self.ours == "fused"
        return layers.linear_cross_entropy(
            x, self.head.weight, self.targets, self.head.bias, fused=fused, **self.options
        )


@both_forms
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@few
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    classes=st.integers(1, 9),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    ignored=st.sampled_from([0.0, 0.5, 1.0]),
    bias=st.booleans(),
    at_once=st.sampled_from([1, 20, 1000]),
    seed=seeds,
)
def test_a_head_with_its_loss_equals_torch(
    form, reduction, shape, classes, smoothing, ignored, bias, at_once, seed, monkeypatch
):
    monkeypatch.setattr(layers.losses, "AT_ONCE", at_once)
    targets = some_targets(seed, classes, shape, ignored)
    options = {"label_smoothing": smoothing, "reduction": reduction}
    ours = build(form, lambda: Headed(targets, 3, classes, bias, form, **options))
    assert_parity(ours, Headed(targets, 3, classes, bias, None, **options), [normal(seed, *shape, 3)])


def test_a_head_with_its_loss_under_autocast(monkeypatch):
    monkeypatch.setattr(layers.losses, "AT_ONCE", 3000)
    x, weight = normal(0, 40, 16).float().requires_grad_(), normal(1, 300, 16).float().requires_grad_()
    targets = some_targets(2, 300, (40,), 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        losses = [
            layers.linear_cross_entropy(x, weight, targets, label_smoothing=0.1),
            layers.cross_entropy(torch.nn.functional.linear(x, weight), targets, label_smoothing=0.1),
            layers.linear_cross_entropy(x.double(), weight.double(), targets, label_smoothing=0.1, fused=False),
        ]
    assert losses[0].dtype == torch.float32
    exact = layers.cross_entropy(x.double() @ weight.double().T, targets, label_smoothing=0.1)
    expected = torch.autograd.grad(exact, (x, weight))
    found, plain = (torch.autograd.grad(loss, (x, weight)) for loss in losses[:2])
    assert losses[0].item() == pytest.approx(exact.item(), rel=0.01)
    for part, other, truth in zip(found, plain, expected, strict=True):
        assert part.dtype == torch.float32
        assert (part - truth).norm() <= 1.5 * (other - truth).norm()


def test_a_head_with_its_loss_where_nothing_is_learnt():
    x, weight, targets = normal(0, 4, 3), normal(1, 5, 3), torch.tensor([0, 4, -100, 2])
    expected = layers.cross_entropy(x @ weight.T, targets)
    with torch.no_grad():
        found = layers.linear_cross_entropy(x, weight, targets)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    nothing = layers.linear_cross_entropy(x.requires_grad_(), weight, torch.full((4,), -100))
    assert nothing.item() == 0
    assert (torch.autograd.grad(nothing, x)[0] == 0).all()
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        layers.linear_cross_entropy(x, weight, torch.tensor([0, 5, 1, 1]))
    with pytest.raises(ConfigError, match=r"label_smoothing = 1.1"):
        layers.linear_cross_entropy(x, weight, targets, label_smoothing=1.1)
    with pytest.raises(RuntimeError, match="linear_cross_entropy: the fused form can be differentiated once"):
        torch.autograd.grad(layers.linear_cross_entropy(x, weight, targets), x, create_graph=True)


@pytest.mark.parametrize("make", [layers.CrossEntropy, lambda **k: layers.cross_entropy(None, None, **k)])
def test_arguments_are_checked(make):
    with pytest.raises(ConfigError, match=r"label_smoothing = 1.1: must be from 0 to 1"):
        make(label_smoothing=1.1)
    with pytest.raises(ConfigError, match=r"reduction = 'none': must be 'mean' or 'sum'"):
        make(reduction="none")
