"""A person's `generate`, and what its tokens are drawn from.

What goes into torch.multinomial (also under torch.distributions), torch.searchsorted, numpy.random.choice and
random.choices is seen, and what comes out of them is decided here: so probabilities are compared as numbers, not by
counting draws. Where a token is drawn in another way, it is drawn often.
B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from handmade.doctor.anatomy import every_parameter
from handmade.doctor.findings import NotExamined
from handmade.doctor.patient import Patient

ROLES: dict[str, tuple[str, ...]] = {
    "temperature": ("temperature", "temp"),
    "top_k": ("top_k", "topk", "k"),
    "top_p": ("top_p", "topp", "nucleus", "p"),
    "min_p": ("min_p", "minp"),
    "penalty": ("repetition_penalty",),
    "use_cache": ("use_cache", "cache", "cached", "use_kv_cache", "kv_cache"),
    "sample": ("do_sample", "sample"),
    "greedy": ("greedy",),
}
"""What an option of `generate` is for, by its name."""
NOTHING = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "penalty": 1.0}
"""With these values an option does nothing; a top_k of the whole vocabulary does neither."""
OFF: dict[str, tuple[Any, ...]] = {
    "temperature": (1, None),
    "top_k": (None, 0, -1),
    "top_p": (None, 1, 0),
    "min_p": (None, 0),
    "penalty": (None, 1),
}
"""Defaults with which an option does nothing."""
COUNTS = ("count", "max_new_tokens", "new_tokens", "num_tokens", "n_tokens", "max_tokens", "steps", "length", "n")
MOST_DRAWN = 1_500
LEARNT = 1.0
"""How far apart the logits of a model lie that has something to say: their standard deviation over the vocabulary."""


def roles_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The options of a function by what they are for."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    found = {}
    for role, names in ROLES.items():
        name = next((name for name in names if name in parameters), None)
        if name is not None:
            found[role] = parameters[name]
    cache = found.get("use_cache")
    if cache is not None and not (isinstance(cache.default, bool) or cache.default is cache.empty):
        del found["use_cache"]  # a cache itself, not whether there is one
    return found


class Sampler:
    """Calls `generate`, whatever it gives back. Raises NotExamined where there is none."""

    def __init__(self, patient: Patient) -> None:
        self.patient = patient
        self.generate = patient.given.generate or own_generate(patient.given.model)
        if self.generate is None:
            raise NotExamined("not given: generate")
        self.roles = roles_of(self.generate)
        self.vocab_size = patient.vocab_size
        self.alone = False  # it takes one row at a time

    def options(self, **wanted: Any) -> dict[str, Any]:
        """Arguments for `generate`: what is wanted, and everything else so that it does nothing."""
        found: dict[str, Any] = {}
        for role, parameter in self.roles.items():
            if role in wanted:
                found[parameter.name] = wanted[role]
            elif role in OFF and parameter.default not in OFF[role]:
                found[parameter.name] = NOTHING.get(role, self.vocab_size)
            elif role in ("sample", "greedy"):
                found[parameter.name] = role == "sample"
        return found

    def greedily(self) -> dict[str, Any] | None:
        """Options with which it takes the likeliest token, or None where it has none."""
        if "greedy" in self.roles:
            return {"greedy": True}
        if "sample" in self.roles:
            return {"sample": False}
        return {"top_k": 1} if "top_k" in self.roles else None

    def new(self, tokens: Tensor, count: int, **wanted: Any) -> Tensor:
        """The new tokens, (B, count). Raises what `generate` raises, NotExamined for what are no tokens."""
        if not self.alone:
            try:
                return self._new(tokens, count, wanted)
            except NotExamined:
                raise
            except Exception:
                if len(tokens) == 1:
                    raise
                self._new(tokens[:1], count, wanted)  # the same for one row is another matter
                self.alone = True
        return torch.cat([self._new(row[None], count, wanted) for row in tokens])

    def _new(self, tokens: Tensor, count: int, wanted: dict[str, Any]) -> Tensor:
        assert self.generate is not None
        found = self.generate(tokens.clone(), count, **self.options(**wanted))
        if not torch.is_tensor(found):
            several = [np.asarray(row) for row in found]
            if len({row.shape for row in several}) > 1:
                raise NotExamined("generate gives rows of different lengths")
            found = torch.as_tensor(np.stack(several))
        shape = tuple(found.shape)
        rows, length = tokens.shape
        if found.dim() == 1 and rows == 1:
            found = found[None]
        if found.dim() != 2 or len(found) != rows or found.is_floating_point():
            raise NotExamined(f"generate gives {shape} for {tuple(tokens.shape)}, not (B, T + {count})")
        if found.shape[1] == length + count:
            found = found[:, length:]
        elif found.shape[1] > count:
            raise NotExamined(f"generate gives {found.shape[1]} tokens for {length} and {count} new ones")
        return found.to(tokens.device)

    def any_tokens(self, rows: int, device: torch.device) -> Tensor:
        """Tokens to force, different ones: that a place in a sorted list is the token of this number may happen once,
        and not every time. Shapes: -> (rows, 1)."""
        drawn = torch.randperm(self.vocab_size, generator=self.patient.generator).repeat(rows)[:rows]
        return drawn[:, None].to(device)

    def trace(self, tokens: Tensor, forced: Tensor, **wanted: Any) -> Tensor | None:
        """What each of the forced tokens would have been drawn from: (B, count, V), float64; None where that is not
        seen. Shapes: tokens (B, T), forced (B, count)."""
        if self.alone or len(tokens) == 1:
            each = [self._trace(row[None], choice[None], wanted) for row, choice in zip(tokens, forced, strict=True)]
            return None if any(one is None for one in each) else torch.cat([one for one in each if one is not None])
        try:
            return self._trace(tokens, forced, wanted)
        except NotExamined:
            raise
        except Exception:
            self._trace(tokens[:1], forced[:1], wanted)
            self.alone = True
            return self.trace(tokens, forced, **wanted)

    def _trace(self, tokens: Tensor, forced: Tensor, wanted: dict[str, Any]) -> Tensor | None:
        count = forced.shape[1]
        with Watch(forced) as watch:
            got = self._new(tokens, count, wanted)
        seen = watch.seen
        if len(seen) != count or any(len(one) != len(tokens) or one.shape[1] < self.vocab_size for one in seen):
            return None
        if got.shape != forced.shape or not torch.equal(got.cpu(), forced.cpu()):
            return None  # what is drawn is no token: a place in a sorted list
        return torch.stack([one[:, : self.vocab_size] for one in seen], dim=1)  # a vocabulary may be rounded up

    def distribution(self, row: Tensor, most: int = MOST_DRAWN, **wanted: Any) -> tuple[Tensor, int]:
        """What the next token of a row is drawn from, (V,) float64, and of how many draws: 0 where it was seen and not
        counted, else `most`. Shapes: row (T,)."""
        seen = self.trace(row.expand(4, -1), self.any_tokens(4, row.device), **wanted)
        if seen is not None:
            return seen[0, 0], 0
        sorted_ = self._by_place(row, wanted)
        if sorted_ is not None:
            return sorted_, 0
        many = most if not self.alone else most // 5
        torch.manual_seed(1)
        drawn = self.new(row.expand(many, -1), 1, **wanted)
        counts = torch.bincount(drawn[:, 0].cpu(), minlength=self.vocab_size)[: self.vocab_size].double()
        return counts / counts.sum(), many

    def _by_place(self, row: Tensor, wanted: dict[str, Any]) -> Tensor | None:
        """Where places of a sorted list are drawn: which token each place stands for is found by forcing each."""
        with Watch(torch.zeros(1, 1, dtype=torch.int64)) as watch:
            self._new(row[None], 1, wanted)
        if len(watch.seen) != 1:
            return None
        places = watch.seen[0].shape[-1]
        if places > 1_000 or (self.alone and places > 100):
            return None
        forced = torch.arange(places)[:, None]
        rows = [row.expand(places, -1)] if not self.alone else [row[None]] * places
        found = []
        for index, some in enumerate(rows):
            with Watch(forced if not self.alone else forced[index : index + 1]) as watch:
                found.append(self._new(some, 1, wanted))
        tokens = torch.cat(found)[:, 0].cpu()
        if tokens.unique().numel() != places:
            return None
        share = watch.seen[0][0]
        size = max(self.vocab_size, int(tokens.max()) + 1)
        return torch.zeros(size, dtype=torch.float64).scatter(0, tokens, share)[: self.vocab_size]


def own_generate(model: Any) -> Callable[..., Any] | None:
    """A model's own `generate(tokens, count, ...)`, told by its second argument's name."""
    found = getattr(model, "generate", None)
    try:
        names = list(inspect.signature(found).parameters) if callable(found) else []
    except (TypeError, ValueError):
        return None
    return found if len(names) > 1 and names[1] in COUNTS else None


class Watch(TorchFunctionMode):
    """Inside, whatever draws a token by probabilities gives the tokens of `forced` (B, count), step by step; `seen` has
    the probabilities, (B, places) float64 each."""

    def __init__(self, forced: Tensor, on_draw: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self.on_draw = on_draw
        self.forced = forced.cpu()
        self.seen: list[Tensor] = []
        self.rows: list[Tensor] = []
        self.step = 0
        self.stack = contextlib.ExitStack()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.searchsorted and torch.is_tensor(args[0]) and args[0].dim() == 2:
            sums = args[0].detach().double().cpu()  # cumulated probabilities, and a place in them
            if bool((sums[:, 1:] >= sums[:, :-1]).all()) and tuple(args[1].shape) == (len(sums), 1):
                return self.draw(sums.diff(dim=1, prepend=sums.new_zeros(len(sums), 1))).to(args[0].device)[:, None]
        if func not in (torch.multinomial, torch.Tensor.multinomial):
            return func(*args, **kwargs)
        shares = args[0] if args else kwargs.get("input", kwargs.get("self"))
        many = args[1] if len(args) > 1 else kwargs.get("num_samples")
        if many != 1:
            return func(*args, **kwargs)
        flat = shares.detach().double().cpu().reshape(-1, shares.shape[-1])
        return self.draw(flat).to(shares.device).reshape(*shares.shape[:-1], 1)

    def draw(self, shares: Tensor) -> Tensor:
        """Tokens for rows of probabilities: of all rows at once, or of one row after the other."""
        if self.on_draw is not None:
            self.on_draw()
        rows = len(self.forced)
        if len(shares) == rows:
            self.seen.append(normal(shares))
            chosen = self.forced[:, min(self.step, self.forced.shape[1] - 1)]
            self.step += 1
            return chosen.clamp(max=shares.shape[-1] - 1)
        if len(shares) == 1:
            self.rows.append(normal(shares))
            chosen = self.forced[len(self.rows) - 1, min(self.step, self.forced.shape[1] - 1)]
            if len(self.rows) == rows:
                self.seen.append(torch.cat(self.rows))
                self.rows, self.step = [], self.step + 1
            return chosen[None].clamp(max=shares.shape[-1] - 1)
        self.seen.append(shares)  # of another form: nobody takes it for tokens
        return shares.nan_to_num().argmax(-1)

    def __enter__(self) -> Watch:
        choice, choices = np.random.choice, random.choices

        def numpy_choice(a: Any, size: Any = None, replace: bool = True, p: Any = None) -> Any:
            if p is None or not (size is None or np.prod(size) == 1):
                return choice(a, size, replace, p)
            place = int(self.draw(torch.as_tensor(np.asarray(p, dtype=np.float64))[None])[0])
            value = place if isinstance(a, (int, np.integer)) else np.asarray(a)[place]
            return value if size is None else np.full(size, value)

        def python_choices(population: Any, weights: Any = None, **rest: Any) -> Any:
            if weights is None or rest.get("k", 1) != 1:
                return choices(population, weights, **rest)
            place = int(self.draw(torch.as_tensor(np.asarray(weights, dtype=np.float64))[None])[0])
            return [population[place]]

        self.stack.enter_context(mock.patch.object(np.random, "choice", numpy_choice))
        self.stack.enter_context(mock.patch.object(random, "choices", python_choices))
        return super().__enter__()

    def __exit__(self, *problem: Any) -> None:
        self.stack.close()
        super().__exit__(*problem)


def normal(shares: Tensor) -> Tensor:
    """Shares that sum to one: a draw needs no more than shares."""
    return shares / shares.sum(-1, keepdim=True)


MOST_COMPARED = 400  # tokens of a vocabulary that are put in order


def disorder(logits: Tensor, shares: Tensor, tolerance: float = 1e-3, drawn: int = 0) -> float:
    """Of pairs of tokens with different logits, those whose shares are the other way round. Differences below
    `tolerance` of the logits' spread do not count, nor do those of `drawn` draws that may be chance.
    Shapes: (V,), (V,)."""
    logits, shares = logits.double().cpu(), shares.double().cpu()
    if len(logits) > MOST_COMPARED:
        some = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))[:MOST_COMPARED]
        some = torch.cat([some, logits.topk(10).indices, shares.nan_to_num().topk(10).indices]).unique()
        logits, shares = logits[some], shares[some]
    if not bool(shares.isfinite().all()):
        return 1.0
    larger = logits[:, None] - logits[None] > tolerance * float(logits.std())
    rest = shares[None] - shares[:, None]
    bound = shares[None] * 1e-6 if not drawn else 4 * ((shares[None] + shares[:, None]) / drawn).sqrt()
    return float((larger & (rest > bound)).sum() / larger.sum().clamp_min(1))


def half(patient: Patient) -> float:
    """How far logits may lie apart that are the same but for rounding, as a part of their spread."""
    small = any(
        tensor.dtype in (torch.float16, torch.bfloat16)
        for module in patient.modules.values()
        for tensor in module.parameters(recurse=False)
    )
    return 0.1 if small else 1e-3


# ---------------------------------------------------------------------------------------------------------------
# The model while it is asked


def widen(patient: Patient) -> None:
    """Make an untrained model's weights larger, until its logits are as far apart as those of one that has learnt: at
    the start all tokens are nearly as likely, and mistakes hardly show. The examination puts them back."""
    if patient.given.trained or not isinstance(patient.given.model, nn.Module):
        return
    tokens = patient.tokens(4, min(patient.length, 8))
    weights = [one for one in every_parameter(patient.given.model).values() if one.dim() >= 2]
    for _ in range(12):
        if float(patient.logits(tokens).std(-1).mean()) >= LEARNT:
            return
        for one in weights:
            one.data.mul_(1.4)
        if not bool(patient.logits(tokens).isfinite().all()):
            for one in weights:
                one.data.div_(1.4)
            return


class NoDropout(TorchFunctionMode):
    """Inside, functional dropout does nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if "dropout" in name and "attention" not in name:
            return args[0] if args else kwargs["input"]
        if name == "scaled_dot_product_attention":
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            if "dropout_p" in kwargs:
                kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


@contextlib.contextmanager
def learning(patient: Patient) -> Iterator[None]:
    """Inside, the model is in training mode, without dropout and with fixed batch norms."""
    with patient.mode(training=True), NoDropout(), torch.no_grad():
        for module in patient.modules.values():
            name = type(module).__name__.lower()
            if "dropout" in name or "batchnorm" in name:
                module.training = False
            if isinstance(module, nn.MultiheadAttention):
                module.training = False if module.dropout else module.training
        yield


def learnt(patient: Patient, tokens: Tensor) -> Tensor:
    """The last position's logits as the model has them when it is trained, or in evaluation mode where those are never
    the same twice. Shapes: (B, T) -> (B, V) float64."""
    with learning(patient):
        try:
            first, again = (patient.run(tokens)[:, -1].double() for _ in range(2))
        except Exception:
            first = again = torch.zeros(1)
    if first.shape[-1] >= patient.vocab_size and bool((first - again).abs().max() <= 1e-6 * first.abs().max()):
        return first[:, : patient.vocab_size].cpu()
    return patient.logits(tokens)[:, -1, : patient.vocab_size].double().cpu()
