"""Which of a tokenizer's tokens stand in which text, and what a way there and back changes."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from handmade.doctor.material import Codec, Material

UNUSUAL = ("\U0010fffd", "\ue123", "ᚠ")
"""Characters that hardly a text has: of a private area, and a rune."""
MOST_WORDS, MOST_TOKENS = 300, 300
LETTERS = "".join(map(chr, [9, *range(32, 127), *range(0xA1, 0x180), *range(0x391, 0x3CA), *range(0x410, 0x450)]))
"""Characters that a vocabulary made elsewhere may well have."""
SPECIAL = re.compile(r"^\s*[<\[{|].*[>\]}|]\s*$")


@dataclass(frozen=True)
class Origin:
    """Where a vocabulary may come from."""

    late: tuple[str, ...]
    """Tokens of its own that stand in the validation text and not in the training text."""
    nowhere: float
    """How many tokens stand in neither, about."""
    new: int
    """Characters and words of the validation text that are new to the training text."""


def origin(codec: Codec, train: str, held: str, vocab_size: int | None) -> Origin:
    """Look for tokens that only the validation text can have brought in."""
    letters = set(train)
    fresh = [one for one, _ in Counter(held).most_common() if one not in letters]
    bytewise = knows_everything(codec)
    late = dict.fromkeys(one for one in fresh[:MOST_WORDS] if stands_alone(codec, one, bytewise))
    seen = set(re.findall(r"\w+", train))
    words = [one for one, _ in Counter(re.findall(r"\w+", held)).most_common() if one not in seen]
    for word in words[:MOST_WORDS]:
        for token in pieces(codec, word):
            if len(token) > 1 and token not in train and token in word:
                late[token] = None
    nowhere = elsewhere(codec, train, held, vocab_size, bytewise) if late else 0.0
    return Origin(tuple(late), nowhere, len(fresh) + len(words))


def knows_everything(codec: Codec) -> bool:
    """Whether it takes any character, by its bytes."""
    return all(comes_back(codec, one) for one in UNUSUAL)


def comes_back(codec: Codec, text: str) -> bool:
    try:
        return codec.decode(codec.encode(text)) == text or codec.decode(codec.inner(text)) == text
    except Exception:
        return False


def stands_alone(codec: Codec, character: str, bytewise: bool) -> bool:
    """Whether a character is one token, and not because every byte is one."""
    if bytewise and ord(character) < 128:
        return False
    try:
        ids = codec.inner(character)
        if len(ids) != 1:
            return False
        if codec._decode is not None:
            return codec.decode(ids) == character
    except Exception:
        return False
    for one in UNUSUAL:  # the same id for all that is not known
        try:
            if codec.inner(one) == ids:
                return False
        except Exception:
            continue
    return True


def pieces(codec: Codec, word: str) -> list[str]:
    """The tokens of a word as texts, at a line's beginning and behind a space; none where that fails."""
    found = []
    for text in (word, " " + word):
        try:
            found += [codec.decode([one]).strip() for one in codec.inner(text)]
        except Exception:
            continue
    return found


def elsewhere(codec: Codec, train: str, held: str, vocab_size: int | None, bytewise: bool) -> float:
    """How many tokens stand in neither text: a sample of the vocabulary is looked at, or usual characters where the
    vocabulary cannot be read."""
    if codec._decode is None or vocab_size is None:
        return sum(stands_alone(codec, one, bytewise) for one in LETTERS if one not in train and one not in held)
    ids = range(0, vocab_size, max(1, vocab_size // MOST_TOKENS))
    absent = 0
    for one in ids:
        try:
            text = codec.decode([one]).strip()
        except Exception:
            continue
        if not text or "\ufffd" in text or SPECIAL.match(text) or (bytewise and len(text) == 1 and ord(text) < 128):
            continue
        absent += text not in train and text not in held
    return absent * vocab_size / len(ids)


def size_of(tokenizer: Any, vocab_size: int | None) -> int | None:
    """How many tokens a tokenizer has, where it says so."""
    for name in ("vocab_size", "n_vocab", "get_vocab_size"):
        found = getattr(tokenizer, name, None)
        try:
            found = found() if callable(found) else found
        except Exception:
            continue
        if isinstance(found, int) and found > 0:
            return found
    return vocab_size


# ---------------------------------------------------------------------------------------------------------------
# There and back

MADE_UP = {
    "both cases": "Ab aB AB",
    "several spaces": "  two  spaces  ",
    "a tab": "a\tb",
    "line ends": "a\nb\n\nc\n",
    "Windows line ends": "a\r\nb\r\n",
    "punctuation": 'don\'t stop... (yes), "no"; 1,000-2 = 50%',
    "accents": "é café e\u0301",
    "an emoji": "🙂 👩\u200d👧",
    "Japanese": "日本語のテキスト。",
    "no text": "",
}
PIECE = 300


def samples(data: Material | None) -> dict[str, str]:
    """Pieces of a person's own text: from its beginning, middle and end, and around its rarest characters."""
    if data is None or not data.text:
        return {}
    rows: Sequence[str] = data.rows
    if data.single:
        text = rows[0]
        middle = len(text) // 2
        found = {
            "the data's beginning": piece(text, 0, PIECE),
            "the data's middle": piece(text, middle, middle + PIECE),
            "the data's end": piece(text, max(0, len(text) - PIECE), len(text)),
        }
    else:
        text = "\n".join(rows[:50_000])
        found = {f"row {index} of the data": rows[index] for index in sorted({0, len(rows) // 2, len(rows) - 1})}
    for character, _ in Counter(text[:2_000_000]).most_common()[:-9:-1]:
        if data.single:
            at = text.index(character)
            found[f"the data around {character!r}"] = piece(text, max(0, at - 20), at + 20)
        else:
            found[f"a row with {character!r}"] = next((row for row in rows if character in row), character)
    return found


def piece(text: str, begin: int, end: int) -> str:
    """A piece of a text, longer by what it takes to have whole words, where words are not too long."""
    for _ in range(PIECE):
        if begin > 0 and not text[begin - 1].isspace():
            begin -= 1
        if end < len(text) and not text[end].isspace():
            end += 1
    return text[begin:end]


ASPECTS = (
    ("case", str.casefold),
    ("the form of accents", lambda text: unicodedata.normalize("NFKC", text)),
    ("line ends", lambda text: text.replace("\r\n", "\n").replace("\r", "\n")),
    ("spaces", lambda text: "".join(text.split())),
)


def folded(text: str, names: Iterable[str] | None = None) -> str:
    """A text with these aspects made equal, or all."""
    for name, fold in ASPECTS:
        text = fold(text) if names is None or name in names else text
    return text


def changed(before: str, after: str, marker: str) -> list[str] | None:
    """Which aspects a tokenizer has normalised, the fewest that explain all that differs; else None."""
    for many in range(1, len(ASPECTS) + 1):
        for names in itertools.combinations([name for name, _ in ASPECTS], many):
            if folded(before, names) == folded(after, names):
                return list(names)
    mark = folded(marker)
    parts = map(re.escape, folded(after).split(mark)) if mark else ()
    if mark and mark in folded(after) and re.fullmatch(".+".join(parts), folded(before), re.DOTALL):
        return [RARE]
    return None


RARE = "rare words"


def marker_of(codec: Codec, known: Iterable[str]) -> str:
    """What stands for a character that is not known, or nothing."""
    for one in UNUSUAL:
        if one in known:
            continue
        try:
            found = codec.decode(codec.inner(one))
        except Exception:
            continue
        if found != one:
            return found
    return ""


def difference(before: str, after: str) -> str:
    """Where two texts part, for a person."""
    at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    begin = max(0, at - 8)
    return f"{before[begin : at + 12]!r} came back as {after[begin : at + 12]!r}"
