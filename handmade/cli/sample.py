"""`handmade sample RUN`: text from a trained model, as it is made."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from handmade.cli.options import Options, Whole, as_options
from handmade.errors import ConfigError, HandmadeError, TokenizerError

if TYPE_CHECKING:
    from handmade.generation import SamplingConfig
    from handmade.run import Run

BETWEEN = "---"  # a line of its own between two texts: an empty line may be part of either
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
# What would move a terminal's cursor or change its settings; a model of bytes may write anything.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@Parameter(name="*")
@dataclass(frozen=True)
class SampleOptions(Options):
    """How the text is drawn."""

    tokens: Whole = 200
    """At most so many tokens a text."""
    temperature: float = 1.0
    """Below 1 likely tokens become likelier; 0 always takes the likeliest."""
    top_k: Whole | None = None
    """Only the k likeliest tokens."""
    top_p: float | None = None
    """Only the likeliest tokens that together have this probability."""
    min_p: float | None = None
    """Only tokens at least this fraction as likely as the likeliest."""
    seed: Whole = 0
    """The same seed gives the same text."""
    stop: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True, show_default=False)] = ()
    """End a text before this one. May be given several times. \\n is a line break, \\t a tab, \\\\ a backslash."""
    samples: Whole = 1
    """So many texts for each prompt, made at once."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    def check(self) -> None:
        self.require("tokens", self.tokens >= 0, "0 or more")
        self.require("samples", self.samples >= 1, "at least 1")
        self.require("seed", 0 <= self.seed < 2**63, "from 0 to 2^63 - 1")
        self.require("stop", "" not in self.stop, "some text: an empty one would stop before the first token")

    def sampling(self) -> SamplingConfig:
        """The checked settings of the draw."""
        from handmade.generation import SamplingConfig

        return SamplingConfig(self.temperature, self.top_k, self.top_p, self.min_p)


DEFAULTS = SampleOptions()


def sample(
    run: Path,
    /,
    *,
    prompt: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True, show_default=False)] = (),
    options: SampleOptions = DEFAULTS,
) -> None:
    """Let the model of a run write; that of a task answers.

    A text is its prompt and how the model goes on; a line of three dashes
    stands between two. Without --prompt, prompts are asked for line by line
    (Ctrl-C ends a text, Ctrl-D leaves). Piped in, each line of standard input
    is a prompt. With an empty prompt the model begins by itself.
    The model of a task takes problems and writes an answer in a line each.

    Parameters
    ----------
    run
        The run folder.
    prompt
        What the text begins with. May be given several times. \\n is a line break, \\t a tab, \\\\ a backslash.
    """
    writer = Writer(run, options)
    if not writer.run.continues:
        writer = Answerer(writer.run, options)
    if prompt:
        writer.write([unescape(text) for text in prompt])
    elif sys.stdin.isatty():
        converse(writer)
    else:
        for number, line in enumerate(piped_lines(), 1):
            try:
                writer.write([line])
            except (ConfigError, TokenizerError) as problem:
                raise type(problem)(f"standard input, line {number}: {problem}") from None
        if not writer.texts:
            writer.write([""])


class Writer:
    """Writes texts to standard output. The texts of a session are numbered and each has the draws of its number, so
    that a prompt given again goes on in another way, and a session with the same seed is the same."""

    def __init__(self, folder: Path, options: SampleOptions) -> None:
        try:
            self.sampling = options.sampling()
        except ConfigError as problem:
            raise ConfigError(as_options(problem)) from None
        import handmade

        self.run: Run = handmade.load(folder, device=options.device)
        self.options = options
        self.stops = [unescape(text) for text in options.stop]
        self.terminal = sys.stdout.isatty()
        self.texts = 0

    def write(self, prompts: list[str]) -> None:
        """Write the texts of some prompts: the first as it is made, the others, made along with it, after it.
        Raises TokenizerError for a prompt with an unknown character, before anything is written."""
        from handmade.generation import row_seed
        from handmade.writing import stream_texts

        for prompt in prompts:
            try:
                self.run.tokenizer.encode(prompt)
            except TokenizerError as problem:
                raise TokenizerError(f"prompt {shorten(prompt)!r}: {problem}") from None
        rows = [prompt for prompt in prompts for _ in range(self.options.samples)]
        pieces = stream_texts(
            self.run.model,
            self.run.tokenizer,
            rows,
            self.options.tokens,
            self.sampling,
            seed=[row_seed(self.options.seed, self.texts + row) for row in range(len(rows))],
            stop=self.stops,
        )
        waiting = ["" for _ in rows]
        last = self.begin(rows[0])
        try:
            for row, piece in pieces:
                if row == 0:
                    last = self.put(piece)
                else:
                    waiting[row] += piece
        finally:
            self.end(last)
        for prompt, text in zip(rows[1:], waiting[1:], strict=True):
            last = self.begin(prompt)
            self.end(self.put(text) if text else last)

    def begin(self, prompt: str) -> str:
        """Write what a text begins with. Returns its end, as `put` does."""
        if self.texts:
            self.put(BETWEEN + "\n")
        self.texts += 1
        if self.terminal and prompt:
            self.put(prompt, style="bold")
            return prompt
        return self.put(prompt)

    def put(self, text: str, style: str = "") -> str:
        """Write a piece of text at once. Returns it."""
        if self.terminal:
            from rich.console import Console
            from rich.text import Text

            clean = Text(CONTROL.sub("\N{REPLACEMENT CHARACTER}", text), style=style)
            Console(highlight=False, soft_wrap=True).print(clean, end="")
        else:
            sys.stdout.write(text)
        sys.stdout.flush()
        return text

    def end(self, last: str) -> None:
        """End the last line of a text."""
        if not last.endswith("\n"):
            self.put("\n")


class Answerer(Writer):
    """Writes the answers to problems, a line each: what is likeliest, so that there is nothing to draw."""

    def __init__(self, run: Run, options: SampleOptions) -> None:
        other = [
            f"--{name.replace('_', '-')}"
            for name, value in vars(options).items()
            if name != "device" and value != getattr(DEFAULTS, name)
        ]
        if other:
            raise ConfigError(f"{', '.join(other)}: {run.task.name} answers what is likeliest. Leave it out.")
        self.run, self.options = run, options
        self.terminal = sys.stdout.isatty()
        self.texts = 0

    def write(self, prompts: list[str]) -> None:
        """Raises ConfigError for what is no problem of the task, before anything is written."""
        if prompts == [""]:
            raise ConfigError(f"{self.run.task.name} needs a problem, such as {self.run.task.example}")
        for answer in self.run.answers(prompts):
            self.put(answer + "\n")
            self.texts += 1


def converse(writer: Writer) -> None:
    """Ask for prompts until Ctrl-D. What cannot be continued is said, and asked anew."""
    if sys.stdout.isatty():
        with suppress(ImportError):  # not on every system
            import readline  # noqa: F401  (importing it gives `input` history and editing)
    while True:
        try:
            prompt = ask()
        except EOFError:
            if writer.terminal:
                writer.put("\n")
            return
        try:
            writer.write([unescape(prompt)])
        except KeyboardInterrupt:
            continue
        except HandmadeError as problem:
            print(f"handmade: {problem}", file=sys.stderr)


def ask() -> str:
    """A line from the terminal. Where only the output goes elsewhere, the question stays on the terminal."""
    if sys.stdout.isatty():
        return input("> ")
    print("> ", end="", file=sys.stderr, flush=True)
    return input()


def piped_lines() -> Iterator[str]:
    """The lines of standard input, without their line breaks. Raises TokenizerError where they are not UTF-8."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as problem:
            raise TokenizerError(
                f"standard input, line {number}: not UTF-8 at byte {problem.start + 1} of the line."
            ) from None


def shorten(text: str, most: int = 40) -> str:
    """The beginning of a long text."""
    return text if len(text) <= most else text[: most - 3] + "..."


def unescape(text: str) -> str:
    r"""A text as it is typed in a shell: \n is a line break, \t a tab, \r a carriage return, \\ a backslash.

    >>> unescape(r"one\ntwo")
    'one\ntwo'
    """
    return re.sub(r"\\([ntr\\])", lambda found: ESCAPES[found[1]], text)
