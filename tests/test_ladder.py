"""The ladder: its rungs are one idea apart, its runs repeat to the last bit, and a killed climb goes on."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from handmade import ladder
from handmade.cli import ladder as command
from handmade.cli import main
from handmade.config import Config
from handmade.errors import ConfigError, ResourceError, RunError, TokenizerError
from handmade.ladder import RUNGS, SIDE_RUNGS, Climb, Rung, climbing, find, records, runs, tuning
from handmade.ladder.runs import Order, Source, Speed

TEXT = "the cat sat on the mat. a dog ran to the cat!\n" * 100
ISSUE = [
    "uniform",
    "letter-frequencies",
    "counted-bigram",
    "counted-ngram",
    "neural-bigram",
    "mlp",
    "rnn",
    "lstm",
    "mean-of-past",
    "positions",
    "one-head",
    "several-heads",
    "feed-forward",
    "residual",
    "layer-norm",
    "depth",
    "dropout",
    "gpt2-init",
    "gelu",
    "tied-head",
    "warm-up-and-cosine",
    "rotary",
    "rms-norm",
    "qk-norm",
    "squared-relu",
    "zero-projections",
    "no-biases",
    "logit-cap",
    "muon",
]


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "cats.txt"
    path.write_text(TEXT)
    return str(path)


def climb(text: str, names: str, **options) -> Climb:
    options = {"seeds": (0,), "tokens": 4096, "jobs": 1, **options}
    return Climb(text, [find(name) for name in names.split()], **options)


def losses(made: Climb) -> dict[tuple[str, int], float]:
    return {(record["rung"], record["seed"]): record["val_loss"] for record in made.records}


# ---------------------------------------------------------------------------------------------------------------
# The rungs


@pytest.mark.parametrize("rung", [rung for rung in (*RUNGS, *SIDE_RUNGS) if rung.parent], ids=lambda rung: rung.name)
def test_a_rung_differs_from_its_parent_by_one_thing(rung):
    assert rung.parent is not None
    assert len(ladder.differences(ladder.settings(find(rung.parent)), ladder.settings(rung))) == 1


def test_a_second_difference_is_found():
    first = ladder.settings(find("residual"))
    for change in ({"residual": False, "norm": "layer"}, {"heads": 2, "dropout": 0.1}):
        second = dataclasses.replace(first, model={**first.model, **change})
        assert len(ladder.differences(first, second)) == 2
    # Also one that a config fills in by itself, and one beside another family.
    assert ladder.differences(first, dataclasses.replace(first, train=first.train.replace(sequences=4)))
    bigram = ladder.settings(find("neural-bigram"))
    other = dataclasses.replace(first, train=first.train.replace(optimizer="muon"))
    assert ladder.differences(bigram, other) == ["family", "train.optimizer"]


def test_the_rungs_are_those_that_were_asked_for_in_that_order():
    assert [rung.name for rung in RUNGS] == ISSUE
    climbed = set()
    for rung in RUNGS:
        assert rung.parent is None or rung.parent in climbed, "a parent is climbed before its child"
        climbed.add(rung.name)
    names = [rung.name for rung in (*RUNGS, *SIDE_RUNGS)]
    assert len(set(names)) == len(names)
    assert all(rung.side for rung in SIDE_RUNGS)
    assert not any(rung.side for rung in RUNGS)


@pytest.mark.parametrize("rung", [*RUNGS, *SIDE_RUNGS], ids=lambda rung: rung.name)
def test_every_rung_can_be_made_and_says_where_it_is_from(rung):
    settings = ladder.settings(rung)
    assert settings.shape(65).vocab_size == 65
    assert settings.counted == (rung.learning_rate is None)
    assert rung.idea.strip().endswith((".", "?"))
    assert len(rung.source) > 10
    # A budget that is a whole number of steps for every batch, so that all see the same number of tokens.
    assert ladder.TOKENS % (settings.train.sequences * 64) == 0


def test_rungs_that_cannot_be():
    with pytest.raises(ConfigError, match=r"rung a: changes 2 fields. A rung is one idea"):
        ladder.settings(Rung("a", "a", "gelu", "", "", {"model.heads": 2, "model.width": 32}))
    with pytest.raises(ConfigError, match=r"rung a: 'heads' is no field. Name it as model.heads"):
        ladder.settings(Rung("a", "a", "gelu", "", "", {"heads": 2}))
    with pytest.raises(ConfigError, match="rung a: its parent 'b' is not there"):
        ladder.settings(Rung("a", "a", "b", "", "", {"model.heads": 2}))
    circle = [Rung("a", "a", "b", "", "", {"model.heads": 2}), Rung("b", "b", "a", "", "", {"model.heads": 4})]
    with pytest.raises(ConfigError, match="its parent 'a' is above it"):
        ladder.settings(circle[0], circle)
    with pytest.raises(ConfigError, match=r"no option .shedule.. Did you mean schedule"):
        ladder.settings(Rung("a", "a", "gelu", "", "", {"train.shedule": "constant"}))
    with pytest.raises(ConfigError, match=r"No rung 'one-hed'. Did you mean one-head?"):
        find("one-hed")


def test_the_rates_are_the_best_of_the_grid_that_was_tried():
    path = Path(__file__).parents[1] / "results" / "ladder_rates" / records.NAME
    tried: dict[str, dict[float, float]] = {}
    for record in records.read(path):
        assert record["seed"] == tuning.SEED
        assert tuning.SEED not in ladder.SEEDS
        tried.setdefault(record["rung"].partition("@")[0], {})[record["learning_rate"]] = record["val_loss"]
    for rung in (*RUNGS, *SIDE_RUNGS):
        if rung.learning_rate is not None:
            assert tuning.best_rate(tried[rung.name]) == rung.learning_rate, rung.name
            assert not tuning.further(tried[rung.name]), f"{rung.name}: the best rate is at an end of its grid"


RESULTS = Path(__file__).parents[1] / "results"


def test_the_committed_results_are_of_these_rungs_and_the_table_is_of_them():
    found = records.read(RESULTS / records.NAME)
    assert {(record["rung"], record["seed"]) for record in found} == {
        (rung.name, seed) for rung in (*RUNGS, *SIDE_RUNGS) for seed in ladder.SEEDS
    }
    settings = {
        rung.name: {**ladder.settings(rung).to_dict(), "learning_rate": rung.learning_rate}
        for rung in (*RUNGS, *SIDE_RUNGS)
    }
    records.require_settings(RESULTS / records.NAME, found, settings)
    lines = (RESULTS / "ladder.md").read_text(encoding="utf-8").splitlines()
    for rung in (*RUNGS, *SIDE_RUNGS):
        values = [record["val_loss"] for record in found if record["rung"] == rung.name]
        cells = [line.split(" | ") for line in lines if line.split(" | ")[1:2] == [rung.title]]
        assert len(cells) == 1, rung.name
        assert cells[0][2].startswith(f"**{sum(values) / len(values):.3f}**")
        if rung.parent:
            before = [record["val_loss"] for record in found if record["rung"] == rung.parent]
            gain = sum(before) / len(before) - sum(values) / len(values)
            assert float(cells[0][4].split(" over ")[0]) == pytest.approx(gain, abs=0.00051)


# ---------------------------------------------------------------------------------------------------------------
# The runs


def test_counted_rungs_come_to_what_the_letters_say(text):
    made = climb(text, "uniform letter-frequencies")
    list(made.run())
    found = losses(made)
    train, validation = TEXT[:-460], TEXT[-460:]
    letters = Counter(train)
    assert found["uniform", 0] == pytest.approx(math.log(len(letters)), abs=1e-6)
    # Witten and Bell with nothing before: (count + kinds / V) / (total + kinds)
    probability = {letter: (count + 1) / (len(train) + len(letters)) for letter, count in letters.items()}
    scored = validation[1:]
    assert found["letter-frequencies", 0] == pytest.approx(
        -sum(math.log(probability[letter]) for letter in scored) / len(scored), abs=1e-5
    )


def test_runs_repeat_to_the_last_bit_in_this_process_and_in_others(text):
    names = "neural-bigram one-head dropout"
    first, again, beside = climb(text, names), climb(text, names), climb(text, names, jobs=2)
    for made in (first, again, beside):
        list(made.run())
    assert len(losses(first)) == 3
    assert losses(first) == losses(again) == losses(beside)
    assert [r["sample"] for r in first.records] == [r["sample"] for r in again.records]
    # So that equal does not mean constant:
    other = climb(text, "one-head", seeds=(1,))
    list(other.run())
    assert losses(other)["one-head", 1] != losses(first)["one-head", 0]


def test_a_record_says_all_there_is(text):
    made = climb(text, "one-head", folder=None)
    (record,) = made.run()
    assert record["parent"] == "positions"
    assert record["steps"] == 4
    assert record["tokens"] == 4096
    model = ladder.settings(find("one-head"))
    assert record["parameters"] == sum(p.numel() for p in runs.trainer_of(order("one-head", text)).model.parameters())
    assert record["settings"]["model"] == model.model
    assert record["tokens_per_second"] == pytest.approx(record["tokens"] / record["train_seconds"], rel=0.01)
    bits = record["val_loss"] / math.log(2)  # one byte a character
    assert record["bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    assert record["sample"].startswith(made.prompt)
    assert len(record["sample"]) > len(made.prompt)
    assert record["data"]["train_tokens"] == len(TEXT) - 460


def test_a_run_that_diverges_says_so_and_the_climb_goes_on(text):
    wild = dataclasses.replace(find("neural-bigram"), name="wild", learning_rate=1e38)
    made = Climb(text, [find("neural-bigram"), wild, find("uniform")], (0,), tokens=4096, jobs=1)
    found = {record["rung"]: record["val_loss"] for record in made.run()}
    assert found["wild"] is None
    assert found["neural-bigram"] < found["uniform"]
    assert {row.name: row.mean for row in made.rows()}["wild"] == math.inf


def order(name: str, text: str, **model) -> Order:
    settings = ladder.settings(find(name))
    settings = dataclasses.replace(settings, model={**settings.model, **model})
    return Order(name, settings, 0, 3, find(name).learning_rate, Source((text,)), 64)


def test_accumulation_is_one_batch(text):
    """Without dropout, whose draws depend on the pieces: the same windows, the same steps but for rounding."""
    whole = runs.trainer_of(order("batch-64", text, dropout=0.0))
    pieces = runs.trainer_of(order("accumulation", text, dropout=0.0))
    assert [len(trainer.draw()) for trainer in (whole, pieces)] == [1, 4]
    for trainer in (whole, pieces):
        trainer.data.manual_seed(0)
        for _ in range(3):
            trainer.one_step()
    for one, other in zip(whole.parameters, pieces.parameters, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


@dataclass(frozen=True)
class OnlyHeadConfig(Config):
    vocab_size: int
    width: int = 8


class OnlyHead(torch.nn.Module):
    context = None

    def __init__(self, config, generator=None):
        super().__init__()
        self.config = config
        self.table = torch.nn.Parameter(torch.zeros(config.vocab_size))

    def new_cache(self, rows):
        return type("Nothing", (), {"length": 0})()

    def forward(self, tokens, cache=None, starts=None):
        return self.table.expand(*tokens.shape, -1)


def test_a_rung_of_ones_own(text):
    """As the documentation has it: one field, or a model of one's own."""
    narrow = Rung("narrow", "half as wide", "layer-norm", "Does the width matter?", "me", {"model.width": 32}, 0.004)
    own = Rung("own", "only a bias", "uniform", "Letters.", "me", {"family": (OnlyHead, OnlyHeadConfig)}, 0.3)
    made = Climb(text, [find("uniform"), find("layer-norm"), narrow, own], (0, 1), tokens=20_480, jobs=1)
    list(made.run())
    rows = {row.name: row for row in made.rows()}
    assert rows["narrow"].gain == pytest.approx(rows["layer-norm"].mean - rows["narrow"].mean)
    # What a bias alone can learn is the frequencies of the letters.
    counted = climb(text, "letter-frequencies")
    list(counted.run())
    assert rows["own"].mean == pytest.approx(losses(counted)["letter-frequencies", 0], abs=0.05)


# ---------------------------------------------------------------------------------------------------------------
# Killed, and gone on with


def test_a_climb_that_was_left_goes_on_and_ends_alike(text, tmp_path):
    names, options = "uniform neural-bigram one-head", {"seeds": (0, 1), "folder": tmp_path / "out"}
    whole = climb(text, names, seeds=(0, 1))
    list(whole.run())
    running = climb(text, names, **options).run()
    next(running), next(running)
    running.close()
    path = tmp_path / "out" / records.NAME
    assert len(path.read_text().splitlines()) == 2
    with open(path, "a") as file:
        file.write('{"rung": "one-h')  # killed while it wrote
    rest = climb(text, names, **options)
    assert len(rest.todo()) == 4
    assert len(list(rest.run())) == 4
    assert losses(climb(text, names, **options)) == losses(whole)
    assert not list(climb(text, names, **options).run()), "nothing is left to do"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 6
    assert {(line["rung"], line["seed"]) for line in lines} == set(losses(whole))


def test_results_of_something_else_are_not_mixed(text, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    list(climb(text, "uniform neural-bigram", folder=folder).run())
    other = tmp_path / "dogs.txt"
    other.write_text(TEXT.replace("cat", "dog"))
    with pytest.raises(RunError, match=r"are of another text \(cats.*dogs.*--force"):
        climb(str(other), "uniform", folder=folder)
    with pytest.raises(RunError, match=r"another budget \(4,096 tokens a run, now 8,192 tokens"):
        climb(text, "uniform", folder=folder, tokens=8192)
    quicker = dataclasses.replace(find("neural-bigram"), learning_rate=1.0)
    with pytest.raises(RunError, match="rung neural-bigram was run with other settings"):
        Climb(text, [quicker], (0,), tokens=4096, folder=folder, jobs=1)
    with pytest.raises(RunError, match="another budget"):
        climb(text, "uniform", folder=folder, tokens=None, minutes=1, equal="time")
    monkeypatch.setattr("handmade.__version__", "0.0.9")
    with pytest.raises(RunError, match=r"another version of handmade \('0.1.0', now '0.0.9'\)"):
        climb(text, "uniform", folder=folder)
    again = climb(text, "uniform", folder=folder, force=True)
    assert len(records.read(folder / records.NAME)) == 2, "nothing is lost before the first run begins"
    list(again.run())
    assert [record["version"] for record in records.read(folder / records.NAME)] == ["0.0.9"]


def test_a_damaged_line_is_named(text, tmp_path):
    folder = tmp_path / "out"
    whole, _ = climb(text, "uniform letter-frequencies", folder=folder).run()
    path = folder / records.NAME
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(RunError, match=r"ladder.jsonl: line 1 is damaged"):
        climb(text, "uniform", folder=folder)
    for name, value in [("val_loss", "x"), ("budget", "x"), ("budget", {"equal": "time"}), ("seed", None)]:
        path.write_text(json.dumps({**whole, name: value}) + "\n")
        with pytest.raises(RunError, match=r"ladder.jsonl: line 1 is damaged"):
            climb(text, "uniform", folder=folder)


def test_a_text_that_has_changed(text, tmp_path):
    folder = tmp_path / "out"
    list(climb(text, "uniform", folder=folder).run())
    Path(text).write_text(TEXT.replace("cat", "cow"))
    runs.open_text.cache_clear()
    with pytest.raises(RunError, match=r"of another text \(cats.txt, 4,140 tokens, and has changed since\)"):
        climb(text, "uniform", folder=folder)


def test_a_place_where_nothing_can_be_written(text, tmp_path):
    for folder in (Path(text), Path(text) / "below"):
        with pytest.raises(ResourceError, match=r"cannot write the ladder's results there.*--out"):
            climb(text, "uniform", folder=folder)
    (tmp_path / "out" / records.NAME).mkdir(parents=True)
    for force in (False, True):
        with pytest.raises(ResourceError, match=r"Is a directory.*--out"):
            climb(text, "uniform", folder=tmp_path / "out", force=force)


def test_two_climbs_do_not_write_into_one_folder(text, tmp_path):
    pytest.importorskip("fcntl")
    first, second = (climb(text, "uniform letter-frequencies", folder=tmp_path, force=force) for force in (False, True))
    running = first.run()
    next(running)
    with pytest.raises(RunError, match="another process is climbing there"):
        next(second.run())
    assert len(records.read(tmp_path / records.NAME)) == 1, "--force takes nothing away from the other"
    running.close()
    assert len(list(second.run())) == 2


def test_a_refused_budget_does_not_take_the_results_away(text, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    list(climb(text, "uniform", folder=folder).run())
    at_speed(monkeypatch, neural_bigram=30.0)
    for options in ({"tokens": 3}, {"jobs": 0}, {"tokens": None, "minutes": 0.1}):
        with pytest.raises(ConfigError):
            list(climb(text, "neural-bigram", folder=folder, force=True, **options).run())
        assert len(records.read(folder / records.NAME)) == 1


# ---------------------------------------------------------------------------------------------------------------
# Budgets


def at_speed(monkeypatch, **speeds: float) -> None:
    monkeypatch.setattr(runs, "speed", lambda order: Speed(speeds[order.rung.replace("-", "_")], 1.0))
    figures = {"val_loss": 2.0, "bits_per_byte": 3.0, "train_seconds": 1.0, "seconds": 1.0, "sample": ""}
    monkeypatch.setattr(runs, "make", lambda order: {**figures, "steps": order.steps, "tokens": order.steps * 1024})


def test_minutes_become_equal_tokens(text, monkeypatch):
    at_speed(monkeypatch, neural_bigram=0.01, one_head=0.03)
    made = climb(text, "uniform neural-bigram one-head", seeds=(0, 1), tokens=None, minutes=2)
    list(made.run())
    # 2 seeds of: 3 runs with 0.6 s around them, 2 evaluations of 1 s; a step of each takes 0.04 s.
    expected = (120 - 2 * (3 * 0.6 + 2)) / (2 * 0.04)
    steps = {record["rung"]: record["steps"] for record in made.records}
    assert steps["neural-bigram"] == steps["one-head"] == pytest.approx(expected, rel=0.02)
    assert made.budget["tokens"] == steps["one-head"] * 1024


def test_minutes_become_equal_time(text, monkeypatch):
    at_speed(monkeypatch, neural_bigram=0.01, one_head=0.03)
    made = climb(text, "neural-bigram one-head", tokens=None, minutes=2, equal="time")
    list(made.run())
    share = (120 - 2 * 0.6 - 2) / 2
    steps = {record["rung"]: record["steps"] for record in made.records}
    assert steps["neural-bigram"] == pytest.approx(share / 0.01, rel=0.02)
    assert steps["one-head"] == pytest.approx(share / 0.03, rel=0.02)


def test_a_climb_by_minutes_goes_on_with_the_budget_that_it_had(text, tmp_path, monkeypatch):
    at_speed(monkeypatch, neural_bigram=0.01)
    options = {"seeds": (0, 1), "tokens": None, "minutes": 1, "folder": tmp_path / "out"}
    running = climb(text, "neural-bigram", **options).run()
    first = next(running)
    running.close()
    at_speed(monkeypatch, neural_bigram=0.5)  # the machine is busier now
    said = []
    (second,) = climb(text, "neural-bigram", **options, say=lambda *line: said.append(line)).run()
    assert [label for label, _ in said] == ["budget"], "it is not what --minutes asks for now, and is said"
    assert second["budget"] == first["budget"]
    assert second["steps"] == first["steps"]


def test_the_scaled_up_rung_has_its_parents_seconds(text, monkeypatch):
    at_speed(monkeypatch, scaled_up=0.06, muon=0.02)
    made = climb(text, "muon scaled-up", tokens=102_400)
    list(made.run())
    assert {record["rung"]: record["steps"] for record in made.records} == {"muon": 100, "scaled-up": 33}


def test_budgets_that_are_too_small_say_what_would_do(text, monkeypatch):
    with pytest.raises(ConfigError, match=r"1,000 tokens: too few for one step of neural-bigram.*works is 1,024\."):
        climb(text, "neural-bigram", tokens=1000)
    with pytest.raises(ConfigError, match=r"too few for one step of batch-256.* 16,384\."):
        climb(text, "neural-bigram batch-256", tokens=16_000)
    at_speed(monkeypatch, neural_bigram=30.0)
    with pytest.raises(
        ConfigError, match=r"0.1 minutes: too few for one step of every run. 1 rung with 1 seed needs 0.5\d minutes"
    ):
        list(climb(text, "neural-bigram", tokens=None, minutes=0.1).run())
    list(climb(text, "neural-bigram", tokens=None, minutes=0.6).run())  # what it asked for is enough


def test_what_cannot_be_climbed(text, tmp_path):
    for options, words in [
        ({"tokens": 4096, "minutes": 1.0}, "tokens and minutes both say"),
        ({"tokens": None, "equal": "time"}, "Runs of equal time need the minutes"),
        ({"seeds": (0, 0)}, "must be different"),
        ({"jobs": 0}, "jobs = 0: must be at least 1"),
        ({"tokens": 0}, "tokens = 0: must be at least 1"),
        ({"tokens": None, "minutes": math.nan}, "minutes = nan"),
    ]:
        with pytest.raises(ConfigError, match=words):
            climb(text, "uniform", **options)
    with pytest.raises(ConfigError, match="rung uniform is there twice"):
        climb(text, "uniform uniform")
    with pytest.raises(TokenizerError, match=r"prompt: .*é"):
        climb(text, "uniform", prompt="é")


# ---------------------------------------------------------------------------------------------------------------
# The choice of rates


def test_tuning_goes_on_until_the_best_rate_is_between_two_that_are_worse(text, monkeypatch):
    tried = []

    def make(order):
        tried.append(order.seed)
        loss = abs(math.log2(order.learning_rate / 0.32)) + 1  # best at 0.32; find("neural-bigram") is far below
        return {"val_loss": loss, "bits_per_byte": 1, "train_seconds": 1, "seconds": 1, "steps": 1, "sample": ""}

    monkeypatch.setattr(runs, "make", make)
    monkeypatch.setattr(runs, "speed", lambda order: Speed(0.01, 0.1))
    rung = dataclasses.replace(find("neural-bigram"), learning_rate=0.04)
    found = tuning.tune(text, [find("uniform"), rung], tokens=4096, jobs=1)
    assert sorted(found["neural-bigram"]) == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.32, 0.64])
    assert tuning.best_rate(found["neural-bigram"]) == pytest.approx(0.32)
    assert set(tried) == {tuning.SEED}
    assert "uniform" not in found


# ---------------------------------------------------------------------------------------------------------------
# The command


def test_the_command_makes_table_samples_and_picture(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["ladder", text, "--rungs", "neural-bigram,counted-ngram", "--seeds", "2", "--tokens", "4096", "--jobs", "1"])
    said = capsys.readouterr()
    folder = tmp_path / "runs" / "cats-ladder"
    assert {path.name for path in folder.iterdir()} == {"ladder.jsonl", "ladder.md", "samples.md", "ladder.png"}
    assert (folder / "ladder.png").read_bytes()[:4] == b"\x89PNG"
    table = (folder / "ladder.md").read_text()
    assert "n-gram by counting" in table
    assert "--rungs neural-bigram,counted-ngram --tokens 4096 --seeds 2" in table
    assert "n-gram by counting" in said.out
    assert "runs/cats-ladder" in said.out
    assert said.err.count("seed 1") == 2, "a line for every run that ended"


def test_the_command_says_what_is_wrong(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["ladder", "--help"])
    options = capsys.readouterr().out + "--help "
    short = tmp_path / "short.txt"
    short.write_text("ab")
    latin, wide = tmp_path / "latin.txt", tmp_path / "wide.txt"
    latin.write_bytes(("café " * 1000).encode("latin-1"))
    wide.write_bytes(TEXT.encode("utf-16-le"))  # without the mark that says so
    for words, expected in [
        ([text, "--rungs", "one-hed"], "No rung 'one-hed'. Did you mean one-head?"),
        ([text, "--rungs", ","], "--rungs: names no rung"),
        ([], "ladder needs a DATA"),
        ([text, "--seeds", "0"], "--seeds 0: must be at least 1"),
        ([text, "--tokens", "3"], "too few for one step"),
        ([str(short)], "short.txt"),
        ([str(tmp_path / "none.txt")], "none.txt"),
        ([text, "--minutes", "1", "--tokens", "2000"], "Give one of them"),
        ([text, "--minutes", "0"], "--minutes 0: must be a number above 0"),
        ([text, "--jobs", "0"], "--jobs 0: must be at least 1"),
        ([text, "--equal", "time"], "--equal time needs --minutes"),
        ([text, "--prompt", ""], "--prompt: is empty"),
        ([text, "--prompt", "Q"], "prompt: Character 1, 'Q'"),
        ([text, "--rungs", "mlp,", "rnn"], "--rungs takes names with commas and no spaces"),
        ([text, "--out", text], "choose another folder with --out".capitalize()),
        ([str(latin)], "not valid UTF-8. It looks like cp1252: save the file as UTF-8."),
        ([str(wide)], "save it as UTF-8."),
    ]:
        with pytest.raises(SystemExit) as end:
            main(["ladder", *words])
        said = capsys.readouterr()
        assert end.value.code == 2, words
        assert expected in said.err
        assert "Traceback" not in said.err
        assert said.err.count("\n") <= 2
        for option in re.findall(r"--[a-z]+", said.err):
            assert f"{option}=" in options or f"{option} " in options, f"{option} is no option of this command"
    assert not (tmp_path / "runs").exists(), "nothing is written"


def test_the_list_explains_every_rung(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["ladder", "--list"])
    said = capsys.readouterr().out
    for rung in (*RUNGS, *SIDE_RUNGS):
        assert rung.name in said
        assert rung.source in said
        assert rung.idea in said


def test_what_is_done_is_written_though_the_reader_has_gone(text, tmp_path, monkeypatch):
    """`handmade ladder ... | head -1`, as the command line answers it."""

    class Gone(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    climbed = [text, "--rungs", "uniform", "--seeds", "1", "--jobs", "1", "--out", str(tmp_path / "out")]
    for words in (climbed, ["--list"]):
        monkeypatch.setattr(sys, "stdout", Gone())
        with pytest.raises(SystemExit) as end:
            main(["ladder", *words])
        assert end.value.code == 141
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {records.NAME, command.TABLE, command.SAMPLES, command.PICTURE}


def test_a_folder_by_its_dot_has_a_name(text, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(text).parent)
    assert climb(".", "uniform").identity["data"]["name"] == tmp_path.name


def test_the_rungs_that_are_asked_for_are_climbed_in_order():
    chosen = command.choose(["one-head,neural-bigram", "uniform"], side=False)
    assert [rung.name for rung in chosen] == ["uniform", "neural-bigram", "one-head"]
    assert command.choose([], side=False) == list(RUNGS)
    assert command.choose([], side=True) == [*RUNGS, *SIDE_RUNGS]


def test_ctrl_c_and_kill_leave_no_process_and_lose_nothing(text, tmp_path):
    words = [sys.executable, "-m", "handmade", "ladder", text, "--rungs", "neural-bigram,muon", "--seeds", "1"]
    words += ["--tokens", "50000000", "--jobs", "2", "--out", str(tmp_path / "out")]
    path = tmp_path / "out" / records.NAME

    def start() -> tuple[subprocess.Popen, list[psutil.Process]]:
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
        until = time.monotonic() + 200
        while time.monotonic() < until and process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            if sum(child.cpu_times().user > 2 for child in children) >= 1 and len(children) >= 3:
                return process, children
            time.sleep(0.2)
        process.kill()
        pytest.fail(f"the workers did not begin: {process.stderr.read()}")

    def all_gone(children: list[psutil.Process]) -> bool:
        _, alive = psutil.wait_procs(children, timeout=120)
        return not alive

    process, children = start()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to all of them
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "go on" in said
    assert all_gone(children)
    process, children = start()
    process.kill()
    process.communicate()
    assert all_gone(children), "workers end when the climb is killed"
    assert records.read(path) == []


def test_workers_send_only_what_can_be_sent(text):
    class Local(OnlyHead):
        pass

    rung = Rung("local", "local", "uniform", "", "", {"family": (Local, OnlyHeadConfig)}, 0.1)
    made = Climb(text, [rung], (0,), tokens=4096, jobs=2)
    with pytest.raises(ConfigError, match="rung local: cannot be sent to another process"), climbing.workers(2) as send:
        send(runs.speed, made.order(rung, 0))
