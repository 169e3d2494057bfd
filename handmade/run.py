"""A run folder, opened: `load("runs/mybook")` gives a `Run` that samples, answers and is evaluated.

    run = load("runs/mybook")
    print(run.generate("Once", tokens=200, temperature=0.8, top_k=50, seed=0))

Loading runs no code from the folder: JSON and safetensors only.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handmade import checkpoint, evaluation, machine, tokenizers
from handmade.errors import ConfigError, RunError
from handmade.generation import SamplingConfig, generate_text, stream_text
from handmade.models import FAMILIES
from handmade.tokenizers import Tokenizer

VERSION = 1  # of the run folder's layout


class Run:
    """A trained model with its tokenizer and what is known of how it was made.

    `folder`; `config`, the contents of config.json; `tokenizer`; `model`, in evaluation mode, with the best weights.
    """

    def __init__(self, folder: Path, config: dict[str, Any], tokenizer: Tokenizer, model: nn.Module) -> None:
        self.folder, self.config, self.tokenizer, self.model = folder, config, tokenizer, model
        self.device = next(iter(model.parameters()), torch.empty(0)).device

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.config['family']}, vocab_size={self.tokenizer.vocab_size})"

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

    def evaluate(
        self, data: Sequence[str | os.PathLike[str]] | None = None, precision: str = "float32"
    ) -> dict[str, Any]:
        """Loss, perplexity and bits per byte on the whole validation part of what it was trained on, or of `data`,
        and the loss of a 5-gram by counting there (None for other `data`).

        Raises DataError where the text is not there any more or has changed.
        """
        text = evaluation.prepare_again(self.config["data"], self.tokenizer, data)
        scores = evaluation.evaluate(self.model, text, self.device, precision)
        # A model that counted the run's text says nothing of another one.
        return {**scores, "counting_line": None if data else self.config.get("counting_line")}


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
    for key in ("files", "validation", "encoding", "fraction", "fingerprint"):
        if key not in config["data"]:
            raise RunError(f"{path}: damaged, its 'data' has no {key!r}.")
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
