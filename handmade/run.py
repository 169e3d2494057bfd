"""A run folder, opened: `load("runs/mybook")` gives a `Run` that samples, answers and is evaluated.

    run = load("runs/mybook")
    print(run.generate("Once", tokens=200, temperature=0.8, top_k=50, seed=0))

Loading runs no code from the folder: JSON and safetensors only.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handmade import checkpoint, evaluation, machine, tokenizers
from handmade.errors import ConfigError, RunError
from handmade.generation import SamplingConfig
from handmade.models import FAMILIES
from handmade.tasks import GeneratedTask, LanguageTask, RunTask, Translation, TranslationTask, Translator
from handmade.tokenizers import Tokenizer
from handmade.translating import BeamConfig
from handmade.writing import generate_text, stream_text

VERSION = 1  # of the run folder's layout
DATA_KEYS = {
    LanguageTask.name: ("files", "validation", "encoding", "fraction", "fingerprint"),
    TranslationTask.name: ("corpus", "files", "encoding", "fingerprint"),
}
"""Task -> what config.json must say of its data."""


class Run:
    """A trained model with its tokenizer and what is known of how it was made.

    `folder`; `config`, the contents of config.json; `tokenizer`; `model`, in evaluation mode, with the best weights.
    """

    def __init__(self, folder: Path, config: dict[str, Any], tokenizer: Tokenizer, model: nn.Module) -> None:
        self.folder, self.config, self.tokenizer, self.model = folder, config, tokenizer, model
        self.device = next(iter(model.parameters()), torch.empty(0)).device

    def __repr__(self) -> str:
        task = "" if self.continues else f"{self.config['task']['name']}, "
        return f"Run({str(self.folder)!r}, {task}{self.config['family']}, vocab_size={self.tokenizer.vocab_size})"

    def generate(
        self,
        prompt: str | Sequence[str] = "",
        tokens: int = 200,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        samples: int | None = None,
    ) -> Any:
        """How the model goes on after `prompt`, without the prompt: at most `tokens` tokens.

        One text for one prompt; a list for a list of prompts (decoded together) or for a number of `samples`.
        Raises TokenizerError for a character that the model never saw, ConfigError for an option out of range.
        """
        if self.translates:
            raise ConfigError(f"{self.folder}: translates, and goes on with no text. Use translate([...]).")
        sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if samples is not None and (samples < 1 or not isinstance(prompt, str)):
            raise ConfigError(f"samples = {samples}: must be at least 1, and with one prompt.")
        prompts *= samples or 1
        stops = [stop] if isinstance(stop, str) else list(stop)
        texts = generate_text(self.model, self.tokenizer, prompts, tokens, sampling, seed=seed, stop=stops)
        return texts[0] if isinstance(prompt, str) and samples is None else texts

    def stream(
        self,
        prompt: str = "",
        tokens: int = 200,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
    ) -> Iterator[str]:
        """`generate`, piece by piece as it is made; the pieces joined are the same text."""
        sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        stops = [stop] if isinstance(stop, str) else list(stop)
        return stream_text(self.model, self.tokenizer, prompt, tokens, sampling, seed=seed, stop=stops)

    @functools.cached_property
    def task(self) -> RunTask:
        """What it learnt. Raises DataError where its text is not there any more or has changed."""
        return evaluation.task_again(self.config, self.tokenizer, self.context, folder=self.folder)

    @property
    def context(self) -> int:
        """Tokens of a training row, where the task does not decide it."""
        return getattr(self.model.config, "context", 256)  # a model without one can run for ever

    @property
    def continues(self) -> bool:
        """Whether the model goes on after a prompt, as a text does. Otherwise it answers it."""
        return self.config["task"]["name"] == LanguageTask.name

    @property
    def translates(self) -> bool:
        """Whether it is a run of translation: `translate` and `draw_attention` are for it."""
        return self.config["task"]["name"] == TranslationTask.name

    @functools.cached_property
    def translator(self) -> Translator:
        """What a run of translation needs to translate; its pairs need not be there. Raises ConfigError for others."""
        if not self.translates:
            raise ConfigError(f"{self.folder}: does not translate. Train one that does: handmade train tatoeba-ja-en")
        try:
            return evaluation.translator(self.config, self.tokenizer)
        except ConfigError as problem:
            raise RunError(f"{self.folder / checkpoint.CONFIG}: damaged. {problem}") from None

    def translate(
        self,
        sentences: Sequence[str],
        *,
        beams: int | None = None,
        nbest: int = 1,
        length_penalty: float | None = None,
        tokens: int | None = None,
        sampling: SamplingConfig | None = None,
        seed: int = 0,
        split: bool = False,
    ) -> list[list[Translation]]:
        """Translations of every sentence, best first, `nbest` of each, with `text` and `score`; decoded together.

        `beams` and `length_penalty` are those of the run unless said otherwise; with `sampling` each is drawn. At most
        `tokens` tokens each. With `split`, a text of several sentences is translated sentence by sentence.
        Raises ConfigError for an option out of range, an empty sentence, one longer than the model's positions,
        TokenizerError for one of unknown characters.
        """
        if isinstance(sentences, str):
            raise ConfigError(f"translate: give a list of sentences, as in translate([{sentences!r}]).")
        config = self.translator.config
        usual = 1 if sampling is not None else max(config.beams, nbest)
        search = BeamConfig(
            beams=usual if beams is None else beams,
            nbest=nbest,
            length_penalty=config.length_penalty if length_penalty is None else length_penalty,
            most=tokens,
        )
        return self.translator.translate(self.model, list(sentences), search, sampling, seed, split)

    def draw_attention(self, sentences: Sequence[str], translations: Sequence[Translation] | None = None) -> Any:
        """Where the model of a translation looked at each token that it wrote: a matplotlib Figure, a panel for each
        sentence. Of these `translations`, or of the best that are found. Raises ConfigError for a model without
        attention."""
        with torch.inference_mode():
            return self.translator.picture(self.model, list(sentences), translations)

    def answers(self, prompts: Sequence[str]) -> list[str]:
        """What the model answers to each prompt, decoded together: `["46", "100"]` to `["12+34=", "99+1="]`.

        Raises ConfigError for a prompt that is no problem of its task, and for a run that goes on with texts.
        """
        if isinstance(prompts, str):
            raise ConfigError(f"answers: give a list of prompts, as in answers([{prompts!r}]).")
        prompts = list(prompts)
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise ConfigError(f"answers: {prompt!r} is no text. Give a list of prompts, as in answers(['...']).")
        if self.continues:
            raise ConfigError(f"{self.folder}: goes on with a text and answers no problems. Use generate(...).")
        if self.translates:
            return self.translator.answers(self.model, prompts)
        return self.task.answers(self.model, prompts)

    def evaluate(
        self,
        data: Sequence[str | os.PathLike[str]] | None = None,
        precision: str = "float32",
        problems: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """All figures on the whole validation part of what it was trained on: of a text run loss, perplexity, bits per
        byte, and the loss of a 5-gram by counting there; of a task run what its task says.

        With `data`, on another text (the counting line is then None). With `problems`, on those alone: what was
        answered to each, what is right, and the part of them that is.
        Raises DataError where the text is not there any more or has changed, ConfigError for `data` or `problems` of
        a run that has none.
        """
        if problems is not None:
            return self._mark(list(problems))
        if data is None:
            task = self.task
        else:  # the run's own pairs or text may be gone
            task = evaluation.task_again(self.config, self.tokenizer, self.context, data, self.folder)
        scores = evaluation.evaluate(self.model, task, precision)
        # A model that counted the run's text says nothing of another one.
        return {**scores, "counting_line": None if data else self.config.get("counting_line")}

    def _mark(self, problems: list[str]) -> dict[str, Any]:
        if self.continues or self.translates:
            does = "goes on with a text" if self.continues else "translates"
            raise ConfigError(f"{self.folder}: {does} and answers no problems. Leave --problems out.")
        task: GeneratedTask = self.task  # type: ignore[assignment]
        rows = [
            {"problem": problem, "answer": answer, "right": right}
            for problem, answer, right in zip(
                problems, self.answers(problems), task.right_answers(problems), strict=True
            )
        ]
        matches = sum(row["answer"] == row["right"] for row in rows)
        return {"problems": rows, "exact_match": matches / len(rows) if rows else 0.0}


def load(folder: str | os.PathLike[str], device: str = "auto") -> Run:
    """Open a run folder. Raises RunError that says which file is missing or damaged."""
    folder = Path(folder)
    config = read_config(folder)
    tokenizer = read_tokenizer(folder)
    model = build_model(config["family"], config["model"], folder / checkpoint.CONFIG)
    if tokenizer.vocab_size != config["model"]["vocab_size"]:
        raise RunError(
            f"{folder / checkpoint.TOKENIZER}: knows {tokenizer.vocab_size} tokens, the model"
            f" {config['model']['vocab_size']}: not the tokenizer of this run."
        )
    source_size = getattr(tokenizer, "source_size", None)
    if source_size != config["model"].get("source_vocab_size"):
        raise RunError(f"{folder / checkpoint.TOKENIZER}: not the tokenizer of this run: its source has other tokens.")
    # As many tokens, but others: another alphabet of the same size, or the two sides of a translation exchanged.
    digest = tokenizers.digest(tokenizer)
    if digest != config["data"].get("tokenizer", digest):
        raise RunError(f"{folder / checkpoint.TOKENIZER}: not the tokenizer of this run: its tokens were changed.")
    if not (folder / checkpoint.WEIGHTS).exists():
        raise RunError(
            f"{folder}: has no weights yet: they come with the first evaluation.\n"
            f"Go on with it: handmade train --resume {folder}"
        )
    checkpoint.load_weights(folder / checkpoint.WEIGHTS, model)
    return Run(folder, config, tokenizer, model.to(machine.find_device(device)).eval())


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a run. Raises RunError when there is none (with the nearest run beside it) or it is damaged."""
    if not checkpoint.holds_run(folder):
        runs = [path.parent.name for path in folder.parent.glob(f"*/{checkpoint.CONFIG}")]
        near = difflib.get_close_matches(folder.name, runs, n=1, cutoff=0.5)
        hint = f" Did you mean {folder.parent / near[0]}?" if near else " Make one: handmade train TEXT"
        what = "holds no run (no config.json)" if folder.exists() else "no such run"
        raise RunError(f"{folder}: {what}.{hint}")
    config = checkpoint.read_json(folder / checkpoint.CONFIG)
    path = folder / checkpoint.CONFIG
    if not isinstance(config, dict):
        raise RunError(f"{path}: damaged, it is not an object.")
    if config.get("version") != VERSION:
        raise RunError(f"{path}: of layout version {config.get('version')!r}; this handmade reads {VERSION}.")
    for key in ("family", "model", "data", "train", "optimizer", "schedule"):
        if not isinstance(config.get(key), str if key == "family" else dict):
            raise RunError(f"{path}: damaged, it has no {key!r}.")
    if not isinstance(config.get("task"), dict):
        config["task"] = {"name": config.get("task", "language")}  # as it was written before there were others
    name = config["task"].get("name")
    if not isinstance(name, str):
        raise RunError(f"{path}: damaged, its 'task' has no 'name'.")
    for key in DATA_KEYS.get(name, ("fingerprint",)):
        if key not in config["data"]:
            raise RunError(f"{path}: damaged, its 'data' has no {key!r}.")
    if not isinstance(config["data"].get("encoding", ""), str):
        raise RunError(f"{path}: damaged, the 'encoding' of its 'data' is no name.")
    return config


def read_tokenizer(folder: Path) -> Tokenizer:
    """tokenizer.json of a run. Raises RunError when it is missing."""
    path = folder / checkpoint.TOKENIZER
    if not path.exists():
        raise RunError(f"{path}: missing, so {folder} is not a whole run.")
    return tokenizers.load(path)


def build_model(family: str, shape: Mapping[str, Any], path: Path, seed: torch.Generator | None = None) -> nn.Module:
    """The model that a config.json describes. Raises RunError that names the file for one that cannot be."""
    if family not in FAMILIES:
        raise RunError(f"{path}: of family {family!r}; this handmade has {', '.join(FAMILIES)}.")
    made: Any
    settings: Any
    made, settings = FAMILIES[family]
    try:
        return made(settings.from_dict(shape), seed)
    except ConfigError as problem:
        raise RunError(f"{path}: damaged. {problem}") from None


__all__ = ["Run", "build_model", "load", "read_config", "read_tokenizer"]
