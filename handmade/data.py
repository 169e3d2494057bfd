"""A text as token files, and the windows that training and evaluation take from them.

    data = prepare([Path("mybook.txt")], cache_folder)
    windows = Windows(data.train, context=256)
    inputs, targets = windows.draw(generator, batch=16)        # for training: anywhere in the split
    for inputs, targets in Windows(data.validation, 256).walk(16): ...     # for evaluation: all of it, once

The text is read in pieces and its tokens are on disk, mapped into memory: what is held in memory does not grow
with the text. Dimensions: B rows of a batch, T = context.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from handmade import texts, tokenizers
from handmade.errors import ConfigError, DataError, ResourceError, TokenizerError, did_you_mean
from handmade.files import CACHE_ADVICE, no_space, whole
from handmade.texts import Progress, TextFiles
from handmade.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer, describe

VERSION = 1  # of the files in the cache: a change of what they hold is a new number
MOST_CHARACTERS = 256
"""With more distinct characters than a byte has values, `auto` takes bytes. Above it most characters are rare
ones (as in Chinese), seldom seen in training, and the next text brings new ones."""

IGNORED = -100  # a target that is not scored


@dataclasses.dataclass(frozen=True)
class TextData:
    """A text that is ready to be learnt: its two parts as tokens on disk, and what was found out about it."""

    train: np.ndarray
    """Tokens to train on: mapped from disk, in the smallest unsigned type that fits."""
    validation: np.ndarray
    tokenizer: Tokenizer
    reason: str
    """Which tokenizer, and why, in words."""
    characters: int
    """Characters of the whole text."""
    distinct: int
    """Distinct characters of the whole text."""
    validation_bytes: int
    """Bytes of UTF-8 that the validation tokens after the first stand for. The first is not scored, so
    bits per byte = mean loss in nats * (len(validation) - 1) / (ln 2 * validation_bytes)."""
    fingerprint: str
    """sha256 over the contents of the files and which part each is for. Another text has another one."""
    notes: tuple[str, ...] = ()
    """What a person should know about how the files were taken."""

    def describe(self) -> str:
        """One line: how much text, which tokens, how they are divided."""
        return (
            f"{self.characters:,} characters, {self.distinct:,} distinct, {_words(self.tokenizer)}; "
            f"{len(self.train):,} to train on, {len(self.validation):,} to validate"
        )


def prepare(
    sources: Sequence[Path | str],
    folder: Path | str,
    tokenizer: str | Tokenizer = "auto",
    validation: Sequence[Path | str] | None = None,
    encoding: str = "utf-8",
    fraction: float = 0.1,
    progress: Progress | None = None,
) -> TextData:
    """Turn text files into tokens, or find the tokens that an earlier call left in `folder`.

    The files are taken in sorted order, a file once, and joined; a file that does not end in a newline is given
    one before the next begins. The last `fraction` of the text is the validation part: of the characters for
    character tokens, of the bytes for byte tokens (never inside a character). With `validation`, those files are
    the validation part, and are left out of `sources` if they are there too.

    `tokenizer`: "char" (its characters come from the training part alone), "byte", "auto" (characters, if there
    are at most 256 and the validation part has none that the training part has not; else bytes), or a tokenizer
    to use as it is.

    `folder` may serve many texts: the files in it are named after the contents and the choices above. They get
    their names only when they are whole.

    Raises: DataError for a text that cannot be used, TokenizerError for a character that the tokenizer does not
    know, ResourceError for a full disk, ConfigError for a choice that there is not.
    """
    _check_choices(tokenizer, fraction)
    texts.check_encoding(encoding)
    files = texts.take(sources, validation or (), encoding, progress, passes=3)
    wanted = tokenizer if isinstance(tokenizer, str) else tokenizer.to_dict()
    choices = json.dumps([VERSION, files.fingerprint, wanted, encoding, fraction], sort_keys=True)
    path = Path(folder) / hashlib.sha256(choices.encode()).hexdigest()[:24]
    data = _open(path)
    if data is None:
        _make(path, files, tokenizer, fraction)
        data = _open(path)
        if data is None:
            raise ResourceError(f"{path}: the tokens were written there, but cannot be read back.")
    files.meter.finish()
    return dataclasses.replace(data, fingerprint=files.fingerprint, notes=tuple(files.notes))


def _check_choices(tokenizer: str | Tokenizer, fraction: float) -> None:
    choices = ("auto", "char", "byte")
    if isinstance(tokenizer, str) and tokenizer not in choices:
        raise ConfigError(
            f"--tokenizer {tokenizer}: must be one of {', '.join(choices)}.{did_you_mean(tokenizer, choices)}"
        )
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction = {fraction}: must be between 0 and 1.")


# --------------------------------------------------------------------------------------------------------------
# What is in the text


@dataclasses.dataclass
class _Scan:
    """What one reading finds out: enough to choose a tokenizer and to know where the split falls."""

    characters: int = 0
    bytes: int = 0
    """In UTF-8."""
    first: dict[str, int] = dataclasses.field(default_factory=dict)
    """Every distinct character and the position where it comes first."""
    begins: list[tuple[int, Path]] = dataclasses.field(default_factory=list)
    """The position where the text of each file begins."""

    def count(self, kind: str) -> int:
        """How many tokens of this kind the text is."""
        return self.bytes if kind == "byte" else self.characters

    def place(self, position: int) -> str:
        """A position in the joined text, as a file and a character in it counted from 1."""
        begin, path = [entry for entry in self.begins if entry[0] <= position][-1]
        return f"{path}: character {position - begin + 1:,}"


def _scan(pieces: Iterator[tuple[Path, str]]) -> _Scan:
    scan = _Scan()
    seen = np.zeros(0x110000, dtype=bool)
    for path, text in pieces:
        if not scan.begins or scan.begins[-1][1] != path:
            scan.begins.append((scan.characters, path))
        points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        # In small blocks: only the first has many new characters, and sorting those is what takes time.
        for start in range(0, len(points), 1 << 16):
            block = points[start : start + (1 << 16)]
            new = np.flatnonzero(~seen[block])
            if new.size:
                found, index = np.unique(block[new], return_index=True)
                seen[found] = True
                for point, at in zip(found.tolist(), new[index].tolist(), strict=True):
                    scan.first[chr(point)] = scan.characters + start + at
        scan.characters += len(text)
        scan.bytes += len(text) if text.isascii() else len(text.encode())
    return scan


def _choose(request: str | Tokenizer, train: _Scan, held: _Scan, cut: int) -> tuple[Tokenizer, str]:
    """The tokenizer, and why. What `train` has from position `cut` on is for validation, and so is `held`."""
    if not isinstance(request, str):
        for scan in (train, held):
            _refuse_unknown(scan, request.knows, "the tokenizer that was given")
        return request, f"{_words(request)}: the tokenizer that was given"
    if request == "byte":
        return ByteTokenizer(), "byte tokens, as asked for"
    known = {character for character, position in train.first.items() if position < cut}
    if request == "char":
        for scan in (train, held):
            _refuse_unknown(scan, known.__contains__, "the training part")
        return CharTokenizer.train(known), "character tokens, as asked for"
    if len(known) > MOST_CHARACTERS:
        return ByteTokenizer(), f"byte tokens: {len(known):,} distinct characters are more than {MOST_CHARACTERS}"
    new = (train.first.keys() | held.first.keys()) - known
    if new:
        return ByteTokenizer(), f"byte tokens: only the validation part has {describe(min(new))}"
    return CharTokenizer.train(known), f"character tokens: {len(known):,} distinct, all of them seen in training"


def _refuse_unknown(scan: _Scan, knows: Callable[[str], bool], who: str) -> None:
    """Raise TokenizerError for the first character that is not known."""
    unknown = [(position, character) for character, position in scan.first.items() if not knows(character)]
    if unknown:
        position, character = min(unknown)
        raise TokenizerError(
            f"{scan.place(position)}, {describe(character)}, is not in {who}. "
            "Take it out, or train with --tokenizer byte, which takes any text."
        )


def _words(tokenizer: Tokenizer) -> str:
    return {"char": "character tokens", "byte": "byte tokens"}.get(tokenizer.kind, f"{tokenizer.kind} tokens")


# --------------------------------------------------------------------------------------------------------------
# The tokens on disk: PATH.train and PATH.validation, and PATH.json, which is written last and makes them count


def _make(path: Path, files: TextFiles, request: str | Tokenizer, fraction: float) -> None:
    """Look through the text, choose the tokenizer, write the tokens."""

    def cut(total: int) -> int:
        """How many of the tokens of `files.train` are trained on."""
        return total if files.held else int(total * (1 - fraction))

    train, held = _scan(files.pieces(files.train)), _scan(files.pieces(files.held))
    kind = request if isinstance(request, str) else request.kind
    total = train.count(kind)
    _check_length(files, kind, fraction, cut(total), total - cut(total) + held.count(kind))
    tokenizer, reason = _choose(request, train, held, cut(train.characters))
    total = train.count(tokenizer.kind)
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    what, size = f"the tokens of {files.name}", dtype.itemsize * (total + held.count(tokenizer.kind))
    _check_space(path.parent, what, size)
    with (
        whole(_train_path(path), what, size, CACHE_ADVICE) as train_file,
        whole(_validation_path(path), what, size, CACHE_ADVICE) as validation_file,
    ):
        first, second = _Part(train_file, dtype), _Part(validation_file, dtype)
        for _, text in files.pieces(files.train):
            ids = tokenizer.encode(text)
            here = 0 if second.tokens else min(cut(total) - first.tokens, len(ids))
            if tokenizer.kind == "byte":
                while 0 < here < len(ids) and ids[here] & 0xC0 == 0x80:  # not inside a UTF-8 sequence
                    here -= 1
            first.put(ids[:here])
            second.put(ids[here:])
        for _, text in files.pieces(files.held):
            second.put(tokenizer.encode(text))
        files.check_unchanged()
        _check_length(files, tokenizer.kind, fraction, first.tokens, second.tokens)  # the cut may have moved
    record = {
        "version": VERSION,
        "dtype": dtype.name,
        "train": first.tokens,
        "validation": second.tokens,
        "validation_bytes": _bytes_after_first(_mapped(_validation_path(path), dtype, second.tokens), tokenizer),
        "characters": train.characters + held.characters,
        "distinct": len(train.first.keys() | held.first.keys()),
        "reason": reason,
        "tokenizer": tokenizer.to_dict(),
    }
    with whole(_record_path(path), what, advice=CACHE_ADVICE) as file:
        file.write(json.dumps(record, indent=2).encode())


def _check_length(files: TextFiles, kind: str, fraction: float, train: int, held: int) -> None:
    """Raise DataError unless both parts have two tokens: one to see, and one to tell from it."""
    unit = "bytes" if kind == "byte" else "characters"
    for name, part, length in (("training", files.train, train), ("validation", files.held, held)):
        if length >= 2:
            continue
        if files.held:
            raise DataError(f"{part[0]}: too short for a {name} text: {length} of at least 2 {unit}.")
        needed = max(int(1 / fraction), int(2 / (1 - fraction))) + 1
        raise DataError(
            f"{files.name}: too short: {train + held:,} of at least {needed:,} {unit}, so that 2 of the last "
            f"{fraction:.0%} are there to validate. Give a longer text, or a validation text with --validation."
        )


def _check_space(folder: Path, what: str, size: int) -> None:
    """Raise ResourceError where the disk has no room for `size` bytes."""
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < size:
        raise no_space(folder, what, size, CACHE_ADVICE, free)


class _Part:
    """One of the two token files while it is written."""

    def __init__(self, file: BinaryIO, dtype: np.dtype):
        self.file, self.dtype, self.tokens = file, dtype, 0

    def put(self, ids: np.ndarray) -> None:
        self.tokens += len(ids)
        self.file.write(ids.astype(self.dtype).data)


def _train_path(path: Path) -> Path:
    return path.with_name(path.name + ".train")


def _validation_path(path: Path) -> Path:
    return path.with_name(path.name + ".validation")


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _open(path: Path) -> TextData | None:
    """What `_make` wrote, or None where it is not there or not whole."""
    try:
        record = json.loads(_record_path(path).read_bytes())
        if record["version"] != VERSION:
            return None
        return TextData(
            train=_mapped(_train_path(path), record["dtype"], record["train"]),
            validation=_mapped(_validation_path(path), record["dtype"], record["validation"]),
            tokenizer=tokenizers.from_dict(record["tokenizer"]),
            reason=record["reason"],
            characters=record["characters"],
            distinct=record["distinct"],
            validation_bytes=record["validation_bytes"],
            fingerprint="",
        )
    except (OSError, ValueError, KeyError, TypeError):  # TokenizerError is a ValueError
        return None


def _bytes_after_first(tokens: np.ndarray, tokenizer: Tokenizer) -> int:
    """How many bytes of UTF-8 the tokens stand for, the first not counted, a piece at a time."""
    pieces = range(1, len(tokens), texts.PIECE)
    return sum(int(tokenizer.token_bytes[tokens[start : start + texts.PIECE]].sum()) for start in pieces)


def _mapped(path: Path, dtype: str | np.dtype, tokens: int) -> np.ndarray:
    found = np.memmap(path, dtype=dtype, mode="r")
    if len(found) != tokens:
        raise ValueError(f"{path}: {len(found)} tokens, not {tokens}")
    return found


# --------------------------------------------------------------------------------------------------------------
# Windows


class Windows:
    """The windows of a split: `context` tokens to see, and the token after each of them to tell.

        inputs[b, t] = tokens[start_b + t]        targets[b, t] = tokens[start_b + t + 1]

    `len(windows)` is how many there are: a start at 0, 1, ..., len(tokens) - context - 1. It is 0 where the split
    is too short for one; `walk` works there too.
    Raises DataError for a split of fewer than two tokens.
    """

    def __init__(self, tokens: np.ndarray, context: int):
        if len(tokens) < 2:
            raise DataError(f"A split of {len(tokens)} tokens has no window: 2 are needed, one to see, one to tell.")
        if context < 1:
            raise ConfigError(f"context = {context}: must be at least 1.")
        # A plain view: the memmap class makes every small step of indexing slower.
        self.tokens = np.asarray(tokens)
        self.context = context
        self._count = max(0, len(tokens) - context)
        self._windows = np.lib.stride_tricks.sliding_window_view(self.tokens, context + 1) if self._count else None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, start: int) -> tuple[Tensor, Tensor]:
        """The window that begins at a token. Shapes: (T,) each, int64. Raises IndexError where there is none."""
        if self._windows is None:
            raise IndexError(f"{start}: there is no window of {self.context} tokens.")
        row = torch.from_numpy(self._windows[start].astype(np.int64))
        return row[:-1].clone(), row[1:].clone()

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
        """A batch of windows, each start as likely as any other, with replacement.

        `generator` is torch's, on the CPU: its state is a tensor that a checkpoint keeps.
        Shapes: inputs and targets (B, T), int64.
        Raises DataError where the split has no whole window.
        """
        if self._windows is None:
            raise DataError(
                f"A context of {self.context:,} needs {self.context + 1:,} tokens and the split has "
                f"{len(self.tokens):,}. Choose a context of at most {len(self.tokens) - 1:,}."
            )
        starts = torch.randint(self._count, (batch,), generator=generator)
        rows = torch.from_numpy(self._windows[starts.numpy()].astype(np.int64))
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def walk(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole split in windows side by side: every token after the first is a target exactly once.

        Nothing is drawn. All batches have one shape, so that a compiled model is compiled once: what is over at
        the end is filled with input 0 and target -100, which is not scored.
        Shapes: inputs and targets (B, T), int64, with B = min(batch, number of windows).
        """
        scored = len(self.tokens) - 1
        batch = min(batch, -(-scored // self.context))
        room = batch * self.context
        for start in range(0, scored, room):
            piece = torch.from_numpy(self.tokens[start : start + room + 1].astype(np.int64))
            length = len(piece) - 1
            inputs, targets = torch.zeros(room, dtype=torch.int64), torch.full((room,), IGNORED)
            inputs[:length], targets[:length] = piece[:-1], piece[1:]
            yield inputs.view(batch, self.context), targets.view(batch, self.context)


def fit_context(tokens: int, requested: int) -> tuple[int, str]:
    """The longest context, up to `requested`, that a training split of so many tokens has a window for; and a
    sentence for the person where that is shorter, else the empty string.

    >>> fit_context(100, 256)
    (99, 'The training part has 100 tokens, so the context is 99 instead of 256.')
    """
    longest = max(1, tokens - 1)
    if requested <= longest:
        return requested, ""
    return longest, f"The training part has {tokens:,} tokens, so the context is {longest:,} instead of {requested:,}."
