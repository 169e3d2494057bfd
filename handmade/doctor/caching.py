"""Decoding with a cache against decoding without one, wherever a person has the cache."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious
from handmade.doctor.patient import Patient
from handmade.doctor.sampler import Sampler, disorder, half

# Half the sum of differences between the probabilities of a step. 24 healthy models (width 16 to 256, 1 to 6 layers, 11
# to 500 tokens): float32 up to 9e-7, float64 2e-15, bfloat16 0.003; twins with a mistake 0.12 to 0.65.
APART = {False: 1e-3, True: 0.05}
# Pairs of tokens in another order, where a generate has its cache always.
DISORDER = 2e-3
STEPS = 6
LONGEST = 512
"""A context that is longer is not filled."""

EXPECTED = "the same at every step"
REMEDY = "positions from cache.length on; mask of the new rows over all keys; after the context is full, fill it again"


def by_option(patient: Patient) -> Finding | None:
    """`generate(use_cache=True)` against `use_cache=False`."""
    sampler = sampler_or_none(patient)
    if sampler is None or "use_cache" not in sampler.roles:
        return None
    limit = APART[half(patient) > 1e-2]
    with patient.mode(training=False):
        prompt, steps = start_of(patient)
        inside = compared(sampler, patient, prompt, steps)
        if isinstance(inside, str):
            return failed(inside)
        worst, step = inside
        measured = f"with a cache, probabilities are up to {worst:.2g} away from those without"
        if worst in (0, 1):
            measured = f"with a cache, tokens are {'others than' if worst else 'the same as'} without"
        details: dict[str, Any] = {"value": worst, "limit": limit, "where": "generate"}
        if worst > limit:
            return differs(measured, step, details)
        prompt, steps = end_of(patient)
        if steps == 0:
            return healthy(measured, EXPECTED, **details)
        try:
            across = compared(sampler, patient, prompt, steps)
        except PlainFails:
            return healthy(f"{measured}; past the full context neither goes", EXPECTED, **details)
    if isinstance(across, str):
        return failed(f"past the full context ({patient.context} tokens) {across}")
    if across[0] <= limit or patient.expects("cache_window"):
        return healthy(f"{measured}, past the full context too", EXPECTED, **details)
    details["value"] = across[0]
    measured = f"past the full context, a cache moves probabilities by up to {across[0]:.2g}"
    cause = "when the oldest tokens leave the window, every position changes: what is kept in the cache is then wrong"
    if patient.expects("cache_window") is False:
        return sick(measured, EXPECTED, cause, REMEDY, **details)
    asked = 'Is the cache meant to keep another window? Then expect={"cache_window": True}'
    return suspicious(measured, EXPECTED, cause, REMEDY, asked, **details)


def failed(said: str) -> Finding:
    cause = "the cache grows past the positions that there are"
    return sick(f"with a cache, generate fails: {said}", EXPECTED, cause, REMEDY, value=1, limit=0, where="generate")


def differs(measured: str, step: int, details: dict[str, Any]) -> Finding:
    first = "already for the prompt: its tokens see each other without the mask, or at other positions"
    later = f"from new token {step + 1} on: positions are not counted on under the cache, or its content is wrong"
    return sick(measured, EXPECTED, later if step else first, REMEDY, **details)


def start_of(patient: Patient) -> tuple[Tensor, int]:
    """A prompt and a number of tokens that stay within the context."""
    room = patient.length
    length = max(1, min(5, room // 2))
    return patient.tokens(2, length), max(1, min(STEPS, room - length))


def end_of(patient: Patient) -> tuple[Tensor, int]:
    """A prompt that nearly fills the context, and tokens across its end; none where that takes too long."""
    if patient.context > LONGEST or patient.context < 4:
        return patient.tokens(1, 1), 0
    return patient.tokens(1, patient.context - 2), 4


def compared(sampler: Sampler, patient: Patient, prompt: Tensor, steps: int) -> tuple[float, int] | str:
    """The largest distance and the first step at which it is more than rounding; or how the cached one fails."""
    shape = (len(prompt), steps)
    forced = torch.randint(sampler.vocab_size, shape, generator=patient.generator).to(prompt.device)
    distances = []
    for row, choice in zip(prompt, forced, strict=True):
        try:
            plain = sampler.trace(row[None], choice[None], use_cache=False)
        except NotExamined:
            raise
        except Exception as problem:
            raise PlainFails(f"generate fails without a cache: {type(problem).__name__}") from None
        try:
            cached = sampler.trace(row[None], choice[None], use_cache=True)
        except NotExamined:
            raise
        except Exception as problem:
            said = str(problem).strip().splitlines()
            return f"{type(problem).__name__}: {said[0] if said else ''}"[:80]
        if plain is None or cached is None:
            return by_tokens(sampler, prompt, steps)
        distances.append(((plain - cached)[0].abs().sum(-1) / 2).nan_to_num(1.0))
    largest = torch.stack(distances).amax(0)
    worst = float(largest.max())
    return worst, int((largest > worst / 10).nonzero()[0]) if worst else 0


def by_tokens(sampler: Sampler, prompt: Tensor, steps: int) -> tuple[float, int] | str:
    """The same where probabilities are not seen: the likeliest tokens, one after the other."""
    options = sampler.greedily()
    if options is None:
        raise NotExamined("what generate draws from is not seen, and it cannot be told to take the likeliest token")
    plain = sampler.new(prompt, steps, use_cache=False, **options)
    try:
        cached = sampler.new(prompt, steps, use_cache=True, **options)
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"[:80]
    if plain.shape != cached.shape:
        return 1.0, 0
    unequal = (plain != cached).any(0)
    return float(unequal.any()), int(unequal.nonzero()[0]) if bool(unequal.any()) else 0


def by_habit(patient: Patient) -> Finding | None:
    """A generate that feeds one token at a time without being told, against the model's logits for the whole row. What
    the model is given and gives back is seen by a hook; where generate goes another way, by what it draws from."""
    sampler = sampler_or_none(patient)
    if sampler is None or patient.form.full or patient.length < 4:
        return None
    prompt, steps = start_of(patient)
    with patient.mode(training=False):
        sampler.new(prompt[1:], 2)  # what it leaves behind may not matter
        with Overheard(patient) as heard:
            row = torch.cat([prompt[:1], sampler.new(prompt[:1], steps)], dim=1)
        if any(length != 1 for length in heard.fed[1:]) or row.shape[1] != prompt.shape[1] + steps:
            return None
        ends = range(prompt.shape[1], row.shape[1])
        said = heard.said
        if len(said) != steps:
            forced = torch.randint(sampler.vocab_size, (1, steps), generator=patient.generator).to(prompt.device)
            seen = sampler.trace(prompt[:1], forced)
            if seen is None:
                return None
            row, said = torch.cat([prompt[:1], forced], dim=1), list(seen[0].log())
        found = []
        for end, got in zip(ends, said, strict=True):
            logits = patient.logits(row[:, :end])[0, -1].double().cpu()[: sampler.vocab_size]
            found.append(disorder(logits, got, half(patient)))
        if not heard.fed and found[0] > DISORDER:
            return None  # the first token is drawn wrongly, and that says nothing of a cache
        worst = max(found)
        measured = f"token by token, {worst:.2g} of all pairs of tokens are in another order than for the whole row"
        details: dict[str, Any] = {"value": worst, "limit": DISORDER, "where": "generate"}
        if worst > DISORDER:
            return differs(measured, next(i for i, one in enumerate(found) if one > worst / 10), details)
        prompt, steps = end_of(patient)
        try:
            if steps:
                sampler.new(prompt, steps)
        except Exception as problem:
            lines = str(problem).strip().splitlines() or [""]
            return failed(f"past the full context ({patient.context} tokens) {type(problem).__name__}: {lines[0]}"[:80])
    return healthy(measured, EXPECTED, **details)


class Overheard:
    """Inside, how many tokens the model is given at each call, `fed`, and the logits of the last one, `said`."""

    def __init__(self, patient: Patient) -> None:
        self.patient = patient
        self.fed: list[int] = []
        self.said: list[Tensor] = []

    def __enter__(self) -> Overheard:
        model = self.patient.given.model
        self.hook = model.register_forward_hook(self.hear, with_kwargs=True) if isinstance(model, nn.Module) else None
        return self

    def __exit__(self, *problem: Any) -> None:
        if self.hook is not None:
            self.hook.remove()

    def hear(self, _: nn.Module, args: Any, kwargs: Mapping[str, Any], returned: Any) -> None:
        self.fed.append(length_of(args, kwargs))
        with contextlib.suppress(Exception):
            read = self.patient.read(returned, (1, self.fed[-1]))
            self.said.append(read[0, -1].detach().double().cpu()[: self.patient.vocab_size])


def length_of(args: Any, kwargs: Mapping[str, Any]) -> int:
    """How many tokens the model is given."""
    given = [*args, *kwargs.values()]
    tokens = next((one for one in given if torch.is_tensor(one) and not one.is_floating_point() and one.dim()), None)
    return 0 if tokens is None else int(tokens.shape[-1])


NAMES = ("past_key_values", "past_kv", "kv_cache", "kv_caches", "cache", "caches", "past", "layer_past")


def by_forward(patient: Patient) -> Finding | None:
    """A forward that takes a cache, and gives it back or fills it: one token at a time against the whole row."""
    if patient.form.full or patient.form.single or not patient.every_position:
        return None
    try:
        parameters = inspect.signature(getattr(patient.model, "forward", patient.model)).parameters
    except (TypeError, ValueError):
        return None
    name = next((name for name in NAMES if name in parameters), None)
    if name is None:
        return None
    row = patient.tokens(2, max(3, min(patient.length, 10)))
    whole = patient.logits(row)
    steps = [row[:, : row.shape[1] // 2], *row[:, row.shape[1] // 2 :].split(1, dim=1)]
    found, cache = [], None
    if hasattr(patient.model, "new_cache"):
        cache = patient.model.new_cache(len(row))
    asked = {"use_cache": True} if "use_cache" in parameters else {}
    with torch.no_grad(), patient.mode(training=False):
        for step in steps:
            given: dict[str, Any] = {name: cache, **asked} if cache is not None else {**asked}
            try:
                returned = patient.call(step, None, **given)
                found.append(patient.read(returned, step.shape))
            except Exception:
                return None  # a cache that is used in another way
            cache = returned_cache(returned, name) if not hasattr(patient.model, "new_cache") else cache
            if cache is None:
                return None
    got = torch.cat(found, dim=1).double()
    apart = ((got.softmax(-1) - whole.double().softmax(-1)).abs().sum(-1) / 2).nan_to_num(1.0).amax(0)
    worst, limit = float(apart.max()), APART[half(patient) > 1e-2]
    measured = f"with {name}, probabilities are up to {worst:.2g} away from those of the whole row"
    details: dict[str, Any] = {"value": worst, "limit": limit, "where": f"forward({name}=)"}
    if worst <= limit:
        return healthy(measured, EXPECTED, **details)
    first = int((apart > worst / 10).nonzero()[0]) - steps[0].shape[1] + 1
    return differs(measured, max(0, first), details)


def returned_cache(returned: Any, name: str) -> Any:
    """The cache in what a forward gave back."""
    if isinstance(returned, Mapping):
        return returned.get(name)
    if hasattr(returned, name):
        return getattr(returned, name)
    if isinstance(returned, (tuple, list)):
        for one in reversed(returned[1:]):
            if one is not None and not (torch.is_tensor(one) and one.dim() == 0):
                return one
    return None


class PlainFails(NotExamined):
    """Generation without a cache does not go either."""


def sampler_or_none(patient: Patient) -> Sampler | None:
    try:
        return Sampler(patient)
    except NotExamined:
        return None
