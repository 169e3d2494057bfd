"""What a transformer is stacked from: the feed-forward layer, the block, the head.

B rows, T tokens, C width, F hidden features of the feed-forward layer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from handmade.attention import Attention, LayerCache, MeanOfPast
from handmade.layers import GELU, Dropout, LayerNorm, Linear, ReLU, RMSNorm, SiLU, SquaredReLU
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
        return x + self.dropout(written) if self.residual else self.dropout(written)


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
