"""The ladder: from counting letters to today's GPT, one idea a rung, each with its evidence.

    from handmade import ladder

    climb = ladder.Climb("mybook.txt", rungs=[ladder.find("neural-bigram"), ladder.find("one-head")])
    for record in climb.run():
        print(record["rung"], record["seed"], record["val_loss"])

A rung of one's own:

    mine = ladder.Rung(
        "narrow", "half as wide", "layer-norm", "Does the width matter?", "me", {"model.width": 32}, learning_rate=0.004
    )
    ladder.Climb("mybook.txt", rungs=[ladder.find("layer-norm"), mine])
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> the module it lives in: what only looks at results needs no torch.
_HOME = {
    "RUNGS": "rungs",
    "SEEDS": "climbing",
    "SIDE_RUNGS": "rungs",
    "TOKENS": "climbing",
    "Climb": "climbing",
    "Rung": "rungs",
    "Training": "rungs",
    "differences": "rungs",
    "find": "rungs",
    "settings": "rungs",
}
_MODULES = ("climbing", "picture", "records", "rungs", "runs", "summary", "table", "tuning")
__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"handmade.ladder.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"handmade.ladder.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'handmade.ladder' has no attribute {name!r}")
