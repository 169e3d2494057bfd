"""Text and tokens: splits, vocabularies, windows, and the way there and back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from torch.utils.data import Subset

from handmade.doctor import overlap, vocabularies, windowing
from handmade.doctor.checks.base import Check, check
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious
from handmade.doctor.material import Codec, Material, data_of, material
from handmade.doctor.patient import Patient

# ---------------------------------------------------------------------------------------------------------------
# Splits

# Stretches of one text that stand in both parts (50 characters of English, or as many symbols as say as much). Split in
# one place: Tiny Shakespeare 0, its tokens 0, its speeches shuffled 0.0002, texts with a refrain 0 to 0.05. Training
# that reaches 2 % into the validation's tenth: 0.2; the whole text in training: 1.
STRETCHES, NATURAL, MOST_STRETCHES = 0.02, 0.1, 0.5
# Windows of one length, of which a stretch stands in a training window. Cut side by side or split before they are cut:
# 0 to 0.03 for 17 to 257 characters; overlapping by half or all but one and shuffled: 0.9 to 1.
WINDOWS = 0.5
# Whole rows, by length. Sentences and problems without repetition: 0 to 0.001; 2,000 sums drawn out of 100,000: 0.02;
# lines of a play 0.04 (split in one place) to 0.08 (shuffled); sums drawn out of 1,000: 0.86.
ROWS, MOST_ROWS = 0.02, 0.1
# Beginnings. Words of Shakespeare 0.05 to 0.11 of the rows have two training rows within two letters, names 0.02, sums
# 0 to 0.04; sentences and sums cut at every symbol and shuffled: 0.61 to 0.99 at nine to one, 0.19 to 0.65 at half.
# Foretold are 0 to 0.04 of sentences and speeches; of sentences cut at every word 0.65 to 0.83.
STEPS, FORETOLD = 0.3, 0.3

SPLIT_CAUSE = (
    "what is validated on was learnt by heart: the validation loss no longer says how the model does on new text"
)
ONLY_ONCE = "split first: train, validation = text[:n], text[n:]; nothing of the second in the first"


def both(patient: Patient) -> tuple[Material, Material]:
    """Training and validation data in one form. Of two parts of one dataset the same region is read, so that windows
    that lie side by side are both seen."""
    train, held = patient.given.train_data, patient.given.validation_data
    if isinstance(train, Subset) and isinstance(held, Subset) and train.dataset is held.dataset:
        parts = [Subset(one.dataset, sorted(i for i in one.indices if i < REGION)) for one in (train, held)]
        first, second = material(parts[0], "train_data"), material(parts[1], "validation_data")
    else:
        first, second = text_of(patient, "train_data"), text_of(patient, "validation_data")
    if first.text != second.text:
        raise NotExamined("one of train_data and validation_data is text, the other token ids")
    for one in (first, second):
        if one.cut:
            patient.notes.append(f"of the data {one.cut} are looked at")
    return first, second


REGION = 50_000


def text_of(patient: Patient, name: str) -> Material:
    """What was given, in one form. Raises NotExamined where nothing was."""
    found = data_of(patient, name)
    if found is None:
        raise NotExamined(f"not given: {name}")
    return found


@check(
    "split",
    "validation text stands in training",
    reference="Lee et al. 2022 (arXiv:2107.06499), section 4.1: the same 50 tokens in both parts",
    needs=("train_data", "validation_data"),
    demonstration="""\
import random
text = "".join(random.choice("abcdefgh ") for _ in range(5000))
windows = [text[i : i + 64] for i in range(len(text) - 64)]     # overlapping windows ..
random.shuffle(windows)                                          # .. shuffled before the split
train, held = windows[:4400], windows[4400:]
inside = {w[:32] for w in train} | {w[i : i + 32] for w in train for i in (1, 2, 3)}
print("windows, then split:", sum(w[:32] in inside for w in held) / len(held))
train, held = text[:4500], text[4500:]                           # split first
print("split, then windows:", sum(held[i : i + 32] in train for i in range(400)) / 400)
""",
)
def split(patient: Patient) -> Finding:
    """Three things are counted, whichever the data can show:

        stretches    validation's n-grams that are n-grams of training / all its n-grams    (n: 50 characters, 235 bits)
        rows         symbols of validation rows that are training rows / all its symbols    (but for case and spaces)
        beginnings   validation rows that are the beginning of a training row, or go on where one stops / all its rows

    Stretches are also counted between parts of the training itself: a text with a refrain repeats itself wherever it
    is cut. `expect={"duplicates": True}` says that repetition is meant.
    """
    train, held = both(patient)
    found = shared_stretches(train, held)
    if not train.single:
        found = [*shared_rows(train, held, patient.given.padding), *found]
    if not found:
        raise NotExamined("there is too little text, or the rows are so short that they repeat by themselves")
    if patient.expects("duplicates"):
        return healthy(found[0].measured, "as declared: repetition is meant", value=found[0].value)
    order = ("sick", "suspicious", "healthy")
    return min(found, key=lambda one: order.index(one.verdict))


def shared_stretches(train: Material, held: Material) -> list[Finding]:
    found = overlap.stretches(train, held)
    if found is None:
        return []
    stretch = f"stretches of {found.length} {train.unit}"
    if found.rows is not None:
        measured = f"{found.rows:.1%} of the validation windows share a stretch of {found.length} with training"
        details: dict[str, Any] = {"value": found.rows, "limit": WINDOWS}
        if found.rows <= WINDOWS or found.rows * len(held.rows) < 3:
            return [healthy(measured, f"at most {WINDOWS:.0%}", **details)]
        remedy = "split the text first, then cut each part into windows"
        return [sick(measured, f"at most {WINDOWS:.0%}", SPLIT_CAUSE, remedy, **details)]
    measured = f"{found.share:.1%} of the validation's {stretch} stand in training"
    expected = f"at most {STRETCHES:.0%}; parts of the training share {found.natural:.1%}"
    details = {"value": found.share, "limit": STRETCHES}
    natural = 3 * found.natural + STRETCHES
    if found.share <= STRETCHES or found.share <= min(natural, NATURAL):
        return [healthy(measured, expected, **details)]
    where = f"{found.longest:,} {train.unit} from {found.place:,} of the validation: in training from {found.source:,}"
    if found.share > min(natural, MOST_STRETCHES):
        return [sick(measured, expected, SPLIT_CAUSE, ONLY_ONCE, where=where, **details)]
    return [
        suspicious(
            measured,
            expected,
            SPLIT_CAUSE,
            "take repeated passages out before splitting",
            REPEATED,
            where=where,
            **details,
        )
    ]


REPEATED = 'Is the text meant to repeat itself, as songs do? Then expect={"duplicates": True}'


def shared_rows(train: Material, held: Material, padding: int | None) -> list[Finding]:
    """Rows that stand in both, and rows that begin alike."""
    begun = overlap.prefixes(train, held, padding)
    found = []
    if begun.steps > STEPS or begun.foretold > FORETOLD:
        stepwise = begun.steps > STEPS
        value, limit = (begun.steps, STEPS) if stepwise else (begun.foretold, FORETOLD)
        what = "of the validation rows are a training row, a little longer or shorter"
        other = "of a validation row, on average, is the beginning of a training row, or has one as its own"
        found.append(
            sick(
                f"{value:.0%} {what if stepwise else other}",
                f"at most {limit:.0%}",
                "beginnings of one sentence or problem lie on both sides: what is to be predicted stands in training",
                "split whole sentences or problems first, then cut each part into its beginnings",
                where=f"for example {begun.example}",
                value=value,
                limit=limit,
            )
        )
    twice = overlap.duplicates(train, held)
    also = "" if twice.alike - twice.exact < 0.001 else f" ({twice.exact:.1%} in every letter)"
    measured = f"{twice.alike:.1%} of the validation rows stand in training{also}"
    expected, details = f"at most {ROWS:.0%}", {"value": twice.alike, "limit": ROWS}
    if twice.alike <= ROWS:
        return [*found, healthy(measured, expected, **details)]
    where, remedy = f"for example {twice.example}", "take duplicates out before splitting: rows = sorted(set(rows))"
    if twice.alike > MOST_ROWS:
        return [*found, sick(measured, expected, SPLIT_CAUSE, remedy, where=where, **details)]
    return [*found, suspicious(measured, expected, SPLIT_CAUSE, remedy, REPEATED, where=where, **details)]


# ---------------------------------------------------------------------------------------------------------------
# Vocabularies

# Tokens that stand in validation and not in training, as a part of all that do not stand in training. A vocabulary
# made of both parts: 1, of three parts (a test too) about 0.5; printable ASCII 0 to 0.1; GPT-2's below 0.01.
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
    train, held = text_of(patient, "train_data"), text_of(patient, "validation_data")
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
# Windows


MOST_ENCODED = 1_000_000  # characters that a person's encode is asked for at once


@check(
    "windows",
    "windows miss the end of the data, or run past it",
    reference="numpy: sliding_window_view, a row of N has N - T + 1 windows of T",
    needs=("train_data",),
    demonstration="""\
data, context = list(range(10)), 4
for name, count in (("one too few", len(data) - context - 1), ("right", len(data) - context),
                    ("one too many", len(data) - context + 1)):
    x, y = data[count - 1 : count - 1 + context], data[count : count + context]
    print(f"{name}: the last window is {x} -> {y}")
""",
)
def windows(patient: Patient) -> Finding:
    """The windows over N tokens with T inputs each begin at 0 and end at N - T - 1, every `step`:

        inputs data[s : s + T], targets data[s + 1 : s + T + 1]

    Of a dataset the first, the last and some between are looked up in the data. Of batches that are drawn at random,
    the random numbers (torch.randint, numpy.random.randint, random) are turned to their smallest and their largest.
    """
    given = patient.given
    data = text_of(patient, "train_data")
    if not data.single:
        raise NotExamined("train_data is many rows, not one")
    if data.cut or (data.text and len(data.rows[0]) > MOST_ENCODED):
        raise NotExamined("train_data is too long to be looked at whole: give a piece of it, and its windows")
    tokens = Codec(given.encode, given.decode).inner(data.rows[0]) if data.text else data.symbols
    row = np.asarray(tokens, dtype=np.int64)
    context = given.context or (patient.context if given.model is not None and given.windows is None else None)
    expected = "the first begins at 0, the last token is the last target of the last"
    try:
        if given.windows is not None and not callable(given.windows):
            many, first, last = windowing.examine(given.windows, row, context, given.ignore_index)
            return healthy(f"{many:,} windows begin at {first:,} to {last:,}", expected, value=0, limit=0)
        draw = given.windows if given.windows is not None else given.batches
        if draw is None:
            raise NotExamined("not given: windows")
        if not callable(draw):
            raise NotExamined("not given: windows; of finished batches it cannot be seen which there are")
        first, last = windowing.examine_random(draw, row, given.context, given.ignore_index)
        return healthy(f"random windows begin at {first:,} to {last:,}", expected, value=0, limit=0)
    except windowing.Fault as fault:
        return sick(fault.measured, expected, fault.cause, fault.remedy, value=fault.value, limit=0)


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


CHECKS: tuple[Check, ...] = (split, vocabulary, windows, round_trip, streaming)
