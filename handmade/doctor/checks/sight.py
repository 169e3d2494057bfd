"""What a position sees: the past, all of it, in order, and never the future.

Every measure here is taken while the patient is `exposed`: its matrices are drawn anew (who sees whom does not depend
on the weights), and every call draws the same random numbers. One token of one row is changed at a time, its companions
stay, so that neither dropout nor a norm over the batch is taken for sight.

B rows, T positions, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from handmade.doctor.checks.base import Check, check
from handmade.doctor.checks.company import row_mixing
from handmade.doctor.findings import Finding, NotExamined, healthy, sick
from handmade.doctor.meeting import DEAR, in_words, works
from handmade.doctor.patient import Patient
from handmade.doctor.stirring import weights_of
from handmade.doctor.tracing import OPERATION, Alone, Change, Step, asked_alone, reach_of

PRIMES = (31, 23, 19, 17, 13, 11, 7, 5, 3, 2)
ROWS = 2

SMALL, LARGE = 300_000, 3_000_000
"""Weights above which fewer places are asked about, and very few."""
SEEN = 1e-5
"""A change of what is said, relative to the largest, from which on it counts."""


def length_of(patient: Patient, most: int = 31) -> int:
    """How long the rows are: a prime number, unlike the sizes of features, so that axes can be told apart. Raises
    NotExamined for rows of one position."""
    if patient.form.full and patient.length > 1:
        return patient.length
    for length in PRIMES:
        if length <= min(patient.length, most):
            return length
    raise NotExamined("rows of one position have neither past nor future")


def rows_of(patient: Patient, length: int) -> Tensor:
    """Rows of tokens in which neighbours differ. Shapes: -> (B, length)."""
    tokens = patient.tokens(patient.form.rows or ROWS, length)
    for place in range(1, length):
        same = tokens[:, place] == tokens[:, place - 1]
        tokens[same, place] = patient.other(tokens)[same, place]
    return tokens


def met(patient: Patient, length: int) -> Tensor:
    """Rows as they were trained on, where some were given: a model that counts, and has no weights to draw anew, says
    the same of all pasts that it never met. Shapes: -> (B, length)."""
    rows = patient.form.rows or ROWS
    if patient.given.batches is not None:
        inputs, _ = patient.given.batch()
        if inputs.dim() == 2 and not inputs.is_floating_point() and len(inputs) >= rows and inputs.shape[1] >= length:
            return inputs[:rows, :length]
    return rows_of(patient, length)


def replaced(patient: Patient, tokens: Tensor, *places: int) -> Tensor:
    """The tokens, others at these places of the first row."""
    changed, others = tokens.clone(), patient.other(tokens)
    for place in places:
        changed[0, place] = others[0, place]
    return changed


def swapped(tokens: Tensor, one: int, other: int) -> Tensor:
    """The tokens, two of the first row in each other's places."""
    changed = tokens.clone()
    changed[0, one], changed[0, other] = tokens[0, other], tokens[0, one]
    return changed


def answers(patient: Patient, tokens: Tensor, training: bool = False) -> Tensor:
    """What is said about the first row. Shapes: (B, T) -> (T, V), or (1, V) of the last position alone.
    Raises NotExamined where it is not finite."""
    with torch.no_grad(), patient.mode(training):
        said = patient.run(tokens)[0]
    if not said.isfinite().all():
        raise NotExamined("what it answers is not finite")
    return said


def moved(before: Tensor, after: Tensor) -> float:
    """How far an answer moved, relative to the largest entry there was."""
    return float((after - before).abs().max() / before.abs().max().clamp_min(1e-9)) if before.numel() else 0.0


# future

HIDDEN = SEEN
"""What may come through from a later token.

Causal models of all layouts, sizes and types: exactly 0 in value and in gradient, since a masked weight is exactly 0;
convolutions by Fourier transform round and leave up to 4e-7. Twins that look ahead: 2e-3 (a mask of -10 instead of
minus infinity) to 2.
"""


@check(
    "future",
    "a future token changes the past",
    reference="Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.3: leftward information flow has to be prevented",
    quick=True,
    demonstration="""\
import torch
scores = torch.randn(5, 5)                                # T queries, T keys
values = torch.randn(5, 4)
allowed = torch.ones(5, 5).tril().bool()
for name, masked in (("no mask", scores), ("mask", scores.masked_fill(~allowed, float("-inf")))):
    other = values.clone()
    other[4] += 1                                         # the last token changes
    weights = masked.softmax(-1)
    print(name, (weights @ other - weights @ values)[:4].abs().max())  # what the first four notice: 0 with the mask
""",
)
def future(patient: Patient) -> Finding:
    """What is said at position t may depend on tokens up to t alone:

        max over t < s of |logits[t](x) - logits[t](x with another token at s)| = 0
        max over t < s of |d logits[t] / d embedding[s]| = 0

    A model that sees the token it has to predict learns to copy it: its loss falls far too low, and what it generates,
    where there is no future to look at, is noise.

    One later token at a time is changed, in evaluation and in training mode; the gradient is taken at what the model
    makes of the tokens (the first float tensor that comes out of them). The first module whose output at an earlier
    position changes, while its input does not, is named.
    """
    if not patient.every_position:
        return healthy("only the last position is answered, and no token is later", "no later token counts")
    length = length_of(patient)
    with patient.exposed():
        tokens = rows_of(patient, length)
        places = sorted({1, length - 1} if patient.size > LARGE else {1, length // 2, length - 1})
        worst, place, training = 0.0, 0, False
        for mode in (False, True):
            before = answers(patient, tokens, mode)
            for one in places:
                there = moved(before[:one], answers(patient, replaced(patient, tokens, one), mode)[:one])
                if there > worst and not (mode and worst > HIDDEN):
                    worst, place, training = there, one, mode
        slope = leak_of_gradient(patient, tokens)
        where = leaking(patient, tokens, place, training) if worst > HIDDEN else ""
        aside = row_mixing(patient, tokens, training) if worst > HIDDEN else 0.0
    found = max(worst, slope or 0.0)
    if aside > SEEN:
        raise NotExamined(
            f"other rows are seen{' in training mode' if training else ''}, and later tokens with them: look at `batch`"
        )
    measured = f"another later token moves earlier logits by {worst:.2g} of the largest"
    measured += ", its gradient is not seen" if slope is None else f", {slope:.2g} of the gradient"
    if found <= HIDDEN:
        return healthy(measured, "0", value=found, limit=HIDDEN)
    if patient.expects("causal") is False:
        return healthy(f"{measured}, as was meant", "any", value=found, limit=HIDDEN)
    only = " in training mode" if training else ""
    return sick(
        f"{measured}{only}",
        "0",
        "an earlier position sees what comes later: a mask that is missing, upside down, transposed or applied after"
        " the softmax, a norm or mean over time, a convolution that is padded on both sides. What is to be predicted is"
        " seen in training and is not there when text is generated",
        "mask scores where key > query with -inf before the softmax; pad convolutions on the left only; an encoder:"
        ' expect={"causal": False}',
        value=found,
        limit=HIDDEN,
        where=where,
    )


def leak_of_gradient(patient: Patient, tokens: Tensor) -> float | None:
    """The largest gradient of an earlier position's logits with respect to a later token's embedding, relative to that
    of those that it may see."""
    length = tokens.shape[1]
    positions = sorted({0, length // 2, length - 2})
    reach = reach_of(patient, tokens, positions)
    if reach is None:
        return None
    return max(
        float(one[t + 1 :].max() / one[: t + 1].max().clamp_min(1e-30)) for t, one in zip(positions, reach, strict=True)
    )


def leaking(patient: Patient, tokens: Tensor, place: int, training: bool) -> str:
    """The first module that brings a token at `place` to earlier positions: it comes out there, and did not go in."""

    def differs(one: Tensor | None, other: Tensor | None) -> bool:
        if one is None or other is None or one.shape != other.shape or one.shape[1] != tokens.shape[1]:
            return False
        return moved(one[0, :place], other[0, :place]) > HIDDEN

    rows = (tokens, replaced(patient, tokens, place))
    try:
        traces = [patient.trace(row, training=training) for row in rows]
    except NotExamined:
        return ""
    for one, other in zip(*traces, strict=False):
        if one.key == other.key and differs(one.output, other.output) and not differs(one.given, other.given):
            return named(patient, one.path)
    return named(patient, "") if "" in patient.modules else ""


def named(patient: Patient, path: str) -> str:
    """A module as a person knows it: its path and its class; an operation with the model that it is in."""
    if path.startswith(OPERATION):
        return f"{path.removeprefix(OPERATION).strip('_')} in {patient.name or 'the model'}"
    kind = type(patient.modules[path]).__name__
    return f"{path} ({kind})" if path else f"forward of {kind}"


# past


@check(
    "past",
    "earlier tokens do not count",
    reference="Bengio et al. 2003, A Neural Probabilistic Language Model (JMLR 3), section 1: why more than one word",
    quick=True,
    demonstration="""\
import torch
from torch import nn
blocks = [nn.Linear(8, 8) for _ in range(2)]              # built ...
mix = torch.ones(5, 5).tril() / torch.arange(1, 6)[:, None]
x = torch.randn(5, 8)
other = torch.cat([torch.randn(1, 8), x[1:]])             # another first token
print((other - x)[-1].abs().max())                        # ... and never called: the last position does not notice
print(((mix @ blocks[0](other)) - (mix @ blocks[0](x)))[-1].abs().max())  # called: it does
""",
)
def past(patient: Patient) -> Finding:
    """What is said last has to depend on earlier tokens:

        r = max d such that |logits[T-1](x) - logits[T-1](x with another token at T-1-d)| > 0

    A model that sees its last token alone counts pairs of tokens, whatever else it is made of, and cannot become better
    than that.

    The tokens at all distances (of a large model at 1, 4, 13 and the first) are changed one at a time. Where none
    counts, modules that have parameters and never ran are named.
    """
    length = length_of(patient)
    asked = (
        (1, 4, 13) if patient.size > LARGE else (1, 2, 3, 5, 8, 13, 21) if patient.size > SMALL else range(1, length)
    )
    distances = sorted({d for d in (*asked, length - 1) if d < length})
    with patient.exposed():
        tokens = rows_of(patient, length) if patient.size else met(patient, length)
        before = answers(patient, tokens)

        def effect(distance: int) -> float:
            return moved(before[-1], answers(patient, replaced(patient, tokens, length - 1 - distance))[-1])

        effects = {distance: effect(distance) for distance in distances}
        reach, strongest = max((d for d, there in effects.items() if there > SEEN), default=0), max(effects.values())
        ahead = aside = 0.0
        if strongest <= SEEN:
            aside = row_mixing(patient, tokens)
            if patient.every_position:
                ahead = moved(before[:-1], answers(patient, replaced(patient, tokens, length - 1))[:-1])
    measured = f"tokens up to {reach} of {length - 1} positions back change what is said last, by up to {strongest:.2g}"
    meant = patient.expects("past")
    if reach and meant is False:
        return sick(
            measured, "no earlier token counts", "a bigram was declared, and earlier tokens change what is said",
            'leave expect={"past": False} out, or take away what mixes positions', value=strongest, limit=SEEN,
        )  # fmt: skip
    if reach:
        return healthy(measured, "at least 1", value=strongest, limit=SEEN)
    if meant is False:
        return healthy("no earlier token counts, as was meant", "none", value=strongest, limit=SEEN)
    if ahead > SEEN:
        raise NotExamined("the last position sees no earlier one, but earlier ones see it: look at `future`")
    if aside > SEEN:
        raise NotExamined("the last position sees no earlier one, but other rows: look at `batch`")
    idle = never_run(patient)
    what = f"built and never called: {', '.join(idle[:4])}{' ...' if len(idle) > 4 else ''}" if idle else (
        "attention that sees only its own position (a mask of the diagonal, a softmax over one key), or nothing that"
        " mixes positions at all"
    )  # fmt: skip
    return sick(
        f"none of {len(distances)} tokens asked about, 1 to {length - 1} positions back, changes what is said last",
        "the past counts",
        f"{what}. Only the last token is seen, so it can learn no more than pairs of tokens",
        'call every block in forward; mask the future only, not the past; a bigram: expect={"past": False}',
        value=strongest,
        limit=SEEN,
        where=idle[0] if idle else "",
    )


def never_run(patient: Patient) -> list[str]:
    """Modules that were not called and whose weights nobody else used (some are handed to a function): the outermost
    ones, but for mere lists."""
    with patient.exposed(), patient.outputs() as ran:
        weights = [one for one in weights_of(patient.given.model).values() if one.requires_grad]
        said = patient.run(rows_of(patient, length_of(patient)))
        if not said.requires_grad:
            return []
        gradients = torch.autograd.grad(said.sum(), weights, allow_unused=True)
    used = {id(one) for one, gradient in zip(weights, gradients, strict=True) if gradient is not None}
    idle: list[str] = []
    for path, module in patient.modules.items():
        own = list(module.parameters())
        called = path in ran or any(id(one) in used for one in own)
        within = any(path.startswith((f"{one}.", f"{one}[")) for one in idle)
        if own and not called and not within and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            idle.append(path)
    return idle


# order

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


# context-end


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


CHECKS: tuple[Check, ...] = (future, past, order, context_end)
