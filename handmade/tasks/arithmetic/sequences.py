"""Tasks on sequences of digits: sort them, turn them round, copy them, tell whether their sum is odd.

31415=11345     sort
31415=51413     reverse
31415=31415     copy
10110=1         parity
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from handmade.tasks.arithmetic.numbers import LONGER_PROBLEMS, plural
from handmade.tasks.arithmetic.problems import ProblemConfig
from handmade.tasks.arithmetic.strings import DIGITS, HOLE, constant, joined
from handmade.tasks.arithmetic.task import ArithmeticTask

NONE = -1  # in a column of a problem: there is no symbol


@dataclass(frozen=True)
class SequenceConfig(ProblemConfig):
    """Which sequences there are."""

    length: int = 5
    """Symbols of the longest sequence."""
    shortest: int = 1
    """Symbols of the shortest one."""
    lengths: Literal["natural", "even"] = "natural"
    """"natural": every sequence is as likely, so nearly all are long. "even": every length is as likely."""

    most_length: ClassVar[int] = 100

    def check(self) -> None:
        super().check()
        self.require("length", 1 <= self.length <= self.most_length, f"from 1 to {self.most_length}")
        self.require("shortest", 1 <= self.shortest <= self.length, f"from 1 to length = {self.length}")


class SequenceTask(ArithmeticTask):
    """Problems that are a row of symbols. In a problem's columns stand their values, and `NONE` behind the last."""

    settings: ClassVar[type[ProblemConfig]] = SequenceConfig
    symbols: ClassVar[str] = DIGITS

    def result(self, problems: np.ndarray) -> np.ndarray:
        """The values of the answer, `NONE` behind the last. Shapes: (N, length) -> (N, any)."""
        raise NotImplementedError

    # ----------------------------------------------------------------------------------------------------------
    # Problems

    def vocabulary(self) -> str:
        return "=" + self.symbols

    def count(self) -> int:
        base = len(self.symbols)
        return sum(base**length for length in range(self.config.shortest, self.config.length + 1))

    def enumerate(self) -> np.ndarray:
        base, parts = len(self.symbols), []
        for length in range(self.config.shortest, self.config.length + 1):
            every = np.arange(base**length, dtype=np.int64)
            part = np.full((len(every), self.config.length), NONE, dtype=np.int64)
            for place in range(length):
                part[:, place] = every // base ** (length - 1 - place) % base
            parts.append(part)
        return np.concatenate(parts)

    def sizes_of(self, problems: np.ndarray) -> np.ndarray:
        return (problems != NONE).sum(1)

    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        lengths = np.arange(self.config.shortest, self.config.length + 1)
        likely = np.ones(len(lengths))
        if self.config.lengths == "natural":
            likely = float(len(self.symbols)) ** (lengths - lengths[-1])
        return self.of_length(random.choice(lengths, count, p=likely / likely.sum()), random)

    def of_length(self, lengths: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Sequences of so many symbols. Shapes: (N,) -> (N, longest)."""
        width = max(self.config.length, int(lengths.max(initial=0)))
        problems = random.integers(0, len(self.symbols), (len(lengths), width))
        problems[np.arange(width) >= lengths[:, None]] = NONE
        return problems

    # ----------------------------------------------------------------------------------------------------------
    # Rows

    def tokens(self, values: np.ndarray) -> np.ndarray:
        """Values as tokens, `NONE` as a hole."""
        first = int(self.tokenizer.encode(self.symbols[0])[0])
        return np.where(values == NONE, HOLE, values + first).astype(np.uint8)

    def questions(self, problems: np.ndarray) -> np.ndarray:
        equals = int(self.tokenizer.encode("=")[0])
        return joined([self.tokens(problems), constant(equals, len(problems))])

    def solutions(self, problems: np.ndarray) -> np.ndarray:
        return self.tokens(self.result(problems))

    # ----------------------------------------------------------------------------------------------------------
    # For a person

    @property
    def example(self) -> str:
        return self.asked(self.split.test[:1])[0]

    def parse(self, prompt: str) -> list[int]:
        text = prompt.removesuffix("=")
        if not re.fullmatch(f"[{self.symbols}]{{1,{self.config.most_length}}}", text):
            raise self.not_one(prompt)
        return [self.symbols.index(symbol) for symbol in text]

    def groups(self, problems: np.ndarray) -> dict[str, tuple[np.ndarray, list[str]]]:
        lengths = self.sizes_of(problems)
        names = [plural(count, "symbol") for count in range(1, int(lengths.max(initial=1)) + 1)]
        return {"length": (lengths - 1, names)}

    def longer(self) -> Iterator[tuple[str, ArithmeticTask, np.ndarray]]:
        """One symbol more, up to twice as many."""
        for length in range(self.config.length + 1, min(2 * self.config.length, self.config.most_length) + 1):
            random = np.random.default_rng((self.config.seed, length))
            yield plural(length, "symbol"), self, self.of_length(np.full(LONGER_PROBLEMS, length), random)


# --------------------------------------------------------------------------------------------------------------
# The four


class Sort(SequenceTask):
    """The digits in order.

        31415=11345

    What comes next is the smallest digit not yet written: the model has to count what it has written of each.
    """

    name = "sort"

    def result(self, problems: np.ndarray) -> np.ndarray:
        last = np.where(problems == NONE, len(self.symbols), problems)
        ordered = np.sort(last, axis=1)
        return np.where(ordered == len(self.symbols), NONE, ordered)


class Reverse(SequenceTask):
    """The digits from the last to the first.

        31415=51413

    Where to look moves back by two with every step forward: the distance changes, the rule does not.
    """

    name = "reverse"

    def result(self, problems: np.ndarray) -> np.ndarray:
        return problems[:, ::-1]  # holes at the beginning are holes too


class Copy(SequenceTask):
    """The digits once more.

        31415=31415

    The smallest task that needs attention: look as far back as the sequence is long, always the same way.
    """

    name = "copy"

    def result(self, problems: np.ndarray) -> np.ndarray:
        return problems


@dataclass(frozen=True)
class ParityConfig(SequenceConfig):
    """Which sequences there are."""

    length: int = 10
    """Bits of the longest sequence."""


class Parity(SequenceTask):
    """Whether the number of ones is odd.

        10110=1

    Every bit counts, and each turns the answer over: nothing is learnt from a part. A transformer finds it hard for
    that reason, though a person counts on their fingers. Half of all sequences are trained on.
    """

    name = "parity"
    settings: ClassVar[type[ProblemConfig]] = ParityConfig
    symbols = "01"
    part = 0.5

    def result(self, problems: np.ndarray) -> np.ndarray:
        return (np.where(problems == NONE, 0, problems).sum(1) % 2)[:, None]

    def groups(self, problems: np.ndarray) -> dict[str, tuple[np.ndarray, list[str]]]:
        odd = self.result(problems)[:, 0]
        return {**super().groups(problems), "parity": (odd, ["even", "odd"])}
