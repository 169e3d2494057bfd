"""Subword tokens: any text goes in and comes out, and the ids are those of the algorithm as the paper has it."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handmade import tokenizers
from handmade.errors import ConfigError, ResourceError, TokenizerError
from handmade.subwords import LETTERS, SubwordTokenizer

library = pytest.importorskip("tokenizers")

ENGLISH = ["I don't know the cat that sat on the mat.", "The cats' mats: 12 mats, 123 cats!", "that hat, that cat"]
JAPANESE = ["私は猫が好きです。", "彼は犬が好きです。", "猫は犬が好きですか？", "私の猫です。"]
TRAINED = SubwordTokenizer.train([*ENGLISH, *JAPANESE], 400)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_at_once_and_streamed(text: str) -> None:
    ids = TRAINED.encode(text)
    assert ids.dtype == np.int64
    assert TRAINED.decode(ids) == text
    assert TRAINED.token_bytes[ids].sum() == len(text.encode())
    decoder = TRAINED.decoder()
    assert "".join(decoder.feed(id) for id in ids) == text
    assert decoder.flush() == ""


@pytest.mark.parametrize("text", [*ENGLISH, *JAPANESE, "", "  a \n\n b\t", "👩‍👩‍👧 猫e\u0301 𝔘", "\x00\x85\u2028"])
def test_round_trip_through_a_file(tmp_path: Path, text: str) -> None:
    TRAINED.save(tmp_path / "t.json")
    again = tokenizers.load(tmp_path / "t.json")
    assert isinstance(again, SubwordTokenizer)
    assert again.to_dict() == TRAINED.to_dict()
    assert again.encode(text).tolist() == TRAINED.encode(text).tolist()
    assert again.decode(again.encode(text)) == text


def test_markers_of_other_models_are_text() -> None:
    text = "<|endoftext|><s></s>[PAD]<unk><pad>"
    trained = SubwordTokenizer.train([text] * 3, 300)
    for tokenizer in (TRAINED, trained):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert trained.vocab_size > 256
    # "<" and "|" are no letters: no token reaches from one into the word beside it.
    assert not [token for token in trained.vocabulary if "<" in token and re.search("[a-z]", token)]


def merged(word: bytes, tokenizer: SubwordTokenizer) -> list[bytes]:
    """A word's tokens by the paper: of the pairs of neighbours, the merge learnt first, until there is none."""
    byte = {letter: bytes([value]) for value, letter in enumerate(LETTERS)}
    rank = {}
    for place, merge in enumerate(tokenizer.merges):
        left, right = (b"".join(byte[letter] for letter in side) for side in merge.split(" "))
        rank[left, right] = place
    parts = [bytes([value]) for value in word]
    while pairs := [(rank[pair], at) for at, pair in enumerate(itertools.pairwise(parts)) if pair in rank]:
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def test_the_ids_are_those_of_the_algorithm() -> None:
    for text in ("that cat sat on the hat", "私は猫が好きです", "matchstick 犬猫 cathat"):
        words = re.findall(r" ?(?:[一-龯]+|[ぁ-ん]+|\w+)", text)
        expected = [part for word in words for part in merged(word.encode(), TRAINED)]
        assert [TRAINED.pieces[id] for id in TRAINED.encode(text)] == expected
        assert len(expected) < len(text.encode())


def test_training_takes_the_pair_seen_most_often() -> None:
    # Words: abab x 3, ab x 2, cb x 1. ab is seen 8 times; then ab ab 3 times; cb only once.
    trained = SubwordTokenizer.train(["abab,abab,abab,ab,ab,cb"], 300)
    assert trained.vocabulary[256:] == ("ab", "abab")
    assert trained.merges == ("a b", "ab ab")
    assert trained.encode("ababab").tolist() == [257, 256]
    assert SubwordTokenizer.train(["abab,abab,abab,ab,ab,cb"], 257).merges == ("a b",)


def test_bytes_come_first() -> None:
    assert SubwordTokenizer(LETTERS, []).encode("é 猫").tolist() == list("é 猫".encode())
    assert sorted(LETTERS) == sorted(library.pre_tokenizers.ByteLevel.alphabet())


def test_words_are_found() -> None:
    trained = SubwordTokenizer.train(["I don't. I don't. it's 12 12, 猫!! 猫!!  x  x"] * 2, 1000)

    def words(text: str) -> list[str]:
        return [trained.decode([id]) for id in trained.encode(text)]

    assert words("I don't. it's 12, 猫!!  x") == ["I", " don't", ".", " it's", " 12", ",", " 猫", "!!", " ", " x"]


def test_a_japanese_word_ends_where_the_script_changes() -> None:
    trained = SubwordTokenizer.train(["猫が好きです。ノートを買った人々"] * 2, 1000)
    words = [trained.decode([id]) for id in trained.encode("猫が好きです。ノートを買った人々")]
    assert words == ["猫", "が", "好", "きです", "。", "ノート", "を", "買", "った", "人々"]


def test_training_does_not_depend_on_the_order() -> None:
    texts = [*ENGLISH, *JAPANESE]
    assert SubwordTokenizer.train(texts[::-1], 400).to_dict() == TRAINED.to_dict()
    code = (
        "import json, sys; from handmade.subwords import SubwordTokenizer as S;"
        "print(json.dumps(S.train(json.load(sys.stdin), 400).to_dict()))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(texts), capture_output=True, text=True)
    assert json.loads(done.stdout) == TRAINED.to_dict()


def test_many_at_once() -> None:
    texts = [*ENGLISH, "", *JAPANESE]
    assert [ids.tolist() for ids in TRAINED.encode_batch(texts)] == [TRAINED.encode(text).tolist() for text in texts]
    assert TRAINED.encode_batch([]) == []


def test_a_broken_character_is_shown_once() -> None:
    halves = [0xE7, 0x8C, 0x41]  # two of three bytes, then a letter
    assert TRAINED.decode(halves) == bytes(halves).decode(errors="replace") == "�A"
    decoder = TRAINED.decoder()
    assert [decoder.feed(id) for id in halves[:2]] == ["", ""]
    assert decoder.flush() == "�"
    assert decoder.feed(0x41) == "A"


def test_what_cannot_be_encoded_or_decoded() -> None:
    for act in (TRAINED.encode, lambda text: SubwordTokenizer.train([text], 300)):
        with pytest.raises(TokenizerError, match=r"Character 3, '\\ud800' \(U\+D800\), is half of a character"):
            act("猫a\ud800")
    assert not TRAINED.knows("\ud800")
    assert TRAINED.knows("𝔘")
    for wrong in (-1, 400, 0.5):
        with pytest.raises(TokenizerError, match="one of 0 to"):
            TRAINED.decode(np.array([0, wrong]))
    with pytest.raises(ConfigError, match="vocab_size = 255: must be at least 256"):
        SubwordTokenizer.train(["a"], 255)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"pattern": "."}, "its words are not found as here"),
        ({"vocabulary": None}, "vocabulary or the merges are missing"),
        ({"merges": [["a", "b"]]}, "vocabulary or the merges are missing"),
        ({"vocabulary": [*LETTERS[1:], LETTERS[0]]}, "not the 256 bytes and then distinct tokens"),
        ({"vocabulary": [*LETTERS, "ab", "ab"]}, "not the 256 bytes and then distinct tokens"),
        ({"vocabulary": [*LETTERS, "ab", "bc"]}, "a token of the vocabulary is made by no merge"),
        ({"merges": ["a b", "a c"]}, "the merge 'a c' is not of two tokens that make a third"),
        ({"merges": ["ab"]}, "the merge 'ab' is not of two tokens"),
        ({"version": 2}, "version 2 is not known"),
    ],
)
def test_a_damaged_file(tmp_path: Path, change: dict, why: str) -> None:
    values = SubwordTokenizer([*LETTERS, "ab"], ["a b"]).to_dict() | change
    (tmp_path / "t.json").write_text(json.dumps(values))
    with pytest.raises(TokenizerError, match=rf"t\.json: not a tokenizer file: .*{why}"):
        tokenizers.load(tmp_path / "t.json")


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = TRAINED.encode("the cat")
    TRAINED.save(tmp_path / "t.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    again = tokenizers.load(tmp_path / "t.json")
    assert again.decode(ids) == "the cat"  # reading needs no library
    for act in (lambda: again.encode("the cat"), lambda: SubwordTokenizer.train(["a"], 300)):
        with pytest.raises(ResourceError, match=r"Install it: pip install 'handmade\[translation\]'"):
            act()


def test_importing_loads_no_library() -> None:
    code = "import sys, handmade.tokenizers; print('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
