"""Whether a checkpoint brings a training back."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from handmade.doctor.anatomy import every_parameter
from handmade.doctor.checks.base import check
from handmade.doctor.checks.learning import Batch, stepping
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious
from handmade.doctor.patient import Patient
from handmade.doctor.puppet import slow
from handmade.doctor.reach import Reach, cut_rows, draw, rehearsed, same, take_step

STEPS = 2
"""Before the checkpoint: an optimizer then has something to lose."""
# Largest difference over the largest logit, or weight change. Healthy ones come back bit by bit: 0 over all the zoo's
# sizes and seeds; weights saved in half precision differ by 2e-4 and more.
LIMIT = 1e-5
GLOBAL = ("python", "numpy", "torch", "cuda")


class Training:
    """The person's training, a step at a time, on one batch."""

    def __init__(self, patient: Patient) -> None:
        given = patient.given
        self.patient = patient
        self.batch = None
        if given.batches is not None:
            with contextlib.suppress(Exception):
                self.batch = cut_rows(draw(given), 2, 1 if patient.form.time_first else 0)
        self.draws = given.batches is not None
        self.step = self._step()

    def take(self, steps: int = 1) -> None:
        """Some steps."""
        for _ in range(steps if self.step is not None else 0):
            self.step() if self.step is not None else None

    def _step(self) -> Callable[[], Any] | None:
        """A step as the person takes it; where that is slow, with their optimizer and a plain cross-entropy."""
        given = self.patient.given
        if given.train_step is not None:
            with rehearsed(given):
                reason = slow(given, self.batch)
            if reason is None:
                return lambda: take_step(given, self.batch)
            self.patient.notes.append(f"checkpoint: {reason}")
        held = given.optimizer
        if held is None:
            return None
        return stepping(Batch(self.patient), list(held) if isinstance(held, (list, tuple)) else [held])


@dataclass
class Moment:
    """What a training is at one moment."""

    logits: Tensor
    weights: dict[str, Tensor]
    optimizers: list[Any]
    schedules: list[Any]
    states: dict[str, Any]

    @classmethod
    def of(cls, patient: Patient, reach: Reach, tokens: Tensor, optimizers: list[Optimizer] | None = None) -> Moment:
        optimizers = reach.optimizers if optimizers is None else optimizers
        return cls(
            logits=patient.logits(tokens),
            weights={path: one.detach().clone() for path, one in kept_by(patient.module).items()},
            optimizers=[copy.deepcopy(one.state_dict()) for one in optimizers],
            schedules=[numbers_of(vars(one)) for one in reach.schedulers],
            states=reach.states(),
        )


def kept_by(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, hidden ones too, and buffers."""
    return {**every_parameter(module), **dict(module.named_buffers())}


def numbers_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a schedule: where it stands."""
    return {name: value for name, value in attributes.items() if isinstance(value, (int, float))}


@dataclass
class Keys:
    """What load_state_dict was not given, or could not use."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


@contextlib.contextmanager
def watched_loading() -> Iterator[Keys]:
    """Inside, what every load_state_dict of a module says is noted."""
    keys = Keys()
    real = nn.Module.load_state_dict

    def noted(module: nn.Module, *args: Any, **options: Any) -> Any:
        found = real(module, *args, **options)
        keys.missing += found.missing_keys
        keys.unexpected += found.unexpected_keys
        return found

    with mock.patch.object(nn.Module, "load_state_dict", noted):
        yield keys


def written(save: Callable[..., Any], folder: Path) -> Any:
    """Save, and say under which path: a file's, as a text or a Path, or a folder's, whatever is taken."""
    inner = folder / "folder"
    inner.mkdir()
    ways: tuple[Any, ...] = (str(folder / "checkpoint.pt"), folder / "checkpoint.pt", str(inner), inner)
    problems = []
    for path in ways:
        try:
            save(path)
        except (OSError, RuntimeError, TypeError, AttributeError) as problem:
            problems.append(problem)
            continue
        return path
    said = str(problems[0]).strip().splitlines()
    raise NotExamined(f"save failed: {type(problems[0]).__name__}: {said[0] if said else ''}")


@check(
    "checkpoint",
    "a checkpoint does not bring the training back",
    reference="PyTorch, Saving and loading a general checkpoint, and Reproducibility; design of handmade: Resume",
    needs=("callable", "save", "load"),
    demonstration="""\
import torch
model = torch.nn.Linear(3, 3)
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
def step():
    optimizer.zero_grad(); model(torch.ones(1, 3)).square().sum().backward(); optimizer.step()
step(); step()
kept = {name: value.clone() for name, value in model.state_dict().items()}   # the weights alone
step()
print("went on:", model.weight[0].tolist())
model.load_state_dict(kept)
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)                     # as a new process has it
step()
print("resumed:", model.weight[0].tolist())                                  # its averages begin anew
""",
)
def checkpoint(patient: Patient) -> Finding:
    """A training that is saved and loaded goes on as if nothing had been. A few steps are taken, then

        save · one step: w1 · weights changed, optimizer and counters as a new process has them, generators elsewhere
        load · one step: w2                                                          healthy: w1 = w2

    in a folder that is gone afterwards. After loading logits, weights, the optimizer's state, schedules and the
    generators that training draws from (dropout, the order of the data) are compared one by one, so that what is
    missing has a name. What load_state_dict says of missing and unexpected keys is read, which strict=False hides.
    Where `load` returns another model, or optimizer, that one is looked at.
    """
    with tempfile.TemporaryDirectory() as folder, rehearsed(patient.given) as reach:
        return resumed(patient, reach, Path(folder))


def resumed(patient: Patient, reach: Reach, folder: Path) -> Finding:
    given, module = patient.given, patient.module
    assert given.save is not None
    assert given.load is not None
    tokens = patient.tokens(2, patient.length if patient.form.full else min(8, patient.length))
    training = Training(patient)
    module.train()
    start = {path: one.detach().clone() for path, one in module.named_buffers()}
    used = {name for name, moved in trained(training, reach).items() if moved}
    then = Moment.of(patient, reach, tokens)
    changing = [path for path, one in module.named_buffers() if not torch.equal(one, start[path])]
    path = written(given.save, folder)
    after: dict[str, Tensor] | None = None
    if training.step is not None:
        training.take()
        after = {name: one.detach().clone() for name, one in kept_by(module).items()}
    as_new(patient, reach, changing)
    with watched_loading() as keys:
        returned = given.load(path)
    other, optimizers = followed(returned, given.model)
    seen = patient
    if other is not None:
        seen = Patient(replace(given, model=other), patient.name)
        if seen.failure is not None:
            raise NotExamined(f"load returns another model, and {seen.failure}")
    now = Moment.of(seen, reach, tokens, optimizers)
    problems = compared(
        then, now, keys, used, in_place=other is None, optimizers=optimizers is not None or other is None
    )
    if not problems and after is not None and other is None:
        module.train()
        training.take()
        apart = next_apart(then.weights, after, kept_by(module))
        if apart > LIMIT:
            return suspicious(
                f"weights, optimizer and generators come back, and the next step differs by {apart:.2g} of a step",
                "the same next step",
                "something that training reads is not in the checkpoint: a step counter, the position in the data",
                "save it, and bring it back: the number of the step, the epoch, where in the data it stands",
                "Does train_step read something that a new process need not have?",
                value=apart,
                limit=LIMIT,
            )
    expected = "logits, optimizer and generators as they were"
    if problems:
        _, cause, remedy, value = problems[0]
        return sick(
            "; ".join(problem[0] for problem in problems[:3]), expected, cause, remedy, value=value, limit=LIMIT
        )
    had = ["logits"]
    had += ["optimizer"] if then.optimizers and (optimizers is not None or other is None) else []
    had += ["generators"] if used else []
    had += ["the next step"] if after is not None and other is None else []
    missing = "" if training.step is not None else " (no step could be taken: only weights were seen)"
    return healthy(f"{', '.join(had)} come back{missing}", expected, value=0.0, limit=LIMIT)


def trained(training: Training, reach: Reach) -> dict[str, bool]:
    """Take some steps; which generators they draw from."""
    before = reach.states()
    if training.draws:
        with contextlib.suppress(Exception):
            draw(training.patient.given)
    training.take(STEPS)
    now = reach.states()
    return {name: not same(before[name], now[name]) for name in before}


@torch.no_grad()
def as_new(patient: Patient, reach: Reach, changing: list[str]) -> None:
    """What a new process has: other weights, an empty optimizer, counters at their beginning, generators elsewhere."""
    reach.as_new()
    buffers = dict(patient.module.named_buffers())
    generator = torch.Generator().manual_seed(1)
    for path, one in kept_by(patient.module).items():
        if one.is_floating_point() and (one.requires_grad if path not in buffers else path in changing):
            one.add_(0.3 * torch.randn(one.shape, generator=generator).to(one))
    reach.scatter(12345)


def followed(returned: Any, model: Any) -> tuple[nn.Module | None, list[Optimizer] | None]:
    """Another model, and optimizers, in what load returned."""
    things = list(returned.values()) if isinstance(returned, Mapping) else returned
    things = list(things) if isinstance(things, (list, tuple)) else [things]
    module = next((one for one in things if isinstance(one, nn.Module) and one is not model), None)
    return module, [one for one in things if isinstance(one, Optimizer)] or None


Problem = tuple[str, str, str, float]


def compared(
    then: Moment, now: Moment, keys: Keys, used: set[str], *, in_place: bool, optimizers: bool
) -> list[Problem]:
    """What did not come back: words, cause, remedy, number."""
    found: list[Problem] = []
    apart = float((now.logits - then.logits).abs().max() / then.logits.abs().max().clamp_min(1e-6))
    if not apart <= LIMIT:
        lost = [p for p, one in then.weights.items() if p in now.weights and not torch.equal(one, now.weights[p])]
        found.append(weights_lost(apart, lost, len(then.weights), keys))
    if optimizers and not same(states_of(then.optimizers), states_of(now.optimizers)):
        empty = not any(one["state"] for one in now.optimizers)
        found.append((
            f"the optimizer comes back {'empty' if empty else 'with another state'}",
            "its averages (and its rate) begin anew: the first steps after loading are wild, and the curve has a step",
            "save optimizer.state_dict(), and load it",
            1.0,
        ))  # fmt: skip
    if in_place and then.schedules != now.schedules:
        found.append((
            "the schedule does not come back",
            "the rate begins anew, with its warm-up",
            "save scheduler.state_dict(), and load it",
            1.0,
        ))  # fmt: skip
    lost = [name for name in then.states if name in used and not same(then.states[name], now.states[name])]
    if lost:
        names = " and ".join(f"{name}'s generator" if name in GLOBAL else f"the generator in {name}" for name in lost)
        found.append((
            f"{names} {'do' if len(lost) > 1 else 'does'} not come back",
            "dropout and the order of the data after loading are others: a training that was resumed is another one",
            "save torch.get_rng_state() (and generator.get_state(), random.getstate()), and set it again",
            1.0,
        ))  # fmt: skip
    return found


def states_of(optimizers: list[Any]) -> list[Any]:
    """What counts of optimizers' state dicts: moments and steps, and rates."""
    return [
        (one["state"], [{name: v for name, v in group.items() if name != "params"} for group in one["param_groups"]])
        if "param_groups" in one
        else one
        for one in optimizers
    ]


def weights_lost(apart: float, lost: list[str], total: int, keys: Keys) -> Problem:
    """Why the logits are others."""
    words = f"logits differ by {apart:.2g} of the largest"
    if keys.missing and keys.unexpected:
        return (
            f"{words}: load_state_dict missed {keys.missing[0]}, was given {keys.unexpected[0]}",
            "names differ, by the prefix of a wrapper (_orig_mod., module.), and strict=False hides it",
            "save the state of the model itself, not of its wrapper, and load without strict=False",
            apart,
        )
    if keys.missing:
        return (
            f"{words}: load_state_dict missed {len(keys.missing)}, such as {keys.missing[0]}",
            "not everything is saved, and strict=False hides it",
            "save model.state_dict() whole, and load without strict=False",
            apart,
        )
    words += f": {len(lost)} of {total} tensors did not come back"
    if apart < 0.02:
        return (words, "weights are saved in a smaller type", "save them in their own type", apart)
    return (
        words + (f", such as {lost[0]}" if lost else ""),
        "weights are not saved, not loaded, or loaded into another model; tensors that torch does not know of"
        " (in a list, a plain attribute) are in no state dict",
        "model.load_state_dict(saved) into the model that is trained; keep parts in nn.ModuleList and nn.Parameter",
        apart,
    )


def next_apart(then: dict[str, Tensor], after: dict[str, Tensor], now: Mapping[str, Tensor]) -> float:
    """How far the next step lands from where it should, over how far it goes."""
    moved = max((float((after[p] - then[p]).abs().max()) for p in after if after[p].is_floating_point()), default=0.0)
    apart = max((float((after[p] - now[p]).abs().max()) for p in after if after[p].is_floating_point()), default=0.0)
    return apart / max(moved, 1e-12) if apart > 0 else 0.0
