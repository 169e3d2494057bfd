"""What a row is asked: one token of it changed, two of them swapped, and how far the answers move.

Every measure here is taken while the patient is `exposed`: its matrices are drawn anew (who sees whom does not depend
on the weights), and every call draws the same random numbers. One token of one row is changed at a time, its companions
stay, so that neither dropout nor a norm over the batch is taken for sight.

B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from handmade.doctor.findings import NotExamined
from handmade.doctor.patient import Patient
from handmade.doctor.tracing import OPERATION

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


def named(patient: Patient, path: str) -> str:
    """A module as a person knows it: its path and its class; an operation with the model that it is in."""
    if path.startswith(OPERATION):
        return f"{path.removeprefix(OPERATION).strip('_')} in {patient.name or 'the model'}"
    kind = type(patient.modules[path]).__name__
    return f"{path} ({kind})" if path else f"forward of {kind}"
