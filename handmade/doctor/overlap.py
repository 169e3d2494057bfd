"""What two splits have in common: stretches, rows, and beginnings of rows.

n-grams are compared by hashes of 64 bits; of long texts by those alone whose hash ends in so many zeros, so that both
sides keep the same ones.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass

import numpy as np

from handmade.doctor.material import Material, symbols

BITS = 235
"""What a stretch has to say to be no accident: 50 characters of English (4.8 bits each), 25 subwords."""
ENOUGH_BITS, FEWEST_BITS, LONGEST = 75, 60, 100
KEPT = 200_000
"""Stretches that are compared, about."""
BLOCK = 1 << 16  # fits the cache: several times as fast as all at once
CHUNKS = 4


@dataclass(frozen=True)
class Stretches:
    """Stretches of validation that stand in training."""

    length: int
    """Symbols of a stretch."""
    share: float
    """Of the validation's stretches, those that stand in training too."""
    natural: float
    """The same of a part of the training, against the rest of it: the largest of several parts."""
    rows: float | None
    """Where all rows are windows of one length: the part of the validation's that has such a stretch."""
    longest: int
    """Symbols of the longest run."""
    place: int
    """Where it begins in validation, counted over all rows."""
    source: int
    """And in training."""


@dataclass(frozen=True)
class Fingerprints:
    places: np.ndarray
    hashes: np.ndarray


def stretches(train: Material, held: Material) -> Stretches | None:
    """What is shared; None where rows are too short to say."""
    length = min(train.carrying(BITS), LONGEST)
    size = int(train.lengths[0])
    windows = not train.single and bool((train.lengths == size).all() and (held.lengths == size).all())
    if windows and size // 2 < length:  # windows may be shifted against each other: by half of their length, say
        half = size // 2
        length = half if half * train.bits >= ENOUGH_BITS else min(length, size - 1)
    if length * train.bits < FEWEST_BITS:
        return None
    total = int(train.lengths.sum() + held.lengths.sum())
    every = (size - length + 1) // 16 if windows else total // KEPT  # of a window at least sixteen stay, about
    mask = (1 << max(0, every.bit_length() - 1)) - 1
    if windows:
        held = held.first(MOST_ASKED)
    known, asked = fingerprints(train, length, mask), fingerprints(held, length, mask)
    if len(asked.hashes) < 20 or len(known.hashes) < 20:
        return None
    hit = among(asked.hashes, known.hashes)
    longest, place, source = longest_run(hit, asked, known, length)
    rows = len(np.unique(asked.places[hit] // size)) / len(held.rows) if windows else None
    natural = natural_share(known, held, train, length)
    return Stretches(length, float(hit.mean()), natural, rows, longest, place, source)


def fingerprints(given: Material, length: int, mask: int) -> Fingerprints:
    """Hashes of all stretches of a length that lie in one row, by where they begin."""
    everything = given.symbols
    places, hashes = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    for begin in range(0, max(0, len(everything) - length + 1), BLOCK):
        found = hashed(everything[begin : begin + BLOCK + length - 1], length)
        keep = np.flatnonzero((found & np.uint64(mask)) == 0)
        places.append(keep + begin)
        hashes.append(found[keep])
    place, kept = np.concatenate(places), np.concatenate(hashes)
    ends = np.cumsum(given.lengths)
    inside = place + length <= ends[np.searchsorted(ends, place, side="right")]
    return Fingerprints(place[inside], kept[inside])


FACTOR = 0xD6E8FEB86659FD93
WORD = (1 << 64) - 1


def hashed(row: np.ndarray, length: int) -> np.ndarray:
    """A hash of every stretch: those of 1, 2, 4 .. symbols are each made of two halves, and the wanted length of some
    of these."""
    single = mixed(row.astype(np.uint64) + np.uint64(1))
    size, power, found, have = 1, single, None, 0
    while True:
        if length & size:
            if found is None:
                found, have = power, size
            else:
                many = len(row) - have - size + 1
                found = mixed(found[:many] * np.uint64(FACTOR + 2 * size & WORD) + power[have : have + many])
                have += size
        if have == length:
            assert found is not None
            return found
        many = len(row) - 2 * size + 1
        power = mixed(power[:many] * np.uint64(FACTOR * (2 * size + 1) & WORD) + power[size : size + many])
        size *= 2


def mixed(words: np.ndarray) -> np.ndarray:
    """Spread every bit over all."""
    words = (words ^ (words >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    return words ^ (words >> np.uint64(29))


def among(asked: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which hashes are known. By sorting: numpy's own table of hashes is slow for numbers that end in zeros."""
    ordered = np.sort(known)
    place = np.searchsorted(ordered, asked).clip(max=len(ordered) - 1)
    return ordered[place] == asked


def natural_share(known: Fingerprints, held: Material, train: Material, length: int) -> float:
    """How much of a part of training, as large as the validation, stands elsewhere in training."""
    total = int(train.lengths.sum())
    size = min(int(held.lengths.sum()), total // 3)
    shares = [0.0]
    for begin in np.linspace(0, total - size, CHUNKS).astype(int):
        inside = (known.places >= begin) & (known.places < begin + size)
        outside = (known.places < begin - length) | (known.places >= begin + size + length)
        if inside.any() and outside.any():
            shares.append(float(among(known.hashes[inside], known.hashes[outside]).mean()))
    return max(shares)


def longest_run(hit: np.ndarray, asked: Fingerprints, known: Fingerprints, length: int) -> tuple[int, int, int]:
    """The longest run of stretches that are shared: symbols, where in validation, where in training."""
    if not hit.any():
        return 0, 0, 0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hit.astype(np.int8), [0]])))
    begins, ends = edges[::2], edges[1::2] - 1
    spans = asked.places[ends] - asked.places[begins] + length
    best = int(spans.argmax())
    first = begins[best]
    source = int(known.places[np.flatnonzero(known.hashes == asked.hashes[first])[0]])
    return int(spans[best]), int(asked.places[first]), source


# ---------------------------------------------------------------------------------------------------------------
# Rows


@dataclass(frozen=True)
class Twice:
    """Validation rows that stand in training, as parts of all symbols in validation rows."""

    exact: float
    alike: float
    """With those that differ in case, spaces and punctuation alone."""
    example: str


ROW_BITS = 150
"""What windows of one length have to say to be no accident: 31 characters of English."""


def repeat_by_nature(train: Material) -> bool:
    """Whether rows are short windows of some stream: all of one length, and every column alike. In problems of one
    length, columns differ: there is a sign in one, a carry in another."""
    size = int(train.lengths[0])
    if bool((train.lengths != size).any()) or size * train.bits >= ROW_BITS:
        return False
    table = train.symbols[: 20_000 * size].reshape(-1, size)
    ids, whole = np.unique(table, return_inverse=True)
    whole = whole.reshape(table.shape)
    shares = np.stack([np.bincount(column, minlength=len(ids)) for column in whole.T]) / len(table)
    mean = shares.mean(0)
    chance = np.sqrt(2 * mean * (1 - mean) / (np.pi * len(table))).sum() / 2
    return float(np.abs(shares - mean).sum(1).mean() / 2) < ALIKE * chance + UNEQUAL


# How far columns are from their mean, for 100 to 20,000 rows: windows of Shakespeare (4 to 30 characters) 0.85 to 1.05
# of what chance brings; sums of one to three digits 1.7 to 55 times that, and 0.14 at the least.
ALIKE, UNEQUAL = 1.3, 0.02


def duplicates(train: Material, held: Material) -> Twice:
    """How much of the validation's rows stands in training. Weighted by length: that "Yes." comes twice is nature."""
    known = {key(row) for row in train.rows}
    alike = {plain(row) for row in train.rows} if train.text else set()
    weights = np.maximum(held.lengths, 1).astype(float)
    exact = np.array([key(row) in known for row in held.rows])
    close = exact | np.array([train.text and bool(plain(row)) and plain(row) in alike for row in held.rows])
    place = int((weights * close).argmax())
    return Twice(
        float((weights * exact).sum() / weights.sum()),
        float((weights * close).sum() / weights.sum()),
        shown(held.rows[place]) if close.any() else "",
    )


def key(row: str | np.ndarray) -> str | bytes:
    return row if isinstance(row, str) else row.tobytes()


PROSE = re.compile(r"""[.,:](?!\d)|[;!?…"'“”‘’«»()。、！？「」]+""")
BESIDE_SIGNS = re.compile(r" (?=[^\w\s])|(?<=[^\w\s]) ")


def plain(row: str) -> str:
    """Without case, extra spaces and the punctuation of prose. Signs between numbers or letters are no punctuation:
    "a+b" and "a-b" are two problems."""
    kept = " ".join(PROSE.sub("", row.casefold()).split())
    return BESIDE_SIGNS.sub("", kept) or row.strip()


def shown(row: str | np.ndarray) -> str:
    if isinstance(row, str):
        return repr(row if len(row) <= 40 else row[:37] + "...")
    return f"[{', '.join(str(int(one)) for one in row[:8])}{', ...' if len(row) > 8 else ''}]"


@dataclass(frozen=True)
class Prefixes:
    """Validation rows that begin as a training row does, to the end of one of the two."""

    steps: float
    """Part of the rows from which at least two training rows are one or two symbols away: longer or shorter."""
    foretold: float
    """How much of a validation row stands in a training row that it begins with, or that begins with it: the mean.
    Beginnings that may be accidents do not count."""
    example: str


PREFIX_BITS = 48
"""What a beginning has to say to be no accident: ten characters of English."""
MOST_ASKED = 5_000
"""Validation rows that are looked up."""


def prefixes(train: Material, held: Material, padding: int | None) -> Prefixes:
    """How much of the validation rows is a training row that goes on, or stops."""
    mine, theirs = without_padding(train, padding), without_padding(held.first(MOST_ASKED), padding)
    least, step = train.carrying(PREFIX_BITS), 8
    ordered = sorted({row.tobytes() for row in mine})
    cut = [{row[:-drop].tobytes() for row in mine if len(row) > drop} for drop in (1, 2)]
    steps, foretold, example = 0, [], ""
    for row in theirs:
        raw = row.tobytes()
        found = [size // step for size in beginnings(raw, ordered)]
        near = sum(size >= len(row) - 2 for size in found) + sum(raw in one for one in cut)
        steps += near >= 2
        longest = max((size for size in found if size >= least), default=0) / max(1, len(row))
        # In their order, a row that begins with this one stands right behind it.
        behind = bisect.bisect_right(ordered, raw)
        if len(row) >= least and behind < len(ordered) and ordered[behind].startswith(raw):
            longest = 1.0
        foretold.append(longest)
        if not example and (longest > 0.5 or near >= 2):
            example = shown("".join(map(chr, row)) if train.text else row)
    return Prefixes(steps / len(theirs), float(np.mean(foretold)), example)


def beginnings(raw: bytes, ordered: list[bytes]) -> list[int]:
    """Lengths of the rows that are a beginning of `raw`, and not all of it. In their order such a row stands before
    `raw`, and between the two nothing but rows that begin with it."""
    found, place = [], bisect.bisect_left(ordered, raw) - 1
    while place >= 0 and ordered[place]:
        candidate = ordered[place]
        if raw.startswith(candidate):
            found.append(len(candidate))
            place -= 1
            continue
        low, high = 0, min(len(candidate), len(raw)) - 1  # where the two part
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if raw.startswith(candidate[:middle]) else (low, middle - 1)
        if low == 0:
            break
        place = min(place, bisect.bisect_right(ordered, raw[:low])) - 1
    return found


def without_padding(given: Material, padding: int | None) -> list[np.ndarray]:
    """The rows as arrays, without what fills them up on either side."""
    rows = [symbols(row) for row in given.rows]
    if given.text:
        return rows
    if padding is None and len(rows) > 1 and bool((given.lengths == given.lengths[0]).all()):
        padding = likely_padding(np.stack(rows))
    if padding is None:
        return rows
    found = []
    for row in rows:
        real = np.flatnonzero(row != padding)
        found.append(row[real[0] : real[-1] + 1] if len(real) else row[:0])
    return found


def likely_padding(table: np.ndarray) -> int | None:
    """The id that fills rows up, if one does: it stands at the edge of many rows, more than once in a row."""
    if table.shape[1] < 3:
        return None
    for edge in (table[:, :2], table[:, -2:]):
        twice = edge[edge[:, 0] == edge[:, 1]][:, 0]
        if len(twice):
            ids, counts = np.unique(twice, return_counts=True)
            if counts.max() > 0.2 * len(table):
                return int(ids[counts.argmax()])
    return None
