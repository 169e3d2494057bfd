"""What a trained model translates well, and where it goes wrong: figures, tables, the sentences themselves.

`examined` makes the figures, which JSON can hold; `told` says them to a person. `watch` shows a few translations
while a model is trained. `ladder_table` sets models side by side.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.cells import cell_len, set_cell_size

from handmade.tasks.translation.scores import corpus_scores, length_of, scored, sentence_chrf, tokenizer, unit_of

KEPT, SHOWN = 20, 5  # best and worst sentences: in the figures, and for a person
BUCKETS, ENOUGH = 6, 50  # lengths: at most so many groups, at least so many sentences in each
WORST_PART = 10  # the worst are looked for among the worst tenth
SHORT, LONG = 0.6, 1.6  # of the length of the reference: a translation outside of it is too short or too long
TEXT = 63  # columns beside the labels of `in_columns`, in a terminal of 80


def examined(
    sources: Sequence[str],
    references: Sequence[str],
    decoded: Mapping[str, Sequence[str]],
    language: str | None = None,
) -> dict[str, Any]:
    """The figures of translations that were decoded in one way or several (`greedy`, `beam 4`), first to last.

    `sentences`; `decodings` (name -> BLEU, chrF, signatures, length ratio); `by_length` (name -> rows); `best` and
    `worst` sentences of the last decoding. language: that of the references. JSON can hold it all.
    Raises what `corpus_scores` raises; ValueError where nothing was decoded.
    """
    if not decoded:
        raise ValueError("no translations were given")
    last = list(decoded)[-1]
    return {
        "sentences": len(references),
        "decodings": {name: asdict(corpus_scores(texts, references, language)) for name, texts in decoded.items()},
        "by_length": {name: by_length(texts, references, language) for name, texts in decoded.items()},
        **extremes(sources, references, decoded[last]),
    }


def by_length(
    hypotheses: Sequence[str], references: Sequence[str], language: str | None = None
) -> list[dict[str, Any]]:
    """BLEU and chrF by the length of the reference, in words or, where a language has no spaces, in characters.

    A row for each group of lengths: `least`, `most`, `unit`, `sentences`, `bleu`, `chrf`. The groups are about equal
    in number and have at least 50 sentences each; where there are fewer in all, there is one. They depend on the
    references alone, so that the rows of two models stand beside each other.
    """
    unit, tokenize = unit_of(language, references), tokenizer(language, references)
    lengths = [length_of(text, unit) for text in references]
    rows = []
    for least, most in buckets(lengths):
        chosen = [place for place, length in enumerate(lengths) if least <= length <= most]
        scores = scored([hypotheses[i] for i in chosen], [references[i] for i in chosen], tokenize)
        found = {"sentences": len(chosen), "bleu": scores.bleu, "chrf": scores.chrf}
        rows.append({"least": least, "most": most, "unit": unit, **found})
    return rows


def buckets(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Smallest and largest length of each group. All sentences of one length are in one group.

    >>> buckets([3] * 60 + [4] * 20 + [5] * 45 + [9])
    [(3, 3), (4, 9)]
    """
    each = max(ENOUGH, len(lengths) / BUCKETS)
    groups: list[list[int]] = []
    for length in sorted(lengths):
        if not groups or (len(groups[-1]) >= each and groups[-1][-1] != length):
            groups.append([])
        groups[-1].append(length)
    if len(groups) > 1 and len(groups[-1]) < ENOUGH:  # what is left over joins the group before it
        rest = groups.pop()
        groups[-1] += rest
    return [(group[0], group[-1]) for group in groups]


# --------------------------------------------------------------------------------------------------------------
# Best and worst


def extremes(
    sources: Sequence[str], references: Sequence[str], hypotheses: Sequence[str], most: int = KEPT
) -> dict[str, list[dict[str, Any]]]:
    """The `best` and the `worst` sentences by chrF, at most so many each: source, hypothesis, reference, chrf, kind.

    No source, reference or hypothesis is shown twice, and no sentence on both sides. Of those with one score the
    longer comes first: a short one is easily right, or wrong. The worst are taken from the worst tenth, in turn one of
    each `kind` of mistake, so that a model which often writes nothing shows its other mistakes too.
    """
    chrf = sentence_chrf(hypotheses, references)
    rows: list[dict[str, Any]] = [
        {"source": s, "hypothesis": h, "reference": r, "chrf": score, "kind": kind(h, r)}
        for s, h, r, score in zip(sources, hypotheses, references, chrf, strict=True)
    ]
    ordered = sorted(rows, key=lambda row: (-row["chrf"], -len(row["reference"])))
    middle = (len(ordered) + 1) // 2
    good = [row for row in ordered[:middle] if row["chrf"] > 0]
    bad = sorted(ordered[middle:], key=lambda row: (row["chrf"], -len(row["reference"])))
    bad = [row for row in bad if row["kind"] != "right"]
    bad = bad[: max(4 * most, len(ordered) // WORST_PART)]
    return {"best": different(good)[:most], "worst": in_turn(different(bad))[:most]}


def kind(hypothesis: str, reference: str) -> str:
    """What is the matter with a translation, as far as its form tells.

    >>> [kind(text, "I like to sleep.") for text in ("", "I like.", "I I I like to.", "He is nice.")]
    ['nothing', 'too short', 'repeats itself', 'other words']
    """
    if hypothesis.split() == reference.split():
        return "right"
    if not hypothesis.strip():
        return "nothing"
    if repeated(hypothesis) > max(2, repeated(reference)):
        return "repeats itself"
    ratio = len(hypothesis) / max(1, len(reference))
    return "too short" if ratio < SHORT else "too long" if ratio > LONG else "other words"


def repeated(text: str) -> int:
    """How often the same one, two or three words (or, in a text without spaces, characters) follow each other.

    >>> [repeated(text) for text in ("a b c", "no no no", "on the on the on the mat", "猫猫猫猫が")]
    [1, 3, 3, 4]
    """
    words = text.split()
    parts = words if len(words) > 1 else list(text)
    most = 1
    for size in (1, 2, 3):
        run = 0  # how far back to the first part that differs from the one `size` before it
        for place in range(size, len(parts)):
            run = run + 1 if parts[place] == parts[place - size] else 0
            most = max(most, run // size + 1)
    return most


def different(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those of which the source, the reference or the hypothesis came before."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for row in rows:
        keys = {(name, " ".join(row[name].casefold().split())) for name in ("source", "reference", "hypothesis")}
        keys.discard(("hypothesis", ""))  # nothing, to different sentences, is no repetition to hide
        if not keys & seen:
            kept.append(row)
            seen |= keys
    return kept


def in_turn(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first of every kind, then the second of every kind, and so on."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    queues = [[row for row in rows if row["kind"] == name] for name in kinds]
    longest = max(map(len, queues), default=0)
    return [queue[place] for place in range(longest) for queue in queues if place < len(queue)]


# --------------------------------------------------------------------------------------------------------------
# For a person


def percent(part: float) -> str:
    """A part as a person reads it: never 100 % unless it is all.

    >>> percent(1.0), percent(0.99987), percent(0.57)
    ('100 %', '99.9 %', '57.0 %')
    """
    return "100 %" if part >= 1 else f"{np.floor(round(part * 1000, 6)) / 10:.1f} %"


def told(figures: Mapping[str, Any], width: int = TEXT) -> list[tuple[str, str]]:
    """The figures of `examined` as lines and tables: label, text. Sentences are clipped at `width` columns.

    Where they are among the figures it also says `token_accuracy`, and `val_loss` with `precision`.
    """
    rows = []
    for name, scores in figures["decodings"].items():
        ratio = f"{scores['length_ratio']:.2f} of the references' length"
        rows.append((name, f"BLEU {scores['bleu']:5.2f}   chrF {scores['chrf']:5.2f}   {ratio}"))
    unseen = ", never seen" if figures.get("held_out", True) else ""
    rows.append(("sentences", f"{figures['sentences']:,}{unseen}, translated without help"))
    if "token_accuracy" in figures:
        rows.append(("tokens right", f"{percent(figures['token_accuracy'])}, each with the right ones before it"))
    if "val_loss" in figures:
        precision = f", {figures['precision']}" if "precision" in figures else ""
        rows.append(("validation", f"{figures['val_loss']:.4f} nats a token{precision}"))
    if figures["by_length"]:
        rows.append(("by length", length_table(figures["by_length"])))
    for name in ("best", "worst"):
        if figures[name]:
            rows.append((name, "\n".join(sentence_lines(figures[name][:SHOWN], width, name == "worst"))))
    for name, key in (("BLEU signature", "bleu_signature"), ("chrF signature", "chrf_signature")):
        rows.append((name, "\n".join(sorted({scores[key] for scores in figures["decodings"].values()}))))
    return rows


def length_table(decodings: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A line for each group of lengths: BLEU of every decoding, chrF of the last, how many sentences."""
    names, rows = list(decodings), list(decodings.values())
    labels = [length_label(row, True) for row in rows[-1]]
    widest = max(map(len, labels), default=0)
    columns = [max(5, cell_len(name)) for name in names]
    head = [" " * (column - cell_len(name)) + name for name, column in zip(names, columns, strict=True)]
    lines = [f"{'BLEU':{widest}}  {'  '.join(head)}   chrF  sentences"]
    for place, label in enumerate(labels):
        bleu = [f"{found[place]['bleu']:{column}.1f}" for found, column in zip(rows, columns, strict=True)]
        last = rows[-1][place]
        lines.append(f"{label:{widest}}  {'  '.join(bleu)}  {last['chrf']:5.1f}  {last['sentences']:>9,}")
    return "\n".join(lines)


def length_label(row: Mapping[str, Any], unit: bool = False) -> str:
    """Of a group of lengths.

    >>> length_label({"least": 3, "most": 5, "unit": "words"}, True), length_label({"least": 8, "most": 8})
    ('3 to 5 words', '8')
    """
    least, most = row["least"], row["most"]
    label = f"{least}" if least == most else f"{least} to {most}"
    if not unit:
        return label
    return f"{label} {row['unit'].removesuffix('s') if most == 1 else row['unit']}"


def sentence_lines(rows: Sequence[Mapping[str, Any]], width: int, kinds: bool) -> list[str]:
    """chrF and source, below it the translation, and the reference where it is another."""
    lines = []
    for row in rows:
        source, hypothesis, reference = (plain(row[name]) for name in ("source", "hypothesis", "reference"))
        remark = f"  ({row['kind']})" if kinds and row["kind"] != "other words" else ""
        lines.append(f"{row['chrf']:5.1f}  " + clipped(source, width - 7 - len(remark)) + remark)
        lines.append(" " * 7 + clipped(hypothesis or "(nothing)", width - 7))
        if hypothesis != reference:
            lines.append(" " * 7 + clipped(f"it is  {reference}", width - 7))
    return lines


def plain(text: str) -> str:
    """On one line, and without what controls a terminal: a model of bytes may write anything."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def clipped(text: str, cells: int) -> str:
    """At most so many columns of a terminal; a Chinese or Japanese character takes two.

    >>> clipped("猫が好き", 8), clipped("猫が好き", 7), clipped("cats", 3)
    ('猫が好き', '猫が好…', 'ca…')
    """
    if cell_len(text) <= cells:
        return text
    return set_cell_size(text, cells - 1).rstrip() + "…" if cells > 0 else ""


# --------------------------------------------------------------------------------------------------------------
# While it is trained

NAMES = ("source", "translation", "reference")
GAP = 2  # columns between two texts


def watch(sources: Sequence[str], references: Sequence[str], hypotheses: Sequence[str], width: int = 80) -> list[str]:
    """A few sentences with what the model makes of them now, as lines of at most `width` columns.

    Side by side where sources and references fit, with as much room for a translation as for the longest reference;
    else below each other. That depends on the sentences alone, so that two evaluations look alike.
    """
    texts = [[plain(text) for text in column] for column in (sources, hypotheses, references)]
    texts[1] = [text or "(nothing)" for text in texts[1]]
    if not sources:
        return []
    needed = [max(map(cell_len, [name, *column])) for name, column in zip(NAMES, texts, strict=True)]
    room = width - needed[0] - needed[2] - 2 * GAP
    least = max(needed[2], len(NAMES[1]))
    if room < least:
        return _stacked(texts, width)
    # What the translations leave is not spread over the line: they are as wide as they need, and at least so wide.
    widths = [needed[0], min(room, max(least, needed[1])), needed[2]]
    lines = []
    for row in (NAMES, *zip(*texts, strict=True)):
        cells = [clipped(text, cells) for text, cells in zip(row, widths, strict=True)]
        lines.append((" " * GAP).join(map(_padded, cells, widths)).rstrip())
    return lines


def _stacked(texts: Sequence[Sequence[str]], width: int) -> list[str]:
    """Three lines a sentence, an empty one between two."""
    label = max(map(len, NAMES)) + GAP
    lines: list[str] = []
    for row in zip(*texts, strict=True):
        lines += [""] * bool(lines)
        lines += [f"{name:{label}}{clipped(text, width - label)}" for name, text in zip(NAMES, row, strict=True)]
    return lines


def _padded(text: str, cells: int) -> str:
    return text + " " * (cells - cell_len(text))


# --------------------------------------------------------------------------------------------------------------
# Models side by side

FIGURES = {
    "token_accuracy": "token accuracy",
    "bleu_greedy": "BLEU greedy",
    "bleu_beam": "BLEU beam",
    "chrf": "chrF",
    "seconds": "seconds",
    "steps": "steps",
}
"""What is told of a run -> the head of its column."""


def ladder_rows(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Median and spread over the seeds of each model, in the order in which the models come first.

    A record is one run: `model` (its name), `seed`, `parameters`, and of `FIGURES` what is known (None, or left out,
    where it is not). A row has `model`, `parameters`, `seeds`, and for each figure a list of its values, by seed, or
    an empty one. The last record of a model and seed counts.
    """
    models: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        models.setdefault(record["model"], {})[record["seed"]] = record
    rows = []
    for model, runs in models.items():
        known = [runs[seed] for seed in sorted(runs)]
        values = {name: [run[name] for run in known if run.get(name) is not None] for name in FIGURES}
        parameters = known[-1].get("parameters")
        rows.append({"model": model, "parameters": parameters, "seeds": sorted(runs), **values})
    return rows


def ladder_table(records: Iterable[Mapping[str, Any]]) -> str:
    """The records of `ladder_rows` as a table in Markdown, with a line that says what the figures are."""
    rows = ladder_rows(records)
    shown = [name for name in FIGURES if any(row[name] for row in rows)]
    head = ["model", "parameters", *(FIGURES[name] for name in shown)]
    most = max((len(row["seeds"]) for row in rows), default=0)
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        fewer = f" ({len(row['seeds'])} of {most} seeds)" if len(row["seeds"]) < most else ""
        parameters = "" if row["parameters"] is None else f"{row['parameters']:,}"
        lines.append([row["model"].replace("|", "\\|") + fewer, parameters, *(_figure(row[n], n) for n in shown)])
    seeds = "one seed" if most == 1 else f"median of {most} seeds (of scores the lowest to the highest)"
    explained = (
        f"{seeds[0].upper()}{seeds[1:]}. Token accuracy: each token with the right ones before it."
        " BLEU and chrF: sentences never seen, translated without help; chrF with beam search where that was done."
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{explained}\n"


def _figure(values: Sequence[float], name: str) -> str:
    """The median; of a score also the lowest to the highest, where they differ as they are written."""
    if not values:
        return ""
    median, low, high = statistics.median(values), min(values), max(values)
    if name in ("seconds", "steps"):
        return f"{median:,.0f}"
    if name == "token_accuracy":
        shown, spread = percent(median), [percent(value).removesuffix(" %") for value in (low, high)]
    else:
        shown, spread = f"{median:.1f}", [f"{value:.1f}" for value in (low, high)]
    shown = f"**{shown}**" if name == "bleu_beam" else shown
    return shown if spread[0] == spread[1] else f"{shown} ({spread[0]} to {spread[1]})"
