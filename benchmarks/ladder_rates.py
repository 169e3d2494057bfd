"""The learning rates of the ladder's rungs, by `handmade.ladder.tuning`: every rung on a grid, with one seed that is
not reported. Prints the best of each. Some 45 minutes on two cores; a killed call goes on.
"""

from __future__ import annotations

from benchmarks.record import RESULTS
from handmade.ladder import RUNGS, SIDE_RUNGS, find, tuning

FOLDER = RESULTS / "ladder_rates"


def main() -> None:
    def watch(record: dict[str, object]) -> None:
        print(f"{record['rung']:30} {record['val_loss']:.4f}  {record['train_seconds']:.1f} s", flush=True)

    tried = tuning.tune("shakespeare", [*RUNGS, *SIDE_RUNGS], FOLDER, watch)
    for name, losses in tried.items():
        now, best = find(name).learning_rate, tuning.best_rate(losses)
        grid = "  ".join(f"{rate:g}: {losses[rate]:.4f}" for rate in sorted(losses))
        print(f"{name:20} {best:<8g} {'' if now == best else f'(has {now:g}) '}{grid}")
