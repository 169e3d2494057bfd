"""A text, a GPT and a trainer small enough that a hundred steps take a second."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from handmade.data import TextData
from handmade.models.gpt import GPT, GPTConfig
from handmade.optimizers import OptimizerConfig
from handmade.schedules import ScheduleConfig
from handmade.tasks.language import LanguageTask
from handmade.tokenizers import CharTokenizer
from handmade.training import TrainConfig, Trainer, seeded

CONTEXT = 8
CHARACTERS = "abcdefghijk"


def text_data(length: int = 700) -> TextData:
    """A text in which a letter mostly follows from the one before it."""
    random = np.random.default_rng(0)
    tokens = np.cumsum(random.choice([1, 1, 1, 3], size=length)) % len(CHARACTERS)
    tokens = tokens.astype(np.uint8)
    train, validation = tokens[: length - 70], tokens[length - 70 :]
    return TextData(
        train, validation, CharTokenizer(CHARACTERS), "", length, len(CHARACTERS), len(validation) - 1, "no file"
    )


def small_gpt(**changes: Any) -> GPT:
    shape = {"context": CONTEXT, "layers": 2, "heads": 2, "width": 16, "dropout": 0.1, "positions": "rotary"}
    return GPT(GPTConfig(vocab_size=len(CHARACTERS), **{**shape, **changes}), seeded(0, "initialization"))


def small_trainer(
    folder: str | os.PathLike[str] | None = None,
    model: Any = None,
    task: Any = None,
    optimizer: str | OptimizerConfig = "muon",
    schedule: ScheduleConfig | None = None,
    **train: Any,
) -> Trainer:
    config: dict[str, Any] = {
        "steps": 12,
        "batch": 4,
        "precision": "float32",
        "device": "cpu",
        "evaluate_every": 4,
        "checkpoint_every": 5,
        "report_every": 1,
        **train,
    }
    if isinstance(optimizer, str):
        optimizer = OptimizerConfig(name=optimizer, learning_rate=0.02)  # type: ignore[arg-type]
    return Trainer(
        model or small_gpt(),
        task or LanguageTask(text_data(), CONTEXT),
        TrainConfig(**config),
        optimizer,
        schedule,
        folder,
    )


def flat_tensors(tree: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors of a tree of dicts and lists, under their paths."""
    if isinstance(tree, Tensor):
        return {name: tree}
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    found: dict[str, Tensor] = {}
    for key, value in pairs:
        found.update(flat_tensors(value, f"{name}[{key!r}]"))
    return found


def same_bits(one: Any, other: Any) -> None:
    """Assert that two trees hold the same tensors, bit for bit."""
    first, second = flat_tensors(one), flat_tensors(other)
    assert first.keys() == second.keys()
    assert first, "nothing to compare"
    for name in first:
        assert first[name].dtype == second[name].dtype, name
        assert torch.equal(first[name], second[name]), name


def files_below(folder: Path) -> list[str]:
    """Every file in a folder, by its path in it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
