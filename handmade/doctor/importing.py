"""A person's own Python file: brought in, looked through, and its errors told as theirs."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.util
import inspect
import itertools
import os
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from handmade.errors import ConfigError, PatientError, did_you_mean

COUNTER = itertools.count()


def bring_in(path: Path) -> types.ModuleType:
    """Run a file as a module under a name of its own, with its folder on `sys.path`; of a package, as a part of it.

    `if __name__ == "__main__":` is not run. What it prints goes to standard error. Nothing is written beside it.
    Raises PatientError with their error and their line.
    """
    folder = path.resolve().parent
    above, parts = folder, [path.stem]
    while (above / "__init__.py").exists():
        parts.insert(0, above.name)
        above = above.parent
    for place in dict.fromkeys((str(above), str(folder))):
        if place not in sys.path:
            sys.path.insert(0, place)  # it stays: a function may import when it is called
    with alone(path), telling(path, "does not import"):
        if len(parts) > 1:
            return importlib.import_module(".".join(parts))
        name = f"patient_{next(COUNTER)}_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look there
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Inside, the command line's words are not ours but a script's without any, no bytecode is written, and what is
    printed goes to standard error."""
    words, wrote = sys.argv, sys.dont_write_bytecode
    sys.argv, sys.dont_write_bytecode = [str(path)], True
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.argv, sys.dont_write_bytecode = words, wrote


@contextlib.contextmanager
def telling(path: Path, what: str, advice: str = "") -> Iterator[None]:
    """Inside, an error of their code becomes a PatientError that says `what` went wrong, the error and their line, and
    under it what may be done about it, where that is known."""
    try:
        yield
    except SyntaxError as problem:
        where = f"{short(problem.filename or path)}, line {problem.lineno}"
        raise PatientError(
            f"{where}: {type(problem).__name__}: {problem.msg}{quoted((problem.text or '').strip())}"
        ) from problem
    except SystemExit as problem:
        place = line_of(problem, path)
        raise PatientError(
            f"{place}: it ends the program, so it {what}.\n"
            'Put what it does as a script under: if __name__ == "__main__":'
        ) from problem
    except (MemoryError, PatientError, ConfigError):
        raise
    except Exception as problem:
        if "can't allocate memory" in str(problem):
            raise MemoryError from problem
        said = next((line.strip() for line in str(problem).splitlines() if line.strip()), "")
        kind = type(problem).__name__
        place, line = line_of(problem, path), source_of(problem, path)
        words = f"{place}: {kind}: {said}" + (quoted(line) or f" ({what})")
        raise PatientError(f"{words}\n{advice}" if advice else words) from problem


def quoted(line: str) -> str:
    """Their line under the error."""
    return f"\n    {line}" if line else ""


def frame_of(problem: BaseException, path: Path) -> traceback.FrameSummary | None:
    """The innermost place of an error that is in the person's folder."""
    folder = path.resolve().parent
    frames = [
        frame
        for frame in traceback.extract_tb(problem.__traceback__)
        if folder in Path(frame.filename).resolve().parents and not installed(frame.filename)
    ]
    return frames[-1] if frames else None


def installed(file: str) -> bool:
    """Whether a file is a library's: ours, or one in an environment that may lie in the person's folder."""
    ours = Path(__file__).parents[1]
    return ours in Path(file).resolve().parents or bool({"site-packages", "dist-packages"} & set(Path(file).parts))


def line_of(problem: BaseException, path: Path) -> str:
    """Their file and line."""
    frame = frame_of(problem, path)
    return short(path) if frame is None else f"{short(frame.filename)}, line {frame.lineno}"


def source_of(problem: BaseException, path: Path) -> str:
    """What stands in their line."""
    frame = frame_of(problem, path)
    return "" if frame is None else (frame.line or "").strip()


def short(path: str | os.PathLike[str]) -> str:
    """A path as a person would type it here."""
    with contextlib.suppress(ValueError):
        return str(Path(path).resolve().relative_to(Path.cwd()))
    return str(path)


# ---------------------------------------------------------------------------------------------------------------
# What is in it


def thing_in(module: types.ModuleType, name: str, path: Path) -> Any:
    """What is called so in a file. Raises ConfigError that lists what there is."""
    if hasattr(module, name):
        return getattr(module, name)
    there = names_in(module)
    near = did_you_mean(name, there)
    listed = f" There are {', '.join(there)}." if there else " It has no class, function or model."
    raise ConfigError(f"{short(path)}: has no {name}.{near or listed}")


def names_in(module: types.ModuleType) -> list[str]:
    """Classes and functions that a file defines, and models that it made, as they come."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            ((inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module.__name__)
            or isinstance(value, nn.Module)
        )
    ]


def require_name(path: Path) -> ConfigError:
    """The error for a file without a name. Its code is not run: there is nothing to look at yet."""
    with contextlib.suppress(SyntaxError, ValueError, OSError):
        tree = ast.parse(path.read_bytes())
        found = [n for n in tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and n.name[0] != "_"]
        models = [n for n in found if isinstance(n, ast.ClassDef) and "Module" in "".join(map(ast.unparse, n.bases))]
        if found:
            there = ", ".join(n.name for n in found)
            return ConfigError(f"{path}: name what of it, as in {path}:{(models or found)[-1].name}. It has {there}.")
    return ConfigError(f"{path}: name the class, function or model of it, as in {path}:MyModel.")


def require_file(path: Path) -> None:
    """Raise ConfigError for a file that is not there, with the nearest one that is."""
    if path.is_file():
        return
    beside = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.5)
    hint = f" Did you mean {path.with_name(near[0])}?" if near else ""
    raise ConfigError(f"{path}: no such file.{hint}")
