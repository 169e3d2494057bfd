"""accuracy.png: right answers over the time of training, of problems that were trained on and of those never seen.

draw([Path("runs/addition")], Path("runs/addition/accuracy.png"))

With several runs they are in one picture: a transformer whose test answers still improve when it has all training
problems right, beside a dense net that stays where it is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handmade import curve, files

PICTURE = "accuracy.png"
COLOURS = ("#1f4e8c", "#b5533c", "#1a7f37", "#7a4fa0", "#666666")


def draw(folders: Sequence[str | os.PathLike[str]], path: Path) -> Path | None:
    """Draw the runs of these folders into one picture. Returns its path, or None where no run has counted right
    answers. Raises RunError for metrics that are missing or damaged, ResourceError where there is no room."""
    runs = {name: curve.read_metrics(folder / curve.METRICS) for name, folder in named(folders).items()}
    runs = {name: lines for name, lines in runs.items() if any("exact_match" in line for line in lines)}
    if not runs:
        return None
    figure = picture(runs)
    with files.whole(path, "the picture of right answers") as file:
        figure.savefig(file, format="png")
    return path


def named(folders: Sequence[str | os.PathLike[str]]) -> dict[str, Path]:
    """The folders, each once, by their last names; with as much of the path before it as tells two apart."""
    places = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    found: dict[str, Path] = {}
    for place in places:
        parts = 1
        while sum(other.parts[-parts:] == place.parts[-parts:] for other in places) > 1:
            parts += 1
        found[Path(*place.parts[-parts:]).as_posix()] = place
    return found


def over_time(lines: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of training and a figure in percent, where it was measured."""
    found = [(line["train_seconds"], 100 * value) for line in lines if (value := curve.number(line, key)) is not None]
    seconds, values = zip(*found, strict=True) if found else ((), ())
    return np.array(seconds, dtype=float), np.array(values, dtype=float)


def picture(runs: dict[str, list[dict[str, Any]]]) -> Any:
    """The drawing, as a matplotlib Figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=curve.INCHES, dpi=curve.DOTS, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("whole answers right, %")
    axes.set_ylim(-2, 102)
    for colour, (name, lines) in zip(COLOURS * len(runs), runs.items(), strict=False):
        for key, what, style in (("exact_match", "never seen", "-"), ("train_exact_match", "trained on", "--")):
            seconds, values = over_time(lines, key)
            label = f"{name}, {what}, last {values[-1]:.2f} %"
            axes.plot(seconds, values, style, color=colour, linewidth=1.6, marker="o", markersize=3, label=label)
    # Below the axes: a model that only learns by heart has its line at the bottom, another at the top.
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.13), ncols=2, frameon=False)
    axes.set_title("right answers", loc="left", fontsize=13, fontweight="bold")
    return figure
