"""Where a token stands. Attention alone sees a set; these tell it the order.

    none         nothing is added: a causal model can still count what it sees, a little
    learned      one trained vector per position, added to the embedding (`layers.Embedding`)
    sinusoidal   fixed waves of growing length, added to the embedding
    rotary       queries and keys are turned by an angle that grows with the position
    shared       learned; digits of the same worth have the same position, in every number of a row

B rows, T tokens, H heads, D features of a head, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from handmade.errors import ConfigError
from handmade.layers.kernels import Module


def positions_of(length: int, new: int, starts: Tensor | None, device: torch.device) -> Tensor:
    """The positions of `new` tokens that follow `length` cached ones.

    Without `starts`: (T,). With `starts` (B,), the column where each left-padded row begins: (B, T), counted
    from there; a padding column gets position 0, which nothing attends to.
    """
    columns = torch.arange(length, length + new, device=device)
    if starts is None:
        return columns
    return (columns - starts[:, None]).clamp(min=0)


Place = tuple[Tensor, Tensor]
"""Where each row stands: its origin, and how many digits its last number has so far. Shapes: (B,), (B,)."""


def shared_positions(
    tokens: Tensor, digits: tuple[int, int], origins: int | None = None, before: Place | None = None
) -> tuple[Tensor, Place]:
    """Positions that are counted anew in every number of a row, and where each row stands after its last token.

        b  2  1  +  4  3  =  b  6  4            numbers backwards, ones first; b: the origin is 1
        1  2  3  4  2  3  4  1  2  3

    The n-th digit of a number stands at origin + n, and the sign behind its last digit one further: it says where
    numbers end. So digits of the same worth stand at the same position, and find each other in numbers of any length.
    From the token `origins` on, each token is an origin, the next one 1 further: it stands there itself, and all that
    comes behind it is counted from there. By another origin for each row, positions that only long numbers would reach
    are trained in short ones. Without one it is 0. `digits` are the first and the last token that is a digit. `before`
    is what an earlier call said of tokens that these go on from.

    Shapes: tokens (B, T) int64 -> (B, T) int64.
    Source: Cho et al. 2024 (arXiv:2405.20671), section 3, position coupling, with a random start; McLeish et al. 2024
    (arXiv:2405.17399), section 3.1, where they are counted from the tokens. The sign at the end is ours.
    """
    nothing = tokens.new_zeros(len(tokens))
    origin, counted = (nothing, nothing) if before is None else before
    columns = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    other = (tokens < digits[0]) | (tokens > digits[1])
    ends = torch.where(other, columns, -1).cummax(1).values  # the last token that is no digit
    last = torch.cat((ends.new_full((len(ends), 1), -1), ends[:, :-1]), dim=1)  # and before this one
    place = columns - last + torch.where(last < 0, counted[:, None], 0)
    origin = origin[:, None].expand_as(tokens)
    if origins is not None:
        is_origin = tokens >= origins
        said = torch.where(is_origin, columns, -1).cummax(1).values
        origin = torch.where(said < 0, origin, tokens.gather(1, said.clamp(min=0)) - origins)
        place = place.masked_fill(is_origin, 0)
    return origin + place, (origin[:, -1], place.masked_fill(other, 0)[:, -1])


def sinusoidal(positions: Tensor, width: int, base: float = 10_000.0) -> Tensor:
    """Fixed waves: the sine and cosine of one pair share a frequency, so that a shift is a rotation of the pair.

        wave[p, 2i]     = sin(p / base^(2i / width))
        wave[p, 2i + 1] = cos(p / base^(2i / width))

    Shapes: positions (...) -> (..., width), float32. Raises ConfigError for an odd width.
    Source: Vaswani et al. 2017, section 3.5 (arXiv:1706.03762).
    """
    if width % 2:
        raise ConfigError(f"sinusoidal positions: width = {width} must be even, for pairs of sine and cosine.")
    angles = positions[..., None].float() * frequencies(width, base, positions.device)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def frequencies(features: int, base: float, device: torch.device | None = None) -> Tensor:
    """One frequency for each pair of features: base^(-2i / features), from 1 down to nearly 1 / base.
    Shapes: -> (features / 2,), float32, in radians for each position."""
    return base ** (-torch.arange(0, features, 2, device=device, dtype=torch.float32) / features)


class Rotary(Module):
    """Turn each pair of features by an angle in proportion to the position, so that the product of a query and a
    key depends only on how far apart they stand.

        [x1, x2] -> [x1 cos(a) - x2 sin(a), x1 sin(a) + x2 cos(a)]        a = position * base^(-2i / D)

    The pairs are feature i and i + D/2. Source: Su et al. 2021, equation 34 (arXiv:2104.09864); the pairing of
    halves is that of GPT-NeoX, so that weights go to and from today's libraries without a permutation.

    `rotary(positions)` gives the table once for all layers; `turn(x, table)` uses it.
    Raises ConfigError for an odd number of features.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, features: int, context: int, base: float = 10_000.0) -> None:
        super().__init__()
        if features % 2:
            raise ConfigError(f"rotary positions: a head of {features} features must be even, for pairs.")
        self.features, self.context, self.base = features, context, base
        angles = torch.arange(context, dtype=torch.float32)[:, None] * frequencies(features, base)
        # Not saved: they follow from the config.
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, positions: Tensor | slice) -> tuple[Tensor, Tensor]:
        """What `turn` takes: cosine and sine for every feature, the sine of the first half negative.
        Shapes: (T,) or (B, T), or a slice of T positions -> twice (T, 1, D) or (B, T, 1, D)."""
        cosine, sine = self.cosine[positions].unsqueeze(-2), self.sine[positions].unsqueeze(-2)
        return torch.cat((cosine, cosine), dim=-1), torch.cat((-sine, sine), dim=-1)


def turn(x: Tensor, table: tuple[Tensor, Tensor], fused: bool = True) -> Tensor:
    """Apply a table of `Rotary`. Shapes: x (B, T, H, D) -> (B, T, H, D)."""
    cosine, sine = (part.to(x.dtype) for part in table)
    first, second = x.chunk(2, dim=-1)
    if fused:
        # The two halves in one pass each way, which counts where they are small.
        return torch.addcmul(torch.cat((second, first), dim=-1) * sine, x, cosine)
    cosine, sine = cosine.chunk(2, dim=-1)[1], sine.chunk(2, dim=-1)[1]
    # A pair is a complex number; turning it is a product with e^(i a). torch has no complex bfloat16.
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    turned = torch.complex(first.to(wide), second.to(wide)) * torch.complex(cosine.to(wide), sine.to(wide))
    return torch.cat((turned.real, turned.imag), dim=-1).to(x.dtype)
