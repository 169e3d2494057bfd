"""The learning rate: what was stated, against what the optimizer has."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from handmade.doctor.checks.base import Check, check
from handmade.doctor.courses import CLOSE, length_of, walked
from handmade.doctor.events import Scheduled, Stepped, Written
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious
from handmade.doctor.patient import Patient
from handmade.doctor.rehearsing import Seen, observed, optimizers_of

RATES = {"lr", "learning_rate", "learningrate", "rate", "eta"}
"""What a rate is called where nothing reads it. In a group only "lr" is read."""
AHEAD = 4
"""Steps by which a training may be ahead of the schedule's step 0."""
LONG = 200
"""A warm-up or a decay over so many calls is counted in steps: epochs are fewer."""


@check(
    "schedule",
    "the learning rate is not the one that was stated",
    reference="PyTorch documentation, torch.optim: How to adjust learning rate",
    needs=(),
    demonstration="""\
import torch
w = torch.nn.Parameter(torch.zeros(1))
optimizer = torch.optim.SGD([w], lr=1.0)
def step():
    before = w.item()
    w.grad = torch.ones(1)
    optimizer.step()
    return before - w.item()                    # the rate that was used
optimizer.lr = 0.1                              # wrong: makes an attribute that nothing reads
print("after optimizer.lr = 0.1:", step())      # 1.0
for group in optimizer.param_groups: group["lr"] = 0.1
print("after group['lr'] = 0.1:", step())       # 0.1
""",
)
def schedule(patient: Patient) -> Finding:
    """The rate of every group at every step that is watched has to be the stated one:

        group["lr"] at step i  =  schedule(i)

    Optimizers read `param_groups` alone: a rate written to `optimizer.lr` or `optimizer.defaults` changes nothing, nor
    does a torch scheduler that is never stepped or that drives another optimizer. `scheduler.step()` before the
    optimizer's first step leaves the first rate out. With `steps` given the stated schedule is walked through to its
    end: rates below 0, outside `schedule_bounds` (a warm-up may begin below them), or rising again after they fell.
    """
    given = patient.given
    stated = given.schedule
    seen = None
    if given.train_step is not None or getattr(given, "observation", None) is not None:
        try:
            seen = observed(patient)
        except NotExamined:
            if stated is None:
                raise
    if stated is None and seen is None:
        raise NotExamined("not given: schedule, train_step")
    schedulers = ([stated] if isinstance(stated, LRScheduler) else []) or (outer(seen) if seen is not None else [])
    found = foreign(patient, schedulers, seen)
    if seen is not None:
        found = found or unread(seen, stated, schedulers)
        found = found or order(seen, schedulers)
        if callable(stated) and not isinstance(stated, LRScheduler):
            found = found or compared(seen, stated)
        found = found or uneven(seen)
    if stated is not None and not isinstance(stated, LRScheduler) and not callable(stated):
        raise NotExamined(f"schedule: a {type(stated).__name__} is neither a function of the step nor a scheduler")
    if seen is not None:
        found = found or waiting(patient, seen, schedulers)
    found = found or walked(patient)
    if found is not None:
        return found
    if seen is None:
        if given.steps is None:
            raise NotExamined("not given: train_step, steps: neither what is used nor where it goes can be seen")
        return healthy(f"{given.steps} steps within bounds; whether they reach the optimizer: give train_step")
    rates = [step.rates for step in seen.observation.of(Stepped) if step.rates]
    if not rates:
        raise NotExamined("weights were changed by hand: there is no optimizer with a rate")
    first = ", ".join(f"{one[0]:.3g}" for one in rates[:4])
    if stated is None and not schedulers:
        return healthy(f"rates {first}; no schedule was stated", "what was stated")
    return healthy(f"rates {first}", "what was stated", value=0.0, limit=CLOSE)


def outer(seen: Seen) -> list[LRScheduler]:
    """Schedulers that are no part of another one."""
    inner = {id(one) for each in seen.observation.schedulers for one in getattr(each, "_schedulers", ())}
    return [one for one in seen.observation.schedulers if id(one) not in inner]


def foreign(patient: Patient, schedulers: Sequence[LRScheduler], seen: Seen | None) -> Finding | None:
    """A scheduler of an optimizer that is not the one that steps."""
    stepping = [step.optimizer for step in seen.observation.of(Stepped)] if seen is not None else []
    used = [one for one in stepping if one is not None] or optimizers_of(patient.given)
    for scheduler in schedulers:
        driven = getattr(scheduler, "optimizer", None)
        if used and isinstance(driven, Optimizer) and not any(driven is one for one in used):
            return sick(
                f"the {type(scheduler).__name__} drives another optimizer than the one that steps",
                "the same one",
                "the optimizer was made anew after the scheduler, so that the rate never changes",
                "make the scheduler after the optimizer that is used",
                value=1.0,
                limit=0.0,
            )
    return None


def unread(seen: Seen, stated: Any, schedulers: Sequence[LRScheduler]) -> Finding | None:
    """A rate that is written where no step reads it."""
    steps = [step for step in seen.observation.of(Stepped) if step.optimizer is not None]
    written = [one for one in seen.observation.of(Written) if one.name.lower() in RATES and not one.known]
    if written:
        name = written[0].name
        values = ", ".join(f"{float(one.value):.3g}" for one in written[:3] if isinstance(one.value, (int, float)))
        used = steps[-1].rates[0] if steps and steps[-1].rates else math.nan
        where, what = f"optimizer.{name}", f" ({values})"
    else:
        where, what, used = elsewhere(steps), "", steps[-1].rates[0] if steps and steps[-1].rates else math.nan
        if not where:
            return None
    return sick(
        f"the rate is written to {where}{what}, which nothing reads; every step is made with {used:.3g}",
        "the rate in optimizer.param_groups",
        "Python makes a new attribute or key and says nothing: warm-up and decay never happen",
        'for group in optimizer.param_groups: group["lr"] = rate',
        where=where,
        value=1.0,
        limit=0.0,
    )


def elsewhere(steps: Sequence[Stepped]) -> str:
    """Where else than in "lr" a rate was left: an attribute from before, a key that is none, the defaults."""
    for step in steps:
        optimizer: Any = step.optimizer
        if type(optimizer).__module__.startswith("torch.optim"):
            for name in vars(optimizer):
                if name.lower() in RATES and not hasattr(type(optimizer), name):
                    return f"optimizer.{name}"
            for name in step.names - {"lr"} - set(optimizer.defaults):
                if name.lower() in RATES:
                    return f'param_groups[0]["{name}"]'
    for each in {id(step.optimizer): step.optimizer for step in steps}.values():
        own = [step for step in steps if step.optimizer is each]
        if len({step.default for step in own}) > 1 and len({tuple(step.rates) for step in own}) == 1:
            return 'optimizer.defaults["lr"]'
    return ""


def order(seen: Seen, schedulers: Sequence[LRScheduler]) -> Finding | None:
    """`scheduler.step()` before the first step of the optimizer, or a rate that something else writes over."""
    events = [event for event in seen.observation.events if isinstance(event, (Stepped, Scheduled))]
    steps = [place for place, event in enumerate(events) if isinstance(event, Stepped)]
    for scheduler in schedulers:
        own = [place for place, one in enumerate(events) if isinstance(one, Scheduled) and one.scheduler is scheduler]
        if not own or not steps:
            continue
        # One call before each step. Several before the first one bring a schedule to where it was left.
        before = [sum(last < place < step for place in own) for last, step in zip([-1, *steps], steps, strict=False)]
        if len(before) > 1 and all(count == 1 for count in before):
            return sick(
                f"{type(scheduler).__name__}.step() is called before the optimizer's first step",
                "optimizer.step(), then scheduler.step()",
                "the first rate of the schedule is left out, and every later one comes a step early",
                "call scheduler.step() after optimizer.step()",
                value=1.0,
                limit=0.0,
            )
        overwritten = [
            (events[place].rates, events[between].rates)
            for place, following in itertools.pairwise(own)
            for between in steps
            if place < between < following and getattr(events[between], "optimizer", None) is scheduler.optimizer
        ]
        wrong = [
            [(a, b) for a, b in zip(said, used, strict=False) if abs(a - b) > CLOSE * max(abs(a), abs(b))]
            for said, used in overwritten
        ]
        if wrong and 2 * sum(map(bool, wrong)) >= len(wrong):
            said, used = next(pairs[0] for pairs in wrong if pairs)
            return sick(
                f"the scheduler says {said:.3g} and the step is made with {used:.3g}",
                "the scheduler's rate",
                "something else writes the rate after scheduler.step(): a second schedule, or the rate it began with",
                'let one of them set group["lr"]',
                value=abs(used / said - 1) if said else math.inf,
                limit=CLOSE,
            )
    return None


def compared(seen: Seen, stated: Any) -> Finding | None:
    """The rates that were used beside those of a function."""
    own = seen.updates
    used = [rate for update in own for rate in [[r for step in update.steps for r in step.rates]] if update.steps]
    if not used or not used[0] or len({len(rates) for rates in used}) > 1:
        return None
    places = [place for place, update in enumerate(own) if update.steps]
    columns = list(zip(*used, strict=True))
    times = None
    for ahead in range(AHEAD + 1):
        wanted = [float(stated(place + ahead)) for place in places]
        factors = [factor_between(column, wanted) for column in columns]
        if all(factor is not None for factor in factors):
            if any(abs(factor - 1) < 1e-3 for factor in factors if factor is not None):
                return None
            times = times or factors[0]
    wanted = [float(stated(place)) for place in places]
    details: dict[str, Any] = {"limit": CLOSE}
    expected = f"the stated {', '.join(f'{rate:.3g}' for rate in wanted[:4])}"
    if times is not None:
        return sick(
            f"every rate is {times:.3g} times the stated one",
            expected,
            "the schedule is multiplied by another rate on its way: LambdaLR multiplies the optimizer's own",
            "state the rate that is meant, or give LambdaLR a share of it",
            value=abs(times - 1),
            **details,
        )
    still = [
        place for place, column in enumerate(columns) if max(column) - min(column) <= CLOSE * max(map(abs, column))
    ]
    shown = ", ".join(f"{rates[0]:.3g}" for rates in used[:4])
    apart = max(abs(a / b - 1) if b else math.inf for a, b in zip(columns[0], wanted, strict=True))
    if len(still) == len(columns):
        return sick(
            f"every step is made with {columns[0][0]:.3g}",
            expected,
            "the schedule is computed and never reaches the optimizer: warm-up and decay never happen",
            'in every step, before optimizer.step(): for group in optimizer.param_groups: group["lr"] = rate',
            value=apart,
            **details,
        )
    moving = [column for place, column in enumerate(columns) if place not in still]
    if still and all(factor_between(column, wanted) is not None for column in moving):
        return sick(
            f"it reaches {len(moving)} of {len(columns)} groups; the others stay at {columns[still[0]][0]:.3g}",
            expected,
            "one group is set and the others keep the rate they began with",
            'for group in optimizer.param_groups: group["lr"] = rate',
            value=apart,
            **details,
        )
    return sick(
        f"steps are made with rates {shown}",
        expected,
        "the rate that is used is not the one that is stated: another schedule, or another count of steps",
        "log what the optimizer has, optimizer.param_groups[0]['lr'], and compare",
        value=apart,
        **details,
    )


def factor_between(used: Sequence[float], wanted: Sequence[float]) -> float | None:
    """The one number by which the wanted rates are multiplied; None where there is no such number."""
    largest = max(range(len(wanted)), key=lambda place: abs(wanted[place]))
    if not wanted[largest]:
        return 1.0 if not any(used) else None
    factor = used[largest] / wanted[largest]
    size = max(abs(wanted[largest] * factor), 1e-30)
    close = all(abs(a - factor * b) <= CLOSE * size for a, b in zip(used, wanted, strict=True))
    return factor if close else None


def uneven(seen: Seen) -> Finding | None:
    """One group's rate moves, and another one that began with the same rate stays."""
    for each in seen.observation.optimizers:
        rates = [step.rates for step in seen.observation.of(Stepped) if step.optimizer is each]
        if len(rates) < 2 or len({len(one) for one in rates}) > 1 or len(rates[0]) < 2:
            continue
        base = [group.get("initial_lr") for group in each.param_groups]
        if any(one is not None for one in base):  # a torch scheduler has every group in hand
            continue
        columns = list(zip(*rates, strict=True))
        moves = [len(set(column)) > 1 for column in columns]
        default = each.defaults.get("lr")
        if any(moves) and not all(moves):
            still = [column[0] for column, moved in zip(columns, moves, strict=True) if not moved]
            if any(default is not None and abs(rate - float(default)) <= CLOSE * abs(rate) for rate in still):
                return sick(
                    f"the rate moves in {sum(moves)} of {len(moves)} groups, and stays at {still[0]:.3g} in the others",
                    "in all of them",
                    "param_groups[0] is set alone: the others keep the rate they began with",
                    'for group in optimizer.param_groups: group["lr"] = rate',
                    value=float(len(moves) - sum(moves)),
                    limit=0.0,
                )
    return None


def waiting(patient: Patient, seen: Seen, schedulers: Sequence[LRScheduler]) -> Finding | None:
    """A torch scheduler that is not stepped, while it is counted in steps."""
    called = {id(event.scheduler) for event in seen.observation.of(Scheduled)}
    number = len(seen.whole)
    for scheduler in schedulers:
        moved = len(seen.observation.places.get(id(scheduler), ())) > 1
        if id(scheduler) in called or moved or isinstance(scheduler, ReduceLROnPlateau):
            continue
        name = type(scheduler).__name__
        long = length_of(scheduler)
        total = patient.given.steps
        measured = f"{name}.step() was not called in {number} steps"
        cause = "a scheduler changes the rate when it is stepped, and only then"
        remedy = "call scheduler.step() after every optimizer.step()"
        if long is not None and total is not None and long > total / 20 and long >= 5:
            return sick(
                f"{measured}; it reaches over {long} calls, and the training over {total} steps",
                "once a step",
                cause,
                remedy,
                value=0.0,
                limit=float(number),
            )
        if long is not None and long >= LONG and total is None:
            return suspicious(
                f"{measured}; it reaches over {long} calls",
                "once a step",
                f"{cause}; called once per epoch, one that reaches so far hardly moves",
                remedy,
                f"Is it stepped once per epoch, over {long} epochs? Then give steps= of the whole training, in what a"
                " function of yours returns: a script does not say it",
                value=0.0,
                limit=float(number),
            )
        raise NotExamined(f"{measured}: once per epoch, if that is meant")
    return None


CHECKS: tuple[Check, ...] = (schedule,)
