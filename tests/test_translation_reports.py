"""What a person sees of translations: by length, best and worst, the lines while training, the table."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest
from markdown_it import MarkdownIt
from rich.cells import cell_len

from handmade.tasks.base import in_columns
from handmade.tasks.translation import reports

sacrebleu = pytest.importorskip("sacrebleu")

WORDS = ["the", "cat", "a", "dog", "house", "runs", "sees", "over", "under", "big", "small", "red", "old", "never"]


def sentences(count, seed=0):
    """Sources, references, and translations of which some are right and some are wrong in several ways."""
    random_ = random.Random(seed)
    sources, references, hypotheses = [], [], []
    for number in range(count):
        words = [random_.choice(WORDS) for _ in range(random_.randint(2, 12))]
        sources.append(f"文{number}。")
        references.append(f"{' '.join(words)} {number} .")
        wrong = [random_.choice(WORDS) if random_.random() < 0.3 else word for word in words]
        hypotheses.append(f"{' '.join(wrong)} {number} .")
    return sources, references, hypotheses


# --- by length ---------------------------------------------------------------------------------------------------


def test_by_length_is_bleu_of_each_group_and_every_sentence_is_in_one():
    _, references, hypotheses = sentences(400)
    rows = reports.by_length(hypotheses, references, "en")
    assert 4 <= len(rows) <= 6
    assert sum(row["sentences"] for row in rows) == 400
    assert all(row["sentences"] >= 50 for row in rows)
    assert all(row["unit"] == "words" for row in rows)
    assert all(left["most"] < right["least"] for left, right in pairwise(rows))
    for row in rows:
        chosen = [i for i, text in enumerate(references) if row["least"] <= len(text.split()) <= row["most"]]
        assert len(chosen) == row["sentences"]
        h, r = [hypotheses[i] for i in chosen], [references[i] for i in chosen]
        assert row["bleu"] == sacrebleu.corpus_bleu(h, [r], force=True).score
        assert row["chrf"] == sacrebleu.corpus_chrf(h, [r]).score
    # The groups are those of the references, whatever was written.
    again = reports.by_length([""] * 400, references, "en")
    assert [(row["least"], row["most"]) for row in again] == [(row["least"], row["most"]) for row in rows]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([5] * 10, [(5, 5)]),
        ([1] * 49 + [9], [(1, 9)]),
        ([1] * 50 + [2] * 50, [(1, 1), (2, 2)]),
        ([1] * 50 + [2] * 49, [(1, 2)]),  # 49 are too few to stand alone
        ([2] * 300 + [1] * 10 + [30] * 55, [(1, 2), (30, 30)]),
        ([], []),
    ],
)
def test_groups_of_lengths(lengths, expected):
    assert reports.buckets(lengths) == expected


def test_japanese_is_measured_in_characters():
    references = ["猫が好き。"] * 50 + ["彼はとても遠い町に住んでいる。"] * 50
    rows = reports.by_length(references, references, "ja")
    assert [(row["least"], row["most"], row["unit"]) for row in rows] == [(5, 5, "characters"), (15, 15, "characters")]
    assert reports.by_length(references, references, "en")[0]["most"] == 1


# --- best and worst ----------------------------------------------------------------------------------------------


def test_best_and_worst():
    sources, references, hypotheses = sentences(300)
    hypotheses[7] = references[7]
    hypotheses[9] = "zzzz qqqq"
    found = reports.extremes(sources, references, hypotheses, 4)
    assert [len(found[side]) for side in ("best", "worst")] == [4, 4]
    scores = {s: sacrebleu.sentence_chrf(h, [r]).score for s, h, r in zip(sources, hypotheses, references, strict=True)}
    for row in found["best"] + found["worst"]:
        place = sources.index(row["source"])
        assert (row["hypothesis"], row["reference"]) == (hypotheses[place], references[place])
        assert row["chrf"] == scores[row["source"]]
    assert [row["chrf"] for row in found["best"]] == sorted(scores.values(), reverse=True)[:4]
    assert found["worst"][0]["source"] == sources[9]
    best, worst = ([row["source"] for row in found[side]] for side in ("best", "worst"))
    assert not set(best) & set(worst)
    # Of the perfect ones the longest comes first.
    perfect = [text for text, h in zip(references, hypotheses, strict=True) if text == h]
    assert len(perfect) > 2
    assert found["best"][0]["reference"] == max(perfect, key=len)


def test_the_worst_are_of_several_kinds_and_none_twice():
    sources, references, hypotheses = sentences(200)
    for place in range(12):
        hypotheses[place] = ""  # more than are shown: they alone would fill the list
        hypotheses[20 + place] = "no no no no no no no"  # the same for all
    hypotheses[50] = "qq"
    worst = reports.extremes(sources, references, hypotheses, 6)["worst"]
    kinds = [row["kind"] for row in worst]
    assert {"nothing", "repeats itself", "too short"} <= set(kinds)
    assert kinds.count("nothing") < 6
    written = [row["hypothesis"] for row in worst if row["hypothesis"]]
    assert len(set(written)) == len(written)
    # Sources that differ in case alone are one.
    pairs = reports.extremes(["Ja!", "ja!", "Nein."], ["Yes.", "Sure!", "No way."], ["Yes.", "Sure!", "x"])
    assert [row["source"] for row in pairs["best"]] == ["ja!"]


def test_nothing_right_is_among_the_worst_and_nothing_wrong_among_the_best():
    sources, references, _ = sentences(60)
    assert reports.extremes(sources, references, references)["worst"] == []
    none = reports.extremes(sources, references, [""] * 60, 5)
    assert none["best"] == []
    assert len(none["worst"]) == 5
    one = reports.extremes(["猫"], ["cat"], ["cat"])
    assert [len(one["best"]), len(one["worst"])] == [1, 0]


@pytest.mark.parametrize(
    ("hypothesis", "reference", "kind"),
    [
        ("I  like cats.", "I like cats.", "right"),
        (" ", "I like cats.", "nothing"),
        ("He had had enough.", "He had had enough of it.", "other words"),  # twice is no loop
        ("He said no, no, no and no.", "He said no.", "too long"),
        ("I do not do not do not do.", "I do not like it all.", "repeats itself"),
        ("no no no!", "no no no no!", "other words"),  # the reference does it too
        ("私は私は私は私は", "私は猫が好きです。", "repeats itself"),
        ("猫", "私は猫が好きです。", "too short"),
    ],
)
def test_kinds_of_mistakes(hypothesis, reference, kind):
    assert reports.kind(hypothesis, reference) == kind


# --- for a person ------------------------------------------------------------------------------------------------


def test_what_is_told_fits_a_terminal_and_says_the_figures():
    sources, references, hypotheses = sentences(120)
    sources = [text + "私は猫がとても好きなのです、" * 6 for text in sources]
    hypotheses[3], hypotheses[4] = "", "no\x1b[31m\tno\nno"
    decoded = {"greedy": hypotheses, "beam 4": references}
    figures = reports.examined(sources, references, decoded, "en")
    figures = json.loads(json.dumps(figures, allow_nan=False))
    assert figures["decodings"]["beam 4"]["bleu"] == pytest.approx(100)
    assert figures["decodings"]["greedy"]["bleu"] == sacrebleu.corpus_bleu(hypotheses, [references], force=True).score
    assert figures["worst"] == []  # of the last decoding, which is perfect
    figures["token_accuracy"], figures["val_loss"], figures["precision"] = 0.57, 2.5, "bfloat16"
    rows = reports.told(figures)
    told = dict(rows)
    assert told["greedy"].startswith(f"BLEU {figures['decodings']['greedy']['bleu']:5.2f}   chrF ")
    assert told["tokens right"] == "57.0 %, each with the right ones before it"
    assert told["validation"] == "2.5000 nats a token, bfloat16"
    assert told["BLEU signature"] == figures["decodings"]["greedy"]["bleu_signature"]
    assert "worst" not in told
    lines = in_columns(rows)
    assert all(cell_len(line) <= 80 for line in lines if "nrefs" not in line)
    table = told["by length"].splitlines()
    assert len({cell_len(line) for line in table}) == 1  # columns stand below each other
    assert table[0].split() == ["BLEU", "greedy", "beam", "4", "chrF", "sentences"]
    assert sum(int(line.split()[-1]) for line in table[1:]) == 120

    worst = dict(reports.told(reports.examined(sources, references, {"greedy": hypotheses}, "en")))["worst"]
    assert "(nothing)" in worst
    assert "\x1b" not in worst
    assert "it is  " in worst
    assert all(cell_len(line) <= reports.TEXT for line in worst.splitlines())
    assert "…" in worst


def test_nothing_decoded_is_our_mistake():
    with pytest.raises(ValueError, match="no translations"):
        reports.examined(["猫"], ["cat"], {}, "en")


SOURCES = ["毎日土曜日だったらいいのに。", "わあ、おいしそう。", "トムに話すつもりだ。"]
REFERENCES = ["I wish every day were Saturday.", "Wow, that looks tasty.", "I'm going to tell Tom."]


def test_watch_side_by_side():
    lines = reports.watch(SOURCES, REFERENCES, ["I wish", "", "I\nam " + "going " * 30], 120)
    assert len(lines) == 4
    assert lines[0].split() == ["source", "translation", "reference"]
    assert all(cell_len(line) <= 120 for line in lines)
    # Every column begins at the same cell, however wide the characters before it are.
    for text, start in ((reports.NAMES[2], lines[0]), *zip(REFERENCES, lines[1:], strict=True)):
        assert cell_len(start[: start.index(text)]) == cell_len(lines[0][: lines[0].index("reference")])
    assert "(nothing)" in lines[2]
    assert "I am going going" in lines[3]
    assert "…  I'm going to tell Tom." in lines[3]


def test_watch_below_each_other_and_the_layout_stays():
    for hypotheses in (["", "", ""], ["the " * 50] * 3, ["猫" * 50] * 3):
        lines = reports.watch(SOURCES, REFERENCES, hypotheses, 80)
        assert len(lines) == 11
        assert [lines[3], lines[7]] == ["", ""]
        assert lines[0] == "source       毎日土曜日だったらいいのに。"
        assert lines[1].startswith("translation  ")
        assert lines[2] == "reference    I wish every day were Saturday."
        assert all(cell_len(line) <= 80 for line in lines)
    assert lines[1].endswith("…")
    assert cell_len(lines[1]) >= 79
    # Short ones stand side by side in 80 columns too.
    assert len(reports.watch(["猫。"], ["A cat."], ["A dog."], 80)) == 2
    assert reports.watch([], [], [], 80) == []
    assert all(cell_len(line) <= 30 for line in reports.watch(SOURCES, REFERENCES, REFERENCES, 30))


# --- models side by side -----------------------------------------------------------------------------------------


def record(model, seed, bleu, **more):
    usual = {"parameters": 8_400_000, "token_accuracy": 0.6, "bleu_greedy": bleu - 2, "bleu_beam": bleu}
    return {"model": model, "seed": seed, **usual, "chrf": 44.0, "seconds": 300.4, "steps": 1500, **more}


def test_ladder_table():
    records = [
        *(record("LSTM | plain", seed, 8.0, bleu_beam=None, chrf=None) for seed in (0, 1, 2)),
        *(record("modern", seed, bleu) for seed, bleu in ((2, 30.4), (0, 29.0), (1, 30.0))),
        record("Transformer 2017", 0, 1.0),
        record("Transformer 2017", 0, 22.0),  # the last of a seed counts
    ]
    text = reports.ladder_table(records)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[0] == ("| model | parameters | token accuracy | BLEU greedy | BLEU beam | chrF | seconds | steps |")
    assert table[2] == "| LSTM \\| plain | 8,400,000 | 60.0 % | 6.0 |  |  | 300 | 1,500 |"
    assert table[3] == (
        "| modern | 8,400,000 | 60.0 % | 28.0 (27.0 to 28.4) | **30.0** (29.0 to 30.4) | 44.0 | 300 | 1,500 |"
    )
    assert table[4].startswith("| Transformer 2017 (1 of 3 seeds) |")
    assert "**22.0**" in table[4]
    assert "Median of 3 seeds (of scores the lowest to the highest)." in text
    html = MarkdownIt().enable("table").render(text)
    assert html.count("<tr>") == 4
    assert html.count("<td") == 3 * 8


def test_ladder_table_leaves_out_what_nobody_knows():
    text = reports.ladder_table([{"model": "a", "seed": 0, "parameters": None, "bleu_greedy": 3.0}])
    assert text.startswith("| model | parameters | BLEU greedy |\n| --- | ---: | ---: |\n| a |  | 3.0 |\n\nOne seed. ")
