"""One run of one rung: what a worker process is asked for, and what it answers.

An `Order` can be pickled, and holds all that decides the numbers. One thread, so that they are the same on a machine
with more of them, and as many runs go side by side as there are processor cores.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from handmade import corpora, data, planning
from handmade.data import TextData
from handmade.errors import HandmadeError, TrainingError
from handmade.generation import SamplingConfig
from handmade.ladder.rungs import SCHEDULES, Settings
from handmade.models import parameter_count
from handmade.optimizers import OptimizerConfig
from handmade.randomness import seeded
from handmade.sources import VALIDATION_AT_MOST
from handmade.tasks.language import LanguageTask, bits_per_byte
from handmade.training import TrainConfig, Trainer
from handmade.writing import generate_text

SAMPLE_TOKENS, SAMPLE_SEED = 240, 0
SAMPLING = SamplingConfig(temperature=0.8)


@dataclass(frozen=True)
class Source:
    """The text that is climbed on."""

    data: tuple[str, ...]
    tokenizer: str = "auto"


@functools.lru_cache(maxsize=2)
def open_text(source: Source) -> TextData:
    """The text as tokens, from the cache after the first time. Raises DataError and TokenizerError."""
    files = [path for name in source.data for path in corpora.find(name).files]
    size = sum(path.stat().st_size for path in files)
    return data.prepare(
        files,
        corpora.cache_folder() / "tokens",
        source.tokenizer,
        fraction=min(0.1, VALIDATION_AT_MOST / max(1, size)),
    )


@dataclass(frozen=True)
class Order:
    """A run to be made. `steps` 0 for a model that counts."""

    rung: str
    settings: Settings
    seed: int
    steps: int
    learning_rate: float | None
    source: Source
    context: int
    prompt: str = ""
    """What the sample goes on from; without one there is no sample."""


@dataclass(frozen=True)
class Speed:
    """What a rung takes on this machine, in seconds."""

    step: float
    evaluation: float


class Stopped(Exception):
    """The climb was ended while this run was under way; nothing of it is kept."""


def trainer_of(order: Order) -> Trainer:
    """A trainer for the run, before its first step. Raises ConfigError for a model that cannot be."""
    text, train = open_text(order.source), order.settings.train
    made = order.settings.classes[0]
    return Trainer(
        made(order.settings.shape(text.tokenizer.vocab_size), seeded(order.seed, "initialization")),
        LanguageTask(text, order.context),
        TrainConfig(
            steps=max(1, order.steps),
            batch=train.rows,
            tokens_per_step=train.sequences * order.context,
            seed=order.seed,
            device="cpu",
            precision=train.precision,  # type: ignore[arg-type]
            compile="no",
            evaluate_every=None,
            checkpoint_every=max(1, order.steps),
        ),
        OptimizerConfig.from_dict(
            {"name": train.optimizer, "learning_rate": order.learning_rate, "weight_decay": train.weight_decay}
        ),
        SCHEDULES[train.schedule],
    )


def make(order: Order, stopped: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Make the run. Returns its figures: `val_loss`, `bits_per_byte`, `parameters`, `tokens`, `steps`,
    `train_seconds`, `tokens_per_second`, `seconds`, `sample`.

    `val_loss` is None where training diverged. Raises Stopped when `stopped` says so.
    """
    began, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = count(order) if order.settings.counted else train(order, stopped)
    except HandmadeError as problem:
        raise type(problem)(f"rung {order.rung}, seed {order.seed}: {problem}") from None
    finally:
        torch.set_num_threads(threads)
    return {**found, "seconds": round(time.perf_counter() - began, 2)}


def train(order: Order, stopped: Callable[[], bool]) -> dict[str, Any]:
    """A run that learns. The loss is that of the last weights, not the best: nothing is selected.

    A run whose loss did not stay finite has diverged, and has no loss: the trainer would go back and halve its rate,
    and then it would be a run with another rate than it says.
    """
    trainer, loss, bits = trainer_of(order), math.nan, math.nan
    try:
        for report in trainer.steps():
            if stopped():
                raise Stopped
            if trainer.rollbacks:
                break
            if report.scores:
                loss, bits = report.scores["val_loss"], report.scores["bits_per_byte"]
    except TrainingError:
        loss = math.nan
    held = math.isfinite(loss)
    return {
        "val_loss": loss if held else None,
        "bits_per_byte": bits if held else None,
        "parameters": parameter_count(trainer.model),
        "tokens": trainer.tokens,
        "steps": trainer.step if held else order.steps,
        "train_seconds": round(trainer.train_seconds, 5),
        "tokens_per_second": round(trainer.tokens / trainer.train_seconds, 1),
        "sample": sample(trainer.model, order) if held else "",
    }


def count(order: Order) -> dict[str, Any]:
    """A run that counts: exact, and the same for every seed."""
    text = open_text(order.source)
    model = order.settings.classes[0](order.settings.shape(text.tokenizer.vocab_size))
    began = time.perf_counter()
    model.fit(text.train)
    seconds, loss = time.perf_counter() - began, model.loss(text.validation)
    return {
        "val_loss": loss,
        "bits_per_byte": bits_per_byte(loss, len(text.validation) - 1, text.validation_bytes),
        "parameters": 0,
        "tokens": len(text.train),
        "steps": 0,
        "train_seconds": round(seconds, 3),
        "tokens_per_second": None,
        "sample": sample(model, order),
    }


def sample(model: Any, order: Order) -> str:
    """The prompt and what the model writes behind it, the same draws for every rung."""
    if not order.prompt:
        return ""
    tokenizer = open_text(order.source).tokenizer
    written = generate_text(model.eval(), tokenizer, [order.prompt], SAMPLE_TOKENS, SAMPLING, seed=SAMPLE_SEED)
    return order.prompt + written[0]


def speed(order: Order) -> Speed:
    """Measure the rung with a few steps that are taken back. Nothing for a model that counts."""
    if order.settings.counted:
        return Speed(0.0, 0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = trainer_of(order)
        seconds = sorted(trainer.rehearse(4)[1:])  # the first step also warms up
        return Speed(seconds[1], planning.seconds_to_score(trainer, trainer.task))  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(threads)
