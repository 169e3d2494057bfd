"""What is learnt: tokens, batches, loss, score, and how a prompt is answered.

The trainer knows no task by name; it asks for these five things.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    """Inputs (B, T) int64 and what should come out, (B, T) int64; a target that is not scored is -100."""

    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        """On `device`; to a GPU without waiting for it."""
        if device.type == "cpu":
            return self
        pinned = (part.pin_memory() if device.type == "cuda" else part for part in self)
        return Batch(*(part.to(device, non_blocking=True) for part in pinned))

    @property
    def scored(self) -> int:
        """Targets that count."""
        return int((self.targets != -100).sum())


class Task(Protocol):
    """What stands between data and model."""

    def batch(self, rows: int, generator: torch.Generator) -> Batch:
        """The next `rows` rows of training, drawn from `generator` and nothing else."""

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """What the model says to a batch: (B, T, V)."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The *sum* over the scored targets, in nats, float32. The trainer divides by their number, over all
        micro-batches of a step: a mean of means is wrong as soon as anything is masked."""

    def score(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Figures on the whole validation part; `val_loss` is among them. Draws nothing at random."""

    def answer(self, model: nn.Module, prompt: str, **options: Any) -> str:
        """What the model answers to a prompt."""


__all__ = ["Batch", "Task"]
