"""The command line: `handmade COMMAND ...`.

A command is a typed function in its own module; cyclopts turns the words of the command line into its arguments.
A command's module is imported when the command is called, and torch when it runs, so that `handmade --help`
answers at once.

What a person got wrong is said in a line or two on standard error, exit code 2. A mistake of ours keeps its
traceback, exit code 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, get_args

import handmade
from handmade.errors import ConfigError, HandmadeError, did_you_mean

if TYPE_CHECKING:
    from cyclopts.exceptions import CycloptsError

# Command -> where its function is, and the line that `handmade --help` says of it.
COMMANDS = {
    "train": (
        "handmade.cli.train:train",
        "train a model on your text (a file, a folder, a name like shakespeare) or a task",
    ),
    "sample": ("handmade.cli.sample:sample", "let a trained model write, or answer"),
    "eval": (
        "handmade.cli.evaluate:evaluate",
        "how good it is: loss, perplexity, bits per byte; of a task, right answers",
    ),
    "ladder": ("handmade.cli.ladder:ladder", "what every idea is worth, from counting letters to today's GPT"),
    "doctor": (
        "handmade.cli.doctor:doctor",
        "find the mistakes that do not crash, in a run, in your own model, in your own training",
    ),
    "presets": ("handmade.cli.presets:presets", "every preset, with parameters, memory and source"),
}

OVERVIEW = """\
handmade: build a GPT from scratch, train it on your own text, and know that it is right.

usage: handmade COMMAND ...

{commands}

`handmade COMMAND --help` says what a command takes, `handmade --version` which version this is.

to begin:
  handmade train shakespeare --minutes 1
  handmade sample runs/shakespeare --prompt "ROMEO:"
"""

INTERRUPTED, PIPE_CLOSED = 130, 141  # 128 + the number of SIGINT and of SIGPIPE, as the shell says it


def main(words: Sequence[str] | None = None) -> None:
    """Run the command that `words` (by default the command line) ask for. Raises SystemExit unless all went well."""
    try:
        code = run(list(sys.argv[1:] if words is None else words))
        sys.stdout.flush()  # here, where a closed pipe can still be answered
    except HandmadeError as problem:
        print(f"handmade: {problem}", file=sys.stderr)
        code = 2
    except PermissionError as problem:
        print(f"handmade: {problem.filename}: permission denied.", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # so that the shell's prompt does not stand behind ^C
        code = INTERRUPTED
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        code = PIPE_CLOSED
        # What is still in the buffer would be written when Python ends, and fail a second time.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if code:
        raise SystemExit(code)


def run(words: list[str]) -> int:
    """Run a command. Returns its exit code. Raises HandmadeError for what a person got wrong."""
    name, *rest = words or ["--help"]
    if name in ("--help", "-h", "help"):
        print(OVERVIEW.format(commands="\n".join(f"  {name:9}{what}" for name, (_, what) in COMMANDS.items())), end="")
        return 0
    if name == "--version":
        print(f"handmade {handmade.__version__}")
        return 0
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        known = ["--help", "--version"] if kind == "option" else list(COMMANDS)
        raise ConfigError(
            f"unknown {kind} {name}.{did_you_mean(name, known) or ' There are ' + ', '.join(known) + '.'}"
        )
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # Line by line, so that both keep their order in one log; and a character that the terminal's encoding
            # lacks must not end a sample.
            stream.reconfigure(line_buffering=True, errors="replace")
    return call(name, rest)


def call(name: str, words: list[str]) -> int:
    """Run the command `name` with the words behind it."""
    from cyclopts import App, Parameter
    from cyclopts.exceptions import CycloptsError
    from cyclopts.help import DefaultFormatter, PanelSpec
    from rich.box import Box

    no_lines = Box("    \n" * 8)
    app = App(
        name=f"handmade {name}",
        default_parameter=Parameter(negative=()),
        help_format="plaintext",
        help_formatter=DefaultFormatter(panel_spec=PanelSpec(box=no_lines, padding=(0, 2))),
        version_flags=(),
        suppress_keyboard_interrupt=False,  # `main` answers it
    )
    app["--help"].show = False
    app.default(function_of(name))
    if name == "doctor":
        words = with_script(words)
    try:
        result = app(words, print_error=False, exit_on_error=False, result_action="return_value")
    except CycloptsError as problem:
        raise ConfigError(explain(problem, name)) from None
    return result if isinstance(result, int) else 0


def with_script(words: list[str]) -> list[str]:
    """The words of `doctor`: what stands behind `--watch SCRIPT` is the script's, options and all."""
    for place, word in enumerate(words):
        if word == "--watch" or word.startswith("--watch="):
            end = place + (2 if word == "--watch" else 1)
            return [*words[:end], "--", *words[end:]] if words[end:] else words
        if word == "--":
            break
    return words


def function_of(name: str) -> Callable[..., Any]:
    """The function behind a command."""
    from importlib import import_module

    module, function = COMMANDS[name][0].split(":")
    return getattr(import_module(module), function)


def explain(problem: CycloptsError, command: str) -> str:
    """What is wrong with the words behind a command, what would be right."""
    from cyclopts import exceptions

    from handmade.config import describe

    see = f"See: handmade {command} --help"
    if isinstance(problem, exceptions.UnknownOptionError):
        word = problem.token.keyword or problem.token.value
        known = [name.lstrip("-") for argument in problem.argument_collection for name in argument.names]
        near = did_you_mean(word.lstrip("-").split("=")[0], known).replace(" mean ", " mean --")
        return f"unknown option {word}.{near or f' {see}'}"
    if isinstance(problem, exceptions.MissingArgumentError) and problem.argument is not None:
        name = problem.argument.name
        if name.startswith("-"):
            return f"{name} needs a value. {see}"
        return f"{command} needs a {name}. {see}"
    if isinstance(problem, exceptions.CoercionError) and problem.token is not None:
        name = problem.token.keyword or (problem.argument.name if problem.argument else "")
        word, kind = problem.token.value, without_none(problem.target_type)
        return f"{name} {word}: must be {describe(kind)}.{did_you_mean(word, map(str, get_args(kind)))}"
    if isinstance(problem, exceptions.RepeatArgumentError):
        return f"{problem.token.keyword} is given twice. {see}"
    if problem.unused_tokens:
        return f"{problem.unused_tokens[0]}: not expected here. {see}"
    return f"{str(problem).strip()} {see}"


def without_none(kind: Any) -> Any:
    """The type of an option's value: what is left out is None, but None cannot be typed."""
    kinds = [one for one in get_args(kind) if one is not type(None)]
    return kinds[0] if len(kinds) == 1 and type(None) in get_args(kind) else kind
