"""`handmade doctor` as a person meets it, and the look that `handmade train` has before a long training."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from handmade import checkpoint, cli, jobs, machine, planning
from handmade.cli import main, with_script
from handmade.cli import train as training
from handmade.doctor import checks
from handmade.doctor.checks.base import check
from handmade.doctor.findings import Report, healthy, sick
from handmade.optimizers import OptimizerConfig
from handmade.tasks import language
from handmade.training import TrainConfig

MODEL = """
    import torch
    import torch.nn as nn

    class TinyGPT(nn.Module):
        def __init__(self, vocab_size, block_size, n_embd=16):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(vocab_size, n_embd), nn.Embedding(block_size, n_embd)
            self.block_size = block_size
            self.head = nn.Linear(n_embd, vocab_size)

        def forward(self, idx):
            print("forward")
            x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
            return self.head({})

    class Image(nn.Module):
        def forward(self, x):
            return nn.functional.conv2d(x, x)

    def make():
        print("making")
        return {{"model": TinyGPT(11, 8), "vocab_size": 11}}

    def fails():
        return 1 / 0
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with a healthy model and one that norms over the batch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("good.py").write_text(dedent(MODEL.format("x")))
    Path("bad.py").write_text(dedent(MODEL.format("(x - x.mean()) / x.std()")))
    Path("broken.py").write_text("import torch\nclass A(nn.Module):\n    pass\n")
    return tmp_path


@pytest.fixture
def say(capsys, place):
    """Call the command line. Returns its exit code, standard output, standard error."""

    def call(*words):
        capsys.readouterr()
        try:
            main([str(word) for word in words])
            code = 0
        except SystemExit as leaving:
            code = leaving.code
        output, errors = capsys.readouterr()
        return code, output, errors

    return call


@pytest.fixture
def refused(say):
    """Call `handmade doctor` with a mistake: exit code 2, a line or two that say it, nothing else. Returns them."""

    def call(*words):
        code, output, errors = say("doctor", *words)
        assert code == 2, errors
        assert output == ""
        assert errors.startswith("handmade: ")
        assert errors.count("\n") <= 2
        assert "Traceback" not in errors
        return errors.removeprefix("handmade: ").rstrip("\n")

    return call


BATCH = ("--only", "batch")
SIZES = ("--vocab-size", "11", "--context", "8")


# ---------------------------------------------------------------------------------------------------------------
# What it says, and with which exit code


def test_a_healthy_and_a_sick_model(say):
    code, output, errors = say("doctor", "good.py:TinyGPT", *SIZES, *BATCH)
    assert code == 0
    assert set(errors.split()) <= {"forward"}  # what their code prints
    assert "✓ healthy: 1 check (batch)" in output
    assert "built as TinyGPT(vocab_size=11, block_size=8)" in output
    code, output, errors = say("doctor", "bad.py:TinyGPT", *SIZES, *BATCH)
    assert code == 1
    assert output.startswith("bad.py:TinyGPT: 1 sick (")
    assert "\n✗ batch\n  measured  a row's logits move by" in output
    assert "explained: handmade doctor --explain batch" in output


def test_json_is_nothing_but_json(say):
    code, output, errors = say("doctor", "bad.py:make", "--json", *BATCH)
    told = json.loads(output)
    assert code == 1
    assert told["patient"] == "bad.py:make"
    assert [(one["check"], one["verdict"]) for one in told["findings"]] == [("batch", "sick")]
    assert told["findings"][0]["value"] > told["findings"][0]["limit"]
    assert "making" in errors  # what their code prints, beside it


def test_options_reach_the_examination(say):
    words = ["doctor", "good.py:TinyGPT", *SIZES, "--arg", "n_embd=8", "--json", *BATCH]
    told = json.loads(say(*words, "--all")[1])
    assert "built as TinyGPT(vocab_size=11, block_size=8, n_embd=8)" in told["notes"]
    words[1] = "bad.py:TinyGPT"
    first, again, other = (json.loads(say(*words, "--seed", seed)[1])["findings"][0]["value"] for seed in (1, 1, 2))
    assert first == again != other
    told = json.loads(say("doctor", "good.py:make", "--json", "--seconds", "0.000001")[1])
    assert {one["measured"] for one in told["findings"]} == {"no time: 1e-06 s had passed"}


def test_only_some_checks(say, monkeypatch):
    @check("second", "something else", reference="nowhere at all")
    def second(patient):
        return healthy(f"tied is {patient.expects('tied')}, frozen {patient.expects('frozen')}")

    monkeypatch.setattr(checks, "ALL", (*checks.ALL, second))
    monkeypatch.setitem(checks.BY_NAME, "second", second)
    told = json.loads(say("doctor", "good.py:make", "--json", "--only", "second")[1])
    assert [one["check"] for one in told["findings"]] == ["second"]
    told = json.loads(say("doctor", "good.py:make", "--json", "--only", "second, batch")[1])
    assert [one["check"] for one in told["findings"]] == ["second", "batch"]
    words = ("--expect", "tied=false", "--expect", "frozen=wte, wpe", "--only", "second")
    told = json.loads(say("doctor", "good.py:make", "--json", *words)[1])
    assert told["findings"][0]["measured"] == "tied is False, frozen ['wte', 'wpe']"


def test_suspicious_is_not_sick(say, monkeypatch):
    monkeypatch.setattr("handmade.doctor.examination.choose", lambda only, quick: [question])
    code, output, _ = say("doctor", "good.py:make")
    assert code == 0
    assert "? odd" in output


@check("odd", "it may be odd", reference="nowhere at all")
def question(patient):
    from handmade.doctor.findings import suspicious

    return suspicious("odd", "even", "who knows", "nothing", 'Is it? expect={"tied": True}')


def test_a_check_is_explained(say):
    code, output, errors = say("doctor", "--explain", "batch")
    assert (code, errors) == (0, "")
    assert output.startswith("batch: a row depends on its batch-mates\n")
    assert "x = torch.randn(4, 8, 16)" in output
    assert "which prints" not in output
    code, output, _ = say("doctor", "--explain", "batch", "--run")
    assert re.search(r"which prints\n    tensor\(\d", output)


def test_checks_are_listed(say):
    code, output, _ = say("doctor", "--checks")
    assert code == 0
    assert re.search(r"^batch +a row depends on its batch-mates$", output, re.MULTILINE)
    facts = json.loads(say("doctor", "--checks", "--json")[1])
    assert [one["name"] for one in facts] == [one.name for one in checks.ALL]


def test_help_says_that_code_is_run(say):
    code, output, _ = say("doctor", "--help")
    assert code == 0
    assert "It imports and runs the code that it is pointed at" in " ".join(output.split())


# ---------------------------------------------------------------------------------------------------------------
# A person's own script


@pytest.fixture
def watched(monkeypatch):
    """What the doctor is asked to watch."""
    calls = []

    def watch(script, words, steps=8, **meant):
        print("loud")
        calls.append((script, list(words), steps, *meant.values()))
        return Report(f"{script}", (healthy("fine"), sick("a", "b", "c", "d"))[: 1 + ("--sick" in words)])

    module = types.ModuleType("handmade.doctor.watching")
    module.watch = watch
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--watch", "good.py"], []),
        (["--watch=good.py"], []),
        (["--watch", "good.py", "a", "b"], ["a", "b"]),
        (["--watch", "good.py", "--json", "--lr", "3", "--seed=1"], ["--json", "--lr", "3", "--seed=1"]),
        (["--watch=good.py", "--help", "-x"], ["--help", "-x"]),
        (["--watch", "good.py", "--", "--x"], ["--", "--x"]),
        (["--watch", "good.py", "--watch", "other.py"], ["--watch", "other.py"]),
    ],
)
def test_words_behind_a_script_are_the_scripts(say, watched, words, expected):
    code, output, errors = say("doctor", *words)
    assert (code, errors) == (0, "loud\n")
    assert watched == [(Path("good.py"), expected, 8)]
    assert "good.py: 1 healthy" in output


def test_options_before_a_script_are_ours(say, watched):
    words = ("--json", "--steps", "3", "--expect", "tied=false", "--watch", "good.py", "--sick", "--steps", "4")
    code, output, _ = say("doctor", *words)
    assert code == 1
    assert watched == [(Path("good.py"), ["--sick", "--steps", "4"], 3, {"tied": False})]
    assert json.loads(output)["counts"]["sick"] == 1


@pytest.mark.parametrize(
    ("words", "after"),
    [
        (["TARGET", "--json"], ["TARGET", "--json"]),
        (["--watch"], ["--watch"]),
        (["--watch", "s.py"], ["--watch", "s.py"]),
        (["--", "--watch", "s.py", "a"], ["--", "--watch", "s.py", "a"]),
    ],
)
def test_other_words_stay(words, after):
    assert with_script(words) == after


# ---------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["broken.py:A"], "broken.py, line 2: NameError: name 'nn' is not defined\n    class A(nn.Module):"),
        (["good.py:fails"], "good.py, line 26: ZeroDivisionError: division by zero\n    return 1 / 0"),
        (["good.py:TinyGTP"], "good.py: has no TinyGTP. Did you mean TinyGPT?"),
        (["good.py:zzz"], "good.py: has no zzz. There are TinyGPT, Image, make, fails."),
        (["good.py"], "good.py: name what of it, as in good.py:Image. It has TinyGPT, Image, make, fails."),
        (["gud.py:TinyGPT"], "gud.py: no such file. Did you mean good.py?"),
        (["good:TinyGPT"], "good: no such file. Did you mean good.py:TinyGPT?"),
        (["runs/mybok"], "runs/mybok: no such run. Make one: handmade train TEXT"),
        (["good.py:TinyGPT"], "good.py:TinyGPT: asks for vocab_size. Give --vocab-size N."),
        (["good.py:Image"], "good.py:Image: how many tokens there are is not to be seen. Give --vocab-size N."),
        (["good.py:Image", "--vocab-size", "5"],
         "good.py:Image: it could not be called with token ids: tokens ("),
        (["good.py:TinyGPT", "--vocab-size", "5", "--arg", "n_embed=3"],
         "--arg n_embed=3: TinyGPT takes no n_embed. Did you mean n_embd?"),
        (["good.py:TinyGPT", "--arg", "n_embd"], "--arg n_embd: needs a name and a value, as in --arg n_layer=2."),
        (["good.py:TinyGPT", "--arg", "a=1", "--arg", "a=2"], "--arg a: is given twice."),
        (["good.py:TinyGPT", "--vocab-size", "0"], "--vocab-size 0: must be at least 1."),
        (["good.py:TinyGPT", "--vocab-size", "1.5"], "--vocab-size 1.5: must be a whole number."),
        (["good.py:TinyGPT", "--context", "-1"], "--context -1: must be at least 1."),
        (["good.py:TinyGPT", "--seconds", "0"], "--seconds 0: must be a number above 0."),
        (["good.py:TinyGPT", "--seconds", "nan"], "--seconds nan: must be a number above 0."),
        (["good.py:TinyGPT", "--seed", "-1"], "--seed -1: must be from 0 to 2^63 - 1."),
        (["good.py:make", "--only", "bach"], "no check 'bach'. Did you mean batch?"),
        (["good.py:make", "--only", ","], "--only: names no check."),
        (["good.py:make", "--expect", "tied"], "--expect tied: needs a name and a value, as in --expect tied=true."),
        (["good.py:make", "--expect", "tyed=true"], "--expect tyed=true: there is no tyed. Did you mean tied?"),
        (["good.py:make", "--expect", "tied=maybe"], "--expect tied=maybe: must be true or false. True: "),
        (["--explain", "batsch"], "no check 'batsch'. Did you mean batch?"),
        (["--explain", "zzzz"], "no check 'zzzz'. There are "),
        (["--explain"], "--explain needs a value. See: handmade doctor --help"),
        ([], "doctor needs a TARGET: the folder of a run, or file.py:Name. See: handmade doctor --help"),
        (["a.py:A", "b.py:B"], "doctor needs one TARGET, not a.py:A and b.py:B. See: handmade doctor --help"),
        (["--checks", "--explain", "batch"], "--explain and --checks: one at a time."),
        (["--checks", "good.py:make"], "--checks takes no target. Leave it out."),
        (["--explain", "batch", "--seed", "3"], "--explain takes no --seed. Leave it out."),
        (["--vocab-size", "3", "--watch", "good.py"], "--watch takes no --vocab-size. Leave it out."),
        (["--watch", "gud.py"], "gud.py: no such file. Did you mean good.py?"),
        (["--steps", "0", "--watch", "good.py"], "--steps 0: must be at least 1."),
        (["good.py:make", "--run"], "--run goes with --explain alone. Leave it out."),
        (["good.py:make", "--steps", "3"], "--steps goes with --watch alone. Leave it out."),
        (["good.py:make", "--jsn"], "unknown option --jsn. Did you mean --json?"),
    ],
)  # fmt: skip
def test_bad_input(refused, watched, words, answer):
    assert refused(*words).startswith(answer)


def test_what_is_too_large_for_memory(say, monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda device: 1)
    code, output, errors = say("doctor", "good.py:make")
    assert (code, output) == (2, "")
    assert re.search(r"^handmade: good.py:make: takes .* of memory to examine, and .* are free", errors, re.MULTILINE)


def test_words_are_checked_before_code_is_run(refused, place):
    Path("loud.py").write_text("raise RuntimeError('it was run')")
    assert refused("loud.py:A", "--only", "bach").startswith("no check")
    assert refused("loud.py:A", "--expect", "tyed=true").startswith("--expect")
    assert refused("loud.py:A", "--seed", "-1").startswith("--seed")


def test_nothing_is_written(say, place):
    before = sorted(place.rglob("*"))
    assert say("doctor", "good.py:TinyGPT", *SIZES)[0] in (0, 1)
    assert sorted(place.rglob("*")) == before


# ---------------------------------------------------------------------------------------------------------------
# The look before a long training

TINY = {
    "model.layers": 1, "model.heads": 2, "model.width": 16, "model.context": 16, "model.dropout": 0.1,
    "train.steps": 6, "train.batch": 4, "train.precision": "float32", "train.compile": "no",
    "train.evaluate_every": 3,
}  # fmt: skip


@pytest.fixture
def trained(say, monkeypatch):
    """Train a tiny run with a look before it, or without. Returns what was said."""
    monkeypatch.setattr(language, "CLOSING_TOKENS", 3)
    Path("text.txt").write_text("the cat sat on the mat. a dog ran to the cat!\n" * 30)

    def call(out, look=True, *words):
        monkeypatch.setattr(training, "LOOK_FROM", -1.0 if look else 1e9)
        monkeypatch.setattr(training, "LOOK_SECONDS", 600.0)  # the machine may be busy with other tests
        sets = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
        code, output, errors = say("train", "text.txt", "--out", out, *(words or sets))
        assert code == 0, errors
        return output

    return call


@check("always", "it is always sick", reference="nowhere at all", quick=True)
def always(patient):
    with torch.no_grad():
        for parameter in patient.module.parameters():
            parameter.add_(torch.randn_like(parameter))
    patient.module.train()
    patient.fresh()
    return sick("this", "that", "because", "do it right")


@check("slow", "it is not quick", reference="nowhere at all")
def slow(patient):
    return sick("slow", "quick", "because", "nothing")


def test_the_look_changes_no_bit(trained, monkeypatch):
    monkeypatch.setattr(checks, "ALL", (*checks.ALL, always))
    drawn = []
    for name, look in (("looked", True), ("alone", False)):
        torch.manual_seed(0)
        assert ("always" in trained(name, look)) is look
        drawn.append(torch.get_rng_state())
    assert torch.equal(*drawn)
    first, second = (checkpoint.load_checkpoint(Path(name)) for name in ("looked", "alone"))
    assert same(first["model"], second["model"])
    assert same(first["optimizers"], second["optimizers"])
    assert torch.equal(first["data"], second["data"])
    assert torch.equal(first["dropout"]["cpu"], second["dropout"]["cpu"])
    losses = [
        [(line.get("train_loss"), line.get("val_loss"), line["grad_norm"]) for line in map(json.loads, lines)]
        for lines in (Path(name, "metrics.jsonl").read_text().splitlines() for name in ("looked", "alone"))
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) >= 2


def same(one, other):
    """Whether two trees hold the same bits."""
    if torch.is_tensor(one):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return one == other


def test_only_what_is_wrong_is_said_and_only_by_quick_checks(trained, monkeypatch):
    assert "doctor" not in trained("well")
    monkeypatch.setattr(checks, "ALL", (*checks.ALL, always, slow))
    output = trained("wrong")
    assert "doctor        always: this, expected that. do it right\n" in output
    assert "explained: handmade doctor --explain always" in output
    assert "slow" not in output
    assert output.index("doctor") < output.index("this machine")


def test_a_short_training_is_not_looked_at(trained, monkeypatch):
    monkeypatch.setattr(checks, "ALL", (always,))
    assert "doctor" not in trained("short", False)
    assert training.LOOK_FROM == 1e9
    monkeypatch.undo()
    assert training.LOOK_FROM == 60
    assert training.LOOK_SECONDS < 5


def test_the_look_is_taken_off_the_time_that_was_given(say, monkeypatch):
    class Trainer:
        config = TrainConfig(steps=100)

    measured = planning.Measured(0.5, 0.1, 1e3, 0.0, 0)
    job = jobs.Job(None, Path(), "gpt", None, {}, None, {}, Trainer(), measured)
    job.spend(2.1)
    assert job.trainer.config.steps == 100  # a number of steps was asked for
    job.seconds = 60.0
    job.spend(2.1)
    assert job.trainer.config.steps == 95
    assert job.tables["train"]["steps"] == 95


def test_every_kind_of_run_can_be_looked_at():
    from handmade.doctor import examine
    from handmade.doctor.runs import given_of_shape
    from handmade.models import FAMILIES

    for family, (_, settings) in FAMILIES.items():
        if family == "counting":
            continue  # it is not trained
        sizes = {name: 11 for name in ("vocab_size", "source_vocab_size") if name in settings.annotations()}
        small = {"width": 16, "hidden": 16, "heads": 2, "layers": 2, "encoder_layers": 1, "decoder_layers": 1}
        small = {name: value for name, value in small.items() if name in settings.annotations()}
        optimizer = OptimizerConfig("muon", weight_decay=0.1, decay_embeddings=True)
        given = given_of_shape(family, settings(**sizes, **small), optimizer)
        report = examine(given, quick=True)
        # As it was published, the stream of a fixed window is not normed before its head.
        assert set(report.sick) <= ({"growth"} if family == "fixed-window" else set()), (family, report.findings)
        held = {id(p) for one in given.optimizer for group in one.param_groups for p in group["params"]}
        assert held == {id(p) for p in given.model.parameters()}


def test_where_memory_is_small_the_training_goes_on(trained, monkeypatch):
    from handmade.doctor import runs
    from handmade.errors import ResourceError

    def small(*_):
        raise ResourceError("memory is too small.")

    monkeypatch.setattr(runs, "shallower", small)
    assert "doctor        did not look: memory is too small." in trained("small")


def test_the_command_is_among_the_others():
    assert "doctor" in cli.COMMANDS
