"""What a person sees of a ladder: its numbers, the table in any terminal and in a log, Markdown, the picture."""

from __future__ import annotations

import io
import math
import random
import re
import subprocess
import sys
import types
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from handmade.errors import DataError, ResourceError, RunError
from handmade.ladder import board as boards
from handmade.ladder import picture
from handmade.ladder.board import Board, flowed, window
from handmade.ladder.summary import BETTER, ONE_SEED, OVERLAP, WORSE, About, budget, summarise, verdict
from handmade.ladder.table import HEADER, LAYOUTS, count_said, markdown, samples, seconds_said, table

TOKENS = {"equal": "tokens", "tokens": 614400}
MACHINE = {"processor": "Abacus 2", "cores": 2, "gpu": "none", "python": "3.12.3", "torch": "2.13.0"}
TITLES = (
    *("uniform guess", "letter frequencies", "bigram by counting", "n-gram by counting, smoothed", "neural bigram"),
    *("MLP over a window", "RNN", "LSTM", "the mean of the past", "positions", "one attention head", "several heads"),
    *("feed-forward layer", "residual connections", "layer norm (pre-norm)", "depth", "dropout"),
    *("GPT-2's initialisation", "GELU", "tied head", "warm-up and cosine", "rotary positions", "RMSNorm", "QK-norm"),
    *("squared ReLU", "zero-initialised projections", "no biases", "logit cap", "Muon"),
)


@dataclass(frozen=True)
class Rung:
    name: str
    title: str
    parent: str | None = None
    side: bool = False


def record(rung, seed, loss, **more):
    """A line of ladder.jsonl."""
    usual = {
        "bits_per_byte": None if loss is None else loss / math.log(2),
        "parameters": 12345,
        "train_seconds": 11.2,
        "tokens_per_second": 54857.0,
        "seconds": 13.0,
        "learning_rate": 0.003,
        "sample": None,
        "budget": TOKENS,
        "version": "0.1.0",
        "machine": MACHINE,
    }
    return {"rung": rung, "seed": seed, "val_loss": loss, **usual, **more}


def counted(rung, seed, loss):
    """Of a rung that is not trained."""
    nothing = {"parameters": 0, "train_seconds": 0.0, "tokens_per_second": 0.0, "learning_rate": None}
    return record(rung, seed, loss, **nothing)


RUNGS = [
    Rung("counting", "by counting"),
    Rung("bigram", "neural bigram", "counting"),
    Rung("head", "one attention head", "bigram"),
    Rung("swap", "no scale", "head", side=True),
]
RECORDS = [
    *(counted("counting", seed, 2.5) for seed in range(3)),
    *(record("bigram", seed, loss) for seed, loss in enumerate((2.6, 2.4, 2.8))),
    *(record("head", seed, loss) for seed, loss in enumerate((2.1, 2.3, 2.2))),
    *(record("swap", seed, loss) for seed, loss in enumerate((2.35, 2.33, 2.4))),
]
RUNS = [(rung.name, seed) for seed in range(3) for rung in RUNGS]


def about(records=RECORDS, data="my_book.txt"):
    return About.of(records, data, "handmade ladder my_book.txt")


def rows_of(records=RECORDS, rungs=RUNGS):
    return {row.name: row for row in summarise(rungs, records)}


def whole_ladder(seeds=(0, 1, 2)):
    """29 rungs, each with the one before it as its parent, and two side rungs."""
    dice = random.Random(0)
    rungs = [Rung(f"r{i}", title, f"r{i - 1}" if i else None) for i, title in enumerate(TITLES)]
    rungs += [Rung("s0", "a question that is asked as well", "r20", True), Rung("s1", "SwiGLU", "r25", True)]
    losses = [4.174, 3.311, 2.452, 1.669, *(2.5 - 0.03 * i for i in range(27))]
    records = [
        counted(rung.name, seed, loss)
        if i < 4
        else record(rung.name, seed, loss + dice.gauss(0, 0.02), parameters=4225 * i**2)
        for seed in seeds
        for i, (rung, loss) in enumerate(zip(rungs, losses, strict=True))
    ]
    return rungs, records


# --- the numbers ------------------------------------------------------------------------------------------------


def test_mean_spread_and_gain_worked_by_hand():
    rows = rows_of()
    head = rows["head"]
    assert head.losses == (2.1, 2.3, 2.2)
    assert head.mean == pytest.approx(2.2)
    assert (head.low, head.high) == (2.1, 2.3)
    assert head.deviation == pytest.approx(0.1)  # sqrt((0.01 + 0.01 + 0) / 2)
    assert head.half_spread == pytest.approx(0.1)
    assert head.parent_mean == pytest.approx(2.6)
    assert head.gain == pytest.approx(0.4)
    assert head.bits_per_byte == pytest.approx(2.2 / math.log(2))
    assert rows["bigram"].gain == pytest.approx(-0.1)
    assert (rows["counting"].deviation, rows["counting"].half_spread) == (0, 0)
    assert (rows["counting"].gain, rows["counting"].parent_mean) == (None, None)


def test_against_numpy():
    dice = random.Random(3)
    losses = {rung.name: [dice.uniform(1.5, 3) for _ in range(5)] for rung in RUNGS}
    figures = {rung.name: [dice.uniform(10, 1e5) for _ in range(5)] for rung in RUNGS}
    records = [
        record(
            name, seed, losses[name][seed], tokens_per_second=figures[name][seed], train_seconds=figures[name][-seed]
        )
        for name in losses
        for seed in (3, 1, 4, 0, 2)  # as they came
    ]
    for name, row in rows_of(records).items():
        values = np.array(losses[name])
        assert row.seeds == (0, 1, 2, 3, 4)
        assert row.losses == tuple(losses[name])
        assert row.mean == pytest.approx(values.mean(), rel=1e-12)
        assert row.deviation == pytest.approx(values.std(ddof=1), rel=1e-12)
        assert (row.low, row.high) == (values.min(), values.max())
        assert row.bits_per_byte == pytest.approx(np.mean(values / np.log(2)), rel=1e-12)
        assert row.tokens_per_second == np.median(figures[name])
        assert row.train_seconds == np.median(figures[name])
        if row.parent:
            assert row.gain == pytest.approx(np.mean(losses[row.parent]) - values.mean(), rel=1e-9)


def test_order_numbers_and_parents():
    shuffled = [RUNGS[3], *RUNGS[:3]]  # a side rung in between is none of the climbed
    rows = summarise(shuffled, RECORDS)
    assert [row.name for row in rows] == ["counting", "bigram", "head", "swap"]
    assert [row.label for row in rows] == ["1", "2", "3", "S1"]
    assert [row.parent_label for row in rows] == [None, "1", "2", "3"]
    side = rows[-1]
    assert side.side
    assert side.gain == pytest.approx(2.2 - 2.36)


def test_a_parent_that_is_not_climbed_still_serves():
    (row,) = summarise([RUNGS[2]], RECORDS)
    assert (row.label, row.parent, row.parent_label) == ("1", "bigram", None)
    assert row.gain == pytest.approx(0.4)


def test_a_rung_that_waits():
    row = rows_of([record("bigram", 0, 2.6)])["head"]
    assert (row.seeds, row.losses, row.mean, row.low, row.deviation, row.gain) == ((), (), None, None, None, None)
    assert (row.verdict, row.parameters, row.learning_rate) == ("", None, None)
    assert row.parent_mean == 2.6


def test_the_later_record_of_a_seed_counts():
    row = rows_of([record("bigram", 0, 9.0), record("bigram", 1, 2.4), record("bigram", 0, 2.6)])["bigram"]
    assert row.losses == (2.6, 2.4)


@pytest.mark.parametrize(
    ("losses", "before", "expected"),
    [
        ([2.0, 2.1, 2.2], [2.3, 2.4, 2.5], BETTER),
        ([2.3, 2.4, 2.5], [2.0, 2.1, 2.2], WORSE),
        ([2.0, 2.1, 2.31], [2.3, 2.4, 2.5], OVERLAP),
        ([2.3, 2.5], [2.3, 2.3], OVERLAP),  # they touch
        ([2.3, 2.3], [2.0, 2.3], OVERLAP),
        ([2.35, 2.36], [2.3, 2.5], OVERLAP),  # one within the other
        ([2.5, 2.5, 2.5], [4.2, 4.2, 4.2], BETTER),  # both by counting
        ([2.5, 2.5], [2.5, 2.5], OVERLAP),
        ([2.4, 2.6], [2.5, 2.5, 2.5], OVERLAP),  # around the counting line
        ([2.51, 2.6], [2.5, 2.5, 2.5], WORSE),
        ([2.0], [2.3, 2.4], ONE_SEED),
        ([2.0, 2.1], [2.3], ONE_SEED),
        ([], [2.3, 2.4], ""),
        ([2.0, 2.1], [], ""),
        ([math.inf, math.inf], [2.3, 2.4], WORSE),
        ([2.0, math.inf], [2.3, 2.4], OVERLAP),
    ],
)
def test_verdicts(losses, before, expected):
    assert verdict(losses, before) == expected


def test_verdicts_of_the_rows():
    assert {name: row.verdict for name, row in rows_of().items()} == {
        "counting": "",
        "bigram": OVERLAP,
        "head": BETTER,
        "swap": WORSE,
    }


@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
def test_a_run_that_diverged(loss):
    records = [record("bigram", seed, 2.5) for seed in (0, 1)] + [record("head", seed, loss) for seed in (0, 1)]
    row = rows_of(records)["head"]
    assert (row.mean, row.verdict, row.deviation) == (math.inf, WORSE, None)
    shown = sight(Board(RUNGS, RUNS, about(), records), 80)
    assert re.search(r"one attention head +diverged", shown)
    assert "| diverged" in markdown([row], about(records))
    assert "inf" not in shown + markdown([row], about(records)).replace("info", "")


# --- where they come from -----------------------------------------------------------------------------------------


def test_what_a_caption_says():
    found = about()
    assert found.budget == "614,400 training tokens a run"
    assert found.seeds == (0, 1, 2)
    assert found.seeds_said == "3 seeds (0, 1, 2)"
    assert About.of(RECORDS[:1], "x").seeds_said == "1 seed (0)"
    assert found.machine == "Abacus 2, 2 cores"
    assert found.versions == "handmade 0.1.0, torch 2.13.0, Python 3.12.3"
    assert budget({"equal": "time", "seconds": 20.0}) == "20 s of training a run"
    empty = About.of([], "x")
    assert (empty.budget, empty.seeds, empty.seeds_said, empty.machine) == ("", (), "", "")


def test_two_machines_are_both_named():
    other = {**MACHINE, "processor": "Loom", "gpu": "Jacquard"}
    assert about([*RECORDS, record("head", 3, 2.0, machine=other)]).machine == (
        "Abacus 2, 2 cores; Loom, 2 cores, Jacquard"
    )


def test_two_budgets_do_not_mix():
    with pytest.raises(RunError, match=r"614,400 training tokens a run and 20 s of training a run"):
        about([*RECORDS, record("head", 3, 2.0, budget={"equal": "time", "seconds": 20.0})])


# --- the table in the terminal --------------------------------------------------------------------------------------


def sight(renderable, width, height=60, encoding="utf-8", **more):
    """What stands on a terminal, without colours."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, height=height, force_terminal=True, no_color=True, legacy_windows=False)
    console.print(renderable, **more)
    file.flush()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.buffer.getvalue().decode(encoding))


def test_a_row_of_the_table():
    shown = sight(table(list(rows_of().values()), 120), 120)
    (line,) = [line for line in shown.splitlines() if "one attention head" in line]
    assert re.split(r"  +", line.strip()) == [
        "3", "one attention head", "2.200 ± 0.100", "+0.400", "2", "▲ better", "12.3 k", "55 k", "11.2",
    ]  # fmt: skip
    (line,) = [line for line in shown.splitlines() if "no scale" in line]
    assert re.split(r"  +", line.strip()) == [
        "S1", "no scale", "2.360 ± 0.035", "-0.160", "3", "▼ worse", "12.3 k", "55 k", "11.2",
    ]  # fmt: skip
    assert shown.splitlines()[4].strip() == "beside the ladder"
    assert "≈ not distinguishable" in shown


def test_a_rung_by_counting_has_no_rate_and_no_time():
    shown = sight(table([rows_of()["counting"]], 120), 120)
    assert re.split(r"  +", shown.splitlines()[1].strip()) == ["1", "by counting", "2.500 ± 0.000", "0"]


def test_one_seed_has_no_spread_and_no_verdict():
    records = [entry for entry in RECORDS if entry["seed"] == 0]
    shown = sight(table(list(rows_of(records).values()), 80), 80)
    (line,) = [line for line in shown.splitlines() if "attention" in line]
    assert re.match(r" *3 +one attention head +2\.100 +\+0\.500 +· 1 seed ", line)


@pytest.mark.parametrize("width", [9, 12, 16, 20, 25, 31, 40, 47, 55, 60, 68, 72, 79, 80, 81, 100, 119, 120, 200])
def test_no_figure_is_ever_cut(width):
    rungs, records = whole_ladder()
    rows = summarise(rungs, records)
    lines = sight(table(rows, width, {"r3": "0:12 …"}), width).splitlines()
    assert len(lines) == 1 + len(rows) + 1  # none is broken in two
    assert max(map(len, lines)) <= width
    body = [line for line in lines[1:] if "beside" not in line and re.search(r"\d", line)]
    assert len(body) == len(rows)
    for row, line in zip(rows, body, strict=True):
        assert re.match(rf" *▸?{row.label} ", line), line
        assert f"{row.mean:.3f}" in line
        figures = line.partition(f"{row.mean:.3f}")[2]
        assert "…" not in figures
        if "±" in line:
            assert re.search(rf"± ?{row.half_spread:.3f}(?!\d)", line)
        if re.search(r"[+-]\d\.", figures):
            assert f"{row.gain:+.3f}" in figures


def test_what_80_and_120_columns_hold():
    rungs, records = whole_ladder()
    rows = summarise(rungs, records)[:29]
    narrow, wide = (sight(table(rows, width), width) for width in (80, 120))
    assert narrow.splitlines()[0].split() == ["#", "rung", "loss", "gain", "verdict", "params", "tok/s", "s"]
    assert wide.splitlines()[0].split() == ["#", "rung", "loss", "gain", "over", "verdict", "params", "tok/s", "s"]
    for title in TITLES:
        assert title in narrow
        assert title in wide
    assert "≈ unclear" in narrow
    assert "≈ not distinguishable" in wide


@pytest.mark.parametrize("width", [40, 80, 120])
def test_columns_stay_where_they_are_as_the_table_fills(width):
    rungs, records = whole_ladder()
    heads = {sight(table(summarise(rungs, records[:n]), width), width).splitlines()[0] for n in (0, 1, 20, 50, 93)}
    assert len(heads) == 1


def test_layouts_grow_barer():
    sizes = [(-len(layout.columns), layout.gap) for layout in LAYOUTS]
    assert sizes[0] == min(sizes)
    assert [size[0] for size in sizes] == sorted(size[0] for size in sizes)


def test_a_terminal_that_has_only_ascii():
    rungs, records = whole_ladder()
    board = Board(rungs, [(rung.name, 0) for rung in rungs], about(records, "größe.txt"), records)
    board.begin("r5", 0)
    for width in (30, 80, 120):
        sight(board, width, encoding="ascii").encode("ascii")


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (9999, "9,999"), (9999.6, "10.0 k"), (54857, "54.9 k"), (99_960, "100 k"), (842_300, "842 k"),
     (999_600, "1.00 M"), (4_751_000, "4.75 M"), (123e6, "123 M"), (None, "")],
)  # fmt: skip
def test_counts(value, said):
    assert count_said(value) == said


@pytest.mark.parametrize(
    ("value", "said"), [(0.04, "0.0"), (11.24, "11.2"), (99.96, "100"), (600, "10:00"), (None, "")]
)
def test_seconds(value, said):
    assert seconds_said(value) == said


# --- while it is climbed ------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    time = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(boards.time, "monotonic", lambda: time.now)
    return time


def test_a_log_has_a_line_for_every_run(clock):
    console = Console(file=io.StringIO(), width=80)
    with Board(RUNGS, RUNS, about(), console=console) as board:
        for name, seed in RUNS:
            board.begin(name, seed)
            board.end(next(entry for entry in RECORDS if (entry["rung"], entry["seed"]) == (name, seed)))
    text = console.file.getvalue()
    assert "\x1b" not in text
    lines = text.splitlines()
    assert len(lines) == len(RUNS)
    assert lines[0] == " 1/12    1 by counting         seed 0  loss 2.500"
    assert lines[2] == (
        " 3/12    3 one attention head  seed 0  loss 2.100   55 k tokens/s  11.2 s  about 1:31 left"
    )  # 7 trained runs are left, of 13 s each
    assert lines[10] == (
        "11/12    3 one attention head  seed 2  loss 2.200   55 k tokens/s  11.2 s  mean 2.200 ± 0.100  +0.400 over 2"
        "  better  about 0:13 left"
    )
    assert lines[11].endswith("mean 2.360 ± 0.035  -0.160 over 3  worse")


def test_a_terminal_keeps_the_whole_table(clock):
    rungs, records = whole_ladder()
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True, legacy_windows=False)
    runs = [(entry["rung"], entry["seed"]) for entry in records]
    with Board(rungs, runs, about(records), records[:40], console=console) as board:
        board.begin(*runs[40])
        low = console.render_lines(board)
        assert len(low) <= 24
        for entry in records[40:]:
            board.end(entry)
        console.file.seek(0)
        console.file.truncate()
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    for title in (*TITLES, "beside the ladder", "SwiGLU"):
        assert title in last
    assert "93 of 93 runs  in 0:00" in last
    assert "more rungs" not in last


def test_a_low_terminal_shows_where_something_happens():
    rungs, records = whole_ladder()
    rows = summarise(rungs, records[:70])
    seen = window(rows, {"r15": "0:12"}, 12)
    assert len(seen) == 12
    assert "r15" in [row.name for row in seen]
    assert seen[0].name == "r7"  # two thirds are before it
    assert window(rows, {}, 40) is rows
    assert [row.name for row in window(rows, {"r0": ""}, 3)] == ["r0", "r1", "r2"]
    assert [row.name for row in window(rows, {"s1": ""}, 3)] == ["r28", "s0", "s1"]
    assert len(window(rows, {}, -5)) == 1
    started = summarise(rungs, records[:10])
    assert "r9" in [row.name for row in window(started, {}, 6)]  # nothing runs: the last that is done


@pytest.mark.parametrize("size", [(20, 5), (80, 8), (8, 24), (200, 100)])
def test_any_terminal(size):
    rungs, records = whole_ladder()
    console = Console(file=io.StringIO(), width=size[0], height=size[1], force_terminal=True, legacy_windows=False)
    runs = [(entry["rung"], entry["seed"]) for entry in records]
    with Board(rungs, runs, about(records), console=console) as board:
        board.begin(*runs[0])
        for entry in records[:40]:
            board.end(entry)
        board.begin(*runs[40])
        assert len(console.render_lines(board)) <= max(size[1], 6)


def test_what_runs_what_waits_and_what_is_done(clock):
    done = [*(entry for entry in RECORDS if entry["seed"] < 2 and entry["rung"] == "bigram")]
    board = Board(RUNGS, RUNS, about(done), done, workers=2)
    board.begin("head", 0)
    board.begin("bigram", 2)
    clock.now += 75
    shown = sight(board, 120)
    assert "2 of 12 runs  2 running" in shown
    assert re.search(r"▸3  one attention head +1:15 …", shown)
    assert re.search(r"▸2  neural bigram +2\.500 ± 0\.100 .* 2 of 3 seeds ", shown)
    assert re.search(r"\n +1  by counting *\n", shown)
    board.drop("head", 0)
    assert "1 running" in sight(board, 120)
    assert "1:15" not in sight(board, 120)


def test_only_what_is_to_be_climbed_is_shown():
    board = Board(RUNGS, [("head", 0)], about(), RECORDS)
    shown = sight(board, 80)
    assert "neural bigram" not in shown
    assert re.search(r" 3 +one attention head .*\+0\.400", shown)  # with its own number, and its parent's loss
    assert "1 of 1 runs" in shown


def test_nothing_is_shown_where_nothing_shall_be():
    console = Console(file=io.StringIO())
    with Board(RUNGS, RUNS, about(), console=console, show=False) as board:
        board.end(RECORDS[0])
    assert console.file.getvalue() == ""
    assert board.done == 1


def test_seconds_left_worked_by_hand(clock):
    rungs = [Rung("a", "a"), Rung("b", "b", "a"), Rung("c", "c", "b"), Rung("lone", "lone")]
    runs = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]

    def left(runs, records, workers=1, running=(), **more):
        board = Board(rungs, runs, about(RECORDS), records, workers=workers, **more)
        for run in running:
            board.begin(*run)
        clock.now += 4
        return board.seconds_left()

    ten = record("a", 0, 2.0, seconds=10.0)
    assert left(runs, []) is None
    assert left(runs, [ten]) == pytest.approx(30)  # a once more, b twice like its parent
    assert left(runs, [ten], workers=2) == pytest.approx(15)
    assert left(runs, [ten], workers=2, running=[("a", 1)]) == pytest.approx((6 + 10 + 10) / 2)
    assert left(runs, [ten, record("b", 0, 2.0, seconds=30.0)]) == pytest.approx(40)
    assert left(runs, [ten], expected={"b": 20.0}) == pytest.approx(50)
    assert left(runs, [ten], expected={"a": 99.0}) == pytest.approx(30)  # what was measured counts
    assert left([("c", 0)], [ten]) == pytest.approx(10)  # from two generations before
    assert left([("lone", 0)], [ten, record("b", 0, 2.0, seconds=30.0)]) == pytest.approx(20)  # no kin: the mean
    assert left([("b", 0)], [ten], workers=8) == pytest.approx(10)  # one run does not go faster on eight
    assert left([("a", 0), ("c", 0)], [counted("a", 0, 2.0)]) is None  # counting tells nothing of training
    assert left([("a", 0), ("a", 1)], [counted("a", 0, 2.0), record("b", 0, 2.0)]) == pytest.approx(0)


def test_a_heading_breaks_between_its_parts():
    assert flowed(["aaaa", "bbb", "cc"], 9) == ["aaaa  bbb", "cc"]
    assert flowed(["aaaa", "bbb"], 2) == ["aaaa", "bbb"]


# --- as Markdown ------------------------------------------------------------------------------------------------------


def tables_of(text):
    """The tables of a Markdown text as lists of cells, read by a Markdown parser."""
    found, cells = [], None
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and cells:
            shown = (child.content for child in token.children if child.type in ("text", "text_special"))
            found[-1][-1].append("".join(shown))
        cells = token.type in ("td_open", "th_open")
    return found


def test_markdown():
    text = markdown(summarise(RUNGS, RECORDS), about())
    climbed, side = tables_of(text)
    trained = ["12,345", "54,857", "11.2", "0.003"]
    assert climbed[0] == side[0] == list(HEADER)
    assert climbed[1:] == [
        ["1", "by counting", "2.500", f"{2.5 / math.log(2):.3f}", "", "", "0", "", "", ""],
        ["2", "neural bigram", "2.600 (2.400 to 2.800)", "3.751", "-0.100 over 1", OVERLAP, *trained],
        ["3", "one attention head", "2.200 (2.100 to 2.300)", "3.174", "+0.400 over 2", BETTER, *trained],
    ]  # fmt: skip
    assert side[1][:6] == ["S1", "no scale", "2.360 (2.330 to 2.400)", "3.405", "-0.160 over 3", WORSE]
    assert text.startswith("my\\_book.txt, 614,400 training tokens a run, 3 seeds (0, 1, 2).\nAbacus 2, 2 cores")
    assert "Again: `handmade ladder my_book.txt`." in text
    assert "*Not distinguishable*: the losses of the rung and of its parent" in text


def test_markdown_of_a_part_says_so():
    text = markdown(summarise(RUNGS, RECORDS[:5]), about())
    assert [line[:3] for line in tables_of(text)[0][1:]] == [
        ["1", "by counting", "2.500"],
        ["2", "neural bigram", "2.500 (2.400 to 2.600, 2 of 3 seeds)"],
    ]
    assert "2 of 4 rungs have no result yet." in text


def test_markdown_of_any_title():
    titles = ["a | b", "1/√d * 2 * `x`", "<b>_bold_</b>", "back\\slash \\| &amp;", "two\nlines"]
    rungs = [Rung(str(i), title) for i, title in enumerate(titles)]
    (found,) = tables_of(markdown(summarise(rungs, [record(rung.name, 0, 2.0) for rung in rungs]), about()))
    assert {len(line) for line in found} == {len(HEADER)}
    assert [line[1] for line in found[1:]] == [*titles[:4], "two lines"]


class Texts(HTMLParser):
    """What is shown in each <pre>."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.found, self.open, self.tags = [], False, []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "pre":
            self.open = True
            self.found.append("")

    def handle_endtag(self, tag):
        self.open = self.open and tag != "pre"

    def handle_data(self, data):
        if self.open:
            self.found[-1] += data


SAMPLES = {
    "counting": "ROMEO:\n\n\nI <b>am</b> not | *talk'd* & so\n   \n</pre>  indented\n\n",
    "bigram": "\n\nROMEO: \\`x` &amp;",
    "head": "ROMEO:\n" + "a word and " * 12 + "\n" + "x" * 100,
    "swap": "a\tb\x00\x1b[31m字" + "漢字" * 30,
}


def test_samples_are_shown_as_they_are():
    records = [
        record(name, seed, 2.0 + seed, sample=f"{seed}{text}") for name, text in SAMPLES.items() for seed in (1, 2)
    ]
    text = samples(RUNGS, records)
    blocks = [token for token in MarkdownIt("commonmark").enable("table").parse(text) if token.level == 0]
    assert [block.type for block in blocks].count("html_block") == 1  # no empty line ends it before its end
    assert blocks[-1].content.rstrip().endswith("</table>")
    page = Texts()
    page.feed(blocks[-1].content)
    assert page.tags.count("tr") == 2
    assert page.tags.count("td") == page.tags.count("pre") == 4
    shown = [found.removeprefix("\n") for found in page.found]  # a browser does not show the first
    assert shown[0] == "1ROMEO:\n\n\nI <b>am</b> not | *talk'd* & so\n\n</pre>  indented"
    assert shown[1] == "1\n\nROMEO: \\`x` &amp;"
    assert shown[2].replace("\n", "").replace(" ", "") == "1ROMEO:" + "awordand" * 12 + "x" * 100
    assert max(map(len, shown[2].split("\n"))) <= 46
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", shown[3])
    assert max(map(len, shown[3].split("\n"))) <= 46
    assert "seed 1" in text
    assert re.findall(r"([S\d]+) <b>(.*?)</b>, loss (\d\.\d{3})", text) == [
        ("1", "by counting", "3.000"), ("2", "neural bigram", "3.000"), ("3", "one attention head", "3.000"),
        ("S1", "no scale", "3.000"),
    ]  # fmt: skip


def test_no_samples():
    assert samples(RUNGS, RECORDS) == ""


# --- the picture ------------------------------------------------------------------------------------------------------


def artists(axes):
    return {line.get_label(): line for line in axes.lines}


def words(figure):
    return [text.get_text() for text in figure.texts]


def test_a_picture_is_written(tmp_path):
    from PIL import Image

    path = picture.draw(summarise(RUNGS, RECORDS), tmp_path / "ladder.png", about(), "counting")
    with Image.open(path) as image:
        image.load()
        assert image.size[0] == 1800  # shown 900 wide
    assert [entry.name for entry in tmp_path.iterdir()] == ["ladder.png"]
    assert "matplotlib.pyplot" not in sys.modules


def test_what_is_drawn_is_what_was_measured():
    figure = picture.picture(summarise(RUNGS, RECORDS), about(), "counting")
    (axes,) = figure.axes
    drawn = artists(axes)
    assert drawn["mean head"].get_xydata().tolist() == [[pytest.approx(2.2), 2]]
    assert sorted(drawn["seeds head"].get_xdata()) == [2.1, 2.2, 2.3]
    assert list(drawn["gain head"].get_xdata()) == pytest.approx([2.6, 2.2])  # from its parent's loss to its own
    assert drawn["gain head"].get_color() == picture.COLOURS[BETTER]
    assert drawn["gain bigram"].get_color() == picture.COLOURS[OVERLAP]
    assert "gain counting" not in drawn
    assert set(drawn["to beat"].get_xdata()) == {2.5}
    assert [text.get_text() for text in axes.texts] == ["by counting 2.500"]
    bars = {bar.get_label(): bar for bar in axes.containers}
    assert bars["spread head"].lines[2][0].get_segments()[0].tolist() == [[2.1, 2], [2.3, 2]]
    assert axes.get_ylim() == (2.5, -0.5)  # the first on top
    said = words(figure)
    assert [word for word in said if re.fullmatch(r"[+−]?\d\.\d{3}", word)] == [
        "2.500", "2.600", "−0.100", "2.200", "+0.400",
    ]  # fmt: skip
    assert [word for word in said if word in ("▲", "▼", "≈")] == ["≈", "▲"]
    assert "my_book.txt  ·  614,400 training tokens a run  ·  3 seeds" in said
    assert "no scale" not in said  # side rungs make a picture of their own
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "better than its parent", "not distinguishable", "mean, and range of the seeds",
    ]  # fmt: skip


def test_side_rungs_alone():
    figure = picture.picture([row for row in summarise(RUNGS, RECORDS) if row.side], about(), "counting")
    drawn = artists(figure.axes[0])
    assert list(drawn["gain swap"].get_xdata()) == pytest.approx([2.2, 2.36])
    assert drawn["gain swap"].get_color() == picture.COLOURS[WORSE]
    low, high = figure.axes[0].get_xlim()
    assert low < 2.2 < 2.4 < high  # the parent, which is not drawn, is within


def test_what_is_far_off_has_an_axis_of_its_own():
    rungs, records = whole_ladder()
    rows = summarise(rungs, records)[:29]
    figure = picture.picture(rows, about(records), "r3")
    main, far = figure.axes
    assert main.get_xlim()[0] < 1.669 < 2.452 < main.get_xlim()[1] < 3
    assert main.get_xlim()[1] < far.get_xlim()[0] < 3.311 < 4.174 < far.get_xlim()[1]
    for row in rows:  # each rung, with its spread, is within one of the two
        spans = [axes.get_xlim() for axes in (main, far)]
        assert sum(low <= row.low and row.high <= high for low, high in spans) == 1, row.title
    assert "to beat" in artists(main)
    assert "to beat" not in artists(far)


@pytest.mark.parametrize("climbed", [3, 5])
def test_a_few_rungs_share_an_axis(climbed):
    rungs, records = whole_ladder()
    known = {rung.name for rung in rungs[:climbed]}
    figure = picture.picture(summarise(rungs, [r for r in records if r["rung"] in known]), about(records), "r3")
    (axes,) = figure.axes
    assert axes.get_xlim()[1] > 4.174
    assert any(f"{climbed} of 29 rungs so far" in word for word in words(figure))
    assert figure.get_figheight() < 3.2


def test_words_do_not_run_into_the_axes():
    rungs, records = whole_ladder()
    long = Rung("long", "an idea of my own, whose title is longer than anybody reads", "r5")
    records = [*records, *(record("long", seed, None) for seed in range(3))]
    figure = picture.picture(summarise([*rungs[:29], long], records), about(records, "word " * 30), "r3")
    figure.canvas.draw()
    boxes = {text.get_text(): text.get_window_extent() for text in figure.texts if text.get_text()}
    left = figure.axes[0].get_window_extent().x0
    right = figure.axes[-1].get_window_extent().x1
    for text, box in boxes.items():
        assert box.x0 >= 0, text
        assert box.x1 <= figure.bbox.width, text
    for title in (*TITLES, picture.shortened(long.title)):
        assert boxes[title].x1 < left, title
    assert boxes["diverged"].x0 > right
    legend = figure.legends[0].get_window_extent()
    assert legend.x1 <= figure.bbox.width
    assert legend.y1 < next(box for text, box in boxes.items() if text.startswith(picture.UNIT)).y0


def test_one_seed_is_drawn_without_a_verdict():
    records = [entry for entry in RECORDS if entry["seed"] == 0]
    figure = picture.picture(summarise(RUNGS, records), about(records))
    assert artists(figure.axes[0])["gain head"].get_color() == picture.COLOURS[ONE_SEED]
    assert not figure.axes[0].containers
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["one seed: no verdict", "loss of the one seed"]


def test_nothing_to_draw(tmp_path):
    with pytest.raises(DataError, match="No rung has a result yet"):
        picture.draw(summarise(RUNGS, []), tmp_path / "ladder.png", about([]))
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ResourceError, match=r"needs the package matplotlib\. Install it: pip install matplotlib$"):
        picture.draw(summarise(RUNGS, RECORDS), tmp_path / "ladder.png", about())
    assert list(tmp_path.iterdir()) == []


def test_a_title_in_any_script(tmp_path, recwarn):
    rungs = [Rung("0", "注意 $x_1$ ∑"), *RUNGS[1:]]
    picture.draw(summarise(rungs, [record("0", 0, 2.0), *RECORDS]), tmp_path / "ladder.png", about())
    assert not recwarn.list


def test_no_torch_and_no_matplotlib_until_they_are_needed():
    code = (
        "import sys; import handmade.ladder.board, handmade.ladder.picture;"
        "print({'torch', 'matplotlib'} & {name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
