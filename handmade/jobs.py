"""From what a person asks for to a trainer that is ready: task, settings, model, run folder.

    job = new(Request(data=("mybook.txt",), minutes=10), print)
    job.write()
    job.trainer.train()

The steps are apart, so that what was picked and measured can be said before anything is written: `new` decides and
measures, `Job.write` makes the run folder. What can be refused at once is refused at once, before a corpus is
fetched or a text is read.
"""

from __future__ import annotations

import math
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handmade import checkpoint, corpora, data, machine, planning, presets, run, settings, sources, tokenizers
from handmade.errors import ConfigError, RunError
from handmade.files import no_space
from handmade.models import FAMILIES
from handmade.optimizers import OptimizerConfig
from handmade.pair_corpora import PAIR_CORPORA
from handmade.rehearsal import Rehearsal
from handmade.request import (
    TABLES,
    Request,
    check_settings,
    check_words,
    find_family,
    find_folder,
    find_task,
    given_tables,
    is_named,
    standing,
)
from handmade.schedules import ScheduleConfig
from handmade.tasks import TASKS, LanguageTask, RunTask, Say, Tables, TranslationTask
from handmade.tasks.translation import data as pairs
from handmade.training import TrainConfig, Trainer, seeded

SMALL_FILES = 500_000  # bytes: config, tokenizer, metrics, curve
# What comes after training and is part of the time given: the curve, the sample, the last checkpoint.
CLOSING_SECONDS = 4.0
FINE_TUNING = 0.3  # of the rates that the first run had


@dataclass
class Job:
    """A run that is ready to train, or that has counted already."""

    request: Request
    folder: Path
    family: str
    task: RunTask
    record: dict[str, Any]
    """What config.json says of the data."""
    model: nn.Module
    tables: Tables
    trainer: Trainer | None = None
    """None for a model that only counts."""
    measured: planning.Measured | None = None
    line: float | None = None
    """The validation loss of what needs no learning: for a text that of a 5-gram by counting. None where there is no
    such thing, and for a model that is it."""
    loss: float | None = None
    """On the validation part, of a model that only counts."""
    seconds: float | None = None
    """Given to the whole run; None where the number of steps is."""

    def spend(self, seconds: float) -> None:
        """Take time that was spent otherwise off a training that was given a time: it makes fewer steps."""
        if self.seconds is None or self.trainer is None or self.measured is None:
            return
        fewer = math.ceil(seconds / self.measured.step_seconds)
        self.trainer.config = self.trainer.config.replace(steps=max(1, self.trainer.config.steps - fewer))
        self.tables["train"] = self.trainer.config.to_dict()

    def write(self) -> None:
        """Make the run folder. Raises RunError where it holds a run already and `request.force` is off; where
        it cannot be written, ResourceError, and what was written is taken back."""
        new = not self.folder.exists()
        self._require_space()
        checkpoint.prepare_folder(self.folder, self.request.force)
        written = (checkpoint.TOKENIZER, checkpoint.WEIGHTS, checkpoint.CONFIG)
        try:
            self.task.tokenizer.save(self.folder / checkpoint.TOKENIZER)
            if self.loss is not None:
                checkpoint.save_weights(
                    self.folder / checkpoint.WEIGHTS, self.model, step="0", val_loss=repr(self.loss)
                )
            checkpoint.write_json(self.folder / checkpoint.CONFIG, self.to_json())  # last: it makes the folder a run
        except BaseException:
            for name in written:
                (self.folder / name).unlink(missing_ok=True)
            if new:
                with suppress(OSError):
                    self.folder.rmdir()
            raise

    def _require_space(self) -> None:
        """Raise ResourceError where the disk has no room for the run, before an old one makes way for it."""
        weights = sum(tensor.nbytes for tensor in checkpoint.unique_tensors(self.model).values())
        # The best weights, and up to three checkpoints, each with two more numbers a weight.
        size = weights * (1 if self.trainer is None else 1 + 3 * 3) + SMALL_FILES
        old = [self.folder / checkpoint.WEIGHTS, *(self.folder / checkpoint.CHECKPOINTS).rglob("*")]
        free = shutil.disk_usage(standing(self.folder)).free + sum(
            path.stat().st_size for path in old if path.is_file()
        )
        if free < size:
            what = "the run's weights" + ("" if self.trainer is None else " and checkpoints")
            raise no_space(self.folder, what, size, "choose another folder with --out", free)

    def to_json(self) -> dict[str, Any]:
        """config.json: all that decides the run, and where it was made."""
        return {
            "version": run.VERSION,
            "task": {"name": self.task.name, **self.task.config.to_dict()},
            "family": self.family,
            "model": self.model.config.to_dict(),  # type: ignore[union-attr, operator]
            **{name: self.tables[name] for name in TABLES[1:]},
            "data": self.record,
            "counting_line": self.line,
            "command": self.request.command(),
            "machine": machine.describe(),
        }


# --------------------------------------------------------------------------------------------------------------
# A new run


def new(request: Request, say: Say, progress: data.Progress | None = None, started: float | None = None) -> Job:
    """Decide everything and measure, without writing a run folder. Raises HandmadeError for what cannot be.

    `started`: when the time given began to run, by `time.perf_counter`; None: now.
    """
    began = time.perf_counter() if started is None else started
    check_words(request)
    kind = find_task(request)
    names = request.data if kind is LanguageTask else ()
    known = {name: corpora.find(name, others=(*PAIR_CORPORA, *TASKS)) for name in names if not is_named(name)}
    first = request.data[0]
    if kind is TranslationTask:
        pairs.require(request.data)
    name = known[first].name if first in known else first
    if kind is TranslationTask:
        name = pairs.folder_name(first, request.source, request.target)
    folder = find_folder(request, name)
    old = run.load(request.start, "cpu") if request.start else None
    preset = presets.find(request.preset) if request.preset else None
    family = find_family(request, preset, old, kind)
    options = kind.settings
    asked = settings.merged(
        *(settings.from_file(path, family, options) for path in request.config),
        settings.from_words(request.set, family, options),
    )
    if request.device:
        asked["train"]["device"] = request.device
    for name, option in (("source", request.source), ("target", request.target)):
        if option:
            asked["task"][name] = option
    if kind is TranslationTask and request.tokenizer:
        asked["task"]["tokens"] = request.tokenizer
    device, seconds = check_settings(request, family, preset, old, asked, folder, kind)

    chosen: Any = settings.checked("task", options, asked["task"])
    task: RunTask
    if kind is LanguageTask:
        found = [known.get(name) or corpora.find(name, lambda line: say("corpus", line)) for name in names]
        task, record = sources.read(request, found, chosen, old.tokenizer if old else None, say, progress)
    elif kind is TranslationTask:
        task, record = sources.read_pairs(request, chosen, old, say)
    else:
        task, record = sources.make(request, kind, chosen, old, say)
    if asked["train"].get("threads"):
        torch.set_num_threads(asked["train"]["threads"])  # before anything is measured
    if seconds is not None:
        seconds *= 1 - kind.closing_share
    left = None if seconds is None else time_left(seconds, began)
    tables = settings.merged(_defaults(family, preset, old, task, left, device, asked, say), asked)
    task = _fit_context(tables, family, old, task, say)
    model_config, train, optimizer, schedule = settings.build(family, tables, task.sizes)
    if family != "counting":
        planning.require_memory(model_config, train, optimizer.name, device)

    def make() -> nn.Module:
        model = FAMILIES[family][0](model_config, seeded(train.seed, "initialization"))
        if old is not None:
            model.load_state_dict(old.model.state_dict())
        return model

    if family == "counting":
        assert isinstance(task, LanguageTask), "other tasks refuse it"
        model = make()
        model.fit(task.data.train)  # type: ignore[operator]
        loss = model.loss(task.data.validation)  # type: ignore[operator]
        return Job(request, folder, family, task, record, model, tables, loss=loss)
    uncompiled = getattr(FAMILIES[family][0], "uncompiled", None)
    if train.compile == "auto" and uncompiled:
        train = train.replace(compile="no")
        say("picked", f"not compiled: {uncompiled}")
    line = task.line_to_beat(seconds)
    rehearsal = Rehearsal(make, task, optimizer, schedule, seconds, say)
    trainer, measured = rehearsal.run(train, device)
    if seconds is not None:
        left = time_left(seconds, began, measured.evaluation_seconds)
        planning.lay_out(trainer, left, measured, asked["train"].keys())
    trainer.folder = folder
    tables["train"] = trainer.config.to_dict()
    tables["optimizer"], tables["schedule"] = optimizer.to_dict(), schedule.to_dict()
    model = trainer.model
    return Job(request, folder, family, task, record, model, tables, trainer, measured, line, seconds=seconds)


def time_left(seconds: float, began: float, evaluation: float = 0.0) -> float:
    """What there is to train and evaluate in, of the seconds given: less what has passed, and what comes after. Half
    of them and an evaluation at least: a run that is given little more than it takes to begin must still train."""
    return max(seconds / 2 + evaluation, seconds - (time.perf_counter() - began) - CLOSING_SECONDS)


# --------------------------------------------------------------------------------------------------------------
# What holds where the person says nothing


RATES = {"sgd": 0.1, "momentum": 0.02, "nesterov": 0.02, "adagrad": 0.01, "muon": 0.02}  # others: 0.001


def _defaults(
    family: str,
    preset: presets.Preset | None,
    old: run.Run | None,
    task: RunTask,
    seconds: float | None,
    device: torch.device,
    asked: Tables,
    say: Say,
) -> Tables:
    """The preset's settings, the old run's, or what suits the task and the time."""
    if preset is not None:
        tables = given_tables(preset, None)
    elif old is not None:
        tables = given_tables(None, old)
        optimizer = OptimizerConfig.from_dict(tables["optimizer"])
        for name in ("learning_rate", "embedding_learning_rate", "head_learning_rate", "vector_learning_rate"):
            if getattr(optimizer, name) is not None:
                tables["optimizer"][name] = getattr(optimizer, name) * FINE_TUNING
        tables["train"]["patience"] = task.patience
        say("picked", f"learning rates {FINE_TUNING:g} of the first run's: the weights are good already")
    else:
        choice = task.choose(family, seconds or 60 * task.minutes, device, asked)
        for reason in choice.reasons:
            say("picked", reason)
        tables = settings.merged(choice.tables)
    other = asked["optimizer"].get("name")
    if other is not None and other != tables["optimizer"].get("name", OptimizerConfig.name):
        # Rates are good for the optimizer that they were chosen with, and for no other.
        tables["optimizer"] = {"learning_rate": RATES.get(other, 1e-3)}
        if "learning_rate" not in asked["optimizer"]:
            say("picked", f"learning rate {RATES.get(other, 1e-3):g}, usual for {other}")
    return tables


def _fit_context(tables: Tables, family: str, old: run.Run | None, task: RunTask, say: Say) -> RunTask:
    """The task with rows that the model can see at once; a new model's context becomes what the task says."""
    wanted = tables["model"].get("context", getattr(FAMILIES[family][1], "context", None))
    if wanted is None:  # it can run for ever
        return task.fitted(None, say)[0]
    task, context = task.fitted(wanted, say)
    if old is None and context != wanted:
        tables["model"]["context"] = context
    return task


# --------------------------------------------------------------------------------------------------------------
# A run that goes on


def resume(folder: Path, request: Request, say: Say, progress: data.Progress | None = None) -> Job:
    """A run that goes on where it was killed. Raises RunError with the reason when it cannot: the data, the
    tokenizer or the model's shape changed, or a file is damaged."""
    if request.given():
        raise ConfigError(f"--resume {folder}: goes on as it began. Leave out {', '.join(request.given())}.")
    config = run.read_config(folder)
    if config["family"] == "counting":
        raise RunError(f"{folder}: a counting model is made in one go. Make it again with --force.")
    tokenizer = run.read_tokenizer(folder)
    if tokenizers.digest(tokenizer) != config["data"].get("tokenizer", tokenizers.digest(tokenizer)):
        raise RunError(f"{folder}: cannot go on. {checkpoint.TOKENIZER} is not the one that it was trained with.")
    task = sources.again(folder, config, tokenizer, request.data, progress)
    try:
        shape: Any = settings.classes(config["family"])["model"].from_dict(config["model"])
        train = TrainConfig.from_dict(config["train"])
        optimizer = OptimizerConfig.from_dict(config["optimizer"])
        schedule = ScheduleConfig.from_dict(config["schedule"])
    except (ConfigError, KeyError, TypeError) as problem:
        raise RunError(f"{folder / checkpoint.CONFIG}: damaged. {problem}") from None
    if tokenizer.vocab_size != shape.vocab_size:
        raise RunError(
            f"{folder}: cannot go on. Its tokenizer has {tokenizer.vocab_size} tokens, its model"
            f" {config['model']['vocab_size']}: one of {checkpoint.TOKENIZER} and {checkpoint.CONFIG} was changed."
        )
    model = run.build_model(
        config["family"], config["model"], folder / checkpoint.CONFIG, seeded(train.seed, "initialization")
    )
    task, _ = task.fitted(getattr(shape, "context", None), lambda *_: None)
    trainer = Trainer(model, task, train, optimizer, schedule, folder)
    tables = {name: config[name] for name in TABLES}
    job = Job(request, folder, config["family"], task, config["data"], model, tables, trainer)
    job.line = config.get("counting_line")
    lost = not (folder / checkpoint.METRICS).exists()
    going = trainer.resume()
    if trainer.finished:
        raise RunError(f"{folder}: is finished, at step {trainer.step:,}. Sample it: handmade sample {folder}")
    say("resumed", f"at step {trainer.step:,} of {train.steps:,}" if going else "from the beginning: no checkpoint yet")
    if going and lost:
        say(
            "reports", f"{checkpoint.METRICS} is gone: what was before is not in it any more, nor in {checkpoint.CURVE}"
        )
    return job


__all__ = ["Job", "Request", "new", "resume"]
