"""`handmade ladder DATA`: what every idea is worth, from counting letters to today's GPT, on your own text."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from handmade.cli.options import Whole
from handmade.errors import ConfigError, DataError, TokenizerError

if TYPE_CHECKING:
    from handmade.ladder import Climb, Rung
    from handmade.ladder.board import Board
    from handmade.ladder.summary import About

TABLE, SAMPLES, PICTURE = "ladder.md", "samples.md", "ladder.png"
LINE = "counted-ngram"


def ladder(
    *data: str,
    rungs: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
    side: Annotated[bool, Parameter(show_default=False)] = False,
    list_: Annotated[bool, Parameter(name="--list", show_default=False)] = False,
    minutes: float | None = None,
    tokens: Whole | None = None,
    equal: Literal["tokens", "time"] = "tokens",
    seeds: Whole = 3,
    prompt: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    jobs: Whole | None = None,
    out: Path | None = None,
    force: Annotated[bool, Parameter(show_default=False)] = False,
) -> int:
    """Train every rung on the same text with the same budget, and say what each idea is worth.

    A killed or stopped climb goes on where it was with the same words.

    Parameters
    ----------
    data
        A text file, several, a folder of them, or a corpus by name: shakespeare.
    rungs
        Some rungs only, by name with commas between. The climbed ones are usual.
    side
        The side rungs too: questions that are answered without being climbed.
    list_
        Explain every rung in a sentence, with its source, and leave.
    minutes
        Time for all of it. How much every run gets follows, by measuring this machine.
    tokens
        Training tokens of every run; without this and --minutes, 589,824.
    equal
        What is equal between the runs: tokens, or time (with --minutes).
    seeds
        Runs of each rung, for mean and spread.
    prompt
        What the samples begin with. By default the first words of the validation part.
    jobs
        Runs side by side, each on one processor core. By default as many as there are cores.
    out
        Folder for the results, instead of runs/NAME-ladder.
    force
        Begin anew where there are results.
    """
    from handmade import ladder as climbing
    from handmade.progress import moves

    if list_:
        show_list()
        return 0
    chosen = choose(rungs, side)
    if not data:
        raise ConfigError(
            "ladder needs a DATA: a text file, a folder of them, or shakespeare. See: handmade ladder --help"
        )
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: must be at least 1.")
    if equal == "time" and minutes is None:
        raise ConfigError("--equal time needs --minutes: the time that all the runs together may take.")
    if prompt == "":
        raise ConfigError("--prompt: is empty. Leave it out: the first words of the validation part are taken then.")
    try:
        name = introduced(data)
        folder = out or Path("runs") / f"{name}-ladder"
        climb = climbing.Climb(
            data,
            chosen,
            tuple(range(seeds)),
            tokens,
            minutes,
            equal,
            folder,
            jobs,
            None if prompt is None else unescaped(prompt),
            force=force,
            say=said,
        )
    except (DataError, TokenizerError) as problem:
        raise type(problem)(advised(str(problem), data)) from None
    except ConfigError as problem:
        raise ConfigError(re.sub(r"^(tokens|minutes|jobs) = ", r"--\1 ", str(problem))) from None
    board = show(climb, command(data, rungs, side, minutes, tokens, equal, seeds, prompt, out), force)
    write(climb, folder, board.about)
    if not moves(board.console):  # where the table did not fill as it was looked at
        printed(board, 120)
    print(f"\nSaved in {shlex.quote(str(folder))} ({TABLE}, {PICTURE}, {SAMPLES}, {climb.path.name}).")
    return 0


def choose(names: Sequence[str], side: bool) -> list[Rung]:
    """The rungs that are asked for, in the order they are climbed. Raises ConfigError for an unknown name."""
    from handmade.ladder import RUNGS, SIDE_RUNGS, find

    everything = [*RUNGS, *SIDE_RUNGS]
    wanted = [name.strip() for part in names for name in part.split(",") if name.strip()]
    if names and not wanted:
        raise ConfigError("--rungs: names no rung. `handmade ladder --list` explains each.")
    if wanted:
        found = {find(name).name for name in wanted}
        return [rung for rung in everything if rung.name in found or (side and rung.side)]
    return everything if side else list(RUNGS)


def said(label: str, sentence: str) -> None:
    """A line beside the table."""
    print(f"{label}: {sentence}", file=sys.stderr)


def introduced(data: Sequence[str]) -> str:
    """What the results are called after; whatever there is to know of the texts is said."""
    from handmade import corpora

    found = [corpora.find(name, lambda line: said("corpus", line)) for name in data]
    for corpus in found:
        if corpus.note:
            said(corpus.name, corpus.note)
    return found[0].name


def advised(message: str, data: Sequence[str]) -> str:
    """A refusal of the text without the options of `handmade train` that this command does not have; and what a list
    of rungs with spaces in it looks like."""
    from handmade.ladder import RUNGS, SIDE_RUNGS

    for advice, instead in (
        (r"try --encoding \S+, or save", "save"),
        (r"try --encoding \S+\.$", "save it as UTF-8."),
        (r", or name what it is in with --encoding", ""),
        (r", or a validation text with --validation", ""),
        (r", or train with --tokenizer byte, which takes any text", ""),
    ):
        message = re.sub(advice, instead, message)
    stray = [name for name in data if name.strip(",") in {rung.name for rung in (*RUNGS, *SIDE_RUNGS)}]
    if stray and message.startswith(f"{stray[0]}: no such file"):
        return f"{stray[0]}: no such file. If a rung is meant: --rungs takes names with commas and no spaces between."
    return message


def unescaped(prompt: str) -> str:
    from handmade.cli.sample import unescape

    return unescape(prompt)


def command(
    data: Sequence[str],
    rungs: Sequence[str],
    side: bool,
    minutes: float | None,
    tokens: int | None,
    equal: str,
    seeds: int,
    prompt: str | None,
    out: Path | None,
) -> str:
    """The command line that makes the same results."""
    words = ["handmade", "ladder", *data]
    words += ["--rungs", ",".join(rungs)] if rungs else []
    words += ["--side"] if side else []
    words += ["--minutes", f"{minutes:g}"] if minutes is not None else []
    words += ["--tokens", str(tokens)] if tokens is not None else []
    words += ["--equal", equal] if equal != "tokens" else []
    words += ["--seeds", str(seeds)] if seeds != 3 else []
    words += ["--prompt", prompt] if prompt is not None else []
    words += ["--out", str(out)] if out is not None else []
    return shlex.join(words)


def show(climb: Climb, words: str, force: bool = False) -> Board:
    """Climb, and show how it goes."""
    from handmade.ladder import board as boards
    from handmade.ladder.summary import About

    name = climb.identity["data"]["name"]
    every = [(rung.name, seed) for seed in climb.seeds for rung in climb.rungs]
    board = boards.Board(
        tuple(climb.known.values()), every, About.of(climb.records, name, words), climb.records, workers=climb.jobs
    )
    if not climb.todo():
        board.print("All runs are done already; --force begins anew.")

    def begin(rung: str, seed: int) -> None:
        board.about = About.of([*climb.records, {"budget": climb.budget, "seed": seed}], name, words)
        board.expected.update({one.name: climb.seconds_of(one) for one in climb.rungs})
        board.begin(rung, seed)

    try:
        with board:
            for record in climb.run(begin):
                board.end(record)
    except KeyboardInterrupt:
        print(f"\nStopped. {board.done} of {len(every)} runs are done and kept in {climb.path}.", file=sys.stderr)
        print("go on: the same words again" + ", without --force" * force, file=sys.stderr)
        raise
    board.about = About.of(climb.records, name, words)
    return board


def write(climb: Climb, folder: Path, about: About) -> None:
    """The table, the samples and the picture."""
    from handmade import files
    from handmade.ladder import picture, table

    rows = climb.rows()
    texts = {TABLE: table.markdown(rows, about), SAMPLES: table.samples(tuple(climb.known.values()), climb.records)}
    for name, text in texts.items():
        with files.whole(folder / name, "the ladder's table") as file:
            file.write(text.encode())
    picture.draw(rows, folder / PICTURE, about, LINE)


def printed(what: object, width: int | None = None) -> None:
    """Print what rich can show. Raises BrokenPipeError where the reader has gone, which `main` answers."""
    from rich.console import Console

    class Printer(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would end the process here, as one that failed

    Printer(width=width, highlight=False).print(what)


def show_list() -> None:
    """Every rung in a sentence, with its source; on a narrow terminal, below its name."""
    from rich.console import Console
    from rich.table import Table

    from handmade.ladder import RUNGS, SIDE_RUNGS

    wide = Console().width >= 60
    for title, rungs in (("climbed, in this order", RUNGS), ("side rungs (--side)", SIDE_RUNGS)):
        table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        if wide:
            table.add_column(no_wrap=True)
        table.add_column()
        for number, rung in enumerate(rungs, 1):
            label = f"S{number}" if rung.side else str(number)
            explained = f"{rung.idea}\n[dim]{rung.source}[/dim]"
            table.add_row(*((label, rung.name, explained) if wide else (label, f"{rung.name}\n{explained}")))
        printed(table)
        print()
