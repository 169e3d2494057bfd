"""The MLP over a window against torch.nn with the same weights, and against a loop over positions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import CHARACTERS, same_bits, small_trainer
from torch import Tensor

from handmade.errors import ConfigError
from handmade.generation import generate, row_seed
from handmade.layers import kernels
from handmade.models.mlp import MLP, MLPConfig
from handmade.optimizers.groups import parameter_groups
from handmade.training import Trainer, seeded

CONFIG = MLPConfig(vocab_size=11, window=4, width=5, hidden=7)
TOKENS = torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(0))


def mlp(config: MLPConfig = CONFIG, form: str = "fused") -> MLP:
    with kernels(form):
        return MLP(config, torch.Generator().manual_seed(1)).double()


class Plain(torch.nn.Module):
    """The same model of torch's parts: "nothing before" is one more token, put before every row W - 1 times."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.vocab_size, self.window = config.vocab_size, config.window
        self.embedding = torch.nn.Embedding(config.vocab_size + 1, config.width)
        self.input = torch.nn.Linear(config.window * config.width, config.hidden)
        self.head = torch.nn.Linear(config.hidden, config.vocab_size)

    def load(self, model: MLP) -> None:
        weights = model.state_dict()
        nothing = weights.pop("nothing")
        weights["embedding.weight"] = torch.cat([weights["embedding.weight"], nothing[None]])
        self.load_state_dict(weights)

    def forward(self, tokens: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(tokens, (self.window - 1, 0), value=self.vocab_size)
        return self.head(torch.tanh(self.input(self.embedding(padded.unfold(1, self.window, 1)).flatten(2))))


@pytest.mark.parametrize("form", ["fused", "reference"])
@pytest.mark.parametrize("window", [1, 2, 4, 12])
def test_it_is_that_of_torch_in_value_and_gradient(form: str, window: int) -> None:
    model = mlp(CONFIG.replace(window=window), form)
    plain = Plain(model.config).double()
    plain.load(model)
    ours, theirs = model(TOKENS), plain(TOKENS)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for logits in (ours, theirs):
        (logits * weights).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    tokens = torch.cat([found.pop("embedding.weight"), found.pop("nothing")[None]])  # zero where the window is 1
    torch.testing.assert_close(tokens, plain.embedding.weight.grad, rtol=1e-12, atol=1e-12)
    expected = dict(plain.named_parameters())
    assert set(found) == {"input.weight", "input.bias", "head.weight", "head.bias"}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name].grad, rtol=1e-12, atol=1e-12)


def test_it_is_the_formula_at_every_place() -> None:
    model = mlp()
    logits = model(TOKENS)
    for row, tokens in enumerate(TOKENS.tolist()):
        for place in range(len(tokens)):
            vectors = [
                model.embedding.weight[tokens[back]] if back >= 0 else model.nothing
                for back in range(place - 3, place + 1)
            ]
            hidden = (model.input.weight @ torch.cat(vectors) + model.input.bias).tanh()
            expected = model.head.weight @ hidden + model.head.bias
            torch.testing.assert_close(logits[row, place], expected, rtol=1e-12, atol=1e-12)


def test_a_logit_sees_the_window_and_nothing_else() -> None:
    model = mlp()
    vectors: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Tensor) -> Tensor:
        vectors.append(output.detach().requires_grad_())
        return vectors[-1]

    model.embedding.register_forward_hook(keep)
    logits = model(TOKENS)
    for place in range(9):
        (gradient,) = torch.autograd.grad(logits[:, place].square().sum(), vectors[0], retain_graph=True)
        seen = gradient.abs().amax(dim=(0, 2)) > 0
        assert seen.tolist() == [place - 4 < column <= place for column in range(9)]


@pytest.mark.parametrize("window", [1, 2, 4, 12])
@pytest.mark.parametrize("pieces", [[9], [4, 1, 1, 1, 2], [1] * 9])
def test_cached_equals_uncached(window: int, pieces: list[int]) -> None:
    model = mlp(CONFIG.replace(window=window))
    cache = model.new_cache(3)
    found = torch.cat([model(part, cache) for part in TOKENS.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(found, model(TOKENS), rtol=1e-12, atol=1e-12)
    assert cache.length == 9
    cache.select(torch.tensor([2, 0, 0, 1]))
    again = model(TOKENS[[2, 0, 0, 1]], cache)
    whole = torch.cat([TOKENS, TOKENS], dim=1)[[2, 0, 0, 1]]
    torch.testing.assert_close(again, model(whole)[:, 9:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pieces", [None, [9], [3, 3, 3], [1] * 9])
def test_a_padded_row_is_what_it_is_alone(pieces: list[int] | None) -> None:
    model = mlp()
    starts = torch.tensor([5, 0, 3])
    if pieces is None:
        found = model(TOKENS, starts=starts)
    else:
        cache = model.new_cache(3)
        found = torch.cat([model(part, cache, starts) for part in TOKENS.split(pieces, dim=1)], dim=1)
    assert found.isfinite().all()
    for row, start in enumerate(starts.tolist()):
        alone = model(TOKENS[row : row + 1, start:])[0]
        torch.testing.assert_close(found[row, start:], alone, rtol=1e-12, atol=1e-12)


def test_generation_of_a_batch_is_that_of_its_rows() -> None:
    model = mlp()
    prompts = [[1, 2, 3, 4, 5, 6], [7], [8, 9, 10]]
    together = generate(model, prompts, 20, seed=3)
    assert generate(model, prompts, 20, seed=3, cache=False) == together
    for row, prompt in enumerate(prompts):
        assert generate(model, [prompt], 20, seed=row_seed(3, row)) == [together[row]]


def test_the_seed_decides_the_weights_and_nothing_else_is_drawn() -> None:
    before = torch.get_rng_state()
    one, other = (MLP(CONFIG, seeded(5, "initialization")).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], other[name]) for name in one)
    another = MLP(CONFIG, seeded(6, "initialization")).state_dict()
    assert not any(torch.equal(one[name], another[name]) for name in one)
    torch.manual_seed(4)
    first = MLP(CONFIG).state_dict()
    torch.manual_seed(4)
    assert torch.equal(MLP(CONFIG).nothing, first["nothing"])  # without a generator: torch's global one


def test_a_run_that_was_stopped_and_resumed_is_the_one_that_was_not(tmp_path: Path) -> None:
    def trainer(folder: Path) -> Trainer:
        model = MLP(MLPConfig(len(CHARACTERS), window=3, width=4, hidden=8), seeded(0, "initialization"))
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


def test_its_parameters_and_its_parts() -> None:
    model = mlp()
    assert model.context is None
    torch.testing.assert_close(model.head(model.hidden(TOKENS)), model(TOKENS))
    groups = {kind: set(members) for kind, members in parameter_groups(model).items()}
    assert groups == {
        "matrices": {"input.weight"},
        "embeddings": {"embedding.weight"},
        "head": {"head.weight"},
        "vectors": {"nothing", "input.bias", "head.bias"},
    }


@pytest.mark.parametrize("field", ["vocab_size", "window", "width", "hidden", "context"])
def test_its_config_says_what_is_wrong(field: str) -> None:
    with pytest.raises(ConfigError, match=f"MLPConfig.{field} = 0: must be at least 1"):
        CONFIG.replace(**{field: 0})
