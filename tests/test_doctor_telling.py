"""A report as a person sees it: worst first, in any width, without colours where there is no terminal; every check can
be explained, and every demonstration runs."""

from __future__ import annotations

import io
import json
import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from handmade.doctor import checks, telling
from handmade.doctor.checks.base import Check
from handmade.doctor.findings import Finding, Report, healthy, sick, suspicious, worst_first

WIDTHS = [40, 60, 80, 100, 111, 112, 130, 200]


def named(check: str, finding: Finding, **changes) -> Finding:
    return replace(finding, check=check, **changes)


FOUND = (
    named("batch", healthy("a row stays as it is", "0")),
    named(
        "future",
        sick(
            "a later token moves earlier logits by 0.83 of the largest [0]",
            "0",
            "attention has no causal mask: the answer is seen",
            "scores = scores.masked_fill(mask == 0, -inf) before the softmax",
            where="blocks.0.attention",
        ),
    ),
    named("targets", Finding("", "not examined", "not given: batches")),
    named("one-batch", Finding("", "not examined", "not given: batches")),
    named("schedule", Finding("", "not examined", "not given: schedule")),
    named(
        "tied",
        suspicious(
            "two matrices of one shape (65, 32)",
            "one, if that was meant",
            "two cost twice the parameters",
            "self.head.weight = self.embedding.weight",
            'Was tying meant? expect={"tied": True}',
        ),
    ),
    named("order", healthy("the order counts", "above 0")),
)
REPORT = Report("my_model.py:TinyGPT", worst_first(FOUND), ("built as TinyGPT(vocab_size=65)",), 2.34)


def flat(text: str) -> str:
    return " ".join(text.split())


# ---------------------------------------------------------------------------------------------------------------
# The table


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("everything", [False, True])
def test_a_table_fits_its_width_and_says_all(width, everything):
    text = telling.as_text(REPORT, width, everything)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines if "handmade doctor" not in line and "--expect" not in line)
    assert all(line == line.rstrip() for line in lines)
    assert "\x1b" not in text
    # Columns stand side by side where there is room, so words are looked for one by one.
    for word in re.findall(
        r"\w+", "later token moves earlier logits 0.83 causal answer masked_fill softmax tied matrices"
    ):
        assert word in text
    assert "blocks.0.attention" in text.replace("\n", "").replace(" ", "")


def test_what_stands_in_it_and_in_which_order():
    text = telling.as_text(REPORT, 130)
    assert text.splitlines()[0] == "my_model.py:TinyGPT: 1 sick, 1 suspicious, 3 not examined, 2 healthy (2.3 s)"
    assert text.splitlines()[1] == "  built as TinyGPT(vocab_size=65)"
    places = [text.index(part) for part in ("✗  future", "?  tied", "· not given: batches", "✓ healthy: 2 checks")]
    assert places == sorted(places)
    row = next(line for line in text.splitlines() if line.startswith("✗"))
    assert re.match(r"✗  future  a later token moves .* 0 +scores = scores.masked_fill", row)
    assert "· not given: batches. Not examined: targets, one-batch\n" in text
    assert "· not given: schedule. Not examined: schedule\n" in text
    assert "✓ healthy: 2 checks (batch, order)\n" in text
    assert 'Was tying meant? expect={"tied": True}' in flat(text)
    assert text.endswith("explained: handmade doctor --explain future\nanswered: --expect tied=true, or =false\n")


def test_how_what_is_meant_is_said_on_the_command_line():
    finding = named("odd", sick("odd", "even", "who knows", 'make it even; if it is meant: expect={"tied": True}'))
    assert telling.as_text(Report("x", (finding,))).endswith("\nif what odd found is meant: --expect tied=true\n")
    finding = replace(finding, remedy='leave expect={"tied": True} out')
    assert "--expect" not in telling.as_text(Report("x", (finding,)))


def test_line_by_line_on_a_narrow_terminal():
    lines = telling.as_text(REPORT, 80).splitlines()
    start = lines.index("✗ future")
    assert lines[start + 1].startswith("  measured  a later token moves")
    labels = [line.split()[0] for line in lines[start:] if re.match(r"  \w", line[:3])]
    labels = labels[: labels.index("answer") + 1]
    assert labels == ["measured", "expected", "why", "do", "measured", "expected", "why", "answer"]


def test_why_begins_with_what_the_check_is_for(monkeypatch):
    title = checks.BY_NAME["batch"].title
    finding = named("batch", sick("moved", "0", "norms over the batch", "over the last axis"))
    text = telling.as_text(Report("m", (finding,)), 130)
    assert title[0].upper() + title[1:] + ". Norms over the batch" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a row", "A row"), ("zero_grad is inside", "zero_grad is inside"), ("eval() leaves", "eval() leaves"),
     ("LayerNorm over", "LayerNorm over"), ("mean, norm", "Mean, norm")],
)  # fmt: skip
def test_a_sentence_begins_with_a_capital_and_code_does_not(text, shown):
    assert telling.sentence(text) == shown


def test_all_shows_a_row_for_each():
    text = telling.as_text(REPORT, 130, everything=True)
    assert "✓  batch   a row stays as it is" in text
    assert "✓  order   the order counts" in text
    assert "healthy: 2" not in text
    assert checks.BY_NAME["batch"].title not in text.lower()  # nothing is wrong


def test_many_reasons_are_folded():
    some = tuple(named(f"check-{n}", Finding("", "not examined", f"reason {n}")) for n in range(20))
    text = telling.as_text(Report("m", some), 100)
    assert len([line for line in text.splitlines() if line.startswith("·")]) == telling.REASONS
    assert all(f"check-{n}" in text for n in range(20))
    assert "--all" in text
    assert "reason 19" in telling.as_text(Report("m", some), 100, everything=True)


def test_the_commonest_reason_comes_first():
    text = telling.as_text(Report("m", (FOUND[4], FOUND[2], FOUND[3])), 100)
    assert text.index("batches") < text.index("schedule")


def test_the_last_line_says_how_it_stands():
    assert telling.as_text(Report("m", FOUND[:1])).endswith("\nNothing wrong was found in what was examined.\n")
    assert telling.as_text(Report("m", FOUND[2:3])).endswith("\nNothing could be examined.\n")


def test_what_looks_like_markup_is_text():
    finding = named("x", sick("[bold]a[/bold] [0]", "[red]", "[/]", ":smile: [link=x]"))
    for width in (80, 130):
        text = flat(telling.as_text(Report("[m]", (finding,), ("[note]",)), width))
        for part in ("[bold]a[/bold] [0]", "[red]", "[/]", ":smile: [link=x]", "[m]", "[note]"):
            assert part in text


def test_colours_are_for_terminals_and_signs_for_what_can_show_them():
    there = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=130, highlight=False)
    there.print(telling.table(REPORT, 130))
    assert "\x1b[1;31m✗" in there.file.getvalue()
    plain = Console(file=io.StringIO(), width=130, highlight=False)
    plain.print(telling.table(REPORT, 130, plain=True))
    assert plain.file.getvalue().isascii()
    assert "\nx  future" in plain.file.getvalue()


def test_json_has_no_nan():
    finding = named("x", healthy("m", value=math.nan, limit=math.inf))
    tree = telling.as_json(Report("m", (finding, FOUND[1]), ("note",), 1.5))
    told = json.loads(json.dumps(tree, allow_nan=False))
    assert told["findings"][0]["value"] is None
    assert told["findings"][1]["remedy"] == FOUND[1].remedy
    assert told["counts"]["sick"] == 1
    assert told["notes"] == ["note"]


# ---------------------------------------------------------------------------------------------------------------
# A check explained


each_check = pytest.mark.parametrize("check", checks.ALL, ids=lambda check: check.name)


@each_check
def test_every_demonstration_runs_and_prints_the_same_twice(check: Check):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    printed = telling.demonstrated(check)
    assert printed.strip()
    assert telling.demonstrated(check) == printed
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert random.getstate() == before[2]


@each_check
def test_every_check_is_explained(check: Check):
    assert check.title
    assert len(check.reference) > 10, "a source"
    assert len(check.idea.splitlines()) >= 3, "the idea, with its formula"
    assert 3 <= len(check.demonstration.strip().splitlines()) <= 25
    for width in (40, 100):
        console = Console(file=io.StringIO(), width=width, highlight=False)
        console.print(telling.explained(check, width, "it printed this"), crop=False)
        text = console.file.getvalue()
        assert text.startswith(check.name)
        for line in check.demonstration.strip().splitlines():
            assert line.rstrip() in text
        assert "it printed this" in text
        assert flat(check.reference) in flat(text)


def test_sentences_are_as_wide_as_there_is_room_and_formulas_stay():
    def body(patient):
        """An idea that is told in one
        long line and another.

            y = x
                + z

        The end.
        """

    check = replace(checks.ALL[0], body=body)
    console = Console(file=io.StringIO(), width=200)
    console.print(telling.explained(check, 200))
    text = console.file.getvalue()
    assert "An idea that is told in one long line and another.\n" in text
    assert "\n    y = x\n        + z\n" in text


def test_the_overview_has_every_check():
    console = Console(file=io.StringIO(), width=100)
    console.print(telling.overview())
    for check in checks.ALL:
        assert re.search(rf"^{check.name} +{re.escape(check.title[:40])}", console.file.getvalue(), re.MULTILINE)
