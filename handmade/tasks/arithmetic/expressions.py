"""Expressions of single digits with plus, times and parentheses.

3+4*5=23            times before plus
(3+4)*5=35          parentheses before all
(3+4)*5=7*5=35      with the steps written out
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from handmade.tasks.arithmetic.numbers import LONGER_PROBLEMS, SHARED, plural
from handmade.tasks.arithmetic.problems import ProblemConfig
from handmade.tasks.arithmetic.strings import HOLE, constant, digit_columns, joined, stacked
from handmade.tasks.arithmetic.task import ArithmeticTask

MOST_OPERANDS = 6
NONE = -1  # in a column of a problem: there is nothing
OPERATORS = "+*"

Items = list[str | np.ndarray]
"""An expression of many problems that differ in their digits only: signs, and the values (N,) of all problems."""


@dataclass(frozen=True)
class ExpressionConfig(ProblemConfig):
    """Which expressions there are, and whether steps are written out."""

    operands: int = 3
    """Digits of the longest expression."""
    shortest: int = 2
    """Digits of the shortest one."""
    parentheses: bool = True
    """Put parentheses round any part, needed or not."""
    steps: bool = False
    """Write the expression anew after each operation, before the result: what is in between need not be held in
    mind."""
    lengths: Literal["natural", "even"] = "natural"
    """"natural": every expression is as likely, so nearly all are long. "even": every length is as likely."""

    def check(self) -> None:
        super().check()
        self.require("operands", 2 <= self.operands <= MOST_OPERANDS, f"from 2 to {MOST_OPERANDS}")
        self.require("shortest", 2 <= self.shortest <= self.operands, f"from 2 to operands = {self.operands}")


class Expression(ArithmeticTask):
    """The value of an expression.

        3+4=7
        (3+4)*5=35
        (3+4)*5=7*5=35             steps=true: the leftmost innermost operation first, times before plus
        2*(3+4*5)=2*(3+20)=2*23=46

    The answer is not reversed: it is the order of operations that is to be learnt, not the carry. All expressions of
    two and three digits are 12,200; of four there are 880,000. The tokens are the 17 of all plain arithmetic.

    In the columns of a problem stand its layout, then digit, operator, digit, ..., and `NONE` behind the last.
    """

    name = "expression"
    settings: ClassVar[type[ProblemConfig]] = ExpressionConfig
    characters = SHARED
    part = 0.75
    minutes = 3.0
    most_train = 200_000
    shape = {"layers": 3, "heads": 4, "width": 96}

    # ----------------------------------------------------------------------------------------------------------
    # Problems

    def layouts(self, operands: int) -> tuple[str, ...]:
        """The layouts that are used, by number."""
        every = layouts(operands)
        return every if self.config.parentheses else every[:1]

    def lengths(self) -> range:
        return range(self.config.shortest, self.config.operands + 1)

    def count(self) -> int:
        return sum(self.of_one_length(operands) for operands in self.lengths())

    def of_one_length(self, operands: int) -> int:
        return 10**operands * 2 ** (operands - 1) * len(self.layouts(operands))

    def enumerate(self) -> np.ndarray:
        parts = []
        for operands in self.lengths():
            rest = np.arange(self.of_one_length(operands), dtype=np.int64)
            part = np.full((len(rest), 2 * self.config.operands), NONE, dtype=np.int16)
            for column, base in self.columns(operands):
                part[:, column] = rest % base
                rest = rest // base
            parts.append(part)
        return np.concatenate(parts)

    def columns(self, operands: int) -> list[tuple[int, int]]:
        """The columns of an expression of so many digits, and how many values each may have."""
        between = [(column, 10 if column % 2 else len(OPERATORS)) for column in range(1, 2 * operands)]
        return [(0, len(self.layouts(operands))), *between]

    def sizes_of(self, problems: np.ndarray) -> np.ndarray:
        return (problems[:, 1::2] != NONE).sum(1)

    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        lengths = np.array(self.lengths())
        likely = np.ones(len(lengths))
        if self.config.lengths == "natural":
            likely = np.array([float(self.of_one_length(int(operands))) for operands in lengths])
        return self.of_length(random.choice(lengths, count, p=likely / likely.sum()), random)

    def of_length(self, operands: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Expressions of so many digits. Shapes: (N,) -> (N, 2 * longest)."""
        width = 2 * max(self.config.operands, int(operands.max(initial=0)))
        problems = np.full((len(operands), width), NONE, dtype=np.int16)
        for one in np.unique(operands):
            (rows,) = np.nonzero(operands == one)
            for column, base in self.columns(int(one)):
                problems[rows, column] = random.integers(0, base, len(rows))
        return problems

    # ----------------------------------------------------------------------------------------------------------
    # Rows

    def token(self, character: str) -> int:
        return int(self.tokenizer.encode(character)[0])

    def written_items(self, items: Items, rows: int) -> np.ndarray:
        """Signs as they are, values in decimal. Shapes: -> (rows, L) tokens, with holes."""
        parts = []
        for item in items:
            if isinstance(item, str):
                parts.append(constant(self.token(item), rows))
            else:
                width = len(str(int(item.max(initial=0))))
                parts.append(digit_columns(item.astype(np.int64), width, self.token("0"), least=1))
        return joined(parts)

    def by_form(self, problems: np.ndarray) -> Iterator[tuple[np.ndarray, Items]]:
        """Problems of one layout and the same operators together: which they are, and their items."""
        form = problems[:, 0].astype(np.int64)  # layout and operators as one number; an operator that is none is 0
        for column in range(2, problems.shape[1], 2):
            form = form * (len(OPERATORS) + 1) + (problems[:, column] - NONE)
        order = np.argsort(form, kind="stable")
        (borders,) = np.nonzero(np.diff(form[order]))
        for rows in np.split(order, borders + 1) if len(order) else ():
            kind = problems[rows[0]]
            operands = int((kind[1::2] != NONE).sum())
            digits = iter(range(1, 2 * operands, 2))
            signs = iter(kind[2::2].tolist())
            items: Items = []
            for character in self.layouts(operands)[int(kind[0])]:
                if character == "d":
                    items.append(problems[rows, next(digits)].astype(np.int64))
                else:
                    items.append(OPERATORS[next(signs)] if character == "?" else character)
            yield rows, items

    def questions(self, problems: np.ndarray) -> np.ndarray:
        return self.gathered(problems, lambda items: [*items, "="])

    def solutions(self, problems: np.ndarray) -> np.ndarray:
        return self.gathered(problems, self.solved)

    def gathered(self, problems: np.ndarray, form: Callable[[Items], Items]) -> np.ndarray:
        """What `form` makes of the items, for all problems. Shapes: (N, columns) -> (N, L)."""
        places, parts = [], []
        for rows, items in self.by_form(problems):
            places.append(rows)
            parts.append(self.written_items(form(items), len(rows)))
        found = stacked(parts)
        result = np.full_like(found, HOLE)
        if places:
            result[np.concatenate(places)] = found
        return result

    def solved(self, items: Items) -> Items:
        """The value; with steps, all that comes before it too."""
        written: Items = []
        while len(items) > 1:
            items = reduced(items)
            written += [*items, "="]
        return written[:-1] if self.config.steps else items

    # ----------------------------------------------------------------------------------------------------------
    # For a person

    @property
    def example(self) -> str:
        return self.asked(self.split.test[:1])[0]

    def parse(self, prompt: str) -> list[int]:
        text = prompt.removesuffix("=")
        layout = re.sub("[+*]", "?", re.sub("[0-9]", "d", text))
        operands = layout.count("d")
        if not 2 <= operands <= MOST_OPERANDS or layout not in self.layouts(operands):
            raise self.not_one(prompt)
        values = [int(part) if part.isdigit() else OPERATORS.index(part) for part in re.sub("[()]", "", text)]
        return [self.layouts(operands).index(layout), *values]

    def shown(self, written: str) -> str:
        """What stands behind the last equals sign."""
        return written.rpartition("=")[2]

    def groups(self, problems: np.ndarray) -> dict[str, tuple[np.ndarray, list[str]]]:
        operands = self.sizes_of(problems)
        names = [plural(count, "operand") for count in range(2, int(operands.max(initial=2)) + 1)]
        times = (problems[:, 2::2] == OPERATORS.index("*")).sum(1)
        return {
            "length": (operands - 2, names),
            "parentheses": ((problems[:, 0] > 0).astype(int), ["none", "some"]),
            "times": (times, [plural(count, "multiplication") for count in range(int(times.max(initial=0)) + 1)]),
        }

    def longer(self) -> Iterator[tuple[str, ArithmeticTask, np.ndarray]]:
        """One operand more, up to twice as many."""
        for operands in range(self.config.operands + 1, min(2 * self.config.operands, MOST_OPERANDS) + 1):
            random = np.random.default_rng((self.config.seed, operands))
            yield plural(operands, "operand"), self, self.of_length(np.full(LONGER_PROBLEMS, operands), random)


@functools.cache
def layouts(operands: int) -> tuple[str, ...]:
    """Where parentheses may stand: `d` for a digit, `?` for an operator, the one without parentheses first. Round the
    whole, round a single digit, and twice round the same there are none.

    >>> layouts(3)
    ('d?d?d', 'd?(d?d)', '(d?d)?d')
    """

    def sequences(count: int) -> Iterator[list[str]]:
        """Parts with `count` digits in all: digits, and expressions in parentheses."""
        if not count:
            yield []
        for first in range(1, count + 1):
            heads = ["d"] if first == 1 else [f"({inner})" for inner in layouts(first)] if first < operands else []
            for head in heads:
                for rest in sequences(count - first):
                    yield [head, *rest]

    found = ["?".join(parts) for parts in sequences(operands)]
    return tuple(sorted(found, key=lambda layout: layout.count("(")))


def reduced(items: Items) -> Items:
    """One operation done: in the first parentheses that have none inside, else anywhere; times before plus, of equals
    the left one. Parentheses round a single value go."""
    closing = next((place for place, item in enumerate(items) if is_sign(item, ")")), len(items))
    opening = max((place for place in range(closing) if is_sign(items[place], "(")), default=-1)
    places = range(opening + 1, closing)
    times = [place for place in places if is_sign(items[place], "*")]
    place = times[0] if times else next(place for place in places if is_sign(items[place], "+"))
    left, right = items[place - 1], items[place + 1]
    assert isinstance(left, np.ndarray)
    assert isinstance(right, np.ndarray)
    value = left * right if times else left + right
    before, after = items[: place - 1], items[place + 2 :]
    if before and after and is_sign(before[-1], "(") and is_sign(after[0], ")"):
        before, after = before[:-1], after[1:]
    return [*before, value, *after]


def is_sign(item: str | np.ndarray, sign: str) -> bool:
    return isinstance(item, str) and item == sign
