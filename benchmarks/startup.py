"""Figure 6. Seconds until `handmade --help` has answered, as a whole process, against `python -c pass`."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.record import said, save, spread

RUNS = 21


def seconds(*words: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    commands = {"handmade --help": ("-m", "handmade", "--help"), "python -c pass": ("-c", "pass")}
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(RUNS):
        for name, words in commands.items():
            found[name].append(seconds(*words))
    figures = {name: spread(values[1:]) for name, values in found.items()}
    for name, values in figures.items():
        print(said(name, values, "s"))
    save("startup", "seconds of a whole process", {"seconds": figures})
