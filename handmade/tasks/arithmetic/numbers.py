"""Problems of a few whole numbers with an operator between them, written digit by digit; `operations` has the four.

    12+34=46        the answer forwards: its first digit hangs on carries that come from its last
    12+34=64        reversed: each digit needs its own column and one carry, so a step at a time is enough
    12+34=640       and padded: every answer has the same length, so where a digit stands says what it is worth
    1234640         digits only: what stands where is known, so signs say nothing
    b2c1+b4c3=b6c4  with hints: a letter says what a digit is worth, wherever it stands
    b21+43=b64      with shared positions: digits of the same worth have the same one, and a letter says from where
                    they are counted

What a person types and reads is always the first: `12+34=` and `46`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from handmade.errors import ConfigError
from handmade.tasks.arithmetic.problems import ProblemConfig, keys, scattered
from handmade.tasks.arithmetic.strings import DIGITS, HOLE, constant, digit_columns, digit_count, joined
from handmade.tasks.arithmetic.task import ArithmeticTask
from handmade.tasks.base import Tables

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ"  # for twice the digits, as many as an answer may have
SHARED = "+*=()" + DIGITS
"""The tokens of all tasks of plain arithmetic, expressions too: with padding and end 17."""
LONGER_PROBLEMS = 1_000  # of each length that was not trained on


@dataclass(frozen=True)
class NumberConfig(ProblemConfig):
    """How numbers are written."""

    digits: int = 2
    """Of the largest operand; a smaller number has fewer."""
    lengths: Literal["natural", "even"] | None = None
    """"natural": every number is as likely, so nearly all have as many digits as they may. "even": every number of
    digits is as likely. None: "even" with hints, which are there for numbers of all lengths, else "natural"."""
    reversed: bool = True
    """Write the answer from its last digit to its first, in the order in which it is worked out by hand. With hints all
    numbers: the letter that an answer begins with is then the first of its row."""
    padded: bool = True
    """Write zeros before a number, so that all operands have one length, and all answers. With hints: those of one
    problem. With shared positions too, and up to as many zeros as there are positions for: a model that has met zeros
    that far away is not led astray by digits there."""
    operators: bool = True
    """Write the operator and the equals sign; without them the digits alone, which have to be padded."""
    tokens: Literal["own", "shared"] = "own"
    """"own": the characters of the task. "shared": the 17 of all plain arithmetic, which the fixed-window models were
    published with."""

    hints: bool = False
    """Write a letter before each digit, the same for digits of the same worth: digits that belong together are found
    by their letters, in numbers longer than any trained on too. The first letter changes from problem to problem, so
    that all are learnt."""
    shared_positions: bool = False
    """Digits of the same worth have the same position, in all numbers of a row: digits that belong together are found
    by their positions, in numbers longer than any trained on too. A letter before the question and before the answer
    says from where positions are counted; it changes from problem to problem, so that all are learnt."""

    most_digits: ClassVar[int] = 17  # 64 bits hold 18, and an answer has one more

    def check(self) -> None:
        super().check()
        most = self.most_digits
        self.require("digits", 1 <= self.digits <= most, f"from 1 to {most}: an answer has to fit 64 bits")
        if not self.operators:
            self.require("padded", self.padded, "true without operators: nothing else tells two numbers apart")
        if self.shared_positions:
            self.require("shared_positions", not self.hints, "false with hints: one of them says what a digit is worth")
            self.require("operators", self.operators, "true with shared positions, which are counted from a sign on")
            self.require("reversed", self.reversed, "true with shared positions, which are counted from the ones")

    @property
    def for_longer(self) -> bool:
        """Whether rows are written for numbers longer than any trained on: all backwards, of all lengths alike."""
        return self.hints or self.shared_positions


HINTED_PROBLEMS = 50_000  # to train on
# What learns sums with hints, and those longer than any trained on; docs/log.md has what was tried.
HINTED: Tables = {
    # No positions: what stands where is in the letters. A pair is a letter with its digit.
    "model": {"positions": "none", "pair_embedding": True, "heads": 2},
    "train": {"batch": 64, "compile": "no"},  # batches differ in width
}


def with_shared_positions(config: NumberConfig) -> Tables:
    """The same with shared positions. The vocabulary is padding, end, signs, digits, letters."""
    digits = 2 + (SHARED.index("0") if config.tokens == "shared" else 2)
    tokens = {"digit_tokens": (digits, digits + 9), "origin_token": digits + 10}
    # One layer is enough, since nothing has to be worked out before digits find each other; two learn what fits the
    # lengths that were trained on alone.
    return {**HINTED, "model": {"positions": "shared", "layers": 1, "heads": 4, **tokens}}


class NumberTask(ArithmeticTask):
    """Problems of a few whole numbers with an operator between them."""

    settings: ClassVar[type[ProblemConfig]] = NumberConfig
    sign: ClassVar[str]
    """The operator."""

    # ----------------------------------------------------------------------------------------------------------
    # What an operation says

    def result(self, problems: np.ndarray) -> np.ndarray:
        """Shapes: (N, operands) -> (N,)."""
        raise NotImplementedError

    @property
    def operands(self) -> int:
        return 2

    @property
    def below(self) -> int:
        """Operands are smaller than this."""
        return 10**self.config.digits

    @property
    def answer_width(self) -> int:
        """Digits of the largest answer."""
        raise NotImplementedError

    # ----------------------------------------------------------------------------------------------------------
    # Problems

    @property
    def even(self) -> bool:
        return (self.config.lengths or ("even" if self.config.for_longer else "natural")) == "even"

    def vocabulary(self) -> str:
        c = self.config
        letters = LETTERS[: 2 * c.digits + self.answer_width - c.digits] if c.for_longer else ""
        if c.tokens == "shared":
            return SHARED + letters
        return (f"{self.sign}=" if c.operators else "") + DIGITS + letters

    def count(self) -> int:
        return self.below**self.operands

    def enumerate(self) -> np.ndarray:
        every = np.arange(self.count(), dtype=np.int64)
        return np.stack([every // self.below**place % self.below for place in reversed(range(self.operands))], axis=1)

    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        if not self.even:
            return random.integers(0, self.below, (count, self.operands))
        # One number of digits for the whole problem: that of its longest operand.
        digits = random.integers(1, self.config.digits + 1, count)
        problems = self.of_length(digits, random)
        # Half of them with shorter ones beside it, by chance: where one number has ended, the other is copied, and
        # with that a model learns to find the digit that belongs there. Of two digits that are added modulo ten, one
        # alone says nothing, and a long sum teaches nothing to a model that finds neither.
        shorter = 10 ** random.integers(1, digits[:, None] + 1, problems.shape)
        some = (random.random(count) < 0.5)[:, None] & (problems < problems.max(1, keepdims=True))
        return np.where(some, problems % shorter, problems)

    def of_length(self, digits: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Problems whose longest operand has so many digits. Shapes: (N,) -> (N, operands)."""
        problems = random.integers(0, 10 ** digits[:, None], (len(digits), self.operands))
        one = random.integers(0, self.operands, len(digits))
        lowest = np.where(digits == 1, 0, 10 ** (digits - 1))
        problems[np.arange(len(digits)), one] = random.integers(lowest, 10**digits)
        return np.minimum(problems, self.below - 1) if self.below < 10**self.config.digits else problems

    @classmethod
    def recipe(cls, config: NumberConfig) -> Tables:
        return with_shared_positions(config) if config.shared_positions else HINTED if config.hints else {}

    def most(self) -> int:
        return HINTED_PROBLEMS if self.config.for_longer else self.most_train

    @property
    def room(self) -> int:
        """Where longer ones are meant to be answered, of the longest problems that `longer` has."""
        if not self.config.for_longer:
            return self.context
        return max([self.context, *(task.rows(some).inputs.shape[1] for _, task, some in self.longer())])

    def sizes_of(self, problems: np.ndarray) -> np.ndarray:
        return digit_count(problems.max(1, initial=0))

    def kin(self, problems: np.ndarray) -> np.ndarray | None:
        """With twins together, the operands in order: a + b and b + a are kin."""
        return np.sort(problems, axis=1) if getattr(self.config, "twins", "apart") == "together" else None

    def kin_spare(self) -> int:
        if getattr(self.config, "twins", "apart") == "apart":
            return 0
        return int(np.prod(np.arange(1, self.operands + 1))) - 1

    # ----------------------------------------------------------------------------------------------------------
    # Rows

    def widths(self, problems: np.ndarray) -> np.ndarray:
        """Digits of a padded operand: those of the largest of all, and with hints of the largest in its problem. With
        shared positions up to as many as there are positions for, so that short numbers have far digits too: zeros.
        Shapes: (N, k) -> (N,)."""
        own = digit_count(problems.max(1, initial=0))
        if self.config.shared_positions and self.config.padded:
            most = min(self.letters, self.config.most_digits + 1)
            room = int((self.solution_widths(np.arange(1, most + 1)) <= most).sum())
            return own + self.chosen(problems, np.maximum(room - own, 0), salt=1)
        if self.config.for_longer:
            return own
        return np.full(len(problems), max(self.config.digits, int(own.max(initial=0))))

    def token(self, character: str) -> int:
        return int(self.tokenizer.encode(character)[0])

    def questions(self, problems: np.ndarray) -> np.ndarray:
        c, rows = self.config, len(problems)
        widths, first = self.widths(problems), self.first_letters(problems)
        origin = [first[:, None].astype(np.uint8)] if c.shared_positions else []
        if c.shared_positions:  # as wide as the answer: what is carried out of the last digits has zeros above it
            widths = self.solution_widths(widths)
        parts: list[np.ndarray] = [*origin]
        for place in range(problems.shape[1]):
            if place and c.operators:
                parts.append(constant(self.token(self.sign), rows))
            parts.append(self.number(problems[:, place], widths, first, c.for_longer and c.reversed))
        if c.operators:
            parts.append(constant(self.token("="), rows))
        return joined([*parts, *origin])

    def solutions(self, problems: np.ndarray) -> np.ndarray:
        widths, first = self.solution_widths(self.widths(problems)), self.first_letters(problems)
        return self.number(abs(self.result(problems)), widths, first, self.config.reversed)

    def number(self, values: np.ndarray, widths: np.ndarray, first: np.ndarray, backwards: bool = False) -> np.ndarray:
        """Numbers as they are written: `widths` (N,) the digits that they are padded to, `first` (N,) the letters of
        their ones. Shapes: (N,) -> (N, L)."""
        width = int(widths.max(initial=1))
        digits = digit_columns(values, width, self.token("0"), widths if self.config.padded else 1)
        letters = np.where(digits == HOLE, HOLE, first[:, None] + np.arange(width - 1, -1, -1)).astype(np.uint8)
        if backwards:
            digits, letters = digits[:, ::-1], letters[:, ::-1]
        return np.stack([letters, digits], axis=2).reshape(len(values), 2 * width) if self.config.hints else digits

    def first_letters(self, problems: np.ndarray) -> np.ndarray:
        """The token of the letter of the ones, for each problem its own, always the same. Shapes: (N, k) -> (N,).
        Raises ConfigError where there are too few letters for the longest answer."""
        if not self.config.for_longer:
            return np.zeros(len(problems), dtype=np.int64)
        spare = self.letters - self.solution_widths(self.widths(problems))
        if spare.min(initial=0) < 0:
            many = f"the {self.letters} letters of its rows are too few for so long numbers"
            raise ConfigError(f"{self.name}: {many}. More come with a higher task.digits, in training.")
        return self.token(LETTERS[0]) + self.chosen(problems, spare)

    @property
    def letters(self) -> int:
        """How many letters there are."""
        return sum(character.isalpha() for character in self.tokenizer.characters)

    def chosen(self, problems: np.ndarray, most: np.ndarray, salt: int = 0) -> np.ndarray:
        """A number from 0 to `most` (N,) for each problem, its own, always the same, which says nothing about it.
        Another `salt`, other numbers. Shapes: (N, k) -> (N,)."""
        return (scattered(keys(problems) + np.uint64(salt)) % (most + 1).astype(np.uint64)).astype(np.int64)

    def solution_widths(self, widths: np.ndarray) -> np.ndarray:
        """Digits of padded answers to problems with operands of so many, also of more than the task's.
        Shapes: (N,) -> (N,)."""
        return widths + (self.answer_width - self.config.digits)

    # ----------------------------------------------------------------------------------------------------------
    # For a person

    @property
    def example(self) -> str:
        return self.sign.join(map(str, self.split.test[0].tolist())) + "="

    def parse(self, prompt: str) -> list[int]:
        c = self.config
        words = prompt.removesuffix("=").split(self.sign)
        if len(words) == 1 and not c.operators and len(words[0]) == c.digits * self.operands:
            words = [words[0][start : start + c.digits] for start in range(0, len(words[0]), c.digits)]
        if len(words) != self.operands or not all(re.fullmatch("[0-9]{1,40}", word) for word in words):
            raise self.not_one(prompt)
        numbers = [int(word) for word in words]
        if max(numbers) >= 10**c.most_digits:
            raise self.not_one(prompt, f", which holds numbers of up to {c.most_digits} digits")
        return numbers

    def shown(self, written: str) -> str:
        text = "".join(character for character in written if not character.isalpha())
        text = text[::-1] if self.config.reversed else text
        sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
        return sign + (digits.lstrip("0") or "0" if digits.isdigit() else digits)

    def groups(self, problems: np.ndarray) -> dict[str, tuple[np.ndarray, list[str]]]:
        most = digit_count(problems.max(1))
        names = [plural(count, "digit") for count in range(1, int(most.max(initial=1)) + 1)]
        largest = problems.max(1)
        limit = max(1, int(largest.max(initial=0)) + 1)
        thirds = np.minimum(2, 3 * (largest / limit)).astype(int)
        return {"longest operand": (most - 1, names), "largest operand": (thirds, ["small", "middle", "large"])}

    def longer(self) -> Iterator[tuple[str, ArithmeticTask, np.ndarray]]:
        """Problems of one digit more, up to twice as many."""
        c = self.config
        for digits in range(c.digits + 1, min(2 * c.digits, c.most_digits) + 1):
            random = np.random.default_rng((c.seed, digits))
            longer = object.__new__(type(self))  # what writes them, without problems of its own
            longer.config, longer.tokenizer = c.replace(digits=digits, train_problems=None), self.tokenizer
            yield plural(digits, "digit"), longer, longer.of_length(np.full(LONGER_PROBLEMS, digits), random)


def plural(count: int, word: str) -> str:
    """
    >>> plural(1, "digit"), plural(2, "digit")
    ('1 digit', '2 digits')
    """
    return f"{count} {word}{'' if count == 1 else 's'}"
