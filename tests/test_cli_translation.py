"""`handmade train pairs.tsv --task translation`, and what sample and eval make of it."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import same_bits
from test_translation import made_up

import handmade as hm
from handmade import checkpoint, cli, curve, jobs
from handmade.cli import evaluate
from handmade.errors import ConfigError, DataError, RunError
from handmade.generation import SamplingConfig, row_seed
from handmade.jobs import Request

pytest.importorskip("tokenizers")
pytest.importorskip("sacrebleu")

TINY = (
    "task.validation=6",
    "task.test=6",
    "model.width=16",
    "model.heads=2",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "train.steps=6",
    "train.batch=8",
    "train.evaluate_every=3",
    "train.checkpoint_every=2",
    "train.threads=1",
)


def settings(*more: str) -> list[str]:
    return [word for setting in (*TINY, *more) for word in ("--set", setting)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs in all forms, and a run that was trained on them."""
    folder = tmp_path_factory.mktemp("translation")
    pairs = list(made_up())
    (folder / "pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs), encoding="utf-8")
    (folder / "six.tsv").write_text("".join(f"x\t{b}\t{n}\t{a}\n" for n, (a, b) in enumerate(pairs)), encoding="utf-8")
    (folder / "all.ja").write_text("".join(f"{a}\n" for a, _ in pairs), encoding="utf-8")
    (folder / "all.en").write_text("".join(f"{b}\n" for _, b in pairs), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(curve, "draw", lambda folder: None)
        cli.main(["train", "pairs.tsv", "--task", "translation", *settings()])
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
    error = capsys.readouterr().err
    assert error.startswith("handmade: ")
    assert error.count("\n") <= 2
    return error


def test_a_run_folder_of_translation(here: Path) -> None:
    folder = here / "runs" / "pairs"
    config = json.loads((folder / "config.json").read_text())
    assert config["task"]["name"] == "translation"
    assert config["family"] == "seq2seq"
    assert config["data"]["files"] == [str((here / "pairs.tsv").resolve())]
    assert json.loads((folder / "tokenizer.json").read_text())["kind"] == "pair"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "token_accuracy" in line] == [3, 6]
    assert {"attention.png", "lengths.png"} <= {path.name for path in folder.iterdir()}


def test_what_is_said_while_it_trains(here: Path, tmp_path: Path, capsys: Any) -> None:
    cli.main(["train", "pairs.tsv", "--task", "translation", *settings(), "--out", str(tmp_path / "run")])
    said = capsys.readouterr()
    assert "52 pairs to train on, 6 to watch it with, 6 to score it with" in said.out
    lines = [line.split() for line in said.err.splitlines()]
    assert lines.count(["source", "translation", "reference"]) == 2  # at each of two evaluations
    watched = hm.load(tmp_path / "run").task.watched
    assert all(said.err.count(source) == said.err.count(target) == 2 for source, target in watched)
    assert "BLEU" in said.out
    assert "tok:13a" in said.out


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (("all.ja", "all.en"), ()),
        (("six.tsv",), ("--set", "task.columns=4,2")),
        (("pairs.tsv",), ("--tokenizer", "char")),
        (("pairs.tsv",), ("--model", "seq2seq-lstm")),
    ],
)
def test_forms_of_pairs_and_models(here: Path, tmp_path: Path, data: tuple, options: tuple, capsys: Any) -> None:
    own = settings()
    if "seq2seq-lstm" in options:
        own = [
            word
            for setting in TINY
            if "heads" not in setting and "layers" not in setting
            for word in ("--set", setting)
        ]
    cli.main(["train", *data, "--task", "translation", *own, *options, "--out", str(tmp_path / "run")])
    run = hm.load(tmp_path / "run")
    assert len(run.answers(["私は猫が好きです。"])) == 1
    same = hm.load(here / "runs" / "pairs")
    assert run.config["data"]["fingerprint"] == same.config["data"]["fingerprint"]  # the same pairs, split alike


def test_sample_translates_prompts_and_lines(here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.main(["sample", "runs/pairs", "--prompt", "私は猫が好きです。", "--prompt", "彼らは犬を見ました。"])
    both = capsys.readouterr().out.splitlines()
    assert len(both) == 2
    assert both == hm.load("runs/pairs").answers(["私は猫が好きです。", "彼らは犬を見ました。"])
    lines = "私は猫が好きです。\n\n彼らは犬を見ました。\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    cli.main(["sample", "runs/pairs"])
    assert capsys.readouterr().out.splitlines() == [both[0], "", both[1]]  # an empty line stays in its place


def test_n_best_and_drawn_translations(here: Path, capsys: Any) -> None:
    words = ["sample", "runs/pairs", "--prompt", "私は猫が好きです。"]
    cli.main([*words, "--n-best", "3", "--beams", "4"])
    scores = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    drawn = []
    for seed in ("1", "1", "2"):
        cli.main([*words, "--temperature", "1.5", "--seed", seed, "--samples", "2", "--tokens", "12"])
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0].splitlines()) == 2
    # The usual temperature draws too, where it is asked for.
    cli.main([*words, "--temperature", "1", "--seed", "3"])
    draw = SamplingConfig(temperature=1.0)
    ((one,),) = hm.load("runs/pairs").translate(["私は猫が好きです。"], sampling=draw, seed=row_seed(3, 0))
    assert capsys.readouterr().out == f"{one.text}\n"


def test_the_attention_of_a_prompt_is_drawn(here: Path, tmp_path: Path, capsys: Any) -> None:
    picture = tmp_path / "out.png"
    cli.main(["sample", "runs/pairs", "--prompt", "私は猫が好きです。", "--attention", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_eval_scores_the_test_part_and_other_pairs(here: Path, tmp_path: Path, capsys: Any) -> None:
    cli.main(["eval", "runs/pairs", "--json"])
    scores = json.loads(capsys.readouterr().out)
    assert scores["sentences"] == 6
    assert set(scores["decodings"]) == {"greedy", "beam 4"}
    other = tmp_path / "other.tsv"
    other.write_text("猫\tcats\n犬\tdogs\n", encoding="utf-8")
    cli.main(["eval", "runs/pairs", "--data", str(other)])
    assert "other.tsv" in (told := capsys.readouterr().out)
    assert "2, translated without help" in told  # whether they were ever seen is not known
    cli.main(["eval", "runs/pairs"])
    assert "6, never seen" in capsys.readouterr().out


def test_a_moved_file_is_no_hindrance_to_translating(here: Path, tmp_path: Path) -> None:
    request = Request(data=("all.ja", "all.en"), task="translation", set=TINY, out=tmp_path / "run")
    (tmp_path / "all.ja").write_bytes((here / "all.ja").read_bytes())
    (tmp_path / "all.en").write_bytes((here / "all.en").read_bytes())
    job = jobs.new(
        Request(**{**vars(request), "data": (str(tmp_path / "all.ja"), str(tmp_path / "all.en"))}), lambda *_: None
    )
    job.write()
    job.trainer.train(progress=False)
    (tmp_path / "all.ja").unlink()
    run = hm.load(tmp_path / "run")
    assert len(run.answers(["猫"])) == 1
    with pytest.raises(DataError, match="not there any more"):
        run.evaluate()
    (tmp_path / "all.ja").write_text("".join(f"{line}!\n" for line in (here / "all.ja").read_text().splitlines()))
    with pytest.raises(DataError, match="has changed"):
        hm.load(tmp_path / "run").evaluate()


def test_a_killed_run_goes_on_to_the_same_bits(here: Path, tmp_path: Path) -> None:
    """Dropout and the order of the batches too."""

    def started(name: str) -> jobs.Job:
        job = jobs.new(
            Request(data=("pairs.tsv",), task="translation", set=(*TINY, "model.dropout=0.3"), out=tmp_path / name),
            lambda *_: None,
        )
        job.write()
        return job

    whole = started("whole")
    whole.trainer.train(progress=False)
    killed = started("killed")
    for report in killed.trainer.steps():
        if report.step == 3:
            killed.trainer.stop("SIGTERM")
    again = jobs.resume(tmp_path / "killed", Request(), lambda *_: None)
    assert again.trainer.step == 3
    again.trainer.train(progress=False)
    same_bits(checkpoint.unique_tensors(whole.trainer.model), checkpoint.unique_tensors(again.trainer.model))


def test_fine_tuning_keeps_weights_and_tokens(here: Path, tmp_path: Path, capsys: Any) -> None:
    steps = ["--set", "train.steps=1", "--set", "task.validation=6", "--set", "task.test=6"]
    cli.main(
        ["train", "pairs.tsv", "--task", "translation", "--from", "runs/pairs", *steps, "--out", str(tmp_path / "run")]
    )
    old, new = hm.load("runs/pairs"), hm.load(tmp_path / "run")
    assert new.tokenizer.to_dict() == old.tokenizer.to_dict()


def test_fine_tuning_on_the_same_pairs_keeps_the_same_back(here: Path, tmp_path: Path, capsys: Any) -> None:
    """Else it would be tested on pairs that it was trained on."""
    words = ["train", "pairs.tsv", "--task", "translation", "--from", "runs/pairs", "--set", "train.steps=1"]
    cli.main([*words, "--out", str(tmp_path / "run")])  # nothing is said of how many
    old, new = hm.load("runs/pairs").task, hm.load(tmp_path / "run").task
    assert list(new.split.test) == list(old.split.test)
    capsys.readouterr()
    told = refused(capsys, *words, "--set", "task.seed=5", "--out", str(tmp_path / "other"))
    assert "it would be tested on what it was trained on" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("pairs.tsv", "--source", "de"), "--source: is for pairs of sentences"),
        (("tatoeba-ja-en", "--source", "ja", "--target", "ru"), "has no pairs ja to ru. It has any two of ja, en, nl"),
        (("tatoeba-ja-en", "pairs.tsv"), "a corpus of pairs is learnt by itself. Leave out pairs.tsv"),
        (("nowhere.tsv", "--task", "translation"), "nowhere.tsv: no such file"),
        (("tatoeba-ja-em", "--task", "translation"), "Did you mean tatoeba-ja-en?"),
        (("tatoeba-de-en",), "Did you mean tatoeba-ja-en?"),
        (("nowhere",), "a folder of them, or a name: shakespeare, tatoeba-ja-en, "),
        (
            ("pairs.tsv", "--task", "transl"),
            "--task transl: must be one of language, translation. Did you mean translation?",
        ),
        (("pairs.tsv", "--task", "addition"), "--task addition: is learnt from no data. Say: handmade train addition"),
        (("pairs.tsv", "--task", "translation", "--model", "gpt"), "--model gpt: reads one text, and no pairs"),
        (
            ("pairs.tsv", "--task", "translation", "--tokenizer", "byte"),
            "--tokenizer byte: for pairs, one of bpe, char",
        ),
        (("pairs.tsv", "--tokenizer", "bpe"), "--tokenizer bpe: for a text, one of auto, char, byte"),
        (("pairs.tsv", "--task", "translation", "--validation", "six.tsv"), "--set task.validation=1000"),
        (("six.tsv", "--task", "translation"), "line 1 has 4 columns"),
        (
            ("pairs.tsv", "--task", "translation", "--set", "model.context=5"),
            "model.context = 5: too short. The longest",
        ),
        (
            ("all.ja", "all.en", "pairs.tsv", "--task", "translation"),
            "3 files: pairs are in one table, or in two files",
        ),
        (("all.ja", "all.en", "--task", "translation", "--set", "task.columns=1,2"), "task.columns: two files"),
        ((".", "--task", "translation"), "a folder. Name a table of pairs"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line(here: Path, capsys: Any, words: tuple, told: str) -> None:
    before = sorted(here.rglob("*"))
    assert told in refused(capsys, "train", *words, "--out", "runs/never", *settings())
    assert sorted(here.rglob("*")) == before  # nothing half-written


def test_pairs_with_a_hole_are_named_by_line(here: Path, tmp_path: Path, capsys: Any) -> None:
    lines = (here / "pairs.tsv").read_text(encoding="utf-8").splitlines()
    for change, told in (("猫", "line 3 has no tab"), ("猫\t", "line 3: column 2 is empty")):
        (tmp_path / "bad.tsv").write_text("\n".join([*lines[:2], change, *lines[3:]]) + "\n", encoding="utf-8")
        assert told in refused(
            capsys, "train", str(tmp_path / "bad.tsv"), "--task", "translation", "--out", "runs/never"
        )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--prompt", ""), "An empty line has no translation"),
        (("--prompt", "Привет"), "no character that the model knows"),
        (("--prompt", "私は猫が好きです。" * 20), "--split"),
        (("--prompt", "猫", "--stop", "x"), "--stop: a translation ends where the model ends it"),
        (("--prompt", "猫", "--n-best", "9", "--beams", "4"), "--n-best 9: must be at most --beams = 4"),
        (("--prompt", "猫", "--temperature", "0.5", "--beams", "4"), "--beams: searches, and --temperature draws"),
        (("--attention", "out.png"), "--attention draws the sentences of --prompt"),
        (("--prompt", "猫", "--seed", "5"), "--seed: the best translation is searched for, and nothing is drawn"),
    ],
)
def test_what_cannot_be_translated_is_refused_in_a_line(here: Path, capsys: Any, words: tuple, told: str) -> None:
    assert told in refused(capsys, "sample", "runs/pairs", *words)
    assert not (here / "out.png").exists()


def test_exchanged_sides_of_a_tokenizer_are_not_taken(here: Path, tmp_path: Path, capsys: Any) -> None:
    folder = Path(shutil.copytree("runs/pairs", tmp_path / "run"))
    path, config = folder / "tokenizer.json", json.loads((folder / "config.json").read_text())
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "source": whole["target"], "target": whole["source"]}))
    # As many tokens on either side, so that only what they are tells.
    sizes = {"vocab_size": "source_vocab_size", "source_vocab_size": "vocab_size"}
    config["model"] |= {name: config["model"][other] for name, other in sizes.items()}
    (folder / "config.json").write_text(json.dumps(config))
    assert "its tokens were changed" in refused(capsys, "sample", str(folder), "--prompt", "猫")


def test_options_of_translation_are_for_translations(here: Path, capsys: Any) -> None:
    with pytest.raises(ConfigError, match="answers no problems"):
        hm.load("runs/pairs").evaluate(problems=["1+1="])
    with pytest.raises(ConfigError, match="list of sentences"):
        hm.load("runs/pairs").translate("猫")


def test_a_run_of_another_task_is_no_beginning(here: Path, tmp_path: Path) -> None:
    tiny = (
        "task.digits=1",
        "task.train_problems=60",
        "model.layers=1",
        "model.width=16",
        "train.steps=1",
        "train.threads=1",
    )
    job = jobs.new(Request(data=("addition",), set=tiny, out=tmp_path / "sums"), lambda *_: None)
    job.write()
    job.trainer.train(progress=False)
    with pytest.raises((ConfigError, RunError), match=r"sums: reads one text, and no pairs"):
        jobs.new(
            Request(data=("pairs.tsv",), task="translation", start=tmp_path / "sums", out=tmp_path / "x"),
            lambda *_: None,
        )
    with torch.inference_mode(), pytest.raises(ConfigError, match="does not translate"):
        hm.load(tmp_path / "sums").translate(["猫"])
