"""Which learning rate a rung gets: the best of a small grid, on a seed that is never reported.

    tried = tune("shakespeare", [find("residual")], folder="rates")
    tried["residual"]                              # {0.002: 1.93, 0.004: 1.89, 0.008: 1.92}: rate -> validation loss
    best_rate(tried["residual"])                   # 0.004

The grid goes in factors of two from the rate that the rung has. Where the best one lies at an end, it is made longer
there, up to four times; `further` of what was tried is empty once the best is between two that are worse.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from handmade.ladder.climbing import Climb
from handmade.ladder.rungs import Rung

SEED = 1_000
FACTOR = 2.0
ROUNDS = 5


def tune(
    text: str | Sequence[str],
    rungs: Sequence[Rung],
    folder: str | os.PathLike[str] | None = None,
    watch: Callable[[dict[str, Any]], None] = lambda record: None,
    **options: Any,
) -> dict[str, dict[float, float]]:
    """Train every rung that learns with the rate it has, half and twice that, then further where the best is at an
    end. Returns rung -> rate -> validation loss. `options` go to `Climb`; with a `folder`, a killed call goes on.
    Raises what `Climb` raises."""
    learnt = {rung.name: rung for rung in rungs if rung.learning_rate is not None}
    wanted = {name: [rate / FACTOR, rate, rate * FACTOR] for name, rate in _rates(learnt).items()}
    tried: dict[str, dict[float, float]] = {name: {} for name in learnt}
    for _ in range(ROUNDS):
        trials = [
            dataclasses.replace(learnt[name], name=trial(name, rate), learning_rate=rate)
            for name, rates in wanted.items()
            for rate in rates
        ]
        if not trials:
            break
        climb = Climb(text, trials, seeds=(SEED,), folder=folder, prompt="", **options)
        for record in climb.run():
            watch(record)
        for record in climb.records:
            loss = math.inf if record["val_loss"] is None else record["val_loss"]  # diverged: worse than any
            tried.setdefault(record["rung"].partition("@")[0], {})[record["learning_rate"]] = loss
        wanted = {name: further(tried[name]) for name in learnt}
    return tried


def _rates(rungs: Mapping[str, Rung]) -> dict[str, float]:
    return {name: rung.learning_rate for name, rung in rungs.items() if rung.learning_rate is not None}


def trial(name: str, rate: float) -> str:
    """What a rung is called while it is tried with a rate."""
    return f"{name}@{rate:g}"


def best_rate(losses: Mapping[float, float]) -> float:
    """The rate with the least loss."""
    return min(losses, key=lambda rate: losses[rate])


def further(losses: Mapping[float, float]) -> list[float]:
    """The next rate to try: beyond the end where the best one is, or none where it is between two."""
    best = best_rate(losses)
    if best == min(losses):
        return [best / FACTOR]
    return [best * FACTOR] if best == max(losses) else []
