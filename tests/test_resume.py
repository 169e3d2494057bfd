"""A run that is killed and resumed, again and again, ends with the same bits as one that was never killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_runs import CHARACTERS, files_below, same_bits, text_data

from handmade import checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL and fork are not there")

SETTINGS = (
    "train.steps=20",
    "train.batch=4",
    "train.checkpoint_every=4",
    "train.evaluate_every=6",
    "train.report_every=3",
    "train.compile=no",
    "train.average=0.9",
    "model.context=8",
    "model.layers=2",
    "model.heads=2",
    "model.width=16",
    "model.dropout=0.1",
)  # on top of a preset with Muon and bfloat16
TIMES = ("train_seconds", "pending_seconds", "metrics_bytes")  # of a state: what two runs never share
KILLED = -signal.SIGKILL


class Driver:
    """resume_driver.py, which runs a command in a process of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("resume_driver.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **one, "HANDMADE_CACHE": str(home / "cache")},
            cwd=home,
        )
        assert self.listen() == "ready"

    def listen(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def __call__(self, *words: str, **how: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"words": words, **how}) + "\n")
        self.process.stdin.flush()
        answer = self.listen()
        assert "Traceback" not in answer["err"], answer["err"]
        return answer

    def start(self, folder: str, *more: str, **how: Any) -> dict[str, Any]:
        """Begin a run."""
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        return self("train", "text.txt", "--preset", "speedrun", *settings, "--out", folder, *more, **how)

    def resume(self, folder: str, *more: str, **how: Any) -> dict[str, Any]:
        return self("train", "--resume", folder, *more, **how)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    home = tmp_path_factory.mktemp("resume")
    (home / "text.txt").write_text("".join(CHARACTERS[token] for token in text_data().train))
    made = Driver(home)
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    made.process.wait(60)


@pytest.fixture(scope="module")
def reference(driver: Driver) -> Path:
    """A run that nothing happened to."""
    answer = driver.start("reference")
    assert answer["code"] == 0, answer["err"]
    return driver.home / "reference"


@pytest.fixture(scope="module")
def killed(driver: Driver, reference: Path) -> Path:
    """A run that was killed when it had checkpoints of steps 8 and 12, and best weights."""
    folder = driver.home / "killed"
    answer = driver.start("killed", signal_at_step=[13, signal.SIGKILL])
    assert answer["code"] == KILLED
    assert checkpoint.latest_step(folder) == 12
    return folder


@pytest.fixture
def copy_of_killed(killed: Path, driver: Driver, tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed, tmp_path / "run"))


def check_same_run(folder: Path, reference: Path) -> None:
    """Assert that two finished runs learnt the same, to the last bit."""
    state, expected = checkpoint.load_checkpoint(folder), checkpoint.load_checkpoint(reference)
    assert state is not None
    assert expected is not None
    same_bits(state, expected)
    for one in (state, expected):
        for name in ("model", "average", "optimizers", "data", "dropout", *TIMES):
            one.pop(name)
    assert state == expected
    name = "model.safetensors"
    assert (folder / name).read_bytes() == (reference / name).read_bytes()
    lines, others = metrics(folder), metrics(reference)
    assert [line["step"] for line in lines] == [3, 6, 9, 12, 15, 18, 20]
    for line, other in zip(lines, others, strict=True):
        for timed in ("train_seconds", "tokens_per_second"):
            line.pop(timed)
            other.pop(timed)
        assert line == other
    assert not [name for name in files_below(folder / "checkpoints") if "writing" in name]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def until_it_ends(folder: Path, go: Callable[[bool], int]) -> int:
    """Begin the run, then resume it, with `go(resumed)`, until it is not killed. Returns the number of kills."""
    for kills in range(200):
        code = go(checkpoint.holds_run(folder))
        if code == 0:
            assert (folder / "curve.png").exists()
            return kills
        if code == 2:  # killed after the last checkpoint: there is nothing left to train
            assert checkpoint.latest_step(folder) == 20
            return kills
        assert code == KILLED
        if checkpoint.holds_run(folder):
            checkpoint.load_checkpoint(folder)  # at any instant there is a whole one, or none yet
    raise AssertionError("it never ended")


# ---------------------------------------------------------------------------------------------------------------
# Kills


def chain_of_kills(driver: Driver, name: str, seed: int, calls: tuple[int, int]) -> int:
    draw = random.Random(seed)

    def go(resumed: bool) -> int:
        kill_at = draw.randrange(*calls)
        answer = driver.resume(name, kill_at=kill_at) if resumed else driver.start(name, "--force", kill_at=kill_at)
        return answer["code"]

    return until_it_ends(driver.home / name, go)


def test_killed_while_it_writes_again_and_again(driver: Driver, reference: Path) -> None:
    """Each kill is just before a call that changes the disk: a flush, a rename, a removal."""
    kills = chain_of_kills(driver, "chain", seed=0, calls=(8, 40))
    assert kills >= 3
    check_same_run(driver.home / "chain", reference)


def test_killed_from_outside_while_a_checkpoint_is_written(driver: Driver, reference: Path) -> None:
    """Every flush and rename takes longer here, so that most of the time goes into writing."""
    draw, tries = random.Random(1), 0
    assert driver.start("outside", signal_at_step=[2, signal.SIGKILL])["code"] == KILLED
    began = time.monotonic()
    assert driver.resume("outside", kill_at=2)["code"] == KILLED
    start = time.monotonic() - began  # how long it takes to begin: on a busy machine, long

    def go(resumed: bool) -> int:
        nonlocal tries
        tries += 1
        how = {} if tries > 3 else {"slow": 0.06, "kill_after": start + draw.uniform(0, 1.5)}
        return driver.resume("outside", **how)["code"]

    assert until_it_ends(driver.home / "outside", go) >= 1
    check_same_run(driver.home / "outside", reference)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_killed_many_more_times(driver: Driver, reference: Path, seed: int) -> None:
    chain_of_kills(driver, f"chain{seed}", seed, calls=(0, 50))
    check_same_run(driver.home / f"chain{seed}", reference)


@pytest.mark.slow
def test_killed_before_every_third_call(driver: Driver, reference: Path) -> None:
    """From the first to the last of a whole run. (All of them have been tried once; it takes ten minutes.)"""
    calls = driver.start("every", "--force")["calls"]
    assert calls > 80
    folder = driver.home / "every"
    for place in range(0, calls, 3):
        shutil.rmtree(folder)
        assert driver.start("every", "--force", kill_at=place)["code"] == KILLED
        answer = driver.resume("every") if checkpoint.holds_run(folder) else driver.start("every", "--force")
        if answer["code"] == 2:
            assert "is finished, at step 20" in answer["err"]
            assert checkpoint.latest_step(folder) == 20
            continue
        assert answer["code"] == 0, answer["err"]
        check_same_run(folder, reference)


@pytest.mark.slow
def test_killed_as_a_person_would(driver: Driver, reference: Path) -> None:
    """Whole processes, from `python -m handmade` on, killed at random times."""
    draw, folder = random.Random(3), driver.home / "person"
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    start = ["train", "text.txt", "--preset", "speedrun", *settings, "--out", str(folder), "--force"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HANDMADE_CACHE": str(driver.home / "cache")}
    began, tries = time.monotonic(), 0
    subprocess.run([sys.executable, "-m", "handmade", *start], env=environment, cwd=driver.home, check=True)
    longest = time.monotonic() - began
    shutil.rmtree(folder)

    def go(resumed: bool) -> int:
        nonlocal tries
        tries += 1
        words = ["train", "--resume", str(folder)] if resumed else start
        process = subprocess.Popen([sys.executable, "-m", "handmade", *words], env=environment, cwd=driver.home)
        try:
            return process.wait(longest * draw.uniform(0.4, 1.0) if tries < 12 else None)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    until_it_ends(folder, go)
    check_same_run(folder, reference)


# ---------------------------------------------------------------------------------------------------------------
# Signals that ask


def test_a_signal_saves_and_says_how_to_go_on(driver: Driver, reference: Path) -> None:
    """Both, one after the other: Ctrl-C in step 10, and in the resumed run a `kill` in step 16."""
    answer = driver.start("signals", signal_at_step=[9, signal.SIGINT])
    for code, step in ((130, 10), (143, 16)):
        assert answer["code"] == code
        assert (
            f"Stopped at step {step} of 20, saved in signals.\ngo on: handmade train --resume signals\n"
            in answer["out"]
        )
        assert checkpoint.latest_step(driver.home / "signals") == step
        answer = driver.resume("signals", signal_at_step=[15, signal.SIGTERM] if step == 10 else [99, 0])
        assert f"at step {step} of 20" in answer["out"]
    assert answer["code"] == 0
    check_same_run(driver.home / "signals", reference)


def test_a_signal_in_the_last_step_is_too_late(driver: Driver, reference: Path) -> None:
    answer = driver.start("late", signal_at_step=[19, signal.SIGTERM])
    assert answer["code"] == 0
    assert "handmade sample late" in answer["out"]
    check_same_run(driver.home / "late", reference)


# ---------------------------------------------------------------------------------------------------------------
# What is refused


def refused(driver: Driver, folder: Path, *reasons: str) -> None:
    """Assert that the run is not gone on with, that it is said why, and that nothing was touched."""
    before = {name: (folder / name).read_bytes() for name in files_below(folder)}
    answer = driver.resume(str(folder))
    assert answer["code"] == 2, answer
    lines = answer["err"].splitlines()
    assert 1 <= len(lines) <= 2, lines
    assert lines[0].startswith("handmade: ")
    for reason in reasons:
        assert reason in answer["err"]
    assert {name: (folder / name).read_bytes() for name in files_below(folder)} == before


@pytest.mark.parametrize("change", ["more", "one letter", "a new letter", "shorter", "gone"])
def test_a_changed_text(driver: Driver, copy_of_killed: Path, change: str) -> None:
    path = driver.home / "text.txt"
    text = path.read_text()
    try:
        path.write_text(
            {
                "more": text + "abc",
                "one letter": text[:50] + "a" + text[51:],
                "a new letter": text[:50] + "z" + text[51:],
                "shorter": text[:-1],
                "gone": "",
            }[change]
        )
        if change == "gone":
            path.unlink()
        reason = "is not there any more" if change == "gone" else "was changed since"
        refused(driver, copy_of_killed, "cannot go on", "text.txt", reason)
    finally:
        path.write_text(text)


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_changed_tokenizer(driver: Driver, copy_of_killed: Path) -> None:
    path = copy_of_killed / "tokenizer.json"
    whole = path.read_text()
    for change in (
        lambda value: value.update(characters="bacdefghijk"),  # as many as before
        lambda value: value.update(characters="abcdefghij"),
        lambda value: value.update(kind="byte"),
    ):
        path.write_text(whole)
        change_json(path, change)
        refused(driver, copy_of_killed, "cannot go on", "tokenizer.json is not the one that it was trained with")


def test_a_changed_shape(driver: Driver, copy_of_killed: Path) -> None:
    path = copy_of_killed / "config.json"
    whole = path.read_text()
    for name, value in (("heads", 4), ("layers", 3), ("width", 32), ("logit_cap", None), ("context", 4)):
        path.write_text(whole)
        change_json(path, lambda config, name=name, value=value: config["model"].update({name: value}))
        refused(driver, copy_of_killed, "cannot go on", f"{name} is now {value}, and was ")
    path.write_text(whole)
    change_json(path, lambda config: config["model"].update(vocab_size=12))
    refused(driver, copy_of_killed, "cannot go on")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "checkpoints/latest.json",
        "checkpoints/00000012/state.json",
        "checkpoints/00000012/tensors.safetensors",
    ],
)
def test_a_damaged_file(driver: Driver, copy_of_killed: Path, name: str) -> None:
    path = copy_of_killed / name
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", None):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        refused(driver, copy_of_killed, Path(name).name)


def test_the_way_out_of_a_damaged_checkpoint(driver: Driver, reference: Path, copy_of_killed: Path) -> None:
    """And so that a copy of the killed run can go on: the tests here refuse it for their reason, and no other."""
    (copy_of_killed / "checkpoints" / "00000012" / "state.json").unlink()
    pointer = copy_of_killed / "checkpoints" / "latest.json"
    refused(driver, copy_of_killed, f'To go on from step 8 instead, write {{"step": 8}} into {pointer}.')
    pointer.write_text('{"step": 8}')
    assert driver.resume(str(copy_of_killed))["code"] == 0
    check_same_run(copy_of_killed, reference)


def test_a_config_with_a_part_missing(driver: Driver, copy_of_killed: Path) -> None:
    path = copy_of_killed / "config.json"
    whole = json.loads(path.read_text())
    for part in [("version",), ("model",), ("data",), ("optimizer",), ("data", "files"), ("data", "fingerprint")]:
        value = json.loads(json.dumps(whole))
        table = value if len(part) == 1 else value[part[0]]
        del table[part[-1]]
        path.write_text(json.dumps(value))
        refused(driver, copy_of_killed)


def test_a_finished_run(driver: Driver, reference: Path) -> None:
    refused(driver, reference, "is finished, at step 20. Sample it: handmade sample")


def test_a_run_that_another_process_is_training(driver: Driver, copy_of_killed: Path) -> None:
    held = checkpoint.lock(copy_of_killed)
    assert held is not None
    with held:
        refused(driver, copy_of_killed, "another process is training it")
        answer = driver.start(str(copy_of_killed), "--force")
        assert answer["code"] == 2
        assert "another process is training it" in answer["err"]


@pytest.mark.parametrize(
    "more",
    [("--set", "train.steps=30"), ("--minutes", "3"), ("--device", "cpu"), ("--tokenizer", "byte"), ("--force",)],
)
def test_other_settings_beside_resume(driver: Driver, copy_of_killed: Path, more: tuple[str, ...]) -> None:
    answer = driver.resume(str(copy_of_killed), *more)
    assert answer["code"] == 2
    assert answer["err"].startswith("handmade: --resume")
    assert len(answer["err"].splitlines()) == 1


def test_a_run_that_is_not_there(driver: Driver, reference: Path) -> None:
    answer = driver.resume("refrence")
    assert (answer["code"], answer["err"]) == (2, "handmade: refrence: no such run. Did you mean reference?\n")
