"""`handmade train DATA`: a model of your text, or one that learns a task."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.progress import TaskID

    from handmade.jobs import Job
    from handmade.planning import Measured

LOOK_FROM = 60.0  # seconds of training from which the doctor looks first
LOOK_SECONDS = 3.5  # after which it begins no other check
LOOKED_AT = 10_000_000  # parameters; of a larger model some layers are looked at

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
    force: Annotated[bool, Parameter(show_default=False)] = False,
    tokenizer: str | None = None,
    validation: Annotated[tuple[Path, ...], Parameter(show_default=False)] = (),
    encoding: str | None = None,
    task: str | None = None,
    source: str | None = None,
    target: str | None = None,
    device: str | None = None,
) -> int:
    """Train a model on your text, on pairs of sentences, or on a task.

    Without settings it takes five minutes, picks tokenizer, model size and
    schedule for the text and this machine, says what and why, stops early when
    validation has turned, and keeps the best weights. A task takes one minute,
    or three, a translation twenty.

    Parameters
    ----------
    data
        A text file, several, a folder of them, or a corpus by name: shakespeare.
        Or a task by name: addition, expression, sort. A file of that name wins.
        Or pairs of sentences: tatoeba-ja-en, or with --task translation a table
        of pairs or two files, one of sentences and one of their translations.
    minutes
        Time for all of it. The number of steps follows, by measuring this machine.
    preset
        Settings by name; `handmade presets` lists them.
    set_
        One setting: --set model.layers=6. May be given several times.
    config
        A TOML file of settings, in tables [task] [model] [train] [optimizer] [schedule].
    model
        gpt (the usual), recurrent, mlp, bigram or counting; of pairs seq2seq or seq2seq-lstm.
    from_
        Fine-tune: begin with the weights and the tokenizer of this run.
    resume
        Go on with this run, which was stopped or killed.
    out
        Folder to write the run to, instead of runs/NAME.
    force
        Replace the run that is in the folder.
    tokenizer
        char or byte, of pairs bpe or char; without it, what suits the text.
    validation
        A file to validate on, instead of the last tenth of the text.
    encoding
        Of the text, where it is not UTF-8: latin-1, say.
    task
        What is learnt of files: language (the usual) or translation.
    source
        Language to translate from, for a corpus that has several: ja, de, fr.
    target
        Language to translate into.
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
        task=task,
        source=source,
        target=target,
    )
    say = Columns()
    with Preparing() as bar:
        if resume is not None:
            job = jobs.resume(resume, request, say, bar.show)
        else:
            job = jobs.new(request, say, bar.show, started)
    if resume is None:
        look(job, say)
    announce(job, say)
    if resume is None:
        job.write()
    if job.trainer is not None:
        job.trainer.train()
        if job.trainer.stop_reason in SIGNALLED and not job.trainer.finished:
            print(f"\nStopped at step {job.trainer.step:,} of {job.trainer.config.steps:,}, saved in {job.folder}.")
            print(f"go on: handmade train --resume {quoted(job.folder)}")
            return SIGNALLED[job.trainer.stop_reason]
    finish(job)
    return 0


class Columns:
    """Prints lines in two columns: a label, said once for all lines that it is for, and a sentence."""

    WIDTH = 13

    def __init__(self) -> None:
        self.label = ""

    def __call__(self, label: str, sentence: str) -> None:
        from rich.cells import cell_len, set_cell_size

        shown = "" if label == self.label else label
        self.label = label or self.label
        too_long = cell_len(shown) > self.WIDTH  # such a name pushes its own line to the right, no other
        over = cell_len(shown) + 1 - self.WIDTH if too_long else 0
        for line in broken(sentence, self.WIDTH + 1, over):
            print(f"{set_cell_size(shown, self.WIDTH + over)} {line}", flush=True)
            shown, over = "", 0


def broken(sentence: str, margin: int, over: int = 0) -> list[str]:
    """A sentence in lines that fit the terminal beside a margin, the first one with so much less room; in one line
    where there is no terminal."""
    import shutil
    import textwrap

    if not sys.stdout.isatty():
        return [sentence]
    room = max(40, shutil.get_terminal_size().columns - margin)
    lines = textwrap.wrap(sentence, room, initial_indent=" " * over, break_long_words=False, break_on_hyphens=False)
    return [line[over:] if place == 0 else line for place, line in enumerate(lines)]


def look(job: Job, say: Columns) -> None:
    """Before a long training, let the quick part of the doctor look, and say what is wrong, if anything is.

    It looks at a new model of the same shape: the one that will be trained is not touched, and no random number of the
    run is drawn. What the look takes is taken off the time that was given.
    """
    if job.trainer is None or job.measured is None:
        return
    if job.trainer.config.steps * job.measured.step_seconds <= LOOK_FROM:
        return
    began = time.perf_counter()
    from handmade.doctor import examine
    from handmade.doctor.runs import given_of_shape
    from handmade.doctor.snapshot import undisturbed
    from handmade.errors import ResourceError
    from handmade.optimizers import OptimizerConfig

    try:
        with undisturbed():
            optimizer = OptimizerConfig.from_dict(job.tables["optimizer"])
            given = given_of_shape(job.family, job.model.config, optimizer, most=LOOKED_AT)  # type: ignore[arg-type]
            left = max(0.1, LOOK_SECONDS - (time.perf_counter() - began))
            report = examine(given, quick=True, seconds=left)
    except ResourceError as problem:  # the training itself has been measured, and fits
        say("doctor", f"did not look: {problem}")
        return
    for finding in report.of("sick"):
        say("doctor", f"{finding.check}: {finding.measured}, expected {finding.expected}. {finding.remedy}")
        say("", f"explained: handmade doctor --explain {finding.check}")
    job.spend(time.perf_counter() - began)


def announce(job: Job, say: Columns) -> None:
    """What will be trained, how fast this machine is with it, and what there is to beat."""
    from handmade import planning

    say("model", about(job))
    if job.trainer is not None and job.measured is not None:
        steps, measured = job.trainer.config.steps, job.measured
        seconds = planning.minutes(max(1.0, steps * measured.step_seconds))
        how = f"{job.trainer.precision}, {'compiled' if job.trainer.compiled else 'not compiled'}"
        going = f"{steps:,} step{'s' if steps > 1 else ''} in {seconds}"
        say("this machine", f"{measured.tokens_per_second:,.0f} tokens/s ({how}), so {going}")
        say("memory", memory(measured, job.trainer.config.device))
    if job.line is not None:
        say("to beat", f"{job.line:.3f} (5-gram by counting)")
    print(flush=True)


def about(job: Job) -> str:
    """The model in a line."""
    from handmade.cli.presets import millions
    from handmade.models import parameter_count

    shape = job.model.config.to_dict()  # type: ignore[union-attr, operator]
    if job.family == "counting":
        return f"{shape['order']}-grams by counting: {len(job.model.keys):,} of them"  # type: ignore[arg-type]
    if shape.get("body") == "dense":  # which has none of the transformer's
        shape = {name: value for name, value in shape.items() if name not in ("heads", "hidden")}
    sizes = [
        f"{shape[name]} {name.replace('_', ' ')}" if shape[name] != 1 else f"1 {name[:-1].replace('_', ' ')}"
        for name in ("layers", "encoder_layers", "decoder_layers", "heads")
        if name in shape and not (name == "heads" and shape.get("mixing") == "mean")
    ]
    sizes += [f"{name} {shape[name]:,}" for name in ("window", "width", "hidden", "context") if shape.get(name)]
    kind = shape["cell"].upper() if "cell" in shape else str(job.family)
    kind += f" {shape['body']}" if "body" in shape else ""
    return f"{kind}, {', '.join(sizes)}: {millions(parameter_count(job.model))} parameters"


def memory(measured: Measured, device: str) -> str:
    """What was measured, and what there is."""
    import torch

    from handmade import machine
    from handmade.files import readable

    free = readable(machine.free_memory(torch.device(device)))
    return f"{readable(measured.memory)} while training, measured; {free} more are free"


def finish(job: Job) -> None:
    """How good it became, a sample, and what to do next."""
    from handmade import planning

    if job.trainer is None:
        assert job.loss is not None
        print(f"validation {job.loss:.3f}. Saved in {job.folder} (model).\n")
    else:
        best, against = job.trainer.best_loss, ""
        if job.line is not None:
            when = below_at(job)
            against = f", {'below' if best < job.line else 'not below'} the counting line of {job.line:.3f}"
            against += f" after {planning.minutes(when)} of training" if when is not None else ""
        headline = job.task.headline(best_scores(job.folder, job.trainer.best_step))
        against += f", {headline}" if headline else ""
        print(f"\nvalidation {best:.3f}{against}. Saved in {job.folder} (model, metrics.jsonl, curve.png).")
        if job.trainer.turned:
            print(f"Stopped early: it was best at step {job.trainer.best_step:,}. The weights of that step were kept.")
        print()
    show_sample(job)
    show_pictures(job)
    print(f'\ntry: handmade sample {quoted(job.folder)} --prompt "{job.task.example}"')


def quoted(folder: Path) -> str:
    """A folder as it can be typed."""
    return shlex.quote(str(folder))


def below_at(job: Job) -> float | None:
    """Seconds of training after which an evaluation was first below the counting line."""
    from handmade import checkpoint, curve

    for line in curve.read_metrics(job.folder / checkpoint.METRICS):
        loss = line.get("val_loss")
        if job.line is not None and loss is not None and loss < job.line:
            return line["train_seconds"]
    return None


def best_scores(folder: Path, step: int) -> dict[str, Any]:
    """What was measured when the best weights were kept; empty where that is not in the folder."""
    from handmade import checkpoint, curve

    lines = curve.read_metrics(folder / checkpoint.METRICS)
    found = [line for line in lines if line.get("val_loss") is not None and line["step"] == step]
    return found[-1] if found else {}


SAMPLE_SECONDS = 5.0  # a sample ends here at the latest: a large model on a slow machine has written enough


def show_sample(job: Job) -> None:
    """What the model shows of itself; blank lines that it begins with are left out."""
    from handmade.cli.sample import SampleOptions, Writer

    began = time.perf_counter()
    device = str(job.trainer.device) if job.trainer else "cpu"
    writer = Writer(job.folder, SampleOptions(device=device))
    last = ""
    trained = job.trainer.train_seconds if job.trainer is not None else 0.0
    seconds = max(SAMPLE_SECONDS, job.task.closing_share * trained)
    for piece in job.task.closing(writer.run.model, seconds):
        last = writer.put(piece if last else piece.lstrip("\n")) or last
        if job.task.continues and time.perf_counter() - began > seconds:
            break
    writer.end(last)


def show_pictures(job: Job) -> None:
    """What a task has to show, in files. That one cannot be drawn is no reason to end in an error."""
    from handmade.cli import evaluate
    from handmade.errors import HandmadeError
    from handmade.run import load

    if job.task.continues:
        return
    try:
        run = load(job.folder, str(job.trainer.device) if job.trainer else "cpu")
        run.task = job.task  # it is there, with what it has worked out
        drawn = evaluate.draw(run, ())
    except (HandmadeError, OSError) as problem:
        print(f"\nnot drawn: {problem}")
    else:
        print(f"\nPictures: {', '.join(map(str, drawn))}")


class Preparing:
    """A bar while a text becomes tokens, shown when that takes longer than a second."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self.console = Console(stderr=True)
        # What is printed meanwhile stays on standard output, where it may go into a file.
        self.bar = Progress(console=self.console, transient=True, redirect_stdout=False, redirect_stderr=False)
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
            self.console.show_cursor(True)  # a process that is killed must not leave the terminal without one
            self.task = self.bar.add_task("reading the text", total=total)
        self.bar.update(self.task, completed=done)
        if done >= total:
            self.bar.stop()


def process_age() -> float:
    """Seconds since this process began, where it is one for this command: the imports are part of the time that a
    person waits."""
    import psutil

    if sys.argv[1:2] != ["train"]:
        return 0.0
    return max(0.0, time.time() - psutil.Process().create_time())
