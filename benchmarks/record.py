"""How a measurement is kept: the numbers of every run, their medians and spread, machine, versions, command line."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from handmade import corpora, data, machine
from handmade.data import TextData
from handmade.errors import DataError
from handmade.models import FAMILIES
from handmade.optimizers import OptimizerConfig
from handmade.presets import find
from handmade.schedules import ScheduleConfig
from handmade.tasks.language import LanguageTask
from handmade.training import TrainConfig, Trainer, seeded

RESULTS = Path(__file__).parent.parent / "results"


def save(name: str, about: str, figures: dict[str, Any]) -> None:
    """Write results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    value = {
        "about": about,
        **figures,
        "command": f"python -m benchmarks {name}",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "threads": torch.get_num_threads(),
        "machine": machine.describe(),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    print(f"written: results/{name}.json", file=sys.stderr)


def spread(values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """Median, smallest and largest of several runs, and the runs themselves."""
    shown = [float(f"{value:.{digits}g}") for value in values]
    median = float(f"{statistics.median(values):.{digits}g}")
    return {"median": median, "min": min(shown), "max": max(shown), "runs": shown}


def said(name: str, figures: dict[str, Any], unit: str = "") -> str:
    """A line for the terminal."""
    return f"{name:34} {figures['median']:>10g} {unit:10} ({figures['min']:g} to {figures['max']:g})"


def shakespeare() -> TextData:
    """The usual Tiny Shakespeare, as characters. Raises DataError where only the other edition is at hand: its losses
    are other ones."""
    text = data.prepare(corpora.find("shakespeare").files, corpora.cache_folder() / "tokens", "char")
    if text.characters != corpora.SIZE:
        raise DataError("The benchmarks need the usual tinyshakespeare.txt: name its folder in HANDMADE_DATA.")
    return text


def trainer_of(preset: str, text: TextData, seed: int, **train: Any) -> Trainer:
    """The trainer that `handmade train shakespeare --preset PRESET --set train.seed=SEED` uses."""
    found = find(preset)
    made, settings = FAMILIES[found.family]
    shape = settings.from_dict({**found.model, "vocab_size": text.tokenizer.vocab_size})
    config = TrainConfig.from_dict({**found.train, "seed": seed, **train})
    return Trainer(
        made(shape, seeded(seed, "initialization")),
        LanguageTask(text, shape.context),
        config,
        OptimizerConfig.from_dict(found.optimizer),
        ScheduleConfig.from_dict(found.schedule),
    )
