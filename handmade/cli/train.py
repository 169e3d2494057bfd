"""`handmade train DATA`: a model of your text."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from handmade.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from handmade.jobs import Job

SIGNALLED = {"SIGINT": 130, "SIGTERM": 143}  # exit codes, as the shell says it


def train(
    *data: str,
    minutes: float | None = None,
    preset: str | None = None,
    set_: Annotated[tuple[str, ...], Parameter(name="--set", show_default=False)] = (),
    config: Annotated[tuple[Path, ...], Parameter(show_default=False)] = (),
    model: str | None = None,
    from_: Annotated[Path | None, Parameter(name="--from")] = None,
    resume: Path | None = None,
    out: Path | None = None,
    force: bool = False,
    tokenizer: str = "auto",
    validation: Annotated[tuple[Path, ...], Parameter(show_default=False)] = (),
    encoding: str = "utf-8",
    device: str | None = None,
) -> int:
    """Train a model on your text.

    Without settings it takes five minutes, picks tokenizer, model size and
    schedule for the text and this machine, says what and why, stops early when
    validation has turned, and keeps the best weights.

    Parameters
    ----------
    data
        A text file, several, a folder of them, or a corpus by name: shakespeare.
    minutes
        Wall-clock time; the number of steps follows from what this machine does.
    preset
        Settings by name; `handmade presets` shows them.
    set_
        An option, as in --set model.layers=6 --set optimizer.learning_rate=0.01. May be given several times.
    config
        A TOML file of options, in tables [model], [train], [optimizer], [schedule].
    model
        gpt (the usual), bigram or counting.
    from_
        Fine-tune: begin with the weights and the tokenizer of an earlier run.
    resume
        Go on with a run that was stopped or killed.
    out
        The run folder; runs/NAME without it.
    force
        Replace a run that is in the folder already.
    tokenizer
        auto, char or byte.
    validation
        Files to validate on, instead of the last tenth of the text.
    encoding
        Of the text files.
    device
        auto, cpu, cuda, cuda:1, mps.
    """
    from handmade import jobs

    started = time.perf_counter() - process_age()
    request = jobs.Request(
        data=data,
        minutes=minutes,
        preset=preset,
        config=config,
        set=set_,
        model=model,
        start=from_,
        out=out,
        force=force,
        tokenizer=tokenizer,
        validation=validation,
        encoding=encoding,
        device=device,
    )
    if resume is not None:
        if out is not None or force:
            raise ConfigError("--resume goes on in its own folder: leave out --out and --force.")
        job = jobs.resume(resume, request, say)
    else:
        with Preparing() as bar:
            job = jobs.new(request, say, bar.show, started)
        announce(job)
        job.write(force)
    if job.trainer is None:
        loss = jobs.count(job)
        finish(job, loss)
        return 0
    best = job.trainer.train()
    if job.trainer.stop_reason in SIGNALLED and not job.trainer.finished:
        print(f"\nStopped at step {job.trainer.step:,} of {job.trainer.config.steps:,}, saved in {job.folder}.")
        print(f"go on: handmade train --resume {job.folder}")
        return SIGNALLED[job.trainer.stop_reason]
    finish(job, best)
    return 0


def say(label: str, sentence: str) -> None:
    """A line in two columns."""
    print(f"{label[:13]:13} {sentence}")


def announce(job: Job) -> None:
    """What will be trained, how fast this machine is with it, and what there is to beat."""
    from handmade import jobs, planning

    say("model", jobs.about(job))
    if job.trainer is not None and job.measured is not None:
        steps, speed = job.trainer.config.steps, job.measured.tokens_per_second
        time_needed = planning.minutes(steps * job.measured.step_seconds)
        how = f"{job.trainer.precision}, {'compiled' if job.trainer.compiled else 'eager'}"
        say("this machine", f"{speed:,.0f} tokens/s ({how}), so {steps:,} steps in {time_needed}")
    say("to beat", f"{job.line:.3f} (5-gram by counting)")
    print(flush=True)


def finish(job: Job, best: float) -> None:
    """How good it became, a sample, and what to do next."""
    from handmade import planning

    files = "model, metrics.jsonl, curve.png" if job.trainer is not None else "model"
    against = ""
    if job.line is not None and job.trainer is not None:
        when = below_at(job)
        against = f", {'below' if best < job.line else 'not below'} the counting line of {job.line:.3f}"
        against += f" after {planning.minutes(when)} of training" if when is not None else ""
    print(f"\nvalidation {best:.3f}{against}. Saved in {job.folder} ({files}).\n")
    show_sample(job)
    print(f'\ntry: handmade sample {job.folder} --prompt "..."')


def below_at(job: Job) -> float | None:
    """Seconds of training after which an evaluation was first below the counting line."""
    import json

    from handmade import checkpoint

    with open(job.folder / checkpoint.METRICS, encoding="utf-8") as file:
        for line in map(json.loads, file):
            if job.line is not None and line.get("val_loss") is not None and line["val_loss"] < job.line:
                return line["train_seconds"]
    return None


def show_sample(job: Job) -> None:
    """What the model writes by itself, drawn with a fixed seed."""
    import handmade

    written = handmade.load(job.folder, str(job.trainer.device) if job.trainer else "cpu")
    for piece in written.stream("\n", tokens=300, temperature=0.8, seed=0):
        print(piece.lstrip("\n") if piece.startswith("\n\n\n") else piece, end="", flush=True)
    print()


class Preparing:
    """A bar while a text becomes tokens, shown when that takes longer than a second."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self.bar = Progress(console=Console(stderr=True), transient=True)
        self.began = time.perf_counter()
        self.task: TaskID | None = None
        self.shown = sys.stderr.isatty()

    def __enter__(self) -> Preparing:
        return self

    def __exit__(self, *problem: object) -> None:
        if self.task is not None:
            self.bar.stop()

    def show(self, done: int, total: int) -> None:
        if not self.shown or time.perf_counter() - self.began < 1:
            return
        if self.task is None:
            self.bar.start()
            self.task = self.bar.add_task("reading the text", total=total)
        self.bar.update(self.task, completed=done)
        if done >= total:
            self.bar.stop()


def process_age() -> float:
    """Seconds since this process began: the imports are part of the time that a person waits."""
    import psutil

    return time.time() - psutil.Process().create_time()
