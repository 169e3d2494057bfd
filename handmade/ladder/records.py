"""ladder.jsonl: one line a rung and seed, appended as each is done, so that a killed climb goes on where it was.

Every line says which text, budget, version and settings it is of, and lines of different ones are never mixed.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from handmade import files
from handmade.errors import ResourceError, RunError

NAME = "ladder.jsonl"
NEEDED: dict[str, Any] = {
    "rung": str,
    "seed": int,
    "val_loss": (int, float, type(None)),
    "train_seconds": (int, float),
    "seconds": (int, float),
    "steps": int,
    "settings": dict,
    "data": dict,
    "budget": dict,
    "version": str,
}
WHAT = "the ladder's results"
ADVICE = "choose another folder with --out"


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file, in the order they were made; none where there is no file. A last line that was cut
    short is left out: the climb was killed while it was written. Raises RunError for a damaged line, ResourceError
    where no such file can be."""
    try:
        with files.explained(path, WHAT, None, ADVICE, (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)):
            content = path.read_bytes()
    except FileNotFoundError:
        return []
    whole, _, _ = content.rpartition(b"\n")
    records = []
    for count, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not _whole(record):
            raise RunError(f"{path}: line {count} is damaged. Take it out, or begin anew with --force.")
        records.append(record)
    return records


def _whole(record: Any) -> bool:
    """Whether a line holds what is read of one."""
    if not isinstance(record, dict):
        return False
    if not all(name in record and isinstance(record[name], kind) for name, kind in NEEDED.items()):
        return False
    amount = "tokens" if record["budget"].get("equal") == "tokens" else "seconds"
    return isinstance(record["budget"].get(amount), (int, float))


def require_place(path: Path) -> None:
    """Raise ResourceError where the file could not be written: better now than after the first run. Writes nothing."""
    there = next(place for place in (path, *path.absolute().parents) if os.path.exists(place))
    if os.path.isdir(there) == (there == path):
        number = errno.EISDIR if there == path else errno.ENOTDIR
    elif not os.access(there, os.W_OK):
        number = errno.EACCES
    else:
        return
    with files.explained(path, WHAT, None, ADVICE):
        raise OSError(number, os.strerror(number))


@contextmanager
def held(path: Path, anew: bool = False) -> Iterator[None]:
    """Keep other processes from climbing into the same file; however this one ends, the file is free then. `anew`
    empties it first. Raises RunError where another process has it, ResourceError where it cannot be written."""
    with files.explained(path, WHAT, None, ADVICE):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "ab")  # noqa: SIM115  (closed below)
        except FileNotFoundError as problem:  # a folder that takes no folders, as /proc
            raise ResourceError(f"{path.parent}: no such folder can be made. {ADVICE.capitalize()}.") from problem
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{path.parent}: another process is climbing there. Wait for that one, or {ADVICE}."
            ) from None
        except (ImportError, OSError):  # Windows, and some network file systems, have no such locks
            pass
        if anew:
            file.truncate(0)
        yield


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Write one more line, and have it on the disk before returning. What a kill left of a line is cut away first.
    Raises ResourceError where there is no room or no permission."""
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    with files.explained(path, WHAT, len(line), ADVICE):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def require_same(path: Path, records: Sequence[Mapping[str, Any]], identity: Mapping[str, Any]) -> None:
    """Raise RunError where a record is of another text, budget or version than `identity` says."""
    words = {
        "data": "are of another text",
        "budget": "were made with another budget",
        "context": "were made with another context",
        "version": "were written by another version of handmade",
        "prompt": "have samples from another prompt",
    }
    for record in records:
        for name, word in words.items():
            if name in identity and record.get(name) != identity[name]:
                was, now = (_said(name, one) for one in (record.get(name), identity[name]))
                now = "and has changed since" if now == was else f"now {now}"
                raise RunError(
                    f"{path}: its results {word} ({was}, {now}). They are not mixed:"
                    f" {ADVICE}, or begin anew with --force."
                )


def require_settings(path: Path, records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Raise RunError where a rung was run with other settings than it has now (`settings`: rung -> settings)."""
    for record in records:
        name = record["rung"]
        if name in settings and record["settings"] != json.loads(json.dumps(settings[name])):
            raise RunError(
                f"{path}: rung {name} was run with other settings than it has now. {ADVICE.capitalize()}, or begin"
                " anew with --force."
            )


def _said(name: str, value: Any) -> str:
    if name == "data" and isinstance(value, Mapping):
        return f"{value.get('name')}, {value.get('train_tokens', 0):,} tokens"
    if name == "budget" and isinstance(value, Mapping):
        unit = "s" if value.get("equal") == "time" else "tokens"
        amount = value.get("seconds") or value.get("tokens")
        return f"equal {value.get('equal')}" if amount is None else f"{amount:,} {unit} a run"
    return repr(value)
