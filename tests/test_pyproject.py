"""What pyproject.toml promises is what the tests are run with."""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
BY_HAND = {"handmade", "ruff", "mypy", "transformers", "x-transformers"}  # tools, and what benchmarks compare with


def bounds(words):
    """Package -> lower bound, as (numbers)."""
    found = {}
    for word in words:
        name, version = re.match(r"([\w-]+)(?:\[\w+\])?(?:[>=]=([\d.]+))?", word).groups()
        if name not in BY_HAND:
            found[name] = tuple(int(part) for part in version.split("."))
    return found


def test_the_oldest_versions_are_those_that_are_tried():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    promised = bounds(word for group in groups for word in group)
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    tried = bounds(line for line in lines if not line.startswith("#"))
    assert promised.keys() == tried.keys()
    assert len(promised) > 12
    for name, bound in promised.items():
        assert tried[name][: len(bound)] == bound, name
        assert not any(tried[name][len(bound) :]), name


def test_the_oldest_python_is_the_one_that_is_checked():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    oldest = settings["project"]["requires-python"].removeprefix(">=")
    assert settings["tool"]["mypy"]["python_version"] == oldest
    assert settings["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
