"""A report for a person: a table, worst first; a check explained; JSON for programs.

console.print(table(report, console.width))
"""

from __future__ import annotations

import contextlib
import io
import math
import random
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from handmade.doctor import checks
from handmade.doctor.checks.base import Check
from handmade.doctor.findings import VERDICTS, Finding, Report, Verdict
from handmade.doctor.snapshot import undisturbed

SIGNS: dict[Verdict, tuple[str, str]] = {
    "sick": ("✗", "bold red"),
    "suspicious": ("?", "yellow"),
    "not examined": ("·", "dim"),
    "healthy": ("✓", "green"),
}
ASCII = {"✗": "x", "?": "?", "·": "-", "✓": "+"}
"""For a terminal that has no others."""
WIDE = 112
"""Columns from which measurement, expectation and remedy stand side by side."""
REASONS = 8
"""Lines of checks that were not examined, unless all are asked for."""


# ---------------------------------------------------------------------------------------------------------------
# The table


def table(report: Report, width: int, everything: bool = False, plain: bool = False) -> RenderableType:
    """A report, at most `width` wide. With `everything`, a row for each check that is healthy too. `plain`: signs of
    ASCII alone."""
    shown: list[Verdict] = ["sick", "suspicious", *(["healthy"] if everything else [])]  # type: ignore[list-item]
    rows = [finding for verdict in shown for finding in report.of(verdict)]
    parts: list[RenderableType] = [headline(report)]
    parts += [Padding(Text(note, style="dim"), (0, 0, 0, 2)) for note in report.notes]
    names = max([len(one.check) for one in rows], default=0)
    word = max([len(word) for one in rows for word in one.expected.split()], default=0)
    if rows:
        parts.append(Text())
    if rows and width >= WIDE:
        titles = [Text(title, style="dim") for title in ("", "check", "measured", "expected", "what to do")]
        parts.append(line_of(width, names, word, *titles))
    for finding in rows:
        parts += wide(finding, width, names, word, plain) if width >= WIDE else narrow(finding, width, plain)
    folded = [*report.of("not examined"), *([] if everything else report.of("healthy"))]
    if folded:
        parts.append(Text())
    parts += unexamined(report.of("not examined"), everything, plain)
    if not everything and report.of("healthy"):
        parts.append(healthy_line(report.of("healthy"), plain))
    return Group(*parts, *closing(report))


def headline(report: Report) -> Text:
    """Who was examined, and how many findings of each kind there are."""
    line = Text(f"{report.patient}: ", style="bold")
    counts = [(verdict, len(report.of(verdict))) for verdict in VERDICTS]
    for place, (verdict, number) in enumerate([(v, n) for v, n in counts if n]):
        style = SIGNS[verdict][1] if verdict in ("sick", "suspicious") else "not bold"
        line.append(", " if place else "", style="not bold")
        line.append(f"{number} {verdict}", style=style)
    return line.append(f" ({report.seconds:.1f} s)", style="not bold dim")


def wide(finding: Finding, width: int, names: int, word: int, plain: bool) -> list[RenderableType]:
    """A finding in columns, and why it matters below."""
    cells = [sign(finding.verdict, plain), Text(finding.check, style=SIGNS[finding.verdict][1])]
    cells += [Text(measured(finding)), Text(finding.expected), Text(advice(finding))]
    rows: list[RenderableType] = [line_of(width, names, word, *cells)]
    if why(finding):
        rows.append(Padding(Text(why(finding), style="dim"), (0, 0, 0, names + 5)))
    return rows


def line_of(width: int, names: int, word: int, *cells: Text) -> Table:
    """Cells in the columns that all findings have in common. `word`: letters of the longest one that is expected, which
    is not to be cut."""
    left = width - 2 - names - 2 - 4
    expected = min(30, max(10, left // 5, word))
    first = (left - expected) * 11 // 20
    row = Table.grid(padding=(0, 2, 0, 0))
    for size in (1, names, first, expected):
        row.add_column(width=size, overflow="fold")
    row.add_column(overflow="fold")  # what is left, which depends on rich's version
    row.add_row(*cells)
    return row


def narrow(finding: Finding, width: int, plain: bool) -> list[RenderableType]:
    """A finding line by line."""
    head = sign(finding.verdict, plain).append(" ").append(finding.check, style=SIGNS[finding.verdict][1])
    told = [("measured", measured(finding)), ("expected", finding.expected), ("why", why(finding))]
    told.append(("answer" if finding.verdict == "suspicious" else "do", advice(finding)))
    rows: list[RenderableType] = [head]
    for label, text in told:
        if text:
            row = Table.grid(padding=(0, 2, 0, 0))
            row.add_column(width=8)
            row.add_column(overflow="fold")
            row.add_row(Text(label, style="dim"), Text(text, style="dim" if label == "why" else ""))
            rows.append(Padding(row, (0, 0, 0, 2)))
    return rows


def sign(verdict: Verdict, plain: bool) -> Text:
    mark, style = SIGNS[verdict]
    return Text(ASCII[mark] if plain else mark, style=style)


def measured(finding: Finding) -> str:
    """What was measured, and where."""
    where = finding.where if finding.where not in finding.measured else ""
    return f"{finding.measured} ({where})" if where else finding.measured


def why(finding: Finding) -> str:
    """What is wrong, in the words that the check has for it, and how that comes about."""
    if finding.verdict == "healthy":
        return finding.cause
    check = checks.BY_NAME.get(finding.check)
    parts = [sentence(part) for part in ("" if check is None else check.title, finding.cause) if part]
    return ". ".join(parts)


def sentence(text: str) -> str:
    """With a capital letter, unless it begins with code."""
    first = text.split(" ")[0]
    return text[0].upper() + text[1:] if first.rstrip(",:").isalpha() else text


def advice(finding: Finding) -> str:
    """What to do: a question is answered, a mistake put right."""
    if finding.verdict == "suspicious" and finding.question:
        return finding.question
    return finding.remedy


def unexamined(findings: Sequence[Finding], everything: bool, plain: bool) -> list[RenderableType]:
    """What was not examined, a line for each reason, the commonest first."""
    reasons: dict[str, list[Finding]] = {}
    for finding in findings:
        reasons.setdefault(finding.measured, []).append(finding)
    ordered = sorted(reasons.items(), key=lambda entry: -len(entry[1]))
    most = len(ordered) if everything or len(ordered) <= REASONS else REASONS - 1
    lines: list[RenderableType] = []
    for reason, those in ordered[:most]:
        said = Text(f"{reason.rstrip('.')}. ").append(f"Not examined: {names_of(those)}", style="dim")
        lines.append(marked("not examined", said, plain))
    rest = [finding for _, those in ordered[most:] for finding in those]
    if rest:
        said = Text("other reasons, which --all tells. ").append(f"Not examined: {names_of(rest)}", style="dim")
        lines.append(marked("not examined", said, plain))
    return lines


def healthy_line(findings: Sequence[Finding], plain: bool) -> RenderableType:
    """The healthy ones, folded: `✓ healthy: 3 checks (batch, future, order)`."""
    text = Text(f"healthy: {len(findings)} check{'s' if len(findings) != 1 else ''} ")
    return marked("healthy", text.append(f"({names_of(findings)})", style="dim"), plain)


def names_of(findings: Sequence[Finding]) -> str:
    return ", ".join(finding.check for finding in findings)


def marked(verdict: Verdict, text: Text, plain: bool) -> RenderableType:
    """A line behind the sign of its verdict."""
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_column(width=1)
    row.add_column(overflow="fold")
    row.add_row(sign(verdict, plain), text)
    return row


def closing(report: Report) -> list[RenderableType]:
    """What one may do next."""
    wrong = [*report.sick, *report.suspicious]
    if not wrong:
        some = report.of("healthy")
        return [Text(), Text("Nothing wrong was found in what was examined." if some else "Nothing could be examined.")]
    lines = [Text(), verbatim(f"explained: handmade doctor --explain {wrong[0]}")]
    asked = [re.search(r"expect=\{['\"](\w+)", finding.question) for finding in report.of("suspicious")]
    names = [found[1] for found in asked if found]
    if names:
        lines.append(verbatim(f"answered: --expect {names[0]}=true, or =false"))
    for finding in report.of("sick"):
        declared = re.search(r": expect=\{['\"](\w+)['\"]: (True|False)\}", finding.remedy)
        if declared:
            lines.append(
                verbatim(f"if what {finding.check} found is meant: --expect {declared[1]}={declared[2].lower()}")
            )
    return list(lines)


def verbatim(text: str, style: str = "") -> Text:
    """What is copied, a command or code, is not broken into lines."""
    return Text(text, style=style, no_wrap=True, overflow="ignore")


def as_text(what: Report | RenderableType, width: int = 80, everything: bool = False) -> str:
    """The table of a report, or something else that rich can show, without colours."""
    told = table(what, width, everything) if isinstance(what, Report) else what
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(told, crop=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def as_json(report: Report) -> dict[str, Any]:
    """The report for JSON, which has no NaN and no infinity: those are null."""
    return finite(report.to_dict())


def finite(tree: Any) -> Any:
    """A tree of lists and dictionaries in which every number is finite."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


# ---------------------------------------------------------------------------------------------------------------
# A check explained


def explained(check: Check, width: int = 80, printed: str | None = None) -> RenderableType:
    """The idea of a check with its formula, its demonstration, what that prints where it was run, and the source."""
    title = Text(check.name, style="bold").append(f": {check.title}", style="not bold")
    parts: list[RenderableType] = [title, Text(), *paragraphs(check, width)]
    if check.demonstration:
        parts += [Text(), Text("demonstration", style="bold"), indented(check.demonstration)]
    if printed is not None:
        parts += [Text("which prints", style="bold"), indented(printed)]
    parts.append(Text())
    for label, text in (("needs", needs(check)), ("source", check.reference)):
        # An address is copied: it is not broken.
        lines = textwrap.wrap(text, max(20, width - 8), break_long_words=False, break_on_hyphens=False)
        row = verbatim(f"{label:8}", "dim").append("\n        ".join(lines), style="not dim")
        parts.append(row)
    return Group(*parts)


def paragraphs(check: Check, width: int) -> Iterable[Text]:
    """The idea: sentences as wide as there is room, formulas as they stand."""
    for place, part in enumerate(check.idea.split("\n\n")):
        if place:
            yield Text()
        formula = any(line.startswith(" ") for line in part.splitlines())
        yield Text(part if formula else textwrap.fill(" ".join(part.split()), max(20, width)), overflow="fold")


def indented(text: str) -> Text:
    return verbatim(textwrap.indent(text.rstrip(), "    "))


def needs(check: Check) -> str:
    """What a check has to be given."""
    found = ["a model that can be called" if need == "callable" else need for need in check.needs]
    return ", ".join(found) or "nothing"


def demonstrated(check: Check, seed: int = 0) -> str:
    """Run a check's demonstration by itself, with a fixed seed. Returns what it prints."""
    printed = io.StringIO()
    with undisturbed():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (a demonstration may draw from the old one)
        random.seed(seed)
        with contextlib.redirect_stdout(printed):
            exec(compile(check.demonstration, f"<{check.name}>", "exec"), {"__name__": "demonstration"})
    return printed.getvalue()


def overview() -> RenderableType:
    """Every check: its name, and what is wrong where it finds something."""
    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for check in checks.ALL:
        rows.add_row(Text(check.name, style="bold"), Text(check.title))
    return rows


# ---------------------------------------------------------------------------------------------------------------
# Printing


class Printer(Console):
    """Standard output. A reader that has gone ends the command as it ends any."""

    def __init__(self) -> None:
        super().__init__(highlight=False)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would end the process here, as one that failed

    def show(self, what: Report | RenderableType, everything: bool = False) -> None:
        """On a terminal with colours, else as plain text."""
        plain = self.options.ascii_only
        if self.is_terminal:
            self.print(table(what, self.width, everything, plain) if isinstance(what, Report) else what, crop=False)
            return
        text = as_text(what, self.width, everything)
        for mark, letter in ASCII.items() if plain else ():
            text = text.replace(mark, letter)
        self.file.write(text)


__all__ = ["Printer", "as_json", "as_text", "demonstrated", "explained", "overview", "table"]
