"""What a person sees while a ladder is climbed.

    with Board(rungs, runs, about, records, workers=2) as board:
        board.begin("one-head", 0)
        board.end(record)

On a terminal and in a notebook it is the table, which fills as it is looked at; where the terminal is too low, the part
of it where something happens. In a log it is a line for every run that ends.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from handmade.ladder.summary import OVERLAP, About, Record, Row, Rung, summarise
from handmade.ladder.table import EXPLAINED, gain_said, loss_said, rate_said, seconds_said, spelt, table
from handmade.progress import duration, moves

Run = tuple[str, int]
"""The name of a rung, and a seed."""


class Board:
    """Shows how a ladder is climbed. It is also a rich renderable: `console.print(board)` prints the whole table.

    rungs: all rungs, in order. runs: every (rung, seed) that is to be done, and those that are. records: what is done
    already. workers: how many runs go on at once. expected: rung -> seconds of a run, where that is known beforehand.
    console: where it is shown, by default standard error. show: False shows nothing.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        runs: Iterable[Run],
        about: About,
        records: Iterable[Record] = (),
        *,
        workers: int = 1,
        expected: Mapping[str, float] | None = None,
        console: Console | None = None,
        show: bool = True,
    ) -> None:
        self.rungs, self.about, self.workers, self.show = list(rungs), about, workers, show
        self.runs = list(dict.fromkeys(runs))
        self.records = list(records)
        self.expected = dict(expected or {})
        self.console = console or Console(stderr=True, highlight=False)
        self.running: dict[Run, float] = {}  # since when
        self.totals = Counter(rung for rung, _ in self.runs)
        self.live: Live | None = None
        self.known: list[Row] | None = None  # as long as no record comes
        self.began = time.monotonic()

    def __enter__(self) -> Board:
        self.began = time.monotonic()
        if self.show and moves(self.console):
            self.live = Live(self, console=self.console, refresh_per_second=1)
            self.live.start(refresh=True)
            self.console.show_cursor(True)  # what is killed must not leave the terminal without one
        return self

    def __exit__(self, *_: object) -> None:
        self.running.clear()
        if self.live is not None:
            live, self.live = self.live, None  # what stays is the whole table, however low the terminal
            live.stop()

    def begin(self, rung: str, seed: int) -> None:
        """A run begins."""
        self.running[rung, seed] = time.monotonic()
        self._refresh()

    def drop(self, rung: str, seed: int) -> None:
        """A run ended without a result."""
        self.running.pop((rung, seed), None)
        self._refresh()

    def end(self, record: Record) -> None:
        """A run ended: this is its record."""
        self.running.pop((record["rung"], record["seed"]), None)
        self.records.append(record)
        self.known = None
        if self.show and self.live is None:
            self.print(self.line(record))
        self._refresh()

    def print(self, text: str | Text) -> None:
        """A line that stays, above the table. It is not broken: a log has no width."""
        self.console.print(Text(text) if isinstance(text, str) else text, soft_wrap=True)

    def _refresh(self) -> None:
        if self.live is not None:
            self.live.refresh()

    # -----------------------------------------------------------------------------------------------------------
    # How far it is

    @property
    def done(self) -> int:
        """Runs of `runs` that have a record."""
        return len({(record["rung"], record["seed"]) for record in self.records} & set(self.runs))

    def rows(self) -> list[Row]:
        """A row for every rung that is to be climbed."""
        if self.known is None:
            self.known = [row for row in summarise(self.rungs, self.records) if row.name in self.totals]
        return self.known

    def seconds_left(self) -> float | None:
        """What the runs that are left will take. A run takes what its rung took with another seed, or what is
        expected of it, or what its nearest trained ancestor took: one idea apart. None before anything is known."""
        took: dict[str, list[float]] = {}
        for record in self.records:
            if record.get("learning_rate") is not None:  # what only counts tells nothing of what is trained
                took.setdefault(record["rung"], []).append(record["seconds"])
        known = {**self.expected, **{rung: statistics.median(seconds) for rung, seconds in took.items()}}
        parents = {rung.name: rung.parent for rung in self.rungs}
        finished = {(record["rung"], record["seed"]) for record in self.records}
        counted = {record["rung"] for record in self.records} - took.keys()
        left, longest = 0.0, 0.0
        for run in self.runs:
            if run in finished or run[0] in counted:
                continue
            cost = self._cost(run[0], known, parents)
            if cost is None:
                return None
            since = self.running.get(run)
            rest = cost if since is None else max(0.0, cost - (time.monotonic() - since))
            left, longest = left + rest, max(longest, rest)
        return max(left / self.workers, longest)

    @staticmethod
    def _cost(rung: str | None, known: Mapping[str, float], parents: Mapping[str, str | None]) -> float | None:
        seen: set[str] = set()
        while rung is not None and rung not in seen:
            if rung in known:
                return known[rung]
            seen.add(rung)
            rung = parents.get(rung)
        return statistics.fmean(known.values()) if known else None

    # -----------------------------------------------------------------------------------------------------------
    # What is seen

    def line(self, record: Record) -> str:
        """A run that ended, in one line; with its last seed, what came out of the rung."""
        rows = self.rows()
        titles = max(len(row.title) for row in rows)
        row = next(row for row in rows if row.name == record["rung"])
        loss = record["val_loss"]
        parts = [
            f"{self.done:>{len(str(len(self.runs)))}}/{len(self.runs)}",
            f"{row.label:>3} {row.title:<{titles}}",
            f"seed {record['seed']}",
            f"loss {loss:.3f}" if loss is not None and math.isfinite(loss) else "diverged",
        ]
        if record.get("learning_rate") is not None:
            parts += [
                f"{rate_said(record['tokens_per_second']):>5} tokens/s",
                f"{seconds_said(record['train_seconds']):>4} s",
            ]
        if len(row.seeds) >= self.totals[row.name]:
            gain = f"{gain_said(row.gain)} over {row.parent_label or row.parent}" if gain_said(row.gain) else ""
            mean = f"mean {loss_said(row)}" if len(row.seeds) > 1 else ""
            parts += [part for part in (mean, gain, row.verdict) if part]
        left = self.seconds_left()
        if left:
            parts.append(f"about {duration(left)} left")
        line = "  ".join(parts)
        return spelt(line) if self.console.options.ascii_only else line

    def heading(self, width: int) -> list[str]:
        """What is compared; how far it is. In one line or in more, none wider than it must be."""
        seeds = sorted({seed for _, seed in self.runs})
        among = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        left = self.seconds_left()
        done = self.done
        if done == len(self.runs):
            time_said = f"in {duration(time.monotonic() - self.began)}"
        else:
            time_said = "" if left is None else f"about {duration(left)} left"
        going = f"{len(self.running)} running" if self.running else ""
        compared = [part for part in (self.about.data, self.about.budget, among) if part]
        far = [part for part in (f"{done} of {len(self.runs)} runs", going, time_said) if part]
        together = flowed(compared + far, width)
        return together if len(together) == 1 else flowed(compared, width) + flowed(far, width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, plain = options.max_width, options.ascii_only
        rows, now = self.rows(), time.monotonic()
        going = {rung: f"{duration(now - since)} …" for (rung, _), since in reversed(list(self.running.items()))}
        above = self.heading(width)
        explained = any(row.verdict == OVERLAP for row in rows)
        shown: Sequence[Row] = rows
        if self.live is not None:
            above = above[-max(1, console.size.height // 4) :]  # the last says how far it is
            # Besides: the heads of the columns, the line below, one for the cursor, one before the side rungs.
            shown = window(rows, going, console.size.height - len(above) - 3 - any(row.side for row in rows))
        for line in above:
            yield self._text(line, plain, "bold" if line is above[0] else "")
        yield table(rows, width, going, self.totals, shown, plain)
        hidden = len(rows) - len(shown)
        below = [f"{hidden} more rungs"] if hidden else []
        if explained:
            below.append(f"≈ {EXPLAINED}")
        if below:
            yield self._text("  ".join(below), plain, "dim")

    @staticmethod
    def _text(line: str, plain: bool, style: str) -> Text:
        return Text(spelt(line) if plain else line, style, no_wrap=True, overflow="crop" if plain else "ellipsis")


def flowed(parts: Sequence[str], width: int) -> list[str]:
    """The parts in as few lines as they take, none broken."""
    lines: list[str] = []
    for part in parts:
        if lines and Text(f"{lines[-1]}  {part}").cell_len <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(part)
    return lines


def window(rows: Sequence[Row], going: Mapping[str, str], height: int) -> Sequence[Row]:
    """As many rows as fit, so that the first that runs is seen, most of them before it: what is known."""
    height = max(1, height)
    if len(rows) <= height:
        return rows
    places = [place for place, row in enumerate(rows) if row.name in going]
    places = places or [place for place, row in enumerate(rows) if row.seeds][-1:] or [0]
    first = min(max(0, places[0] - (2 * height) // 3), len(rows) - height)
    return rows[first : first + height]
