"""Whether the order of the past counts: two tokens in each other's places, where positions first mix. How it is asked:
`handmade.doctor.probing`.

B rows, T positions, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from handmade.doctor.checks.base import Check, check
from handmade.doctor.findings import Finding, NotExamined, healthy, sick
from handmade.doctor.patient import Patient
from handmade.doctor.probing import (
    LARGE,
    ROWS,
    SEEN,
    answers,
    length_of,
    moved,
    named,
    replaced,
    rows_of,
    swapped,
)
from handmade.doctor.tracing import OPERATION, Alone, Change, Step, asked_alone

GAIN, FAIRLY = 4.0, 0.1
CLEAR = 1e-2
"""A replacement that moves less is too near to rounding for a swap to be measured by, where attention may be sharp."""
FAINT = 1e-4
"""The same, where it is not."""
TOLD_APART = 1e-3
"""Swapping two tokens over replacing one, where positions first mix: to be measured."""


@check(
    "order",
    "the order of the past does not count",
    reference="Vaswani et al. 2017 (arXiv:1706.03762), section 3.5: attention without positions has no order",
    quick=True,
    demonstration="""\
import torch
torch.manual_seed(0)
tokens, place = torch.randn(9, 8), torch.randn(5, 8)      # embeddings of tokens and of positions
for name, positions in (("no positions", 0 * place), ("positions", place)):
    said = []
    for row in ([1, 2, 3, 4, 5], [2, 1, 3, 4, 5]):        # two tokens in each other's places
        x = tokens[row] + positions
        said.append((x[-1] @ x.T / 8**0.5).softmax(-1) @ x)  # the last position attends to all
    print(name, (said[0] - said[1]).abs().max())
""",
)
def order(patient: Patient) -> Finding:
    """Attention is a sum over the past. Without positions it is the same sum in any order:

        d = |h[T-1](.. a b z) - h[T-1](.. b a z)| / |h[T-1](.. a b z) - h[T-1](.. c b z)|

    where h is the first thing, among all that modules are given and return, that depends at the last position on
    earlier tokens. Behind it a causal mask lets some order through by itself (a sees less than b), weakly, so that what
    is said in the end tells little. Where the first thing is blind to order, every later module is asked too, with two
    positions of its own input swapped: some models have positions in some layers only. Recurrence and convolution know
    an order without positions.
    """
    found = blind(patient)
    if found is None:
        raise NotExamined("fewer than two earlier tokens count: there is no order")
    path, share = found
    measured = f"two earlier tokens in each other's places move {path} by {share:.2g} of what another token does"
    meant = patient.expects("positions")
    if share > TOLD_APART:
        if meant is False:
            return sick(
                measured, "0", "a bag of tokens was declared, and their order changes what is said",
                'leave expect={"positions": False} out, or take the positions away', value=share, limit=TOLD_APART,
            )  # fmt: skip
        return healthy(measured, "more than 0", value=share, limit=TOLD_APART)
    if meant is False:
        return healthy(f"{measured}, as was meant", "any", value=share, limit=TOLD_APART)
    return sick(
        measured,
        f"more than {TOLD_APART:g}",
        "nothing tells positions apart: what is said is that of a bag of words, but for the little that a causal mask"
        " lets through",
        "add positions to the embeddings, or turn queries and keys by them; a bag was meant:"
        ' expect={"positions": False}',
        value=share,
        limit=TOLD_APART,
        where=path,
    )


def blind(patient: Patient) -> tuple[str, float] | None:
    """Where positions first mix, or where order first counts, and how much (d of `order`). None where fewer than two
    earlier tokens count. Raises NotExamined where that cannot be told from outside."""
    length = length_of(patient, most=13 if patient.size > LARGE else 31)
    if length < 3:
        raise NotExamined("rows of two positions: one earlier token has no order")
    tokens = rows_of(patient, length)
    for pair in dict.fromkeys([(length - 3, length - 2), (length // 2 - 1, length // 2), (0, 1)]):
        mixing = told(patient, tokens, pair)
        if mixing is None:
            continue
        with patient.exposed():
            if mixing.share <= TOLD_APART:
                elsewhere = later_mixing(patient, tokens, pair) or placed(patient, tokens, pair)
                return elsewhere or (mixing.where, mixing.share)
            if mixing.inside is None and patient.every_position:  # nothing is seen of what happens in it
                return mixing.where, said_alone(patient, length)
            return mixing.where, mixing.share
    return None


def told(
    patient: Patient, tokens: Tensor, pair: tuple[int, int], until: tuple[str, int] | None = None
) -> Mixing | None:
    """Where two tokens first reach the last position, and by how much they are told apart there. Where that is little,
    it is measured again with matrices `GAIN` times as large: in a model without norms scores are small, and attention
    is all but a mean, whatever positions there are."""
    with patient.exposed():
        found = first_mixing(patient, tokens, *pair, until)
    if found is None or found.share > FAIRLY:
        return found
    with patient.exposed(GAIN):
        again = first_mixing(patient, tokens, *pair, until=found.inside, least=CLEAR)
    if again is None or again.inside != found.inside:
        return found
    return replace(found, share=max(found.share, again.share))


def placed(patient: Patient, tokens: Tensor, pair: tuple[int, int]) -> tuple[str, float] | None:
    """Whether positions are in what is mixed first, though the mixing itself is blind to them: a plain mean of
    embeddings with positions says the same in any order, and what is made of them one by one, behind it, does not. None
    unless what is said in the end depends on order, and what goes into the first operation that mixes differs from
    position to position where all tokens are the same."""
    rows = [tokens, *(replaced(patient, tokens, place) for place in pair), swapped(tokens, *pair)]
    share = share_of([answers(patient, row)[-1] for row in rows])
    mixing = _first_mixing(patient, tokens, *pair, None, True)
    if share is None or share <= TOLD_APART or mixing is None or mixing.inside is None:
        return None
    same = tokens[:, :1].expand_as(tokens).contiguous()
    given = patient.trace(same, mixing.inside, operations=True)[-1].given
    if given is None or given.shape[1] != tokens.shape[1] or moved(given[0, :1].expand_as(given[0]), given[0]) <= SEEN:
        return None
    return "what is said", share


@dataclass(frozen=True)
class Mixing:
    """Where two tokens first reach the last position."""

    where: str
    inside: tuple[str, int] | None
    """The step in which that is seen first, for `until`; None: only at the end of all."""
    share: float
    """How much it moves when the two change places, of what it moves when one of them is another."""


def first_mixing(
    patient: Patient,
    tokens: Tensor,
    one: int,
    other: int,
    until: tuple[str, int] | None = None,
    least: float = FAINT,
) -> Mixing | None:
    """The first of all things given to and returned by modules that depends, at the last position, on the tokens at
    both places; where no module inside the model shows it, of what functions of torch return. None where nothing does.
    """
    operations = until is not None and until[0].startswith(OPERATION)
    found = _first_mixing(patient, tokens, one, other, until, operations, least)
    if found is not None and found.inside is None and not operations:
        return _first_mixing(patient, tokens, one, other, until, True, least) or found
    return found


def _first_mixing(
    patient: Patient,
    tokens: Tensor,
    one: int,
    other: int,
    until: tuple[str, int] | None,
    operations: bool,
    least: float = FAINT,
) -> Mixing | None:
    if tokens[0, one] == tokens[0, other]:
        tokens = replaced(patient, tokens, one)
    rows = [tokens, replaced(patient, tokens, one), replaced(patient, tokens, other), swapped(tokens, one, other)]
    traces = [patient.trace(row, until, operations=operations) for row in rows]
    seen: list[tuple[int, float, Step, bool]] = []
    for steps in zip(*traces, strict=False):
        if len({step.key for step in steps}) > 1:
            break
        for time, things, out in (
            (steps[0].began, [step.given for step in steps], False),
            (steps[0].ended, [step.output for step in steps], True),
        ):
            share = share_of([None if thing is None else thing[0, -1] for thing in things], least)
            if share is not None:
                seen.append((time, share, steps[0], out))
    if seen:
        _, share, step, _ = min(seen, key=lambda entry: entry[0])
        inner = [entry[2] for entry in seen if entry[3] and not any(s is entry[2] and not out for _, _, s, out in seen)]
        where = min(inner, key=lambda one: one.ended).path if inner else step.path
        return Mixing(named(patient, where), step.key if step.path else None, share)
    if until is not None:
        return None
    share = share_of([answers(patient, row)[-1] for row in rows], least)
    return None if share is None else Mixing("what is said", None, share)


def share_of(things: Sequence[Tensor | None], least: float = FAINT) -> float | None:
    """How far a swap moves something, relative to the lesser of two replacements; of (as it is, with the one replaced,
    with the other, with both swapped). None where one of the replacements moves it by no more than `least`."""
    before, *after = things
    if before is None or any(one is None or one.shape != before.shape for one in after):
        return None
    first, second, swap = (moved(before, one) for one in after if one is not None)
    return swap / min(first, second) if min(first, second) > least else None


def said_alone(patient: Patient, length: int) -> float:
    """How much what is said differs from position to position where all tokens are the same: positions, or a state,
    are there. Raises NotExamined where nothing differs: relative positions would not show either."""
    same = patient.tokens(patient.form.rows or ROWS, 1).expand(-1, length).contiguous()
    said = answers(patient, same)
    apart = moved(said[0].expand_as(said), said)
    if apart <= SEEN:
        raise NotExamined("its inside is not made of modules: whether there are relative positions cannot be told")
    return apart


def later_mixing(patient: Patient, tokens: Tensor, pair: tuple[int, int]) -> tuple[str, float] | None:
    """A module that tells two positions of its own input apart, where the first one to mix does not: positions may come
    in later. None where none does."""
    length = tokens.shape[1]

    def swap(x: Tensor) -> None:
        x[0, list(pair)] = x[0, [pair[1], pair[0]]]

    def same(x: Tensor) -> None:
        pass

    def other(place: int) -> Change:
        def change(x: Tensor) -> None:
            x[0, place] = x[0, (place + 3) % (length - 1)]

        return change

    mixing: list[Alone] = []
    for one in asked_alone(patient, tokens, (same, other(pair[0]), other(pair[1]), swap), is_plain):
        held = [inner for inner in mixing if inner.began > one.began]
        share = share_of([None if said is None else said[0, -1] for said in one.outputs])
        if share is None or len(held) > 1:
            continue  # several layers in a row let some order through by the mask alone
        if share > TOLD_APART:
            return named(patient, one.path), share
        if not held:
            mixing.append(one)
    return None


def is_plain(module: nn.Module) -> bool:
    """Whether it is a layer of torch that looks at one position at a time."""
    mixing = (nn.MultiheadAttention, nn.RNNBase, nn.modules.conv._ConvNd, nn.modules.container.Sequential)
    home = type(module).__module__
    return home.startswith("torch.nn.modules.") and "transformer" not in home and not isinstance(module, mixing)


CHECKS: tuple[Check, ...] = (order,)
