"""Copy the figures from results/ into README.md, between its markers: `python -m benchmarks.readme`.

A test proves that README.md says what results/ says.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

README = Path(__file__).parent.parent / "README.md"


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def between(figures: dict[str, Any], digits: int) -> str:
    """Median, and the range of the runs."""
    median, low, high = (f"{figures[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low} to {high})"


def figures() -> str:
    """The table of figures."""
    step, sampling, demo = read("step"), read("sampling"), read("demo")
    race, best, start = read("time_to_loss"), read("shakespeare"), read("startup")
    cached = sampling["shakespeare"]
    wide = sampling["6 layers x 384"]
    wide_rate = wide["tokens_per_second"]["cached"]["median"]
    rows = [
        (
            f"Training time to {race['target']:.3f} on the whole validation split: `nanogpt-cpu` against `speedrun`",
            f"**{race['ratio_of_medians']:.1f} times** faster: {between(race['seconds']['nanogpt-cpu'], 1)} s"
            f" against {between(race['seconds']['speedrun'], 1)} s",
            "time_to_loss",
        ),
        (
            "`make demo`: validation loss after one minute, all told; a 5-gram by counting has "
            f"{demo['counting_line']:.3f}",
            f"**{between(demo['val_loss'], 3)}** in {between(demo['wall_seconds'], 0)} s of wall-clock",
            "demo",
        ),
        (
            f"Preset `shakespeare`: best validation loss; nanoGPT reports {best['target']} on an A100",
            f"**{between(best['best_loss'], 4)}** in {between(best['train_seconds'], 0)} s of training",
            "shakespeare",
        ),
        (
            "A training step of the `nanogpt-cpu` shape, against the same model of `torch.nn` modules",
            f"**{between(step['ratio_by_round'], 2)}** of its time",
            "step",
        ),
        (
            "Sampling from the `shakespeare` shape, one stream: with the cache against without it, at full context",
            f"**{cached['cached_over_uncached_at_full_context']:.1f} times** the rate;"
            f" {cached['tokens_per_second']['cached']['median']:.0f} tokens/s",
            "sampling",
        ),
        (
            "The same against Hugging Face's `generate`; and at 6 layers of width 384",
            f"**{cached['cached_over_hugging_face']:.1f}** and"
            f" **{wide['cached_over_hugging_face']:.1f} times** the rate ({wide_rate:.0f} tokens/s)",
            "sampling",
        ),
        (
            "Rate at token 1,000 against token 300",
            f"{cached['at_1000_over_at_300']:.2f}",
            "sampling",
        ),
        ("`handmade --help`", f"{between(start['seconds']['handmade --help'], 2)} s", "startup"),
    ]
    lines = ["| what | measured | file |", "| --- | --- | --- |"]
    lines += [f"| {what} | {value} | [{name}](results/{name}.json) |" for what, value, name in rows]
    machine = best["machine"]
    seeds = ", ".join(map(str, race["seeds"]))
    lines += [
        "",
        f"Median and range; seeds {seeds} where something is trained. {machine['processor']},"
        f" {best['threads']} threads, torch {machine['torch']}, {best['date']}. Again: `python -m benchmarks`,"
        " and `python -m benchmarks NAME` for one line.",
    ]
    return "\n".join(lines)


def sample() -> str:
    """What the best model writes."""
    best = read("shakespeare")
    loss = best["runs"]["0"]["best"]
    text = best["sample"]["text"].rstrip()
    about = f"Preset `shakespeare`, validation loss {loss:.3f}, temperature {best['sample']['temperature']}:"
    return f"{about}\n\n```\n{text}\n```"


def filled(text: str) -> str:
    """`text` with each marked block made anew."""
    for name, make in (("figures", figures), ("sample", sample)):
        pattern = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda found, make=make: f"{found[1]}{make()}\n{found[2]}", text)
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
