"""Reading text files piece by piece, so that a text of any size needs little memory.

What comes out is clean: decoded, without a byte-order mark, every line ending a single "\\n". What cannot be read
as text is answered with the byte offset and what to do.

    files = take(["book.txt", "letters.txt"])
    for path, text in files.pieces(files.train): ...
"""

from __future__ import annotations

import codecs
import dataclasses
import encodings.aliases
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from handmade.errors import ConfigError, DataError, did_you_mean

PIECE = 1 << 18
"""Bytes read at a time. What is made of a piece (up to 20 times its size) stays small, and in the chip's cache:
this is several times as fast as pieces of a few megabytes."""

HEAD = 1 << 16
"""Bytes looked at to tell text from other files, and to guess an encoding."""

# The longer marks first: UTF-32's little-endian mark begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Control characters that text does have: tab, newline, form feed, carriage return and the like, escape.
_CONTROLS = bytes(set(range(32)) - {7, 8, 9, 10, 11, 12, 13, 27}) + b"\x7f"
_MOST_CONTROLS = 0.05  # random bytes have 0.1


def read(path: Path, encoding: str = "utf-8", piece: int = PIECE) -> Iterator[tuple[str, int]]:
    """The text of a file as (text, number of bytes read for it), a piece at a time.

    A byte-order mark is taken off and decides the encoding, whatever `encoding` says: text does not begin like
    that by chance. CRLF and a lone CR become "\\n", also where CR and LF fall into different pieces, and
    a character whose bytes do is not broken.
    Raises DataError for a file that is missing, cannot be read, is binary, or is not in the encoding.
    """
    with _open(path) as file:
        head = file.read(HEAD)
        mark, codec = _mark(head) or (b"", encoding)
        if not _is_wide(codec):
            _refuse_binary(path, head)
        file.seek(len(mark))
        decoder = io.IncrementalNewlineDecoder(_decoder(codec), translate=True)
        offset, first, counted = len(mark), True, len(mark)
        while True:
            raw = file.read(piece)
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as problem:
                # The decoder had bytes of an incomplete character waiting before these.
                at = offset - (len(problem.object) - len(raw)) + problem.start
                raise _not_decoded(path, codec, at, problem) from None
            except UnicodeError as problem:
                raise DataError(f"{path}: near byte {offset:,}: not readable as {codec} ({problem}).") from None
            if first and text:
                text, first = text.removeprefix("\ufeff"), False  # the mark of an encoding not in MARKS
            if "\0" in text:
                raise DataError(f"{path}: not a text file (a NUL after byte {offset:,}).")
            yield text, len(raw) + counted
            counted, offset = 0, offset + len(raw)
            if not raw:
                return


def check_encoding(encoding: str) -> None:
    """Raise ConfigError unless Python knows `encoding` and it is one of text."""
    _decoder(encoding)


def kind(path: Path) -> Literal["text", "empty", "binary"]:
    """What a file is, by its first bytes. Raises DataError where it cannot be read."""
    with _open(path) as file:
        head = file.read(HEAD)
    found = _mark(head)
    if found and len(head) > len(found[0]):
        return "text"
    if not head or found:
        return "empty"
    return "binary" if _looks_binary(head) else "text"


def likely_encoding(sample: bytes) -> str | None:
    """The encoding that a text not in UTF-8 is most likely in, or None. For an error message, not for reading."""
    if 0 in sample:
        return _likely_wide(sample)
    high = re.findall(rb"[\x80-\xff]+", sample)
    if not high:
        return None
    shares = {name: _share(sample, name, usual) for name, usual in _USUAL.items()}
    alone = sum(len(run) == 1 for run in high) > 0.6 * len(high)
    if alone:  # accented letters among plain ones, not words of another alphabet
        shares |= {"cp1251": 0.0, "koi8_r": 0.0}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] > 0.4 else "cp1252" if alone else None


# What most characters of such a text are, where another encoding's text decoded so is mostly something else.
_USUAL = {
    "shift_jis": r"[\u3041-\u30fe\u3001\u3002]",  # kana and the Japanese full stop and comma
    "euc_jp": r"[\u3041-\u30fe\u3001\u3002]",
    "cp1251": r"[\u0430-\u044f]",  # small Cyrillic letters
    "koi8_r": r"[\u0430-\u044f]",
    "euc_kr": r"[\uac00-\ud7a3]",
    "gb18030": r"[的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年]",
    "big5": r"[的一是不了在人有我他這中大來上國個到說們為子和你地出道也時年]",
}
_RARE = {"gb18030": 4, "big5": 4}  # thirty of the commonest characters make a quarter of a Chinese text


def _likely_wide(sample: bytes) -> str | None:
    """Latin letters have one zero byte each in UTF-16, always on the same side."""
    even, odd, half = sample[::2].count(0), sample[1::2].count(0), len(sample) / 2
    if odd > 0.6 * half and even < 0.05 * half:
        return "utf-16-le"
    return "utf-16-be" if even > 0.6 * half and odd < 0.05 * half else None


def _share(sample: bytes, encoding: str, usual: str) -> float:
    """The share of the usual characters among those that are not ASCII; 0 where it cannot be decoded."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample)  # its end may be cut
    except UnicodeError:
        return 0.0
    others = sum(not c.isascii() for c in text)
    return len(re.findall(usual, text)) / max(1, others) * _RARE.get(encoding, 1)


def _open(path: Path) -> BinaryIO:
    # os.path, not Path: a name that is too long or not allowed is simply not there.
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file.")
    if os.path.isdir(path):
        raise DataError(f"{path}: a folder, not a file.")
    if not os.path.isfile(path):
        raise DataError(f"{path}: cannot be read twice, as is needed. Write the text to a file first.")
    try:
        return open(path, "rb")
    except OSError as problem:
        raise DataError(f"{path}: cannot be read ({problem.strerror}).") from None


def _mark(head: bytes) -> tuple[bytes, str] | None:
    return next(((mark, codec) for mark, codec in MARKS if head.startswith(mark)), None)


def _is_wide(encoding: str) -> bool:
    """Whether zero bytes are part of ordinary text in this encoding."""
    return encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32", "utf16", "utf32"))


def _decoder(encoding: str) -> codecs.IncrementalDecoder:
    try:
        "".encode(encoding)  # refuses codecs that are not of text, such as hex
        return codecs.getincrementaldecoder(encoding)("strict")
    except (LookupError, UnicodeError, ValueError):
        names = {name.replace("_", "-") for name in encodings.aliases.aliases.values()}
        raise ConfigError(
            f"--encoding {encoding}: not an encoding that Python knows.{did_you_mean(encoding, names)}"
        ) from None


def _looks_binary(head: bytes) -> bool:
    return b"\0" in head or len(head) - len(head.translate(None, _CONTROLS)) > _MOST_CONTROLS * len(head)


def _refuse_binary(path: Path, head: bytes) -> None:
    if not _looks_binary(head):
        return
    wide = _likely_wide(head)
    if wide:
        raise DataError(f"{path}: not UTF-8. It looks like {wide}: try --encoding {wide}.")
    why = f"a NUL at byte {head.index(0):,}" if b"\0" in head else "control characters all over"
    raise DataError(f"{path}: not a text file ({why}). Give plain text, such as a .txt file.")


def _not_decoded(path: Path, codec: str, at: int, problem: UnicodeDecodeError) -> DataError:
    """The error for bytes that are not in the encoding: where, which, and what it may be instead."""
    with open(path, "rb") as file:
        file.seek(max(0, at - HEAD // 2))
        sample = file.read(HEAD)
    if at > HEAD // 2:
        sample = sample[sample.find(b"\n") + 1 :]  # from the start of a line: not inside a character
    name = codec.upper() if codec.lower().startswith("utf") else codec
    found = f"{path}: byte {at:,} (0x{problem.object[problem.start]:02X}) is not valid {name}."
    broken = sample.decode("utf-8", errors="replace")
    whole = sum(not c.isascii() for c in broken) - broken.count("\ufffd")
    if codec.lower() not in ("utf-8", "utf8") and "\ufffd" not in broken.rstrip("\ufffd"):
        return DataError(f"{found} The text looks like UTF-8: leave --encoding out.")
    if whole > 4 * broken.count("\ufffd"):
        return DataError(f"{found} The text around it is UTF-8, so the file is damaged there: mend that place.")
    guess = likely_encoding(sample)
    if guess and guess != codec:
        return DataError(f"{found} It looks like {guess}: try --encoding {guess}, or save the file as UTF-8.")
    return DataError(f"{found} Save the file as UTF-8, or name what it is in with --encoding.")


# --------------------------------------------------------------------------------------------------------------
# Several files as one text


Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all). The bytes of a file are counted once for each time it is read."""


@dataclasses.dataclass
class Meter:
    """Counts the bytes that were read and passes them on."""

    progress: Progress | None
    total: int
    done: int = 0

    def advance(self, bytes: int) -> None:
        self.done = min(self.done + bytes, self.total)
        if self.progress:
            self.progress(self.done, self.total)

    def finish(self) -> None:
        self.advance(self.total - self.done)


@dataclasses.dataclass
class TextFiles:
    """The files of a text: those that are trained on, and those held back for validation (there may be none)."""

    train: list[Path]
    held: list[Path]
    encoding: str
    fingerprint: str
    """sha256 over the contents of the files and which part each is for."""
    notes: list[str]
    """What was left out, and why."""
    stamps: dict[Path, tuple[int, int]]
    meter: Meter

    @property
    def name(self) -> str:
        return str(self.train[0]) if len(self.train) == 1 else f"{self.train[0]} and {len(self.train) - 1} more"

    def pieces(self, files: list[Path]) -> Iterator[tuple[Path, str]]:
        """The joined text of `files`, piece by piece, each with the file that it is from.

        A file that does not end in a newline is given one when another comes after it.
        """
        before, end = Path(), "\n"
        for path in files:
            begun = False
            for text, bytes in read(path, self.encoding):
                self.meter.advance(bytes)
                if not text:
                    continue
                if not begun and end != "\n":
                    yield before, "\n"
                begun, before, end = True, path, text[-1]
                yield path, text

    def check_unchanged(self) -> None:
        """Raise DataError where a file was changed since it was first looked at."""
        for path, stamp in self.stamps.items():
            if _stamp(path) != stamp:
                raise DataError(f"{path}: changed while it was being read. Run the command again.")


def take(
    sources: Sequence[Path | str],
    validation: Sequence[Path | str] = (),
    encoding: str = "utf-8",
    progress: Progress | None = None,
    passes: int = 1,
) -> TextFiles:
    """Order the files, leave out what is empty or there twice, and take the fingerprint of the rest.

    `passes` says how often the files will be read in all, this reading included: `progress` is told of all.
    Raises DataError where nothing is left, or where the validation text is one that is trained on.
    """
    held, files = _ordered(validation), _ordered(sources)
    notes = [f"{path}: the validation text, so not trained on" for real, path in files.items() if real in held]
    files = {real: path for real, path in files.items() if real not in held}
    if not files:
        raise DataError(
            f"{next(iter(held.values()))}: there is no other text to train on."
            if held
            else "No text was given to train on."
        )
    stamps = {path: _stamp(path) for path in [*files.values(), *held.values()]}
    meter = Meter(progress, passes * sum(size for size, _ in stamps.values()))
    # A text that is there twice could be learnt in one part and scored in the other.
    first: dict[str, tuple[str, Path]] = {}
    for part, paths in (("train", files.values()), ("validation", held.values())):
        for path in paths:
            if not stamps[path][0]:
                notes.append(f"{path}: empty, left out")
                continue
            digest = _digest(path, meter)
            role, twin = first.setdefault(digest, (part, path))
            if role != part:
                raise DataError(f"{path}: the same text as {twin}, which is trained on. Validate on another one.")
            if twin != path:
                notes.append(f"{path}: the same text as {twin}, left out")
        if paths and part not in {role for role, _ in first.values()}:
            raise DataError(f"{next(iter(paths))}: the file is empty.")
    fingerprint = hashlib.sha256("\n".join(f"{role} {digest}" for digest, (role, _) in first.items()).encode())
    return TextFiles(
        [path for role, path in first.values() if role == "train"],
        [path for role, path in first.values() if role == "validation"],
        encoding,
        fingerprint.hexdigest(),
        notes,
        stamps,
        meter,
    )


def _ordered(paths: Sequence[Path | str]) -> dict[Path, Path]:
    """Real path -> path as given: sorted by folder and name, a file once, whatever ways to it were given."""
    ways = {Path(path).resolve(): Path(path) for path in paths}
    return {real: ways[real] for real in sorted(ways, key=lambda real: real.parts)}


def _digest(path: Path, meter: Meter) -> str:
    digest = hashlib.sha256()
    with _open(path) as file:
        while block := file.read(PIECE):
            digest.update(block)
            meter.advance(len(block))
    return digest.hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    """(size in bytes, time of the last change)."""
    with _open(path) as file:
        status = os.fstat(file.fileno())
        return status.st_size, status.st_mtime_ns


def text_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The text files in a folder and below, and the files that are not text; both in sorted order.

    Hidden files and folders, and empty files, are in neither.
    """
    found: list[Path] = []
    others: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            what = kind(path) if path.is_file() else "empty"
            if what != "empty":
                (found if what == "text" else others).append(path)
    return sorted(found, key=lambda path: path.parts), sorted(others, key=lambda path: path.parts)
