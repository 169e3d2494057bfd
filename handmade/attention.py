"""Attention: every position takes a weighted mean of what it may see, and the weights are worked out from the data.

The idea, four ways with one result (`by_loops`, `by_triangle`, `by_softmax`, `attend`), then the part that models
are made of (`Attention`), and `record()` to look inside. Its key/value cache is in `cache.py`.

B rows, T tokens that ask, S tokens that are asked, H heads, D features of a head, C width.
Masks are boolean, True = may attend. A row with nothing to attend to yields zeros, not NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from handmade.cache import KEPT, LayerCache, join_layers
from handmade.errors import ConfigError
from handmade.layers import Linear, RMSNorm
from handmade.layers.kernels import Module
from handmade.layers.linear import require_sizes
from handmade.positions import turn

# ---------------------------------------------------------------------------------------------------------------
# The same result four ways, for reading. `scores` (T, T) say how much position t wants to know of position s;
# all zeros give the plain mean of the past. `values` (T, C) are what is mixed.


def by_loops(scores: Tensor, values: Tensor) -> Tensor:
    """1. Say it: the output at t is the mean of values 0..t, each weighted by exp(score).

        y[t] = sum over s <= t of  exp(scores[t, s]) * values[s]  /  sum over s <= t of exp(scores[t, s])

    Shapes: (T, T), (T, C) -> (T, C). Slow; nothing is hidden.
    """
    outputs = []
    for t in range(len(values)):
        total, mixture = torch.zeros_like(scores[0, 0]), torch.zeros_like(values[0])
        for s in range(t + 1):
            weight = scores[t, s].exp()
            total = total + weight
            mixture = mixture + weight * values[s]
        outputs.append(mixture / total)
    return torch.stack(outputs)


def by_triangle(scores: Tensor, values: Tensor) -> Tensor:
    """2. The inner loop is a product with a lower triangular matrix whose rows sum to 1: no future, a mean.
    Shapes: (T, T), (T, C) -> (T, C)."""
    weights = scores.exp().tril()
    return weights / weights.sum(-1, keepdim=True) @ values


def by_softmax(scores: Tensor, values: Tensor) -> Tensor:
    """3. exp over its sum is a softmax; a score of minus infinity is a weight of 0, so the triangle is a mask.
    Shapes: (T, T), (T, C) -> (T, C). Unlike the first two it cannot overflow: softmax takes the maximum out."""
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1) @ values


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """4. The scores come from the data: a query (what t looks for) times a key (what s offers).

        attention(Q, K, V) = softmax(Q K^T / sqrt(D)) V

    Divided by sqrt(D), D the features of a *head*: a sum of D products of unit variance has variance D, and a
    softmax of large scores puts all weight on one position and passes no gradient to the others. `scale` is what
    scores are multiplied by instead.

    Shapes: queries (..., T, D), keys (..., S, D), values (..., S, E), mask broadcast to (..., T, S) -> (..., T, E).
    Source: Vaswani et al. 2017, equation 1 (arXiv:1706.03762).
    """
    weights = attention_weights(queries, keys, mask, causal, scale)
    if dropout:
        weights = F.dropout(weights, dropout)
    return weights @ values


def attend_by_products(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """`attend`, as two batched products; what may not be seen is added in the first one, as minus infinity.

    For training in bfloat16 on a CPU, where the way back through PyTorch's fused kernel is slow: forward and
    backward took it five times as long at a context of 64, twice at 256. It keeps the T x S weights, which the
    kernel does not, and rounds the scores to bfloat16.

    Shapes: queries (B, H, T, D), keys and values (B, H, S, D), mask broadcast to (B, H, T, S) -> (B, H, T, D).
    """
    rows, heads, asking, features = queries.shape
    scale = features**-0.5 if scale is None else scale
    blind = None
    if causal and mask is None:
        shut = torch.full((asking, keys.shape[2]), -math.inf, dtype=queries.dtype, device=queries.device)
        shut = shut.triu(1 + keys.shape[2] - asking)
    elif mask is not None:
        mask = mask & causal_mask(asking, keys.shape[2], mask.device) if causal else mask
        if mask.shape[:-2].numel() > 1:  # not one for all
            mask = mask.expand(rows, heads, *mask.shape[-2:]).flatten(0, 1)
        else:
            mask = mask.view(mask.shape[-2:])
        seeing = mask.any(-1, keepdim=True)
        # Who sees nothing is left to see all, because a softmax of nothing is 0 / 0; its weights are zero below.
        shut = torch.zeros_like(mask, dtype=queries.dtype).masked_fill_(seeing & ~mask, -math.inf)
        if torch.compiler.is_compiling() or not seeing.all():
            blind = ~seeing
    else:
        shut = queries.new_zeros(1)
    queries, keys = queries.flatten(0, 1), keys.flatten(0, 1)  # (B * H, T, D)
    weights = torch.baddbmm(shut, queries, keys.transpose(1, 2), alpha=scale).softmax(-1)
    if blind is not None:
        weights = weights.masked_fill(blind, 0.0)
    if dropout:
        weights = F.dropout(weights, dropout)
    return torch.bmm(weights, values.flatten(0, 1)).unflatten(0, (rows, heads))


PIECE = 128  # queries that meet their keys at once, at least; four pieces at most


def attend_in_pieces(
    queries: Tensor, keys: Tensor, values: Tensor, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """A square, causal `attend_by_products`, a piece of the queries at a time, each with the keys up to its end: half
    of the products of a long row are with the future, whose weights are 0, and most of those are left out.
    Shapes: (B, H, T, D) each -> (B, H, T, D)."""
    size = max(PIECE, math.ceil(queries.shape[2] / 4))
    parts, end = [], 0
    for asking in queries.split(size, dim=2):
        end += asking.shape[2]
        parts.append(attend_by_products(asking, keys[:, :, :end], values[:, :, :end], None, True, dropout, scale))
    return torch.cat(parts, dim=2)


def attend_quickly(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """`attend` by what is fastest here: PyTorch's fused kernel, or two products. A `causal` one is square: the
    kernel's own triangle is aligned to the upper left. Shapes: as `attend_by_products`."""
    learning = torch.is_grad_enabled() and values.dtype == torch.bfloat16
    if learning and values.device.type == "cpu":
        if causal and mask is None and queries.shape[2] > PIECE:
            return attend_in_pieces(queries, keys, values, dropout, scale)
        return attend_by_products(queries, keys, values, mask, causal, dropout, scale)
    return F.scaled_dot_product_attention(queries, keys, values, mask, dropout, is_causal=causal, scale=scale)


def attention_weights(
    queries: Tensor, keys: Tensor, mask: Tensor | None = None, causal: bool = False, scale: float | None = None
) -> Tensor:
    """softmax(Q K^T / sqrt(D)) with the mask; with a `scale`, softmax(scale Q K^T).
    Shapes: (..., T, D), (..., S, D) -> (..., T, S)."""
    scores = queries @ keys.transpose(-2, -1)
    scores = scores / math.sqrt(queries.shape[-1]) if scale is None else scores * scale
    if causal:
        triangle = causal_mask(queries.shape[-2], keys.shape[-2], queries.device)
        mask = triangle if mask is None else mask & triangle
    if mask is None:
        return scores.softmax(-1)
    # The most negative number and not -inf: a row with nothing to attend to must not become 0 / 0. Its weights
    # are zero after the second line; in every other row a masked weight is exactly 0 already.
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).masked_fill(~mask, 0.0)


def mean_weights(asking: int, asked: int, mask: Tensor | None, like: Tensor) -> Tensor:
    """The weights of a plain mean of the past: the lower triangle (and the mask), each row divided by its sum.
    Shapes: -> (T, S), with a mask what that broadcasts to."""
    allowed = causal_mask(asking, asked, like.device)
    # Not in bfloat16: it counts to 256.
    allowed = (allowed if mask is None else allowed & mask).to(torch.promote_types(like.dtype, torch.float32))
    return (allowed / allowed.sum(-1, keepdim=True).clamp(min=1)).to(like.dtype)


def running_mean(values: Tensor, asking: int, mask: Tensor | None = None) -> Tensor:
    """`mean_weights` times the values without the weights: a running sum, divided by how many are in it. For a mask
    that hides the same columns from all that ask, as padding's does.

    Shapes: values (..., S, C), mask broadcast to (..., 1, S) -> (..., T, C), the last T = `asking` positions.
    """
    asked = values.shape[-2]
    if mask is None:
        counts = torch.arange(1, asked + 1, device=values.device)[:, None]
    else:
        mask = mask.transpose(-2, -1)  # (..., S, 1)
        values, counts = values.masked_fill(~mask, 0.0), mask.cumsum(-2).clamp(min=1)
    kind = torch.promote_types(values.dtype, torch.float32)
    # A single token that asks sees all: one sum, and none of the sums on the way.
    if asking == 1:
        sums = values.sum(-2, keepdim=True, dtype=kind)
    else:
        sums = values.cumsum(-2, dtype=kind)[..., asked - asking :, :]
    return (sums / counts[..., asked - asking :, :]).to(values.dtype)


def causal_mask(asking: int, asked: int, device: torch.device | None = None) -> Tensor:
    """True where position t may see position s. Under a cache the last query sees the last key: the triangle is
    aligned to the lower right. Shapes: -> (T, S)."""
    return torch.ones(asking, asked, dtype=torch.bool, device=device).tril(asked - asking)


def padding_mask(asked: int, starts: Tensor | None) -> Tensor | None:
    """True for the columns from `starts` (B,) on: what stands before is left padding. None where nothing is padded.
    Shapes: -> (B, 1, 1, S); the ones stand for the heads and the tokens that ask."""
    if starts is None:
        return None
    return (torch.arange(asked, device=starts.device) >= starts[:, None])[:, None, None]


# ---------------------------------------------------------------------------------------------------------------
# Looking inside

_recorders: list[list[Tensor]] = []


@contextmanager
def record() -> Iterator[list[Tensor]]:
    """The weights of every `Attention` and `MeanOfPast` that runs inside, fused or not, in the order they ran.
    Recorders may be nested; each gets all that runs inside it.

        with record() as maps:
            model(tokens)
        maps[layer]                # (B, H, T, S); detached, without dropout; each row sums to 1, or to 0
                                   # where there is nothing to attend to

    A model inside `torch.compile` is not seen: run the raw model.
    """
    maps: list[Tensor] = []
    _recorders.append(maps)
    try:
        yield maps
    finally:
        # By identity: `remove` compares, and two recorders that have heard the same are equal.
        _recorders[:] = [other for other in _recorders if other is not maps]


def recording() -> bool:
    """Whether somebody listens: only then need the weights be worked out, where a kernel does not give them."""
    return bool(_recorders) and not torch.compiler.is_compiling()


def hear(weights: Tensor) -> None:
    """Give the weights of an attention to all who listen. Shapes: (B, H, T, S)."""
    weights = weights.detach()
    for maps in _recorders:
        maps.append(weights)


# ---------------------------------------------------------------------------------------------------------------
# The part that models are made of


class MeanOfPast(Module):
    """What comes before attention: every position takes the plain mean of its past, whatever the tokens are.

        y[t] = W_output  mean over s <= t of  (W_value x[s])

    It is a causal `Attention` whose scores are all zero: there are no queries and keys, so nothing decides where to
    look. The mean is a product with a lower triangle whose rows sum to 1 (`mean_weights`), or a running sum
    (`running_mean`). Stands where `Attention` may stand and takes what that takes, as one head. Its cache has keys
    of 0 features.

    Shapes: x (B, T, C), mask broadcast to (B, 1, T, S) -> (B, T, C).
    Raises ConfigError for a size or a number out of range, and when it is given a `memory` or a `rotation`.
    """

    def __init__(self, width: int, *, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        require_sizes("mean of the past", width=width)
        if not 0 <= dropout < 1:
            raise ConfigError(f"mean of the past: dropout = {dropout!r}: must be from 0 up to, not including, 1.")
        self.width, self.dropout = width, dropout
        self.value = Linear(width, width, bias)
        self.output = Linear(width, width, bias)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
        length: int = 0,
    ) -> Tensor:
        """`cache` holds `length` positions already, which are part of the mean."""
        if memory is not None or rotation is not None:
            raise ConfigError("mean of the past: takes no memory and no rotation. It has no queries and keys.")
        values = self.value(x)[:, None]  # (B, 1, T, C): one head
        if cache is not None:
            _, values = cache.extend(length, values[..., :0], values)
        asking, asked = x.shape[1], values.shape[2]
        dropout = self.dropout if self.training else 0.0
        if recording():
            hear(mean_weights(asking, asked, mask, values).expand(len(x), 1, asking, asked))
        alike = mask is None or (mask.dim() > 1 and mask.shape[-2] == 1)  # for all that ask
        if self.fused and alike and not dropout:
            mixed = running_mean(values, asking, mask)
        else:
            weights = mean_weights(asking, asked, mask, values).expand(len(x), 1, asking, asked)
            mixed = (F.dropout(weights, dropout) if dropout else weights) @ values
        return self.output(mixed[:, 0])


class Attention(Module):
    """Several heads that attend side by side, each in its own features.

        head_h = attention(x Wq_h, m Wk_h, m Wv_h)          m = x (self-attention) or `memory` (cross-attention)
        y      = concat(head_1 .. head_H) Wo

    With fewer `key_value_heads` than heads, each key/value head serves a group of query heads (Ainslie et al.
    2023, arXiv:2305.13245). With `query_key_norm`, queries and keys are brought to length sqrt(D) before they
    meet, which bounds the scores (Henry et al. 2020, arXiv:2010.04245). Scores are divided by sqrt(D), or, with a
    `scale`, multiplied by that.

    A `causal` one never sees the future, whatever else the mask allows.

    Shapes: x (B, T, C), memory (B, S, C), mask broadcast to (B, H, T, S) -> (B, T, C).
    Source: Vaswani et al. 2017, section 3.2.2 (arXiv:1706.03762).
    Raises ConfigError when the heads do not divide the width, or the key/value heads the heads, and for a number
    out of range.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_value_heads: int | None = None,
        causal: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        query_key_norm: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        key_value_heads = heads if key_value_heads is None else key_value_heads
        require_sizes("attention", width=width, heads=heads, key_value_heads=key_value_heads)
        if not 0 <= dropout < 1:
            raise ConfigError(f"attention: dropout = {dropout!r}: must be from 0 up to, not including, 1.")
        if scale is not None and not 0 < scale < math.inf:
            raise ConfigError(f"attention: scale = {scale!r}: must be a number above 0, or None.")
        if width % heads:
            raise ConfigError(f"attention: {heads} heads do not divide the width {width}.")
        if heads % key_value_heads:
            raise ConfigError(f"attention: {key_value_heads} key/value heads do not divide {heads} heads.")
        self.width, self.heads, self.key_value_heads = width, heads, key_value_heads
        self.features = width // heads
        self.causal, self.dropout, self.scale = causal, dropout, scale
        self.query = Linear(width, width, bias)
        self.key = Linear(width, key_value_heads * self.features, bias)
        self.value = Linear(width, key_value_heads * self.features, bias)
        self.output = Linear(width, width, bias)
        self.norm = RMSNorm(self.features, elementwise_affine=False) if query_key_norm else None

    def forward(
        self,
        x: Tensor,
        memory: Tensor | tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
        length: int = 0,
    ) -> Tensor:
        """`memory`: what is asked instead of x, or what `remember` made of it. `rotation`: the table of
        `positions.Rotary` for x. `cache` holds `length` positions already, which the new queries see too."""
        if memory is None and self.fused:
            queries, keys, values = self.project_at_once(x, rotation, cache)
            keys, values = keys.transpose(1, 2), values.transpose(1, 2)  # (B, H, T, D)
        else:
            queries = self.query(x).unflatten(-1, (self.heads, self.features))  # (B, T, H, D)
            if self.norm is not None:
                queries = self.norm(queries)
            if memory is not None:
                if rotation is not None:
                    raise ConfigError("attention: takes no rotation with a memory, whose positions are its own.")
                keys, values = memory if isinstance(memory, tuple) else self.keys_and_values(memory)
            else:
                keys, values = self.keys_and_values(x, rotation)
                if rotation is not None:
                    queries = turn(queries, rotation, self.fused)
        queries = queries.transpose(1, 2)
        # Under autocast a norm in float32 may stand between projections in bfloat16.
        queries, keys = queries.to(values.dtype), keys.to(values.dtype)
        if cache is not None:
            keys, values = cache.extend(length, keys, values)
        if self.key_value_heads != self.heads:
            group = self.heads // self.key_value_heads
            keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
        asking, asked = queries.shape[2], keys.shape[2]
        # A single query is the last: it sees all. A square triangle is the kernel's own; any other is aligned to
        # the lower right here, because the kernel's is to the upper left.
        causal = self.causal and asking > 1
        if causal and (mask is not None or asking != asked):
            triangle = causal_mask(asking, asked, x.device)
            mask, causal = triangle if mask is None else mask & triangle, False
        dropout = self.dropout if self.training else 0.0
        if recording():
            hear(attention_weights(queries, keys, mask, causal, self.scale))
        way = attend_quickly if self.fused else attend
        mixed = way(queries, keys, values, mask, causal, dropout, self.scale)
        return self.output(mixed.transpose(1, 2).flatten(-2))  # (B, T, H, D) -> (B, T, C)

    def project_at_once(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of self-attention, from one product with the three matrices in one; queries and keys
        are normed and turned together: the same numbers in a third of the calls. For a single token putting the
        matrices together would cost more than the products: small ones are kept in the cache, and what large ones make
        is put together.

        Shapes: (B, T, C) -> (B, T, H, D), and (B, T, key/value heads, D) twice.
        """
        layers = [self.query, self.key, self.value]
        if x.shape[1] > 1:
            made = F.linear(x, *join_layers(layers))
        elif (
            cache is not None
            and self.width**2 <= KEPT
            and not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        ):
            made = F.linear(x, *cache.joined(layers))
        else:
            made = torch.cat([layer(x) for layer in layers], dim=-1)
        heads = made.unflatten(-1, (-1, self.features))
        if self.norm is None and rotation is None:
            return heads.split((self.heads, self.key_value_heads, self.key_value_heads), dim=2)
        turning, values = heads.split((self.heads + self.key_value_heads, self.key_value_heads), dim=2)
        if self.norm is not None:
            turning = self.norm(turning)
        if rotation is not None:
            turning = turn(turning, rotation, self.fused)
        queries, keys = turning.split((self.heads, self.key_value_heads), dim=2)
        return queries, keys, values

    def keys_and_values(self, source: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Of what is asked; by one product, except for a single token. Shapes: (B, S, C) -> (B, H, S, D) twice."""
        if self.fused and source.shape[1] > 1:
            keys, values = F.linear(source, *join_layers([self.key, self.value])).chunk(2, dim=-1)
        else:
            keys, values = self.key(source), self.value(source)
        keys = keys.unflatten(-1, (self.key_value_heads, self.features))  # (B, S, H, D)
        values = values.unflatten(-1, (self.key_value_heads, self.features))
        if self.norm is not None:
            keys = self.norm(keys)
        if rotation is not None:
            keys = turn(keys, rotation, self.fused)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def remember(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of a memory that will be asked many times. Shapes: (B, S, C) -> (B, H, S, D) twice."""
        keys, values = self.keys_and_values(memory)
        return keys.contiguous(), values.contiguous()
