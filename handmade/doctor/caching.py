"""Decoding with a cache against decoding without one, wherever a person has the cache."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious
from handmade.doctor.patient import Patient
from handmade.doctor.sampler import Sampler, disorder, half

# Half the sum of differences between the probabilities of a step.
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
        details: dict[str, Any] = {"value": worst, "limit": limit, "where": "generate"}
        if worst > limit:
            return differs(measured, step, details)
        prompt, steps = end_of(patient)
        if steps == 0:
            return healthy(measured, EXPECTED, **details)
        try:
            sampler.new(prompt, steps, use_cache=False)
        except Exception:
            return healthy(f"{measured}; past the full context neither goes", EXPECTED, **details)
        across = compared(sampler, patient, prompt, steps)
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
    return patient.tokens(1, patient.context - 2), 5


def compared(sampler: Sampler, patient: Patient, prompt: Tensor, steps: int) -> tuple[float, int] | str:
    """The largest distance and the first step at which it is more than rounding; or how the cached one fails."""
    shape = (len(prompt), steps)
    forced = torch.randint(sampler.vocab_size, shape, generator=patient.generator).to(prompt.device)
    distances = []
    for row, choice in zip(prompt, forced, strict=True):
        plain = sampler.trace(row[None], choice[None], use_cache=False)
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
    """A generate that feeds one token at a time without being told, against the model's logits for the whole row."""
    sampler = sampler_or_none(patient)
    if sampler is None or not isinstance(patient.given.model, nn.Module) or patient.form.full:
        return None
    prompt, steps = start_of(patient)
    fed: list[int] = []
    hook = patient.module.register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(length_of(args, kwargs)), with_kwargs=True
    )
    forced = torch.randint(sampler.vocab_size, (1, steps), generator=patient.generator).to(prompt.device)
    with patient.mode(training=False):
        try:
            seen = sampler.trace(prompt[:1], forced)
        finally:
            hook.remove()
        if len(fed) < 3 or prompt.shape[1] < 2 or any(length != 1 for length in fed[1:]):
            return None
        if seen is None:
            return None
        row = torch.cat([prompt[:1], forced], dim=1)
        wanted = patient.logits(row) if patient.every_position else None
        found = []
        for step in range(steps):
            end = prompt.shape[1] + step
            logits = wanted[0, end - 1] if wanted is not None else patient.logits(row[:, :end])[0, -1]
            found.append(disorder(logits.double().cpu()[: sampler.vocab_size], seen[0, step], half(patient)))
        worst = max(found)
        measured = f"with its cache, {worst:.2g} of all pairs of tokens are in another order than without"
        details: dict[str, Any] = {"value": worst, "limit": DISORDER, "where": "generate"}
        if worst > DISORDER:
            return differs(measured, next(i for i, one in enumerate(found) if one > worst / 10), details)
        prompt, steps = end_of(patient)
        try:
            if steps:
                sampler.new(prompt, steps)
        except Exception as problem:
            said = str(problem).strip().splitlines()
            return failed(f"past the full context ({patient.context} tokens) {type(problem).__name__}: {said[0]}"[:80])
    return healthy(measured, EXPECTED, **details)


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


def sampler_or_none(patient: Patient) -> Sampler | None:
    try:
        return Sampler(patient)
    except NotExamined:
        return None
