"""How a model begins: its first loss, and how its activations grow.

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
from handmade.doctor.flow import (
    Call,
    Flow,
    exchanged,
    first_bad,
    first_of,
    followed,
    head_of,
    repeated,
    root_mean_square,
    short,
    spread,
)
from handmade.doctor.patient import Patient

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
# What the last block adds to a stream 20 times as large, as a multiple. Parts that norm what they read: 0.9..2.2; that
# do not: 20..23, with bounded activations 4..19.
MOST_ADDED = 3.0
# RMS after the last of L blocks against the first, as a part of L. Healthy models, with norms and without: 0.17..0.81.
# Weights drawn too large in blocks that norm nothing: 2.2 in two layers, and up from there.
MOST_TIMES = 1.5


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

        x = x + part(norm(x))                after L blocks about sqrt(L) times as large

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


CHECKS: tuple[Check, ...] = (initial_loss, growth)
