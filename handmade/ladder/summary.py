"""What the runs of a ladder say, rung by rung: mean and spread over the seeds, and the gain over the parent.

    rows = summarise(rungs, records)
    about = About.of(records, "tinyshakespeare.txt", "handmade ladder shakespeare")

Plain records in, plain rows out; `table` and `picture` show them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from handmade.errors import RunError

Record = Mapping[str, Any]
"""A line of ladder.jsonl: what one rung came to with one seed."""

BETTER, WORSE, OVERLAP, ONE_SEED = "better", "worse", "not distinguishable", "one seed: no verdict"


class Rung(Protocol):
    """What is read of a rung."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def parent(self) -> str | None: ...
    @property
    def side(self) -> bool: ...


@dataclass(frozen=True)
class Row:
    """What is known of a rung. A figure that is not known (yet) is None."""

    number: int
    """Its place among the climbed rungs, or among the side rungs; from 1."""
    name: str
    title: str
    parent: str | None
    """The name of the rung that it differs from by one idea."""
    parent_label: str | None
    """The `label` of the rung that it is compared with: its parent, or the nearest one above that has been run where
    the parent has not. None where there is none."""
    apart: int
    """How many ideas lie between the two: 1 for the parent."""
    side: bool
    seeds: tuple[int, ...]
    """The seeds that are done, ascending."""
    losses: tuple[float, ...]
    """val_loss of each of them, nats per token; infinite where training diverged."""
    mean: float | None
    low: float | None
    high: float | None
    deviation: float | None
    """Sample standard deviation of the losses; from two seeds on."""
    bits_per_byte: float | None
    """Mean."""
    parent_mean: float | None
    gain: float | None
    """mean of the parent - mean of the rung: positive is better."""
    verdict: str
    """BETTER or WORSE than the parent, OVERLAP, ONE_SEED, or "" where there is nothing to compare."""
    parameters: int | None
    tokens_per_second: float | None
    """Median; None where nothing is trained."""
    train_seconds: float | None
    """Median."""
    learning_rate: float | None
    """None where nothing is trained."""

    @property
    def label(self) -> str:
        """`11`; of a side rung `S3`."""
        return f"S{self.number}" if self.side else str(self.number)

    @property
    def half_spread(self) -> float | None:
        """Half the way from the smallest to the largest loss; None with one seed."""
        if self.low is None or self.high is None or len(self.seeds) < 2:
            return None
        return (self.high - self.low) / 2


def summarise(rungs: Sequence[Rung], records: Iterable[Record]) -> list[Row]:
    """A row for every rung: the climbed ones in their order, then the side rungs in theirs.

    Records of rungs that are not among `rungs` only serve as parents. Where a rung has two records of a seed, the
    later one counts.
    """
    runs: dict[str, dict[int, Record]] = {}
    for record in records:
        runs.setdefault(record["rung"], {})[record["seed"]] = record
    places = [*_numbered([r for r in rungs if not r.side]), *_numbered([r for r in rungs if r.side])]
    labels = {rung.name: f"S{number}" if rung.side else str(number) for number, rung in places}
    parents = {rung.name: rung.parent for rung in rungs}
    rows = []
    for number, rung in places:
        done = runs.get(rung.name, {})
        seeds = tuple(sorted(done))
        losses = _losses(done)
        against = _nearest(rung, parents, runs)
        before = _losses(runs.get(against, {})) if against is not None else ()
        mean, parent_mean = _mean(losses), _mean(before)
        first = done[seeds[0]] if seeds else {}
        row = Row(
            number=number,
            name=rung.name,
            title=rung.title,
            parent=rung.parent,
            parent_label=labels.get(against) if against is not None else None,
            apart=_apart(rung.name, against, parents),
            side=rung.side,
            seeds=seeds,
            losses=losses,
            mean=mean,
            low=min(losses, default=None),
            high=max(losses, default=None),
            deviation=_deviation(losses),
            bits_per_byte=_mean(_figures(done, "bits_per_byte")),
            parent_mean=parent_mean,
            gain=None if mean is None or parent_mean is None else _difference(parent_mean, mean),
            verdict=verdict(losses, before),
            parameters=first.get("parameters"),
            tokens_per_second=_median([pace for pace in _figures(done, "tokens_per_second") if pace > 0]),
            train_seconds=_median(_figures(done, "train_seconds")),
            learning_rate=first.get("learning_rate"),
        )
        rows.append(row)
    return rows


def verdict(losses: Sequence[float], before: Sequence[float]) -> str:
    """What the seeds of a rung say against those of its parent.

    Two spreads, each from the smallest to the largest loss, that overlap or touch cannot be told apart.

    >>> verdict([2.0, 2.1], [2.2, 2.3]), verdict([2.0, 2.2], [2.1, 2.3]), verdict([2.0], [2.2, 2.3])
    ('better', 'not distinguishable', 'one seed: no verdict')
    """
    if not losses or not before:
        return ""
    if min(len(losses), len(before)) < 2:
        return ONE_SEED
    if max(losses) < min(before):
        return BETTER
    return WORSE if min(losses) > max(before) else OVERLAP


def _nearest(rung: Rung, parents: Mapping[str, str | None], runs: Mapping[str, object]) -> str | None:
    """The parent, or where it has not been run the nearest rung above it that has; the parent where none has."""
    above, seen = rung.parent, {rung.name}
    while above is not None and above not in runs and above not in seen:
        seen.add(above)
        above = parents.get(above)
    return above if above in runs else rung.parent


def _apart(name: str, against: str | None, parents: Mapping[str, str | None]) -> int:
    count, above = 1, parents.get(name)
    while above is not None and above != against:
        count, above = count + 1, parents.get(above)
    return count


def _numbered(rungs: Sequence[Rung]) -> list[tuple[int, Rung]]:
    return list(enumerate(rungs, 1))


def _losses(done: Mapping[int, Record]) -> tuple[float, ...]:
    """In the order of the seeds. A loss that is no finite number is worse than any: training diverged."""
    values = (done[seed]["val_loss"] for seed in sorted(done))
    return tuple(float(value) if value is not None and math.isfinite(value) else math.inf for value in values)


def _figures(done: Mapping[int, Record], key: str) -> list[float]:
    """The finite numbers that the records have under a name."""
    values = (record.get(key) for record in done.values())
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None  # exact: of equal losses it is that loss


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def _difference(before: float, after: float) -> float | None:
    """None for two that diverged."""
    return before - after if math.isfinite(before) or math.isfinite(after) else None


# ---------------------------------------------------------------------------------------------------------------
# What a caption says


@dataclass(frozen=True)
class About:
    """Where the figures come from: what stands above a table and under a picture."""

    data: str
    """Which text."""
    budget: str
    """What every run was given, and so what is equal between them."""
    seeds: tuple[int, ...]
    machine: str = ""
    versions: str = ""
    command: str = ""
    """The command line that makes the figures again."""

    @classmethod
    def of(cls, records: Iterable[Record], data: str, command: str = "") -> About:
        """What the records say of themselves. Raises RunError for records of two budgets."""
        records = list(records)
        budgets = list(dict.fromkeys(budget(record["budget"]) for record in records))
        if len(budgets) > 1:
            raise RunError(
                f"The records are of two budgets, {budgets[0]} and {budgets[1]}: one table cannot hold both."
            )
        places: dict[str, None] = {}
        versions: dict[
            str, None
        ] = {}  # in the order they come: a ladder may be begun on one machine and ended on another
        for record in records:
            there = record.get("machine") or {}
            if there:
                gpu = f", {there['gpu']}" if there.get("gpu", "none") != "none" else ""
                places[f"{there['processor']}, {there['cores']} cores{gpu}"] = None
            versions[_versions(record, there)] = None
        return cls(
            data=data,
            budget=budgets[0] if budgets else "",
            seeds=tuple(sorted({record["seed"] for record in records})),
            machine="; ".join(places),
            versions="; ".join(versions),
            command=command,
        )

    @property
    def seeds_said(self) -> str:
        """`3 seeds (0, 1, 2)`"""
        if not self.seeds:
            return ""
        return f"{len(self.seeds)} seed{'s' * (len(self.seeds) > 1)} ({', '.join(map(str, self.seeds))})"


def budget(given: Mapping[str, Any]) -> str:
    """A record's budget, for a person.

    >>> budget({"equal": "tokens", "tokens": 614400}), budget({"equal": "time", "seconds": 20.0})
    ('614,400 training tokens a run', '20 s of training a run')
    """
    if given["equal"] == "tokens":
        return f"{given['tokens']:,} training tokens a run"
    return f"{given['seconds']:g} s of training a run"


def _versions(record: Record, there: Mapping[str, Any]) -> str:
    known = {"handmade": record.get("version"), "torch": there.get("torch"), "Python": there.get("python")}
    return ", ".join(f"{name} {version}" for name, version in known.items() if version)
