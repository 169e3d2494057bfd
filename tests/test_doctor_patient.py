"""The doctor does not trust its patient: it adapts to whatever form a model has, and leaves nothing behind."""

from __future__ import annotations

import functools
import logging
import random
import re
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
from handmade.doctor import Given, NotExamined, Patient, checks
from handmade.doctor.anatomy import all_modules, hidden_modules, loose_tensors
from handmade.doctor.forms import Form
from handmade.doctor.snapshot import undisturbed
from handmade.doctor.tracing import laid_out
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
        assert labels.shape == input_ids.shape
        assert mask is None
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
    assert {name: value for name, value in vars(patient.form).items() if value != getattr(Form(), name)} == unusual
    tokens = patient.tokens(5)
    with undisturbed(model):
        logits = patient.logits(tokens)
    said, wanted = logits.log_softmax(-1), expected(model, tokens).log_softmax(-1)
    torch.testing.assert_close(said, wanted if patient.every_position else wanted[:, -1:], rtol=0, atol=1e-5)
    report = doctor.examine(model, **SIZES, only=["future", "batch"])
    assert {finding.verdict for finding in report.findings} <= {"healthy", "not examined"}
    assert report["future"].verdict == "healthy"
    assert capfd.readouterr() == ("", "")
    assert not [one for one in recwarn if "look at this" in str(one.message)]


def test_a_fixed_number_of_rows_is_taken_from_the_batches() -> None:
    def four_rows(core: Core, x: Tensor) -> Tensor:
        assert x.shape == (4, CONTEXT)
        return core(x)

    model = OneArgument(four_rows)
    batch = torch.zeros(4, CONTEXT, dtype=torch.long)
    patient = Patient(Given(model, **SIZES, batches=lambda: (batch, batch)))
    assert patient.form == Form(rows=4, full=True)
    tokens = patient.tokens(6)  # not a multiple of four
    torch.testing.assert_close(patient.logits(tokens), expected(model, tokens))
    assert doctor.examine(model, **SIZES, only=["batch"], batches=lambda: (batch, batch))["batch"].verdict == "healthy"


def test_attention_masks_that_are_wanted_are_ones() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = Core()

        def forward(self, ids: Tensor, real: Tensor) -> Tensor:
            return self.core(ids) * real[..., None]

    patient = Patient(Given(Model(), **SIZES, attention_mask="real"))
    assert patient.form == Form(ones=("real",))
    assert patient.logits(patient.tokens(2)).abs().min() > 0


# Wrapped, and no modules at all


class Keeper:
    """A plain class that calls a module."""

    def __init__(self, module: nn.Module) -> None:
        self.inner = [module]

    def __call__(self, x: Tensor) -> Tensor:
        return self.inner[0](x)

    def answer(self, x: Tensor) -> Tensor:
        return self.inner[0](x)


@pytest.mark.parametrize("how", ["closure", "partial", "method", "object", "method of an object", "compiled"])
def test_the_module_behind_a_function_is_found(how: str) -> None:
    torch.manual_seed(0)
    core = Core()
    compiled = nn.Module()  # what torch.compile returns, but for the compiling
    compiled._orig_mod = core
    model = {
        "closure": lambda x: core(x),
        "partial": functools.partial(lambda scale, x: scale * core(x), 1.0),
        "method": core.forward,
        "object": Keeper(core),
        "method of an object": Keeper(core).answer,
        "compiled": compiled,
    }[how]
    core.train()
    patient = Patient(Given(model, **SIZES))
    assert patient.module is core
    tokens = patient.tokens(2)
    torch.testing.assert_close(patient.logits(tokens), patient.logits(tokens))  # no dropout: it is in evaluation
    assert core.training
    with patient.mode(training=False):
        assert not core.dropout.training
    before = core.head.weight.detach().clone()

    def spoil(patient: Patient) -> doctor.Finding:
        core.head.weight.data.zero_()
        return doctor.healthy("spoilt")

    doctor.examine(model, **SIZES, only=[doctor.check("spoil", "", reference="")(spoil)])
    assert core.head.weight.equal(before)


def test_a_model_without_modules_has_modes_and_weights() -> None:
    class Layer:
        def __init__(self, *sizes: int) -> None:
            self.weight = torch.randn(*sizes).requires_grad_()

        def __call__(self, x: Tensor) -> Tensor:
            return x @ self.weight

    class Noise:
        training = True

        def __init__(self) -> None:
            self.training = True

        def __call__(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, self.training)

    class Model:
        def __init__(self) -> None:
            self.table = torch.randn(VOCABULARY, 6).requires_grad_()
            self.layers = [Layer(6 * CONTEXT, 16), Noise(), Layer(16, VOCABULARY)]

        def __call__(self, x: Tensor) -> Tensor:
            h = self.table[x].flatten(1)
            for layer in self.layers:
                h = layer(h)
            return h

    model = Model()
    patient = Patient(Given(model, **SIZES))
    assert patient.form == Form(axes="BV", full=True)
    assert patient.size == VOCABULARY * 6 + 6 * CONTEXT * 16 + 16 * VOCABULARY
    tokens = patient.tokens(2)
    assert patient.logits(tokens).equal(patient.logits(tokens))
    assert model.layers[1].training
    before = [one.detach().clone() for one in loose_tensors(model).values()]
    report = doctor.examine(model, **SIZES)
    assert report["past"].verdict == report["order"].verdict == "healthy", report.findings
    assert all(one.equal(other) for one, other in zip(loose_tensors(model).values(), before, strict=True))
    with pytest.raises(NotExamined, match="function"):
        patient.module  # noqa: B018


# Modes


class Overridden(Core):
    """eval() is something else, and so is train()."""

    def eval(self) -> float:  # type: ignore[override]
        raise RuntimeError("a validation set is needed")

    def train(self, data: list[Tensor], epochs: int) -> None:  # type: ignore[override]
        raise AssertionError("never")


class DoesNothing(Core):
    def eval(self) -> DoesNothing:
        return self


def test_modes_are_the_person_s_own() -> None:
    model = Overridden()
    patient = Patient(Given(model, **SIZES))
    with patient.mode(training=False):
        assert not any(one.training for one in model.modules())
    assert all(one.training for one in model.modules())
    patient = Patient(Given(DoesNothing(), **SIZES))
    with patient.mode(training=False):
        assert patient.module.training  # as it is for the person
    tokens = patient.tokens(2)
    assert not patient.logits(tokens).equal(patient.logits(tokens))  # so its dropout is on
    with patient.steady():
        assert patient.logits(tokens).equal(patient.logits(tokens))
    assert doctor.examine(DoesNothing(), **SIZES, only=["future", "past", "order", "batch"]).sick == []


def test_mixed_modes_come_back() -> None:
    model = Core().eval()
    model.dropout.train()
    doctor.examine(model, **SIZES, only=["future"])
    assert [one.training for one in (model, model.dropout, model.head)] == [False, True, False]


# State


class Remembers(nn.Module):
    """A recurrent model that goes on where it was, counts its calls and draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH)
        self.rnn = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.state: Tensor | None = None
        self.seen: list[int] = []
        self.register_buffer("calls", torch.tensor(0))
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(x))
        state = self.state if self.state is not None and self.state.shape[1] == len(x) else None
        h, state = self.rnn(self.token(x), state)
        self.state = state.detach() + torch.rand(1, generator=self.generator)
        return self.head(h)


def test_what_is_carried_from_call_to_call_is_put_back() -> None:
    model = Remembers()
    model(torch.zeros(2, 3, dtype=torch.long))
    state, drawn = model.state, model.generator.get_state()
    patient = Patient(Given(model, **SIZES))
    assert patient.remembers
    with patient.steady():
        tokens = patient.tokens(2)
        assert patient.logits(tokens).equal(patient.logits(tokens))
    assert doctor.examine(model, **SIZES, only=["future", "past", "order", "batch"]).sick == []
    assert model.state is state
    assert model.calls == 1
    assert model.seen == [2]
    assert model.generator.get_state().equal(drawn)


# Nothing is left behind


class Everything(Core):
    """Holds all kinds of things that can be spoilt."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(3, 3).tril())
        self.register_buffer("table", torch.zeros(3), persistent=False)
        self.loose = torch.tensor([1.0, -0.0, float("nan")])
        self.listed = [torch.ones(2), [torch.zeros(2, requires_grad=True)]]
        self.named = {"a": torch.tensor([1.0, -0.0]), "n": 1}
        self.hidden = [nn.Linear(2, 2)]
        self.held = types.SimpleNamespace(tensor=torch.ones(2))
        self.own = Keeper(nn.Linear(2, 2))
        self.tied = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.tied.weight = self.token.weight
        self.shared = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.shared.weight.data = self.head.weight.data  # two parameters, one memory
        self.drawn = [torch.Generator().manual_seed(1), np.random.default_rng(1), random.Random(1)]
        self.count = 1


def spoil(patient: Patient) -> doctor.Finding:
    """Break all that can be broken, and fail."""
    model = patient.module
    assert isinstance(model, Everything)
    print("never seen")
    model.q.weight.data.add_(1)
    model.k.weight.data = torch.zeros(2, 2)
    model.v.half()
    model.head.weight.data = model.head.weight.data * 2
    with torch.no_grad():
        model.loose[1], model.listed[0][0], model.named["a"][1] = 0.0, 7, 0.0
        model.listed[1][0].fill_(3)
        model.place.weight.fill_(float("nan"))
        model.hidden[0].weight.zero_()
        model.own.inner[0].weight.zero_()
    model.q.weight.requires_grad_(False)
    model.q.bias.grad = torch.ones_like(model.q.bias)
    model.head.bias.grad.add_(1)
    model.k.bias.grad = None
    model.mask, model.table = torch.zeros(1), None
    model.register_buffer("more", torch.zeros(1))
    model.named["b"] = model.named.pop("n")
    model.listed.append(1)
    model.count, model.added = 5, 6
    del model.dropout
    model.extra = nn.Linear(2, 2)
    model.q.register_forward_hook(lambda *_: None)
    model.k._forward_hooks.clear()
    model.head.weight.register_hook(lambda gradient: gradient * 2)
    nn.utils.parametrizations.weight_norm(model.tied)
    model.eval()
    model.drawn[0].seed(), model.drawn[1].random(), model.drawn[2].random()
    torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    logging.disable(logging.CRITICAL)
    raise RuntimeError("in the middle of it")


def picture(model: Everything) -> dict[str, Any]:
    """All that can be compared: values bit for bit, and which objects they are."""
    bits: dict[str, Any] = {}
    for name, thing in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        bits[name] = (id(thing), thing.data_ptr(), thing.dtype, thing.detach().clone().view(torch.int32).tolist())
        bits[f"{name} grad"] = None if thing.grad is None else (id(thing.grad), thing.grad.tolist())
        bits[f"{name} wanted"] = thing.requires_grad
        bits[f"{name} hooks"] = list((thing._backward_hooks or {}).values())
    for name, module in model.named_modules():
        bits[f"{name} mode"] = (id(module), type(module), module.training, sorted(vars(module)))
        bits[f"{name} hooks"] = list(module._forward_hooks.values())
    loose = [model.loose, model.listed[0], model.listed[1][0], model.named["a"], model.hidden[0].weight]
    bits["loose"] = [(id(one), one.detach().clone().view(torch.int32).tolist()) for one in loose]
    bits["own"] = model.own.inner[0].weight.tolist()
    bits["plain"] = (len(model.listed), dict(model.named), model.count, hasattr(model, "added"))
    bits["drawn"] = (
        model.drawn[0].get_state().tolist(),
        str(model.drawn[1].bit_generator.state),
        model.drawn[2].getstate(),
    )
    bits["global"] = (
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        logging.root.manager.disable,
    )
    return bits


def test_all_that_was_spoilt_is_put_back_also_when_a_check_fails(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    model = Everything()
    model.k.register_forward_hook(lambda *_: None)
    model.k.weight.register_hook(lambda gradient: gradient)
    model(torch.zeros(2, 4, dtype=torch.long)).sum().backward()
    model.v.requires_grad_(False)
    before = picture(model)
    worst = doctor.check("worst", "", reference="")(spoil)
    report = doctor.examine(model, **SIZES, only=[worst, *checks.ALL, worst])
    assert "in the middle of it" in report["worst"].measured
    after = picture(model)
    assert [name for name in before if before[name] != after[name]] == []
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    model(torch.zeros(2, 4, dtype=torch.long)).sum().backward()  # and it goes on


def test_what_belongs_to_a_training_is_put_back() -> None:
    """An optimizer, a schedule and what a training step closes over go on as if nobody had looked."""

    def training() -> tuple[Core, Any, Callable[[], float]]:
        torch.manual_seed(2)
        model = Core()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        generator = torch.Generator().manual_seed(4)
        count, losses = 0, [0.0]

        def step() -> float:
            nonlocal count
            count += 1
            tokens = torch.randint(VOCABULARY, (4, CONTEXT), generator=generator)
            loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()) * count
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            return losses[-2] + losses[-1]

        return model, optimizer, step

    def trains(patient: Patient) -> doctor.Finding:
        assert patient.given.train_step is not None
        for _ in range(3):
            patient.given.train_step()
        patient.given.optimizer.param_groups[0]["lr"] = 7
        raise RuntimeError

    model, optimizer, step = training()
    twin, other, same = training()
    for once in (step, same):
        torch.manual_seed(3)
        once()
    kept = doctor.check("trains", "", reference="")(trains)
    doctor.examine(Given(model, **SIZES, optimizer=optimizer, train_step=step), only=[kept, kept])
    torch.manual_seed(3)
    went = [step() for _ in range(3)]
    torch.manual_seed(3)
    assert went == [same() for _ in range(3)]
    assert optimizer.param_groups[0]["lr"] == other.param_groups[0]["lr"]
    assert all(one.equal(another) for one, another in zip(model.parameters(), twin.parameters(), strict=True))


# Weights that hide, and chance


def test_stirring_moves_what_is_nearly_zero_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = Core()
    nn.init.zeros_(model.head.weight)
    nn.init.constant_(model.head.bias, 1e-6)
    model.mask = nn.Parameter(torch.ones(4, 4).tril())
    model.limit = nn.Parameter(torch.full((3, 3), -1e9))
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    patient = Patient(Given(model, **SIZES))
    tokens, chance = patient.tokens(2), torch.get_rng_state()
    assert patient.logits(tokens).std() < 1e-5
    with patient.stirred() as names:
        assert names == ["head.weight", "head.bias"]
        assert patient.logits(tokens).std() > 0.01
        assert model.q.weight.equal(before["q.weight"])
    with patient.stirred(everything=True) as names:
        assert set(names) == {name for name in before if name.endswith("weight")} | {"head.bias"}
        assert model.mask.equal(before["mask"])
        assert model.q.weight.std().item() == pytest.approx(WIDTH**-0.5, rel=0.3)
    assert all(one.equal(before[name]) for name, one in model.named_parameters())
    assert torch.get_rng_state().equal(chance)
    assert patient.logits(tokens).std() < 1e-5


def test_half_precision_is_measured_in_full_and_comes_back() -> None:
    model = Core().bfloat16()
    before = [one.data_ptr() for one in model.parameters()]
    patient = Patient(Given(model, **SIZES))
    tokens = patient.tokens(2)
    with patient.exposed():
        assert model.head.weight.dtype == torch.float32
        assert patient.logits(tokens).isfinite().all()
    assert [one.data_ptr() for one in model.parameters()] == before
    assert model.head.weight.dtype == torch.bfloat16


# What it is made of


def test_what_torch_does_not_know_of_is_found() -> None:
    model = Everything()
    assert list(hidden_modules(model)) == ["hidden[0]", "own.inner[0]"]
    assert {"loose", "listed[0]", "listed[1][0]", "named['a']"} <= set(loose_tensors(model))
    assert "mask" not in loose_tensors(model)
    assert len(all_modules(model)) == len(list(model.modules())) + 2


@pytest.mark.parametrize(
    ("shape", "time_first"),
    [
        ((2, 5, 3), False),
        ((5, 2, 3), True),
        ((10, 3), False),
        ((10, 3), True),
        ((2, 3, 5), False),
        ((2, 4, 5, 3), False),
    ],
)
def test_outputs_are_laid_out_by_row_and_position(shape: tuple[int, ...], time_first: bool) -> None:
    rows, length = 2, 5
    tensor = torch.zeros(shape)
    for row in range(rows):
        for place in range(length):
            index: Any
            if len(shape) == 2:
                index = place * rows + row if time_first else row * length + place
            else:
                index = (place, row) if shape[0] == length else tuple(
                    {rows: row, length: place}.get(size, slice(None)) if axis != 1 or size == length else slice(None)
                    for axis, size in enumerate(shape)
                )  # fmt: skip
            tensor[index] = 10 * row + place
    view = laid_out(tensor, rows, length, time_first)
    assert view is not None
    assert view.shape[:2] == (rows, length)
    wanted = torch.tensor([[10.0 * row + place for place in range(length)] for row in range(rows)])
    assert view.flatten(2).amax(-1).equal(wanted)
    assert view.flatten(2).amin(-1).equal(wanted)


def test_what_cannot_be_laid_out_is_not() -> None:
    assert laid_out(torch.zeros(2, 4, 5, 5), 2, 5) is None  # scores
    assert laid_out(torch.zeros(7, 3), 2, 5) is None
    assert laid_out(torch.zeros(2, 5).long(), 2, 5) is None
    pooled = laid_out(torch.zeros(2, 7), 2, 5)
    assert pooled is not None
    assert pooled.shape == (2, 1, 7)


# Sizes


def test_sizes_are_seen_where_nobody_states_them() -> None:
    patient = Patient(Given(Core()))  # its table of positions comes first, and is shorter
    assert (patient.vocab_size, patient.context) == (VOCABULARY, CONTEXT)
    assert patient.stated_context is None
    assert patient.end is not None
    assert "index out of range" in patient.end

    class Named(Core):
        block_size = 6

    assert Patient(Given(Named())).context == 6

    class Said(Core):
        config = types.SimpleNamespace(n_positions=7, vocab_size=VOCABULARY)

    assert Patient(Given(Said())).context == 7
    assert Patient(Given(Remembers())).context == 64  # no end


def test_a_context_that_is_shorter_than_asked() -> None:
    patient = Patient(Given(Core(), vocab_size=VOCABULARY, context=30))
    assert (patient.context, patient.stated_context) == (CONTEXT, 30)
    assert any("rows of 30 fail" in note for note in patient.notes)


def test_a_vocabulary_that_is_rounded_up_is_noted() -> None:
    patient = Patient(Given(Core(vocabulary=16), vocab_size=VOCABULARY, context=CONTEXT))
    assert patient.failure is None
    assert "logits have 16 entries for 11 tokens" in patient.notes


# What cannot be examined


def failing(problem: BaseException) -> Any:
    def forward(core: Core, x: Tensor) -> Tensor:
        raise problem

    return OneArgument(forward)


class WantsMask(Wrapped):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.core(x)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (failing(ValueError("no good")), "tokens .*: ValueError: no good"),
        (failing(SystemExit(1)), "ended the program"),
        (OneArgument(lambda core, x: None), "returned nothing"),
        (OneArgument(lambda core, x: core.token(x % 9)), r"a tensor \(3, 7, 12\), in which no logits of 13 tokens"),
        (WantsMask(None), "missing 1 required .* 'mask'. Give a function"),  # type: ignore[arg-type]
        (OneArgument(lambda core, x: core(x.new_full(x.shape, 99))), "is vocab_size right"),
    ],
)
def test_a_model_that_cannot_be_called_is_not_examined(model: Any, reason: str) -> None:
    report = doctor.examine(model, vocab_size=13, context=CONTEXT, only=["future", "batch"])
    assert {finding.verdict for finding in report.findings} == {"not examined"}
    assert re.search(reason, report["future"].measured), report["future"].measured


def test_what_is_no_patient_is_refused() -> None:
    with pytest.raises(ConfigError, match="Core is a class: give an instance"):
        doctor.examine(Core, **SIZES)
    with pytest.raises(ConfigError, match="cannot be called"):
        Given(model=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Give it"):
        doctor.examine(lambda x: x)
    with pytest.raises(ConfigError, match="vocab_size = True"):
        Given(Core(), vocab_size=True)
    with pytest.raises(ConfigError, match="no shape yet"):
        doctor.examine(nn.Sequential(nn.Embedding(5, 4), nn.LazyLinear(5)))
    assert doctor.examine(Core(), vocab_size=1, context=4, only=["future"])["future"].verdict == "not examined"


def test_batches_come_in_several_kinds() -> None:
    x = np.arange(6).reshape(2, 3)
    for batch in ((x, x), {"input_ids": torch.from_numpy(x), "labels": x}, [torch.from_numpy(x), x, 0]):
        inputs, targets = Given(Core(), batches=[batch]).batch()
        assert inputs.tolist() == targets.tolist() == x.tolist()
    for wrong in ([], [torch.zeros(2, 3)], [{"x": x}]):
        with pytest.raises(ConfigError, match="not \\(inputs, targets\\)"):
            Given(Core(), batches=wrong).batch()
