"""The training of a run folder, as a person would give theirs: its trainer's steps, rates, evaluation, best weights and
checkpoints, on as much of its data as takes a second.

B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from handmade import checkpoint, schedules
from handmade.doctor.given import Given, parts_of
from handmade.errors import RunError
from handmade.models import parameter_count
from handmade.optimizers import OptimizerConfig
from handmade.pairs import PairSplit
from handmade.run import Run
from handmade.schedules import ScheduleConfig
from handmade.tasks import LanguageTask, TranslationTask
from handmade.tasks.base import Batch
from handmade.tasks.language import WINDOW
from handmade.tasks.translation.task import some_of
from handmade.training import TrainConfig, Trainer

WORK = 2e10  # multiplications of a step, and of an evaluation, that is made here: about a second
PAIRS = 500  # of a part, that are made into tokens here


class Fed:
    """A task whose batches come from outside while `batches` is there; all else is the task's."""

    def __init__(self, task: Any) -> None:
        self.task = task
        self.batches: Iterator[Any] | None = None

    def batch(self, rows: int, generator: torch.Generator) -> Any:
        if self.batches is None:
            return self.task.batch(rows, generator)
        return Batch(*parts_of(next(self.batches)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


def add_training(given: Given, found: Run, task: Any, notes: list[str]) -> None:
    """The run's own trainer, and what it does: steps, rates, evaluation, best weights, checkpoints."""
    config = TrainConfig.from_dict(found.config["train"])
    context = given.context or WINDOW
    rows = max(1, min(config.batch, int(WORK / (6 * parameter_count(found.model) * context))))
    accumulated = (config.tokens_per_step or 0) > config.batch * context
    if rows < config.batch:
        notes.append(f"steps of training are made with {rows} of {config.batch} rows" + " twice" * accumulated)
    config = config.replace(
        device="cpu",
        precision="float32",
        compile="no",
        threads=None,
        tensorboard=False,
        batch=rows,
        tokens_per_step=2 * rows * context if accumulated else None,
    )
    fed = Fed(task)
    optimizer = OptimizerConfig.from_dict(found.config["optimizer"])
    trainer = Trainer(found.model, fed, config, optimizer, ScheduleConfig.from_dict(found.config["schedule"]))
    trained = Training(trainer, fed)
    given.optimizer, given.steps = trainer.optimizers, config.steps
    given.schedule, given.schedule_bounds = trained.rate, trained.bounds()
    given.save, given.load = trained.save, trained.load
    given.best = trained.best
    if task is not None:
        given.loss, given.evaluate = trained.loss, trained.evaluate
        given.batches = trained.batch
        given.train_step = trained.own_step if found.translates else trained.step


class Training:
    """What a person would give of their own training, of a trainer of ours."""

    def __init__(self, trainer: Trainer, task: Fed) -> None:
        self.trainer, self.task = trainer, task
        self.peak = float(trainer.optimizers[0].param_groups[0]["initial_lr"])

    def batch(self) -> Any:
        """One as it is trained on."""
        return self.task.task.batch(self.trainer.config.batch, self.trainer.data)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The sum over the scored targets, divided by their number."""
        batch = Batch(targets, targets)
        return self.task.loss(logits, batch) / max(1, batch.scored)

    def step(self, batches: Iterator[Any]) -> float:
        """One step of the trainer, on batches from outside."""
        self.task.batches = iter(batches)
        try:
            return self.own_step()
        finally:
            self.task.batches = None

    def own_step(self) -> float:
        """One step of the trainer, on batches that it draws."""
        loss, *_ = self.trainer.one_step()
        self.trainer.step = min(self.trainer.step + 1, self.trainer.config.steps - 1)
        return loss

    def rate(self, step: int) -> float:
        """The rate of the first group of parameters at a step."""
        steps = self.trainer.config.steps
        return self.peak * schedules.multiplier(self.trainer.schedule, min(step, steps - 1) / steps)

    def bounds(self) -> tuple[float, float]:
        """What the schedule states as its lowest and its highest rate."""
        schedule = self.trainer.schedule
        end = {"constant": 1.0, "inverse-root": schedule.warmup**0.5}.get(schedule.name, schedule.final)
        low = min(end, schedules.FIRST) if schedule.warmup else end
        return self.peak * low, self.peak

    def evaluate(self) -> float:
        return float(self.trainer.evaluate()["val_loss"])

    def best(self) -> dict[str, Tensor]:
        """The weights as they are now, kept as the best."""
        self.trainer.save_best()
        return self.trainer.best_weights

    def save(self, path: str | Path) -> None:
        """A checkpoint, as a run has them."""
        folder = Path(path)
        checkpoint.save_checkpoint(folder, 1 + (checkpoint.latest_step(folder) or 0), self.trainer.state())

    def load(self, path: str | Path) -> None:
        """Go on from it."""
        state = checkpoint.load_checkpoint(Path(path))
        if state is None:
            raise RunError(f"{path}: no checkpoint is there.")
        self.trainer.restore(state)


# ---------------------------------------------------------------------------------------------------------------
# Data


def shortened(task: Any, model: nn.Module) -> Any:
    """The task with as much of its validation part as is scored in about a second. The rest of it is the task's."""
    tokens = int(WORK / (2 * parameter_count(model)))
    if task is None:
        return None
    if isinstance(task, LanguageTask):
        few = min(len(task.data.validation), max(2 * task.context + 1, min(8192, tokens)))
        data = dataclasses.replace(task.data, validation=task.data.validation[:few])
        return LanguageTask(data, task.context, task.config.label_smoothing)
    rows = max(8, min(256, tokens // max(1, task.context)))
    task = copy.copy(task)
    task.test, task.seen = task.test[:rows], task.seen[:rows]
    return task


def fewer_pairs(task: TranslationTask) -> TranslationTask:
    """The task with some of its pairs: to make all of them into tokens takes longer than to examine it."""
    split = task.split
    train, validation, test = (
        some_of(part, range(min(PAIRS, len(part)))) for part in (split.train, split.validation, split.test)
    )
    return TranslationTask(task.config, task.tokenizer, PairSplit(train, validation, test), task.held_out)


def written(task: Any, rows: Any) -> list[str]:
    """Problems with their answers, as the model reads them, without padding."""
    characters = np.array(task.tokenizer.characters)
    return ["".join(row).strip() for row in characters[rows.inputs.numpy()]]


__all__ = ["add_training", "fewer_pairs", "shortened", "written"]
