"""A model that is made to answer what we want, and what is read of a person's loss.

B rows, T positions, V vocabulary. `make`: tokens (B, T) -> logits (B, T, V).
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from handmade.doctor.anatomy import all_modules, every_parameter
from handmade.doctor.findings import NotExamined
from handmade.doctor.given import Given, parts_of
from handmade.doctor.patient import Patient, logits_in
from handmade.doctor.reach import draw, take_step
from handmade.doctor.snapshot import generators, set_generators

Make = Callable[[Tensor], Tensor]
LENGTH = 8
"""Of made-up rows."""
MOST_LOGITS = 1 << 25
"""No more numbers than this are made up at once."""
MOST_WORK = 5_000_000_000
"""Tokens times parameters of one step of the person's: about a second on one core."""
PATIENCE = 1.0
"""Seconds that a person's evaluation may take."""


class TooLong(BaseException):
    """A person's function runs for too long. No Exception: their own `except` must not catch it."""


class Captured(BaseException):
    """What was waited for: the run ends here. No Exception: a person's own `except` must not catch it."""

    def __init__(self, what: Any) -> None:
        super().__init__("captured")
        self.what = what


@contextlib.contextmanager
def hurried(model: Any) -> Iterator[None]:
    """Inside, TooLong is raised at the next call of any part of the model when PATIENCE is over."""
    end = time.thread_time() + PATIENCE

    def look(*_: Any) -> None:
        if time.thread_time() > end:
            raise TooLong

    handles = [one.register_forward_pre_hook(look) for one in all_modules(model).values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Call:
    """How `train_step` first calls the model."""

    places: int
    """How many tokens it is given."""
    training: bool
    """Whether any part of the model is in training mode."""


def first_call(given: Given, batch: Any) -> Call:
    """Run `train_step` as far as its first call of the model. Raises NotExamined where it calls another one, or a
    function."""
    model = given.model

    def note(module: nn.Module, args: Any, options: Any) -> None:
        tokens = next((t for t in (*args, *options.values()) if is_tokens(t)), None)
        places = 0 if tokens is None else tokens.numel()
        raise Captured(Call(places, any(one.training for one in module.modules())))

    if not isinstance(model, nn.Module):
        raise NotExamined("the model is a function: it cannot be seen how it is called")
    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        take_step(given, batch)
    except Captured as captured:
        return captured.what
    finally:
        handle.remove()
    raise NotExamined("train_step does not call the model that was given")


def slow(given: Given, batch: Any) -> str | None:
    """Why a step of the person's takes too long to be taken, or None."""
    places = first_call(given, batch).places
    parameters = sum(one.numel() for one in every_parameter(given.model).values())
    if places * parameters <= MOST_WORK:
        return None
    return f"a step of yours reads {places:,} tokens, which takes too long; a train_step(batch) is given less"


def loss_in(returned: Any) -> Tensor | None:
    """The loss in what came back: a scalar, `.loss`, or the first scalar of a tuple or mapping."""
    if isinstance(returned, float):
        return torch.tensor(returned)
    if torch.is_tensor(returned):
        return returned if returned.numel() == 1 and returned.is_floating_point() else None
    found = returned.get("loss") if isinstance(returned, Mapping) else getattr(returned, "loss", None)
    if found is not None:
        return loss_in(found)
    several = returned.values() if isinstance(returned, Mapping) else returned
    if isinstance(several, (list, tuple)) or isinstance(returned, Mapping):
        return next((one for one in map(loss_in, several) if one is not None), None)
    return None


def number(returned: Any, where: str) -> float:
    """The same as a number. Raises NotExamined where there is none."""
    found = loss_in(returned)
    if found is None:
        raise NotExamined(f"{where} returns no single number")
    return float(found.detach())


def as_kind(logits: Tensor, kind: str) -> Tensor:
    """Made-up logits in the kind that the model returns."""
    if kind == "probabilities":
        return logits.softmax(-1)
    return logits.log_softmax(-1) if kind == "log-probabilities" else logits


class Sizes:
    """What the routes need to know of a patient; it may have no model at all."""

    def __init__(self, patient: Patient) -> None:
        self.patient, self.given = patient, patient.given
        self.called = patient.failure is None
        self._tokens: dict[tuple[int, ...], Tensor] = {}
        self.form = patient.form
        self.vocabulary: int = patient.vocab_size if patient.given.model is not None else patient.given.vocab_size or 0
        self.device = patient.device if patient.given.model is not None else torch.device("cpu")
        self.context: int = patient.context if patient.given.model is not None else patient.given.context or LENGTH

    @property
    def token(self) -> int:
        """A token that is neither padding nor left out."""
        taken = (self.given.padding, self.given.ignore_index)
        return next((token for token in range(1, self.vocabulary) if token not in taken), 0)

    @property
    def sure(self) -> float:
        """The logit with which a token has nine tenths, where the others have 0."""
        return math.log(9.0 * max(1, self.vocabulary - 1))

    def canonical(self, tokens: Tensor) -> Tensor:
        """Tokens as (B, T)."""
        if tokens.dim() == 1:
            return tokens[None]
        return tokens.T if self.form.time_first else tokens

    def tokens(self, targets: Tensor) -> Tensor:
        """Inputs for made-up targets, the same for all of one shape; padding where nothing is scored, since a mask may
        be made from either."""
        shape = tuple(targets.shape)
        if shape not in self._tokens:
            self._tokens[shape] = self.patient.tokens(*shape)
        padding = self.given.padding
        if padding is None:
            return self._tokens[shape]
        unscored = (targets == padding) | (targets == self.given.ignore_index)
        return self._tokens[shape].masked_fill(unscored, padding)

    def batch(self) -> tuple[Tensor, Tensor]:
        """A batch of the person's own, inputs (B, T) and targets (B, T) or (B,). Raises NotExamined without one."""
        return self.parts(draw(self.given))

    def parts(self, drawn: Any) -> tuple[Tensor, Tensor]:
        """The same of one that was drawn."""
        inputs, targets = parts_of(drawn)
        if targets.dim() == 1 and targets.numel() == inputs.numel():
            targets = targets.reshape(inputs.shape)
        targets = self.canonical(targets) if targets.dim() == 2 else targets
        return self.canonical(inputs).to(self.device), targets.to(self.device)


class Substituted(TorchFunctionMode):
    """Whatever function of torch returns what the logits were, returns the made-up ones: so a loss that is taken inside
    forward sees them."""

    def __init__(self, original: Tensor, replacement: Tensor) -> None:
        super().__init__()
        self.original, self.replacement = original.reshape(-1), replacement

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (
            torch.is_tensor(result)
            and result.numel() == self.original.numel()
            and result.dtype == self.original.dtype
            and torch.equal(result.detach().reshape(-1), self.original)
        ):
            return self.replacement.reshape(result.shape)
        return result


class Puppet:
    """The model, made to answer what we want."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes, self.spoke = sizes, 0
        self.known: tuple[Tensor, Any, Tensor] | None = None  # tokens, generators before, logits
        self.answered: Any = None

    def raw(self, logits: Tensor, like: Tensor) -> Tensor:
        """Made-up logits (B, T, V) in the axes and the kind of the model's own."""
        form = self.sizes.form
        width = like.shape[1] if form.axes == "BVT" else like.shape[-1]
        if width > logits.shape[-1]:  # a vocabulary rounded up
            rest = logits.amin(-1, keepdim=True).expand(*logits.shape[:-1], width - logits.shape[-1])
            logits = torch.cat([logits, rest], -1)
        logits = as_kind(logits, form.kind)
        if form.axes == "BV":
            logits = logits[:, -1]
        elif form.axes == "BVT":
            logits = logits.transpose(1, 2)
        elif form.axes == "TBV":
            logits = logits.transpose(0, 1)
        elif like.dim() == 2:
            logits = logits.reshape(-1, width)
        return logits.contiguous()

    def inside(self, forward: Callable[..., Any], args: Any, kwargs: Any, tokens: Tensor, make: Make) -> Any:
        """What forward returns where its logits are the made-up ones, its own loss too."""
        if self.known is None or not torch.equal(self.known[0], tokens):
            before = generators()
            with torch.no_grad():
                found = logits_in(forward(*args, **kwargs), self.sizes.vocabulary)
            self.known = tokens, before, found
        _, before, found = self.known
        set_generators(before)
        made = self.raw(make(self.sizes.canonical(tokens)), found)
        with Substituted(found, made.requires_grad_()):
            return forward(*args, **kwargs)

    @contextlib.contextmanager
    def speaking(self, make: Make) -> Iterator[None]:
        """Inside, the model's forward answers `make(tokens)`."""
        model = self.sizes.given.model
        if not isinstance(model, nn.Module):
            raise NotExamined("the model is a function: nothing can be put in its place")
        real = model.forward
        had = "forward" in vars(model)

        def forward(*args: Any, **kwargs: Any) -> Any:
            tokens = next((t for t in (*args, *kwargs.values()) if is_tokens(t)), None)
            if tokens is None:
                return real(*args, **kwargs)
            self.spoke += 1
            return self._answer(real, tokens, args, kwargs, make)

        model.forward = forward
        try:
            yield
        finally:
            if had:
                model.forward = real
            else:
                del model.forward

    def _answer(self, real: Callable[..., Any], tokens: Tensor, args: Any, kwargs: Any, make: Make) -> Any:
        """What forward returned once, with other logits in it; where that has a loss of its own, it is called again."""
        args, kwargs, few = self._cut(tokens, args, kwargs)
        if self.answered is None:
            before = generators()
            with torch.no_grad():
                self.answered = real(*args, **kwargs)
            set_generators(before)
        if loss_in(self.answered) is not None:
            return self.inside(real, args, kwargs, few, make)
        found = logits_in(self.answered, self.sizes.vocabulary)
        if tokens.numel() * self.sizes.vocabulary > MOST_LOGITS:
            raise NotExamined("the logits of one batch are too many to make up")
        return filled(self.answered, found, self.raw(make(self.sizes.canonical(tokens)), found).requires_grad_())

    def _cut(self, tokens: Tensor, args: Any, kwargs: Any) -> tuple[Any, Any, Tensor]:
        """The same arguments with a row or two, where all are of one shape."""
        tensors = [t for t in (*args, *kwargs.values()) if torch.is_tensor(t)]
        if tokens.dim() != 2 or any(t.shape != tokens.shape for t in tensors):
            return args, kwargs, tokens
        rows = few_rows(self.sizes.canonical(tokens))
        short = (slice(None), slice(rows)) if self.sizes.form.time_first else slice(rows)

        def cut(one: Any) -> Any:
            return one[short] if torch.is_tensor(one) else one

        return tuple(map(cut, args)), {name: cut(one) for name, one in kwargs.items()}, tokens[short]


def few_rows(tokens: Tensor) -> int:
    """How many rows are enough: one that is long, two short ones."""
    return 2 if tokens.shape[1] < 100 else 1


def is_tokens(thing: Any) -> bool:
    return torch.is_tensor(thing) and not thing.is_floating_point() and thing.dtype != torch.bool and thing.dim() > 0


def filled(returned: Any, found: Tensor, made: Tensor) -> Any:
    """What a model returned, with other logits in it."""
    if returned is found:
        return made
    if isinstance(returned, (list, tuple)):
        several = [made if one is found else one for one in returned]
        if hasattr(returned, "_fields"):
            return type(returned)(*several)
        return type(returned)(several)
    changed = copy.copy(returned)
    if isinstance(changed, Mapping):
        for name, one in list(changed.items()):
            if one is found:
                changed[name] = made  # type: ignore[index]
        return changed
    for name, one in list(vars(changed).items()):
        if one is found:
            setattr(changed, name, made)
    return changed
