"""How a model begins: its first loss, how its activations grow, what half precision does to it.

B rows, T positions, V vocabulary, C features, L blocks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from handmade.doctor.checks.base import Check, check
from handmade.doctor.checks.norms import norms_of
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious
from handmade.doctor.flow import Call, Flow, exchanged, first_of, followed, head_of, repeated, root_mean_square
from handmade.doctor.patient import Patient

MOST_POSITIONS = 32
"""As many say how a model begins, and a quick look stays quick."""


def short(patient: Patient, rows: int) -> Tensor:
    """Random rows, shorter than the context where the model allows it. Shapes: -> (rows, T)."""
    return patient.tokens(rows, patient.length if patient.form.full else min(patient.length, MOST_POSITIONS))


# ---------------------------------------------------------------------------------------------------------------
# The first loss

# Above ln V, without the token that just came. Healthy models over 10 seeds, 11..500 tokens, width 16..256, 1..6
# layers, float64, float32, bfloat16: 0.00..0.61 (torch.nn's defaults 0.1..0.2; logits of variance 1: 0.5).
# Rows of N(0, 1) as the head, tied or not: 2.8..38.
MOST_ABOVE = 1.2
# All of it. A tied head of std 0.02 with zero-initialised projections: up to 0.43 at width 256, 1.5 at 384.
MOST_COPIED = 4.0


@check(
    "initial-loss",
    "the first loss is far from ln V",
    reference="Glorot and Bengio 2010, section 4.2.1 (the variance that flows through layers); Karpathy 2019,"
    " 'A Recipe for Training Neural Networks', 'verify loss @ init'",
    quick=True,
    demonstration="""\
import math, torch
import torch.nn.functional as F
x = torch.randn(64, 128)                              # what a norm gives: RMS 1
targets = torch.randint(65, (64,))
print("ln V", math.log(65))
for deviation in (1.0, 0.02):                         # torch.nn.Embedding's default, and GPT-2's
    head = torch.randn(65, 128) * deviation
    print(deviation, F.cross_entropy(x @ head.T, targets).item())
""",
)
def initial_loss(patient: Patient) -> Finding:
    """A model that has learnt nothing can do no better than to call all V tokens equally likely:

        loss = ln V,   and what it has above that:   d = mean over positions of  logsumexp(z) - mean(z) - ln V

    which is the loss for a next token drawn evenly, without the noise of drawing one. The logits z ought to be small:
    with a standard deviation of s they cost about s^2 / 2. N(0, 1) embeddings that serve as the head too give
    s = sqrt(C). A model that is sure of what it cannot know spends its first steps unlearning it, with gradients that
    say little else.

    A tied head favours the token that just came; that is measured apart, and left out of d. What is the same at every
    position is a bias on purpose or not: only the person knows. The layer is named by what left each module against
    what entered it (hooks).
    """
    if not patient.untrained:
        raise NotExamined("the model has learnt already")
    tokens = short(patient, 4)
    with followed(patient) as flow:
        logits = patient.logits(tokens)
    vocabulary = logits.shape[-1]
    if not logits.isfinite().all() and vocabulary > patient.vocab_size:
        logits = logits[..., : patient.vocab_size]  # what only rounds the vocabulary up may be shut
        vocabulary = patient.vocab_size
    uniform = math.log(vocabulary)
    if not logits.isfinite().all():
        bad = first_bad(flow)
        return sick(
            "the logits of random tokens are not finite",
            f"ln {vocabulary} = {uniform:.2f}",
            f"inf or NaN{f', first in {bad.name}' if bad is not None else ''}: no loss can be taken",
            "look at what divides, takes a logarithm, or fills a mask",
            where=bad.path if bad is not None else "",
        )
    own = tokens[:, -1:] if not patient.every_position else tokens
    whole, above = excess(logits), excess(logits, own)
    loss = f"{uniform + whole:.2f} = ln {vocabulary} {whole:+.2f}"
    expected = f"ln {vocabulary} = {uniform:.2f}"
    if above <= MOST_ABOVE and whole <= MOST_COPIED:
        copied = f" ({whole - above:.1f} of it for favouring the token that just came)" if whole - above > 0.3 else ""
        return healthy(f"first loss {loss}{copied}", expected, value=above, limit=MOST_ABOVE)
    if patient.expects("initial_loss"):
        return healthy(f"first loss {loss}, as declared", expected, value=above, limit=MOST_ABOVE)
    if above <= MOST_ABOVE:
        return suspicious(
            f"first loss {loss}: each position favours the token that stands there",
            expected,
            "head and embedding share a matrix, and its rows are long: a token's own logit is |row|^2 at the start",
            "draw the shared matrix smaller: std 0.02",
            "is it meant to begin by repeating its input? expect={'initial_loss': True}",
            value=whole,
            limit=MOST_COPIED,
        )
    steady = excess(logits - logits.mean((0, 1), keepdim=True), own)
    if steady <= MOST_ABOVE and logits.shape[1] > 1:
        return suspicious(
            f"first loss {loss}: the same tokens are favoured at every position",
            expected,
            "a bias in the head, or a vector that all positions share. Token frequencies are a good one",
            "start the head's bias at zero, or at the logarithm of the token frequencies",
            "is it meant to begin with these preferences? expect={'initial_loss': True}",
            value=above,
            limit=MOST_ABOVE,
        )
    where, cause = loudest(flow, logits, tokens)
    return sick(
        f"first loss {loss}; logits have a standard deviation of {float(logits.std(-1).mean()):.1f}",
        expected,
        f"{cause}. It is sure of what it cannot know, and has to unlearn that first"
        " (a model that has learnt already: say trained=True)",
        "draw embeddings and a head that shares them with std 0.02; a head of its own with std 1/sqrt(its inputs)",
        value=above,
        limit=MOST_ABOVE,
        where=where,
    )


def excess(logits: Tensor, without: Tensor | None = None) -> float:
    """How much an evenly drawn next token costs above ln V, in nats. `without` (B, T): one token of each position that
    is not counted. Shapes: logits (B, T, V)."""
    logits = logits.double()
    count = logits.shape[-1]
    if without is None or count < 3:
        return float((logits.logsumexp(-1) - logits.mean(-1)).mean()) - math.log(count)
    shut = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, without[..., None], True)
    mean = logits.masked_fill(shut, 0.0).sum(-1) / (count - 1)
    return float((logits.masked_fill(shut, -math.inf).logsumexp(-1) - mean).mean()) - math.log(count - 1)


def loudest(flow: Flow, logits: Tensor, tokens: Tensor) -> tuple[str, str]:
    """Path, and in words, of the module whose output is largest against its input; RMS 1 is a fair size for both."""
    gains: list[tuple[float, str, str]] = []
    for call in flow.leaves:
        if call.left is None:
            continue
        entered = 1.0 if call.entered is None else root_mean_square(call.entered)
        left = root_mean_square(call.left)
        said = f"{call.name} makes {left:.2g} (RMS) out of " + ("tokens" if call.entered is None else f"{entered:.2g}")
        gains.append((left / max(entered, 1.0), call.path, said))
    last = next((call for call in reversed(flow.leaves) if call.left is not None), None)
    if last is not None and last.left is not None and head_of(flow, logits) is None:
        before, after = root_mean_square(last.left), root_mean_square(logits)
        said = f"what follows {last.name}, which no module does, makes logits of {after:.2g} (RMS) out of {before:.2g}"
        gains.append((after / max(before, 1.0), last.path, said))
    if not gains:
        return "", f"logits of {root_mean_square(logits):.2g} (RMS)"
    _, where, said = max(gains)
    return where, said


# ---------------------------------------------------------------------------------------------------------------
# Growth with depth

FACTORS = (1e3, 1e5)
"""What enters the last block is made so many times as large: then what the block adds is small against it, however
small the embeddings are drawn."""
# Powers. Healthy models over the same grid: -0.000..0.002, recurrent ones too. A final norm missing: 0.95..1.00.
MOST_FOLLOWED = 0.5
# What the last block adds to a stream 20 times as large, as a multiple. Parts that norm what they read: 0.9..2.2 (biases
# add the same to both); that do not: 20..23, with bounded activations 4..19.
MOST_ADDED = 3.0
# RMS after the last of L blocks against the first, as a part of L: pre-norm 0.2..0.8, blocks without norms drawn as
# torch.nn does 0.3..0.6; drawn too large: from 4 up.
MOST_TIMES = 2.0


@check(
    "growth",
    "activations grow with depth",
    reference="Xiong et al. 2020, 'On Layer Normalization in the Transformer Architecture' (arXiv:2002.04745),"
    " section 3.2: pre-norm has a norm before the prediction; Zhang et al. 2019 (arXiv:1901.09321), section 2",
    quick=True,
    demonstration="""\
import torch
x = torch.randn(4, 64)
norm = lambda x: x / x.pow(2).mean(-1, keepdim=True).sqrt()
for block in range(24):                               # each adds what its weights make of the normed stream
    x = x + norm(x) @ torch.randn(64, 64) / 8
    if block % 8 == 7:
        print(block + 1, "without:", x.std().item(), "with a final norm:", norm(x).std().item())
""",
)
def growth(patient: Patient) -> Finding:
    """In a pre-norm block each part reads the stream normed and adds to it, so the stream grows with each block:

        x = x + part(norm(x))                after L blocks about sqrt(L) times as large, trained up to 100 times

    A norm before the head takes that out again. It is looked for by what it does: what enters the last block is made
    1,000 times as large, then 100,000 times. With a norm anywhere behind it (a final one, or a post-norm block's own)
    the head's input stays as large as it was; without, it follows with

        p = log(RMS after / RMS before) / log(100),      0 with a norm, 1 without

    Only then is it a fault if the block's own parts do not follow: they norm their input, the head alone does not.

    Blocks that do not norm may multiply the stream: RMS after the last one is held against RMS after the first one,
    which may be 2 L times as large. Post-norm without a warm-up is no fault of a model's. Blocks are modules of one
    class in a row, seen by hooks; without any, the embeddings are made larger instead.
    """
    tokens = short(patient, 2)
    with followed(patient) as flow:
        logits = patient.logits(tokens)
    if not logits.isfinite().all():
        raise NotExamined("the logits are not finite")
    blocks = repeated(flow)
    if patient.untrained and len(blocks) > 1:
        first, last = (root_mean_square(call.left) for call in (blocks[0], blocks[-1]) if call.left is not None)
        ratio, limit = last / max(first, 1e-12), MOST_TIMES * len(blocks)
        if ratio > limit:
            return sick(
                f"RMS {first:.2g} after the first block, {last:.2g} after the last of {len(blocks)}",
                f"at most {limit:g} times as much after the last one",
                "each block multiplies the stream: with more of them it overflows, and the first layers learn nothing",
                "norm what each part of a block reads (x + part(norm(x))), or draw its last matrix smaller or at zero",
                value=ratio,
                limit=limit,
                where=blocks[-1].path,
            )
    targets = [blocks[-1].module] if blocks else embeddings(flow)
    if not targets:
        raise NotExamined("neither repeated blocks nor embeddings are seen among its modules")
    times = runs(flow, targets)
    small, large = (larger(patient, tokens, targets, bool(blocks), times, factor) for factor in FACTORS)
    value = follows(small, large, head_of(flow, logits))
    what = "what enters the last block grows" if blocks else "the embeddings grow"
    expected = "0 to 0.1: a norm stands before the head, or in the block's last place"
    measured = f"when {what} 100 times, the head's input grows with power {value:.2f} of that"
    if value <= MOST_FOLLOWED:
        return healthy(measured, expected, value=value, limit=MOST_FOLLOWED)
    norms = [(norm.path, norm.entered) for norm, _ in norms_of(patient)]
    if not blocks and norms:
        raise NotExamined("no repeated blocks are seen among its modules, so what its norms read cannot be told")
    if not blocks or not reads_normed(patient, tokens, times, blocks, norms):
        return healthy(measured + "; what is added too: nothing is normed", "no norms, so none is missing")
    return sick(
        measured,
        expected,
        "the blocks norm what they read, but the head reads the stream as it is: it grows with depth and in training,"
        " and the logits with it",
        "norm once more before the head: logits = head(norm(x))",
        value=value,
        limit=MOST_FOLLOWED,
        where=blocks[-1].path,
    )


@dataclass
class Larger:
    """What flowed when something was made larger."""

    factor: float
    flow: Flow
    logits: Tensor


def larger(
    patient: Patient, tokens: Tensor, targets: list[nn.Module], inputs: bool, times: dict[int, int], factor: float
) -> Larger:
    """Run with what enters these modules, or leaves them, `factor` times as large."""
    # The hook that follows is the outer one: it sees what enters before it is made larger.
    with followed(patient) as found, made_larger(targets, inputs, times, factor):
        logits = patient.logits(tokens)
    return Larger(factor, found, logits)


def follows(first: Larger, second: Larger, head: Call | None) -> float:
    """With what power the head's input grows between two runs; the logits, where no module makes them."""
    sizes = []
    for one in (first, second):
        call = None if head is None else next((c for c in reversed(one.flow.calls) if c.path == head.path), None)
        sizes.append(spread(one.logits) if call is None or call.entered is None else root_mean_square(call.entered))
    before, after = sizes
    if not (math.isfinite(before) and math.isfinite(after)):
        raise NotExamined("it overflows when its stream is made larger")
    if before < 1e-9:
        raise NotExamined("what enters the head is zero")
    return math.log(max(after, 1e-30) / before) / math.log(second.factor / first.factor)


def embeddings(flow: Flow) -> list[nn.Module]:
    """The modules that make vectors out of token ids, or of nothing."""
    return [call.module for call in flow.leaves if call.entered is None and call.left is not None]


def runs(flow: Flow, targets: list[nn.Module]) -> dict[int, int]:
    """How often each of these modules runs."""
    return {id(one): sum(call.module is one for call in flow.calls) for one in targets}


def spread(x: Tensor) -> float:
    """RMS of a tensor without what all its vectors share. Shapes: (..., C)."""
    x = x.double().flatten(0, -2)
    return root_mean_square(x - x.mean(0) if len(x) > 1 else x)


@contextlib.contextmanager
def made_larger(targets: list[nn.Module], inputs: bool, times: dict[int, int], factor: float) -> Iterator[None]:
    """What enters these modules is multiplied, in the last of the `times` that each runs; or what leaves them."""
    seen: dict[int, int] = {}

    def due(module: nn.Module) -> bool:
        seen[id(module)] = seen.get(id(module), 0) + 1
        return not inputs or seen[id(module)] == times[id(module)]

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        old = first_of((args, kwargs))
        if old is None or not due(module):
            return None
        return exchanged((args, kwargs), old, old * factor)

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        old = first_of(output)
        return None if old is None or not due(module) else exchanged(output, old, old * factor)

    handles = [
        one.register_forward_pre_hook(before, with_kwargs=True) if inputs else one.register_forward_hook(after)
        for one in targets
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def reads_normed(
    patient: Patient, tokens: Tensor, times: dict[int, int], blocks: list[Call], norms: list[tuple[str, Tensor]]
) -> bool:
    """Whether what the last block adds to a stream of RMS 1 is as large as what it adds to one of 0.05: then its parts
    read it normed. (Bounded activations are the same for large ones only.) Of a block that adds nothing yet: whether a
    norm stands in it."""
    block = blocks[-1]
    assert block.entered is not None
    size, width = root_mean_square(block.entered), block.entered.shape[-1]
    added = []
    for factor in (0.05 / max(size, 1e-12), 1.0 / max(size, 1e-12)):
        flow = larger(patient, tokens, [block.module], True, times, factor).flow
        call = [call for call in flow.calls if call.path == block.path][-1]
        if call.entered is None or call.left is None:
            return False
        added.append(spread(call.left.double() - call.entered.double() * factor))  # without what biases add
    if added[1] < 1e-5:
        return any(path.startswith(block.path) and entered.shape[-1] == width for path, entered in norms)
    return added[1] < MOST_ADDED * added[0]


# ---------------------------------------------------------------------------------------------------------------
# Half precision

HALVES = (torch.float16, torch.bfloat16)
# Healthy models over the same grid, in bfloat16, which is the worse one: 0.00..0.045. A norm that overflowed unseen: 1.
MOST_APART = 0.3


@check(
    "half-precision",
    "half precision overflows",
    reference="Micikevicius et al. 2018, 'Mixed Precision Training' (arXiv:1710.03740), section 3",
    demonstration="""import torch
print(torch.finfo(torch.float16).max)                  # 65504
x = torch.full((4,), 300.0).half()
print("RMS by squares in float16:", x.square().mean().sqrt(), "in float32:", x.float().square().mean().sqrt().half())
try:
    torch.zeros(2).half().masked_fill(torch.tensor([True, False]), -1e9)
except RuntimeError as problem:
    print("a mask of -1e9:", problem)
print("a mask of -inf:", torch.zeros(2).half().masked_fill(torch.tensor([True, False]), float("-inf")))
""",
)
def half_precision(patient: Patient) -> Finding:
    """float16 ends at 65,504 and bfloat16 has 8 bits of precision. The model is run as a copy in each, and held against
    itself in float32:

        d = RMS(half - float32) / RMS(float32)          of the logits; below the line without what all positions share

    A square above 65,504 (a feature above 255 in a norm written by hand), scores that are not scaled, or a mask of -1e9
    give inf, then NaN; or, silently, a norm that divides by infinity. Masks are filled with minus infinity or with
    torch.finfo(x.dtype).min, and norms take their squares in float32.

    expect={"half_precision": False}: it never runs in half precision, and is not examined.
    """
    if patient.expects("half_precision") is False:
        raise NotExamined("it is declared never to run in half precision")
    if not isinstance(patient.model, nn.Module):
        raise NotExamined("the model is a function: its dtype cannot be changed")
    tokens = short(patient, 2)
    with cast(patient, torch.float32):
        full = patient.logits(tokens)
    if not full.isfinite().any():
        raise NotExamined("the logits are not finite in float32 either")
    finite = full.isfinite()
    apart: dict[torch.dtype, float] = {}
    reasons = []
    for kind in HALVES:
        name = str(kind).removeprefix("torch.")
        try:
            half, flow = in_half(patient, kind, tokens)
        except Unable as problem:
            said, flow = str(problem), problem.flow
            if "overflow" in said:
                where = flow.open[-1].name if flow.open else ""
                return sick(
                    f"it stops in {name}{f', in {where}' if where else ''}: {said}",
                    f"logits as in float32, up to {MOST_APART:g} of their RMS",
                    f"a number written in the code does not fit {name}, which ends at {torch.finfo(kind).max:g}:"
                    " mostly a mask of -1e9",
                    "fill masks with float('-inf'), or with torch.finfo(scores.dtype).min",
                    where=flow.where,
                )
            reasons.append(f"{name}: {said}")
            continue
        bad = ~half.isfinite() & finite
        if bad.any():
            call = first_bad(flow)
            return sick(
                f"{float(bad.float().mean()):.0%} of the logits are inf or NaN in {name}"
                + (f", first in {call.name}" if call is not None else ""),
                "finite logits, as in float32",
                f"a number above {torch.finfo(kind).max:g} on the way: large activations or weights, scores that are"
                " not scaled, squares that are summed in half precision",
                "scale scores before they are summed, take squares and sums of a norm in float32",
                value=math.inf,
                limit=MOST_APART,
                where="" if call is None else call.path,
            )
        wide, narrow = full.masked_fill(~finite, 0.0), half.masked_fill(~finite, 0.0)
        # Where the logits are little else than a bias, its rounding is no fault.
        apart[kind] = root_mean_square(narrow - wide) / max(spread(wide), 0.1 * root_mean_square(wide), 1e-6)
    if not apart:
        raise NotExamined("it cannot be cast: " + "; ".join(reasons))
    patient.notes += [f"half precision: not run in {reason}" for reason in reasons]
    worst = max(apart, key=lambda kind: apart[kind])
    value = apart[worst]
    measured = ", ".join(f"{str(kind).removeprefix('torch.')} {value:.2g}" for kind, value in apart.items())
    measured = f"logits differ from float32's, relative to their RMS: {measured}"
    if value <= MOST_APART:
        return healthy(measured, f"at most {MOST_APART:g}", value=value, limit=MOST_APART)
    return sick(
        measured,
        f"at most {MOST_APART:g}",
        "a number overflowed and was taken back unseen (divided by, or clipped), or sums lose their small terms",
        "take the squares and sums of norms, softmax and rotary angles in float32, and cast back afterwards",
        value=value,
        limit=MOST_APART,
    )


class Unable(Exception):
    """A model cannot be run in a dtype, and how far it came."""

    def __init__(self, problem: Exception, flow: Flow) -> None:
        super().__init__((str(problem).strip() or type(problem).__name__).splitlines()[0])
        self.flow = flow


def in_half(patient: Patient, kind: torch.dtype, tokens: Tensor) -> tuple[Tensor, Flow]:
    """The logits of a copy in half precision, or where tensors of two dtypes meet, with autocast; and what flowed.
    Raises Unable."""
    flow = Flow()
    try:
        with cast(patient, kind), followed(patient) as flow:
            return patient.logits(tokens), flow
    except Exception as problem:
        if "dtype" not in str(problem):
            raise Unable(problem, flow) from problem
    try:
        autocast = torch.autocast(tokens.device.type, dtype=kind)
        with cast(patient, torch.float32), followed(patient) as flow, autocast:
            return patient.logits(tokens), flow
    except Exception as problem:
        raise Unable(problem, flow) from problem


@contextlib.contextmanager
def cast(patient: Patient, kind: torch.dtype) -> Iterator[None]:
    """All modules, hidden ones too, in a dtype. Afterwards they have the tensors that they had."""
    modules = list(patient.modules.values())
    parameters = [(p, p.data) for one in modules for p in one._parameters.values() if p is not None]
    buffers = [(one, dict(one._buffers)) for one in modules]
    try:
        for one in modules:
            one._apply(lambda t: t.to(kind) if t.is_floating_point() else t)  # as half() does: a complex one stays
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for one, before in buffers:
            one._buffers.update(before)


def first_bad(flow: Flow) -> Call | None:
    """The first call that makes what is not finite out of what is."""
    for call in flow.leaves:
        sound = call.entered is None or bool(call.entered.isfinite().all())
        if sound and call.left is not None and not call.left.isfinite().all():
            return call
    return None


CHECKS: tuple[Check, ...] = (initial_loss, growth, half_precision)
