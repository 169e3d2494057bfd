"""Training windows over one long row of tokens: which there are, and where they lie.

N tokens, windows of T inputs and T targets: the window at s has inputs s .. s + T - 1 and targets s + 1 .. s + T, so
the last start is N - T - 1.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from handmade.doctor.findings import NotExamined
from handmade.doctor.given import INPUTS, TARGETS
from handmade.doctor.material import as_ids, taken
from handmade.doctor.overlap import hashed

LOOKED_AT = 64
"""Windows that are looked at: at the beginning, at the end and between, each so many."""


class Fault(Exception):
    """What is wrong with the windows, in words: what, why it matters, what to change."""

    def __init__(self, measured: str, cause: str, remedy: str, value: float = 1.0) -> None:
        super().__init__(measured)
        self.measured, self.cause, self.remedy, self.value = measured, cause, remedy, value


@dataclass(frozen=True)
class Window:
    inputs: np.ndarray
    targets: np.ndarray | None


class Places:
    """Where rows of `length` tokens stand in the data."""

    def __init__(self, data: np.ndarray, length: int) -> None:
        self.data, self.length = data, length
        self.hashes = hashed(data, length) if len(data) >= length else np.zeros(0, np.uint64)

    def of(self, row: np.ndarray) -> np.ndarray:
        """All places, ascending."""
        return np.flatnonzero(self.hashes == hashed(row, self.length)[0]) if len(self.hashes) else np.zeros(0, int)


def window_of(item: Any) -> Window:
    """Inputs and targets of one window; a row alone is inputs without targets."""
    if isinstance(item, Mapping):
        inputs, targets = taken(item, INPUTS), taken(item, TARGETS)
        if inputs is None:
            raise NotExamined("a window is a mapping without inputs")
    elif isinstance(item, (tuple, list)) and len(item) == 2 and not isinstance(item[0], (int, np.integer)):
        inputs, targets = item
    else:
        inputs, targets = item, None
    return Window(as_ids(inputs, "windows"), None if targets is None else as_ids(targets, "windows"))


PAST = "a window begins so late that its last inputs or targets lie behind the end of the data"
PAST_REMEDY = "the last start is len(data) - context - 1, so there are len(data) - context of them (for steps of one)"


def checked(window: Window, context: int, name: str) -> Window:
    """Raises Fault for a window that is too short."""
    many, wanted = len(window.inputs), context
    after = "" if window.targets is None else f" and {len(window.targets)} targets"
    if many != wanted or (window.targets is not None and len(window.targets) != many):
        raise Fault(f"{name} has {many} inputs{after}", PAST, PAST_REMEDY)
    return window


def place_of(window: Window, places: Places, name: str, ignore: int) -> tuple[list[int], bool]:
    """Where a window may stand, by inputs and targets; and whether its targets are the inputs themselves, to be shifted
    in the model. None where its inputs stand nowhere. Raises Fault for wrong targets."""
    data, length = places.data, places.length
    found = places.of(window.inputs)
    if not len(found):
        twice = np.concatenate([data[-length + 1 :], data[: length - 1]]) if length > 1 else data[:0]
        if len(twice) >= length and (hashed(twice, length) == hashed(window.inputs, length)[0]).any():
            raise Fault(f"{name} runs over the end of the data and goes on at its beginning", PAST, PAST_REMEDY)
        return [], False
    if window.targets is None:
        return [int(p) for p in found], False
    scored = window.targets != ignore
    if np.array_equal(window.targets[scored], window.inputs[scored]):
        return [int(p) for p in found], True
    for shift in (1, 2, 0, -1, 3):
        good = []
        for place in found:
            after = data[max(0, place + shift) : place + shift + length]
            if len(after) == length and np.array_equal(after[scored], window.targets[scored]):
                good.append(int(place))
        if good and shift == 1:
            return good, False
        if good:
            raise Fault(
                f"the targets of {name} are its inputs moved by {shift} tokens",
                "a target has to be the token right behind its input: another one is another task",
                "x = data[i : i + context]; y = data[i + 1 : i + context + 1]",
            )
    if found[-1] + length + 1 > len(data):
        raise Fault(f"the last target of {name} lies behind the end of the data", PAST, PAST_REMEDY)
    wrong = int((window.targets != data[found[0] + 1 : found[0] + length + 1]).sum())
    raise Fault(
        f"{wrong} of the {length} targets of {name} are not the next tokens",
        "a target has to be the token right behind its input",
        "x = data[i : i + context]; y = data[i + 1 : i + context + 1]",
    )


def remainder(window: Window, data: np.ndarray, length: int) -> int | None:
    """Where a window begins that has the rest of the data: shorter than others, or filled up behind the end. None for
    any other."""
    inputs, targets = window.inputs, window.targets
    if len(inputs) > length or (targets is not None and len(targets) != len(inputs)):
        return None
    least = len(inputs)
    while len(inputs) == length and least > 1 and inputs[least - 1] == inputs[-1]:
        least -= 1  # what it is filled up with
    for real in range(least, min(len(inputs), least + 2) + 1):
        for spare in (1, 0):  # whether a target stands behind the last input
            begin = len(data) - real - spare
            if real < length and real > 0 and begin >= 0 and np.array_equal(data[begin : begin + real], inputs[:real]):
                if targets is None or np.array_equal(inputs, targets):
                    return begin
                if np.array_equal(data[begin + 1 : begin + real], targets[: real - 1]):
                    return begin
    return None


def steps(starts: Mapping[int, list[int]]) -> tuple[int, int] | None:
    """Windows begin at  first + index * step, where they do so."""
    if 0 not in starts or 1 not in starts:
        return None
    for first in starts[0][:50]:
        for second in starts[1][:50]:
            step = second - first
            if step > 0 and all(first + index * step in found for index, found in starts.items()):
                return first, step
    return None


def examine(windows: Any, data: np.ndarray, context: int | None, ignore: int) -> tuple[int, int, int]:
    """Looks at a dataset's windows: how many there are, the first and the last start. Raises Fault for what is wrong,
    NotExamined for what cannot be known."""
    windows = getattr(windows, "dataset", windows) if hasattr(windows, "batch_size") else windows
    if not (hasattr(windows, "__len__") and hasattr(windows, "__getitem__")):
        raise NotExamined(f"windows is a {type(windows).__name__}: give a dataset with a length and an index")
    many = len(windows)
    if many < 1:
        raise Fault(f"there are no windows over {len(data):,} tokens", "nothing can be trained on", PAST_REMEDY)
    length = context or len(window_of(windows[0]).inputs)
    chosen = {*range(min(many, LOOKED_AT)), *range(max(0, many - LOOKED_AT), many)}
    chosen |= {int(index) for index in np.linspace(0, many - 1, LOOKED_AT)}
    places = Places(data, length)
    starts: dict[int, list[int]] = {}
    same, last_is_rest = False, False
    lost: list[int] = []
    for index in sorted(chosen):
        name = f"window {index:,} of {many:,}"
        try:
            item = windows[index]
        except Exception as problem:
            said = f"{name} fails: {type(problem).__name__}"
            raise Fault(said, "the dataset says that it has more windows than there are", PAST_REMEDY) from None
        window = window_of(item)
        if window.targets is None and context is not None and context < len(window.inputs) <= context + 1:
            window = Window(window.inputs[:-1], window.inputs[1:])
        rest = remainder(window, data, length) if index == many - 1 else None
        if rest is not None and (steps(starts) or (0, 1))[1] > 1:
            last_is_rest = True  # shorter, or filled up: what was left over
            starts[index] = [rest]
            continue
        starts[index], same = place_of(checked(window, length, name), places, name, ignore)
        if not starts[index]:
            lost.append(index)
    if len(lost) == len(starts):
        raise NotExamined("the windows are no stretches of train_data")
    if lost:
        name = f"{len(lost)} of the {len(starts)} windows looked at"
        raise Fault(f"{name} are no stretches of the data", PAST, PAST_REMEDY, len(lost))
    last_possible = len(data) - length - (0 if same else 1)
    if many == 1:
        if last_possible > 0:
            raise NotExamined("there is one window, so it cannot be seen how far apart they begin")
        return many, 0, 0
    if last_is_rest:
        return many, starts[0][0], starts[many - 1][0]
    rule = steps(starts)
    if rule is None and len(starts) < many:
        raise NotExamined("where the windows begin follows no rule, and there are too many to look at all")
    if rule is None:
        ordered = sorted(found[0] for found in starts.values())
        first, last = ordered[0], ordered[-1]
        step = max(1, int(np.diff(ordered).max()))
    else:
        first, step = rule
        last = first + (many - 1) * step
    reach(first, last, step, last_possible, f"{many:,} windows")
    return many, first, last


def reach(first: int, last: int, step: int, possible: int, name: str) -> None:
    """Raises Fault where windows would still fit behind the last or before the first."""
    missed = (possible - last) // step
    if missed > 0:
        raise Fault(
            f"{name}: the last begins at {last:,}; one at {last + missed * step:,} still fits",
            "the last tokens are never learnt: the range ends too early, by an off-by-one",
            "the last start is len(data) - context - 1: range(len(data) - context), or randint(len(data) - context)",
            missed,
        )
    if first >= step:
        raise Fault(
            f"{name}: the first begins at {first:,}, not at 0",
            "the first tokens are never inputs",
            "let the starts begin at 0",
            first // step,
        )


# ---------------------------------------------------------------------------------------------------------------
# Batches drawn at random


class Extreme(TorchFunctionMode):
    """Inside, torch.randint gives its largest or its smallest number only."""

    def __init__(self, largest: bool) -> None:
        super().__init__()
        self.largest = largest

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is not torch.randint:
            return found
        numbers = [one for one in args if isinstance(one, int)]
        low = (kwargs or {}).get("low", numbers[0] if len(numbers) > 1 else 0)
        high = (kwargs or {}).get("high", numbers[-1] if numbers else 1)
        return torch.full_like(found, high - 1 if self.largest else low)


@contextlib.contextmanager
def extreme(largest: bool) -> Iterator[None]:
    """Inside, random whole numbers are the largest or the smallest that may come: of torch, numpy's old functions and
    Python. A generator object of numpy's cannot be reached."""

    def between(low: int, high: int | None = None, size: Any = None, *_: Any, **__: Any) -> Any:
        low, high = (0, low) if high is None else (low, high)
        value = high - 1 if largest else low
        return value if size is None else np.full(size, value)

    def within(start: int, stop: int | None = None, step: int = 1) -> int:
        numbers = range(start) if stop is None else range(start, stop, step)
        return numbers[-1] if largest else numbers[0]

    with (
        Extreme(largest),
        mock.patch.object(np.random, "randint", between),
        mock.patch.object(random, "randrange", within),
        mock.patch.object(random, "randint", lambda low, high: high if largest else low),
    ):
        yield


def examine_random(draw: Callable[[], Any], data: np.ndarray, context: int | None, ignore: int) -> tuple[int, int]:
    """Where batches begin whose starts are drawn at random: the first and the last start, by drawing the smallest and
    the largest numbers. Raises Fault and NotExamined as `examine`."""
    found: list[list[int]] = []
    for largest in (False, True):
        name = f"a batch of the {'largest' if largest else 'smallest'} random numbers"
        with extreme(largest):
            try:
                inputs, targets = draw()
            except Exception as problem:
                if not largest:
                    raise
                draw_again(draw)
                raise Fault(f"{name} fails: {type(problem).__name__}", PAST, PAST_REMEDY) from None
        if inputs.ndim != 2 or targets.ndim != 2:
            raise NotExamined("batches are not (B, T)")
        time_first = bool((inputs == inputs[:, :1]).all()) and len(inputs) > 1
        if time_first:
            inputs, targets = inputs.T, targets.T
        if not bool((inputs == inputs[:1]).all()):
            raise NotExamined("where the batches begin is drawn in a way that cannot be steered: give `windows`")
        length = context or inputs.shape[1]
        window = checked(Window(as_ids(inputs[0], "batches"), as_ids(targets[0], "batches")), length, name)
        starts, same = place_of(window, Places(data, length), name, ignore)
        if not starts:
            raise NotExamined("the batches are no stretches of train_data")
        found.append(starts)
    first, last = found[0][0], found[1][-1]
    if first == last and len(data) > length + 1:
        raise NotExamined("all batches are one and the same")
    step = usual_step(lambda: draw()[0].T if time_first else draw()[0], data, length)
    reach(first, last, step, len(data) - length - (0 if same else 1), "random windows")
    return first, last


def usual_step(draw: Callable[[], Any], data: np.ndarray, length: int) -> int:
    """How far apart the starts of usual batches are, at least: 1 unless all are multiples of a number."""
    places = Places(data, length)
    starts: list[int] = []
    for _ in range(8):
        for row in draw()[:16]:
            if len(row) != length:
                continue
            found = places.of(as_ids(row, "batches"))
            if len(found) == 1:
                starts.append(int(found[0]))
    return max(1, math.gcd(*(start - starts[0] for start in starts))) if len(starts) > 3 else 1


def draw_again(draw: Callable[[], Any]) -> None:
    """Whether it works at all, when nothing is steered. Raises NotExamined where it does not."""
    try:
        draw()
    except Exception as problem:
        raise NotExamined(f"batches fail: {type(problem).__name__}") from None
