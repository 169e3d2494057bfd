"""Where a row ends: its first token alone, the full context, and what is longer.

B rows, T positions.
"""

from __future__ import annotations

from handmade.doctor.checks.base import Check, check
from handmade.doctor.checks.order import TOLD_APART, Mixing, told
from handmade.doctor.findings import Finding, NotExamined, healthy, sick
from handmade.doctor.meeting import DEAR, in_words, works
from handmade.doctor.patient import Patient
from handmade.doctor.probing import length_of, rows_of
from handmade.doctor.stirring import weights_of


@check(
    "context-end",
    "a row that is too long is answered with wrong positions",
    reference="Press, Smith and Lewis 2022 (arXiv:2108.12409), section 2: what happens beyond the length trained on",
    demonstration="""\
import torch
table = torch.nn.Embedding(4, 3)                          # positions of a context of 4
places = torch.arange(6)                                  # a row of 6
for name, wanted in (("wrapped", places % 4), ("held", places.clamp(max=3)), ("as they are", places)):
    try:
        rows = table(wanted)
        print(name, [(i, j) for i in range(6) for j in range(i) if rows[i].equal(rows[j])], "stand in one place")
    except IndexError as error:
        print(name, "refused:", error)                    # which is right
""",
)
def context_end(patient: Patient) -> Finding:
    """A row of one token and a row of the full context have to be answered. A longer one has to be refused, or its
    positions have to go on:

        p(T) is no p(t) with t < T        p: what marks a position

    A model that takes positions modulo the context, or holds them at the last one, answers a row that is too long as if
    two of its tokens stood in one place: what it generates gets worse after a while, without an error.

    Rows of 1, `context` and `context` + 1 tokens are tried. Where the longest is answered, tokens at context - 1 and
    context (held), and at 0 and context (wrapped), change places: as in `order`, something has to move.
    """
    context, expected = patient.context, "1 to context tokens work, more are refused or told apart"
    if patient.form.full:
        return healthy(f"rows of {context} tokens work, and only these", expected)
    if (problem := works(patient, 1)) is not None:
        return sick(
            f"a row of one token fails: {problem}", expected,
            "generation begins with one token: a squeeze() that takes the position away, or a slice that leaves none",
            "name the axis that is squeezed; take positions from tokens.shape[1]", where=patient.name,
        )  # fmt: skip
    asked, longer = patient.stated_context, context + 1
    mixing: Mixing | None = None
    part = ""
    if is_dear(patient, longer):
        mixing = mixing_of(patient)
        part = " (its first layers)"
    problem = patient.end if asked is None or asked > context else refused(patient, context, mixing)
    if asked is not None and problem is not None:
        return sick(
            f"rows of {asked} tokens fail: {problem}", expected,
            "a table of positions or a mask is shorter than the context that was stated",
            f"make tables and masks {asked} long, or state the context that the model has",
            value=float(context), limit=float(asked),
        )  # fmt: skip
    if problem is None and patient.device.type != "cpu":
        raise NotExamined("on a GPU an index past the end takes the process down: examine it on the CPU")
    problem = problem or refused(patient, longer, mixing)
    if problem is not None:
        return healthy(f"rows of {context} tokens work{part}, longer ones are refused: {problem}", expected)
    answered = f"rows of {longer} tokens are answered{part}"
    if asked is None:
        return healthy(f"{answered}: no end is stated, and none was found", expected)
    mixing = mixing or mixing_of(patient)
    if mixing is None or mixing.share <= TOLD_APART:
        return healthy(f"{answered}: there are no positions that could end", expected)
    if mixing.inside is None:
        raise NotExamined("longer rows are answered, and its inside is not made of modules: positions are not seen")
    alike, pair = closest(patient, context, mixing.inside)
    if alike > TOLD_APART:
        return healthy(f"{answered}, and positions go on", expected, value=alike, limit=TOLD_APART)
    return sick(
        f"{answered}, and tokens {pair[0]} and {pair[1]} may change places unnoticed ({alike:.2g})",
        expected,
        "positions begin again (modulo the context) or stay at the last one (clamp): two tokens stand in one place, and"
        " a row that is too long is answered worse without an error",
        "raise an error where T > context, and give the model the newest `context` tokens",
        value=alike,
        limit=TOLD_APART,
        where=mixing.where,
    )


def is_dear(patient: Patient, length: int) -> bool:
    """Whether a row of this length takes seconds."""
    return 2.0 * patient.size * length > DEAR


def mixing_of(patient: Patient) -> Mixing | None:
    """Where two tokens before the last first reach it, in a short row."""
    tokens = rows_of(patient, length_of(patient))
    last = tokens.shape[1] - 1
    return told(patient, tokens, (last - 2, last - 1)) if last > 1 else None


def refused(patient: Patient, length: int, mixing: Mixing | None) -> str | None:
    """What a row of this length is refused with, or None; where `mixing` is given, only what comes before it is run."""
    if mixing is None or mixing.inside is None:
        return works(patient, length)
    try:
        patient.trace(patient.tokens(patient.form.rows or 1, length), mixing.inside)
    except Exception as problem:
        return in_words(problem)
    return None


def closest(patient: Patient, context: int, inside: tuple[str, int]) -> tuple[float, tuple[int, int]]:
    """The least that a swap across the context's end moves what mixes first, and which two tokens those are."""
    sizes = {size for one in weights_of(patient.given.model).values() for size in one.shape}
    length = next(n for n in range(context + 2, context + 100) if n not in sizes)
    tokens = rows_of(patient, length)
    found = []
    for pair in ((context - 1, context), (0, context)):
        mixing = told(patient, tokens, pair, inside)
        if mixing is not None:
            found.append((mixing.share, pair))
    return min(found, default=(1.0, (context - 1, context)))


CHECKS: tuple[Check, ...] = (context_end,)
