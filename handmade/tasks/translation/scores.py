"""How good translations are: BLEU over all of them, chrF over all and for each sentence, by `sacrebleu`.

    scores = corpus_scores(hypotheses, references, "en")
    scores.bleu, scores.bleu_signature

A figure without its signature says little: the same translations differ by several points of BLEU from one
tokenization to another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from handmade.errors import DataError, optional

WITHOUT_SPACES = {
    "ja": ("ja", "jpn"),
    "zh": ("zh", "zho", "chi", "cmn", "yue", "wuu", "lzh"),
    "th": ("th", "tha"),
    "lo": ("lo", "lao"),
    "km": ("km", "khm"),
    "my": ("my", "mya", "bur"),
}
"""Languages that are written without spaces between words -> their codes in ISO 639."""

# Thai, Lao, Burmese, Khmer; kana, Chinese characters, narrow kana. Hangul is not among them: Korean has spaces.
RUNNING_ON = re.compile(
    "[\\u0e00-\\u0eff\\u1000-\\u109f\\u1780-\\u17ff\\u3005-\\u3007\\u3041-\\u30ff\\u31f0-\\u31ff"
    "\\u3400-\\u9fff\\uf900-\\ufaff\\uff66-\\uff9f\\U00020000-\\U0003ffff]"
)


@dataclass(frozen=True)
class Scores:
    """Of all sentences together."""

    bleu: float
    """0 to 100: the geometric mean of the precisions of 1- to 4-grams, times the brevity penalty."""
    chrf: float
    """0 to 100: F-score (recall counts twice) of the 1- to 6-grams of characters."""
    bleu_signature: str
    """How it was counted; `tok:` names the tokenizer."""
    chrf_signature: str
    length_ratio: float
    """Tokens of the hypotheses over tokens of the references; below 1, BLEU has a brevity penalty."""


def corpus_scores(hypotheses: Sequence[str], references: Sequence[str], language: str | None = None) -> Scores:
    """BLEU and chrF of translations, one reference for each. An empty hypothesis scores nothing and counts.

        BLEU = BP * exp(mean over n = 1..4 of log p_n)    p_n: n-grams found in the references, over all written
        BP   = min(1, exp(1 - r / c))                     r, c: tokens of the references, of the hypotheses

    language: the code of the language translated into, such as `en` or `ja`; None: it is told from the references.
    Raises ResourceError where sacrebleu is missing, DataError where there are no sentences.
    Source: Papineni et al. 2002, section 2.3; Popović 2015 (chrF); Post 2018 (the signature).
    """
    return scored(hypotheses, references, tokenizer(language, references))


def scored(hypotheses: Sequence[str], references: Sequence[str], tokenize: str) -> Scores:
    """`corpus_scores` with one of sacrebleu's tokenizers, by its name. Raises as it does."""
    _check(hypotheses, references)
    if not references:
        raise DataError("No translations to score: the list of sentences is empty.")
    bleu, chrf = metrics(tokenize)
    # sacrebleu takes a list of hypotheses, and a list of *sets* of references: one set here.
    counted = bleu.corpus_score(list(hypotheses), [list(references)])
    characters = chrf.corpus_score(list(hypotheses), [list(references)])
    return Scores(
        bleu=float(counted.score),
        chrf=float(characters.score),
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
        length_ratio=counted.sys_len / max(1, counted.ref_len),
    )


def sentence_chrf(hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
    """chrF of each sentence by itself, 0 to 100. (BLEU says little of one sentence: most have no 4-gram in common.)

    Raises ResourceError where sacrebleu is missing.
    """
    _check(hypotheses, references)
    _, chrf = metrics("13a")
    pairs = zip(hypotheses, references, strict=True)
    return [float(chrf.sentence_score(hypothesis, [reference]).score) for hypothesis, reference in pairs]


def metrics(tokenize: str) -> tuple[Any, Any]:
    """sacrebleu's BLEU with this tokenizer, and its chrF. Raises ResourceError where it is missing."""
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise optional("sacrebleu", "translation", "BLEU") from None
    return BLEU(tokenize=tokenize, force=True), CHRF()  # force: no warning for texts that end in " ."


def require() -> None:
    """Raise ResourceError where sacrebleu is missing: before a model is trained, not when it is to be scored."""
    metrics("13a")


def tokenizer(language: str | None, references: Sequence[str] = ()) -> str:
    """The name of the tokenizer that sacrebleu cuts this language with.

    `13a`, the usual one, cuts at spaces and punctuation. A language without spaces would come out as a word for each
    sentence, so it is cut into characters; Japanese into words where MeCab is installed; Chinese by sacrebleu's own.
    """
    found = without_spaces(language, references)
    if found == "ja" and language is not None and all(find_spec(name) for name in ("MeCab", "ipadic")):
        return "ja-mecab"
    return "zh" if found == "zh" else "char" if found else "13a"


def without_spaces(language: str | None, references: Sequence[str] = ()) -> str:
    """The language where it is written without spaces between words, else the empty string.

    Where the language is not known, `?` if more than half of the letters of the references are of such a script.
    """
    if language is not None:
        code = re.split("[-_]", language.strip().lower())[0]
        return next((name for name, codes in WITHOUT_SPACES.items() if code in codes), "")
    letters = running = 0
    for text in references:
        letters += sum(map(str.isalpha, text))
        running += len(RUNNING_ON.findall(text))
    return "?" if 2 * running > letters else ""


def unit_of(language: str | None, references: Sequence[str] = ()) -> str:
    """What lengths are counted in: `words`, or `characters` in a language without spaces."""
    return "characters" if without_spaces(language, references) else "words"


def length_of(text: str, unit: str) -> int:
    """Words or characters of a text.

    >>> length_of("I like cats.", "words"), length_of("猫が 好き。", "characters")
    (3, 5)
    """
    words = text.split()
    return len(words) if unit == "words" else sum(map(len, words))


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """A text in the place of a list would be taken for a list of letters, and scored."""
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise TypeError("hypotheses and references are lists of sentences, not one text")
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses and {len(references)} references: one for each is needed")
