"""Two models of a published experiment: a small transformer and a dense net with 25 times its parameters, which see a
beginning of a row of at most 19 tokens and say the one token that comes next.

B rows, W positions of the window, C width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from handmade.attention import Attention
from handmade.config import Config
from handmade.errors import ConfigError
from handmade.layers import Dropout, LayerNorm, Linear, ReLU
from handmade.layers.kernels import Module
from handmade.models.blocks import Block, FeedForward, Head
from handmade.positions import sinusoidal

PADDING = 0  # the token behind the end of a beginning


@dataclass(frozen=True)
class FixedWindowConfig(Config):
    """The shape of a `FixedWindow`. The defaults are those of the experiment."""

    vocab_size: int = 17
    """Distinct tokens. In the experiment padding, `+`, `*`, `=`, ten digits, two parentheses, end."""
    context: int = 19
    """Positions of the window. The head has a weight for each feature of each."""
    body: Literal["transformer", "dense"] = "transformer"
    """What stands between the window and the head."""
    layers: int = 3
    """Blocks of the transformer, or layers of the dense net."""
    width: int = 48
    """Features of a position. A layer of the dense net has as many for the whole window: `context` times `width`."""
    heads: int = 3
    """Of the transformer."""
    hidden: int = 192
    """Features inside the transformer's feed-forward layers."""
    dropout: float | None = None
    """None: 0.1 in the transformer, 0.2 in the dense net, as published."""

    def check(self) -> None:
        for field in ("vocab_size", "context", "layers", "width", "heads", "hidden"):
            self.require(field, getattr(self, field) >= 1, "at least 1")
        self.require("width", self.width % 2 == 0, "even for sinusoidal positions")
        self.require("heads", self.width % self.heads == 0, f"a divisor of width = {self.width}")
        self.require("dropout", self.dropout is None or 0 <= self.dropout < 1, "at least 0 and below 1, or none")

    @property
    def dropout_rate(self) -> float:
        """`dropout`, or the published one."""
        return self.dropout if self.dropout is not None else 0.1 if self.body == "transformer" else 0.2


class WindowCache:
    """What decoding keeps of the past: the tokens, because the whole window is computed for each new one.
    Shapes: tokens (rows, T) int64."""

    def __init__(self, rows: int, like: Tensor) -> None:
        self.tokens = torch.empty(rows, 0, dtype=torch.int64, device=like.device)

    @property
    def length(self) -> int:
        """Positions that are in."""
        return self.tokens.shape[1]

    def select(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was. Shapes: rows (R,) int64."""
        self.tokens = self.tokens[rows]


class FixedWindow(Module):
    """The next token from a beginning that stands at the left of a window, padding behind it.

        x = W one_hot(token) + b + wave(position)                  at every position, padding too
        x = block(x)                                               transformer: `layers` pre-norm blocks that see the
                                                                   whole beginning, never the padding
        x = dropout(relu(W x + b)) on the flattened window         dense: `layers` layers of context * width features
        logits = W flatten(x) + b

    Not causal, and one token at a time: a row of ten tokens is computed ten times where a decoder computes it once.
    The head's weights are tied to places, so nothing that is learnt at one place holds at another by itself.

    Shapes: tokens (B, T) int64, T <= W -> logits (B, 1, V): of the token behind the last column. `next_token` takes
    beginnings of many lengths at once: (B, T), lengths (B,) -> (B, V).
    Source: the transformer and the dense net have 101,201 and 2,514,353 parameters with the defaults, as published.
    Vaswani et al. 2017, section 3.5 (arXiv:1706.03762), for the waves.
    """

    last_only = True
    """Of a row only the token behind it is foreseen: a task has to ask for each token by a row of its own."""

    def __init__(self, config: FixedWindowConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        c = config
        self.embedding = Linear(c.vocab_size, c.width)
        flat = c.context * c.width
        self.blocks, self.dense = nn.ModuleList(), nn.ModuleList()
        if c.body == "transformer":
            self.blocks.extend(self._block() for _ in range(c.layers))
        else:
            self.dense.extend(Linear(flat, flat) for _ in range(c.layers))
        self.activation = ReLU()
        self.dropout = Dropout(c.dropout_rate) if c.body == "dense" else nn.Identity()  # blocks have their own
        self.head = Head(flat, c.vocab_size, bias=True)
        for module in self.modules():
            if isinstance(module, (Linear, LayerNorm)):
                module.reset_parameters(generator)

    def _block(self) -> Block:
        c = self.config
        feed_forward = FeedForward(c.width, c.hidden, "relu", bias=True)
        norms = LayerNorm(c.width), LayerNorm(c.width)
        return Block(Attention(c.width, c.heads), feed_forward, norms, "pre", c.dropout_rate)

    @property
    def context(self) -> int:
        """Positions the model sees at once."""
        return self.config.context

    def new_cache(self, rows: int) -> WindowCache:
        """Room for the beginnings of `rows` rows."""
        return WindowCache(rows, self.head.weight)

    def forward(self, tokens: Tensor, cache: WindowCache | None = None, starts: Tensor | None = None) -> Tensor:
        """Shapes: (B, T) int64 -> (B, 1, V) float32. `cache` holds earlier tokens and takes these in; `starts` (B,) is
        the column where a left-padded row begins."""
        if cache is not None:
            tokens = cache.tokens = torch.cat([cache.tokens, tokens], dim=1)
        rows, length = tokens.shape
        lengths = torch.full((rows,), length, device=tokens.device)
        if starts is not None:  # to the left side of the window
            lengths = lengths - starts
            places = torch.arange(length, device=tokens.device) + starts[:, None]
            tokens = tokens.gather(1, places.clamp(max=length - 1))
        return self.next_token(tokens, lengths)[:, None]

    def next_token(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The logits of the token behind each beginning; what stands in its row behind it is not looked at.
        Shapes: tokens (B, T) int64, lengths (B,) -> (B, V). Raises ConfigError for more tokens than the window."""
        c, (rows, width) = self.config, tokens.shape
        if width > c.context:
            raise ConfigError(f"{width} tokens do not fit the context of {c.context}.")
        places = torch.arange(c.context, device=tokens.device)
        there = places < lengths[:, None]  # (B, W): no padding
        window = tokens.new_full((rows, c.context), PADDING)
        window[:, :width] = tokens
        window = window.masked_fill(~there, PADDING)
        # A product with a one-hot vector is a column of the matrix.
        assert self.embedding.bias is not None
        x = nn.functional.embedding(window, self.embedding.weight.t()) + self.embedding.bias
        x = x + sinusoidal(places, c.width).to(x.dtype)
        mask = there[:, None, None]  # (B, 1, 1, W)
        for block in self.blocks:
            x = block(x, mask)
        x = x.flatten(1)
        for layer in self.dense:
            x = self.dropout(self.activation(layer(x)))
        return self.head(x)


__all__ = ["FixedWindow", "FixedWindowConfig"]
