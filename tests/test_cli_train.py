"""`handmade train` as a person meets it: what it says, what it makes, what it refuses and leaves as it was.

The refusals that the project's goal lists are in test_train_refusals.py, killing and resuming in test_resume.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import handmade
from handmade import corpora, curve, data, machine, planning, presets, tokenizers
from handmade.cli import main
from handmade.cli import train as command
from handmade.corpora import Corpus
from handmade.tasks import language, sizes

TEXT = "the cat sat on the mat. a dog ran to the cat!\n" * 30
TINY = {
    "model.layers": 1,
    "model.heads": 2,
    "model.width": 16,
    "model.context": 16,
    "train.steps": 4,
    "train.batch": 4,
    "train.precision": "float32",
    "train.compile": "no",
}


def options(**changes):
    """`--set` for the tiny settings, with changes: `train_steps=9`; None leaves one out."""
    changes = {name.replace("_", ".", 1): value for name, value in changes.items()}
    return [
        word
        for name, value in {**TINY, **changes}.items()
        if value is not None
        for word in ("--set", f"{name}={value}")
    ]


@pytest.fixture(autouse=True)
def _short_endings(monkeypatch):
    """What comes after training takes longer than these trainings."""
    monkeypatch.setattr(language, "CLOSING_TOKENS", 12)
    monkeypatch.setattr(curve, "draw", lambda folder: None)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of its own to work in, with text.txt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


@pytest.fixture
def call(capsys, place):
    """Call `handmade train`. Returns exit code, standard output, standard error."""

    def run(*words, command="train"):
        capsys.readouterr()
        code = 0
        try:
            main([command, *map(str, words)])
        except SystemExit as leaving:
            code = leaving.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def trained(call):
    """Call `handmade train` for something that can be. Returns standard output."""

    def run(*words):
        code, output, errors = call(*words)
        assert code == 0, errors
        return output

    return run


@pytest.fixture
def refused(call, place):
    """Call `handmade train` for something that cannot be: exit code 2, a line or two that say so, nothing left and
    nothing changed. Returns them."""

    def run(*words):
        before = contents(place)
        code, _, errors = call(*words)
        assert code == 2, errors
        assert errors.startswith("handmade: ")
        assert 1 <= errors.count("\n") <= 2
        assert "Traceback" not in errors
        assert contents(place) == before
        return errors

    return run


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def config(folder="runs/text"):
    return json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))


def validation_losses(folder="runs/text"):
    reports = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return [report["val_loss"] for report in reports if "val_loss" in report]


def lines(output):
    """The lines in two columns: label -> sentences."""
    found, label = {}, ""
    for line in output.split("\n\n")[0].splitlines():
        label = line[:13].strip() or label
        found.setdefault(label, []).append(line[14:])
    return found


# ---------------------------------------------------------------------------------------------------------------
# What it says and makes


def test_what_is_said_and_made(trained, place, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(place)
    output = trained("text.txt", *options(train_steps=30, optimizer_learning_rate=0.02))
    said = lines(output)
    assert list(said) == ["text.txt", "tokens", "picked", "model", "this machine", "memory", "to beat"]
    assert said["text.txt"] == ["1,380 characters, 16 distinct, character tokens; 1,242 to train on, 138 to validate"]
    assert said["tokens"] == ["character tokens: 16 distinct, all of them seen in training"]
    shape = "gpt, 1 layer, 2 heads, width 16, context 16"
    assert re.fullmatch(rf"{shape}: [\d,]+ parameters", said["model"][0])
    assert re.fullmatch(r"[\d,]+ tokens/s \(float32, not compiled\), so 30 steps in \d+ s", said["this machine"][0])
    memory = re.fullmatch(r"([\d.]+) ([MG])B while training, measured; .* are free", said["memory"][0])
    assert 100 < float(memory[1]) * {"M": 1, "G": 1000}[memory[2]] < 3000  # MB of the whole process, torch among it
    line = float(said["to beat"][0].partition(" ")[0])
    _, ending = output.split("\n\n", 1)
    last = re.search(r"^validation ([\d.]+), (below|not below) the counting line of (\d\.\d+)", ending, re.MULTILINE)
    best = min(validation_losses())
    assert float(last[1]) == pytest.approx(best, abs=5e-4)
    assert (last[2] == "below") == (best < line)
    assert float(last[3]) == line
    assert ending.endswith('try: handmade sample runs/text --prompt "..."\n')
    assert (place / "runs" / "text" / "curve.png").read_bytes().startswith(b"\x89PNG")
    sample = ending.split("(model, metrics.jsonl, curve.png).\n\n")[1].rpartition("\n\ntry:")[0]
    assert sample == handmade.load("runs/text").generate(tokens=300, temperature=0.8, seed=0).strip("\n")


def test_the_record_is_whole(trained):
    """Resuming takes device, precision, threads, compilation and steps from it, so nothing is left to be picked."""
    trained("text.txt", *options(train_precision="auto", train_compile="auto"))
    found = config()
    assert found["train"]["device"] == "cpu"
    assert found["train"]["precision"] in ("float32", "bfloat16")
    assert found["train"]["compile"] == "no"
    assert found["train"]["threads"] == torch.get_num_threads()
    assert found["train"]["steps"] == 4
    for table, made in zip(
        ("train", "optimizer", "schedule"),
        (handmade.TrainConfig, handmade.optimizers.OptimizerConfig, handmade.schedules.ScheduleConfig),
        strict=True,
    ):
        assert found[table].keys() == {field.name for field in dataclasses.fields(made)}
    assert found["data"]["corpus"] is None
    assert found["counting_line"] > 0
    words = "handmade train text.txt --set model.layers=1 --set model.heads=2"
    assert found["command"].startswith(words)


def test_the_command_can_be_typed_again(trained, place):
    (place / "my book.txt").write_text(TEXT)
    trained("my book.txt", *options(), "--out", "a b", "--tokenizer", "byte")
    assert config("a b")["command"].startswith("handmade train 'my book.txt' --set")
    assert config("a b")["command"].endswith("--out 'a b' --tokenizer byte")


@pytest.mark.parametrize("name", ["my book (2).txt", "吾輩は猫である、名前はまだ無い.txt", "-x.txt", "no ending"])
def test_names_of_files(trained, place, name):
    (place / name).write_text(TEXT)
    output = trained(f"./{name}", *options())
    folder = Path("runs", Path(name).stem)
    assert config(folder)["data"]["files"] == [str(place / name)]
    hint = output.rstrip().splitlines()[-1]
    typed = subprocess.run(["sh", "-c", f"printf '%s\\n' {hint[5:]}"], capture_output=True, text=True, check=True)
    assert typed.stdout.splitlines()[2] == str(folder)
    first, *others = output.split("\n\n")[0].splitlines()
    assert first.startswith(f"{name} ")
    assert all(line[13] == " " for line in others)


def test_a_corpus_by_name(trained, place, monkeypatch):
    monkeypatch.setitem(
        corpora.CORPORA, "plays", lambda say: Corpus("plays", place / "text.txt", (place / "text.txt",), "by somebody")
    )
    assert lines(trained("plays", *options()))["plays"][0] == "by somebody"
    assert config("runs/plays")["data"]["corpus"] == "plays"
    trained("plays", "text.txt", *options(), "--out", "both")
    assert config("both")["data"]["corpus"] is None


def test_other_encodings(trained, place):
    (place / "latin.txt").write_bytes("O coração não é fácil.\n".encode("latin-1") * 40)
    trained("latin.txt", *options(), "--encoding", "latin-1")
    assert "ç" in handmade.load("runs/latin").tokenizer.characters
    assert config("runs/latin")["data"]["encoding"] == "latin-1"


def test_a_validation_file_is_the_validation_part(trained, place):
    (place / "held.txt").write_text("the dog sat on the cat!\n" * 9)
    said = lines(trained("text.txt", "--validation", "held.txt", *options()))
    assert said["text.txt"][0].endswith(f"{len(TEXT):,} to train on, {24 * 9} to validate")
    assert config()["data"]["validation"] == [str(place / "held.txt")]
    # In a folder it is left out of what is trained on, and that is said.
    (place / "folder").mkdir()
    for name in ("text.txt", "held.txt"):
        shutil.copy(name, place / "folder" / name)
    said = lines(trained("folder", "--validation", "folder/held.txt", *options()))
    assert "held.txt" in said["left out"][0]


def test_a_counting_model(call, trained):
    output = trained("text.txt", "--model", "counting", "--set", "model.order=3")
    said = lines(output)
    known = {TEXT[:1242][i : i + n] for n in (1, 2, 3) for i in range(1242 - n + 1)}
    assert said["model"] == [f"3-grams by counting: {len(known)} of them"]
    assert "to beat" not in said
    assert "counting line" not in output
    loss = handmade.load("runs/text").evaluate()["val_loss"]
    assert f"\nvalidation {loss:.3f}. Saved in runs/text (model).\n" in output
    code, output, _ = call("runs/text", command="eval")
    assert code == 0
    assert "to beat" not in output
    assert sorted(path.name for path in Path("runs/text").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_a_preset_keeps_its_steps_unless_a_time_is_given(trained, monkeypatch):
    tables = {"model": {}, "train": {}, "optimizer": {"name": "sgd", "learning_rate": 0.1}, "schedule": {}}
    for name, value in TINY.items():
        table, option = name.split(".")
        tables[table][option] = value
    monkeypatch.setitem(presets.PRESETS, "mine", presets.Preset("mine", "here", **tables))
    said = lines(trained("text.txt", "--preset", "mine"))
    assert "so 4 steps" in said["this machine"][0]
    assert config()["optimizer"]["name"] == "sgd"
    trained("text.txt", "--preset", "mine", "--minutes", "0.03", "--force")
    assert config()["train"]["steps"] > 4


def test_the_last_setting_wins(trained, place):
    (place / "one.toml").write_text("[train]\nseed = 1\nreport_every = 1\n[optimizer]\nlearning_rate = 0.1\n")
    (place / "two.toml").write_text("[train]\nseed = 2\n[model]\ndropout = 0.3\n")
    words = ["--config", "one.toml", "--config", "two.toml", "--set", "model.dropout=0.4"]
    trained("text.txt", *options(), *words)
    found = config()
    assert (found["train"]["seed"], found["train"]["report_every"], found["model"]["dropout"]) == (2, 1, 0.4)
    assert found["optimizer"]["learning_rate"] == 0.1


def test_another_optimizer_has_its_own_rate(trained):
    """The picked rate is one for Muon; AdamW would not survive it."""
    said = lines(trained("text.txt", *options(optimizer_name="adamw")))
    assert config()["optimizer"]["learning_rate"] == 0.001
    assert config()["optimizer"]["embedding_learning_rate"] is None
    assert "learning rate 0.001, usual for adamw" in said["picked"]
    trained("text.txt", *options(optimizer_name="adamw", optimizer_learning_rate=0.5), "--force")
    assert config()["optimizer"]["learning_rate"] == 0.5


@pytest.mark.parametrize(
    ("asked", "right"),
    [({"width": 20}, (2, 20, "rotary")), ({"heads": 3}, (3, 60, "rotary")), ({"width": 7}, (1, 7, "learned"))],
)
def test_heads_width_and_positions_are_made_to_fit_each_other(trained, monkeypatch, asked, right):
    monkeypatch.setattr(sizes, "SIZES", (sizes.Size(1, 2, 64, 16, 4),))
    words = options(**{"model_heads": None, "model_width": None, **{f"model_{n}": v for n, v in asked.items()}})
    trained("text.txt", *words)
    assert tuple(config()["model"][name] for name in ("heads", "width", "positions")) == right


def test_parts_can_be_left_out_of_what_is_picked(trained, refused):
    asked = options(model_mixing="mean", model_positions="rotary")  # what is asked for is not passed over
    assert "model.positions = 'rotary': must be none, learned or sinusoidal" in refused("text.txt", *asked)
    left_out = options(model_mixing="mean", model_residual="false", model_hidden=0)
    said = lines(trained("text.txt", *left_out))
    assert "learned positions: a plain mean has no queries and keys to turn" in said["picked"]
    assert "no zeros to begin with: without residual connections nothing would pass them" in said["picked"]
    assert said["model"][0].startswith("gpt, 1 layer, width 16, context 16: ")
    model = config()["model"]
    assert [model[name] for name in ("mixing", "residual", "hidden", "positions")] == ["mean", False, 0, "learned"]


def test_a_context_that_the_text_has_no_window_for(trained, place):
    (place / "short.txt").write_text("hello world, hello you!\n" * 3)
    said = lines(trained("short.txt", *options(model_context=100)))
    assert said["context"] == ["The training part has 64 tokens, so the context is 63 instead of 100."]
    assert config("runs/short")["model"]["context"] == 63


def test_stopping_early_is_said(trained):
    changes = {"optimizer_name": "sgd", "optimizer_learning_rate": 50, "schedule_warmup": 0, "train_clip": "none"}
    output = trained(
        "text.txt",
        *options(train_steps=40, train_evaluate_every=1, train_patience=1, schedule_name="constant", **changes),
    )
    values = validation_losses()
    assert len(values) < 40
    best = values.index(min(values)) + 1
    assert f"Stopped early: it was best at step {best}." in output


def test_the_sample_begins_without_blank_lines(trained, place, monkeypatch):
    monkeypatch.setattr(language, "CLOSING_TOKENS", 60)
    (place / "blank.txt").write_text(("\n" * 20 + "a") * 30)
    output = trained("blank.txt", *options(train_steps=60, optimizer_learning_rate=0.05))
    assert "metrics.jsonl, curve.png).\n\na" in output
    # Without a line break in its vocabulary it begins all the same.
    (place / "line.txt").write_text("ab" * 300)
    output = trained("line.txt", *options())
    assert re.search(r"curve.png\)\.\n\n[ab]{60}\n\ntry:", output)


def test_control_characters_do_not_reach_a_terminal(trained, place, monkeypatch):
    (place / "bell.txt").write_text("\x1b\x07" * 300)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "\x1b\x07" not in trained("bell.txt", *options())


# ---------------------------------------------------------------------------------------------------------------
# Time


def test_a_very_short_time_is_half_spent_on_training(trained, monkeypatch):
    """However long it took to begin."""
    monkeypatch.setattr(planning, "measure", lambda *_: planning.Measured(0.01, 0.1, 1000.0, 0.0, 1_000_000))
    monkeypatch.setattr(command, "process_age", lambda: 100.0)
    trained("text.txt", "--minutes", "0.02", *options(train_steps=None))
    assert config()["train"]["steps"] == 60  # 0.6 s and one evaluation


def test_the_time_of_a_process_counts_only_where_it_is_this_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["handmade", "train", "x"])
    assert command.process_age() > 0.1
    monkeypatch.setattr(sys, "argv", ["pytest"])
    assert command.process_age() == 0


def test_no_time_for_a_step(refused, monkeypatch):
    monkeypatch.setattr(planning, "measure", lambda *_: planning.Measured(9.0, 1.0, 1.0, 0.0, 1_000_000))
    assert "No time for a single step" in refused("text.txt", "--minutes", "0.1", *options(train_steps=None))


def test_what_was_asked_for_stays_when_steps_are_laid_out(trained):
    words = options(train_steps=None, train_evaluate_every=3, train_report_every=2, train_checkpoint_every=7)
    trained("text.txt", "--minutes", "0.01", *words)
    found = config()["train"]
    assert (found["evaluate_every"], found["report_every"], found["checkpoint_every"]) == (3, 2, 7)


# ---------------------------------------------------------------------------------------------------------------
# Fine-tuning


def test_fine_tuning_goes_on_from_the_weights(trained, place):
    trained("text.txt", *options(train_steps=20))
    (place / "short.txt").write_text("a dog sat on the mat.\n")
    words = ["--set", "train.steps=1", "--set", "optimizer.learning_rate=1e-9", "--set", "model.dropout=0.1"]
    rates = [f"optimizer.{name}_learning_rate=1e-9" for name in ("embedding", "head", "vector")]
    said = lines(trained("short.txt", "--from", "runs/text", *words, *(w for r in rates for w in ("--set", r))))
    old, new = handmade.load("runs/text"), handmade.load("runs/short")
    for name, weight in old.model.state_dict().items():
        torch.testing.assert_close(new.model.state_dict()[name], weight, atol=1e-6, rtol=0)
    assert list(said)[:3] == ["short.txt", "tokens", "picked"]
    assert new.config["model"]["dropout"] == 0.1


def test_fine_tuning_on_less_than_a_window(trained, place):
    trained("text.txt", *options())
    (place / "line.txt").write_text("a dog ran to")
    said = lines(trained("line.txt", "--from", "runs/text", "--set", "train.steps=2"))
    assert "so the context is 9 instead of 16" in said["context"][0]
    assert config("runs/line")["model"]["context"] == 16  # the model keeps its own


def test_fine_tuning_lowers_the_rates_and_takes_the_machine_anew(trained):
    trained("text.txt", *options(optimizer_learning_rate=0.01, optimizer_embedding_learning_rate=0.1))
    path = Path("runs/text/config.json")
    elsewhere = config()
    elsewhere["train"].update(device="cuda:3", precision="float16", threads=999)
    path.write_text(json.dumps(elsewhere))
    trained("text.txt", "--from", "runs/text", "--out", "new", "--set", "train.steps=2", "--set", "train.compile=no")
    found = config("new")
    assert found["optimizer"]["learning_rate"] == pytest.approx(0.003)
    assert found["optimizer"]["embedding_learning_rate"] == pytest.approx(0.03)
    assert found["train"]["device"] == "cpu"
    assert found["train"]["threads"] == torch.get_num_threads()


# ---------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Name a text to train on"),
        (["text.txt", "--minutes", "nan"], "--minutes nan: must be a number above 0"),
        (["text.txt", "--minutes", "inf"], "--minutes inf"),
        (["text.txt", "--minutes", "1", "--set", "train.steps=5"], "Leave it out, or train.steps"),
        (["text.txt", "--out", "text.txt"], "text.txt: is a file"),
        (["text.txt", "--out", "text.txt/run"], "is a file. Choose another folder with --out"),
        (["text.txt", "--config", "no.toml"], "no.toml: no such file"),
        (["text.txt", "--validation", "no.txt"], "no.txt: no such file"),
        (["text.txt", "--validation", "text.txt"], "text.txt: there is no other text to train on"),
        (["text.txt", "--encoding", "utf9"], "--encoding utf9: not an encoding that Python knows"),
        (["text.txt", "--preset", "speedrun", "--model", "bigram"], "--preset speedrun is for --model gpt"),
        (["text.txt", "--set", "train.threads=100000"], "train.threads = 100000: must be at most"),
        (["text.txt", "--set", "train.precision=float16"], "precision float16"),
        (["text.txt", "--set", "optimizer.learning_rate=nan"], "optimizer.learning_rate = nan: must be a number above"),
        (["text.txt", "--set", "model.layers=100000000"], "Training would take about"),
        (["text.txt", "--set", f"model.width={10**12}"], "Training would take about"),
        (["text.txt", "--model", "bigram", "--set", "train.batch=1000000000"], "Training would take about"),
        (["text.txt", "--preset", "gpt2", "--set", "train.batch=100000"], "Training would take about"),
        (["text.txt", "--set", "train.tensorboard=true"], "pip install 'handmade[tensorboard]'"),
    ],
)
def test_refused(refused, monkeypatch, words, said):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert said in refused(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--preset", "speedrun"], "--from runs/text takes the settings of that run"),
        (["--tokenizer", "byte"], "--from runs/text takes the tokenizer of that run"),
        (["--model", "bigram"], "--from runs/text: is a gpt model"),
        (["--set", "model.heads=4"], "model.heads = 4: --from runs/text has 2"),
        (["--set", "model.context=8"], "model.context = 8: --from runs/text has 16"),
    ],
)
def test_fine_tuning_refused(trained, refused, words, said):
    trained("text.txt", *options(train_steps=1))
    assert said in refused("text.txt", "--from", "runs/text", "--out", "new", "--set", "train.steps=1", *words)


def test_fine_tuning_advice_is_not_what_from_cannot_take(trained, refused, place):
    trained("text.txt", *options(train_steps=1))
    (place / "new.txt").write_text(TEXT + "ü")
    said = refused("new.txt", "--from", "runs/text")
    assert "new.txt: character 1,381" in said
    assert "train without --from runs/text" in said
    assert "--tokenizer" not in said


def test_a_counting_model_cannot_be_fine_tuned(trained, refused):
    trained("text.txt", "--model", "counting")
    assert "has no weights to go on from" in refused("text.txt", "--from", "runs/text", "--out", "new")


@pytest.mark.parametrize("words", [["--preset", "nanogtp"], ["--set", "model.heads=0"], ["--out", "taken"]])
def test_what_can_be_refused_at_once_is(refused, place, monkeypatch, words):
    """Before a corpus is fetched, and before a text is read."""

    def never(*_, **__):
        raise AssertionError("this takes long")

    (place / "taken").mkdir()
    (place / "taken" / "config.json").write_text("{}")
    monkeypatch.setitem(corpora.CORPORA, "plays", never)
    monkeypatch.setattr(data, "prepare", never)
    refused("plays", *words)


def test_a_folder_that_may_not_be_written(refused, place, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # as it is for anyone but root
    assert f"nothing may be written in {place}" in refused("text.txt", *options())


def test_no_room_for_the_run(refused, trained, monkeypatch):
    trained("text.txt", *options())
    used = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=used.total, used=used.used, free=200_000))
    for words in (["--out", "new"], ["--force"]):
        said = refused("text.txt", *options(), *words)
        assert "No disk space for the run's weights and checkpoints" in said
        assert "choose another folder with --out" in said


def test_the_disk_is_full_in_the_middle(call, trained):
    """Files cannot grow beyond a size: as near to a full disk as a test can come. The run that has begun stays, and
    goes on when there is room."""
    data.prepare(["text.txt"], corpora.cache_folder() / "tokens")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        code, _, errors = call("text.txt", *options(model_width=32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    assert re.search(r"^handmade: No disk space for the checkpoint of step 0 \(.*\) in runs/text", errors)
    assert "--resume runs/text" in errors
    trained("--resume", "runs/text")
    assert Path("runs/text/model.safetensors").exists()


@pytest.mark.parametrize("trouble", ["memory", "time", "measurement", "counting"])
def test_the_old_run_stays_until_the_new_one_can_start(trained, call, place, monkeypatch, trouble):
    trained("text.txt", *options())
    before = contents(place)
    words = ["text.txt", "--force", *options()]
    if trouble == "memory":
        monkeypatch.setattr(machine, "free_memory", lambda device: 1000)
    elif trouble == "time":
        monkeypatch.setattr(planning, "measure", lambda *_: planning.Measured(99.0, 1.0, 1.0, 0.0, 1_000_000))
        words = ["text.txt", "--force", "--minutes", "0.1", *options(train_steps=None)]
    elif trouble == "measurement":
        monkeypatch.setattr(planning, "measure", failing("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    else:
        used = SimpleNamespace(total=1, used=1, free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: used)
        monkeypatch.setattr(tokenizers.CharTokenizer, "save", failing("not reached"))
        (place / "runs" / "text" / "model.safetensors").write_bytes(b"")  # room that it would make
        before = contents(place)
        words = ["text.txt", "--force", "--model", "counting"]
    code, _, errors = call(*words)
    assert code == 2, errors
    assert contents(place) == before


def failing(message):
    def fail(*_, **__):
        raise RuntimeError(message)

    return fail


def test_a_start_that_fails_takes_its_folder_back(place, call, monkeypatch):
    monkeypatch.setattr(handmade.checkpoint, "write_json", failing("stop here"))
    with pytest.raises(RuntimeError, match="stop here"):
        call("text.txt", *options())
    assert not (place / "runs" / "text").exists()


# ---------------------------------------------------------------------------------------------------------------
# Ctrl-C, and going on


def test_stopped_and_gone_on_with(call, trained, monkeypatch):
    """Ctrl-C in the middle; what is said can be typed, and the end is that of a run that was not stopped."""
    words = options(train_steps=12, train_evaluate_every=4, train_report_every=1)
    trained("text.txt", *words, "--out", "straight")
    update = handmade.progress.Progress.update

    def press(self, report):
        update(self, report)
        if report.step == 6:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(handmade.progress.Progress, "update", press)
        code, output, _ = call("text.txt", *words, "--out", "my run")
    assert code == 130
    stopped = re.search(
        r"Stopped at step (\d+) of 12, saved in my run\.\ngo on: handmade train --resume 'my run'\n", output
    )
    assert stopped[1] in ("6", "7")
    output = trained("--resume", "my run")
    assert lines(output)["resumed"] == [f"at step {stopped[1]} of 12"]
    assert Path("my run/model.safetensors").read_bytes() == Path("straight/model.safetensors").read_bytes()


def test_reports_that_are_gone_are_missed(call, trained):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(handmade.progress.Progress, "update", lambda self, report: signal.raise_signal(signal.SIGINT))
        assert call("text.txt", *options(train_steps=6, train_report_every=1), "--out", "run")[0] == 130
    Path("run/metrics.jsonl").unlink()
    assert "metrics.jsonl is gone" in lines(trained("--resume", "run"))["reports"][0]


def test_a_text_that_has_moved(call, trained, refused, place):
    words = [*options(train_steps=6), "--out", "run"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(handmade.progress.Progress, "update", lambda self, report: signal.raise_signal(signal.SIGINT))
        assert call("text.txt", *words, "--set", "train.report_every=1")[0] == 130
    (place / "text.txt").rename(place / "moved.txt")
    said = refused("--resume", "run")
    assert "text.txt is not there any more" in said
    assert "handmade train NEW_PLACE --resume run" in said
    (place / "other.txt").write_text(TEXT[::-1])
    said = refused("other.txt", "--resume", "run")
    assert "other.txt is not the text that it was trained on" in said
    trained("moved.txt", "--resume", "run")
    assert "is finished" in refused("moved.txt", "--resume", "run")


def test_a_counting_model_does_not_go_on(trained, refused):
    trained("text.txt", "--model", "counting")
    assert "is made in one go" in refused("--resume", "runs/text")


# ---------------------------------------------------------------------------------------------------------------
# Lines and bars


def test_long_sentences_are_broken_beside_their_label_on_a_terminal(capsys, monkeypatch):
    say = command.Columns()
    sentence = "one two three four five six seven eight nine ten eleven twelve thirteen"
    say("label", sentence)
    assert capsys.readouterr().out == f"label         {sentence}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    say("other", sentence)
    say("other", "more")
    say("吾輩は a very long one", sentence)
    first, second, third, *last = capsys.readouterr().out.splitlines()
    assert first == "other         one two three four five six seven eight nine"
    assert second == "              ten eleven twelve thirteen"
    assert third == "              more"
    assert last == [
        "吾輩は a very long one  one two three four five six seven",
        "              eight nine ten eleven twelve thirteen",
    ]


def test_help_fits_80_columns():
    done = subprocess.run(
        [sys.executable, "-m", "handmade", "train", "--help"],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "default: None" not in done.stdout
    assert "default: False" not in done.stdout


def test_the_bar_of_a_long_reading_goes_to_standard_error_and_goes_away(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with command.Preparing() as bar:
        bar.show(1, 100)
        assert bar.task is None  # a text that is read at once has none
        bar.began -= 2
        bar.show(50, 100)
        assert bar.task is not None
        print("a line of the plan")
        bar.show(100, 100)
        assert not bar.bar.live.is_started
    assert capsys.readouterr().out == "a line of the plan\n"
