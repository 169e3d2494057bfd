"""Subwords: frequent words are one token, rare ones several, and any text can be written.

    tokenizer = SubwordTokenizer.train(["the cat sat on the mat"], vocab_size=300)
    tokenizer.decode(tokenizer.encode("the hat"))          # "the hat"

Byte-pair encoding. Every text is first the bytes of its UTF-8; training again and again makes the pair of neighbours
that is seen most often into a new token. Encoding makes the same merges in the same order. No merge crosses the
border of a word, as `PATTERN` finds it.

The `tokenizers` library trains and encodes; it is loaded when that is first asked for. What is kept is ours: the
vocabulary and the merges in their order, which are all that the algorithm knows, so that one made by hand can take
the library's place and read the same files. No token is special: "<|endoftext|>" is text like any other.

Source: Sennrich, Haddow and Birch 2016, section 3.2 (arXiv:1508.07909); over bytes: Radford et al. 2019, section 2.2.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from handmade.characters import VERSION, ByteDecoder, Tokenizer, checked, has_utf8, utf8
from handmade.errors import ConfigError, TokenizerError, optional

PATTERN = (
    r" ?[\p{Han}々〆]+"  # Japanese and Chinese have no spaces; where the script changes, a word mostly ends
    r"| ?\p{Hiragana}+"
    r"| ?[\p{Katakana}ー]+"
    r"| ?\p{L}[\p{L}\p{M}]*(?:['’]\p{L}+)*"  # a word and the space before it; don't is one word
    r"| ?\p{N}+"
    r"| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)|\s+"  # of several spaces the last goes to the word behind them
)
"""What is a word, as a regular expression: every character is in one."""

LEAST = 2  # times that a pair must be seen to become a token

# A byte as one character that can be seen: itself where it can be in Latin-1, else one after Latin-1. The same as
# other byte-level vocabularies have it, so that a space is Ġ here too.
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
_LETTERS = {byte: chr(byte) for byte in _VISIBLE} | {byte: chr(256 + i) for i, byte in enumerate(_HIDDEN)}
LETTERS = tuple(_LETTERS[byte] for byte in range(256))
_BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}


class SubwordTokenizer(Tokenizer):
    """Byte-level BPE. `vocabulary[id]` is a token with its bytes as `LETTERS`, the 256 single bytes first;
    `merges` are "left right", the first learnt first.

    Raises TokenizerError where these do not fit together.
    """

    kind = "bpe"

    def __init__(self, vocabulary: Sequence[str], merges: Sequence[str]):
        self.vocabulary, self.merges = tuple(vocabulary), tuple(merges)
        self.vocab_size = len(self.vocabulary)
        ids = {token: id for id, token in enumerate(self.vocabulary)}
        if self.vocabulary[:256] != LETTERS or len(ids) != self.vocab_size:
            raise TokenizerError("the vocabulary is not the 256 bytes and then distinct tokens.")
        self._pairs = [tuple(merge.split(" ")) for merge in self.merges]
        for pair in self._pairs:
            if len(pair) != 2 or not {*pair, "".join(pair)} <= ids.keys():
                raise TokenizerError(f"the merge {' '.join(pair)!r} is not of two tokens that make a third.")
        if {"".join(pair) for pair in self._pairs} != set(self.vocabulary[256:]):
            raise TokenizerError("a token of the vocabulary is made by no merge.")
        self.pieces = tuple(bytes(_BYTES[letter] for letter in token) for token in self.vocabulary)
        """The bytes that each token stands for."""
        self.token_bytes = np.array([len(piece) for piece in self.pieces], dtype=np.int64)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> SubwordTokenizer:
        """At most `vocab_size` tokens; fewer where no more pairs are seen twice. The order of the texts does not
        matter. The validation part must not be among them.

        Raises ConfigError for fewer than 256 tokens, ResourceError where the library is missing.
        """
        if vocab_size < 256:
            raise ConfigError(f"vocab_size = {vocab_size}: must be at least 256, a token for every byte.")
        library = load_library()
        texts = [texts] if isinstance(texts, str) else list(texts)
        for text in texts:
            utf8(text)  # the library would raise an error of its own
        learner = library.Tokenizer(library.models.BPE())
        learner.pre_tokenizer = _words(library)
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=LEAST,
            initial_alphabet=list(LETTERS),
            special_tokens=[],
            show_progress=False,
        )
        learner.train_from_iterator(texts, trainer)
        learnt = json.loads(learner.to_str())["model"]
        # A merge is a pair, or in older versions of the library "left right".
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in learnt["merges"]]
        order = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
        return cls([*LETTERS, *(token for token in order if token not in _BYTES)], merges)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SubwordTokenizer:
        """Goes back from `to_dict`. Raises TokenizerError where that cannot be read."""
        if values.get("pattern") != PATTERN:
            raise TokenizerError("its words are not found as here; a newer handmade may read it.")
        lists = [values.get("vocabulary"), values.get("merges")]
        if not all(isinstance(items, list) and all(isinstance(item, str) for item in items) for items in lists):
            raise TokenizerError("the vocabulary or the merges are missing.")
        return cls(*lists)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "version": VERSION,
            "pattern": PATTERN,
            "vocabulary": list(self.vocabulary),
            "merges": list(self.merges),
        }

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Many texts at once, which is much quicker than one by one.

        Raises TokenizerError for half of a character, ResourceError where the library is missing.
        """
        encoder = self._encoder
        try:
            found = encoder.encode_batch_fast(texts, add_special_tokens=False)
        except (UnicodeError, TypeError, ValueError):
            for text in texts:
                utf8(text)  # names the character
            raise
        return [np.array(encoding.ids, dtype=np.int64) for encoding in found]

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join([self.pieces[id] for id in checked(ids, self.vocab_size)]).decode("utf-8", errors="replace")

    def decoder(self) -> PieceDecoder:
        return PieceDecoder(self)

    def knows(self, character: str) -> bool:
        return has_utf8(character)

    @functools.cached_property
    def _encoder(self) -> Any:
        library = load_library()
        ids = {token: id for id, token in enumerate(self.vocabulary)}
        encoder = library.Tokenizer(library.models.BPE(vocab=ids, merges=self._pairs))
        encoder.pre_tokenizer = _words(library)
        return encoder

    def __repr__(self) -> str:
        return f"SubwordTokenizer({self.vocab_size:,} tokens)"


class PieceDecoder(ByteDecoder):
    """Holds back the bytes of a character until its last token is there."""

    def __init__(self, tokenizer: SubwordTokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def feed(self, token: int) -> str:
        return self.take(self.tokenizer.pieces[checked([token], self.tokenizer.vocab_size)[0]])


def load_library() -> Any:
    """The library that trains and encodes. Raises ResourceError where it is missing."""
    try:
        import tokenizers
    except ImportError:
        raise optional("tokenizers", "translation", "Subword tokens") from None
    return tokenizers


def _words(library: Any) -> Any:
    """Cuts a text into words, and writes their bytes as LETTERS."""
    cut = library.pre_tokenizers.Split(library.Regex(PATTERN), "isolated")
    return library.pre_tokenizers.Sequence(
        [cut, library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
