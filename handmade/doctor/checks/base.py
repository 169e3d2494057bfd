"""What a check is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from handmade.doctor.findings import Finding
from handmade.doctor.patient import Patient


@dataclass(frozen=True)
class Check:
    """One thing that is looked for. Made by `check`."""

    name: str
    title: str
    """What is wrong when it is sick, in a few words: "a future token changes the past"."""
    body: Callable[[Patient], Finding]
    reference: str
    needs: tuple[str, ...]
    """Names of `Given` that have to be there; "callable": a model that can be called."""
    quick: bool
    """Part of the look before a long training."""
    demonstration: str
    """About ten lines of Python that run by themselves and print what goes wrong: for `--explain`."""

    @property
    def idea(self) -> str:
        """The check's docstring: the idea, with the formula."""
        return inspect.cleandoc(self.body.__doc__ or "")


def check(
    name: str,
    title: str,
    *,
    reference: str,
    needs: tuple[str, ...] = ("callable",),
    quick: bool = False,
    demonstration: str = "",
) -> Callable[[Callable[[Patient], Finding]], Check]:
    """Make a check out of a function of a patient that returns `healthy(...)`, `sick(...)` or `suspicious(...)`, or
    raises `NotExamined`."""

    def made(body: Callable[[Patient], Finding]) -> Check:
        return Check(name, title, body, reference, needs, quick, demonstration)

    return made
