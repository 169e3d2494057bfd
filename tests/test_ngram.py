"""The counting n-gram against Witten and Bell's formula written with dictionaries; the bigram against counting."""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from handmade.errors import ConfigError, DataError
from handmade.models import ngram
from handmade.models.ngram import Bigram, BigramConfig, CountingConfig, CountingModel, counting_line


class WittenBell:
    """The formula, slowly: a dictionary from every context to the counts of what followed it."""

    def __init__(self, text, vocab_size, order):
        self.vocab_size, self.order = vocab_size, order
        self.after = {}
        for n in range(order):
            for i in range(n, len(text)):
                self.after.setdefault(tuple(text[i - n : i]), Counter())[text[i]] += 1

    def p(self, word, context):
        """p(word | context); a context longer than order - 1 is cut."""
        context = tuple(context)[max(0, len(context) - self.order + 1) :]
        shorter = self.p(word, context[1:]) if context else 1 / self.vocab_size
        counts = self.after.get(context)
        if counts is None:
            return shorter
        return (counts[word] + len(counts) * shorter) / (sum(counts.values()) + len(counts))

    def distribution(self, context):
        return [self.p(word, context) for word in range(self.vocab_size)]


def counted(text, vocab_size, order):
    model = CountingModel(CountingConfig(vocab_size, order)).double()
    model.fit(np.array(text))
    return model


def shakespeare():
    folders = [os.environ.get("HANDMADE_DATA"), Path(__file__).parents[2] / "shared" / "data"]
    for folder in folders:
        if folder and (Path(folder) / "tinyshakespeare.txt").exists():
            text = (Path(folder) / "tinyshakespeare.txt").read_text()
            ids = {character: id for id, character in enumerate(sorted(set(text)))}
            tokens = np.array([ids[character] for character in text], dtype=np.uint16)
            return tokens[:1_003_854], tokens[1_003_854:]
    pytest.skip("tinyshakespeare.txt is not here: point HANDMADE_DATA at its folder")


@st.composite
def texts(draw):
    vocab_size = draw(st.integers(1, 5))
    tokens = st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=40)
    return vocab_size, draw(tokens), draw(tokens)


@settings(max_examples=40, deadline=None)
@given(texts(), st.integers(1, 6))
def test_every_distribution_is_witten_bells(drawn, order):
    vocab_size, text, asked = drawn
    slow, model = WittenBell(text, vocab_size, order), counted(text, vocab_size, order)
    p = model(torch.tensor([asked]))[0].exp()
    expected = torch.tensor([slow.distribution(asked[: i + 1]) for i in range(len(asked))], dtype=torch.float64)
    torch.testing.assert_close(p, expected, rtol=1e-12, atol=0)
    scores = model.score(asked)
    picked = [math.log(slow.p(word, asked[:i])) for i, word in enumerate(asked)][1:]
    torch.testing.assert_close(scores, torch.tensor(picked, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one_after_every_context_seen_or_not(order):
    vocab_size = 4  # token 3 never occurs
    text = np.random.default_rng(0).integers(0, 3, 60)
    contexts = torch.tensor(list(itertools.product(range(vocab_size), repeat=3)))
    p = counted(text, vocab_size, order)(contexts).exp()
    assert (p > 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(64, 3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_order_zero_finds_all_tokens_equally_likely(tmp_path):
    text = np.random.default_rng(0).integers(0, 7, 200)
    model = counted(text, vocab_size=7, order=0)
    tokens = torch.from_numpy(text[None, :10])
    assert torch.equal(model(tokens), torch.full((1, 10, 7), math.log(1 / 7), dtype=torch.float64))
    assert model.loss(text) == pytest.approx(math.log(7), abs=1e-15)
    cache = model.new_cache(1)
    pieces = [model(tokens[:, :3], cache), model(tokens[:, 3:], cache)]
    assert torch.equal(torch.cat(pieces, 1), model(tokens))
    assert cache.length == 10
    again = CountingModel(CountingConfig(7, 0)).double()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(tokens), model(tokens))


def test_order_one_is_the_frequencies_leaning_to_uniform():
    p = counted([0, 0, 0, 1, 1, 2], vocab_size=4, order=1)(torch.tensor([[3]]))[0, 0].exp()
    expected = torch.tensor([3 + 3 / 4, 2 + 3 / 4, 1 + 3 / 4, 3 / 4], dtype=torch.float64) / (6 + 3)
    torch.testing.assert_close(p, expected, rtol=1e-14, atol=0)


def test_a_model_that_has_counted_nothing_is_uniform():
    logits = CountingModel(CountingConfig(5))(torch.tensor([[0, 4]]))
    assert logits.shape == (1, 2, 5)
    torch.testing.assert_close(logits, torch.full((1, 2, 5), -math.log(5)))


def test_float32_is_close():
    text = np.random.default_rng(1).integers(0, 9, 3000)
    asked = torch.from_numpy(text[None, :200])
    exact = counted(text, 9, 5)
    single = CountingModel(exact.config)
    single.load_state_dict(exact.state_dict())
    assert single(asked).dtype == torch.float32
    torch.testing.assert_close(single(asked).double(), exact(asked), rtol=0, atol=1e-5)


def test_the_five_gram_on_shakespeare():
    train, validation = shakespeare()
    assert counting_line(train, validation, 65) == pytest.approx(1.669, abs=0.001)


def test_the_bigram_on_shakespeare_by_a_dense_table():
    train, validation = (part.astype(np.int64) for part in shakespeare())
    table = np.zeros((65, 65))
    np.add.at(table, (train[:-1], train[1:]), 1)
    single = np.bincount(train, minlength=65)
    p1 = (single + 65 / 65) / (single.sum() + 65)  # all 65 characters occur in the training part
    kinds = (table > 0).sum(1, keepdims=True)
    p2 = (table + kinds * p1) / (table.sum(1, keepdims=True) + kinds)
    expected = -np.log(p2[validation[:-1], validation[1:]]).mean()
    assert counting_line(train, validation, 65, order=2) == pytest.approx(expected, abs=1e-12)


def test_scoring_in_pieces_changes_nothing():
    text = np.random.default_rng(2).integers(0, 4, 200)
    model = counted(text[:150], 4, 4)
    whole = model.score(text)
    for piece in (1, 2, 3, 7):
        assert torch.equal(model.score(text, piece=piece), whole)
    assert model.loss(text) == pytest.approx(-whole.mean().item(), abs=1e-15)


def test_scores_are_those_of_forward():
    text = np.random.default_rng(3).integers(0, 6, 300)
    model = counted(text[:200], 6, 5)
    tokens = torch.from_numpy(text[None, 200:])
    picked = model(tokens)[0, :-1].gather(-1, tokens[0, 1:, None])[:, 0]
    torch.testing.assert_close(model.score(text[200:]), picked, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_cached_in_any_pieces_equals_at_once(order):
    model = counted(np.random.default_rng(4).integers(0, 3, 400), 3, order)
    tokens = torch.from_numpy(np.random.default_rng(5).integers(0, 3, (2, 12)))
    cache = model.new_cache(2)
    pieces = [model(part, cache) for part in tokens.split([5, 1, 1, 2, 3], dim=1)]
    assert cache.length == 12
    assert torch.equal(torch.cat(pieces, 1), model(tokens))


def test_a_reordered_cache_goes_on_from_the_other_row():
    model = counted(np.random.default_rng(4).integers(0, 3, 400), 3, 4)
    tokens = torch.tensor([[0, 1, 2, 2], [2, 1, 0, 0], [1, 1, 1, 1]])
    cache = model.new_cache(3)
    model(tokens[:, :3], cache)
    cache.select(torch.tensor([2, 0]))
    assert torch.equal(model(tokens[[2, 0], 3:], cache), model(tokens[[2, 0]])[:, 3:])


@pytest.mark.parametrize("cached", [False, True])
def test_left_padding_is_no_context(cached):
    model = counted(np.random.default_rng(6).integers(0, 3, 400), 3, 5)
    rows = [[0, 1, 2, 0, 1, 1], [2, 2, 1], [1]]
    starts = torch.tensor([0, 3, 5])
    # Padding with a real token that would make seen n-grams, were it looked at.
    tokens = torch.tensor([[1] * (6 - len(row)) + row for row in rows])
    if cached:
        cache = model.new_cache(3)
        logits = torch.cat([model(part, cache, starts) for part in tokens.split([4, 1, 1], dim=1)], 1)
    else:
        logits = model(tokens, starts=starts)
    assert logits.isfinite().all()
    for row, tokens_alone in enumerate(rows):
        assert torch.equal(logits[row, starts[row] :], model(torch.tensor([tokens_alone]))[0])
    assert not torch.equal(model(tokens)[2, 5], logits[2, 5])  # the padding would have mattered


def test_the_future_does_not_reach_the_past():
    model = counted(np.random.default_rng(7).integers(0, 3, 400), 3, 5)
    tokens = torch.tensor([[0, 1, 2, 0, 1]])
    other = torch.tensor([[0, 1, 2, 1, 2]])
    assert torch.equal(model(tokens)[:, :3], model(other)[:, :3])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.int64])
def test_any_whole_number_type_counts_alike(kind):
    text = np.random.default_rng(8).integers(0, 256, 500)
    assert torch.equal(counted(text.astype(kind), 256, 3).keys, counted(text, 256, 3).keys)


def test_a_token_file_counts_like_its_array(tmp_path):
    text = np.random.default_rng(8).integers(0, 65, 500).astype(np.uint8)
    text.tofile(tmp_path / "tokens.bin")
    mapped = np.memmap(tmp_path / "tokens.bin", dtype=np.uint8, mode="r")
    assert counting_line(mapped[:400], mapped[400:], 65) == counting_line(text[:400], text[400:], 65)


def test_a_large_vocabulary_and_a_high_order_do_not_mix_up_ngrams():
    vocab_size = 50_000  # 50,000 ** 9 does not fit 64 bits
    text = np.random.default_rng(9).integers(0, vocab_size, 300)
    text = np.concatenate([text, text[:100], text[50:150] // 2])
    slow, model = WittenBell(text.tolist(), vocab_size, 9), counted(text, vocab_size, 9)
    expected = [math.log(slow.p(int(word), text[:i].tolist())) for i, word in enumerate(text)][1:]
    torch.testing.assert_close(model.score(text), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_of_a_long_text_the_last_tokens_are_counted():
    text = np.random.default_rng(10).integers(0, 4, 500)
    short = CountingModel(CountingConfig(4, 3, most_tokens=100))
    short.fit(text)
    assert torch.equal(short.counts, counted(text[-100:], 4, 3).counts)
    assert short.totals[0] == 100


def test_of_a_long_validation_the_first_tokens_are_scored(monkeypatch):
    text = np.random.default_rng(11).integers(0, 4, 500)
    expected = counting_line(text[:300], text[300:350], 4)
    monkeypatch.setattr(ngram, "MOST_SCORED", 50)
    assert counting_line(text[:300], text[300:], 4) == expected


def test_fit_forgets_what_was_counted_before():
    text = np.random.default_rng(12).integers(0, 4, 100)
    model = counted([3, 2, 1], 4, 3)
    model.fit(text)
    assert torch.equal(model(torch.tensor([[0, 1]])), counted(text, 4, 3)(torch.tensor([[0, 1]])))


def test_saved_and_loaded_it_says_the_same(tmp_path):
    text = np.random.default_rng(13).integers(0, 7, 500)
    model = counted(text, 7, 4)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = CountingModel(model.config).double()
    loaded.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(loaded(torch.tensor([[1, 2, 3]])), model(torch.tensor([[1, 2, 3]])))
    assert loaded.loss(text) == model.loss(text)


def test_counts_that_cannot_be_are_refused():
    state = counted(np.random.default_rng(14).integers(0, 7, 500), 7, 4).state_dict()
    damages = {
        "shorter counts": {**state, "counts": state["counts"][:-1]},
        "unsorted keys": {**state, "keys": state["keys"].flip(0)},
        "negative key": {**state, "keys": torch.cat([torch.tensor([-1]), state["keys"][1:]])},
        "other vocabulary": state,
    }
    for damage, damaged in damages.items():
        vocab_size = 2 if damage == "other vocabulary" else 7
        with pytest.raises(RuntimeError, match="not those of n-grams"):
            CountingModel(CountingConfig(vocab_size, 4)).load_state_dict(damaged)


def test_a_token_outside_the_vocabulary_is_an_error_not_another_token():
    model = counted([0, 1, 2, 1], 3, 3)
    for token in (3, -1):
        with pytest.raises(IndexError, match="outside 0 to 2"):
            model(torch.tensor([[0, token]]))
        with pytest.raises(DataError, match="0 to 2"):
            model.fit([0, token])


def test_texts_that_are_too_short():
    with pytest.raises(DataError, match="no tokens"):
        CountingModel(CountingConfig(3)).fit([])
    model = counted([1], 3, 5)  # a text shorter than the order is fine
    assert model.loss([1, 1]) < math.log(3) < model.loss([1, 0])
    for text in ([], [1]):
        with pytest.raises(DataError, match="fewer than two tokens"):
            model.loss(text)


@pytest.mark.parametrize(
    ("config", "values", "field"),
    [
        (CountingConfig, {"vocab_size": 0}, "vocab_size"),
        (CountingConfig, {"vocab_size": 3, "most_tokens": 0}, "most_tokens"),
        (BigramConfig, {"vocab_size": 0}, "vocab_size"),
        (BigramConfig, {"vocab_size": 3, "context": 0}, "context"),
    ],
)
def test_configs_say_what_is_wrong(config, values, field):
    with pytest.raises(ConfigError, match=f"{config.__name__}.{field} = 0: must be at least 1"):
        config(**values)


def test_an_order_below_zero_is_refused():
    with pytest.raises(ConfigError, match=r"CountingConfig.order = -1: must be at least 0"):
        CountingConfig(3, order=-1)


# The neural bigram


def test_the_bigrams_first_loss_is_ln_v():
    logits = Bigram(BigramConfig(65))(torch.tensor([[1, 64, 0]]))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor([64, 0, 3]))
    assert loss.item() == pytest.approx(math.log(65), abs=1e-6)


def test_the_bigram_learns_the_counted_frequencies():
    text = torch.from_numpy(np.random.default_rng(15).integers(0, 4, 400))
    table = torch.zeros(4, 4)
    table.index_put_((text[:-1], text[1:]), torch.ones(399), accumulate=True)
    model = Bigram(BigramConfig(4))
    weight = model.embedding.weight
    for _ in range(200):
        loss = torch.nn.functional.cross_entropy(model(text[None, :-1])[0], text[1:])
        with torch.no_grad():
            weight -= 8.0 * torch.autograd.grad(loss, weight)[0]
    learnt = model(torch.arange(4)[None])[0].softmax(-1)
    torch.testing.assert_close(learnt, table / table.sum(-1, keepdim=True), rtol=0, atol=1e-4)


def test_the_bigram_honours_the_contract():
    model = Bigram(BigramConfig(5))
    torch.nn.init.normal_(model.embedding.weight, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[0, 3, 1], [4, 4, 2]])
    cache = model.new_cache(2)
    pieces = [model(part, cache) for part in tokens.split([2, 1], dim=1)]
    cache.select(torch.tensor([1]))
    assert model.context is None
    assert cache.length == 3
    assert torch.equal(torch.cat(pieces, 1), model(tokens))
    assert torch.equal(model(tokens, starts=torch.tensor([0, 2])), model(tokens))
