"""From logits to tokens: filters on logits, the draw, decoding with a cache. `handmade.writing` makes text of them.

    rows = generate(model, [[1, 2, 3], [7]], tokens=100, sampling=SamplingConfig(temperature=0.8, top_k=50), seed=7)

Everything works on any model with the contract of `handmade.models`, from counting to GPT.
B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from handmade.config import Config
from handmade.errors import ConfigError, HandmadeError

# ---------------------------------------------------------------------------------------------------------------
# Which tokens may be drawn, and how likely. Pure functions: logits (..., V) -> (..., V), -inf for what is left out.


@dataclass(frozen=True)
class SamplingConfig(Config):
    """How the next token is drawn. The filters act in the order of the fields, each on what the last one left:
    temperature, top-k, top-p, min-p. It is the order of Hugging Face's `generate`, so the same settings mean the
    same distribution there."""

    temperature: float = 1.0
    """Logits are divided by it: below 1 likely tokens become likelier. 0 takes the likeliest token (greedy)."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float | None = None
    """Only the likeliest tokens that together have this probability."""
    min_p: float | None = None
    """Only tokens at least this fraction as likely as the likeliest."""

    def check(self) -> None:
        warm = self.temperature == 0 or 1e-6 <= self.temperature < math.inf
        self.require("temperature", warm, "0 (always the likeliest token) or from 0.000001 up; 1 leaves the logits")
        self.require("top_k", self.top_k is None or self.top_k >= 1, "at least 1, or none")
        self.require("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1, or none")
        self.require("min_p", self.min_p is None or 0 <= self.min_p <= 1, "from 0 to 1, or none")


def with_temperature(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature): on logits, because a power of each probability is meant, not a multiple of it.
    Source: Hinton, Vinyals and Dean 2015, equation 1 (arXiv:1503.02531)."""
    return logits / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The k largest; all that are equal to the k-th stay too.
    Source: Fan, Lewis and Dauphin 2018, section 5, "Generation" (arXiv:1805.04833)."""
    if k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The smallest set of likeliest tokens whose probabilities sum to p or more; of equal ones the first.
    Source: Holtzman et al. 2020, section 3.1, equation 2 (arXiv:1904.09751)."""
    if p >= 1:
        return logits
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ranked.softmax(-1)
    likelier = probabilities.cumsum(-1) - probabilities  # what the tokens before it have; 0 for the first: it stays
    return logits.masked_fill(torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, likelier >= p), -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens with a probability of at least p times the largest: in logits, no more than -ln p below it.
    Source: Nguyen et al. 2024, section 3 (arXiv:2407.01082)."""
    if p <= 0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -math.inf)


def filtered(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """The logits that a token is drawn from, for a temperature above 0. Shapes: (..., V) -> (..., V)."""
    if sampling.temperature != 1:
        logits = with_temperature(logits, sampling.temperature)
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


# ---------------------------------------------------------------------------------------------------------------
# The draw


def choose(logits: Tensor, sampling: SamplingConfig, draws: Tensor | None = None) -> Tensor:
    """A token for each row.

        token = the first v with  p(0) + .. + p(v) > draw          draw uniform in [0, 1)

    `draws` come from outside, one a row, so that a row's token depends on nothing but its own logits and draw.
    A temperature of 0 takes the largest logit and needs none.

    Shapes: logits (B, V), draws (B,) float64 on the CPU -> (B,) int64.
    Raises HandmadeError for logits that are not finite numbers.
    """
    if sampling.temperature == 0:
        peak, token = logits.max(-1)
        if not bool(peak.isfinite().all()):
            raise HandmadeError(NOT_FINITE)
        return token
    if draws is None:
        raise ConfigError("choose: a temperature above 0 needs a draw for each row.")
    # In float64: summed in float32, the last of many unlikely tokens would be rounded away.
    cumulative = filtered(logits, sampling).cpu().double().softmax(-1).cumsum(-1)
    token = torch.searchsorted(cumulative, draws[:, None] * cumulative[:, -1:], right=True)[:, 0]
    if int(token.max()) >= logits.shape[-1]:  # nothing is larger than NaN
        raise HandmadeError(NOT_FINITE)
    return token.to(logits.device)


NOT_FINITE = "The model's logits are not finite numbers, so no token can be drawn. Its weights are damaged or diverged."


def row_seed(seed: int, row: int) -> int:
    """The seed of a row: `seed` itself for the first, for others a hash of both, so that the rows of seed 1 are not
    those of seed 2 moved by one. A row alone under `row_seed(seed, row)` gets what it got in the batch."""
    if seed < 0:
        raise ConfigError(f"seed = {seed}: must be 0 or more.")
    if row == 0:
        return seed
    high, low = np.random.SeedSequence(seed, spawn_key=(row,)).generate_state(2)
    return int(high) << 32 | int(low)


# ---------------------------------------------------------------------------------------------------------------
# Tokens


def extend(window: list[int], token: int, context: int | None) -> None:
    """Put a token behind a row's window. A full window first keeps only its newest half, `context // 2` tokens.

    Half, and not all but one: positions are counted from the window's start, so after a slide every key is another
    one and the cache has to be filled again. By halves that happens once in context / 2 tokens.
    """
    if context is not None and len(window) >= context:
        del window[: len(window) - context // 2]
    window.append(token)


def stream(
    model: nn.Module,
    prompts: Sequence[Iterable[int]],
    tokens: int,
    sampling: SamplingConfig | None = None,
    *,
    seed: int | Sequence[int] | None = 0,
    cache: bool = True,
    start: int | None = None,
    stop_tokens: Iterable[int] = (),
    finished: Callable[[int, int], bool] | None = None,
) -> Iterator[list[int | None]]:
    """Up to `tokens` new tokens for every prompt, step by step: each step gives one token a row, None for a row
    that has ended.

    Rows may have different lengths and do not feel each other: each has its own window, its own draws, and gets
    the tokens that it gets alone. `seed` gives the rows `row_seed(seed, 0)`, `row_seed(seed, 1)` and so on; a list
    names each row's own; None takes new ones. `cache=False` computes the whole window at every step: slow, the same.

    A prompt longer than the context counts from its newest `context` tokens. An empty one stands for the single
    token `start`. A token of `stop_tokens` ends its row and is not given out; so does `finished(row, token)`
    returning True, after `token`.

    The model runs without dropout and without gradients, and is in the mode it was in between two steps.
    Raises ConfigError for a prompt, a seed or a number of tokens that cannot be, HandmadeError for logits that are
    not finite.
    """
    sampling = sampling or SamplingConfig()
    if tokens < 0:
        raise ConfigError(f"tokens = {tokens}: must be 0 or more.")
    context: int | None = model.context  # type: ignore[assignment]
    windows = [_window(row, prompt, start, model) for row, prompt in enumerate(prompts)]
    if seed is None or isinstance(seed, int):
        fresh = int(np.random.SeedSequence().entropy) if seed is None else seed  # type: ignore[arg-type]
        seeds = [row_seed(fresh, row) for row in range(len(windows))]
    else:
        seeds = [row_seed(one, 0) for one in seed]
        if len(seeds) != len(windows):
            raise ConfigError(f"{len(seeds)} seeds for {len(windows)} prompts: give one for each, or a single one.")
    sources = [np.random.Generator(np.random.PCG64(one)) for one in seeds]
    return _steps(model, windows, context, tokens, sampling, sources, cache, frozenset(stop_tokens), finished)


def _window(row: int, prompt: Iterable[int], start: int | None, model: nn.Module) -> list[int]:
    window = [int(token) for token in prompt]
    if not window:
        if start is None:
            raise ConfigError(f"prompt {row} is empty: give a token to start from (start=...).")
        window = [start]
    vocab_size: int = model.config.vocab_size  # type: ignore[union-attr, assignment]
    for token in window:
        if not 0 <= token < vocab_size:
            raise ConfigError(f"prompt {row} has the token {token}; the model knows 0 to {vocab_size - 1}.")
    context: int | None = model.context  # type: ignore[assignment]
    return window if context is None else window[-context:]


def _steps(
    model: nn.Module,
    windows: list[list[int]],
    context: int | None,
    tokens: int,
    sampling: SamplingConfig,
    sources: list[np.random.Generator],
    cached: bool,
    stop_tokens: frozenset[int],
    finished: Callable[[int, int], bool] | None,
) -> Iterator[list[int | None]]:
    device = next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
    modules, weights = list(model.modules()), weights_of(model)
    active = list(range(len(windows)))
    memory: Any = None
    fed, starts = torch.empty(0), None
    for _ in range(tokens):
        if not active:
            return
        # The cache has a column for every position of the longest row, so it is full when a window is. It is full
        # too early after a longer row has ended; filling it again from the windows is right in both cases.
        if memory is None or (context is not None and memory.length >= context):
            fed, starts = _columns([windows[row] for row in active], device)
            memory = model.new_cache(len(active)) if cached else None  # type: ignore[operator]
        draws = None
        if sampling.temperature > 0:
            draws = torch.tensor([sources[row].random() for row in active], dtype=torch.float64)
        with evaluating(modules), threads_for(fed, weights):
            chosen = _next(model, fed, memory, starts, sampling, draws)
        step: list[int | None] = [None] * len(windows)
        going = []
        for place, (row, token) in enumerate(zip(active, chosen.tolist(), strict=True)):
            if token in stop_tokens:
                continue
            step[row] = token
            extend(windows[row], token, context)
            if finished is None or not finished(row, token):
                going.append(place)
        if len(going) < len(active):
            kept = torch.tensor(going, dtype=torch.int64, device=device)
            active = [active[place] for place in going]
            chosen = chosen[kept]
            starts = None if starts is None else starts[kept]
            if memory is not None and going:
                memory.select(kept)
        fed = chosen[:, None]
        yield step


def _columns(windows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Windows side by side, short ones padded on the left; and where each begins, None when none is padded.
    Shapes: -> (B, T), (B,)."""
    longest = max(map(len, windows))
    missing = [longest - len(window) for window in windows]
    columns = torch.tensor([[0] * pad + window for pad, window in zip(missing, windows, strict=True)], device=device)
    return columns, torch.tensor(missing, device=device) if any(missing) else None


@torch.inference_mode()
def _next(
    model: nn.Module,
    fed: Tensor,
    memory: Any,
    starts: Tensor | None,
    sampling: SamplingConfig,
    draws: Tensor | None,
) -> Tensor:
    """The next token of each row. Shapes: fed (B, T) -> (B,)."""
    hidden, head = getattr(model, "hidden", None), getattr(model, "head", None)
    if hidden is not None and head is not None:
        logits = head(hidden(fed, memory, starts)[:, -1])  # the head of the last column only: V is large
    else:
        logits = model(fed, memory, starts)[:, -1]
    return choose(logits, sampling, draws)


@contextmanager
def evaluating(modules: list[nn.Module]) -> Iterator[None]:
    """Dropout off inside. Between two steps of a stream the caller may train: the mode is put back at once."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def weights_of(model: nn.Module) -> int:
    """Numbers that a step of the model reads: its parameters, a shared matrix counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


SHARED_FROM = 2**24  # weights times rows; below, one thread does a single token as fast as two: measured from 0.1 M up


@contextmanager
def threads_for(fed: Tensor, weights: int) -> Iterator[None]:
    """One thread inside, where a step is too small to be shared: a single token of at most four rows on a CPU.

    There several threads are no faster (`python -m benchmarks threads`), and they wait for each other dozens of times
    a token. While any other process is busy, each wait may last until the system lets the other thread go on.
    """
    before, (rows, new) = torch.get_num_threads(), fed.shape
    shared = new > 1 or rows > 4 or rows * weights > SHARED_FROM or fed.device.type != "cpu"
    if shared or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def generate(
    model: nn.Module,
    prompts: Sequence[Iterable[int]],
    tokens: int,
    sampling: SamplingConfig | None = None,
    *,
    seed: int | Sequence[int] | None = 0,
    cache: bool = True,
    start: int | None = None,
    stop_tokens: Iterable[int] = (),
    on_token: Callable[[int, int], object] | None = None,
) -> list[list[int]]:
    """The new tokens of every prompt, without the prompt; see `stream` for the arguments.

    `on_token(row, token)` is called for every token as it comes. Raises ConfigError and HandmadeError as `stream`.
    """
    rows: list[list[int]] = [[] for _ in prompts]
    steps = stream(model, prompts, tokens, sampling, seed=seed, cache=cache, start=start, stop_tokens=stop_tokens)
    for step in steps:
        for row, token in enumerate(step):
            if token is not None:
                rows[row].append(token)
                if on_token is not None:
                    on_token(row, token)
    return rows


@torch.inference_mode()
def greedy(model: nn.Module, prompts: Tensor, tokens: int, end: int | None = None) -> Tensor:
    """The likeliest token, again and again, for many prompts of one length: what `generate` gives at temperature 0,
    without a list of numbers for each row, so that thousands of rows are decoded at once.

    A row that has written `end` goes on with `end`; when all have, it is over.
    Shapes: prompts (B, T) int64 -> (B, at most `tokens`) int64.
    Raises ConfigError where prompt and tokens do not fit the context together, HandmadeError for logits that are not
    finite.
    """
    context: int | None = model.context  # type: ignore[assignment]
    if context is not None and prompts.shape[1] + tokens - 1 > context:
        raise ConfigError(f"{prompts.shape[1]} tokens and {tokens} more do not fit the context of {context}.")
    likeliest = SamplingConfig(temperature=0)
    memory: Any = model.new_cache(len(prompts))  # type: ignore[operator]
    fed, found, weights = prompts, [], weights_of(model)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=prompts.device)
    with evaluating(list(model.modules())):
        for _ in range(tokens):
            with threads_for(fed, weights):
                chosen = _next(model, fed, memory, None, likeliest, None)
            if end is not None:
                chosen = chosen.masked_fill(ended, end)
                ended = ended | (chosen == end)
            found.append(chosen)
            if end is not None and bool(ended.all()):
                break
            fed = chosen[:, None]
    return torch.stack(found, dim=1) if found else prompts[:, :0]
