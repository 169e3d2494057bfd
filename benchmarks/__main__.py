"""`python -m benchmarks [NAME ...]`: measure, print, write results/."""

from __future__ import annotations

import importlib
import sys

from handmade.errors import HandmadeError, did_you_mean

# From quick to slow.
NAMES = ("startup", "step", "sampling", "translating", "compile", "demo", "time_to_loss", "shakespeare")
# What can be asked for by name.
ASKED = (*NAMES, "threads", "gpu", "ladder_rates", "arithmetic", "translation", "doctor", "doctor_rivals")


def main() -> None:
    wanted = sys.argv[1:] or list(NAMES)
    for name in wanted:
        if name not in ASKED:
            sys.exit(f"no benchmark {name}.{did_you_mean(name, ASKED)} There are {', '.join(ASKED)}.")
    for name in wanted:
        print(f"\n== {name}", flush=True)
        try:
            importlib.import_module(f"benchmarks.{name}").main()
        except HandmadeError as problem:
            sys.exit(f"benchmarks: {problem}")


main()
