"""A step of the optimizer: which gradients go into it, and when they are clipped.

A few calls of `train_step` are watched (or a whole script is, see `handmade.doctor.watching`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from handmade.doctor.checks.base import Check, check
from handmade.doctor.events import Changed, Clipped, Event, Unscaled, cleared, joined
from handmade.doctor.findings import Finding, NotExamined, healthy, sick
from handmade.doctor.patient import Patient
from handmade.doctor.rehearsing import observed
from handmade.doctor.updates import Update, divided, ratio_of

# Distance of the gradient of a step from the mean gradient of its backward calls, relative to that. Over 12 seeds,
# widths 16..256, 1..6 layers, V 11..500, 1..8 calls a step, float32, float64 and bfloat16 (tests/zoo/loop_*.py):
# 0..1e-7 in healthy loops; 0.19..5 where gradients are kept, 0.46..1 where they are cleared inside, n - 1 where nothing
# is divided by n.
DISTANCE = 0.05
# Weight of all backward calls of a step together. Over the same: 0.995..1.008 in healthy loops (bfloat16 rounds the
# losses), 1.98 and more where means are added up. A second loss beside the first one adds its share.
WEIGHT = 1.5
# Share of the steps, or calls, in which clipping comes at the wrong moment: counted, 0 or 1 in all loops of the zoo.
LATE = 0.5


def named(patient: Patient, keys: Iterable[int], most: int = 3) -> str:
    """Names of parameters, the first few."""
    model, wanted = patient.given.model, set(keys)
    known = {id(one): name for name, one in model.named_parameters()} if isinstance(model, nn.Module) else {}
    names = [name for key, name in known.items() if key in wanted]
    names += ["one outside the model"] * (len(wanted) > len(names))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def often(count: int, of: int) -> bool:
    """At least every other time: once may be a rehearsal, or a batch that was given up."""
    return count > 0 and 2 * count >= of


def plural(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


@check(
    "accumulation",
    "a step does not get the mean gradient of its batches",
    reference="PyTorch documentation, Automatic Mixed Precision examples: Gradient accumulation",
    needs=(),
    demonstration="""\
import torch
w = torch.nn.Parameter(torch.zeros(1))
def loss(x): return (w * x).mean()               # its gradient is x
for x in (1.0, 3.0):
    w.grad = None                                # wrong: clears what the batch before gave
    (loss(x) / 2).backward()
print("cleared inside the loop:", w.grad)        # 1.5: half of the last batch
w.grad = None
for x in (1.0, 3.0): loss(x).backward()
print("not divided by 2:", w.grad)               # 4: the sum
w.grad = None
for x in (1.0, 3.0): (loss(x) / 2).backward()
print("right:", w.grad)                          # 2: the mean
""",
)
def accumulation(patient: Patient) -> Finding:
    """A step of n backward calls has to be one with the gradient of their mean loss:

        g = 1/n (g_1 + ... + g_n),          d = |gradient at the step - g| / |g|

    What each backward call adds to the gradients is seen, so d is known: 0 when all is well; large where
    `zero_grad` stands inside the loop (only the last batch is left), n - 1 where nothing was divided by n, and
    growing where nothing is ever cleared (every step gets all gradients since the beginning).
    Whether a loss was divided is seen by its value, against the mean cross-entropy of its own batch.
    """
    seen = observed(patient)
    whole = seen.whole
    if not whole:
        raise NotExamined("no step was seen")
    if all(update.closure for update in whole):
        raise NotExamined("the backward call comes from within optimizer.step: what it gets is its own affair")
    whole = [update for update in whole if not update.closure]
    fed = [update for update in whole if update.backwards and update.keys]
    if not any(update.backwards or not cleared(update.stepped) for update in whole):
        return sick(
            f"{plural(len(whole), 'step')}, and not one backward call",
            "the mean gradient of its own backward calls, and nothing else",
            "the optimizer steps with no gradients: nothing is learnt",
            "loss.backward() before optimizer.step()",
            value=1.0,
            limit=DISTANCE,
        )
    if not fed:
        raise NotExamined("no backward call reached the parameters of the optimizer: see the check optimizer")
    later = [update for update in fed if update is not seen.updates[0]]

    # None of the three has a threshold: a gradient is there, or it is not.
    lost = [update for update in fed if 2 * len(update.lost()) > len(update.keys)]
    stale = [update for update in later if update.stale()]
    size = round(sum(len(update.backwards) for update in fed) / len(fed))
    distances = [distance(update) for update in later or fed]
    value = sorted(distances)[len(distances) // 2]
    calls = plural(size, "backward call")
    details: dict[str, Any] = {"value": value, "limit": DISTANCE}
    expected = "the mean gradient of its own backward calls, and nothing else"
    if often(len(lost), len(fed)):
        if all(cleared(update.stepped) for update in lost):
            return sick(
                f"gradients were cleared after backward and before the step, in {len(lost)} of {len(fed)} steps",
                expected,
                "zero_grad stands between backward and step: the optimizer steps with nothing",
                "call optimizer.zero_grad() after optimizer.step(), or before the backward call",
                **details,
            )
        return sick(
            f"{calls} a step, and gradients are cleared between them: only the last one counts",
            expected,
            "zero_grad stands inside the accumulation loop: the work of all batches but the last is thrown away, "
            "and the step is as noisy as one of a small batch",
            "call optimizer.zero_grad() once per step, outside the loop over micro-batches",
            **details,
        )
    if all(cleared(one.after) for update in fed for one in update.backwards):
        return sick(
            f"all gradients are exactly 0, in all {plural(len(fed), 'step')}",
            "gradients",
            "the loss does not move when weights do: it is multiplied by 0, saturated, or rounded away",
            "print the gradient of the logits, then follow it back to where it becomes 0",
            value=1.0,
            limit=DISTANCE,
        )
    if often(len(stale), len(later)):
        keys = sorted({key for update in stale for key in update.stale()})
        all_of_them = len(keys) >= len(later[-1].keys)
        where = "" if all_of_them else named(patient, keys)
        what = "all parameters" if all_of_them else f"{len(keys)} of {len(later[-1].keys)} parameters"
        return sick(
            f"{what} still had the gradient of the step before when backward was called",
            expected,
            "nothing clears these gradients: every step is made with the sum of all since the beginning",
            "call optimizer.zero_grad() once per step" + ("" if all_of_them else ", of every optimizer"),
            where=where,
            **details,
        )
    weighed = [weight for update in fed if (weight := weight_of(update)) is not None]
    weight = sorted(weighed)[len(weighed) // 2] if weighed else None
    scaled = any(one.scaled for update in fed for one in update.backwards)
    if weight is not None and scaled and weight > 2 * max(size, 1):
        return sick(
            f"the gradient of a step is {weight:.4g} times that of the mean loss: the scale is still in it",
            expected,
            "GradScaler multiplied the loss, and nothing divided the gradients: scaler.step does, optimizer.step not",
            "call scaler.step(optimizer) and scaler.update() in place of optimizer.step()",
            value=weight,
            limit=WEIGHT,
        )
    several = size > 1 and all(update.own_batches() for update in fed if len(update.backwards) > 1)
    if several and weight is not None and weight > WEIGHT:
        return sick(
            f"{calls} a step, and its gradient is {weight:.3g} times that of their mean loss",
            expected,
            f"{size} mean losses are added up: the rate is {size} times what it says (where Adam does not divide it "
            f"out again), and a limit on the norm bites {size} times as early",
            f"(loss / {size}).backward()",
            **details,
        )
    if several and weight is not None and weight < 1 / WEIGHT and abs(weight * size - 1) < 0.2:
        return sick(
            f"{calls} a step, and its gradient is {weight:.3g} times that of their mean loss",
            expected,
            f"it is divided by {size} twice: the steps are {size} times too small (where Adam does not make up for it)",
            "divide once: the losses or the gradients",
            **details,
        )
    if size > 1 and not several:
        return healthy(f"{calls} a step, of one batch; gradients are cleared before each step", expected, value=value)
    if size > 1 and weight is None:
        raise NotExamined(f"{calls} a step, nothing cleared between them; the mean loss of a batch could not be seen")
    share = "" if weight is None else f", {weight:.3g} times the mean gradient"
    return healthy(f"{calls} a step{share}; gradients are cleared before each step", expected, **details)


def weight_of(update: Update) -> float | None:
    """What the losses of an update weigh together: 1 for a mean."""
    weights = update.weights()
    return None if weights is None else sum(weights) * update.factor()


def distance(update: Update) -> float:
    """d of `accumulation`. Where the mean loss is not known the sum is taken to be right."""
    added = update.added()
    weight = weight_of(update) if len(added) > 1 and update.own_batches() else None
    rightly = weight is None or 1 / WEIGHT <= weight <= WEIGHT
    whole = 1 / update.factor() * (1.0 if rightly else weight or 1.0)
    mean = torch.stack(added).sum(0) / whole
    last = update.backwards[-1].after
    gradients, factor = update.stepped, update.steps[0].factor
    if update.clipped() and not cleared(gradients):  # as they were before
        gradients, factor = last, update.factor()
    gradients = {key: one * factor for key, one in gradients.items()}
    difference = joined(gradients, update.keys, update.like) - mean
    return float(difference.norm() / mean.norm().clamp_min(1e-30))


@check(
    "clipping",
    "gradients are clipped at the wrong moment",
    reference="Pascanu, Mikolov and Bengio 2013 (arXiv:1211.5063), section 3.2; PyTorch documentation, Automatic "
    "Mixed Precision examples: Gradient clipping",
    needs=(),
    demonstration="""\
import torch
w = torch.nn.Parameter(torch.zeros(1))
def step(scale, unscale_first):
    w.grad = None
    (3.0 * w * scale).sum().backward()            # the gradient is 3, times the scale
    if unscale_first: w.grad /= scale
    torch.nn.utils.clip_grad_norm_([w], 1.0)
    if not unscale_first: w.grad /= scale
    return w.grad.item()
print("clipped before unscaling:", step(1024.0, False))   # 1/1024: almost nothing is left
print("right:                   ", step(1024.0, True))    # 1
""",
)
def clipping(patient: Patient) -> Finding:
    """Clipping shortens the gradient of a step to a limit c:

        g <- g min(1, c / |g|)

    It has to be done once per step, after the last backward call (on the whole gradient), after the scale of mixed
    precision was taken out (else the limit is c over the scale, 65536 at first), and before the step.
    Calls of clip_grad_norm_ and clip_grad_value_ are seen, and gradients that the script changes by itself.
    """
    seen = observed(patient)
    whole = [update for update in seen.whole if update.backwards and not update.closure]
    found = [event for update in seen.whole for event in update.events if isinstance(event, Clipped)]
    by_hand = [update for update in whole if changed_under_scale(update.split()[2])]
    if not found and not by_hand:
        raise NotExamined("nothing was clipped")
    if not whole:
        raise NotExamined("no step was seen with a backward call before it")
    expected = "once per step: after the last backward call, without the scale, before the step"
    if found and not any(one.parameters for one in found):
        return sick(
            "clipping was called with no parameters at all",
            expected,
            "model.parameters() is a generator: once the optimizer has gone through it, nothing is left for clipping",
            "hand clip_grad_norm_ a fresh model.parameters(), or a list",
            value=1.0,
            limit=LATE,
        )
    scaled = [one for one in found if one.scaler is not None]
    on = [one for one in scaled if one.scaler is not None and one.scaler.is_enabled()]
    asked = [one for one in scaled if any(one.scaler is scaler for scaler in seen.observation.wanted)]
    if often(len(on), len(found)) or often(len(asked), len(found)) or often(len(by_hand), len(whole)):
        factor = next((e.factor for u in whole for e in u.events if isinstance(e, Unscaled) and e.factor < 1), None)
        limit = "" if factor is None or not scaled else f", so the limit is {scaled[0].limit * factor:.2g}"
        off = "" if on or by_hand else " (the scaler is off on this machine; where it is on, this happens)"
        return sick(
            f"gradients are clipped while they have the scale of the GradScaler{limit}{off}",
            expected,
            "the limit is meant for gradients, and is put on gradients times the scale (65536 at first): every step "
            "is cut down to almost nothing, or by another amount whenever the scale changes",
            "scaler.unscale_(optimizer) before clip_grad_norm_",
            value=max(len(on) / max(1, len(found)), len(asked) / max(1, len(found)), len(by_hand) / len(whole)),
            limit=LATE,
        )
    if scaled and not asked:
        raise NotExamined("clipping comes before unscaling, which does no harm here: the GradScaler is off")
    early = [update for update in whole if only_early(update)]
    if often(len(early), len(whole)):
        empty = all(cleared(one.before) for update in early for one in clips(update.split()[0]))
        return sick(
            "gradients are clipped before the backward call, when there are none"
            if empty
            else "gradients are clipped after the step that used them",
            expected,
            "what the optimizer steps with is not clipped: one bad batch can throw the weights away",
            "clip between loss.backward() and optimizer.step()",
            value=len(early) / len(whole),
            limit=LATE,
        )
    midst = [
        update for update in whole if len(update.backwards) > 1 and any(bites(c) for c in clips(update.split()[1]))
    ]
    if often(len(midst), len(whole)):
        return sick(
            f"gradients are clipped inside the accumulation loop, {len(midst[0].backwards)} times a step",
            expected,
            "the sum so far is cut down again and again: the first batches of a step count less than the last",
            "clip once, after the loop over micro-batches",
            value=len(midst) / len(whole),
            limit=LATE,
        )
    moved = [ratio for update in whole if (ratio := after_clipping(update)) is not None]
    if often(len(moved), len(whole)):
        last = clips(whole[-1].split()[2])[-1]
        return sick(
            f"gradients are multiplied by {moved[0]:.3g} after they are clipped at {last.limit:g}",
            expected,
            f"the limit is {last.limit * moved[0]:.3g}, not {last.limit:g}: gradients were clipped before the scale "
            "or the number of batches was divided out",
            "divide first, clip then",
            value=len(moved) / len(whole),
            limit=LATE,
        )
    words = " and ".join(dict.fromkeys(f"{one.kind} at {one.limit:g}" for one in found))
    norms = [one.norm for one in found if one.norm is not None and math.isfinite(one.norm)]
    sizes = f"; norms {min(norms):.2g} to {max(norms):.2g}" if norms else ""
    bit = sum(bites(one) for one in found)
    return healthy(
        f"{words}, before the step; it bites in {bit} of {len(found)} calls{sizes}", expected, value=0.0, limit=LATE
    )


def clips(events: list[Event]) -> list[Clipped]:
    return [event for event in events if isinstance(event, Clipped)]


def bites(clip: Clipped) -> bool:
    """Whether it changed anything."""
    return clip.norm > clip.limit if clip.norm is not None else ratio_of(clip.before, clip.after) != 1.0


def only_early(update: Update) -> bool:
    """Clipping between the step before and the first backward call, and none where it would count."""
    early, midst, late = update.split()
    return bool(clips(early)) and not clips(midst) and not clips(late)


def after_clipping(update: Update) -> float | None:
    """By what the script multiplied gradients after the last clipping; None where it left them alone."""
    late = update.split()[2]
    places = [place for place, event in enumerate(late) if isinstance(event, Clipped)]
    if not places:
        return None
    product = math.prod(
        ratio for event in late[places[-1] :] if isinstance(event, Changed) and (ratio := divided(event)) is not None
    )
    return product if product != 1 else None


def changed_under_scale(late: list[Event]) -> bool:
    """Whether the script itself shortened gradients, not by a whole number, before the scale was taken out."""
    for place, event in enumerate(late):
        if isinstance(event, Changed) and divided(event) is None and not cleared(event.after):
            smaller = all(
                bool((event.after[key].abs() <= event.before[key].abs() * (1 + 1e-6)).all())
                for key in event.after
                if key in event.before
            )
            unscaled = [one for one in late[place:] if isinstance(one, Unscaled) and one.factor < 1]
            if smaller and unscaled:
                return True
    return False


CHECKS: tuple[Check, ...] = (accumulation, clipping)
