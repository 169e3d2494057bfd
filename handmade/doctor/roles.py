"""Which parameters read tokens and which write logits, by what they do: no name and no type is looked at.

B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import Parameter

from handmade.doctor.anatomy import every_parameter
from handmade.doctor.findings import NotExamined
from handmade.doctor.patient import Patient

STILL = 1e-3
"""A matrix belongs to the head when changing one token's slice moves that token's logit, and others by less than this
part of it. Measured: 0 in all types, or 1e-6 where a log-softmax shifts all."""
NOTHING = 1e-6
"""Less than this part of the largest logit is rounding."""
ROUNDED = 128
"""So many slices more than tokens an embedding may have: vocabularies are rounded up."""
FEW, SEVERAL = 4, 3
"""Positions of a row, and tokens of it, that are looked at. One would not do: a unit of a ReLU that happens to be dead
for a row moves nothing in it either. Alive in one row and dead in the other as it ought to be for six tokens, it was
never seen (24 models of 6 layers)."""


ROWS, SHORT = 2, 16
"""Rows and positions of a batch: a parameter that gets a gradient at all gets it from few."""


@dataclass(frozen=True)
class Role:
    """A parameter with a slice for every token."""

    path: str
    parameter: Parameter
    axis: int
    """The axis along which tokens are counted."""

    def slice(self, token: int) -> Tensor:
        """What belongs to a token; writing to it writes to the parameter."""
        return self.parameter.data.select(self.axis, token)

    @property
    def scale(self) -> float:
        """The size of its numbers."""
        return float(self.parameter.detach().float().square().mean().sqrt().clamp_min(0.02))


@dataclass
class Roles:
    """Those that read, and those that write. A tied matrix is in both."""

    embeddings: dict[str, Role] = field(default_factory=dict)
    heads: dict[str, Role] = field(default_factory=dict)


@torch.no_grad()
def stir(patient: Patient, size: float = 0.02) -> None:
    """Give every exact zero in the parameters a small random number: a projection that begins at zero, as residual
    branches and gates often do, hides what stands before it."""
    for parameter in every_parameter(patient.model).values():
        if parameter.is_floating_point() and parameter.numel():
            zeros = parameter == 0
            if zeros.any():
                noise = torch.randn(parameter.shape, generator=patient.generator).mul_(size).to(parameter)
                parameter.data.copy_(torch.where(zeros, noise, parameter.data))


def some(patient: Patient) -> Tensor:
    """A few short rows. Shapes: -> (ROWS, T)."""
    return patient.tokens(ROWS, patient.length if patient.form.full else min(patient.length, SHORT))


def steady(patient: Patient, tokens: Tensor) -> Tensor:
    """Logits in evaluation, also of a model that draws random numbers there: always from the same seed."""
    torch.manual_seed(0)
    return patient.logits(tokens)


def two_rows(patient: Patient) -> Tensor:
    """Two rows that have no token in common. Their tokens are larger than they are long where that can be, so that a
    table of positions is not taken for one of tokens. Shapes: -> (2, T). Raises NotExamined where there are too few."""
    length = patient.length if patient.form.full else min(patient.length, FEW)
    ids = [one for one in range(patient.vocab_size) if one != patient.given.padding]
    if len(ids) < 2:
        raise NotExamined("there are too few tokens to tell them apart")
    late = [one for one in ids if one >= length]
    ids = late if len(late) >= 2 * SEVERAL else ids
    order = [ids[place] for place in torch.randperm(len(ids), generator=patient.generator).tolist()]
    half = max(1, min(length, len(order) // 2))
    rows = [[part[place % len(part)] for place in range(length)] for part in (order[:half], order[half : 2 * half])]
    return torch.tensor(rows, device=patient.device)


def roles(patient: Patient) -> Roles:
    """Find them, by moving the slice of a token that stands in one of two rows and not in the other:

        embedding       other tokens' logits move in the row that has the token, and in the other none does
        head            in the row that has it not, its own logit moves alone

    A shift that all logits share (of log-probabilities) does not count. Parameters are left as they were.
    """
    found = Roles()
    tokens = two_rows(patient)
    base = steady(patient, tokens)
    if not base.isfinite().all():
        raise NotExamined("its logits are not finite")
    largest = max(base.shape[-1], patient.vocab_size + ROUNDED)
    asked = [(row, token) for row in (0, 1) for token in dict.fromkeys(tokens[row].tolist()[:SEVERAL])]
    for path, parameter in every_parameter(patient.model).items():
        if parameter.dim() < 2 or not parameter.is_floating_point():
            continue
        for axis in range(parameter.dim()):
            if not patient.vocab_size <= parameter.shape[axis] <= largest:
                continue
            role = Role(path, parameter, axis)
            reads, writes = what_it_does(patient, role, tokens, base, asked)
            if reads:
                found.embeddings[path] = role
            if writes:
                found.heads[path] = role
            if reads or writes:
                break
    return found


def what_it_does(
    patient: Patient, role: Role, tokens: Tensor, base: Tensor, asked: Sequence[tuple[int, int]]
) -> tuple[bool, bool]:
    """Whether a parameter reads tokens, and whether it writes logits."""
    nothing = NOTHING * float(base.abs().max())
    reads = writes = True
    for row, token in asked:
        own, others = moved(patient, role, tokens, base, token)
        if others[1 - row] > max(STILL * own[1 - row], nothing):
            return False, False  # its slices are no tokens
        reads &= others[row] > nothing
        writes &= own[1 - row] > nothing
        if not reads and not writes:
            break
    return reads, writes


@torch.no_grad()
def moved(
    patient: Patient, role: Role, tokens: Tensor, base: Tensor, token: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """How far in each row a token's own logit moves with its slice of a parameter, and how far the others do."""
    kept = role.slice(token).clone()
    noise = torch.randn(kept.shape, generator=patient.generator) * role.scale
    role.slice(token).add_(noise.to(kept))
    try:
        change = (steady(patient, tokens) - base)[..., : patient.vocab_size]
    finally:
        role.slice(token).copy_(kept)
    others = torch.cat([change[..., :token], change[..., token + 1 :]], dim=-1)
    own = change[..., token]
    if patient.form.kind != "logits":
        shared = others.median(dim=-1, keepdim=True).values
        others, own = others - shared, own - shared.squeeze(-1)
    return tuple(own.abs().amax(-1).tolist()), tuple(others.abs().flatten(1).amax(-1).tolist())


@torch.no_grad()
def moved_inputs(patient: Patient, embeddings: Sequence[Role], token: int, tokens: Tensor, read: Tensor) -> float:
    """How far the logits at positions `read` (B, T) move, as a part of the largest, when the embedding of a token does.
    The token's own logit, which a tied matrix moves too, does not count. Raises NotExamined where they are not
    finite."""
    base = steady(patient, tokens)
    read = read[:, -base.shape[1] :]
    kept = [role.slice(token).clone() for role in embeddings]
    for role, before in zip(embeddings, kept, strict=True):
        role.slice(token).add_((torch.randn(before.shape, generator=patient.generator) * role.scale).to(before))
    try:
        change = (steady(patient, tokens) - base)[read]
    finally:
        for role, before in zip(embeddings, kept, strict=True):
            role.slice(token).copy_(before)
    change[..., token] = 0
    if not change.numel():
        return 0.0
    if not change.isfinite().all():
        raise NotExamined("its logits are not finite where there is padding")
    return float(change.abs().max() / base[read].abs().max().clamp_min(1e-6))


@torch.no_grad()
def takes_part(patient: Patient, tensor: Tensor) -> bool:
    """Whether moving a tensor moves the logits. It is left as it was."""
    tokens = some(patient)
    base = steady(patient, tokens)
    kept = tensor.detach().clone()
    scale = float(kept.abs().float().square().mean().sqrt().clamp(0.1, 10.0))
    noise = torch.randn(kept.shape, generator=patient.generator) * scale
    tensor.data.add_(noise.to(kept))
    try:
        return not torch.equal(steady(patient, tokens), base)
    finally:
        tensor.data.copy_(kept)
