"""ladder.png: what each idea is worth, at a glance. A line a rung, in the order climbed.

    draw(rows, "ladder.png", about, line="n-gram")

A rung's bar begins at its parent's loss and ends at its own, so that it is the gain; black is the spread of the seeds.
Side rungs make a picture of their own: give `draw` their rows alone.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from handmade import files
from handmade.curve import BEST, GREY, LINE, TRAIN
from handmade.errors import DataError, ResourceError
from handmade.ladder.summary import BETTER, ONE_SEED, OVERLAP, WORSE, About, Row

WIDTH, DOTS = 9.0, 200  # inches, dots an inch: shown 900 wide, sharp on a screen of twice the dots
LOSER, UNCLEAR, INK, BAND = "#c4287c", "#8a8a8a", "#222222", "#f5f6f8"
COLOURS = {BETTER: BEST, WORSE: LOSER, OVERLAP: UNCLEAR, ONE_SEED: TRAIN}
MARKS = {BETTER: "▲", WORSE: "▼", OVERLAP: "≈", ONE_SEED: ""}
SIGNS = {BETTER: "better than its parent", WORSE: "worse", OVERLAP: OVERLAP, ONE_SEED: ONE_SEED}
ROW, HEAD, FOOT = 0.225, 0.98, 0.86  # inches
EDGE, NUMBER, LOSS, GAIN = 0.12, 0.24, 0.55, 0.78  # inches: the margin, and the widths of the columns
DIVERGED = 0.8  # instead of LOSS, where that word stands in it
UNIT = "validation loss, nats per token"
LETTERS = 40  # of a title, and of the name of a text
FENCE = 8  # rungs from which on a few that are far off get an axis of their own
FAR = 0.75  # of the distance of the quartiles: so far above the upper one begins what is far off


def draw(rows: Sequence[Row], path: str | os.PathLike[str], about: About, line: str | None = None) -> Path:
    """Draw the rungs that have a result: the climbed ones, or the side rungs where `rows` has no others.

    line: the name of the rung whose loss is drawn across all, as the line to beat.
    Returns the path. Raises DataError where no rung has a result, ResourceError where matplotlib is missing or the
    picture cannot be written.
    """
    path = Path(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a title in a script that the font lacks
        figure = picture(rows, about, line)
        with files.whole(path, "the picture of the ladder") as file:
            figure.savefig(file, format="png")
    return path


def picture(rows: Sequence[Row], about: About, line: str | None = None) -> Any:
    """The drawing, as a matplotlib Figure. Raises as `draw` does."""
    try:  # Figure and its own canvas: pyplot would keep it in a global list, and may open windows.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ResourceError(
            "The picture of the ladder needs the package matplotlib. Install it: pip install matplotlib"
        ) from None

    climbed = [row for row in rows if not row.side]
    known = climbed or list(rows)
    shown = [row for row in known if row.mean is not None]
    if not shown:
        raise DataError("No rung has a result yet, so there is nothing to draw.")
    beat = next((row for row in rows if row.name == line and row.mean is not None), None)
    height = HEAD + ROW * len(shown) + FOOT
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS)
    canvas = FigureCanvasAgg(figure)

    gains = any(row.gain is not None and math.isfinite(row.gain) for row in shown)
    left = (EDGE + NUMBER + 0.1) / WIDTH + _widest(figure, canvas, [shortened(row.title) for row in shown]) + 0.014
    right = 1 - (EDGE + (LOSS if _finite(shown) == shown else DIVERGED) + GAIN * gains) / WIDTH
    bottom, tall = FOOT / height, ROW * len(shown) / height
    main, far = spans(shown, beat)
    if far is None:
        panels = [(main, (left, bottom, right - left, tall))]
    else:
        width, gap = (right - left) * 0.17, 0.012
        beside = (left, bottom, right - left - width - gap, tall)
        panels = [(main, beside), (far, (right - width, bottom, width, tall))]
    for number, (span, box) in enumerate(panels):
        axes = figure.add_axes(box)
        _dress(axes, span, len(shown), first=number == 0, last=number == len(panels) - 1)
        for place, row in enumerate(shown):
            _draw_row(axes, place, row, span)
        if beat is not None and beat.mean is not None and span[0] <= beat.mean <= span[1]:
            _draw_line(axes, beat.title, beat.mean, span)
    _write_columns(figure, figure.axes[0], shown, gains)
    _write_around(figure, about, shown, len(known), side=not climbed)
    return figure


# ---------------------------------------------------------------------------------------------------------------
# Axes


def spans(shown: Sequence[Row], beat: Row | None = None) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """The losses that the main axes show, and those of a second axes, or None where one is enough.

    A guess at random is so far from the rest that it would press it flat: where there are enough rungs, what is far
    above the upper quartile is shown apart.
    """
    finite = _finite(shown)
    if not finite:
        return (0.0, 1.0), None
    means = sorted(row.mean for row in finite if row.mean is not None)
    fence = math.inf
    if len(means) >= FENCE:
        quarter, three = means[len(means) // 4], means[(3 * len(means)) // 4]
        fence = three + FAR * (three - quarter)
    near = [row for row in finite if row.mean is not None and row.mean <= fence]
    far = [row for row in finite if row not in near]
    extra = [beat.mean] if beat is not None and beat.mean is not None and beat.mean <= fence else []
    # A parent that is not drawn would leave its children's bars without a beginning.
    drawn = {row.name for row in shown}
    extra += [row.parent_mean for row in near if row.parent_mean is not None and row.parent not in drawn]
    main = _span([*_ends(near), *(value for value in extra if math.isfinite(value) and value <= fence)])
    return main, _span(_ends(far), 0.16) if far else None


def _finite(rows: Sequence[Row]) -> list[Row]:
    """Those that did not diverge."""
    return [row for row in rows if row.mean is not None and math.isfinite(row.mean)]


def _ends(rows: Sequence[Row]) -> list[float]:
    return [value for row in rows for value in (row.low, row.high) if value is not None and math.isfinite(value)]


def _span(values: Sequence[float], margin: float = 0.035) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max(high - low, 0.02) * margin
    return low - room, high + room


def _dress(axes: Any, span: tuple[float, float], rows: int, first: bool, last: bool) -> None:
    """Limits, ticks, bands behind every other rung, and the sign of a broken axis between two."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(*span)
    axes.set_ylim(rows - 0.5, -0.5)  # the first rung on top: it is read like a table
    axes.set_yticks([])
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#e3e5e8", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(8 if first else 2, steps=[1, 2, 2.5, 5, 10]))
    axes.tick_params(axis="x", colors=GREY, labelsize=9, length=0, pad=5)
    for row in range(0, rows, 2):
        axes.axhspan(row - 0.5, row + 0.5, color=BAND, zorder=0, linewidth=0)
    if first and last:
        return
    slanted: dict[str, Any] = {"marker": [(-0.5, -1), (0.5, 1)], "markersize": 7, "color": GREY, "clip_on": False}
    end = 1 if first else 0
    axes.plot(end, 0, transform=axes.transAxes, linestyle="none", markeredgewidth=1.2, **slanted)


def _draw_row(axes: Any, place: int, row: Row, span: tuple[float, float]) -> None:
    """The bar from the parent's loss to the rung's own, the spread, the seeds, the mean."""
    mean = row.mean
    assert mean is not None
    far_off = span[1] + (span[1] - span[0])  # where a run that diverged ends: beyond the axes
    end = mean if math.isfinite(mean) else far_off
    if row.parent_mean is not None and math.isfinite(row.parent_mean):
        colour = COLOURS[row.verdict]
        axes.plot(
            [row.parent_mean, end], [place, place], color=colour, alpha=0.38, linewidth=7, solid_capstyle="butt",
            zorder=2, label=f"gain {row.name}",
        )  # fmt: skip
        axes.plot(row.parent_mean, place, "|", color=colour, markersize=8.5, markeredgewidth=1.6, zorder=3)
    if not math.isfinite(mean):
        return
    if len(row.losses) > 1 and row.low is not None and row.high is not None and math.isfinite(row.high):
        axes.errorbar(
            mean, place, xerr=[[mean - row.low], [row.high - mean]], color=INK, linewidth=1.4, capsize=3,
            capthick=1.2, zorder=4, label=f"spread {row.name}",
        )  # fmt: skip
    seeds = [loss for loss in row.losses if math.isfinite(loss)]
    axes.plot(
        seeds, [place] * len(seeds), ".", color=INK, markersize=3.5, alpha=0.55, zorder=4, label=f"seeds {row.name}"
    )
    axes.plot(mean, place, "o", color=INK, markersize=4.2, zorder=5, label=f"mean {row.name}")


def _draw_line(axes: Any, title: str, loss: float, span: tuple[float, float]) -> None:
    """The line to beat, through all rungs, with its name above it."""
    axes.axvline(loss, color=LINE, linewidth=1.3, linestyle=(0, (6, 4)), zorder=1, label="to beat")
    axes.annotate(
        f"{shortened(title)} {loss:.3f}", (loss, 1), (0, 4), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="left" if loss < sum(span) / 2 else "right", va="bottom",
        color=LINE, fontsize=9, fontweight="bold", parse_math=False,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------
# Words


def _widest(figure: Any, canvas: Any, texts: Sequence[str]) -> float:
    """The width of the widest text, as a part of the figure's."""
    renderer, widest = canvas.get_renderer(), 0.0
    for text in texts:
        artist = figure.text(0, 0, text, fontsize=10, parse_math=False)
        widest = max(widest, artist.get_window_extent(renderer).width)
        artist.remove()
    return widest / (WIDTH * DOTS)


def _write_columns(figure: Any, axes: Any, shown: Sequence[Row], gains: bool) -> None:
    """The titles on the left; loss and gain on the right, where they can be read as figures."""
    inch = 1 / WIDTH
    loss_x, gain_x = 1 - (EDGE + GAIN * gains) * inch, 1 - EDGE * inch
    for place, row in enumerate(shown):
        y = _height(axes, place) - 0.008 / figure.get_figheight()
        style: dict[str, Any] = {"y": y, "fontsize": 10, "va": "center", "parse_math": False}
        figure.text((EDGE + NUMBER) * inch, s=row.label, color=GREY, ha="right", **{**style, "fontsize": 9})
        figure.text((EDGE + NUMBER + 0.1) * inch, s=shortened(row.title), color=INK, **style)
        assert row.mean is not None
        loss = f"{row.mean:.3f}" if math.isfinite(row.mean) else "diverged"
        figure.text(loss_x, s=loss, color=INK, ha="right", **style)
        if row.gain is not None and math.isfinite(row.gain):
            colour = GREY if row.verdict == ONE_SEED else COLOURS[row.verdict]
            figure.text(gain_x, s=signed(row.gain), color=colour, ha="right", **style)
            x = gain_x - 0.58 * inch
            figure.text(x, s=MARKS[row.verdict], color=colour, ha="center", **{**style, "fontsize": 8})
    top = _height(axes, -0.5) + 0.05 / figure.get_figheight()
    for x, text in ((loss_x, "loss"), (gain_x, "gain" if gains else "")):
        figure.text(x, top, text, color=GREY, fontsize=9, ha="right", va="bottom")


def shortened(text: str) -> str:
    """What there is room for."""
    return text if len(text) <= LETTERS else text[: LETTERS - 1].rstrip() + "…"


def signed(value: float) -> str:
    """With a sign always, and a minus as wide as the plus."""
    return f"{value:+.3f}".replace("-", "−")


def _height(axes: Any, place: float) -> float:
    """Where the row `place` stands in the figure."""
    box = axes.get_position()
    low, high = axes.get_ylim()
    return box.y0 + box.height * (place - low) / (high - low)


def _write_around(figure: Any, about: About, shown: Sequence[Row], known: int, side: bool) -> None:
    """Title, where the figures come from, and what the signs mean."""
    from matplotlib.lines import Line2D

    height, left = figure.get_figheight(), EDGE / WIDTH
    title = "What else one may ask" if side else "What each idea is worth"
    figure.text(left, 1 - 0.13 / height, title, fontsize=13, fontweight="bold", va="top", color=INK)
    climbed = "" if len(shown) == known else f"{len(shown)} of {known} rungs so far"
    said = [shortened(about.data), about.budget, about.seeds_said.partition(" (")[0], climbed]
    line = "  ·  ".join(part for part in said if part)
    figure.text(left, 1 - 0.42 / height, line, fontsize=9.5, va="top", color=GREY, parse_math=False)
    boxes = [axes.get_position() for axes in figure.axes]
    middle = (boxes[0].x0 + boxes[-1].x1) / 2
    below = (FOOT - 0.30) / height
    there = {row.verdict for row in shown if row.gain is not None}
    text = UNIT + "; a bar runs from the parent's to the rung's own" * bool(there)
    figure.text(middle, below, text, fontsize=9.5, va="top", ha="center", color=GREY)
    bar: dict[str, Any] = {"linewidth": 7, "alpha": 0.45}
    signs = [Line2D([], [], color=COLOURS[found], label=SIGNS[found], **bar) for found in SIGNS if found in there]
    several = any(len(row.seeds) > 1 for row in shown)
    point: dict[str, Any] = {"color": INK, "marker": "o", "markersize": 4.2, "linewidth": 1.4 if several else 0}
    signs.append(Line2D([], [], label="mean, and range of the seeds" if several else "loss of the one seed", **point))
    figure.legend(
        handles=signs, loc="lower left", bbox_to_anchor=(0.005, 0.0), ncols=len(signs), frameon=False, fontsize=9.5,
        handlelength=1.6, columnspacing=1.6,
    )  # fmt: skip
