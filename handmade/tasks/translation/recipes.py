"""Which encoder-decoder to train on so many pairs in the time given, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from handmade import machine
from handmade.tasks.base import Choice, Tables

FAMILIES = ("seq2seq", "seq2seq-lstm")

# Today's parts, as in a GPT.
MODEL: dict[str, Any] = {
    "positions": "learned",
    "norm": "rms-plain",
    "norm_placement": "pre",
    "query_key_norm": True,
    "activation": "relu-squared",
    "bias": False,
    "scale_embeddings": False,
    "tied_head": False,
    "initialization": "fan-in",
    "zero_projections": True,
}
