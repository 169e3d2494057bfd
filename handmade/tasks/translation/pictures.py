"""Pictures of a model that translates: where it looks while it writes, how it does by length, models side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from handmade.tasks.translation.fonts import emboldened, lettered
from handmade.tasks.translation.reports import ladder_rows, length_label, plain

DOTS = 150  # an inch
INK, GREY, BAND, LIGHT, DARK = "#222222", "#666666", "#f5f6f8", "#9db8d6", "#1f4e8c"
COLOURS = ("#6f94c0", "#1f4e8c", "#b5533c", "#1a7f37", "#8a5fb0", "#c9971c")
END = "END"  # how the end of a sentence is shown, in grey

# Inches
CELL, SMALL = 0.27, 0.17  # of a token; it shrinks from ROOMY to SMALL where there are many
ROOMY, MANY = 30, 60  # tokens
FLAT = 0.62  # labels that wide still stand upright, and the cells are widened for them while there is room
PAD, EDGE, BETWEEN = 0.06, 0.18, 0.35
WIDTH = 12.0  # maps stand side by side up to here
BAR, BAR_ROOM = 0.13, 0.72  # the colour bar: width, and with its numbers


class Alignment(NamedTuple):
    """A sentence and where the model looked while it translated it."""

    source: Sequence[str | None]
    """What each source token reads; None for the end of the sentence."""
    target: Sequence[str | None]
    """What each written token reads; None for the end."""
    weights: Any
    """(target tokens, source tokens): how much of each line, 0 to 1, is looked at while one token is written."""
    title: str = ""


def cross_attention(sentences: Sequence[Alignment], title: str = "") -> Any:
    """Maps of what is looked at (along the top) while each token is written (down the side), as a matplotlib Figure.

    Maps stand side by side while there is room, all in one scale of colour. Raises ValueError where weights and tokens
    do not fit, ResourceError where a font for the characters is missing.
    """
    maps = [np.asarray(one.weights, dtype=float) for one in sentences]
    for one, weights in zip(sentences, maps, strict=True):
        if weights.shape != (len(one.target), len(one.source)) or not weights.size:
            raise ValueError(
                f"weights {weights.shape} for {len(one.target)} target and {len(one.source)} source tokens"
            )
    if not maps:
        raise ValueError("no sentences were given")
    highest = min(1.0, math.ceil(10 * max(weights.max() for weights in maps) - 1e-9) / 10) or 1.0

    figure, renderer = _figure()
    blocks = [_Block(figure, renderer, one, weights) for one, weights in zip(sentences, maps, strict=True)]
    rows = _flowed(blocks)
    heading = 0.38 if title else 0.0
    wide = max(sum(block.wide for block in row) + BETWEEN * (len(row) - 1) for row in rows)
    wide = max(wide + 2 * EDGE + BAR_ROOM, 2 * EDGE + _wide(figure, renderer, title, 12, bold=True), 3.2)
    tall = heading + 2 * EDGE + sum(map(_tall, rows)) + BETWEEN * (len(rows) - 1)
    figure.set_size_inches(wide, tall)

    top = tall - EDGE - heading
    for row in rows:
        left, upper = EDGE, top - max(block.head for block in row)  # the maps of a row begin at one height
        for block in row:
            block.draw(left, upper, highest)
            left += block.wide + BETWEEN
        top -= _tall(row) + BETWEEN
    _write(figure, title, EDGE, tall - EDGE, size=12, va="top", bold=True)
    _scale(figure, highest, rows, tall - EDGE - heading)
    return figure


class _Block:
    """A map with its labels and its title; knows how much room it takes before it is drawn. In inches."""

    def __init__(self, figure: Any, renderer: Any, sentence: Alignment, weights: np.ndarray) -> None:
        self.figure, self.weights, self.title = figure, weights, plain(sentence.title)
        tokens = max(weights.shape)
        part = min(1.0, max(0.0, (tokens - ROOMY) / (MANY - ROOMY)))
        self.cell = CELL + (SMALL - CELL) * part
        self.size = 9.0 - 2.8 * part  # points
        self.read, self.written = _labels(sentence.source), _labels(sentence.target)
        across = [_wide(figure, renderer, text, self.size, font) for text, font, _ in self.read]
        # The end of the sentence may be wider than its column: there is nothing beside it.
        within = across[:-1] if sentence.source[-1] is None and len(across) > 1 else across
        self.end = across[-1]
        needed = max(within) + 2 * PAD
        self.upright = needed <= FLAT and (needed <= 1.25 * self.cell or needed * len(across) <= WIDTH)
        self.column = max(self.cell, needed) if self.upright else self.cell
        line = self.size * 1.35 / 72
        # A slanted label rises as it goes right: from the middle of its column by its width at 45 degrees.
        slanted = [width * math.sqrt(0.5) for width in across]
        above = line if self.upright else max(slanted) + line
        self.map_wide, self.map_tall = self.column * weights.shape[1], self.cell * weights.shape[0]
        reach = self.map_wide + max(0.0, across[-1] - self.column)
        if not self.upright:
            middles = [self.column * (place + 0.5) for place in range(len(across))]
            reach = max(reach, *(middle + width + line / 2 for middle, width in zip(middles, slanted, strict=True)))
        self.beside = max(_wide(figure, renderer, text, self.size, font) for text, font, _ in self.written) + PAD
        self.wide = max(self.beside + reach, _wide(figure, renderer, self.title, 10))
        self.labelled = above + PAD  # the labels above the map; with its title:
        self.head = self.labelled + (0.3 if self.title else 0.0)

    def draw(self, left: float, upper: float, highest: float) -> None:
        """With the left end of its labels and the upper edge of its map there, in inches from the lower left."""
        wide, tall = self.figure.get_size_inches()
        x, y = left + self.beside, upper - self.map_tall
        axes = self.figure.add_axes((x / wide, y / tall, self.map_wide / wide, self.map_tall / tall))
        axes.imshow(self.weights, cmap="Blues", vmin=0, vmax=highest, aspect="auto", interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("#bbbbbb")
        # White lines between the tokens, so that an eye can follow a row.
        rows, columns = self.weights.shape
        axes.hlines(np.arange(1, rows) - 0.5, -0.5, columns - 0.5, color="white", linewidth=0.6)
        axes.vlines(np.arange(1, columns) - 0.5, -0.5, rows - 0.5, color="white", linewidth=0.6)
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
        for place, (text, font, colour) in enumerate(self.read):
            style: dict[str, Any] = {"ha": "center", "va": "bottom", "color": colour}
            middle = x + self.column * (place + 0.5)
            if not self.upright:
                style |= {"ha": "left", "rotation": 45, "rotation_mode": "anchor"}
            elif place and place == columns - 1 and self.read[-1][2] == GREY:
                middle = max(middle, middle - self.column / 2 + self.end / 2)
            _write(self.figure, text, middle, upper + PAD, self.size, font, **style)
        for place, (text, font, colour) in enumerate(self.written):
            middle = upper - self.cell * (place + 0.5)
            style = {"ha": "right", "va": "center_baseline", "color": colour}
            _write(self.figure, text, x - PAD, middle, self.size, font, **style)
        _write(self.figure, self.title, left, upper + self.head, 10, va="top")


def _labels(tokens: Sequence[str | None]) -> list[tuple[str, Any, str]]:
    """Text, font and colour of each token."""
    texts = [END if token is None else shown(token) for token in tokens]
    found = zip(tokens, lettered(texts), strict=True)
    return [(text, font, GREY if token is None else INK) for token, (text, font) in found]


def shown(token: str) -> str:
    """A token for a label: without the space that it begins with, and one of spaces alone as a sign."""
    return token.strip(" ") or "␣"


def _tall(row: Sequence[_Block]) -> float:
    """Inches of a row of maps."""
    return max(block.head for block in row) + max(block.map_tall for block in row)


def _flowed(blocks: Sequence[_Block]) -> list[list[_Block]]:
    """From left to right, then down."""
    rows: list[list[_Block]] = [[]]
    for block in blocks:
        if rows[-1] and sum(b.wide + BETWEEN for b in rows[-1]) + block.wide > WIDTH:
            rows.append([])
        rows[-1].append(block)
    return rows


def _scale(figure: Any, highest: float, rows: Sequence[Sequence[_Block]], top: float) -> None:
    """The colour bar, on the right, beside the first row of maps."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    wide, tall = figure.get_size_inches()
    first = rows[0][-1]
    height = min(max(first.map_tall, 1.0), 3.0, top - EDGE)
    upper = max(top - max(block.head for block in rows[0]), height + EDGE)
    axes = figure.add_axes(((wide - EDGE - BAR_ROOM + 0.25) / wide, (upper - height) / tall, BAR / wide, height / tall))
    bar = figure.colorbar(ScalarMappable(Normalize(0, highest), "Blues"), cax=axes, ticks=[0, highest / 2, highest])
    bar.outline.set_visible(False)
    bar.ax.set_yticklabels([f"{part:.0%}".replace("%", " %") for part in (0, highest / 2, highest)])
    bar.ax.tick_params(length=0, labelsize=8, colors=GREY)


# --------------------------------------------------------------------------------------------------------------
# Scores by length


def scores_by_length(series: Mapping[str, Sequence[Mapping[str, Any]]], figure: str = "bleu", title: str = "") -> Any:
    """Lines of a score over the length of the reference, as a matplotlib Figure.

    series: the name of a model, or of a way to decode -> rows of `reports.by_length`, all of the same references.
    figure: `bleu` or `chrf`. Raises ValueError for rows of different lengths.
    """
    all_rows = list(series.values())
    lengths = [[(row["least"], row["most"]) for row in rows] for rows in all_rows]
    if not lengths or not lengths[0] or any(one != lengths[0] for one in lengths):
        raise ValueError("scores by length: every series needs the same groups of lengths, one at least")
    rows = all_rows[0]
    drawn, renderer = _figure()
    wide, tall = 8.0, 4.6
    drawn.set_size_inches(wide, tall)
    names = lettered([plain(name) for name in series])
    beside = max(_wide(drawn, renderer, name, 10, font) for name, font in names) + 0.3
    axes = drawn.add_axes((0.7 / wide, 0.85 / tall, (wide - 0.7 - beside) / wide, (tall - 1.45) / tall))
    _dress(axes)
    places = range(len(rows))
    for number, found in enumerate(all_rows):
        colour = COLOURS[number % len(COLOURS)]
        style: dict[str, Any] = {"marker": "o", "markersize": 5, "linewidth": 1.8}
        if number >= len(COLOURS):
            style["linestyle"] = (0, (4, 2))
        axes.plot(places, [row[figure] for row in found], color=colour, label=names[number][0], **style)
    axes.set_xlim(-0.3, len(rows) - 0.7)
    axes.set_ylim(0, 1.08 * max(row[figure] for found in all_rows for row in found) or 1)
    axes.set_xticks(list(places), [f"{length_label(row)}\n{row['sentences']:,}" for row in rows])
    axes.set_xlabel(f"{rows[0]['unit']} of the reference; below, how many sentences", color=GREY, fontsize=9.5)
    axes.set_ylabel({"bleu": "BLEU", "chrf": "chrF"}[figure], color=GREY, fontsize=9.5)
    bottom, top = axes.get_ylim()
    scale = axes.get_position().height * tall / (top - bottom)  # inches
    heights = apart([(found[-1][figure] - bottom) * scale for found in all_rows], 0.19)
    for number, ((name, font), height) in enumerate(zip(names, heights, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        _write(drawn, name, wide - beside + 0.1, 0.85 + height, 10, font, va="center", color=colour)
    title = title or f"{axes.get_ylabel()} by length"
    _write(drawn, title, 0.7, tall - 0.16, 13, va="top", bold=True)
    return drawn


def apart(heights: Sequence[float], distance: float) -> list[float]:
    """Moved so that no two are nearer than that, and none below 0; each as near as that allows to where it was.

    >>> apart([5, 1, 5], 2)
    [4.0, 1.0, 6.0]
    """
    groups: list[list[int]] = []  # places, lowest first, that stand at the least distance from each other

    def ends(group: list[int]) -> tuple[float, float]:
        half = distance * (len(group) - 1) / 2
        middle = max(statistics.fmean(heights[place] for place in group), half)
        return middle - half, middle + half

    for place in sorted(range(len(heights)), key=lambda one: (heights[one], one)):
        groups.append([place])
        while len(groups) > 1 and ends(groups[-1])[0] - ends(groups[-2])[1] < distance:
            last = groups.pop()
            groups[-1] += last
    moved = [0.0] * len(heights)
    for group in groups:
        for step, place in enumerate(group):
            moved[place] = ends(group)[0] + distance * step
    return moved


# --------------------------------------------------------------------------------------------------------------
# Models side by side

ROW, HEAD, FOOT = 0.44, 0.95, 0.86  # inches
DECODINGS = {"bleu_greedy": ("greedy", LIGHT), "bleu_beam": ("beam search", DARK)}


def ladder_picture(
    records: Iterable[Mapping[str, Any]], title: str = "What attention is worth", about: str = ""
) -> Any:
    """BLEU of each model, greedy and with beam search, as a matplotlib Figure: bars for the median of the seeds, a
    line from the lowest to the highest, a dot for each. Records and their order are those of `reports.ladder_rows`.

    about: a line below the title, such as data and time. Raises ValueError where no record has a BLEU.
    """
    rows = [row for row in ladder_rows(records) if any(row[name] for name in DECODINGS)]
    if not rows:
        raise ValueError("no record has a BLEU, so there is nothing to draw")
    known = [name for name in DECODINGS if any(row[name] for row in rows)]
    figure, renderer = _figure()
    wide, tall = 9.0, HEAD + ROW * len(rows) + FOOT
    figure.set_size_inches(wide, tall)
    models = lettered([plain(row["model"]) for row in rows])
    left = EDGE + max(_wide(figure, renderer, text, 10, font) for text, font in models) + 0.2
    columns = {"bleu_greedy": "greedy", "bleu_beam": "beam", "chrf": "chrF", "parameters": "parameters"}
    columns = {name: head for name, head in columns.items() if any(row[name] for row in rows)}
    room = {name: 0.62 + 0.3 * (name == "parameters") for name in columns}
    right = wide - EDGE - sum(room.values()) - 0.1
    axes = figure.add_axes((left / wide, FOOT / tall, (right - left) / wide, ROW * len(rows) / tall))
    _dress(axes, "x")
    highest = max(value for row in rows for name in known for value in row[name])
    axes.set_xlim(0, 1.06 * highest or 1)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first model on top: it is read like a table
    axes.set_yticks([])
    axes.set_xlabel("BLEU on sentences never seen", color=GREY, fontsize=9.5)
    for place, row in enumerate(rows):
        if place % 2 == 0:
            axes.axhspan(place - 0.5, place + 0.5, color=BAND, zorder=0, linewidth=0)
        text, font = models[place]
        height = FOOT + ROW * (len(rows) - place - 0.5)
        _write(figure, text, EDGE, height, 10, font, va="center_baseline")
        drawn = [name for name in known if row[name]]
        for number, name in enumerate(drawn):
            _draw_bar(axes, place + 0.27 * (number - (len(drawn) - 1) / 2), row[name], DECODINGS[name][1])
        at = wide - EDGE
        for name in reversed(columns):
            _write(figure, _said(row[name], name), at, height, 9.5, ha="right", va="center_baseline")
            at -= room[name]
    at = wide - EDGE
    for name in reversed(columns):
        _write(figure, columns[name], at, tall - HEAD + 0.05, 9, ha="right", va="bottom", color=GREY)
        at -= room[name]
    _write(figure, title, EDGE, tall - 0.15, 13, va="top", bold=True)
    _write(figure, plain(about), EDGE, tall - 0.43, 9.5, va="top", color=GREY)
    _explain(figure, known, max(len(row["seeds"]) for row in rows))
    return figure


def _draw_bar(axes: Any, height: float, values: Sequence[float], colour: str) -> None:
    """From 0 to the median, the spread as a line, the seeds as dots."""
    axes.barh(height, statistics.median(values), height=0.24, color=colour, zorder=2)
    if len(values) > 1:
        axes.plot([min(values), max(values)], [height, height], color=INK, linewidth=1.3, zorder=3)
        dots: dict[str, Any] = {"markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.6}
        axes.plot(values, [height] * len(values), ".", color=INK, zorder=4, **dots)


def _said(values: Any, name: str) -> str:
    if name == "parameters":
        return "" if values is None else f"{values / 1e6:.1f} M" if values >= 1e6 else f"{values:,}"
    return f"{statistics.median(values):.1f}" if values else ""


def _explain(figure: Any, known: Sequence[str], seeds: int) -> None:
    """What the colours mean."""
    from matplotlib.lines import Line2D

    signs = [Line2D([], [], color=DECODINGS[name][1], linewidth=7, label=DECODINGS[name][0]) for name in known]
    if seeds > 1:
        label = f"the {seeds} seeds; a bar is their median"
        signs.append(Line2D([], [], color=INK, marker=".", markersize=6, linewidth=1.3, label=label))
    figure.legend(
        handles=signs, loc="lower left", bbox_to_anchor=(0.005, 0.0), ncols=len(signs), frameon=False, fontsize=9.5,
        handlelength=1.6, columnspacing=1.6, labelcolor=INK,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------
# What all of them need


def _figure() -> tuple[Any, Any]:
    """A Figure with a canvas of its own (pyplot would keep it in a global list), and what measures texts on it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=DOTS)
    return figure, FigureCanvasAgg(figure).get_renderer()


def _wide(figure: Any, renderer: Any, text: str, size: float, font: Any = None, **style: Any) -> float:
    """Inches that a text takes."""
    if not text:
        return 0.0
    artist = _write(figure, text, 0, 0, size, font, **style)
    width = artist.get_window_extent(renderer).width / figure.dpi
    artist.remove()
    return width


def _write(figure: Any, text: str, x: float, y: float, size: float, font: Any = None, **style: Any) -> Any:
    """A text at a place in inches from the lower left, in a font that has all of its characters."""
    if not text:
        return None
    if font is None:
        ((text, font),) = lettered([text])
    if style.pop("bold", False):
        font = emboldened(font, text)
    style = {"color": INK, "parse_math": False, "transform": figure.dpi_scale_trans, **style}
    return figure.text(x, y, text, fontproperties=font, fontsize=size, **style)


def _dress(axes: Any, along: str = "y") -> None:
    """Lines of the scale behind all, no frame."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#bbbbbb")
    axes.set_axisbelow(True)
    axes.grid(axis=along, color="#e3e5e8", linewidth=0.8)
    axes.tick_params(colors=GREY, labelsize=9, length=0, pad=5)
