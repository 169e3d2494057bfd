"""Text and tokens: what a vocabulary is made of, and the way there and back."""

from __future__ import annotations

import random
from typing import Any

from handmade.doctor import vocabularies
from handmade.doctor.checks.base import Check, check
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious
from handmade.doctor.material import Codec, data_of, needed
from handmade.doctor.patient import Patient

# ---------------------------------------------------------------------------------------------------------------
# Vocabularies

# Of all tokens that do not stand in training, those that stand in validation. Characters and 500 to 8,000 byte pairs,
# on 30,000 to 2 million characters of Shakespeare, English and Japanese sentences: made of the training part alone
# none, of both parts 1, learnt elsewhere up to 0.13. Of three parts (a test too) about 0.5.
MADE_ELSEWHERE, MADE_OF_BOTH = 0.2, 0.8


@check(
    "vocabulary",
    "the vocabulary was made of the validation text too",
    reference="Kapoor and Narayanan 2023 (arXiv:2207.07048), L1.2: preprocessing on training and test set",
    needs=("encode", "train_data", "validation_data"),
    demonstration="""\
text = "to be or not to be " * 50 + "quiz?"
train, held = text[:-20], text[-20:]
for name, source in (("both", text), ("training", train)):
    characters = sorted(set(source))
    print("made of", name, [c for c in characters if c not in train], "never stand in training")
""",
)
def vocabulary(patient: Patient) -> Finding:
    """Characters and words of the validation text that are new: has one of them a token of its own?

        r = late / (late + elsewhere)        late: tokens that stand in validation and not in training,
                                             elsewhere: tokens that stand in neither

    A tokenizer made of the training text alone cannot know them (it refuses them, or writes them as unknown or in
    bytes, which all byte-level tokenizers have: these do not count). One that was made of some other large text knows
    many tokens that stand in neither part: r is small.
    """
    train, held = needed(patient, "train_data"), needed(patient, "validation_data")
    if not (train.text and held.text):
        raise NotExamined("train_data and validation_data are token ids: texts are needed")
    if train.cut:
        raise NotExamined("the training text is too long to be looked at whole")
    size = vocabularies.size_of(patient.given.tokenizer, patient.given.vocab_size)
    codec = Codec(patient.given.encode, patient.given.decode)
    found = vocabularies.origin(codec, train.whole, held.whole[:2_000_000], size)
    late = ", ".join(map(repr, found.late[:5]))
    if not found.late:
        return healthy(
            f"{found.new:,} characters and words are new in validation: none has a token of its own", "none", value=0
        )
    ratio = len(found.late) / (len(found.late) + found.nowhere)
    measured = f"{len(found.late):,} tokens stand in validation and not in training: {late}"
    expected = "none, or as few as of a vocabulary made elsewhere"
    details: dict[str, Any] = {"value": ratio, "limit": MADE_ELSEWHERE}
    if ratio <= MADE_ELSEWHERE:
        return healthy(f"{measured}; {found.nowhere:,.0f} stand in neither: it was made elsewhere", expected, **details)
    cause = "the vocabulary knows what only the validation text could tell, so the validation loss is too good"
    remedy = (
        "make the vocabulary of the training part: chars = sorted(set(train_text)), and say what is done with others"
    )
    if ratio > MADE_OF_BOTH:
        return sick(measured, expected, cause, remedy, **details)
    asked = "Was it made of another text than these two? Then it is well; `tokenizer` with its vocab_size may tell"
    return suspicious(f"{measured}; {found.nowhere:,.0f} in neither", expected, cause, remedy, asked, **details)


# ---------------------------------------------------------------------------------------------------------------
# There and back


@check(
    "round-trip",
    "decode(encode(text)) is not the text",
    reference="Kudo and Richardson 2018 (arXiv:1808.06226), section 3.1: lossless tokenization",
    needs=("encode", "decode"),
    demonstration="""\
text = "To be,  or not\\nto be"
vocabulary = sorted(set(text.split()))
encode = lambda s: [vocabulary.index(w) for w in s.split()]
decode = lambda ids: " ".join(vocabulary[i] for i in ids)
print(repr(decode(encode(text))), "is not", repr(text))
characters = sorted(set(text))
print(repr("".join(characters[characters.index(c)] for c in text)), "is")
""",
)
def round_trip(patient: Patient) -> Finding:
    """For pieces of the person's own text, and for made-up ones of known characters:

        decode(encode(text)) == text

    An error for a character that is not known is well. What is changed or lost without a word is not: the model never
    sees it and can never write it. Where case, spaces, the form of accents or rare words explain every difference, it
    may be meant, as in uncased or word-level tokenizers: that is a question, answered by `expect={"normalised": True}`.
    """
    codec = Codec(patient.given.encode, patient.given.decode)
    data = data_of(patient, "train_data")
    own = vocabularies.samples(data)
    known = set("".join(own.values()))
    for character in set("".join(vocabularies.MADE_UP.values())) - known:
        if vocabularies.comes_back(codec, character):
            known.add(character)
    texts = own | {name: text for name, text in vocabularies.MADE_UP.items() if text and set(text) <= known}
    marker = vocabularies.marker_of(codec, known)
    normalised: dict[str, str] = {}
    lost: list[tuple[str, str]] = []
    for name, text in texts.items():
        try:
            back = codec.decode(codec.encode(text))
            back = back if back == text else codec.decode(codec.inner(text))
        except NotExamined:
            raise
        except Exception as problem:
            if name in own:
                lost.append((name, f"encode fails on {name}: {type(problem).__name__}: {problem}"[:120]))
            continue
        if back != text:
            explained = vocabularies.changed(text, back, marker)
            if explained is None:
                lost.append((name, f"{name}: {vocabularies.difference(text, back)}"))
            elif name in own or explained != [vocabularies.RARE]:
                normalised |= dict.fromkeys(explained, f"{name}: {vocabularies.difference(text, back)}")
    lost += [("unknown characters", said) for said in dropped(codec, known)]
    details: dict[str, Any] = {"value": len(lost) + len(normalised), "limit": 0}
    expected = "every text comes back as it was"
    cause = "what encode loses the model never sees, and what decode loses it can never write"
    if lost:
        remedy = "one id for every character (or byte); raise an error for those that are not known"
        return sick(lost[0][1], expected, cause, remedy, **details)
    if normalised and patient.expects("normalised") is not True:
        measured = f"{' and '.join(normalised)} changed: {next(iter(normalised.values()))}"
        remedy = "keep the text as it is: no lower(), split() or strip() in encode"
        if patient.expects("normalised") is False:
            return sick(measured, expected, cause, remedy, **details)
        asked = 'Is the tokenizer meant to change this? Then expect={"normalised": True}'
        return suspicious(measured, expected, cause, remedy, asked, **details)
    if not texts:
        raise NotExamined("no text was found that encode takes: give train_data as text")
    return healthy(f"{len(texts)} of {len(texts)} texts come back as they were", expected, **details)


def dropped(codec: Codec, known: set[str]) -> list[str]:
    """Unknown characters that vanish without a trace."""
    anchor = next((one for one in "aeiot 01" if one in known and vocabularies.comes_back(codec, one)), None)
    if anchor is None:
        return []
    for character in ("🙂", "é", "#", *vocabularies.UNUSUAL):
        if character in known:
            continue
        try:
            if codec.decode(codec.inner(anchor + character + anchor)) == anchor + anchor:
                return [f"the unknown character {character!r} is left out without a word"]
        except Exception:
            continue
    return []


# ---------------------------------------------------------------------------------------------------------------
# Streaming


@check(
    "streaming",
    "decoding token by token breaks characters",
    reference="RFC 3629, section 3: a character of UTF-8 is one to four bytes",
    needs=("decode",),
    demonstration="""\
import codecs
ids = list("naïve 日本".encode())                                  # a token for every byte
print("".join(bytes([i]).decode("utf-8", errors="replace") for i in ids))
utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
print("".join(utf8.decode(bytes([i])) for i in ids))
""",
)
def streaming(patient: Patient) -> Finding:
    """Text that is shown while it is written has to be the text of all its tokens:

        "".join(stream(ids)) == decode(ids)

    `stream` is the person's, or the tokenizer's `decoder()` with `feed` and `flush`. Without it, `decode` is asked for
    one token at a time: where that gives the same, it is well. Where a token is a part of a character it breaks, and
    whether the person decodes so is not known; but `decode` may not fail on a part of a text: a model stops anywhere.
    """
    given = patient.given
    codec = Codec(given.encode, given.decode)
    ids = multibyte(codec, patient)
    whole = codec.decode(ids)
    expected = "the pieces together are the whole"
    stream = given.stream or incremental(given.tokenizer)
    cause = "a character of several bytes is decoded in parts, and each part alone is no character"
    remedy = 'keep the bytes back until a character is whole: codecs.getincrementaldecoder("utf-8")(errors="replace")'
    if stream is not None:
        try:
            joined = "".join(stream(list(ids)))
        except Exception as problem:
            return sick(f"stream fails: {type(problem).__name__}", expected, cause, remedy, value=1, limit=0)
        if joined == whole:
            return healthy(f"{len(ids)} tokens, streamed and whole: the same text", expected, value=0, limit=0)
        broken = joined.count("\ufffd") - whole.count("\ufffd")
        said = f"{broken} replacement characters: " if broken > 0 else ""
        measured = said + vocabularies.difference(whole, joined)
        return sick(measured, expected, cause, remedy, value=max(1, broken), limit=0)
    for many in range(1, len(ids)):
        try:
            codec.decode(ids[:many])
        except Exception as problem:
            return sick(
                f"decode fails on the first {many} of {len(ids)} tokens: {type(problem).__name__}",
                "a text that stops anywhere can be decoded",
                "tokens are bytes, and a model stops, or goes wrong, in the middle of a character",
                'decode with errors="replace", and stream with an incremental decoder',
                value=1,
                limit=0,
            )
    if "".join(codec.decode([one]) for one in ids) == whole:
        return healthy(f"{len(ids)} tokens decoded one by one: the same text", expected, value=0, limit=0)
    raise NotExamined("a token alone is not whole text here, and how text is streamed was not given: `stream(ids)`")


def incremental(tokenizer: Any) -> Any:
    """A stream made of a tokenizer's own decoder, where it has one."""
    if not callable(getattr(tokenizer, "decoder", None)) or not hasattr(tokenizer.decoder(), "feed"):
        return None

    def stream(ids: list[int]) -> Any:
        decoder = tokenizer.decoder()
        yield from (decoder.feed(one) for one in ids)
        yield decoder.flush()

    return stream


def multibyte(codec: Codec, patient: Patient) -> list[int]:
    """Tokens of a text with characters of several bytes, as far as the tokenizer has them; without encode, tokens by
    chance, or validation tokens."""
    if patient.given.encode is None:
        size = vocabularies.size_of(patient.given.tokenizer, patient.given.vocab_size)
        if size is None:
            raise NotExamined("not given: encode")
        return random.Random(0).choices(range(size), k=64)
    data = data_of(patient, "train_data")
    texts = ["naïve ", "café ", "日本語 ", "🙂 ", "Ελλάδα ", *vocabularies.samples(data).values()]
    ids: list[int] = []
    for text in texts:
        if vocabularies.comes_back(codec, text):
            ids += codec.inner(text)
    if not ids:
        raise NotExamined("no text was found that comes back whole")
    return ids[:400]


CHECKS: tuple[Check, ...] = (vocabulary, round_trip, streaming)
