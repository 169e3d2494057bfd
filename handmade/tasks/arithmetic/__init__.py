"""Tasks with problems that have one right answer: numbers, expressions, sequences."""

from handmade.tasks.arithmetic.expressions import Expression
from handmade.tasks.arithmetic.operations import Addition, Modular, Multiplication, Subtraction
from handmade.tasks.arithmetic.sequences import Copy, Parity, Reverse, Sort
from handmade.tasks.arithmetic.task import ArithmeticTask
from handmade.tasks.base import GeneratedTask

ARITHMETIC: tuple[type[GeneratedTask], ...] = (
    Addition,
    Subtraction,
    Multiplication,
    Modular,
    Expression,
    Sort,
    Reverse,
    Copy,
    Parity,
)

__all__ = [
    "ARITHMETIC",
    "Addition",
    "ArithmeticTask",
    "Copy",
    "Expression",
    "Modular",
    "Multiplication",
    "Parity",
    "Reverse",
    "Sort",
    "Subtraction",
]
