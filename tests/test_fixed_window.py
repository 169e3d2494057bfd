"""The fixed-window pair: as many parameters as published, blind to padding, one token at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import handmade as hm
from handmade import cli, curve, planning
from handmade.cli.train import about
from handmade.errors import ConfigError
from handmade.generation import SamplingConfig, generate, greedy
from handmade.models import FixedWindow, FixedWindowConfig, parameter_count
from handmade.optimizers import OptimizerConfig, build_optimizers
from handmade.tasks.arithmetic import Addition
from handmade.tasks.arithmetic.operations import AdditionConfig
from handmade.tasks.arithmetic.recipes import suggested

BODIES = ("transformer", "dense")


def model(body: str, **shape: Any) -> FixedWindow:
    shape = {"context": 11, "width": 8, "heads": 2, "hidden": 12, "layers": 2, **shape}
    return FixedWindow(FixedWindowConfig(body=body, **shape), torch.Generator().manual_seed(0)).eval()


@pytest.mark.parametrize(("body", "published"), [("transformer", 101_201), ("dense", 2_514_353)])
def test_as_many_parameters_as_published(body, published):
    config = FixedWindowConfig(body=body)
    assert parameter_count(FixedWindow(config)) == planning.parameters_of(config) == published


def test_dropout_as_published():
    assert [FixedWindowConfig(body=body).dropout_rate for body in BODIES] == [0.1, 0.2]
    assert FixedWindowConfig(dropout=0.0).dropout_rate == 0


@pytest.mark.parametrize("body", BODIES)
def test_decay_as_published(body):
    """On every matrix, and on nothing else."""
    net = model(body)
    recipe = suggested("fixed-window", {}, {}, {})["optimizer"]
    assert (recipe["learning_rate"], recipe["betas"], recipe["weight_decay"]) == (6e-4, (0.9, 0.95), 0.1)
    groups = [group for built in build_optimizers(net, OptimizerConfig(**recipe)) for group in built.param_groups]
    decayed = {id(part) for group in groups for part in group["params"] if group["weight_decay"]}
    assert all(group["weight_decay"] in (0, 0.1) for group in groups)
    assert decayed == {id(part) for part in net.parameters() if part.dim() == 2}


def by_hand(net: FixedWindow, tokens: list[int], training: bool = False) -> torch.Tensor:
    """The logits behind one beginning, with torch.nn.functional alone."""
    c, weights = net.config, net.state_dict()
    window = tokens + [0] * (c.context - len(tokens))
    one_hot = F.one_hot(torch.tensor(window), c.vocab_size).double()
    x = one_hot @ weights["embedding.weight"].double().t() + weights["embedding.bias"].double()
    for place in range(c.context):
        for pair in range(c.width // 2):
            angle = place / 10_000 ** (2 * pair / c.width)
            x[place, 2 * pair] += math.sin(angle)
            x[place, 2 * pair + 1] += math.cos(angle)

    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        return F.linear(value, weights[f"{name}.weight"].double(), weights[f"{name}.bias"].double())

    def norm(name: str, value: torch.Tensor) -> torch.Tensor:
        scale, shift = (weights[f"{name}.{part}"].double() for part in ("weight", "bias"))
        return F.layer_norm(value, (c.width,), scale, shift)

    def drop(value: torch.Tensor) -> torch.Tensor:
        return F.dropout(value, 0.1 if c.body == "transformer" else 0.2, training)

    for index in range(len(net.blocks)):
        name = f"blocks.{index}"
        y = norm(f"{name}.attention_norm", x)
        q, k, v = (linear(f"{name}.attention.{part}", y) for part in ("query", "key", "value"))
        q, k, v = (part.view(c.context, c.heads, -1).transpose(0, 1) for part in (q, k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(c.width // c.heads)
        scores[:, :, len(tokens) :] = -math.inf
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(c.context, c.width)
        x = x + drop(linear(f"{name}.attention.output", mixed))
        y = norm(f"{name}.feed_forward_norm", x)
        x = x + drop(linear(f"{name}.feed_forward.output", linear(f"{name}.feed_forward.input", y).relu()))
    x = x.flatten()
    for index in range(len(net.dense)):
        x = drop(linear(f"dense.{index}", x).relu())
    return linear("head", x)


@pytest.mark.parametrize("body", BODIES)
def test_it_is_the_formula(body):
    net = model(body)
    tokens = [3, 16, 0, 5, 2]
    for length in (1, 3, 5):
        found = net(torch.tensor([tokens[:length]]))
        assert found.shape == (1, 1, 17)
        torch.testing.assert_close(found[0, 0].double(), by_hand(net, tokens[:length]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("body", BODIES)
def test_the_published_shape_is_the_formula_in_training_too(body):
    """With dropout on what each part of a block adds, or behind each dense layer, and nowhere else: one seed, the same
    numbers."""
    with hm.kernels("reference"):
        net = FixedWindow(FixedWindowConfig(body=body), torch.Generator().manual_seed(0)).double().train()
    tokens = [5, 6, 1, 7, 8, 3, 12]
    torch.manual_seed(3)
    found = net(torch.tensor([tokens]))[0, 0]
    drawn = torch.get_rng_state()
    torch.manual_seed(3)
    torch.testing.assert_close(found, by_hand(net, tokens, training=True), rtol=1e-5, atol=1e-6)
    assert torch.equal(drawn, torch.get_rng_state())
    torch.testing.assert_close(net.eval()(torch.tensor([tokens]))[0, 0], by_hand(net, tokens), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, by_hand(net, tokens), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("body", BODIES)
def test_what_stands_behind_a_beginning_is_not_seen(body):
    net = model(body)
    tokens = torch.randint(17, (6, 9), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([1, 2, 4, 6, 8, 9])
    found = net.next_token(tokens, lengths)
    other = tokens.clone()
    other[torch.arange(9) >= lengths[:, None]] = 7
    assert torch.equal(found, net.next_token(other, lengths))
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(found[row], net(tokens[row : row + 1, :length])[0, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("body", BODIES)
def test_a_window_goes_through_the_sampler(body):
    """With the cache and without, padded on the left and alone, and by `greedy`."""
    net = model(body)
    prompts = [[3, 4], [5, 6, 7, 8], [9]]
    greedily = SamplingConfig(temperature=0)
    cached = generate(net, prompts, 6, greedily)
    assert cached == generate(net, prompts, 6, greedily, cache=False)
    assert cached == [generate(net, [prompt], 6, greedily)[0] for prompt in prompts]
    assert greedy(net, torch.tensor([[3, 4], [5, 6]]), 6)[0].tolist() == cached[0]
    assert len(generate(net, [[1]], 15)[0]) == 15  # past the window
    with pytest.raises(ConfigError, match="12 tokens do not fit the context of 11"):
        net(torch.zeros(1, 12, dtype=torch.int64))


@pytest.mark.parametrize("body", BODIES)
def test_the_task_asks_for_every_token_by_itself(body):
    task = Addition(AdditionConfig(digits=1, tokens="shared", train_problems=60, test_problems=40))
    net = model(body)
    batch = task.batch(5, torch.Generator().manual_seed(0))
    logits = task.logits(net, batch)
    assert logits.shape == (*batch.inputs.shape, 17)
    for row in range(5):
        for place in range(batch.inputs.shape[1]):
            if batch.targets[row, place] == -100:
                assert not logits[row, place].any()
            else:
                alone = net(batch.inputs[row : row + 1, : place + 1])[0, 0]
                torch.testing.assert_close(logits[row, place], alone, rtol=1e-5, atol=1e-6)
    task.loss(logits, batch).backward()
    assert all(part.grad is not None and part.grad.isfinite().all() for part in net.parameters())
    answers, right = task.decoded(net, task.split.test), task.written(task.split.test)
    with torch.inference_mode():
        exact = task.passed(net, task.test, torch.device("cpu"))["exact"]
    assert exact == np.mean([answer == solution for answer, solution in zip(answers, right, strict=True)])


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(curve, "draw", lambda folder: None)
    few = ("task.tokens=shared", "model.width=8", "model.heads=2", "model.hidden=8", "model.layers=1", "train.steps=2")
    words = [word for one in (*few, "train.batch=8", "train.compile=no") for word in ("--set", one)]
    cli.main(["train", "addition", "--model", "fixed-window", *words])
    config = json.loads(Path("runs/addition/config.json").read_text())
    assert (config["model"]["context"], config["model"]["vocab_size"]) == (19, 17)
    assert config["optimizer"]["learning_rate"] == 6e-4
    assert len(hm.load("runs/addition").answers(["12+34=", "1+2="])) == 2
    Path("book.txt").write_text("once upon a time\n" * 50)
    with pytest.raises(SystemExit):
        cli.main(["train", "book.txt", "--model", "fixed-window"])
    assert "--model fixed-window: says one token behind a short row, and reads no text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            "transformer",
            "fixed-window transformer, 2 layers, 2 heads, width 8, hidden 12, context 11: 2,721 parameters",
        ),
        ("dense", "fixed-window dense, 2 layers, width 8, context 11: 17,321 parameters"),
    ],
)
def test_what_is_said_of_it(body, line):
    assert about(SimpleNamespace(model=model(body), family="fixed-window")) == line  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"heads": 5}, "a divisor of width = 48"), ({"width": 7}, "even for sinusoidal"), ({"dropout": 1.0}, "below 1")],
)
def test_wrong_shapes(options, message):
    with pytest.raises(ConfigError, match=message):
        FixedWindowConfig(**options)
