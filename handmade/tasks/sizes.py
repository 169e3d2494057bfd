"""Which GPT to train on a text in the time given: size, batch, regularisation, optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from handmade import machine
from handmade.data import TextData
from handmade.presets import MODERN
from handmade.tasks.base import Choice, Tables


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


# From large to small. Fewer layers and more steps win when time is short: docs/log.md has what was tried.
SIZES = (
    Size(12, 12, 768, 1024, 16),
    Size(8, 8, 512, 512, 16),
    Size(6, 6, 384, 256, 16),
    Size(4, 4, 256, 256, 16),
    Size(3, 4, 192, 128, 16),
    Size(2, 4, 128, 128, 16),
    Size(1, 4, 128, 64, 12),
    Size(1, 2, 64, 64, 12),
)
TOKENS_PER_PARAMETER = 1.0  # a model is as large as it can see this many tokens a parameter in the time given
STEPS_AT_LEAST = 300  # fewer steps than this learn less than a smaller model with more of them
PAIRS_UP_TO = 128  # tokens in the vocabulary: the table of pairs has its square, and every step works on all of it


def choose(
    text: TextData, seconds: float, device: torch.device, asked: Mapping[str, Mapping[str, Any]] | None = None
) -> Choice:
    """Pick a GPT and its settings for `text` and so many seconds on this machine. The shape that is `asked` for
    stays, and the rest is made to fit it."""
    asked = asked or {}
    speed = machine.arithmetic_speed(device)
    train_tokens, vocab_size = len(text.train), text.tokenizer.vocab_size
    picked, expected = SIZES[-1], 0.0  # expected: tokens seen in the time given
    why = "the smallest of {} sizes: there is little time"
    for size in SIZES:
        parameters = size.parameters + 2 * vocab_size * size.width
        # 6 operations a parameter and token: forward 2, backward 4 (Kaplan et al. 2020, section 2.1,
        # arXiv:2001.08361); a third of what a matrix product alone reaches is what a whole step does here.
        expected = seconds * speed / 3 / (6 * parameters)
        enough = expected >= TOKENS_PER_PARAMETER * parameters
        steps = expected / (size.batch * size.context)
        if enough and steps >= STEPS_AT_LEAST and parameters <= 20 * train_tokens:
            picked, why = size, "of {} sizes the largest that sees a token for each parameter in the time given"
            break
        if enough and steps >= STEPS_AT_LEAST:
            why = "the smallest of {} sizes: there is little text"
    context = min(picked.context, max(8, train_tokens // 20))
    if "steps" in asked.get("train", {}):
        expected = float(asked["train"]["steps"] * picked.batch * context)
    epochs = expected / train_tokens
    dropout = 0.0 if epochs < 3 else 0.1 if epochs < 8 else 0.2
    times = f"sees the text about {max(1, epochs):,.0f} times" if epochs >= 1.5 else "sees the text once at most"
    reasons = [why.format(len(SIZES)), f"dropout {dropout:g}: it {times}"]
    model = {**MODERN, **picked.shape(), "context": context, "dropout": dropout, "initialization": "fan-in"}
    model["pair_embedding"] = vocab_size <= PAIRS_UP_TO
    wanted = asked.get("model", {})
    if wanted.keys() & {"layers", "heads", "width"}:
        reasons[0] = "with the shape that was asked for"
    if "dropout" in wanted:
        del reasons[1]
    if context < picked.context and "context" not in wanted:
        reasons.append(f"context {context}: there is little text")
    parts, why_parts = fitting_parts(wanted)
    fitted = {**fitting_heads(picked, wanted), **parts}
    if fitted.get("positions") == "learned" and "mixing" not in wanted and "positions" not in wanted:
        why_parts.append("learned positions: rotary ones need an even number of features a head")
    small = wanted.get("width", fitted.get("width", picked.width)) <= 128
    return Choice(
        {
            "model": {**model, **fitted},
            "train": {"batch": picked.batch, "clip": None},
            "optimizer": {
                "name": "muon",
                "learning_rate": 0.05 if small else 0.02,
                "embedding_learning_rate": 0.04 if small else 0.015,
                "head_learning_rate": 0.006,
                "weight_decay": 0.1 if epochs >= 3 else 0.0,
                "muon_precision": "bfloat16" if machine.find_precision("auto", device) == "bfloat16" else "float32",
            },
            "schedule": {"name": "stable-then-decay", "warmup": 0.02, "decay": 0.6, "final": 0.0},
        },
        reasons + why_parts,
    )


def usual(family: str, asked: Mapping[str, Mapping[str, Any]]) -> Tables:
    """Settings for a family whose shape is not picked, with the shape that is `asked` for: rates that were best, or
    close to it, on Shakespeare with 0.6 and 2 million tokens. docs/log.md has what was tried."""
    tables: Tables = {
        "model": {},
        "train": {"batch": 64},
        "optimizer": {"learning_rate": 0.01},
        "schedule": {"warmup": 0.0},
    }
    if family in ("mlp", "recurrent"):
        tables["train"] = {"batch": 32, "clip": 1.0}
        tables["schedule"] = {"name": "cosine", "warmup": 0.05, "final": 0.0}
    if family == "recurrent":
        # The gradient of an RNN grows beyond all numbers where that of an LSTM does not.
        tables["optimizer"]["learning_rate"] = 0.005 if asked["model"].get("cell") == "rnn" else 0.01
    return tables


def fitting_heads(size: Size, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Heads for a width that was asked for, or a width for heads: each head with an even number of features, as
    rotary positions need; where that cannot be, learned positions. What cannot be made to fit is left for the config
    to refuse."""
    heads, width = wanted.get("heads"), wanted.get("width")
    learned = {"positions": "learned"}
    if heads and width:
        return learned if width // heads % 2 else {}
    if heads is None and width is not None:
        fits = [count for count in range(1, min(size.heads, max(1, width)) + 1) if width % (2 * count) == 0]
        groups = wanted.get("key_value_heads") or 1
        fits = [count for count in fits if count % groups == 0] or fits
        return {"heads": max(fits)} if fits else {"heads": 1, **learned}
    if heads is not None and width is None and heads >= 1:
        return {"width": max(2 * heads, size.width // (2 * heads) * 2 * heads)}
    return {}


def fitting_parts(wanted: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What has to go with the parts that were asked to be left out, and why, a sentence each."""
    fits: dict[str, Any] = {}
    reasons = []
    if wanted.get("mixing") == "mean":
        fits |= {"positions": "learned", "query_key_norm": False}
        if "positions" not in wanted:
            reasons.append("learned positions: a plain mean has no queries and keys to turn")
    if wanted.get("residual") is False:
        fits |= {"zero_projections": False}
        reasons.append("no zeros to begin with: without residual connections nothing would pass them")
    return fits, reasons
