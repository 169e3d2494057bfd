"""The training loop: what a step computes, what happens when something goes wrong, and that nothing else happens."""

from __future__ import annotations

import copy
import json
import math
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import CHARACTERS, CONTEXT, files_below, same_bits, small_gpt, small_trainer, text_data
from torch import Tensor, nn

from handmade import checkpoint, presets
from handmade.data import IGNORED
from handmade.errors import ConfigError, ResourceError, RunError, TrainingError
from handmade.models.gpt import GPT, GPTConfig
from handmade.optimizers import OptimizerConfig
from handmade.schedules import ScheduleConfig
from handmade.tasks import Batch
from handmade.tasks.language import LanguageTask
from handmade.training import ROLLBACKS, Report, TrainConfig, Trainer, seeded

LEARNT = ("model", "average", "optimizers", "data", "dropout")  # of a state: what must be equal to the last bit


def learnt(trainer: Trainer) -> dict[str, Any]:
    return {name: copy.deepcopy(trainer.state()[name]) for name in LEARNT}


def finished(**options: Any) -> dict[str, Any]:
    """What a trainer with these options has learnt at its end."""
    trainer = small_trainer(**options)
    for _ in trainer.steps():
        pass
    assert trainer.finished
    return learnt(trainer)


class Changed(LanguageTask):
    """Language modelling with one thing changed."""

    def __init__(
        self,
        batch: Callable[[Batch, int], Batch] | None = None,
        loss: Callable[[Tensor, int], Tensor] | None = None,
        scores: Iterable[float] | None = None,
    ) -> None:
        super().__init__(text_data(), CONTEXT)
        self.change_batch, self.change_loss = batch, loss
        self.scores = None if scores is None else iter(scores)
        self.batches = 0

    def batch(self, rows: int, generator: torch.Generator) -> Batch:
        self.batches += 1
        batch = super().batch(rows, generator)
        return batch if self.change_batch is None else self.change_batch(batch, self.batches)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        loss = super().loss(logits, batch)
        return loss if self.change_loss is None else self.change_loss(loss, self.batches)

    def score(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        return super().score(model, device) if self.scores is None else {"val_loss": next(self.scores)}


# ---------------------------------------------------------------------------------------------------------------
# A step


def masked_batches() -> list[Batch]:
    """Four micro-batches of 2 rows; of their targets all, some, one, none are scored."""
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(len(CHARACTERS), (4, 2, CONTEXT + 1), generator=draw)
    batches = [Batch(rows[:, :-1].contiguous(), rows[:, 1:].clone()) for rows in tokens]
    batches[1].targets[torch.rand(2, CONTEXT, generator=draw) < 0.7] = IGNORED
    batches[2].targets.view(-1)[1:] = IGNORED
    batches[3].targets[:] = IGNORED
    return batches


def test_accumulated_micro_batches_are_one_large_batch() -> None:
    batches = masked_batches()
    whole = Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
    model = small_gpt(dropout=0.0).double()
    reference = copy.deepcopy(model)
    trainer = small_trainer(
        model=model,
        task=Changed(batch=lambda batch, count: batches[count - 1]),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.5),
        schedule=ScheduleConfig(name="constant", warmup=0.0),
        batch=2,
        tokens_per_step=8 * CONTEXT,
        clip=None,
    )
    seen: list[Tensor] = []
    clip = trainer.clip_gradients

    def spy() -> float:
        seen.extend(parameter.grad.clone() for parameter in trainer.parameters)  # type: ignore[union-attr]
        return clip()

    trainer.clip_gradients = spy  # type: ignore[method-assign]
    loss, norm, _, tokens = trainer.one_step()

    # PyTorch's own mean over the scored targets of the one large batch, and its own optimizer.
    named = dict(reference.named_parameters())
    expected = nn.functional.cross_entropy(reference(whole.inputs).flatten(0, 1), whole.targets.flatten())
    expected.backward()
    sgd = torch.optim.SGD(reference.parameters(), lr=0.5)
    assert tokens == 8 * CONTEXT
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert norm == pytest.approx(float(torch.cat([p.grad.flatten() for p in named.values()]).norm()), rel=1e-12)  # type: ignore[union-attr]
    by_name = {id(parameter): name for name, parameter in model.named_parameters()}
    assert len(seen) == len(named)
    for parameter, gradient in zip(trainer.parameters, seen, strict=True):
        torch.testing.assert_close(gradient, named[by_name[id(parameter)]].grad, rtol=1e-12, atol=1e-14)
    sgd.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, named[name], rtol=1e-12, atol=1e-14)


def test_a_step_takes_as_many_micro_batches_as_its_tokens_need() -> None:
    for wanted, count in ((None, 1), (1, 1), (32, 1), (33, 2), (100, 4)):
        trainer = small_trainer(tokens_per_step=wanted)
        before = trainer.data.get_state()
        assert trainer.tokens_in_step() == count * 4 * CONTEXT
        assert torch.equal(trainer.data.get_state(), before)
        trainer.task = task = Changed()
        assert trainer.one_step()[3] == count * 4 * CONTEXT
        assert task.batches == count


@pytest.mark.parametrize("clip", [0.01, 0.5, 1e6, None])
def test_gradients_are_clipped_as_by_torch(clip: float | None) -> None:
    trainer = small_trainer(model=small_gpt().double(), clip=clip)
    draw = torch.Generator().manual_seed(3)
    for parameter in trainer.parameters:
        parameter.grad = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    twins = [nn.Parameter(parameter.detach().clone()) for parameter in trainer.parameters]
    for twin, parameter in zip(twins, trainer.parameters, strict=True):
        assert parameter.grad is not None
        twin.grad = parameter.grad.clone()
    norm = nn.utils.clip_grad_norm_(twins, math.inf if clip is None else clip)
    assert trainer.clip_gradients() == pytest.approx(float(norm), rel=1e-12)
    for twin, parameter in zip(twins, trainer.parameters, strict=True):
        # torch divides by the norm + 1e-6
        torch.testing.assert_close(parameter.grad, twin.grad, rtol=2e-6, atol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_rate_that_is_reported_is_the_one_that_was_used(optimizer: str) -> None:
    trainer = small_trainer(optimizer=optimizer, schedule=ScheduleConfig(name="linear", warmup=0.0, final=0.0))
    used: list[list[float]] = []
    for one in trainer.optimizers:
        step = one.step

        def spy(step: Callable[[], Any] = step, one: torch.optim.Optimizer = one) -> Any:
            if one is trainer.optimizers[0]:
                used.append([])
            used[-1].extend(group["lr"] / group["initial_lr"] for group in one.param_groups)
            return step()

        one.step = spy  # type: ignore[method-assign,assignment]
    reports = []
    for report in trainer.steps():
        reports.append(report)
        if report.step == 6:
            trainer.rate_scale = 0.5  # as after going back
    assert [report.step for report in reports] == list(range(1, 13))
    for done, (report, shares) in enumerate(zip(reports, used, strict=True)):
        expected = (1 - done / 12) * (0.5 if done >= 6 else 1)
        assert shares == pytest.approx([expected] * len(shares), rel=1e-12)
        assert report.lr == pytest.approx(0.02 * expected, rel=1e-12)


@pytest.mark.parametrize("name", [name for name, preset in presets.PRESETS.items() if preset.family == "gpt"])
def test_the_first_loss_is_that_of_guessing(name: str) -> None:
    shape = {**presets.PRESETS[name].model, "context": 16, "layers": 2, "heads": 4, "width": 64}
    model = GPT(GPTConfig(vocab_size=100, **shape), seeded(1, "initialization"))
    tokens = torch.randint(100, (2, 32, 16), generator=torch.Generator().manual_seed(4))
    trainer = small_trainer(model=model, task=Changed(batch=lambda drawn, count: Batch(*tokens)))
    assert abs(trainer.one_step()[0] - math.log(100)) < 0.1


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 0.03), ("muon", 0.1)])
def test_one_batch_is_learnt_by_heart(optimizer: str, rate: float) -> None:
    tokens = torch.randint(len(CHARACTERS), (4, CONTEXT + 1), generator=torch.Generator().manual_seed(2))
    tokens[:, 0] = torch.arange(4)  # what comes second can only be told from what comes first
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    trainer = small_trainer(
        model=small_gpt(dropout=0.0),
        task=Changed(batch=lambda drawn, count: batch),
        optimizer=OptimizerConfig(name=optimizer, learning_rate=rate),  # type: ignore[arg-type]
        schedule=ScheduleConfig(name="linear", final=0.0),
        steps=80,
        evaluate_every=None,
        checkpoint_every=1000,
    )
    losses = [report.train_loss for report in trainer.steps()]
    assert losses[0] > 2
    assert losses[-1] < 0.01


def test_in_bfloat16_only_the_products_are() -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        trainer = small_trainer(precision=precision, steps=30, evaluate_every=None)
        losses[precision] = [report.train_loss for report in trainer.steps()]
        tensors = [*trainer.parameters, *trainer.state()["optimizers"][0]["state"][0].values()]
        assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)


def test_a_model_that_uses_no_parameter_is_refused() -> None:
    trainer = small_trainer()
    trainer.loss_of = lambda batch: torch.zeros((), requires_grad=True)
    with pytest.raises(TrainingError, match="does not use its parameters"):
        next(trainer.steps())


def test_without_a_generator_of_its_own_nothing_is_drawn() -> None:
    """Initialisation, data and dropout each have their own seed, and another seed gives others."""
    numbers = {
        (seed, use): torch.rand(3, generator=seeded(seed, use)).tolist() for seed in (0, 1) for use in ("data", "x")
    }
    assert len({tuple(values) for values in numbers.values()}) == 4
    same_bits(finished(steps=3), finished(steps=3))
    other = finished(steps=3, seed=1)
    assert not torch.equal(other["data"], finished(steps=3)["data"])


# ---------------------------------------------------------------------------------------------------------------
# Nothing else changes what is learnt


@pytest.mark.parametrize("average", [None, 0.9])
def test_evaluating_more_often_changes_no_bit(average: float | None, tmp_path: Path) -> None:
    seldom = finished(evaluate_every=None, average=average)
    same_bits(finished(evaluate_every=1, average=average), seldom)
    same_bits(finished(evaluate_every=1, average=average, folder=tmp_path / "a", checkpoint_every=1), seldom)


def test_what_the_caller_draws_between_steps_changes_no_bit() -> None:
    quiet = finished()
    trainer = small_trainer()
    for report in trainer.steps():
        torch.manual_seed(report.step)
        torch.rand(report.step)
        trainer.task.answer(trainer.model, "abc", tokens=3, seed=report.step)
    same_bits(learnt(trainer), quiet)


def test_dropout_is_on_while_training_and_off_while_evaluating() -> None:
    trainer = small_trainer(model=small_gpt(dropout=0.5), steps=1)
    before = trainer.dropout.cpu.clone()
    one = trainer.evaluate()
    assert torch.equal(trainer.dropout.cpu, before)
    assert trainer.evaluate() == one
    trainer.one_step()
    assert not torch.equal(trainer.dropout.cpu, before)


def test_train_gives_the_caller_its_generator_back() -> None:
    trainer = small_trainer()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    trainer.train(progress=False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "momentum"])
@pytest.mark.parametrize("done", [0, 5])
def test_a_rehearsal_changes_no_bit(optimizer: str, done: int, tmp_path: Path) -> None:
    trainer = small_trainer(optimizer=optimizer, average=0.9, folder=tmp_path / "run")
    loop = trainer.steps() if done else None
    for _ in range(done):
        assert loop is not None
        next(loop)
    before, counters = learnt(trainer), {k: v for k, v in trainer.state().items() if k not in (*LEARNT, "settings")}
    outside, files = torch.get_rng_state(), files_below(tmp_path)
    seconds = trainer.rehearse(3)
    assert len(seconds) == 3
    same_bits(learnt(trainer), before)
    after = {k: v for k, v in trainer.state().items() if k not in (*LEARNT, "settings")}
    spent = after.pop("train_seconds") - counters.pop("train_seconds")
    assert after == counters
    assert spent >= sum(seconds)  # a compilation in the first step is part of what training costs
    assert torch.equal(torch.get_rng_state(), outside)
    assert files_below(tmp_path) == files
    for _ in loop or trainer.steps():
        pass
    same_bits(learnt(trainer), finished(optimizer=optimizer, average=0.9))


def test_a_loop_of_ones_own_can_be_left_and_taken_up_again() -> None:
    trainer = small_trainer()
    for report in trainer.steps():
        if report.step == 3:
            break
    for report in trainer.steps():
        if report.step == 7:
            trainer.stop("enough for today")
    assert trainer.stop_reason == "enough for today"
    assert (trainer.step, trainer.finished) == (7, False)
    steps = [report.step for report in trainer.steps()]
    assert steps == [8, 9, 10, 11, 12]
    same_bits(learnt(trainer), finished())


@pytest.mark.parametrize("with_folder", [True, False])
def test_after_a_stop_training_goes_on_from_where_it_was(with_folder: bool, tmp_path: Path) -> None:
    """`train` leaves the best weights in the model. They are not what goes on being trained."""
    folder = tmp_path / "run" if with_folder else None
    scores = [1.0, 2.0, 3.0]
    trainer = small_trainer(folder=folder, task=Changed(scores=scores))
    trainer.task.change_batch = lambda batch, count: (  # type: ignore[attr-defined]
        trainer.stop("now") or batch if count == 10 else batch
    )
    assert trainer.train(progress=False) == 1.0
    assert trainer.step == 10
    if folder is not None:
        assert checkpoint.latest_step(folder) == 10
    assert trainer.train(progress=False) == 1.0
    assert trainer.step == 12
    expected = small_trainer(task=Changed(scores=scores))
    for _ in expected.steps():
        pass
    trainer.restore(trainer.last_state())
    same_bits(learnt(trainer), learnt(expected))


@pytest.mark.slow
def test_compiled_training_is_the_same_training() -> None:
    losses = {}
    for compiled in ("no", "yes"):
        trainer = small_trainer(model=small_gpt(dropout=0.0), compile=compiled)
        losses[compiled] = [report.train_loss for report in trainer.steps()]
        assert trainer.compiled == (compiled == "yes")
        assert all("_orig_mod" not in name for name in trainer.state()["model"])
    assert losses["yes"] == pytest.approx(losses["no"], rel=1e-4)


# ---------------------------------------------------------------------------------------------------------------
# The best weights, the mean of the weights


@pytest.mark.parametrize("with_folder", [True, False])
def test_the_best_weights_are_a_copy_and_are_left_in_the_model(with_folder: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run" if with_folder else None
    trainer = small_trainer(folder=folder, task=Changed(scores=[3.0, 1.0, 2.0]))
    at = {}
    for report in trainer.steps():
        at[report.step] = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    assert (trainer.best_loss, trainer.best_step) == (1.0, 8)
    same_bits(trainer.model.state_dict(), at[12])  # the live ones, up to here
    trainer.put_best()
    same_bits(trainer.model.state_dict(), at[8])
    if folder is not None:
        tensors, about = checkpoint.load_tensors(folder / "model.safetensors")
        same_bits(tensors, {name: at[8][name] for name in tensors})
        assert about["step"] == "8"
        assert float(about["val_loss"]) == 1.0


def test_train_leaves_the_best_weights_in_the_model() -> None:
    trainer = small_trainer(task=Changed(scores=[3.0, 1.0, 2.0]))
    kept: list[dict[str, Tensor]] = []
    save = trainer.save_best

    def spy() -> None:
        kept.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
        save()

    trainer.save_best = spy  # type: ignore[method-assign]
    assert trainer.train(progress=False) == 1.0
    assert len(kept) == 2
    same_bits(trainer.model.state_dict(), kept[1])


def test_patience() -> None:
    trainer = small_trainer(
        task=Changed(scores=[3.0, 2.0, 2.5, 2.0, 1.0]), patience=2, evaluate_every=2, report_every=100, steps=20
    )
    reports = list(trainer.steps())
    assert [(report.step, report.val_loss) for report in reports] == [(2, 3.0), (4, 2.0), (6, 2.5), (8, 2.0)]
    assert reports[-1].event == "validation was best at step 4 and has not been better since: stopped"
    assert all(report.event is None for report in reports[:-1])
    assert trainer.finished
    assert trainer.turned
    assert list(trainer.steps()) == []


def test_a_run_that_validation_ended_does_not_go_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"folder": tmp_path / "run", "patience": 1, "evaluate_every": 2}
    trainer = small_trainer(task=Changed(scores=[1.0, 2.0]), **options)
    list(trainer.steps())
    assert trainer.step == 4
    again = small_trainer(task=Changed(scores=[]), **options)
    assert again.resume()
    assert again.finished
    assert list(again.steps()) == []


def test_the_mean_of_the_weights_is_evaluated_and_saved_and_the_weights_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trainer = small_trainer(folder=folder, average=0.6, steps=10, evaluate_every=10)
    mean = {name: parameter.detach().double() for name, parameter in trainer.model.named_parameters()}
    seen: list[dict[str, Tensor]] = []
    score = trainer.task.score

    def spy(model: nn.Module, device: torch.device) -> dict[str, float]:
        seen.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        return score(model, device)

    trainer.task.score = spy  # type: ignore[method-assign]
    for report in trainer.steps():
        # A mean that forgets: at first quickly, because it begins with weights that know nothing.
        decay = min(0.6, report.step / (report.step + 9))
        for name, parameter in trainer.model.named_parameters():
            mean[name] = decay * mean[name] + (1 - decay) * parameter.detach().double()
        assert all(not tensor.requires_grad for tensor in trainer.average.mean)  # type: ignore[union-attr]  # no graph grows from step to step
    for name, tensor in seen[0].items():
        torch.testing.assert_close(tensor.double(), mean[name], rtol=1e-5, atol=1e-7)
    tensors, _ = checkpoint.load_tensors(folder / "model.safetensors")
    same_bits(tensors, {name: seen[0][name] for name in tensors})
    without = finished(steps=10, evaluate_every=10)
    same_bits({**learnt(trainer), "average": None}, without)
    assert trainer.average is not None
    assert not torch.equal(trainer.average.mean[0], trainer.parameters[0])


# ---------------------------------------------------------------------------------------------------------------
# metrics.jsonl


def test_every_report_is_a_line(tmp_path: Path) -> None:
    trainer = small_trainer(folder=tmp_path / "run", report_every=3, evaluate_every=4)
    reports = list(trainer.steps())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4, 6, 8, 9, 12]
    always = {"step", "tokens", "train_seconds", "train_loss", "lr", "tokens_per_second", "grad_norm"}
    for line, report in zip(lines, reports, strict=True):
        evaluated = line["step"] in (4, 8, 12)
        assert line.keys() == always | ({"val_loss", "bits_per_byte"} if evaluated else set())
        assert line["tokens"] == line["step"] * 4 * CONTEXT
        assert line["val_loss" if evaluated else "train_loss"] == (report.val_loss if evaluated else report.train_loss)
        assert line["tokens_per_second"] > 0
        assert line["grad_norm"] > 0
    seconds = [line["train_seconds"] for line in lines]
    assert seconds == sorted(seconds)


def test_a_reported_loss_is_the_mean_since_the_last_report() -> None:
    every = [report.train_loss for report in small_trainer(report_every=1).steps()]
    third = [report.train_loss for report in small_trainer(report_every=3, evaluate_every=None).steps()]
    assert third == pytest.approx([sum(every[i : i + 3]) / 3 for i in range(0, 12, 3)])


def test_evaluation_is_not_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("handmade.training.time.perf_counter", lambda: now[0])

    def later(seconds: float, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*words: Any) -> Any:
            now[0] += seconds
            return call(*words)

        return wrapped

    trainer = small_trainer()
    trainer.one_step = later(1, trainer.one_step)  # type: ignore[method-assign]
    trainer.evaluate = later(100, trainer.evaluate)  # type: ignore[method-assign]
    trainer.save_state = later(1000, trainer.save_state)  # type: ignore[method-assign]
    reports = list(trainer.steps())
    assert [report.train_seconds for report in reports] == list(range(1, 13))
    assert {report.tokens_per_second for report in reports} == {4.0 * CONTEXT}


def test_a_report_as_a_line_has_its_event_only_where_there_is_one() -> None:
    report = Report(1, 2, 3.0, 4.0, 5.0, 6.0, 7.0, {"val_loss": 8.0})
    assert report.line()["val_loss"] == report.val_loss == 8.0
    assert "event" not in report.line()
    assert "scores" not in report.line()
    assert Report(1, 2, 3.0, 4.0, 5.0, 6.0, 7.0, {}, "look").line()["event"] == "look"


# ---------------------------------------------------------------------------------------------------------------
# When something goes wrong


def poisoned(calls: Iterable[int]) -> Changed:
    """A task whose loss is not a number at these of its batches, counted from 1."""
    calls = set(calls)
    return Changed(loss=lambda loss, count: loss * math.nan if count in calls else loss)


class Infinite(torch.autograd.Function):
    """Nothing on the way there, infinity on the way back, where what comes is above a limit."""

    @staticmethod
    def forward(context: Any, x: Tensor, limit: float) -> Tensor:
        context.limit = limit
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return (gradient * math.inf if gradient.abs().max() > context.limit else gradient), None


def finite(trainer: Trainer) -> bool:
    tensors = [*trainer.model.state_dict().values()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def test_one_bad_loss_is_skipped_and_reported(tmp_path: Path) -> None:
    trainer = small_trainer(task=poisoned({5}), folder=tmp_path / "run", evaluate_every=None)
    events = {}
    for report in trainer.steps():
        if report.event:
            events[report.step] = report.event
            assert math.isnan(report.train_loss)
    assert events == {4: "step 5 skipped: its loss is not a finite number"}
    assert trainer.step == 12
    assert finite(trainer)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4, *range(5, 13)]
    assert [line["train_loss"] for line in lines if "event" in line] == [None]


def test_a_skipped_step_changes_no_weight() -> None:
    before_and_after = []
    for loss in (
        lambda loss, count: loss * math.nan,
        lambda loss, count: Infinite.apply(loss, 0.0),
    ):
        trainer = small_trainer(task=Changed(loss=loss), average=0.5)
        before = learnt(trainer)
        trainer.one_step()
        after = learnt(trainer)
        for name in ("model", "average"):
            same_bits(after[name], before[name])
        assert not after["optimizers"][0]["state"]
        assert all(parameter.grad is None for parameter in trainer.parameters)
        before_and_after.append(not torch.equal(before["data"], after["data"]))
    assert before_and_after == [True, True]  # the next batch is another one


def test_a_bad_gradient_is_skipped_too() -> None:
    task = Changed(loss=lambda loss, count: Infinite.apply(loss, 0.0) if count == 2 else loss)  # type: ignore[no-untyped-call]
    events = [report.event for report in small_trainer(task=task).steps() if report.event]
    assert events == ["step 2 skipped: its gradient is not a finite number"]


@pytest.mark.parametrize("with_folder", [True, False])
def test_three_bad_steps_go_back_with_half_the_rate(with_folder: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run" if with_folder else None
    trainer = small_trainer(
        task=poisoned({8, 9, 10}), folder=folder, schedule=ScheduleConfig(name="constant", warmup=0.0)
    )
    reports, saved = [], None
    for report in trainer.steps():
        reports.append(report)
        if report.step == 6 and saved is None:
            saved = copy.deepcopy(trainer.last_state())
        if report.event and "went back" in report.event:
            assert saved is not None
            same_bits({k: learnt(trainer)[k] for k in LEARNT}, {k: saved[k] for k in LEARNT})
    assert [(report.step, report.lr) for report in reports if report.event] == [(7, 0.02), (7, 0.02), (5, 0.02)]
    assert reports[9].event == (
        "after step 7 the loss was not a finite number 3 times in a row:"
        " went back to step 5 and halved the learning rate (now 0.5 of what was set)"
    )
    assert [(report.step, report.lr) for report in reports[10:]] == [(step, 0.01) for step in range(6, 13)]
    assert finite(trainer)
    seconds = [report.train_seconds for report in reports]
    assert seconds == sorted(seconds)  # the time that was lost was spent
    if folder is not None:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 5, *range(6, 13)]


@pytest.mark.parametrize("with_folder", [True, False])
def test_endless_bad_steps_end_in_words(with_folder: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run" if with_folder else None
    trainer = small_trainer(task=poisoned(range(7, 1000)), folder=folder, steps=1000)
    with pytest.raises(TrainingError) as problem:
        list(trainer.steps())
    assert str(problem.value) == (
        "After step 5 the loss was not a finite number 3 times in a row, and going back 5 times, each with half the"
        " learning rate, did not help.\nLook at the data, or start anew with a lower optimizer.learning_rate or"
        " train.precision=float32."
    )
    assert finite(trainer)
    assert trainer.rollbacks == ROLLBACKS + 1
    if folder is not None:
        state = checkpoint.load_checkpoint(folder)
        assert state is not None
        assert all(bool(torch.isfinite(tensor).all()) for tensor in state["model"].values())


@pytest.mark.parametrize("with_folder", [True, False])
@pytest.mark.parametrize("at", [5, 8, 12])
def test_weights_that_are_no_good_are_never_kept(with_folder: bool, at: int, tmp_path: Path) -> None:
    """An optimizer step may end in infinity though loss and gradient were finite: at a checkpoint (5), at an
    evaluation (8), at the last step (12)."""
    folder = tmp_path / "run" if with_folder else None
    trainer = small_trainer(folder=folder, optimizer="adamw")
    step, count = trainer.optimizers[0].step, 0

    def spoil() -> None:
        nonlocal count
        count += 1
        step()
        if count == at:
            with torch.no_grad():
                trainer.parameters[-1].view(-1)[0] = math.inf

    trainer.optimizers[0].step = spoil  # type: ignore[method-assign,assignment]
    events = []
    for report in trainer.steps():
        events += [report.event] if report.event else []
        state = trainer.last_state()
        assert all(bool(torch.isfinite(tensor).all()) for tensor in state["model"].values())
    assert len(events) == 1
    assert events[0].startswith(
        f"after step {at} the weights were not finite numbers: went back to step {5 * ((at - 1) // 5)}"
    )
    assert trainer.step == 12
    trainer.put_best()
    assert finite(trainer)


def test_a_validation_loss_that_is_no_number_is_never_the_best() -> None:
    trainer = small_trainer(task=Changed(scores=[math.nan, 2.0, math.inf, 3.0, 4.0]))
    events = []
    for report in trainer.steps():
        if report.event:
            events.append((report.step, report.event))
            assert trainer.best_loss == (math.inf if len(events) == 1 else 2.0)
            assert bool(trainer.best_weights) == (len(events) == 2)
    assert [step for step, _ in events] == [0, 5]
    assert "the validation loss was not a finite number: went back to step 0" in events[0][1]
    assert (trainer.best_loss, trainer.best_step, trainer.step) == (2.0, 4, 12)


def test_going_back_keeps_the_best_weights_and_their_loss(tmp_path: Path) -> None:
    """The best weights may be newer than the checkpoint gone back to. A worse one must not replace them."""
    task = Changed(
        scores=[3.0, 1.0, 2.0, 2.5], loss=lambda loss, count: loss * math.nan if count in (9, 10, 11) else loss
    )
    trainer = small_trainer(folder=tmp_path / "run", task=task, steps=12, checkpoint_every=7)
    list(trainer.steps())
    assert task.batches == 16  # 8, then 3 bad ones; back to 7, so step 8 is done and evaluated a second time
    assert (trainer.best_loss, trainer.best_step) == (1.0, 8)
    _, about = checkpoint.load_tensors(tmp_path / "run" / "model.safetensors")
    assert float(about["val_loss"]) == 1.0


def test_a_model_that_is_no_good_from_the_start_is_refused() -> None:
    model = small_gpt()
    with torch.no_grad():
        model.embedding.weight[0, 0] = math.nan
    with pytest.raises(TrainingError, match="before training has begun"):
        small_trainer(model=model).steps()


# ---------------------------------------------------------------------------------------------------------------
# float16: the loss is scaled up, so that small gradients do not become zero. The scale is what is tested: a CPU has
# no fast kernels for the numbers.


def in_float16(task: Any = None, **options: Any) -> Trainer:
    trainer = small_trainer(task=task, **options)
    trainer.precision, trainer.loss_scale = "float16", 2.0**16
    trainer.autocast = nullcontext  # type: ignore[method-assign,assignment]
    return trainer


def test_the_loss_scale_changes_no_bit() -> None:
    options: dict[str, Any] = {"optimizer": "sgd", "clip": None}  # Adam and Muon do not mind how large a gradient is
    trainer, unscaled = in_float16(**options), small_trainer(**options)
    norms = [[report.grad_norm for report in one.steps()] for one in (trainer, unscaled)]
    assert norms[0] == norms[1]
    assert trainer.loss_scale == 2.0**16
    same_bits(learnt(trainer), learnt(unscaled))


def test_the_loss_scale_is_halved_until_gradients_fit() -> None:
    count = 4 * CONTEXT  # targets of a batch: what comes back to the loss is the scale / count
    limited = Changed(loss=lambda loss, _: Infinite.apply(loss, 2.0**12 / count))  # type: ignore[no-untyped-call]
    trainer = in_float16(limited, steps=3, evaluate_every=None)
    reports = list(trainer.steps())
    assert [report.event for report in reports] == [
        *(f"step 1 skipped: gradient out of float16's range, loss scale now {2**power}" for power in (15, 14, 13, 12)),
        None,
        None,
        None,
    ]
    assert (trainer.loss_scale, trainer.bad_steps, trainer.rollbacks, trainer.step) == (2.0**12, 0, 0, 3)


def test_the_loss_scale_grows_after_many_good_steps() -> None:
    trainer = in_float16()
    trainer.good_steps = 1998
    assert trainer.watch(1.0, 1.0) is None
    assert trainer.loss_scale == 2.0**16
    assert trainer.watch(1.0, 1.0) is None
    assert trainer.loss_scale == 2.0**17
    assert "loss scale" in str(trainer.watch(1.0, math.inf))
    assert (trainer.loss_scale, trainer.good_steps) == (2.0**16, 0)


def test_a_loss_that_no_scale_helps_ends_in_words() -> None:
    trainer = in_float16(poisoned(range(1, 10_000)))
    trainer.loss_scale, events = 8.0, []
    loop = trainer.steps()
    with pytest.raises(TrainingError, match="did not help"):
        events.extend(report.event for report in loop)
    assert sum("loss scale" in str(event) for event in events) == 3 * (ROLLBACKS + 1)
    assert sum("went back" in str(event) for event in events) == ROLLBACKS
    assert finite(trainer)


# ---------------------------------------------------------------------------------------------------------------
# Signals, folders, disks


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_loop_with_a_checkpoint(number: int, tmp_path: Path) -> None:
    def interrupt(batch: Batch, count: int) -> Batch:
        if count == 7:
            os.kill(os.getpid(), number)
        return batch

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    trainer = small_trainer(task=Changed(batch=interrupt), folder=tmp_path / "run")
    trainer.train(progress=False)
    assert trainer.stop_reason == signal.Signals(number).name
    assert (trainer.step, checkpoint.latest_step(tmp_path / "run"), trainer.finished) == (7, 7, False)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    again = small_trainer(folder=tmp_path / "run")
    assert again.resume()
    list(again.steps())
    same_bits(learnt(again), finished())


def test_a_second_interrupt_leaves_at_once(tmp_path: Path) -> None:
    def interrupt(batch: Batch, count: int) -> Batch:
        if count == 7:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
        return batch

    trainer = small_trainer(task=Changed(batch=interrupt), folder=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        trainer.train(progress=False)
    assert checkpoint.latest_step(tmp_path / "run") == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_another_thread_signals_are_left_alone() -> None:
    trainer = small_trainer()
    thread = threading.Thread(target=trainer.train, kwargs={"progress": False})
    thread.start()
    thread.join()
    assert trainer.finished


def test_a_folder_is_made_and_what_is_in_it_is_not_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    trainer = small_trainer(folder=folder)
    loop = trainer.steps()
    next(loop)
    for other in (small_trainer(folder=folder).steps, small_trainer(folder=folder).resume):
        with pytest.raises(RunError, match="another process is training it"):
            other()
    for _ in loop:
        pass
    before = {name: (folder / name).read_bytes() for name in files_below(folder)}
    with pytest.raises(RunError, match=r"already holds a run.*Trainer\.resume\(\)"):
        small_trainer(folder=folder, optimizer="adamw").steps()
    assert {name: (folder / name).read_bytes() for name in files_below(folder)} == before


def test_resuming_where_nothing_is() -> None:
    assert not small_trainer().resume()
    assert not small_trainer(folder="/nowhere/at/all").resume()


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"model": {"heads": 4}}, r"heads is now 4, and was 2 when the checkpoint was written"),
        ({"model": {"layers": 3}}, r"layers is now 3, and was 2"),
        ({"model": {"logit_cap": 30.0}}, r"logit_cap is now 30\.0, and was None"),
        ({"optimizer": "adamw"}, r"optimizers is now \['AdamW'\], and was \['Muon', 'AdamW'\]"),
        ({"average": 0.9}, r"average is now 0\.9, and was None"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    """Most of these have weights of the very same shapes."""
    list(small_trainer(folder=tmp_path / "run").steps())
    options = dict(changed)
    model = small_gpt(**options.pop("model", {}))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RunError, match=why):
        small_trainer(folder=tmp_path / "run", model=model, **options).resume()
    same_bits(model.state_dict(), before)


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_run_without_its_best_weights_is_not_resumed(tmp_path: Path, how: str) -> None:
    list(small_trainer(folder=tmp_path / "run").steps())
    path = tmp_path / "run" / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    if how == "damaged":
        path.write_bytes(content[:-3])
    with pytest.raises(RunError, match=rf"model\.safetensors: {how}"):
        small_trainer(folder=tmp_path / "run").resume()


def test_a_disk_that_is_full_ends_training_in_words_and_the_run_can_go_on(tmp_path: Path) -> None:
    """At the first checkpoint, at the first one that has what the optimizers keep, at the best weights."""
    sizes, before = [0, 100], resource.getrlimit(resource.RLIMIT_FSIZE)
    measured = small_trainer(folder=tmp_path / "measured")
    for report in measured.steps():
        if report.step == 1:
            sizes.append((tmp_path / "measured/checkpoints/00000000/tensors.safetensors").stat().st_size)
        if report.step == 4:
            sizes.append((tmp_path / "measured/model.safetensors").stat().st_size - 1)
    expected, messages = learnt(measured), set()
    for size in sizes:
        folder = tmp_path / str(size)
        trainer = small_trainer(folder=folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            with pytest.raises(ResourceError) as problem:
                list(trainer.steps())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        words = str(problem.value)
        messages.add(words.split(" (")[0].removeprefix("No disk space for "))
        assert words.startswith("No disk space for ")
        assert f"handmade train --resume {folder}" in words
        assert not [name for name in files_below(folder) if "part" in name or "writing" in name]
        trainer = small_trainer(folder=folder)
        trainer.resume()
        steps = [report.step for report in trainer.steps()]
        assert steps[-1] == 12
        same_bits(learnt(trainer), expected)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 13))
    assert messages == {"the checkpoint of step 0", "the checkpoint of step 5"}


def test_a_full_disk_while_reporting(tmp_path: Path) -> None:
    trainer = small_trainer(folder=tmp_path / "run", evaluate_every=None, checkpoint_every=1000)
    loop, before = trainer.steps(), resource.getrlimit(resource.RLIMIT_FSIZE)
    next(loop)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"No disk space for a report \(\d+ bytes\) in .*--resume"):
            list(loop)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch": 0},
        {"tokens_per_step": 0},
        {"clip": 0.0},
        {"average": 1.0},
        {"seed": -1},
        {"precision": "int8"},
        {"compile": "maybe"},
        {"threads": 0},
        {"evaluate_every": 0},
        {"checkpoint_every": 0},
        {"report_every": 0},
        {"patience": 0},
    ],
)
def test_settings_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"TrainConfig.{next(iter(wrong))} = .*: must be"):
        TrainConfig(**wrong)
