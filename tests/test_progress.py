"""What is shown while a model is trained: on a terminal, in a log, in TensorBoard; and when the curve is drawn."""

from __future__ import annotations

import io
import math
import re
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from handmade import curve, progress
from handmade.errors import ConfigError, ResourceError
from handmade.progress import Progress, duration
from handmade.training import Report, TrainConfig


@dataclass
class Trainer:
    """What Progress reads of a trainer."""

    config: TrainConfig = field(default_factory=lambda: TrainConfig(steps=100))
    folder: Path | None = None
    step: int = 0
    compiled: bool = False
    best_loss: float = math.inf
    task: Any = None

    def report(self, step, loss=2.0, scores=None, event=None, speed=6310.4):
        """Go to a step and report it, as the real one does."""
        self.step = step
        self.best_loss = min(self.best_loss, (scores or {}).get("val_loss", math.inf))
        return Report(step, step * 64, step * 0.5, loss, 0.01, speed, 1.0, scores or {}, event)


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    time = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: time.now)
    return time


def a_log():
    """A console that writes into a file."""
    return Console(file=io.StringIO(), width=80)


def a_terminal(width=80):
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard", highlight=False)


def plain(text):
    """Without what moves the cursor and changes colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def run(console, clock, trainer=None, show=True, every=5, evaluate=50, step_seconds=1.0):
    """Show a training of 100 steps. Returns what was written."""
    trainer = trainer or Trainer()
    with Progress(trainer, show=show, console=console) as shown:
        clock.now += 20  # compilation: it must not count in the time that is left
        for step in range(every, 101, every):
            clock.now += every * step_seconds
            scores = {"val_loss": 4 - step / 50} if step % evaluate == 0 else {}
            shown.update(trainer.report(step, 3 - step / 50, scores))
    return console.file.getvalue()


def test_a_log_has_a_line_every_tenth_and_at_evaluations(clock):
    text = run(a_log(), clock, every=5, evaluate=25)
    assert "\r" not in text
    assert "\x1b" not in text
    steps = [int(step) for step in re.findall(r"step (\d+)/100", text)]
    assert steps == [5, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90, 100]


def test_the_line_says_what_is_known(clock):
    lines = run(a_log(), clock).splitlines()
    assert lines[0] == "  5 %  step 5/100  loss 2.90  6,310 tokens/s"  # of one report nothing follows for the time
    assert lines[1] == " 10 %  step 10/100  loss 2.80  6,310 tokens/s  1:30 left"
    assert lines[5] == " 50 %  step 50/100  loss 2.00  validation 3.000 (best)  6,310 tokens/s  0:50 left"
    assert lines[-1] == "100 %  step 100/100  loss 1.00  validation 2.000 (best)  6,310 tokens/s  in 2:00"


def test_a_validation_that_is_not_the_best_says_which_was(clock):
    trainer, console = Trainer(), a_log()
    with Progress(trainer, console=console) as shown:
        shown.update(trainer.report(10, scores={"val_loss": 1.5}))
        shown.update(trainer.report(20, scores={"val_loss": 1.6}))
    first, second = console.file.getvalue().splitlines()
    assert "validation 1.500 (best)" in first
    assert "validation 1.600 (best 1.500)" in second


def test_a_resumed_run_shows_its_best_before_it_is_evaluated_again(clock):
    trainer, console = Trainer(step=40, best_loss=1.25), a_log()
    with Progress(trainer, console=console) as shown:
        shown.update(trainer.report(50))
        clock.now += 25
        shown.update(trainer.report(60))
    last = console.file.getvalue().splitlines()[-1]
    assert "validation best 1.250" in last
    assert "1:40 left" in last  # 25 s for 10 steps, 40 to go: the steps before the kill do not count


def test_events_are_lines_of_their_own(clock):
    trainer, event = Trainer(), "step 31 skipped: its loss is not a finite number " + "x" * 60
    for console in (a_log(), a_terminal()):
        with Progress(trainer, console=console) as shown:
            shown.update(trainer.report(30))
            shown.update(trainer.report(30, loss=math.nan, event=event, speed=0.0))
        lines = [line.rstrip() for line in plain(console.file.getvalue()).replace("\r", "\n").splitlines()]
        assert event in lines
        assert not any("nan" in line for line in lines)


def test_an_event_keeps_the_last_figures(clock):
    trainer, console = Trainer(), a_terminal()
    with Progress(trainer, console=console) as shown:
        shown.update(trainer.report(30, loss=2.5))
        shown.update(trainer.report(30, loss=math.nan, event="step 31 skipped", speed=0.0))
        assert "loss 2.50  6,310 tokens/s" in shown.line()


def test_a_run_that_goes_back_does_not_repeat_its_tenths(clock):
    trainer, console = Trainer(), a_log()
    with Progress(trainer, console=console) as shown:
        for step in (10, 20, 30, 20, 30, 40):
            shown.update(trainer.report(step))
    assert re.findall(r"step (\d+)/", console.file.getvalue()) == ["10", "20", "30", "40"]


@pytest.mark.parametrize("width", [70, 80, 120])
def test_on_a_terminal_one_line_moves_and_fits(clock, width):
    console = a_terminal(width)
    text = run(console, clock, Trainer(TrainConfig(steps=100), compiled=True))
    assert "compiling, 0:00" in text
    states = [line for line in re.split(r"[\r\n]+", plain(text)) if line]
    assert max(map(len, states)) <= width
    assert text.count("\n") == 1  # it stays one line, the last state of it
    assert states[-1].rstrip().endswith("in 2:00")
    assert ("━" in text) == (width >= progress.WIDE)
    assert ("tokens/s" in states[-2]) == (width > 70)  # what goes first where there is little room


def test_between_two_reports_the_step_goes_on(clock):
    trainer = Trainer()
    with Progress(trainer, console=a_terminal()) as shown:
        shown.update(trainer.report(10))
        trainer.step, clock.now = 15, clock.now + 10
        assert "step 15/100" in shown.line()
        assert "2:50 left" in shown.line()


def test_silent(clock):
    assert run(a_log(), clock, show=False) == ""
    assert run(a_terminal(), clock, show=False) == ""


def test_a_notebook_without_widgets_gets_plain_lines(monkeypatch):
    console = Console(file=io.StringIO(), force_jupyter=True)
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    assert not progress.moves(console)
    monkeypatch.setattr(progress, "find_spec", lambda name: name)
    assert progress.moves(console)


def test_what_was_stopped_says_how_long_it_took(clock):
    trainer, console = Trainer(), a_terminal()
    with Progress(trainer, console=console) as shown:
        shown.update(trainer.report(10))
        clock.now += 65
    assert plain(console.file.getvalue()).rstrip().endswith("step 10/100  loss 2.00  6,310 tokens/s  in 1:05")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (69, "1:09"), (3599, "59:59"), (10_925, "3:02:05")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


# ---------------------------------------------------------------------------------------------------------------
# The curve


@pytest.fixture
def drawings(monkeypatch):
    """The folders that were drawn, instead of drawings."""
    seen = []
    monkeypatch.setattr(curve, "draw", seen.append)
    return seen


def test_the_curve_is_drawn_at_evaluations_but_not_all_the_time(clock, drawings, tmp_path):
    trainer = Trainer(folder=tmp_path)
    drawn_at = []
    with Progress(trainer, console=a_log()) as shown:
        for step in range(1, 101):
            clock.now += 1
            shown.update(trainer.report(step, scores={"val_loss": 1.0} if step % 3 == 0 else None))
            if len(drawings) > len(drawn_at):
                drawn_at.append(step)
    assert drawn_at == [21, 42, 63, 84]
    assert drawings == [tmp_path] * 5  # and at the end


def test_no_folder_no_curve(clock, drawings):
    run(a_log(), clock)
    assert drawings == []


def test_no_curve_behind_an_error(clock, drawings, tmp_path):
    with pytest.raises(ZeroDivisionError), Progress(Trainer(folder=tmp_path), console=a_log()):
        raise ZeroDivisionError
    assert drawings == []


def test_a_curve_that_cannot_be_drawn_does_not_end_training(clock, monkeypatch, tmp_path):
    def full(folder):
        raise ResourceError("No disk space for the curve.")

    monkeypatch.setattr(curve, "draw", full)
    text = run(a_log(), clock, Trainer(folder=tmp_path))
    assert text.splitlines()[-1] == "the curve was not drawn: No disk space for the curve."


# ---------------------------------------------------------------------------------------------------------------
# TensorBoard


def test_tensorboard_that_is_not_installed_is_said_before_training(monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=r"pip install 'handmade\[tensorboard\]'"):
        Progress(Trainer(TrainConfig(tensorboard=True), folder=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_needs_a_folder(monkeypatch):
    monkeypatch.setattr(progress, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match="run folder"):
        Progress(Trainer(TrainConfig(tensorboard=True)))


def test_tensorboard_gets_the_figures(clock, drawings, monkeypatch, tmp_path):
    written, made = [], []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            made.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            made.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(progress, "find_spec", lambda name: name)
    trainer = Trainer(TrainConfig(steps=100, tensorboard=True), folder=tmp_path, step=5)
    with Progress(trainer, console=a_log()) as shown:
        shown.update(trainer.report(10, 2.5, {"val_loss": 2.25}))
        shown.update(trainer.report(10, math.nan, event="went back"))
    assert made == [(str(tmp_path / "tensorboard"), 5), "closed"]
    assert ("train_loss", 2.5, 10) in written
    assert ("val_loss", 2.25, 10) in written
    assert ("lr", 0.01, 10) in written
    assert not any(math.isnan(value) for _, value, _ in written)
    assert {name for name, _, _ in written} == {
        *("train_loss", "val_loss", "lr", "tokens", "tokens_per_second", "train_seconds", "grad_norm")
    }
