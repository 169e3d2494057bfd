"""How good a model is on text it was not trained on."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handmade import corpora, data
from handmade.data import TextData
from handmade.errors import DataError, TokenizerError
from handmade.models.ngram import CountingModel, counting_line
from handmade.tasks.language import LanguageTask, bits_per_byte
from handmade.tokenizers import Tokenizer


def evaluate(model: nn.Module, text: TextData, device: torch.device, precision: str = "float32") -> dict[str, float]:
    """Score `model` on the whole validation part of `text`, every token after the first once, in fixed windows of
    the model's context. Draws nothing.

    Returns `val_loss` (nats per token), `perplexity`, `bits_per_byte`, `tokens` (scored).
    """
    task = LanguageTask(text, getattr(model.config, "context", 256))  # a model without one can run for ever
    if isinstance(model, CountingModel):  # exactly, not window by window, which would cut its contexts
        nats, scored = model.loss(text.validation), len(text.validation) - 1
        return figures(nats, bits_per_byte(nats, scored, text.validation_bytes), scored)
    training = model.training
    model.eval()
    lower = nullcontext() if precision == "float32" else torch.autocast(device.type, getattr(torch, precision))
    try:
        with torch.inference_mode(), lower:
            scores = task.score(model, device)
    finally:
        model.train(training)
    return figures(scores["val_loss"], scores["bits_per_byte"], len(text.validation) - 1)


def figures(nats: float, bits: float, tokens: int) -> dict[str, float]:
    """What `evaluate` returns."""
    perplexity = math.exp(min(nats, 700.0))
    return {"val_loss": nats, "perplexity": perplexity, "bits_per_byte": bits, "tokens": tokens}


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


def line_to_beat(text: TextData, order: int = 5) -> float:
    """The loss of a model that only counts, on the same tokens: nats per token."""
    return counting_line(text.train, text.validation, text.tokenizer.vocab_size, order)
