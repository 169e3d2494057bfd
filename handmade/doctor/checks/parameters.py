"""Every parameter is one, learns, and is shared where that was meant."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from handmade.doctor.anatomy import every_parameter
from handmade.doctor.chance import paths_of, places
from handmade.doctor.checks.base import Check, check
from handmade.doctor.checks.registered import declared, unregistered
from handmade.doctor.checks.tying import tied
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious
from handmade.doctor.patient import Patient
from handmade.doctor.roles import some, stir, takes_part
from handmade.doctor.tables import is_counted, table

ATTEMPTS, AS_THEY_ARE, PATIENCE = 16, 2, 8
"""Batches that are tried at most before a parameter is said to get no gradient; those of them for which the weights
stay as they are; and how many may bring nothing new. After the first, matrices are drawn anew: a router chooses other
experts, a saturated or dead unit comes back, but what is never called is not called. One of 12 experts that are chosen
by the token alone is left out of a batch with a chance of 1/4: of 40 seeds 3 had one that no batch reached with a
patience of 4, 1 with 6, none with 8."""


@check(
    "gradients",
    "a parameter gets no gradient",
    reference="https://docs.pytorch.org/docs/stable/notes/autograd.html (locally disabling gradient computation)",
    quick=True,
    demonstration="""\
import torch
from torch import nn
a, b, c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
hidden = a(torch.randn(4, 8)).detach()               # nothing goes back through here
loss = b(hidden).square().mean()                     # and c is never called
loss.backward()
print(a.weight.grad, c.weight.grad)                  # None, None: neither will ever move
print(b.weight.grad.abs().max())                     # this one learns
""",
)
def gradients(patient: Patient) -> Finding:
    """A cross-entropy on random tokens has to reach every parameter, in training mode:

        d loss / d w != 0        in at least one entry of w, in one of several batches

    Weights that begin at exactly zero are first moved a little, since what stands before them gets a gradient of
    exactly zero until they have moved. A tensor counts as a whole: tokens and positions that do not occur in a batch
    are no fault, nor is an expert that a router does not choose: after two batches all weights are drawn anew. What
    gets no gradient is never called, not used, cut off (`detach()`, `no_grad`, `.data`, `.item()`, argmax) or
    multiplied by zero; a hook on every module tells which run. Parameters with `requires_grad=False` are asked about,
    unless they are constant tables (sines, masks).
    """
    module = patient.module
    all_of = {path: one for path, one in module.named_parameters() if one.numel() and not is_counted(one)}
    if not all_of:
        raise NotExamined("it has no parameters")
    meant = patient.expects("frozen")
    still = [path for path, one in all_of.items() if not one.requires_grad and table(one) is None]
    learning = {path: one for path, one in all_of.items() if one.requires_grad}
    missing, ran = without_gradient(patient, learning) if learning else ([], set())
    wrong = [path for path in missing if not declared(meant, path)]
    if wrong:
        return no_gradient(patient, wrong, len(all_of), ran)
    if meant is not None and meant is not True:
        moving = [path for path in learning if path not in missing and declared(meant, path)]
        if moving:
            return sick(
                f"{len(moving)} parameters that are declared frozen get a gradient: {paths_of(moving)}",
                "none",
                "they require gradients and the loss reaches them, so that they learn although they were meant to stay",
                "parameter.requires_grad_(False) for each of them",
                value=float(len(moving)),
                limit=0.0,
                where=moving[0],
            )
    asked = [path for path in still if not declared(meant, path)]
    if asked:
        return suspicious(
            f"{len(asked)} of {len(all_of)} parameters have requires_grad=False: {paths_of(asked)}",
            "every parameter learns",
            "they stay what they are, however long the training",
            "remove requires_grad_(False), or register what is constant as a buffer",
            f'Are they meant to be frozen? Then expect={{"frozen": {asked[:3]!r}}}.',
            value=float(len(asked)),
            limit=0.0,
            where=asked[0],
        )
    reached = len(learning) - len(missing)
    others = ", the others as declared or constant" if reached < len(all_of) else ""
    return healthy(f"{reached} of {len(all_of)} parameters get a gradient{others}", "all", value=0.0, limit=0.0)


def without_gradient(patient: Patient, parameters: Mapping[str, Tensor]) -> tuple[list[str], set[str]]:
    """The parameters that no batch gives a gradient to, and the modules that ran. Raises NotExamined where the logits
    are not finite, and what backward raises."""
    stir(patient)
    missing, ran, last = list(parameters), set[str](), 0
    for attempt in range(ATTEMPTS):
        torch.manual_seed(attempt)
        for one in parameters.values():
            one.grad = None
        with redrawn(patient) if attempt >= AS_THEY_ARE else contextlib.nullcontext():
            with patient.mode(training=True), places(patient.modules, [], ran):
                loss = loss_of(patient, some(patient), finite=attempt < AS_THEY_ARE)
            if loss is not None:
                loss.backward()
        for path in list(missing):
            gradient = parameters[path].grad
            if gradient is not None and bool((dense(gradient) != 0).any()):
                missing.remove(path)
                last = attempt
        if not missing or attempt - max(last, AS_THEY_ARE - 1) >= PATIENCE:
            break
    return missing, ran


@contextlib.contextmanager
def redrawn(patient: Patient) -> Iterator[None]:
    """Inside, matrices are random, of the size that they were, and vectors are moved by as much as they are large."""
    kept = [(one, one.detach().clone()) for one in every_parameter(patient.model).values() if not is_counted(one)]
    for one, before in kept:
        size = float(before.abs().float().square().mean().sqrt().clamp_min(1e-6)) if one.numel() else 0.0
        noise = (torch.randn(one.shape, generator=patient.generator) * size).to(one)
        one.data.copy_(noise if one.dim() >= 2 and table(before) is None else before + noise)
    try:
        yield
    finally:
        for one, before in kept:
            one.data.copy_(before)


def dense(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def loss_of(patient: Patient, tokens: Tensor, finite: bool) -> Tensor | None:
    """The cross-entropy with random targets; or, of a forward that detaches its logits, the loss that it returns.
    None where nothing that comes back has a gradient. Raises NotExamined for logits that are not finite, if they have
    to be."""
    returned = patient.call(tokens)
    logits = patient.read(returned, tokens.shape)
    if not logits.isfinite().all():
        if finite:
            raise NotExamined("its logits are not finite")
        return None
    if logits.requires_grad:
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logits = logits.clamp_min(1e-30).log() if patient.form.kind == "probabilities" else logits
        targets = patient.tokens(*logits.shape[:2])
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    for one in returned if isinstance(returned, (tuple, list)) else ():
        if torch.is_tensor(one) and one.dim() == 0 and one.requires_grad:
            return one
    return None


def no_gradient(patient: Patient, missing: Sequence[str], of: int, ran: set[str]) -> Finding:
    """The finding: which of the missing parameters stand in modules that never run, which are not used, and which are
    used and cut off."""
    named = dict(patient.module.named_parameters())
    idle: dict[str, bool] = {}
    for path in missing:
        module = uncalled(path, set(patient.modules), ran)
        if module is not None and idle.get(module, True):  # it may have a way of its own to be called
            inside = [one for one in missing if one.startswith(f"{module}.")]
            idle[module] = not any(takes_part(patient, named[one]) for one in inside[:4])
    idle = {module: True for module, truly in idle.items() if truly}
    rest = [path for path in missing if not any(path.startswith(f"{one}.") for one in idle)]
    counted = f"{len(missing)} of {of} parameters get no gradient: "
    details: dict[str, Any] = {"value": float(len(missing)), "limit": 0.0}
    if idle and len(rest) < len(missing):
        return sick(
            counted + f"{paths_of(list(idle))} never ran" + (f"; nor does {paths_of(rest, 1)}" if rest else ""),
            "all get one",
            "it is built and never called: its weights take memory, are decayed and saved, and do nothing",
            f"call {next(iter(idle))} in forward, or do not build it",
            where=next(iter(idle)),
            **details,
        )
    used = [path for path in rest[:8] if takes_part(patient, named[path])]
    if not used:
        return sick(
            counted + paths_of(rest),
            "all get one",
            "changing them changes no logit: they are not used, or what they do is multiplied by zero",
            f"use {rest[0]} in forward, or remove it",
            where=rest[0],
            **details,
        )
    return sick(
        counted + paths_of(used),
        "all get one",
        "they do change the logits, but something between cuts the graph: detach(), no_grad(), .data, .item(), argmax,"
        " or a new tensor made of numbers",
        f"look behind {owner_of(used[-1])} for what cuts the graph, and remove it",
        where=used[0],
        **details,
    )


def owner_of(path: str) -> str:
    return path.rpartition(".")[0] or path


def uncalled(path: str, modules: set[str], ran: set[str]) -> str | None:
    """The largest module around a parameter in which nothing ran. None where its own module ran."""
    found, place = None, path
    while "." in place:
        place = place.rpartition(".")[0]
        if place in ran or any(one.startswith(f"{place}.") for one in ran):
            break
        if place in modules:
            found = place
    return found


CHECKS: tuple[Check, ...] = (gradients, unregistered, tied)
