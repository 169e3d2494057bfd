"""Which tokenizer a file describes. On disk a tokenizer is a small JSON file whose `kind` says which it is.

    tokenizer = CharTokenizer.train(["to be, or not to be"])
    tokenizer.save("tokenizer.json")
    load("tokenizer.json").decode(tokenizer.encode("not to be"))          # "not to be"

All have one protocol, `Tokenizer`. Another kind is one more class, in a file of its own, and one more entry here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handmade.characters import VERSION, ByteTokenizer, CharTokenizer, Decoder, Tokenizer, describe
from handmade.errors import TokenizerError
from handmade.pair_tokenizer import PairTokenizer
from handmade.subwords import SubwordTokenizer

__all__ = [
    "KINDS",
    "TEXT_KINDS",
    "ByteTokenizer",
    "CharTokenizer",
    "Decoder",
    "PairTokenizer",
    "SubwordTokenizer",
    "Tokenizer",
    "describe",
    "digest",
    "from_dict",
    "load",
]

KINDS = ("char", "byte", "bpe", "pair")
"""What a file may hold."""
TEXT_KINDS = ("char", "byte")
"""What a language model's text can be read into."""


def from_dict(values: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `to_dict` described. Raises TokenizerError where that cannot be read."""
    kind, version = values.get("kind"), values.get("version")
    if version != VERSION:
        raise TokenizerError(f"version {version!r} is not known here, only {VERSION}; a newer handmade may read it.")
    if kind == "byte":
        return ByteTokenizer()
    if kind == "char":
        characters = values.get("characters")
        if not isinstance(characters, str):
            raise TokenizerError("the list of characters is missing.")
        return CharTokenizer(characters)
    if kind == "bpe":
        return SubwordTokenizer.from_dict(values)
    if kind == "pair":
        sides = [values.get("source"), values.get("target")]
        if not all(isinstance(side, dict) for side in sides):
            raise TokenizerError("the source's or the target's tokenizer is missing.")
        return PairTokenizer(*(from_dict(side) for side in sides))  # type: ignore[arg-type]
    raise TokenizerError(f"kind {kind!r} is not known here, only {', '.join(KINDS[:-1])} and {KINDS[-1]}.")


def digest(tokenizer: Tokenizer) -> str:
    """sha256 of what a tokenizer does: a vocabulary in another order has the same size."""
    return hashlib.sha256(json.dumps(tokenizer.to_dict(), sort_keys=True).encode()).hexdigest()


def load(path: Path | str) -> Tokenizer:
    """Read a tokenizer's JSON file. Raises TokenizerError that names the file where it is missing or damaged."""
    try:
        values = json.loads(Path(path).read_bytes())
        if not isinstance(values, dict):
            raise TokenizerError("it is not a JSON object.")
        return from_dict(values)
    except FileNotFoundError:
        raise TokenizerError(f"{path}: no such tokenizer file.") from None
    except OSError as problem:
        raise TokenizerError(f"{path}: cannot be read ({problem.strerror}).") from None
    except TokenizerError as problem:
        raise TokenizerError(f"{path}: not a tokenizer file: {problem}") from None
    except (ValueError, RecursionError) as problem:
        raise TokenizerError(f"{path}: damaged, not readable as JSON ({problem}).") from None
