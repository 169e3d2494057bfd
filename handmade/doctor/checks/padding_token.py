"""The id that fills rows up stands for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from handmade.doctor.checks.base import check
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious
from handmade.doctor.given import parts_of
from handmade.doctor.patient import Patient

SAMPLE = 20_000
"""Characters of texts that are encoded, and ids of a data set that are looked at."""
TURNED = 8
"""Places of padding between tokens, in batches of at least as many rows, from which rows may be columns: that so many
stand at an end of their column by chance happens once in 4 ** 8 times."""
ORDINARY = 'The quick brown fox jumps over the lazy dog, 1234567890 times; "why?" - it\'s (not) said!\n'


@check(
    "padding-token",
    "the padding id is a real token",
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html (ignore_index)",
    needs=("padding",),
    demonstration="""\
import torch
text = "to be\\nor not"
letters = sorted(set(text))
encode = {letter: i for i, letter in enumerate(letters)}
print(repr(letters[0]), "is id 0")                # the newline: real, and what zero-padding writes
row = torch.zeros(16, dtype=torch.int64)
row[: len(text)] = torch.tensor([encode[c] for c in text])
print((row == 0).sum(), "places look like padding,", 16 - len(text), "are")
encode = {letter: i + 1 for i, letter in enumerate(letters)}    # right: 0 is kept for padding
print(min(encode.values()))
""",
)
def padding_token(patient: Patient) -> Finding:
    """The id that fills rows up must stand for nothing else:

        {t : encode(text) has t}  and  {padding}  have nothing in common

    Else a real token is hidden from attention and left out of the loss, and is never learnt. Looked at: what `encode`
    makes of the texts that were given (or of an ordinary English sentence, letter by letter), flat training data, and
    rows of batches, in which padding stands at the ends and not between real tokens.
    """
    patient.require("padding")
    padding = patient.given.padding
    assert padding is not None
    if patient.failure is None and not 0 <= padding < patient.vocab_size:
        return sick(
            f"the padding id is {padding}, and there are {patient.vocab_size} tokens",
            f"0 to {patient.vocab_size - 1}",
            "the embedding has no row for it: a padded row fails, or reads what is not its own",
            "give the padding an id of its own, and vocab_size one more",
            value=float(padding),
            limit=float(patient.vocab_size),
        )
    looked: list[str] = []
    for look in (by_text, by_data, by_batches):
        found = look(patient, padding, looked)
        if found is not None:
            return found
    if not looked:
        raise NotExamined("not given: encode, train_data or batches, to see what the padding id stands for")
    return healthy(f"id {padding} stands for nothing else in {', '.join(looked)}", "padding alone", value=0.0,
                   limit=0.0)  # fmt: skip


def real_token(measured: str, count: float) -> Finding:
    return sick(
        measured,
        "an id that nothing else has",
        "where it is real it is taken for padding: hidden from attention, left out of the loss, and never learnt",
        "give the padding an id of its own (add <pad> to the vocabulary), or pad targets with -100",
        value=count,
        limit=0.0,
    )


def texts_of(patient: Patient) -> list[str]:
    """Texts among the data that was given, not too much of them."""
    found: list[str] = []
    for data in (patient.given.train_data, patient.given.validation_data):
        several = [data] if isinstance(data, str) else data if isinstance(data, (list, tuple)) else []
        for one in several[:SAMPLE]:
            left = SAMPLE - sum(map(len, found))
            if isinstance(one, str) and left > 0:
                found.append(one[:left])
    return found


def by_text(patient: Patient, padding: int, looked: list[str]) -> Finding | None:
    """What `encode` makes of texts, whole and letter by letter: who gives an id to every single letter adds it to all
    texts (an end of text), or has it for all that is unknown."""
    encode = patient.given.encode
    if encode is None:
        return None
    own = texts_of(patient)
    texts = own or [ORDINARY]
    letters = list(dict.fromkeys("".join(texts)))
    alone = [letter for letter in letters if padding in (encoded(encode, letter) or [])]
    few = len(alone) == 1 or (bool(own) and 2 * len(alone) <= len(letters))
    if alone and few:
        return real_token(f"encode gives the padding id, {padding}, for {alone[0]!r}", float(len(alone)))
    if alone:
        what = f"for {len(alone)} of {len(letters)} single characters: it ends each text, or stands for unknown ones"
        return asked(patient, f"encode gives the padding id, {padding}, {what}", float(len(alone)))
    for text in texts:
        ids = encoded(encode, text) or []
        if padding in ids[1:-1]:
            return real_token(f"encode gives the padding id, {padding}, inside a text", float(ids.count(padding)))
    looked.append("what encode gives")
    return None


def encoded(encode: Callable[..., Any], text: str) -> list[int] | None:
    """Ids of a text, or None where it cannot be encoded."""
    try:
        ids = encode(text)
        ids = getattr(ids, "ids", ids)
        ids = ids["input_ids"] if isinstance(ids, Mapping) else ids
        return [int(one) for one in (ids.flatten().tolist() if hasattr(ids, "flatten") else ids)]
    except Exception:
        return None


def by_data(patient: Patient, padding: int, looked: list[str]) -> Finding | None:
    """Flat token ids have nothing to fill up."""
    for data in (patient.given.train_data, patient.given.validation_data):
        shape = getattr(data, "shape", None)
        if shape is not None and len(shape) == 1:
            ids = torch.as_tensor(data[:SAMPLE])
        elif isinstance(data, (list, tuple)) and data and all(isinstance(one, int) for one in data[:100]):
            ids = torch.tensor(data[:SAMPLE])
        else:
            continue
        count = int((ids == padding).sum())
        if count:
            measured = f"id {padding} is padding, and stands {count} times in {len(ids):,} ids of the data"
            return (
                healthy(measured + ", as declared", value=float(count), limit=0.0)
                if patient.expects("special_padding") is True
                else real_token(measured, float(count))
            )
        looked.append("the data")
    return None


def by_batches(patient: Patient, padding: int, looked: list[str]) -> Finding | None:
    """Padding between real tokens of a row: scored, or not."""
    scored = unscored = 0
    batches = lying(batches_of(patient), padding)
    for inputs, targets in batches:
        for row in inputs.tolist() if inputs.dim() == 2 else ():
            unscored += len(inner(row, padding))
        ignored = patient.given.ignore_index
        for row in targets.tolist() if targets.dim() == 2 and ignored != padding else ():
            kept = [one for one in row if one != ignored]
            scored += len(inner(kept, padding))
    if scored and patient.expects("special_padding") is not True:
        return real_token(f"id {padding} is padding, and {scored} targets between real ones are it", float(scored))
    if unscored:
        return asked(
            patient, f"id {padding} stands {unscored} times between real tokens of the batches", float(unscored)
        )
    if batches:
        looked.append("the batches")
    return None


def lying(batches: Sequence[tuple[Tensor, Tensor]], padding: int) -> list[tuple[Tensor, Tensor]]:
    """Batches with rows (B, T). Those that come as (T, B) are known by this: padding stands between tokens in their
    rows again and again, and never in their columns."""
    pairs = [one for pair in batches for one in pair if one.dim() == 2]
    across = sum(len(inner(row, padding)) for one in pairs for row in one.tolist())
    down = sum(len(inner(row, padding)) for one in pairs for row in one.T.tolist())
    if across < TURNED or down or min(len(one) for one in pairs) < TURNED:
        return list(batches)
    return [(x.T if x.dim() == 2 else x, y.T if y.dim() == 2 else y) for x, y in batches]


def inner(row: Sequence[int], padding: int) -> list[int]:
    """The places of padding between real tokens."""
    real = [place for place, token in enumerate(row) if token != padding]
    return [place for place in range(real[0], real[-1]) if row[place] == padding] if real else []


def asked(patient: Patient, measured: str, count: float) -> Finding:
    """What cannot be decided from outside: padding between the parts of a row, or a token of its own."""
    meant = patient.expects("special_padding")
    if meant is False:
        return real_token(measured, count)
    if meant is True:
        return healthy(measured + ", as declared", value=count, limit=0.0)
    return suspicious(
        measured,
        "padding at the ends of rows",
        "an end-of-text token that pads too is never scored at the end of a text, and the model never learns to stop",
        "give the padding an id of its own",
        'Is it never a real token? Then expect={"special_padding": True}.',
        value=count,
        limit=0.0,
    )


def batches_of(patient: Patient, most: int = 4) -> list[tuple[Tensor, Tensor]]:
    """A few of the person's batches."""
    source = patient.given.batches
    if source is None:
        return []
    drawn: list[Any] = []
    if callable(source):
        drawn = [source() for _ in range(most)]
    else:
        for one in source:
            drawn.append(one)
            if len(drawn) == most:
                break
    return [parts_of(one) for one in drawn]
