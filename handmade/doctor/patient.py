"""The model under examination, whatever it is called with and whatever it returns, seen in one form.

B rows, T positions, V vocabulary, C features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from handmade.doctor.anatomy import all_modules, is_object, reachable, roots
from handmade.doctor.findings import NotExamined
from handmade.doctor.forms import Form, logits_in
from handmade.doctor.given import Given
from handmade.doctor.meeting import MOST_CONTEXT, meet
from handmade.doctor.snapshot import Kept, generators, set_generators, undisturbed
from handmade.doctor.stirring import (
    NEARLY_ZERO,
    STEADY,
    drawn_anew,
    in_full_precision,
    seed_everything,
    two_valued,
    weights_of,
)
from handmade.doctor.tracing import Step, traced
from handmade.errors import ConfigError


class Patient:
    """What the checks see.

        logits = patient.logits(tokens)         (B, T, V) float, in evaluation mode, no gradients
        patient.tokens(2)                       random rows, from a generator of the patient's own

    `given` has all that the person gave. A check changes what it likes: `examine` puts everything back after each.
    """

    def __init__(self, given: Given, name: str = "", seed: int = 0) -> None:
        if isinstance(given.model, type):
            raise ConfigError(f"{given.model.__name__} is a class: give an instance of it.")
        self.given, self.name = replace(given, model=unwrapped(given.model)), name
        self.generator = torch.Generator().manual_seed(seed)
        self.notes: list[str] = []
        self.failure: str | None = None
        """Why the model cannot be called."""
        self.form = Form()
        self.stated_context: int | None = None
        """What the person, or the model, said that its context is; `context` is what it can do."""
        self.end: str | None = None
        """What a row that is longer than the context was met with, where that has been seen."""
        self.time_is_known = False
        """Whether the person said or showed which axis of the tokens is time, and did not leave it to be found out."""
        self.remembers = False
        """Whether it carries something from one call to the next."""
        self._steady = False
        self._can_be_drawn: bool | None = None
        if self.given.model is None:
            self.failure = "no model was given"
            return
        shapeless = [
            path for path, one in self.modules.items() if any(map(nn.parameter.is_lazy, one.parameters(False)))
        ]
        if shapeless:
            raise ConfigError(f"{shapeless[0]}: its weights have no shape yet. Call the model once before.")
        with undisturbed(self.model):
            self.vocab_size, self.context = meet(self)

    # What it is made of

    @property
    def model(self) -> Any:
        """The model. Raises NotExamined where there is none, or where it cannot be called at all."""
        if self.given.model is None:
            raise NotExamined("no model was given")
        return self.given.model

    @property
    def module(self) -> nn.Module:
        """The model as a torch module; of a function, the one module that it calls. Raises NotExamined where there is
        none, or more than one."""
        if len(self.roots) != 1:
            raise NotExamined("the model is a function: its inside cannot be seen")
        return self.roots[0]

    @cached_property
    def roots(self) -> list[nn.Module]:
        """The modules that the model stands on: itself, or those that a function calls."""
        return roots(self.given.model)

    @cached_property
    def size(self) -> int:
        """Entries of all weights."""
        return sum(one.numel() for one in weights_of(self.given.model).values())

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Path -> module, hidden ones too."""
        return all_modules(self.given.model)

    @property
    def device(self) -> torch.device:
        for module in self.modules.values():
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                return tensor.device
        for tensor in weights_of(self.given.model).values():
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
        """What forward returns for rows (B, T); of a model that takes one sequence, or a fixed number of rows, a list
        of what it returned for each, which `read` understands."""
        size = 1 if self.form.single else self.form.rows
        if size is not None:
            returned = []
            for first in range(0, len(tokens), size):

                def cut(thing: Any, first: int = first) -> Any:
                    return part(thing, tokens, first, size, self.form.single)

                named = {name: cut(one) for name, one in options.items()}
                returned.append(self._call(cut(tokens), cut(targets), named))
            return returned
        if self.form.time_first:
            tokens, targets = tokens.T, None if targets is None else targets.T
        return self._call(tokens, targets, options)

    def _call(self, tokens: Tensor, targets: Tensor | None, options: Mapping[str, Any]) -> Any:
        if targets is None and self.form.targets:
            targets = tokens.roll(-1, dims=0 if self.form.time_first else -1)
        named = {**dict.fromkeys(self.form.nothing), **options}
        positional = [tokens] if self.form.inputs_name is None else []
        if self.form.inputs_name is not None:
            named[self.form.inputs_name] = tokens
        if targets is not None and self.form.targets_name is not None:
            named[self.form.targets_name] = targets
        elif targets is not None:
            positional.append(targets)
        kept = Kept(self.model) if self.remembers else None
        for name in self.form.ones:
            named.setdefault(name, torch.ones_like(tokens))
        if self._steady:
            seed_everything(STEADY)
        try:
            return self.model(*positional, **named)
        except SystemExit as end:
            raise RuntimeError("forward ended the program (SystemExit)") from end
        finally:
            if kept is not None:
                kept.bring_back(generators=self._steady)

    def read(self, returned: Any, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Logits (B, T, V) out of what forward returned for rows of `shape` (B, T)."""
        rows, length = shape
        size = 1 if self.form.single else self.form.rows
        if size is not None:
            return torch.cat([self._read(one, size, length) for one in returned])[:rows]
        return self._read(returned, rows, length)

    def _read(self, returned: Any, rows: int, length: int) -> Tensor:
        logits = logits_in(returned, self.vocab_size, rows, length)
        axes = self.form.axes
        if axes == "TBV":
            return logits.transpose(0, 1)
        if axes == "BVT":
            return logits.transpose(1, 2)
        if axes == "BV":
            return logits.reshape(rows, 1, -1)
        if axes == "NV" and self.form.time_first:
            return logits.reshape(length, rows, -1).transpose(0, 1)
        return logits if logits.dim() == 3 else logits.reshape(rows, length, -1)

    @property
    def every_position(self) -> bool:
        """Whether it has logits for every position."""
        return self.form.axes != "BV"

    @contextlib.contextmanager
    def mode(self, training: bool) -> Iterator[None]:
        """The whole model in a mode, by its own train() and eval(), which are the person's; where these cannot be
        called so, by torch's. Afterwards every module is in the mode it was in."""
        before = [(one, one.training) for one in self.switches]
        try:
            for root in self.roots:
                switch(root, training)
            if not isinstance(self.given.model, nn.Module):
                for one in self.switches:
                    if not isinstance(one, nn.Module):
                        one.training = training
            yield
        finally:
            for one, was in before:
                one.training = was

    @cached_property
    def switches(self) -> list[Any]:
        """All that has a mode: modules, hidden ones too, and under a function the plain objects with `training`."""
        found: list[Any] = list(self.modules.values())
        if not isinstance(self.given.model, nn.Module):
            found += [
                one for one in reachable(self.given.model)
                if not isinstance(one, nn.Module) and is_object(one) and isinstance(vars(one).get("training"), bool)
            ]  # fmt: skip
        return found

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
    def stirred(self, everything: bool = False, gain: float = 1.0) -> Iterator[list[str]]:
        """Inside, parameters that are all zero (or nearly: none above 0.001) are small and random, so that nothing is
        hidden behind a projection or a gain that begins at zero. Gives the names of those that were drawn.

        A matrix is drawn from a normal distribution with deviation `gain` / sqrt(size of its last axis), anything with
        fewer axes with 0.1. With `everything`, all matrices are drawn so, whatever they were: then who sees whom is
        measured alike in a model at its beginning, a trained one and one with saturated scores. Parameters that hold
        two values alone (a mask kept as a parameter) and frozen ones beside trained ones stay as they are. The weights
        are back afterwards, bit for bit; no global generator is drawn from.
        """
        weights = weights_of(self.given.model)
        drawn = {
            name: one for name, one in weights.items()
            if one.detach().abs().max() <= NEARLY_ZERO or (everything and one.dim() >= 2 and not two_valued(one))
        }  # fmt: skip
        with drawn_anew(drawn.values(), self.generator, gain):
            yield list(drawn)

    @contextlib.contextmanager
    def exposed(self, gain: float = 1.0) -> Iterator[None]:
        """Inside, who sees whom can be measured alike in every model: `steady`, in float32 or better, and `stirred`
        with everything (or with what is zero alone, where the model does not stand that)."""
        with contextlib.ExitStack() as after:
            after.enter_context(self.steady())
            after.enter_context(in_full_precision(self))
            if self._can_be_drawn is None:
                with self.stirred(everything=True):
                    self._can_be_drawn = bool(self.logits(self.tokens(2)).isfinite().all())
            after.enter_context(self.stirred(everything=self._can_be_drawn, gain=gain))
            yield

    def trace(
        self,
        tokens: Tensor,
        until: tuple[str, int] | None = None,
        training: bool = False,
        operations: bool = False,
    ) -> list[Step]:
        """What each module was given and returned, in the order in which they were done, for rows of tokens; without
        gradients. With `until` (path, how often it had run before) the rest of the model is left out. With `operations`
        also what each function of torch was given and returned."""
        if any(isinstance(one, torch.jit.ScriptModule) for one in self.modules.values()):
            raise NotExamined("it is scripted: its inside cannot be seen")
        with torch.no_grad(), self.mode(training):
            return traced(self, tokens, until, operations)

    def fresh(self) -> Any:
        """Another instance, with weights drawn anew. Raises NotExamined where nobody said how to make one."""
        if self.given.build is None:
            raise NotExamined("nothing was given that builds a second instance (`build`)")
        return self.given.build()


def part(thing: Any, tokens: Tensor, first: int, size: int, single: bool) -> Any:
    """What of an argument belongs to `size` rows from `first` on: all of it, unless it has a row for each. Rows that
    are missing at the end are the last one again."""
    if not torch.is_tensor(thing) or not thing.dim() or len(thing) != len(tokens):
        return thing
    if single:
        return thing[first]
    rows = thing[first : first + size]
    return rows if len(rows) == size else torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])


def switch(module: nn.Module, training: bool) -> None:
    """Put a module in a mode by its own train() or eval(). Some people's mean something else, and need arguments: then
    by torch's."""
    try:
        if training:
            module.train()
        else:
            module.eval()
    except Exception:
        nn.Module.train(module, training)


def unwrapped(model: Any) -> Any:
    """The model itself, out of what torch.compile or data parallelism wrapped it in: compiled anew for every shape, an
    examination would take minutes."""
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model
