"""The checks of sampling: whatever way a token is drawn, what it is drawn from is found out."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import handmade as hm
from handmade import doctor, generation
from handmade.doctor import checks
from handmade.doctor.sampler import MOST_DRAWN, Sampler, Watch, disorder, learnt, widen
from handmade.doctor.shares import distance, powered, wrong
from handmade.generation import SamplingConfig, filtered

MINE = ("sampling-mask", "cached-generation", "temperature", "filters")
V = 20


class Table(nn.Module):
    """Logits that depend on the last two tokens: quick, causal, and no two rows alike."""

    def __init__(self, context: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.context, self.vocab_size = context, V
        generator = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(torch.randn(V, V, generator=generator) * 0.7)
        self.second = nn.Parameter(torch.randn(V, V, generator=generator) * 0.7)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        before = tokens.roll(1, dims=1)
        before[:, 0] = 0
        return self.dropout(self.first[tokens] + self.second[before])


def examine(only: str, **given: Any) -> doctor.Finding:
    return doctor.examine(doctor.Given(**given), only=[only]).findings[0]


def multinomial(logits: Tensor) -> Tensor:
    return torch.multinomial(logits.softmax(-1), 1)[:, 0]


def categorical(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits).sample()


def in_order(logits: Tensor) -> Tensor:
    shares, order = logits.softmax(-1).sort(-1, descending=True)
    return order.gather(1, torch.multinomial(shares, 1))[:, 0]


def among_the_best(logits: Tensor) -> Tensor:
    best, places = logits.topk(V, dim=-1)
    return places.gather(1, best.softmax(-1).multinomial(1))[:, 0]


def numpy_choice(logits: Tensor) -> Tensor:
    shares = logits.double().softmax(-1).numpy()
    return torch.tensor([np.random.choice(V, p=p) for p in shares])  # noqa: NPY002


def python_choices(logits: Tensor) -> Tensor:
    return torch.tensor([random.choices(range(V), weights=p)[0] for p in logits.softmax(-1).tolist()])


def inverse(logits: Tensor) -> Tensor:
    sums = logits.softmax(-1).cumsum(-1)
    return torch.searchsorted(sums, torch.rand(len(sums), 1))[:, 0].clamp(max=V - 1)


def gumbel(logits: Tensor) -> Tensor:
    return (logits - torch.rand_like(logits).log().neg().log()).argmax(-1)


SEEN = (multinomial, categorical, in_order, among_the_best, numpy_choice, python_choices, inverse)
WAYS = (*SEEN, gumbel)


def generator_of(model: nn.Module, draw: Any, heat: Any = lambda logits, t: logits / t) -> Any:
    @torch.no_grad()
    def generate(tokens: Tensor, count: int, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
        for _ in range(count):
            logits = heat(model(tokens)[:, -1], temperature)
            if top_k is not None:
                logits = generation.keep_top_k(logits, top_k)
            tokens = torch.cat([tokens, draw(logits)[:, None]], dim=1)
        return tokens

    return generate


@pytest.mark.parametrize("draw", WAYS, ids=lambda way: way.__name__)
def test_every_way_of_drawing_is_healthy(draw: Any) -> None:
    model = Table()
    for name in ("sampling-mask", "temperature", "filters"):
        finding = examine(name, model=model, generate=generator_of(model, draw))
        assert finding.verdict == "healthy", finding


@pytest.mark.parametrize("draw", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    ("heat", "said"),
    [
        (lambda logits, t: (logits.softmax(-1) / t).log(), "it has no effect"),
        (lambda logits, t: logits * t, "multiplied"),
        (lambda logits, t: logits.softmax(-1) / t, "softmax(probabilities / t)"),
    ],
    ids=["divided", "multiplied", "twice"],
)
def test_every_way_of_drawing_shows_a_wrong_temperature(draw: Any, heat: Any, said: str) -> None:
    model = Table()
    finding = examine("temperature", model=model, generate=generator_of(model, draw, heat))
    assert finding.verdict == "sick" or (draw is gumbel and "at temperature 1" in finding.measured)
    if draw is not gumbel:
        assert said in finding.measured


@pytest.mark.parametrize("draw", WAYS, ids=lambda way: way.__name__)
def test_every_way_of_drawing_shows_another_model(draw: Any) -> None:
    model, other = Table(), Table()
    with torch.no_grad():
        other.second.zero_()  # it does not see what it has learnt to see
    finding = examine("sampling-mask", model=model, generate=generator_of(other, draw))
    assert finding.verdict == "sick"
    assert finding.value is not None
    assert finding.value > 0.02


@pytest.mark.parametrize("draw", SEEN, ids=lambda way: way.__name__)
def test_what_is_drawn_from_is_seen(draw: Any) -> None:
    model = Table()
    patient = doctor.Patient(doctor.Given(model=model, generate=generator_of(model, draw)))
    row = patient.tokens(1, 4)
    shares, drawn = Sampler(patient).distribution(row[0])
    assert drawn == 0
    assert torch.allclose(shares, model(row)[0, -1].double().softmax(-1), atol=1e-6)


def test_a_place_is_not_taken_for_a_token() -> None:
    """The likeliest token is token 0, so it is at place 0 of the sorted list too."""
    model = Table()
    with torch.no_grad():
        model.first[:, 0] += 4
    patient = doctor.Patient(doctor.Given(model=model, generate=generator_of(model, in_order)))
    for _ in range(10):
        row = patient.tokens(1, 4)
        shares, _ = Sampler(patient).distribution(row[0])
        assert torch.allclose(shares, model(row)[0, -1].double().softmax(-1), atol=1e-6)


def test_draws_that_cannot_be_seen_are_counted() -> None:
    model = Table()
    patient = doctor.Patient(doctor.Given(model=model, generate=generator_of(model, gumbel)))
    row = patient.tokens(1, 4)
    shares, drawn = Sampler(patient).distribution(row[0])
    assert drawn == MOST_DRAWN
    assert float((shares - model(row)[0, -1].detach().double().softmax(-1)).abs().sum()) / 2 < 0.08


@pytest.mark.parametrize(
    "form",
    [
        lambda tokens, length: tokens[:, length:],
        lambda tokens, length: tokens.tolist(),
        lambda tokens, length: tokens[:, length:].tolist(),
        lambda tokens, length: tokens.numpy(),
    ],
    ids=["new", "list", "new-list", "array"],
)
@pytest.mark.parametrize("alone", [False, True], ids=["rows", "one-row"])
def test_what_generate_gives_back_is_read(form: Any, alone: bool) -> None:
    model = Table()
    inner = generator_of(model, multinomial)

    def generate(tokens: Tensor, count: int, temperature: float = 1.0) -> Any:
        assert not alone or len(tokens) == 1
        found = form(inner(tokens, count, temperature), tokens.shape[1])
        return found[0] if alone else found

    for name in ("sampling-mask", "temperature"):
        finding = examine(name, model=model, generate=generate)
        assert finding.verdict == "healthy", finding


def test_a_generate_that_gives_no_tokens_is_not_examined() -> None:
    finding = examine("temperature", model=Table(), generate=lambda tokens, count, temperature=1.0: torch.rand(3))
    assert finding.verdict == "not examined"
    assert "generate gives (3,)" in finding.measured


def test_a_greedy_generate_is_held_against_the_likeliest_token() -> None:
    model, other = Table(), Table()
    with torch.no_grad():
        other.second.zero_()
    greedy = [generator_of(one, lambda logits: logits.argmax(-1)) for one in (model, other)]
    without = [lambda tokens, count, inner=inner: inner(tokens, count) for inner in greedy]
    assert examine("sampling-mask", model=model, generate=without[0]).verdict == "healthy"
    finding = examine("sampling-mask", model=model, generate=without[1])
    assert finding.verdict == "sick"
    assert "likeliest" in finding.measured


def test_defaults_that_filter_are_turned_off() -> None:
    model = Table()
    inner = generator_of(model, multinomial)

    def generate(tokens: Tensor, count: int, temperature: float = 0.3, top_k: int = 5) -> Tensor:
        return inner(tokens, count, temperature, top_k)

    patient = doctor.Patient(doctor.Given(model=model, generate=generate))
    assert Sampler(patient).options() == {"temperature": 1.0, "top_k": V}
    assert Sampler(patient).options(top_k=2)["top_k"] == 2
    for name in MINE:
        assert examine(name, model=model, generate=generate).verdict in ("healthy", "not examined")


def test_a_vocabulary_that_is_rounded_up() -> None:
    class Rounded(Table):
        def forward(self, tokens: Tensor) -> Tensor:
            return nn.functional.pad(super().forward(tokens), (0, 12), value=-30.0)

    for draw in (multinomial, gumbel):
        model = Rounded()
        generate = generator_of(model, draw)
        for name in ("sampling-mask", "temperature", "filters"):
            finding = examine(name, model=model, generate=generate, vocab_size=V)
            assert finding.verdict == "healthy", finding


def test_other_options_are_turned_off_too() -> None:
    model = Table()
    inner = generator_of(model, multinomial)

    def generate(
        tokens: Tensor, count: int, temperature: float = 1.0, min_p: float = 0.05, repetition_penalty: float = 1.3
    ) -> Tensor:
        assert (min_p, repetition_penalty) == (0.0, 1.0)
        return inner(tokens, count, temperature)

    assert examine("temperature", model=model, generate=generate).verdict == "healthy"


def test_a_models_own_generate_is_found() -> None:
    model = Table()
    assert examine("temperature", model=model).verdict == "not examined"
    model.generate = lambda tokens, max_new_tokens, temperature=1.0: generator_of(model, multinomial)(  # type: ignore
        tokens, max_new_tokens, 1 / temperature
    )
    assert examine("temperature", model=model).verdict == "sick"


# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda x: x / 0.3, lambda x: x.softmax(-1), torch.tanh])
def test_order_is_kept_by_what_sampling_may_do(change: Any) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert disorder(logits, change(logits).softmax(-1)) == 0
    assert disorder(logits, generation.keep_top_k(logits, 7).softmax(-1)) == 0
    assert disorder(logits, (-logits).softmax(-1)) == 1
    other = torch.randn(600, generator=torch.Generator().manual_seed(1))
    assert 0.4 < disorder(torch.randn(600, generator=torch.Generator().manual_seed(2)), other.softmax(-1)) < 0.6


def test_disorder_of_nan_is_whole() -> None:
    assert disorder(torch.arange(4.0), torch.full((4,), torch.nan)) == 1


def test_learnt_is_training_without_dropout() -> None:
    model = Table(dropout=0.5)
    patient = doctor.Patient(doctor.Given(model=model))
    tokens = patient.tokens(2, 4)
    assert torch.equal(learnt(patient, tokens), model.eval()(tokens)[:, -1].double())


def test_functional_dropout_is_off_in_learnt() -> None:
    class Functional(Table):
        def forward(self, tokens: Tensor) -> Tensor:
            found = nn.functional.dropout(super().forward(tokens), 0.5, self.training)
            return found if self.training else -found  # another answer in evaluation

    model = Functional()
    patient = doctor.Patient(doctor.Given(model=model))
    tokens = patient.tokens(2, 4)
    assert torch.equal(learnt(patient, tokens), -model.eval()(tokens)[:, -1].double())


def test_larger_weights_are_put_back() -> None:
    model = Table()
    with torch.no_grad():
        model.first.mul_(0.01), model.second.mul_(0.01)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    patient = doctor.Patient(doctor.Given(model=model))
    tokens = patient.tokens(4, 8)
    small = float(patient.logits(tokens).std())
    choice, choices = np.random.choice, random.choices
    for name in MINE:
        examine(name, model=model, generate=generator_of(model, multinomial))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (np.random.choice, random.choices) == (choice, choices)
    widen(patient)
    assert float(patient.logits(tokens).std()) > 20 * small


@pytest.mark.parametrize(
    ("was", "leaves", "said"), [(True, False, "in evaluation mode"), (False, True, "training mode"), (None, None, "")]
)
def test_a_mode_that_is_left_behind(was: bool | None, leaves: bool | None, said: str) -> None:
    for dropout in (0.1, 0.0):  # without dropout the mode is of no account
        model = Table(dropout=dropout)
        inner = generator_of(model, multinomial)

        def generate(tokens: Tensor, count: int, model: nn.Module = model, inner: Any = inner) -> Tensor:
            before = model.training
            model.eval()
            found = inner(tokens, count)
            model.train(before if leaves is None else leaves)
            return found

        finding = examine("sampling-mask", model=model, generate=generate)
        assert finding.verdict == ("sick" if said and dropout else "healthy")
        assert not dropout or said in finding.measured


def test_sampling_in_training_mode() -> None:
    model = Table(dropout=0.3)
    inner = generator_of(model, multinomial)

    def generate(tokens: Tensor, count: int) -> Tensor:
        before = model.training
        model.train()
        found = inner(tokens, count)
        model.train(before)
        return found

    finding = examine("sampling-mask", model=model, generate=generate)
    assert finding.verdict == "sick"


def test_watch_sees_several_steps_and_rows() -> None:
    forced = torch.tensor([[1, 2], [3, 0]])
    with Watch(forced) as watch:
        drawn = [torch.multinomial(torch.rand(2, 5), 1)[:, 0] for _ in range(2)]
        assert torch.rand(3).multinomial(2).shape == (2,)  # two at once: nobody's next token
    assert torch.equal(torch.stack(drawn, dim=1), forced)
    assert len(watch.seen) == 2
    assert torch.allclose(watch.seen[0].sum(-1), torch.ones(2, dtype=torch.float64))


# ---------------------------------------------------------------------------------------------------------------
# Filters and temperatures by themselves


def right(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    return filtered(logits, SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p))


def first_of_ties(logits: Tensor, top_k: int = 0) -> Tensor:
    """Exactly k, whatever is equal to the k-th."""
    if top_k < 1:
        return logits
    best, places = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, places, best)


def as_probabilities(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    shares, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
    shares = shares.masked_fill(shares.cumsum(-1) - shares >= top_p, 0)
    return torch.zeros_like(shares).scatter(-1, order, shares / shares.sum(-1, keepdim=True))


def with_a_floor(logits: Tensor, top_p: float | None = None) -> Tensor:
    """-1e9 in place of minus infinity."""
    return logits if top_p is None else generation.keep_top_p(logits, top_p).clamp_min(-1e9)


def refusing(logits: Tensor, top_k: int | None = None) -> Tensor:
    if top_k is not None and top_k > logits.shape[-1]:
        raise ValueError("top_k is larger than the vocabulary")
    return logits if top_k is None else generation.keep_top_k(logits, top_k)


@pytest.mark.parametrize("function", [right, first_of_ties, as_probabilities, with_a_floor, refusing])
def test_filters_that_are_right(function: Any) -> None:
    finding = examine("filters", filters=function)
    assert finding.verdict == "healthy", finding
    assert examine("temperature", filters=function).verdict in ("healthy", "not examined")


def empties(logits: Tensor, top_p: float | None = None) -> Tensor:
    if top_p is None:
        return logits
    ranked, order = logits.sort(-1, descending=True)
    drop = ranked.softmax(-1).cumsum(-1) > top_p
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -torch.inf)


def unsorted(logits: Tensor, top_p: float | None = None) -> Tensor:
    if top_p is None:
        return logits
    ranked = logits.sort(-1, descending=True).values.softmax(-1)
    return logits.masked_fill(ranked.cumsum(-1) - ranked >= top_p, -torch.inf)


def to_zero(logits: Tensor, top_k: int | None = None) -> Tensor:
    if top_k is None or top_k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], 0.0)


def one_bound(logits: Tensor, top_k: int | None = None) -> Tensor:
    if top_k is None or top_k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(top_k).values.min(), -torch.inf)


def too_many(logits: Tensor, top_k: int | None = None) -> Tensor:
    return logits if top_k is None else generation.keep_top_k(logits, top_k + 1)


def flattened(logits: Tensor, top_k: int | None = None) -> Tensor:
    return logits if top_k is None else generation.keep_top_k(logits, top_k).clamp(max=1.0)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (empties, "no token is left"),
        (unsorted, "likelier tokens are dropped"),
        (to_zero, "tokens stay"),
        (one_bound, "tokens stay"),
        (too_many, "tokens stay"),
        (flattened, "proportions"),
    ],
)
def test_filters_that_are_wrong(function: Any, said: str) -> None:
    finding = examine("filters", filters=function)
    assert finding.verdict == "sick"
    assert said in finding.measured


def test_the_smallest_set_is_what_counting_gives() -> None:
    """`wrong` against every subset of five tokens: well is the smallest set of likeliest ones that reaches p."""
    shares = torch.tensor([[0.4, 0.25, 0.2, 0.1, 0.05]], dtype=torch.float64)
    for subset in range(1, 32):
        stays = torch.tensor([[bool(subset >> i & 1) for i in range(5)]])
        after = shares * stays / (shares * stays).sum()
        likeliest = subset in (1, 3, 7, 15, 31)
        for p in (0.3, 0.5, 0.8, 0.9):
            enough = float((shares * stays).sum()) >= p
            assert bool(wrong(shares, after, "top_p", p, False, 1e-4)) == (not (likeliest and enough))


def test_a_temperature_of_a_filter() -> None:
    cold = examine("temperature", filters=lambda logits, temperature=1.0: logits.softmax(-1) / temperature)
    assert cold.verdict == "sick"
    assert examine("temperature", filters=lambda logits, top_k=None: logits).verdict == "not examined"


def test_distance_takes_chance_off() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (10, 200):
        shares = torch.randn(size, generator=generator).double().softmax(-1)
        drawn = torch.bincount(torch.multinomial(shares, 1500, True, generator=generator), minlength=size) / 1500
        assert distance(drawn[None], shares[None], 1500) < 0.02
        assert distance(drawn[None], powered(shares[None], 2), 1500) > 0.1


# ---------------------------------------------------------------------------------------------------------------
# Caches, and our own


def ours(model: nn.Module) -> Any:
    def generate(
        tokens: Tensor, count: int, temperature=1.0, top_k=None, top_p=None, use_cache=True
    ) -> list[list[int]]:
        sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
        return generation.generate(model, tokens.tolist(), count, sampling, cache=use_cache)

    return generate


@pytest.fixture(scope="module")
def gpt() -> nn.Module:
    return hm.GPT(hm.GPTConfig(vocab_size=30, context=12, layers=2, heads=2, width=16))


@pytest.mark.parametrize("name", MINE)
def test_our_own_generation_is_healthy(gpt: nn.Module, name: str) -> None:
    finding = examine(name, model=gpt, generate=ours(gpt), filters=right)
    assert finding.verdict == "healthy", finding


def test_our_own_forward_with_a_cache(gpt: nn.Module) -> None:
    finding = examine("cached-generation", model=gpt)
    assert finding.verdict == "healthy"
    assert finding.value is not None
    assert finding.value < 1e-5


class Pairs(nn.Module):
    """Attention over (keys, values) that are handed back, as in GPT-2's code."""

    def __init__(self, forgets: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(V, 16, generator=generator))
        self.places = nn.Parameter(torch.randn(12, 16, generator=generator))
        self.context, self.vocab_size, self.forgets = 12, V, forgets

    def forward(self, tokens: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        begin = 0 if past is None or self.forgets else past.shape[1]
        x = self.table[tokens] + self.places[begin : begin + tokens.shape[1]]
        keys = x if past is None else torch.cat([past, x], dim=1)
        mask = torch.ones(x.shape[1], keys.shape[1]).tril(keys.shape[1] - x.shape[1]) == 0
        weights = (x @ keys.transpose(1, 2)).masked_fill(mask, -torch.inf).softmax(-1)
        return (x + weights @ keys) @ self.table.T / 8, keys


def test_a_forward_that_hands_its_cache_back() -> None:
    assert examine("cached-generation", model=Pairs()).verdict == "healthy"
    finding = examine("cached-generation", model=Pairs(forgets=True))
    assert finding.verdict == "sick"
    assert "positions" in finding.cause


@pytest.mark.parametrize(
    ("expect", "verdict"),
    [({}, "suspicious"), ({"cache_window": True}, "healthy"), ({"cache_window": False}, "sick")],
)
def test_another_window_past_the_context_is_a_question(expect: dict[str, bool], verdict: str) -> None:
    model = Table(context=8)

    def generate(tokens: Tensor, count: int, use_cache: bool = True) -> Tensor:
        for _ in range(count):
            window = tokens[:, -8:]
            if use_cache and tokens.shape[1] > 8:
                window = window[:, -1:]  # the cache begins afresh
            tokens = torch.cat([tokens, multinomial(model(window)[:, -1])[:, None]], dim=1)
        return tokens

    finding = examine("cached-generation", model=model, generate=generate, expect=expect)
    assert finding.verdict == verdict
    assert ("cache_window" in finding.question) == (verdict == "suspicious")


def test_where_neither_goes_past_the_context_it_is_said() -> None:
    model = Table(context=8)

    def generate(tokens: Tensor, count: int, use_cache: bool = True) -> Tensor:
        for _ in range(count):
            if tokens.shape[1] > 8:
                raise IndexError("index out of range in self")
            tokens = torch.cat([tokens, multinomial(model(tokens)[:, -1])[:, None]], dim=1)
        return tokens

    finding = examine("cached-generation", model=model, generate=generate)
    assert finding.verdict == "healthy"
    assert "neither" in finding.measured


def test_without_a_cache_nothing_is_claimed() -> None:
    model = Table()
    finding = examine("cached-generation", model=model, generate=generator_of(model, multinomial))
    assert finding.verdict == "not examined"


@pytest.mark.parametrize("name", MINE)
def test_the_demonstrations_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(checks.BY_NAME[name].demonstration, {})
    assert capsys.readouterr().out.count("\n") >= 2
