"""What a person gets wrong with a translation: answered in a line, before anything is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_translation import made_up

from handmade import cli, jobs, pairs
from handmade.errors import ConfigError, DataError, ResourceError, TokenizerError
from handmade.jobs import Request
from handmade.models.seq2seq import Seq2Seq, Seq2SeqConfig
from handmade.models.seq2seq_recurrent import Seq2SeqLSTMConfig
from handmade.pair_tokenizer import PairTokenizer
from handmade.pairs import Pairs, PairSplit, read_parallel, read_table
from handmade.tasks.translation.task import TranslationTask
from handmade.tasks.translation.translator import TranslationConfig, Translator
from handmade.translating import MOST_BEAMS, BeamConfig

pytest.importorskip("tokenizers")
pytest.importorskip("sacrebleu")


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{a}\t{b}\n" for a, b in made_up()), encoding="utf-8")
    return path


def refused(capsys: Any, *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(list(words))
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("handmade: ")
    assert error.count("\n") <= 2
    return error


@pytest.mark.parametrize("package", ["sacrebleu", "tokenizers"])
def test_a_missing_package_is_asked_for_before_training(
    table: Path, monkeypatch: pytest.MonkeyPatch, package: str, capsys: Any
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # importing it raises ImportError
    told = refused(capsys, "train", "pairs.tsv", "--task", "translation")
    assert package in told
    assert "pip install 'handmade[translation]'" in told
    assert not Path("runs").exists()
    with pytest.raises(ResourceError):  # before a corpus is fetched too
        jobs.new(Request(data=("tatoeba-ja-en",), task="translation", source="de"), lambda *_: pytest.fail("fetched"))


def tiny(parts: PairSplit, kind: str = "char") -> tuple[TranslationTask, Seq2Seq]:
    tokenizer = PairTokenizer.train(parts.train.sources, parts.train.targets, kind)
    task = TranslationTask(TranslationConfig(tokens=kind, beams=2), tokenizer, parts)  # type: ignore[arg-type]
    shape = Seq2SeqConfig(
        **task.sizes, context=task.context, encoder_layers=1, decoder_layers=1, heads=2, width=8, dropout=0.0
    )
    return task, Seq2Seq(shape, torch.Generator().manual_seed(0)).eval()


def of(*rows: tuple[str, str]) -> Pairs:
    return Pairs(tuple(a for a, _ in rows), tuple(b for _, b in rows))


def test_held_back_sentences_of_unknown_characters_are_scored_not_refused() -> None:
    """A model is not to end in an error after twenty minutes because a held-back sentence has a script of its own."""
    train = of(("猫が好き", "I like cats"), ("犬が好き", "I like dogs"))
    for kind in ("char", "bpe"):
        task, model = tiny(PairSplit(train, of(("Привет", "hello")), of(("Спасибо", "thanks"), ("猫", "cat"))), kind)
        assert task.evaluate(model)["sentences"] == 2
        assert "".join(task.closing(model, 5.0))
        assert [name for name, _ in task.pictures(model)] == ["lengths.png", "attention.png"]
        with pytest.raises(Exception, match="no character that the model knows"):
            task.answers(model, ["Привет"])  # of a person it is still refused


def test_the_test_part_counts_for_the_longest_sentence() -> None:
    train = of(("猫が好き", "I like cats"), ("犬が好き", "I like dogs"))
    task, model = tiny(PairSplit(train, train, of(("猫" * 70, "cats"))))
    assert task.context == 71
    with pytest.raises(ConfigError, match=r"model.context = 64: too short.*--set model.context=71"):
        task.fitted(64, lambda *_: None)
    others = TranslationTask(task.config, task.tokenizer, PairSplit(train, train, of(("猫", "cats" * 50))))
    with pytest.raises(DataError, match=r"has 201 tokens.*the model sees 71"):
        others.evaluate(model)


def test_a_translation_is_one_line() -> None:
    train = of(("猫が好き", "I like cats"), ("犬が好き", "I like dogs"))
    task, _ = tiny(PairSplit(train, train, train), "bpe")
    from handmade.translating import Hypothesis

    tokens = [id for id in task.tokenizer.encode_target(" I\r\n like\u2028\ncats\n").tolist() if id != 2]
    assert task.written(Hypothesis(tokens, 0.0, True)).text == "I  like cats"


def test_a_sentence_without_a_letter_to_read_is_refused() -> None:
    train = of(("猫が好き", "I like cats"), ("犬が好き", "I like dogs"))
    task, model = tiny(PairSplit(train, train, train), "bpe")
    with pytest.raises(TokenizerError, match="no character that the model knows"):
        task.answers(model, ["\x07\x08"])
    for source, told in (("ja", "translates from ja"), ("source", "from another language"), (None, "another language")):
        task.config = task.config.replace(source=source)
        with pytest.raises(TokenizerError, match=told):
            task.answers(model, ["Привет"])


def test_what_cannot_be_split_further_is_not_sent_to_split() -> None:
    train = of(("猫が好き", "I like cats"), ("犬が好き", "I like dogs"))
    task, model = tiny(PairSplit(train, train, train))
    with pytest.raises(ConfigError) as problem:
        task.translate(model, ["猫" * 99], split=True)
    assert "--split" not in str(problem.value)


@pytest.mark.parametrize("make", [BeamConfig, TranslationConfig])
def test_beams_have_a_limit(make: Any) -> None:
    make(beams=MOST_BEAMS)
    with pytest.raises(ConfigError, match="from 1 to 1,000"):
        make(beams=MOST_BEAMS + 1)


def test_a_picture_of_a_model_without_attention_is_refused_first() -> None:
    class Plain:
        config = Seq2SeqLSTMConfig(vocab_size=9, source_vocab_size=9, attention="none")

    task = Translator(TranslationConfig(), None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="has no attention"):
        task.picture(Plain(), ["猫"])  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------
# Files


def test_the_same_file_or_language_twice(table: Path, capsys: Any) -> None:
    assert "the same file twice" in refused(capsys, "train", "pairs.tsv", "./pairs.tsv", "--task", "translation")
    same = ("--source", "ja", "--target", "ja")
    assert "Name two different ones" in refused(capsys, "train", "pairs.tsv", "--task", "translation", *same)


def test_a_text_is_no_sentence(tmp_path: Path) -> None:
    path = tmp_path / "long.tsv"
    path.write_text(f"猫\tcat\n{'猫' * (pairs.LONGEST + 1)}\tcats\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2 has 5,001 characters on one side"):
        read_table(path)
    (tmp_path / "a").write_text("cat\n" + "cat " * 2_000, encoding="utf-8")
    (tmp_path / "b").write_text("猫\n犬\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2 has 7,999 characters"):
        read_parallel(tmp_path / "b", tmp_path / "a")


def test_columns_and_headers_are_answered_with_what_to_type(tmp_path: Path) -> None:
    path = tmp_path / "table.tsv"
    path.write_text("1\tja\ten\tx\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1 has 4 columns.*--set task.columns=2,3"):
        read_table(path)
    path.write_text("id\tja\ten\n1\t猫\tcat\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"Take the line out if it is a header"):
        read_table(path)


def test_the_name_of_an_encoding_for_what_is_packed(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "pairs.tsv.gz"
    path.write_bytes(gzip.compress("".join(f"猫が好きです{i}\tcat {i}\n" for i in range(30)).encode("shift_jis")))
    with pytest.raises(DataError, match=r"line 1 is not valid UTF-8 once unpacked. .*--encoding"):
        read_table(path)


def test_a_text_for_a_preset_of_pairs_is_refused_by_its_name(table: Path, capsys: Any) -> None:
    assert "--preset luong-2015: takes pairs" in refused(capsys, "train", "pairs.tsv", "--preset", "luong-2015")


# --------------------------------------------------------------------------------------------------------------
# Runs


@pytest.fixture
def trained(table: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from handmade import curve

    monkeypatch.setattr(curve, "draw", lambda folder: None)
    shape = ("model.width=8", "model.heads=2", "model.encoder_layers=1", "model.decoder_layers=1")
    few = (*shape, "train.steps=1", "train.batch=4", "train.threads=1", "task.validation=4", "task.test=4")
    job = jobs.new(Request(data=("pairs.tsv",), task="translation", set=few), lambda *_: None)
    job.write()
    assert job.trainer is not None
    job.trainer.train(progress=False)
    return table


def test_what_is_wrong_with_a_run_or_a_place_is_said_in_a_line(trained: Path, capsys: Any) -> None:
    import json
    import os

    sample = ("sample", "runs/pairs", "--prompt", "猫")
    assert "must be from 1 to" in refused(capsys, *sample, "--tokens", "0")
    assert "the positions of the model" in refused(capsys, *sample, "--tokens", "9999")
    assert "--attention : must be the name of a file" in refused(capsys, *sample, "--attention", "")
    os.mkfifo("pipe")  # as /dev/null, which a rename would take away
    assert "pipe: no file" in refused(capsys, *sample, "--attention", "pipe")
    assert not Path("pipe").is_file()

    # Its own pairs are gone: others are scored all the same.
    trained.rename("moved.tsv")
    assert "NEW_PLACE --resume runs/pairs" in refused(capsys, "train", "--resume", "runs/pairs")
    cli.main(["eval", "runs/pairs", "--data", "moved.tsv"])
    assert "BLEU" in capsys.readouterr().out
    assert "nowhere.tsv: no such file." in refused(capsys, "eval", "runs/pairs", "--data", "nowhere.tsv")

    config = Path("runs/pairs/config.json")
    whole = json.loads(config.read_text())
    for part, change, told in (
        ("task", {"beams": -1}, "config.json: damaged."),
        ("task", {"name": None}, "has no 'name'"),
        ("data", {"encoding": 5}, "is no name"),
    ):
        config.write_text(json.dumps({**whole, part: {**whole[part], **change}}))
        assert told in refused(capsys, *sample)


def test_other_languages_than_those_of_the_run_to_begin_with(trained: Path, capsys: Any) -> None:
    import json

    config = Path("runs/pairs/config.json")
    whole = json.loads(config.read_text())
    config.write_text(json.dumps({**whole, "task": {**whole["task"], "source": "ja", "target": "en"}}))
    words = ("train", "pairs.tsv", "--task", "translation", "--from", "runs/pairs", "--out", "runs/new")
    assert "translates ja to en" in refused(capsys, *words, "--source", "de")


def test_figures_are_told_where_a_picture_cannot_be_drawn(trained: Path, capsys: Any, monkeypatch: Any) -> None:
    from handmade.cli import evaluate

    def no_font(run: Any, beside: Any) -> list[Path]:
        raise ResourceError("a picture needs the package matplotlib-fontja.")

    monkeypatch.setattr(evaluate, "draw", no_font)
    cli.main(["eval", "runs/pairs"])
    said = capsys.readouterr()
    assert "BLEU" in said.out
    assert said.err == "not drawn: a picture needs the package matplotlib-fontja.\n"
