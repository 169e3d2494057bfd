"""The errors a person can meet.

Each message is one or two lines that say what is wrong, where, and what to do. The command line prints the
message on standard error and exits with code 2; a library user can catch `HandmadeError` or a branch of it.
A mistake of ours is not in this tree: it keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HandmadeError(Exception):
    """Anything a person can put right."""


class ConfigError(HandmadeError, ValueError):
    """A setting that is unknown, has the wrong type, is out of range, or does not fit another one."""


class DataError(HandmadeError, ValueError):
    """A text that is missing, empty, not text, too short, or changed since it was used."""


class TokenizerError(HandmadeError, ValueError):
    """A character or token that the tokenizer does not know, or a tokenizer file that is damaged."""


class RunError(HandmadeError):
    """A run folder that is missing, in the way, truncated or damaged."""


class ResourceError(HandmadeError):
    """Memory, disk, device or an optional package that is not there."""


class TrainingError(HandmadeError):
    """Training that cannot go on, such as a loss that stays non-finite."""


class PatientError(HandmadeError):
    """A person's own code, given to the doctor, that does not import, cannot be built or takes no tokens."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean X?` for the nearest known word, or the empty string.

    >>> did_you_mean("layrs", ["layers", "heads"])
    ' Did you mean layers?'
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def optional(package: str, extra: str, purpose: str) -> ResourceError:
    """The error for a missing optional package: it names the line that installs it."""
    return ResourceError(f"{purpose} needs the package {package}. Install it: pip install 'handmade[{extra}]'")
