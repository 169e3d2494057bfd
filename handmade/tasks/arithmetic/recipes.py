"""With which settings these problems are learnt fastest; docs/log.md has what was tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handmade.tasks.base import Tables
from handmade.tasks.sizes import Size, fitting_heads, fitting_parts, usual

MODEL: dict[str, Any] = {
    "positions": "learned",
    "norm": "rms-plain",
    "query_key_norm": True,
    "activation": "relu-squared",
    "bias": False,
    "tied_head": False,
    "initialization": "fan-in",
}
TRAIN: dict[str, Any] = {"batch": 128, "clip": None, "precision": "float32"}
OPTIMIZER: dict[str, Any] = {
    "name": "muon",
    "learning_rate": 0.06,
    "embedding_learning_rate": 0.015,
    "head_learning_rate": 0.008,
    "weight_decay": 0.1,
}
SCHEDULE: dict[str, Any] = {"name": "stable-then-decay", "warmup": 0.02, "decay": 0.6, "final": 0.0}
# Of the experiment with the fixed window; decay on all but biases and scales.
PUBLISHED: dict[str, Any] = {
    "name": "adamw",
    "learning_rate": 6e-4,
    "betas": (0.9, 0.95),
    "weight_decay": 0.1,
    "decay_embeddings": True,
}


def suggested(
    family: str, asked: Mapping[str, Mapping[str, Any]], shape: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]
) -> Tables:
    """Settings for a model of this family: for a GPT those of all tasks, a task's `shape` and what it has of its `own`
    by table. The shape that is `asked` for stays, and heads and width fit."""
    if family == "gpt":
        wanted = asked.get("model", {})
        model = {**MODEL, **shape, **own.get("model", {})}
        size = Size(**{name: model[name] for name in ("layers", "heads", "width")}, context=1, batch=1)
        return {
            "model": {**model, **fitting_heads(size, wanted), **fitting_parts(wanted)[0]},
            "train": {**TRAIN, **own.get("train", {})},
            "optimizer": {**OPTIMIZER, **own.get("optimizer", {})},
            "schedule": {**SCHEDULE, **own.get("schedule", {})},
        }
    if family == "fixed-window":
        return {"train": dict(TRAIN), "optimizer": dict(PUBLISHED), "schedule": {"name": "cosine", "warmup": 0.02}}
    tables = usual(family, asked)
    tables["train"] = {**tables["train"], "batch": TRAIN["batch"], "precision": TRAIN["precision"]}
    return tables
