"""What is on disk: weights, checkpoints, and how they are written so that a kill at any instant loses nothing.

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

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from handmade.errors import RunError
from handmade.files import explained, flush_folder, whole

CONFIG, TOKENIZER, METRICS, CURVE, WEIGHTS = (
    "config.json",
    "tokenizer.json",
    "metrics.jsonl",
    "curve.png",
    "model.safetensors",
)
CHECKPOINTS, LATEST, STATE, TENSORS = "checkpoints", "latest.json", "state.json", "tensors.safetensors"
BOARD, BOARD_FILES = "tensorboard", "events.out.tfevents.*"

ADVICE = "choose another folder with --out"


def go_on(folder: Path) -> str:
    """What to do when a run that has begun cannot write."""
    return f"{ADVICE}; go on with: handmade train --resume {folder}"


# --------------------------------------------------------------------------------------------------------------
# JSON


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all. Raises ResourceError where it cannot be written."""
    content = json_bytes(value)
    with whole(path, path.name, len(content), ADVICE) as file:
        file.write(content)


def json_bytes(value: Any) -> bytes:
    """JSON that every reader takes: no NaN or Infinity."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read JSON. Raises RunError for a file that is missing or damaged."""
    return parse_json(read(path), path)


def parse_json(content: bytes, path: Path) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as problem:
        raise RunError(f"{path}: damaged, not readable as JSON ({problem}).") from None


def read(path: Path) -> bytes:
    """A file of a run. Raises RunError where it is missing or cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{path}: missing, so {path.parent} is not a whole run.") from None
    except OSError as problem:
        raise RunError(f"{path}: cannot be read ({problem.strerror}).") from None


# --------------------------------------------------------------------------------------------------------------
# Tensors

KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls a number type."""


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write the safetensors format: the length of a JSON header in 8 bytes, the header, the numbers.

    By hand, because the library's writer takes the file's name, not the file: it makes and renames a temporary one
    of its own, which a kill leaves behind, and puts `about` in an order that changes from run to run.
    Source: the format's description in the README of huggingface/safetensors.
    """
    # The widest types first: each then begins at a multiple of its own width.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(about.items()))}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": KINDS[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        file.write(content(tensors[name]))


def content(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, not copied where it lies in main memory in one piece."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def digest(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """sha256 of names, types, shapes and bytes, in the order of the names, and of what is said about them."""
    told = json.dumps(sorted((key, value) for key, value in about.items() if key != "digest"))
    total = hashlib.sha256(told.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(content(tensor))
    return total.hexdigest()


def with_digest(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> dict[str, str]:
    return {**about, "digest": digest(tensors, about)}


def save_tensors(path: Path, tensors: Mapping[str, Tensor], what: str, advice: str, **about: str) -> None:
    """Write a safetensors file whole or not at all, with a digest that `load_tensors` checks.
    `what` it is and the `advice` are for the ResourceError where it cannot be written."""
    with whole(path, what, sum(tensor.nbytes for tensor in tensors.values()), advice) as file:
        write_tensors(file, tensors, with_digest(tensors, about))


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
    if "digest" not in about:
        raise RunError(f"{path}: damaged, or not written by handmade: it has no digest.")
    if digest(tensors, about) != about["digest"]:
        raise RunError(f"{path}: damaged, its bytes are not those that were written.")
    return tensors, about


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


def save_weights(path: Path, model: nn.Module, **about: str) -> None:
    """The weights of a raw model (not of its compiled wrapper), as a run's best."""
    save_tensors(path, unique_tensors(model), "the weights", go_on(path.parent), **about)


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
    """A tree of dicts, lists, tuples, numbers and tensors as JSON; the tensors go into `tensors` under their path.

    A dict is kept as pairs, because JSON would turn the whole-number keys of an optimizer's state into text.
    """
    if isinstance(tree, Tensor):
        while name in tensors:  # "a" -> "b.c" and "a.b" -> "c" have one path
            name += "'"
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, Mapping):
        return {"pairs": [[key, split(value, tensors, f"{name}.{key}")] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        items = [split(value, tensors, f"{name}.{index}") for index, value in enumerate(tree)]
        return items if isinstance(tree, list) else {"tuple": items}
    if isinstance(tree, float) and not math.isfinite(tree):
        return {"number": repr(tree)}  # JSON has none of them
    return tree


def join(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The reverse of `split`."""
    if isinstance(tree, list):
        return [join(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind == "pairs":
        return {key: join(item, tensors) for key, item in value}
    if kind == "tuple":
        return tuple(join(item, tensors) for item in value)
    return tensors[value] if kind == "tensor" else float(value)


# --------------------------------------------------------------------------------------------------------------
# Checkpoints


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], keep: int = 2) -> None:
    """Write `state` (a tree with tensors) as `checkpoints/STEP`, point `latest.json` at it, drop older ones.

    The folder is filled and flushed under a temporary name, renamed, and only then pointed at. Raises ResourceError
    where it cannot be written; the checkpoint before stays.
    """
    if latest_step(folder) == step:
        return  # said already; replacing it would leave an instant with none
    home = folder / CHECKPOINTS
    final, temporary = home / f"{step:08d}", home / f".{step:08d}.writing"
    tensors: dict[str, Tensor] = {}
    told = json_bytes(split(state, tensors))
    about = with_digest(tensors, {"state": hashlib.sha256(told).hexdigest()})
    size = len(told) + sum(tensor.nbytes for tensor in tensors.values())
    try:
        with explained(final, f"the checkpoint of step {step:,}", size, go_on(folder)):
            home.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            with open(temporary / STATE, "wb") as file:
                file.write(told)
                flush(file)
            with open(temporary / TENSORS, "wb") as file:
                write_tensors(file, tensors, about)
                flush(file)
            flush_folder(temporary)
            if final.exists():  # renamed but not pointed at when the run was killed
                shutil.rmtree(final)
            os.replace(temporary, final)
            flush_folder(home)
    except BaseException:  # Ctrl-C too
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    write_json(home / LATEST, {"step": step})
    for old in steps_kept(home)[:-keep]:
        if old != step:
            shutil.rmtree(home / f"{old:08d}", ignore_errors=True)
    for broken in home.glob(".*.writing"):
        shutil.rmtree(broken, ignore_errors=True)


def flush(file: BinaryIO) -> None:
    """Have what was written put on the disk now."""
    file.flush()
    os.fsync(file.fileno())


def steps_kept(home: Path) -> list[int]:
    """The steps that have a folder in `checkpoints/`, in order."""
    return sorted(int(place.name) for place in home.glob("[0-9]" * 8) if place.is_dir())


def latest_step(folder: Path) -> int | None:
    """The step of the last good checkpoint, or None when there is none yet. Raises RunError if it is damaged."""
    home = folder / CHECKPOINTS
    pointer = home / LATEST
    if not pointer.exists():
        # The very first one may have been killed before it was pointed at. Later ones have been pointed at.
        if any(steps_kept(home)):
            raise RunError(f"{pointer}: missing, so {folder} is not a whole run.")
        return None
    value = read_json(pointer)
    if not isinstance(value, dict) or type(value.get("step")) is not int:
        raise RunError(f"{pointer}: damaged, it names no step.")
    return value["step"]


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The state that `save_checkpoint` wrote last, or None when there is none yet.
    Raises RunError that names the file when it is missing or damaged, and says what can be done."""
    try:
        step = latest_step(folder)
        return None if step is None else _load_checkpoint(folder, step)
    except RunError as problem:
        raise RunError(f"{problem}\n{_instead(folder)}") from None


def _load_checkpoint(folder: Path, step: int) -> dict[str, Any]:
    place = folder / CHECKPOINTS / f"{step:08d}"
    told = read(place / STATE)
    tree = parse_json(told, place / STATE)
    tensors, about = load_tensors(place / TENSORS)
    if about.get("state") != hashlib.sha256(told).hexdigest():
        raise RunError(f"{place / STATE}: damaged, it is not what {TENSORS} was written with.")
    return join(tree, tensors)


def _instead(folder: Path) -> str:
    """What to do about a checkpoint that cannot be read."""
    pointer = folder / CHECKPOINTS / LATEST
    for step in reversed(steps_kept(pointer.parent)):
        with suppress(RunError):
            _load_checkpoint(folder, step)
            return f'To go on from step {step:,} instead, write {{"step": {step}}} into {pointer}.'
    return "No other checkpoint is whole: train anew, with --force to replace this run."


# --------------------------------------------------------------------------------------------------------------
# Run folders


def lock(folder: Path) -> BinaryIO | None:
    """Take the folder for this process: until the file is closed, or the process ends, however it ends. None where
    the system has no such locks. Raises RunError where another has it."""
    # metrics.jsonl has the lock: it is there in every run, and it is never replaced by another file.
    with explained(folder / METRICS, "the reports", None, go_on(folder)):
        file = open(folder / METRICS, "ab")  # noqa: SIM115  (held open)
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RunError(f"{folder}: another process is training it. Wait for that one, or stop it.") from None
    except (ImportError, OSError):  # Windows, and some network file systems
        file.close()
        return None
    return file


def cut(path: Path, size: int) -> None:
    """Cut a file of lines back to its first `size` bytes, and to whole lines. Made where it is missing."""
    with open(path, "ab+") as file:
        file.seek(0)
        kept = file.read(size)
        file.truncate(kept.rfind(b"\n") + 1)


def holds_run(folder: Path) -> bool:
    return (folder / CONFIG).exists()


def refuse_taken(folder: Path) -> None:
    """Raise RunError where a run, or a file with the name of one of its files, is there already."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file. Choose another folder with --out.")
    if holds_run(folder):
        raise RunError(
            f"{folder}: already holds a run. Go on with it: handmade train --resume {folder}.\n"
            "Or choose another folder with --out, or replace it with --force."
        )
    for name in (TOKENIZER, METRICS, WEIGHTS, CHECKPOINTS):
        if (folder / name).exists():
            raise RunError(f"{folder}: already has a {name}. Choose another folder with --out, or add --force.")


def prepare_folder(folder: Path, force: bool = False) -> None:
    """Make an empty run folder. Raises RunError by `refuse_taken`, unless `force`; then the files of the run that is
    there go, and only those. Raises ResourceError where it cannot be made."""
    if force and folder.is_dir():
        clear_folder(folder)
    else:
        refuse_taken(folder)
    with explained(folder, "a run", None, ADVICE):
        folder.mkdir(parents=True, exist_ok=True)


def clear_folder(folder: Path) -> None:
    """Remove the files of a run, and only those. Raises RunError while it is being trained."""
    if (folder / METRICS).exists():
        held = lock(folder)
        if held is not None:
            held.close()
    home = folder / CHECKPOINTS
    for place in (*(home / f"{step:08d}" for step in steps_kept(home)), *home.glob(".*.writing")):
        shutil.rmtree(place, ignore_errors=True)
    for path in (*home.glob(f"*{LATEST}*"), *(folder / BOARD).glob(BOARD_FILES)):
        path.unlink()
    # The config last: a folder that this was killed in still counts as a run.
    for name in (TOKENIZER, METRICS, CURVE, WEIGHTS, CONFIG):
        (folder / name).unlink(missing_ok=True)
    for emptied in (home, folder / BOARD):
        with suppress(OSError):  # not empty: of somebody else
            emptied.rmdir()
