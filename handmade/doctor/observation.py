"""Watch a training as it happens, and leave torch as it was afterwards.

    with Observation(model) as seen:
        train_step()
    for event in seen.events: ...        # Forward, Scored, Backward, Zeroed, Clipped, Stepped, ... in their order

The places that every training goes through (`backward`, `Optimizer.step`, `zero_grad`, clipping, `GradScaler`,
`scheduler.step`, `model.train()`, the call of a model, `cross_entropy`) are wrapped while it lasts, and
`torch.compile` is left out.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from handmade.doctor.events import (
    Backward,
    Changed,
    Clipped,
    Event,
    Forward,
    Gradients,
    Mode,
    Scheduled,
    Scored,
    Skipped,
    Stepped,
    Unscaled,
    Written,
    Zeroed,
    cleared,
    flat,
    is_tokens,
    leaves,
    rates_of,
    same,
    some,
    subclasses,
)
from handmade.doctor.forms import kind_of
from handmade.doctor.patching import Patches

LONELY = 512
"""So many backward calls without a step of an optimizer, and a training that is watched is ended."""
RECORDED = 64
"""So many calls since the last backward call are kept."""


class Enough(BaseException):
    """Ends a script that is watched. No `except Exception` of the script's catches it; its `finally` runs."""


@dataclass
class Observation:
    """What happens inside `with`, in `events`. Raises nothing of its own, except `Enough` where `steps` is given."""

    model: Any = None
    """A module whose parameters are watched from the beginning; those of others are when they are first called."""
    spaces: Sequence[dict[str, Any]] = ()
    """Names of modules that are not in sys.modules, where functions to be watched may have been imported."""
    first: Callable[[Any], None] | None = None
    """Called with every optimizer, scheduler and scaler before it does anything."""
    steps: int | None = None
    """After so many updates, what calls a model or `backward` next is ended by `Enough`."""
    seconds: float = math.inf
    """So is a script that goes on for longer."""

    events: list[Event] = field(default_factory=list)
    optimizers: list[Optimizer] = field(default_factory=list)
    schedulers: list[LRScheduler] = field(default_factory=list)
    places: dict[int, set[int]] = field(default_factory=dict)
    """id of a scheduler -> where it stood at each step: one that was stored as `scheduler.step` is not seen to step."""
    scalers: list[GradScaler] = field(default_factory=list)
    wanted: list[GradScaler] = field(default_factory=list)
    """Scalers that were made meanwhile and asked to be on."""
    modules: list[nn.Module] = field(default_factory=list)
    """What was called, each once."""
    parameters: dict[int, Tensor] = field(default_factory=dict)
    initial: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Every parameter and what it was before the first backward call, of a training that is ended after a few steps."""
    updates: int = 0
    """Steps, where optimizers that step one after the other count once."""
    ended: str = ""
    """Why `Enough` was raised."""
    compiled: bool = False
    """Whether a `torch.compile` was left out."""

    def __enter__(self) -> Observation:
        self.thread, self.began = threading.get_ident(), time.monotonic()
        self.depth = self.modes = self.schedules = 0  # how deep in calls, train() and scheduler.step()
        self.busy = False  # inside a backward call, where checkpointing calls modules again
        self.waiting = 0  # backward calls since the last step
        self.stepped = False  # whether an optimizer has ever stepped
        self.last: Gradients = {}  # gradients after the last event
        self.weights: Gradients = {}  # weights after the last backward call
        self.scaled: dict[int, tuple[Tensor, GradScaler]] = {}
        self.scaler: GradScaler | None = None  # whose scale the gradients have
        self.recorded: list[Forward | Scored] = []
        self.stepping: list[tuple[Gradients, int]] = []
        if isinstance(self.model, nn.Module):
            self.meet(self.model.parameters())
        with contextlib.ExitStack() as stack:
            self._patch(stack)
            self.stack = stack.pop_all()
        self.last = self.sample()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()
        self.thread = -1  # a wrapper that somebody kept sees no more

    # What is known

    def of(self, *kinds: type) -> list[Any]:
        """The events of some kinds."""
        return [event for event in self.events if isinstance(event, kinds)]

    def meet(self, parameters: Iterable[Any]) -> None:
        """Watch these parameters too."""
        for parameter in parameters:
            if torch.is_tensor(parameter) and not isinstance(parameter, UninitializedParameter):
                self.parameters.setdefault(id(parameter), parameter)

    def sample(self) -> Gradients:
        """Some entries of every gradient, as they are now."""
        return {key: some(one.grad) for key, one in self.parameters.items() if one.grad is not None}

    def known(self, thing: Any, among: list[Any]) -> None:
        if not any(one is thing for one in among):
            among.append(thing)
            if self.first is not None:
                self.first(thing)

    @property
    def here(self) -> bool:
        """Whether what happens now is to be seen: in the thread that watches, and not inside a backward call."""
        return threading.get_ident() == self.thread and not self.busy

    def look(self) -> Gradients:
        """Gradients before an event. What changed since the last one was changed by hand."""
        now = self.sample()
        if not same(self.last, now):
            self.events.append(Changed(self.last, now))
            if cleared(now):
                self.scaler = None
        self.last = now
        return now

    def enough(self) -> None:
        """Ends a watched script when enough was seen: again where it was caught, or where `finally` goes on."""
        if self.steps is None:
            return
        if self.updates >= self.steps and not self.waiting:
            self.ended = f"it was ended after {self.updates} steps"
        elif self.waiting >= LONELY:
            self.ended = f"it was ended after {self.waiting} backward calls without a step"
        elif time.monotonic() - self.began > self.seconds:
            self.ended = f"it was ended after {self.seconds:g} s"
        if self.ended:
            raise Enough(self.ended)

    def updated(self, event: Stepped | Skipped) -> None:
        """A step was made, or left out."""
        self.events.append(event)
        self.stepped = self.stepped or isinstance(event, Skipped) or event.optimizer is not None
        for one in self.schedulers:
            self.places.setdefault(id(one), set()).add(one.last_epoch)
        # A step right after another one, of a second optimizer, belongs to the same update.
        self.updates += bool(self.waiting or self.recorded)
        self.waiting, self.recorded = 0, []

    def step_by_hand(self) -> None:
        """Weights that moved since the last backward call, where no optimizer ever steps, were moved by the script."""
        if not self.waiting or self.stepping or self.stepped:
            return
        moved = {key for key, was in self.weights.items() if not torch.equal(was, some(self.parameters[key]))}
        if moved:
            self.updated(Stepped(None, [], None, self.last, 1.0, False, frozenset(), frozenset(moved)))

    # How it is seen

    def _patch(self, stack: contextlib.ExitStack) -> None:
        patches = stack.enter_context(Patches(self.spaces))
        patches.put(torch.autograd, "backward", self._backward)
        patches.put(Optimizer, "zero_grad", self._zero)
        patches.put(Optimizer, "add_param_group", self._group)
        patches.add(Optimizer, "__setattr__", self._write())
        patches.put(nn.Module, "zero_grad", self._zero)
        patches.put(nn.Module, "__call__", self._call)
        patches.put(nn.Module, "train", self._train)
        patches.put(GradScaler, "__init__", self._scaler_made)
        patches.put(GradScaler, "scale", self._scale)
        patches.put(GradScaler, "unscale_", self._unscale)
        patches.put(GradScaler, "step", self._scaler_step)
        for kind in (LRScheduler, *subclasses(LRScheduler)):
            if "step" in vars(kind):
                patches.put(kind, "step", self._schedule)
        clipping = torch.nn.utils.clip_grad
        patches.everywhere(
            {
                clipping.clip_grad_norm_: self._clip,
                clipping.clip_grad_value_: self._clip,
                F.cross_entropy: self._score,
                F.nll_loss: self._score,
                torch.compile: self._compile,
            }
        )
        if "torch._dynamo" in sys.modules:  # what is compiled already runs as it was written
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(register_optimizer_step_pre_hook(self._before_step).remove)
        stack.callback(register_optimizer_step_post_hook(self._after_step).remove)

    def _backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def backward(tensors: Any, *args: Any, **options: Any) -> Any:
            if not self.here:
                return original(tensors, *args, **options)
            several = [tensors] if torch.is_tensor(tensors) else list(tensors)
            if not self.parameters:
                self.meet(leaf for one in several for leaf in leaves(one))
            self.step_by_hand()
            before = self.look()
            self.enough()
            if self.steps is not None and not self.initial:
                self.initial = {key: (one, one.detach().clone()) for key, one in self.parameters.items()}
            self.busy = True
            try:
                result = original(several, *args, **options)
            finally:
                self.busy = False
            _, scaler = self.scaled.get(id(several[0]), (None, None)) if several else (None, None)
            self.scaled.clear()
            value = float(several[0].detach()) if len(several) == 1 and several[0].numel() == 1 else None
            self.last = self.sample()
            self.events.append(Backward(value, scaler is not None, before, self.last, self.recorded))
            self.recorded = []
            self.scaler = scaler or self.scaler
            self.waiting += 1
            self.weights = {key: some(one) for key, one in self.parameters.items()}
            return result

        return backward

    def _before_step(self, optimizer: Optimizer, args: Any, options: Any) -> None:
        if self.here:
            self.known(optimizer, self.optimizers)
            self.meet(one for group in optimizer.param_groups for one in group["params"])
            self.stepping.append((self.look(), self.waiting))

    def _after_step(self, optimizer: Optimizer, args: Any, options: Any) -> None:
        if not self.here or not self.stepping:
            return
        gradients, before = self.stepping.pop()
        closure = self.waiting > before
        self.last = self.sample()
        inside = getattr(optimizer, "grad_scale", None)
        default = optimizer.defaults.get("lr")
        self.updated(
            Stepped(
                optimizer,
                rates_of(optimizer),
                None if default is None else float(default),
                self.last if closure else gradients,
                1.0 if inside is None else 1 / float(inside),
                closure,
                frozenset(str(name) for group in optimizer.param_groups for name in group),
                frozenset(id(one) for group in optimizer.param_groups for one in group["params"]),
            )
        )

    def _zero(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def zero_grad(owner: Any, *args: Any, **options: Any) -> Any:
            if not self.here:
                return original(owner, *args, **options)
            if isinstance(owner, Optimizer):
                self.known(owner, self.optimizers)
            self.step_by_hand()
            self.look()
            result = original(owner, *args, **options)
            self.last = self.sample()
            if cleared(self.last):
                self.scaler = None
            self.events.append(Zeroed(owner))
            return result

        return zero_grad

    def _clip(self, original: Callable[..., Any]) -> Callable[..., Any]:
        kind = "value" if "value" in original.__name__ else "norm"

        def clip(parameters: Any, *args: Any, **options: Any) -> Any:
            if not self.here:
                return original(parameters, *args, **options)
            several = [parameters] if torch.is_tensor(parameters) else list(parameters)
            if not self.optimizers:  # decay may be done by hand before clipping, and the step be an optimizer's
                self.step_by_hand()
            before, held = self.look(), sum(one.grad is not None for one in several)
            result = original(several, *args, **options)
            limit = args[0] if args else options.get("max_norm", options.get("clip_value", math.nan))
            norm = float(result) if torch.is_tensor(result) else None
            self.last = self.sample()
            self.events.append(Clipped(kind, float(limit), norm, len(several), held, before, self.last, self.scaler))
            return result

        return clip

    def _scaler_made(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(scaler: GradScaler, *args: Any, **options: Any) -> None:
            original(scaler, *args, **options)
            if args[5] if len(args) > 5 else options.get("enabled", True):
                self.wanted.append(scaler)

        return __init__

    def _scale(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def scale(scaler: GradScaler, outputs: Any) -> Any:
            if self.here:
                self.known(scaler, self.scalers)
            result = original(scaler, outputs)
            if self.here and torch.is_tensor(result):
                self.scaled[id(result)] = (result, scaler)
            return result

        return scale

    def _unscale(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def unscale_(scaler: GradScaler, optimizer: Optimizer) -> Any:
            if not self.here:
                return original(scaler, optimizer)
            self.look()
            result = original(scaler, optimizer)
            self.last, self.scaler = self.sample(), None
            self.events.append(Unscaled(scaler, 1 / float(scaler.get_scale())))
            return result

        return unscale_

    def _scaler_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(scaler: GradScaler, optimizer: Optimizer, *args: Any, **options: Any) -> Any:
            if not self.here:
                return original(scaler, optimizer, *args, **options)
            self.known(scaler, self.scalers)
            self.known(optimizer, self.optimizers)
            made = len(self.of(Stepped))
            result = original(scaler, optimizer, *args, **options)
            if len(self.of(Stepped)) == made:
                self.updated(Skipped())
            return result

        return step

    def _schedule(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(scheduler: LRScheduler, *args: Any, **options: Any) -> Any:
            if not self.here:
                return original(scheduler, *args, **options)
            self.known(scheduler, self.schedulers)
            self.schedules += 1  # one that is made of several calls theirs
            try:
                result = original(scheduler, *args, **options)
            finally:
                self.schedules -= 1
            if not self.schedules and not getattr(scheduler, "_is_initial", False):
                self.events.append(Scheduled(scheduler, rates_of(scheduler.optimizer)))
            return result

        return step

    def _train(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def train(module: nn.Module, mode: bool = True) -> Any:
            self.modes += 1
            try:
                result = original(module, mode)
            finally:
                self.modes -= 1
            if self.here and not self.modes:
                self.events.append(Mode(module, bool(mode)))
            return result

        return train

    def _call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def __call__(module: nn.Module, *args: Any, **options: Any) -> Any:
            if self.depth or not self.here:
                return original(module, *args, **options)
            self.step_by_hand()
            self.enough()
            self.depth += 1
            try:
                result = original(module, *args, **options)
            finally:
                self.depth -= 1
            self._called(module, [*args, *options.values()], result)
            return result

        return __call__

    def _called(self, module: nn.Module, arguments: list[Any], result: Any) -> None:
        if not any(one is module for one in self.modules):
            self.modules.append(module)
            self.meet(module.parameters())
        if not torch.is_grad_enabled():
            return
        tensors = [one for one in flat(result) if torch.is_tensor(one)]
        losses = [float(one.detach()) for one in tensors if one.dim() == 0 and one.requires_grad]
        largest = max(tensors, key=lambda one: one.numel(), default=None)
        self._record(
            Forward(
                module,
                [one.detach().clone() for one in flat(arguments) if is_tokens(one)],
                module.training,
                losses[0] if losses else None,
                () if largest is None else tuple(largest.shape),
            )
        )

    def _record(self, event: Forward | Scored) -> None:
        self.events.append(event)
        self.recorded = [*self.recorded[1 - RECORDED :], event]

    def _score(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def score(input: Tensor, target: Tensor, *args: Any, **options: Any) -> Any:
            result = original(input, target, *args, **options)
            if self.here and torch.is_tensor(input) and input.requires_grad and is_tokens(target):
                # Both take (input, target, weight, size_average, ignore_index, reduce, reduction).
                ignored = options.get("ignore_index", args[2] if len(args) > 2 else -100)
                how = options.get("reduction", args[4] if len(args) > 4 else "mean")
                count = 1 if how == "mean" else max(1, int((target != ignored).sum()))
                mean = float(result.detach().double().sum()) / count
                classes = int(input.shape[1 if input.dim() > 1 else 0])
                rows = input.dim() > 1 and classes > 1
                kind = kind_of(input.detach().float(), classes, "BVT") if rows else "logits"
                negative = original.__name__ == "nll_loss"
                self._record(Scored(mean, classes, target.detach().clone(), kind, negative))
            return result

        return score

    def _compile(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def compile(model: Any = None, *args: Any, **options: Any) -> Any:
            if threading.get_ident() != self.thread:
                return original(model, *args, **options)
            self.compiled = True
            return model if model is not None else lambda function: function

        return compile

    def _group(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def add_param_group(optimizer: Optimizer, group: dict[str, Any]) -> None:
            original(optimizer, group)
            if self.here:
                self.known(optimizer, self.optimizers)
                self.meet(optimizer.param_groups[-1]["params"])

        return add_param_group

    def _write(self) -> Callable[..., None]:
        def __setattr__(optimizer: Optimizer, name: str, value: Any) -> None:
            there = name in vars(optimizer) or hasattr(type(optimizer), name)
            object.__setattr__(optimizer, name, value)
            frame = sys._getframe(1)
            own = frame.f_locals.get("self") is optimizer or frame.f_globals.get("__name__", "").startswith("torch.")
            if self.here and not own and not name.startswith("_"):
                ours = any(
                    one.optimizer is optimizer and one.name == name and not one.known for one in self.of(Written)
                )
                self.events.append(Written(optimizer, name, value, there and not ours))

        return __setattr__
