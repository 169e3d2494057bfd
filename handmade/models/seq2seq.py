"""The encoder-decoder transformer: one stack reads a sentence, another writes one and asks the first at every token.

B sentences, S source tokens, T target tokens, C width, H heads, V target vocabulary, R = B * beams rows that are
written: several for a sentence in a beam search, side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from handmade.attention import Attention
from handmade.cache import LayerCache
from handmade.config import Config
from handmade.errors import ConfigError
from handmade.layers import Dropout, Embedding, Linear
from handmade.layers.kernels import Module
from handmade.models.blocks import (
    Block,
    DecoderBlock,
    FeedForward,
    Head,
    default_hidden,
    draw_layers,
    heads_that_fit,
    make_norm,
)
from handmade.positions import Rotary, sinusoidal

State = tuple[Tensor, Tensor]
"""Of an LSTM's layer: (h, c). Shapes: each (1, B, C)."""


@dataclass(frozen=True)
class Memory:
    """What an encoder made of B sentences."""

    states: Tensor
    """One vector for each source token. Shapes: (B, S, C)."""
    mask: Tensor | None = None
    """True where a real token stands; None where nothing is padded. Shapes: (B, S)."""
    first: tuple[State, ...] = ()
    """The state that a recurrent decoder begins with, a layer each."""

    @property
    def rows(self) -> int:
        """Sentences."""
        return len(self.states)

    def select(self, sentences: Tensor) -> Memory:
        """Some of the sentences, in another order. Shapes: sentences (N,) int64."""
        return Memory(
            self.states[sentences],
            None if self.mask is None else self.mask[sentences],
            tuple((h[:, sentences], c[:, sentences]) for h, c in self.first),
        )


def beams_of(rows: int, memory_rows: int) -> int:
    """How many rows are written for each sentence. Raises ConfigError unless the rows come in whole groups."""
    if memory_rows == 0 or rows % memory_rows:
        raise ConfigError(f"decode: {rows} rows of tokens do not come in equal groups for {memory_rows} sentences.")
    return rows // memory_rows


def sentences_of(rows: Tensor, beams: int) -> Tensor:
    """The sentence of each group of `beams` rows. Shapes: rows (R,) int64 -> (R / beams,).
    Raises ConfigError for a group that is cut off, or mixed from several sentences."""
    groups = rows.view(-1, beams) // beams if len(rows) % beams == 0 else None
    if groups is None or (groups != groups[:, :1]).any():
        raise ConfigError(f"cache: rows are selected in whole groups of {beams}, each of one sentence.")
    return groups[:, 0]


@dataclass(frozen=True)
class Seq2SeqConfig(Config):
    """The shape of a `Seq2Seq`. The defaults are a small one of 2017, as Vaswani et al. published it."""

    vocab_size: int
    """Distinct target tokens."""
    source_vocab_size: int
    """Distinct source tokens."""
    context: int = 64
    """Most positions of a source, and of a target."""
    encoder_layers: int = 2
    decoder_layers: int = 2
    heads: int = 4
    width: int = 256
    """Features of the residual stream; the heads share them."""
    hidden: int | None = None
    """Features inside the feed-forward layer. None: 4 * width, or 8/3 * width for swiglu, which has three matrices."""
    activation: Literal["relu", "gelu", "gelu-tanh", "silu", "relu-squared", "swiglu"] = "relu"
    norm: Literal["layer", "rms", "rms-plain"] = "layer"
    """"rms-plain" is RMSNorm without parameters."""
    norm_placement: Literal["pre", "post"] = "post"
    """"pre": with a last norm on the encoder and on the decoder."""
    positions: Literal["none", "learned", "sinusoidal", "rotary"] = "sinusoidal"
    """"rotary" turns queries and keys of self-attention only: places in two sentences cannot be subtracted."""
    rotary_base: float = 10_000.0
    query_key_norm: bool = False
    bias: bool = True
    """Biases in linear layers and LayerNorm."""
    scale_embeddings: bool = True
    """Embeddings are multiplied by sqrt(width)."""
    tied_head: bool = True
    """The head shares the target embedding's matrix."""
    tied_embeddings: bool = False
    """Source and target share one embedding: for one vocabulary of both languages."""
    head_bias: bool = False
    dropout: float = 0.0
    """On the embeddings and on what attention and feed-forward add to the stream."""
    attention_dropout: float = 0.0
    """On the attention weights. The fused CPU kernel has none: above 0, attention on a CPU is slower."""
    initialization: Literal["torch", "normal", "gpt2", "fan-in", "xavier"] = "xavier"
    """"torch", "normal", "gpt2", "fan-in": as in a GPT. "xavier": matrices uniform in +-sqrt(6 / (fan_in + fan_out)),
    embeddings and head N(0, 1/width), as the authors of 2017 had it."""
    zero_projections: bool = False
    """What writes into the stream, and an untied head, start at zero: each block starts as the identity."""
    padding: int = 0
    """The source token that fills short rows up. It is never attended to."""

    @property
    def head_features(self) -> int:
        return self.width // self.heads

    @property
    def hidden_features(self) -> int:
        """`hidden`, or its default."""
        return default_hidden(self.width, self.activation) if self.hidden is None else self.hidden

    def check(self) -> None:
        sizes = ("vocab_size", "source_vocab_size", "context", "encoder_layers", "decoder_layers", "heads", "width")
        for field in sizes:
            self.require(field, getattr(self, field) >= 1, "at least 1")
        self.require("hidden", self.hidden is None or self.hidden >= 1, "at least 1")
        if self.width % self.heads:
            self.fail("heads", f"does not divide width = {self.width}. Try {heads_that_fit(self.width, self.heads)}")
        if self.positions == "rotary" and self.head_features % 2:
            self.fail("positions", f"rotary needs an even number of features a head, not {self.head_features}")
        if self.positions == "sinusoidal":
            self.require("width", self.width % 2 == 0, "even for sinusoidal positions")
        self.require("rotary_base", 1 < self.rotary_base < math.inf, "a number above 1")
        for field in ("dropout", "attention_dropout"):
            self.require(field, 0 <= getattr(self, field) < 1, "at least 0 and below 1")
        self.require("padding", 0 <= self.padding < self.source_vocab_size, "a token of the source vocabulary")
        if self.tied_embeddings and self.vocab_size != self.source_vocab_size:
            self.fail(
                "tied_embeddings",
                f"needs one vocabulary, not {self.source_vocab_size} source and {self.vocab_size} target tokens",
            )


class Seq2SeqCache:
    """What decoding keeps: of R rows the keys and values of what was written (`layers`), of B sentences those of the
    memory (`memories`, a pair for each layer) and its mask, and how many positions are written (`length`)."""

    def __init__(
        self, layers: list[LayerCache], memories: list[tuple[Tensor, Tensor]], mask: Tensor | None, beams: int
    ) -> None:
        self.layers, self.memories, self.mask, self.beams = layers, memories, mask, beams
        self.length = 0

    def select(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was. The rows come in whole groups of `beams`, each out of one sentence's
        rows: beams are reordered, sentences that are finished dropped. Shapes: rows (R',) int64."""
        sentences = sentences_of(rows, self.beams)
        for layer in self.layers:
            layer.select(rows, self.length)
        before = torch.arange(len(self.memories[0][0]), device=rows.device)
        if torch.equal(sentences, before):  # the memory stays where it is
            return
        self.memories = [(keys[sentences], values[sentences]) for keys, values in self.memories]
        self.mask = None if self.mask is None else self.mask[sentences]


class Seq2Seq(Module):
    """An encoder that sees a whole sentence, and a decoder that writes another one from left to right.

        m = embedding(source) (* sqrt(C)) (+ positions)
        m = block(m)                                   `encoder_layers` times, no token hidden but padding
        x = embedding(tokens) (* sqrt(C)) (+ positions)
        x = block(x, m)                                `decoder_layers` times: causal attention, then to m (cross)
        logits = head(x)

    With pre-norm, m and x are normed once more at the end.

    Shapes: source (B, S) int64, tokens (B, T) int64 -> logits (B, T, V) float32: of the token behind each.
    A source row is padded on the right with `config.padding`; what stands there never counts. The loss is outside.
    Source: Vaswani et al. 2017, section 3 and figure 1 (arXiv:1706.03762); pre-norm: Xiong et al. 2020
    (arXiv:2002.04745).

    `generator` makes the initial weights; None takes torch's global one.
    """

    uncompiled = "sentences have many lengths, and each would be compiled anew"
    """Why torch.compile is not used unless asked for."""

    wave: Tensor

    def __init__(self, config: Seq2SeqConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        c = config
        learned = c.positions == "learned"
        self.source_embedding = Embedding(c.source_vocab_size, c.width)
        self.source_position = Embedding(c.context, c.width) if learned else None
        self.embedding = Embedding(c.vocab_size, c.width)
        self.position = Embedding(c.context, c.width) if learned else None
        self.rotary = Rotary(c.head_features, c.context, c.rotary_base) if c.positions == "rotary" else None
        if c.positions == "sinusoidal":  # not saved: they follow from the config
            self.register_buffer("wave", sinusoidal(torch.arange(c.context), c.width), persistent=False)
        self.dropout = Dropout(c.dropout)
        last = c.norm if c.norm_placement == "pre" else "none"
        self.encoder = nn.ModuleList(self._encoder_block() for _ in range(c.encoder_layers))
        self.encoder_norm = make_norm(last, c.width, c.bias)
        self.decoder = nn.ModuleList(self._decoder_block() for _ in range(c.decoder_layers))
        self.norm = make_norm(last, c.width, c.bias)
        self.head = Head(c.width, c.vocab_size, c.head_bias)
        if c.tied_head:
            self.head.weight = self.embedding.weight
        if c.tied_embeddings:
            self.source_embedding.weight = self.embedding.weight
        self.initialize(generator)

    def _attention(self, causal: bool) -> Attention:
        c = self.config
        return Attention(
            c.width,
            c.heads,
            causal=causal,
            bias=c.bias,
            dropout=c.attention_dropout,
            query_key_norm=c.query_key_norm,
        )

    def _feed_forward(self) -> FeedForward:
        c = self.config
        return FeedForward(c.width, c.hidden_features, c.activation, c.bias)

    def _norm(self) -> nn.Module:
        return make_norm(self.config.norm, self.config.width, self.config.bias)

    def _encoder_block(self) -> Block:
        norms = self._norm(), self._norm()
        return Block(
            self._attention(False), self._feed_forward(), norms, self.config.norm_placement, self.config.dropout
        )

    def _decoder_block(self) -> DecoderBlock:
        norms = self._norm(), self._norm(), self._norm()
        attention, cross = self._attention(True), self._attention(False)
        return DecoderBlock(
            attention, cross, self._feed_forward(), norms, self.config.norm_placement, self.config.dropout
        )

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight anew, in a fixed order, as `config.initialization` says. On the meta device, where
        weights are shapes only, nothing is done."""
        c = self.config
        if self.embedding.weight.is_meta:
            return
        draw_layers(self, c.initialization, generator)
        for projections in self.residual_projections():
            for projection in projections:
                if c.zero_projections:
                    nn.init.zeros_(projection.weight)
                elif c.initialization == "gpt2":
                    projection.weight.div_(math.sqrt(len(projections)))
        if c.zero_projections and not c.tied_head:
            nn.init.zeros_(self.head.weight)

    def residual_projections(self) -> tuple[list[Linear], list[Linear]]:
        """The layers that write into the encoder's stream, two in each block, and into the decoder's, three."""
        encoder: list[Block] = list(self.encoder)  # type: ignore[arg-type]
        decoder: list[DecoderBlock] = list(self.decoder)  # type: ignore[arg-type]
        reading = [part for block in encoder for part in (block.attention, block.feed_forward)]
        writing = [part for block in decoder for part in (block.attention, block.cross, block.feed_forward)]
        first, second = ([part.output for part in parts if part is not None] for parts in (reading, writing))
        return first, second

    @property
    def context(self) -> int:
        """Most positions of a source, and of a target."""
        return self.config.context

    def embed(self, tokens: Tensor, embedding: Embedding, position: Embedding | None, length: int = 0) -> Tensor:
        """Tokens that stand behind `length` others, as vectors that know their places. Shapes: (B, T) -> (B, T, C)."""
        where = slice(length, length + tokens.shape[1])
        x = embedding(tokens)
        if self.config.scale_embeddings:
            x = x * math.sqrt(self.config.width)
        if position is not None:
            x = x + position.weight[where]
        elif self.config.positions == "sinusoidal":
            x = x + self.wave[where].to(x.dtype)
        return self.dropout(x)

    def encode(self, source: Tensor) -> Memory:
        """Read B sentences, once. Shapes: (B, S) int64 -> states (B, S, C).
        Raises ConfigError for a sentence of more tokens than the positions."""
        self.require_positions("source", source.shape[1])
        real = source != self.config.padding
        mask = None if real.all() else real
        x = self.embed(source, self.source_embedding, self.source_position)
        rotation = None if self.rotary is None else self.rotary(slice(0, source.shape[1]))
        for block in self.encoder:
            x = block(x, None if mask is None else mask[:, None, None], rotation)
        return Memory(self.encoder_norm(x), mask)

    def new_cache(self, memory: Memory, beams: int = 1) -> Seq2SeqCache:
        """Room for what is written of each sentence, `beams` times, and the keys and values of the memory, once."""
        c, like = self.config, self.embedding.weight
        rows = memory.rows * beams
        layers = [LayerCache(rows, c.heads, c.context, c.head_features, like) for _ in range(c.decoder_layers)]
        decoder: list[DecoderBlock] = list(self.decoder)  # type: ignore[arg-type]
        return Seq2SeqCache(layers, [block.cross.remember(memory.states) for block in decoder], memory.mask, beams)

    def decode_hidden(self, tokens: Tensor, memory: Memory, cache: Seq2SeqCache | None = None) -> Tensor:
        """The decoder's stream before the head, after the last norm. Shapes: (R, T) int64 -> (R, T, C).

        `cache` holds earlier positions and takes these in; it has its own part of the memory, and what is selected
        from it need not be selected from `memory`. Raises ConfigError for more positions than the context.
        """
        length, new = (0 if cache is None else cache.length), tokens.shape[1]
        self.require_positions("target", length + new)
        x = self.embed(tokens, self.embedding, self.position, length)
        rotation = None if self.rotary is None else self.rotary(slice(length, length + new))
        if cache is None:
            beams_of(len(tokens), memory.rows)
            for block in self.decoder:
                x = block(x, memory.states, memory.mask, rotation)
            return self.norm(x)
        for block, layer, pair in zip(self.decoder, cache.layers, cache.memories, strict=True):
            x = block(x, pair, cache.mask, rotation, layer, length)
        cache.length = length + new
        return self.norm(x)

    def decode(self, tokens: Tensor, memory: Memory, cache: Seq2SeqCache | None = None) -> Tensor:
        """The logits of the token behind each. Shapes: (R, T) int64 -> (R, T, V) float32. See `decode_hidden`."""
        return self.head(self.decode_hidden(tokens, memory, cache))

    def forward(self, source: Tensor, tokens: Tensor) -> Tensor:
        """All positions of the target at once, each from those before it. Shapes: (B, S), (B, T) -> (B, T, V)."""
        return self.decode(tokens, self.encode(source))

    def require_positions(self, side: str, count: int) -> None:
        """Raise ConfigError for a sentence that is too long."""
        if count > self.context:
            raise ConfigError(
                f"A {side} of {count} tokens does not fit the {self.context} positions of the model."
                " Split it into shorter sentences, or train with a larger model.context."
            )


__all__ = ["Memory", "Seq2Seq", "Seq2SeqCache", "Seq2SeqConfig"]
