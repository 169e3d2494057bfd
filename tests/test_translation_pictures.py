"""Pictures of translation: every character drawn with a font that has it, labels that do not overlap, the figures."""

from __future__ import annotations

import io
import sys
import warnings
from itertools import combinations, pairwise

import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.text import Text

from handmade.errors import ResourceError
from handmade.tasks.translation import fonts, pictures
from handmade.tasks.translation.fonts import lettered
from handmade.tasks.translation.pictures import Alignment, cross_attention

USUAL = fonts.usual()
JAPANESE = fonts.covering(set("私は猫が好きです。「」ー"))
needs_japanese = pytest.mark.skipif(JAPANESE is None, reason="no Japanese font is installed")

CATS = (["私", "は", "猫", "が", "好き", "です", "。", None], [" I", " like", " cats", ".", None])


def weights(rows, columns, seed=0):
    made = np.exp(2 * np.random.default_rng(seed).normal(size=(rows, columns)))
    return made / made.sum(1, keepdims=True)


def alignment(source, target, title=""):
    return Alignment(source, target, weights(len(target), len(source)), title)


def saved(figure):
    """Rendered, with every warning an error: matplotlib warns of a glyph that a font lacks."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()


def texts_of(figure):
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def file_of(text):
    font = text.get_fontproperties()
    return font.get_file() or str(matplotlib.font_manager.findfont(font))


def boxes(figure):
    """Characters that are drawn with a font that lacks them: by fontTools, which the code does not use."""
    tables = {}
    found = []
    for text in texts_of(figure):
        path = file_of(text)
        table = tables.setdefault(path, TTFont(path, fontNumber=0, lazy=True).getBestCmap())
        found += [letter for letter in text.get_text() if letter != "\n" and ord(letter) not in table]
    return found


def pixels(text, font):
    figure = Figure(figsize=(1, 1), dpi=100)
    canvas = FigureCanvasAgg(figure)
    figure.text(0.2, 0.2, text, fontproperties=font, fontsize=30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., 0]


def overlaps(figure):
    """Pairs of texts whose boxes share more than a hair; slanted ones by the corners of their own box."""
    renderer = figure.canvas.get_renderer()
    straight = [text for text in texts_of(figure) if not text.get_rotation()]
    frames = [(text.get_text(), text.get_window_extent(renderer).padded(-1)) for text in straight]
    return [(a, b) for (a, one), (b, other) in combinations(frames, 2) if one.overlaps(other)]


# --- fonts -------------------------------------------------------------------------------------------------------


@needs_japanese
def test_no_empty_boxes():
    odd = ["は", "\n", "\ue000", "\u200b", "한", "猫", "$x$", "_{}", "  ", None]
    figure = cross_attention(
        [alignment(*CATS, "私は猫が好きです。"), alignment(odd, ["Ich", "weiß", None], "odd: $x_1 \ue001")],
        "日本語 → English",
    )
    saved(figure)
    assert boxes(figure) == []
    shown = {text.get_text() for text in texts_of(figure)}
    assert {"私", "好き", "like", "$x$", "_{}", "␣", "U+000A", "U+E000", "U+200B", "END", "日本語 → English"} <= shown
    assert "\n" not in shown
    # In pixels: two characters differ, and neither is what the font draws for one that it lacks.
    (kanji, font), (other, same) = lettered(["私", "猫"])
    box = pixels("\U0010fffd", font)
    assert not np.array_equal(pixels(kanji, font), pixels(other, same))
    assert not np.array_equal(pixels(kanji, font), box)
    # That test sees a box where there is one.
    plain = FontProperties(fname=USUAL)
    if not fonts.has(USUAL, {"私"}):
        assert np.array_equal(pixels("私", plain), pixels("猫", plain))
        wrong = Figure()
        FigureCanvasAgg(wrong)
        wrong.text(0, 0, "私", fontproperties=plain)
        assert boxes(wrong) == ["私"]
        with pytest.raises(UserWarning, match="missing from font"):
            saved(wrong)


def test_a_font_that_claims_to_have_everything_is_not_taken(monkeypatch):
    # It comes with matplotlib, and draws the name of a block of characters in a box.
    names = {entry.name for entry in fontManager.ttflist}
    if not any("Last Resort" in name for name in names):
        pytest.skip("this matplotlib has no such font")
    assert not any("Last Resort" in name for name in fonts.installed())
    monkeypatch.setattr(fonts, "package_font", lambda: None)
    only = [entry for entry in fontManager.ttflist if "Last Resort" in entry.name or entry.fname == USUAL]
    monkeypatch.setattr(fontManager, "ttflist", only)
    assert fonts.covering({"私"}) is None


def test_without_any_japanese_font(monkeypatch):
    dejavu = {"DejaVu Sans": [USUAL]}
    monkeypatch.setattr(fonts, "installed", lambda: dict(dejavu))
    monkeypatch.setattr(fonts, "find_spec", lambda name: None)
    if fonts.has(USUAL, {"私"}):
        pytest.skip("the usual font has Japanese")
    with pytest.raises(ResourceError, match=r"'私'.*matplotlib-fontja.*pip install 'handmade\[translation\]'"):
        cross_attention([alignment(*CATS)])
    # Other languages need none of it, and what the package would not help with is no reason to install it.
    figure = cross_attention([alignment(["Ich", "weiß", None], ["I", "know", "한", None])])
    saved(figure)
    assert "U+D55C" in {text.get_text() for text in texts_of(figure)}
    assert {file_of(text) for text in texts_of(figure)} == {USUAL}


def test_the_font_of_the_package_is_found_without_importing_it(monkeypatch):
    pytest.importorskip("matplotlib")
    path = fonts.package_font()
    if path is None:
        pytest.skip("matplotlib-fontja is not installed")
    before = dict(matplotlib.rcParams)
    monkeypatch.setattr(fonts, "installed", dict)
    ((text, font),) = lettered(["私は猫が好きです。"])
    assert (text, font.get_file()) == ("私は猫が好きです。", path)
    saved(cross_attention([alignment(*CATS, "私は")], "title"))
    assert dict(matplotlib.rcParams) == before
    assert fonts.PACKAGE not in sys.modules
    assert not any(entry.fname == path for entry in fontManager.ttflist)


def test_installed_japanese_fonts_come_first_and_upright(monkeypatch):
    files = {"Some Font": ["some.ttf"], "Meiryo": ["meiryo.ttf"], "IPAexGothic": ["ipa.ttf", "ipa-bold.ttf"]}
    monkeypatch.setattr(fonts, "installed", lambda: {name: list(paths) for name, paths in files.items()})
    monkeypatch.setattr(fonts, "package_font", lambda: "package.ttf")
    assert list(fonts.candidates()) == [USUAL, "ipa.ttf", "meiryo.ttf", "package.ttf", "some.ttf"]
    assert fonts.has("no-such-font.ttf", {"a"}) == set()
    monkeypatch.undo()
    if "DejaVu Sans" in fonts.installed():
        assert fonts.installed()["DejaVu Sans"][0].endswith("DejaVuSans.ttf")


def test_one_font_for_all_labels_that_it_can_draw():
    assert {font.get_file() for _, font in lettered(["Ich", "weiß", "I"])} == {None}  # the usual one
    if JAPANESE is not None:
        assert {font.get_file() for _, font in lettered(["cats", "猫"])} == {JAPANESE}
    assert lettered([]) == []


# --- cross-attention ---------------------------------------------------------------------------------------------


@needs_japanese
def test_the_map_shows_the_weights_in_one_scale():
    one, two = alignment(*CATS), alignment(["Ja", ".", None], ["Yes", ".", None])
    two = two._replace(weights=np.eye(3) * 0.42)
    figure = cross_attention([one._replace(weights=one.weights / 2), two])
    saved(figure)
    images = [image for axes in figure.axes for image in axes.images]
    assert len(images) == 2
    assert np.array_equal(images[0].get_array(), one.weights / 2)
    assert np.array_equal(images[1].get_array(), two.weights)
    assert {image.get_clim() for image in images} == {(0, 0.5)}
    bar = figure.axes[-1]
    assert [label.get_text() for label in bar.get_yticklabels()] == ["0 %", "25 %", "50 %"]
    assert bar.get_ylim() == (0, 0.5)
    # Each label stands at the middle of its column or row: source along the top, target down the side.
    axes, renderer = figure.axes[0], figure.canvas.get_renderer()
    labels = {text.get_text(): text.get_window_extent(renderer) for text in figure.texts}
    for place, token in enumerate(["私", "は", "猫"]):
        x, y = axes.transData.transform((place, -0.5))
        assert (labels[token].x0 + labels[token].x1) / 2 == pytest.approx(x, abs=2)
        assert labels[token].y0 >= y
    for place, token in enumerate(["I", "like", "cats"]):
        x, y = axes.transData.transform((-0.5, place))
        assert (labels[token].y0 + labels[token].y1) / 2 == pytest.approx(y, abs=6)
        assert labels[token].x1 <= x


@needs_japanese
@pytest.mark.parametrize(
    ("word", "tokens", "slants"),
    [("パスワード", 8, True), ("well", 8, False), ("well", 44, True), ("猫", 64, False), ("パスワード", 64, True)],
)
def test_labels_never_overlap_and_all_is_inside(word, tokens, slants):
    source, target = [word] * (tokens - 1) + [None], ["translation"] * (tokens // 4) + [None]
    figure = cross_attention([alignment(source, target, "私は" * 12), alignment(*CATS, "A title " * 4)], "All of it")
    assert overlaps(figure) == []
    renderer, frame = figure.canvas.get_renderer(), figure.bbox
    for text in texts_of(figure):
        box = text.get_window_extent(renderer)
        assert box.x0 >= frame.x0 - 1, text
        assert box.y0 >= frame.y0 - 1, text
        assert box.x1 <= frame.x1 + 1, text
        assert box.y1 <= frame.y1 + 1, text
    # Slanted labels: lines of text at 45 degrees, as far apart as their columns times sin 45.
    slanted = [text for text in figure.texts if text.get_rotation() == 45]
    assert bool(slanted) == slants
    for left, right in pairwise(slanted):
        apart = (right.get_position()[0] - left.get_position()[0]) * np.sqrt(0.5) * 72
        assert apart >= left.get_fontsize()
    assert min(text.get_fontsize() for text in figure.texts) >= 6


def test_weights_that_do_not_fit_are_our_mistake():
    with pytest.raises(ValueError, match=r"weights \(3, 2\) for 2 target and 3 source tokens"):
        cross_attention([Alignment(["a", "b", None], ["c", None], np.ones((3, 2)))])
    with pytest.raises(ValueError, match="no sentences"):
        cross_attention([])


# --- scores by length, models ------------------------------------------------------------------------------------


def rows(scale):
    lengths = [(1, 4, 390, 28), (5, 5, 1436, 27), (6, 9, 508, 22)]
    more = {"unit": "words"}
    return [
        {"least": a, "most": b, "sentences": n, "bleu": s * scale, "chrf": s * scale + 9, **more}
        for a, b, n, s in lengths
    ]


def test_scores_by_length():
    figure = pictures.scores_by_length({"greedy": rows(1), "beam 4": rows(1.01)})
    saved(figure)
    axes = figure.axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[28, 27, 22], pytest.approx([28.28, 27.27, 22.22])]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1 to 4\n390", "5\n1,436", "6 to 9\n508"]
    assert axes.get_ylim()[0] == 0
    assert overlaps(figure) == []  # the two names, whose lines end at nearly one height
    colours = {text.get_text(): text.get_color() for text in figure.texts}
    assert [colours["greedy"], colours["beam 4"]] == [line.get_color() for line in axes.lines]
    assert list(pictures.scores_by_length({"a": rows(1)}, "chrf").axes[0].lines[0].get_ydata()) == [37, 36, 31]
    many = pictures.scores_by_length({f"model {number}": rows(1) for number in range(7)})
    assert overlaps(many) == []
    with pytest.raises(ValueError, match="same groups"):
        pictures.scores_by_length({"a": rows(1), "b": rows(1)[:2]})
    with pytest.raises(ValueError, match="same groups"):
        pictures.scores_by_length({})


def test_names_are_moved_apart_and_no_further():
    assert pictures.apart([1, 5, 9], 2) == [1, 5, 9]
    assert pictures.apart([5, 5, 5], 2) == [3, 5, 7]
    assert pictures.apart([0, 0], 2) == [0, 2]
    assert pictures.apart([5, 4, 0], 2) == [5.5, 3.5, 0]


def test_ladder_picture():
    records = [
        {"model": "LSTM", "seed": 0, "parameters": 900, "bleu_greedy": 8.0},
        *(
            {
                "model": "modern",
                "seed": s,
                "parameters": 8_700_000,
                "bleu_greedy": 20 + s,
                "bleu_beam": 24 + s,
                "chrf": 44,
            }
            for s in (0, 1, 3)
        ),
        {"model": "waiting", "seed": 0, "parameters": 5},
    ]
    figure = pictures.ladder_picture(records, about="tatoeba-ja-en, five minutes each")
    saved(figure)
    axes = figure.axes[0]
    bars = [bar.get_width() for bar in axes.patches if bar.get_height() < 0.5]
    assert bars == [8.0, 21, 25]  # medians
    spreads = [
        list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "-" and line.get_marker() == "None"
    ]
    assert spreads == [[20, 23], [24, 27]]
    seeds = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "."]
    assert seeds == [[20, 21, 23], [24, 25, 27]]
    shown = {text.get_text() for text in figure.texts}
    assert {"LSTM", "modern", "8.7 M", "900", "25.0", "44.0", "tatoeba-ja-en, five minutes each"} <= shown
    assert "waiting" not in shown
    assert overlaps(figure) == []
    with pytest.raises(ValueError, match="no record has a BLEU"):
        pictures.ladder_picture(records[-1:])
