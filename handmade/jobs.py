"""From what a person asks for to a trainer that is ready: text, settings, model, run folder.

    job = new(Request(data=("mybook.txt",), minutes=10))
    job.trainer.train()

The steps are apart, so that what was picked and measured can be said before anything is written: `new` decides and
measures, `Job.write` makes the run folder.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handmade import checkpoint, corpora, data, evaluation, machine, planning, presets, run, settings
from handmade.data import TextData
from handmade.errors import ConfigError, DataError, ResourceError, RunError
from handmade.models import FAMILIES, CountingModel, parameter_count
from handmade.optimizers import OptimizerConfig
from handmade.schedules import ScheduleConfig
from handmade.settings import Tables
from handmade.tasks.language import LanguageTask
from handmade.tokenizers import Tokenizer
from handmade.training import TrainConfig, Trainer, seeded

Say = Callable[[str, str], None]
"""Called with a label and a sentence for the person."""

MINUTES = 5.0  # of a plain `handmade train`
VALIDATION_AT_MOST = 2_000_000  # bytes: more of a large text would take longer to evaluate than to train on
# What comes after training and is part of the time given: the curve, the sample, the last checkpoint.
CLOSING_SECONDS = 4.0


@dataclass(frozen=True)
class Request:
    """What a person asked for. `None` and empty mean: pick it."""

    data: tuple[str, ...] = ()
    minutes: float | None = None
    preset: str | None = None
    config: tuple[Path, ...] = ()
    set: tuple[str, ...] = ()
    model: str | None = None
    start: Path | None = None
    """A run to fine-tune: its weights and tokenizer."""
    out: Path | None = None
    force: bool = False
    tokenizer: str = "auto"
    validation: tuple[Path, ...] = ()
    encoding: str = "utf-8"
    device: str | None = None


@dataclass
class Job:
    """A run that is ready to train."""

    folder: Path
    family: str
    text: TextData
    record: dict[str, Any]
    """What config.json says of the data."""
    model: nn.Module
    task: LanguageTask
    tables: Tables
    trainer: Trainer | None
    """None for a model that only counts."""
    measured: planning.Measured | None = None
    memory: int = 0
    line: float | None = None
    """The counting line: nats per token of a 5-gram by counting."""
    started: float = field(default_factory=time.perf_counter)

    def write(self, force: bool) -> None:
        """Make the run folder with config.json and tokenizer.json. Raises RunError where it holds a run already,
        ResourceError where it cannot be written; then nothing is left in it."""
        checkpoint.prepare_folder(self.folder, force)
        try:
            self.text.tokenizer.save(self.folder / checkpoint.TOKENIZER)
            checkpoint.write_json(self.folder / checkpoint.CONFIG, self.to_json())
        except BaseException:
            checkpoint.clear_folder(self.folder)
            raise

    def to_json(self) -> dict[str, Any]:
        """config.json: all that decides the run, and where it was made."""
        return {
            "version": run.VERSION,
            "task": "language",
            "family": self.family,
            "model": self.model.config.to_dict(),  # type: ignore[union-attr, operator]
            **{name: self.tables[name] for name in ("train", "optimizer", "schedule")},
            "data": self.record,
            "counting_line": self.line,
            "command": " ".join(["handmade", *sys.argv[1:]]),
            "machine": machine.describe(),
        }


def find_folder(request: Request, name: str) -> Path:
    """Where the run goes: `--out`, or runs/NAME. Raises RunError where one is already, unless forced."""
    folder = request.out or Path("runs") / name
    if not request.force:
        checkpoint.refuse_taken(folder)
    return folder


def new(request: Request, say: Say, progress: data.Progress | None = None, started: float | None = None) -> Job:
    """Decide everything and measure, without writing a run folder. Raises HandmadeError for what cannot be.

    `started`: when the time given began to run, by `time.perf_counter`; None: now.
    """
    began = time.perf_counter() if started is None else started
    if not request.data:
        raise ConfigError("Name a text to train on: a file, a folder, or a corpus such as shakespeare.")
    found = [corpora.find(name, say=lambda line: say("corpus", line)) for name in request.data]
    folder = find_folder(request, found[0].name)
    old = run.load(request.start, request.device or "cpu") if request.start else None
    preset = presets.find(request.preset) if request.preset else None
    family = request.model or (old.config["family"] if old else preset.family if preset else "gpt")
    asked = settings.merged(
        *(settings.from_file(path, family) for path in request.config), settings.from_words(request.set, family)
    )
    if request.device:
        asked["train"]["device"] = request.device
    for corpus in found:
        if corpus.note:
            say(corpus.name, corpus.note)
    text, record = _prepare(request, found, old.tokenizer if old else None, say, progress)
    say(found[0].name, text.describe())

    device = machine.find_device(str(asked["train"].get("device", "auto")))
    planned = request.minutes is not None or not (preset or "steps" in asked["train"])
    seconds = 60 * (MINUTES if request.minutes is None else request.minutes) if planned else None
    if seconds is not None and seconds <= 0:
        raise ConfigError(f"--minutes {request.minutes:g}: must be above 0.")
    tables = settings.merged(_defaults(family, preset, old, text, seconds, device, say), asked)
    _fit_context(tables, family, text, say, chosen="context" in asked["model"])
    model_config, train, optimizer, schedule = settings.build(family, tables, text.tokenizer.vocab_size)
    if old is not None and model_config != old.model.config:
        raise ConfigError(f"--from {request.start}: the model's shape is that of the run; leave out model.* settings.")

    memory = planning.require_memory(model_config, train, optimizer.name, device) if family == "gpt" else 0
    model = FAMILIES[family][0](model_config, seeded(train.seed, "initialization"))
    if old is not None:
        model.load_state_dict(old.model.state_dict())
    context = getattr(model_config, "context", 64)
    job = Job(folder, family, text, record, model, LanguageTask(text, context), tables, None, memory=memory)
    job.started, job.line = began, evaluation.line_to_beat(text)
    if isinstance(model, CountingModel):
        return job
    _make_trainer(job, train, optimizer, schedule, seconds, say)
    return job


def _prepare(
    request: Request, found: list[corpora.Corpus], tokenizer: Any, say: Say, progress: data.Progress | None
) -> tuple[TextData, dict[str, Any]]:
    files = [path for corpus in found for path in corpus.files]
    size = sum(path.stat().st_size for path in files)
    fraction = min(0.1, VALIDATION_AT_MOST / size) if size and not request.validation else 0.1
    if fraction < 0.1:
        say("validation", f"the last {100 * fraction:.2g} % of the text instead of 10 %, enough to tell runs apart")
    text = data.prepare(
        files,
        corpora.cache_folder() / "tokens",
        tokenizer or request.tokenizer,
        validation=list(request.validation) or None,
        encoding=request.encoding,
        fraction=fraction,
        progress=progress,
    )
    for note in text.notes:
        say("note", note)
    named = len(request.data) == 1 and request.data[0] in corpora.CORPORA and not Path(request.data[0]).exists()
    record = {
        "corpus": request.data[0] if named else None,
        "files": [str(path.resolve()) for path in files],
        "validation": [str(path.resolve()) for path in request.validation],
        "encoding": request.encoding,
        "fraction": fraction,
        "fingerprint": text.fingerprint,
        "tokenizer": fingerprint(text.tokenizer),
    }
    return text, record


def fingerprint(tokenizer: Tokenizer) -> str:
    """sha256 of what tokenizer.json says: with two characters exchanged it would still fit the model."""
    return hashlib.sha256(json.dumps(tokenizer.to_dict(), sort_keys=True).encode()).hexdigest()


def _defaults(
    family: str,
    preset: presets.Preset | None,
    old: run.Run | None,
    text: TextData,
    seconds: float | None,
    device: torch.device,
    say: Say,
) -> Tables:
    """What holds where the person says nothing: the preset's, the old run's, or what suits the text and the time."""
    if preset is not None:
        if preset.family != family:
            raise ConfigError(f"The preset is for --model {preset.family}, not {family}.")
        return {
            "model": preset.model,
            "train": preset.train,
            "optimizer": preset.optimizer,
            "schedule": preset.schedule,
        }
    if old is not None:
        tables = settings.merged({name: dict(old.config[name]) for name in ("model", "train", "optimizer", "schedule")})
        del tables["model"]["vocab_size"]
        # The weights are good already: a lower rate changes them without wiping out what they know.
        optimizer = OptimizerConfig.from_dict(tables["optimizer"])
        for name in ("learning_rate", "embedding_learning_rate", "head_learning_rate", "vector_learning_rate"):
            if getattr(optimizer, name) is not None:
                tables["optimizer"][name] = getattr(optimizer, name) * FINE_TUNING
        tables["train"]["patience"] = PATIENCE
        say("rates", f"{FINE_TUNING:g} of the first run's, to change the weights without wiping out what they know")
        return tables
    if family != "gpt":
        return settings.merged(
            {"train": {"batch": 64}, "optimizer": {"learning_rate": 0.01}, "schedule": {"warmup": 0.0}}
        )
    choice = planning.choose(text, seconds or 60 * MINUTES, device)
    choice.tables["train"]["patience"] = PATIENCE
    for reason in choice.reasons:
        say("picked", reason)
    return choice.tables


FINE_TUNING = 0.3
PATIENCE = 4  # evaluations without a new best: validation has turned


def _fit_context(tables: Tables, family: str, text: TextData, say: Say, chosen: bool) -> None:
    """A context that the text has a window for; said where it is shorter than what was asked."""
    if family == "counting":
        return
    wanted = tables["model"].get("context", getattr(FAMILIES[family][1], "context", 64))
    context, sentence = data.fit_context(len(text.train), wanted)
    if sentence:
        tables["model"]["context"] = context
        say("context", sentence)


def _make_trainer(
    job: Job,
    train: TrainConfig,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    seconds: float | None,
    say: Say,
) -> None:
    """The trainer, measured, with its number of steps laid out, and everything it decided on record."""
    device = machine.find_device(train.device)
    threads = train.threads or torch.get_num_threads()
    compiled = _compile(train, device, seconds, say)
    train = train.replace(
        device=device.type if device.index is None else str(device),
        precision=machine.find_precision(train.precision, device),
        compile="yes" if compiled else "no",
        threads=threads,
    )
    try:
        trainer = Trainer(job.model, job.task, train, optimizer, schedule)
        job.measured = planning.measure(trainer, job.task)
    except torch.OutOfMemoryError:
        raise ResourceError(
            f"The GPU's memory is too small for a batch of {train.batch}. Lower train.batch (with"
            " train.tokens_per_step the step stays as large), or take a smaller model."
        ) from None
    if seconds is not None:
        left = seconds - (time.perf_counter() - job.started) - CLOSING_SECONDS
        planning.lay_out(trainer, left, job.measured)
    trainer.folder = job.folder
    job.trainer = trainer
    job.tables["train"] = trainer.config.to_dict()
    job.tables["optimizer"], job.tables["schedule"] = optimizer.to_dict(), schedule.to_dict()


def _compile(train: TrainConfig, device: torch.device, seconds: float | None, say: Say) -> bool:
    """Whether torch.compile pays, and say so."""
    if train.compile != "auto":
        return train.compile == "yes"
    missing = machine.compiler_missing(device)
    if missing:
        say("eager", f"{missing} on this machine, so the model is not compiled")
        return False
    if seconds is not None and seconds < planning.COMPILE_FROM:
        say("eager", f"compilation takes about {planning.COMPILE_SECONDS:.0f} s, which do not pay in {seconds:.0f} s")
        return False
    say("compiled", f"about {planning.COMPILE_SECONDS:.0f} s at the start, and every step is faster")
    return True


def count(job: Job) -> float:
    """Fit a model that only counts, and write its run. Returns its validation loss."""
    assert isinstance(job.model, CountingModel)
    job.model.fit(job.text.train)
    loss = job.model.loss(job.text.validation)
    checkpoint.save_weights(job.folder / checkpoint.WEIGHTS, job.model, step="0", val_loss=repr(loss))
    return loss


def resume(folder: Path, request: Request, say: Say) -> Job:
    """A run that goes on where it was killed. Raises RunError with the reason when it cannot: the data, the
    tokenizer or the model's shape changed, or a file is damaged."""
    config = run.read_config(folder)
    if request != Request(data=request.data):
        raise ConfigError(f"--resume {folder}: goes on with the run's own settings. Leave the others out.")
    tokenizer = run.read_tokenizer(folder)
    if config["family"] == "counting":
        raise RunError(f"{folder}: a counting model is made in one go; train it again with --force.")
    if config["data"].get("tokenizer") != fingerprint(tokenizer):
        raise RunError(
            f"{folder}: cannot go on. {checkpoint.TOKENIZER} has changed since the run began."
            " Bring the old one back, or train a new run."
        )
    if request.data:
        files = [str(path.resolve()) for name in request.data for path in corpora.find(name).files]
        config["data"] = {**config["data"], "corpus": None, "files": files}
    try:
        text = evaluation.prepare_again(config["data"], tokenizer)
    except DataError as problem:
        raise RunError(f"{folder}: cannot go on. {problem}") from None
    if text.tokenizer.vocab_size != config["model"]["vocab_size"]:
        raise RunError(
            f"{folder}: cannot go on. Its tokenizer has {text.tokenizer.vocab_size} tokens, its model"
            f" {config['model']['vocab_size']}: one of {checkpoint.TOKENIZER} and {checkpoint.CONFIG} was changed."
        )
    try:
        train = TrainConfig.from_dict(config["train"])
        optimizer = OptimizerConfig.from_dict(config["optimizer"])
        schedule = ScheduleConfig.from_dict(config["schedule"])
    except ConfigError as problem:
        raise RunError(f"{folder / checkpoint.CONFIG}: damaged. {problem}") from None
    model = run.build_model(
        config["family"], config["model"], folder / checkpoint.CONFIG, seeded(train.seed, "initialization")
    )
    context = config["model"].get("context", 64)
    trainer = Trainer(model, LanguageTask(text, context), train, optimizer, schedule, folder)
    tables = {name: config[name] for name in ("model", "train", "optimizer", "schedule")}
    job = Job(folder, config["family"], text, config["data"], model, trainer.task, tables, trainer)  # type: ignore[arg-type]
    job.line = config.get("counting_line")
    if trainer.resume():
        say("resumed", f"at step {trainer.step:,} of {train.steps:,}")
    else:
        say("resumed", "no checkpoint yet, so from the beginning")
    if trainer.finished:
        why = "validation had turned" if trainer.turned else f"{train.steps:,} steps"
        raise RunError(f"{folder}: already finished, {why}. Sample it: handmade sample {folder}")
    return job


def about(job: Job) -> str:
    """The model in a line: its shape, parameters, memory."""
    shape: Any = job.model.config
    memory = f", {job.memory / 1e9:.2g} GB while training" if job.memory else ""
    sizes = " ".join(f"{name} {getattr(shape, name)}" for name in ("layers", "heads", "width") if hasattr(shape, name))
    context = f"context {shape.context}" if hasattr(shape, "context") else f"order {shape.order}"
    return f"{', '.join(filter(None, [sizes, context]))}: {parameter_count(job.model):,} parameters{memory}"


__all__ = ["Job", "Request", "about", "count", "new", "resume"]
