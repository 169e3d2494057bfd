"""Files that are whole or not there: written under a temporary name, flushed, then renamed.

with whole(Path("corpus.txt"), "the corpus") as file:
    file.write(...)          # a kill here leaves no corpus.txt, or the old one
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from handmade.errors import ResourceError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CACHE_ADVICE = "name another folder in HANDMADE_CACHE"
FORBIDDEN = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
)


@contextmanager
def whole(path: Path, what: str, size: int | None = None, advice: str = "choose another folder") -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` only when the block ends without an exception.

    `what` names the thing in an error ("the token file of mybook.txt"); `size` is how many bytes it will have;
    `advice` is what to do where it cannot be written, besides making room.
    Raises ResourceError where the disk is full or the folder may not be written to. Whatever is raised, the
    temporary file is removed.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):  # renaming over /dev/null would take it away
        raise ResourceError(f"{path}: no file, so {what} cannot be written there. {advice[0].upper()}{advice[1:]}.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with explained(path, what, size, advice):
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path)
            file = open(temporary, "wb")  # noqa: SIM115  (closed below, before it is renamed)
        # The block may read other files and the network: only a full disk is surely about this file.
        with explained(path, what, size, advice, FULL), file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with explained(path, what, size, advice):
            os.replace(temporary, path)
            flush_folder(path.parent)
    except BaseException:  # Ctrl-C too
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def explained(
    path: Path, what: str, size: int | None, advice: str, numbers: tuple[int, ...] = FULL + FORBIDDEN
) -> Iterator[None]:
    """Turn a full disk, and a place that may not be written to, into a ResourceError that says what to do.
    Error numbers of the operating system that are not in `numbers` pass."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in numbers:
            raise
        if problem.errno in FULL:
            raise no_space(path.parent, what, size, advice) from problem
        why = os.strerror(problem.errno or 0)
        raise ResourceError(f"{path}: cannot write {what} there ({why}). {advice[0].upper()}{advice[1:]}.") from problem


def no_space(folder: Path, what: str, size: int | None, advice: str, free: int | None = None) -> ResourceError:
    """The error for a full disk: what would have been written, how large, where."""
    amount = "" if size is None else f" ({readable(size)})"
    left = "" if free is None else f", where {readable(free)} is free"
    return ResourceError(f"No disk space for {what}{amount} in {folder}{left}. Free some, or {advice}.")


def readable(size: int) -> str:
    """A number of bytes for a person.

    >>> readable(1_115_394)
    '1.1 MB'
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"


def _sweep(path: Path) -> None:
    """Remove what a killed process left half-written under a temporary name of `path`."""
    import psutil  # only here: importing the package does nothing

    prefix = f".{path.name}."
    for name in os.listdir(path.parent):
        owner = name.removeprefix(prefix).removesuffix(".part")
        if name == f"{prefix}{owner}.part" and owner.isdecimal() and not psutil.pid_exists(int(owner)):
            with suppress(OSError):
                (path.parent / name).unlink()


def flush_folder(folder: Path) -> None:
    """Have the folder's list of names put on the disk, so that the rename outlives a power cut."""
    if os.name == "nt":
        return  # a folder cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
