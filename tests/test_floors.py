"""The floors of the house: imports point down, or sideways without a circle (the design's table, and `FLOORS` here).

Read with `ast`, so nothing is imported and an import inside a function counts too. Imports under TYPE_CHECKING
count for the floors (who writes a type's name knows of it) and not for the circles (nothing is loaded).
`handmade/__init__.py` only forwards names to their homes when they are asked for, so it stands outside.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "handmade"

# A folder stands for all in it. A file that is not here has to be given its floor before it can be merged.
FLOORS = {
    0: ["errors", "config", "files"],
    1: [
        "layers",
        "positions",
        "attention",
        "cache",
        "optimizers",
        "schedules",
        "characters",
        "subwords",
        "pair_tokenizer",
        "tokenizers",
        "pairs",
        "pair_corpora",
        "package_index",
        "texts",
        "corpora",
        "data",
        "machine",
        "randomness",
        "averaging",
    ],
    2: ["models", "presets"],
    3: ["generation", "translating", "writing", "checkpoint", "reports"],
    4: ["tasks"],
    5: ["evaluation", "run", "interop"],
    6: ["training", "planning", "settings", "request", "rehearsal", "sources", "jobs", "curve", "accuracy", "progress"],
    7: ["ladder", "doctor"],
    8: ["cli", "__main__"],
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}


def name_of(path: Path, root: Path) -> str:
    """`handmade.layers.norms` for handmade/layers/norms.py; a package for its __init__.py."""
    parts = [root.name, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int | None:
    return FLOOR_OF.get(module.split(".")[1]) if "." in module else None


def imports_of(path: Path, root: Path, modules: set[str]) -> list[tuple[str, int, bool]]:
    """(module of ours, line, whether it is loaded) for every import in a file, wherever it stands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in node.body
        for inner in ast.walk(child)
    }
    here = name_of(path, root)
    package = here if path.name == "__init__.py" else here.rpartition(".")[0]
    found = []
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            # `from handmade import data` takes a module, `from handmade.data import Windows` a name in one.
            targets = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names]
        elif isinstance(node, ast.Call) and "import_module" in (
            getattr(node.func, "id", ""),
            getattr(node.func, "attr", ""),
        ):
            targets = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        found += [(target, node.lineno, id(node) not in for_types) for target in targets if target in modules]
    return found


def house(root: Path) -> dict[str, list[tuple[str, int, bool]]]:
    """Every module -> what it imports of ours."""
    files = {name_of(path, root): path for path in sorted(root.rglob("*.py"))}
    # From the front door itself only what it forwards can come, which is not an arrow between floors.
    modules = set(files)
    return {
        name: [part for part in imports_of(path, root, modules) if part[0] not in (root.name, name)]
        for name, path in files.items()
        if name != root.name
    }


def complaints(root: Path) -> list[str]:
    """What is wrong with the house, a line each."""
    arrows, found = house(root), []
    for module, targets in arrows.items():
        floor = floor_of(module)
        if floor is None:
            found.append(f"{module} has no floor: add it to FLOORS in tests/test_floors.py, where the design puts it.")
            continue
        for target, line, _ in targets:
            other = floor_of(target)
            if other is not None and other > floor:
                found.append(f"{module}:{line} (floor {floor}) imports {target} (floor {other}): imports point down.")
    circle = find_circle({module: [t for t, _, loaded in targets if loaded] for module, targets in arrows.items()})
    if circle:
        found.append("imports in a circle: " + " -> ".join(circle))
    return found


def find_circle(arrows: dict[str, list[str]]) -> list[str]:
    """One circle, from a module back to itself; empty when there is none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in arrows.get(module, []):
            if circle := walk(target, [*path, module]):
                return circle
        done.add(module)
        return []

    for module in arrows:
        if circle := walk(module, []):
            return circle
    return []


def test_imports_point_down_and_never_in_a_circle():
    assert complaints(ROOT) == []


def test_every_name_in_the_table_is_there():
    # A file that is gone, or renamed, leaves the table too.
    gone = [name for name in FLOOR_OF if not ((ROOT / name).is_dir() or (ROOT / f"{name}.py").exists())]
    assert gone == []


# --- the test can fail -----------------------------------------------------------------------------------------


@pytest.fixture
def small_house(tmp_path):
    """A package of the given files, and the complaints about it."""

    def build(**files: str) -> list[str]:
        root = tmp_path / "handmade"
        for name, text in {"__init__": "from handmade.cli import main", "errors": "", "data": "", **files}.items():
            path = root / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return complaints(root)

    return build


@pytest.mark.parametrize(
    "text",
    [
        "from handmade.run import load",
        "from handmade import run",
        "import handmade.run",
        "import handmade.run as r",
        "from .run import load",
        "from . import run",
        "def f():\n    if True:\n        from handmade.run import load",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from handmade.run import load",
        "import importlib\nimportlib.import_module('handmade.run')",
    ],
)
def test_an_arrow_up_is_found(small_house, text):
    (complaint,) = small_house(data=text, run="")
    assert complaint.startswith("handmade.data:")
    assert complaint.endswith("(floor 1) imports handmade.run (floor 5): imports point down.")


def test_an_arrow_up_out_of_a_folder_is_found(small_house):
    (complaint,) = small_house(layers__in____init__="", layers__in__norms="from ..run import load", run="")
    assert complaint.startswith("handmade.layers.norms:1 (floor 1) imports handmade.run (floor 5)")


def test_a_circle_is_found(small_house):
    found = small_house(data="from handmade.texts import x", texts="def f():\n    from handmade import data")
    assert found == ["imports in a circle: handmade.data -> handmade.texts -> handmade.data"]


def test_a_circle_through_a_package_is_found(small_house):
    found = small_house(
        layers__in____init__="from handmade.layers.norms import N", layers__in__norms="from handmade.layers import N"
    )
    assert found == ["imports in a circle: handmade.layers -> handmade.layers.norms -> handmade.layers"]


def test_a_circle_of_types_is_no_circle(small_house):
    types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from handmade import data"
    assert small_house(data="from handmade import texts", texts=types) == []
    # What stands in the other branch is loaded.
    assert small_house(
        data="from handmade import texts", texts=types.replace("\n    from", "\n    pass\nelse:\n    from")
    )


def test_a_new_file_needs_a_floor(small_house):
    (complaint,) = small_house(utils="")
    assert (
        complaint == "handmade.utils has no floor: add it to FLOORS in tests/test_floors.py, where the design puts it."
    )


def test_a_house_in_order_is_left_alone(small_house):
    assert small_house(data="import os\nimport numpy\nfrom handmade.errors import X\nimport handmade") == []
