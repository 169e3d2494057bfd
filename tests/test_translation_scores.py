"""BLEU and chrF of translations: against a count by hand, and against sacrebleu called directly."""

from __future__ import annotations

import ast
import math
import sys
from collections import Counter
from pathlib import Path

import pytest

from handmade.errors import DataError, ResourceError
from handmade.tasks.translation import scores
from handmade.tasks.translation.scores import corpus_scores, length_of, sentence_chrf, unit_of, without_spaces

sacrebleu = pytest.importorskip("sacrebleu")

REFERENCES = [
    "the cat sat on the mat today .",
    "yesterday she has read all of the books that he wrote .",
    "we were there before you came home .",
]
HYPOTHESES = [
    "the cat sat on the mat .",
    "she has read all of the books .",
    "we were there when you came .",
]


def papineni(hypotheses, references):
    """BLEU by the formula of the paper, over texts whose tokens stand between spaces."""
    written = wanted = 0
    found, possible = Counter(), Counter()
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        made, right = hypothesis.split(), reference.split()
        written, wanted = written + len(made), wanted + len(right)
        for order in (1, 2, 3, 4):
            grams = Counter(tuple(made[i : i + order]) for i in range(len(made) - order + 1))
            there = Counter(tuple(right[i : i + order]) for i in range(len(right) - order + 1))
            found[order] += sum(min(count, there[gram]) for gram, count in grams.items())
            possible[order] += sum(grams.values())
    precision = math.exp(sum(math.log(found[order] / possible[order]) for order in (1, 2, 3, 4)) / 4)
    return 100 * precision * min(1.0, math.exp(1 - wanted / written))


def test_bleu_counted_by_hand():
    # One sentence. Tokens: hypothesis "the cat sat on the mat ." (7), reference the same with "today" (8).
    # 1-grams 7/7; 2-grams: "mat ." is wrong, 5/6; 3-grams: "the mat ." is wrong, 4/5; 4-grams: 3/4. BP = exp(1 - 8/7).
    by_hand = 100 * math.exp(1 - 8 / 7) * (7 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25
    found = corpus_scores(HYPOTHESES[:1], REFERENCES[:1], "en")
    assert found.bleu == pytest.approx(by_hand, rel=1e-12)
    assert found.length_ratio == 7 / 8
    # Swapped, nothing is short: precisions 7/8, 5/7, 4/6, 3/5 and no penalty. It has to be told apart.
    swapped = 100 * (7 / 8 * 5 / 7 * 4 / 6 * 3 / 5) ** 0.25
    assert corpus_scores(REFERENCES[:1], HYPOTHESES[:1], "en").bleu == pytest.approx(swapped, rel=1e-12)
    assert abs(swapped - by_hand) > 1


def test_bleu_is_that_of_the_corpus_not_a_mean():
    by_formula = papineni(HYPOTHESES, REFERENCES)
    assert corpus_scores(HYPOTHESES, REFERENCES, "en").bleu == pytest.approx(by_formula, rel=1e-12)
    assert abs(by_formula - papineni(REFERENCES, HYPOTHESES)) > 1
    mean = sum(papineni([h], [r]) for h, r in zip(HYPOTHESES[:2], REFERENCES[:2], strict=True)) / 2
    assert abs(mean - papineni(HYPOTHESES[:2], REFERENCES[:2])) > 0.1


def test_the_same_as_sacrebleu_called_directly():
    hypotheses = ["I like cats!", "", 'He said: "No way".', "Don't go."]
    references = ["I like cats.", "Where is it?", 'He said, "No way."', "Do not go there."]
    found = corpus_scores(hypotheses, references, "en")
    assert found.bleu == sacrebleu.corpus_bleu(hypotheses, [references], tokenize="13a").score
    assert found.chrf == sacrebleu.corpus_chrf(hypotheses, [references]).score
    assert 0 < found.bleu < 100
    assert 0 < found.chrf < 100
    assert f"tok:13a|smooth:exp|version:{sacrebleu.__version__}" in found.bleu_signature
    assert found.bleu_signature.startswith("nrefs:1|")  # a set of references taken for sentences would give others
    assert found.chrf_signature.startswith("nrefs:1|")
    assert "nc:6|nw:0" in found.chrf_signature
    each = [sacrebleu.sentence_chrf(h, [r]).score for h, r in zip(hypotheses, references, strict=True)]
    assert sentence_chrf(hypotheses, references) == each
    assert sentence_chrf(hypotheses, references) != sentence_chrf(references, hypotheses)


def test_perfect_and_empty():
    perfect = corpus_scores(REFERENCES, REFERENCES, "en")
    assert (perfect.bleu, perfect.chrf, perfect.length_ratio) == (pytest.approx(100), pytest.approx(100), 1.0)
    nothing = corpus_scores(["", "", ""], REFERENCES, "en")
    assert (nothing.bleu, nothing.chrf, nothing.length_ratio) == (0, 0, 0)
    assert sentence_chrf(["Hi.", ""], ["Hi.", "Hi."]) == [100, 0]
    # An empty hypothesis counts: leaving it out would be kinder.
    some = corpus_scores(["", *REFERENCES[1:]], REFERENCES, "en")
    tokens = [len(text.split()) for text in REFERENCES]
    assert some.bleu == pytest.approx(100 * math.exp(1 - sum(tokens) / sum(tokens[1:])))


def test_japanese_is_cut_into_characters(monkeypatch):
    references = ["私は猫が好きです。", "時間があるか分かりません。"]
    hypotheses = ["私は犬が好きです。", "時間がありません。"]
    monkeypatch.setattr(scores, "find_spec", lambda name: None)
    found = corpus_scores(hypotheses, references, "ja")
    assert "tok:char" in found.bleu_signature
    assert found.bleu == sacrebleu.corpus_bleu(hypotheses, [references], tokenize="char").score
    spaced = [[" ".join(text) for text in texts] for texts in (hypotheses, references)]
    assert found.bleu == pytest.approx(papineni(*spaced), rel=1e-12)
    assert found.bleu > corpus_scores(hypotheses, references, "en").bleu + 10  # a word for each sentence
    # By words where the packages for it are there.
    monkeypatch.setattr(scores, "find_spec", lambda name: object())
    assert scores.tokenizer("ja") == "ja-mecab"
    assert scores.tokenizer("en") == "13a"


def test_which_languages_have_spaces():
    known = ("ja", "JPN", "ja-JP", "zh_TW", "cmn", "th")
    assert [without_spaces(code) for code in known] == ["ja", "ja", "ja", "zh", "zh", "th"]
    assert [without_spaces(code) for code in ("en", "de", "ko", "java", "jav", "")] == [""] * 6
    # Not named: by its letters.
    assert corpus_scores(["猫。"], ["猫が好き。"]).bleu_signature.split("|")[3] == "tok:char"
    assert corpus_scores(["a cat"], ["I like cats."]).bleu_signature.split("|")[3] == "tok:13a"
    assert without_spaces(None, ["저는 고양이를 좋아합니다.", "ムーリエル"]) == ""
    assert without_spaces(None, ["「Muiriel」です。", "パスワードは秘密です。"]) == "?"
    assert unit_of("ja") == "characters"
    assert unit_of(None, ["I like cats."]) == "words"
    assert length_of(" I  like cats. ", "words") == 3
    assert length_of("猫が 好き。", "characters") == 5


def test_lists_that_do_not_fit():
    with pytest.raises(DataError, match="the list of sentences is empty"):
        corpus_scores([], [], "en")
    with pytest.raises(ValueError, match="2 hypotheses and 1 references"):
        corpus_scores(["a", "b"], ["a"], "en")
    with pytest.raises(TypeError, match="lists of sentences"):
        corpus_scores("abc", "abd", "en")
    with pytest.raises(TypeError, match="lists of sentences"):
        sentence_chrf("abc", ["a", "b", "c"])


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    for score in (lambda: corpus_scores(["a"], ["a"], "en"), lambda: sentence_chrf(["a"], ["a"])):
        with pytest.raises(ResourceError, match=r"BLEU needs .* sacrebleu.*pip install 'handmade\[translation\]'"):
            score()


@pytest.mark.parametrize("name", ["__init__", "scores", "reports", "fonts", "pictures"])
def test_importing_loads_nothing_heavy(name):
    tree = ast.parse((Path(scores.__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    loaded = {(node.module if isinstance(node, ast.ImportFrom) else alias.name) for node in top for alias in node.names}
    assert not {found.split(".")[0] for found in loaded} & {"sacrebleu", "matplotlib", "matplotlib_fontja", "torch"}
