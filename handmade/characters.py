"""Text to token ids and back: a token for every character, or a token for every byte.

    tokenizer = CharTokenizer.train(["to be, or not to be"])
    tokenizer.decode(tokenizer.encode("not to be"))          # "not to be"

And `Tokenizer`, the protocol that these and all other tokenizers have.
"""

from __future__ import annotations

import codecs
import json
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from handmade.errors import TokenizerError
from handmade.files import whole

VERSION = 1  # of the JSON file


class Decoder(Protocol):
    """Turns tokens into text one by one. The pieces joined are what `decode` gives for all the ids at once."""

    def feed(self, token: int) -> str:
        """The text that is certain now; it may be empty while a character is incomplete."""

    def flush(self) -> str:
        """What was still waiting at the end, and start afresh."""


class Tokenizer(Protocol):
    """What the rest of the project knows of a tokenizer."""

    kind: ClassVar[str]
    vocab_size: int
    token_bytes: np.ndarray
    """(vocab_size,) int64: how many bytes of UTF-8 each token stands for. Bits per byte is counted with it."""

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int64. Raises TokenizerError that names a character it does not know."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a list, array or tensor of ids. Raises TokenizerError for an id it does not have."""

    def decoder(self) -> Decoder:
        """A fresh incremental decoder, for streaming."""

    def knows(self, character: str) -> bool:
        """Whether `encode` takes this character."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON. `tokenizers.from_dict` goes back."""

    def save(self, path: Path | str) -> None:
        """Write the JSON file, whole or not at all. `tokenizers.load` goes back."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        with whole(Path(path), "the tokenizer", len(text)) as file:
            file.write(text.encode())


class CharTokenizer(Tokenizer):
    """One token for every distinct character of the training text, numbered in the order of code points.

    Raises TokenizerError unless `characters` are distinct single characters.
    """

    kind = "char"

    def __init__(self, characters: Iterable[str]):
        self.characters = tuple(characters)
        if not self.characters:
            raise TokenizerError("A character tokenizer needs at least one character; the text is empty.")
        for character in self.characters:
            if not isinstance(character, str) or len(character) != 1:
                raise TokenizerError(f"A character tokenizer's entry {character!r} is not one character.")
            if not has_utf8(character):
                raise TokenizerError(f"{describe(character)} is half of a character, not one.")
        if len(set(self.characters)) != len(self.characters):
            raise TokenizerError("A character tokenizer has the same character twice.")
        self.vocab_size = len(self.characters)
        self.token_bytes = np.array([len(c.encode()) for c in self.characters], dtype=np.int64)
        # Code point -> id. One place more than the largest code point: all that is larger is looked up there.
        points = np.array([ord(c) for c in self.characters])
        self._ids = np.full(points.max() + 2, -1, dtype=np.int64)
        self._ids[points] = np.arange(self.vocab_size)

    @classmethod
    def train(cls, texts: Iterable[str]) -> CharTokenizer:
        """From the characters of the training part. The validation part must not be among `texts`."""
        seen: set[str] = set()
        for text in [texts] if isinstance(texts, str) else texts:
            seen.update(text)
        return cls(sorted(seen))

    def encode(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        ids = self._ids.take(points, mode="clip")
        if ids.size and ids.min() < 0:
            position = int((ids < 0).argmax())
            raise TokenizerError(
                f"Character {position + 1:,}, {describe(text[position])}, is not one of the "
                f"{self.vocab_size:,} characters that this tokenizer knows. Leave it out, or train with "
                "--tokenizer byte, which takes any text."
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return "".join([self.characters[id] for id in checked(ids, self.vocab_size)])

    def decoder(self) -> Decoder:
        return _CharDecoder(self)

    def knows(self, character: str) -> bool:
        point = ord(character)
        return point < len(self._ids) and bool(self._ids[point] >= 0)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "version": VERSION, "characters": "".join(self.characters)}

    def __repr__(self) -> str:
        return f"CharTokenizer({''.join(self.characters)!r})"


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8: any text goes in, and a token's id is its byte."""

    kind = "byte"
    vocab_size = 256

    def __init__(self) -> None:
        self.token_bytes = np.ones(256, dtype=np.int64)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(utf8(text), dtype=np.uint8).astype(np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(checked(ids, 256)).decode("utf-8", errors="replace")

    def decoder(self) -> Decoder:
        return ByteDecoder()

    def knows(self, character: str) -> bool:
        return has_utf8(character)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "version": VERSION}

    def __repr__(self) -> str:
        return "ByteTokenizer()"


class _CharDecoder:
    """A character is complete at once, so nothing ever waits."""

    def __init__(self, tokenizer: CharTokenizer):
        self.tokenizer = tokenizer

    def feed(self, token: int) -> str:
        return self.tokenizer.decode([token])

    def flush(self) -> str:
        return ""


class ByteDecoder:
    """Holds the bytes of a UTF-8 sequence back until it is complete (or certain to be broken)."""

    def __init__(self) -> None:
        self.utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        return self.take(bytes(checked([token], 256)))

    def take(self, raw: bytes) -> str:
        """The text that is certain after these bytes."""
        return self.utf8.decode(raw)

    def flush(self) -> str:
        rest = self.utf8.decode(b"", final=True)
        self.utf8.reset()
        return rest


def describe(character: str) -> str:
    """A character for a message: as it looks where it can be seen, its code point, its name.

    >>> describe("é")
    "'é' (U+00E9, LATIN SMALL LETTER E WITH ACUTE)"
    """
    name = unicodedata.name(character, "")
    return f"{ascii(character) if not character.isprintable() else repr(character)} (U+{ord(character):04X}" + (
        f", {name})" if name else ")"
    )


def has_utf8(character: str) -> bool:
    """Half of a surrogate pair has no UTF-8 form."""
    return not "\ud800" <= character <= "\udfff"


def utf8(text: str) -> bytes:
    """Raises TokenizerError that names a character that has no UTF-8 form."""
    try:
        return text.encode()
    except UnicodeEncodeError as problem:
        raise TokenizerError(
            f"Character {problem.start + 1:,}, {describe(text[problem.start])}, is half of a character and has no "
            "UTF-8 form. Leave it out."
        ) from None


def checked(ids: Iterable[int], vocab_size: int) -> list[int]:
    """Ids as plain numbers. Raises TokenizerError for one that is out of range or no whole number."""
    # `tolist` is what arrays and tensors have, on any device.
    numbers = ids.tolist() if hasattr(ids, "tolist") else [int(id) for id in ids]
    for number in numbers:
        if not isinstance(number, int) or not 0 <= number < vocab_size:
            raise TokenizerError(f"Token id {number!r} is not one of 0 to {vocab_size - 1}.")
    return numbers
