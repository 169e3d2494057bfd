"""How a layer made by hand is held against torch.nn: values and gradients, in float64 and in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from handmade.layers import kernels

both_forms = pytest.mark.parametrize("form", ["reference", "fused"])
# Derandomized: the float32 bound is a statement about rounding, which a rare draw may break by chance.
few = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
seeds = st.integers(0, 2**16)
FLOAT32_EPS = torch.finfo(torch.float32).eps


def build(form: str, make: Callable[[], Any]) -> Any:
    """A layer of the form, its parameters drawn at random, so that no weight of 1 or bias of 0 hides a mistake."""
    with kernels(form):
        layer = make()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.7, generator=generator)
    return layer


def assert_parity(ours: Any, theirs: Any, inputs: list[Tensor]) -> None:
    """`ours` equals the torch.nn module `theirs` on `inputs` (float ones are float64), after a state dict went
    from one to the other and back; without gradients too, which may take another way."""
    theirs.load_state_dict(ours.state_dict())
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    ours.load_state_dict(theirs.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())

    truth = run(copy.deepcopy(theirs).double(), inputs)
    got = run(copy.deepcopy(ours).double(), inputs)
    assert got.keys() == truth.keys()
    for name, value in truth.items():
        torch.testing.assert_close(got[name], value, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")

    with torch.no_grad():
        for i, y in enumerate(flatten(copy.deepcopy(ours).double()(*inputs))):
            torch.testing.assert_close(y, truth[f"output {i}"], rtol=1e-12, atol=1e-12)

    single = [x.float() if x.is_floating_point() else x for x in inputs]
    their_result = run(copy.deepcopy(theirs).float(), single)
    our_result = run(copy.deepcopy(ours).float(), single)
    for name, value in truth.items():
        assert our_result[name].dtype == their_result[name].dtype, name
        if value.numel() == 0:
            continue
        # The floor is a few roundings of the largest number.
        floor = 8 * FLOAT32_EPS * max(1.0, value.abs().max().item())
        their_error = (their_result[name].double() - value).abs().max().item()
        our_error = (our_result[name].double() - value).abs().max().item()
        assert our_error <= 4 * their_error + floor, f"{name}: {our_error:.1e} against {their_error:.1e}"


def run(module: Callable[..., Any], inputs: list[Tensor]) -> dict[str, Tensor]:
    """Outputs, the gradients of a random linear function of them, and buffers, by name."""
    leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    outputs = flatten(module(*leaves))
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in outputs]
    torch.stack([(y * w).sum() for y, w in zip(outputs, weights, strict=True)]).sum().backward()
    found = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    for i, x in enumerate(leaves):
        if x.is_floating_point():
            assert x.grad is not None
            found[f"gradient of input {i}"] = x.grad
    if isinstance(module, torch.nn.Module):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            found[f"gradient of {name}"] = parameter.grad
        found |= {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    return found


def flatten(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in flatten(part)]


def normal(seed: int, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Normal draws in float64 that float32 holds exactly, so that both precisions see the same input."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale + shift).double()
