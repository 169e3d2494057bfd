"""Settings by table ("task", "model", "train", "optimizer", "schedule"): presets, then TOML files, then `--set`; the
last wins.

[model]                   handmade train book.txt --set model.layers=6
layers = 6
[optimizer]
learning_rate = 0.01
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from handmade.config import WRONG, Config, coerce, describe, parse
from handmade.errors import ConfigError, DataError, did_you_mean
from handmade.models import FAMILIES
from handmade.optimizers import OptimizerConfig
from handmade.schedules import ScheduleConfig
from handmade.tasks import LanguageTask, Tables
from handmade.training import TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SIZES = ("vocab_size", "source_vocab_size")  # of a model's options those that nobody sets
VOCABULARY = "the text and its tokenizer decide it."


def classes(family: str) -> dict[str, type[Config]]:
    """Table -> its config class. Raises ConfigError for an unknown family."""
    if family not in FAMILIES:
        near = did_you_mean(family, FAMILIES) or f" There are {', '.join(FAMILIES)}."
        raise ConfigError(f"No model family {family!r}.{near}")
    return {
        "model": FAMILIES[family][1],
        "train": TrainConfig,
        "optimizer": OptimizerConfig,
        "schedule": ScheduleConfig,
    }


def options(family: str, task: type[Config] = LanguageTask.settings) -> dict[str, dict[str, Any]]:
    """Table -> option -> type, of all that a person may set. `task` is the class of the task's options. Raises
    ConfigError for an unknown family."""
    return {
        table: {name: kind for name, kind in cls.annotations().items() if name not in SIZES}
        for table, cls in {**classes(family), "task": task}.items()
    }


def merged(*layers: Mapping[str, Mapping[str, Any]]) -> Tables:
    """One set of tables; a later layer's setting wins."""
    result: Tables = {table: {} for table in ("model", "train", "optimizer", "schedule", "task")}
    for layer in layers:
        for table, values in layer.items():
            result[table].update(values)
    return result


def from_words(words: Iterable[str], family: str, task: type[Config] = LanguageTask.settings) -> Tables:
    """`table.option=value`, as typed after --set. Raises ConfigError with the nearest option."""
    tables = options(family, task)
    known = {f"{table}.{name}": kind for table, kinds in tables.items() for name, kind in kinds.items()}
    result = merged()
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip()
        if not equals:
            raise ConfigError(f"--set {word}: needs a value, as in --set model.layers=6.")
        last = name.rpartition(".")[2]
        if last in SIZES:
            raise ConfigError(f"--set {name}: {VOCABULARY}")
        if name not in known:
            # The right option in the wrong table is the likeliest slip.
            same = [full for full in known if full.endswith(f".{last}")]
            near = f" Did you mean {same[0]}?" if same else did_you_mean(name, known)
            raise ConfigError(f"--set {name}: no such option.{near or ' Options look like model.layers, train.seed.'}")
        table, _, option = name.partition(".")
        result[table][option] = parse(value.strip(), known[name], name)
    return result


def from_file(path: Path, family: str, task: type[Config] = LanguageTask.settings) -> Tables:
    """The tables of a TOML file. Raises DataError for one that cannot be read, ConfigError for a wrong setting."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path}: cannot be read ({problem}).") from None
    except tomllib.TOMLDecodeError as problem:
        raise DataError(f"{path}: not TOML ({problem}).") from None
    result, known = merged(), options(family, task)
    for table, given in values.items():
        if table not in known:
            near = did_you_mean(table, known) or f" There are {', '.join(f'[{name}]' for name in known)}."
            if not isinstance(given, dict):
                raise ConfigError(f"{path}: {table} stands in no table.{home(table, known) or near}")
            raise ConfigError(f"{path}: no table [{table}].{near}")
        if not isinstance(given, dict):
            raise ConfigError(f"{path}: {table} = {given!r}: must be a table, [{table}].")
        for option, value in given.items():
            if option in SIZES:
                raise ConfigError(f"{path}: {option} in [{table}]: {VOCABULARY}")
            if option not in known[table]:
                near = home(option, known) or did_you_mean(option, known[table])
                raise ConfigError(f"{path}: no option {option} in [{table}].{near}")
            kind = known[table][option]
            found = coerce(value, kind)
            if found is WRONG and value == "none":  # TOML has no null: the word stands for it
                found = coerce(None, kind)
            if found is WRONG:
                raise ConfigError(f"{path}: {option} = {value!r} in [{table}]: must be {describe(kind)}.")
            result[table][option] = found
    return result


def home(option: str, known: Mapping[str, Iterable[str]]) -> str:
    """` Did you mean [table] option?` for the table that has it, or the empty string."""
    tables = [table for table, names in known.items() if option in names]
    return f" Did you mean [{tables[0]}] {option}?" if tables else ""


def to_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of a file that `from_file` reads back to the same settings."""
    written = {
        table: {option: "none" if value is None else value for option, value in values.items()}
        for table, values in tables.items()
        if values
    }
    return tomli_w.dumps(written)


def sizes_of(family: str) -> tuple[str, ...]:
    """Those of `SIZES` that a model of this family has."""
    return tuple(name for name in SIZES if name in classes(family)["model"].annotations())


def build(
    family: str, tables: Tables, sizes: Mapping[str, int]
) -> tuple[Config, TrainConfig, OptimizerConfig, ScheduleConfig]:
    """The four configs, checked, with the `sizes` that the task decides: each of `sizes_of(family)`. Raises ConfigError
    that names an option as it is typed: `model.heads`."""
    given: Tables = {**tables, "model": {**tables["model"], **sizes}}
    made: list[Any] = [checked(table, cls, given[table]) for table, cls in classes(family).items()]
    model, train, optimizer, schedule = made
    return model, train, optimizer, schedule


def checked(table: str, cls: type[Config], values: Mapping[str, Any]) -> Config:
    """A config from its table. Raises ConfigError that names an option as it is typed: `model.heads`."""
    try:
        return cls.from_dict(values)
    except ConfigError as problem:
        raise ConfigError(str(problem).replace(f"{cls.__name__}.", f"{table}.", 1)) from None
