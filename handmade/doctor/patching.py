"""Put something in the place of a function or method, and take all of it back."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

ABSENT = object()


class Patches:
    """A context in which things are replaced; at its end, also after an error, everything is what it was.

        with Patches() as patches:
            patches.put(torch.autograd, "backward", around)         # around(original) -> what stands there instead

    `spaces`: the names of modules that are not in sys.modules.
    """

    def __init__(self, spaces: Sequence[dict[str, Any]] = ()) -> None:
        self.spaces = spaces
        self.undo: list[tuple[Any, str, Any]] = []
        self.exchanged: list[tuple[Any, Any]] = []  # (original, wrapper)

    def __enter__(self) -> Patches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for owner, name, before in reversed(self.undo):
            if before is ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
        # Whoever imported a name meanwhile has the wrapper.
        self._exchange({id(new): old for old, new in self.exchanged})
        self.undo, self.exchanged = [], []

    def add(self, owner: Any, name: str, value: Any) -> None:
        """An attribute of a class or module."""
        self.undo.append((owner, name, vars(owner).get(name, ABSENT)))
        setattr(owner, name, value)

    def put(self, owner: Any, name: str, around: Callable[[Any], Any]) -> None:
        """In the place of a function or method stands `around(original)`."""
        original = vars(owner)[name]
        self.add(owner, name, functools.wraps(original)(around(original)))

    def everywhere(self, functions: dict[Any, Callable[[Any], Any]]) -> None:
        """The same for functions that others import by name: in every module that has them."""
        self.exchanged += [(old, functools.wraps(old)(around(old))) for old, around in functions.items()]
        self._exchange({id(old): new for old, new in self.exchanged})

    def _exchange(self, wanted: dict[int, Any]) -> None:
        for space in (*self.spaces, *[getattr(module, "__dict__", None) for module in list(sys.modules.values())]):
            if isinstance(space, dict):
                for name, value in list(space.items()):
                    if id(value) in wanted:
                        space[name] = wanted[id(value)]
