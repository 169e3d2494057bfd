"""What is on disk: weights, checkpoints, and how a file is written so that a kill at any instant loses nothing.

A run folder holds

    config.json          what was trained, on what, how
    tokenizer.json
    metrics.jsonl        a line a report
    curve.png
    model.safetensors    the best weights
    checkpoints/
        latest.json      {"step": 200}
        00000200/        tensors.safetensors and state.json: everything that a resumed run needs

JSON and safetensors only: loading runs no code from the folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from handmade.errors import ResourceError, RunError

CONFIG, TOKENIZER, METRICS, CURVE, WEIGHTS = (
    "config.json",
    "tokenizer.json",
    "metrics.jsonl",
    "curve.png",
    "model.safetensors",
)
CHECKPOINTS, LATEST, STATE, TENSORS = "checkpoints", "latest.json", "state.json", "tensors.safetensors"


# --------------------------------------------------------------------------------------------------------------
# Files that are whole or not there


def flush(path: Path) -> None:
    """Have the operating system put a file, or a folder's list of names, on the disk now."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder, and orders renames by itself
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary file beside `path`, flush it, and rename it into place.

    A kill at any instant leaves the old file or the new one. Raises ResourceError when the disk is full, with
    the temporary file removed.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        write(temporary)
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except Exception as problem:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise explain_disk(problem, path) from problem


def explain_disk(problem: Exception, path: Path) -> Exception:
    """A full disk or a folder that may not be written to, in words; any other exception as it is."""
    message = str(problem)
    code = problem.errno if isinstance(problem, OSError) else None
    # safetensors reports the operating system's error only as text.
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "os error 28" in message or "No space left" in message:
        return ResourceError(
            f"{path}: no space left on the disk to write it. Free some and go on with: handmade train --resume"
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ResourceError(f"{path}: may not be written ({os.strerror(code)}). Choose another folder with --out.")
    return problem


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON. Raises RunError for a file that is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: missing, so {path.parent} is not a whole run.") from None
    except (ValueError, UnicodeDecodeError) as problem:
        raise RunError(f"{path}: damaged, not readable as JSON ({problem}).") from None


# --------------------------------------------------------------------------------------------------------------
# Tensors


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, a matrix that two layers share under its first name only."""
    kept: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        kept[name] = tensor
    return kept


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return total.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], **about: str) -> None:
    """Write a safetensors file whole or not at all, with a digest that `load_tensors` checks."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {**about, "digest": digest(plain)}
    write_whole(path, lambda temporary: save_file(plain, temporary, metadata=about))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and what was said about them. Raises RunError for a file that is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except FileNotFoundError:
        raise RunError(f"{path}: missing, so {path.parent} is not a whole run.") from None
    except (SafetensorError, OSError, ValueError) as problem:
        raise RunError(f"{path}: damaged or cut short ({problem}).") from None
    if "digest" in about and digest(tensors) != about["digest"]:
        raise RunError(f"{path}: damaged, its bytes are not those that were written.")
    return tensors, about


def save_weights(path: Path, model: nn.Module, **about: str) -> None:
    """The weights of a raw model (not of its compiled wrapper)."""
    save_tensors(path, unique_tensors(model), **about)


def load_weights(path: Path, model: nn.Module) -> dict[str, str]:
    """Put a file's weights into `model`; return what was said about them.
    Raises RunError for a damaged file or one of another shape."""
    tensors, about = load_tensors(path)
    put_weights(model, tensors, path)
    return about


def put_weights(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy `tensors` into `model`. Raises RunError, before anything is changed, when they do not fit."""
    own = unique_tensors(model)
    odd = sorted(set(own) ^ set(tensors))
    if odd:
        side = "lacks" if odd[0] in own else "has, unlike the model,"
        raise RunError(f"{path}: not the weights of this model: it {side} {odd[0]} ({len(odd)} such names).")
    parameters = dict(model.named_parameters())
    for name, tensor in own.items():
        if name in parameters and tensor.shape != tensors[name].shape:  # the counts of a counting model may grow
            raise RunError(
                f"{path}: not the weights of this model: {name} is {tuple(tensors[name].shape)} there"
                f" and {tuple(tensor.shape)} here."
            )
    try:
        model.load_state_dict(tensors, strict=False)  # the names were compared; a shared matrix is there once
    except RuntimeError as problem:
        raise RunError(f"{path}: not the weights of this model ({str(problem).splitlines()[-1].strip()}).") from None


def split(tree: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """A tree of dicts, lists, numbers and tensors as JSON; the tensors go into `tensors` under their path.

    A dict is kept as pairs, because JSON would turn the whole-number keys of an optimizer's state into text.
    """
    if isinstance(tree, Tensor):
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, Mapping):
        return {"pairs": [[key, split(value, tensors, f"{name}.{key}")] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return {"list": [split(value, tensors, f"{name}.{index}") for index, value in enumerate(tree)]}
    return tree


def join(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The reverse of `split`."""
    if isinstance(tree, dict):
        if "tensor" in tree:
            return tensors[tree["tensor"]]
        if "pairs" in tree:
            return {key: join(value, tensors) for key, value in tree["pairs"]}
        return [join(value, tensors) for value in tree["list"]]
    return tree


# --------------------------------------------------------------------------------------------------------------
# Checkpoints


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], keep: int = 2) -> None:
    """Write `state` (a tree with tensors) as `checkpoints/STEP`, point `latest.json` at it, drop older ones.

    The folder is filled and flushed under a temporary name, renamed, and only then pointed at.
    """
    if latest_step(folder) == step:
        return  # said already; replacing it would leave an instant with none
    home = folder / CHECKPOINTS
    final, temporary = home / f"{step:08d}", home / f".{step:08d}.writing"
    try:
        home.mkdir(exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        tensors: dict[str, Tensor] = {}
        tree = split(state, tensors)
        save_tensors(temporary / TENSORS, tensors)
        write_json(temporary / STATE, tree)
        if final.exists():  # renamed but not pointed at when the run was killed
            shutil.rmtree(final)
        os.replace(temporary, final)
        flush(home)
        write_json(home / LATEST, {"step": step})
    except Exception as problem:
        shutil.rmtree(temporary, ignore_errors=True)
        raise explain_disk(problem, final) from problem
    for old in sorted(home.glob("[0-9]*"))[:-keep]:
        if old != final:
            shutil.rmtree(old, ignore_errors=True)
    for broken in home.glob(".*.writing"):
        shutil.rmtree(broken, ignore_errors=True)


def latest_step(folder: Path) -> int | None:
    """The step of the last good checkpoint, or None when there is none yet. Raises RunError if it is damaged."""
    pointer = folder / CHECKPOINTS / LATEST
    if not pointer.exists():
        return None
    value = read_json(pointer)
    if not isinstance(value, dict) or not isinstance(value.get("step"), int):
        raise RunError(f"{pointer}: damaged, it names no step.")
    return value["step"]


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The state that `save_checkpoint` wrote last, or None when there is none yet.
    Raises RunError that names the file when it is missing or damaged."""
    step = latest_step(folder)
    if step is None:
        return None
    place = folder / CHECKPOINTS / f"{step:08d}"
    tree = read_json(place / STATE)
    tensors, _ = load_tensors(place / TENSORS)
    try:
        return join(tree, tensors)
    except (KeyError, TypeError, ValueError) as problem:
        raise RunError(f"{place / STATE}: damaged ({problem!r} does not fit {TENSORS}).") from None


# --------------------------------------------------------------------------------------------------------------
# Run folders


def holds_run(folder: Path) -> bool:
    return (folder / CONFIG).exists()


def prepare_folder(folder: Path, force: bool = False) -> None:
    """Make an empty run folder. Raises RunError where it holds a run already, unless `force`; then the files of
    that run go, and only those."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file. Choose another folder with --out.")
    if holds_run(folder):
        if not force:
            raise RunError(
                f"{folder}: already holds a run. Go on with it: handmade train --resume {folder}.\n"
                "Or choose another folder with --out, or replace it with --force."
            )
        for name in (CONFIG, TOKENIZER, METRICS, CURVE, WEIGHTS):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise explain_disk(problem, folder) from problem
