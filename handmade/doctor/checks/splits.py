"""What is trained and validated on: the split, and the windows."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import Subset

from handmade.doctor import overlap, windowing
from handmade.doctor.checks.base import Check, check
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious
from handmade.doctor.material import Codec, Material, material, needed
from handmade.doctor.patient import Patient

# ---------------------------------------------------------------------------------------------------------------
# Splits

# Stretches of one text that stand in both parts (50 characters of English, or as many symbols as say as much). Split in
# one place: Tiny Shakespeare 0, its tokens 0, its speeches shuffled 0.0002, texts with a refrain 0 to 0.05. Training
# that reaches 2 % into the validation's tenth: 0.2; the whole text in training: 1.
STRETCHES, NATURAL, MOST_STRETCHES = 0.02, 0.1, 0.5
# Windows of one length, of which a stretch stands in a training window. Tiny Shakespeare's characters, cut side by side
# or split before they are cut: 0 to 0.16 for windows of 17 to 257; overlapping by half (from 33 on) or by all but one
# and shuffled: 0.92 to 1. Windows of less than 30 characters that overlap by half are not seen.
WINDOWS = 0.5
# Whole rows, by length. Sentences and problems without repetition: 0 to 0.001; 2,000 sums drawn out of 100,000: 0.02;
# lines of a play 0.04 (split in one place) to 0.08 (shuffled); sums drawn out of 1,000: 0.86.
ROWS, MOST_ROWS = 0.02, 0.1
# Beginnings. Words of Shakespeare 0.05 to 0.11 of the rows have two training rows within two letters, names 0.02, sums
# 0 to 0.04; sentences and sums cut at every symbol and shuffled: 0.61 to 0.99 at nine to one, 0.19 to 0.65 at half.
# Foretold are 0 to 0.04 of sentences and speeches; of sentences cut at every word 0.65 to 0.83.
STEPS, FORETOLD = 0.3, 0.3

SPLIT_CAUSE = (
    "what is validated on was learnt by heart: the validation loss no longer says how the model does on new text"
)
ONLY_ONCE = "split first: train, validation = text[:n], text[n:]; nothing of the second in the first"


def both(patient: Patient) -> tuple[Material, Material]:
    """Training and validation data in one form. Of two parts of one dataset the same region is read, so that windows
    that lie side by side are both seen."""
    train, held = patient.given.train_data, patient.given.validation_data
    if isinstance(train, Subset) and isinstance(held, Subset) and train.dataset is held.dataset:
        begin = max(0, min(held.indices, default=0) - REGION // 2)
        parts = [[i for i in sorted(one.indices) if begin <= i < begin + REGION] for one in (train, held)]
        if all(parts):
            train, held = (Subset(train.dataset, part) for part in parts)
        first, second = material(train, "train_data"), material(held, "validation_data")
    else:
        first, second = needed(patient, "train_data"), needed(patient, "validation_data")
    if first.text != second.text:
        raise NotExamined("one of train_data and validation_data is text, the other token ids")
    for one in (first, second):
        if one.cut:
            patient.notes.append(f"of the data {one.cut} are looked at")
    return first, second


REGION = 50_000


@check(
    "split",
    "validation text stands in training",
    reference="Lee et al. 2022 (arXiv:2107.06499), section 4.1: the same 50 tokens in both parts",
    needs=("train_data", "validation_data"),
    demonstration="""\
import random
text = "".join(random.choice("abcdefgh ") for _ in range(5000))
windows = [text[i : i + 64] for i in range(len(text) - 64)]     # overlapping windows ..
random.shuffle(windows)                                          # .. shuffled before the split
train, held = windows[:4400], windows[4400:]
inside = {w[:32] for w in train} | {w[i : i + 32] for w in train for i in (1, 2, 3)}
print("windows, then split:", sum(w[:32] in inside for w in held) / len(held))
train, held = text[:4500], text[4500:]                           # split first
print("split, then windows:", sum(held[i : i + 32] in train for i in range(400)) / 400)
""",
)
def split(patient: Patient) -> Finding:
    """Three things are counted, whichever the data can show:

        stretches    validation's n-grams that are n-grams of training / all its n-grams    (n: 50 characters, 235 bits)
        rows         symbols of validation rows that are training rows / all its symbols    (but for case and spaces)
        beginnings   validation rows that are the beginning of a training row, or go on where one stops / all its rows

    Stretches are also counted between parts of the training itself: a text with a refrain repeats itself wherever it
    is cut. `expect={"duplicates": True}` says that repetition is meant.
    """
    train, held = both(patient)
    found = shared_stretches(train, held)
    if not train.single:
        found = [*shared_rows(train, held, patient.given.padding), *found]
    if not found:
        raise NotExamined("there is too little text, or the rows are so short that they repeat by themselves")
    if patient.expects("duplicates"):
        return healthy(found[0].measured, "as declared: repetition is meant", value=found[0].value)
    order = ("sick", "suspicious", "healthy")
    return min(found, key=lambda one: order.index(one.verdict))


def shared_stretches(train: Material, held: Material) -> list[Finding]:
    found = overlap.stretches(train, held)
    if found is None:
        return []
    stretch = f"stretches of {found.length} {train.unit}"
    if found.rows is not None:
        measured = f"{found.rows:.1%} of the validation windows share a stretch of {found.length} with training"
        details: dict[str, Any] = {"value": found.rows, "limit": WINDOWS}
        if found.rows <= WINDOWS or found.rows * len(held.rows) < 3:
            return [healthy(measured, f"at most {WINDOWS:.0%}", **details)]
        remedy = "split the text first, then cut each part into windows"
        return [sick(measured, f"at most {WINDOWS:.0%}", SPLIT_CAUSE, remedy, **details)]
    measured = f"{found.share:.1%} of the validation's {stretch} stand in training"
    expected = f"at most {STRETCHES:.0%}; parts of the training share {found.natural:.1%}"
    details = {"value": found.share, "limit": STRETCHES}
    natural = 3 * found.natural + STRETCHES
    if found.share <= STRETCHES or found.share <= min(natural, NATURAL):
        return [healthy(measured, expected, **details)]
    where = f"{found.longest:,} {train.unit} from {found.place:,} of the validation: in training from {found.source:,}"
    if found.share > min(natural, MOST_STRETCHES):
        return [sick(measured, expected, SPLIT_CAUSE, ONLY_ONCE, where=where, **details)]
    return [
        suspicious(
            measured,
            expected,
            SPLIT_CAUSE,
            "take repeated passages out before splitting",
            REPEATED,
            where=where,
            **details,
        )
    ]


REPEATED = 'Is the text meant to repeat itself, as songs do? Then expect={"duplicates": True}'


def shared_rows(train: Material, held: Material, padding: int | None) -> list[Finding]:
    """Rows that stand in both, and rows that begin alike."""
    begun = overlap.prefixes(train, held, padding)
    found = []
    if begun.steps > STEPS or begun.foretold > FORETOLD:
        stepwise = begun.steps > STEPS
        value, limit = (begun.steps, STEPS) if stepwise else (begun.foretold, FORETOLD)
        what = "of the validation rows are a training row, a little longer or shorter"
        other = "of a validation row, on average, is the beginning of a training row, or has one as its own"
        found.append(
            sick(
                f"{value:.0%} {what if stepwise else other}",
                f"at most {limit:.0%}",
                "beginnings of one sentence or problem lie on both sides: what is to be predicted stands in training",
                "split whole sentences or problems first, then cut each part into its beginnings",
                where=f"for example {begun.example}",
                value=value,
                limit=limit,
            )
        )
    if overlap.repeat_by_nature(train):
        return found
    twice = overlap.duplicates(train, held)
    also = "" if twice.alike - twice.exact < 0.001 else f" ({twice.exact:.1%} in every letter)"
    measured = f"{twice.alike:.1%} of the validation rows stand in training{also}"
    expected, details = f"at most {ROWS:.0%}", {"value": twice.alike, "limit": ROWS}
    if twice.alike <= ROWS:
        return [*found, healthy(measured, expected, **details)]
    where, remedy = f"for example {twice.example}", "take duplicates out before splitting: rows = sorted(set(rows))"
    if twice.alike > MOST_ROWS:
        return [*found, sick(measured, expected, SPLIT_CAUSE, remedy, where=where, **details)]
    return [*found, suspicious(measured, expected, SPLIT_CAUSE, remedy, REPEATED, where=where, **details)]


# ---------------------------------------------------------------------------------------------------------------
# Windows


MOST_ENCODED = 1_000_000  # characters that a person's encode is asked for at once


@check(
    "windows",
    "windows miss the end of the data, or run past it",
    reference="numpy: sliding_window_view, a row of N has N - T + 1 windows of T",
    needs=("train_data",),
    demonstration="""\
data, context = list(range(10)), 4
for name, count in (("one too few", len(data) - context - 1), ("right", len(data) - context),
                    ("one too many", len(data) - context + 1)):
    x, y = data[count - 1 : count - 1 + context], data[count : count + context]
    print(f"{name}: the last window is {x} -> {y}")
""",
)
def windows(patient: Patient) -> Finding:
    """The windows over N tokens with T inputs each begin at 0 and end at N - T - 1, every `step`:

        inputs data[s : s + T], targets data[s + 1 : s + T + 1]

    Of a dataset the first, the last and some between are looked up in the data. Of batches that are drawn at random,
    the random numbers (torch.randint, numpy.random.randint, random) are turned to their smallest and their largest.
    """
    given = patient.given
    data = needed(patient, "train_data")
    if not data.single:
        raise NotExamined("train_data is many rows, not one")
    if data.cut or (data.text and len(data.rows[0]) > MOST_ENCODED):
        raise NotExamined("train_data is too long to be looked at whole: give a piece of it, and its windows")
    tokens = Codec(given.encode, given.decode).inner(data.rows[0]) if data.text else data.symbols
    row = np.asarray(tokens, dtype=np.int64)
    context = given.context or (patient.context if given.model is not None and given.windows is None else None)
    expected = "the first begins at 0, the last token is the last target of the last"
    try:
        if given.windows is not None and not callable(given.windows):
            many, first, last = windowing.examine(given.windows, row, context, given.ignore_index)
            return healthy(f"{many:,} windows begin at {first:,} to {last:,}", expected, value=0, limit=0)
        draw = given.windows if given.windows is not None else given.batches
        if draw is None:
            raise NotExamined("not given: windows")
        if not callable(draw):
            raise NotExamined("not given: windows; of finished batches it cannot be seen which there are")
        first, last = windowing.examine_random(draw, row, given.context, given.ignore_index)
        return healthy(f"random windows begin at {first:,} to {last:,}", expected, value=0, limit=0)
    except windowing.Fault as fault:
        return sick(fault.measured, expected, fault.cause, fault.remedy, value=fault.value, limit=0)


CHECKS: tuple[Check, ...] = (split, windows)
