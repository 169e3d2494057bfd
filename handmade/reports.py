"""What a trainer says as it comes along, and a run keeps in metrics.jsonl."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handmade import checkpoint
from handmade.files import explained


@dataclass(frozen=True)
class Report:
    """What a line of metrics.jsonl says."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens trained on, all told."""
    train_seconds: float
    """Seconds of training, compilation included, evaluation and checkpoints not."""
    train_loss: float
    """Nats per scored token, mean over the steps since the last report."""
    lr: float
    """The learning rate of the first param group in the last step, as read from the optimizer."""
    tokens_per_second: float
    """Since the last report."""
    grad_norm: float
    """Of the last step, before clipping."""
    scores: dict[str, float]
    """Where evaluated: `val_loss` in nats per token and whatever else the task scores. Else empty."""
    event: str | None = None
    """What a person should know, in plain words."""

    @property
    def val_loss(self) -> float | None:
        return self.scores.get("val_loss")

    def line(self) -> dict[str, Any]:
        """For JSON: the scores among the rest, no event when there was none."""
        line = {name: value for name, value in vars(self).items() if name not in ("scores", "event")}
        line.update(self.scores)
        return {**line, "event": self.event} if self.event else line

    def append_to(self, folder: Path) -> None:
        """Write the line into a run folder's metrics.jsonl; what is no finite number as null. Raises ResourceError
        where it cannot be written."""
        line = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in self.line().items()}
        content = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode()
        path = folder / checkpoint.METRICS
        with explained(path, "a report", len(content), checkpoint.go_on(folder)), open(path, "ab") as file:
            file.write(content)
