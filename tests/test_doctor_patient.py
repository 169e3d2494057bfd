"""The doctor does not trust its patient: it adapts to whatever form a model has, and leaves nothing behind."""

from __future__ import annotations

import functools
import logging
import random
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from handmade import doctor
from handmade.doctor import Given, NotExamined, Patient
from handmade.doctor.anatomy import all_modules, hidden_modules, loose_tensors
from handmade.doctor.snapshot import undisturbed
from handmade.errors import ConfigError

VOCABULARY, CONTEXT, WIDTH = 11, 8, 12


class Core(nn.Module):
    """One causal head with positions: (B, T) -> (B, T, V)."""

    def __init__(self, vocabulary: int = VOCABULARY, context: int = CONTEXT) -> None:
        super().__init__()
        self.place = nn.Embedding(context, WIDTH)
        self.token = nn.Embedding(vocabulary, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(WIDTH, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x) + self.place(torch.arange(x.shape[1]))
        y = F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h), is_causal=True)
        return self.head(self.dropout(h + y))


class Wrapped(nn.Module):
    """A model whose forward is any function of its core."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.core = Core()
        self.how = forward


class OneArgument(Wrapped):
    def forward(self, x: Tensor) -> Any:
        return self.how(self.core, x)


class OptionalTargets(Wrapped):
    def forward(self, x: Tensor, targets: Tensor | None = None) -> Any:
        return self.how(self.core, x, targets)


class WantsTargets(Wrapped):
    def forward(self, x: Tensor, targets: Tensor) -> Any:
        assert targets.shape == x.shape
        return self.how(self.core, x, targets)


class WantsLabelsByName(Wrapped):
    def forward(self, *, input_ids: Tensor, mask: Tensor | None = None, labels: Tensor) -> Any:
        assert labels.shape == input_ids.shape and mask is None
        return self.how(self.core, input_ids, labels)


class WantsHidden(Wrapped):
    def forward(self, x: Tensor, hidden: Any) -> Any:
        assert hidden is None
        return self.how(self.core, x), hidden


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


def with_loss(core: Core, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    logits = core(x)
    return logits, None if y is None else F.cross_entropy(logits.flatten(0, 1), y.flatten())


def last_unless_targets(core: Core, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return with_loss(core, x, y) if y is not None else (core(x)[:, [-1]], None)


def flat_with_targets(core: Core, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    logits, loss = with_loss(core, x, y)
    assert loss is not None
    return logits.flatten(0, 1), loss


def one_sequence(core: Core, x: Tensor) -> Tensor:
    assert x.dim() == 1
    return core(x[None])[0]


def one_row(core: Core, x: Tensor) -> Tensor:
    assert x.shape[0] == 1
    return core(x)


def whole_rows(core: Core, x: Tensor) -> Tensor:
    assert x.shape[1] == CONTEXT
    return core(x)


def loud(core: Core, x: Tensor) -> Tensor:
    print("shape", x.shape)
    print("to the other stream", file=sys.stderr)
    warnings.warn("look at this", stacklevel=1)
    logging.getLogger("loud").error("and this")
    return core(x)


def reseeding(core: Core, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.set_grad_enabled(True)
    return core(x) + 0 * torch.rand(1)


# How it answers -> the model, and what is unusual about it.
FORMS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "logits": (lambda: OneArgument(lambda core, x: core(x)), {}),
    "logits and loss": (lambda: OptionalTargets(with_loss), {}),
    "loss and logits": (lambda: OptionalTargets(lambda core, x, y: with_loss(core, x, y)[::-1]), {}),
    "an object": (lambda: OneArgument(lambda core, x: Output(None, core(x))), {}),
    "a namespace": (lambda: OneArgument(lambda core, x: types.SimpleNamespace(logits=core(x))), {}),
    "a mapping": (lambda: OneArgument(lambda core, x: {"hidden": core.token(x), "logits": core(x)}), {}),
    "unnamed in a mapping": (lambda: OneArgument(lambda core, x: {"h": core.token(x), "scores": core(x)}), {}),
    "hidden first": (lambda: OneArgument(lambda core, x: (core.token(x), (core.token(x), core(x)))), {}),
    "(B, V, T)": (lambda: OneArgument(lambda core, x: core(x).transpose(1, 2)), {"axes": "BVT"}),
    "(B * T, V)": (lambda: OneArgument(lambda core, x: core(x).flatten(0, 1)), {"axes": "NV"}),
    "(T, B) to (T, B, V)": (
        lambda: OneArgument(lambda core, x: core(x.T).transpose(0, 1)),
        {"axes": "TBV", "time_first": True},
    ),
    "(T, B) to (B, T, V)": (lambda: OneArgument(lambda core, x: core(x.T)), {"time_first": True}),
    "(T, B) to (T * B, V)": (
        lambda: OneArgument(lambda core, x: core(x.T).transpose(0, 1).flatten(0, 1)),
        {"axes": "NV", "time_first": True},
    ),
    "(T, B) to the last (B, V)": (
        lambda: OneArgument(lambda core, x: core(x.T)[:, -1]),
        {"axes": "BV", "time_first": True},
    ),
    "the last (B, V)": (lambda: OneArgument(lambda core, x: core(x)[:, -1]), {"axes": "BV"}),
    "the last (B, 1, V)": (lambda: OneArgument(lambda core, x: core(x)[:, -1:]), {"axes": "BV"}),
    "the last unless there are targets": (
        lambda: OptionalTargets(last_unless_targets),
        {"targets": True, "targets_name": "targets"},
    ),
    "wants targets": (lambda: WantsTargets(with_loss), {"targets": True, "targets_name": "targets"}),
    "wants targets, flat": (
        lambda: WantsTargets(flat_with_targets),
        {"targets": True, "targets_name": "targets", "axes": "NV"},
    ),
    "wants labels by name": (
        lambda: WantsLabelsByName(with_loss),
        {"targets": True, "targets_name": "labels", "inputs_name": "input_ids"},
    ),
    "wants a state": (lambda: WantsHidden(lambda core, x: core(x)), {"nothing": ("hidden",)}),
    "one sequence": (lambda: OneArgument(one_sequence), {"single": True}),
    "one row": (lambda: OneArgument(one_row), {"rows": 1}),
    "whole rows": (lambda: OneArgument(whole_rows), {"full": True}),
    "whole rows, the last": (
        lambda: OneArgument(lambda core, x: whole_rows(core, x)[:, -1]),
        {"full": True, "axes": "BV"},
    ),
    "probabilities": (lambda: OneArgument(lambda core, x: core(x).softmax(-1)), {"kind": "probabilities"}),
    "log-probabilities": (lambda: OneArgument(lambda core, x: core(x).log_softmax(-1)), {"kind": "log-probabilities"}),
    "loud": (lambda: OneArgument(loud), {}),
    "reseeding": (lambda: OneArgument(reseeding), {}),
    "in place": (lambda: OneArgument(lambda core, x: core(x).mul_(1)), {}),
}
SIZES = {"vocab_size": VOCABULARY, "context": CONTEXT}


def expected(model: Any, tokens: Tensor) -> Tensor:
    """What the core itself says, in evaluation."""
    core = model.core
    was = core.training
    core.eval()
    with torch.no_grad():
        logits = core(tokens)
    core.train(was)
    return logits


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_seen_alike(form: str, capfd: pytest.CaptureFixture[str], recwarn: Any) -> None:
    make, unusual = FORMS[form]
    model = make()
    patient = Patient(Given(model, **SIZES))
    assert patient.failure is None
    assert {
        name: value for name, value in vars(patient.form).items() if value != getattr(doctor.forms.Form(), name)
    } == unusual
    tokens = patient.tokens(5)
    with undisturbed(model):
        logits = patient.logits(tokens)
    said, wanted = logits.log_softmax(-1), expected(model, tokens).log_softmax(-1)
    torch.testing.assert_close(said, wanted if patient.every_position else wanted[:, -1:], rtol=0, atol=1e-5)
    assert capfd.readouterr() == ("", "")
    assert not [one for one in recwarn if "look at this" in str(one.message)]
