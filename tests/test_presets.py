from __future__ import annotations

import functools
import json
from contextlib import ExitStack
from unittest import mock

import pytest
import torch

from handmade import presets, settings
from handmade.errors import ConfigError
from handmade.layers import Embedding, Linear
from handmade.models.gpt import GPT, GPTConfig, parameter_count
from handmade.presets import PRESETS

every_preset = pytest.mark.parametrize("name", PRESETS)
CHARACTERS = 65  # of Tiny Shakespeare


def config_of(name: str, **changes: object) -> GPTConfig:
    preset = PRESETS[name]
    return GPTConfig.from_dict({**preset.model, "vocab_size": preset.vocab_size or CHARACTERS, **changes})


@functools.cache
def counted(config: GPTConfig) -> int:
    def draw_nothing(*_: object) -> None:
        """Shapes are all that is wanted; draws on the meta device take PyTorch seconds to get ready for."""

    with ExitStack() as stack:
        for part in (Linear, Embedding):
            stack.enter_context(mock.patch.object(part, "reset_parameters", draw_nothing))
        stack.enter_context(mock.patch.object(GPT, "initialize", draw_nothing))
        stack.enter_context(torch.device("meta"))
        return parameter_count(GPT(config))


def sizes(preset: presets.Preset) -> dict[str, int]:
    return dict.fromkeys(settings.sizes_of(preset.family), preset.vocab_size or CHARACTERS)


@every_preset
def test_every_preset_can_be_used(name):
    preset = PRESETS[name]
    assert preset.about
    assert preset.source
    assert "\n" not in preset.about + preset.source
    tables = {table: getattr(preset, table) for table in ("model", "train", "optimizer", "schedule")}
    settings.build(preset.family, settings.merged(tables), sizes(preset))
    assert json.loads(json.dumps(tables))  # data, that any file can hold


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # Hugging Face's openai-gpt: 40,478 * 768 + 512 * 768 + 12 blocks of 7,087,872
        ("gpt1", 116_534_784),
        # the released weights, the head being the embedding
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        # GPT-2 small with 1,024 positions more
        ("gpt3-125m", 124_439_808 + 1024 * 768),
    ],
)
def test_parameters_are_as_many_as_published(name, published):
    assert counted(config_of(name)) == published


@pytest.mark.parametrize(("name", "printed"), [("nanogpt-cpu", "0.80M"), ("nanogpt-gpu", "10.65M")])
def test_nanogpt_prints_the_same_number(name, printed):
    # nanoGPT leaves the positions out of what it prints.
    config = config_of(name)
    assert f"{(counted(config) - config.context * config.width) / 1e6:.2f}M" == printed


def test_the_lecture_prints_the_same_number():
    # At its own width; our queries, keys and values have biases that the lecture's lack.
    config = config_of("baby-gpu", width=384, heads=6)
    assert (counted(config) - config.layers * 3 * config.width) / 1e6 == 10.788929


@pytest.mark.parametrize(
    "name", [name for name, made in PRESETS.items() if made.family == "gpt" and made.model.get("positions") is None]
)
def test_parameters_follow_the_formula(name):
    c = config_of(name)
    width, bias = c.width, int(c.bias)
    block = (4 + 8) * width**2 + bias * (4 + 4 + 1) * width + 2 * (1 + bias) * width
    norm = (1 + bias) * width if c.norm_placement == "pre" else 0
    head = 0 if c.tied_head else width * c.vocab_size + (c.vocab_size if c.head_bias else 0)
    assert counted(c) == (c.vocab_size + c.context) * width + c.layers * block + norm + head


GPT2 = {"context": 1024, "dropout": 0.1}
LECTURE = {"activation": "relu", "dropout": 0.2, "attention_dropout": 0.2, "tied_head": False, "head_bias": True}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        # Radford et al. 2018, section 4.1
        ("gpt1", {"layers": 12, "heads": 12, "width": 768, "context": 512, "norm_placement": "post", "dropout": 0.1}),
        (
            "gpt1",
            {"initialization": "normal", "attention_dropout": 0.1, "positions": "learned", "hidden_features": 3072},
        ),
        # Radford et al. 2019, table 2; heads of 64 features
        ("gpt2", {"layers": 12, "width": 768, "head_features": 64, **GPT2}),
        ("gpt2-medium", {"layers": 24, "width": 1024, "head_features": 64, **GPT2}),
        ("gpt2-large", {"layers": 36, "width": 1280, "head_features": 64, **GPT2}),
        ("gpt2-xl", {"layers": 48, "width": 1600, "head_features": 64, **GPT2}),
        ("gpt2", {"activation": "gelu-tanh", "norm_placement": "pre", "initialization": "gpt2", "tied_head": True}),
        # Brown et al. 2020, table 2.1
        ("gpt3-125m", {"layers": 12, "width": 768, "heads": 12, "head_features": 64, "context": 2048}),
        # nanoGPT: README, "I only have a macbook", over config/train_shakespeare_char.py, model.py
        (
            "nanogpt-cpu",
            {"layers": 4, "heads": 4, "width": 128, "context": 64, "dropout": 0.0, "attention_dropout": 0.0},
        ),
        (
            "nanogpt-gpu",
            {"layers": 6, "heads": 6, "width": 384, "context": 256, "dropout": 0.2, "attention_dropout": 0.2},
        ),
        ("nanogpt-cpu", {"activation": "gelu", "bias": False, "tied_head": True, "initialization": "gpt2"}),
        ("nanogpt-gpu", {"activation": "gelu", "bias": False, "tied_head": True, "initialization": "gpt2"}),
        # ng-video-lecture, gpt.py, at the sizes that this project wants
        ("baby-cpu", {"layers": 2, "width": 16, "context": 8, **LECTURE}),
        ("baby-gpu", {"layers": 6, "width": 512, "heads": 8, "context": 256, **LECTURE}),
    ],
)
def test_shapes_are_those_of_the_source(name, model):
    config = config_of(name)
    assert {field: getattr(config, field) for field in model} == model


@pytest.mark.parametrize(
    ("name", "rows", "steps", "rate", "betas", "decay", "clip", "warmup_steps", "last_rate"),
    [
        ("gpt1", 64, 100_000, 2.5e-4, (0.9, 0.999), 0.01, 1.0, 2000, 0.0),
        # half a million tokens a step, 375 million tokens of warm-up
        ("gpt2", 512, 100_000, 6e-4, (0.9, 0.95), 0.1, 1.0, 715, 6e-5),
        ("gpt2-medium", 512, 100_000, 3e-4, (0.9, 0.95), 0.1, 1.0, 715, 3e-5),
        ("gpt2-large", 512, 100_000, 2.5e-4, (0.9, 0.95), 0.1, 1.0, 715, 2.5e-5),
        ("gpt2-xl", 512, 100_000, 2e-4, (0.9, 0.95), 0.1, 1.0, 715, 2e-5),
        ("gpt3-125m", 256, 572_000, 6e-4, (0.9, 0.95), 0.1, 1.0, 715, 6e-5),
        ("nanogpt-cpu", 12, 2000, 1e-3, (0.9, 0.99), 0.1, 1.0, 100, 1e-4),
        ("nanogpt-gpu", 64, 5000, 1e-3, (0.9, 0.99), 0.1, 1.0, 100, 1e-4),
        ("baby-cpu", 16, 5000, 5e-3, (0.9, 0.999), 0.01, None, 0, 5e-3),
        ("baby-gpu", 64, 5000, 1e-3, (0.9, 0.999), 0.01, None, 0, 1e-3),
    ],
)
def test_training_is_that_of_the_source(name, rows, steps, rate, betas, decay, clip, warmup_steps, last_rate):
    preset = PRESETS[name]
    tables = {table: getattr(preset, table) for table in ("model", "train", "optimizer", "schedule")}
    model, train, optimizer, schedule = settings.build(
        "gpt", settings.merged(tables), {"vocab_size": preset.vocab_size or CHARACTERS}
    )
    assert (train.tokens_per_step or train.batch * model.context) == rows * model.context
    assert (train.steps, train.clip) == (steps, clip)
    assert (optimizer.name, optimizer.learning_rate, optimizer.betas) == ("adamw", rate, betas)
    assert optimizer.weight_decay == decay
    assert round(schedule.warmup * steps) == warmup_steps
    last = rate if schedule.name == "constant" else rate * schedule.final
    assert last == pytest.approx(last_rate)


def test_the_lectures_heads_divide_its_width():
    with pytest.raises(ConfigError, match="heads = 6: does not divide width = 512"):
        config_of("baby-gpu", heads=6)


def test_find():
    assert presets.find("gpt2") is PRESETS["gpt2"]
    with pytest.raises(ConfigError, match=r"No preset 'nanogtp-cpu'\. Did you mean nanogpt-cpu\?"):
        presets.find("nanogtp-cpu")
    with pytest.raises(ConfigError, match=r"No preset 'zzz'\. There are gpt1, gpt2"):
        presets.find("zzz")
