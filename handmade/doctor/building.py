"""Calling what a person wrote with what it asks for: sizes by the names that its signature has, a config object, and
what was given by --arg."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from handmade.config import describe, parse
from handmade.doctor.importing import alone, telling
from handmade.errors import ConfigError, PatientError, did_you_mean

VOCABULARY = (
    "vocab_size", "n_vocab", "vocabulary_size", "padded_vocab_size", "vocab", "vocab_len", "vocabulary", "num_tokens",
    "n_tokens", "ntoken", "ntokens", "tgt_vocab_size", "src_vocab_size",
)  # fmt: skip
CONTEXT = (
    "context", "block_size", "context_length", "context_size", "context_window", "n_context", "n_ctx", "n_positions",
    "max_len", "maxlen", "max_length", "max_seq_len", "max_seq_length", "seq_len", "seq_length", "sequence_length",
    "max_position_embeddings",
)  # fmt: skip
DEPTH = ("layers", "n_layer", "n_layers", "num_layers", "num_hidden_layers", "depth", "n_blocks", "num_blocks")
CONFIGS = ("config", "cfg", "conf", "args", "hparams", "params", "configuration", "model_args", "model_config")
CONFIG_ENDINGS = ("config", "configuration", "args", "arguments", "hparams", "hyperparameters", "settings")
TOKENS = ("tokens", "token_ids", "ids", "idx", "input_ids", "inputs", "input", "x", "src", "sequence")
BEGINNINGS = ("get_default_config", "default_config")
"""What a class may call the config that it begins with: a function of its own, without arguments."""
USUAL_CONTEXT = 64


class Asked:
    """What a person gave to build with: sizes, and words `name=value`; which of the words were used."""

    def __init__(self, vocabulary: int | None, context: int | None, arguments: Mapping[str, str]) -> None:
        self.vocabulary, self.context, self.arguments = vocabulary, context, dict(arguments)
        self.used: set[str] = set()
        self.known: set[str] = set()
        """Names that could have been given."""
        self.shallow: int | None = None
        """Layers, where the model would be too large with what it has."""
        self.depth: int | None = None
        """Layers that it would have had, where the number was seen."""
        self.notes: list[str] = []

    def value(self, parameter: inspect.Parameter, kind: Any) -> Any:
        """What a parameter is called with; `MISSING` where nothing was given for it. Raises ConfigError for a word
        that is not of its kind."""
        name = parameter.name
        self.known.add(name)
        found: Any = MISSING
        if name in self.arguments:
            self.used.add(name)
            found = typed(name, self.arguments[name], kind, parameter.default)
        elif name in VOCABULARY and self.vocabulary is not None:
            found = self.vocabulary
        elif name in CONTEXT and self.context is not None:
            found = self.context
        elif name in CONTEXT and parameter.default is parameter.empty:
            self.notes.append(f"{name} = {USUAL_CONTEXT}: it has to be given, and --context was not")
            found = USUAL_CONTEXT
        return self.cut(name, found, parameter.default)

    def cut(self, name: str, found: Any, default: Any) -> Any:
        """A number of layers, made smaller where that was found to be necessary."""
        present = default if found is MISSING else found
        if name in DEPTH and type(present) is int:
            self.depth = present
            if self.shallow is not None and present > self.shallow:
                return self.shallow
        return found

    def require_used(self, what: str) -> None:
        """Raise ConfigError for a word that nothing asked for."""
        for name, value in self.arguments.items():
            if name not in self.used:
                there = ", ".join(sorted(self.known))
                near = did_you_mean(name, self.known) or (f" It takes {there}." if there else " It takes nothing.")
                raise ConfigError(f"--arg {name}={value}: {what} takes no {name}.{near}")


MISSING: Any = object()


def typed(name: str, text: str, kind: Any, default: Any) -> Any:
    """A word as the type that is asked for; where nothing says which, as the Python value that it looks like."""
    if kind is inspect.Parameter.empty and isinstance(default, (bool, str)):
        kind = type(default)
    simple = (int, float, bool, str)
    parts = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if all(part in (*simple, type(None)) or typing.get_origin(part) is typing.Literal for part in parts):
        try:
            return parse(text, kind, f"--arg {name}")
        except ConfigError:
            raise ConfigError(f"--arg {name}={text}: must be {describe(kind)}.") from None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


# ---------------------------------------------------------------------------------------------------------------
# Calling


class Call:
    """A class or function of a person, ready to be called: `call()`. `words` is how that looks."""

    def __init__(self, made: Callable[..., Any], options: dict[str, Any], open_: list[str]) -> None:
        self.made, self.options = made, options
        self.open = open_
        """Names of parameters that nothing is known for and that have no default."""

    def __call__(self) -> Any:
        # A config may be written to by what takes it: each instance gets its own.
        return self.made(**{name: copy.deepcopy(value) for name, value in self.options.items()})

    @property
    def words(self) -> str:
        inside = ", ".join(f"{name}={shown(value)}" for name, value in self.options.items())
        return f"{named(self.made)}({inside})"


def call_of(made: Callable[..., Any], asked: Asked, namespace: Mapping[str, Any]) -> Call:
    """How to call a class or function with what was given. `namespace` is that of its file, where a config's class
    may be."""
    options: dict[str, Any] = {}
    left = []
    kinds = kinds_of(made)
    for parameter in parameters_of(made):
        if parameter.kind == parameter.VAR_POSITIONAL:
            continue
        if parameter.kind == parameter.VAR_KEYWORD:
            for name in set(asked.arguments) - asked.used:
                asked.used.add(name)
                options[name] = typed(name, asked.arguments[name], parameter.empty, None)
            continue
        kind = kinds.get(parameter.name, parameter.annotation)
        found = asked.value(parameter, kind)
        if found is MISSING and is_config(parameter, kind):
            found = config_for(made, parameter, kind, asked, namespace)
        if found is not MISSING:
            options[parameter.name] = found
        elif parameter.default is parameter.empty:
            left.append(parameter.name)
    return Call(made, options, left)


def parameters_of(made: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a class or function, those that can only be given by position left out."""
    try:
        found = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):
        return []
    return [parameter for parameter in found if parameter.kind != parameter.POSITIONAL_ONLY]


def kinds_of(made: Callable[..., Any]) -> dict[str, Any]:
    """Parameter -> type, where it is said and can be found."""
    try:
        # A dataclass has its types as a class, another class in the method that makes it.
        body = made if not inspect.isclass(made) or dataclasses.is_dataclass(made) else made.__init__
        return typing.get_type_hints(body)
    except Exception:  # an annotation may be any expression
        return {}


def named(made: Any) -> str:
    return getattr(made, "__name__", type(made).__name__)


def shown(value: Any) -> str:
    """A value in a line. An object that only says where it lies in memory is shown by what it holds."""
    text = " ".join(repr(value).split())
    if type(value).__repr__ is object.__repr__ and hasattr(value, "__dict__"):
        text = f"{named(value)}({', '.join(f'{name}={one!r}' for name, one in vars(value).items())})"
    return text if len(text) <= 160 else f"{text[:159]}…"


def takes_tokens(call: Call) -> bool:
    """Whether what is left open is a model's input: then the function is a model, and not what makes one."""
    if len(call.open) != 1 or inspect.isclass(call.made):
        return False
    return call.open[0] in TOKENS or kinds_of(call.made).get(call.open[0]) is Tensor


def require_closed(call: Call, target: str) -> None:
    """Raise ConfigError for parameters that nothing is known for."""
    if not call.open:
        return
    sizes = [name for name in call.open if name in VOCABULARY]
    if sizes:
        raise ConfigError(f"{target}: asks for {sizes[0]}. Give --vocab-size N.")
    words = " ".join(f"--arg {name}=VALUE" for name in call.open)
    raise ConfigError(
        f"{target}: {named(call.made)} asks for {', '.join(call.open)}. Give {words}, or write a function without\n"
        "arguments that returns the model, and name that."
    )


# ---------------------------------------------------------------------------------------------------------------
# Configs


def is_config(parameter: inspect.Parameter, kind: Any) -> bool:
    """Whether a parameter is an object with settings in it."""
    if parameter.default not in (parameter.empty, None):
        return False
    return parameter.name in CONFIGS or (inspect.isclass(kind) and is_config_class(kind))


def is_config_class(kind: type) -> bool:
    return (
        not issubclass(kind, nn.Module)
        and kind.__module__ != "builtins"
        and (dataclasses.is_dataclass(kind) or kind.__name__.lower().endswith(CONFIG_ENDINGS))
    )


def config_for(
    made: Callable[..., Any], parameter: inspect.Parameter, kind: Any, asked: Asked, namespace: Mapping[str, Any]
) -> Any:
    """The config that a model asks for: the one that its class says it begins with, or one of the class in its
    annotation, or of the one in its file that fits its name, or a copy of one that its file has made; else whatever was
    given by --arg. MISSING where it may be left out."""
    first = [one for name in BEGINNINGS if callable(one := getattr(made, name, None)) and not parameters_of(one)]
    if first:
        return with_settings(called(first[0], namespace), asked, namespace)
    if inspect.isclass(kind) and is_config_class(kind):
        return configured(kind, asked, namespace)
    values = [(name, value) for name, value in namespace.items() if not name.startswith("_")]
    own = [value for _, value in values if inspect.isclass(value) and is_config_class(value)]
    fitting = [one for one in own if one.__name__.lower().startswith(named(made).lower())]
    if fitting or len(own) == 1:
        return configured((fitting or own)[0], asked, namespace)
    if own:
        raise ConfigError(
            f"{named(made)} asks for {parameter.name}, which may be {' or '.join(one.__name__ for one in own)}."
            " Write a function that returns the model, and name that."
        )
    ready = [
        value
        for name, value in values
        if (isinstance(value, dict) and set(value) & {*VOCABULARY, *CONTEXT})
        or (name.lower() in CONFIGS and hasattr(value, "__dict__") and not callable(value))
    ]
    if ready:
        return with_settings(copy.deepcopy(ready[0]), asked, namespace)
    if parameter.default is None:
        return MISSING
    return Settings(asked, named(made))


def configured(kind: Any, asked: Asked, namespace: Mapping[str, Any]) -> Any:
    """A config of a class: what its signature has is given to it, what it has besides is set on it."""
    call = call_of(kind, asked, namespace)
    require_closed(call, named(kind))
    config = called(call, namespace)
    loose = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters_of(kind))
    for names, size in ((VOCABULARY, asked.vocabulary), (CONTEXT, asked.context)):
        # One that takes any name has no place yet for a size: nobody can know under which name it is looked for.
        for name in names if loose and size is not None else ():
            if isinstance(config, dict):
                config.setdefault(name, size)
            elif not hasattr(config, name):
                setattr(config, name, size)
    return with_settings(config, asked, namespace)


def called(make: Callable[[], Any], namespace: Mapping[str, Any]) -> Any:
    """What `make` returns. Raises PatientError where it fails: it is a person's code, in the file of `namespace`."""
    path = Path(namespace.get("__file__") or ".")
    with alone(path), telling(path, "the config cannot be made"):
        return make()


def with_settings(config: Any, asked: Asked, namespace: Mapping[str, Any]) -> Any:
    """A config with what was asked for, where it has a place for it: a mapping's keys, an object's attributes, the
    fields of a frozen dataclass."""
    mapping = isinstance(config, dict)
    how = getattr(config, "__dataclass_params__", None)
    frozen = how is not None and how.frozen
    fields = {field.name for field in dataclasses.fields(config) if field.init} if frozen else set()
    changed: dict[str, Any] = {}
    there = list(config) if mapping else [n for n in dir(config) if not n.startswith("_")]
    for name in there:
        present = config[name] if mapping else getattr(config, name, None)
        if callable(present) or name in asked.used:
            continue
        place = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=present)
        found = asked.value(place, inspect.Parameter.empty)
        if found is MISSING or (type(found) is type(present) and found == present):
            continue
        if mapping:
            config[name] = found
        elif name in fields:
            changed[name] = found
        elif not frozen:
            setattr(config, name, found)
    return called(lambda: dataclasses.replace(config, **changed), namespace) if changed else config


class Settings(dict):
    """A config where a file has none: what was given by --arg, and the sizes under every usual name; as attributes and
    as keys. What is not in it is asked for by name."""

    def __init__(self, asked: Asked, who: str) -> None:
        for name, text in asked.arguments.items():
            self[name] = typed(name, text, object, None)
            self[name] = asked.cut(name, self[name], None)
        asked.used.update(asked.arguments)
        for names, size in ((VOCABULARY, asked.vocabulary), (CONTEXT, asked.context)):
            for name in names if size is not None else ():
                self.setdefault(name, size)
        vars(self)["_who"] = who

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnsetAttribute(self._unset(name))

    def __missing__(self, name: str) -> Any:
        raise UnsetKey(self._unset(name))

    def _unset(self, name: str) -> str:
        size = {True: "--vocab-size N"}.get(name in VOCABULARY) or {True: "--context N"}.get(name in CONTEXT)
        return f"{vars(self).get('_who')} asks its config for {name}. Give {size or f'--arg {name}=VALUE'}."


class UnsetAttribute(PatientError, AttributeError):
    """So that `hasattr` and `getattr` with a default do what they do."""


class UnsetKey(PatientError, KeyError):
    """So that `in` and `get` do what they do."""

    __str__ = Exception.__str__
