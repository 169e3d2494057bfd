"""What only a GPU can show: the same numbers as on the CPU, and training, resuming and sampling there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from handmade import layers
from handmade.attention import Attention
from handmade.checkpoint import prepare_folder
from handmade.data import prepare
from handmade.generation import SamplingConfig, generate
from handmade.layers.kernels import kernels
from handmade.models import GPT, GPTConfig
from handmade.optimizers import OptimizerConfig
from handmade.presets import MODERN
from handmade.schedules import ScheduleConfig
from handmade.tasks.language import LanguageTask
from handmade.training import TrainConfig, Trainer, seeded

pytestmark = pytest.mark.gpu

SHAPE = {**MODERN, "vocab_size": 65, "context": 32, "layers": 2, "heads": 2, "width": 32}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> LanguageTask:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    return LanguageTask(prepare([folder / "text.txt"], folder / "tokens", "char"), 32)


def trainer(task: LanguageTask, folder: Path | None = None, dropout: float = 0.1, **train: object) -> Trainer:
    shape = {**SHAPE, "vocab_size": task.tokenizer.vocab_size, "dropout": dropout}
    settings = {"steps": 40, "device": "cuda", "compile": "no", "evaluate_every": 20, "checkpoint_every": 10, **train}
    return Trainer(
        GPT(GPTConfig(**shape), seeded(0, "initialization")),
        task,
        TrainConfig.from_dict(settings),
        OptimizerConfig(name="muon", learning_rate=0.02, embedding_learning_rate=0.01),
        ScheduleConfig(name="constant", warmup=0.0),
        folder,
    )


@pytest.mark.parametrize("form", ["reference", "fused"])
def test_model_says_on_the_gpu_what_it_says_on_the_cpu(form: str) -> None:
    with kernels(form):
        model = GPT(GPTConfig(**{**SHAPE, "zero_projections": False}), seeded(0, "initialization")).double()
    tokens = torch.randint(65, (3, 32), generator=seeded(1, "tokens"))
    here = model(tokens)
    here.square().mean().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    there = model.cuda()(tokens.cuda())
    there.square().mean().backward()
    torch.testing.assert_close(there.cpu(), here, rtol=1e-10, atol=1e-12)
    for expected, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.cpu(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["reference", "fused"])
def test_a_row_with_nothing_to_attend_to_is_zero(form: str) -> None:
    with kernels(form):
        attention = Attention(16, 2, bias=False).cuda()
    x = torch.randn(2, 5, 16, device="cuda", requires_grad=True)
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool, device="cuda")
    mask[0, :, 2] = False
    y = attention(x, mask=mask)
    y.sum().backward()
    assert (y[0, 2] == 0).all()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("layer", [layers.RNN, layers.LSTM])
def test_recurrent_layers(layer: type) -> None:
    here = layer(8, 16, num_layers=2).double()
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    expected, _ = here(x)
    found, _ = here.cuda()(x.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training_learns(task: LanguageTask, precision: str) -> None:
    made = trainer(task, precision=precision)
    reports = list(made.steps())
    assert made.best_loss < 0.6 * reports[0].train_loss


def test_compiled_learns_the_same(task: LanguageTask) -> None:
    both = [trainer(task, dropout=0.0, precision="float32", compile=choice, steps=5) for choice in ("no", "yes")]
    losses = [[report.train_loss for report in made.steps()] for made in both]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(task: LanguageTask, tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    for folder in (whole, parted):
        prepare_folder(folder)
    first = trainer(task, whole, precision="float32")
    list(first.steps())
    second = trainer(task, parted, precision="float32")
    for report in second.steps():
        if report.step >= 20:
            break
    third = trainer(task, parted, precision="float32")
    assert third.resume()
    assert 0 < third.step <= 20
    list(third.steps())
    assert torch.equal(first.dropout.gpu, third.dropout.gpu)
    for mine, other in zip(first.model.parameters(), third.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)  # a GPU adds in no fixed order


def test_sampling_with_and_without_the_cache() -> None:
    model = GPT(GPTConfig(**{**SHAPE, "zero_projections": False}), seeded(0, "initialization")).double().cuda()
    sampling = SamplingConfig(temperature=0.8, top_k=20)
    cached, uncached = (generate(model, [[1, 2, 3], [4]], 80, sampling, seed=0, cache=cache) for cache in (True, False))
    assert cached == uncached
