"""From a source sentence to a target sentence: greedy, sampling and beam search for encoder–decoders, and alignments.

    best = decode(model, sources, beams=4)                 # a list of `Hypothesis` for every source, best first
    maps = align(model, sources[0], best[0][0].tokens)     # where the model looked for each token it wrote

Everything works on any model with `encode(source)`, `new_cache(memory, beams)`, `decode_hidden(tokens, memory, cache)`
and `head(hidden)`. Tokens go one by one through a cache; `cache=False` computes the whole prefix at every step: slow,
the same.

N sentences, K beams, L tokens at most, C candidates of a beam for its next token, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from handmade.attention import record
from handmade.config import Config
from handmade.errors import ConfigError, HandmadeError
from handmade.generation import NOT_FINITE, SamplingConfig, choose, evaluating, row_seed, threads_for, weights_of
from handmade.models.blocks import DecoderBlock
from handmade.pair_tokenizer import END, PAD, START, UNKNOWN

MOST_BEAMS = 1_000
"""More take minutes for a sentence, and memory without end."""


@dataclass(frozen=True)
class BeamConfig(Config):
    """How wide the search is, and how hypotheses of different lengths are compared."""

    beams: int = 1
    """Hypotheses of a sentence that are followed at once. 1 is greedy: the likeliest token, again and again."""
    nbest: int = 1
    """Hypotheses of a sentence that are given back."""
    length_penalty: float = 0.6
    """The exponent of `penalty`. 0 compares plain sums, which favours short translations; above it, longer ones."""
    most: int | None = None
    """Tokens that a translation may have, its end included. None: twice the source and 10 more, no more than the
    model has positions for."""

    def check(self) -> None:
        self.require("beams", 1 <= self.beams <= MOST_BEAMS, f"from 1 to {MOST_BEAMS:,}")
        self.require("nbest", 1 <= self.nbest <= self.beams, f"from 1 to beams = {self.beams}")
        self.require("length_penalty", 0 <= self.length_penalty < math.inf, "0 or a number above")
        self.require("most", self.most is None or self.most >= 1, "at least 1, or none")


@dataclass(frozen=True)
class Hypothesis:
    """A translation. `finished`: the model wrote the end; else it came to the limit before."""

    tokens: list[int]
    """Without start and end."""
    score: float
    """The sum of the log probabilities of its tokens, the end among them, divided by `penalty`."""
    finished: bool


def penalty(length: Tensor, exponent: float) -> Tensor:
    """What the log probability of `length` tokens is divided by, so that a translation is not better for being short.

        penalty(length) = ((5 + length) / 6) ** exponent

    Source: Wu et al. 2016, section 7, equation 14 (arXiv:1609.08144). 0.6 is the exponent of Vaswani et al. 2017,
    section 6.1 (arXiv:1706.03762). The end counts as a token.
    """
    return ((5 + length.double()) / 6) ** exponent


class Search:
    """The beams of N sentences: what is written, what it scores, what is finished. It knows no model.

    A step ranks every continuation of every living hypothesis by

        score = log p(token 1) + .. + log p(token t)

    and follows the best K. All have t tokens, so no penalty is needed here. One whose newest token is the end is
    finished; it keeps its place, and K - 1 are followed from then on. So with one beam the search is greedy, and a
    sentence is over at the latest when K are finished.

    It is over earlier when no living hypothesis can become better than the nbest-th best finished one. That is exact:
    a log probability is at most 0, so `score / penalty(limit)` is the most that a living one can come to.

    The small sums are in float64 on the CPU, wherever the model is.
    Source: Sutskever, Vinyals and Le 2014, section 3.2 (arXiv:1409.3215).
    """

    def __init__(self, limits: list[int], config: BeamConfig, end: int) -> None:
        sentences, longest = len(limits), max(limits)
        self.config, self.end, self.length = config, end, 0
        self.limits = torch.tensor(limits)  # (N,)
        self.places = torch.full((sentences,), config.beams)  # (N,) those that no finished hypothesis has taken
        # All beams begin alike: one of them is followed, or the step would find everything K times.
        self.scores = torch.full((sentences, config.beams), -math.inf, dtype=torch.float64)
        self.scores[:, 0] = 0
        self.written = torch.full((sentences, config.beams, longest), end)
        # The best finished ones, best first; with a score of -inf where there is none yet.
        self.best_scores = torch.full((sentences, config.nbest), -math.inf, dtype=torch.float64)
        self.best = torch.full((sentences, config.nbest, longest), end)

    def step(self, tokens: Tensor, log_probabilities: Tensor) -> Tensor:
        """One more token. The candidates are given for each beam; returned is the row that each beam goes on from.
        Shapes: (N * K, C) both -> (N * K,)."""
        sentences, beams = self.scores.shape
        scores = (self.scores.view(-1, 1) + log_probabilities.double()).view(sentences, -1)  # (N, K * C)
        # Stable: of equal ones the first, on every machine.
        scores, order = (found[:, :beams] for found in scores.sort(dim=-1, descending=True, stable=True))
        scores = scores.masked_fill(torch.arange(beams) >= self.places[:, None], -math.inf)
        origin = order // tokens.shape[1]
        self.written = self.written.gather(1, origin[:, :, None].expand_as(self.written))
        self.written[:, :, self.length] = newest = tokens.view(sentences, -1).gather(1, order)
        self.length += 1
        ends = newest == self.end
        self.scores = scores.masked_fill(ends, -math.inf)
        if bool(ends.any()):
            self.finish(scores.masked_fill(~ends, -math.inf))
        return (origin + beams * torch.arange(sentences)[:, None]).view(-1)

    def finish(self, scores: Tensor) -> None:
        """Put away what is finished; -inf for what is not. Shapes: (N, K)."""
        self.places = self.places - (scores > -math.inf).sum(1)
        merged = torch.cat([self.best_scores, scores / self.penalty(torch.tensor(self.length))], dim=1)
        merged, order = merged.sort(dim=-1, descending=True, stable=True)
        self.best_scores, order = merged[:, : self.config.nbest], order[:, : self.config.nbest]
        tokens = torch.cat([self.best, self.written], dim=1)
        self.best = tokens.gather(1, order[:, :, None].expand_as(self.best))

    def over(self) -> Tensor:
        """Which sentences need no further step. Shapes: -> (N,) bool."""
        reachable = self.scores.amax(1) / self.penalty(self.limits)
        return (reachable <= self.best_scores[:, -1]) | (self.length >= self.limits)

    def penalty(self, length: Tensor) -> Tensor:
        return penalty(length, self.config.length_penalty)

    def keep(self, sentences: Tensor) -> None:
        """Go on with some of the sentences. Shapes: (N',) int64."""
        for name in ("limits", "places", "scores", "written", "best_scores", "best"):
            setattr(self, name, getattr(self, name)[sentences])

    def hypotheses(self, sentence: int) -> list[Hypothesis]:
        """The nbest of a sentence that is over: first those that are finished, then, where they are fewer, the best
        of those that are not. Each kind best first."""
        found = self._made(self.best_scores[sentence], self.best[sentence], finished=True)
        living = self.scores[sentence] / self.penalty(torch.tensor(self.length))
        found += self._made(living, self.written[sentence, :, : self.length], finished=False)
        return found[: self.config.nbest]

    def _made(self, scores: Tensor, rows: Tensor, finished: bool) -> list[Hypothesis]:
        pairs = zip(scores.tolist(), rows.tolist(), strict=True)
        there = [(score, row) for score, row in pairs if score > -math.inf]
        return [Hypothesis(row[: row.index(self.end)] if finished else row, score, finished) for score, row in there]


# ---------------------------------------------------------------------------------------------------------------
# With a model


def decode(
    model: nn.Module,
    sources: Sequence[Sequence[int]],
    *,
    beams: int = 1,
    nbest: int = 1,
    length_penalty: float = 0.6,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    most: int | None = None,
    start: int = START,
    end: int = END,
    rows: int = 64,
    cache: bool = True,
) -> list[list[Hypothesis]]:
    """The best `nbest` translations of every source, best first; see `BeamConfig` for the arguments of the search.

    A source is a list of tokens with `end`, without padding. Sentences of like length are decoded together, `rows` at
    once, and a sentence that is over leaves the batch. None feels the others: each gets what it gets alone.

    With `sampling` the next token is drawn, one beam wide, each sentence with draws of its own: sentence i alone under
    `row_seed(seed, i)` gets what it got among the others.

    Padding, start and unknown are never written: probabilities are those among the tokens that may be.
    The model runs without dropout and without gradients, and is put back into the mode it was in.
    Raises ConfigError for a source or a setting that cannot be, HandmadeError for logits that are not finite.
    """
    config = BeamConfig(beams=beams, nbest=nbest, length_penalty=length_penalty, most=most)
    if sampling is not None and config.beams > 1:
        raise ConfigError(f"beams = {beams} with sampling: a drawn translation has one beam. Leave one of them out.")
    if rows < 1:
        raise ConfigError(f"rows = {rows}: must be at least 1.")
    wanted: Any = model
    for place, source in enumerate(sources):
        _check_source(wanted, f"source {place}", source, end)
    limits = [_limit(wanted.context, len(source), config.most) for source in sources]
    draws = None
    if sampling is not None and sampling.temperature > 0:
        draws = [np.random.Generator(np.random.PCG64(row_seed(seed, place))) for place in range(len(sources))]
    tokens = _Tokens(start, end, config.beams, sampling)
    order = sorted(range(len(sources)), key=lambda place: len(sources[place]))
    found: list[list[Hypothesis]] = [[] for _ in sources]
    with evaluating(list(model.modules())):
        for first in range(0, len(order), rows):
            places = order[first : first + rows]
            search = Search([limits[place] for place in places], config, end)
            batch = [sources[place] for place in places]
            own = None if draws is None else [draws[place] for place in places]
            for place, hypotheses in _decode_batch(wanted, batch, search, tokens, own, cache):
                found[places[place]] = hypotheses
    return found


def _check(model: Any, name: str, sentence: Sequence[int], known: int) -> None:
    """Raise ConfigError for a sentence that the model cannot take. `known`: the size of its vocabulary."""
    if model.context is not None and len(sentence) > model.context:
        raise ConfigError(
            f"{name} has {len(sentence)} tokens, the model has {model.context} positions. "
            "Split the sentence, or train a model with a larger context."
        )
    for token in sentence:
        if not 0 <= token < known:
            raise ConfigError(f"{name} has the token {token}; the model knows 0 to {known - 1}.")


def _check_source(model: Any, name: str, source: Sequence[int], end: int) -> None:
    if all(token == end for token in source):
        raise ConfigError(f"{name} is empty: there is nothing to translate. Leave it out.")
    _check(model, name, source, model.config.source_vocab_size)
    if PAD in source:  # the model would not see it
        raise ConfigError(f"{name} has padding in it (token {PAD}). Leave it out: what is shorter is padded here.")


def _device(model: nn.Module) -> torch.device:
    return next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))


def _limit(context: int | None, source: int, most: int | None) -> int:
    """Tokens that the translation of a source of so many tokens may have. The first is predicted from `start` alone
    and the last is never fed, so as many fit as there are positions."""
    if most is None:
        return 2 * source + 10 if context is None else min(context, 2 * source + 10)
    if context is not None and most > context:
        raise ConfigError(f"most = {most}: the model has {context} positions. Take at most that many tokens.")
    return most


@dataclass(frozen=True)
class _Tokens:
    """From logits to the candidates of each row."""

    start: int
    end: int
    beams: int
    sampling: SamplingConfig | None

    def candidates(self, logits: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        """The tokens that a row may go on with, and their log probabilities. Of K beams together none needs more than
        its K likeliest. Shapes: logits (R, V) -> (R, C) twice, on the CPU."""
        never = sorted({PAD, self.start, UNKNOWN} - {self.end})
        logits = logits.index_fill(-1, torch.tensor(never, device=logits.device), -math.inf)
        total = logits.logsumexp(-1, keepdim=True)
        if not bool(total.isfinite().all()):
            raise HandmadeError(NOT_FINITE)
        if self.sampling is None:
            values, tokens = logits.topk(min(self.beams, logits.shape[-1]), dim=-1)
        else:
            tokens = choose(logits, self.sampling, draws)[:, None]
            values = logits.gather(-1, tokens)
        return tokens.cpu(), (values - total).cpu()


@torch.inference_mode()
def _decode_batch(
    model: Any,
    sources: list[Sequence[int]],
    search: Search,
    tokens: _Tokens,
    draws: list[np.random.Generator] | None,
    cached: bool,
) -> list[tuple[int, list[Hypothesis]]]:
    """(place in `sources`, its hypotheses) for every source, in the order in which they are done."""
    device = _device(model)
    beams, weights = tokens.beams, weights_of(model)
    active = list(range(len(sources)))
    memory = model.encode(_padded(sources).to(device))
    cache = model.new_cache(memory, beams) if cached else None
    fed = torch.full((len(sources) * beams, 1), tokens.start, device=device)
    found: list[tuple[int, list[Hypothesis]]] = []
    while True:
        own = None if draws is None else torch.tensor([draws[place].random() for place in active], dtype=torch.float64)
        with threads_for(fed, weights):
            # The head of the last column only: V is large.
            logits = model.head(model.decode_hidden(fed, memory, cache)[:, -1:])[:, -1]
        origin = search.step(*tokens.candidates(logits, own))
        over = search.over()
        if bool(over.any()):
            found += [(active[row], search.hypotheses(row)) for row in over.nonzero()[:, 0].tolist()]
            kept = (~over).nonzero()[:, 0]
            if not len(kept):
                return found
            search.keep(kept)
            memory = memory.select(kept.to(device))
            origin = origin.view(-1, beams)[kept].view(-1)
            active = [active[row] for row in kept.tolist()]
        if cache is None:
            written = search.written[:, :, : search.length].flatten(0, 1).to(device)  # (N * K, t)
            fed = torch.cat([fed.new_full((len(written), 1), tokens.start), written], dim=1)
            continue
        if not torch.equal(origin, torch.arange(len(fed))):
            cache.select(origin.to(device))
        fed = search.written[:, :, search.length - 1].reshape(-1, 1).to(device)


def _padded(sources: list[Sequence[int]]) -> Tensor:
    """Side by side, short ones padded on the right. Shapes: -> (N, S)."""
    longest = max(map(len, sources))
    return torch.tensor([[*source, *[PAD] * (longest - len(source))] for source in sources])


# ---------------------------------------------------------------------------------------------------------------
# Looking inside


@torch.inference_mode()
def align(model: nn.Module, source: Sequence[int], target: Sequence[int], start: int = START, end: int = END) -> Tensor:
    """How much the model looked at each source token when it wrote each target token: the weights of its attention to
    the source, layer by layer.

    `target` is what is written, without `start`; with the end, where its row is wanted too. The model is run once with
    the target given: row t says where it looked when `target[t]` was to come.

    Shapes: S and T tokens -> (layers, heads, T, S); each row sums to 1.
    Raises ConfigError for a sentence that is empty, unknown or too long, and for a model without attention.
    """
    wanted: Any = model
    _check_source(wanted, "source", source, end)
    if not len(target):
        raise ConfigError("target is empty: there is nothing to align. Translate the source first.")
    _check(wanted, "target", target, wanted.config.vocab_size)
    device = _device(model)
    with evaluating(list(model.modules())):
        memory = wanted.encode(torch.tensor([list(source)], device=device))
        with record() as maps:
            wanted.decode_hidden(torch.tensor([[start, *target[:-1]]], device=device), memory)
    # A transformer's block attends to what is written, then to the source; a recurrent decoder only to the source.
    if any(isinstance(part, DecoderBlock) for part in model.modules()):
        maps = maps[1::2]
    if not maps:
        raise ConfigError("This model has no attention: there is no alignment to show. Train one that has.")
    return torch.cat(maps)
