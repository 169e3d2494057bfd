"""Problems as rows: what goes into a model, what should come out, and what of it is scored.

N problems, B rows of a batch, L tokens of the longest row, T = L - 1 of its inputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from handmade.tasks.arithmetic.strings import END_ID, HOLE, constant, joined, packed
from handmade.tasks.base import Batch

SCORED_AT_ONCE = 16_384  # tokens of one evaluation batch
IGNORED = -100  # a target that is not scored


class Rows:
    """Problems as what goes in and what should come out.

    inputs (N, T) uint8 and targets (N, T) int8, -100 where nothing is scored; lengths (N,), of whole rows.
    Small types: a batch is made int64 when it is taken.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, lengths: Tensor) -> None:
        self.inputs, self.targets, self.lengths = inputs, targets, lengths

    @classmethod
    def of(cls, questions: np.ndarray, solutions: np.ndarray) -> Rows:
        """Question, answer, end. Shapes: (N, L1) and (N, L2) tokens, with holes."""
        asked = (questions != HOLE).sum(1)
        whole, lengths = packed(joined([questions, solutions, constant(END_ID, len(questions))]))
        inputs, targets = whole[:, :-1], whole[:, 1:].astype(np.int8)
        places = np.arange(inputs.shape[1])
        scored = (places >= asked[:, None] - 1) & (places < lengths[:, None] - 1)
        targets[~scored] = IGNORED
        return cls(torch.from_numpy(inputs.copy()), torch.from_numpy(targets), torch.from_numpy(lengths))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, some: slice) -> Rows:
        return Rows(self.inputs[some], self.targets[some], self.lengths[some])

    def batch(self, places: Tensor, trim: bool = False) -> Batch:
        """Some rows, with `trim` as wide as the longest of them. Shapes: places (B,) -> (B, T) each, int64."""
        width = int(self.lengths[places].max()) - 1 if trim else self.inputs.shape[1]
        return Batch(self.inputs[places, :width].long(), self.targets[places, :width].long())

    def walk(self) -> Iterator[Batch]:
        """All rows, once."""
        at_once = max(1, SCORED_AT_ONCE // max(1, self.inputs.shape[1]))
        for start in range(0, len(self), at_once):
            some = self[start : start + at_once]
            yield Batch(some.inputs.long(), some.targets.long())
