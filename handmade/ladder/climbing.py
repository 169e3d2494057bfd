"""Climbing: every rung on the same text with the same budget, several runs side by side, each kept as it is done.

    climb = Climb("mybook.txt", rungs=[find("neural-bigram"), find("one-head")], seeds=(0, 1, 2), folder="ladder")
    for record in climb.run():
        print(record["rung"], record["val_loss"])
    climb.rows()                                   # means, spreads, gains over the parents: `summary.Row`

A killed climb goes on where it was when it is made again with the same words.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import handmade
from handmade import data, machine
from handmade.errors import ConfigError, ResourceError, TokenizerError
from handmade.ladder import records, runs, summary
from handmade.ladder.rungs import CONTEXT, RUNGS, SIDE_RUNGS, Rung, Settings, settings
from handmade.ladder.runs import Order, Source, Speed

TOKENS = 589_824  # of a run: 576 steps of 16 windows of 64, and a whole number of steps for every batch of the ladder
SEEDS = (0, 1, 2)
OVERHEAD = 0.6  # seconds of a run besides steps and evaluation: model, sample


class Climb:
    """The runs of some rungs on a text, and what is known of them.

    `tokens`: what every run sees. `minutes`: for all of the climb instead; how much a run gets follows, by measuring
    every rung. `equal`: whether runs are equal in "tokens" or in "time". `folder`: where ladder.jsonl is; None keeps
    the records in memory. `jobs`: runs side by side, each in a process with one thread; 1 stays in this process, and
    None takes the processor's cores. `force` begins anew where there are results; they are there until the first run
    begins. `say` takes what a person should know, as a label and a sentence.

    Raises DataError for the text, ConfigError for rungs and budgets that cannot be, RunError for results that are not
    of this climb.
    """

    def __init__(
        self,
        text: str | Sequence[str],
        rungs: Sequence[Rung] = RUNGS,
        seeds: Sequence[int] = SEEDS,
        tokens: int | None = None,
        minutes: float | None = None,
        equal: str = "tokens",
        folder: str | os.PathLike[str] | None = None,
        jobs: int | None = None,
        prompt: str | None = None,
        tokenizer: str = "auto",
        context: int = CONTEXT,
        force: bool = False,
        say: Callable[[str, str], None] = lambda label, sentence: None,
    ) -> None:
        self.began = time.perf_counter()
        self.rungs, self.seeds, self.equal, self.minutes = tuple(rungs), tuple(seeds), equal, minutes
        self._check(tokens, jobs)
        self.known = {rung.name: rung for rung in (*RUNGS, *SIDE_RUNGS, *self.rungs)}
        self.settings: dict[str, Settings] = {
            name: settings(rung, self.known.values()) for name, rung in self.known.items()
        }
        self.source = Source((text,) if isinstance(text, str) else tuple(text), tokenizer)
        self.text = runs.open_text(self.source)
        for note in self.text.notes:
            say("left out", note)
        self.context, sentence = data.fit_context(len(self.text.train), context)
        if sentence:
            say("context", sentence)
        self.prompt = first_words(self.text) if prompt is None else prompt
        try:
            self.text.tokenizer.encode(self.prompt)
        except TokenizerError as problem:  # what the text does not have
            raise TokenizerError(f"prompt: {problem}") from None
        self.path = None if folder is None else Path(folder) / records.NAME
        self.anew = force
        if self.path is not None:
            records.require_place(self.path)
        self.records = [] if self.path is None or force else records.read(self.path)
        self._adopt(tokens, say)
        self.jobs = jobs or machine.cores()
        self.speeds: dict[str, Speed] = {}

    def _check(self, tokens: int | None, jobs: int | None) -> None:
        names = [rung.name for rung in self.rungs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"rung {twice} is there twice.")
        if not names:
            raise ConfigError("No rung to climb.")
        if self.equal not in ("tokens", "time"):
            raise ConfigError(f"equal = {self.equal!r}: must be tokens or time.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"seeds = {self.seeds}: must be different whole numbers from 0 up.")
        if self.equal == "time" and self.minutes is None:
            raise ConfigError("Runs of equal time need the minutes that all of them may take.")
        if tokens is not None and self.minutes is not None:
            raise ConfigError("tokens and minutes both say how long to train. Give one of them.")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ConfigError(f"minutes = {self.minutes:g}: must be a number above 0.")
        if tokens is not None and tokens < 1:
            raise ConfigError(f"tokens = {tokens}: must be at least 1.")
        if jobs is not None and jobs < 1:
            raise ConfigError(f"jobs = {jobs}: must be at least 1.")

    def _adopt(self, tokens: int | None, say: Callable[[str, str], None]) -> None:
        """Take the budget of the results that are there, when the climb was given by time: it cannot be measured
        twice to the same number. Refuse them where they are of something else."""
        self.budget: dict[str, Any] | None = None
        if self.minutes is None:
            self.budget = {"equal": "tokens", "tokens": TOKENS if tokens is None else tokens}
        elif self.records and self.records[0]["budget"].get("equal") == self.equal:
            self.budget = self.records[0]["budget"]
        if self.path is not None:
            same = self.identity
            if self.budget is None:
                same.pop("budget")
                if self.records:
                    records.require_same(self.path, self.records, {**same, "budget": {"equal": self.equal}})
            records.require_same(self.path, self.records, same)
            records.require_settings(self.path, self.records, {rung.name: self.decided(rung) for rung in self.rungs})
        if self.budget is not None and self.equal == "tokens":
            self._require_steps()
        if self.budget is not None and self.minutes is not None:
            say("budget", f"{summary.budget(self.budget)}, as the results in {self.path} have it")

    @property
    def identity(self) -> dict[str, Any]:
        """What all records of a file have in common."""
        return {
            "data": {
                "name": ", ".join(os.path.basename(os.path.abspath(name)) for name in self.source.data),
                "fingerprint": self.text.fingerprint,
                "train_tokens": len(self.text.train),
                "validation_tokens": len(self.text.validation),
                "vocab_size": self.text.tokenizer.vocab_size,
            },
            "budget": self.budget,
            "context": self.context,
            "prompt": self.prompt,
            "version": handmade.__version__,
        }

    def decided(self, rung: Rung) -> dict[str, Any]:
        """What a rung's record says of its settings."""
        return {**self.settings[rung.name].to_dict(), "learning_rate": rung.learning_rate}

    # ----------------------------------------------------------------------------------------------------------
    # How long

    def tokens_in_step(self, rung: Rung) -> int:
        return self.settings[rung.name].train.sequences * self.context

    def _require_steps(self) -> None:
        """Raise ConfigError for a budget that is too small for one step of some rung."""
        assert self.budget is not None
        learnt = [rung for rung in self.rungs if not self.settings[rung.name].counted]
        largest = max(learnt, key=self.tokens_in_step, default=None)
        if largest is not None and self.budget["tokens"] < self.tokens_in_step(largest):
            raise ConfigError(
                f"{self.budget['tokens']:,} tokens: too few for one step of {largest.name}. The smallest number that"
                f" works is {self.tokens_in_step(largest):,}."
            )

    def steps(self, rung: Rung) -> int:
        """Optimizer steps of a rung: those that its other seeds had, or what the budget holds."""
        if self.settings[rung.name].counted:
            return 0
        for record in self.records:
            if record["rung"] == rung.name:
                return record["steps"]
        assert self.budget is not None
        if self.equal == "time":
            speed = self.speeds[rung.name]
            return max(1, round(self.budget["seconds"] / speed.step))
        if not rung.as_long_as_parent:
            return max(1, round(self.budget["tokens"] / self.tokens_in_step(rung)))
        parent = self.known[rung.parent or ""]
        seconds = self.steps(parent) * self.speeds[parent.name].step
        return max(1, round(seconds / self.speeds[rung.name].step))

    def seconds_of(self, rung: Rung) -> float:
        """What a run takes, about: as its other seeds did, or as measured."""
        done = [record["seconds"] for record in self.records if record["rung"] == rung.name]
        if done:
            return sum(done) / len(done)
        if rung.name not in self.speeds or self.settings[rung.name].counted:
            return OVERHEAD
        speed = self.speeds[rung.name]
        return self.steps(rung) * speed.step + speed.evaluation + OVERHEAD

    def _lay_out(self) -> None:
        """From the minutes given to a budget for every run. Raises ConfigError where they are too few."""
        assert self.minutes is not None
        learnt = [rung for rung in self.rungs if not self.settings[rung.name].counted]
        runs_of_each = len(self.seeds) / self.jobs
        fixed = len(self.rungs) * OVERHEAD + sum(self.speeds[rung.name].evaluation for rung in learnt)
        spent = time.perf_counter() - self.began
        left = 60 * self.minutes - spent - runs_of_each * fixed
        step = {rung.name: self.speeds[rung.name].step for rung in learnt}
        if self.equal == "time":
            share, least = left / (runs_of_each * max(1, len(learnt))), max(step.values(), default=0.0)
            needed = (runs_of_each * (least * len(learnt) + fixed) + spent) / 60
            self.budget = {"equal": "time", "seconds": round(share, 2)}
            enough = share >= least
        else:
            a_token = sum(step[rung.name] / self.tokens_in_step(rung) for rung in learnt)
            least = max((self.tokens_in_step(rung) for rung in learnt), default=1)
            needed = (runs_of_each * (a_token * least + fixed) + spent) / 60
            tokens = left / (runs_of_each * a_token) if learnt else least
            self.budget = {"equal": "tokens", "tokens": max(1, int(tokens // least * least))}
            enough = tokens >= least
        if not enough:
            rungs, seeds = len(self.rungs), len(self.seeds)
            raise ConfigError(
                f"{self.minutes:g} minutes: too few for one step of every run. {rungs} rung{'s' * (rungs > 1)} with"
                f" {seeds} seed{'s' * (seeds > 1)} need{'s' * (rungs == 1)} {math.ceil(100 * needed) / 100:g} minutes"
                " at least; fewer --rungs or --seeds need less."
            )

    # ----------------------------------------------------------------------------------------------------------
    # Running

    def todo(self) -> list[tuple[Rung, int]]:
        """Runs that are not done, the first seed of every rung before the second of any."""
        done = {(record["rung"], record["seed"]) for record in self.records}
        return [(rung, seed) for seed in self.seeds for rung in self.rungs if (rung.name, seed) not in done]

    def order(self, rung: Rung, seed: int, steps: int = 0, prompt: str = "") -> Order:
        return Order(
            rung.name,
            self.settings[rung.name],
            seed,
            steps,
            rung.learning_rate,
            self.source,
            self.context,
            prompt,
        )

    def run(self, begin: Callable[[str, int], None] = lambda rung, seed: None) -> Iterator[dict[str, Any]]:
        """Make all runs that are not done; each record as it is done and kept. `begin` is called with rung and seed
        when a run begins. Left early (an exception, Ctrl-C), the runs under way are ended, and what is done stays
        done."""
        if not self.todo():
            return
        with workers(min(self.jobs, len(self.todo()))) as send:
            yield from self._run(send, begin)

    def _run(self, send: Send, begin: Callable[[str, int], None]) -> Iterator[dict[str, Any]]:
        wanted = self.rungs if self.budget is None else [rung for rung, _ in self.todo()]
        names = dict.fromkeys(rung.name for rung in wanted if not self.settings[rung.name].counted)
        for name in list(names):
            if self.known[name].as_long_as_parent:
                names[self.known[name].parent or ""] = None
        # Rungs that differ in nothing but the learning rate are as quick: `tuning` has several of each.
        alike = {name: next(one for one in names if self.settings[one] == self.settings[name]) for name in names}
        measured = {name: send(runs.speed, self.order(self.known[name], 0)) for name in dict.fromkeys(alike.values())}
        self.speeds.update({name: measured[one].result() for name, one in alike.items()})
        if self.budget is None:
            self._lay_out()
        with nullcontext() if self.path is None else records.held(self.path, self.anew):
            self.anew = False
            yield from self._make(send, begin)

    def _make(self, send: Send, begin: Callable[[str, int], None]) -> Iterator[dict[str, Any]]:
        """The runs that are not done, as many at once as there are jobs."""
        waiting = self.todo()
        under_way: dict[Future[dict[str, Any]], tuple[Rung, int]] = {}
        while waiting or under_way:
            while waiting and len(under_way) < self.jobs:
                rung, seed = waiting.pop(0)
                begin(rung.name, seed)
                order = self.order(rung, seed, self.steps(rung), self.prompt)
                under_way[send(runs.make, order)] = rung, seed
            finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in finished:
                rung, seed = under_way.pop(future)
                yield self._record(rung, seed, future.result())

    def _record(self, rung: Rung, seed: int, figures: dict[str, Any]) -> dict[str, Any]:
        record = {
            "rung": rung.name,
            "parent": rung.parent,
            "seed": seed,
            **figures,
            "learning_rate": rung.learning_rate,
            "settings": self.decided(rung),
            **self.identity,
            "jobs": self.jobs,
            "machine": machine.describe(),
        }
        if self.path is not None:
            records.append(self.path, record)
        self.records.append(record)
        return record

    # ----------------------------------------------------------------------------------------------------------
    # What came out

    def rows(self) -> list[summary.Row]:
        """One row a rung: mean, spread, gain over the parent, and whether it can be told from it."""
        rows = summary.summarise(tuple(self.known.values()), self.records)
        chosen = {rung.name for rung in self.rungs}
        return [row for row in rows if row.name in chosen]


def first_words(text: data.TextData) -> str:
    """The beginning of the validation part, up to the end of a word: what a sample goes on from by default."""
    start = text.tokenizer.decode([int(token) for token in text.validation[:24]])
    whole, space, _ = start.rpartition(" ")
    return whole if space and whole.strip() else start


# --------------------------------------------------------------------------------------------------------------
# Worker processes

Send = Callable[..., "Future[Any]"]
_stop: Any = None


@contextmanager
def workers(jobs: int) -> Iterator[Send]:
    """`jobs` processes to send runs to; for one, this process itself. Left early, they stop within some steps.
    Raises ResourceError where the system ends one."""
    if jobs == 1:
        yield _here
        return
    context = get_context("spawn")  # a fork of a process with torch's threads can hang
    stop = context.Event()
    pool = ProcessPoolExecutor(jobs, context, _begin_worker, (stop,))

    def send(function: Callable[[Order], Any], order: Order) -> Future[Any]:
        try:
            pickle.dumps(order)
        except Exception as problem:
            raise ConfigError(
                f"rung {order.rung}: cannot be sent to another process ({problem}). Define its model in a module, or"
                " climb with jobs=1."
            ) from None
        with _no_interrupt():  # Ctrl-C is this process's to answer, also while a worker is still starting
            return pool.submit(_work, function, order)

    try:
        yield send
    except BrokenProcessPool:
        raise ResourceError(
            "A process that was training a rung has been ended by the system, for want of memory perhaps. What is done"
            " is kept: go on with the same words, and --jobs 1."
        ) from None
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _here(function: Callable[[Order], Any], order: Order) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(function(order))
    return future


def _begin_worker(stop: Any) -> None:
    global _stop
    _stop = stop
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)  # the climb was killed: nobody waits for this run any more

    threading.Thread(target=follow, daemon=True).start()


def _work(function: Callable[..., Any], order: Order) -> Any:
    return function(order, _stop.is_set) if function is runs.make else function(order)


@contextmanager
def _no_interrupt() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
