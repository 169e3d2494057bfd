"""The GPT: one config and one block for everything from GPT-1 to today's small models.

B rows, T tokens, C width, H heads, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from handmade.attention import Attention, MeanOfPast, padding_mask
from handmade.cache import KeyValueCache
from handmade.config import Config
from handmade.errors import ConfigError
from handmade.layers import Dropout, Embedding, Linear
from handmade.layers.kernels import Module
from handmade.models.blocks import Block, FeedForward, Head, default_hidden, draw_layers, heads_that_fit, make_norm
from handmade.positions import Rotary, positions_of, shared_positions, sinusoidal


@dataclass(frozen=True)
class GPTConfig(Config):
    """The shape of a GPT. The defaults are GPT-2's; `handmade.presets` has others, each with its source."""

    vocab_size: int
    """Distinct tokens."""
    context: int = 256
    """Positions the model sees at once."""
    layers: int = 6
    mixing: Literal["attention", "mean"] = "attention"
    """"mean": every position takes the plain mean of its past. No queries, no keys, and `heads` means nothing."""
    heads: int = 6
    key_value_heads: int | None = None
    """Fewer than `heads`: each serves a group of them (grouped-query attention). None: as many."""
    score_scale: Literal["head", "width", "none"] = "head"
    """Attention scores are divided by the square root of a head's features. "width": of the model's width, a common
    mistake. "none": not at all."""
    width: int = 384
    """Features of the residual stream; the heads share them."""
    hidden: int | None = None
    """Features inside the feed-forward layer. None: 4 * width, or 8/3 * width for swiglu, which has three matrices.
    0: no feed-forward layer."""
    activation: Literal["relu", "gelu", "gelu-tanh", "silu", "relu-squared", "swiglu"] = "gelu-tanh"
    norm: Literal["none", "layer", "rms", "rms-plain"] = "layer"
    """"rms-plain" is RMSNorm without parameters."""
    norm_placement: Literal["pre", "post"] = "pre"
    residual: bool = True
    """What a layer makes of the stream is added to it. false: it takes the stream's place."""
    embedding_norm: bool = False
    """Norm the embeddings before the first block."""
    pair_embedding: bool = False
    """Add a learned vector for each pair of a token and the one before it: what usually follows two characters
    need not be worked out by attention. For small vocabularies: a row for every pair (PairEmbedding)."""
    positions: Literal["none", "learned", "sinusoidal", "rotary", "shared"] = "learned"
    """"shared": learned, and digits of the same worth have the same one, in every number of a row
    (`positions.shared_positions`)."""
    rotary_base: float = 10_000.0
    digit_tokens: tuple[int, int] | None = None
    """With shared positions: the first and the last of the tokens that are digits."""
    origin_token: int | None = None
    """With shared positions: from this one on, tokens say where the positions of a row begin. None: at 0."""
    query_key_norm: bool = False
    bias: bool = True
    """Biases in linear layers and LayerNorm."""
    tied_head: bool = True
    """The head shares the embedding's matrix."""
    head_bias: bool = False
    logit_cap: float | None = None
    """Logits are bent to stay within (-cap, cap)."""
    dropout: float = 0.0
    """On the embeddings and on what attention and feed-forward add to the stream."""
    attention_dropout: float = 0.0
    """On the attention weights. The fused CPU kernel has none: above 0, attention on a CPU is slower."""
    initialization: Literal["torch", "normal", "gpt2", "fan-in"] = "gpt2"
    """"torch": each layer's own default. "normal": N(0, 0.02). "gpt2": that, and what is added to the stream is
    scaled by 1/sqrt(2 * layers): one over the root of how many terms it has. "fan-in": matrices N(0, 1/fan_in),
    embeddings N(0, 1). A matrix that embedding and head share is drawn as the head's."""
    zero_projections: bool = False
    """What writes into the stream, and an untied head, start at zero: each block starts as the identity."""

    @property
    def head_features(self) -> int:
        return self.width // self.heads

    @property
    def hidden_features(self) -> int:
        """`hidden`, or its default; for swiglu rounded to a multiple of 8. 0: there is no feed-forward layer."""
        if self.hidden is not None:
            return self.hidden
        return default_hidden(self.width, self.activation)

    def check(self) -> None:
        for field in ("vocab_size", "context", "layers", "heads", "width"):
            self.require(field, getattr(self, field) >= 1, "at least 1")
        self.require("hidden", self.hidden is None or self.hidden >= 0, "at least 0, which is no feed-forward layer")
        if self.width % self.heads:
            self.fail("heads", f"does not divide width = {self.width}. Try {heads_that_fit(self.width, self.heads)}")
        groups = self.key_value_heads
        self.require(
            "key_value_heads",
            groups is None or (groups >= 1 and self.heads % groups == 0),
            f"a divisor of heads = {self.heads}",
        )
        if self.mixing == "mean":  # what concerns queries and keys would be passed over in silence
            why = "with mixing = 'mean', which has no queries and keys"
            self.require("positions", self.positions != "rotary", f"none, learned or sinusoidal {why}")
            self.require("query_key_norm", not self.query_key_norm, f"false {why}")
            self.require("key_value_heads", groups is None, f"none {why}")
            self.require("score_scale", self.score_scale == "head", f"head {why}")
        if self.zero_projections and not self.residual:
            self.fail("zero_projections", "must be false with residual = false: the stream would be zero and stay so")
        if self.positions == "rotary" and self.head_features % 2:
            self.fail("positions", f"rotary needs an even number of features a head, not {self.head_features}")
        if self.positions == "shared":
            first, last = self.digit_tokens or (1, 0)
            self.require("digit_tokens", 0 <= first <= last, "the first and the last digit, with shared positions")
            where = f"above digit_tokens = {self.digit_tokens}"
            self.require("origin_token", self.origin_token is None or self.origin_token > last, where)
        for field in ("digit_tokens", "origin_token"):
            unused = self.positions == "shared" or getattr(self, field) is None
            self.require(field, unused, "none: it goes with positions = 'shared' alone")
        if self.positions == "sinusoidal":
            self.require("width", self.width % 2 == 0, "even for sinusoidal positions")
        if self.pair_embedding:
            self.require("vocab_size", self.vocab_size <= PAIRED, f"at most {PAIRED} with pair_embedding")
        self.require("rotary_base", 1 < self.rotary_base < math.inf, "a number above 1")
        self.require("logit_cap", self.logit_cap is None or 0 < self.logit_cap < math.inf, "a number above 0, or none")
        for field in ("dropout", "attention_dropout"):
            self.require(field, 0 <= getattr(self, field) < 1, "at least 0 and below 1")


PAIRED = 1024  # largest vocabulary with a row for every pair


class PairEmbedding(Embedding):
    """A learned vector for each pair of neighbours, so that a token is told apart by the one before it.

        y[t] = W[token[t - 1] * V + token[t]]

    A token with none before it has rows of its own, the last V. All start at zero: nothing is added at first.

    Shapes: tokens (B, T) int64, before (B,) the tokens ahead of the first column, starts (B,) the columns where
    rows begin -> (B, T, C). V vocabulary.
    Source: the table of token pairs in the records of modded-nanogpt (pull request 201, January 2026), which
    hashes pairs to fewer rows; here the vocabulary is small enough for all.
    """

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__((vocab_size + 1) * vocab_size, width)
        self.vocab_size = vocab_size

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Zeros: nothing is drawn."""
        nn.init.zeros_(self.weight)

    def pairs(self, tokens: Tensor, before: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
        """The row of the table at each token. Shapes: as `forward` -> (B, T) int64."""
        if before is None:
            before = tokens.new_full((len(tokens),), self.vocab_size)
        previous = torch.cat((before[:, None], tokens[:, :-1]), dim=1)
        if starts is not None:
            columns = torch.arange(tokens.shape[1], device=tokens.device)
            previous = previous.masked_fill(columns <= starts[:, None], self.vocab_size)
        return previous * self.vocab_size + tokens

    def forward(self, tokens: Tensor, before: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
        return super().forward(self.pairs(tokens, before, starts))


class GPT(Module):
    """A decoder-only transformer: token and position in, the logits of the next token out.

        x = embedding(tokens) (+ pairs) (+ positions)
        x = block(x)                                   `layers` times
        logits = head(norm(x))                         no final norm after post-norm blocks

    Shapes: tokens (B, T) int64 -> logits (B, T, V) float32. The loss is outside (`layers.cross_entropy`).
    Sources: Radford et al. 2018 (GPT-1), Radford et al. 2019 (GPT-2), and those named at each part.

    `generator` makes the initial weights; None takes torch's global one.
    """

    def __init__(self, config: GPTConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        c = config
        self.embedding = Embedding(c.vocab_size, c.width)
        self.pair_embedding = PairEmbedding(c.vocab_size, c.width) if c.pair_embedding else None
        self.position = Embedding(c.context, c.width) if c.positions in ("learned", "shared") else None
        self.embedding_norm = make_norm(c.norm if c.embedding_norm else "none", c.width, c.bias)
        self.rotary = Rotary(c.head_features, c.context, c.rotary_base) if c.positions == "rotary" else None
        self.dropout = Dropout(c.dropout)
        self.blocks = nn.ModuleList(self._block() for _ in range(c.layers))
        self.norm = make_norm(c.norm if c.norm_placement == "pre" else "none", c.width, c.bias)
        self.head = Head(c.width, c.vocab_size, c.head_bias, c.logit_cap)
        if c.tied_head:
            self.head.weight = self.embedding.weight
        self.initialize(generator)

    def _block(self) -> Block:
        c = self.config
        attention: Attention | MeanOfPast
        if c.mixing == "mean":
            attention = MeanOfPast(c.width, bias=c.bias, dropout=c.attention_dropout)
        else:
            attention = Attention(
                c.width,
                c.heads,
                key_value_heads=c.key_value_heads,
                causal=True,
                bias=c.bias,
                dropout=c.attention_dropout,
                query_key_norm=c.query_key_norm,
                scale={"head": None, "width": c.width**-0.5, "none": 1.0}[c.score_scale],
            )
        thinks = c.hidden_features > 0
        feed_forward = FeedForward(c.width, c.hidden_features, c.activation, c.bias) if thinks else None
        norms = make_norm(c.norm, c.width, c.bias), make_norm(c.norm if thinks else "none", c.width, c.bias)
        return Block(attention, feed_forward, norms, c.norm_placement, c.dropout, c.residual)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight anew, in a fixed order, as `config.initialization` says. On the meta device, where
        weights are shapes only, nothing is done."""
        c = self.config
        if self.embedding.weight.is_meta:
            return
        draw_layers(self, c.initialization, generator, leave=(PairEmbedding,))
        projections = self.residual_projections()
        for projection in projections:
            if c.zero_projections:
                nn.init.zeros_(projection.weight)
            elif c.initialization == "gpt2" and c.residual:
                # The stream is a sum of so many terms; this keeps its variance that of one (GPT-2, section 2.3).
                projection.weight.div_(math.sqrt(len(projections)))
        if c.zero_projections and not c.tied_head:
            nn.init.zeros_(self.head.weight)

    def residual_projections(self) -> list[Linear]:
        """The layers that write into the stream: two in each block, one where there is no feed-forward layer."""
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]
        parts = [part for block in blocks for part in (block.attention, block.feed_forward) if part is not None]
        return [part.output for part in parts]

    @property
    def context(self) -> int:
        """Positions the model sees at once."""
        return self.config.context

    def new_cache(self, rows: int) -> KeyValueCache:
        """Room for the keys and values of `rows` sequences up to the context."""
        c = self.config
        if c.mixing == "mean":  # the values of one head as wide as the model, no keys
            return KeyValueCache(c.layers, rows, 1, c.context, c.width, self.embedding.weight, key_features=0)
        heads = c.key_value_heads or c.heads
        return KeyValueCache(c.layers, rows, heads, c.context, c.head_features, self.embedding.weight)

    def hidden(self, tokens: Tensor, cache: KeyValueCache | None = None, starts: Tensor | None = None) -> Tensor:
        """The stream before the head, after the last norm. Shapes: (B, T) -> (B, T, C).

        `cache` holds earlier positions and takes these in; `starts` (B,) is the column, of cached and new ones
        together, where a left-padded row begins. Raises ConfigError for more positions than the context.
        """
        length, new = (0 if cache is None else cache.length), tokens.shape[1]
        if length + new > self.context:
            raise ConfigError(f"{length + new} tokens do not fit the context of {self.context}.")
        x = self.embedding(tokens)
        if self.pair_embedding is not None:
            before = cache.last if cache is not None and length > 0 else None
            x = x + self.pair_embedding(tokens, before, None if starts is None else starts - length)
        where = slice(length, length + new) if starts is None else positions_of(length, new, starts, tokens.device)
        rotation = None
        if self.position is not None and self.config.positions == "shared":
            x = x + self.position(self._shared(tokens, cache, None if starts is None else starts - length))
        elif self.position is not None:
            x = x + (self.position.weight[where] if starts is None else self.position(where))
        elif self.config.positions == "sinusoidal":
            place = positions_of(length, new, starts, tokens.device)
            x = x + sinusoidal(place, self.config.width).to(x.dtype)
        elif self.rotary is not None:
            rotation = self.rotary(where)
        x = self.dropout(self.embedding_norm(x))
        mask = padding_mask(length + new, starts)
        for index, block in enumerate(self.blocks):
            x = block(x, mask, rotation, None if cache is None else cache.layers[index], length)
        if cache is not None:
            cache.length, cache.last = length + new, tokens[:, -1]
        return self.norm(x)

    def _shared(self, tokens: Tensor, cache: KeyValueCache | None, starts: Tensor | None) -> Tensor:
        """Shared positions, at most the last one that there is; `starts` (B,) are the columns where rows begin.
        Shapes: (B, T) -> (B, T) int64."""
        c = self.config
        assert c.digit_tokens is not None
        if starts is not None:  # what stands before a row is neither a digit nor an origin
            columns = torch.arange(tokens.shape[1], device=tokens.device)
            tokens = tokens.masked_fill(columns < starts[:, None], -1)
        before = None if cache is None else cache.place
        found, place = shared_positions(tokens, c.digit_tokens, c.origin_token, before)
        if cache is not None:
            cache.place = place
        return found.clamp(max=c.context - 1)

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None, starts: Tensor | None = None) -> Tensor:
        """Shapes: (B, T) int64 -> (B, T, V) float32. See `hidden` for `cache` and `starts`."""
        return self.head(self.hidden(tokens, cache, starts))


def parameter_count(model: nn.Module) -> int:
    """Trained numbers, a shared matrix counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


__all__ = ["GPT", "GPTConfig", "parameter_count"]
