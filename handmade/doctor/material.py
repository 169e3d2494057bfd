"""Texts, token ids and tokenizers in one form, whatever form a person has them in."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from handmade.doctor.findings import NotExamined
from handmade.doctor.given import INPUTS, TARGETS
from handmade.doctor.patient import Patient

MOST_ITEMS = 200_000
"""Items of a list or dataset that are read."""
MOST_SYMBOLS = 12_000_000
"""Characters or tokens of one sequence that are read."""
MOST_OF_ROWS = 4_000_000
"""And of all rows together."""


@dataclass(frozen=True)
class Material:
    """What a person trains or validates on: one sequence, or many rows, of characters or of token ids."""

    rows: Sequence[Any]
    """Texts, or arrays of int64."""
    single: bool
    """One sequence that goes on; else rows that have nothing to do with each other."""
    text: bool
    cut: str = ""
    """What was left out, for a person; empty where all was read."""

    @property
    def unit(self) -> str:
        return "characters" if self.text else "tokens"

    @functools.cached_property
    def symbols(self) -> np.ndarray:
        """All rows one after the other: code points or ids, int64."""
        return np.concatenate([symbols(row) for row in self.rows]) if self.rows else np.zeros(0, np.int64)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """The length of each row."""
        return np.array([len(row) for row in self.rows], dtype=np.int64)

    @functools.cached_property
    def whole(self) -> str:
        """All the text; rows are parted by a line's end."""
        return "\n".join(self.rows)

    @functools.cached_property
    def bits(self) -> float:
        """How much one symbol says, by how frequent each is:  - sum p log2 p."""
        counts = np.diff(np.flatnonzero(np.diff(np.sort(self.symbols[:500_000]), prepend=-1, append=-1)))
        shares = counts / counts.sum()
        return float(-(shares * np.log2(shares)).sum())

    def first(self, many: int) -> Material:
        """Its first rows."""
        return self if len(self.rows) <= many else replace(self, rows=self.rows[:many])

    def carrying(self, bits: float) -> int:
        """How many symbols say so much."""
        return max(1, math.ceil(bits / max(self.bits, 0.5)))


def symbols(row: Any) -> np.ndarray:
    """Code points of a text, or ids, as int64."""
    if isinstance(row, str):
        return np.frombuffer(row.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int64)
    return np.asarray(row, dtype=np.int64)


def material(thing: Any, name: str) -> Material:
    """Text or ids out of what was given as `name`. Raises NotExamined for what holds neither."""
    if isinstance(thing, (str, bytes)):
        row = thing if isinstance(thing, str) else np.frombuffer(thing, dtype=np.uint8)
        return one_sequence(row, name, isinstance(thing, str))
    if isinstance(thing, os.PathLike):
        raise NotExamined(f"{name} is a path: give the text itself, or its token ids")
    if torch.is_tensor(thing) or isinstance(thing, np.ndarray):
        return of_array(thing, name)
    if isinstance(thing, tuple) and len(thing) == 2 and all(is_array(one) and one.ndim >= 1 for one in thing):
        if thing[0].ndim == thing[1].ndim == 1:
            return one_sequence(joined(*(as_ids(one, name) for one in thing)), name, False)
        thing = list(zip(*thing, strict=False))  # all inputs and all targets
    if isinstance(thing, (list, tuple)) and thing and is_number(thing[0]):
        return one_sequence(np.array([int(one) for one in thing[:MOST_SYMBOLS]], dtype=np.int64), name, False)
    if isinstance(thing, (list, tuple)) and all(isinstance(one, str) and len(one) == 1 for one in thing) and thing:
        return one_sequence("".join(thing), name, True)  # a list of characters
    items, cut = first_items(thing, name)
    if not items:
        raise NotExamined(f"{name} is empty")
    rows = [row_of(item, name) for item in items]
    text = isinstance(rows[0], str)
    if any(isinstance(row, str) != text for row in rows):
        raise NotExamined(f"{name} has texts and token ids mixed")
    return Material(rows, False, text, cut)


def data_of(patient: Patient, name: str) -> Material | None:
    """`patient.given.<name>` in one form, read once for all checks; None where it was not given."""
    thing = getattr(patient.given, name)
    kept: dict[str, Material] = patient.__dict__.setdefault("materials", {})
    if thing is not None and name not in kept:
        kept[name] = material(thing, name)
    return kept.get(name)


def needed(patient: Patient, name: str) -> Material:
    """What was given, in one form. Raises NotExamined where nothing was."""
    found = data_of(patient, name)
    if found is None:
        raise NotExamined(f"not given: {name}")
    return found


def one_sequence(row: Any, name: str, text: bool) -> Material:
    if len(row) == 0:
        raise NotExamined(f"{name} is empty")
    cut = f"the first {MOST_SYMBOLS:,} of {len(row):,}" if len(row) > MOST_SYMBOLS else ""
    row = row[:MOST_SYMBOLS]
    return Material([row if text else as_array(row)], True, text, cut)


def of_array(thing: Any, name: str) -> Material:
    if not whole_numbers(thing):
        raise NotExamined(f"{name} is an array of {thing.dtype}: token ids are whole numbers")
    if thing.ndim == 1:
        return one_sequence(thing, name, False)
    many = min(len(thing), MOST_ITEMS, max(1, MOST_OF_ROWS // max(1, math.prod(thing.shape[1:]))))
    cut = f"the first {many:,} of {len(thing):,} rows" if len(thing) > many else ""
    return Material(list(as_array(thing[:many]).reshape(many, -1)), False, False, cut)


def first_items(thing: Any, name: str) -> tuple[list[Any], str]:
    """The items of a list, dataset or loader, and what was left out."""
    if isinstance(thing, Mapping) or not (hasattr(thing, "__getitem__") or hasattr(thing, "__iter__")):
        raise NotExamined(f"{name} is a {type(thing).__name__}: give a text, a list of texts, token ids or a dataset")
    if not hasattr(thing, "__len__"):
        raise NotExamined(f"{name} is a {type(thing).__name__} without a length: reading it would use it up")
    if not hasattr(thing, "__getitem__"):  # a loader: its batches are many rows each
        batches = [item for _, item in zip(range(MOST_ITEMS), thing, strict=False)]
        return [row for batch in batches for row in unbatched(batch)], ""
    many, read = len(thing), 0
    found = []
    for index in range(min(many, MOST_ITEMS)):
        found.append(thing[index])
        read += size_of(found[-1])
        if read > MOST_OF_ROWS:
            break
    return found, f"the first {len(found):,} of {many:,} rows" if len(found) < many else ""


def size_of(item: Any) -> int:
    """How many symbols an item has, about."""
    if isinstance(item, (tuple, list)):
        return sum(size_of(one) for one in item) if item and not is_number(item[0]) else len(item)
    return len(item) if hasattr(item, "__len__") and (not is_array(item) or item.ndim) else 1


def unbatched(batch: Any) -> list[Any]:
    """The rows of a batch: (inputs, targets) with many rows each becomes many of them."""
    if isinstance(batch, Mapping):
        batch = (taken(batch, INPUTS), taken(batch, TARGETS))
        batch = tuple(one for one in batch if one is not None)
    if isinstance(batch, (tuple, list)) and len(batch) and all(is_array(one) and one.ndim >= 1 for one in batch):
        return list(zip(*batch, strict=False))
    return list(batch) if is_array(batch) else [batch]


def taken(mapping: Mapping[Any, Any], names: Iterable[str]) -> Any:
    return next((mapping[name] for name in names if name in mapping), None)


def row_of(item: Any, name: str) -> Any:
    """One row as a text or an array: inputs and targets are joined, of a pair of texts the first is taken, for it
    decides the other."""
    if isinstance(item, str):
        return item
    if isinstance(item, Mapping):
        for key in ("text", "sentence", "prompt", "question", "problem", "source"):
            if isinstance(item.get(key), str):
                return item[key]
        found = [one for one in (taken(item, INPUTS), taken(item, TARGETS)) if one is not None]
        if found:
            return row_of(tuple(found), name)
    if is_array(item) and whole_numbers(item):
        return as_array(item).reshape(-1)
    if isinstance(item, (tuple, list)) and item:
        if all(is_number(one) for one in item):
            return np.array([int(one) for one in item], dtype=np.int64)
        if isinstance(item[0], str):
            return item[0]
        if len(item) >= 2:
            return joined(as_ids(item[0], name), as_ids(item[1], name))
        return as_ids(item[0], name)
    raise NotExamined(f"{name} holds a {type(item).__name__}: neither text nor token ids")


def joined(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Inputs, and of the targets what is not among them: all, or the last one where they are the next tokens."""
    if len(inputs) == len(targets):
        if np.array_equal(inputs, targets):
            return inputs
        if np.array_equal(inputs[1:], targets[:-1]):
            return np.append(inputs, targets[-1:])
    return np.concatenate([inputs, targets])


def as_ids(thing: Any, name: str) -> np.ndarray:
    if is_array(thing) and whole_numbers(thing):
        return as_array(thing).reshape(-1)
    if is_number(thing):
        return np.array([int(thing)], dtype=np.int64)
    if isinstance(thing, (list, tuple)) and all(is_number(one) for one in thing):
        return np.array([int(one) for one in thing], dtype=np.int64)
    raise NotExamined(f"{name} holds a {type(thing).__name__}: neither text nor token ids")


def is_array(thing: Any) -> bool:
    return torch.is_tensor(thing) or isinstance(thing, np.ndarray)


def is_number(thing: Any) -> bool:
    return isinstance(thing, (int, np.integer)) or (is_array(thing) and thing.ndim == 0 and whole_numbers(thing))


def whole_numbers(array: Any) -> bool:
    if torch.is_tensor(array):
        return not (array.is_floating_point() or array.is_complex())
    return bool(np.issubdtype(array.dtype, np.integer))


def as_array(thing: Any) -> np.ndarray:
    """A tensor or an array as an array of int64."""
    return np.asarray(thing.detach().cpu() if torch.is_tensor(thing) else thing).astype(np.int64)


# ---------------------------------------------------------------------------------------------------------------
# Tokenizers


class Codec:
    """A person's encode and decode: text -> list of ids, list of ids -> text. Both raise what theirs raise."""

    def __init__(self, encode: Callable[..., Any] | None, decode: Callable[..., Any] | None) -> None:
        self._encode, self._decode = encode, decode
        self._wanted: Callable[[list[int]], Any] = list

    def encode(self, text: str) -> list[int]:
        """What `encode` gives. Raises NotExamined for what are no ids."""
        if self._encode is None:
            raise NotExamined("not given: encode")
        found = self._encode(text)
        for name in ("ids", "input_ids"):
            inner = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
            found = inner if inner is not None and not callable(inner) else found
        if is_array(found) and whole_numbers(found):
            return as_array(found).reshape(-1).tolist()
        if is_array(found) and len(found) == 0:
            return []  # of no text an array of no ids, which has the type of fractions
        found = list(found)
        if not all(is_number(one) for one in found):
            raise NotExamined(f"encode gives a list of {type(found[0]).__name__}, not of token ids")
        return [int(one) for one in found]

    def decode(self, ids: Sequence[int]) -> str:
        """What `decode` gives of a list, or of a tensor or an array where it takes no list."""
        if self._decode is None:
            raise NotExamined("not given: decode")
        try:
            return joined_text(self._decode(self._wanted(list(ids))))
        except (AttributeError, TypeError) as problem:
            for wanted in (torch.tensor, np.array):
                try:
                    found = joined_text(self._decode(wanted(list(ids))))
                except Exception:
                    continue
                self._wanted = wanted
                return found
            raise problem

    def around(self) -> tuple[list[int], list[int]]:
        """The ids that are put before and behind every text."""
        try:
            bare, other = self.encode(""), self.encode("a")
        except Exception:
            return [], []
        for place in range(len(bare) + 1):
            left, right = bare[:place], bare[place:]
            if other[: len(left)] == left and (not right or other[-len(right) :] == right):
                return left, right
        return [], []

    @functools.cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        return self.around()

    def inner(self, text: str) -> list[int]:
        """`encode`, without what is put around every text."""
        found, (left, right) = self.encode(text), self._around
        return found[len(left) : len(found) - len(right)]


def joined_text(found: Any) -> str:
    """Text out of what `decode` gave: some give bytes, or a list of pieces."""
    if isinstance(found, bytes):
        return found.decode("utf-8", errors="replace")
    if isinstance(found, (list, tuple)) and all(isinstance(one, str) for one in found):
        return "".join(found)
    if not isinstance(found, str):
        raise NotExamined(f"decode gives a {type(found).__name__}, not a text")
    return found
