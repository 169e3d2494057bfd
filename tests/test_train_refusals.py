"""`handmade train` on bad input: exit code 2, a line or two that say what, where, what to do; nothing left behind."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from handmade import files
from handmade.cli import main

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 40
TINY = [
    *("--set", "model.layers=1", "--set", "model.width=16", "--set", "model.heads=2", "--set", "model.context=16"),
    *("--set", "train.steps=4", "--set", "train.compile=no", "--set", "train.precision=float32"),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]):
    """Run a command. Returns exit code, standard output, standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = 0
        try:
            main(list(words))
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        output, errors = capfd.readouterr()
        return code, output, errors

    return run


@pytest.fixture
def refused(call, place: Path):
    """Run a command that must be refused. Returns what it says."""

    def run(*words: str) -> str:
        before = sorted(place.rglob("*"))
        code, _, errors = call(*words)
        assert code == 2, errors
        assert errors.startswith("handmade: ")
        assert 1 <= errors.count("\n") <= 2
        assert "Traceback" not in errors
        assert sorted(place.rglob("*")) == before, "nothing may be left behind"
        return errors

    return run


def test_missing_file_names_the_nearest(refused) -> None:
    assert "Did you mean text.txt?" in refused("train", "txet.txt")


@pytest.mark.parametrize("model", ["seq2seq", "seq2seq-lstm"])
@pytest.mark.parametrize("data", ["text.txt", "addition"])
def test_a_model_of_pairs_reads_no_text(refused, data: str, model: str) -> None:
    said = refused("train", data, "--model", model)
    why = "takes pairs of sentences, reads no text. Train it on pairs, such as tatoeba-ja-en."
    assert said == f"handmade: --model {model}: {why}\n"


def test_empty_file(refused, place: Path) -> None:
    (place / "empty.txt").write_text("")
    assert "empty.txt" in refused("train", "empty.txt")


def test_binary_file(refused, place: Path) -> None:
    (place / "picture.txt").write_bytes(bytes(range(256)) * 20)
    said = refused("train", "picture.txt")
    assert "picture.txt" in said
    assert "not a text file" in said


def test_validation_part_too_short(refused, place: Path) -> None:
    (place / "short.txt").write_text("abcdefghij")
    said = refused("train", "short.txt", *TINY)
    assert "short.txt" in said or "validat" in said


def test_invalid_utf8_names_the_byte(refused, place: Path) -> None:
    (place / "latin.txt").write_bytes(TEXT.encode()[:100] + "é".encode("latin-1") + TEXT.encode())
    said = refused("train", "latin.txt")
    assert "latin.txt" in said
    assert "100" in said
    assert "--encoding" in said


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--preset", "nanogpt-cup"], "nanogpt-cpu"),
        (["--set", "model.layrs=3"], "model.layers"),
        (["--set", "train.learning_rate=0.1"], "optimizer.learning_rate"),
        (["--minuets", "1"], "--minutes"),
        (["--model", "biggram"], "bigram"),
        (["--set", "optimizer.name=adammw"], "adamw"),
    ],
)
def test_unknown_names_suggest_the_nearest(refused, words: list[str], wanted: str) -> None:
    assert f"Did you mean {wanted}?" in refused("train", "text.txt", *words)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--set", "model.heads=5", "--set", "model.width=16"], "heads"),
        (["--set", "model.dropout=1.5"], "dropout"),
        (["--set", "train.batch=0"], "batch"),
        (["--set", "train.steps=many"], "steps"),
        (["--set", "optimizer.learning_rate=-1"], "learning_rate"),
        (["--minutes", "-1"], "minutes"),
        (["--minutes", "soon"], "minutes"),
        (["--set", "model.layers"], "layers"),
        (["--tokenizer", "word"], "word"),
        (["--device", "cuda:9"], "cuda:9"),
    ],
)
def test_numbers_and_names_out_of_range_are_named(refused, words: list[str], wanted: str) -> None:
    assert wanted in refused("train", "text.txt", *words)


def test_a_config_file_that_is_not_toml(refused, place: Path) -> None:
    (place / "my.toml").write_text("[model\nlayers = 3")
    assert "my.toml" in refused("train", "text.txt", "--config", "my.toml")


def test_runs_that_are_not_there(refused) -> None:
    assert "runs/text" in refused("train", "--resume", "runs/text")
    assert "runs/text" in refused("train", "text.txt", "--from", "runs/text")


def test_more_memory_than_there_is(refused) -> None:
    said = refused(
        "train", "text.txt", "--set", "model.width=200000", "--set", "model.heads=2", "--set", "train.steps=1"
    )
    assert "memory" in said


def test_full_disk_says_what_would_have_been_written(
    refused, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("HANDMADE_CACHE", str(tmp_path_factory.mktemp("full")))
    monkeypatch.setattr(files.os, "fsync", full)
    (place / "other.txt").write_text(TEXT + "once more")
    said = refused("train", "other.txt", *TINY)
    assert "space" in said
    assert "token" in said


@pytest.fixture
def trained(call, place: Path) -> Path:
    """A small finished run in runs/text."""
    code, output, errors = call("train", "text.txt", *TINY)
    assert code == 0, errors
    assert "validation" in output
    return place / "runs" / "text"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_overwritten_only_with_force(call, trained: Path) -> None:
    before = contents(trained)
    code, _, errors = call("train", "text.txt", *TINY)
    assert code == 2
    assert "--force" in errors
    assert contents(trained) == before
    # With --force, but a new run that cannot start: the old one stays.
    code, _, errors = call("train", "text.txt", *TINY, "--set", "model.heads=3", "--force")
    assert code == 2
    assert contents(trained) == before
    code, _, errors = call("train", "text.txt", *TINY, "--set", "train.seed=5", "--force")
    assert code == 0, errors
    assert json.loads((trained / "config.json").read_text())["train"]["seed"] == 5


def test_a_finished_run_has_nothing_to_resume(call, trained: Path) -> None:
    before = contents(trained)
    code, _, errors = call("train", "--resume", str(trained))
    assert code == 2
    assert "finished" in errors
    assert contents(trained) == before


def test_fine_tuning_refuses_another_shape_and_unknown_characters(call, trained: Path, place: Path) -> None:
    (place / "new.txt").write_text(TEXT.replace("fox", "füx"))
    code, _, errors = call("train", "new.txt", "--from", str(trained), "--set", "train.steps=2")
    assert code == 2
    assert "ü" in errors
    code, _, errors = call("train", "text.txt", "--from", str(trained), "--set", "model.layers=2", "--out", "other")
    assert code == 2
    assert "shape" in errors or "model" in errors
    assert not (place / "other").exists()


def test_fine_tuning_begins_with_the_weights_of_the_run(call, trained: Path, place: Path) -> None:
    (place / "new.txt").write_text(TEXT[::-1])
    code, _, errors = call("train", "new.txt", "--from", str(trained), "--set", "train.steps=3")
    assert code == 0, errors
    assert (place / "runs" / "new" / "model.safetensors").exists()
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (trained, place / "runs" / "new"))
    assert new["model"] == old["model"]
    assert (place / "runs" / "new" / "tokenizer.json").read_text() == (trained / "tokenizer.json").read_text()


@pytest.mark.parametrize("family", ["recurrent", "mlp", "bigram", "counting"])
def test_other_families_are_trained_sampled_and_evaluated(call, place: Path, family: str) -> None:
    steps = [] if family == "counting" else ["--set", "train.steps=5"]
    code, _, errors = call("train", "text.txt", "--model", family, *steps)
    assert code == 0, errors
    code, output, errors = call("sample", "runs/text", "--prompt", "the", "--tokens", "20")
    assert code == 0, errors
    assert output.startswith("the")
    code, output, errors = call("eval", "runs/text")
    assert code == 0, errors
    assert "bits per byte" in output


def test_several_files_and_a_folder_are_one_text(call, place: Path) -> None:
    (place / "folder").mkdir()
    (place / "folder" / "b.txt").write_text(TEXT)
    (place / "folder" / "a.txt").write_text(TEXT.upper())
    code, _, errors = call("train", "folder", *TINY)
    assert code == 0, errors
    code, _, errors = call("train", "folder/b.txt", "folder/a.txt", *TINY, "--out", "several")
    assert code == 0, errors
    one, two = (json.loads((place / run / "config.json").read_text())["data"] for run in ("runs/folder", "several"))
    assert [Path(name).name for name in one["files"]] == ["a.txt", "b.txt"]
    assert one["fingerprint"] == two["fingerprint"]


def test_a_preset_with_settings_over_it(call, place: Path) -> None:
    (place / "my.toml").write_text("[train]\nseed = 1\nbatch = 3\n[model]\nlayers = 2\nwidth = 16\n")
    words = ["--preset", "nanogpt-cpu", "--config", "my.toml", "--set", "train.seed=3", "--set", "train.steps=2"]
    code, _, errors = call("train", "text.txt", *words)
    assert code == 0, errors
    found = json.loads((place / "runs" / "text" / "config.json").read_text())
    assert (found["train"]["seed"], found["train"]["batch"], found["model"]["layers"]) == (3, 3, 2)
    assert found["model"]["heads"] == 4  # the preset's
    assert found["optimizer"]["name"] == "adamw"


@pytest.mark.parametrize(
    "text", ["吾輩は猫である。名前はまだ無い。\n" * 30, "É um não-só coração de açúcar, às vezes.\n" * 30]
)
def test_texts_of_other_languages(call, place: Path, text: str) -> None:
    (place / "other.txt").write_text(text)
    for tokenizer in ("auto", "byte"):
        code, _, errors = call("train", "other.txt", *TINY, "--tokenizer", tokenizer, "--force")
        assert code == 0, errors
        code, output, errors = call("sample", "runs/other", "--prompt", text[:3], "--tokens", "20")
        assert code == 0, errors
        assert output.startswith(text[:3])
