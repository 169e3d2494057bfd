"""Language modelling: the next token of a text, at every position."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from handmade.data import TextData, Windows
from handmade.generation import SamplingConfig, generate_text
from handmade.layers import cross_entropy
from handmade.tasks import Batch

SCORED_AT_ONCE = 16_384  # tokens of one evaluation batch


class LanguageTask:
    """Predict every next token of windows of `context` tokens.

    Trained on windows drawn anywhere in the training part; scored on the whole validation part, walked through in
    fixed windows, every token after the first once.
    """

    def __init__(self, data: TextData, context: int, label_smoothing: float = 0.0) -> None:
        self.data, self.context, self.label_smoothing = data, context, label_smoothing
        self.training = Windows(data.train, context)
        self.validation = Windows(data.validation, min(context, len(data.validation) - 1))

    @property
    def rows_at_once(self) -> int:
        """Rows of an evaluation batch."""
        return max(1, SCORED_AT_ONCE // self.validation.context)

    @property
    def tokenizer(self) -> Any:
        return self.data.tokenizer

    def batch(self, rows: int, generator: torch.Generator) -> Batch:
        """`rows` windows of the training part. Shapes: (rows, context) each."""
        return Batch(*self.training.draw(generator, rows))

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """Shapes: (B, T, V)."""
        return model(batch.inputs)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The sum over the scored targets, in nats."""
        return cross_entropy(logits, batch.targets, label_smoothing=self.label_smoothing, reduction="sum")

    def score(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """On the whole validation part: `val_loss` in nats per token, and `bits_per_byte` of UTF-8, which can be
        compared across tokenizers."""
        total, scored = 0.0, 0
        for inputs, targets in self.validation.walk(self.rows_at_once):
            batch = Batch(inputs, targets).to(device)
            total += float(cross_entropy(self.logits(model, batch), batch.targets, reduction="sum"))
            scored += batch.scored
        nats = total / max(1, scored)
        return {"val_loss": nats, "bits_per_byte": bits_per_byte(nats, scored, self.data.validation_bytes)}

    def answer(self, model: nn.Module, prompt: str, tokens: int = 200, seed: int = 0, **options: Any) -> str:
        """How the model goes on after `prompt`."""
        return generate_text(model, self.tokenizer, [prompt], tokens, SamplingConfig(**options), seed=seed)[0]


def bits_per_byte(nats: float, tokens: int, scored_bytes: int) -> float:
    """A loss per token as bits per byte of the text that the tokens stand for."""
    return nats * tokens / (math.log(2) * max(1, scored_bytes))
