"""A few steps of a person's own `train_step`, watched, and everything put back that they moved."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from handmade.doctor.events import Forward, Stepped
from handmade.doctor.findings import NotExamined
from handmade.doctor.given import Given
from handmade.doctor.observation import Observation
from handmade.doctor.patient import Patient
from handmade.doctor.snapshot import Value
from handmade.doctor.updates import Update, updates

UPDATES = 4
"""Steps of the optimizer that are looked at: the first shows no gradient left over from one before."""
CALLS = 16
"""Of `train_step`, where it does not step every time."""
SECONDS = 2.0
"""After so many seconds two steps are enough."""


@dataclass
class Watched(Given):
    """What was given, with a training that was seen already."""

    observation: Observation | None = None
    script: str = ""
    """Its name, where a whole script was watched."""


@dataclass
class Seen:
    """A training that was seen."""

    observation: Observation
    script: str = ""

    @cached_property
    def updates(self) -> list[Update]:
        return updates(self.observation.events)

    @cached_property
    def whole(self) -> list[Update]:
        """Updates in which there was a step, none that a GradScaler left out."""
        return [update for update in self.updates if update.steps]

    def training(self) -> list[Forward]:
        """The calls that a backward call followed."""
        return [
            event
            for update in self.updates
            for one in update.backwards
            for event in one.recorded
            if isinstance(event, Forward) and any(p.requires_grad for p in event.module.parameters())
        ]


def observed(patient: Patient) -> Seen:
    """The training of a patient: what was watched already, or a few calls of its `train_step`, made once for all
    checks. Raises NotExamined where there is none, or where it makes no step."""
    given = patient.given
    if isinstance(given, Watched) and given.observation is not None:
        return Seen(given.observation, given.script)
    if given.train_step is None:
        raise NotExamined("not given: train_step")
    found = vars(patient).get("rehearsed")
    if found is None:
        try:
            found = Seen(rehearse(patient))
        except NotExamined as reason:
            found = str(reason)
        except Exception as problem:
            said = str(problem).strip().splitlines()
            found = f"train_step failed: {type(problem).__name__}: {said[0] if said else ''}"
        vars(patient)["rehearsed"] = found
    if isinstance(found, str):
        raise NotExamined(found)
    return found


def rehearse(patient: Patient) -> Observation:
    """Call `train_step` until it has made a few steps. What its optimizer, scheduler and scaler know is put back; the
    model is the examination's to put back."""
    given = patient.given
    call = caller(given)
    model = given.model if isinstance(given.model, nn.Module) else None
    own = {id(one) for one in model.parameters()} if model is not None else set()
    kept: list[KeptThing] = []

    def keep(thing: Any) -> None:
        if not any(one.thing is thing for one in kept):
            kept.append(KeptOptimizer(thing, own) if isinstance(thing, Optimizer) else KeptThing(thing))

    for thing in (*optimizers_of(given), given.schedule, *reachable(given.train_step)):
        if isinstance(thing, (Optimizer, LRScheduler, GradScaler)):
            keep(thing)
    seen = Observation(model, spaces=[spaces_of(given.train_step)], first=keep)
    seen.schedulers += [given.schedule] if isinstance(given.schedule, LRScheduler) else []
    if model is not None:
        model.train()
    began = time.perf_counter()
    try:
        with seen:
            for _ in range(CALLS):
                call()
                late = time.perf_counter() - began > SECONDS
                if seen.updates >= UPDATES or (late and seen.updates >= 2):
                    break
                if late and not seen.of(Stepped) and time.perf_counter() - began > 4 * SECONDS:
                    break
    finally:
        for one in reversed(kept):
            one.bring_back()
    if not seen.updates:
        raise NotExamined(f"train_step was called {CALLS} times and made no step of an optimizer")
    return seen


def caller(given: Given) -> Callable[[], Any]:
    """`train_step` with what it wants. Raises NotExamined where that is not there."""
    step = given.train_step
    assert step is not None
    try:
        wanted = [
            one
            for one in inspect.signature(step).parameters.values()
            if one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        wanted = []
    if not wanted:
        return step
    if given.batches is None:
        raise NotExamined(f"train_step wants {', '.join(one.name for one in wanted)}: give batches")
    drawn = forever(given.batches)
    if len(wanted) == 1 and wanted[0].name == "batches":
        return lambda: step(drawn)
    if len(wanted) == 1:
        return lambda: step(next(drawn))
    return lambda: step(*next(drawn))


def forever(batches: Any) -> Iterator[Any]:
    """Batches without end. Raises NotExamined where there is none."""
    if callable(batches):
        while True:
            yield batches()
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise NotExamined("batches ran out")


def optimizers_of(given: Given) -> list[Any]:
    """The optimizers that were given, out of a list or a wrapper that has one as `optimizer`.
    Raises NotExamined for what is none."""
    if given.optimizer is None:
        return []
    several = given.optimizer if isinstance(given.optimizer, (list, tuple)) else [given.optimizer]
    found = []
    for one in several:
        while not hasattr(one, "param_groups") and hasattr(one, "optimizer"):
            one = one.optimizer
        if not hasattr(one, "param_groups"):
            raise NotExamined(f"optimizer: a {type(one).__name__} has no param_groups")
        found.append(one)
    return found


def spaces_of(function: Any) -> dict[str, Any]:
    """The names of the module in which a function was written."""
    function = inspect.unwrap(getattr(function, "func", function))
    return getattr(getattr(function, "__func__", function), "__globals__", {})


def reachable(function: Any) -> list[Any]:
    """What a function can see: its closure, the globals it names, the object it belongs to."""
    function = inspect.unwrap(getattr(function, "func", function))
    found = list(vars(getattr(function, "__self__", None)).values()) if hasattr(function, "__self__") else []
    plain = getattr(function, "__func__", function)
    for cell in getattr(plain, "__closure__", None) or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    names = getattr(getattr(plain, "__code__", None), "co_names", ())
    found += [plain.__globals__[name] for name in names if name in getattr(plain, "__globals__", {})]
    return found


class KeptThing:
    """What a scheduler or scaler knows."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing
        self.attributes = {name: copied(value) for name, value in vars(thing).items()}
        self.inner = [KeptThing(one) for one in getattr(thing, "_schedulers", ())]

    def bring_back(self) -> None:
        vars(self.thing).clear()
        vars(self.thing).update(self.attributes)
        for one in self.inner:
            one.bring_back()


class KeptOptimizer(KeptThing):
    """What an optimizer knows: rates, moments, and weights that are not the model's."""

    def __init__(self, thing: Optimizer, own: set[int]) -> None:
        self.thing, self.inner = thing, []
        self.attributes = dict(vars(thing))
        self.defaults = dict(thing.defaults)
        self.groups = [(group, {name: copied(value) for name, value in group.items()}) for group in thing.param_groups]
        self.state = {
            parameter: [(name, value, copied(value)) for name, value in known.items()]
            for parameter, known in thing.state.items()
        }
        self.values = [Value(one) for group in thing.param_groups for one in group["params"] if id(one) not in own]

    @torch.no_grad()
    def bring_back(self) -> None:
        super().bring_back()
        self.thing.defaults.clear()
        self.thing.defaults.update(self.defaults)
        self.thing.param_groups[:] = [group for group, _ in self.groups]
        for group, before in self.groups:
            group.clear()
            group.update(before)
        self.thing.state.clear()
        for parameter, known in self.state.items():
            self.thing.state[parameter] = {name: put_back(value, before) for name, value, before in known}
        for one in self.values:
            one.bring_back()


def copied(value: Any) -> Any:
    """A tensor or a container as it is now; anything else is taken as it is."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.copy() if type(value) in (list, dict) else value


def put_back(value: Any, before: Any) -> Any:
    """The same tensor, with what it held."""
    return value.copy_(before) if isinstance(value, Tensor) and value.shape == before.shape else before
