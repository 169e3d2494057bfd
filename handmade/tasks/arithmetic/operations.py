"""Addition, subtraction, multiplication and modular addition: which problems there are, and their results.

How numbers are written is the same for all: `numbers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from handmade.tasks.arithmetic.numbers import NumberConfig, NumberTask, plural
from handmade.tasks.arithmetic.problems import ProblemConfig
from handmade.tasks.arithmetic.strings import HOLE, joined
from handmade.tasks.arithmetic.task import ArithmeticTask


@dataclass(frozen=True)
class AdditionConfig(NumberConfig):
    """Which sums there are, and how they are written."""

    operands: int = 2
    """Numbers that are added."""
    twins: Literal["apart", "together"] = "apart"
    """Sums of the same numbers in another order. "apart": each for itself, as published, so that one may be trained on
    and the other tested. "together": all on one side."""

    def check(self) -> None:
        super().check()
        self.require("operands", 2 <= self.operands <= 9, "from 2 to 9")


class Addition(NumberTask):
    """Sums of `operands` numbers of up to `digits` digits.

        12+34=640     as it is set out at first: padded, the answer reversed
        12+34=046     reversed=false
        12+34=64      padded=false
        1234640       operators=false
        b2c1+b4c3=b6c4  hints=true, padded=false: b are the ones here, c the tens; all numbers are reversed
        b21+43=b64      shared_positions=true, padded=false: the position of the ones is the one behind that of b
        5+12+7=42     operands=3, padded=false: 24 reversed

    Reversed, because a carry goes from the last digit to the first: written forwards, the first digit of 99+1=100 can
    only be known when the whole sum is. Padded, because then the k-th token of the answer is always worth the same.
    Two digits make 10,000 problems, of which 2,500 are trained on and 7,500 tested: a model that learns them by heart
    gets the 7,500 wrong.
    Source: minGPT's adder has the same trick of the reversed answer; Lee et al. 2023, section 4 (arXiv:2307.03381),
    compares the formats; for numbers longer than any trained on Zhou et al. 2023 (arXiv:2310.16028) write index hints,
    and Cho et al. 2024 (arXiv:2405.20671) share positions among digits of the same worth.
    """

    name = "addition"
    settings: ClassVar[type[ProblemConfig]] = AdditionConfig
    sign = "+"

    @property
    def operands(self) -> int:
        return self.config.operands

    def result(self, problems: np.ndarray) -> np.ndarray:
        return problems.sum(1)

    @property
    def answer_width(self) -> int:
        return len(str(self.operands * (self.below - 1)))

    def groups(self, problems: np.ndarray) -> dict[str, tuple[np.ndarray, list[str]]]:
        carried = carries(problems)
        names = [
            plural(count, "carry").replace("carrys", "carries") for count in range(int(carried.max(initial=0)) + 1)
        ]
        return {"carries": (carried, names), **super().groups(problems)}


def carries(problems: np.ndarray) -> np.ndarray:
    """In how many columns something is carried when the numbers are added by hand. Shapes: (N, operands) -> (N,)."""
    carry = count = np.zeros(len(problems), dtype=np.int64)
    for place in range(18):
        carry = ((problems // 10**place % 10).sum(1) + carry) // 10
        count = count + (carry > 0)
    return count


@dataclass(frozen=True)
class SubtractionConfig(NumberConfig):
    """Which differences there are, and how they are written."""


class Subtraction(NumberTask):
    """Differences of two numbers, negative ones too.

        34-12=22      forwards: reversed=false
        12-34=-22     the minus sign stands where it is read: before the digits, or reversed behind them (22-)

    The sign is the hardest: it hangs on which number is larger, which the first digits decide. Reversed it comes last,
    when all borrowing is done.
    """

    name = "subtraction"
    settings: ClassVar[type[ProblemConfig]] = SubtractionConfig
    sign = "-"

    def vocabulary(self) -> str:
        own = super().vocabulary()
        return own if "-" in own else "-" + own  # for the sign of an answer

    def result(self, problems: np.ndarray) -> np.ndarray:
        return problems[:, 0] - problems[:, 1]

    @property
    def answer_width(self) -> int:
        return self.config.digits

    def solutions(self, problems: np.ndarray) -> np.ndarray:
        sign = np.where(self.result(problems) < 0, self.token("-"), HOLE).astype(np.uint8)[:, None]
        digits = super().solutions(problems)
        return joined([digits, sign] if self.config.reversed else [sign, digits])

    def groups(self, problems: np.ndarray) -> dict[str, tuple[np.ndarray, list[str]]]:
        signs = (self.result(problems) < 0).astype(int)
        return {"sign": (signs, ["0 or more", "negative"]), **super().groups(problems)}


@dataclass(frozen=True)
class MultiplicationConfig(NumberConfig):
    """Which products there are, and how they are written."""

    twins: Literal["apart", "together"] = "apart"
    """Products of the same numbers in another order: each for itself, or all on one side."""

    most_digits: ClassVar[int] = 9


class Multiplication(NumberTask):
    """Products of two numbers.

        12*34=408     forwards: reversed=false, padded=false
        12*34=8040    as it is set out at first: padded to 2 * digits, reversed (0408)

    Much harder than addition: a digit of the answer hangs on many pairs of digits, and a small model has no room to
    write down what is in between. Three quarters are trained on.
    """

    name = "multiplication"
    settings: ClassVar[type[ProblemConfig]] = MultiplicationConfig
    sign = "*"
    part = 0.75
    minutes = 3.0

    def result(self, problems: np.ndarray) -> np.ndarray:
        return problems.prod(1)

    @property
    def answer_width(self) -> int:
        return 2 * self.config.digits

    def solution_widths(self, widths: np.ndarray) -> np.ndarray:
        return 2 * widths


@dataclass(frozen=True)
class ModularConfig(ProblemConfig):
    """Which sums there are."""

    modulus: int = 97
    """The sum is what is left when it is divided by this. A prime in the paper."""
    reversed: bool = False
    """Write the answer from its last digit to its first."""
    padded: bool = True
    """Write zeros before a number, so that all have one length."""
    twins: Literal["apart", "together"] = "apart"
    """Sums of the same numbers in another order: each for itself, or all on one side."""

    lengths: ClassVar[str | None] = None
    operators: ClassVar[bool] = True
    hints: ClassVar[bool] = False
    shared_positions: ClassVar[bool] = False
    for_longer: ClassVar[bool] = False
    tokens: ClassVar[str] = "own"
    most_digits: ClassVar[int] = 9

    def check(self) -> None:
        super().check()
        self.require("modulus", 2 <= self.modulus <= 10_000, "from 2 to 10,000")


class Modular(NumberTask):
    """Addition modulo a number, the set-up in which grokking was found.

        50+60=13      modulo 97: 110 - 97

    A model knows the training half by heart long before it has an idea of the other half; with weight decay and
    patience, all at once it understands: watch `exact_match` rise after `train_exact_match` is at 1. There a number is
    one token; here it is its digits, and the model has to learn what a number is too.
    Source: Power et al. 2022, section 3.1 (arXiv:2201.02177).
    """

    name = "modular"
    settings: ClassVar[type[ProblemConfig]] = ModularConfig
    sign = "+"
    part = 0.5
    minutes = 3.0

    @property
    def below(self) -> int:
        return self.config.modulus

    @property
    def answer_width(self) -> int:
        return len(str(self.config.modulus - 1))

    def widths(self, problems: np.ndarray) -> np.ndarray:
        return np.full(len(problems), self.answer_width)

    def solution_widths(self, widths: np.ndarray) -> np.ndarray:
        return widths

    def result(self, problems: np.ndarray) -> np.ndarray:
        return problems.sum(1) % self.config.modulus

    def parse(self, prompt: str) -> list[int]:
        numbers = super().parse(prompt)
        if max(numbers) >= self.config.modulus:
            raise self.not_one(prompt, f" {self.config.modulus}: its numbers are smaller than that")
        return numbers

    def groups(self, problems: np.ndarray) -> dict[str, tuple[np.ndarray, list[str]]]:
        over = (problems.sum(1) >= self.config.modulus).astype(int)
        return {"sum": (over, ["below the modulus", "wrapped round"]), **super().groups(problems)}

    def longer(self) -> Iterator[tuple[str, ArithmeticTask, np.ndarray]]:
        return iter(())  # there is nothing longer
