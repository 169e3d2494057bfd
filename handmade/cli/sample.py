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
    """At most so many tokens a text. Of a translation, unless said: twice its sentence's and ten more."""
    temperature: float | None = None
    """Usual is 1. Below it likely tokens become likelier; 0 always takes the likeliest."""
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

        temperature = 1.0 if self.temperature is None else self.temperature
        return SamplingConfig(temperature, self.top_k, self.top_p, self.min_p)


DEFAULTS = SampleOptions()


@Parameter(name="*")
@dataclass(frozen=True)
class TranslationOptions(Options):
    """How a run of translation searches. Without them it does as it was trained to."""

    beams: Whole | None = None
    """Translations of a sentence that are followed at once; 1 takes the likeliest token each time."""
    n_best: Whole = 1
    """So many translations of a sentence, best first, each with its score."""
    split: Annotated[bool, Parameter(show_default=False)] = False
    """Translate a text of several sentences sentence by sentence."""
    attention: Annotated[str | None, Parameter(show_default=False)] = None
    """Draw where the model looked at each word that it wrote, into this PNG file."""

    def check(self) -> None:
        self.require("attention", self.attention is None or Path(self.attention).name != "", "the name of a file")
        if self.beams is None and self.n_best == 1:
            return  # without torch, for --help
        from handmade.translating import MOST_BEAMS

        allowed = f"from 1 to {MOST_BEAMS:,}"
        self.require("beams", self.beams is None or 1 <= self.beams <= MOST_BEAMS, allowed)
        self.require("n_best", 1 <= self.n_best <= MOST_BEAMS, allowed)
        enough = self.beams is None or self.n_best <= self.beams
        self.require("n_best", enough, f"at most --beams = {self.beams}")


AS_TRAINED = TranslationOptions()


def sample(
    run: Path,
    /,
    *,
    prompt: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True, show_default=False)] = (),
    options: SampleOptions = DEFAULTS,
    translation: TranslationOptions = AS_TRAINED,
) -> None:
    """Let the model of a run write; that of a task answers, or translates.

    A text is its prompt and how the model goes on; a line of three dashes
    stands between two. Without --prompt, prompts are asked for line by line
    (Ctrl-C ends a text, Ctrl-D leaves). Piped in, each line of standard input
    is a prompt. With an empty prompt the model begins by itself.
    The model of a task takes problems and writes an answer in a line each, that
    of a translation sentences. Options of the draw have it draw translations;
    otherwise it searches for the best.

    Parameters
    ----------
    run
        The run folder.
    prompt
        A beginning, problem or sentence. May be given several times. \\n is a line break, \\t a tab, \\\\ a backslash.
    """
    writer = Writer(run, options)
    if writer.run.translates:
        writer = Translator(writer.run, options, translation)
    elif translation != AS_TRAINED:
        raise ConfigError(f"{', '.join(changed(translation, AS_TRAINED))}: {run} does not translate. Leave it out.")
    elif not writer.run.continues:
        writer = Answerer(writer.run, options)
    if prompt:
        writer.write([unescape(text) for text in prompt])
    elif writer.pictures:
        raise ConfigError("--attention draws the sentences of --prompt. Give one or several.")
    elif sys.stdin.isatty():
        converse(writer)
    else:
        for number, line in enumerate(piped_lines(), 1):
            try:
                writer.write_line(line)
            except (ConfigError, TokenizerError) as problem:
                raise type(problem)(f"standard input, line {number}: {problem}") from None
        if not writer.texts:
            writer.write([""])


class Writer:
    """Writes texts to standard output. The texts of a session are numbered and each has the draws of its number, so
    that a prompt given again goes on in another way, and a session with the same seed is the same."""

    pictures = False
    """Whether what is written is to be drawn too."""

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

    def write_line(self, line: str) -> None:
        """Write the text of a line of standard input."""
        self.write([line])

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
        other = changed(options, DEFAULTS)
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


class Translator(Writer):
    """Writes translations, a line each: the best that is found, or what is drawn where options of the draw are given.
    Of the several that --n-best writes each has its score; between two sentences of several stand three dashes."""

    def __init__(self, run: Run, options: SampleOptions, how: TranslationOptions) -> None:
        draws = [name for name in changed(options, DEFAULTS) if name not in ("--seed", "--tokens")]
        if "--stop" in draws:
            raise ConfigError("--stop: a translation ends where the model ends it. Leave it out.")
        if options.seed != DEFAULTS.seed and not draws:
            raise ConfigError(
                "--seed: the best translation is searched for, and nothing is drawn. Draw with --temperature 1, or"
                " leave it out."
            )
        for name, asked in (("--beams", how.beams not in (None, 1)), ("--n-best", how.n_best > 1)):
            if draws and asked:
                raise ConfigError(f"{name}: searches, and {', '.join(draws)} draws. Leave one of them out.")
        if how.attention is not None and how.split:
            raise ConfigError("--attention draws one sentence, and --split makes several. Leave one of them out.")
        if how.attention is not None:
            run.translator.require_attention(run.model)
        self.run, self.options, self.how = run, options, how
        try:
            self.drawing = options.sampling() if draws else None
        except ConfigError as problem:
            raise ConfigError(as_options(problem)) from None
        context = getattr(run.model, "context", None)
        most = options.tokens if options.tokens != DEFAULTS.tokens else None
        if most is not None and (most < 1 or (context is not None and most > context)):
            bound = "at least 1" if context is None else f"from 1 to {context}, the positions of the model"
            raise ConfigError(f"--tokens {most}: must be {bound}.")
        self.pictures = how.attention is not None
        self.terminal = sys.stdout.isatty()
        self.texts = 0

    def write(self, prompts: list[str]) -> None:
        """Raises ConfigError, TokenizerError for what cannot be translated, before anything is written."""
        from handmade.generation import row_seed

        options = self.options
        rows = [prompt for prompt in prompts for _ in range(options.samples)]
        found = self.run.translate(
            rows,
            beams=self.how.beams,
            nbest=self.how.n_best,
            tokens=None if options.tokens == DEFAULTS.tokens else options.tokens,
            sampling=self.drawing,
            seed=row_seed(options.seed, self.texts),
            split=self.how.split,
        )
        if self.how.attention is not None:
            from handmade.files import whole

            figure = self.run.draw_attention(prompts, [best[0] for best in found[:: options.samples]])
            with whole(Path(self.how.attention), "a picture") as file:
                figure.savefig(file, format="png")
        several = options.samples > 1 or self.how.n_best > 1
        for first in range(0, len(rows), options.samples):
            if several and self.texts:
                self.put(BETWEEN + "\n")
            for one in (one for best in found[first : first + options.samples] for one in best):
                self.put(f"{one.score:8.3f}  {one.text}\n" if self.how.n_best > 1 else one.text + "\n")
            self.texts += options.samples

    def write_line(self, line: str) -> None:
        """An empty line stays one, so that line n of what comes out is always line n of what went in."""
        if line.strip():
            self.write([line])
        else:
            self.put("\n")
            self.texts += 1


def changed(options: Options, defaults: Options) -> list[str]:
    """The options that were given, as they are typed."""
    return [
        f"--{name.replace('_', '-')}"
        for name, value in vars(options).items()
        if name != "device" and value != getattr(defaults, name)
    ]


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
