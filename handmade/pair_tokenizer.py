"""The tokens of a translation: a tokenizer for each of the two languages, and four tokens that are no text.

    tokenizer = PairTokenizer.train(sources, targets, source_size=8_000, target_size=6_000)
    tokenizer.encode_source("私は猫が好きです。")          # text, END
    tokenizer.decode_target([57, 802, 2])                  # "I like"

Ids 0 to 3 are PAD, START, END, UNKNOWN on both sides, and text begins at 4: so no text can become one of them,
whatever is written in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from handmade.characters import VERSION, CharTokenizer, Decoder, Tokenizer, checked, describe
from handmade.errors import ConfigError, TokenizerError, did_you_mean
from handmade.subwords import SubwordTokenizer

PAD, START, END, UNKNOWN = 0, 1, 2, 3
FIRST = 4
"""The id at which text begins."""

SIDE_KINDS = ("bpe", "char")
Side = Literal["source", "target"]
LABELS = {PAD: "·pad·", START: "·start·", END: "⏎", UNKNOWN: "?"}
NAMED = 5  # unknown characters that an error names


class PairTokenizer(Tokenizer):
    """`source` and `target` are the tokenizers of the two languages; here their ids are FIRST higher.

    Behind the protocol that all tokenizers have it is the target's: `vocab_size`, `token_bytes`, `encode`, `decode`.
    """

    kind = "pair"

    def __init__(self, source: Tokenizer, target: Tokenizer, notes: Iterable[str] = ()):
        for tokenizer in (source, target):
            if isinstance(tokenizer, PairTokenizer):
                raise TokenizerError("a side of a pair is a pair itself.")
        self.source, self.target = source, target
        self.source_size = FIRST + source.vocab_size
        self.target_size = self.vocab_size = FIRST + target.vocab_size
        self.token_bytes = np.concatenate([np.zeros(FIRST, dtype=np.int64), target.token_bytes])
        self.notes = tuple(notes)
        """What a person should know about how it was trained; not kept in the file."""

    @classmethod
    def train(
        cls,
        sources: Iterable[str],
        targets: Iterable[str],
        kind: str = "bpe",
        source_size: int = 8_000,
        target_size: int = 6_000,
    ) -> PairTokenizer:
        """From the training part alone. `source_size` and `target_size` are the most tokens that a side of kind
        "bpe" may have, the four that are no text among them; characters are as many as there are.

        Raises ConfigError for a kind that there is not or a size too small, TokenizerError where there is no text,
        ResourceError where the library for subwords is missing.
        """
        if kind not in SIDE_KINDS:
            raise ConfigError(f"kind = {kind}: must be one of {', '.join(SIDE_KINDS)}.{did_you_mean(kind, SIDE_KINDS)}")
        sides: list[Tokenizer] = []
        notes = []
        for name, texts, size in (("source", list(sources), source_size), ("target", list(targets), target_size)):
            if not any(texts):
                raise TokenizerError(f"There is no {name} text to train a tokenizer on.")
            if kind == "char":
                sides.append(CharTokenizer.train(texts))
                continue
            if size < FIRST + 256:
                raise ConfigError(
                    f"{name}_size = {size}: must be at least {FIRST + 256}, a token for every byte and {FIRST} more."
                )
            sides.append(SubwordTokenizer.train(texts, size - FIRST))
            made = FIRST + sides[-1].vocab_size
            if made < size:
                notes.append(f"{name}: {made:,} tokens, not {size:,}: no other pair of tokens is there twice")
        return cls(sides[0], sides[1], notes)

    # ----------------------------------------------------------------------------------------------------------
    # Text to ids

    def encode_source(self, text: str, strict: bool = True) -> np.ndarray:
        """The text's ids and END, int64. Without `strict` a character that is not known is UNKNOWN.

        Raises TokenizerError that names the characters that are not known.
        """
        return self.encode_sources([text], strict)[0]

    def encode_target(self, text: str, strict: bool = True) -> np.ndarray:
        """As `encode_source`."""
        return self.encode_targets([text], strict)[0]

    def encode_sources(self, texts: Sequence[str], strict: bool = True) -> list[np.ndarray]:
        """Many at once, which is much quicker than one by one."""
        return _encoded(self.source, texts, "source", strict)

    def encode_targets(self, texts: Sequence[str], strict: bool = True) -> list[np.ndarray]:
        """Many at once, which is much quicker than one by one."""
        return _encoded(self.target, texts, "target", strict)

    def familiar(self, text: str) -> bool:
        """Whether any letter or number of a source was seen in training: one that is known, or, of subwords, one that
        is more than single bytes, which spell anything. A script that never came is not familiar, whatever its
        punctuation."""
        words = "".join(character for character in text if character.isalnum())
        if not words:  # punctuation alone is
            return any(character.isprintable() and not character.isspace() for character in text)
        if not isinstance(self.source, SubwordTokenizer):
            return any(self.source.knows(character) for character in words)
        return any(id >= 256 or id < 128 for id in self.source.encode(words).tolist())

    def encode(self, text: str) -> np.ndarray:
        return self.encode_target(text)

    # ----------------------------------------------------------------------------------------------------------
    # Ids to text

    def decode_source(self, ids: Iterable[int]) -> str:
        """The text up to END; what is no text is left out. Raises TokenizerError for an id that there is not."""
        return self.source.decode(_text_ids(checked(ids, self.source_size)))

    def decode_target(self, ids: Iterable[int]) -> str:
        """As `decode_source`."""
        return self.target.decode(_text_ids(checked(ids, self.target_size)))

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_target(ids)

    def decoder(self) -> Decoder:
        return _TargetDecoder(self)

    def tokens_of(self, ids: Iterable[int], side: Side = "target") -> list[str]:
        """A label for every id, to be read in a picture. A space is ␣, the end ⏎; of a character that is several
        tokens, the last has it and the others are an ellipsis."""
        tokenizer = self.source if side == "source" else self.target
        decoder, labels = tokenizer.decoder(), []
        for id in checked(ids, FIRST + tokenizer.vocab_size):
            if id < FIRST:
                decoder.flush()  # a character that was never completed
                labels.append(LABELS[id])
            else:
                labels.append("".join(map(_visible, decoder.feed(id - FIRST))) or "…")
        return labels

    def knows(self, character: str) -> bool:
        return self.target.knows(character)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "version": VERSION,
            "source": self.source.to_dict(),
            "target": self.target.to_dict(),
        }

    def __repr__(self) -> str:
        return f"PairTokenizer({self.source!r}, {self.target!r})"


class _TargetDecoder:
    """Streams a translation: nothing more comes after END."""

    def __init__(self, tokenizer: PairTokenizer):
        self.tokenizer, self.ended = tokenizer, False
        self.text = tokenizer.target.decoder()

    def feed(self, token: int) -> str:
        (id,) = checked([token], self.tokenizer.vocab_size)
        self.ended = self.ended or id == END
        return "" if self.ended or id < FIRST else self.text.feed(id - FIRST)

    def flush(self) -> str:
        self.ended = False
        return self.text.flush()


def _visible(character: str) -> str:
    if character in " \u3000":
        return "␣"
    if character == "\ufffd":
        return "…"  # what fonts for Japanese need not have
    return character if character.isprintable() else ascii(character)[1:-1]


def _text_ids(ids: list[int]) -> list[int]:
    return [id - FIRST for id in itertools.takewhile(lambda id: id != END, ids) if id >= FIRST]


def _encoded(tokenizer: Tokenizer, texts: Sequence[str], side: Side, strict: bool) -> list[np.ndarray]:
    """Text ids and END for every text."""
    try:
        if isinstance(tokenizer, SubwordTokenizer):
            found = tokenizer.encode_batch(texts)
        else:
            found = [tokenizer.encode(text) for text in texts]
    except TokenizerError:
        if strict:
            raise _unknown(tokenizer, texts, side) from None
        found = [_with_unknown(tokenizer, text) for text in texts]
    if not found:
        return []
    # One array with all of them, and views of it: three small arrays for every sentence would take longer.
    ends = np.cumsum([len(ids) for ids in found])
    joined = np.insert(np.concatenate(found) + FIRST, ends, END)
    stops = (ends + np.arange(1, len(ends) + 1)).tolist()
    return [joined[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


def _with_unknown(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Ids of the tokenizer's own, and UNKNOWN where it has none."""
    try:
        return tokenizer.encode(text)
    except TokenizerError:
        runs = [(known, "".join(run)) for known, run in itertools.groupby(text, tokenizer.knows)]
        return np.concatenate(
            [tokenizer.encode(run) if known else np.full(len(run), UNKNOWN - FIRST) for known, run in runs]
        )


def _unknown(tokenizer: Tokenizer, texts: Sequence[str], side: Side) -> TokenizerError:
    """The error for the first text with characters that are not known: it names them."""
    text = next(text for text in texts if not all(map(tokenizer.knows, text)))
    unknown = [describe(character) for character in dict.fromkeys(text) if not tokenizer.knows(character)]
    more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
    named = f"{', '.join(unknown[:NAMED])}{more}"
    advice = "Leave it out" if len(unknown) == 1 else "Leave them out"
    if tokenizer.kind != "bpe":
        advice += ", or train with --tokenizer bpe, which takes any text"
    return TokenizerError(f"Not known to the {side}'s {tokenizer.kind} tokenizer: {named}. {advice}.")
