"""Whether torch.compile pays on this CPU: a training step eager and compiled, in turn, and what compiling costs."""

from __future__ import annotations

import statistics
import time

from benchmarks.record import said, save, shakespeare, spread, trainer_of

ROUNDS, STEPS = 7, 3


def main() -> None:
    figures: dict[str, object] = {}
    for preset in ("shakespeare", "nanogpt-cpu"):
        makers = {choice: trainer_of(preset, shakespeare(), 0, compile=choice) for choice in ("no", "yes")}
        began = time.perf_counter()
        makers["yes"].one_step()
        start = time.perf_counter() - began
        makers["no"].one_step()
        times: dict[str, list[float]] = {choice: [] for choice in makers}
        for _ in range(ROUNDS):
            for choice, trainer in makers.items():
                began = time.perf_counter()
                for _ in range(STEPS):
                    trainer.one_step()
                times[choice].append((time.perf_counter() - began) / STEPS)
        ratio = statistics.median(times["yes"]) / statistics.median(times["no"])
        figures[preset] = {
            "step_seconds": {"eager": spread(times["no"]), "compiled": spread(times["yes"])},
            "compiled_over_eager": ratio,
            "seconds_to_compile": round(start, 1),
        }
        print(said(f"{preset}, eager", spread(times["no"]), "s"))
        print(said(f"{preset}, compiled", spread(times["yes"]), "s"), f"ratio {ratio:.2f}, {start:.0f} s to compile")
    save("compile", "seconds of a training step, eager and compiled", figures)
