"""The two oldest language models: a token is guessed from the few before it.

`Bigram` learns a table by gradient descent. `CountingModel` only counts, and is the line that a trained model has
to get below: what it says of a text needs no learning at all.

B rows, T tokens, V vocabulary, N order (tokens of the longest n-gram).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from handmade.config import Config
from handmade.errors import DataError
from handmade.layers import Embedding
from handmade.layers.kernels import Module

# ---------------------------------------------------------------------------------------------------------------
# By gradient descent


@dataclass(frozen=True)
class BigramConfig(Config):
    """The shape of a `Bigram`."""

    vocab_size: int
    """Distinct tokens."""
    context: int = 64
    """Tokens of a training window. The model itself looks at one."""

    def check(self) -> None:
        self.require("vocab_size", self.vocab_size >= 1, "at least 1")
        self.require("context", self.context >= 1, "at least 1")


class BigramCache:
    """What decoding keeps of the past: nothing but how long it is."""

    def __init__(self) -> None:
        self.length = 0

    def select(self, rows: Tensor) -> None:
        """Every row's past is the same nothing."""


class Bigram(Module):
    """The next token from the last one alone: row `token` of a table holds the logits of what follows it.

        logits[t] = W[token[t]]

    The table starts at zero, so the first loss is ln V exactly. Nothing needs random numbers to tell it apart:
    each row is a softmax regression of its own, with one minimum, the logarithm of the counted frequencies.

    Shapes: tokens (B, T) int64 -> logits (B, T, V); embedding.weight (V, V).
    Source: Bengio et al. 2003, section 2, with one token of context and no hidden layer.

    `generator` is there for the signature that all models have; nothing is drawn.
    """

    context = None  # there is no window to fill: it can run for ever

    def __init__(self, config: BigramConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.vocab_size)
        torch.nn.init.zeros_(self.embedding.weight)

    def new_cache(self, rows: int) -> BigramCache:
        return BigramCache()

    def forward(self, tokens: Tensor, cache: BigramCache | None = None, starts: Tensor | None = None) -> Tensor:
        """Shapes: (B, T) int64 -> (B, T, V). Padding before `starts` is never looked at: no past is."""
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.embedding(tokens)


# ---------------------------------------------------------------------------------------------------------------
# By counting


@dataclass(frozen=True)
class CountingConfig(Config):
    """The shape of a `CountingModel`."""

    vocab_size: int
    """Distinct tokens."""
    order: int = 5
    """Tokens of the longest n-gram: the last `order - 1` tokens say what comes next. With 1 only how frequent each
    token is counts, with 0 nothing: all are as likely."""
    most_tokens: int = 5_000_000
    """Of a longer text the last so many tokens are counted, those next to the validation part. While it counts it
    holds up to 150 bytes a token."""

    def check(self) -> None:
        for field in ("vocab_size", "most_tokens"):
            self.require(field, getattr(self, field) >= 1, "at least 1")
        self.require("order", self.order >= 0, "at least 0")


class CountingCache:
    """Where every row stands: the nodes of its last 0, 1 .. N-1 tokens. Shapes: nodes (rows, N)."""

    def __init__(self, nodes: Tensor) -> None:
        self.nodes = nodes
        self.length = 0

    def select(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was. Shapes: rows (R,) int64."""
        self.nodes = self.nodes[rows]


class CountingModel(Module):
    """The next token from how often it followed the last tokens, blended with how often it followed fewer of them.

        p(w | h) = (c(h w) + kinds(h) * p(w | h')) / (c(h) + kinds(h))        p(w | nothing at all) = 1 / V

    c(h w) is how often the context h was followed by w, c(h) how often by anything, kinds(h) by how many different
    tokens, and h' is h without its oldest token. A context that new tokens often follow trusts its own counts less.
    A context never seen has c = kinds = 0 and says what the shorter one says.

    The counts are one tree. Node 0 is the empty context; the child `w` of node h is the n-gram h w, and has the key
    h * V + w. Nodes are numbered n-gram by n-gram, each length sorted by key, so all keys are sorted: a child is
    found by halving, and the children of a node lie side by side. A key stays below nodes * V, whatever N is.

    Shapes: tokens (B, T) int64 -> logits (B, T, V), the logarithms of p. No parameters: `fit` counts.
    Source: Witten and Bell 1991, "The zero-frequency problem", method C; interpolated as in Chen and Goodman 1999,
    "An empirical study of smoothing techniques for language modeling", section 2.5.

    `generator` is there for the signature that all models have; nothing is drawn.
    """

    context = None  # it keeps N - 1 tokens and can run for ever

    keys: Tensor  # (nodes,) int64, sorted: node i + 1 has key keys[i]
    counts: Tensor  # (nodes,) int64: how often node i + 1 was seen
    begins: Tensor  # (nodes + 2,) int64: the children of node h are keys[begins[h] : begins[h + 1]]
    totals: Tensor  # (nodes + 1,) int64: c(h), the sum of the children's counts
    precision: Tensor  # empty; its dtype is that of the probabilities, so `.double()` means what it says

    def __init__(self, config: CountingConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        nothing = torch.zeros(0, dtype=torch.int64)
        self.register_buffer("keys", nothing)
        self.register_buffer("counts", nothing.clone())
        self.register_buffer("begins", nothing.clone(), persistent=False)  # these two follow from the first two
        self.register_buffer("totals", nothing.clone(), persistent=False)
        self.register_buffer("precision", torch.empty(0), persistent=False)
        self._index()

    def fit(self, tokens: ArrayLike) -> None:
        """Count the n-grams of a text, (length,) whole numbers; what was counted before is forgotten.

        Raises DataError for a text without tokens or with a token outside the vocabulary.
        """
        text = np.asarray(tokens)[-self.config.most_tokens :].astype(np.int64)
        vocab_size = self.config.vocab_size
        if not len(text):
            raise DataError("counting n-grams: the text has no tokens.")
        if text.min() < 0 or text.max() >= vocab_size:
            raise DataError(
                f"counting n-grams: the text has tokens from {text.min()} to {text.max()}; "
                f"the vocabulary has 0 to {vocab_size - 1}."
            )
        parents = np.zeros(len(text), dtype=np.int64)  # the node of the n - 1 tokens before each place
        keys, counts, nodes = [], [], 1
        for length in range(1, min(self.config.order, len(text)) + 1):
            found, which, times = np.unique(
                parents * vocab_size + text[length - 1 :], return_inverse=True, return_counts=True
            )
            keys.append(found)
            counts.append(times)
            parents = (which + nodes)[:-1]
            nodes += len(found)
        device, none = self.keys.device, np.zeros(0, dtype=np.int64)
        self.keys = torch.from_numpy(np.concatenate([none, *keys])).to(device)
        self.counts = torch.from_numpy(np.concatenate([none, *counts]).astype(np.int64)).to(device)
        self._index()

    def _index(self) -> None:
        """Where each node's children lie, and how many there are of them."""
        nodes = torch.arange(len(self.keys) + 2, device=self.keys.device)
        self.begins = torch.searchsorted(self.keys, nodes * self.config.vocab_size)
        before = torch.cat([self.counts.new_zeros(1), self.counts.cumsum(0)])
        self.totals = before[self.begins[1:]] - before[self.begins[:-1]]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # How many n-grams there are is known only from the file: make room, then let torch copy.
        keys, counts = state_dict.get(prefix + "keys"), state_dict.get(prefix + "counts")
        if keys is not None and counts is not None:
            parents = keys // self.config.vocab_size
            sound = keys.ndim == 1 and keys.shape == counts.shape and bool((keys.diff() > 0).all())
            if not sound or bool(((parents < 0) | (parents > torch.arange(len(keys)).to(keys))).any()):
                errors: list[str] = arguments[-1]
                errors.append(f"the counts are not those of n-grams over {self.config.vocab_size} tokens.")
                return
            self.keys, self.counts = self.keys.new_zeros(len(keys)), self.counts.new_zeros(len(keys))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self._index()

    def _walk(self, tokens: Tensor, before: Tensor, depth: int, padding: Tensor | None = None) -> Tensor:
        """The node of the last 0, 1 .. `depth` tokens at every place, -1 where they were never seen.

        `before` (B, at least depth) are those nodes one place before the first token; `padding` (B, T) is True
        where a row has not begun. Shapes: (B, T) -> (B, T, depth + 1).
        """
        if tokens.numel() and (tokens.min() < 0 or tokens.max() >= self.config.vocab_size):
            raise IndexError(f"a token is outside 0 to {self.config.vocab_size - 1}.")  # its key would be another's
        levels = [torch.zeros_like(tokens)]
        for shorter in range(depth):
            parents = torch.cat([before[:, shorter, None], levels[-1][:, :-1]], dim=1)
            wanted = parents * self.config.vocab_size + tokens  # negative, so never found, when the parent is -1
            place = torch.searchsorted(self.keys, wanted).clamp_(max=max(len(self.keys) - 1, 0))
            found = self.keys[place] == wanted if len(self.keys) else torch.zeros_like(wanted, dtype=torch.bool)
            if padding is not None:
                found &= ~padding
            levels.append(torch.where(found, place + 1, -1))
        return torch.stack(levels, dim=-1)

    def _roots(self, rows: int) -> Tensor:
        """The nodes before the first token: the empty context is known, no other is. Shapes: -> (rows, N)."""
        nodes = torch.full((rows, max(1, self.config.order)), -1, device=self.keys.device)
        nodes[:, 0] = 0
        return nodes

    def _seen(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """c(h) and kinds(h) of each node, 0 and 0 for -1."""
        known, nodes = nodes >= 0, nodes.clamp(min=0)
        kinds = self.begins[nodes + 1] - self.begins[nodes]
        return self.totals[nodes] * known, kinds * known

    def _blend(self, shorter: Tensor, nodes: Tensor) -> Tensor:
        """p(. | h) of the contexts `nodes` from p(. | h'). Shapes: (M, V), (M,) -> (M, V)."""
        total, kinds = self._seen(nodes)
        weight = torch.where(total > 0, total + kinds, 1).to(shorter.dtype)
        longer = shorter * torch.where(total > 0, kinds / weight, 1).to(shorter.dtype)[:, None]
        # The children of all the contexts in one list: child j of context i is at begins[node i] + j.
        row = torch.arange(len(nodes), device=nodes.device).repeat_interleave(kinds)
        first = kinds.cumsum(0) - kinds
        child = self.begins[nodes.clamp(min=0)][row] + torch.arange(len(row), device=row.device) - first[row]
        token = self.keys[child] % self.config.vocab_size
        longer[row, token] += self.counts[child] / weight[row]  # a context has a token once: no two writes meet
        return longer

    def new_cache(self, rows: int) -> CountingCache:
        return CountingCache(self._roots(rows))

    def forward(self, tokens: Tensor, cache: CountingCache | None = None, starts: Tensor | None = None) -> Tensor:
        """Shapes: (B, T) int64 -> (B, T, V). `cache` takes these tokens in; columns before `starts` (B,) are no
        context of anything. Raises IndexError for a token outside the vocabulary."""
        rows, new = tokens.shape
        length = 0 if cache is None else cache.length
        before = self._roots(rows) if cache is None else cache.nodes
        padding = None
        if starts is not None:
            padding = torch.arange(length, length + new, device=tokens.device) < starts[:, None]
        nodes = self._walk(tokens, before, self.config.order - 1, padding)
        if cache is not None:
            cache.nodes, cache.length = nodes[:, -1], length + new
        nodes = nodes.flatten(0, 1)
        uniform = self.precision.new_full((1, self.config.vocab_size), 1 / self.config.vocab_size)
        if self.config.order:
            uniform = self._blend(uniform, nodes[:1, 0])  # the empty context is the same everywhere
        p = uniform.repeat(len(nodes), 1)
        for length in range(1, self.config.order):
            p = self._blend(p, nodes[:, length])
        return p.log().view(rows, new, self.config.vocab_size)

    def score(self, tokens: ArrayLike, piece: int = 1 << 18) -> Tensor:
        """log p of every token of a text after the first, each from the up to N - 1 tokens before it in the text.

        The same numbers as picking them from `forward`, without the other V - 1 of each. Works through the text in
        pieces, so memory does not grow with it. Shapes: (length,) -> (length - 1,).
        Raises IndexError for a token outside the vocabulary.
        """
        text = np.asarray(tokens)
        order, device = self.config.order, self.keys.device
        kept = max(1, order)  # the empty context, at least
        before, scores = self._roots(1), []
        counts = torch.cat([self.counts.new_zeros(1), self.counts])  # [node], and 0 for what was never seen
        for begin in range(0, len(text), piece):
            part = torch.from_numpy(text[begin : begin + piece].astype(np.int64)).to(device)
            nodes = self._walk(part[None], before, order)  # one longer than a context: the n-grams themselves
            contexts = torch.cat([before[:, None], nodes[:, :-1, :kept]], dim=1)
            p = self.precision.new_full(part.shape, 1 / self.config.vocab_size)
            for length in range(order):
                total, kinds = self._seen(contexts[0, :, length])
                count = counts[nodes[0, :, length + 1].clamp(min=0)]
                weight = torch.where(total > 0, total + kinds, 1).to(p.dtype)
                p = torch.where(total > 0, (count + kinds * p) / weight, p)
            scores.append(p.log())
            before = nodes[:, -1, :kept]
        return torch.cat(scores)[1:] if scores else self.precision.clone()

    def loss(self, tokens: ArrayLike) -> float:
        """Nats per token over a whole text; every token after the first is scored once.

        Raises DataError for a text with fewer than two tokens.
        """
        scores = self.score(tokens)
        if not len(scores):
            raise DataError("scoring by counting: the text has fewer than two tokens.")
        return -scores.cpu().double().mean().item()


MOST_SCORED = 2_000_000  # some seconds; by then the mean is known to about 0.002


def counting_line(train: ArrayLike, validation: ArrayLike, vocab_size: int, order: int = 5) -> float:
    """The loss on `validation`, in nats per token, that counting the n-grams of `train` gets without learning.

    Every report shows it. Of a long `train` the last `CountingConfig.most_tokens` are counted, of a long
    `validation` the first `MOST_SCORED` are scored; a shorter one is used whole.
    Raises DataError for an empty `train` or a `validation` below two tokens.
    """
    model = CountingModel(CountingConfig(vocab_size, order)).double()
    model.fit(train)
    return model.loss(np.asarray(validation)[:MOST_SCORED])
