"""The key/value cache: what was computed of the past is kept, so that a new token asks it without computing it again.

B rows, T tokens that are new, H key/value heads, D features of a head, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from handmade.errors import ConfigError
from handmade.layers import Linear
from handmade.positions import Place

KEPT = 2**19  # numbers of a matrix of which a cache keeps a copy, joined with others: of larger ones it would be much


class LayerCache:
    """Keys and values of one layer, so that a new token asks the past without computing it again.
    Shapes: (rows, key/value heads, capacity, D) each; keys (.., `key_features`) where they have another size."""

    def __init__(
        self, rows: int, heads: int, capacity: int, features: int, like: Tensor, key_features: int | None = None
    ) -> None:
        self.keys = like.new_zeros(rows, heads, capacity, features if key_features is None else key_features)
        self.values = like.new_zeros(rows, heads, capacity, features)
        self._joined: tuple[list[tuple[int, int]], Tensor, Tensor | None] | None = None

    def joined(self, layers: list[Linear]) -> tuple[Tensor, Tensor | None]:
        """`join_layers`, kept for the next token, column by column in memory, where a single row meets it faster. Made
        anew when a weight has been changed since, or is another one."""
        parts = [part for layer in layers for part in (layer.weight, layer.bias) if part is not None]
        now = [(part.data_ptr(), 0 if part.is_inference() else part._version) for part in parts]
        if self._joined is None or self._joined[0] != now:
            weight, bias = join_layers(layers)
            self._joined = (now, weight.t().contiguous().t(), bias)
        return self._joined[1:]

    def extend(self, length: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, D) behind the `length` that are there; return everything so far (B, H, length + T, D).
        Raises ConfigError for more positions than the capacity, or another number of rows."""
        end = length + keys.shape[2]
        if len(keys) != len(self.keys):  # one row would be copied to all in silence
            raise ConfigError(f"key/value cache: made for {len(self.keys)} rows, not {len(keys)}.")
        if end > self.keys.shape[2]:
            raise ConfigError(f"key/value cache: position {end} does not fit its capacity of {self.keys.shape[2]}.")
        if keys.dtype != self.keys.dtype:  # under autocast the projections decide
            self.keys, self.values = self.keys.to(keys.dtype), self.values.to(keys.dtype)
        self.keys[:, :, length:end] = keys
        self.values[:, :, length:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, rows: Tensor, length: int) -> None:
        """Row i becomes what row `rows[i]` was; the `length` positions that are in are copied, the room behind them
        is not. Shapes: rows (R,) int64."""
        self.keys, self.values = (_reordered(part, rows, length) for part in (self.keys, self.values))


def _reordered(part: Tensor, rows: Tensor, length: int) -> Tensor:
    """Shapes: (rows before, H, capacity, D) -> (R, H, capacity, D), in the memory of before where there is enough."""
    chosen = part[:, :, :length].index_select(0, rows)
    room = part[: len(rows)] if len(rows) <= len(part) else part.new_zeros(len(rows), *part.shape[1:])
    room[:, :, :length] = chosen
    return room


class KeyValueCache:
    """A `LayerCache` for each layer, how many positions they hold (`length`), and the newest token of each row
    (`last` (rows,), None while there is none); with shared positions, where each row stands (`place`)."""

    def __init__(
        self,
        layers: int,
        rows: int,
        heads: int,
        capacity: int,
        features: int,
        like: Tensor,
        key_features: int | None = None,
    ) -> None:
        self.layers = [LayerCache(rows, heads, capacity, features, like, key_features) for _ in range(layers)]
        self.capacity = capacity
        self.length = 0
        self.last: Tensor | None = None
        self.place: Place | None = None

    def select(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was: a beam goes on from another one. Shapes: rows (R,) int64."""
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        if self.last is not None:
            self.last = self.last[rows]
        if self.place is not None:
            self.place = (self.place[0][rows], self.place[1][rows])

    def clear(self) -> None:
        """Forget everything; the memory stays."""
        self.length, self.last, self.place = 0, None, None


def join_layers(layers: list[Linear]) -> tuple[Tensor, Tensor | None]:
    """The weights of several layers that are given the same, and their biases, in one: what they make, side by side,
    is then one product. Shapes: -> (sum of their features, C), (sum of their features,)."""
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    return torch.cat([layer.weight for layer in layers]), torch.cat(biases) if biases else None
