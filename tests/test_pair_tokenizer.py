"""The tokens of a translation: text and special tokens never meet, and what is not known is named."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handmade import tokenizers
from handmade.characters import ByteTokenizer, CharTokenizer
from handmade.errors import ConfigError, ResourceError, TokenizerError
from handmade.pair_tokenizer import END, FIRST, PAD, START, UNKNOWN, PairTokenizer

pytest.importorskip("tokenizers")

SOURCES = ["私は猫が好きです。", "彼は犬が好きです。", "猫は犬が好きですか？"] * 3
TARGETS = ["I like cats.", "He likes dogs.", "Do cats like dogs?"] * 3
BPE = PairTokenizer.train(SOURCES, TARGETS, source_size=280, target_size=270)
CHAR = PairTokenizer.train(SOURCES, TARGETS, kind="char")


def test_special_tokens_are_not_text() -> None:
    assert (PAD, START, END, UNKNOWN, FIRST) == (0, 1, 2, 3, 4)
    for tokenizer in (BPE, CHAR):
        assert tokenizer.source_size == tokenizer.source.vocab_size + 4
        assert tokenizer.target_size == tokenizer.vocab_size == tokenizer.target.vocab_size + 4
        for encode, side, texts in (
            (tokenizer.encode_source, tokenizer.source, SOURCES),
            (tokenizer.encode_target, tokenizer.target, TARGETS),
        ):
            ids = encode(texts[0])
            assert ids.dtype == np.int64
            assert ids.tolist() == [*(side.encode(texts[0]) + 4).tolist(), END]
    assert (BPE.source_size, BPE.target_size) == (280, 270)
    for text in ("<s></s><pad><unk>", "\x00\x01\x02\x03", "⏎·end·"):
        ids = BPE.encode_target(text)
        assert min(ids[:-1]) >= 4
        assert BPE.decode_target(ids) == text


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text: str) -> None:
    assert BPE.decode_source(BPE.encode_source(text)) == text
    assert BPE.decode(BPE.encode(text)) == text
    decoder = BPE.decoder()
    assert "".join(decoder.feed(id) for id in BPE.encode(text)) + decoder.flush() == text


def test_many_are_as_one_by_one() -> None:
    for tokenizer in (BPE, CHAR):
        texts = ["", *SOURCES]
        one = [tokenizer.encode_source(text).tolist() for text in texts]
        assert [ids.tolist() for ids in tokenizer.encode_sources(texts)] == one
        assert one[0] == [END]
        one = [tokenizer.encode_target(text, strict=False).tolist() for text in ["é", *TARGETS, ""]]
        assert [ids.tolist() for ids in tokenizer.encode_targets(["é", *TARGETS, ""], strict=False)] == one
        assert tokenizer.encode_sources([]) == []


def test_decoding_stops_at_the_end() -> None:
    cat = CHAR.encode_target("cat")[:-1].tolist()
    for ids in (
        [START, *cat, END, PAD, *cat],
        [PAD, *cat[:1], UNKNOWN, *cat[1:]],
        np.array([*cat, END, END]),
        torch.tensor(cat),
    ):
        assert CHAR.decode_target(ids) == "cat"
        decoder = CHAR.decoder()
        assert "".join(decoder.feed(int(id)) for id in ids) == "cat"
    assert CHAR.decode_source([END]) == ""
    for wrong in (-1, CHAR.source_size):
        with pytest.raises(TokenizerError, match=f"Token id {wrong} is not one of 0 to {CHAR.source_size - 1}"):
            CHAR.decode_source([wrong])


def test_unknown_characters_are_named() -> None:
    with pytest.raises(TokenizerError) as caught:
        CHAR.encode_source("私はéが好きé、ñ。")
    assert str(caught.value) == (
        "Not known to the source's char tokenizer: 'é' (U+00E9, LATIN SMALL LETTER E WITH ACUTE), "
        "'、' (U+3001, IDEOGRAPHIC COMMA), 'ñ' (U+00F1, LATIN SMALL LETTER N WITH TILDE). "
        "Leave them out, or train with --tokenizer bpe, which takes any text."
    )
    with pytest.raises(TokenizerError, match=r"the target's char .* and 3 more\. Leave them out"):
        CHAR.encode_targets(["cats", "ÄÖÜäöüßß w"])
    ids = CHAR.encode_source("私éñは", strict=False)
    known = CHAR.encode_source("私は")
    assert ids.tolist() == [known[0], UNKNOWN, UNKNOWN, known[1], END]
    assert CHAR.decode_source(ids) == "私は"
    assert BPE.encode_source("a\ud800b", strict=False).tolist() == [97 + 4, UNKNOWN, 98 + 4, END]
    with pytest.raises(TokenizerError, match=r"source's bpe tokenizer: '\\ud800' \(U\+D800\)\. Leave it out\.$"):
        BPE.encode_source("a\ud800b")


def test_labels() -> None:
    ids = [START, *BPE.encode_target("I like cats."), PAD, UNKNOWN]
    labels = BPE.tokens_of(ids)
    assert len(labels) == len(ids)
    assert (labels[0], labels[-3:]) == ("·start·", ["⏎", "·pad·", "?"])
    assert "".join(labels[1:-3]).replace("␣", " ") == "I like cats."
    # A character of four tokens: the last one shows it. Before the end, what is left of one is given up.
    whole = BPE.encode_source("😀\n")
    assert BPE.tokens_of(whole, "source") == ["…", "…", "…", "😀", "\\n", "⏎"]
    assert BPE.tokens_of([*whole[:2], END, *whole[:4]], "source") == ["…", "…", "⏎", "…", "…", "…", "😀"]
    assert BPE.tokens_of([*whole[:2], 97 + 4]) == ["…", "…", "…a"]
    assert CHAR.tokens_of(CHAR.encode_source("猫は"), "source") == ["猫", "は", "⏎"]


def test_bits_per_byte_count_text_only() -> None:
    assert BPE.token_bytes.shape == (BPE.vocab_size,)
    assert BPE.token_bytes[BPE.encode_target("cats 猫")].sum() == len("cats 猫".encode())


@pytest.mark.parametrize("tokenizer", [BPE, CHAR, PairTokenizer(ByteTokenizer(), CharTokenizer("ab"))])
def test_save_and_load(tmp_path: Path, tokenizer: PairTokenizer) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    again = tokenizers.load(tmp_path / "tokenizer.json")
    assert isinstance(again, PairTokenizer)
    assert again.to_dict() == tokenizer.to_dict()
    assert (again.source_size, again.target_size) == (tokenizer.source_size, tokenizer.target_size)
    assert again.source.kind == tokenizer.source.kind


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"source": None}, "the source's or the target's tokenizer is missing"),
        ({"target": {"kind": "char", "version": 1}}, "list of characters is missing"),
        ({"target": CHAR.to_dict()}, "a side of a pair is a pair itself"),
    ],
)
def test_a_damaged_description(change: dict, why: str) -> None:
    with pytest.raises(TokenizerError, match=why):
        tokenizers.from_dict(CHAR.to_dict() | change)


def test_a_small_text_gets_fewer_tokens_and_says_so() -> None:
    small = PairTokenizer.train(["abab abab"], ["xy xy z"], source_size=1000, target_size=261)
    assert small.source_size < 300
    assert small.notes == (f"source: {small.source_size} tokens, not 1,000: no other pair of tokens is there twice",)
    assert small.target_size == 261


def test_what_cannot_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"kind = chars: must be one of bpe, char\. Did you mean char\?"):
        PairTokenizer.train(["a"], ["b"], kind="chars")
    with pytest.raises(ConfigError, match="target_size = 259: must be at least 260"):
        PairTokenizer.train(["a"], ["b"], target_size=259)
    for kind in ("bpe", "char"):
        with pytest.raises(TokenizerError, match="no target text"):
            PairTokenizer.train(["a"], ["", ""], kind=kind)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ResourceError, match=r"handmade\[translation\]"):
        PairTokenizer.train(["a"], ["b"])
    assert PairTokenizer.train(["a"], ["b"], kind="char").vocab_size == 5
