"""Run a person's own script for a few steps, watch it, and say what is wrong.

    report = watch(Path("train.py"), ["--batch_size", "4"])

The script runs as it would by itself: as `__main__`, with its words and its folder, in this process. What it prints
goes to standard error, standard input is empty, no bytecode is written beside it. When it has made its steps, the next
call of a model or of `backward` raises `Enough`: its `finally` and `with` blocks run, and what it has asked of `atexit`
runs when this process ends. Files that it writes are written. `torch.compile` is left out.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import io
import math
import os
import sys
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handmade.doctor import checks
from handmade.doctor.checks.seen import SEEN, moved, pairs
from handmade.doctor.events import Backward, Forward, Scored, Stepped
from handmade.doctor.examination import examine
from handmade.doctor.findings import Finding, Report, worst_first
from handmade.doctor.observation import Enough, Observation
from handmade.doctor.rehearsing import Seen, Watched
from handmade.doctor.snapshot import generators, set_generators
from handmade.doctor.updates import mean_of
from handmade.errors import ConfigError, PatientError

STEPS = 8
SECONDS = 600.0
"""A script that has not made its steps by then is ended with those it has made."""
CHECKS = (
    "accumulation", "clipping", "schedule", "optimizer", "weight-decay", "training-mode", "finite", "same-batch",
)  # fmt: skip
"""What is told from the steps; beside it the quick checks of the model."""
ELSEWHERE = "a script does not show it: name a function that returns what there is, as in my_train.py:make"
LEARNT = 0.7
"""A first loss below this share of ln V is not that of a model that begins: one that begins in the best way has 1."""


def watch(
    script: Path | str,
    words: Sequence[str] = (),
    steps: int = STEPS,
    *,
    expect: Mapping[str, Any] | None = None,
    seconds: float = SECONDS,
) -> Report:
    """Run `script words...` for so many steps of its optimizer, and examine what was seen, and its model. What a script
    does not show is in the report as not examined.

    A script that ends by itself after fewer steps, or with an error, is examined by those. `expect`: what was meant, as
    in `Given`. Raises ConfigError for a script that is not there, and PatientError for one that makes no step: with
    its own error and line where it has one, else with what was seen.
    """
    script = Path(script)
    if not script.is_file():
        near = difflib.get_close_matches(script.name, [p.name for p in script.parent.glob("*.py")], n=1, cutoff=0.5)
        raise ConfigError(f"{script}: no such file." + (f" Did you mean {script.with_name(near[0])}?" if near else ""))
    if steps < 1:
        raise ConfigError(f"steps = {steps}: must be at least 1.")
    seen = Observation(steps=steps, seconds=seconds)
    with as_main(script, words) as main:
        ended = run(script, main, seen)
        if not seen.updates:
            raise PatientError(f"{script}: {ended}, before a first step.\n{said_of(seen)}")
        things, notes = found_in(seen, script.name, expect or {})
        names = [*CHECKS, *(c.name for c in checks.ALL if c.quick and c.name not in CHECKS)]
        report = examine(things, name=script.name, only=[*names, *SEEN])
    went = f"{script.name} ran for {seen.updates} steps; {seen.ended or ended}"
    made = {finding.check for finding in report.findings}
    left = [Finding(one.name, "not examined", ELSEWHERE) for one in checks.ALL if one.name not in made]
    return replace(report, findings=worst_first([*report.findings, *left]), notes=(went, *notes, *report.notes))


def run(script: Path, main: types.ModuleType, seen: Observation) -> str:
    """Run it, watched. Returns how it ended, in words. Raises PatientError for an error before its first step."""
    try:
        code = compile(script.read_bytes(), str(script), "exec")
    except (SyntaxError, ValueError) as problem:
        line = getattr(problem, "lineno", None)
        place = f"{script}, line {line}" if line else f"{script}"
        raise PatientError(f"{place}: {type(problem).__name__}: {getattr(problem, 'msg', problem)}") from problem
    try:
        with seen:
            exec(code, main.__dict__)
    except Enough:
        return seen.ended
    except SystemExit as problem:
        said = "" if problem.code in (None, 0) else repr(problem.code)
        return f"it ended by sys.exit({said})"
    except Exception as problem:
        told = told_of(problem, script)
        if not seen.updates:
            raise PatientError(told) from problem
        return "it ended with an error: " + " ".join(told.split())
    if seen.ended:
        return seen.ended  # the script caught it
    return "it ended by itself"


@contextlib.contextmanager
def as_main(script: Path, words: Sequence[str]) -> Iterator[types.ModuleType]:
    """Inside, a new module is `__main__`, and everything is as Python has it for a script. Afterwards it is as before:
    also where the script changed its folder, torch's defaults or the generators."""
    folder = script.resolve().parent
    main = types.ModuleType("__main__")
    main.__dict__.update({"__file__": str(script), "__builtins__": __builtins__, "__cached__": None})
    before, known = sys.modules.get("__main__"), set(sys.modules)
    kept = sys.argv, sys.path[:], sys.stdin, sys.dont_write_bytecode
    state, cwd = generators(), Path.cwd()
    dtype, device, wanted = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    sys.modules["__main__"] = main
    sys.argv, sys.stdin, sys.dont_write_bytecode = [str(script), *words], io.StringIO(), True
    sys.path.insert(0, str(folder))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield main
    finally:
        sys.argv, sys.path[:], sys.stdin, sys.dont_write_bytecode = kept
        if before is not None:
            sys.modules["__main__"] = before
        for name in set(sys.modules) - known:
            if belongs(sys.modules[name], folder) and name.partition(".")[0] != "handmade":
                del sys.modules[name]  # another script may have one of this name
        os.chdir(cwd)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        torch.set_grad_enabled(wanted)
        set_generators(state)


def belongs(module: Any, folder: Path) -> bool:
    """Whether a module is the person's own: in the script's folder, and not a library there."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):
        return False
    path = Path(file).resolve()
    return folder in path.parents and not {"site-packages", "dist-packages"} & set(path.parts)


def told_of(problem: BaseException, script: Path) -> str:
    """An error of the script's, in two lines: place, kind and words, and the line that it is in."""
    folder = script.resolve().parent
    frames = [
        frame
        for frame in traceback.extract_tb(problem.__traceback__)
        if folder in Path(frame.filename).resolve().parents
        and not {"site-packages", "dist-packages"} & set(Path(frame.filename).parts)
    ]
    place, line = str(script), ""
    if frames:
        file = Path(frames[-1].filename)
        place = f"{script if file.name == script.name else file.name}, line {frames[-1].lineno}"
        line = (frames[-1].line or "").strip()
    if isinstance(problem, SyntaxError) and problem.filename and problem.lineno:
        place, line = f"{Path(problem.filename).name}, line {problem.lineno}", (problem.text or "").strip()
    words = next((one.strip() for one in str(problem).splitlines() if one.strip()), "")
    if isinstance(problem, EOFError):
        words = "it reads standard input, which is empty here"
    return f"{place}: {type(problem).__name__}: {words}\n    {line}"


def said_of(seen: Observation) -> str:
    """What was seen of a script without a step."""
    calls = [type(one).__name__ for one in seen.modules if any(True for _ in one.parameters())]
    facts = [
        f"calls of {', '.join(dict.fromkeys(calls))}" if calls else "no call of a model",
        f"{len(seen.of(Backward)) or 'no'} backward call{'s' if len(seen.of(Backward)) != 1 else ''}",
        f"optimizer {', '.join(type(one).__name__ for one in seen.optimizers)}" if seen.optimizers else "no optimizer",
    ]
    return f"Seen: {'; '.join(facts)}. What other processes do is not seen."


def found_in(seen: Observation, name: str, expect: Mapping[str, Any]) -> tuple[Watched, list[str]]:
    """Model, optimizer and sizes, out of what happened; and what is to be said of them."""
    notes = ["torch.compile was left out"] if seen.compiled else []
    model = model_of(seen)
    optimizers = [one for one in seen.optimizers if any(step.optimizer is one for step in seen.of(Stepped))]
    things = Watched(model=model, optimizer=optimizers or None, expect=dict(expect), observation=seen, script=name)
    if model is None:
        return things, [*notes, "no torch module was seen that holds what is stepped"]
    calls = [one for one in seen.of(Forward) if one.module is model and one.integers]
    tokens = calls[0].integers[0] if calls else None
    scored = [(mean_of(one.recorded), one.recorded) for one in seen.of(Backward)]
    largest = max((one for one in seen.of(Scored)), key=lambda one: one.targets.numel(), default=None)
    if largest is not None:
        things.vocab_size = largest.classes
    elif calls and len(calls[0].shape) > 1:
        things.vocab_size = calls[0].shape[-1]
    elif tokens is not None:
        things.vocab_size = int(tokens.max()) + 1
        notes.append(f"vocab_size is taken as {things.vocab_size}: the largest token that was seen, and 1")
    if tokens is not None:
        axis = -1
        together = pairs(Seen(seen))
        found = moved(*together[0]) if together else None
        if found is not None and found[2]:
            axis = 0
        if found is not None:  # targets say along which axis time runs
            things.expect = {"time_first": found[2], **things.expect}
        things.context = int(max(call.integers[0].shape[axis] for call in calls))
    first = scored[0][0] if scored else None
    if first is not None and things.vocab_size and 0 < first < LEARNT * math.log(things.vocab_size):
        things.trained = True
        notes.append(f"its first loss was {first:.3g}: it has learnt already")
    with torch.no_grad():
        for parameter, before in seen.initial.values():
            if parameter.shape == before.shape:
                parameter.copy_(before)
    notes.append(f"examined: {type(model).__name__}, with the weights that it began with")
    return things, notes


def model_of(seen: Observation) -> nn.Module | None:
    """The module that holds most of what is stepped; else the one that was trained with; None where there is none."""
    stepped = {key for step in seen.of(Stepped) for key in step.parameters}
    called = [one for one in seen.modules if any(True for _ in one.parameters())]
    best = max(called, key=lambda one: held(one, stepped), default=None)
    whole = sum(seen.parameters[key].numel() for key in stepped)
    if best is None or 0 < held(best, stepped) < whole:
        # It may have been called by forward(): then its parts were seen, and not itself.
        around = [one for one in gc.get_objects() if issubclass(type(one), nn.Module)]
        better = [one for one in around if held(one, stepped) > (held(best, stepped) if best is not None else 0)]
        if better:
            best = min(better, key=lambda one: (-held(one, stepped), sum(1 for _ in one.modules())))
    if best is not None and not held(best, stepped):
        # The optimizer is another model's: the one that is trained is the largest that was called with gradients.
        used = [call.module for one in seen.of(Backward) for call in one.recorded if isinstance(call, Forward)]
        best = max(used, key=lambda one: sum(p.numel() for p in one.parameters()), default=best)
    inner = getattr(best, "module", None)
    wrapped = isinstance(best, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    return inner if wrapped and isinstance(inner, nn.Module) else best


def held(module: nn.Module, keys: set[int]) -> int:
    """How many of the numbers that are stepped a module holds."""
    return sum(one.numel() for one in module.parameters() if id(one) in keys)
