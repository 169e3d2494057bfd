"""The zoo: small models and training set-ups as a learner would write them, and their sick twins.

A file of the zoo is healthy as it stands. A twin with a mistake differs in the lines that are marked, and in no other:

    scores = q @ k.transpose(-2, -1) / head_size**0.5  # healthy: scale-by-width
    # scores = q @ k.transpose(-2, -1) / width**0.5  # sick: scale-by-width

For the mistake `scale-by-width` the first line is taken out and the second one in. A sick line may stand alone: then
it is added; so may a healthy one: then it is forgotten. A line may be marked for several mistakes, with commas.

Each file has `MISTAKES`, mistake -> the check that has to name it; `ALSO`, mistake -> other checks that it cannot but
set off, where there are any; and `make(**sizes)`, which returns what the doctor takes.
"""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
MARK = re.compile(r"^(?P<indent>\s*)(?P<comment># )?(?P<code>.*?)\s*# (?P<kind>healthy|sick): (?P<names>[\w\-, ]+)$")


def files() -> list[Path]:
    """All files of the zoo."""
    return [path for path in sorted(FOLDER.glob("*.py")) if path.name != "__init__.py"]


def source(path: Path, mistake: str | None = None) -> str:
    """The text of a file, healthy or with one mistake. Raises ValueError for a mistake that marks no line."""
    text = path.read_text(encoding="utf-8")
    if mistake is None:
        return text
    lines, marked = [], 0
    for line in text.splitlines():
        found = MARK.match(line)
        if found is None or mistake not in found["names"].replace(" ", "").split(","):
            lines.append(line)
            continue
        marked += 1
        lines.append(found["indent"] + (found["code"] if found["kind"] == "sick" else "pass  # taken out"))
    if not marked:
        raise ValueError(f"{path.name}: no line is marked for {mistake}")
    return "\n".join(lines) + "\n"


def load(path: Path, mistake: str | None = None) -> types.ModuleType:
    """A file of the zoo as a module, healthy or with one mistake."""
    name = f"zoo_{path.stem}_{mistake or 'healthy'}".replace("-", "_")
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look there
    exec(compile(source(path, mistake), str(path), "exec"), module.__dict__)
    return module


def twins() -> list[tuple[Path, str]]:
    """Every (file, mistake)."""
    return [(path, mistake) for path in files() for mistake in load(path).MISTAKES]


def make(path: Path, mistake: str | None = None, **sizes: Any) -> Any:
    """What a file gives the doctor."""
    return load(path, mistake).make(**sizes)
