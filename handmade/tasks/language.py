"""Language modelling: the next token of a text, at every position."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from handmade.config import Config
from handmade.data import TextData, Windows, fit_context
from handmade.errors import ConfigError
from handmade.generation import SamplingConfig
from handmade.layers import cross_entropy
from handmade.models import ENCODER_DECODERS
from handmade.models.ngram import CountingModel, counting_line
from handmade.presets import MODERN
from handmade.tasks import sizes
from handmade.tasks.base import PAIRS_ONLY, Batch, Choice, RunTask, Say, Tables
from handmade.tokenizers import Tokenizer
from handmade.writing import generate_text, stream_text

WINDOW = 64  # tokens, for a model that can run for ever
SCORED_AT_ONCE = 16_384  # tokens of one evaluation batch
MINUTES = 5.0  # of a run that is given none: what its counting line is reckoned with
CLOSING_TOKENS = 300  # of the sample at the end


@dataclass(frozen=True)
class LanguageConfig(Config):
    """How a text is learnt."""

    label_smoothing: float = 0.0
    """A part of each target is spread over all tokens: the model is to be a little less sure. Not in the
    validation loss."""

    def check(self) -> None:
        self.require("label_smoothing", 0 <= self.label_smoothing < 1, "at least 0 and below 1")


class LanguageTask(RunTask):
    """Predict every next token of windows of `context` tokens.

    Trained on windows drawn anywhere in the training part; scored on the whole validation part, walked through in
    fixed windows, every token after the first once.
    """

    name = "language"
    settings = LanguageConfig
    family = "gpt"
    minutes = MINUTES
    patience: ClassVar[int | None] = 4  # validation has turned
    closing_share = 0.0
    continues = True
    example = "..."

    def __init__(self, data: TextData, context: int = WINDOW, label_smoothing: float = 0.0) -> None:
        self.config: LanguageConfig = LanguageConfig(label_smoothing)
        self.data = data
        self.training = Windows(data.train, context)
        self.validation = Windows(data.validation, min(context, len(data.validation) - 1))

    @property
    def context(self) -> int:
        """Tokens of a training window."""
        return self.training.context

    @property
    def rows_at_once(self) -> int:
        """Rows of an evaluation batch."""
        return max(1, SCORED_AT_ONCE // self.validation.context)

    @property
    def tokenizer(self) -> Tokenizer:  # type: ignore[override]
        return self.data.tokenizer

    # ----------------------------------------------------------------------------------------------------------
    # What the trainer asks for

    def batch(self, rows: int, generator: torch.Generator) -> Batch:
        """`rows` windows of the training part. Shapes: (rows, context) each."""
        return Batch(*self.training.draw(generator, rows))

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """Shapes: (B, T, V)."""
        return model(batch.inputs)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The sum over the scored targets, in nats."""
        smoothing = self.config.label_smoothing
        return cross_entropy(logits, batch.targets, label_smoothing=smoothing, reduction="sum")

    def score(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """On the whole validation part: `val_loss` in nats per token, and `bits_per_byte` of UTF-8, which can be
        compared across tokenizers."""
        total, scored = 0.0, 0
        for batch in self.walk():
            batch = batch.to(device)
            total += float(cross_entropy(self.logits(model, batch), batch.targets, reduction="sum"))
            scored += batch.scored
        nats = total / max(1, scored)
        return {"val_loss": nats, "bits_per_byte": bits_per_byte(nats, scored, self.data.validation_bytes)}

    def answer(self, model: nn.Module, prompt: str, tokens: int = 200, seed: int = 0, **options: Any) -> str:
        """How the model goes on after `prompt`."""
        return generate_text(model, self.tokenizer, [prompt], tokens, SamplingConfig(**options), seed=seed)[0]

    # ----------------------------------------------------------------------------------------------------------
    # What the command line asks for

    def walk(self) -> Iterator[Batch]:
        """The whole validation part, every token after the first once."""
        return (Batch(*pair) for pair in self.validation.walk(self.rows_at_once))

    @property
    def positions(self) -> int:
        return len(self.data.validation) - 1

    @classmethod
    def refusal(cls, family: str) -> str:
        if family == "fixed-window":
            return "says one token behind a short row, and reads no text. Train a task with it, such as addition."
        return PAIRS_ONLY if family in ENCODER_DECODERS else ""

    @classmethod
    def candidates(cls, config: Config, family: str, asked: Mapping[str, Mapping[str, Any]]) -> list[Tables]:
        """Every size of a GPT that may be picked."""
        if family != "gpt":
            return [{}]
        shapes = [{**size.shape(), **sizes.fitting_heads(size, asked["model"])} for size in sizes.SIZES]
        modern = {**MODERN, **sizes.fitting_parts(asked["model"])[0]}
        return [{"model": {**modern, **shape}} for shape in shapes]

    def choose(
        self, family: str, seconds: float, device: torch.device, asked: Mapping[str, Mapping[str, Any]]
    ) -> Choice:
        """A GPT whose size suits the text and the time; of other families what is usual."""
        if family == "gpt":
            choice = sizes.choose(self.data, seconds, device, asked)
        else:
            choice = Choice(sizes.usual(family, asked))
        choice.tables["train"]["patience"] = self.patience
        return choice

    def fitted(self, context: int | None, say: Say) -> tuple[LanguageTask, int]:
        """With windows of so many tokens; where the text has none as long, of less, and the model may be told."""
        fitting, sentence = fit_context(len(self.data.train), WINDOW if context is None else context)
        if sentence and context is not None:
            say("context", sentence)
        return LanguageTask(self.data, fitting, self.config.label_smoothing), fitting

    def line_to_beat(self, seconds: float | None) -> float:
        """The loss of a 5-gram that only counts. Of a long text only as much is counted as takes a small part of
        the time given."""
        most = max(1_200_000, int(20_000 * (60 * MINUTES if seconds is None else seconds)))
        line = counted(dataclasses.replace(self.data, train=self.data.train[-most:]))
        return max(0.0, line)  # of a text that is foreseen wholly, it is rounded to less

    def headline(self, scores: Mapping[str, float]) -> str:
        """The loss says it all."""
        return ""

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """`val_loss` (nats per token), `perplexity`, `bits_per_byte`, `tokens` (scored)."""
        if isinstance(model, CountingModel):  # exactly, not window by window, which would cut its contexts
            nats = model.loss(self.data.validation)
            bits = bits_per_byte(nats, self.positions, self.data.validation_bytes)
        else:
            device = next((part.device for part in model.parameters()), torch.device("cpu"))
            scores = self.score(model, device)
            nats, bits = scores["val_loss"], scores["bits_per_byte"]
        perplexity = math.exp(min(nats, 700.0))
        return {"val_loss": nats, "perplexity": perplexity, "bits_per_byte": bits, "tokens": self.positions}

    def tell(self, scores: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Loss, perplexity, bits per byte."""
        loss = f"{scores['val_loss']:.4f} nats a token, {scores['precision']}, all {scores['tokens']:,} tokens"
        return [
            ("validation", loss),
            ("perplexity", f"{scores['perplexity']:,.2f}"),
            ("bits per byte", f"{scores['bits_per_byte']:.4f}"),
        ]

    def pictures(self, model: nn.Module) -> Iterator[tuple[str, Any]]:
        """None."""
        return iter(())

    def answers(self, model: nn.Module, prompts: Sequence[str]) -> list[str]:
        """A text has none."""
        raise ConfigError("A language model goes on with a text and has no answers. Use generate(...).")

    def closing(self, model: nn.Module, seconds: float) -> Iterator[str]:
        """What the model writes by itself, drawn with a fixed seed."""
        sampling = SamplingConfig(temperature=0.8)
        return stream_text(model, self.tokenizer, "", CLOSING_TOKENS, sampling, seed=0)


def counted(text: TextData, order: int = 5) -> float:
    """The loss of a model that only counts: nats per token."""
    return counting_line(text.train, text.validation, text.tokenizer.vocab_size, order)


def bits_per_byte(nats: float, tokens: int, scored_bytes: int) -> float:
    """A loss per token as bits per byte of the text that the tokens stand for."""
    return nats * tokens / (math.log(2) * max(1, scored_bytes))
