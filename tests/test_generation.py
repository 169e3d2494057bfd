"""Filters against formulas in plain Python; decoding with a cache against the same without, and rows against rows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handmade import generation
from handmade.errors import ConfigError, HandmadeError, TokenizerError
from handmade.generation import (
    SamplingConfig,
    choose,
    extend,
    filtered,
    generate,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    row_seed,
    stream,
    with_temperature,
)
from handmade.models.gpt import GPT, GPTConfig
from handmade.models.mlp import MLP, MLPConfig
from handmade.models.ngram import Bigram, BigramConfig, CountingConfig, CountingModel
from handmade.models.recurrent import Recurrent, RecurrentConfig
from handmade.tokenizers import ByteTokenizer, CharTokenizer
from handmade.writing import StopStrings, generate_text, stream_text, stream_texts

GREEDY = SamplingConfig(temperature=0)

# ---------------------------------------------------------------------------------------------------------------
# Models for the tests


class Shape:
    def __init__(self, vocab_size):
        self.vocab_size = vocab_size


class Toy(torch.nn.Module):
    """Logits that depend on a token's place in its window and on every visible token: a wrong window, a wrong
    position or a glance at the padding changes them all. `seen` holds the (rows, columns) of each call."""

    class Cache:
        def __init__(self, rows):
            self.tokens = torch.zeros(rows, 0, dtype=torch.int64)

        @property
        def length(self):
            return self.tokens.shape[1]

        def select(self, rows):
            self.tokens = self.tokens[rows]

    def __init__(self, context, vocab_size=11):
        super().__init__()
        self.context, self.config, self.seen = context, Shape(vocab_size), []

    def new_cache(self, rows):
        return self.Cache(rows)

    def forward(self, tokens, cache=None, starts=None):
        self.seen.append(tuple(tokens.shape))
        new = tokens.shape[1]
        if cache is not None:
            tokens = cache.tokens = torch.cat([cache.tokens, tokens], 1)
        rows, columns = tokens.shape
        assert self.context is None or columns <= self.context
        starts = torch.zeros(rows, dtype=torch.int64) if starts is None else starts
        assert len(starts) == rows
        place = torch.arange(columns) - starts[:, None]
        visible = ((tokens + 1) * (place + 2) ** 2 * (place >= 0)).cumsum(1) + 7 * place
        words = torch.arange(self.config.vocab_size)
        return (3 * torch.sin(visible[..., None] * (0.37 + 0.61 * words.double())))[:, -new:]


class Script(torch.nn.Module):
    """Says a given list of tokens, whatever it is asked: the token after `n` new ones is script[n]."""

    context = None

    def __init__(self, scripts, vocab_size, prompt_lengths=None):
        super().__init__()
        self.scripts, self.config = scripts, Shape(vocab_size)

    class Cache:
        def __init__(self, rows):
            self.length, self.said, self.rows = 0, 0, torch.arange(rows)

        def select(self, rows):
            self.rows = self.rows[rows]

    def new_cache(self, rows):
        return self.Cache(rows)

    def forward(self, tokens, cache=None, starts=None):
        logits = torch.zeros(*tokens.shape, self.config.vocab_size)
        for place, row in enumerate(cache.rows.tolist()):
            logits[place, :, self.scripts[row][cache.said]] = 9
        cache.length += tokens.shape[1]
        cache.said += 1
        return logits


def gpt(positions="learned", context=16, **options):
    """Random weights large enough that what it sees matters: after its initialisation a GPT says all alike."""
    config = GPTConfig(vocab_size=13, context=context, layers=2, heads=2, width=16, positions=positions, **options)
    model = GPT(config).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return model


def counting():
    model = CountingModel(CountingConfig(5, order=4)).double()
    model.fit(np.random.default_rng(0).integers(0, 5, 300))
    return model


def mlp():
    model = MLP(MLPConfig(13, window=5, width=8, hidden=16), torch.Generator().manual_seed(0)).double()
    return louder(model)


def recurrent(cell):
    config = RecurrentConfig(13, cell=cell, width=12, layers=2)
    return louder(Recurrent(config, torch.Generator().manual_seed(0)).double())


def louder(model):
    """With a head that says more than it does after its initialisation."""
    with torch.no_grad():
        model.head.weight.mul_(10)
    return model


def bigram():
    model = Bigram(BigramConfig(5))
    torch.nn.init.normal_(model.embedding.weight, generator=torch.Generator().manual_seed(0))
    return model


# ---------------------------------------------------------------------------------------------------------------
# Filters

logit_rows = st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=1, max_size=12)  # ties are common


def kept(logits):
    return {v for v, logit in enumerate(logits.tolist()) if logit > -math.inf}


def plain_softmax(values):
    peak = max(values.values())
    weights = {v: math.exp(value - peak) for v, value in values.items()}
    return {v: weight / sum(weights.values()) for v, weight in weights.items()}


@settings(max_examples=60, deadline=None)
@given(logit_rows, st.integers(1, 14))
def test_top_k_keeps_the_k_largest_and_their_equals(row, k):
    logits = torch.tensor(row, dtype=torch.float64)
    after = keep_top_k(logits, k)
    assert kept(after) == {v for v in range(len(row)) if sum(other > row[v] for other in row) < k}
    assert all(after[v] == row[v] for v in kept(after))


@settings(max_examples=60, deadline=None)
@given(logit_rows, st.floats(0.01, 1))
def test_top_p_keeps_the_smallest_set_that_has_p(row, p):
    probabilities = plain_softmax(dict(enumerate(row)))
    chosen, total = set(), 0.0
    for v in sorted(probabilities, key=lambda v: (-probabilities[v], v)):
        if total >= p - 1e-12:
            break
        chosen.add(v)
        total += probabilities[v]
    close = any(abs(sum(sorted(probabilities.values())[::-1][:n]) - p) < 1e-9 for n in range(len(row) + 1))
    after = kept(keep_top_p(torch.tensor(row, dtype=torch.float64), p))
    assert after == chosen or close
    assert after


@settings(max_examples=60, deadline=None)
@given(logit_rows, st.floats(0, 1))
def test_min_p_keeps_what_is_at_least_that_fraction_of_the_likeliest(row, p):
    probabilities = plain_softmax(dict(enumerate(row)))
    peak = max(probabilities.values())
    if any(abs(value - p * peak) < 1e-12 * peak and value < peak for value in probabilities.values()):
        return  # too close to call
    after = kept(keep_min_p(torch.tensor(row, dtype=torch.float64), p))
    assert after == {v for v, value in probabilities.items() if value >= p * peak * (1 - 1e-12)}


def test_temperature_is_a_power_of_the_ratio_of_probabilities():
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    before, after = logits.softmax(-1), with_temperature(logits, 0.7).softmax(-1)
    ratio = (before[2] / before[1]) ** (1 / 0.7)
    assert (after[2] / after[1]).item() == pytest.approx(ratio.item(), rel=1e-12)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(-40, 40), min_size=2, max_size=12, unique=True),
    st.floats(0.3, 3),
    st.none() | st.integers(1, 14),
    st.none() | st.floats(0.05, 1),
    st.none() | st.floats(0, 1),
)
def test_filters_act_in_the_documented_order(row, temperature, k, top_p, min_p):
    left = {v: value / 8 / temperature for v, value in enumerate(row)}
    if k is not None:
        left = dict(sorted(left.items(), key=lambda pair: -pair[1])[:k])
    if top_p is not None and top_p < 1:
        total, fewer = 0.0, {}
        for v, probability in sorted(plain_softmax(left).items(), key=lambda pair: -pair[1]):
            if abs(total - top_p) < 1e-9:
                return  # too close to call
            if total < top_p:
                fewer[v] = left[v]
            total += probability
        left = fewer
    if min_p is not None:
        probabilities = plain_softmax(left)
        peak = max(probabilities.values())
        if any(abs(value - min_p * peak) < 1e-9 * peak and value < peak for value in probabilities.values()):
            return
        left = {v: left[v] for v, value in probabilities.items() if value >= min_p * peak * (1 - 1e-12)}
    sampling = SamplingConfig(temperature, k, top_p, min_p)
    p = filtered(torch.tensor(row, dtype=torch.float64) / 8, sampling).softmax(-1)
    expected = plain_softmax(left)
    expected = torch.tensor([expected.get(v, 0.0) for v in range(len(row))], dtype=torch.float64)
    torch.testing.assert_close(p, expected, rtol=0, atol=1e-12)


def test_the_order_matters_where_it_can():
    """Three likely tokens: of the top 2 the first has more than half, of all it has less."""
    logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    assert kept(filtered(logits, SamplingConfig(top_k=2, top_p=0.6))) == {0}
    assert kept(filtered(logits, SamplingConfig(top_p=0.6))) == {0, 1}
    assert kept(filtered(logits, SamplingConfig(temperature=0.5, top_p=0.6))) == {0}  # 25 : 9 : 4


def test_filters_are_those_of_hugging_face():
    transformers = pytest.importorskip("transformers")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 200, generator=generator, dtype=torch.float64) * 3
    for temperature, k, p, least in itertools.product((0.7, 1.3), (5, 300), (0.3, 0.95), (0.02, 0.5)):
        steps = [
            transformers.TemperatureLogitsWarper(temperature),
            transformers.TopKLogitsWarper(k),
            transformers.TopPLogitsWarper(p),
            transformers.MinPLogitsWarper(least),
        ]
        expected = logits
        for step in steps:
            expected = step(None, expected)
        assert torch.equal(filtered(logits, SamplingConfig(temperature, k, p, least)), expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature = -0.1: must be 0"),
        ({"temperature": math.inf}, "temperature = inf: must be 0"),
        ({"temperature": math.nan}, "temperature = nan: must be 0"),
        ({"temperature": 1e-9}, "temperature = 1e-09: must be 0"),
        ({"top_k": 0}, "top_k = 0: must be at least 1"),
        ({"top_k": 2.5}, "top_k = 2.5: must be a whole number or none"),
        ({"top_p": 0.0}, "top_p = 0.0: must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p = 1.1: must be above 0 and at most 1"),
        ({"min_p": -0.1}, "min_p = -0.1: must be from 0 to 1"),
        ({"min_p": 1.1}, "min_p = 1.1: must be from 0 to 1"),
    ],
)
def test_sampling_settings_out_of_range(values, message):
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**values)


# ---------------------------------------------------------------------------------------------------------------
# The draw


def test_evenly_spaced_draws_give_every_token_its_share():
    p = torch.tensor([0.1, 0.0, 0.25, 0.6, 0.05], dtype=torch.float64)
    draws = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens = choose(p.log().repeat(1000, 1), SamplingConfig(), draws)
    assert torch.bincount(tokens, minlength=5).tolist() == [100, 0, 250, 600, 50]


def test_the_filters_reach_the_draw():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().repeat(100, 1)
    draws = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    shares = torch.bincount(choose(logits, SamplingConfig(top_k=2), draws), minlength=4)
    assert shares.tolist() == [0, 0, 43, 57]
    squares = torch.bincount(choose(logits, SamplingConfig(temperature=0.5), draws), minlength=4)
    assert squares.tolist() == [3, 14, 30, 53]  # 1 : 4 : 9 : 16


def test_the_extreme_draws_take_possible_tokens():
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]] * 2)
    draws = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert choose(logits, SamplingConfig(), draws).tolist() == [1, 2]


def test_many_unlikely_tokens_keep_their_share():
    """Each is less than float32 can add to 1: summed in float32, many of them could never be drawn."""
    logits = torch.zeros(1, 40_001)
    logits[0, 0] = math.log(4e8)
    likely = logits[0, 0].double().exp()
    wanted = torch.arange(20_000, 20_050)
    draws = (likely + wanted - 0.5) / (likely + 40_000)  # token i has the sums from likely + i - 1 to likely + i
    assert torch.equal(choose(logits.expand(50, -1), SamplingConfig(), draws), wanted)


def test_greedy_takes_the_likeliest_and_needs_no_draw():
    assert choose(torch.tensor([[1.0, 3.0, 2.0], [5.0, 3.0, 2.0]]), GREEDY).tolist() == [1, 0]
    with pytest.raises(ConfigError, match="needs a draw"):
        choose(torch.zeros(1, 3), SamplingConfig())


@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig(), SamplingConfig(0.8, 2, 0.9, 0.1)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_said_to_be(sampling, bad):
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, bad, 2.0]])
    with pytest.raises(HandmadeError, match="not finite"):
        choose(logits, sampling, torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_row_seeds_are_all_different():
    seeds = [row_seed(seed, row) for seed in range(20) for row in range(20)]
    assert len(set(seeds)) == 400
    assert [row_seed(seed, 0) for seed in range(20)] == list(range(20))
    with pytest.raises(ConfigError, match="seed = -1"):
        row_seed(-1, 0)


# ---------------------------------------------------------------------------------------------------------------
# Windows


def test_a_full_window_keeps_its_newest_half():
    window = [1, 2, 3, 4]
    extend(window, 5, 4)
    assert window == [3, 4, 5]
    extend(window, 6, 4)
    assert window == [3, 4, 5, 6]
    window = [1, 2, 3, 4, 5]
    extend(window, 6, 5)
    assert window == [4, 5, 6]
    window = [1]
    extend(window, 2, 1)
    assert window == [2]
    extend(window, 3, None)
    assert window == [2, 3]


def by_the_rule(model, prompt, tokens):
    """Greedy decoding of one row as the design says it, with nothing of `generation`."""
    window, said = list(prompt)[-model.context :], []
    for _ in range(tokens):
        token = int(model(torch.tensor([window]))[0, -1].argmax())
        said.append(token)
        if len(window) == model.context:
            window = window[model.context - model.context // 2 :]
        window = [*window, token]
    return said


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("context", [1, 2, 5, 8])
def test_each_row_follows_the_rule_of_the_full_window(context, cache):
    prompts = [[3], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [4, 4], [9, 1, 2, 3], [7, 5, 3, 1, 0]]
    expected = [by_the_rule(Toy(context), prompt, 30) for prompt in prompts]
    assert context == 1 or len({tuple(row) for row in expected}) == 5
    assert generate(Toy(context), prompts, 30, GREEDY, cache=cache) == expected


def test_the_cache_is_filled_again_once_in_half_a_context():
    model = Toy(64)
    generate(model, [[1]], 64 + 3 * 32, GREEDY)
    fills = [columns for _, columns in model.seen if columns > 1]
    assert fills == [33, 33, 33]
    assert len(model.seen) == 64 + 3 * 32  # one call a token


def test_rows_that_end_leave_the_batch_and_the_others_do_not_notice():
    prompts = [[1, 2, 3, 4, 5, 6], [3], [4, 4]]
    alone = [by_the_rule(Toy(8), prompt, 40) for prompt in prompts]
    for stop in range(11):
        for cache in (False, True):
            expected = [row[: row.index(stop)] if stop in row else row for row in alone]
            model = Toy(8)
            assert generate(model, prompts, 40, GREEDY, cache=cache, stop_tokens=[stop]) == expected
            asked = sum(rows for rows, _ in model.seen)
            assert asked == sum(len(row) + (len(row) < 40) for row in expected)


# ---------------------------------------------------------------------------------------------------------------
# Any model: cached and not, alone and together


@pytest.fixture
def recorded(monkeypatch):
    """The logits of every step."""
    steps = []

    def watch(logits, sampling, draws=None):
        steps.append(logits.clone())
        return choose(logits, sampling, draws)

    monkeypatch.setattr(generation, "choose", watch)
    return steps


MODELS = {
    "learned": lambda: gpt("learned"),
    "rotary": lambda: gpt("rotary", norm="rms-plain", query_key_norm=True, tied_head=False, logit_cap=5.0),
    "sinusoidal": lambda: gpt("sinusoidal"),
    "none": lambda: gpt("none"),
    "grouped": lambda: gpt("rotary", key_value_heads=1),
    "mean": lambda: gpt("learned", mixing="mean", hidden=0, residual=False),
    "counting": counting,
    "bigram": bigram,
    "mlp": mlp,
    "rnn": lambda: recurrent("rnn"),
    "lstm": lambda: recurrent("lstm"),
}
PROMPTS = [[1, 2, 3, 4], [2], [3, 1, 4, 1, 2, 3, 3, 2, 4, 0, 1]]


@pytest.mark.parametrize("name", MODELS)
def test_cached_equals_uncached_past_the_window(name, recorded):
    model = MODELS[name]()
    cached = generate(model, PROMPTS, 45, seed=1)
    with_cache = recorded.copy()
    recorded.clear()
    assert generate(model, PROMPTS, 45, seed=1, cache=False) == cached
    assert len(with_cache) == len(recorded) == 45
    for one, other in zip(with_cache, recorded, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cache", [False, True])
def test_a_row_gets_in_a_batch_what_it_gets_alone(name, cache):
    model = MODELS[name]()
    together = generate(model, PROMPTS, 45, seed=5, cache=cache)
    assert len({tuple(row) for row in together}) == 3
    for row, prompt in enumerate(PROMPTS):
        assert generate(model, [prompt], 45, seed=row_seed(5, row)) == [together[row]]
    seeds = [row_seed(5, row) for row in (2, 0)]
    assert generate(model, [PROMPTS[2], PROMPTS[0]], 45, seed=seeds, cache=cache) == [together[2], together[0]]


def test_draws_stay_with_their_row_when_others_end():
    model = gpt()
    whole = generate(model, PROMPTS, 40, seed=8)
    for stop in range(13):
        expected = [row[: row.index(stop)] if stop in row else row for row in whole]
        assert generate(model, PROMPTS, 40, seed=8, stop_tokens=[stop]) == expected


@pytest.mark.parametrize("name", ["learned", "rotary", "sinusoidal", "none", "grouped"])
def test_the_oldest_token_in_the_window_matters(name):
    """Else the two tests above would show nothing of windows."""
    model = MODELS[name]()
    logits = model(torch.tensor([[token, 3, 1, 4, 1, 5, 9, 2, 6, 5] for token in range(13)]))[:, -1]
    apart = torch.pdist(logits.detach(), p=math.inf)
    assert apart.min() > 1e-4


def test_same_seed_same_tokens_and_other_seed_other_tokens():
    model = gpt()
    first = generate(model, [[1], [1]], 30, seed=4)
    assert generate(model, [[1], [1]], 30, seed=4) == first
    assert generate(model, [[1], [1]], 30, seed=5) != first
    assert first[0] != first[1]  # the same prompt, another row
    assert [row[:10] for row in first] == generate(model, [[1], [1]], 10, seed=4)
    assert generate(model, [[1]], 30, seed=None) != generate(model, [[1]], 30, seed=None)


def test_the_streams_tokens_are_those_of_generate():
    model, heard = gpt(), []
    rows = generate(model, PROMPTS, 20, seed=2, on_token=lambda row, token: heard.append((row, token)))
    steps = list(stream(model, PROMPTS, 20, seed=2))
    assert [list(row) for row in zip(*steps, strict=True)] == rows
    assert heard == [(row, token) for step in steps for row, token in enumerate(step)]


def test_a_row_that_has_ended_streams_none():
    model = Script([[5, 6, 7, 8], [6, 5, 5, 5]], 10)
    assert list(stream(model, [[0], [0]], 4, GREEDY, stop_tokens=[7])) == [[5, 6], [6, 5], [None, 5], [None, 5]]
    ended = stream(model, [[0], [0]], 4, GREEDY, finished=lambda row, token: token == 6)
    assert list(ended) == [[5, 6], [6, None]]  # after both have ended nothing is computed


def test_no_tokens_and_no_prompts():
    assert generate(gpt(), [[1]], 0) == [[]]
    assert generate(gpt(), [], 5) == []


def test_generating_leaves_the_model_and_torchs_random_numbers_alone(recorded):
    model = gpt(dropout=0.5, attention_dropout=0.5)
    expected = generate(model, PROMPTS, 20, seed=0)
    model.train()
    model.blocks[0].eval()
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    tokens = []
    for step in stream(model, PROMPTS, 20, seed=0):
        assert [module.training for module in model.modules()] == modes
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        tokens.append(step)
    assert [list(row) for row in zip(*tokens, strict=True)] == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert all(logits.is_inference() for logits in recorded)  # so no graph was kept
    model(torch.tensor([[1, 2]])).sum().backward()  # nothing made while generating is in the way


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("rows", "cache", "limit", "expected"),
    [
        (1, True, 2**24, [2, 1, 1, 1]),  # the prompt has more to do
        (4, True, 2**24, [2, 1, 1, 1]),
        (5, True, 2**24, [2, 2, 2, 2]),
        (1, False, 2**24, [2, 2, 2, 2]),
        (1, True, 100, [2, 2, 2, 2]),
    ],
)
def test_single_tokens_of_a_small_model_take_one_thread(two_threads, monkeypatch, rows, cache, limit, expected):
    monkeypatch.setattr(generation, "SHARED_FROM", limit)
    model, threads = gpt(), []
    model.embedding.register_forward_hook(lambda *_: threads.append(torch.get_num_threads()))
    for _ in stream(model, [[1, 2]] * rows, 4, cache=cache):
        assert torch.get_num_threads() == 2
    assert threads == expected
    threads.clear()
    generation.greedy(model, torch.ones(rows, 2, dtype=torch.int64), 4)
    assert not cache or threads == expected  # greedy always has one


def test_an_error_in_a_step_gives_the_threads_back(two_threads):
    model = gpt()
    steps = stream(model, [[1]], 3)
    next(steps)
    with torch.no_grad():
        model.head.weight.fill_(math.nan)
    with pytest.raises(HandmadeError, match="not finite"):
        next(steps)
    assert torch.get_num_threads() == 2


def test_an_empty_prompt_stands_for_the_start_token():
    model = gpt()
    assert generate(model, [[], [2, 3]], 9, start=7) == generate(model, [[7], [2, 3]], 9)
    with pytest.raises(ConfigError, match="prompt 1 is empty"):
        stream(model, [[2], []], 9)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1, 13]], {}, "prompt 0 has the token 13; the model knows 0 to 12"),
        ([[1], [-1]], {}, "prompt 1 has the token -1"),
        ([[]], {"start": 13}, "the token 13"),
        ([[1]], {"tokens": -1}, "tokens = -1"),
        ([[1]], {"seed": -3}, "seed = -3"),
        ([[1], [2]], {"seed": [1, 2, 3]}, "3 seeds for 2 prompts"),
    ],
)
def test_what_cannot_be_is_said_at_once(prompts, options, message):
    with pytest.raises(ConfigError, match=message):
        stream(gpt(), prompts, **{"tokens": 3, **options})


# ---------------------------------------------------------------------------------------------------------------
# Stop strings


def cut_by_characters(text, strings):
    for end in range(1, len(text) + 1):
        ends = [string for string in strings if text[:end].endswith(string)]
        if ends:
            return text[: end - max(map(len, ends))], True
    return text, False


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("ab\n", max_size=4), max_size=8),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_cut_where_the_first_is_complete(pieces, strings):
    cutter, said, stopped, fed = StopStrings(strings), "", False, ""
    for piece in pieces:
        text, stopped = cutter.feed(piece)
        said, fed = said + text, fed + piece
        assert cut_by_characters(fed, strings)[1] == stopped
        if stopped:
            break
        # Held back is exactly what may still become a stop string.
        ends = [n for n in range(1, 4) if any(len(s) > n and fed.endswith(s[:n]) for s in strings)]
        assert len(said) == len(fed) - max(ends, default=0)
    said += cutter.flush()
    assert (said, stopped) == cut_by_characters("".join(pieces), strings)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ConfigError, match="stop string is empty"):
        stream_text(gpt(), ByteTokenizer(), "a", 3, stop=[""])


# ---------------------------------------------------------------------------------------------------------------
# Text

LETTERS = CharTokenizer("\nabcdefghijkl")  # 13 of them


def saying(*texts):
    """A model over bytes that says these texts."""
    longest = max(len(text.encode()) for text in texts)
    return Script([list(text.encode().ljust(longest + 1)) for text in texts], 256)


def test_text_is_streamed_as_it_is_generated():
    model, prompts = gpt(), ["abc", "", "lkjihgfedcba"]
    sampling = SamplingConfig(temperature=0.9, top_k=8)
    texts = generate_text(model, LETTERS, prompts, 40, sampling, seed=3)
    rows = generate(
        model, [LETTERS.encode(p).tolist() for p in prompts], 40, sampling, seed=3, start=LETTERS.encode("\n")[0]
    )
    assert texts == [LETTERS.decode(row) for row in rows]
    pieces = list(stream_texts(model, LETTERS, prompts, 40, sampling, seed=3))
    assert len(pieces) == 120  # every letter at once, nothing held back
    assert ["".join(piece for row, piece in pieces if row == wanted) for wanted in range(3)] == texts
    assert "".join(stream_text(model, LETTERS, "abc", 40, sampling, seed=3)) == texts[0]


def test_japanese_comes_character_by_character_from_bytes():
    text = "吾輩は猫である。🐈 名前は まだ無い。"
    pieces = list(stream_text(saying(text), ByteTokenizer(), "猫", len(text.encode()), GREEDY))
    assert pieces == list(text)


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_character_that_the_last_token_leaves_incomplete_is_left_out(missing):
    texts = generate_text(saying("ねこ🐈"), ByteTokenizer(), ["a"], len("ねこ🐈".encode()) - missing, GREEDY)
    assert texts == ["ねこ"]


def test_broken_bytes_are_shown_as_such():
    model = Script([[0x61, 0xE7, 0x62, 0xFF, 0x63]], 256)
    assert generate_text(model, ByteTokenizer(), ["a"], 5, GREEDY) == ["a\ufffdb\ufffdc"]


def test_rows_stop_at_their_own_stop_strings():
    model = saying("Once.\n\nTwice.", "One line\nand another", "no stop\n", "ended END here")
    stop = ["\n\n", "END"]
    expected = ["Once.", "One line\nand another ", "no stop\n" + " " * 13, "ended "]
    assert generate_text(model, ByteTokenizer(), ["a", "bc", "d", "e"], 21, GREEDY, stop=stop) == expected
    pieces = list(stream_texts(model, ByteTokenizer(), ["a", "bc", "d", "e"], 21, GREEDY, stop=stop))
    assert ["".join(piece for row, piece in pieces if row == wanted) for wanted in range(4)] == expected
    assert (1, "\na") in pieces  # the line break waited for the next letter


def test_text_that_was_held_back_comes_out_at_the_end():
    assert generate_text(saying("abab"), ByteTokenizer(), ["x"], 3, GREEDY, stop="bac") == ["aba"]


def test_a_stop_string_of_several_bytes_to_a_character():
    assert generate_text(saying("猫。犬。"), ByteTokenizer(), ["x"], 12, GREEDY, stop=["。"]) == ["猫"]


def test_a_stop_token_ends_the_text():
    assert generate_text(saying("ab\0cd"), ByteTokenizer(), ["x"], 5, GREEDY, stop_tokens=[0]) == ["ab"]


def test_an_empty_prompt_starts_from_a_line_break_where_there_is_one():
    model = gpt()
    assert generate_text(model, LETTERS, [""], 9) == generate_text(model, LETTERS, ["\n"], 9)
    without = CharTokenizer("abcdefghijklm")
    assert generate_text(model, without, [""], 9) == generate_text(model, without, ["a"], 9)
    assert generate_text(model, without, [""], 9, start=3) == generate_text(model, without, ["d"], 9)


def test_a_prompt_with_an_unknown_character():
    with pytest.raises(TokenizerError, match="'Q'"):
        stream_text(gpt(), LETTERS, "abQ", 3)
