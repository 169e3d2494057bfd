"""Checkpoints: whole or not there, checked when they are read, and nobody else's files touched."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as read_by_library
from safetensors.torch import load_file, save_file
from small_runs import files_below, same_bits, small_gpt

from handmade import checkpoint
from handmade.errors import ResourceError, RunError


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def a_state(step: int = 0) -> dict[str, Any]:
    """Something of every kind that a trainer's state has."""
    return {
        "model": {"a.weight": torch.arange(6.0).reshape(2, 3) + step, "b": torch.ones(3, dtype=torch.bfloat16)},
        "optimizers": [{"state": {0: {"step": 3, "mean": torch.full((2,), 0.1)}, 1: {}}, "betas": (0.9, 0.95)}],
        "data": torch.get_rng_state(),
        "best_loss": math.inf,
        "step": step,
    }


# ---------------------------------------------------------------------------------------------------------------
# A tree of tensors and numbers, as safetensors and JSON


def test_a_tree_comes_back_through_strict_json() -> None:
    tree = {
        0: torch.tensor(1.5),
        "0": torch.tensor(2.5),
        "x": {"y.z": torch.ones(2), 7: {}},
        "x.y": {"z": torch.zeros(2)},
        "list": [1, [2.5, None], "word", True],
        "tuple": (0.1, (torch.ones(1), -3), ()),
        "odd": [math.inf, -math.inf, 1 / 3, 1e-320, 2**70],
    }
    tensors: dict[str, torch.Tensor] = {}
    text = checkpoint.json_bytes(checkpoint.split(tree, tensors))
    back = checkpoint.join(json.loads(text, parse_constant=refuse), tensors)
    same_bits(tree, back)
    plain = {key: value for key, value in tree.items() if key in ("list", "odd")}
    assert {key: back[key] for key in plain} == plain
    assert list(back) == list(tree)  # whole-number keys are still numbers, and different from text
    assert back["tuple"][0] == 0.1
    assert back["tuple"][2] == ()
    assert isinstance(back["tuple"][1], tuple)
    assert back["x"][7] == {}


def test_not_a_number_comes_back() -> None:
    tree = checkpoint.split([math.nan], {})
    assert math.isnan(checkpoint.join(json.loads(checkpoint.json_bytes(tree), parse_constant=refuse), {})[0])


def test_json_files_are_strict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoint.write_json(tmp_path / "a.json", {"loss": math.nan})
    assert files_below(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------------
# Tensor files


def all_kinds() -> dict[str, torch.Tensor]:
    kinds = {str(kind): (torch.rand(3, 5) * 9).to(kind) for kind in checkpoint.KINDS}
    return {**kinds, "scalar": torch.tensor(3, dtype=torch.int16), "none": torch.ones(0, 4), "rows": torch.eye(4)[::2]}


def test_the_library_reads_what_is_written_by_hand(tmp_path: Path) -> None:
    tensors = all_kinds()
    tensors["turned"] = torch.rand(3, 4).T
    tensors['ä "quoted" name'] = torch.ones(1)
    checkpoint.save_tensors(tmp_path / "a", tensors, "it", "do", step="7", val_loss="1.5")
    back = load_file(tmp_path / "a")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name
    own, about = checkpoint.load_tensors(tmp_path / "a")
    same_bits(own, back)
    assert (about["step"], about["val_loss"]) == ("7", "1.5")
    assert files_below(tmp_path) == ["a"]


@pytest.mark.parametrize("length", range(8))
def test_numbers_begin_where_they_can_be_mapped_into_memory(tmp_path: Path, length: int) -> None:
    tensors = {**all_kinds(), "a": torch.ones(3, dtype=torch.int8), "z": torch.ones(3, dtype=torch.float64)}
    checkpoint.save_tensors(tmp_path / "a", tensors, "it", "do", note="x" * length)
    content = (tmp_path / "a").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    for name, tensor in tensors.items():
        assert (start + header[name]["data_offsets"][0]) % tensor.element_size() == 0


def test_the_same_tensors_are_the_same_bytes(tmp_path: Path) -> None:
    tensors = all_kinds()
    about = {key: key for key in "gfedcba"}
    checkpoint.save_tensors(tmp_path / "a", tensors, "it", "do", **about)
    checkpoint.save_tensors(
        tmp_path / "b", dict(reversed(tensors.items())), "it", "do", **dict(reversed(about.items()))
    )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_without_a_digest_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "a", metadata={"format": "pt"})
    with pytest.raises(RunError, match="not written by handmade"):
        checkpoint.load_tensors(tmp_path / "a")


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save_tensors(path, {"one": torch.arange(4.0), "two": torch.ones(3)}, "it", "do", val_loss="1.25")
    whole = path.read_bytes()
    tensors, about = checkpoint.load_tensors(path)
    start = 8 + int.from_bytes(whole[:8], "little")
    padding = range(len(whole[:start].rstrip(b" ")), start)
    unnoticed = []
    for place in range(len(whole)):
        for flip in (0x01, 0x80):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            with suppress(RunError):
                changed, told = checkpoint.load_tensors(path)
                same_bits(changed, tensors)
                assert told == about
                unnoticed.append(place)
    assert set(unnoticed) <= set(padding)  # which says nothing
    assert len(padding) < 8


@pytest.mark.parametrize("left", [0, 1, 8, 100, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, left: int) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save_tensors(path, {"one": torch.arange(40.0)}, "it", "do")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(RunError, match=r"model\.safetensors: damaged or cut short"):
        checkpoint.load_tensors(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="missing"):
        checkpoint.load_tensors(tmp_path / "model.safetensors")


def test_a_shared_matrix_is_saved_once_and_comes_back_shared(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model, other = small_gpt(tied_head=True), small_gpt(tied_head=True)
    with torch.no_grad():
        model.head.weight.add_(1)
    checkpoint.save_weights(path, model)
    names = read_by_library(path.read_bytes()).keys()
    assert "embedding.weight" in names
    assert "head.weight" not in names
    checkpoint.load_weights(path, other)
    assert other.head.weight is other.embedding.weight
    assert torch.equal(other.head.weight, model.head.weight)


def test_weights_of_another_model_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = small_gpt()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for other, why in (
        (small_gpt(layers=3), r"has, unlike the model, blocks\.2\..* such names"),
        (small_gpt(layers=1), r"lacks blocks\.1\."),
        (small_gpt(width=32), r"embedding\.weight is \(11, 32\) there and \(11, 16\) here"),
    ):
        checkpoint.save_weights(path, other)
        with pytest.raises(RunError, match=why):
            checkpoint.load_weights(path, model)
    same_bits(model.state_dict(), before)


# ---------------------------------------------------------------------------------------------------------------
# Checkpoints


def test_the_last_of_several_comes_back_and_two_are_kept(tmp_path: Path) -> None:
    assert checkpoint.load_checkpoint(tmp_path) is None
    for step in (0, 5, 10, 15):
        checkpoint.save_checkpoint(tmp_path, step, a_state(step))
    state = checkpoint.load_checkpoint(tmp_path)
    assert state is not None
    same_bits(state, a_state(15))
    assert (state["step"], state["best_loss"]) == (15, math.inf)
    assert state["optimizers"][0]["betas"] == (0.9, 0.95)
    assert state["optimizers"][0]["state"].keys() == {0, 1}
    assert files_below(tmp_path / "checkpoints") == sorted(
        ["latest.json", *(f"{step:08d}/{name}" for step in (10, 15) for name in ("state.json", "tensors.safetensors"))]
    )
    json.loads((tmp_path / "checkpoints" / "00000015" / "state.json").read_bytes(), parse_constant=refuse)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Inside, the system refuses to make a file larger than this, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(tmp_path, 5, a_state(5))
    before = files_below(tmp_path)
    largest = max(path.stat().st_size for path in tmp_path.rglob("*"))
    for size in (0, 10, 300, largest // 2, largest - 1):
        with largest_file(size), pytest.raises(ResourceError) as problem:
            checkpoint.save_checkpoint(tmp_path, 10, a_state(10))
        words = str(problem.value)
        assert "the checkpoint of step 10 (" in words
        assert "kB) in" in words
        assert f"handmade train --resume {tmp_path}" in words
        assert "\n" not in words
        assert files_below(tmp_path) == before
        state = checkpoint.load_checkpoint(tmp_path)
        assert state is not None
        assert state["step"] == 5
    checkpoint.save_checkpoint(tmp_path, 10, a_state(10))
    same_bits(checkpoint.load_checkpoint(tmp_path), a_state(10))


@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "^C"])
def test_a_failure_at_any_call_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, failure: BaseException
) -> None:
    checkpoint.save_checkpoint(tmp_path, 5, a_state(5))
    # Python 3.10 holds on to the mkdir of os that it has seen when pathlib was imported.
    owner: Any = Path if call == "mkdir" else os
    real, failed = getattr(owner, call), 0
    for fatal in range(20):
        count = 0

        def sometimes(*words: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == fatal + 1:  # noqa: B023  (called before the next round)
                raise failure
            return real(*words, **more)

        with monkeypatch.context() as patch:
            patch.setattr(owner, call, sometimes)
            try:
                checkpoint.save_checkpoint(tmp_path, 10 + fatal, a_state(10 + fatal))
            except (ResourceError, KeyboardInterrupt):
                failed += 1
                assert not [name for name in files_below(tmp_path) if "writing" in name or "part" in name]
        state = checkpoint.load_checkpoint(tmp_path)
        assert state is not None
        same_bits(state, a_state(state["step"]))
        if count <= fatal:  # all calls have had their turn
            assert state["step"] == 10 + fatal
            break
    assert failed >= 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_everything_is_on_the_disk_before_it_is_pointed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    flush, replace = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        done.append("flush " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        flush(descriptor)

    def replaced(old: Path, new: Path) -> None:
        done.append(f"name {new.name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", replaced)
    checkpoint.save_checkpoint(tmp_path, 5, a_state(5))
    assert done == [
        "flush state.json",
        "flush tensors.safetensors",
        "flush .00000005.writing",
        "name 00000005",
        "flush checkpoints",
        f"flush .latest.json.{os.getpid()}.part",
        "name latest.json",
        "flush checkpoints",
    ]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "another number":
        place = next(i for i, byte in enumerate(content) if chr(byte).isdigit())
        path.write_bytes(
            content[:place] + (b"7" if content[place : place + 1] != b"7" else b"8") + content[place + 1 :]
        )
    else:
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])


@pytest.mark.parametrize("how", ["missing", "cut short", "empty", "another number", "one bit"])
@pytest.mark.parametrize("name", ["latest.json", "00000010/state.json", "00000010/tensors.safetensors"])
def test_a_damaged_file_is_named_and_there_is_a_way_out(tmp_path: Path, name: str, how: str) -> None:
    for step in (5, 10):
        checkpoint.save_checkpoint(tmp_path, step, a_state(step))
    home = tmp_path / "checkpoints"
    damage(home / name, how)
    with pytest.raises(RunError) as problem:
        checkpoint.load_checkpoint(tmp_path)
    first, second = str(problem.value).splitlines()
    if (name, how) == ("latest.json", "another number"):
        name = "00000070/state.json"  # it points there now
    assert str(home / name) in first or ("tensors" in name and "state.json" in first)
    assert "missing" in first or "damaged" in first
    # Do what it says.
    step = 10 if name in ("latest.json", "00000070/state.json") else 5
    assert second == f'To go on from step {step} instead, write {{"step": {step}}} into {home / "latest.json"}.'
    (home / "latest.json").write_text(json.dumps({"step": step}))
    same_bits(checkpoint.load_checkpoint(tmp_path), a_state(step))


def test_when_no_checkpoint_is_whole_it_says_so(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(tmp_path, 5, a_state(5))
    damage(tmp_path / "checkpoints" / "00000005" / "tensors.safetensors", "one bit")
    with pytest.raises(RunError, match=r"damaged(.|\n)*No other checkpoint is whole: train anew"):
        checkpoint.load_checkpoint(tmp_path)


def test_a_first_checkpoint_that_was_not_pointed_at_is_none(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(tmp_path, 0, a_state(0))
    (tmp_path / "checkpoints" / "latest.json").unlink()  # as if killed just before it was written
    assert checkpoint.load_checkpoint(tmp_path) is None
    checkpoint.save_checkpoint(tmp_path, 0, a_state(1))
    same_bits(checkpoint.load_checkpoint(tmp_path), a_state(1))


def test_what_a_kill_left_is_swept_up(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(tmp_path, 5, a_state(5))
    home = tmp_path / "checkpoints"
    for name in (".00000010.writing", ".00000007.writing", "00000010"):
        (home / name).mkdir()
        (home / name / "state.json").write_text("half")
    checkpoint.save_checkpoint(tmp_path, 10, a_state(10))
    assert sorted(path.name for path in home.iterdir()) == ["00000005", "00000010", "latest.json"]
    same_bits(checkpoint.load_checkpoint(tmp_path), a_state(10))


# ---------------------------------------------------------------------------------------------------------------
# Run folders

ITS_OWN = (
    "config.json",
    "tokenizer.json",
    "metrics.jsonl",
    "curve.png",
    "model.safetensors",
    "tensorboard/events.out.tfevents.1.host",
    "checkpoints/latest.json",
    "checkpoints/.latest.json.1.part",
    "checkpoints/00000005/state.json",
    "checkpoints/.00000010.writing/state.json",
)
OF_OTHERS = ("notes.txt", "tensorboard/notes.txt", "checkpoints/2024/photo.png", "00000005/x")


def fill(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def test_a_folder_is_made(tmp_path: Path) -> None:
    checkpoint.prepare_folder(tmp_path / "a" / "b")
    checkpoint.prepare_folder(tmp_path / "a" / "b")  # an empty one serves
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_with_a_run_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, ITS_OWN)
    with pytest.raises(RunError, match=r"already holds a run.*handmade train --resume.*\n.*--out.*--force"):
        checkpoint.prepare_folder(tmp_path)
    assert len(files_below(tmp_path)) == len(ITS_OWN)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "metrics.jsonl", "checkpoints/mine"])
def test_a_folder_with_a_file_of_that_name_is_refused(tmp_path: Path, name: str) -> None:
    fill(tmp_path, (name,))
    with pytest.raises(RunError, match=f"already has a {name.split('/')[0]}"):
        checkpoint.prepare_folder(tmp_path)
    assert files_below(tmp_path) == [name]


def test_force_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path, ITS_OWN + OF_OTHERS)
    checkpoint.prepare_folder(tmp_path, force=True)
    assert files_below(tmp_path) == sorted(OF_OTHERS)
    fill(tmp_path / "alone", ITS_OWN)
    checkpoint.prepare_folder(tmp_path / "alone", force=True)
    assert list((tmp_path / "alone").iterdir()) == []


def test_a_place_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file"):
        checkpoint.prepare_folder(tmp_path / "file")
    with pytest.raises(ResourceError, match=r"cannot write a run there.*--out"):
        checkpoint.prepare_folder(tmp_path / "file" / "run")


LOCK = """
import sys, time
from pathlib import Path
from handmade import checkpoint
held = checkpoint.lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="no such locks")
def test_one_process_a_folder(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", LOCK, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        fill(tmp_path, ("config.json",))
        with pytest.raises(RunError, match="another process is training it"):
            checkpoint.lock(tmp_path)
        with pytest.raises(RunError, match="another process is training it"):
            checkpoint.prepare_folder(tmp_path, force=True)
        assert files_below(tmp_path) == ["config.json", "metrics.jsonl"]
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    held = checkpoint.lock(tmp_path)  # a kill lets go of it
    assert held is not None
    with pytest.raises(RunError):
        checkpoint.lock(tmp_path)
    held.close()
    checkpoint.prepare_folder(tmp_path, force=True)


def test_metrics_are_cut_back_to_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for size, left in ((8, b"one\ntwo\n"), (100, b"one\ntwo\n"), (6, b"one\n"), (0, b"")):
        path.write_bytes(b"one\ntwo\nthr")
        checkpoint.cut(path, size)
        assert path.read_bytes() == left
    checkpoint.cut(tmp_path / "new", 5)
    assert (tmp_path / "new").read_bytes() == b""
