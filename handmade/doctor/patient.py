"""The model under examination, whatever it is called with and whatever it returns, seen in one form.

B rows, T positions, V vocabulary, C features.
"""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from handmade.doctor.anatomy import all_modules, every_parameter, loose_tensors
from handmade.doctor.findings import NotExamined
from handmade.doctor.given import Given
from handmade.doctor.snapshot import generators, set_generators, undisturbed
from handmade.errors import ConfigError

CONTEXT_NAMES = (
    "context", "block_size", "context_length", "context_size", "max_seq_len", "max_len", "seq_len", "n_positions",
    "n_ctx", "max_position_embeddings",
)  # fmt: skip
VOCABULARY_NAMES = ("vocab_size", "n_vocab", "vocabulary_size", "padded_vocab_size")
USUAL_CONTEXT = 64
MOST_CONTEXT = 64
"""No examination needs longer rows than this, except at the context's end."""


@dataclass(frozen=True)
class Form:
    """How a patient is called, and how what comes back is read."""

    targets: bool = False
    """It wants targets as the second argument."""
    single: bool = False
    """It takes one sequence (T,), without a batch."""
    time_first: bool = False
    """Tokens are (T, B)."""
    axes: str = "BTV"
    """Axes of the logits: "BTV", "BVT", "TBV", "NV" (B and T flattened), "BV" (the last position alone)."""
    full: bool = False
    """Rows must have all `context` positions."""
    kind: str = "logits"
    """"logits", "log-probabilities" or "probabilities"."""

    def describe(self) -> list[str]:
        """What is unusual, for a person."""
        said = []
        if self.targets:
            said.append("forward is called with targets")
        if self.single:
            said.append("forward takes one sequence without a batch")
        if self.time_first:
            said.append("tokens go in as (T, B)")
        if self.axes not in ("BTV", "TBV"):
            said.append({"BVT": "logits come as (B, V, T)", "NV": "logits come as (B * T, V)",
                         "BV": "logits come for the last position alone"}[self.axes])  # fmt: skip
        if self.full:
            said.append("rows always have the full context")
        if self.kind != "logits":
            said.append(f"forward returns {self.kind}")
        return said


class Patient:
    """What the checks see.

        logits = patient.logits(tokens)         (B, T, V) float, in evaluation mode, no gradients
        patient.tokens(2)                       random rows, from a generator of the patient's own

    `given` has all that the person gave. A check changes what it likes: `examine` puts everything back after each.
    """

    def __init__(self, given: Given, name: str = "", seed: int = 0) -> None:
        self.given, self.name = given, name
        self.generator = torch.Generator().manual_seed(seed)
        self.notes: list[str] = []
        self.failure: str | None = None  # why the model cannot be called
        self.form = Form()
        self._steady = False
        if given.model is None:
            self.failure = "no model was given"
            return
        self.vocab_size, self.context = self._sizes()
        with undisturbed(self.model):
            self._meet()

    # What it is made of

    @property
    def model(self) -> Any:
        """The model. Raises NotExamined where there is none, or where it cannot be called at all."""
        if self.given.model is None:
            raise NotExamined("no model was given")
        return self.given.model

    @property
    def module(self) -> nn.Module:
        """The model as a torch module. Raises NotExamined for a plain function."""
        if not isinstance(self.model, nn.Module):
            raise NotExamined("the model is a function: its inside cannot be seen")
        return self.model

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Path -> module, hidden ones too."""
        return all_modules(self.given.model)

    @property
    def device(self) -> torch.device:
        for module in self.modules.values():
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                return tensor.device
        return torch.device("cpu")

    def require(self, *names: str) -> None:
        """Raises NotExamined unless the person gave all of these."""
        missing = [name for name in names if getattr(self.given, name) is None]
        if missing:
            raise NotExamined(f"not given: {', '.join(missing)}")

    def expects(self, name: str) -> Any:
        """What the person declared, or None."""
        return self.given.expect.get(name)

    @property
    def untrained(self) -> bool:
        return not self.given.trained

    # How long, and of what, its rows are

    @property
    def length(self) -> int:
        """Positions of the rows that checks work with: short, unless the model insists on its full context."""
        return self.context if self.form.full else min(self.context, MOST_CONTEXT)

    def tokens(self, rows: int = 2, length: int | None = None) -> Tensor:
        """Random token ids, no padding among them. Shapes: -> (rows, length) int64."""
        drawn = torch.randint(self.vocab_size, (rows, length or self.length), generator=self.generator)
        if self.given.padding is not None:
            drawn[drawn == self.given.padding] = (self.given.padding + 1) % self.vocab_size
        return drawn.to(self.device)

    def other(self, tokens: Tensor) -> Tensor:
        """Different tokens everywhere. Shapes: as given."""
        shift = torch.randint(1, self.vocab_size, tokens.shape, generator=self.generator).to(tokens.device)
        changed = (tokens + shift) % self.vocab_size
        if self.given.padding is not None and self.vocab_size > 2:
            for _ in range(2):
                bad = (changed == self.given.padding) | (changed == tokens)
                changed = torch.where(bad, (changed + 1) % self.vocab_size, changed)
        return changed

    # How it is called

    def logits(self, tokens: Tensor, **options: Any) -> Tensor:
        """The logits of rows of tokens in evaluation mode, without gradients: (B, T, V) float32, or float64 where the
        model has it; T is 1 for a model that returns the last position alone. Log-probabilities are logits as well;
        probabilities come as their logarithm. `options` go to forward."""
        with torch.no_grad(), self.mode(training=False):
            return self.run(tokens, **options)

    def run(self, tokens: Tensor, **options: Any) -> Tensor:
        """The same in the mode that the model is in, with gradients where they are on."""
        read = self.read(self.call(tokens, **options), tokens.shape)
        read = read if read.dtype == torch.float64 else read.float()
        return read.clamp_min(1e-30).log() if self.form.kind == "probabilities" else read

    def call(self, tokens: Tensor, targets: Tensor | None = None, **options: Any) -> Any:
        """What forward returns. Shapes: (B, T) -> a thing, or of a model without a batch a list of B things."""
        if self.form.single:
            return [self._call(row, None if targets is None else targets[i], options) for i, row in enumerate(tokens)]
        if self.form.time_first:
            tokens, targets = tokens.T, None if targets is None else targets.T
        return self._call(tokens, targets, options)

    def _call(self, tokens: Tensor, targets: Tensor | None, options: Mapping[str, Any]) -> Any:
        if self._steady:
            seed_everything(STEADY)
        if targets is None and self.form.targets:
            targets = tokens.roll(-1, dims=0 if self.form.time_first else -1)
        return self.model(tokens, **options) if targets is None else self.model(tokens, targets, **options)

    def read(self, returned: Any, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Logits (B, T, V) out of what forward returned for rows of `shape` (B, T)."""
        rows, length = shape
        if self.form.single:
            return torch.cat([self._read(one, 1, length) for one in returned])
        return self._read(returned, rows, length)

    def _read(self, returned: Any, rows: int, length: int) -> Tensor:
        logits = logits_in(returned, self.vocab_size)
        axes = self.form.axes
        if axes == "TBV":
            return logits.transpose(0, 1)
        if axes == "BVT":
            return logits.transpose(1, 2)
        if axes == "NV":
            return logits.view(rows, length, -1)
        if axes == "BV":
            return logits.view(rows, 1, -1)
        return logits if logits.dim() == 3 else logits.view(rows, length, -1)

    @property
    def every_position(self) -> bool:
        """Whether it has logits for every position."""
        return self.form.axes != "BV"

    @contextlib.contextmanager
    def mode(self, training: bool) -> Iterator[None]:
        """The whole model in a mode: by its own train() and eval(), which are the person's. Afterwards every module is
        in the mode it was in."""
        before = [(one, one.training) for one in self.modules.values()]
        if isinstance(self.given.model, nn.Module):
            self.given.model.train(training)
        try:
            yield
        finally:
            for one, was in before:
                one.training = was

    @contextlib.contextmanager
    def outputs(self) -> Iterator[dict[str, Any]]:
        """Inside, path -> what each module last returned; modules that run several times keep the last."""
        found: dict[str, Any] = {}
        handles = []
        for path, module in self.modules.items():

            def keep(_: nn.Module, __: Any, output: Any, path: str = path) -> None:
                found[path] = output

            handles.append(module.register_forward_hook(keep))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def steady(self) -> Iterator[None]:
        """Inside, every call of the model begins with all global generators at one place: two calls with tokens of one
        shape draw the same dropout, also where it is on in evaluation, and differ by their tokens alone."""
        before, self._steady = generators(), True
        try:
            yield
        finally:
            self._steady = False
            set_generators(before)

    @contextlib.contextmanager
    def stirred(self, everything: bool = False) -> Iterator[list[str]]:
        """Inside, parameters that are all zero (or nearly: none above 0.001) are small and random, so that nothing is
        hidden behind a projection or a gain that begins at zero. Gives the names of those that were drawn.

        A matrix is drawn from a normal distribution with deviation 1 / sqrt(size of its last axis), anything with fewer
        axes with 0.1. With `everything`, all matrices are drawn so, whatever they were: then who sees whom is measured
        alike in a model at its beginning, a trained one and one with saturated scores. Parameters that hold two
        values alone (a mask kept as a parameter) and frozen ones beside trained ones stay as they are. The weights are
        back afterwards, bit for bit; no global generator is drawn from.
        """
        parameters = weights_of(self.given.model)
        drawn = {
            name: one for name, one in parameters.items()
            if one.detach().abs().max() <= NEARLY_ZERO or (everything and one.dim() >= 2 and not two_valued(one))
        }  # fmt: skip
        before = {name: one.detach().clone() for name, one in drawn.items()}
        try:
            for one in drawn.values():
                deviation = one.shape[-1] ** -0.5 if one.dim() >= 2 else 0.1
                noise = torch.randn(one.shape, generator=self.generator) * deviation
                one.data.copy_(noise)  # .data: the count of changes that autograd keeps is the person's
            yield list(drawn)
        finally:
            for name, one in drawn.items():
                one.data.copy_(before[name])

    def fresh(self) -> Any:
        """Another instance, with weights drawn anew. Raises NotExamined where nobody said how to make one."""
        if self.given.build is None:
            raise NotExamined("nothing was given that builds a second instance (`build`)")
        return self.given.build()

    # Getting to know it

    def _sizes(self) -> tuple[int, int]:
        vocabulary = self.given.vocab_size or self._guess(VOCABULARY_NAMES) or self._embedding_rows()
        if vocabulary is None:
            raise ConfigError("vocab_size: it cannot be seen from the model how many tokens there are. Give it.")
        context = self.given.context or self._guess(CONTEXT_NAMES)
        if context is None:
            context = USUAL_CONTEXT
            self.notes.append(f"context is taken as {context}: the model does not say")
        return vocabulary, context

    def _guess(self, names: tuple[str, ...]) -> int | None:
        model = self.given.model
        for owner in (model, getattr(model, "config", None), getattr(model, "cfg", None), getattr(model, "args", None)):
            for name in names:
                value = owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return value
        return None

    def _embedding_rows(self) -> int | None:
        for module in self.modules.values():
            weight = getattr(module, "weight", None)
            if type(module).__name__.lower().endswith("embedding") and torch.is_tensor(weight) and weight.dim() == 2:
                return int(weight.shape[0])
        return None

    def _meet(self) -> None:
        """Find the form in which the model can be called, or why there is none."""
        failures: list[str] = []
        rows = 3
        for full in (False, True):
            lengths = [self.context] if full else [max(1, min(self.context - 1, 7)), *shorter(self.context)]
            for length in lengths:
                for form in (Form(), Form(targets=True), Form(single=True), Form(single=True, targets=True)):
                    found = self._try(form, rows, length, failures)
                    if found is not None:
                        self._settle(found, full and length == self.context and length > 1, length)
                        return
        self.failure = "it could not be called with token ids: " + failures[0] if failures else "it returned nothing"

    def _try(self, form: Form, rows: int, length: int, failures: list[str]) -> Form | None:
        tokens = self.tokens(rows, length)
        self.form = form
        try:
            with torch.no_grad(), self.mode(training=False):
                returned = self.call(tokens)
            one = returned[0] if form.single else returned
            logits = logits_in(one, self.vocab_size)
        except Exception as problem:
            said = str(problem).strip().splitlines()
            shape = f"({length},)" if form.single else f"({rows}, {length})"
            failures.append(f"tokens {shape}: {type(problem).__name__}: {said[0] if said else ''}")
            return None
        axes = axes_of(logits.shape, 1 if form.single else rows, length, self.vocab_size)
        if axes is None:
            failures.append(f"tokens ({rows}, {length}) gave {describe(one)}, in which no logits can be seen")
            return None
        if axes == "BV" and length > 1 and not form.targets and self._takes_targets():
            more = self._try(Form(targets=True, single=form.single), rows, length, failures)
            if more is not None and more.axes != "BV":
                return more
            self.form = form
        kind = kind_of(logits.float(), self.vocab_size, axes)
        return Form(form.targets, form.single, form.time_first, axes, form.full, kind)

    def _takes_targets(self) -> bool:
        forward = self.model.forward if isinstance(self.model, nn.Module) else self.model
        try:
            names = [p for p in inspect.signature(forward).parameters.values() if p.kind != p.VAR_KEYWORD]
        except (TypeError, ValueError):
            return False
        return len(names) > 1 and any("target" in p.name or "label" in p.name or p.name == "y" for p in names[1:])

    def _settle(self, form: Form, full: bool, length: int) -> None:
        self.form = Form(form.targets, form.single, form.time_first, form.axes, full, form.kind)
        if form.axes == "BTV" and not form.single and length > 1:
            self._find_time()
        if not full:
            self._find_context()
        self.notes += self.form.describe()

    def _find_time(self) -> None:
        """Whether (B, T) is taken as (T, B): then what a row says depends on other rows, and on no other place of its
        own."""
        tokens = self.tokens(3, min(5, self.length))
        row, place = 1, tokens.shape[1] // 2
        changed = tokens.clone()
        changed[row, place] = self.other(tokens)[row, place]
        try:
            moved = (self.logits(changed) - self.logits(tokens)).abs().amax(-1) > 0
        except Exception:
            return
        moved[row, place] = False
        if moved[:, place].any() and not moved[row].any():
            self.form = Form(self.form.targets, False, True, "TBV", self.form.full, self.form.kind)

    def _find_context(self) -> None:
        """Shorten the context to what the model can do."""
        if self.given.context is not None:
            return
        for length in (self.context, *shorter(self.context)):
            try:
                self.logits(self.tokens(1, length))
            except Exception:
                continue
            if length < self.context:
                self.notes.append(f"context is taken as {length}: longer rows fail")
                self.context = length
            return


NEARLY_ZERO = 1e-3
"""A parameter with no entry above this hides what is behind it: an output projection or a gain that begins at zero."""
STEADY = 20200101


def seed_everything(seed: int) -> None:
    """Put all global generators at one place."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (whoever draws from the old one is held still too)
    torch.manual_seed(seed)


def weights_of(model: Any) -> dict[str, Tensor]:
    """Path -> tensor that is learnt: parameters, and tensors in plain attributes that want gradients. Of a model that
    is frozen as a whole, all parameters."""
    found: dict[str, Tensor] = {**every_parameter(model), **loose_tensors(model)}
    found = {name: one for name, one in found.items() if one.is_floating_point() and one.is_leaf and one.numel()}
    learnt = {name: one for name, one in found.items() if one.requires_grad}
    return learnt or {name: one for name, one in found.items() if isinstance(one, nn.Parameter)}


def two_valued(tensor: Tensor) -> bool:
    """Whether a tensor holds two values alone, as a mask does: 0 and 1, or 0 and minus infinity."""
    flat = tensor.detach().flatten()
    return bool(((flat == flat.min()) | (flat == flat.max())).all()) and bool(flat.min() != flat.max())


def shorter(context: int) -> list[int]:
    """Contexts to try when one fails."""
    return [length for length in (32, 16, 8, 4, 2) if length < context]


def logits_in(returned: Any, vocabulary: int) -> Tensor:
    """The logits in what a forward returned: a tensor, the first fitting one of a tuple or mapping, or `.logits`.
    Raises TypeError where there are none."""
    if torch.is_tensor(returned):
        return returned
    for name in ("logits", "output", "prediction"):
        found = returned.get(name) if isinstance(returned, Mapping) else getattr(returned, name, None)
        if torch.is_tensor(found):
            return found
    several = returned.values() if isinstance(returned, Mapping) else returned
    if isinstance(several, (list, tuple)) or isinstance(returned, Mapping):
        tensors = [one for one in several if torch.is_tensor(one) and one.dim() >= 1]
        for tensor in tensors:
            if vocabulary in tensor.shape:
                return tensor
        if tensors:
            return tensors[0]
    raise TypeError(f"it returned {describe(returned)}")


def axes_of(shape: torch.Size, rows: int, length: int, vocabulary: int) -> str | None:
    """Which axes logits have, by their sizes."""
    sizes = tuple(shape)
    known: dict[str, tuple[int, ...]] = {
        "BTV": (rows, length, vocabulary), "BVT": (rows, vocabulary, length), "TBV": (length, rows, vocabulary),
        "NV": (rows * length, vocabulary), "BV": (rows, vocabulary),
    }  # fmt: skip
    if sizes == (rows, 1, vocabulary) and length > 1:
        return "BV"
    if rows == 1:  # one sequence: a batch of one may be left out
        known["TV"] = (length, vocabulary)
        known["V"] = (vocabulary,)
    for name, expected in known.items():
        if sizes == expected:
            return {"TV": "BTV" if length > 1 else "BV", "V": "BV"}.get(name, name)
    if len(sizes) == 3 and sizes[:2] == (rows, length) and sizes[2] > vocabulary:
        return "BTV"  # a vocabulary rounded up
    return None


def kind_of(logits: Tensor, vocabulary: int, axes: str) -> str:
    """Whether these are logits, log-probabilities or probabilities."""
    along = 1 if axes == "BVT" else -1
    if not logits.isfinite().all():
        return "logits"
    if (logits >= 0).all() and (logits.sum(along) - 1).abs().max() < 1e-3:
        return "probabilities"
    if (logits <= 1e-6).all() and logits.logsumexp(along).abs().max() < 1e-3:
        return "log-probabilities"
    return "logits"


def describe(thing: Any) -> str:
    """What came back, in a few words."""
    if torch.is_tensor(thing):
        return f"a tensor {tuple(thing.shape)}"
    if isinstance(thing, (list, tuple)):
        return f"a {type(thing).__name__} of {', '.join(describe(one) for one in thing[:4]) or 'nothing'}"
    if isinstance(thing, Mapping):
        return f"a mapping with {', '.join(map(str, list(thing)[:6])) or 'nothing'}"
    return f"a {type(thing).__name__}"
