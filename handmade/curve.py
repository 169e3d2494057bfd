"""curve.png: how training went, at a glance. Drawn from the metrics.jsonl of a run folder.

draw(Path("runs/mybook"))
"""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from handmade import files
from handmade.errors import RunError

PICTURE, METRICS, CONFIG = "curve.png", "metrics.jsonl", "config.json"
INCHES, DOTS = (9.0, 5.6), 100  # 900 x 560
TRAIN, VALIDATION, BEST, LINE, GREY = "#9db8d6", "#1f4e8c", "#1a7f37", "#b5533c", "#666666"


def draw(folder: str | os.PathLike[str]) -> Path | None:
    """Draw curve.png: training loss, validation loss with its best, and the loss to beat.

    Returns its path, or None where nothing has been measured yet. Raises RunError for metrics that are missing or
    damaged, ResourceError when there is no room for the picture.
    """
    folder = Path(folder)
    lines = read_metrics(folder / METRICS)
    if not any(number(line, "train_loss") is not None or number(line, "val_loss") is not None for line in lines):
        return None
    figure = picture(lines, to_beat(folder / CONFIG), folder.resolve().name)
    path = folder / PICTURE
    with files.whole(path, "the curve") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the folder's name in a script that the font lacks
        figure.savefig(file, format="png")
    return path


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The reports of a run. A last line that was cut short is left out: the run was killed while it was written.
    Raises RunError for a file that is missing, and for a damaged line, which it names."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{path}: missing, so there is nothing to draw.") from None
    whole, _, _ = content.rpartition(b"\n")
    lines = []
    for count, text in enumerate(whole.splitlines(), 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or number(line, "step") is None:
            raise RunError(f"{path}: line {count} is damaged, it is no report.")
        lines.append(line)
    return lines


def number(line: dict[str, Any], key: str) -> float | None:
    """A finite number of a report, or None."""
    value = line.get(key)
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known and value is not None else None


def to_beat(path: Path) -> float | None:
    """The counting line that config.json has, or None: a picture without it is better than none."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return number(config, "counting_line") if isinstance(config, dict) else None


def points(lines: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps and values of the reports that have a value for `key`."""
    found = [(line["step"], value) for line in lines if (value := number(line, key)) is not None]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.array(steps, dtype=float), np.array(values, dtype=float)


def picture(lines: list[dict[str, Any]], beat: float | None, title: str) -> Any:
    """The drawing, as a matplotlib Figure."""
    # Figure and its own canvas: pyplot would keep it in a global list, and may open windows.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=INCHES, dpi=DOTS, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("steps")
    axes.set_ylabel("loss, nats per token")
    axes.set_title(title, loc="left", y=1.06, fontsize=13, fontweight="bold", parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")

    train_steps, train = points(lines, "train_loss")
    steps, validation = points(lines, "val_loss")
    last = max(float(line["step"]) for line in lines)
    axes.set_xlim(0, max(last, 1.0) * 1.015)
    if len(train):
        alone = "." if len(train) == 1 else None
        axes.plot(train_steps, train, color=TRAIN, linewidth=1.1, marker=alone, label=f"training, last {train[-1]:.3f}")
    if len(validation):
        label = f"validation, last {validation[-1]:.3f}"
        axes.plot(steps, validation, color=VALIDATION, linewidth=1.8, marker="o", markersize=3.5, label=label)
    bottom, top = heights(train, validation, beat)
    axes.set_ylim(bottom, top)

    beside: list[tuple[float, str, str]] = []  # height, text, colour: what is written beside the axes
    if beat is not None:
        axes.axhline(beat, color=LINE, linewidth=1.3, linestyle=(0, (6, 4)), label="to beat, by counting")
        beside.append((beat, f"to beat\n{beat:.3f}", LINE))
    if len(validation):
        best = int(validation.argmin())
        ring: dict[str, Any] = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 2}
        label = f"best, at step {steps[best]:,.0f}"
        axes.plot(
            steps[best], validation[best], color=BEST, label=label, linestyle="none", clip_on=False, zorder=5, **ring
        )
        beside.append((validation[best], f"best\n{validation[best]:.3f}", BEST))
    for height, (_, text, colour) in zip(apart(beside, (top - bottom) * 0.09), sorted(beside), strict=True):
        place = (height - bottom) / (top - bottom)
        style: dict[str, Any] = {"color": colour, "fontsize": 10, "fontweight": "bold", "va": "center"}
        axes.text(1.012, place, text, transform=axes.transAxes, **style)
    axes.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none")
    add_clock(axes, lines)
    return figure


def heights(train: np.ndarray, validation: np.ndarray, beat: float | None) -> tuple[float, float]:
    """The lowest and the highest loss to show. The first steps fall from ln(vocabulary) in a line that says little:
    they are cut off where they would press the rest flat."""
    settled = train[len(train) // 20 :]
    shown = np.concatenate([settled, validation, [] if beat is None else [beat]])
    lowest, highest = float(shown.min()), float(shown.max())
    room = max(highest - lowest, 0.02) * 0.06
    return lowest - room, highest + room


def apart(beside: list[tuple[float, str, str]], distance: float) -> list[float]:
    """The heights of at most two labels, lowest first, moved so that they do not overlap."""
    found = sorted(height for height, _, _ in beside)
    if len(found) == 2 and found[1] - found[0] < distance:
        middle = sum(found) / 2
        return [middle - distance / 2, middle + distance / 2]
    return found


def add_clock(axes: Any, lines: list[dict[str, Any]]) -> None:
    """A second axis, on top: the time of training. Its ticks are round times, wherever their steps are."""
    from matplotlib.ticker import MaxNLocator

    steps, seconds = points(lines, "train_seconds")
    if not len(steps):
        return
    unit, length = next((u for u in (("hours", 3600), ("minutes", 60)) if seconds[-1] >= 2 * u[1]), ("seconds", 1))
    times = MaxNLocator(8, steps=[1, 2, 3, 5, 6, 10]).tick_values(0, max(seconds[-1] / length, 1e-9))
    times = times[(times >= seconds[0] / length) & (times <= seconds[-1] / length)]
    clock = axes.twiny()
    clock.spines[["right", "bottom"]].set_visible(False)
    clock.spines["top"].set_color("#bbbbbb")
    clock.set_xlim(axes.get_xlim())
    clock.set_xticks(np.interp(times * length, seconds, steps), [f"{time:g}" for time in times])
    clock.tick_params(colors=GREY, labelsize=9)
    clock.set_xlabel(f"{unit} of training", color=GREY, fontsize=9, loc="right")
