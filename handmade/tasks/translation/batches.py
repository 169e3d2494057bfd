"""Pairs of sentences as batches: neighbours in length together, so that little of a batch is padding.

B pairs, S source tokens, T target tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from handmade.pair_tokenizer import PAD, START
from handmade.tasks.base import moved

NEIGHBOURS = 4  # batches of neighbours in length that a batch is drawn from: more mixes better and pads more


class PairBatch(NamedTuple):
    """`source` (B, S) int64, padded behind with PAD; `inputs` (B, T) int64, START and the target's tokens, likewise;
    `targets` (B, T) int64, what should come next, END last; behind it -100, which is not scored."""

    source: Tensor
    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> PairBatch:
        """On `device`; to a GPU without waiting for it."""
        return PairBatch(*(moved(part, device) for part in self))

    @property
    def scored(self) -> int:
        """Targets that count."""
        return int((self.targets != -100).sum())

    @property
    def tokens(self) -> int:
        """Tokens that the model reads on both sides, padding and all."""
        return self.source.numel() + self.inputs.numel()

    @property
    def real(self) -> int:
        """Tokens of these that are not padding."""
        return int((self.source != PAD).sum()) + self.scored


class PairRows:
    """Pairs as token ids, in the order of their lengths.

    `sources` and `targets` end with END and have no padding. Shapes: N of each, of any lengths above 0.
    """

    def __init__(self, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> None:
        if len(sources) != len(targets) or not len(sources):
            raise ValueError(f"{len(sources)} sources and {len(targets)} targets: must be as many, and at least one.")
        lengths = np.array([[len(target), len(source)] for source, target in zip(sources, targets, strict=True)])
        self.order = np.lexsort((lengths[:, 1], lengths[:, 0]))  # by target, of one length by source
        self.target_lengths, self.source_lengths = torch.from_numpy(lengths[self.order]).unbind(1)
        self.sources = _in_rows([sources[place] for place in self.order])
        self.targets = _in_rows([targets[place] for place in self.order])

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, places: Tensor) -> PairBatch:
        """The pairs at these places of the order, padded to the longest of them. Shapes: places (B,) int64."""
        source_lengths, target_lengths = self.source_lengths[places], self.target_lengths[places]
        source = self.sources[places, : int(source_lengths.max())].long()
        target = self.targets[places, : int(target_lengths.max())].long()
        behind = torch.arange(target.shape[1]) >= target_lengths[:, None]
        inputs = torch.cat([torch.full_like(target[:, :1], START), target[:, :-1]], dim=1).masked_fill(behind, PAD)
        return PairBatch(source, inputs, target.masked_fill(behind, -100))

    def draw(self, rows: int, generator: torch.Generator) -> PairBatch:
        """`rows` pairs that are neighbours in length: a place anywhere, then `rows` of those around it.

        Every pair is as likely as every other: what lies beyond an end counts from that end backwards.
        """
        rows = min(rows, len(self))
        around = min(NEIGHBOURS * rows, len(self))
        start = int(torch.randint(-(around // 2), len(self) - around // 2, (), generator=generator))
        places = start + torch.randperm(around, generator=generator)[:rows]
        places = torch.where(places < 0, -1 - places, places)
        places = torch.where(places >= len(self), 2 * len(self) - 1 - places, places)
        return self.take(places)

    def walk(self, rows: int) -> Iterator[PairBatch]:
        """All pairs once, `rows` at a time, in the order of their lengths."""
        return (self.take(places) for places in torch.arange(len(self)).split(rows))


def _in_rows(sentences: list[np.ndarray]) -> Tensor:
    """Sentences of any lengths in one table, PAD behind them. Shapes: N -> (N, longest) int32."""
    table = np.full((len(sentences), max(map(len, sentences))), PAD, dtype=np.int32)
    for row, sentence in zip(table, sentences, strict=True):
        row[: len(sentence)] = sentence
    return torch.from_numpy(table)


__all__ = ["PairBatch", "PairRows"]
