"""The first neural language model: a hidden layer over the last few tokens.

B rows, T tokens, C width, W window, F hidden features, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from handmade.config import Config
from handmade.layers import Embedding, Linear
from handmade.layers.kernels import Module
from handmade.models.blocks import Head


@dataclass(frozen=True)
class MLPConfig(Config):
    """The shape of an `MLP`."""

    vocab_size: int
    """Distinct tokens."""
    window: int = 8
    """How many of the last tokens it sees."""
    width: int = 32
    """Features of a token."""
    hidden: int = 128
    """Features of the hidden layer."""
    context: int = 64
    """Tokens of a training window. The model itself looks at the last `window` of them."""

    def check(self) -> None:
        for field in ("vocab_size", "window", "width", "hidden", "context"):
            self.require(field, getattr(self, field) >= 1, "at least 1")


class MLPCache:
    """What decoding keeps of the past: the vectors of the last W - 1 tokens. Shapes: past (rows, W - 1, C)."""

    def __init__(self, past: Tensor) -> None:
        self.past = past
        self.length = 0

    def select(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was. Shapes: rows (R,) int64."""
        self.past = self.past[rows]


class MLP(Module):
    """The next token from the last W: their vectors side by side, a hidden layer, the head.

        x[t]      = (C(token[t - W + 1]), ..., C(token[t - 1]), C(token[t]))        W vectors as one, the oldest first
        logits[t] = b + U tanh(d + H x[t])

    A place before the first token of a row has a vector of its own, `nothing`. It is learned, not zero: a training
    window begins in the middle of a text, so what stands there is a past that is not seen, and the vector comes to
    mean what is usual of one.

    Shapes: tokens (B, T) int64 -> logits (B, T, V) float32; embedding.weight (V, C), nothing (C,), input.weight
    (F, W C), head.weight (V, F).
    Source: Bengio et al. 2003, "A neural probabilistic language model", section 2, equation 1, without the direct
    connections from x to the logits that it leaves open (W = 0 there).

    `generator` makes the initial weights; None takes torch's global one.
    """

    context = None  # it keeps W - 1 tokens and can run for ever

    def __init__(self, config: MLPConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):  # what the parts draw for themselves is drawn anew below
            self.embedding = Embedding(config.vocab_size, config.width)
            self.nothing = nn.Parameter(torch.empty(config.width))
            self.input = Linear(config.window * config.width, config.hidden)
            self.head = Head(config.hidden, config.vocab_size, bias=True)
        self.initialize(generator)

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight anew, in a fixed order: torch.nn's defaults, and "nothing before" like a token's vector.
        On the meta device, where weights are shapes only, nothing is done."""
        if self.nothing.is_meta:
            return
        self.embedding.reset_parameters(generator)
        nn.init.normal_(self.nothing, generator=generator)
        self.input.reset_parameters(generator)
        self.head.reset_parameters(generator)

    def _nothing_before(self, rows: int) -> Tensor:
        """The past of a row that begins. Shapes: -> (rows, W - 1, C)."""
        return self.nothing.expand(rows, self.config.window - 1, -1)

    def new_cache(self, rows: int) -> MLPCache:
        """What `rows` sequences that have not begun keep."""
        return MLPCache(self._nothing_before(rows))

    def hidden(self, tokens: Tensor, cache: MLPCache | None = None, starts: Tensor | None = None) -> Tensor:
        """The hidden layer. Shapes: (B, T) -> (B, T, F).

        `cache` holds the tokens before and takes these in; `starts` (B,) is the column, of cached and new ones
        together, where a left-padded row begins: before it stands nothing.
        """
        rows, new = tokens.shape
        vectors = self.embedding(tokens)
        if starts is not None:
            length = 0 if cache is None else cache.length
            padding = torch.arange(length, length + new, device=tokens.device) < starts[:, None]
            vectors = torch.where(padding[..., None], self.nothing, vectors)
        past = self._nothing_before(rows) if cache is None else cache.past
        vectors = torch.cat((past, vectors), dim=1)  # (B, W - 1 + T, C)
        if cache is not None:
            cache.past = vectors[:, new:]  # the last W - 1: [-0:] would be all of them where W is 1
            cache.length += new
        # One product over all places of the window. A product for each place, added up, copies less and is slower.
        seen = [vectors[:, place : place + new] for place in range(self.config.window)]
        return torch.tanh(self.input(torch.cat(seen, dim=-1)))

    def forward(self, tokens: Tensor, cache: MLPCache | None = None, starts: Tensor | None = None) -> Tensor:
        """Shapes: (B, T) int64 -> (B, T, V) float32. See `hidden` for `cache` and `starts`."""
        return self.head(self.hidden(tokens, cache, starts))


__all__ = ["MLP", "MLPConfig"]
