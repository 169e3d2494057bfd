"""Translation: a sentence in, the same sentence in another language out, by a model that was told neither grammar nor
dictionary.

    私は猫が好きです。   ->   I like cats.

The model is trained on pairs with teacher forcing (every token is foreseen with the right ones before it) and scored
without: it writes whole translations of sentences that it never saw, and those are compared with the reference.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from handmade.config import Config
from handmade.errors import ConfigError, DataError
from handmade.layers import cross_entropy, linear_cross_entropy
from handmade.pair_tokenizer import PairTokenizer
from handmade.pairs import Pairs, PairSplit
from handmade.tasks.base import Choice, RunTask, Say, Tables, in_columns
from handmade.tasks.translation import recipes, reports
from handmade.tasks.translation.batches import PairBatch, PairRows
from handmade.tasks.translation.translator import TranslationConfig, Translator
from handmade.translating import BeamConfig

SCORED_AT_ONCE = 256  # pairs of an evaluation batch
WATCHED = 4  # held-out sentences that are translated at every evaluation
TIMED = 64  # test sentences from which it is reckoned how long all will take
PICTURED = 4  # sentences whose attention is drawn


class TranslationTask(Translator, RunTask):  # type: ignore[misc]
    """Learn to translate sentences, from pairs that are apart for training, validation and test.

    `held_out`: the test part was kept back from the training.
    """

    name = "translation"
    settings = TranslationConfig
    family = "seq2seq"
    minutes = 20.0
    patience: ClassVar[int | None] = None
    closing_share = 0.05
    continues = False

    def __init__(
        self, config: TranslationConfig, tokenizer: PairTokenizer, split: PairSplit, held_out: bool = True
    ) -> None:
        super().__init__(config, tokenizer)
        self.split, self.held_out = split, held_out
        self.begun = False
        """Whether the tokens are those of another run, whose weights it begins with."""
        self.seen: list[str] = []
        """Lines of `watch`."""
        self.examined: dict[str, Any] = {}
        """What `evaluate` last found on the test part."""

    # ----------------------------------------------------------------------------------------------------------
    # Pairs

    def rows(self, pairs: Pairs) -> PairRows:
        """Pairs as tokens. A character that the training part does not have is UNKNOWN."""
        sources = self.tokenizer.encode_sources(pairs.sources, strict=False)
        return PairRows(sources, self.tokenizer.encode_targets(pairs.targets, strict=False))

    @functools.cached_property
    def training(self) -> PairRows:
        return self.rows(self.split.train)

    @functools.cached_property
    def validation(self) -> PairRows:
        return self.rows(self.split.validation)

    @functools.cached_property
    def testing(self) -> PairRows:
        return self.rows(self.split.test)

    @property
    def context(self) -> int:
        """Tokens of the longest sentence of either side, its end included; of the test part too."""
        return max(
            int(lengths.max())
            for rows in (self.training, self.validation, self.testing)
            for lengths in (rows.source_lengths, rows.target_lengths)
        )

    @property
    def example(self) -> str:
        return self.split.train.sources[0]

    @property
    def sizes(self) -> dict[str, int]:
        return {"vocab_size": self.tokenizer.target_size, "source_vocab_size": self.tokenizer.source_size}

    # ----------------------------------------------------------------------------------------------------------
    # What the trainer asks for

    def batch(self, rows: int, generator: torch.Generator) -> PairBatch:
        """`rows` training pairs of about one length."""
        return self.training.draw(rows, generator)

    def logits(self, model: Any, batch: PairBatch) -> Tensor:
        """Shapes: (B, T, V)."""
        return model(batch.source, batch.inputs)

    def loss(self, logits: Tensor, batch: PairBatch) -> Tensor:
        """The sum over the real target tokens, in nats."""
        smoothing = self.config.label_smoothing
        return cross_entropy(logits, batch.targets, label_smoothing=smoothing, reduction="sum")

    def loss_in_pieces(self, model: Any, batch: PairBatch) -> Tensor:
        """`loss` of `logits`, a few rows of them at a time: with thousands of target tokens they are the largest tensor
        of a step."""
        hidden = model.decode_hidden(batch.inputs, model.encode(batch.source))
        return linear_cross_entropy(
            hidden,
            model.head.weight,
            batch.targets,
            model.head.bias,
            label_smoothing=self.config.label_smoothing,
            reduction="sum",
            fused=model.head.fused,
        )

    def score(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """On the validation part: `val_loss` in nats a token, `token_accuracy`, the part of tokens that are foreseen
        with the right ones before them. Over real tokens only. A few of its sentences are translated too, for
        `watch`."""
        loss, right, scored = 0.0, 0, 0
        for batch in self.walk():
            batch = batch.to(device)
            logits = self.logits(model, batch)
            loss += cross_entropy(logits, batch.targets, reduction="sum").item()
            right += int((logits.argmax(-1) == batch.targets).sum())
            scored += batch.scored
        some = self.watched
        self.seen = reports.watch(some.sources, some.targets, self.of_part(model, some, BeamConfig()))
        return {"val_loss": loss / max(1, scored), "token_accuracy": right / max(1, scored)}

    def watch(self) -> list[str]:
        return self.seen

    @functools.cached_property
    def watched(self) -> Pairs:
        """The same few pairs at every evaluation: from the middle of the validation part's lengths."""
        pairs = self.split.validation
        order = sorted(range(len(pairs.targets)), key=lambda place: (len(pairs.targets[place]), pairs.targets[place]))
        places = [order[len(order) * (2 * part + 1) // (2 * WATCHED)] for part in range(WATCHED)]
        return some_of(pairs, dict.fromkeys(places))

    def walk(self) -> Iterator[PairBatch]:
        return self.validation.walk(SCORED_AT_ONCE)

    @property
    def positions(self) -> int:
        return sum(batch.tokens for batch in self.walk())

    # ----------------------------------------------------------------------------------------------------------
    # Translating

    def of_part(self, model: nn.Module, pairs: Pairs, search: BeamConfig | None = None) -> list[str]:
        """The best translation of each source of a part, whatever characters are in it."""
        search = search or BeamConfig(self.config.beams, length_penalty=self.config.length_penalty)
        sources = [ids.tolist() for ids in self.tokenizer.encode_sources(pairs.sources, strict=False)]
        return [best[0].text for best in self.searched(model, sources, search)]

    # ----------------------------------------------------------------------------------------------------------
    # What the command line asks for

    @classmethod
    def refusal(cls, family: str) -> str:
        if family not in recipes.FAMILIES:
            return f"reads one text, and no pairs. Translation takes {' or '.join(recipes.FAMILIES)}."
        return ""

    @classmethod
    def candidates(cls, config: Config, family: str, asked: Mapping[str, Mapping[str, Any]]) -> list[Tables]:
        return recipes.candidates(family, asked)

    def choose(
        self, family: str, seconds: float, device: torch.device, asked: Mapping[str, Mapping[str, Any]]
    ) -> Choice:
        return recipes.choose(family, len(self.training), self.context, device, asked)

    def fitted(self, context: int | None, say: Say) -> tuple[TranslationTask, int]:
        """Raises ConfigError for a model that cannot see the longest sentence."""
        if context is not None and context < self.context:
            raise ConfigError(
                f"model.context = {context}: too short. The longest sentence has {self.context:,} tokens, its end"
                f" included. Say --set model.context={self.context}, or leave long sentences out of the file."
            )
        return self, self.context if context is None else context

    def line_to_beat(self, seconds: float | None) -> None:
        return None

    def headline(self, scores: Mapping[str, float]) -> str:
        return f"tokens right {100 * scores['token_accuracy']:.1f} %" if "token_accuracy" in scores else ""

    def describe(self) -> Iterator[tuple[str, str]]:
        """Lines for the person before training: label, sentence."""
        train, validation, test = (
            len(part.sources) for part in (self.split.train, self.split.validation, self.split.test)
        )
        yield (
            self.split.train.name,
            f"{train:,} pairs to train on, {validation:,} to watch it with, {test:,} to score it with",
        )
        yield "", "apart by sentence: what is kept back is in no other pair, whatever its case and punctuation"
        if self.split.train.note:
            yield "", self.split.train.note
        sides = f"{self.tokenizer.source_size:,} source and {self.tokenizer.target_size:,} target tokens"
        whence = "those of the run it begins with" if self.begun else "from the pairs that are trained on"
        yield "tokens", f"{sides} ({self.config.tokens}), {whence}"
        for note in self.tokenizer.notes:
            yield "", note
        yield "batches", f"{100 * self.real_share():.0f} % of their tokens are real, the others padding"

    def real_share(self, rows: int = 128, batches: int = 50) -> float:
        """The part of a batch's tokens that are no padding, of some batches drawn as training draws them."""
        generator = torch.Generator().manual_seed(0)
        drawn = [self.batch(rows, generator) for _ in range(batches)]
        return sum(batch.real for batch in drawn) / sum(batch.tokens for batch in drawn)

    # ----------------------------------------------------------------------------------------------------------
    # Scores

    def evaluate(self, model: nn.Module, most: int | None = None) -> dict[str, Any]:
        """On the validation part loss and token accuracy; on the test part (or the first `most` of it) BLEU and chrF
        of greedy translations and of beam search, by length of the reference, and the best and the worst sentences."""
        context: int | None = model.context  # type: ignore[assignment]
        if context is not None and context < self.context:
            raise DataError(
                f"The longest sentence of these pairs has {self.context} tokens, its end included, and the model sees"
                f" {context}. Leave it out."
            )
        device = next((part.device for part in model.parameters()), torch.device("cpu"))
        pairs = self.split.test if most is None else some_of(self.split.test, range(min(most, len(self.split.test))))
        decoded = {name: self.of_part(model, pairs, search) for name, search in self.searches().items()}
        self.examined = reports.examined(pairs.sources, pairs.targets, decoded, self.language)
        return {**self.score(model, device), **self.examined, "held_out": self.held_out}

    def pictures(self, model: nn.Module) -> Iterator[tuple[str, Any]]:
        """Scores by length, where they were worked out, and where the model looked when it translated a few test
        sentences."""
        from handmade.tasks.translation import pictures  # matplotlib, only when something is drawn

        if self.examined:
            yield "lengths.png", pictures.scores_by_length(self.examined["by_length"])
        if getattr(model.config, "attention", "") == "none":
            return
        pairs = self.split.test
        order = sorted(range(len(pairs)), key=lambda place: len(pairs.sources[place]))
        chosen = [pairs.sources[order[len(order) * part // (PICTURED + 1)]] for part in range(1, PICTURED + 1)]
        yield "attention.png", self.picture(model, chosen)

    def closing(self, model: nn.Module, seconds: float) -> Iterator[str]:
        """A few test sentences; then how good it is on the test part, or on as much of it as there is time for."""
        began, pairs = time.perf_counter(), self.split.test
        some = some_of(pairs, range(min(TIMED, len(pairs))))
        found = self.of_part(model, some)
        each = (time.perf_counter() - began) / len(some)
        watched = slice(0, WATCHED)
        yield "\n".join(reports.watch(some.sources[watched], some.targets[watched], found[watched])) + "\n"
        # Greedy translations take about half as long again; one call has many more rows at once.
        affordable = int(seconds / each / 1.5)
        most = len(pairs) if affordable >= len(pairs) else max(TIMED, affordable)
        with torch.inference_mode():
            told = self.tell({**self.evaluate(model, most), "precision": "float32"})
        if most < len(pairs):
            told.append(("", f"of the first {most:,} of {len(pairs):,}; handmade eval scores all"))
        yield "\n" + "\n".join(in_columns(told)) + "\n"


def some_of(pairs: Pairs, places: Iterable[int]) -> Pairs:
    """The pairs at these places."""
    every = list(pairs)
    return pairs.of(every[place] for place in places)


__all__ = ["TranslationTask"]
