"""The trainer of a run, tried out before the run: how fast it is, how much memory it takes, whether compiling pays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from handmade import machine, planning
from handmade.errors import ResourceError
from handmade.optimizers import OptimizerConfig
from handmade.schedules import ScheduleConfig
from handmade.tasks import RunTask, Say
from handmade.training import TrainConfig, Trainer


@dataclass
class Rehearsal:
    """Makes a trainer, finds out how fast it is, and whether compiling pays."""

    make: Callable[[], nn.Module]
    """The model with its first weights, always the same."""
    task: RunTask
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    seconds: float | None
    """Given to the whole run; None where the number of steps is."""
    say: Say

    def run(self, train: TrainConfig, device: torch.device) -> tuple[Trainer, planning.Measured]:
        """The trainer, with device, threads, precision and compilation settled in its config, and what was measured.
        Raises ResourceError where memory is too small, or where the compilation that was asked for fails."""
        settled = train.replace(
            device=device.type if device.index is None else str(device),
            precision=machine.find_precision(train.precision, device),
            compile="no",
            threads=train.threads or torch.get_num_threads(),
        )
        if train.compile == "no":
            return self.measure(settled)
        if train.compile == "yes":
            return self.compiled(settled, must=True)
        missing = machine.compiler_missing(device)
        if missing:
            self.say("picked", f"not compiled: {missing} on this machine")
            return self.measure(settled)
        plain = self.measure(settled)
        if (self.seconds or train.steps * plain[1].step_seconds) < planning.COMPILE_FROM:
            self.say("picked", f"not compiled: that takes about {planning.COMPILE_SECONDS:.0f} s, too long to pay here")
            return plain
        if device.type == "cpu" and settled.precision == "bfloat16":  # results/compile.json
            self.say("picked", "not compiled: in bfloat16 a CPU is quicker without")
            return plain
        found = self.compiled(settled, must=False)
        before, after = plain[1].step_seconds, found[1].step_seconds
        if found[0].compiled and after > before:
            self.say(
                "picked", f"not compiled after all: a step took {1000 * after:.0f} ms, without {1000 * before:.0f} ms"
            )
            return plain
        return found

    def compiled(self, train: TrainConfig, must: bool) -> tuple[Trainer, planning.Measured]:
        """With torch.compile; where that fails and is no `must`, without."""
        self.say("picked", f"compiled: that takes about {planning.COMPILE_SECONDS:.0f} s now")
        try:
            return self.measure(train.replace(compile="yes"))
        except Exception as problem:
            if not type(problem).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            why = next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)
            if must:
                message = f"train.compile = yes: does not work on this machine ({why[:100]}). Set train.compile=no."
                raise ResourceError(message) from problem
            self.say("picked", f"not compiled after all: it does not work on this machine ({why[:100]})")
            return self.measure(train)

    def measure(self, train: TrainConfig) -> tuple[Trainer, planning.Measured]:
        """Raises ResourceError where memory is too small."""
        spend = 0.2 if self.seconds is None else min(1.0, self.seconds / 50)
        try:
            trainer = Trainer(self.make(), self.task, train, self.optimizer, self.schedule)
            return trainer, planning.measure(trainer, self.task, spend)
        except RuntimeError as problem:
            # A GPU's memory has an error of its own; that of the CPU is known by its words.
            if not isinstance(problem, torch.OutOfMemoryError) and "can't allocate memory" not in str(problem):
                raise
            raise ResourceError(
                f"Memory is too small for a batch of {train.batch} x {self.task.context} tokens. Lower train.batch"
                " (with train.tokens_per_step the step stays as large), or take a smaller model."
            ) from None
