"""How good a model is on what it was not trained on, and how the task of a run is found again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handmade import corpora, data
from handmade.data import TextData
from handmade.errors import ConfigError, DataError, RunError, TokenizerError, did_you_mean
from handmade.pairs import PairSplit
from handmade.tasks import TASKS, GeneratedTask, LanguageTask, RunTask, TranslationConfig, TranslationTask, Translator
from handmade.tasks.language import WINDOW
from handmade.tasks.translation import data as pair_data
from handmade.tokenizers import Tokenizer


def evaluate(model: nn.Module, task: RunTask, precision: str = "float32") -> dict[str, Any]:
    """All figures of `task` on its whole validation part: what `task.evaluate` says, and the `precision`. Draws
    nothing; dropout is off, and the model is in the mode it was in afterwards."""
    training, device = model.training, next((part.device for part in model.parameters()), torch.device("cpu"))
    model.eval()
    lower = nullcontext() if precision == "float32" else torch.autocast(device.type, getattr(torch, precision))
    try:
        with torch.inference_mode(), lower:
            return {**task.evaluate(model), "precision": precision}
    finally:
        model.train(training)


def generated(values: Mapping[str, Any]) -> GeneratedTask:
    """The task that the "task" part of a config.json describes. Raises ConfigError for one that there is not."""
    options = {option: value for option, value in values.items() if option != "name"}
    name = str(values.get("name"))
    if name not in TASKS:
        near = did_you_mean(name, TASKS) or f" There are {', '.join(TASKS)}."
        raise ConfigError(f"No task {name!r}.{near}")
    kind = TASKS[name]
    return kind(kind.settings.from_dict(options))


def task_again(
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    context: int = WINDOW,
    sources: Sequence[str | os.PathLike[str]] | None = None,
    folder: Path | str = "config.json",
) -> RunTask:
    """The task of a run, from its config.json; or of a text run, other `sources` with the run's tokenizer.

    Raises DataError when its text is gone or has changed, ConfigError for `sources` of a task that has none, RunError
    where this handmade makes other examples of the same options.
    """
    values = config["task"]
    if values["name"] == LanguageTask.name:
        smoothing = values.get("label_smoothing", 0.0)
        return LanguageTask(prepare_again(config["data"], tokenizer, sources), context, smoothing)
    if values["name"] == TranslationTask.name:
        return pairs_again(config, tokenizer, sources or (), other=sources is not None)
    if sources is not None:
        raise ConfigError(f"{folder}: {values['name']} makes its own problems and reads no text. Leave --data out.")
    task = generated(values)
    if task.fingerprint() != config["data"]["fingerprint"]:
        raise RunError(f"{folder}: this handmade makes other problems of the same options than it was trained on.")
    return task


def translator(config: Mapping[str, Any], tokenizer: Tokenizer) -> Translator:
    """The task of a run of translation without its pairs: enough to translate."""
    options = TranslationConfig.from_dict(
        {option: value for option, value in config["task"].items() if option != "name"}
    )
    return Translator(options, tokenizer)  # type: ignore[arg-type]


def pairs_again(
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    sources: Sequence[str | os.PathLike[str]] = (),
    other: bool = False,
    advice: str = "Name others with --data.",
) -> TranslationTask:
    """The task of a run of translation, with its pairs: from where they were, or from where they are now (`sources`).
    With `other`, the pairs of `sources` are others, and all of them are to be scored.

    Raises DataError when they are gone or have changed, ConfigError for those of other languages.
    """
    task, record = translator(config, tokenizer), config["data"]
    pair_data.require_packages(task.config.tokens == "bpe")
    if other:  # their columns and their encoding are their own
        options = task.config.replace(columns=None)
        found = pair_data.find(sources, options)
        return TranslationTask(task.config, task.tokenizer, PairSplit(found, found, found), held_out=False)
    names = list(sources) or ([record["corpus"]] if record["corpus"] else record["files"])
    gone = [name for name in record["files"] if not sources and not Path(name).exists()]
    if gone:
        raise DataError(f"{gone[0]}: the pairs of this run are not there any more. {advice}")
    found = pair_data.find(names, task.config, encoding=record["encoding"])
    split = pair_data.prepare(found, task.config)
    if split.fingerprint() != record["fingerprint"]:
        raise DataError(
            f"{names[0]}: has changed since this run was trained on it. Bring the old pairs back, or train a new run."
        )
    return TranslationTask(task.config, task.tokenizer, split)


def prepare_again(
    record: Mapping[str, Any], tokenizer: Tokenizer, sources: Sequence[str | os.PathLike[str]] | None = None
) -> TextData:
    """The text of a run again, or other `sources` with the run's tokenizer.

    `record` is the "data" part of config.json. Raises DataError when the text is gone or has changed.
    """
    if sources is not None:
        files = [path for source in sources for path in corpora.find(os.fspath(source)).files]
        return data.prepare(files, corpora.cache_folder() / "tokens", tokenizer)
    gone = [path for path in [*record["files"], *record["validation"]] if not Path(path).exists()]
    if gone and not record.get("corpus"):
        raise DataError(f"{gone[0]}: the text of this run is not there any more. Name another one with --data.")
    named = record.get("corpus")
    files = list(corpora.find(named).files) if named else [Path(path) for path in record["files"]]
    changed = DataError(
        f"{files[0]}: has changed since this run was trained on it. Bring the old text back, or train a new run."
    )
    try:
        text = data.prepare(
            files,
            corpora.cache_folder() / "tokens",
            tokenizer,
            validation=[Path(path) for path in record["validation"]] or None,
            encoding=record["encoding"],
            fraction=record["fraction"],
        )
    except TokenizerError:  # the tokenizer knew every character of the old text
        raise changed from None
    if text.fingerprint != record["fingerprint"]:
        raise changed
    return text
