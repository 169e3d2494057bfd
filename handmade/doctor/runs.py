"""A run folder of ours as what the doctor takes: the model with its best weights, and around it the trainer, the data,
the checkpoints and the sampling that it was made with.

B rows, T positions, S source positions, V vocabulary.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from handmade import generation, machine, planning, run
from handmade.config import Config
from handmade.doctor.given import Given
from handmade.doctor.run_training import add_training, fewer_pairs, shortened, written
from handmade.errors import ConfigError, HandmadeError, ResourceError
from handmade.files import readable
from handmade.generation import SamplingConfig
from handmade.models import ENCODER_DECODERS, FAMILIES, BigramConfig, CountingConfig, GPTConfig, parameter_count
from handmade.optimizers import OptimizerConfig, build_optimizers, parameter_groups
from handmade.pair_tokenizer import END, FIRST, PAD
from handmade.randomness import seeded
from handmade.run import Run
from handmade.tasks import LanguageTask
from handmade.tasks.arithmetic.strings import PAD_ID
from handmade.tasks.base import Batch
from handmade.tasks.language import WINDOW

COPIES = 6
"""What an examination may hold of a model: its weights, what is put back afterwards, gradients, two numbers of an
optimizer, another instance."""
LARGE = 30_000_000
"""Parameters from which fewer layers are examined: they show the same mistakes, and all checks are done in seconds."""
MOST_TOKENS = 10_000_000
"""Of a text, that are read."""
DEPTHS = ("layers", "encoder_layers", "decoder_layers")


def given_of_run(folder: Path, seed: int = 0) -> tuple[Given, list[str]]:
    """Everything of a run that is there, and notes about what is not. Raises RunError for a folder that holds none or
    a damaged one, ResourceError for a model that memory is too small for."""
    found, trained, notes = opened(folder, seed)
    task: Any = None
    try:
        task = found.task
    except (HandmadeError, OSError) as problem:
        notes.append(f"without its data: {problem}")
    if found.translates:
        return given_of_translation(found, task, trained, notes, seed)
    model: Any = found.model
    shape = model.config
    given = Given(
        model=model,
        vocab_size=found.tokenizer.vocab_size,
        context=model.context or found.context,
        trained=trained,
        tokenizer=found.tokenizer,
        generate=Generate(model),
        filters=filters,
        expect=declared(model, shape, OptimizerConfig.from_dict(found.config["optimizer"])),
        build=Fresh(found.config["family"], shape, seed),
    )
    if not found.continues:
        given.padding = PAD_ID
        given.expect = {**given.expect, "special_padding": True}
    if parameter_count(model):
        add_training(given, found, shortened(task, model), notes)
    if isinstance(task, LanguageTask):
        given.train_data = text_of(found, task.data.train, "trained on", notes)
        given.validation_data = text_of(found, task.data.validation, "validated on", notes)
        given.windows = task.training
        if given.batches is None:  # a model that counts is trained in one go
            given.batches = [task.batch(4, torch.Generator().manual_seed(seed))]
    elif task is not None:
        given.train_data, given.validation_data = written(task, task.train), written(task, task.test)
    return given, notes


def given_of_translation(found: Run, task: Any, trained: bool, notes: list[str], seed: int) -> tuple[Given, list[str]]:
    """The same of a run of translation: its decoder, behind one source."""
    shape: Any = found.model.config
    few = None if task is None else fewer_pairs(task)
    pair = None if few is None else few.training.take(torch.tensor([len(few.training) - 1]))  # the longest
    source = some_source(shape) if pair is None else pair.source
    inner: Any = found.model
    model = Decoder(inner, source)
    expect = declared(model, shape, OptimizerConfig.from_dict(found.config["optimizer"]))
    notes.append("an encoder-decoder: examined is what its decoder writes behind one source")
    given = Given(
        model=model,
        vocab_size=found.tokenizer.vocab_size,
        context=inner.context,
        trained=trained,
        padding=PAD,
        tokenizer=found.tokenizer,
        filters=filters,
        expect={**expect, "special_padding": True},
        build=Fresh(found.config["family"], shape, seed, source),
    )
    add_training(given, found, few, notes)
    if task is not None and pair is not None:
        given.batches = [Batch(pair.inputs, pair.targets)]
        given.train_data = list(task.split.train.sources)
        given.validation_data = [*task.split.validation.sources, *task.split.test.sources]
    return given, notes


def text_of(found: Run, tokens: Any, what: str, notes: list[str]) -> str:
    """The text that tokens stand for; of very many the last, those next to the other part."""
    if len(tokens) > MOST_TOKENS:
        notes.append(f"of the text that is {what}, {MOST_TOKENS:,} of {len(tokens):,} tokens are read")
    return found.tokenizer.decode(tokens[-MOST_TOKENS:])


# ---------------------------------------------------------------------------------------------------------------
# The model


def opened(folder: Path, seed: int) -> tuple[Run, bool, list[str]]:
    """The run, on the CPU; whether its weights are those that it learnt; notes. A large model is built anew with fewer
    layers."""
    config = run.read_config(folder)
    family = config["family"]
    notes: list[str] = []
    shape = shape_of(config)
    smaller = None if shape is None else shallower(shape)
    if smaller is None or shape is None:
        return run.load(folder, "cpu"), True, notes
    parameters = planning.parameters_of(shape)
    what = ", ".join(f"{getattr(smaller, n)} of its {getattr(shape, n)} {n.replace('_', ' ')}" for n in depths(shape))
    notes.append(f"{parameters / 1e6:,.0f} M parameters: examined with {what}, weights drawn anew")
    made: Any = FAMILIES[family][0]
    model = made(smaller, seeded(seed, "initialization"))
    return Run(folder, config, run.read_tokenizer(folder), model.eval()), False, notes


def shape_of(config: dict[str, Any]) -> Config | None:
    """The settings of a run's model; None where they are damaged, which opening it says."""
    try:
        settings: Any = FAMILIES[config["family"]][1]
        return settings.from_dict(config["model"])
    except (ConfigError, KeyError):
        return None


def depths(shape: Config) -> list[str]:
    """The settings that say how many layers there are."""
    return [name for name in DEPTHS if isinstance(getattr(shape, name, None), int)]


def shallower(shape: Config, most: int = LARGE) -> Config | None:
    """A model of the same parts with fewer layers; None where it is small enough as it is. Raises ResourceError where
    memory is too small even so."""
    free = machine.free_memory(torch.device("cpu"))
    parameters = planning.parameters_of(shape)
    most = min(most, free // (4 * COPIES))
    smaller = shape
    while planning.parameters_of(smaller) > most and any(getattr(smaller, name) > 2 for name in depths(smaller)):
        smaller = smaller.replace(**{name: max(2, getattr(smaller, name) // 2) for name in depths(smaller)})
    needed = 4 * COPIES * planning.parameters_of(smaller)
    if needed > free:
        raise ResourceError(
            f"{parameters / 1e6:,.0f} M parameters: that takes {readable(needed)} of memory to examine even with few"
            f" layers, and {readable(free)} are free."
        )
    return None if smaller is shape else smaller


class Decoder(nn.Module):
    """An encoder-decoder as a language model: what it writes behind one source, the same for every row.

    Shapes: source (1, S) int64; tokens (B, T) int64 -> logits (B, T, V).
    """

    source: Tensor

    def __init__(self, model: nn.Module, source: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("source", source, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(self.source.expand(len(tokens), -1), tokens)


class Fresh:
    """Makes another instance of a model, its weights drawn with another seed each time."""

    def __init__(self, family: str, shape: Any, seed: int = 0, source: Tensor | None = None) -> None:
        self.made: Any = FAMILIES[family][0]
        self.shape, self.source, self.seeds = shape, source, itertools.count(seed + 1)

    def __call__(self) -> nn.Module:
        model = self.made(self.shape, seeded(next(self.seeds), "initialization"))
        return model if self.source is None else Decoder(model, self.source)


def some_source(shape: Any) -> Tensor:
    """A source where no pairs are there: some tokens and an end. Shapes: -> (1, S)."""
    length = max(1, min(8, shape.context - 1, shape.source_vocab_size - FIRST))
    return torch.tensor([[*range(FIRST, FIRST + length), END]])


def positions_of(model: Any) -> int:
    """Positions that it sees at once; of one that can run for ever, those of its training windows."""
    return model.context or getattr(model.config, "context", None) or WINDOW


def declared(model: nn.Module, shape: Config, optimizer: OptimizerConfig | None = None) -> dict[str, Any]:
    """What the settings of a model say about what was meant."""
    expect: dict[str, Any] = {}
    dropout = getattr(shape, "dropout_rate", getattr(shape, "dropout", 0.0))
    expect["dropout"] = bool(dropout or getattr(shape, "attention_dropout", 0.0))
    if hasattr(shape, "tied_head"):
        expect["tied"] = shape.tied_head
    if isinstance(shape, BigramConfig) or (isinstance(shape, CountingConfig) and shape.order <= 2):
        expect["past"] = False
    if isinstance(shape, GPTConfig) and shape.positions == "none" and shape.layers == 1:
        expect["positions"] = False  # with more layers, a causal model knows something of the order
    if getattr(shape, "query_key_norm", False) or getattr(shape, "attention", "") == "multiplicative":
        expect["score_scale"] = True
    if optimizer is not None and optimizer.decay_embeddings:
        expect["decayed"] = list(parameter_groups(model)["embeddings"])
    return expect


def given_of_shape(
    family: str, shape: Config, optimizer: OptimizerConfig | None = None, seed: int = 0, most: int = LARGE
) -> Given:
    """A new model of ours with its optimizers: for a look before it is trained. One of more parameters than `most` has
    fewer layers. Raises ResourceError where memory is too small even so."""
    smaller = shallower(shape, most) or shape
    source = some_source(smaller) if family in ENCODER_DECODERS else None
    build = Fresh(family, smaller, seed, source)
    model: Any = build()
    inner = model if source is None else model.model
    vocabulary: int = smaller.vocab_size  # type: ignore[attr-defined]
    return Given(
        model=model,
        vocab_size=vocabulary,
        context=positions_of(inner),
        build=build,
        optimizer=None if optimizer is None else build_optimizers(inner, optimizer),
        expect=declared(model, smaller, optimizer),
    )


# ---------------------------------------------------------------------------------------------------------------
# Sampling


class Generate:
    """Sampling as `handmade sample` does it. Shapes: tokens (B, T) int64 -> the new ones (B, count)."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(
        self,
        tokens: Tensor,
        count: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        use_cache: bool = True,
    ) -> Tensor:
        seed = int(torch.randint(2**62, ()))  # so that torch.manual_seed decides, as a person expects
        sampling = SamplingConfig(temperature, top_k, top_p)
        rows = generation.generate(self.model, tokens.tolist(), count, sampling, seed=seed, cache=use_cache)
        return torch.tensor(rows, dtype=torch.int64).view(len(tokens), count)


def filters(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """What a token is drawn from. Shapes: (B, V) -> (B, V)."""
    return generation.filtered(logits, SamplingConfig(temperature, top_k, top_p))


__all__ = ["Decoder", "given_of_run", "given_of_shape"]
