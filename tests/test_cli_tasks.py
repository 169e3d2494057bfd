"""`handmade train addition`, and what sample and eval make of it: a task from the command line to its run folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import same_bits

import handmade as hm
from handmade import accuracy, checkpoint, cli, curve, jobs
from handmade.cli import evaluate
from handmade.errors import ConfigError, RunError
from handmade.jobs import Request

TINY = (
    "task.digits=1",
    "task.train_problems=60",
    "model.layers=1",
    "model.width=16",
    "model.heads=2",
    "train.steps=6",
    "train.batch=8",
    "train.compile=no",
    "train.evaluate_every=3",
    "train.checkpoint_every=2",
    "train.threads=1",
)


def settings(*more: str) -> list[str]:
    return [word for setting in (*TINY, *more) for word in ("--set", setting)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of addition, and what was said."""
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(curve, "draw", lambda folder: None)
        cli.main(["train", "addition", *settings()])
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    monkeypatch.setattr(curve, "draw", lambda folder: None)
    monkeypatch.setattr(evaluate, "draw", lambda run, beside: [])
    return home


def refused(capsys: Any, *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(list(words))
    assert left.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines(keepends=True) if not re.match(" *[0-9]+ %", line)]
    error = "".join(lines)  # without the lines of trainings before it
    assert error.startswith("handmade: ")
    assert error.count("\n") <= 2
    return error


def test_a_run_folder_of_a_task(here):
    folder = here / "runs" / "addition"
    config = json.loads((folder / "config.json").read_text())
    assert config["task"]["name"] == "addition"
    assert (config["task"]["digits"], config["task"]["train_problems"]) == (1, 60)
    assert config["command"].startswith("handmade train addition --set task.digits=1")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in scored] == [3, 6]
    assert {"exact_match", "train_exact_match", "token_accuracy"} <= scored[0].keys()


def test_pictures(home, monkeypatch, capsys, tmp_path):
    """After training, and again after eval: right answers over time, and where the model looks."""
    monkeypatch.chdir(home)
    for name in ("accuracy.png", "attention.png"):
        assert (home / "runs" / "addition" / name).read_bytes().startswith(b"\x89PNG")
        (home / "runs" / "addition" / name).unlink()
    cli.main(["eval", "runs/addition", "--beside", "runs/addition"])
    out = capsys.readouterr().out
    assert out.endswith("\nPictures: runs/addition/accuracy.png, runs/addition/attention.png\n")
    assert (home / "runs" / "addition" / "attention.png").exists()


def test_the_picture_of_right_answers():
    """Every run has a line of what it was trained on and one of what it never saw, over seconds, in percent."""
    lines = [
        {"step": 1, "train_seconds": 0.5, "train_loss": 2.0},
        {"step": 2, "train_seconds": 1.0, "exact_match": 0.25, "train_exact_match": 0.5},
        {"step": 4, "train_seconds": 2.0, "exact_match": 0.5, "train_exact_match": 1.0},
    ]
    (axes,) = accuracy.picture({"small": lines, "large": lines}).axes
    assert [line.get_xdata().tolist() for line in axes.get_lines()] == [[1.0, 2.0]] * 4
    assert [line.get_ydata().tolist() for line in axes.get_lines()] == [[25.0, 50.0], [50.0, 100.0]] * 2
    axes.figure.canvas.draw()
    assert axes.get_legend().get_window_extent().y1 < axes.get_window_extent().y0, "lies on no line"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[0] == "small, never seen, last 50.00 %"
    assert labels[3] == "large, trained on, last 100.00 %"


def test_runs_of_one_name_are_told_apart(tmp_path):
    places = [tmp_path / "first" / "sum", tmp_path / "second" / "sum", tmp_path / "dense"]
    assert accuracy.named([*places, places[0]]) == dict(zip(("first/sum", "second/sum", "dense"), places, strict=True))
    for place in places:
        place.mkdir(parents=True)
        line = {"step": 1, "train_seconds": 1.0, "exact_match": 0.5, "train_exact_match": 0.5}
        (place / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert accuracy.draw(places, tmp_path / "both.png") == tmp_path / "both.png"


def test_what_is_said(here, capsys):
    cli.main(["train", "sort", *settings("task.length=2")[2:], "--out", "said"])
    out, err = capsys.readouterr()
    assert re.search(r"^sort +110 problems, 60 to train on, 50 others to test with; split by problem$", out, re.M)
    assert re.search(r"^a row +\d+=\d+   and only the answer is scored$", out, re.M)
    assert "to beat" not in out
    assert re.search(r"^validation \d\.\d+, right [\d.]+ %, of the trained [\d.]+ %. Saved in said", out, re.M)
    assert len(re.findall(r"^\d+=\d*   (right|wrong, it is \d+)$", out, re.M)) == 8
    assert re.search(r'^try: handmade sample said --prompt "\d+="$', out, re.M)
    assert re.search(r"validation \d\.\d+ \(best\)  right [\d.]+ %, of the trained [\d.]+ %", err)


def test_sampling_a_task_answers(here, capsys, monkeypatch):
    answers = hm.load("runs/addition").answers(["3+4=", "9+9="])
    cli.main(["sample", "runs/addition", "--prompt", "3+4=", "--prompt", "9 + 9"])
    assert capsys.readouterr().out.splitlines() == answers
    assert "9-4" in refused(capsys, "sample", "runs/addition", "--prompt", "9-4=")
    message = refused(capsys, "sample", "runs/addition", "--prompt", "3+4=", "--temperature", "0.5")
    assert "--temperature: addition answers what is likeliest" in message


def test_evaluating_a_task(here, capsys):
    run = hm.load("runs/addition")
    scores = run.evaluate()
    assert scores["problems"] == 40
    assert (
        scores["exact_match"]
        == sum(
            answer == right
            for answer, right in zip(
                run.task.decoded(run.model, run.task.split.test), run.task.written(run.task.split.test), strict=True
            )
        )
        / 40
    )
    cli.main(["eval", "runs/addition"])
    out = capsys.readouterr().out
    assert out.startswith("runs/addition on addition\n")
    for label in ("right ", "tokens right", "of the trained", "by carries", "by longest operand", "longer ones"):
        assert f"\n  {label}" in out
    cli.main(["eval", "runs/addition", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["exact_match"] == scores["exact_match"]
    assert found["errors"]["carries"]


def test_scoring_given_problems(here, capsys):
    run = hm.load("runs/addition")
    found = run.evaluate(problems=["3+4=", "9+9="])
    assert [row["right"] for row in found["problems"]] == ["7", "18"]
    assert [row["answer"] for row in found["problems"]] == run.answers(["3+4=", "9+9="])
    cli.main(["eval", "runs/addition", "--problems", "3+4=, 9+9="])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3+4= ")
    assert re.fullmatch(r"\d of 2 right", lines[-1])
    assert "no problem of addition" in refused(capsys, "eval", "runs/addition", "--problems", "3*4=")
    assert "names none" in refused(capsys, "eval", "runs/addition", "--problems", " , ")
    assert "reads no text. Leave --data out" in refused(capsys, "eval", "runs/addition", "--data", "x.txt")


def test_from_python(here):
    run = hm.load("runs/addition")
    assert repr(run) == "Run('runs/addition', addition, gpt, vocab_size=14)"
    assert not run.continues
    with pytest.raises(ConfigError, match=r"give a list of prompts, as in answers\(\['3\+4='\]\)"):
        run.answers("3+4=")
    with pytest.raises(ConfigError, match="answers: 7 is no text"):
        run.answers(["3+4=", 7])
    assert isinstance(run.generate("3+4=", tokens=2), str)  # any model goes on, if asked


def test_a_task_that_was_stopped_goes_on(here, monkeypatch):
    """The same bits as one that was not stopped."""

    def request(out: str) -> Request:
        return Request(data=("addition",), set=TINY, out=Path(out))

    quiet = lambda *line: None  # noqa: E731
    whole = jobs.new(request("whole"), quiet)
    whole.write()
    whole.trainer.train(progress=False)
    stopped = jobs.new(request("stopped"), quiet)
    stopped.write()
    for report in stopped.trainer.steps():
        if report.step >= 3:
            break
    del stopped
    again = jobs.resume(Path("stopped"), Request(), quiet)
    assert again.task.fingerprint() == whole.task.fingerprint()
    again.trainer.train(progress=False)
    same_bits(
        checkpoint.load_tensors(Path("whole") / "model.safetensors"),
        checkpoint.load_tensors(Path("stopped") / "model.safetensors"),
    )
    with pytest.raises(ConfigError, match=r"addition reads no text\. Leave out x\.txt"):
        jobs.resume(Path("stopped"), Request(data=("x.txt",)), quiet)
    config = json.loads(Path("stopped/config.json").read_text())
    config["task"]["seed"] = 5
    Path("stopped/config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="makes other problems of the same options"):
        jobs.resume(Path("stopped"), Request(), quiet)
    config["task"]["digits"] = "two"
    Path("stopped/config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"config\.json: damaged\. AdditionConfig\.digits"):
        jobs.resume(Path("stopped"), Request(), quiet)


def test_fine_tuning_a_task(here, capsys):
    cli.main(["train", "addition", "--from", "runs/addition", "--out", "tuned", *settings("task.seed=3")])
    old, new = hm.load("runs/addition"), hm.load("tuned")
    assert old.config["model"] == new.config["model"]
    assert "tokens are not those of sort" in refused(
        capsys, "train", "sort", "--from", "runs/addition", "--out", "no", "--set", "train.steps=2"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("additon",), "additon: no such file. Did you mean addition?"),
        (("addition", "sort"), "addition: a task is learnt by itself. Leave out sort."),
        (("addition", "--tokenizer", "char"), "--tokenizer: addition makes its own problems and reads no text."),
        (("addition", "--encoding", "utf-8"), "--encoding: addition makes its own problems"),
        (
            ("addition", "--model", "counting"),
            "a counting model counts a text, and addition has none",
        ),
        (("addition", "--set", "task.digts=3"), "--set task.digts: no such option. Did you mean task.digits?"),
        (("sort", "--set", "task.digits=3"), "--set task.digits: no such option."),
        (("addition", "--set", "task.digits=99"), "task.digits = 99: must be from 1 to 17"),
        (("addition", "--set", "task.train_problems=10000"), "too many: there are 10,000. Lower task.train_problems"),
        (
            ("addition", "--set", "model.context=4"),
            "model.context = 4: too short. A row of addition has",
        ),
        (("x.txt", "--set", "task.digits=3"), "--set task.digits: no such option."),
    ],
)
def test_refused(here, capsys, words, message):
    Path("x.txt").write_text("a text\n" * 100)
    assert message in refused(capsys, "train", *words, "--out", "new")
    assert not Path("new").exists()


def test_a_file_of_that_name_comes_first(here, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("addition").write_text("to be, or not to be\n" * 60)
    few = ("train.steps=1", "model.layers=1", "model.width=16", "model.heads=2", "model.context=8", "train.compile=no")
    cli.main(["train", "addition", *(word for one in few for word in ("--set", one)), "--out", "text"])
    assert "the file or folder of that name here, not the task addition" in capsys.readouterr().out
    assert hm.load("text").continues


def test_a_toml_file_has_a_table_for_the_task(here, capsys):
    Path("my.toml").write_text("[task]\nlength = 3\nlengths = 'even'\n[train]\nsteps = 2\n")
    words = [word for one in ("model.layers=1", "model.width=16", "model.heads=2") for word in ("--set", one)]
    cli.main(["train", "copy", "--config", "my.toml", "--out", "copied", "--set", "train.compile=no", *words])
    config = json.loads(Path("copied/config.json").read_text())
    assert (config["task"]["length"], config["task"]["lengths"]) == (3, "even")
    Path("my.toml").write_text("[task]\nlegnth = 3\n")
    assert "no option legnth in [task]. Did you mean length?" in refused(
        capsys, "train", "copy", "--config", "my.toml", "--out", "no"
    )


def test_a_run_from_before_there_were_tasks(here, tmp_path):
    """config.json said "task": "language"."""
    text = tmp_path / "text.txt"
    text.write_text("to be, or not to be\n" * 60)
    few = ("train.steps=1", "model.layers=1", "model.width=16", "model.heads=2", "model.context=8", "train.compile=no")
    job = jobs.new(Request(data=(str(text),), set=few, out=tmp_path / "old"), lambda *line: None)
    job.write()
    job.trainer.train(progress=False)
    path = tmp_path / "old" / "config.json"
    config = json.loads(path.read_text())
    assert config["task"] == {"name": "language", "label_smoothing": 0.0}
    config["task"] = "language"
    path.write_text(json.dumps(config))
    run = hm.load(tmp_path / "old")
    assert run.continues
    assert run.evaluate()["val_loss"] > 0
    with pytest.raises(ConfigError, match=r"answers no problems\. Use generate"):
        run.answers(["3+4="])
    with pytest.raises(ConfigError, match="Leave --problems out"):
        run.evaluate(problems=["3+4="])


def test_bigram_learns_a_task(here):
    """Other families take the same commands."""
    cli.main(["train", "copy", "--model", "bigram", "--set", "train.steps=3", "--set", "train.compile=no"])
    run = hm.load("runs/copy")
    assert isinstance(run.answers(["12="])[0], str)
    assert torch.isfinite(torch.tensor(run.evaluate()["val_loss"]))
