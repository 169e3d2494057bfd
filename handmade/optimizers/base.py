"""What every optimizer here stands on: `torch.optim.Optimizer` (param groups, state dicts) plus one step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from handmade.errors import ConfigError
from handmade.layers.kernels import fused_chosen

Group = dict[str, Any]
State = dict[str, Any]

KERNEL_DEVICES = ("cpu", "cuda", "mps", "xpu")  # where PyTorch has momentum and Adam as one kernel


class Optimizer(torch.optim.Optimizer):
    """One step for every optimizer. A subclass says what a parameter's state is and how one step changes it.

    `update` is the formula, parameter by parameter, in the paper's order. `update_all` is the same step for
    all parameters of a group in a few calls. Which of the two runs is fixed when the optimizer is made, by
    `handmade.layers.kernels.kernels`.

    Options have the names of `torch.optim` (`lr`, `betas`, ...), so one can stand in for the other. What is
    kept per parameter is tensors of the parameter's own type and plain numbers, so a state dict can be
    written as safetensors and JSON.
    """

    def __init__(self, parameters: ParamsT, **options: Any) -> None:
        self.fused = fused_chosen()
        given: Any = list(parameters)
        if not given:
            raise ConfigError(f"{type(self).__name__} was given no parameters. Pass model.parameters().")
        super().__init__(given, options)

    # ---- what a subclass writes ----

    def check(self, group: Group) -> None:
        """Raise ConfigError (by `require`) for an option of `group` that is out of range."""

    def begin(self, state: State, parameter: Tensor) -> None:
        """Fill a parameter's state before its first step."""

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Group) -> None:
        """One step of one parameter, in place: the formula."""
        raise NotImplementedError

    def update_all(self, parameters: list[Tensor], gradients: list[Tensor], states: list[State], group: Group) -> None:
        """One step of all parameters of a group, in place: the fast way to the same numbers."""
        raise NotImplementedError

    # ---- what they share ----

    def require(self, name: str, value: Any, holds: bool, right: str) -> None:
        """Raise ConfigError that names the option, its value and what would be right, unless `holds`."""
        if not holds:
            raise ConfigError(f"{type(self).__name__}: {name} = {value!r} must be {right}.")

    def add_param_group(self, param_group: Group) -> None:
        """As in torch. Raises ConfigError for an option out of range, before any step."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for name in ("lr", "weight_decay"):
                value = group[name]
                self.require(name, value, number(value) and 0 <= value < float("inf"), "a number from 0 up")
            for parameter in group["params"]:
                if parameter.is_complex():
                    raise ConfigError(f"{type(self).__name__} does not take complex parameters.")
            self.check(group)
        except ConfigError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change every parameter that has a gradient. Returns what `closure` returns, or None without one.

        Raises ConfigError for a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            gradients, states = [], []
            for parameter in parameters:
                gradient, state = parameter.grad, self.state[parameter]
                if gradient.layout is not torch.strided:
                    raise ConfigError(
                        f"{type(self).__name__} does not take sparse gradients. Make the embedding with sparse=False."
                    )
                if not state:
                    self.begin(state, parameter)
                gradients.append(gradient)
                states.append(state)
            if self.fused:
                self.update_all(parameters, gradients, states, group)
            else:
                for parameter, gradient, state in zip(parameters, gradients, states, strict=True):
                    self.update(parameter, gradient, state, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but the state is copied: the optimizer it came from may go on without changing ours."""
        super().load_state_dict(copy.deepcopy(state_dict))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "fused": self.fused}


def number(value: Any) -> bool:
    """Whether `value` is a plain number. A tensor is not: it could not go into JSON."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def alike(parameters: list[Tensor], *more: list[Any]) -> list[list[int]]:
    """Places of parameters that one kernel call can take: one device, one type, and equal entries of `more`."""
    found: dict[Any, list[int]] = {}
    for place, key in enumerate(zip(parameters, *more, strict=True)):
        found.setdefault((key[0].device, key[0].dtype, *key[1:]), []).append(place)
    return list(found.values())


def laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """The gradient with the parameter's strides and type: a kernel walks both memories in step.

    Autograd sees to that; a gradient set by hand may differ.
    """
    if gradient.stride() == parameter.stride() and gradient.dtype == parameter.dtype:
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def decayed(parameter: Tensor, gradient: Tensor, group: Group) -> Tensor:
    """The gradient of loss + weight_decay / 2 * |parameter|²: L2 regularisation, the older weight decay."""
    if not group["weight_decay"]:
        return gradient
    return gradient + group["weight_decay"] * parameter


def decayed_all(parameters: list[Tensor], gradients: list[Tensor], group: Group) -> list[Tensor]:
    """`decayed` for a whole group. The gradients themselves are left as they are: a person may log them."""
    if not group["weight_decay"]:
        return gradients
    return torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])  # type: ignore[return-value]
