"""Which problems there are, and on which side of the split each stands.

The split is by problem and comes before anything else: a problem is on one side with all that is made of it, every
beginning of its row, whatever way it is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from handmade.config import Config
from handmade.errors import ConfigError

MOST = 10_000_000  # problems of a set: more would not fit the memory of a small machine
DRAWS = 200  # times that problems are drawn before it is said that there are no more


@dataclass(frozen=True)
class ProblemConfig(Config):
    """What every task that makes its own problems takes."""

    train_problems: int | None = None
    """Problems to train on. None: a part of all there are, as the task sees fit."""
    test_problems: int | None = None
    """Problems to test with, never trained on. None: all that are left, at most 50,000."""
    seed: int = 0
    """Which problems are on which side. The order of training and the first weights follow `train.seed`."""

    def check(self) -> None:
        for field in ("train_problems", "test_problems"):
            value = getattr(self, field)
            self.require(field, value is None or 1 <= value <= MOST, f"from 1 to {MOST:,}, or none")
        self.require("seed", 0 <= self.seed < 2**63, "from 0 to 2^63 - 1")


@dataclass(frozen=True)
class Split:
    """Two sets of problems, a row each, with none in common."""

    train: np.ndarray
    test: np.ndarray


def take(
    problems: np.ndarray, kin: np.ndarray | None, train: int, test: int, random: np.random.Generator, most: str
) -> Split:
    """`train` problems and `test` others, drawn at random. Problems of one `kin` are all on one side.

    Shapes: problems (N, columns), distinct; kin (N, k), equal rows for problems that belong together, or None where
    each stands by itself.
    Raises ConfigError where there are too few; `most` says how many there are, in words.
    """
    if kin is None:
        order, border = random.permutation(len(problems)), train
    else:
        _, family = np.unique(keys(kin), return_inverse=True)
        families = int(family.max(initial=-1)) + 1
        place = random.permutation(families)[family]  # where each family comes in the draw
        order = np.argsort(place, kind="stable")
        ends = np.cumsum(np.bincount(place, minlength=families))
        # The first family that fills the training set is the last one there; what is left of it is on no side.
        border = int(ends[min(int(np.searchsorted(ends, train)), families - 1)]) if families else 0
    if len(problems) - max(border, train) < test:
        raise ConfigError(
            f"{train:,} problems to train on and {test:,} to test with are too many: {most}. Lower task.train_problems"
            " or task.test_problems."
        )
    return Split(problems[order[:train]], problems[order[border : border + test]])


def distinct(draw: Callable[[int], np.ndarray], wanted: int) -> np.ndarray:
    """`wanted` distinct problems, or as many as are found; in the order in which they were drawn first.

    `draw(count)` draws problems, with repetition. Shapes: -> (N, columns).
    """
    found = draw(wanted)
    for _ in range(DRAWS):
        found = found[first_of_each(found)]
        if len(found) >= wanted:
            return found[:wanted]
        found = np.concatenate([found, draw(max(64, 2 * (wanted - len(found))))])
    return found[first_of_each(found)][:wanted]


def first_of_each(problems: np.ndarray) -> np.ndarray:
    """Where each problem comes first. Shapes: (N, columns) -> (distinct,), rising."""
    _, first = np.unique(keys(problems), return_index=True)
    return np.sort(first)


def keys(rows: np.ndarray) -> np.ndarray:
    """A number for each row: equal rows have equal numbers, and of a million different ones two may have the same by a
    chance of 1 in 10 million. Then one of them is left out, or stands on the side of the other: no harm is done.

    Sorting numbers takes a tenth of the time that sorting rows takes. Shapes: (N, columns) -> (N,) uint64.
    """
    factors = np.random.default_rng(0).integers(0, 2**64 - 1, rows.shape[1], dtype=np.uint64) | np.uint64(1)
    total = np.zeros(len(rows), dtype=np.uint64)
    for column, factor in enumerate(factors):
        total += rows[:, column].astype(np.int64).view(np.uint64) * factor  # modulo 2^64
    return total


def scattered(numbers: np.ndarray) -> np.ndarray:
    """Numbers whose every bit hangs on all bits of those given: the last bits of `keys` hang on the last bits of the
    problems alone, and would give them away. Shapes: (N,) uint64 -> (N,) uint64.
    Source: mix64variant13 of Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators."""
    mixed = numbers
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
