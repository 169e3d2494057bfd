"""The recurrent language models against torch.nn.Embedding, RNN or LSTM, and Linear with the same weights."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import CHARACTERS, same_bits, small_trainer
from torch import Tensor

from handmade.errors import ConfigError
from handmade.generation import generate, row_seed
from handmade.layers import kernels
from handmade.models.recurrent import Recurrent, RecurrentConfig
from handmade.optimizers.groups import parameter_groups
from handmade.training import Trainer, seeded

CONFIG = RecurrentConfig(vocab_size=11, width=6, layers=2)
TOKENS = torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(0))
cells = pytest.mark.parametrize("cell", ["rnn", "lstm"])


def recurrent(cell: str, form: str = "fused", **changes: object) -> Recurrent:
    with kernels(form):
        return Recurrent(CONFIG.replace(cell=cell, **changes), torch.Generator().manual_seed(1)).double()


class Plain(torch.nn.Module):
    """The same model of torch's parts."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        kind = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM}[config.cell]
        self.embedding = torch.nn.Embedding(config.vocab_size, config.width)
        self.cells = kind(config.width, config.width, config.layers, batch_first=True)
        self.head = torch.nn.Linear(config.width, config.vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.cells(self.embedding(tokens))[0])


def torchs_name(name: str) -> str:
    """cells.1.weight_ih_l0 is torch's cells.weight_ih_l1."""
    return re.sub(r"cells\.(\d)\.(\w+)_l0", r"cells.\2_l\1", name)


@cells
@pytest.mark.parametrize("form", ["fused", "reference"])
def test_it_is_that_of_torch_in_value_and_gradient(cell: str, form: str) -> None:
    model = recurrent(cell, form)
    plain = Plain(model.config).double()
    plain.load_state_dict({torchs_name(name): weight for name, weight in model.state_dict().items()})
    ours, theirs = model(TOKENS), plain(TOKENS)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for logits in (ours, theirs):
        (logits * weights).sum().backward()
    expected = dict(plain.named_parameters())
    assert len(expected) == len(list(model.parameters())) == 11
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[torchs_name(name)].grad, rtol=1e-12, atol=1e-12)


@cells
def test_no_token_is_seen_before_it_comes(cell: str) -> None:
    model = recurrent(cell)
    logits = model(TOKENS)
    for place in range(9):
        changed = TOKENS.clone()
        changed[:, place] = (changed[:, place] + 1) % 11
        different = (model(changed) != logits).any(dim=2)
        assert not different[:, :place].any()
        assert different[:, place:].all()  # and all after it know of it


@cells
@pytest.mark.parametrize("pieces", [[9], [4, 1, 1, 1, 2], [1] * 9])
def test_cached_equals_uncached(cell: str, pieces: list[int]) -> None:
    model = recurrent(cell)
    cache = model.new_cache(3)
    cache.select(torch.tensor([0, 1, 2]))  # of nothing yet
    found = torch.cat([model(part, cache) for part in TOKENS.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(found, model(TOKENS), rtol=1e-12, atol=1e-12)
    assert cache.length == 9
    cache.select(torch.tensor([2, 0, 0, 1]))
    again = model(TOKENS[[2, 0, 0, 1]], cache)
    whole = torch.cat([TOKENS, TOKENS], dim=1)[[2, 0, 0, 1]]
    torch.testing.assert_close(again, model(whole)[:, 9:], rtol=1e-12, atol=1e-12)


@cells
@pytest.mark.parametrize("starts", [[5, 0, 3], [3, 3, 8], [4, 4, 4], [0, 0, 0]])
@pytest.mark.parametrize("pieces", [None, [9], [3, 3, 3], [1] * 9])
def test_a_padded_row_is_what_it_is_alone(cell: str, starts: list[int], pieces: list[int] | None) -> None:
    model = recurrent(cell)
    begins = torch.tensor(starts)
    if pieces is None:
        found = model(TOKENS, starts=begins)
    else:
        cache = model.new_cache(3)
        found = torch.cat([model(part, cache, begins) for part in TOKENS.split(pieces, dim=1)], dim=1)
    assert found.shape == (3, 9, 11)
    assert found.isfinite().all()
    for row, start in enumerate(starts):
        alone = model(TOKENS[row : row + 1, start:])[0]
        torch.testing.assert_close(found[row, start:], alone, rtol=1e-12, atol=1e-12)


@cells
def test_generation_of_a_batch_is_that_of_its_rows(cell: str) -> None:
    model = recurrent(cell)
    with torch.no_grad():
        model.head.weight.mul_(20)  # else it says all alike
    prompts = [[1, 2, 3, 4, 5, 6], [7], [8, 9, 10]]
    together = generate(model, prompts, 20, seed=3)
    assert generate(model, prompts, 20, seed=3, cache=False) == together
    for row, prompt in enumerate(prompts):
        assert generate(model, [prompt], 20, seed=row_seed(3, row)) == [together[row]]


@cells
def test_the_seed_decides_the_weights_and_nothing_else_is_drawn(cell: str) -> None:
    config = CONFIG.replace(cell=cell)
    before = torch.get_rng_state()
    one, other = (Recurrent(config, seeded(5, "initialization")).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], other[name]) for name in one)
    another = Recurrent(config, seeded(6, "initialization")).state_dict()
    assert not any(torch.equal(one[name], another[name]) for name in one)


@cells
def test_dropout_is_where_a_layer_is_fed_and_not_on_the_state(cell: str) -> None:
    model = recurrent(cell, dropout=0.5)
    torch.manual_seed(0)
    seen: list[tuple[Tensor, Tensor]] = []
    model.dropout.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    logits = model(TOKENS)
    assert len(seen) == 3  # into each of two layers and into the head
    torch.testing.assert_close(logits, model.head(seen[-1][1]))
    for index, layer in enumerate(model.cells):
        torch.testing.assert_close(layer(seen[index][1])[0], seen[index + 1][0])
    assert all((after == 0).any() and (after != 0).any() for _, after in seen)
    model.eval()
    assert torch.equal(model(TOKENS), recurrent(cell)(TOKENS))


@cells
def test_a_run_that_was_stopped_and_resumed_is_the_one_that_was_not(cell: str, tmp_path: Path) -> None:
    def trainer(folder: Path) -> Trainer:
        config = RecurrentConfig(len(CHARACTERS), cell=cell, width=8, dropout=0.2)  # type: ignore[arg-type]
        model = Recurrent(config, seeded(0, "initialization"))
        return small_trainer(folder, model, optimizer="adamw")

    def learnt(one: Trainer) -> dict[str, Any]:
        return {"model": one.model.state_dict(), "optimizers": one.state()["optimizers"]}

    whole, stopped = trainer(tmp_path / "whole"), trainer(tmp_path / "stopped")
    first = copy.deepcopy(whole.model.state_dict())
    whole.train(progress=False)
    for report in stopped.steps():
        if report.step == 7:  # two steps after the last checkpoint
            break
    again = trainer(tmp_path / "stopped")
    assert again.resume()
    assert again.step == 5
    again.train(progress=False)
    same_bits(learnt(again), learnt(whole))
    assert not any(torch.equal(weight, first[name]) for name, weight in whole.model.state_dict().items())


@cells
def test_its_parameters_and_its_parts(cell: str) -> None:
    model = recurrent(cell, layers=1)
    assert model.context is None
    torch.testing.assert_close(model.head(model.hidden(TOKENS)), model(TOKENS))
    groups = {kind: set(members) for kind, members in parameter_groups(model).items()}
    assert groups == {
        "matrices": {"cells.0.weight_ih_l0", "cells.0.weight_hh_l0"},
        "embeddings": {"embedding.weight"},
        "head": {"head.weight"},
        "vectors": {"cells.0.bias_ih_l0", "cells.0.bias_hh_l0", "head.bias"},
    }


@pytest.mark.parametrize("field", ["vocab_size", "width", "layers", "context"])
def test_its_config_says_what_is_wrong(field: str) -> None:
    with pytest.raises(ConfigError, match=f"RecurrentConfig.{field} = 0: must be at least 1"):
        CONFIG.replace(**{field: 0})


def test_a_cell_and_a_dropout_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"RecurrentConfig.cell = 'gru': must be one of rnn, lstm"):
        CONFIG.replace(cell="gru")
    with pytest.raises(ConfigError, match=r"RecurrentConfig.dropout = 1.0: must be at least 0 and below 1"):
        CONFIG.replace(dropout=1.0)
