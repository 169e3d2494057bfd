"""Tokens a second of one stream, with one thread and with all, on a machine that is free and beside a process that is
busy: why a step of `generation.stream` that is small takes one (`generation.threads_for`).

The shapes are the preset `shakespeare`'s and six layers of width 384, with random weights.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.record import said, save, spread
from handmade import generation
from handmade.models import GPT, GPTConfig
from handmade.presets import find

ROUNDS, TOKENS, VOCABULARY = 5, 60, 65


def spin() -> None:
    """Keep a core busy until ended."""
    while True:
        pass


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many other processes that do nothing but count."""
    others = [multiprocessing.get_context("spawn").Process(target=spin, daemon=True) for _ in range(processes)]
    for other in others:
        other.start()
    time.sleep(2)  # they load Python first
    try:
        yield
    finally:
        for other in others:
            other.terminate()
            other.join()


def rate(model: GPT, shared_from: int) -> float:
    """Tokens a second behind a prompt of 100, which is not counted."""
    before, generation.SHARED_FROM = generation.SHARED_FROM, shared_from
    try:
        times = [time.perf_counter() for _ in generation.stream(model, [[1] * 100], TOKENS, seed=0)]
    finally:
        generation.SHARED_FROM = before
    return (TOKENS - 1) / (times[-1] - times[0])


def main() -> None:
    torch.manual_seed(0)
    figures = {}
    for name, preset in {"shakespeare": "shakespeare", "6 layers x 384": "nanogpt-gpu"}.items():
        model = GPT(GPTConfig(vocab_size=VOCABULARY, **find(preset).model)).eval()
        for processes in (0, 1):
            with busy(processes):
                found: dict[str, list[float]] = {"one thread": [], "all threads": []}
                for _ in range(ROUNDS):
                    found["one thread"].append(rate(model, 2**62))
                    found["all threads"].append(rate(model, 0))
            for threads, values in found.items():
                key = f"{name}, {threads}, {processes} busy"
                figures[key] = spread(values)
                print(said(key, figures[key], "tokens/s"), flush=True)
    save("threads", "tokens a second, one stream, beside so many busy processes", {"tokens_per_second": figures})
