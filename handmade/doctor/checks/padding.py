"""Padding is never seen and never real."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from handmade.doctor.anatomy import every_parameter
from handmade.doctor.checks.base import Check, check
from handmade.doctor.checks.padding_token import batches_of, lying, padding_token
from handmade.doctor.findings import Finding, NotExamined, healthy, sick
from handmade.doctor.patient import Patient
from handmade.doctor.roles import moved_inputs, roles

SEEN = 1e-5
"""What moves a logit by more than this part of the largest is seen. Ten seeds, widths 16 to 256, 1 to 6 layers, 11 and
500 tokens, three types: healthy 0 (80 models), since a weight that is 0 hides all; a mask that is ignored 5e-3 to 1.0.
A real token moves later ones by 5e-3 and more; behind an inverted mask by 0."""
LENGTH = 8
"""Positions of the rows that are looked at."""


@dataclass
class Padded:
    """How rows with padding are put to a patient."""

    patient: Patient
    kind: torch.dtype | None
    """The type of the mask that its forward takes. None: it takes none, and sees from the ids what is padding."""
    turned: bool = False
    """The mask goes in as (T, B)."""

    @classmethod
    def of(cls, patient: Patient) -> Padded:
        """Raises NotExamined where nothing says what padding is, or where forward takes no mask of that name."""
        name, padding = patient.given.attention_mask, patient.given.padding
        if name is None:
            if padding is None:
                raise NotExamined("neither an attention mask nor a padding id was given")
            if not 0 <= padding < patient.vocab_size:
                raise NotExamined(f"the padding id, {padding}, is none of the {patient.vocab_size} tokens")
            return cls(patient, None)
        tokens = patient.tokens(3, length_of(patient))  # not as many rows as positions: a mask may be turned
        real = torch.ones_like(tokens, dtype=torch.bool)
        problem = ""
        for turned in (False, True) if patient.form.time_first else (False,):
            for kind in (torch.int64, torch.bool, torch.float32):
                one = cls(patient, kind, turned)
                try:
                    with torch.no_grad():
                        one.logits(tokens, real)
                        one.logits(tokens, real, training=True)
                except Exception as raised:
                    lines = str(raised).strip().splitlines()
                    problem = problem or f"{type(raised).__name__}: {lines[0] if lines else ''}"
                else:
                    return one
        raise NotExamined(f"forward fails with {name}= ones: {problem}")

    def logits(self, tokens: Tensor, real: Tensor, training: bool = False) -> Tensor:
        """Logits of rows in which `real` says what is no padding, with gradients where they are on."""
        patient = self.patient
        torch.manual_seed(0)
        with patient.mode(training):
            if self.kind is None:
                return patient.run(tokens)
            name = str(patient.given.attention_mask)
            mask = real.to(self.kind)
            if patient.form.single:
                return torch.cat([patient.run(tokens[i : i + 1], **{name: mask[i]}) for i in range(len(tokens))])
            return patient.run(tokens, **{name: mask.T if self.turned else mask})

    def fill(self, tokens: Tensor, real: Tensor) -> Tensor:
        """The padding id where there is padding; of a model that is told by a mask alone, whatever is there."""
        padding = self.patient.given.padding
        return tokens if padding is None else torch.where(real, tokens, torch.full_like(tokens, padding))


def side(rows: int, length: int, padding: int, left: bool, device: torch.device) -> Tensor:
    """What is real in rows with padding on one side. Shapes: -> (rows, length) bool."""
    place = torch.arange(length, device=device).expand(rows, length)
    return place >= padding if left else place < length - padding


def length_of(patient: Patient) -> int:
    length = patient.length if patient.form.full else min(patient.length, LENGTH)
    if length < 4:
        raise NotExamined(f"its rows have {length} positions: too few for padding")
    return length


@check(
    "masked-row",
    "a row with nothing to attend to becomes NaN",
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html",
    demonstration="""\
import torch
scores = torch.zeros(1, 3, requires_grad=True)
hidden = torch.tensor([[True, True, True]])                  # a row of padding alone
mask = torch.zeros(1, 3).masked_fill(hidden, float("-inf"))
weights = (scores + mask).softmax(-1)
print(weights)                                               # NaN, and it spreads: 0 * NaN is NaN
weights.nan_to_num(0.0).sum().backward()
print(weights.nan_to_num(0.0), scores.grad)                  # zeros, and a gradient that is NaN
weights = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1)
print(weights)                                               # thirds, which nobody reads: finite both ways
""",
)
def masked_row(patient: Patient) -> Finding:
    """A softmax over nothing but minus infinities is 0 / 0:

        softmax(-inf, ..., -inf) = exp(-inf - max) / sum = NaN

    It stands at padded positions only, and reaches the others by the next layer, since 0 * NaN is NaN, or by the
    backward pass. Put to the model: rows padded on the left (with a causal mask the first positions see nothing), on
    the right, and a row of padding alone, in evaluation and in training; then the gradient of a loss on real tokens.
    """
    padded = Padded.of(patient)
    length, device = length_of(patient), patient.device
    half = length // 2
    layouts = {
        "padded on the left": side(2, length, half, True, device),
        "padded on the right": side(2, length, half, False, device),
        "of padding alone": torch.cat(
            [side(1, length, length, True, device), side(1, length, 0, True, device)]
        ),
    }  # fmt: skip
    tokens = patient.tokens(2, length)
    with torch.no_grad():
        if padded.logits(tokens, torch.ones_like(tokens, dtype=torch.bool)).isnan().any():
            raise NotExamined("its logits are NaN without padding")
    for name, real in layouts.items():
        filled = padded.fill(tokens, real)
        for training in (False, True):
            with torch.no_grad():
                lost = padded.logits(filled, real, training).isnan()
            if lost.any():
                return nan_in(f"a row {name}, in {'training' if training else 'evaluation'}",
                              float(lost.float().mean()), "logits")  # fmt: skip
        gradient = nan_gradient(padded, filled, real)
        if gradient is not None:
            return nan_in(f"a row {name}: {gradient}", 1.0, "gradients")
    return healthy("rows with padding left, right, and of padding alone: all finite, and their gradients",
                   "no NaN", value=0.0, limit=0.0)  # fmt: skip


def nan_in(what: str, share: float, of: str) -> Finding:
    return sick(
        f"NaN in {share:.0%} of the logits of {what}" if of == "logits" else f"NaN in the gradients of {what}",
        "finite",
        "a row may attend to nothing: all its scores are minus infinity, and softmax divides 0 by 0; one step with it,"
        " and all weights are NaN",
        "let such a row attend to itself (mask | eye), or fill with torch.finfo(scores.dtype).min, not -inf",
        value=share,
        limit=0.0,
    )


def nan_gradient(padded: Padded, tokens: Tensor, real: Tensor) -> str | None:
    """The parameter whose gradient is NaN after a loss on the real tokens, or None."""
    patient = padded.patient
    named = {path: one for path, one in every_parameter(patient.given.model).items() if one.requires_grad}
    logits = padded.logits(tokens, real, training=True)
    scored = real[:, -logits.shape[1] :]
    if not named or not logits.requires_grad or not scored.any():
        return None
    for one in named.values():
        one.grad = None
    F.cross_entropy(logits[scored], patient.tokens(*scored.shape)[scored]).backward()
    for path, one in named.items():
        if one.grad is not None and bool((one.grad.to_dense() if one.grad.is_sparse else one.grad).isnan().any()):
            return path
    return None


@check(
    "padding-mask",
    "padding is seen, or real tokens are hidden",
    reference="Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.3; torch.nn.MultiheadAttention, key_padding_mask",
    demonstration="""\
import torch
real = torch.tensor([[False, False, True, True]])            # two tokens, padded on the left
scores = torch.zeros(1, 4)
right = scores.masked_fill(~real, float("-inf")).softmax(-1)
inverted = scores.masked_fill(real, float("-inf")).softmax(-1)
print(right)          # 0, 0, 1/2, 1/2
print(inverted)       # 1/2, 1/2, 0, 0: padding is all that is seen
# torch.nn.MultiheadAttention: key_padding_mask is True where nothing may be seen; Hugging Face: 1 where it may.
""",
)
def padding_mask(patient: Patient) -> Finding:
    """What stands in padded places must not matter to real ones, and real tokens must still matter to each other:

        d_padding = max |f(x with other padding) - f(x)| / max |f|        over real positions: 0
        d_real    = max |f(x with another first token) - f(x)| / max |f|  over later real positions: as without padding

    Rows are padded on the left, where a causal mask does not hide the padding by itself, and for a model that is
    declared not to be causal on the right too. Where a mask is given, the padded tokens are exchanged; where the model
    sees from the ids what is padding, the embedding of the padding id is. d_padding > 0 is a mask that is not used;
    d_real = 0 as well as that is one that is inverted. A causal model that takes padding by its id alone is held to
    padding on the right, unless the ids change what it does or the batches have padding on the left.
    """
    padded = Padded.of(patient)
    if padded.kind is None:
        return by_ids(padded)
    length, device = length_of(patient), patient.device
    tokens = patient.tokens(2, length)
    worst: tuple[float, float, bool] | None = None
    for left in (True, False) if patient.expects("causal") is False else (True,):
        real = side(2, length, length // 2, left, device)
        filled = padded.fill(tokens, real)
        other = torch.where(real, filled, patient.other(filled))
        seen = distance(padded, filled, other, real, real)
        hidden = real_influence(padded, filled, real, left)
        if worst is None or seen > worst[0]:
            worst = (seen, hidden, left)
    assert worst is not None
    seen, known, left = worst
    plain = Padded(patient, None)
    free = real_influence(plain, tokens, torch.ones_like(tokens, dtype=torch.bool), True)
    return verdict(seen, known, free, str(patient.given.attention_mask), "left" if left else "right")


def verdict(seen: float, known: float, free: float, name: str, where: str) -> Finding:
    """`seen`: how far padding moves real positions. `known`: how far a real token moves later ones beside padding, and
    `free`: without padding."""
    numbers: dict[str, Any] = {"value": seen, "limit": SEEN}
    hides = known <= SEEN and (seen > SEEN or free > SEEN)
    if seen <= SEEN and not hides:
        return healthy(f"what stands in padding on the {where} moves real logits by {seen:.2g} of the largest", "0",
                       **numbers)  # fmt: skip
    if hides:
        return sick(
            f"beside padding, a real token moves later ones by {known:.2g} of the largest logit, padding by {seen:.2g}",
            f"{free:.2g} and 0",
            "the mask is inverted: real tokens are hidden, padding is seen"
            if seen > SEEN
            else "the mask hides the real tokens too: each position sees nothing but itself",
            f"{name}: 1 or True is real here; hide where it is 0 (~mask; torch's key_padding_mask is the other way)",
            value=known,
            limit=SEEN,
        )
    return sick(
        f"what stands in padding on the {where} moves real logits by {seen:.2g} of the largest",
        "0",
        "the mask is not used, or not everywhere: real tokens attend to padding, and a row says something else for"
        " every length of it",
        "scores.masked_fill(~mask[:, None, None, :], float('-inf')) in every attention",
        **numbers,
    )


@torch.no_grad()
def distance(padded: Padded, first: Tensor, second: Tensor, real: Tensor, read: Tensor) -> float:
    """How far logits at the positions `read` are apart, as a part of the largest."""
    one, other = padded.logits(first, real), padded.logits(second, real)
    read = read[:, -one.shape[1] :]
    gap = (one - other)[read].abs()
    if not gap.numel():
        return 0.0
    if not gap.isfinite().all():
        raise NotExamined("its logits are not finite where there is padding")
    return float(gap.max() / one[read].abs().max().clamp_min(1e-6))


def real_influence(padded: Padded, tokens: Tensor, real: Tensor, left: bool) -> float:
    """How far the first real token moves the real ones after it."""
    length = tokens.shape[1]
    first = int(real[0].int().argmax())
    if first >= length - 1:
        return 0.0
    other = tokens.clone()
    other[:, first] = padded.patient.other(tokens)[:, first]
    later = real.clone()
    later[:, : first + 1] = False
    return distance(padded, tokens, other, real, later)


def by_ids(padded: Padded) -> Finding:
    """The finding about a model that sees from the ids what is padding."""
    patient = padded.patient
    padding = patient.given.padding
    assert padding is not None
    length, device = length_of(patient), patient.device
    embeddings = roles(patient).embeddings
    if not embeddings:
        raise NotExamined("no embedding was found whose padding could be changed")
    causal = patient.expects("causal") is not False
    tokens = patient.tokens(2, length)
    seen: dict[str, float] = {}
    known: dict[str, float] = {}
    for name in ("left", "right"):
        real = side(2, length, length // 2, name == "left", device)
        filled = padded.fill(tokens, real)
        seen[name] = moved_inputs(patient, list(embeddings.values()), padding, filled, real)
        known[name] = real_influence(padded, filled, real, name == "left")
    free = real_influence(padded, tokens, torch.ones_like(tokens, dtype=torch.bool), True)
    hides = known["left"] <= SEEN and free > SEEN
    must = hides or not causal or "left" in padding_sides(patient)
    if must:
        name = "right" if not causal and seen["right"] > seen["left"] else "left"
        return verdict(seen[name], known[name], free, "tokens != padding", name)
    if seen["right"] > SEEN:
        return verdict(seen["right"], known["right"], free, "tokens != padding", "right")
    said = f"padding on the right moves real logits by {seen['right']:.2g} of the largest"
    if seen["left"] > SEEN:
        said += f"; on the left it would be seen ({seen['left']:.2g}): pad on the right alone"
    return healthy(said, "0", value=seen["right"], limit=SEEN)


def padding_sides(patient: Patient) -> set[str]:
    """On which sides the rows of the person's batches are padded."""
    found = set()
    padding = patient.given.padding
    batches = batches_of(patient) if padding is None else lying(batches_of(patient), padding)
    rows = [row for inputs, _ in batches if inputs.dim() == 2 for row in inputs.tolist()]
    for row in rows:
        if len(row) > 1 and row[0] == patient.given.padding:
            found.add("left")
        if len(row) > 1 and row[-1] == patient.given.padding:
            found.add("right")
    return found


CHECKS: tuple[Check, ...] = (masked_row, padding_mask, padding_token)
