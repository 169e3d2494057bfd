"""The training loop: one loop that reads from top to bottom (`Trainer.steps`), and what it rests on.

    trainer = Trainer(model, task, TrainConfig(steps=2000), folder="runs/mybook")
    trainer.train()                                 # with a progress bar, SIGINT and SIGTERM save and leave

    for report in trainer.steps():                  # or your own loop around it
        print(report.step, report.train_loss)

A killed run goes on with `trainer.resume()` and ends with the same bits as one that was never killed.
"""

from __future__ import annotations

import copy
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor, nn

from handmade import checkpoint, machine, schedules
from handmade.averaging import RunningMean
from handmade.config import Config
from handmade.errors import RunError, TrainingError
from handmade.files import explained
from handmade.optimizers import OptimizerConfig, build_optimizers
from handmade.randomness import DropoutGenerator, seeded
from handmade.reports import Report
from handmade.schedules import ScheduleConfig
from handmade.tasks.base import Drawn, Task

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
    """torch.compile: costs some 20 seconds at the start. "auto": `handmade train` tries it where there is time, and
    keeps it where steps become quicker; a Trainer made in Python does not compile."""
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
        self.dropout = DropoutGenerator(config.seed, self.device)
        self.step = self.tokens = 0
        self.train_seconds = 0.0
        self.rate_scale = 1.0  # halved when the run had to go back
        self.loss_scale = 2.0**16 if self.precision == "float16" else 1.0
        self.good_steps = self.bad_steps = self.rollbacks = 0
        self.best_loss, self.best_step, self.since_best = math.inf, 0, 0
        self.pending: list[float] = []  # losses since the last report
        self.pending_tokens, self.pending_seconds = 0, 0.0
        self.average = None if config.average is None else RunningMean(self.parameters, config.average)
        self.best_weights: dict[str, Tensor] = {}  # only without a folder
        self.kept: dict[str, Any] | None = None  # likewise: the state to go back to
        self.stop_reason: str | None = None
        self.owner = False  # whether what is in the folder is of this run
        self.best_in_model = False  # put there by `train`, where the weights being trained were
        self.held: BinaryIO | None = None  # while open, no other process may train in the folder
        self.loss_of: Callable[[Drawn], Tensor] = self._loss_of
        self.compiled = False
        if config.compile == "yes":
            self.compile()

    # ----------------------------------------------------------------------------------------------------------
    # The loop

    def steps(self) -> Iterator[Report]:
        """Train to the last step, or until `stop` is called or validation has turned; a report every
        `report_every` steps, at every evaluation and at the end. Called again after `stop`, it goes on.

        Raises RunError for a folder that holds a run which this trainer did not make or resume, ResourceError where
        the folder cannot be written, TrainingError when the loss stays non-finite.
        """
        self.stop_reason = None
        self.take_folder()
        if self.best_in_model:
            self.restore(self.last_state())
        if not self.finite():
            raise TrainingError("The model's weights are not finite numbers before training has begun.")
        return self.loop()

    def loop(self) -> Iterator[Report]:
        """What `steps` returns, once everything is ready for it."""
        config = self.config
        with self.held or nullcontext():  # closed when the loop ends, however it ends
            self.save_state()
            while not self.finished and self.stop_reason is None:
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
                scored = last or (config.evaluate_every is not None and self.step % config.evaluate_every == 0)
                saved = last or self.step % config.checkpoint_every == 0
                if (scored or saved) and not self.finite():
                    yield self.report(norm, rate, {}, self.go_back("the weights were not finite numbers"))
                    continue
                scores = self.evaluate() if scored else {}
                if scores and not math.isfinite(scores["val_loss"]):
                    yield self.report(norm, rate, {}, self.go_back("the validation loss was not a finite number"))
                    continue
                if self.turned:
                    event = f"validation was best at step {self.best_step} and has not been better since: stopped"
                if scores or last or self.step % config.report_every == 0:
                    yield self.report(norm, rate, scores, event)
                if saved:
                    self.save_state()
            self.save_state()

    @property
    def turned(self) -> bool:
        """Whether `patience` evaluations in a row brought no new best."""
        return self.config.patience is not None and self.since_best >= self.config.patience

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train. It follows from what a checkpoint holds."""
        return self.step >= self.config.steps or self.turned

    def one_step(self) -> tuple[float, float, float, int]:
        """One optimizer step. Returns the loss (mean over all scored targets of all micro-batches), the norm of
        the gradient, the learning rate that was used, and the number of tokens seen.
        A step whose loss or gradient is not finite changes no weight."""
        batches = self.draw()
        scored = max(1, sum(batch.scored for batch in batches))
        schedules.apply(self.optimizers, self.schedule, self.step / self.config.steps)
        self.scale_rates()
        self.model.train()
        total = torch.zeros((), device=self.device)
        with self.dropout.lent():
            for batch in batches:
                share = self.loss_of(batch.to(self.device)) / scored
                (share * self.loss_scale).backward()
                total += share.detach()
        norm = self.clip_gradients()
        loss, rate = float(total), next(iter(schedules.rates(self.optimizers).values()))
        if math.isfinite(loss) and math.isfinite(norm):
            for optimizer in self.optimizers:
                optimizer.step()
            if self.average is not None:
                self.average.update(self.step + 1)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return loss, norm, rate, sum(batch.tokens for batch in batches)

    def draw(self) -> list[Drawn]:
        """The micro-batches of a step, drawn before any is used: the loss is divided by the targets of all."""
        batches = [self.task.batch(self.config.batch, self.data)]
        wanted = self.config.tokens_per_step or 0
        while sum(batch.tokens for batch in batches) < wanted:
            batches.append(self.task.batch(self.config.batch, self.data))
        return batches

    def tokens_in_step(self) -> int:
        """Tokens that a step sees; what is drawn to find out is put back."""
        before = self.data.get_state()
        tokens = sum(batch.tokens for batch in self.draw())
        self.data.set_state(before)
        return tokens

    def _loss_of(self, batch: Drawn) -> Tensor:
        """The sum over the scored targets of a micro-batch, in nats. A task may know how to get it without holding all
        logits at once; compiled, the plain way is fused anyway."""
        in_pieces = getattr(self.task, "loss_in_pieces", None)
        with self.autocast():
            if in_pieces is not None and not self.compiled and self.loss_scale == 1.0:
                return in_pieces(self.model, batch)
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
        return self.go_back(f"the {what} was not a finite number {BAD_STEPS} times in a row")

    def go_back(self, what: str) -> str:
        """Return to the last good checkpoint with half the learning rate. Says so; `what` is the reason.
        Raises TrainingError after too many returns."""
        self.rollbacks += 1
        if self.rollbacks > ROLLBACKS:
            raise TrainingError(
                f"After step {self.step:,} {what}, and going back {ROLLBACKS} times, each with half the learning rate,"
                " did not help.\nLook at the data, or start anew with a lower optimizer.learning_rate or"
                " train.precision=float32."
            )
        self.rate_scale /= 2
        broke_at = self.step
        # The best weights are on disk already, and the time was spent.
        kept = {name: getattr(self, name) for name in ("rate_scale", "rollbacks", "train_seconds", *BEST)}
        self.restore(self.last_state())
        for name, value in kept.items():
            setattr(self, name, value)
        return (
            f"after step {broke_at:,} {what}: went back to step {self.step:,} and halved the learning rate"
            f" (now {self.rate_scale:g} of what was set)"
        )

    def finite(self) -> bool:
        """Whether all weights are finite numbers. Nothing else may become a checkpoint to go back to."""
        weights = [*self.parameters, *(self.average.mean if self.average is not None else ())]
        return bool(torch.stack([torch.isfinite(weight).all() for weight in weights]).all())

    def stop(self, reason: str) -> None:
        """Have the loop leave after the step it is in, with a checkpoint. `stop_reason` is then `reason`."""
        self.stop_reason = reason

    # ----------------------------------------------------------------------------------------------------------
    # Evaluation and reports

    def evaluate(self) -> dict[str, float]:
        """Score the whole validation part; keep the weights when they are the best so far."""
        with self.average.in_model() if self.average is not None else nullcontext():
            self.model.eval()
            with torch.inference_mode(), self.autocast():
                scores = self.task.score(self.model, self.device)
            self.model.train()
            if scores["val_loss"] < self.best_loss:
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
        if not self.best_step:
            return
        if self.folder is not None:
            checkpoint.load_weights(self.folder / checkpoint.WEIGHTS, self.model)
        else:
            checkpoint.put_weights(self.model, self.best_weights, Path("best weights"))
        self.best_in_model = True

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
            report.append_to(self.folder)
        return report

    # ----------------------------------------------------------------------------------------------------------
    # State: what a checkpoint holds

    def state(self) -> dict[str, Any]:
        """Everything that decides how training goes on, as a tree of numbers and tensors (not copied)."""
        metrics = None if self.folder is None else self.folder / checkpoint.METRICS
        return {
            "settings": self.settings(),
            "model": checkpoint.unique_tensors(self.model),
            "average": None if self.average is None else self.average.mean,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "data": self.data.get_state(),
            "dropout": self.dropout.state(),
            "metrics_bytes": metrics.stat().st_size if metrics is not None and metrics.exists() else None,
            **{name: getattr(self, name) for name in COUNTERS},
        }

    def settings(self) -> dict[str, Any]:
        """What must not change between a checkpoint and going on from it, and could without being noticed: a model of
        2 heads has the weights of one of 4."""
        config = getattr(self.model, "config", None)
        return {
            **(config.to_dict() if isinstance(config, Config) else {}),
            "optimizers": [type(optimizer).__name__ for optimizer in self.optimizers],
            "average": self.config.average,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; metrics.jsonl is cut back to it. Raises RunError for that of another model."""
        place = Path("checkpoint") if self.folder is None else self.folder
        settings = self.settings()
        for name, was in state["settings"].items():
            if name in settings and settings[name] != was:
                raise RunError(
                    f"{place}: cannot go on. {name} is now {settings[name]}, and was {was} when the checkpoint was"
                    " written. Set it back, or train a new run."
                )
        checkpoint.put_weights(self.model, state["model"], place)
        if self.average is not None:
            self.average.restore(state["average"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.data.set_state(state["data"])
        self.dropout.restore(state["dropout"])
        for name in COUNTERS:
            setattr(self, name, copy.copy(state[name]))
        self.best_in_model = False
        if self.folder is not None and state["metrics_bytes"] is not None:
            checkpoint.cut(self.folder / checkpoint.METRICS, state["metrics_bytes"])

    def save_state(self) -> None:
        """A checkpoint; without a folder, a copy in memory to go back to. Not of weights that are no good."""
        if not self.finite():
            return
        if self.folder is None:
            self.kept = copy.deepcopy(self.state())
            return
        with open(self.folder / checkpoint.METRICS, "ab") as file:
            checkpoint.flush(file)  # a checkpoint that outlives a power cut knows of no report that does not
        checkpoint.save_checkpoint(self.folder, self.step, self.state())

    def last_state(self) -> dict[str, Any]:
        """What `save_state` kept last."""
        state = self.kept if self.folder is None else checkpoint.load_checkpoint(self.folder)
        assert state is not None, "a state is kept before the first step"
        return state

    def take_folder(self) -> None:
        """Make the folder and keep other processes out of it. Raises RunError where they are in, or where there is a
        run that this trainer would write over; ResourceError where the folder cannot be made."""
        if self.folder is None:
            return
        with explained(self.folder, "a run", None, checkpoint.ADVICE):
            self.folder.mkdir(parents=True, exist_ok=True)
        if self.held is None or self.held.closed:
            self.held = checkpoint.lock(self.folder)
        if self.owner:
            return
        if checkpoint.latest_step(self.folder) is not None:
            raise RunError(
                f"{self.folder}: already holds a run. Go on with it by Trainer.resume(), or choose another folder."
            )
        checkpoint.cut(self.folder / checkpoint.METRICS, 0)
        self.owner = True

    def resume(self) -> bool:
        """Go on from the folder's last checkpoint. False where there is none yet: training starts from the top.
        Raises RunError when it is damaged, belongs to another model, or is being trained by another process."""
        if self.folder is None or not self.folder.exists():
            return False
        self.held = checkpoint.lock(self.folder)
        state = checkpoint.load_checkpoint(self.folder)
        if state is None:
            return False
        if state["best_step"]:
            checkpoint.load_tensors(self.folder / checkpoint.WEIGHTS)  # raises, and says what is wrong with it
        self.restore(state)
        self.owner = True
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

    # ----------------------------------------------------------------------------------------------------------
    # The whole job

    def train(self, progress: bool = True) -> float:
        """Train to the end with a progress bar, then give the model its best weights. SIGINT and SIGTERM leave
        after the step, with a checkpoint (a second SIGINT leaves at once). Returns the best validation loss."""
        from handmade.progress import Progress

        loop = self.steps()
        with self.signals(), Progress(self, show=progress) as watching:
            for report in loop:
                watching.update(report)
        self.put_best()
        return self.best_loss

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Inside, the first SIGINT or SIGTERM asks the loop to leave. Only the main thread may catch signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # None: a handler that was not set from Python, and cannot be put back.
        before = {n: signal.getsignal(n) or signal.SIG_DFL for n in (signal.SIGINT, signal.SIGTERM)}

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


BEST = ("best_loss", "best_step", "since_best")
COUNTERS = (
    "step",
    "tokens",
    "train_seconds",
    "rate_scale",
    "loss_scale",
    "good_steps",
    "bad_steps",
    "rollbacks",
    *BEST,
    "pending",
    "pending_tokens",
    "pending_seconds",
)
