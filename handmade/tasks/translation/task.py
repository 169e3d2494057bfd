"""Translation: a sentence in, the same sentence in another language out, by a model that was told neither grammar nor
dictionary.

    私は猫が好きです。   ->   I like cats.

The model is trained on pairs with teacher forcing (every token is foreseen with the right ones before it) and scored
without: it writes whole translations of sentences that it never saw, and those are compared with the reference.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from handmade.config import Config
from handmade.errors import ConfigError, DataError, TokenizerError
from handmade.generation import SamplingConfig
from handmade.layers import cross_entropy
from handmade.pair_tokenizer import END, FIRST, PairTokenizer, Side
from handmade.pairs import LANGUAGES, Pairs, PairSplit
from handmade.tasks.base import Choice, RunTask, Say, Tables, in_columns
from handmade.tasks.translation import recipes, reports
from handmade.tasks.translation.batches import PairBatch, PairRows
from handmade.tasks.translation.scores import without_spaces
from handmade.translating import MOST_BEAMS, BeamConfig, Hypothesis, align, decode

SCORED_AT_ONCE = 256  # pairs of an evaluation batch
WATCHED = 4  # held-out sentences that are translated at every evaluation
TIMED = 64  # test sentences from which it is reckoned how long all will take
PICTURED = 4  # sentences whose attention is drawn

LINE_BREAKS = re.compile("[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")  # what str.splitlines cuts at


@dataclass(frozen=True)
class TranslationConfig(Config):
    """Which pairs, how they become tokens, and how a translation is searched for."""

    source: str | None = None
    """Language to translate from, for a corpus that has several: "ja". None: what the corpus begins with."""
    target: str | None = None
    """Language to translate into, likewise."""
    columns: tuple[int, ...] | None = None
    """Columns of a table of pairs that hold source and target, counted from 1: (2, 3). None: found out."""
    tokens: Literal["bpe", "char"] = "bpe"
    """What a token is: "bpe", a piece of a word that is frequent, made of bytes; "char", a character."""
    source_vocabulary: int = 3_000
    """At most so many source tokens ("bpe")."""
    target_vocabulary: int = 2_000
    """At most so many target tokens ("bpe")."""
    validation: int | None = None
    """Pairs kept back to watch the training with and to pick the best weights by. None: 1,000, or a tenth of few."""
    test: int | None = None
    """Pairs kept back to score the translations of the trained model with, and for nothing else. None: 2,000, or a
    tenth of few."""
    seed: int = 0
    """Of the split: which pairs are kept back."""
    label_smoothing: float = 0.1
    """A part of each target is spread over all tokens: the model is to be a little less sure. Not in the
    validation loss. Source: Szegedy et al. 2016, section 7 (arXiv:1512.00567)."""
    beams: int = 4
    """Translations of a sentence that are followed at once. 1 is greedy."""
    length_penalty: float = 1.5
    """0 favours short translations; above it, longer ones. 1.5 was best on the validation part: docs/log.md."""

    def check(self) -> None:
        self.require("beams", 1 <= self.beams <= MOST_BEAMS, f"from 1 to {MOST_BEAMS:,}")
        for field in ("validation", "test"):
            self.require(field, getattr(self, field) is None or getattr(self, field) >= 1, "at least 1, or none")
        for field in ("source_vocabulary", "target_vocabulary"):
            self.require(field, getattr(self, field) >= FIRST + 256, f"at least {FIRST + 256}, a token for every byte")
        two = self.columns is None or (len(self.columns) == 2 and min(self.columns) >= 1)
        self.require("columns", two, "two numbers, counted from 1, as in (2, 3)")
        self.require("seed", 0 <= self.seed < 2**63, "from 0 to 2^63 - 1")
        self.require("label_smoothing", 0 <= self.label_smoothing < 1, "at least 0 and below 1")
        self.require("length_penalty", self.length_penalty >= 0, "0 or a number above")


@dataclass(frozen=True)
class Translation:
    """A sentence that a model wrote, its score (the log probabilities of its tokens added up, divided by the penalty
    for its length; 0 is certain), and its tokens."""

    text: str
    score: float
    hypothesis: Hypothesis


def pieces(text: str) -> list[str]:
    """A text, cut behind each of its sentences.

    >>> pieces("暑い。もう帰る！ Is it 3.5? Yes.")
    ['暑い。', 'もう帰る！', 'Is it 3.5?', 'Yes.']
    """
    found = re.split(r"(?<=[。！？])(?![。！？」』）])|(?<=[.!?])\s+", text)
    return [piece.strip() for piece in found if piece.strip()] or [text]


def joined(parts: Sequence[Translation], between: str = " ") -> Translation:
    """The translations of a text's sentences as one; its score is their mean."""
    tokens = [token for part in parts for token in part.hypothesis.tokens]
    score = sum(part.score for part in parts) / len(parts)
    whole = Hypothesis(tokens, score, all(part.hypothesis.finished for part in parts))
    return Translation(between.join(part.text for part in parts), score, whole)


class TranslationTask(RunTask):
    """Translate sentences.

    `split` has the pairs, apart as they are for training, validation and test; without it (None) the task answers
    prompts, and raises DataError where pairs are needed. `held_out`: the test part was kept back from the training.
    """

    name = "translation"
    settings = TranslationConfig
    family = "seq2seq"
    minutes = 20.0
    patience: ClassVar[int | None] = None
    closing_share = 0.05
    continues = False

    def __init__(
        self,
        config: TranslationConfig,
        tokenizer: PairTokenizer,
        split: PairSplit | None = None,
        held_out: bool = True,
    ) -> None:
        self.config: TranslationConfig = config
        self.tokenizer: PairTokenizer = tokenizer
        self.given, self.held_out = split, held_out
        self.begun = False
        """Whether the tokens are those of another run, whose weights it begins with."""
        self.seen: list[str] = []
        """Lines of `watch`."""
        self.examined: dict[str, Any] = {}
        """What `evaluate` last found on the test part."""

    # ----------------------------------------------------------------------------------------------------------
    # Pairs

    @property
    def split(self) -> PairSplit:
        if self.given is None:
            raise DataError("The pairs of this run are not here: it can translate, but not be scored or trained.")
        return self.given

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
        return self.given.train.sources[0] if self.given is not None else "..."

    @property
    def language(self) -> str | None:
        """What is translated into, where that was said; None: it has to be told from the sentences."""
        return None if self.config.target == LANGUAGES[1] else self.config.target

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

    def translate(
        self,
        model: nn.Module,
        sentences: Sequence[str],
        search: BeamConfig | None = None,
        sampling: SamplingConfig | None = None,
        seed: int = 0,
        split: bool = False,
    ) -> list[list[Translation]]:
        """Translations of every sentence, best first, decoded together. With `split`, a text of several sentences is
        translated sentence by sentence, and the best of each are joined.

        Raises ConfigError for an empty sentence and for one longer than the model's positions, TokenizerError for
        one of characters that the model never saw.
        """
        search = search or BeamConfig(beams=self.config.beams, length_penalty=self.config.length_penalty)
        if split:
            if search.nbest > 1:
                raise ConfigError(
                    "A text that is split has one translation: that of its sentences. Leave --n-best out."
                )
            parts = [pieces(sentence) for sentence in sentences]
            every = [piece for part in parts for piece in part]
            for piece, ids in zip(every, self.tokenizer.encode_sources(every, strict=False), strict=True):
                self.require_fitting(model, piece, len(ids), split)
            found = iter(self.translate(model, every, search, sampling, seed))
            between = "" if without_spaces(self.language) else " "
            return [[joined([next(found)[0] for _ in part], between)] for part in parts]
        sources = [ids.tolist() for ids in self.tokenizer.encode_sources(list(sentences), strict=False)]
        for sentence, ids in zip(sentences, sources, strict=True):
            self.require_fitting(model, sentence, len(ids))
        return self.searched(model, sources, search, sampling, seed)

    def searched(
        self,
        model: nn.Module,
        sources: Sequence[Sequence[int]],
        search: BeamConfig,
        sampling: SamplingConfig | None = None,
        seed: int = 0,
    ) -> list[list[Translation]]:
        """`translate`, of tokens."""
        hypotheses = decode(
            model,
            sources,
            beams=search.beams,
            nbest=search.nbest,
            length_penalty=search.length_penalty,
            most=search.most,
            sampling=sampling,
            seed=seed,
        )
        return [[self.written(one) for one in best] for best in hypotheses]

    def of_part(self, model: nn.Module, pairs: Pairs, search: BeamConfig | None = None) -> list[str]:
        """The best translation of each source of a part, whatever characters are in it."""
        search = search or BeamConfig(self.config.beams, length_penalty=self.config.length_penalty)
        sources = [ids.tolist() for ids in self.tokenizer.encode_sources(pairs.sources, strict=False)]
        return [best[0].text for best in self.searched(model, sources, search)]

    def written(self, one: Hypothesis) -> Translation:
        # On one line, whatever bytes it is made of: line n of what comes out belongs to line n of what went in.
        return Translation(LINE_BREAKS.sub(" ", self.tokenizer.decode_target(one.tokens)).strip(), one.score, one)

    def require_fitting(self, model: nn.Module, sentence: str, tokens: int, split: bool = False) -> None:
        """Raise ConfigError, TokenizerError for what cannot be translated."""
        context: int | None = model.context  # type: ignore[assignment]
        if not sentence.strip():
            raise ConfigError("An empty line has no translation. Give a sentence.")
        if not self.tokenizer.familiar(sentence):
            raise TokenizerError(
                f"{sentence[:20]!r} has no character that the model knows. It translates from"
                f" {self.config.source or 'another language'}."
            )
        if context is not None and tokens > context:
            advice = "." if split else ", or have it split into sentences (--split)."
            raise ConfigError(
                f"{sentence[:20]!r}... has {tokens} tokens, its end included, and the model sees {context}."
                f" Shorten it{advice}"
            )

    def answer(self, model: nn.Module, prompt: str, **options: Any) -> str:
        """The best translation of a sentence."""
        return self.answers(model, [prompt])[0]

    def answers(self, model: nn.Module, prompts: Sequence[str]) -> list[str]:
        return [best[0].text for best in self.translate(model, prompts)]

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

    def searches(self) -> dict[str, BeamConfig]:
        """How the test part is translated: name -> search."""
        beams, length_penalty = self.config.beams, self.config.length_penalty
        found = {"greedy": BeamConfig()}
        return found | ({f"beam {beams}": BeamConfig(beams, length_penalty=length_penalty)} if beams > 1 else {})

    def tell(self, scores: Mapping[str, Any]) -> list[tuple[str, str]]:
        return reports.told(scores)

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

    def require_attention(self, model: nn.Module) -> None:
        """Raise ConfigError for a model without attention: there is nothing to draw."""
        if getattr(model.config, "attention", "") == "none":
            raise ConfigError("This model has no attention: there is nothing to draw. Train one that has.")

    def picture(
        self, model: nn.Module, sentences: Sequence[str], translations: Sequence[Translation] | None = None
    ) -> Any:
        """The cross-attention of translations, as a matplotlib Figure: the last layer, the mean of its heads. None:
        of the best that is found. Raises ConfigError for a model without attention."""
        self.require_attention(model)
        if translations is None:
            sources = [ids.tolist() for ids in self.tokenizer.encode_sources(sentences, strict=False)]
            search = BeamConfig(self.config.beams, length_penalty=self.config.length_penalty)
            translations = [best[0] for best in self.searched(model, sources, search)]
        from handmade.tasks.translation import pictures  # matplotlib, only when something is drawn

        drawn = []
        for sentence, one in zip(sentences, translations, strict=True):
            source = self.tokenizer.encode_source(sentence, strict=False)
            target = [*one.hypothesis.tokens, *([END] if one.hypothesis.finished else [])]
            weights = align(model, source.tolist(), target)[-1].mean(0)
            drawn.append(
                pictures.Alignment(
                    [None if id == END else label for id, label in self.labels(source, "source")],
                    [None if id == END else label for id, label in self.labels(target, "target")],
                    weights.float().cpu().numpy(),
                    one.text,
                )
            )
        return pictures.cross_attention(drawn)

    def labels(self, ids: Iterable[int], side: Side) -> list[tuple[int, str]]:
        """Every token with what is read of it; a space stays one."""
        ids = [int(id) for id in ids]
        return [
            (id, label.replace("␣", " ")) for id, label in zip(ids, self.tokenizer.tokens_of(ids, side), strict=True)
        ]

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


__all__ = ["Translation", "TranslationConfig", "TranslationTask"]
