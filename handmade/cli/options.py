"""What several commands' options have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

from cyclopts import Parameter

from handmade.config import Config
from handmade.errors import ConfigError


def whole(kind: Any, tokens: Sequence[Any]) -> int:
    """The converter of `Whole`. Raises ValueError, which cyclopts turns into an error that names the option."""
    return int(tokens[0].value)


# An option that takes a whole number. Of a plain `int` cyclopts would round what is typed: 1.5 would pass.
Whole = Annotated[int, Parameter(converter=whole)]


class Options(Config):
    """Base of the options of a command. Its errors name a field as it is typed."""

    def fail(self, field: str, why: str) -> NoReturn:
        value = getattr(self, field)
        words = " ".join(map(repr, value)) if isinstance(value, tuple) else value
        raise ConfigError(f"--{field.replace('_', '-')} {words}: {why}.")


def as_options(problem: ConfigError) -> str:
    """The message of a config's check, its field as the option that a person typed."""
    return re.sub(r"^\w+\.(\w+) = ", lambda found: f"--{found[1].replace('_', '-')} ", str(problem))
