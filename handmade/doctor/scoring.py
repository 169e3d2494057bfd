"""How a person scores logits, wherever that stands: a loss function, a model that returns its loss, a train step.

Each is called with made-up logits, and says what it makes of them.

    for route in routes(patient, reach): route.value(logits, targets), route.aligned(make)

B rows, T positions, V vocabulary. `make`: tokens (B, T) -> logits (B, T, V).
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from unittest import mock

import torch
from torch import Tensor, nn

from handmade.doctor.findings import Finding, NotExamined, worst_first
from handmade.doctor.given import INPUTS, TARGETS, parts_of
from handmade.doctor.patient import Patient
from handmade.doctor.puppet import (
    LENGTH,
    MOST_LOGITS,
    Captured,
    Make,
    Puppet,
    Sizes,
    as_kind,
    few_rows,
    loss_in,
    number,
)
from handmade.doctor.reach import Reach, draw, rehearsed, take_step, takes_batch

ROWS = 3
"""Of made-up batches."""
# `left_out` over 10 seeds, V = 5..50,257: 0 for a loss that leaves out what it should; below 5e-3 with a z-loss of 1e-4
# over all places, which is no fault; 0.4 and more for one that counts padding.
COUNTED = 0.02


class Route(Protocol):
    """A way from logits to a loss."""

    name: str
    control: bool
    """Whether the targets can be chosen: what `value` needs."""
    rows: int
    length: int
    """Of the batches that `value` takes."""

    def value(self, logits: Tensor, targets: Tensor) -> float:
        """The loss of logits (B, T, V) against targets (B, T)."""

    def aligned(self, make: Make) -> float:
        """The loss where the model answers the person's own batch with `make(tokens)`."""


class LossRoute:
    """`loss(logits, targets)`. It is tried with (B, T, V), flattened, and (B, V, T)."""

    name, control = "loss", True

    def __init__(self, sizes: Sizes) -> None:
        self.sizes, self.kind = sizes, sizes.form.kind
        self.layout = ""
        self.rows, self.length = ROWS, LENGTH
        shapes: list[tuple[int, int]] = [(ROWS, LENGTH), (ROWS, LENGTH + 1), (ROWS, sizes.context)]
        if sizes.given.batches is not None:
            with contextlib.suppress(Exception):
                own = sizes.batch()[0].shape
                shapes.append((own[0], own[1]))
        shapes.sort(key=lambda shape: shape[1] == sizes.vocabulary)  # then (B, T, V) and (B, V, T) look the same
        problem = ""
        for rows, length in shapes:
            if rows * length * sizes.vocabulary > MOST_LOGITS:
                continue
            targets = torch.randint(sizes.vocabulary, (rows, length), generator=sizes.patient.generator)
            logits = torch.randn(rows, length, sizes.vocabulary, generator=sizes.patient.generator)
            for layout in ("BVT", "BTV", "NV") if sizes.form.axes == "BVT" else ("BTV", "NV", "BVT"):
                self.layout, self.rows, self.length = layout, rows, length
                try:
                    if math.isfinite(self.value(logits.to(sizes.device), targets.to(sizes.device))):
                        return
                except NotExamined as reason:
                    problem = str(reason)
                except Exception as failure:
                    said = str(failure).strip().splitlines()
                    problem = problem or f"{type(failure).__name__}: {said[0] if said else ''}"
        raise NotExamined(f"loss could not be called with logits and targets: {problem}")

    def value(self, logits: Tensor, targets: Tensor) -> float:
        logits = as_kind(logits, self.kind).requires_grad_()
        if self.sizes.form.time_first:
            logits, targets = logits.transpose(0, 1), targets.T
        if self.layout == "NV":
            logits, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
        elif self.layout == "BVT":
            logits = logits.transpose(1, 2)
        assert self.sizes.given.loss is not None
        return number(self.sizes.given.loss(logits, targets), "loss")

    def aligned(self, make: Make) -> float:
        inputs, targets = fewer(self.sizes, *self.sizes.batch())
        return self.value(make(inputs), targets)


def fewer(sizes: Sizes, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """No more rows of a batch than needed. Raises NotExamined where the logits of one are too many."""
    rows = min(len(inputs), max(4, MOST_LOGITS // 16 // (inputs.shape[1] * sizes.vocabulary)))
    if rows * inputs.shape[1] * sizes.vocabulary > MOST_LOGITS:
        raise NotExamined("the logits of one batch are too many to make up")
    return inputs[:rows], targets[:rows]


class ModelRoute:
    """`model(tokens, targets)` that returns a loss."""

    name, control = "the model's own loss", True

    def __init__(self, sizes: Sizes) -> None:
        self.sizes, self.puppet = sizes, Puppet(sizes)
        if not sizes.called or sizes.form.single:
            raise NotExamined("the model returns no loss that could be examined")
        self.keyword = self._keyword()
        self.rows = ROWS
        self.length = sizes.context if sizes.form.full else min(LENGTH, sizes.context)
        self.tokens = sizes.patient.tokens(self.rows, self.length)
        if loss_in(self._call(self.tokens, self.tokens)) is None:
            raise NotExamined("the model returns no loss")
        targets = torch.ones_like(self.tokens)
        low, high = (self.value(skewed(sizes.vocabulary, by)(self.tokens), targets) for by in (0.0, 9.0))
        if math.isclose(low, high, rel_tol=1e-4):
            raise NotExamined("the model's own loss is not taken from the logits that it returns")

    def _keyword(self) -> str:
        model = self.sizes.given.model
        forward = model.forward if isinstance(model, nn.Module) else model
        try:
            names = list(inspect.signature(forward).parameters)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            names = []
        for name in names[1:]:
            if "target" in name.lower() or "label" in name.lower() or name == "y":
                return name
        raise NotExamined("the model takes no targets")

    def _call(self, tokens: Tensor, targets: Tensor, make: Make | None = None) -> Any:
        model = self.sizes.given.model
        assert callable(model)
        with torch.no_grad(), self.sizes.patient.mode(training=False):
            if self.sizes.form.time_first:
                tokens, targets = tokens.T, targets.T
            if make is None:
                return model(tokens, **{self.keyword: targets})
            return self.puppet.inside(model, (tokens,), {self.keyword: targets}, tokens, make)

    def value(self, logits: Tensor, targets: Tensor) -> float:
        return number(self._call(self.sizes.tokens(targets), targets, lambda _: logits), self.name)

    def aligned(self, make: Make) -> float:
        inputs, targets = self.sizes.batch()
        rows = few_rows(inputs)
        return number(self._call(inputs[:rows], targets[:rows], make), self.name)


class StepRoute:
    """`train_step`, as far as its `backward`, with the model's logits made up."""

    name = "train_step"

    def __init__(self, sizes: Sizes, reach: Reach) -> None:
        if not sizes.called or sizes.form.single:
            raise NotExamined("there is no model whose logits could be made up")
        self.sizes, self.reach, self.puppet = sizes, reach, Puppet(sizes)
        self.states = reach.states()
        self.takes = takes_batch(sizes.given)
        self.drawn = draw(sizes.given) if self.takes else None
        self.rows, self.length = ROWS, min(LENGTH, sizes.context)
        self.control = self.takes and rebuilt(self.drawn, None, None) is not None
        low, high = self.aligned(skewed(sizes.vocabulary, 0.0)), self.aligned(skewed(sizes.vocabulary, 9.0))
        if math.isclose(low, high, rel_tol=1e-4):
            raise NotExamined("train_step takes its loss from something else than what the model returns")
        if self.control:
            try:
                self._made_up()
            except Exception:
                self.control = False

    def _made_up(self) -> None:
        """Whether it takes a made-up batch; of its own shape if not of a small one."""
        sizes = self.sizes
        own = tuple(self.sizes.canonical(parts_of(self.drawn)[0]).shape)
        for rows, length in ((self.rows, self.length), own):
            if rows * length * sizes.vocabulary > MOST_LOGITS:
                continue
            self.rows, self.length = rows, length
            with contextlib.suppress(Exception):
                self.value(
                    torch.zeros(rows, length, sizes.vocabulary, device=sizes.device),
                    torch.ones(rows, length, dtype=torch.long, device=sizes.device),
                )
                return
        raise NotExamined("train_step takes no made-up batch")

    def _captured(self, batch: Any, make: Make) -> float:
        def stop(tensors: Any, *_: Any, **__: Any) -> None:
            raise Captured(tensors[0] if isinstance(tensors, (list, tuple)) else tensors)

        self.reach.set_states(self.states)
        spoke = self.puppet.spoke
        with (
            self.puppet.speaking(make),
            mock.patch.object(torch.autograd, "backward", stop),
            mock.patch.object(torch.autograd, "grad", stop),
        ):
            try:
                take_step(self.sizes.given, batch)
            except Captured as captured:
                if self.puppet.spoke == spoke:
                    raise NotExamined("train_step does not call the model that was given") from None
                return number(captured.what, "train_step")
        raise NotExamined("train_step calls no backward")

    def value(self, logits: Tensor, targets: Tensor) -> float:
        tokens = self.sizes.tokens(targets)
        if self.sizes.form.time_first:
            tokens, targets = tokens.T, targets.T
        return self._captured(rebuilt(self.drawn, tokens, targets), lambda _: logits)

    def aligned(self, make: Make) -> float:
        return self._captured(self.drawn, make)


def skewed(vocabulary: int, by: float) -> Make:
    """Logits that like some tokens better, by so much at most."""

    def make(tokens: Tensor) -> Tensor:
        liked = by * (torch.arange(vocabulary, device=tokens.device) % 7 + 1.0) / 7
        return liked.expand(*tokens.shape, vocabulary).clone()

    return make


def rebuilt(drawn: Any, tokens: Tensor | None, targets: Tensor | None) -> Any:
    """A batch like the one drawn with other tokens and targets; None where it has more than these two."""
    if isinstance(drawn, Mapping):
        x, y = ([name for name in names if name in drawn] for names in (INPUTS, TARGETS))
        return {x[0]: tokens, y[0]: targets} if len(drawn) == 2 and len(x) == len(y) == 1 else None
    if isinstance(drawn, (tuple, list)) and len(drawn) == 2 and drawn[0].shape == drawn[1].shape:
        return [tokens, targets] if isinstance(drawn, list) else (tokens, targets)
    return None


def routes(patient: Patient, reach: Reach, *, control: bool = False) -> list[Route]:
    """Every way from logits to a loss that the person gave; with `control`, those to which targets can be given.
    `reach`: what holds the person's functions while they run. Raises NotExamined, with the reasons, where there is
    none."""
    sizes = Sizes(patient)
    found: list[Route] = []
    reasons: list[str] = []
    if patient.given.loss is not None and sizes.vocabulary:
        ways: list[Callable[[], Route]] = [lambda: LossRoute(sizes)]
    else:
        ways = []
    if patient.given.model is not None:
        ways.append(lambda: ModelRoute(sizes))
    if patient.given.train_step is not None and control and not takes_batch(patient.given):
        reasons.append("train_step draws its own targets; give loss, or a train_step that takes a batch")
    elif patient.given.train_step is not None:
        ways.append(lambda: StepRoute(sizes, reach))
    for way in ways:
        try:
            route = way()
            if route.control or not control:
                found.append(route)
            else:
                reasons.append(f"{route.name} takes no made-up targets; give loss")
        except NotExamined as reason:
            reasons.append(str(reason))
        except Exception as problem:
            said = str(problem).strip().splitlines()
            reasons.append(f"it failed: {type(problem).__name__}: {said[0] if said else ''}")
    if not found:
        raise NotExamined("; ".join(reasons) or "neither loss nor train_step was given, and the model returns no loss")
    return found


def across(patient: Patient, examined: Callable[[Route], Finding]) -> Finding:
    """The worst that is found on any way from logits to a loss with targets that can be chosen. Raises NotExamined
    where none could be taken."""
    found, reasons = [], []
    with rehearsed(patient.given) as reach:
        for route in routes(patient, reach, control=True):
            try:
                found.append(examined(route))
            except NotExamined as reason:
                reasons.append(str(reason))
    if not found:
        raise NotExamined("; ".join(reasons))
    return worst_first(found)[0]


def left_out(sizes: Sizes, route: Route, ignored: int) -> float | None:
    """How far the loss moves, over that of uniform logits, when the answers at places with this target change; None
    where it does not take such targets."""
    wanted = torch.full((route.rows, route.length), sizes.token, device=sizes.device)
    first = max(2, route.length // 2)
    wanted[:, first:] = ignored
    logits = torch.zeros(*wanted.shape, sizes.vocabulary, device=sizes.device)
    changed = logits.clone()
    changed[:, first:, sizes.token] = sizes.sure
    try:
        before, after = route.value(logits, wanted), route.value(changed, wanted)
    except Exception:
        return None
    if not (math.isfinite(before) and math.isfinite(after)):
        return None
    return abs(after - before) / max(abs(before), 1e-3)


def marks_of(patient: Patient) -> list[int]:
    """Targets that may say that nothing is scored."""
    given = patient.given
    return [given.ignore_index, *([given.padding] if given.padding is not None else [])]


def marks_in(patient: Patient) -> set[int] | None:
    """Which marks of what is not scored stand in the person's own batches; None where there are none to be seen."""
    given = patient.given
    if given.batches is None:
        return None
    found: set[int] = set()
    with rehearsed(given):
        for _ in range(3):
            _, wanted = Sizes(patient).batch()
            if (wanted == given.ignore_index).any():
                found.add(given.ignore_index)
            if given.padding is not None and wanted.dim() == 2:
                padded = wanted == given.padding
                if (padded[:, 1:] & padded[:, :-1]).any():
                    found.add(given.padding)
    return found
