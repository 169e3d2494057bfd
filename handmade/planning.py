"""What to train, when a person names only a text and a time: model size, batch, regularisation, number of steps.

It measures this machine with the model that will be trained (`Trainer.rehearse`) and says what it picked and why.
Nothing here is needed to train: a person who sets everything never meets it.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from handmade import machine
from handmade.config import Config
from handmade.data import TextData
from handmade.errors import ConfigError, ResourceError
from handmade.files import readable
from handmade.models import FAMILIES
from handmade.models.gpt import GPTConfig
from handmade.presets import MODERN
from handmade.tasks import Batch
from handmade.tasks.language import LanguageTask
from handmade.training import TrainConfig, Trainer

Tables = dict[str, dict[str, Any]]
"""Settings by table: "model", "train", "optimizer", "schedule"."""


@dataclass(frozen=True)
class Size:
    """A shape that `choose` may pick, and the batch it is trained with."""

    layers: int
    heads: int
    width: int
    context: int
    batch: int

    def shape(self) -> dict[str, int]:
        return {"layers": self.layers, "heads": self.heads, "width": self.width, "context": self.context}

    @property
    def parameters(self) -> int:
        """About; without the embeddings."""
        return 12 * self.layers * self.width**2


# From large to small. results/ and docs/log.md say how they did.
SIZES = (
    Size(12, 12, 768, 1024, 16),
    Size(8, 8, 512, 512, 16),
    Size(6, 6, 384, 256, 16),
    Size(6, 4, 256, 256, 16),
    Size(4, 4, 192, 128, 16),
    Size(4, 4, 128, 128, 12),
    Size(3, 2, 64, 64, 12),
)
TOKENS_PER_PARAMETER = 1.0  # a model is as large as it can see this many tokens a parameter in the time given
STEPS_AT_LEAST = 300  # fewer steps than this learn less than a smaller model with more of them
EVALUATION_SHARE = 0.08  # of the time given
COMPILE_SECONDS = 25.0
COMPILE_FROM = 240.0  # seconds of training from which compilation has paid for itself on a CPU


@dataclass
class Choice:
    """Settings that `choose` picked, and why, a sentence each."""

    tables: Tables
    reasons: list[str] = field(default_factory=list)


def choose(text: TextData, seconds: float, device: torch.device) -> Choice:
    """Pick a GPT and its settings for `text` and so many seconds on this machine."""
    speed = arithmetic_speed(device)
    train_tokens, vocab_size = len(text.train), text.tokenizer.vocab_size
    picked, expected = SIZES[-1], 0.0
    for size in SIZES:
        parameters = size.parameters + 2 * vocab_size * size.width
        # 6 operations a parameter and token: forward 2, backward 4 (Kaplan et al. 2020, section 2.1,
        # arXiv:2001.08361); a third of what a matrix product alone reaches is what a whole step does here.
        expected = seconds * speed / 3 / (6 * parameters)
        enough = expected >= TOKENS_PER_PARAMETER * parameters
        steps = expected / (size.batch * size.context)
        if enough and steps >= STEPS_AT_LEAST and parameters <= 20 * train_tokens:
            picked = size
            break
    context = min(picked.context, max(8, train_tokens // 20))
    epochs = expected / train_tokens
    dropout = 0.0 if epochs < 1.5 else 0.1 if epochs < 6 else 0.2
    reasons = [
        f"the largest of {len(SIZES)} sizes that sees a token for each parameter in the time given",
        f"about {epochs:.1f} times through the text, so dropout {dropout:g}" if epochs >= 0.1 else "less than one pass",
    ]
    if context < picked.context:
        reasons.append(f"context {context}, because the text is short")
    return Choice(
        {
            "model": {**MODERN, **picked.shape(), "context": context, "dropout": dropout},
            "train": {"batch": picked.batch, "clip": None},
            "optimizer": {
                "name": "muon",
                "learning_rate": 0.02,
                "embedding_learning_rate": 0.006,
                "muon_precision": "bfloat16" if machine.find_precision("auto", device) == "bfloat16" else "float32",
            },
            "schedule": {"name": "stable-then-decay", "warmup": 0.02, "decay": 0.6, "final": 0.0},
        },
        reasons,
    )


def arithmetic_speed(device: torch.device, size: int = 1024) -> float:
    """Operations a second of this machine's matrix products, in the number type that "auto" precision takes."""
    kind = getattr(torch, machine.find_precision("auto", device))
    matrix = torch.full((size, size), 0.5, dtype=kind, device=device)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        (matrix @ matrix).sum().item()  # .item() waits for a GPU
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds)


# --------------------------------------------------------------------------------------------------------------
# Memory


def memory_needed(model: Config, train: TrainConfig, optimizer: str = "adamw") -> int:
    """Bytes that training will take, about: weights, gradients, optimizer, and what the backward pass keeps."""
    shape = FAMILIES["gpt" if isinstance(model, GPTConfig) else "bigram"][0]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in shape(model).parameters())
    kept = {"sgd": 0, "momentum": 1, "nesterov": 1, "adagrad": 1, "rmsprop": 1, "muon": 1}.get(optimizer, 2)
    fixed = 4 * parameters * (2 + kept + (2 if train.average else 0))
    if not isinstance(model, GPTConfig):
        return fixed
    tokens = train.batch * model.context
    number = 4 if train.precision == "float32" else 2
    # Kept for the backward pass by a block, in features: the stream and its norms (in float32), queries, keys,
    # values, their turned and normed forms, the mixture, and the hidden layer before and after its activation.
    block = 4 * 4 * model.width + number * (8 * model.width + 3 * model.hidden_features)
    block += 4 * model.width if model.dropout else 0
    attention = number * model.heads * model.context * 3 if model.attention_dropout else 0
    logits = 4 * 4 * model.vocab_size
    return fixed + tokens * (model.layers * (block + attention) + logits)


def require_memory(model: Config, train: TrainConfig, optimizer: str, device: torch.device) -> int:
    """The bytes that training will take. Raises ResourceError when they are not there, before they are taken."""
    needed, free = memory_needed(model, train, optimizer), machine.free_memory(device)
    if needed > free:
        raise ResourceError(
            f"Training would take about {readable(needed)} of memory and {readable(free)} are free."
            " Take a smaller model (model.layers, model.width), context, or train.batch (with train.tokens_per_step"
            " the step stays as large)."
        )
    return needed


# --------------------------------------------------------------------------------------------------------------
# Time


@dataclass(frozen=True)
class Measured:
    """What a rehearsal found out."""

    step_seconds: float
    """Median of an optimizer step."""
    evaluation_seconds: float
    """One evaluation of the whole validation part."""
    tokens_per_second: float
    start_seconds: float
    """What the first step took more than the others: compilation."""


def measure(trainer: Trainer, task: LanguageTask, steps: int = 4) -> Measured:
    """Train a few steps and take them back; score a piece of the validation part."""
    seconds = trainer.rehearse(1 + steps)
    step = statistics.median(seconds[1:])
    tokens = trainer.tokens_in_step()
    return Measured(step, seconds_to_score(trainer, task), tokens / step, max(0.0, seconds[0] - step))


def seconds_to_score(trainer: Trainer, task: LanguageTask) -> float:
    """What one evaluation will take: one batch of it is timed, after one to warm up."""
    trainer.model.eval()
    inputs, targets = next(task.validation.walk(task.rows_at_once))
    seconds = 0.0
    with torch.inference_mode(), trainer.autocast():
        for _ in range(2):
            began = time.perf_counter()
            float(task.logits(trainer.model, Batch(inputs, targets).to(trainer.device)).sum())
            seconds = time.perf_counter() - began
    return seconds * (len(task.data.validation) - 1) / inputs.numel()


def lay_out(trainer: Trainer, seconds: float, measured: Measured) -> None:
    """Set the number of steps, and how often to evaluate, so that training ends `seconds` from now.
    Raises ConfigError when there is not time for one step and one evaluation."""
    left = seconds - measured.evaluation_seconds  # the last evaluation is always there
    most = int(left / measured.step_seconds)
    if most < 1:
        raise ConfigError(
            f"No time for a single step: one takes {measured.step_seconds:.2f} s here and an evaluation"
            f" {measured.evaluation_seconds:.1f} s. Give more --minutes, or take a smaller model."
        )
    evaluations = int(EVALUATION_SHARE * seconds / measured.evaluation_seconds)
    evaluations = max(1, min(20, evaluations, most))
    left = seconds - evaluations * measured.evaluation_seconds
    steps = max(1, int(left / measured.step_seconds))
    every = max(1, -(-steps // evaluations))
    trainer.config = trainer.config.replace(
        steps=steps,
        evaluate_every=every,
        checkpoint_every=max(1, min(every, int(30 / measured.step_seconds))),
        report_every=max(1, min(10, steps // 20)),
    )


def minutes(seconds: float) -> str:
    """A time for a person: "45 s", "2:05", "1:02:03"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
