from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from typing import Any, Literal, Optional

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handmade.config import WRONG, Config, coerce, describe, parse
from handmade.errors import ConfigError, HandmadeError
from handmade.generation import SamplingConfig
from handmade.models import FAMILIES, BigramConfig, CountingConfig, GPTConfig, MLPConfig, RecurrentConfig
from handmade.optimizers import OptimizerConfig
from handmade.schedules import ScheduleConfig
from handmade.training import TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Cake(Config):
    """One field of every kind."""

    layers: int
    sugar: float = 0.5
    name: str = "plain"
    candles: int | None = None
    glazed: bool = False
    shape: Literal["round", "square"] = "round"
    weights: tuple[float, ...] = (1.0, 2.0)
    pair: tuple[int, int] = (1, 2)
    temperature: float | None = None

    def check(self) -> None:
        self.require("layers", self.layers >= 1, "at least 1")
        self.require("sugar", 0 <= self.sugar < 1, "from 0 up to, not including, 1")


OLD_STYLE = Optional[float]  # noqa: UP045 - both ways to write it are read


# --- made, changed, refused ------------------------------------------------------------------------------------


def test_what_is_lossless_is_made_to_fit():
    cake = Cake(layers=np.int64(3), sugar=0, weights=[1, np.float32(0.5)], pair=[3, 4], temperature=2)
    assert cake == Cake(3, 0.0, weights=(1.0, 0.5), pair=(3, 4), temperature=2.0)
    assert [type(value) for value in (cake.layers, cake.sugar, *cake.weights)] == [int, float, float, float]
    assert hash(cake) == hash(Cake(3, 0.0, weights=(1.0, 0.5), pair=(3, 4), temperature=2.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 1.0}, "Cake.layers = 1.0: must be a whole number."),
        ({"layers": "3"}, "Cake.layers = '3': must be a whole number."),
        ({"layers": True}, "Cake.layers = True: must be a whole number."),
        ({"layers": None}, "Cake.layers = None: must be a whole number."),
        ({"layers": 0}, "Cake.layers = 0: must be at least 1."),
        ({"sugar": 1.0}, "Cake.sugar = 1.0: must be from 0 up to, not including, 1."),
        ({"sugar": math.nan}, "Cake.sugar = nan: must be from 0 up to, not including, 1."),
        ({"sugar": False}, "Cake.sugar = False: must be a number."),
        ({"name": 3}, "Cake.name = 3: must be text."),
        ({"candles": 2.5}, "Cake.candles = 2.5: must be a whole number or none."),
        ({"candles": "none"}, "Cake.candles = 'none': must be a whole number or none."),
        ({"glazed": 1}, "Cake.glazed = 1: must be true or false."),
        ({"shape": "flat"}, "Cake.shape = 'flat': must be one of round, square."),
        ({"weights": 1.0}, "Cake.weights = 1.0: must be a list of numbers."),
        ({"weights": "12"}, "Cake.weights = '12': must be a list of numbers."),
        ({"weights": [1.0, None]}, "Cake.weights = [1.0, None]: must be a list of numbers."),
        ({"pair": (1, 2, 3)}, "Cake.pair = (1, 2, 3): must be a list of 2 whole numbers."),
        ({"temperature": "hot"}, "Cake.temperature = 'hot': must be a number or none."),
    ],
)
def test_an_error_names_the_field_its_value_and_what_would_be_right(changes, message):
    with pytest.raises(ConfigError) as caught:
        Cake(**{"layers": 3, **changes})
    assert str(caught.value) == message
    assert isinstance(caught.value, HandmadeError)
    assert isinstance(caught.value, ValueError)


def test_a_number_too_large_for_a_float_is_refused():
    with pytest.raises(ConfigError, match="must be a number"):
        Cake(3, sugar=10**400)


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Cake(3).layers = 4


def test_from_dict():
    assert Cake.from_dict({"layers": 3}) == Cake(3)
    with pytest.raises(ConfigError, match=r"^Cake has no option 'layrs'\. Did you mean layers\?$"):
        Cake.from_dict({"layrs": 3})
    with pytest.raises(ConfigError, match=r"^Cake has no option 'zzzzz'\.$"):
        Cake.from_dict({"zzzzz": 3})
    with pytest.raises(ConfigError, match=r"^Cake needs a value for 'layers'\.$"):
        Cake.from_dict({"sugar": 0.1})


def test_replace():
    cake = Cake(3, candles=5)
    assert cake.replace(sugar=0.1) == Cake(3, 0.1, candles=5)
    assert cake.replace(candles=None).candles is None
    assert cake == Cake(3, candles=5)
    with pytest.raises(ConfigError, match="Did you mean sugar"):
        cake.replace(suger=0.1)
    with pytest.raises(ConfigError, match="must be at least 1"):
        cake.replace(layers=0)


# --- to JSON and TOML and back ---------------------------------------------------------------------------------


def through_json(config: Config) -> Config:
    return type(config).from_dict(json.loads(json.dumps(config.to_dict())))


def through_toml(config: Config) -> Config:
    """TOML has no null: what is None is left out, which is its default in the configs that are written so."""
    values = {name: value for name, value in config.to_dict().items() if value is not None}
    return type(config).from_dict(tomllib.loads(tomli_w.dumps(values)))


configs = st.builds(
    Cake,
    layers=st.integers(1, 2**40),
    sugar=st.floats(0, 1, exclude_max=True),
    name=st.sampled_from(["plain", "", 'a "quote"', "two\nlines", "\\n", "none", "日本語", "\0"]),
    candles=st.none() | st.integers(-(2**40), 2**40),
    glazed=st.booleans(),
    shape=st.sampled_from(["round", "square"]),
    weights=st.lists(st.floats(allow_nan=False)).map(tuple),
    pair=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    temperature=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(config=configs)
def test_round_trips(config):
    assert through_json(config) == config
    assert through_toml(config) == config


@pytest.mark.parametrize(
    "config",
    [
        GPTConfig(vocab_size=65, positions="rotary", logit_cap=15.0, key_value_heads=2),
        RecurrentConfig(vocab_size=65, cell="rnn"),
        MLPConfig(vocab_size=65, window=4),
        BigramConfig(vocab_size=65),
        CountingConfig(vocab_size=65),
        TrainConfig(clip=None, tokens_per_step=1000),
        OptimizerConfig(name="muon", betas=(0.8, 0.9)),
        ScheduleConfig(),
        SamplingConfig(),
    ],
    ids=lambda config: type(config).__name__,
)
def test_every_config_of_ours_goes_to_json_and_back(config):
    assert through_json(config) == config


@pytest.mark.parametrize(
    "cls", [TrainConfig, OptimizerConfig, ScheduleConfig, *(config for _, config in FAMILIES.values())]
)
def test_every_field_has_a_kind_that_can_be_described(cls):
    for name, annotation in cls.annotations().items():
        assert "typing" not in describe(annotation), name
        assert "<" not in describe(annotation), name


# --- kinds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        (int, [(3, 3), (-1, -1), (np.uint16(7), 7)], [3.0, "3", True, None, np.float64(3), torch.tensor(3)]),
        (float, [(3, 3.0), (0.5, 0.5), (np.float32(0.5), 0.5)], ["3", True, None, 1j]),
        (str, [("a", "a"), ("", "")], [3, None, b"a"]),
        (bool, [(True, True), (False, False)], [1, 0, "true", None]),
        (type(None), [(None, None)], [0, "", False]),
        (Any, [(object, object)], []),
        (int | None, [(3, 3), (None, None)], [3.5, "none", False]),
        (OLD_STYLE, [(3, 3.0), (None, None)], ["x"]),
        (bool | int, [(True, True), (3, 3)], [0.5]),
        (Literal["a", "b"], [("a", "a")], ["c", None, 1]),
        (tuple[int, ...], [((), ()), ([1, 2], (1, 2))], [[1.5], "12", 1, None]),
        (tuple[int, str], [((1, "a"), (1, "a"))], [(1,), ("a", 1), (1, "a", 2)]),
    ],
)
def test_coerce(annotation, right, wrong):
    for value, expected in right:
        found = coerce(value, annotation)
        assert found == expected
        assert type(found) is type(expected)
    for value in wrong:
        assert coerce(value, annotation) is WRONG, value


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        (int, {"3": 3, "-2": -2, "1_000": 1000, " 7 ": 7}, ["3.0", "x", "", "none", "1e3"]),
        (float, {"0.5": 0.5, "3": 3.0, "1e-3": 1e-3, "1_000.5": 1000.5}, ["x", "", "none", "0,5"]),
        (str, {"a b": "a b", "": "", "none": "none"}, []),
        (bool, {"true": True, "Yes": True, "1": True, "FALSE": False, "no": False, "0": False}, ["2", "", "on"]),
        (int | None, {"3": 3, "none": None, "None": None}, ["3.5", "null", ""]),
        (OLD_STYLE, {"3": 3.0, "none": None}, ["x"]),
        (Literal["none", "rotary"], {"none": "none", "rotary": "rotary"}, ["Rotary", ""]),
        (
            tuple[float, ...],
            {"0.9,0.95": (0.9, 0.95), "0.9, 0.95": (0.9, 0.95), "[0.9, 0.95]": (0.9, 0.95), "(1,2)": (1.0, 2.0)},
            ["0.9;0.95", "a,b", "", "1,,2"],
        ),
    ],
)
def test_parse(annotation, right, wrong):
    for text, expected in right.items():
        found = parse(text, annotation, "x.y")
        assert found == expected
        assert type(found) is type(expected)
    for text in wrong:
        with pytest.raises(ConfigError) as caught:
            parse(text, annotation, "x.y")
        assert str(caught.value).startswith(f"x.y = {text}: must be {describe(annotation)}.")


def test_parse_suggests_the_nearest_word():
    with pytest.raises(ConfigError, match=r"must be one of none, rotary\. Did you mean rotary\?"):
        parse("rotery", Literal["none", "rotary"], "model.positions")


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (float, "a number"),
        (str, "text"),
        (bool, "true or false"),
        (int | None, "a whole number or none"),
        (OLD_STYLE, "a number or none"),
        (Literal["a", "b"], "one of a, b"),
        (Literal["a"], "a"),
        (tuple[float, ...], "a list of numbers"),
        (tuple[int, int], "a list of 2 whole numbers"),
    ],
)
def test_describe(annotation, words):
    assert describe(annotation) == words
