"""What `handmade doctor TARGET` examines: a run folder, or a class, function or model in a person's file.

    target = given_of("my_model.py:TinyGPT", vocabulary=65, context=64)
    report = examine(target.given, name=target.name)

It imports and runs the code that it is pointed at.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from handmade import machine
from handmade.doctor import runs
from handmade.doctor.building import Asked, Call, call_of, named, require_closed, takes_tokens
from handmade.doctor.given import Given
from handmade.doctor.importing import (
    alone,
    bring_in,
    frame_of,
    line_of,
    require_file,
    require_name,
    telling,
    thing_in,
)
from handmade.doctor.patient import Patient
from handmade.doctor.runs import COPIES, LARGE
from handmade.doctor.snapshot import generators, set_generators, undisturbed
from handmade.errors import ConfigError, PatientError, ResourceError
from handmade.files import readable


@dataclass(frozen=True)
class Target:
    """What was found behind a name on the command line."""

    given: Given
    name: str
    notes: tuple[str, ...] = ()
    """How it was built, and what of it was cut down."""
    path: Path | None = None
    """Of a person's file."""


def given_of(
    target: str,
    vocabulary: int | None = None,
    context: int | None = None,
    arguments: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Target:
    """What a target names, ready to be examined: the folder of a run, or `file.py:Name` with a class, a function or a
    model; a function without arguments returns what there is, as `Given` says.

    A class is built with `arguments` (name -> what was typed), and with the sizes under the names that its signature,
    or that of its config, has for them. The first weights follow from `seed`.
    Raises ConfigError for a target that there is not, PatientError for an error in a person's code, RunError for a run
    that is damaged, ResourceError for what is too large for memory.
    """
    path, name = split(target)
    if name is None:
        for option, value in (("--vocab-size", vocabulary), ("--context", context), ("--arg", arguments)):
            if value:
                raise ConfigError(f"{option}: {target} is a run, which has its own. Leave it out.")
        given, notes = runs.given_of_run(path, seed)
        return Target(given, target, tuple(notes))
    require_file(path)
    thing = thing_in(bring_in(path), name, path)
    given, notes = of_thing(thing, target, path, Asked(vocabulary, context, arguments or {}), seed)
    if given.model is not None:
        given = replace(given, vocab_size=vocabulary or given.vocab_size, context=context or given.context)
        require_room(given.model, target)
    return Target(given, target, tuple(notes), path)


def split(target: str) -> tuple[Path, str | None]:
    """A target's path, and the name behind it. Raises ConfigError for what is neither a folder nor `file.py:Name`."""
    before, colon, name = target.rpartition(":")
    if colon and name.isidentifier():
        path = Path(before)
        if path.suffix != ".py" and path.with_name(path.name + ".py").is_file():
            raise ConfigError(f"{before}: no such file. Did you mean {before}.py:{name}?")
        return path, name
    path = Path(target)
    if path.suffix == ".py":
        require_file(path)
        raise require_name(path)
    if path.is_file():
        raise ConfigError(f"{target}: is neither the folder of a run nor a Python file, as in my_model.py:MyModel.")
    return path, None


# ---------------------------------------------------------------------------------------------------------------
# A class, a function, a model


def of_thing(thing: Any, target: str, path: Path, asked: Asked, seed: int) -> tuple[Given, list[str]]:
    """What a name in a file stands for."""
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        asked.require_used(target)
        return given_from(thing, target), []
    namespace = vars(inspect.getmodule(thing)) if inspect.getmodule(thing) else {}
    call = call_of(thing, asked, namespace)
    if takes_tokens(call):
        asked.require_used(target)
        return Given(model=functools.partial(thing, **call.options) if call.options else thing), asked.notes
    require_closed(call, target)
    asked.require_used(named(thing))
    build, notes = builder(call, path, seed), asked.notes
    layers: int | None = 2
    given = Given()
    with contextlib.suppress(MemoryError), limited_memory():
        given = given_from(build(), target)
        layers = layers_that_fit(given.model, asked)
    if layers is not None:
        del given
        call, build = fewer(call, layers, asked, namespace, path, target, seed)
        given = in_room(build, target, call)
        notes = [*asked.notes, f"examined with {layers} of its {asked.depth} layers: they show the same, sooner"]
    if given.build is None and given.model is not None:
        given.build = lambda: given_from(build(), target).model
    if call.options:
        notes.insert(0, f"built as {call.words}")
    return given, notes


def fewer(
    call: Call, layers: int, asked: Asked, namespace: Mapping[str, Any], path: Path, target: str, seed: int
) -> tuple[Call, Callable[[], Any]]:
    """A call for a model of fewer layers. Raises ResourceError where nothing says how many it has."""
    if asked.depth is None or asked.depth <= layers:
        raise too_large(target, call)
    again = Asked(asked.vocabulary, asked.context, asked.arguments)
    again.shallow = layers
    call = call_of(call.made, again, namespace)
    return call, builder(call, path, seed)


def in_room(build: Callable[[], Any], target: str, call: Call) -> Given:
    """What `build` makes. Raises ResourceError where memory is too small for it."""
    try:
        with limited_memory():
            return given_from(build(), target)
    except MemoryError:
        raise too_large(target, call) from None


def too_large(target: str, call: Call) -> ResourceError:
    return ResourceError(
        f"{target}: memory is too small for {call.words}. Give smaller sizes with --arg: a small instance shows the\n"
        "same mistakes."
    )


def given_from(thing: Any, target: str) -> Given:
    """A model, or what has one. Raises ConfigError for what is neither."""
    if thing is None:
        raise ConfigError(f"{target}: returned nothing. It should return a model, or a mapping with what there is.")
    if callable(thing) and not isinstance(thing, nn.Module) and not hasattr(thing, "model"):
        return Given(model=thing)
    try:
        return replace(Given.of(thing))
    except ConfigError as problem:
        raise ConfigError(f"{target}: {problem}") from None


def builder(call: Call, path: Path, seed: int) -> Callable[[], Any]:
    """Makes what a call makes, the first time and again: each instance with a seed of its own."""
    seeds = itertools.count(seed)

    def build() -> Any:
        before = generators()
        number = next(seeds)
        torch.manual_seed(number)
        random.seed(number)
        np.random.seed(number % 2**32)  # noqa: NPY002 (whoever draws from the old one)
        try:
            with alone(path), telling(path, f"cannot be built as {call.words}", built(call)):
                return call()
        finally:
            set_generators(before)

    return build


def built(call: Call) -> str:
    """What is said under an error in what was called with arguments of ours: how, and what may be done."""
    if not call.options:
        return ""
    return (
        f"It was built as {call.words}.\n"
        "Give what is missing or wrong with --vocab-size, --context or --arg NAME=VALUE, or write a function\n"
        "without arguments that returns the model, and name that."
    )


def require_met(target: Target, seed: int = 0) -> None:
    """Raise where there is nothing to examine: ConfigError for sizes that cannot be seen, PatientError for a model
    that takes no tokens, unless there is more than the model."""
    try:
        patient = Patient(target.given, target.name, seed)
    except ConfigError as problem:
        if str(problem).startswith("vocab_size"):
            said = "how many tokens there are is not to be seen. Give --vocab-size N."
            raise ConfigError(f"{target.name}: {said}") from None
        raise
    given = target.given
    more = (given.tokenizer, given.encode, given.train_data, given.schedule, given.filters, given.train_step)
    if given.model is not None and patient.failure and all(one is None for one in more):
        raise PatientError(
            f"{target.name}: {patient.failure}{failing_line(target, patient)}.\n"
            "A model is called with token ids (B, T) and returns logits (B, T, V). Write a function that does that with"
            " yours."
        )


def failing_line(target: Target, patient: Patient) -> str:
    """Where in their code a forward fails: ` (my_model.py, line 12)`; empty where it does not."""
    if target.path is None:
        return ""
    try:
        with undisturbed(target.given.model), torch.no_grad(), patient.mode(training=False):
            target.given.model(patient.tokens(3, max(1, min(patient.context - 1, 7))))  # type: ignore[misc]
    except Exception as problem:
        frame = frame_of(problem, target.path)
        return "" if frame is None else f" ({line_of(problem, target.path)})"
    return ""


# ---------------------------------------------------------------------------------------------------------------
# Memory


def size_of(model: Any) -> tuple[int, int]:
    """Parameters, and bytes of all tensors in main memory."""
    if not isinstance(model, nn.Module):
        return 0, 0
    tensors = [*model.parameters(), *model.buffers()]
    return (
        sum(parameter.numel() for parameter in model.parameters()),
        sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.device.type == "cpu"),
    )


def layers_that_fit(model: Any, asked: Asked) -> int | None:
    """With how many layers a model is examined: None for those that it has."""
    parameters, size = size_of(model)
    free = machine.free_memory(torch.device("cpu")) + size
    share = min(LARGE / max(1, parameters), free / max(1, COPIES * size))
    if asked.depth is None or asked.depth <= 2 or share >= 1:
        return None
    return max(2, int(asked.depth * share))


def require_room(model: Any, target: str) -> None:
    """Raise ResourceError for a model that is too large to be examined here."""
    _, size = size_of(model)
    free = machine.free_memory(torch.device("cpu")) + size
    if COPIES * size > free:
        raise ResourceError(
            f"{target}: takes {readable(COPIES * size)} of memory to examine, and {readable(free)} are free."
            " Give a smaller instance: fewer layers show the same mistakes."
        )


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Inside, asking for more memory than is free is an error, where the system can be told so."""
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    if torch.cuda.is_available():  # its driver maps far more than it takes
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    import psutil

    most = psutil.Process().memory_info().vms + machine.free_memory(torch.device("cpu"))
    if before[0] != resource.RLIM_INFINITY:
        most = min(most, before[0])
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


__all__ = ["Target", "given_of", "require_met"]
