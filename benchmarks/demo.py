"""Figure 2. What `make demo` does: a plain minute of training on Shakespeare, against a 5-gram by counting.

Each run is the whole command, in a folder of its own; the wall-clock time is that of the process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import said, save, spread

SEEDS = (0, 1, 2)


def main() -> None:
    losses, walls, lines = [], [], []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            words = ["train", "shakespeare", "--minutes", "1", "--out", str(run), "--set", f"train.seed={seed}"]
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "handmade", *words], check=True, capture_output=True)
            walls.append(time.perf_counter() - began)
            lines.append(json.loads((run / "config.json").read_text())["counting_line"])
            reports = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            losses.append(min(report["val_loss"] for report in reports if "val_loss" in report))
            print(f"seed {seed}: {losses[-1]:.4f} in {walls[-1]:.1f} s, counting line {lines[-1]:.4f}", flush=True)
    figures = {
        "seeds": list(SEEDS),
        "counting_line": lines[0],
        "val_loss": spread(losses, 5),
        "wall_seconds": spread(walls),
    }
    print(said("validation loss after a minute", figures["val_loss"], "nats"))
    print(f"counting line: {lines[0]:.4f}")
    save("demo", "validation loss of a plain minute of training, and of a 5-gram by counting", figures)
