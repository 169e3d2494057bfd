"""Every optimizer, both forms, against torch.optim; state, closures, gradients that are missing, bad options."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from handmade.errors import ConfigError
from handmade.layers.kernels import kernels
from handmade.optimizers import SGD, AdaGrad, Adam, AdamW, Momentum, Muon, Nesterov, RMSProp

FORMS = ("reference", "fused")
SHAPES = ((3, 4), (5,), (2, 3, 2), (1,), (6, 2))


def torch_nesterov(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, nesterov=True, **options)


# Ours, torch's, and the options besides lr and weight_decay that both take by the same name.
PAIRS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sgd": (SGD, torch.optim.SGD, {}),
    "momentum": (Momentum, torch.optim.SGD, {"momentum": st.floats(0.1, 0.99)}),
    "nesterov": (Nesterov, torch_nesterov, {"momentum": st.floats(0.1, 0.99)}),
    "adagrad": (AdaGrad, torch.optim.Adagrad, {"eps": st.floats(1e-10, 1e-3)}),
    "rmsprop": (RMSProp, torch.optim.RMSprop, {"eps": st.floats(1e-8, 1e-3), "alpha": st.floats(0.0, 0.999)}),
    "adam": (
        Adam,
        torch.optim.Adam,
        {"eps": st.floats(1e-8, 1e-3), "betas": st.tuples(st.floats(0, 0.99), st.floats(0.5, 0.999))},
    ),
    "adamw": (
        AdamW,
        torch.optim.AdamW,
        {"eps": st.floats(1e-8, 1e-3), "betas": st.tuples(st.floats(0, 0.99), st.floats(0.5, 0.999))},
    ),
}
ALL = {name: ours for name, (ours, _, _) in PAIRS.items()} | {"muon": Muon}


def start(dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    # Drawn in float32, so that both types start at the same numbers.
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def walk(optimizer: torch.optim.Optimizer, steps: int, seed: int = 2) -> None:
    """Steps whose gradients pull to zero, with noise. Halfway the rates are halved; one parameter has no
    gradient at every third step, so the parameters' step counts drift apart."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        if step == steps // 2:
            for group in optimizer.param_groups:
                group["lr"] /= 2
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for place, parameter in enumerate(parameters):
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            skipped = place == 1 and step % 3 == 0
            parameter.grad = None if skipped else noise + 0.1 * parameter.detach()
        optimizer.step()


def groups_of(parameters: list[torch.nn.Parameter], lr: float, decay: float) -> list[dict[str, Any]]:
    return [
        {"params": parameters[:2], "lr": lr, "weight_decay": decay},
        {"params": parameters[2:3], "lr": lr / 3, "weight_decay": 0.0},
        {"params": parameters[3:], "weight_decay": 3 * decay},
    ]


def distance(left: list[torch.nn.Parameter], right: list[torch.nn.Parameter]) -> float:
    return sum((p.double() - q.double()).square().sum().item() for p, q in zip(left, right, strict=True)) ** 0.5


def trained(form: str, maker: Any, dtype: torch.dtype, lr: float, decay: float, options: Any) -> list[Any]:
    parameters = start(dtype)
    with kernels(form):
        optimizer = maker(groups_of(parameters, lr, decay), lr=2 * lr, **options)
    walk(optimizer, 100)
    return parameters


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(data=st.data())
def test_equal_to_torch(name: str, form: str, data: st.DataObject) -> None:
    ours, theirs, others = PAIRS[name]
    lr, decay = data.draw(st.floats(1e-4, 1e-2)), data.draw(st.floats(0.001, 0.3))
    options = {option: data.draw(values) for option, values in others.items()}

    exact = trained(form, theirs, torch.float64, lr, decay, options)
    assert distance(trained(form, ours, torch.float64, lr, decay, options), exact) < 1e-12

    own = distance(trained(form, ours, torch.float32, lr, decay, options), exact)
    yardstick = distance(trained(form, theirs, torch.float32, lr, decay, options), exact)
    assert own <= 4 * yardstick + 1e-7


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALL)
def test_the_defaults_take_a_step_on_a_real_loss(name: str, form: str) -> None:
    torch.manual_seed(0)
    weight, data = torch.nn.Parameter(torch.randn(4, 3)), torch.randn(32, 4)
    with kernels(form):
        optimizer = ALL[name]([weight])
    losses = []
    for _ in range(50):
        loss = (data @ weight).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALL)
def test_state_goes_through_json_and_safetensors_and_goes_on_bit_equal(name: str, form: str) -> None:
    shapes = ((3, 4), (5, 2), (2, 9))
    with kernels(form):
        here, there = start(torch.float32, shapes), start(torch.float32, shapes)
        first = ALL[name](groups_of(here, 0.01, 0.1))
        second = ALL[name](groups_of(there, 0.7, 0.2))
    walk(first, 7)

    state = first.state_dict()
    tensors, numbers = {}, {}
    for place, entries in state["state"].items():
        for entry, value in entries.items():
            kind = tensors if isinstance(value, torch.Tensor) else numbers
            kind[f"{place}.{entry}"] = value.clone() if isinstance(value, torch.Tensor) else value
    text = json.dumps({"groups": state["param_groups"], "numbers": numbers})
    kept, read = load(save(tensors)), json.loads(text)
    restored: dict[int, dict[str, Any]] = {}
    for key, value in {**kept, **read["numbers"]}.items():
        place, entry = key.split(".")
        restored.setdefault(int(place), {})[entry] = value
    second.load_state_dict({"state": restored, "param_groups": read["groups"]})
    with torch.no_grad():
        for p, q in zip(here, there, strict=True):
            q.copy_(p)

    walk(first, 7, seed=3)
    walk(second, 7, seed=3)
    assert all(torch.equal(p, q) for p, q in zip(here, there, strict=True))
    assert json.dumps(first.state_dict()["param_groups"]) == json.dumps(second.state_dict()["param_groups"])


@pytest.mark.parametrize("form", FORMS)
def test_a_loaded_state_is_a_copy(form: str) -> None:
    with kernels(form):
        first, second = AdamW(start(torch.float32)), AdamW(start(torch.float32))
    walk(first, 2)
    second.load_state_dict(first.state_dict())
    before = copy.deepcopy(second.state_dict()["state"])
    walk(first, 2)
    for place, entries in second.state_dict()["state"].items():
        assert torch.equal(entries["mean"], before[place]["mean"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALL)
def test_a_closure_is_called_with_gradients_on_and_its_loss_returned(name: str, form: str) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    with kernels(form):
        optimizer = ALL[name]([weight])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == 4.0
    assert not torch.equal(weight, torch.ones(2, 2))
    assert optimizer.step() is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALL)
def test_a_parameter_without_gradient_is_left_alone(name: str, form: str) -> None:
    still, moved = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    with kernels(form):
        optimizer = ALL[name]([still, moved], weight_decay=0.5)
    optimizer.step()  # no gradient at all
    moved.grad = torch.eye(2)
    optimizer.step()
    assert torch.equal(still, torch.ones(2, 2))
    assert still not in optimizer.state
    assert not torch.equal(moved, torch.ones(2, 2))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALL)
def test_gradients_are_read_only_and_may_have_any_strides(name: str, form: str) -> None:
    results = []
    for gradient in (torch.arange(12.0).view(4, 3).T, torch.arange(12.0).view(4, 3).T.contiguous()):
        weight = torch.nn.Parameter(torch.ones(3, 4))
        with kernels(form):
            optimizer = ALL[name]([weight], lr=0.1, weight_decay=0.5)
        weight.grad = gradient
        before = gradient.clone()
        for _ in range(3):
            optimizer.step()
        assert torch.equal(weight.grad, before)
        results.append(weight.detach().clone())
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_the_form_is_fixed_when_the_optimizer_is_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("the other form was called")

    made = {}
    for form in FORMS:
        with kernels(form):
            made[form] = ALL[name]([torch.nn.Parameter(torch.ones(2, 2))])
    monkeypatch.setattr(ALL[name], "update_all", refuse)
    for optimizer in (made["reference"], copy.deepcopy(made["reference"])):
        optimizer.param_groups[0]["params"][0].grad = torch.ones(2, 2)
        optimizer.step()
    made["fused"].param_groups[0]["params"][0].grad = torch.ones(2, 2)
    with pytest.raises(AssertionError, match="other form"):
        made["fused"].step()
    assert copy.deepcopy(made["fused"]).fused


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["momentum", "adam", "muon"])
def test_parameters_of_several_types_in_one_group(name: str, form: str) -> None:
    types = (torch.float32, torch.float64, torch.bfloat16)
    together, alone = [start(dtype, ((3, 4),))[0] for dtype in types], [start(d, ((3, 4),))[0] for d in types]
    with kernels(form):
        one = ALL[name](together, lr=0.1)
        several = [ALL[name]([parameter], lr=0.1) for parameter in alone]
    for p, q in zip(together, alone, strict=True):
        p.grad = q.grad = torch.linspace(-1, 1, 12).view(3, 4).to(p.dtype)
    one.step()
    for optimizer in several:
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(together, alone, strict=True))


def test_a_sparse_gradient_is_refused() -> None:
    table = torch.nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="sparse=False"):
        AdamW(table.parameters()).step()


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("sgd", {"lr": -1.0}, "lr"),
        ("sgd", {"lr": float("nan")}, "lr"),
        ("sgd", {"lr": torch.tensor(1.0)}, "lr"),
        ("sgd", {"weight_decay": -0.1}, "weight_decay"),
        ("momentum", {"momentum": 1.0}, "momentum"),
        ("nesterov", {"momentum": -0.1}, "momentum"),
        ("adagrad", {"eps": -1e-8}, "eps"),
        ("rmsprop", {"alpha": 1.0}, "alpha"),
        ("adam", {"betas": (0.9, 1.0)}, "betas"),
        ("adam", {"betas": (0.9,)}, "betas"),
        ("adamw", {"betas": 0.9}, "betas"),
        ("muon", {"steps": 0}, "steps"),
        ("muon", {"precision": "float16"}, "precision"),
        ("muon", {"momentum": 1.5}, "momentum"),
    ],
)
def test_an_option_out_of_range_is_named(name: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"{named} = "):
        ALL[name]([torch.nn.Parameter(torch.ones(2, 2))], **options)


def test_a_bad_group_is_refused_and_not_kept() -> None:
    optimizer = SGD([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(ConfigError, match="lr"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": -1.0})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", ALL)
def test_nothing_to_train_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no parameters"):
        ALL[name]([])


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(ConfigError, match="complex"):
        SGD([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))])
