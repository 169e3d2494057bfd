"""Settings: frozen dataclasses that are checked when they are made and go to JSON and TOML and back.

    @dataclass(frozen=True)
    class DropoutConfig(Config):
        rate: float = 0.1

        def check(self) -> None:
            self.require("rate", 0 <= self.rate < 1, "from 0 up to, not including, 1")

A config class lives beside what it configures; this file only knows how one behaves.
"""

from __future__ import annotations

import dataclasses
import functools
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from handmade.errors import ConfigError, did_you_mean

C = TypeVar("C", bound="Config")


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of every config. Types are checked against the annotations, then `check` sees to the rest."""

    def __post_init__(self) -> None:
        for field, annotation in self.annotations().items():
            value = coerce(getattr(self, field), annotation)
            if value is WRONG:
                self.fail(field, f"must be {describe(annotation)}")
            object.__setattr__(self, field, value)
        self.check()

    def check(self) -> None:
        """Raise ConfigError (by `require`) for a value out of range. Subclasses override it."""

    def require(self, field: str, holds: bool, right: str) -> None:
        """Raise ConfigError that names `field`, its value and what would be right, unless `holds`."""
        if not holds:
            self.fail(field, f"must be {right}")

    def fail(self, field: str, why: str) -> typing.NoReturn:
        raise ConfigError(f"{type(self).__name__}.{field} = {getattr(self, field)!r}: {why}.")

    @classmethod
    def annotations(cls) -> dict[str, Any]:
        """Field name -> type, in order."""
        hints = _hints(typing.cast(Any, cls))
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
        """From JSON or TOML. A missing field takes its default; an unknown one raises ConfigError.
        A missing field without a default raises ConfigError too."""
        annotations = cls.annotations()
        for name in values:
            if name not in annotations:
                raise ConfigError(f"{cls.__name__} has no option {name!r}.{did_you_mean(name, annotations)}")
        needed = [
            field.name
            for field in dataclasses.fields(cls)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
        for name in needed:
            if name not in values:
                raise ConfigError(f"{cls.__name__} needs a value for {name!r}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every field, `None` included."""
        return dataclasses.asdict(self)

    def replace(self: C, **changes: Any) -> C:
        """A copy with some fields changed, checked again. An unknown field raises ConfigError."""
        return type(self).from_dict({**self.to_dict(), **changes})


WRONG = object()  # what `coerce` returns for a value of the wrong type: None is a value


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def coerce(value: Any, annotation: Any) -> Any:
    """`value` as the annotated type where nothing is lost (1 -> 1.0, [1] -> (1,)), else `WRONG`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            found = coerce(value, choice)
            if found is not WRONG:
                return found
        return WRONG
    if origin is typing.Literal:
        return value if value in arguments else WRONG
    if annotation is type(None):
        return None if value is None else WRONG
    if annotation is bool:
        return value if isinstance(value, bool) else WRONG
    # The numbers of numpy are numbers too; they become Python's, which JSON can write.
    if annotation is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return WRONG
    if annotation is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if annotation is str and isinstance(value, str):
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            return WRONG
        parts = [coerce(part, kind) for part, kind in zip(value, kinds, strict=True)]
        return WRONG if any(part is WRONG for part in parts) else tuple(parts)
    return WRONG


def parse(text: str, annotation: Any, name: str) -> Any:
    """The value that a person typed after `--set name=`.

    Raises ConfigError that says what would be right. The word `none` gives None where the field allows it.
    """
    choices = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    for choice in choices or (annotation,):
        found = _parse_one(text, choice)
        if found is not WRONG:
            return found
    words = [word for choice in (choices or (annotation,)) for word in _words(choice)]
    raise ConfigError(f"{name} = {text}: must be {describe(annotation)}.{did_you_mean(text, words)}")


def _words(annotation: Any) -> list[str]:
    return [str(a) for a in typing.get_args(annotation)] if typing.get_origin(annotation) is typing.Literal else []


def _parse_one(text: str, annotation: Any) -> Any:
    origin = typing.get_origin(annotation)
    if annotation is type(None):
        return None if text.lower() == "none" else WRONG
    if annotation is bool:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(text.lower(), WRONG)
    if annotation in (int, float):
        try:
            return annotation(text.replace("_", ""))
        except ValueError:
            return WRONG
    if origin is typing.Literal:
        return next((word for word in typing.get_args(annotation) if str(word) == text), WRONG)
    if origin is tuple:
        kind = typing.get_args(annotation)[0]
        # With or without the brackets that a list has in TOML.
        parts = [_parse_one(part.strip(), kind) for part in text.strip("[]() ").split(",")]
        return WRONG if any(part is WRONG for part in parts) else tuple(parts)
    return text if annotation is str else WRONG


def describe(annotation: Any) -> str:
    """What a field takes, in words a person knows.

    >>> describe(int | None)
    'a whole number or none'
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(choice) for choice in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(word) for word in arguments) if len(arguments) > 1 else str(arguments[0])
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"a list of {count}{describe(arguments[0]).removeprefix('a ')}s"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    return words.get(annotation, str(annotation))
