"""The ladder as a table: for the terminal in any width, and as Markdown; and what every rung writes, side by side.

    console.print(table(rows, console.width))
    Path("ladder.md").write_text(markdown(rows, about) + samples(rungs, records))

`Board` (board.py) shows the first while the ladder is climbed.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from unicodedata import category

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.text import Text

from handmade.ladder.summary import BETTER, ONE_SEED, OVERLAP, WORSE, About, Record, Row, Rung, summarise
from handmade.progress import duration

MARKS = {BETTER: "▲", WORSE: "▼", OVERLAP: "≈", ONE_SEED: "·", "": ""}
SHORT = {BETTER: "better", WORSE: "worse", OVERLAP: "unclear", ONE_SEED: "1 seed", "": ""}
STYLES = {BETTER: "green", WORSE: "red", OVERLAP: "yellow", ONE_SEED: "dim", "": ""}
ASIDE = "beside the ladder"
EXPLAINED = "not distinguishable: the seeds of the two overlap"

# ---------------------------------------------------------------------------------------------------------------
# Figures in words


def loss_said(row: Row, tight: bool = False) -> str:
    """Mean, and half of the way from the smallest to the largest: `1.642 ± 0.012`."""
    if row.mean is None:
        return ""
    if not math.isfinite(row.mean):
        return "diverged"
    half = row.half_spread
    return f"{row.mean:.3f}" if half is None else f"{row.mean:.3f}{'±' if tight else ' ± '}{half:.3f}"


def gain_said(gain: float | None) -> str:
    return "" if gain is None or not math.isfinite(gain) else f"{gain:+.3f}"


def count_said(value: float | None, digits: int = 3) -> str:
    """A count to about three digits.

    >>> [count_said(value) for value in (4225, 54857, 842_300, 4_751_000, 123_000_000)]
    ['4,225', '54.9 k', '842 k', '4.75 M', '123 M']
    """
    if value is None:
        return ""
    if value < 9999.5:
        return f"{value:,.0f}"
    scale, unit = next((scale, unit) for scale, unit in ((1e3, "k"), (1e6, "M"), (1e9, "G")) if value < 999.5 * scale)
    whole = len(f"{value / scale:.0f}")
    return f"{value / scale:.{max(0, digits - whole)}f} {unit}"


def rate_said(value: float | None) -> str:
    """Tokens a second, to the thousand from ten thousand on."""
    return count_said(value, 2)


def seconds_said(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 599.5:
        return duration(value)
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


# ---------------------------------------------------------------------------------------------------------------
# In the terminal


@dataclass(frozen=True)
class Layout:
    """How much of a row is shown."""

    title: int
    """Characters of a title that there must be room for at least; fewer where the titles are shorter."""
    gap: int
    """Between two columns."""
    verdict: str
    """`full`, `short`, `mark`, or `` for none."""
    columns: tuple[str, ...]
    """What there is besides number, title and loss."""


ANY = 1000  # characters: every title
LAYOUTS = (
    Layout(ANY, 2, "full", ("spread", "gain", "over", "params", "tok/s", "s")),
    Layout(ANY, 2, "full", ("spread", "gain", "params", "tok/s", "s")),
    Layout(ANY, 2, "short", ("spread", "gain", "params", "tok/s", "s")),
    Layout(22, 1, "short", ("spread", "gain", "params", "tok/s", "s")),
    Layout(20, 1, "short", ("spread", "gain", "params", "tok/s")),
    Layout(18, 1, "short", ("spread", "gain", "params")),
    Layout(16, 1, "short", ("spread", "gain")),
    Layout(12, 1, "mark", ("spread", "gain")),
    Layout(8, 1, "mark", ("gain",)),
    Layout(4, 1, "", ()),
    Layout(0, 1, "", ()),
)
"""From the richest to the barest. The first that fits is taken: columns go, figures are never cut."""

# What a column takes at least, so that the table does not move as it fills.
LEAST = {"#": 3, "loss": 5, "gain": 6, "params": 6, "tok/s": 5, "s": 4, "full": 22, "short": 9, "mark": 1}
LEFT = ("rung", "loss", "verdict", " ")
Cells = dict[str, tuple[str, str]]  # column -> text, style


def table(
    rows: Sequence[Row],
    width: int,
    going: Mapping[str, str] | None = None,
    totals: Mapping[str, int] | None = None,
    shown: Sequence[Row] | None = None,
    ascii_only: bool = False,
) -> Text:
    """The rows as lines for rich, at most `width` wide.

    No rich.table.Table, which takes several times as long to draw: that time is taken from the models that are trained.
    going: rung -> what is said of it while it runs. totals: rung -> how many seeds it is to have. shown: those of
    `rows` that are shown; all take part in the widths, so that columns stay where they are when others are shown.
    """
    going, totals = going or {}, totals or {}
    for layout in LAYOUTS:
        made = {row.name: _cells(row, layout, going.get(row.name), totals.get(row.name), ascii_only) for row in rows}
        widths = _widths(list(made.values()), layout)
        whole = widths.get("rung", 0)
        room = width - sum(size for name, size in widths.items() if name != "rung") - layout.gap * (len(widths) - 1)
        if room >= min(whole, layout.title):
            break
    widths["rung"] = min(whole, room)
    names = [name for name in widths if widths[name] > 0]
    lines = [_joined([(name, "dim") for name in names], names, widths, layout.gap, ascii_only)]
    rows = rows if shown is None else shown
    for place, row in enumerate(rows):
        if row.side and place and not rows[place - 1].side:
            aside = [(ASIDE, "dim italic") if name == "rung" else ("", "") for name in names]
            lines.append(_joined(aside, names, widths, layout.gap, ascii_only))
        lines.append(_joined([made[row.name][name] for name in names], names, widths, layout.gap, ascii_only))
    return Text("\n", no_wrap=True, overflow="crop").join(lines)


def _joined(
    cells: Sequence[tuple[str, str]], names: Sequence[str], widths: Mapping[str, int], gap: int, ascii_only: bool
) -> Text:
    """A line: every cell as wide as its column."""
    line = Text()
    for place, ((text, style), name) in enumerate(zip(cells, names, strict=True)):
        size = widths[name]
        if cell_len(text) > size:
            text = set_cell_size(text, size - 1) + ("." if ascii_only else "…")
        blank = " " * (size - cell_len(text))
        line.append(" " * (gap if place else 0) + ("" if name in LEFT else blank))
        line.append(text, style)
        line.append(blank if name in LEFT else "")
    line.rstrip()
    return line


def _widths(made: Sequence[Cells], layout: Layout) -> dict[str, int]:
    """What every column takes."""
    widths: dict[str, int] = {}
    for cells in made:
        for name, (text, _) in cells.items():
            least = LEAST.get(name, len(name))
            if name == "loss" and "spread" in layout.columns:
                least = 13 if layout.gap > 1 else 11
            if name == "verdict":
                least = LEAST[layout.verdict]
            widths[name] = max(widths.get(name, least), cell_len(text))
    return widths


def _cells(row: Row, layout: Layout, going: str | None, total: int | None, ascii_only: bool) -> Cells:
    """What stands in every column."""
    done, style = len(row.seeds), STYLES[row.verdict]
    loss = loss_said(row, layout.gap < 2)
    if "spread" not in layout.columns and row.mean is not None and math.isfinite(row.mean):
        loss = f"{row.mean:.3f}"
    verdict = MARKS[row.verdict]
    if layout.verdict in ("full", "short"):
        verdict += " " + (row.verdict if layout.verdict == "full" else SHORT[row.verdict])
        if total is not None and 0 < done < total:
            verdict, style = f"{done} of {total}" + " seeds" * (layout.verdict == "full"), "dim"
    running = going is not None
    cells: Cells = {
        "#": (f"▸{row.label}" if running else row.label, "bold cyan" if running else "dim"),
        "rung": (row.title, "bold" if running else "" if done else "dim"),
        "loss": (loss, "") if done or going is None else (going, "cyan"),
    }
    if "gain" in layout.columns:
        cells["gain"] = (gain_said(row.gain), style)
    if "over" in layout.columns:
        cells["over"] = ("" if row.gain is None else row.parent_label or "", "dim")
    if layout.verdict:
        cells[" " if layout.verdict == "mark" else "verdict"] = (verdict.strip(), style)
    figures = {
        "params": count_said(row.parameters),
        "tok/s": rate_said(row.tokens_per_second),
        "s": "" if row.learning_rate is None else seconds_said(row.train_seconds),
    }
    cells.update({name: (text, "") for name, text in figures.items() if name in layout.columns})
    if ascii_only:
        return {name: (spelt(text), style) for name, (text, style) in cells.items()}
    return cells


def spelt(text: str) -> str:
    """With signs that every terminal has."""
    signs: dict[str, str | int | None] = {"▲": "+", "▼": "-", "≈": "~", "·": ".", "±": "+-", "▸": ">", "…": "..."}
    return text.translate(str.maketrans(signs)).encode("ascii", "replace").decode()


# ---------------------------------------------------------------------------------------------------------------
# As Markdown

HEADER = ("#", "rung", "loss", "bits per byte", "gain", "verdict", "parameters", "tokens/s", "seconds", "learning rate")


def markdown(rows: Sequence[Row], about: About) -> str:
    """The rungs that have a result, side rungs in a table of their own, with a caption and what the words mean."""
    blocks = [caption(about)]
    for side in (False, True):
        known = [row for row in rows if row.side == side and row.mean is not None]
        if not known:
            continue
        if side:
            blocks.append("Beside the ladder: questions that are answered without being climbed.")
        ruler = ["---:" if name not in ("rung", "verdict") else "---" for name in HEADER]
        lines = [_line(HEADER), _line(ruler), *(_line(_markdown_cells(row, len(about.seeds))) for row in known)]
        blocks.append("\n".join(lines))
    waiting = sum(row.mean is None for row in rows)
    if waiting:
        blocks.append(f"{waiting} of {len(rows)} rungs have no result yet.")
    blocks.append(
        "Loss in nats per token on the whole validation part: the mean over the seeds, and the smallest to the largest."
        " Gain: the mean of the parent, which is named beside it (where that was not run, the nearest above it that"
        " was), minus that of the rung; positive is better."
        " Tokens a second and seconds of training: medians.\n"
        "*Not distinguishable*: the losses of the rung and of its parent, each from the smallest to the largest of its"
        " seeds, overlap. The difference of the means may be chance. That is no proof that there is none."
    )
    return "\n\n".join(blocks) + "\n"


def caption(about: About) -> str:
    """Data, budget, seeds; machine, versions, command."""
    first = ", ".join(part for part in (about.data, about.budget, about.seeds_said) if part)
    second = ", ".join(part for part in (about.machine, about.versions) if part)
    command = f"Again: `{about.command}`." if about.command else ""
    lines = [f"{_plain(part)}." for part in (first, second) if part] + [command] * bool(command)
    return "\n".join(lines)


def _markdown_cells(row: Row, seeds: int) -> list[str]:
    loss, remarks = loss_said(row), []
    if row.low is not None and row.high is not None and math.isfinite(row.high):
        loss = f"**{row.mean:.3f}**"
        remarks += [f"{row.low:.3f} to {row.high:.3f}"] * (row.low < row.high)
    remarks += [f"{len(row.seeds)} of {seeds} seeds"] * (len(row.seeds) < seeds)
    loss += f" ({', '.join(remarks)})" if remarks else ""
    over = f" over {row.parent_label or _plain(row.parent or '')}"
    trained = row.learning_rate is not None
    return [
        row.label,
        _plain(row.title),
        loss,
        "" if row.bits_per_byte is None else f"{row.bits_per_byte:.3f}",
        f"{gain_said(row.gain)}{over}" if gain_said(row.gain) else "",
        row.verdict,
        "" if row.parameters is None else f"{row.parameters:,}",
        "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        seconds_said(row.train_seconds) if trained else "",
        f"{row.learning_rate:g}" if trained else "",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """A text that means nothing in Markdown, on one line."""
    text = " ".join(text.split())
    return "".join("\\" + letter if letter in "\\`*_[]<>|#~&" else letter for letter in text)


# ---------------------------------------------------------------------------------------------------------------
# What every rung writes

COLUMNS, LETTERS = 2, 46  # samples side by side, and how many characters of a line fit beside another


def samples(rungs: Sequence[Rung], records: Iterable[Record], columns: int = COLUMNS) -> str:
    """A sample of every rung that has one, in the order climbed: left to right, then down.

    All are of one seed, the smallest there is, so that the rungs were asked for the same with the same dice. Lines
    that are too long to stand beside another are broken.
    """
    records = [record for record in records if record.get("sample") is not None]
    seed = min((record["seed"] for record in records), default=None)
    if seed is None:
        return ""
    texts = {record["rung"]: record["sample"] for record in records if record["seed"] == seed}
    rows = [row for row in summarise(rungs, records) if row.name in texts]
    lines = [f"What the rungs write, each with the same prompt and seed {seed}:", "", "<table>"]
    for first in range(0, len(rows), columns):
        lines.append("<tr>")
        for row in rows[first : first + columns]:
            loss = row.losses[row.seeds.index(seed)]
            said = f"loss {loss:.3f}" if math.isfinite(loss) else "diverged"
            lines.append(f'<td valign="top">{row.label} <b>{escape(row.title)}</b>, {said}')
            lines.append(f"<pre>{_preformatted(texts[row.name])}</pre></td>")
        lines.append("</tr>")
    return "\n".join([*lines, "</table>", ""])


def _preformatted(text: str) -> str:
    """Text as it is within <pre>, its long lines broken. The newline right after <pre> is not shown.

    An empty line would end the HTML for Markdown: its end is written as a character reference, and so is no end of
    a line in the file."""
    made = "\n"
    for line in "".join(map(_visible, text.rstrip())).expandtabs(4).split("\n"):
        for piece in _broken(line):
            made += escape(piece.rstrip(), quote=False) + ("\n" if piece.strip() else "&#10;")
    return made.removesuffix("\n")


def _visible(letter: str) -> str:
    """A model of bytes, or of any text, may write what controls a terminal."""
    return letter if letter in "\n\t" or category(letter)[0] != "C" else "\N{REPLACEMENT CHARACTER}"


def _broken(line: str) -> list[str]:
    """In pieces that are not too wide; a line of wide characters has no spaces to break it at."""
    if cell_len(line) > len(line):
        return chop_cells(line, LETTERS)
    whole: dict[str, Any] = {"replace_whitespace": False, "drop_whitespace": False, "break_on_hyphens": False}
    return textwrap.wrap(line, LETTERS, **whole) or [line]
