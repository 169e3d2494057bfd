"""Pairs of sentences that mean the same: reading them, and holding some back.

    pairs = read_table("pairs.tsv")
    parts = split(pairs)          # parts.train, parts.validation, parts.test

A sentence that stands in two pairs, also with another comma or in capitals, is on one side only: a model scored on
"I like cats!" that was trained on "I like cats." would be scored on what it knows by heart.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from handmade import texts
from handmade.errors import ConfigError, DataError

LANGUAGES = ("source", "target")
VALIDATION, TEST = 1_000, 2_000
"""Pairs held back where nothing is asked for, but at most a tenth of all for each."""


LONGEST = 5_000
"""Characters of a side of a pair. What is longer is no sentence, and subwords would be learnt from it for minutes."""


HEADS = frozenset(
    (
        *("source", "target", "src", "tgt", "trg", "input", "output", "original", "translation", "translated"),
        *("ja", "en", "nl", "de", "fr", "es", "sv"),
        *("japanese", "english", "dutch", "german", "french", "spanish", "swedish"),
        *("chinese", "korean", "italian", "portuguese", "russian"),
    )
)
"""What columns are called, in small letters. Two of these in the first line are no sentence and its translation."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Sentences and their translations: `targets[i]` means what `sources[i]` means."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    name: str = "pairs"
    """A short name, good for a run folder."""
    languages: tuple[str, str] = LANGUAGES
    """Of the sources and of the targets, such as ("ja", "en")."""
    note: str = ""
    """What a person should know: whom they are from, the licence, what was taken."""

    def __post_init__(self) -> None:
        if len(self.sources) != len(self.targets):
            raise DataError(f"{len(self.sources):,} sources and {len(self.targets):,} targets: they must be as many.")

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return zip(self.sources, self.targets, strict=True)

    def of(self, pairs: Iterable[tuple[str, str]]) -> Pairs:
        """Other pairs of the same name, languages and note."""
        found = tuple(zip(*pairs, strict=True)) or ((), ())
        return dataclasses.replace(self, sources=found[0], targets=found[1])

    def turned(self) -> Pairs:
        """The other direction."""
        return dataclasses.replace(
            self, sources=self.targets, targets=self.sources, languages=(self.languages[1], self.languages[0])
        )

    def fingerprint(self) -> str:
        """sha256 over all pairs in their order."""
        return _digest([self])


# --------------------------------------------------------------------------------------------------------------
# Reading


def read_table(
    path: Path | str,
    columns: tuple[int, int] | None = None,
    languages: tuple[str, str] = LANGUAGES,
    encoding: str = "utf-8",
) -> Pairs:
    """A file with a pair on each line, its columns separated by tabs; it may be packed with gzip.

    Two columns are source and target. Of three with a number first, the second is the source and the third the
    target. `columns` says which two it is otherwise, counted from 1.
    Raises DataError that names file and line for a column that is missing, a side that is empty and a first line that
    names the columns, DataError for a file that cannot be read as text, ConfigError for columns that there cannot be.
    """
    path = Path(path)
    if columns is not None and (min(columns) < 1 or columns[0] == columns[1]):
        raise ConfigError(f"columns {_said(columns)}: name two different ones, counted from 1.")
    rows = [line.split("\t") for line in _lines(path, encoding)]
    while rows and not "".join(rows[-1]).strip():
        rows.pop()
    if not rows:
        raise DataError(f"{path}: there are no pairs in it. Each line should be a sentence, a tab, its translation.")
    first, second = columns or _columns(path, rows[0])
    least, exact = max(first, second), len(rows[0]) if columns is None else None
    for number, row in enumerate(rows, 1):
        if len(row) < least or exact not in (None, len(row)):
            have = "no tab" if len(row) == 1 else f"{len(row)} columns"
            need = f"column {least} is needed" if exact is None else f"line 1 has {exact} columns"
            raise DataError(f"{path}: line {number:,} has {have}; {need}. Mend the line or take it out.")
        if exact == 3 and not row[0].strip().isdecimal():
            raise DataError(
                f"{path}: line {number:,} begins with {row[0][:20]!r}, no number. {_HEADER if number == 1 else _CHOOSE}"
            )
    pairs = [(row[first - 1].strip(), row[second - 1].strip()) for row in rows]
    _refuse_empty(pairs, lambda side, number: f"{path}: line {number:,}: column {(first, second)[side]} is empty")
    return _made(pairs, path, languages)


def read_parallel(
    source_path: Path | str,
    target_path: Path | str,
    languages: tuple[str, str] = LANGUAGES,
    encoding: str = "utf-8",
) -> Pairs:
    """Two files of as many lines: a line of the second translates the line of the first. They may be packed with
    gzip. Raises DataError as `read_table` does, and with both counts where one file has more lines."""
    paths = (Path(source_path), Path(target_path))
    sources, targets = (_lines(path, encoding) for path in paths)
    if len(sources) != len(targets):
        raise DataError(
            f"{paths[0]} has {len(sources):,} lines, {paths[1]} has {len(targets):,}: "
            "each line of the second must translate the same line of the first."
        )
    if not sources:
        raise DataError(f"{paths[0]}: the file is empty.")
    pairs = [(source.strip(), target.strip()) for source, target in zip(sources, targets, strict=True)]
    _refuse_empty(pairs, lambda side, number: f"{paths[side]}: line {number:,} is empty")
    return _made(pairs, paths[0], languages)


_CHOOSE = "Say which two columns hold the sentences: --set task.columns=2,3"
_HEADER = f"Take the line out if it is a header. {_CHOOSE}"


def _columns(path: Path, row: list[str]) -> tuple[int, int]:
    if len(row) == 2:
        return 1, 2
    if len(row) == 3:
        return 2, 3
    if len(row) == 1:
        raise DataError(f"{path}: line 1 has no tab. Each line should be a sentence, a tab, its translation.")
    raise DataError(f"{path}: line 1 has {len(row)} columns. {_CHOOSE}")


def _refuse_empty(pairs: Sequence[tuple[str, str]], place: Callable[[int, int], str]) -> None:
    """Raise DataError for the first side that is empty; `place(side, line)` says where it is."""
    empty = [(number, side) for number, pair in enumerate(pairs, 1) for side in (0, 1) if not pair[side]]
    if empty:
        number, side = empty[0]
        more = f", and so are {len(empty) - 1:,} more" if len(empty) > 1 else ""
        raise DataError(f"{place(side, number)}{more}. Fill in the sentence, or take out the pair.")


def _made(pairs: Sequence[tuple[str, str]], path: Path, languages: tuple[str, str]) -> Pairs:
    name = Path(path.name.removesuffix(".gz")).stem
    head = {side.casefold() for side in pairs[0]}
    if len(head) == 2 and head <= HEADS | {language.casefold() for language in languages}:
        raise DataError(
            f"{path}: line 1 says {' and '.join(pairs[0])}, the names of columns. Take the line out; if it is a pair,"
            " put it further down."
        )
    for number, pair in enumerate(pairs, 1):
        if max(map(len, pair)) > LONGEST:
            raise DataError(
                f"{path}: line {number:,} has {max(map(len, pair)):,} characters on one side, too many for a sentence"
                f" ({LONGEST:,} at most). Cut it into sentences, or take the line out."
            )
    return Pairs(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs), name, languages)


def _lines(path: Path, encoding: str) -> list[str]:
    """The lines of a text file, packed or not, without what ends them. Only CR and LF end a line."""
    texts.check_encoding(encoding)
    texts.kind(path)  # raises where it cannot be read
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    text = _unpacked(path, encoding) if packed else "".join(piece for piece, _ in texts.read(path, encoding))
    return text.removesuffix("\n").split("\n") if text else []


def _unpacked(path: Path, encoding: str) -> str:
    try:
        with gzip.open(path) as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as problem:
        raise DataError(f"{path}: damaged, cannot be unpacked ({problem}).") from None
    try:
        text = raw.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        guess = texts.likely_encoding(raw[problem.start :][: texts.HEAD])
        advice = f"It looks like {guess}: try --encoding {guess}" if guess else "Name what it is in with --encoding"
        raise DataError(f"{path}: line {line:,} is not valid {encoding.upper()} once unpacked. {advice}.") from None
    if "\0" in text:
        raise DataError(f"{path}: what is packed in it is not text.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


# --------------------------------------------------------------------------------------------------------------
# Holding some back


@dataclasses.dataclass(frozen=True)
class PairSplit:
    """No sentence of one part, in either language, stands in another, however it is punctuated."""

    train: Pairs
    validation: Pairs
    test: Pairs
    left_out: int = 0
    """Pairs that were there more than once, the first of each not counted."""

    def fingerprint(self) -> str:
        """sha256 over the three parts."""
        return _digest([self.train, self.validation, self.test])


def normalized(sentence: str) -> str:
    """What sentences have in common that differ in capitals, width, spaces and punctuation only.

    Letters, marks and numbers, in one form of each (NFKC), in small letters. A sentence without any of those stays
    as it is.

    >>> normalized("I'm  ＨＥＲＥ!"), normalized("猫、が好き。"), normalized("?!")
    ('imhere', '猫が好き', '?!')
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", sentence).casefold())
    return folded.translate(_KEPT) or folded


class _Kept(dict[int, "str | None"]):
    """For str.translate: a character that counts, or None; each is looked up once."""

    def __missing__(self, point: int) -> str | None:
        character = chr(point)
        self[point] = character if unicodedata.category(character)[0] in "LMN" else None
        return self[point]


_KEPT = _Kept()


def split(pairs: Pairs, validation: int | None = None, test: int | None = None, seed: int = 0) -> PairSplit:
    """Hold back pairs for validation and test, in groups.

    Two pairs are in one group where their sources or their targets are the same when `normalized`, and so are pairs
    that both are with a third; a group is in one part. A pair that is there twice is taken once. Which groups are
    held back follows from what is in them and from `seed`, not from the order of the pairs. The parts have the
    sizes asked for, or less where no group is small enough; where nothing is asked, 1,000 and 2,000 pairs, but at
    most a tenth of all for each.
    Raises DataError where a part would be empty.
    """
    once = sorted(set(pairs))
    tenth = max(1, len(once) // 10)
    wanted = [min(TEST, tenth) if test is None else test, min(VALIDATION, tenth) if validation is None else validation]
    if min(wanted) < 1 or sum(wanted) >= len(once):
        raise DataError(
            f"{pairs.name}: {len(once):,} different {'pair' if len(once) == 1 else 'pairs'};"
            f" {wanted[1]:,} for validation and {wanted[0]:,} for the test "
            f"{'are both needed' if min(wanted) < 1 else 'leave none to train on. Give more pairs'}."
        )
    held: list[list[tuple[str, str]]] = [[], []]
    train: list[tuple[str, str]] = []
    for group in _ranked(_groups(once), seed):
        part = next((part for part, most in zip(held, wanted, strict=True) if len(part) + len(group) <= most), train)
        part += group
    if not (all(held) and train):
        raise DataError(
            f"{pairs.name}: the pairs cannot be divided: too many have a sentence in common. Give more different ones."
        )
    return PairSplit(pairs.of(train), pairs.of(held[1]), pairs.of(held[0]), len(pairs) - len(once))


def _groups(pairs: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Pairs that hang together, by union-find over their normalised sources and targets."""
    above: dict[str, str] = {}

    def top(node: str) -> str:
        while above.setdefault(node, node) != node:
            above[node] = above[above[node]]
            node = above[node]
        return node

    # The two languages are kept apart: "Paris" in both is no reason to hang together.
    nodes = [f"s{normalized(source)}" for source, _ in pairs]
    for node, (_, target) in zip(nodes, pairs, strict=True):
        above[top(node)] = top(f"t{normalized(target)}")
    groups: dict[str, list[tuple[str, str]]] = {}
    for node, pair in zip(nodes, pairs, strict=True):
        groups.setdefault(top(node), []).append(pair)
    return list(groups.values())


def _ranked(groups: list[list[tuple[str, str]]], seed: int) -> list[list[tuple[str, str]]]:
    """In an order that looks random and follows from each group's first pair: one more group moves no other."""

    def rank(group: list[tuple[str, str]]) -> bytes:
        return hashlib.sha256("\t".join((str(seed), *group[0])).encode("utf-8", "surrogatepass")).digest()

    return sorted(groups, key=rank)


def _digest(parts: Sequence[Pairs]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        lines = [f"{len(part)}", *(f"{source}\t{target}" for source, target in part)]
        digest.update("\n".join(lines).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _said(columns: tuple[int, int]) -> str:
    return ",".join(map(str, columns))
