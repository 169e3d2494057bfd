"""`handmade doctor TARGET`: find the mistakes that do not crash, in a run, in your own model, in your own training."""

from __future__ import annotations

import contextlib
import json as json_module
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from handmade.cli.options import Whole
from handmade.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from handmade.doctor import Report

SICK = 1  # the exit code
SECONDS = 60.0
STEPS = 8


def doctor(
    *target: str,
    vocab_size: Whole | None = None,
    context: Whole | None = None,
    arg: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
    only: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
    expect: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
    all_: Annotated[bool, Parameter(name="--all", show_default=False)] = False,
    json: Annotated[bool, Parameter(show_default=False)] = False,
    seconds: float = SECONDS,
    seed: Whole = 0,
    explain: str | None = None,
    run: Annotated[bool, Parameter(show_default=False)] = False,
    checks: Annotated[bool, Parameter(show_default=False)] = False,
    watch: Path | None = None,
    steps: Whole = STEPS,
) -> int:
    """Examine a model and its training, and say what is wrong: what was measured,
    what a healthy one would have shown, and what to change.

    It imports and runs the code that it is pointed at: point it at code that you
    would run yourself. Nothing is written. The exit code is 1 where something is
    sick, 0 where not, 2 where it could not look.

    Parameters
    ----------
    target
        The folder of a run; or what stands in a Python file: my_model.py:TinyGPT, a class, a function of tokens or a
        model; or my_train.py:make, a function that returns what there is: model, optimizer, batches, loss, generate.
    vocab_size
        How many tokens there are. A class that asks for it gets it, by whatever name.
    context
        How many positions the model sees at once. Likewise.
    arg
        What a class or function is called with besides: --arg n_layer=2. May be given several times.
    only
        Make these checks alone: --only future,batch.
    expect
        What was meant, where only you know: --expect tied=true, --expect frozen=wte,wpe.
    all_
        Show every check that was made, and every reason why one was not.
    json
        Print everything that was found as JSON.
    seconds
        Begin no check after so many.
    seed
        Of the tokens that are drawn, and of the weights of a class.
    explain
        Explain a check: the idea with its formula, a demonstration, the source.
    run
        With --explain: run the demonstration too.
    checks
        List every check.
    watch
        Run your own script for a few steps and watch them. What stands behind it is the script's.
    steps
        With --watch: so many.
    """
    modes = {"--explain": explain is not None, "--checks": checks, "--watch": watch is not None}
    chosen = [mode for mode, given in modes.items() if given]
    given = {
        "--vocab-size": vocab_size is not None, "--context": context is not None, "--arg": arg, "--only": only,
        "--expect": expect, "--all": all_, "--json": json, "--seconds": seconds != SECONDS, "--seed": seed != 0,
        "--run": run, "--steps": steps != STEPS, "a target": target,
    }  # fmt: skip
    require_fitting(chosen, [name for name, value in given.items() if value])
    if checks:
        return list_checks(json)
    if explain is not None:
        return explain_check(explain, run)
    if watch is not None:
        return tell(watched(watch, target, steps, expectations(expect)), all_, json)
    if len(target) != 1:
        words = (
            "one TARGET, not " + " and ".join(target) if target else "a TARGET: the folder of a run, or file.py:Name"
        )
        raise ConfigError(f"doctor needs {words}. See: handmade doctor --help")
    require_sizes({"--vocab-size": vocab_size, "--context": context, "--steps": steps}, seconds, seed)

    meant = expectations(expect)
    names = [name.strip() for part in only for name in part.split(",") if name.strip()]
    if only and not names:
        raise ConfigError("--only: names no check. `handmade doctor --checks` lists them.")
    return tell(examined(target[0], vocab_size, context, pairs(arg), names, meant, seconds, seed), all_, json)


ALONE = {
    "--explain": ("--run",),
    "--checks": ("--json",),
    "--watch": ("--all", "--json", "--steps", "--expect", "a target"),
}
"""What goes with a mode that is not about a target."""
EXAMINING = ("--run", "--steps")
"""What goes with no target."""


def require_fitting(chosen: Sequence[str], given: Sequence[str]) -> None:
    """Raise ConfigError for words that do not go together."""
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)}: one at a time.")
    mode = chosen[0] if chosen else None
    for name in given:
        if mode is not None and name not in ALONE[mode]:
            raise ConfigError(f"{mode} takes no {name.removeprefix('a ')}. Leave it out.")
        if mode is None and name in EXAMINING:
            raise ConfigError(f"{name} goes with {'--explain' if name == '--run' else '--watch'} alone. Leave it out.")


def require_sizes(sizes: dict[str, int | None], seconds: float, seed: int) -> None:
    """Raise ConfigError for a number out of range."""
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} {value}: must be at least 1.")
    if not 0 < seconds < math.inf:
        raise ConfigError(f"--seconds {seconds:g}: must be a number above 0.")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"--seed {seed}: must be from 0 to 2^63 - 1.")


def pairs(words: Sequence[str], option: str = "--arg", example: str = "n_layer=2") -> dict[str, str]:
    """`name=value`, as typed. Raises ConfigError for a word without one, and for a name that is given twice."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise ConfigError(f"{option} {word}: needs a name and a value, as in {option} {example}.")
        if name in found:
            raise ConfigError(f"{option} {name}: is given twice.")
        found[name] = value
    return found


def expectations(words: Sequence[str]) -> dict[str, Any]:
    """What was meant. Raises ConfigError for a name that is not known and a value that it does not take."""
    from handmade.doctor import EXPECTATIONS

    found: dict[str, Any] = {}
    for name, value in pairs(words, "--expect", "tied=true").items():
        if name not in EXPECTATIONS:
            near = did_you_mean(name, EXPECTATIONS) or f" There are {', '.join(EXPECTATIONS)}."
            raise ConfigError(f"--expect {name}={value}: there is no {name}.{near}")
        answer = {"true": True, "yes": True, "false": False, "no": False}.get(value.lower())
        if answer is None and not EXPECTATIONS[name].startswith("names"):
            raise ConfigError(f"--expect {name}={value}: must be true or false. {EXPECTATIONS[name]}.")
        found[name] = [part.strip() for part in value.split(",") if part.strip()] if answer is None else answer
    return found


# ---------------------------------------------------------------------------------------------------------------
# The three things that it does


def examined(
    target: str,
    vocab_size: int | None,
    context: int | None,
    arguments: dict[str, str],
    only: Sequence[str],
    expect: dict[str, Any],
    seconds: float,
    seed: int,
) -> Report:
    """The report on a target. What their code prints goes to standard error."""
    from dataclasses import replace

    from handmade.doctor import examination, targets

    wanted = examination.choose(only, False) if only else None  # what is typed wrong is said before anything runs
    found = targets.given_of(target, vocab_size, context, arguments, seed)
    found.given.expect = {**found.given.expect, **expect}
    with contextlib.redirect_stdout(sys.stderr):
        targets.require_met(found, seed)
        report = examination.examine(found.given, name=found.name, only=wanted, seconds=seconds, seed=seed)
    return replace(report, notes=tuple(dict.fromkeys((*found.notes, *report.notes))))


def watched(script: Path, words: Sequence[str], steps: int, expect: dict[str, Any]) -> Report:
    """The report on a person's own script, run for a few steps."""
    from handmade.doctor import importing
    from handmade.doctor.watching import watch

    if steps < 1:
        raise ConfigError(f"--steps {steps}: must be at least 1.")
    importing.require_file(script)
    meant: Any = {"expect": expect} if expect else {}
    with contextlib.redirect_stdout(sys.stderr):
        return watch(script, words, steps, **meant)


def explain_check(name: str, run: bool) -> int:
    """Print what a check is about. Raises ConfigError for one that there is not, with the nearest."""
    from handmade.doctor import examination, telling

    (check,) = examination.choose([name], False)
    printer = telling.Printer()
    printed = telling.demonstrated(check) if run else None
    printer.show(telling.explained(check, printer.width, printed))
    if not run and check.demonstration:
        print(f"\nrun it: handmade doctor --explain {name} --run")
    return 0


def list_checks(json: bool) -> int:
    """Print every check in a line."""
    from handmade.doctor import telling
    from handmade.doctor.checks import ALL

    if json:
        facts = ("name", "title", "reference", "needs", "quick")
        print(json_module.dumps([{fact: getattr(check, fact) for fact in facts} for check in ALL], indent=2))
        return 0
    telling.Printer().show(telling.overview())
    print("\neach explained: handmade doctor --explain CHECK")
    return 0


def tell(report: Report, everything: bool, json: bool) -> int:
    """Print a report. Returns the exit code."""
    from handmade.doctor import telling

    if json:
        print(json_module.dumps(telling.as_json(report), indent=2, ensure_ascii=False))
    else:
        telling.Printer().show(report, everything)
    return SICK if report.sick else 0
