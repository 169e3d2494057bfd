"""curve.png: what is in the picture, and what happens to metrics that are missing, empty or damaged."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest

from handmade import curve
from handmade.errors import ResourceError, RunError

BEST, LAST = 1.55, 1.6  # validation losses of `folder`: the best is at step 30 of 40


@pytest.fixture
def folder(tmp_path):
    lines = []
    for step, train, validation in [(10, 3.0, 2.0), (20, 1.9, 1.7), (30, 1.6, BEST), (40, 1.4, LAST)]:
        lines.append({"step": step, "train_seconds": 60.0 + 6 * step, "train_loss": train, "val_loss": validation})
    (tmp_path / curve.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / curve.CONFIG).write_text(json.dumps({"counting_line": 1.669}))
    return tmp_path


def drawn(folder):
    """The figure of a folder, laid out."""
    lines = curve.read_metrics(folder / curve.METRICS)
    figure = curve.picture(lines, curve.to_beat(folder / curve.CONFIG), folder.name)
    figure.canvas.draw()
    return figure


def test_a_whole_picture_is_written(folder):
    path = curve.draw(folder)
    assert path == folder / "curve.png"
    from PIL import Image

    with Image.open(path) as picture:
        picture.load()
        assert picture.size == (900, 560)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(100_000)}
    for colour in (curve.TRAIN, curve.VALIDATION, curve.BEST, curve.LINE):
        assert tuple(bytes.fromhex(colour[1:])) in colours, colour
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "curve.png", "metrics.jsonl"]


def test_pyplot_stays_out(folder):
    import sys

    curve.draw(folder)
    assert "matplotlib.pyplot" not in sys.modules


def test_what_is_drawn_is_what_was_measured(folder):
    axes, clock = drawn(folder).axes
    series = {line.get_label(): line for line in axes.lines}
    train, validation = series["training, last 1.400"], series["validation, last 1.600"]
    assert train.get_xydata().tolist() == [[10, 3.0], [20, 1.9], [30, 1.6], [40, 1.4]]
    assert validation.get_ydata().tolist() == [2.0, 1.7, BEST, LAST]
    assert train.get_linewidth() < validation.get_linewidth()
    assert series["best, at step 30"].get_xydata().tolist() == [[30, BEST]]
    assert set(series["to beat, by counting"].get_ydata()) == {1.669}
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["best\n1.550", "to beat\n1.669"]
    # 60 s before the first step and 6 s a step: minute 3 is at step 20, minute 5 at step 40
    assert clock.get_xlabel() == "minutes of training"
    ticks = {label.get_text(): tick for tick, label in zip(clock.get_xticks(), clock.get_xticklabels(), strict=True)}
    assert ticks["3"] == pytest.approx(20)
    assert ticks["5"] == pytest.approx(40)
    assert clock.get_xlim() == axes.get_xlim()


def test_labels_beside_the_picture_do_not_overlap():
    heights = curve.apart([(1.669, "", ""), (1.660, "", "")], 0.1)
    assert heights[1] - heights[0] == pytest.approx(0.1)
    assert np.mean(heights) == pytest.approx(1.6645)
    assert curve.apart([(1.7, "", ""), (1.2, "", "")], 0.1) == [1.2, 1.7]


def test_the_first_steep_steps_do_not_press_the_rest_flat():
    train = np.concatenate([[4.2, 3.5], np.full(60, 1.5)])
    bottom, top = curve.heights(train, np.array([1.6]), 1.669)
    assert bottom < 1.5
    assert 1.669 < top < 1.8


def test_without_a_counting_line(folder):
    (folder / curve.CONFIG).unlink()
    axes = drawn(folder).axes[0]
    assert [text.get_text() for text in axes.texts] == ["best\n1.550"]


def test_one_report_is_enough(folder):
    (folder / curve.METRICS).write_text('{"step": 5, "train_loss": 2.5, "train_seconds": 0.4}\n')
    assert curve.draw(folder) is not None
    assert drawn(folder).axes[0].lines[0].get_marker() == "."


def test_ticks_of_few_steps_are_whole_numbers(folder):
    (folder / curve.METRICS).write_text('{"step": 5, "train_loss": 2.5}\n{"step": 7, "train_loss": 2.4}\n')
    ticks = drawn(folder).axes[0].get_xticks()
    assert all(tick == round(tick) for tick in ticks)


@pytest.mark.parametrize("content", ["", '{"step": 3, "train_loss": null, "event": "step 4 skipped"}\n'])
def test_nothing_measured_nothing_drawn(folder, content):
    (folder / curve.METRICS).write_text(content)
    assert curve.draw(folder) is None
    assert not (folder / "curve.png").exists()


def test_numbers_that_are_none_are_left_out(folder):
    with open(folder / curve.METRICS, "a") as file:
        file.write('{"step": 40, "train_seconds": 300, "train_loss": null, "event": "went back"}\n')
    steps, values = curve.points(curve.read_metrics(folder / curve.METRICS), "train_loss")
    assert len(values) == 4
    assert np.isfinite(values).all()
    assert math.isfinite(steps.sum())


def test_missing_metrics(tmp_path):
    with pytest.raises(RunError, match=r"metrics\.jsonl: missing"):
        curve.draw(tmp_path)


@pytest.mark.parametrize("damage", [b"{nonsense\n", b"[1, 2]\n", b'{"train_loss": 3}\n', b"\xff\xfe\n"])
def test_a_damaged_line_is_named(folder, damage):
    whole = (folder / curve.METRICS).read_bytes()
    (folder / curve.METRICS).write_bytes(whole + damage + whole)
    with pytest.raises(RunError, match=r"metrics\.jsonl: line 5 is damaged"):
        curve.draw(folder)


def test_a_last_line_that_a_kill_cut_short_is_left_out(folder):
    with open(folder / curve.METRICS, "a") as file:
        file.write('{"step": 50, "train_lo')
    assert [line["step"] for line in curve.read_metrics(folder / curve.METRICS)] == [10, 20, 30, 40]


def test_an_old_picture_stays_when_a_new_one_cannot_be_written(folder, monkeypatch):
    before = curve.draw(folder).read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(ResourceError, match="space"):
        curve.draw(folder)
    assert (folder / "curve.png").read_bytes() == before
    assert len(list(folder.iterdir())) == 3


def test_any_folder_name(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("本 run", "a$^_$"):
            other = folder.parent / name
            folder.rename(other)
            folder = other
            assert curve.draw(folder) is not None
