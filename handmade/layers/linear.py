"""Linear and Embedding: a matrix product, and the same product with a one-hot vector."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from handmade.errors import ConfigError
from handmade.layers.kernels import Module


class Linear(Module):
    """An affine map of the last axis.

        y = x W^T + b

    Shapes: x (..., in_features) -> (..., out_features); weight (out_features, in_features), bias (out_features,).
    Raises ConfigError for a size below 1.
    Source: Goodfellow, Bengio and Courville 2016, equation 6.2.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        require_sizes("Linear", in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = torch.nn.Parameter(torch.empty(out_features, in_features))
        self.bias = torch.nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weight and bias uniform in +-1/sqrt(in_features): torch.nn's default.

        Source: LeCun et al. 1998, "Efficient BackProp", section 4.6, up to a factor of sqrt(3).
        """
        if self.weight.is_meta:
            return  # there is nothing to fill, and PyTorch takes seconds to find that out
        bound = 1 / math.sqrt(self.in_features)
        with torch.no_grad():
            self.weight.uniform_(-bound, bound, generator=generator)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return F.linear(x, self.weight, self.bias)
        y = x @ self.weight.T
        # Under autocast y is in low precision; the sum must not lift it back to float32.
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Embedding(Module):
    """One learned vector for every token. It is a linear map of the token's one-hot vector, without the zeros.

        y = W[token]

    Shapes: tokens (...) int64 -> (..., embedding_dim); weight (num_embeddings, embedding_dim).
    Raises ConfigError for a size below 1, IndexError for a token outside 0 .. num_embeddings - 1.
    Source: Bengio et al. 2003, "A neural probabilistic language model", section 2.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        require_sizes("Embedding", num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = torch.nn.Parameter(torch.empty(num_embeddings, embedding_dim))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Normal with mean 0 and standard deviation 1: torch.nn's default."""
        if self.weight.is_meta:
            return
        with torch.no_grad():
            self.weight.normal_(generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.fused:
            return F.embedding(tokens, self.weight)
        # Not weight[tokens]: that takes -1 for the last row, and a padding id slips through unseen.
        rows = self.weight.index_select(0, tokens.flatten())
        return rows.view(*tokens.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


def require_sizes(layer: str, **sizes: int) -> None:
    """Raise ConfigError that names the layer, the size and its value unless every size is a whole number from 1."""
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{layer}: {name} = {value!r}: must be a whole number from 1.")
