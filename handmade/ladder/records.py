"""ladder.jsonl: one line a rung and seed, appended as each is done, so that a killed climb goes on where it was.

Every line says which text, budget, version and settings it is of, and lines of different ones are never mixed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handmade import files
from handmade.errors import RunError

NAME = "ladder.jsonl"
NEEDED = ("rung", "seed", "val_loss", "train_seconds", "steps", "settings", "data", "budget", "version")
ADVICE = "choose another folder with --out"


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file, in the order they were made; none where there is no file. A last line that was cut
    short is left out: the climb was killed while it was written. Raises RunError for a damaged line."""
    try:
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
        if not isinstance(record, dict) or any(name not in record for name in NEEDED):
            raise RunError(f"{path}: line {count} is damaged. Take it out, or begin anew with --force.")
        records.append(record)
    return records


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Write one more line, and have it on the disk before returning. What a kill left of a line is cut away first.
    Raises ResourceError where there is no room or no permission."""
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    with files.explained(path, "the ladder's results", len(line), ADVICE):
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
                raise RunError(
                    f"{path}: its results {word} ({was}, now {now}). They are not mixed:"
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
