"""On a GPU: tokens a second of `nanogpt-gpu` and `gpt2`, compiled, and how much of the chip's arithmetic they use."""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.record import said, save, shakespeare, spread, trainer_of
from handmade import machine
from handmade.errors import ResourceError
from handmade.models import parameter_count
from handmade.planning import arithmetic_speed

STEPS, ROUNDS = 10, 7


def main() -> None:
    if not torch.cuda.is_available():
        raise ResourceError("the benchmark gpu needs a GPU, and there is none on this machine.")
    device = machine.find_device("cuda")
    peak = arithmetic_speed(device, size=8192)
    figures: dict[str, object] = {"matrix_product_flops": peak}
    for preset in ("nanogpt-gpu", "gpt2"):
        trainer = trainer_of(preset, shakespeare(), 0, compile="yes", device="cuda", tokens_per_step=None)
        trainer.rehearse(5)
        rates = []
        for _ in range(ROUNDS):
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(STEPS):
                trainer.one_step()
            torch.cuda.synchronize()
            rates.append(STEPS * trainer.tokens_in_step() / (time.perf_counter() - began))
        config = trainer.model.config
        # Kaplan et al. 2020, table 1: 6 operations a parameter, and 12 * layers * width * context for attention.
        work = 6 * parameter_count(trainer.model) + 12 * config.layers * config.width * config.context
        figures[preset] = {"tokens_per_second": spread(rates), "share_of_peak": statistics.median(rates) * work / peak}
        print(said(preset, spread(rates), "tokens/s"), f"{figures[preset]['share_of_peak']:.0%} of a matrix product")  # type: ignore[index]
    save("gpu", "tokens a second of training steps on a GPU", figures)
