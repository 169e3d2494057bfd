"""Sampling: the mask, the cache, the temperature and the filters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from handmade.doctor import caching
from handmade.doctor.checks.base import Check, check
from handmade.doctor.findings import Finding, NotExamined, healthy, sick
from handmade.doctor.patient import Patient
from handmade.doctor.sampler import Sampler, Watch, disorder, half, learnt, roles_of, widen
from handmade.doctor.shares import Filter, Prompt, distance, powered, wrong

ORDER = ("sick", "suspicious", "healthy")

# ---------------------------------------------------------------------------------------------------------------
# The mask

# Pairs of tokens of which the model, as it is trained, finds the first likelier and generate the second. 48 healthy
# models (width 16 to 256, 1 to 6 layers, 11 to 500 tokens, float32, float64, bfloat16): 0. Without a mask in sampling,
# 2 to 6 layers: 0.08 to 0.35.
DISORDER = 1e-3
ROWS = 4


@check(
    "sampling-mask",
    "what is drawn is not what was learnt: no mask in sampling, or another mode",
    reference="Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.3: the mask is part of the model",
    needs=("callable",),
    demonstration="""\
import torch
torch.manual_seed(0)
x = torch.randn(6, 8)                                            # six tokens, two layers of attention
def layer(x, causal):
    scores = x @ x.T / 8**0.5
    if causal:
        scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    return x + scores.softmax(-1) @ x
print("trained:", layer(layer(x, True), True)[-1, :3])
print("sampled without the mask:", layer(layer(x, False), False)[-1, :3])
""",
)
def sampling_mask(patient: Patient) -> Finding:
    """The first new token's distribution in `generate` against the model's logits in training mode, without dropout:

        d = pairs (a, b) of tokens with logit(a) > logit(b) and p(a) < p(b) / all pairs

    Temperature and filters keep the order, so they do not count. In one layer the last token sees the same with and
    without a mask; from the second on the tokens before it have seen what they should not. Weights of an untrained
    model are first made larger, so that it shows. Then: does `generate` leave the model in the mode in which it was?
    """
    sampler = Sampler(patient)
    left = mode_left(patient, sampler)
    widen(patient)
    lengths = [patient.context] if patient.form.full else sorted({min(5, patient.length), min(24, patient.length)})
    value, seen = 0.0, ""
    for length in lengths:
        tokens = patient.tokens(ROWS, length)
        wanted = learnt(patient, tokens)
        found, seen = against(patient, sampler, tokens, wanted)
        value = max(value, found)
    measured = f"{value:.2g} of all pairs of tokens are in another order than in training{seen}"
    expected = f"at most {DISORDER:g}"
    if value > DISORDER:
        tokens = patient.tokens(ROWS, lengths[-1])
        with_mode = max(
            disorder(a, b) for a, b in zip(learnt(patient, tokens), patient.logits(tokens)[:, -1], strict=True)
        )
        cause = "generate does not call the model as training does: without its mask, or with other positions or tokens"
        if with_mode > DISORDER:
            cause = "in evaluation mode the model computes something else: a mask that is used while training only"
        remedy = "use the same causal mask always: is_causal=True, not is_causal=self.training"
        return sick(
            measured, expected, cause + ". What it learnt is then worth little", remedy, value=value, limit=DISORDER
        )
    if left is not None:
        return left
    return healthy(measured, expected, value=value, limit=DISORDER)


def against(patient: Patient, sampler: Sampler, tokens: Tensor, wanted: Tensor) -> tuple[float, str]:
    """How far what generate draws is from what was learnt, and how that was seen."""
    tolerance = half(patient)
    cache = {"use_cache": False} if "use_cache" in sampler.roles else {}
    with patient.mode(training=False):
        seen = sampler.trace(tokens, sampler.any_tokens(len(tokens), tokens.device), **cache)
        if seen is not None:
            return max(disorder(a, b, tolerance) for a, b in zip(wanted, seen[:, 0], strict=True)), ""
        options = sampler.greedily() or ({} if repeats(sampler, tokens) else None)
        if options is not None:
            more = patient.tokens(16, tokens.shape[1])
            logits = learnt(patient, more)
            drawn = sampler.new(more, 1, **options, **cache)[:, 0].cpu()
            best = logits.max(-1).values
            behind = (best - logits.gather(1, drawn[:, None])[:, 0]) / logits.std(-1)
            return float((behind > tolerance).double().mean()), " (by the likeliest token)"
        shares, many = sampler.distribution(tokens[0], **cache)
        return disorder(wanted[0], shares, tolerance, many), f" (by {many:,} draws)" if many else ""


def repeats(sampler: Sampler, tokens: Tensor) -> bool:
    """Whether generate draws nothing: the same token under every seed, and for every copy of a prompt."""
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        found.append(sampler.new(tokens.repeat(4, 1), 1).view(4, len(tokens)))
    return not sampler.alone and bool((torch.stack(found) == found[0][:1]).all())


def mode_left(patient: Patient, sampler: Sampler) -> Finding | None:
    """A generate that leaves the model in another mode, where modes matter."""
    if not isinstance(patient.given.model, nn.Module):
        return None
    tokens = patient.tokens(1, patient.context if patient.form.full else min(3, patient.length))
    with torch.no_grad(), patient.mode(training=True):
        try:
            if torch.equal(patient.run(tokens), patient.logits(tokens)):
                return None
        except Exception:  # a batch norm of one row
            return None
    for training in (True, False):
        with patient.mode(training=training):
            before = {path: one.training for path, one in patient.modules.items()}
            during: list[bool] = []
            note = functools.partial(lambda kept: kept.append(patient.module.training), during)
            with Watch(torch.zeros(1, 1, dtype=torch.int64), note):
                sampler.new(tokens, 1)
            after = {path: one.training for path, one in patient.modules.items()}
        names = ("evaluation", "training")
        details: dict[str, Any] = {"value": 1, "limit": 0, "where": "generate"}
        if not training and any(during):
            return sick(
                "generate puts the model into training mode before it draws",
                "evaluation mode",
                "with dropout on, other features are missing at every token",
                "model.eval() before sampling, and afterwards model.train(was_training)",
                **details,
            )
        if before != after:
            return sick(
                f"generate leaves the model in {names[not training]} mode; before, it was in {names[training]} mode",
                "the mode in which it was",
                "the steps after it train without dropout" if training else "what is evaluated after it has dropout on",
                "was_training = model.training; model.eval(); ...; model.train(was_training)",
                **details,
            )
    return None


# ---------------------------------------------------------------------------------------------------------------
# The cache


@check(
    "cached-generation",
    "generation with a cache differs from generation without one",
    reference="Shazeer 2019 (arXiv:1911.02150), section 2.4: incremental decoding computes the same",
    needs=("callable",),
    demonstration="""\
import torch
torch.manual_seed(0)
tokens, places = torch.randn(6, 8), torch.randn(6, 8)
def attend(x):
    return (x[-1] @ x.T / 8**0.5).softmax(-1) @ x
print("without a cache:      ", attend(tokens + places)[:3])
cached = tokens[:5] + places[:5]                                 # kept from before
print("place of the new one: ", attend(torch.cat([cached, tokens[5:] + places[5:]]))[:3])
print("place 0 for each new: ", attend(torch.cat([cached, tokens[5:] + places[:1]]))[:3])
""",
)
def cached_generation(patient: Patient) -> Finding:
    """The same tokens with and without a cache, step by step, and across the end of the context:

        d = max over steps of  sum |p_cached - p_uncached| / 2

    Looked at are `generate(use_cache=...)`; a `generate` that by itself feeds one token at a time, against the model's
    logits for the whole row; and a forward that takes a cache (`new_cache` and `cache=`, or `past_key_values`).
    Where the two differ only after the context is full, another window may be meant: `expect={"cache_window": True}`.
    """
    widen(patient)
    found = caching.by_option(patient) or caching.by_habit(patient) or caching.by_forward(patient)
    if found is None:
        raise NotExamined("no cache was seen: generate has no use_cache, and forward takes none")
    return found


# ---------------------------------------------------------------------------------------------------------------
# The temperature

# Half the sum of differences to softmax(logits / t), over 24 models of width 16 to 256, 1 to 6 layers and 11 to 500
# tokens. Probabilities that are seen: float32 up to 2e-6, float64 2e-16, bfloat16 0.001; twins with a mistake 0.18 to
# 0.84. Draws that are counted, 1,500 of them: up to 0.03 more than chance.
APART = {False: 1e-3, True: 0.05}
DRAWN_APART = 0.08
TEMPERATURES = (0.5, 2.0)


@check(
    "temperature",
    "the temperature is applied to probabilities, or the wrong way",
    reference="Hinton, Vinyals and Dean 2015 (arXiv:1503.02531), section 2, equation 1",
    needs=(),
    demonstration="""\
import torch
logits, t = torch.tensor([3.0, 1.0, 0.0]), 0.5
print("right:           ", (logits / t).softmax(-1))
print("on probabilities:", (logits.softmax(-1) / t).softmax(-1))    # nearly all the same
print("not normalised:  ", torch.nn.functional.normalize(logits.softmax(-1) / t, p=1, dim=-1))     # no effect
print("multiplied:      ", (logits * t).softmax(-1))
""",
)
def temperature(patient: Patient) -> Finding:
    """What is drawn from at temperature t against what is drawn from at 1:

        p_t = softmax(logits / t) ~ p_1 ^ (1 / t)

    Compared with other things that people write: no effect (probabilities divided by t are normalised again by the
    draw), the logits multiplied by t, softmax(p / t) of the probabilities p. Where what is drawn from at 1 is not
    softmax(logits) for another reason, that is taken as p_1.
    """
    found = []
    if patient.given.filters is not None and "temperature" in roles_of(patient.given.filters):
        filter_ = Filter(patient)
        found.append(heat(patient, filter_.before, filter_.shares, "filters"))
    sampler = sampler_of(patient)
    if sampler is not None and "temperature" in sampler.roles:
        widen(patient)
        with patient.mode(training=False):
            prompt = Prompt(patient, sampler)
            found.append(heat(patient, prompt.learnt, prompt.shares, "generate"))
    if not found:
        raise NotExamined("not given: filters or generate with a temperature")
    return min(found, key=lambda one: ORDER.index(one.verdict))


def heat(patient: Patient, base: Tensor, shares: Callable[..., tuple[Tensor, int]], where: str) -> Finding:
    """Judge the temperature of what gives shares for options; `base`: softmax(logits)."""
    first, drawn = shares()
    limit = DRAWN_APART if drawn else APART[half(patient) > 1e-2]
    worst, name = distance(first, base, drawn), ""
    if worst > limit and distance(first, base.softmax(-1), drawn) > limit:
        if drawn:
            raise NotExamined("at temperature 1, what generate draws is not what the model says")
        worst, base = 0.0, first
    for t in TEMPERATURES:
        got, _ = shares(temperature=t)
        others = {
            "it has no effect": base,
            "the logits are multiplied by it": powered(base, t),
            "softmax(probabilities / t)": (base / t).softmax(-1),
        }
        right = distance(got, powered(base, 1 / t), drawn)
        if right > worst:
            worst = right
            apart = {said: distance(got, one, drawn) for said, one in others.items()}
            likeliest = min(apart, key=apart.__getitem__)
            name = f": {likeliest}" if apart[likeliest] <= limit else ""
    measured = f"{where} is {worst:.2g} away from softmax(logits / t)"
    details: dict[str, Any] = {"value": worst, "limit": limit, "where": where}
    if worst <= limit:
        return healthy(measured, f"at most {limit:g}", **details)
    return sick(
        measured + name,
        f"at most {limit:g}",
        "a temperature below 1 then does not sharpen as it should: text is too wild or too dull at every setting",
        "logits = logits / temperature, before the softmax",
        **details,
    )


def sampler_of(patient: Patient) -> Sampler | None:
    if patient.failure is not None:
        return None
    try:
        return Sampler(patient)
    except NotExamined:
        return None


# ---------------------------------------------------------------------------------------------------------------
# The filters


@check(
    "filters",
    "a filter can remove every token, or keeps the wrong ones",
    reference="Holtzman et al. 2020 (arXiv:1904.09751), section 3.1, equation 2",
    needs=(),
    demonstration="""\
import torch
p = torch.tensor([0.9, 0.06, 0.04])                              # already sorted
above = p.cumsum(-1) > 0.5
print("kept, wrong:", p.masked_fill(above, 0))                   # nothing is left: 0 / 0 is NaN
print("kept, right:", p.masked_fill(p.cumsum(-1) - p >= 0.5, 0)) # the token that crosses stays
""",
)
def filters(patient: Patient) -> Finding:
    """For every row, whatever the options:

        top-k   the k likeliest tokens stay (all of them, if k is larger than the vocabulary)
        top-p   the likeliest tokens that together have at least p stay, so one at least

    and what stays keeps its proportions. Tried on rows with one sure token, with equal ones, with tokens that are left
    out already, and on several rows at once. An error for an option out of range is well.
    """
    found = []
    if patient.given.filters is not None and {"top_k", "top_p"} & set(roles_of(patient.given.filters)):
        filter_ = Filter(patient)
        found.append(kept(filter_.shares, filter_.before, set(filter_.roles), "filters"))
    sampler = sampler_of(patient)
    if sampler is not None and {"top_k", "top_p"} & set(sampler.roles):
        widen(patient)
        with patient.mode(training=False):
            prompt = Prompt(patient, sampler, 300)
            before, many = prompt.shares()
            before = prompt.learnt if many else before
            slack = SLACK[half(patient) > 1e-2]
            found.append(kept(prompt.shares, before, set(sampler.roles), "generate", many, slack))
    if not found:
        raise NotExamined("not given: filters or generate with top_k or top_p")
    return min(found, key=lambda one: ORDER.index(one.verdict))


REFUSALS = (ValueError, AssertionError, IndexError, RuntimeError, TypeError)


# How much of the probability may be lost to rounding: sums over 500 tokens in bfloat16 are off by up to 0.005.
SLACK = {False: 1e-4, True: 0.02}


def kept(
    shares: Callable[..., Any], before: Tensor, roles: set[str], where: str, drawn: int = 0, slack: float = SLACK[False]
) -> Finding:
    """Judge the filters of what gives shares for options."""
    size = before.shape[-1]
    top = float(before.max(-1).values.min())
    tried = [("top_k", k) for k in (1, 3, size, size + 5)] + [("top_p", p) for p in (1e-4, top / 2, 0.5, 0.7, 0.95)]
    tried = [(role, value) for role, value in tried if role in roles]
    for role, value in tried:
        sane = role == "top_p" or value <= size
        try:
            after, _ = shares(**{role: value})
            said = "" if not sane and drawn else wrong(before, after, role, value, bool(drawn), slack)
        except NotExamined:
            raise
        except REFUSALS as problem:
            said = f"it fails: {type(problem).__name__}: {problem}"[:70] if sane else ""
        if said:
            return sick(
                f"{role} = {value:.4g}: {said}",
                "the likeliest tokens stay, one at least",
                "a row without tokens gives NaN and stops the sampling; a wrong set changes what is written",
                REMEDIES[role],
                value=1,
                limit=0,
                where=where,
            )
    return healthy(f"{len(tried)} settings of {where} keep the likeliest tokens", "as they should", value=0, limit=0)


REMEDIES = {
    "top_k": "smallest = logits.topk(min(k, V)).values[..., -1:]; logits.masked_fill(logits < smallest, -inf)",
    "top_p": "drop where cumsum - p >= top_p, in sorted order, and bring the mask back with scatter",
}


CHECKS: tuple[Check, ...] = (sampling_mask, cached_generation, temperature, filters)
