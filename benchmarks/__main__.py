"""`python -m benchmarks [NAME ...]`: measure, print, write results/."""

from __future__ import annotations

import importlib
import sys

from handmade.errors import HandmadeError, did_you_mean

# From quick to slow.
NAMES = ("startup", "step", "sampling", "demo", "time_to_loss", "shakespeare")


def main() -> None:
    wanted = sys.argv[1:] or list(NAMES)
    for name in wanted:
        if name not in NAMES:
            sys.exit(f"no benchmark {name}.{did_you_mean(name, NAMES)} There are {', '.join(NAMES)}.")
    for name in wanted:
        print(f"\n== {name}", flush=True)
        try:
            importlib.import_module(f"benchmarks.{name}").main()
        except HandmadeError as problem:
            sys.exit(f"benchmarks: {problem}")


main()
