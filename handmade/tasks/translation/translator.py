"""From sentences to translations, with a trained model and its tokens; no pairs are needed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from handmade.config import Config
from handmade.errors import ConfigError, TokenizerError
from handmade.generation import SamplingConfig
from handmade.pair_tokenizer import END, FIRST, PairTokenizer, Side
from handmade.pairs import LANGUAGES
from handmade.tasks.translation import reports
from handmade.tasks.translation.scores import without_spaces
from handmade.translating import MOST_BEAMS, BeamConfig, Hypothesis, align, decode

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
    source_vocabulary: int = 4_000
    """At most so many source tokens ("bpe")."""
    target_vocabulary: int = 4_000
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


class Translator:
    """Translates with any encoder-decoder that was trained on these tokens."""

    def __init__(self, config: TranslationConfig, tokenizer: PairTokenizer) -> None:
        self.config: TranslationConfig = config
        self.tokenizer: PairTokenizer = tokenizer

    @property
    def language(self) -> str | None:
        """What is translated into, where that was said; None: it has to be told from the sentences."""
        return None if self.config.target == LANGUAGES[1] else self.config.target

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

    def written(self, one: Hypothesis) -> Translation:
        # On one line, whatever bytes it is made of: line n of what comes out belongs to line n of what went in.
        return Translation(LINE_BREAKS.sub(" ", self.tokenizer.decode_target(one.tokens)).strip(), one.score, one)

    def require_fitting(self, model: nn.Module, sentence: str, tokens: int, split: bool = False) -> None:
        """Raise ConfigError, TokenizerError for what cannot be translated."""
        context: int | None = model.context  # type: ignore[assignment]
        if not sentence.strip():
            raise ConfigError("An empty line has no translation. Give a sentence.")
        if not self.tokenizer.familiar(sentence):
            known = None if self.config.source == LANGUAGES[0] else self.config.source
            raise TokenizerError(
                f"{sentence[:20]!r} has no character that the model knows. It translates from"
                f" {known or 'another language'}."
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

    def searches(self) -> dict[str, BeamConfig]:
        """How the test part is translated: name -> search."""
        beams, length_penalty = self.config.beams, self.config.length_penalty
        found = {"greedy": BeamConfig()}
        return found | ({f"beam {beams}": BeamConfig(beams, length_penalty=length_penalty)} if beams > 1 else {})

    def tell(self, scores: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The figures of `TranslationTask.evaluate` for a person: label, text of one line or several."""
        return reports.told(scores)

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


__all__ = ["Translation", "TranslationConfig", "Translator", "joined", "pieces"]
