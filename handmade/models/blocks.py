"""What a transformer is stacked from: the feed-forward layer, the block, the head.

B rows, T tokens, S tokens of a memory, C width, F hidden features of the feed-forward layer, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from handmade.attention import Attention, MeanOfPast
from handmade.cache import LayerCache
from handmade.layers import GELU, Dropout, Embedding, LayerNorm, Linear, ReLU, RMSNorm, SiLU, SquaredReLU
from handmade.layers.kernels import Module


def make_norm(kind: str, width: int, bias: bool) -> nn.Module:
    """The norm of a config: "none", "layer", "rms" (with a scale), "rms-plain" (without parameters)."""
    if kind == "none":
        return nn.Identity()
    if kind == "layer":
        return LayerNorm(width, bias=bias)
    return RMSNorm(width, elementwise_affine=kind == "rms")


def make_activation(kind: str) -> nn.Module:
    """The activation of a config, by the name that `GPTConfig.activation` gives it."""
    made: dict[str, Callable[[], nn.Module]] = {
        "relu": ReLU,
        "gelu": GELU,
        "gelu-tanh": lambda: GELU(approximate="tanh"),
        "silu": SiLU,
        "relu-squared": SquaredReLU,
    }
    return made[kind]()


def default_hidden(width: int, activation: str) -> int:
    """Features inside a feed-forward layer where nothing is said: 4 * width, or for swiglu, which has three matrices,
    8/3 * width rounded to a multiple of 8."""
    return max(8, round(width / 3) * 8) if activation == "swiglu" else 4 * width


def heads_that_fit(width: int, heads: int) -> str:
    """The divisors of a width that are next to a number of heads, in words.

    >>> heads_that_fit(256, 6)
    '2, 4, 8'
    """
    small = [part for part in range(1, math.isqrt(width) + 1) if width % part == 0]
    divisors = {*small, *(width // part for part in small)}
    return ", ".join(map(str, sorted(sorted(divisors, key=lambda number: abs(number - heads))[:3])))


def draw_layers(
    model: nn.Module, initialization: str, generator: torch.Generator | None, leave: tuple[type[nn.Module], ...] = ()
) -> None:
    """Draw the weights of all layers of a model anew, in the order they are made: "torch", each layer's own default;
    "normal" and "gpt2", N(0, 0.02); "fan-in", matrices N(0, 1/fan_in) and embeddings N(0, 1); "xavier", matrices
    uniform in +-sqrt(6 / (fan_in + fan_out)), embeddings and head N(0, 1/width). Biases are zero, except with
    "torch". Kinds to `leave` keep their default.

    Source of "xavier": Glorot and Bengio 2010, equation 16.
    """
    for module in model.modules():
        if isinstance(module, (Linear, Embedding, LayerNorm, RMSNorm)):
            module.reset_parameters(generator)
        if initialization == "torch" or not isinstance(module, (Linear, Embedding)) or isinstance(module, leave):
            continue
        rows, columns = module.weight.shape
        if initialization == "xavier" and isinstance(module, Linear) and not isinstance(module, Head):
            bound = math.sqrt(6 / (rows + columns))
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
        else:
            deviation = 0.02
            if initialization in ("fan-in", "xavier"):
                unit = initialization == "fan-in" and isinstance(module, Embedding)
                deviation = 1.0 if unit else columns**-0.5
            nn.init.normal_(module.weight, std=deviation, generator=generator)
        if isinstance(module, Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


class FeedForward(Module):
    """What a position does by itself, between one attention and the next.

        y = W_out activation(W_in x)                          most activations
        y = W_out (SiLU(W_gate x) * W_in x)                   "swiglu" (Shazeer 2020, arXiv:2002.05202, equation 6)

    Shapes: (B, T, C) -> (B, T, C), F features inside. Source: Vaswani et al. 2017, equation 2 (arXiv:1706.03762).
    """

    def __init__(self, width: int, hidden: int, activation: str = "gelu", bias: bool = True) -> None:
        super().__init__()
        self.gate = Linear(width, hidden, bias) if activation == "swiglu" else None
        self.input = Linear(width, hidden, bias)
        self.activation = make_activation("silu" if activation == "swiglu" else activation)
        self.output = Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is not None:
            return self.output(self.activation(self.gate(x)) * self.input(x))
        return self.output(self.activation(self.input(x)))


class Block(Module):
    """Attention, then the feed-forward layer, each added to the stream that runs through the model.

        x = x + dropout(attention(norm(x)))        placement "pre" (GPT-2: Radford et al. 2019, section 2.3)
        x = x + dropout(feed_forward(norm(x)))

        x = norm(x + dropout(attention(x)))        placement "post" (Vaswani et al. 2017, section 3.1; GPT-1)
        x = norm(x + dropout(feed_forward(x)))

    To see what they are worth, both may be left out. Without `residual` each part replaces the stream:

        x = dropout(attention(norm(x)))
        x = dropout(feed_forward(norm(x)))

    Without a `feed_forward` (None) its line falls away, its norm too.

    Shapes: (B, T, C) -> (B, T, C).
    """

    def __init__(
        self,
        attention: Attention | MeanOfPast,
        feed_forward: FeedForward | None,
        norms: tuple[nn.Module, nn.Module],
        placement: str = "pre",
        dropout: float = 0.0,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.placement, self.residual = placement, residual
        self.attention_norm, self.feed_forward_norm = norms
        self.attention, self.feed_forward = attention, feed_forward
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
        length: int = 0,
    ) -> Tensor:
        if self.placement == "pre":
            x = self.join(x, self.attention(self.attention_norm(x), None, mask, rotation, cache, length))
            if self.feed_forward is None:
                return x
            return self.join(x, self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(self.join(x, self.attention(x, None, mask, rotation, cache, length)))
        if self.feed_forward is None:
            return x
        return self.feed_forward_norm(self.join(x, self.feed_forward(x)))

    def join(self, x: Tensor, written: Tensor) -> Tensor:
        """The stream with what a part has written. Shapes: (B, T, C) twice -> (B, T, C)."""
        if self.dropout.training:  # a call for nothing is a part of what a single token costs
            written = self.dropout(written)
        return x + written if self.residual else written


class DecoderBlock(Block):
    """A block that asks a memory between its attention and its feed-forward layer.

        x = x + dropout(attention(norm(x)))                placement "pre"
        x = x + dropout(cross(norm(x), memory))
        x = x + dropout(feed_forward(norm(x)))

        x = norm(x + dropout(attention(x)))                placement "post" (Vaswani et al. 2017, section 3.1)
        x = norm(x + dropout(cross(x, memory)))
        x = norm(x + dropout(feed_forward(x)))

    Several rows in a row may ask the same sentence of the memory: its keys and values are not copied for them.

    Shapes: x (B * beams, T, C), memory (B, S, C), or as `Attention.remember` gave it, its mask (B, S) -> as x.
    """

    def __init__(
        self,
        attention: Attention,
        cross: Attention,
        feed_forward: FeedForward,
        norms: tuple[nn.Module, nn.Module, nn.Module],
        placement: str = "pre",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(attention, feed_forward, (norms[0], norms[2]), placement, dropout)
        self.cross_norm = norms[1]
        self.cross = cross

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        memory: Tensor | tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
        length: int = 0,
    ) -> Tensor:
        assert self.feed_forward is not None
        if self.placement == "pre":
            x = self.join(x, self.attention(self.attention_norm(x), None, None, rotation, cache, length))
            x = self.join(x, self.ask(self.cross_norm(x), memory, mask))
            return self.join(x, self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(self.join(x, self.attention(x, None, None, rotation, cache, length)))
        x = self.cross_norm(self.join(x, self.ask(x, memory, mask)))
        return self.feed_forward_norm(self.join(x, self.feed_forward(x)))

    def ask(self, x: Tensor, memory: Tensor | tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Nothing hides the memory from one token more than from another, so that the tokens of all rows that belong
        to a sentence ask it as if they were one row's."""
        sentences = len(memory[0] if isinstance(memory, tuple) else memory)
        asking = x.reshape(sentences, -1, x.shape[-1])
        return self.cross(asking, memory, None if mask is None else mask[:, None, None]).view_as(x)


class Head(Linear):
    """From the stream to logits, one for each token of the vocabulary, in float32.

        logits = W x (+ b)
        logits = cap * tanh(logits / cap)          with a cap (Gemma 2, arXiv:2408.00118, section 2)

    The cap keeps a logit within (-cap, cap): no single token can be made certain by one large weight.
    Shapes: (B, T, C) -> (B, T, V).
    """

    def __init__(self, width: int, vocab_size: int, bias: bool = False, cap: float | None = None) -> None:
        super().__init__(width, vocab_size, bias)
        self.cap = cap

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        if logits.element_size() < 4:  # bfloat16 has 8 bits of precision: too few for a loss
            logits = logits.float()
        return logits if self.cap is None else self.cap * (logits / self.cap).tanh()
