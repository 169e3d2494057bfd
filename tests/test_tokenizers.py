"""Tokenizers: what goes in comes out, also token by token, and what cannot be is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handmade import tokenizers
from handmade.errors import TokenizerError
from handmade.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer, describe

TEXTS = {
    "english": "To be, or not to be: that is the question.\n",
    "japanese": "吾輩は猫である。名前はまだ無い。\n「そうですか」",
    "chinese": "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？",
    "portuguese": "Ó mar salgado, quanto do teu sal são lágrimas de Portugal! Coração, avô, avó.",
    "emoji": "👩‍👩‍👧 café e\u0301 🇯🇵 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "empty": "",
}
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def both(text: str) -> list[Tokenizer]:
    return [CharTokenizer.train([text or "x"]), ByteTokenizer()]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_round_trip(text: str) -> None:
    for tokenizer in both(text):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int64
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids.tolist()) == text
        assert tokenizer.decode(torch.from_numpy(ids)) == text
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())
        assert len(tokenizer.token_bytes) == tokenizer.vocab_size


@given(texts)
def test_round_trip_of_any_text(text: str) -> None:
    for tokenizer in both(text):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        decoder = tokenizer.decoder()
        pieces = [decoder.feed(id) for id in ids]
        # Every piece is the text's own: a sequence that was split would have shown a replacement character.
        assert "".join(pieces) == text
        assert decoder.flush() == ""
        assert tokenizers.from_dict(json.loads(json.dumps(tokenizer.to_dict()))).decode(ids) == text


def test_ids_follow_the_code_points() -> None:
    tokenizer = CharTokenizer.train(["hel", "lo"])
    assert tokenizer.characters == ("e", "h", "l", "o")
    assert tokenizer.encode("hello").tolist() == [1, 0, 2, 2, 3]
    assert CharTokenizer.train("hello").characters == tokenizer.characters


def test_bytes_are_the_ids() -> None:
    assert ByteTokenizer().encode("é!").tolist() == [0xC3, 0xA9, 0x21]


def test_a_character_is_shown_when_its_last_byte_is_there() -> None:
    decoder = ByteTokenizer().decoder()
    assert [decoder.feed(byte) for byte in "a猫é👍".encode()] == ["a", "", "", "猫", "", "é", "", "", "", "👍"]


@given(st.binary())
def test_streaming_equals_decoding_at_once_also_for_broken_bytes(raw: bytes) -> None:
    tokenizer = ByteTokenizer()
    decoder = tokenizer.decoder()
    for _ in range(2):  # flush starts afresh
        streamed = "".join(decoder.feed(byte) for byte in raw) + decoder.flush()
        assert streamed == tokenizer.decode(raw) == raw.decode(errors="replace")


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("é", r"'é' \(U\+00E9, LATIN SMALL LETTER E WITH ACUTE\)"),
        ("猫", r"'猫' \(U\+732B"),
        ("\u200b", r"'\\u200b' \(U\+200B, ZERO WIDTH SPACE\)"),
        ("😀", r"'😀' \(U\+1F600"),
        ("\x07", r"'\\x07' \(U\+0007\)"),
        ("\ud800", r"'\\ud800' \(U\+D800\)"),
        ("Æ", r"'Æ' \(U\+00C6"),  # 198: past the end of what is looked up, where counting on would reach "a"
        ("!", r"'!' \(U\+0021"),  # below the first character known
    ],
)
def test_an_unknown_character_is_named(character: str, shown: str) -> None:
    tokenizer = CharTokenizer.train(["abc"])
    with pytest.raises(TokenizerError, match=rf"Character 6, {shown}.* 3 characters .*--tokenizer byte"):
        tokenizer.encode("abcab" + character + "c" + character)
    assert not tokenizer.knows(character)
    assert tokenizer.knows("c")


def test_half_a_surrogate_pair_is_no_byte_text() -> None:
    with pytest.raises(TokenizerError, match=r"Character 2, '\\udc00' \(U\+DC00\)"):
        ByteTokenizer().encode("a\udc00")
    with pytest.raises(TokenizerError, match="half of a character"):
        CharTokenizer.train(["a\udc00"])
    assert not ByteTokenizer().knows("\udc00")
    assert ByteTokenizer().knows("猫")


@pytest.mark.parametrize("wrong", [-1, 3, 256, 1.5])
def test_an_id_out_of_range(wrong: float) -> None:
    with pytest.raises(TokenizerError, match="one of 0 to 2"):
        CharTokenizer.train(["abc"]).decode(torch.tensor([0, wrong]))
    if wrong != 3:
        with pytest.raises(TokenizerError, match="one of 0 to 255"):
            ByteTokenizer().decode(np.array([0, wrong]))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_save_and_load(tmp_path: Path, text: str) -> None:
    for tokenizer in both(text):
        path = tmp_path / "tokenizer.json"
        tokenizer.save(path)
        again = tokenizers.load(path)
        assert type(again) is type(tokenizer)
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
        assert again.to_dict() == tokenizer.to_dict()


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    CharTokenizer.train(["añb\n"]).save(path)
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # without its last newline it is still whole
        path.write_bytes(whole[:length])
        with pytest.raises(TokenizerError, match=r"tokenizer\.json: "):
            tokenizers.load(path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[1, 2]", "not a JSON object"),
        ('{"kind": "word", "version": 1}', "'word' is not known here, only char, byte, bpe and pair"),
        ('{"kind": "char", "version": 2}', "version 2"),
        ('{"kind": "char", "version": 1}', "list of characters is missing"),
        ('{"kind": "char", "version": 1, "characters": "aba"}', "same character twice"),
        ('{"kind": "char", "version": 1, "characters": ""}', "at least one"),
        ('{"kind": "char", "version": 1, "characters": "\\ud800"}', "half of a character"),
        ("\xff", "not a tokenizer file|damaged"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(TokenizerError, match=why) as caught:
        tokenizers.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no such tokenizer file"):
        tokenizers.load(tmp_path / "tokenizer.json")


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokenizer.json"
    ByteTokenizer().save(path)

    def fail(source: object, target: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InterruptedError):
        CharTokenizer.train(["abc"]).save(path)
    assert os.listdir(tmp_path) == ["tokenizer.json"]
    assert isinstance(tokenizers.load(path), ByteTokenizer)


def test_no_text_no_tokenizer() -> None:
    with pytest.raises(TokenizerError, match="the text is empty"):
        CharTokenizer.train([])
    with pytest.raises(TokenizerError, match="'ab' is not one character"):
        CharTokenizer(["ab"])


def test_describe() -> None:
    assert describe("a") == "'a' (U+0061, LATIN SMALL LETTER A)"
    assert describe("'") == '"\'" (U+0027, APOSTROPHE)'
