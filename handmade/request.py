"""What a person asks for on the command line, and what of it can be refused before any text is read."""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from handmade import checkpoint, corpora, machine, planning, presets, progress, run, settings, texts
from handmade.config import Config
from handmade.errors import ConfigError, ResourceError, RunError, did_you_mean
from handmade.models import CountingModel
from handmade.pair_corpora import PAIR_CORPORA
from handmade.pair_tokenizer import SIDE_KINDS
from handmade.settings import Tables
from handmade.tasks import TASKS, LanguageTask, RunTask, TranslationTask
from handmade.tasks.translation.data import is_corpus as is_pair_corpus
from handmade.tokenizers import TEXT_KINDS

THREADS = 4  # a processor: more only get in each other's way, and very many end the process
TABLES = ("model", "train", "optimizer", "schedule")


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
    tokenizer: str | None = None
    validation: tuple[Path, ...] = ()
    encoding: str | None = None
    device: str | None = None
    task: str | None = None
    """What is learnt of the data: "language", or "translation" of pairs of sentences."""
    source: str | None = None
    """The language to translate from."""
    target: str | None = None
    """The language to translate into."""

    def given(self) -> dict[str, Any]:
        """Option as it is typed -> its value, for all but the data and what was left out."""
        values = {"from" if name == "start" else name: value for name, value in vars(self).items() if name != "data"}
        return {f"--{name}": value for name, value in values.items() if value not in (None, (), False)}

    def command(self) -> str:
        """The command line that asks for this."""
        words = ["handmade", "train", *self.data]
        for option, value in self.given().items():
            for one in value if isinstance(value, tuple) else (value,):
                words += [option] if one is True else [option, f"{one:g}" if isinstance(one, float) else str(one)]
        return shlex.join(words)


def check_words(request: Request) -> None:
    """Raise ConfigError for words that do not go together, whatever they name."""
    if not request.data:
        raise ConfigError(
            "Name a text to train on: a file, a folder, or a corpus such as shakespeare."
            f" Or pairs of sentences, such as {PAIR_CORPORA[0]}. Or a task: {', '.join(TASKS)}."
        )
    if request.minutes is not None and not 0 < request.minutes < math.inf:
        raise ConfigError(f"--minutes {request.minutes:g}: must be a number above 0.")
    if request.start is not None:
        for option, whose in (("--preset", "settings"), ("--tokenizer", "tokenizer")):
            if option in request.given():
                raise ConfigError(
                    f"{option}: --from {request.start} takes the {whose} of that run. Leave one of the two out."
                )
    kinds = tuple(dict.fromkeys(("auto", *TEXT_KINDS, *SIDE_KINDS)))
    if request.tokenizer is not None and request.tokenizer not in kinds:
        near = did_you_mean(request.tokenizer, kinds)
        raise ConfigError(f"--tokenizer {request.tokenizer}: must be one of {', '.join(kinds)}.{near}")
    texts.check_encoding(request.encoding or "utf-8")


def find_task(request: Request) -> type[RunTask]:
    """The task that --task or the data names; language, where it names a text. A file or folder of that name comes
    first. Raises ConfigError for options that go with other tasks only."""
    kind = _named_task(request)
    if kind is TranslationTask:
        if request.validation:
            raise ConfigError(
                "--validation: pairs are kept back by sentence. Say how many with --set task.validation=1000."
            )
        if request.tokenizer not in (None, *SIDE_KINDS):
            raise ConfigError(f"--tokenizer {request.tokenizer}: for pairs, one of {', '.join(SIDE_KINDS)}.")
        return kind
    for option in ("--source", "--target"):
        if option in request.given():
            raise ConfigError(
                f"{option}: is for pairs of sentences, such as {PAIR_CORPORA[0]}, or a file of pairs with"
                " --task translation."
            )
    if kind is LanguageTask:
        if request.tokenizer not in (None, "auto", *TEXT_KINDS):
            raise ConfigError(f"--tokenizer {request.tokenizer}: for a text, one of auto, {', '.join(TEXT_KINDS)}.")
        return kind
    others = [other for other in request.data if other != kind.name]
    if others:
        raise ConfigError(f"{kind.name}: a task is learnt by itself. Leave out {', '.join(others)}.")
    for option in ("--tokenizer", "--validation", "--encoding"):
        if option in request.given():
            raise ConfigError(f"{option}: {kind.name} makes its own problems and reads no text. Leave it out.")
    return kind


def _named_task(request: Request) -> type[RunTask]:
    reading: dict[str, type[RunTask]] = {task.name: task for task in (LanguageTask, TranslationTask)}
    if request.task is not None:
        if request.task in TASKS:
            raise ConfigError(f"--task {request.task}: is learnt from no data. Say: handmade train {request.task}")
        if request.task not in reading:
            near = did_you_mean(request.task, reading)
            raise ConfigError(f"--task {request.task}: must be one of {', '.join(reading)}.{near}")
        return reading[request.task]
    if any(is_pair_corpus(name) for name in request.data):
        return TranslationTask
    name = next((name for name in request.data if name in TASKS and not os.path.exists(name)), None)
    return LanguageTask if name is None else TASKS[name]


def find_folder(request: Request, name: str) -> Path:
    """Where the run goes: `--out`, or runs/NAME. Raises RunError where something is in the way, unless forced, and
    ResourceError where nothing can be written."""
    folder = request.out or Path("runs") / name
    if folder.exists() and not (request.force and folder.is_dir()):
        checkpoint.prepare_folder(folder)  # raises where something is in it, and says what to do
    place = standing(folder)
    if not place.is_dir():
        raise RunError(f"{folder}: {place} is a file. Choose another folder with --out.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ResourceError(f"{folder}: nothing may be written in {place}. Choose another folder with --out.")
    return folder


def find_family(
    request: Request, preset: presets.Preset | None, old: run.Run | None, task: type[RunTask] = LanguageTask
) -> str:
    """What suits the task, unless --model, the preset or the run to begin with says otherwise. Raises ConfigError
    where they differ, and for a family that cannot learn the task."""
    family = request.model
    if family is not None:
        settings.classes(family)  # raises for one that there is not
    if preset is not None and family not in (None, preset.family):
        raise ConfigError(f"--preset {request.preset} is for --model {preset.family}, not {family}.")
    if old is not None:
        if family not in (None, old.config["family"]):
            raise ConfigError(f"--from {request.start}: is a {old.config['family']} model. Leave out --model {family}.")
        if isinstance(old.model, CountingModel):
            raise ConfigError(
                f"--from {request.start}: a counting model has no weights to go on from. Train a new one."
            )
    family = family or (old.config["family"] if old else preset.family if preset else task.family)
    why_not = task.refusal(family)
    if why_not:
        begun = f"--from {request.start}" if old else f"--preset {request.preset}" if preset else "--model"
        raise ConfigError(f"{f'{begun} {family}' if begun == '--model' else begun}: {why_not}")
    return family


def check_settings(
    request: Request,
    family: str,
    preset: presets.Preset | None,
    old: run.Run | None,
    asked: Tables,
    folder: Path,
    task: type[RunTask] = LanguageTask,
) -> tuple[torch.device, float | None]:
    """Raise ConfigError, ResourceError for settings that cannot be, whatever the text is. Returns the device, and the
    seconds that the run is given, None where its number of steps is."""
    options = settings.checked("task", task.settings, asked["task"])
    planned = request.minutes is not None or (preset is None and "steps" not in asked["train"])
    if request.minutes is not None and "steps" in asked["train"]:
        raise ConfigError("--minutes decides the number of steps. Leave it out, or train.steps.")
    candidates = [settings.merged(given_tables(preset, old), asked)]
    if preset is None and old is None:  # the settings are picked later: one of them has to fit
        candidates = [settings.merged(tables, asked) for tables in task.candidates(options, family, asked)]
    problem: ConfigError | None = None
    for tables in reversed(candidates):  # the smallest first: its error is the one to show
        try:
            # One token of vocabulary: what does not fit with it fits with no text.
            sizes = dict.fromkeys(settings.sizes_of(family), 1)
            model, train, optimizer, _ = settings.build(family, tables, sizes)
            break
        except ConfigError as wrong:
            problem = problem or wrong
    else:
        assert problem is not None
        raise problem
    if old is not None:
        _refuse_other_shape(request, old, model)
    if train.threads is not None and train.threads > (most := THREADS * (os.cpu_count() or 1)):
        raise ConfigError(f"train.threads = {train.threads}: must be at most {most} on this machine.")
    device = machine.find_device(train.device)
    if train.precision != "auto":
        machine.find_precision(train.precision, device)
    if train.compile == "yes":
        machine.require_compiler(device)
    progress.check_tensorboard(train, folder)
    if family != "counting":
        planning.require_memory(model, train, optimizer.name, device)
    seconds = 60 * (task.minutes if request.minutes is None else request.minutes)
    return device, seconds if planned else None


def _refuse_other_shape(request: Request, old: run.Run, model: Config) -> None:
    """Raise ConfigError where the model would not be that of the run to begin with. Dropout is no part of it."""
    free = (*settings.SIZES, "dropout", "attention_dropout")
    for name, value in model.to_dict().items():
        if name not in free and value != old.config["model"].get(name, value):
            raise ConfigError(
                f"model.{name} = {value}: --from {request.start} has {old.config['model'][name]}, and its weights fit"
                " no other. Leave it out."
            )


def given_tables(preset: presets.Preset | None, old: run.Run | None) -> Tables:
    """The tables of a preset, or of a run to begin with."""
    if preset is not None:
        return settings.merged({name: getattr(preset, name) for name in TABLES})
    if old is None:
        return settings.merged()
    tables = settings.merged({name: old.config[name] for name in TABLES})
    for name in settings.SIZES:
        tables["model"].pop(name, None)
    for name in ("device", "precision", "compile", "threads"):
        tables["train"].pop(name, None)  # of the machine that it was trained on
    return tables


def is_named(name: str) -> bool:
    """Whether this is a corpus by name, which may have to be fetched."""
    return name in corpora.CORPORA and not os.path.exists(name)


def standing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
