"""One matrix that reads the tokens and writes the logits, where that was meant."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from handmade.doctor.chance import paths_of
from handmade.doctor.checks.base import check
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious
from handmade.doctor.patient import Patient
from handmade.doctor.roles import Role, roles, steady, stir, two_rows, what_it_does

LARGEST_COPY = 60_000_000
"""Numbers in a model of which no copy is made to look at its ties."""


@check(
    "tied",
    "the embedding and the head are not the one matrix that was meant",
    reference="Press and Wolf 2017 (arXiv:1608.05859), section 3",
    quick=True,
    demonstration="""\
import torch
from torch import nn
embedding, head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
head.weight = nn.Parameter(embedding.weight.clone())      # a copy: equal today
head(embedding(torch.arange(10))).square().mean().backward()
with torch.no_grad():
    for weight in (embedding.weight, head.weight):
        weight -= 0.1 * weight.grad                       # one step of gradient descent
print((head.weight - embedding.weight).abs().max())       # they have parted
head.weight = embedding.weight                            # one tensor: tied for good
print(head.weight is embedding.weight)
""",
)
def tied(patient: Patient) -> Finding:
    """One matrix reads the tokens and writes the logits, x = E[token] and logits = h E^T, when it is one tensor:

        head is embedding              (`is`, not `==`)

    Which parameter reads and which writes is measured: moving the slice of a token that is not in the row moves that
    token's logit alone (head); moving the slice of one that is in the row moves all logits (embedding). Two tensors of
    equal values, or with one memory, were meant to be one: equal values part at the first step; one memory under two
    names is stepped twice, and parts with `.to()`. A tie has to survive `deepcopy` and `load_state_dict`, and the
    gradient has to come from both sides.
    """
    module = patient.module
    meant = patient.expects("tied")
    found = roles(patient)
    if not found.embeddings or not found.heads:
        stir(patient)  # a head that begins at zero hides the embedding
        found = roles(patient)
    if not found.embeddings or not found.heads:
        raise NotExamined("no matrix with a slice for every token was found on both sides")
    shared = [role for path, role in found.heads.items() if path in found.embeddings]
    pairs = itertools.combinations({**found.embeddings, **found.heads}.values(), 2)
    alias = next((pair for pair in pairs if one_memory(pair[0].parameter, pair[1].parameter)), None)
    if alias is not None:
        return sick(
            f"{alias[0].path} and {alias[1].path} are two parameters in one memory",
            "one tensor, or two memories",
            "`.data =` or nn.Parameter(other) shares memory and not the parameter: each has a gradient and a step of"
            " its own, and .to(), deepcopy or a checkpoint parts them",
            "head.weight = embedding.weight",
            where=alias[1].path,
        )
    named = f"{paths_of(list(found.embeddings), 1)} reads, {paths_of(list(found.heads), 1)} writes"
    if shared:
        return one_matrix(patient, module, shared[0], meant)
    pair = next(
        (
            (reads, writes)
            for reads in found.embeddings.values()
            for writes in found.heads.values()
            if equal(reads.parameter, writes.parameter)
        ),
        None,
    )
    expected = "one tensor, or two that have nothing to do with each other" if meant is None else "one tensor"
    if meant:
        return sick(
            f"two tensors: {named}" + (", of equal values" if pair else ""),
            expected,
            "an assignment of values (clone, copy_, .data) ties nothing: they part at the first step"
            if pair
            else "the head has weights of its own; with them come as many parameters again",
            "head.weight = embedding.weight, after both were initialised",
            where=next(iter(found.heads)),
        )
    if pair is not None and meant is None:
        return suspicious(
            f"{pair[0].path} and {pair[1].path} are two tensors of equal values",
            expected,
            "they begin equal, which looks as if they were meant to be tied, and part at the first step",
            "head.weight = embedding.weight",
            'Were they meant to be one? expect={"tied": True}, or False.',
            where=pair[1].path,
        )
    return healthy(f"not tied: {named}", "two tensors" if meant is False else expected)


def one_memory(first: Tensor, second: Tensor) -> bool:
    """Whether two parameters are written to the same place."""
    return first is not second and first.numel() == second.numel() and first.data_ptr() == second.data_ptr()


def equal(first: Tensor, second: Tensor) -> bool:
    """Whether two parameters hold the same values, also transposed, and not one value everywhere."""
    return any(
        first.shape == other.shape and bool((first == other).all()) and bool((first != first.flatten()[0]).any())
        for other in (second, second.T if second.dim() == 2 else second)
    )


def one_matrix(patient: Patient, module: nn.Module, role: Role, meant: Any) -> Finding:
    """The finding about a matrix that reads and writes."""
    if meant is False:
        return sick(
            f"{role.path} reads the tokens and writes the logits",
            "two tensors",
            "the head is the embedding's own matrix, though it was declared not to be",
            "give the head a weight of its own",
            where=role.path,
        )
    if role.parameter.requires_grad and not gradient_from_head(patient, role):
        return sick(
            f"{role.path} writes the logits, and gets no gradient from there",
            "a gradient from both sides",
            "the head uses the embedding's values without its graph (`.data`, `.detach()`): half of what it should"
            " learn is lost",
            f"use {role.path} itself in the head",
            where=role.path,
        )
    lost = lost_in_copy(patient, module, role)
    if lost:
        return sick(
            f"{role.path} reads and writes, but not in a {lost}",
            f"tied in a {lost} too",
            "the tie hangs on something that still holds the first model's tensor, as a lambda does: best weights,"
            " averages and checkpoints come out wrong",
            "head.weight = embedding.weight, or read self.embedding.weight inside forward",
            where=role.path,
        )
    return healthy(f"one tensor reads and writes: {role.path}", "one tensor" if meant else "")


def gradient_from_head(patient: Patient, role: Role) -> bool:
    """Whether the logit of a token that is not in the row has a gradient for its slice."""
    tokens = two_rows(patient)
    token = int(tokens[0, 0])
    with patient.mode(training=False):
        logits = patient.run(tokens)
    if not logits.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(logits[1, ..., token].sum(), role.parameter, allow_unused=True)
    return gradient is not None and bool((dense_rows(gradient).select(role.axis, token) != 0).any())


def dense_rows(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def lost_in_copy(patient: Patient, module: nn.Module, role: Role) -> str | None:
    """In which copy the matrix no longer reads and writes: "deep copy", "loaded copy", or None."""
    if patient.given.model is not module:
        return None  # a function: what it would call in a copy is not known
    if sum(one.numel() for one in module.parameters()) > LARGEST_COPY:
        patient.notes.append("tied: too large to look at a copy")
        return None
    try:
        twin = copy.deepcopy(module)
    except Exception:
        patient.notes.append("tied: the model cannot be copied (deepcopy fails)")
        return None
    original = patient.given.model
    patient.given.model = twin
    try:
        nn.Module.train(twin, False)  # the patient's own modes are those of the first
        if not reads_and_writes(patient, twin, role):
            return "deep copy"
        twin.load_state_dict({name: value.clone() for name, value in module.state_dict().items()})
        return None if reads_and_writes(patient, twin, role) else "loaded copy"
    finally:
        patient.given.model = original


def reads_and_writes(patient: Patient, module: nn.Module, role: Role) -> bool:
    """Whether the parameter of this name reads and writes in another instance."""
    parameter = dict(module.named_parameters(remove_duplicate=False)).get(role.path)
    if parameter is None:
        return False
    there = Role(role.path, parameter, role.axis)
    tokens = two_rows(patient)
    return all(what_it_does(patient, there, tokens, steady(patient, tokens), [(0, int(tokens[0, 0]))]))
