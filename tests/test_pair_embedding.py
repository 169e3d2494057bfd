"""The pair embedding: right rows, also under a cache, left padding and a beam's reordering."""

import pytest
import torch

from handmade.errors import ConfigError
from handmade.models.gpt import GPT, GPTConfig, PairEmbedding

V = 7


def model(**options):
    torch.manual_seed(0)
    made = GPT(GPTConfig(V, context=12, layers=2, heads=2, width=8, positions="rotary", pair_embedding=True, **options))
    made = made.double().eval()
    torch.nn.init.normal_(made.pair_embedding.weight)
    return made


def test_rows_by_loops():
    part = PairEmbedding(V, 3)
    assert not part.weight.any()
    torch.nn.init.normal_(part.weight)
    tokens = torch.randint(V, (4, 6))
    starts = torch.tensor([0, 1, 3, 5])
    found = part(tokens, starts=starts)
    for row in range(4):
        for t in range(int(starts[row]), 6):
            previous = V if t == starts[row] else int(tokens[row, t - 1])
            assert torch.equal(found[row, t], part.weight[previous * V + tokens[row, t]])


def test_starts_as_without_it():
    torch.manual_seed(1)
    plain = GPT(GPTConfig(V, context=12, layers=1, heads=2, width=8), torch.Generator().manual_seed(3))
    paired = GPT(
        GPTConfig(V, context=12, layers=1, heads=2, width=8, pair_embedding=True), torch.Generator().manual_seed(3)
    )
    tokens = torch.randint(V, (2, 9))
    assert torch.equal(plain(tokens), paired(tokens))


@torch.no_grad()
@pytest.mark.parametrize("chunks", [(1,) * 9, (4, 1, 4), (8, 1)])
def test_cached_equals_uncached(chunks):
    made, tokens = model(), torch.randint(V, (3, 9))
    whole, cache = made(tokens), made.new_cache(3)
    parts = [made(piece, cache) for piece in tokens.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("chunks", [(9,), (1,) * 9, (3, 1, 5)])
def test_left_padded_rows_equal_single_rows(chunks):
    made, tokens, starts = model(), torch.randint(V, (3, 9)), torch.tensor([0, 3, 6])
    cache = made.new_cache(3)
    found = torch.cat([made(piece, cache, starts) for piece in tokens.split(chunks, dim=1)], 1)
    for row, start in enumerate(starts.tolist()):
        alone = made(tokens[row : row + 1, start:])
        torch.testing.assert_close(found[row, start:], alone[0], rtol=0, atol=1e-12)


@torch.no_grad()
def test_select_takes_the_last_token_along():
    made, tokens, order = model(), torch.randint(V, (3, 5)), torch.tensor([2, 0, 2])
    cache = made.new_cache(3)
    made(tokens[:, :4], cache)
    cache.select(order)
    found = made(tokens[order, 4:], cache)
    torch.testing.assert_close(found, made(tokens[order])[:, 4:], rtol=0, atol=1e-12)


@torch.no_grad()
def test_future_leaves_past_alone():
    made, tokens = model(), torch.randint(V, (2, 9))
    other = tokens.clone()
    other[:, 6:] = (other[:, 6:] + 1) % V
    assert torch.equal(made(tokens)[:, :6], made(other)[:, :6])


def test_a_large_vocabulary_is_refused():
    with pytest.raises(ConfigError, match="vocab_size = 5000"):
        GPTConfig(5000, pair_embedding=True)
