"""Memory and time: what training will take of the one, and how many steps fit into the other.

It measures this machine with the model that will be trained (`Trainer.rehearse`). Which model that is, its task says.
Nothing here is needed to train: a person who sets everything never meets it.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from handmade import machine
from handmade.config import Config
from handmade.errors import ConfigError, ResourceError
from handmade.files import readable
from handmade.models import FAMILIES
from handmade.models.fixed_window import FixedWindowConfig
from handmade.models.gpt import GPTConfig
from handmade.models.mlp import MLPConfig
from handmade.models.ngram import CountingConfig
from handmade.models.recurrent import RecurrentConfig
from handmade.models.seq2seq import Seq2SeqConfig
from handmade.models.seq2seq_recurrent import Seq2SeqLSTMConfig
from handmade.tasks import RunTask
from handmade.training import TrainConfig, Trainer

EVALUATION_SHARE = 0.1  # of the time given
COMPILE_SECONDS = 25.0
COMPILE_FROM = 240.0  # seconds of training from which "auto" tries it: 16 s for 8 % of a step (results/compile.json)
# Numbers that the fused kernels keep of a token for each feature of an LSTM layer: the gates, the cell, and a workspace
# that is as large as both, in PyTorch 2.9 larger (19 in 2.13, 23 there).
KEPT_OF_LSTM = 24


# --------------------------------------------------------------------------------------------------------------
# Memory


def memory_needed(model: Config, train: TrainConfig, optimizer: str = "adamw") -> int:
    """Bytes that training will take, about: weights, gradients, optimizer, and what the backward pass keeps."""
    parameters = parameters_of(model)
    kept = {"sgd": 0, "momentum": 1, "nesterov": 1, "adagrad": 1, "rmsprop": 1, "muon": 1}.get(optimizer, 2)
    fixed = 4 * parameters * (2 + kept + (2 if train.average else 0))
    tokens = train.batch * getattr(model, "context", 1)
    logits = 4 * 4 * getattr(model, "vocab_size", 1)
    return fixed + tokens * (kept_of_token(model, train) + logits)


def kept_of_token(model: Config, train: TrainConfig) -> int:
    """Bytes that the backward pass keeps of a token, about, without the logits."""
    number = 4 if train.precision == "float32" else 2
    if isinstance(model, MLPConfig):  # the window's vectors side by side, the hidden layer, and their gradients
        return number * (2 * model.window * model.width + 3 * model.hidden)
    if isinstance(model, RecurrentConfig):
        layer = number * model.width * (KEPT_OF_LSTM if model.cell == "lstm" else 4)
        return model.layers * layer + (12 * model.width * (model.layers + 1) if model.dropout else 0)
    if isinstance(model, FixedWindowConfig):
        # A whole window for each token that is asked for: about a quarter of those in a row.
        inside = 16 * model.width + 3 * model.hidden if model.body == "transformer" else 3 * model.width
        return number * model.context * model.layers * inside // 4
    if isinstance(model, Seq2SeqConfig):
        # As a GPT's block, below; of a token of the source and of one of the target, which asks the source too.
        block = 4 * 4 * model.width + number * (10 * model.width + 3 * model.hidden_features)
        asking = 2 * 4 * model.width + number * 9 * model.width
        noise = 4 * model.width if model.dropout else 0
        kept = model.attention_dropout or (number == 2 and train.device in ("auto", "cpu"))
        weights = number * model.heads * model.context * 3 if kept else 0
        read, written = block + weights + 2 * noise, block + asking + 2 * weights + 3 * noise
        return model.encoder_layers * read + model.decoder_layers * written
    if isinstance(model, Seq2SeqLSTMConfig):
        # As above; an additive attention keeps a vector for each pair of a source and a target token.
        layers = model.layers * (3 if model.both_ways else 2)
        looking = {"none": 0, "additive": 3 * model.context + 30, "multiplicative": 8}[model.attention]
        noise = 12 * model.width * (2 * model.layers + 3) if model.dropout else 0
        return model.width * (number * (KEPT_OF_LSTM * layers + looking) + 32) + noise
    if not isinstance(model, GPTConfig):
        return 0
    # Kept for the backward pass by a block, in features: the stream and its norms (in float32), queries, keys,
    # values, their turned and normed forms, the mixture, and the hidden layer before and after its activation.
    # A plain mean has values only, and its sums in float32. Without a feed-forward layer, half the stream and norms.
    mixed = number * 2 * model.width + 4 * model.width if model.mixing == "mean" else number * 8 * model.width
    parts = 2 if model.hidden_features else 1
    block = parts * 2 * 4 * model.width + mixed + number * 3 * model.hidden_features
    block += 4 * model.width if model.dropout else 0
    # The attention weights are kept where no fused kernel forgets them: with dropout on them, in bfloat16 on a CPU.
    by_products = number == 2 and train.device in ("auto", "cpu") and model.mixing == "attention"
    heads = model.heads if model.mixing == "attention" else 1
    attention = number * heads * model.context * 3 if model.attention_dropout or by_products else 0
    return model.layers * (block + attention)


def parameters_of(model: Config) -> int:
    """How many parameters a model of a family of ours will have, without making it."""
    if isinstance(model, CountingConfig):
        return 0  # it counts; nothing is trained
    shape: Any = next(made for made, config in FAMILIES.values() if isinstance(model, config))
    few: list[Config] = [model]
    if hasattr(model, "layers"):
        few = [model.replace(layers=count) for count in (1, 2)]
    if isinstance(model, GPTConfig) and model.positions == "rotary":
        # Rotary positions have no parameters, and their tables take the meta device seconds.
        few = [config.replace(positions="none") for config in few]
    try:
        with torch.device("meta"):
            counts = [sum(parameter.numel() for parameter in shape(config).parameters()) for config in few]
    except (RuntimeError, TypeError):  # more than a tensor can count, or than a size can be
        return 2**63
    return counts[0] + (getattr(model, "layers", 1) - 1) * (counts[-1] - counts[0])  # all layers are alike


def require_memory(model: Config, train: TrainConfig, optimizer: str, device: torch.device) -> int:
    """The bytes that training will take. Raises ResourceError when they are not there, before they are taken."""
    needed, free = memory_needed(model, train, optimizer), machine.free_memory(device)
    if needed > free:
        sizes = [f"model.{name}" for name in ("layers", "width", "hidden") if getattr(model, name, None) is not None]
        smaller = f"model ({', '.join(sizes)}), " if sizes else ""
        raise ResourceError(
            f"Training would take about {readable(needed)} of memory and {readable(free)} are free."
            f" Take a smaller {smaller}context, or train.batch (with train.tokens_per_step the step stays as large)."
        )
    return needed


class Peak:
    """The most memory that was in use, in bytes."""

    bytes = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Inside, watch how much memory is in use: of the GPU, or of this whole process."""
    peak, process, over = Peak(), psutil.Process(), threading.Event()

    def watch() -> None:
        while True:
            peak.bytes = max(peak.bytes, process.memory_info().rss)
            if over.wait(0.005):
                return

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_reserved(device)
        return
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


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
    memory: int
    """Bytes at most: of the GPU, or of this process."""


def measure(trainer: Trainer, task: RunTask, spend: float = 1.0) -> Measured:
    """Train a few steps and take them back, for about `spend` seconds; score a piece of the validation part.

    Of a step that adds up many micro-batches only one and two of them are tried: the difference is what each of the
    others will take.
    """
    config, tokens = trainer.config, trainer.tokens_in_step()
    with peak_memory(trainer.device) as peak:
        trainer.config = config.replace(tokens_per_step=None)
        once = trainer.tokens_in_step()
        batches = max(1, -(-tokens // once))
        first, second = trainer.rehearse(2)
        more = max(2 if batches > 1 else 0, min(30, int(spend / second)) - 1)
        step = statistics.median([second, *(trainer.rehearse(more) if more else [])])
        if batches > 1:
            trainer.config = config.replace(tokens_per_step=2 * once)
            another = statistics.median(trainer.rehearse(3)) - step
            step += (batches - 1) * max(another, step / 3)  # on a busy machine the difference may come out too small
        trainer.config = config
        evaluation = seconds_to_score(trainer, task)
    return Measured(step, evaluation, tokens / step, max(0.0, first - second), peak.bytes)


def seconds_to_score(trainer: Trainer, task: RunTask) -> float:
    """What one evaluation will take: one batch of it is timed, after one to warm up."""
    trainer.model.eval()
    batch = next(task.walk())
    seconds = 0.0
    with torch.inference_mode(), trainer.autocast():
        for _ in range(2):
            began = time.perf_counter()
            float(task.logits(trainer.model, batch.to(trainer.device)).sum())
            seconds = time.perf_counter() - began
    return seconds * task.positions / batch.tokens


def lay_out(trainer: Trainer, seconds: float, measured: Measured, asked: Collection[str] = ()) -> None:
    """Set the number of steps, and how often to evaluate, so that training ends `seconds` from now. What a person
    `asked` for ("evaluate_every", ...) stays. Raises ConfigError when there is not time for one step and one
    evaluation."""
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
    every: int | None = max(1, -(-steps // evaluations))
    if "evaluate_every" in asked:
        every = trainer.config.evaluate_every
        share = measured.evaluation_seconds / every if every else 0.0  # what evaluating adds to a step
        steps = max(1, int((seconds - measured.evaluation_seconds) / (measured.step_seconds + share)))
    picked = {
        "steps": steps,
        "evaluate_every": every,
        "checkpoint_every": max(1, min(every or steps, int(30 / measured.step_seconds))),
        "report_every": max(1, min(10, steps // 20)),
    }
    trainer.config = trainer.config.replace(**{name: value for name, value in picked.items() if name not in asked})


def minutes(seconds: float) -> str:
    """A time for a person: "45 s", "2:05", "1:02:03"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
