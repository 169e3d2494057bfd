"""The training loop: one loop that reads from top to bottom (`Trainer.steps`), and what it rests on.

    trainer = Trainer(model, task, TrainConfig(steps=2000), folder="runs/mybook")
    trainer.train()                                 # with a progress bar, SIGINT and SIGTERM save and leave

    for report in trainer.steps():                  # or your own loop around it
        print(report.step, report.train_loss)

A killed run goes on with `trainer.resume()` and ends with the same bits as one that was never killed.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from handmade import checkpoint, machine, schedules
from handmade.config import Config
from handmade.errors import TrainingError
from handmade.optimizers import OptimizerConfig, build_optimizers
from handmade.schedules import ScheduleConfig
from handmade.tasks import Batch, Task

BAD_STEPS = 3  # steps in a row with a non-finite loss or gradient before the run goes back
ROLLBACKS = 5  # times it goes back before it gives up


@dataclass(frozen=True)
class TrainConfig(Config):
    """How long, how much at once, and how often things happen. What changes a weight is in `OptimizerConfig`
    and `ScheduleConfig`."""

    steps: int = 2000
    """Optimizer steps."""
    batch: int = 16
    """Rows of a micro-batch: what is in memory at once."""
    tokens_per_step: int | None = None
    """Micro-batches are added up until a step has seen this many tokens. None: one micro-batch a step."""
    clip: float | None = 1.0
    """Gradients are scaled down to this norm, all parameters together. None: never."""
    average: float | None = None
    """Decay of the running mean of the weights, for evaluation and saving. None: the weights themselves."""
    seed: int = 0
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1", "mps"."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the matrix products; weights are float32 always. "auto": bfloat16 where the chip is faster
    with it (measured on a CPU), float16 with loss scaling on a GPU without it, else float32."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """torch.compile: costs some 20 seconds at the start. "auto": on a GPU, or where the time given is long."""
    threads: int | None = None
    """CPU threads. None: what torch takes."""
    evaluate_every: int | None = 250
    """Steps between evaluations on the whole validation part. None: only at the end."""
    checkpoint_every: int = 250
    """Steps between checkpoints; a resumed run goes on from the last one."""
    report_every: int = 10
    """Steps between lines in metrics.jsonl."""
    patience: int | None = None
    """Evaluations without a new best before training stops. None: never."""
    tensorboard: bool = False
    """Write TensorBoard files into the run folder too."""

    def check(self) -> None:
        for field in ("steps", "batch", "checkpoint_every", "report_every"):
            self.require(field, getattr(self, field) >= 1, "at least 1")
        for field in ("tokens_per_step", "threads", "evaluate_every", "patience"):
            value = getattr(self, field)
            self.require(field, value is None or value >= 1, "at least 1, or none")
        self.require("clip", self.clip is None or self.clip > 0, "above 0, or none")
        self.require("average", self.average is None or 0 < self.average < 1, "between 0 and 1, or none")
        self.require("seed", 0 <= self.seed < 2**63, "from 0 to 2^63 - 1")


@dataclass(frozen=True)
class Report:
    """What a line of metrics.jsonl says."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens trained on, all told."""
    train_seconds: float
    """Seconds of training, compilation included, evaluation and checkpoints not."""
    train_loss: float
    """Nats per scored token, mean over the steps since the last report."""
    lr: float
    """The learning rate of the first param group in the last step, as read from the optimizer."""
    tokens_per_second: float
    """Since the last report."""
    grad_norm: float
    """Of the last step, before clipping."""
    scores: dict[str, float]
    """Where evaluated: `val_loss` in nats per token and whatever else the task scores. Else empty."""
    event: str | None = None
    """What a person should know, in plain words."""

    @property
    def val_loss(self) -> float | None:
        return self.scores.get("val_loss")

    def line(self) -> dict[str, Any]:
        """For JSON: the scores among the rest, no event when there was none."""
        line = {name: value for name, value in vars(self).items() if name not in ("scores", "event")}
        line.update(self.scores)
        return {**line, "event": self.event} if self.event else line


def seeded(seed: int, purpose: str) -> torch.Generator:
    """A generator of its own for each purpose ("initialization", "data", "dropout", "sampling"), so that drawing
    more of one never changes another."""
    number = hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(number, "little") >> 1)


class Trainer:
    """Trains `model` on `task`. With a `folder`, writes metrics, checkpoints and the best weights there.

    `model` stays the raw model: what is saved, sampled and counted is never its compiled wrapper. Raises
    ConfigError and ResourceError when the settings do not fit each other or the machine.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        config: TrainConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        schedule: ScheduleConfig | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        config = config or TrainConfig()
        self.device = machine.find_device(config.device)
        self.precision = machine.find_precision(config.precision, self.device)
        self.config, self.schedule = config, schedule or ScheduleConfig()
        self.model, self.task = model.to(self.device), task
        self.optimizers = build_optimizers(model, optimizer or OptimizerConfig())
        self.parameters = [p for optimizer in self.optimizers for g in optimizer.param_groups for p in g["params"]]
        self.folder = None if folder is None else Path(folder)
        if config.threads is not None:
            torch.set_num_threads(config.threads)

        self.data = seeded(config.seed, "data")
        self.dropout = seeded(config.seed, "dropout").get_state()  # a state of torch's global generator
        self.dropout_on_device = self._device_generator_state(seeded(config.seed, "dropout on device"))
        self.step = self.tokens = 0
        self.train_seconds = 0.0
        self.rate_scale = 1.0  # halved when the run had to go back
        self.loss_scale = 2.0**16 if self.precision == "float16" else 1.0
        self.good_steps = self.bad_steps = self.rollbacks = 0
        self.best_loss, self.best_step, self.since_best = math.inf, 0, 0
        self.pending: list[float] = []  # losses since the last report
        self.pending_tokens, self.pending_seconds = 0, 0.0
        self.averaged = [p.detach().clone() for p in self.parameters] if config.average else []
        self.best_weights: dict[str, Tensor] = {}  # only without a folder
        self.kept: dict[str, Any] | None = None  # likewise: the state to go back to
        self.stop_reason: str | None = None
        self.loss_of: Callable[[Tensor, Tensor], Tensor] = self._loss_of
        self.compiled = False
        if config.compile == "yes":
            self.compile()

    # ----------------------------------------------------------------------------------------------------------
    # The loop

    def steps(self) -> Iterator[Report]:
        """Train to the last step, or until `stop` is called or validation has turned; a report every
        `report_every` steps, at every evaluation and at the end."""
        config = self.config
        if self.folder is not None and self.step == 0:
            (self.folder / checkpoint.METRICS).write_bytes(b"")
        self.save_state()
        while self.step < config.steps and self.stop_reason is None:
            began = time.perf_counter()
            loss, norm, rate, tokens = self.one_step()
            seconds = time.perf_counter() - began
            self.train_seconds += seconds
            self.pending_seconds += seconds

            event = self.watch(loss, norm)
            if event is not None:
                yield self.report(norm, rate, {}, event)
                continue
            self.step += 1
            self.tokens += tokens
            self.pending_tokens += tokens
            self.pending.append(loss)

            last = self.step == config.steps
            scores: dict[str, float] = {}
            if last or (config.evaluate_every and self.step % config.evaluate_every == 0):
                scores = self.evaluate()
                if config.patience is not None and self.since_best >= config.patience:
                    turned = self.best_step
                    self.stop("validation has turned")
                    event = f"validation was best at step {turned} and has not been better since: stopped"
            if scores or last or self.step % config.report_every == 0:
                yield self.report(norm, rate, scores, event)
            if last or self.step % config.checkpoint_every == 0:
                self.save_state()
        self.save_state()

    def one_step(self) -> tuple[float, float, float, int]:
        """One optimizer step. Returns the loss (mean over all scored targets of all micro-batches), the norm of
        the gradient, the learning rate that was used, and the number of tokens seen.
        A step whose loss or gradient is not finite changes no weight."""
        batches = self.draw()
        scored = max(1, sum(batch.scored for batch in batches))
        rates = schedules.apply(self.optimizers, self.schedule, self.step / self.config.steps)
        self.scale_rates()
        self.model.train()
        total = torch.zeros((), device=self.device)
        with self.dropout_generator():
            for batch in batches:
                share = self.loss_of(*batch.to(self.device)) / scored
                (share * self.loss_scale).backward()
                total += share.detach()
        norm = self.clip_gradients()
        loss, rate = float(total), next(iter(rates.values())) * self.rate_scale
        if math.isfinite(loss) and math.isfinite(norm):
            for optimizer in self.optimizers:
                optimizer.step()
            if self.averaged:
                torch._foreach_lerp_(self.averaged, self.parameters, 1 - self.average_decay())
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return loss, norm, rate, sum(batch.inputs.numel() for batch in batches)

    def draw(self) -> list[Batch]:
        """The micro-batches of a step, drawn before any is used: the loss is divided by the targets of all."""
        batches = [self.task.batch(self.config.batch, self.data)]
        wanted = self.config.tokens_per_step or 0
        while sum(batch.inputs.numel() for batch in batches) < wanted:
            batches.append(self.task.batch(self.config.batch, self.data))
        return batches

    def tokens_in_step(self) -> int:
        """Tokens that a step sees; what is drawn to find out is put back."""
        before = self.data.get_state()
        tokens = sum(batch.inputs.numel() for batch in self.draw())
        self.data.set_state(before)
        return tokens

    def _loss_of(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The sum over the scored targets of a micro-batch, in nats."""
        batch = Batch(inputs, targets)
        with self.autocast():
            logits = self.task.logits(self.model, batch)
        return self.task.loss(logits, batch)

    def clip_gradients(self) -> float:
        """Undo the loss scale and scale the gradient down to norm `clip`. Returns its norm before that.
        Source: Pascanu, Mikolov and Bengio 2013, algorithm 1 (arXiv:1211.5063)."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            raise TrainingError("No parameter got a gradient: the model does not use its parameters.")
        if self.loss_scale != 1.0:
            torch._foreach_div_(gradients, self.loss_scale)
        norm = float(torch.stack(torch._foreach_norm(gradients)).norm())
        if self.config.clip is not None and math.isfinite(norm) and norm > self.config.clip:
            torch._foreach_mul_(gradients, self.config.clip / norm)
        return norm

    def average_decay(self) -> float:
        """Small at first, so that the mean is not held back by the random weights it began with."""
        assert self.config.average is not None
        return min(self.config.average, (self.step + 1) / (self.step + 10))

    # ----------------------------------------------------------------------------------------------------------
    # When something goes wrong

    def watch(self, loss: float, norm: float) -> str | None:
        """Count good and bad steps; after several bad ones in a row go back. Says what happened, or None."""
        if math.isfinite(loss) and math.isfinite(norm):
            self.bad_steps = 0
            self.good_steps += 1
            if self.precision == "float16" and self.good_steps % 2000 == 0:
                self.loss_scale *= 2
            return None
        what = "loss" if not math.isfinite(loss) else "gradient"
        self.good_steps = 0
        if self.precision == "float16" and self.loss_scale > 1:
            # float16 ends at 65,504: an infinite gradient is expected now and then and only means a smaller scale.
            self.loss_scale /= 2
            return f"step {self.step + 1} skipped: {what} out of float16's range, loss scale now {self.loss_scale:g}"
        self.bad_steps += 1
        if self.bad_steps < BAD_STEPS:
            return f"step {self.step + 1} skipped: its {what} is not a finite number"
        return self.go_back(what)

    def go_back(self, what: str) -> str:
        """Return to the last good checkpoint with half the learning rate."""
        self.rollbacks += 1
        if self.rollbacks > ROLLBACKS:
            raise TrainingError(
                f"The {what} stays non-finite after {ROLLBACKS} returns to a checkpoint, each with half the rate."
                " Look at the data, or start anew with a lower optimizer.learning_rate or train.precision=float32."
            )
        scale, rollbacks, broke_at = self.rate_scale / 2, self.rollbacks, self.step + 1
        state = self.kept if self.folder is None else checkpoint.load_checkpoint(self.folder)
        assert state is not None, "a state is kept before the first step"
        self.restore(state)
        self.rate_scale, self.rollbacks = scale, rollbacks
        return (
            f"the {what} was not a finite number {BAD_STEPS} times in a row at step {broke_at}:"
            f" went back to step {self.step} and halved the learning rate (now {scale:g} of what was set)"
        )

    def stop(self, reason: str) -> None:
        """Have the loop leave after the step it is in, with a checkpoint."""
        self.stop_reason = reason

    # ----------------------------------------------------------------------------------------------------------
    # Evaluation and reports

    def evaluate(self) -> dict[str, float]:
        """Score the whole validation part; keep the weights when they are the best so far."""
        with self.averaged_weights():
            self.model.eval()
            with torch.inference_mode(), self.autocast():
                scores = self.task.score(self.model, self.device)
            self.model.train()
            if scores["val_loss"] < self.best_loss or not self.best_step:
                self.best_loss, self.best_step, self.since_best = scores["val_loss"], self.step, 0
                self.save_best()
            else:
                self.since_best += 1
        return scores

    def save_best(self) -> None:
        """The weights as they are now: a copy, never the live ones."""
        if self.folder is None:
            self.best_weights = {k: t.detach().clone() for k, t in checkpoint.unique_tensors(self.model).items()}
            return
        about = {"step": str(self.best_step), "val_loss": repr(self.best_loss)}
        checkpoint.save_weights(self.folder / checkpoint.WEIGHTS, self.model, **about)

    def put_best(self) -> None:
        """Give the model the best weights seen at an evaluation."""
        if self.best_step and self.folder is not None:
            checkpoint.load_weights(self.folder / checkpoint.WEIGHTS, self.model)
        elif self.best_step:
            checkpoint.put_weights(self.model, self.best_weights, Path("best weights"))

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the model has the running mean of its weights, where one is kept."""
        if not self.averaged:
            yield
            return
        live = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.averaged)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, live)

    def report(self, norm: float, rate: float, scores: dict[str, float], event: str | None) -> Report:
        """Say how it stands, and write it into metrics.jsonl."""
        report = Report(
            step=self.step,
            tokens=self.tokens,
            train_seconds=self.train_seconds,
            train_loss=sum(self.pending) / len(self.pending) if self.pending else math.nan,
            lr=rate,
            tokens_per_second=self.pending_tokens / self.pending_seconds if self.pending_seconds else 0.0,
            grad_norm=norm,
            scores=scores,
            event=event,
        )
        self.pending, self.pending_tokens, self.pending_seconds = [], 0, 0.0
        if self.folder is not None:
            line = {k: None if v != v or v in (math.inf, -math.inf) else v for k, v in report.line().items()}
            try:
                with open(self.folder / checkpoint.METRICS, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as problem:
                raise checkpoint.explain_disk(problem, self.folder / checkpoint.METRICS) from problem
        return report

    # ----------------------------------------------------------------------------------------------------------
    # State: what a checkpoint holds

    def state(self) -> dict[str, Any]:
        """Everything that decides how training goes on, as a tree of numbers and tensors (not copied)."""
        metrics = None if self.folder is None else self.folder / checkpoint.METRICS
        return {
            "model": checkpoint.unique_tensors(self.model),
            "averaged": self.averaged,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "data": self.data.get_state(),
            "dropout": self.dropout,
            "dropout_on_device": self.dropout_on_device,
            "metrics_bytes": metrics.stat().st_size if metrics is not None and metrics.exists() else 0,
            **{name: getattr(self, name) for name in COUNTERS},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; metrics.jsonl is cut back to it."""
        place = Path("checkpoint") if self.folder is None else self.folder
        checkpoint.put_weights(self.model, state["model"], place)
        for mean, kept in zip(self.averaged, state["averaged"], strict=True):
            mean.copy_(kept)
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.data.set_state(state["data"])
        self.dropout, self.dropout_on_device = state["dropout"], state["dropout_on_device"]
        for name in COUNTERS:
            setattr(self, name, copy.copy(state[name]))
        if self.folder is not None:
            metrics = self.folder / checkpoint.METRICS
            metrics.touch()
            os.truncate(metrics, min(state["metrics_bytes"], metrics.stat().st_size))

    def save_state(self) -> None:
        """A checkpoint; without a folder, a copy in memory to go back to."""
        if self.folder is None:
            self.kept = copy.deepcopy(self.state())
        else:
            checkpoint.save_checkpoint(self.folder, self.step, self.state())

    def resume(self) -> bool:
        """Go on from the folder's last checkpoint. False where there is none yet: training starts from the top.
        Raises RunError when it is damaged or belongs to another model."""
        state = None if self.folder is None else checkpoint.load_checkpoint(self.folder)
        if state is None:
            return False
        self.restore(state)
        return True

    def rehearse(self, steps: int = 3) -> list[float]:
        """Train `steps` steps and take them back, to measure: seconds of each. What it took counts as training
        time, because a compilation in the first step is part of what training costs."""
        before, began = copy.deepcopy(self.state()), time.perf_counter()
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            self.one_step()
            seconds.append(time.perf_counter() - start)
        spent = time.perf_counter() - began
        self.restore(before)
        self.train_seconds += spent
        return seconds

    # ----------------------------------------------------------------------------------------------------------
    # Small parts

    def compile(self) -> None:
        """Have torch.compile fuse forward and backward. The raw model is untouched. Raises ResourceError when
        there is no compiler."""
        machine.require_compiler(self.device)
        self.loss_of = torch.compile(self._loss_of, dynamic=False)
        self.compiled = True

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in the run's precision; norms, softmax and losses stay in float32."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.precision))

    def scale_rates(self) -> None:
        """After a return to a checkpoint the rates are a half, a quarter, ... of the schedule's."""
        if self.rate_scale != 1.0:
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] *= self.rate_scale

    @contextmanager
    def dropout_generator(self) -> Iterator[None]:
        """Inside, torch's global generator is the run's own, for dropout; outside it is the caller's."""
        outside = torch.get_rng_state()
        on_device = self._device_generator_state()
        torch.set_rng_state(self.dropout)
        self._set_device_generator(self.dropout_on_device)
        try:
            yield
        finally:
            self.dropout, self.dropout_on_device = torch.get_rng_state(), self._device_generator_state()
            torch.set_rng_state(outside)
            self._set_device_generator(on_device)

    def _device_generator_state(self, like: torch.Generator | None = None) -> Tensor | None:
        """The state of the GPU's global generator, or the one that a seed gives; None on a CPU."""
        if self.device.type == "cpu":
            return None
        if like is not None:
            return torch.Generator(self.device).manual_seed(like.initial_seed()).get_state()
        return torch.mps.get_rng_state() if self.device.type == "mps" else torch.cuda.get_rng_state(self.device)

    def _set_device_generator(self, state: Tensor | None) -> None:
        if state is not None and self.device.type == "mps":
            torch.mps.set_rng_state(state)
        elif state is not None:
            torch.cuda.set_rng_state(state, self.device)

    # ----------------------------------------------------------------------------------------------------------
    # The whole job

    def train(self, progress: bool = True) -> float:
        """Train to the end with a progress bar, then give the model its best weights. SIGINT and SIGTERM leave
        after the step, with a checkpoint (a second SIGINT leaves at once). Returns the best validation loss."""
        from handmade.progress import Progress

        with self.signals(), Progress(self, show=progress) as watching:
            for report in self.steps():
                watching.update(report)
        self.put_best()
        return self.best_loss

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Inside, the first SIGINT or SIGTERM asks the loop to leave. Only the main thread may catch signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def leave(number: int, frame: Any) -> None:
            self.stop(signal.Signals(number).name)
            signal.signal(signal.SIGINT, before[signal.SIGINT])

        for number in before:
            signal.signal(number, leave)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


COUNTERS = (
    "step",
    "tokens",
    "train_seconds",
    "rate_scale",
    "loss_scale",
    "good_steps",
    "bad_steps",
    "rollbacks",
    "best_loss",
    "best_step",
    "since_best",
    "pending",
    "pending_tokens",
    "pending_seconds",
)
