"""Language models with a state: what was read so far is one vector a layer, changed by every token.

B rows, T tokens, C width (of the embedding and of the state alike), L layers, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from handmade.config import Config
from handmade.layers import LSTM, RNN, Dropout, Embedding
from handmade.layers.kernels import Module
from handmade.models.blocks import Head

CELLS = {"rnn": RNN, "lstm": LSTM}


@dataclass(frozen=True)
class RecurrentConfig(Config):
    """The shape of a `Recurrent`."""

    vocab_size: int
    """Distinct tokens."""
    cell: Literal["rnn", "lstm"] = "lstm"
    """How a token changes the state: "rnn" writes it anew, "lstm" adds to it."""
    width: int = 128
    """Features of a token, and of the state of a layer."""
    layers: int = 1
    dropout: float = 0.0
    """On what goes into a layer and into the head, never on the state."""
    context: int = 64
    """Tokens of a training window, from its first on with an empty state: so far back do gradients reach. The model
    itself can run for ever."""

    def check(self) -> None:
        for field in ("vocab_size", "width", "layers", "context"):
            self.require(field, getattr(self, field) >= 1, "at least 1")
        self.require("dropout", 0 <= self.dropout < 1, "at least 0 and below 1")


State = tuple[Tensor, ...]
"""Of a layer: (h,) in an RNN, (h, c) in an LSTM. Shapes: each (1, B, C)."""


class RecurrentCache:
    """What decoding keeps of the past: the state of every layer, None before the first token."""

    def __init__(self, layers: int) -> None:
        self.states: list[State | None] = [None] * layers
        self.length = 0

    def select(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was. Shapes: rows (R,) int64."""
        self.states = [state and tuple(part[:, rows] for part in state) for state in self.states]


class Recurrent(Module):
    """The next token from a state that every token changes: an RNN or an LSTM between an embedding and a head.

        x = embedding(tokens)
        x[t], state = cell(dropout(x[t]), state)        `layers` times, each with its own cell and state
        logits = head(dropout(x))

    The state is zero where a row begins.

    Shapes: tokens (B, T) int64 -> logits (B, T, V) float32.
    Source: Mikolov et al. 2010, "Recurrent neural network based language model", section 2; with LSTM: Sundermeyer
    et al. 2012, "LSTM neural networks for language modeling"; dropout only between layers: Zaremba et al. 2014,
    "Recurrent neural network regularization", section 3.2 (arXiv:1409.2329).

    `generator` makes the initial weights; None takes torch's global one.
    """

    context = None  # all of the past is in the state: it can run for ever
    uncompiled = "for a loop over time that takes minutes"
    """Why torch.compile is not used unless asked for: it writes the loop out, step by step."""

    def __init__(self, config: RecurrentConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        cell = CELLS[config.cell]
        with torch.random.fork_rng(devices=[]):  # what the parts draw for themselves is drawn anew below
            self.embedding = Embedding(config.vocab_size, config.width)
            # Cells of one layer each, so that dropout stands between them: layers.LSTM with several has none.
            self.cells = nn.ModuleList(cell(config.width, config.width) for _ in range(config.layers))
            self.dropout = Dropout(config.dropout)
            self.head = Head(config.width, config.vocab_size, bias=True)
        self.initialize(generator)

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight anew, in a fixed order: torch.nn's defaults. On the meta device, where weights are
        shapes only, nothing is done."""
        if self.head.weight.is_meta:
            return
        self.embedding.reset_parameters(generator)
        for cell in self.cells:
            cell.reset_parameters(generator)  # type: ignore[operator]
        self.head.reset_parameters(generator)

    def new_cache(self, rows: int) -> RecurrentCache:
        """The state of `rows` sequences that have not begun: nothing yet."""
        return RecurrentCache(self.config.layers)

    def hidden(self, tokens: Tensor, cache: RecurrentCache | None = None, starts: Tensor | None = None) -> Tensor:
        """What the last layer gives to the head. Shapes: (B, T) -> (B, T, C).

        `cache` holds the state before these tokens and takes them in; `starts` (B,) is the column, of cached and
        new ones together, where a left-padded row begins: with a state of zero.
        """
        length, new = (0 if cache is None else cache.length), tokens.shape[1]
        begins = None if starts is None else starts.to(tokens.device) - length
        columns = [] if begins is None else sorted({column for column in begins.tolist() if 0 <= column < new})
        x = self.dropout(self.embedding(tokens))
        for layer, cell in enumerate(self.cells):
            state = None if cache is None else cache.states[layer]
            x, state = _along(cell, x, state, begins, columns)
            x = self.dropout(x)
            if cache is not None:
                cache.states[layer] = state
        if cache is not None:
            cache.length = length + new
        return x

    def forward(self, tokens: Tensor, cache: RecurrentCache | None = None, starts: Tensor | None = None) -> Tensor:
        """Shapes: (B, T) int64 -> (B, T, V) float32. See `hidden` for `cache` and `starts`."""
        return self.head(self.hidden(tokens, cache, starts))


def _along(
    cell: nn.Module, x: Tensor, state: State | None, begins: Tensor | None, columns: list[int]
) -> tuple[Tensor, State]:
    """A layer along a piece of the sequences. `begins` (B,) says in which column of the piece a row begins, `columns`
    in which any does. Shapes: x (B, T, C) -> (B, T, C).

    One call where no row begins inside. Else the piece is cut where some do, and there their state is set to zero:
    what the padding before left in it is gone, and all rows go on together.
    """
    outputs = []
    cuts = [0, *(column for column in columns if column > 0), x.shape[1]]
    for first, last in pairwise(cuts):
        if state is not None and first in columns:
            assert begins is not None
            fresh = (begins == first)[:, None]
            state = tuple(part.masked_fill(fresh, 0.0) for part in state)
        output, state = _run(cell, x if len(cuts) == 2 else x[:, first:last], state)
        outputs.append(output)
    assert state is not None
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), state


def _run(cell: Any, x: Tensor, state: State | None) -> tuple[Tensor, State]:
    """One call of a cell; the state of an RNN is one tensor, that of an LSTM two."""
    if isinstance(cell, LSTM):
        return cell(x, state)
    output, hidden = cell(x, None if state is None else state[0])
    return output, (hidden,)


__all__ = ["Recurrent", "RecurrentConfig"]
