"""Problems as rows of tokens, many at once: numpy in columns, no loop over problems.

A row is laid out in fixed columns, some of which may stay empty (`HOLE`): the leading zeros of a number that is not
padded, the sign of one that is not negative. `packed` then moves the holes to the end.

    columns   1 2 + _ 7 = _ 1 9            12+7=19
    packed    1 2 + 7 = 1 9 _ _

N problems, L columns. Tokens are ids of the task's vocabulary, in uint8.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PAD, END = " ", "\n"
"""Padding, which is never scored and never attended to; and the end of an answer: a problem is a line."""
PAD_ID, END_ID = 0, 1
DIGITS = "0123456789"
HOLE = 255  # an empty column


def digit_columns(values: np.ndarray, width: int, first_digit: int, least: int | np.ndarray) -> np.ndarray:
    """Numbers in decimal, the highest digit first, in `width` columns. A number of fewer digits than `least` has zeros
    before it, up to so many; what is left before those are holes. With `least` = 1 a number has no zero that it does
    not need, and with `width` every number has as many digits.

    Shapes: values (N,) whole numbers from 0, least a number from 1 or (N,) -> (N, width) tokens; `first_digit` is the
    token of 0.
    """
    powers = 10 ** np.arange(width - 1, -1, -1, dtype=np.int64)
    digits = values[:, None] // powers % 10
    columns = (digits + first_digit).astype(np.uint8)
    places = np.arange(width, 0, -1)
    columns[(values[:, None] < powers) & (places > np.asarray(least)[..., None])] = HOLE
    return columns


def constant(token: int, rows: int) -> np.ndarray:
    """A column of the same token. Shapes: -> (rows, 1)."""
    return np.full((rows, 1), token, dtype=np.uint8)


def packed(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows without their holes, filled with padding at the end; and how long each is. Trailing columns that are
    padding in every row are cut off.

    Shapes: (N, L) -> (N, longest), (N,).
    """
    holes = columns == HOLE
    lengths = columns.shape[1] - holes.sum(1)
    order = np.argsort(holes, axis=1, kind="stable")  # holes last, all else in its order
    rows = np.take_along_axis(columns, order, axis=1)
    rows[rows == HOLE] = PAD_ID
    return rows[:, : int(lengths.max(initial=0))], lengths


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Parts side by side. Shapes: (N, L1), (N, L2), ... -> (N, L1 + L2 + ...)."""
    return np.concatenate(list(parts), axis=1)


def stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Parts one under the other, shorter ones with holes at the end. Shapes: (N1, L1), (N2, L2) -> (N1 + N2, L)."""
    width = max((part.shape[1] for part in parts), default=0)
    wide = [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=HOLE) for part in parts]
    return np.concatenate(wide) if wide else np.empty((0, 0), dtype=np.uint8)


def digit_count(values: np.ndarray) -> np.ndarray:
    """How many digits a number has; 1 for 0. Shapes: (N,) -> (N,)."""
    return 1 + (values[:, None] >= 10 ** np.arange(1, 19, dtype=np.int64)).sum(1)
