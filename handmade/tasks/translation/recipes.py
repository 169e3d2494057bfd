"""Which encoder-decoder to train on so many pairs in the time given, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from handmade import machine
from handmade.tasks.base import Choice, Tables
from handmade.tasks.sizes import Size, fitting_heads

FAMILIES = ("seq2seq", "seq2seq-lstm")

# Today's parts, as in a GPT; embeddings as in 2017. A head that shares the target embedding, and embeddings that are
# small and scaled up, end the time in which cross-attention has not found the words yet: docs/log.md.
MODEL: dict[str, Any] = {
    "positions": "rotary",
    "norm": "rms-plain",
    "norm_placement": "pre",
    "query_key_norm": True,
    "activation": "relu-squared",
    "bias": False,
    "scale_embeddings": True,
    "tied_head": True,
    "initialization": "xavier",
    "zero_projections": False,
}

# What was best of what was tried on 57,000 pairs of short sentences: docs/log.md.
SHAPE = {"encoder_layers": 2, "decoder_layers": 2, "heads": 4, "width": 256, "context": 64}
SMALL_SHAPE = {"encoder_layers": 2, "decoder_layers": 2, "heads": 4, "width": 128, "context": 64}
FEW_PAIRS = 10_000
TRAIN: dict[str, Any] = {"batch": 128, "clip": None}
OPTIMIZER: dict[str, Any] = {
    "name": "muon",
    "learning_rate": 0.03,
    "embedding_learning_rate": 0.015,
    "muon_steps": 3,
}
SCHEDULE: dict[str, Any] = {"name": "stable-then-decay", "warmup": 0.02, "decay": 0.6, "final": 0.0}


def candidates(family: str, asked: Mapping[str, Mapping[str, Any]]) -> list[Tables]:
    """Settings of which `choose` picks, from large to small."""
    if family != "seq2seq":
        return [recurrent()]
    return [transformer(shape, asked) for shape in (SHAPE, SMALL_SHAPE)]


def transformer(shape: Mapping[str, Any], asked: Mapping[str, Mapping[str, Any]]) -> Tables:
    """A transformer of today. What is `asked` for stays; heads and width fit it."""
    size = Size(shape["encoder_layers"], shape["heads"], shape["width"], shape["context"], TRAIN["batch"])
    fitting = {name: value for name, value in fitting_heads(size, asked.get("model", {})).items() if name in shape}
    return {
        "model": {**MODEL, **shape, "dropout": 0.2, **fitting},
        "train": dict(TRAIN),
        "optimizer": dict(OPTIMIZER),
        "schedule": dict(SCHEDULE),
    }


def recurrent() -> Tables:
    """An LSTM that reads and one that writes."""
    return {
        "model": {},
        "train": {"batch": 128, "clip": 1.0},
        "optimizer": {"name": "adamw", "learning_rate": 0.003},
        "schedule": {"name": "stable-then-decay", "warmup": 0.02, "decay": 0.6, "final": 0.0},
    }


def choose(
    family: str, pairs: int, longest: int, device: torch.device, asked: Mapping[str, Mapping[str, Any]]
) -> Choice:
    """Settings for so many training pairs, and sentences of at most so many tokens."""
    if family != "seq2seq":
        tables = recurrent()
        tables["model"]["context"] = max(SHAPE["context"], longest)
        return Choice(tables, ["rates and sizes that are usual for LSTMs"])
    small = pairs < FEW_PAIRS
    tables = transformer(SMALL_SHAPE if small else SHAPE, asked)
    tables["model"]["context"] = max(SHAPE["context"], longest)
    half = machine.find_precision("auto", device) == "bfloat16"
    tables["optimizer"]["muon_precision"] = "bfloat16" if half else "float32"
    why = (
        "a small one: there are few pairs"
        if small
        else "what learns the most in minutes: docs/log.md has what was tried"
    )
    return Choice(tables, [why])
