"""What evaluation and best weights leave behind. (Checkpoints: handmade/doctor/checks/resuming.py.)"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from handmade.doctor.anatomy import every_parameter, inside, loose_tensors
from handmade.doctor.checks.base import Check, check
from handmade.doctor.checks.resuming import checkpoint
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious
from handmade.doctor.patching import Patches
from handmade.doctor.patient import Patient
from handmade.doctor.puppet import PATIENCE, TooLong, first_call, hurried, loss_in
from handmade.doctor.reach import Reach, call_evaluate, cut_rows, draw, rehearsed, same

GLOBAL = ("python", "numpy", "torch", "cuda")


def all_tensors(model: Any) -> dict[str, Tensor]:
    """Path -> parameter, buffer or tensor in an attribute."""
    found: dict[str, Tensor] = dict(every_parameter(model))
    if isinstance(model, nn.Module):
        found |= dict(model.named_buffers())
    return found | loose_tensors(model)


def differing(model: Any, before: Mapping[str, Tensor]) -> list[str]:
    """Paths of tensors that are not what they were."""
    now = all_tensors(model)
    return [path for path, value in before.items() if path in now and not alike(now[path], value)]


def alike(one: Tensor, other: Tensor) -> bool:
    """Equal, and NaN where the other is."""
    return one.shape == other.shape and bool(torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)))


@contextlib.contextmanager
def modes_of_calls(model: Any) -> Iterator[list[bool]]:
    """Inside, whether any of the model was in training mode at each of its calls; nothing may take too long."""
    seen: list[bool] = []

    def note(module: nn.Module, _: Any) -> None:
        seen.append(any(one.training for one in module.modules()))

    with hurried(model):
        handle = model.register_forward_pre_hook(note) if isinstance(model, nn.Module) else None
        try:
            yield seen
        finally:
            if handle is not None:
                handle.remove()


@contextlib.contextmanager
def seeds_aside() -> Iterator[list[int]]:
    """Inside, a DataLoader that is begun leaves torch's generator where it was, though it draws a seed for its workers
    from it, also where it has none. Gives a list with an entry for each that drew."""
    drew: list[int] = []

    def around(begin: Any) -> Any:
        def begun(loader: Any) -> Any:
            before = torch.get_rng_state()
            rows = begin(loader)
            if not same(before, torch.get_rng_state()):
                drew.append(1)
                torch.set_rng_state(before)
            return rows

        return begun

    with Patches() as patches:
        patches.put(DataLoader, "__iter__", around)
        yield drew


def used_in_training(patient: Patient, reach: Reach) -> set[str]:
    """Names of the generators that a step of training draws from: the global ones in any case, since dropout does."""
    found = set(GLOBAL)
    before = reach.states()
    with contextlib.suppress(Exception):
        drawn = small_batch(patient)
        if patient.given.train_step is not None:
            first_call(patient.given, drawn)
    now = reach.states()
    return found | {name for name in before if not same(before[name], now[name])}


def small_batch(patient: Patient) -> Any:
    """Two rows of a batch of the person's, where there are any."""
    given = patient.given
    return None if given.batches is None else cut_rows(draw(given), 2, 1 if patient.form.time_first else 0)


def mode_matters(patient: Patient) -> bool:
    """Whether the model answers otherwise in training mode."""
    if patient.failure is not None or not isinstance(patient.given.model, nn.Module):
        return True
    tokens = patient.tokens(2, patient.length if patient.form.full else min(8, patient.length))
    with torch.no_grad():
        with patient.mode(training=True):
            training = patient.run(tokens)
        with patient.mode(training=False):
            evaluating = patient.run(tokens)
    return not alike(training, evaluating)


@check(
    "evaluation",
    "evaluating changes the training",
    reference="torch.nn.Module.eval and torch.random, documentation; design of handmade: evaluation draws nothing",
    needs=("evaluate",),
    demonstration="""\
import torch
def train(evaluate_every):
    torch.manual_seed(0)
    drawn = []
    for step in range(6):
        if step % evaluate_every == 0:
            torch.randint(100, (4,))             # evaluation draws its batches from the same generator
        drawn.append(torch.randint(100, ()).item())
    return drawn
print(train(2))
print(train(3))                                  # evaluated less often: the training saw other data
""",
)
def evaluation(patient: Patient) -> Finding:
    """How often one evaluates must not change what is learnt. With the model in training mode, as in the middle of a
    training, `evaluate` is called; before and after have to be equal:

        weights, buffers, optimizer · gradients · where every generator stands that training draws from · the mode

    A model left in evaluation mode trains on without dropout, unless `train_step` puts it back (it is run as far as its
    first call of the model). Generators are python's, numpy's and torch's, and those that the functions hold. The seed
    that a DataLoader draws for its workers when it is begun, also without workers, is asked about.
    `evaluate` is called twice: two answers for the same weights are suspicious, since the best is then found by luck.
    """
    with rehearsed(patient.given) as reach:
        return evaluated(patient, reach)


def evaluated(patient: Patient, reach: Reach) -> Finding:
    given, model = patient.given, patient.given.model
    used = used_in_training(patient, reach)
    if isinstance(model, nn.Module):
        model.train()
    for parameter in every_parameter(model).values():
        if parameter.requires_grad:  # as after some steps: away from what a copy of the first weights has
            parameter.data += 1e-3 * torch.randn(parameter.shape, generator=patient.generator).to(parameter)
            parameter.grad = torch.full_like(parameter, 0.5)
    modes = {path: module.training for path, module in patient.modules.items()}
    tensors = {path: tensor.detach().clone() for path, tensor in all_tensors(model).items()}
    optimizers = [copy.deepcopy(one.state_dict()) for one in reach.optimizers]
    before = reach.states()
    with modes_of_calls(model) as calls, seeds_aside() as seeds:
        try:
            first = loss_in(call_evaluate(given))
        except TooLong:
            raise NotExamined(f"evaluate takes more than {PATIENCE:g} s: give one over fewer batches") from None
    grads_off = not torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    after = reach.states()
    moved = [name for name in before if name in used and not same(before[name], after[name])]
    changed = differing(model, tensors)
    weights = [path for path in changed if path in every_parameter(model)]
    gradients = [
        path
        for path, one in every_parameter(model).items()
        if one.requires_grad and one.grad is not None and not bool((one.grad == 0.5).all()) and bool(one.grad.any())
    ]
    stepped = any(not same(one.state_dict(), kept) for one, kept in zip(reach.optimizers, optimizers, strict=True))
    left = [path for path, module in patient.modules.items() if modes.get(path) and not module.training]
    expected = "nothing of the training changes"
    if weights or stepped:
        return sick(
            f"evaluate changes {len(weights)} weights ({', '.join(weights[:2])})" if weights
            else "evaluate changes the optimizer's state",
            expected,
            "evaluation trains: it takes a step, or leaves other weights there (an average that is not swapped back)",
            "no backward() and no step() in evaluate; wrap it in torch.no_grad()",
            value=float(len(weights)), limit=0.0,
        )  # fmt: skip
    if any(calls) and mode_matters(patient):
        buffers = f" and changes {len(changed)} buffers ({changed[0]})" if changed else ""
        return sick(
            f"the model is in training mode while it is evaluated ({sum(calls)} of {len(calls)} calls){buffers}",
            "evaluation mode",
            "dropout is on and batch statistics are learnt from validation data: the score is too bad, and random",
            "model.eval() at the beginning of evaluate, model.train() at its end",
            value=float(sum(calls)), limit=0.0,
        )  # fmt: skip
    if changed:
        return sick(
            f"evaluate changes {len(changed)} tensors ({', '.join(changed[:2])})",
            expected,
            "something is kept from the validation data",
            "keep nothing in evaluate that a training reads",
            value=float(len(changed)), limit=0.0,
        )  # fmt: skip
    if gradients or grads_off:
        return sick(
            "gradients are left off" if grads_off else f"evaluate adds to {len(gradients)} gradients",
            expected,
            "the next step learns from validation data, if gradients are not zeroed just before backward()"
            if gradients
            else "torch.set_grad_enabled(False) is never taken back: nothing after it learns",
            "with torch.no_grad(): around the evaluation",
            value=float(len(gradients)), limit=0.0,
        )  # fmt: skip
    if moved:
        return sick(
            f"evaluate draws from {and_of(moved)} that training draws from",
            expected,
            "batches and dropout after an evaluation are others: how often one evaluates changes what is learnt",
            "walk the whole split in order, without shuffling, or draw its batches from a generator of its own",
            value=float(len(moved)), limit=0.0,
        )  # fmt: skip
    again = None if first is None else twice(patient, first)
    finding = left_in(patient, left)
    if finding.verdict != "healthy":
        return finding
    if again is not None:
        return again
    return of_loaders(patient, len(seeds)) if seeds and "torch" in used else finding


def of_loaders(patient: Patient, begun: int) -> Finding:
    """An evaluation that draws the seeds of its DataLoaders, and nothing else."""
    loaders = "a DataLoader, which draws a seed" if begun == 1 else f"{begun} DataLoaders, which draw a seed each,"
    measured = f"evaluate begins {loaders} from torch's generator"
    expected = "nothing of the training changes"
    cause = "batches and dropout after an evaluation are others: how often one evaluates changes what is learnt"
    remedy = "give the DataLoader of evaluation a torch.Generator() of its own: DataLoader(..., generator=...)"
    meant = patient.expects("evaluation_draws")
    if meant is None:
        question = "may a run come out otherwise when it is evaluated more often? expect={'evaluation_draws': True}"
        return suspicious(measured, expected, cause, remedy, question, value=float(begun), limit=0.0)
    if meant:
        return healthy(f"{measured}, as was meant", expected, value=float(begun), limit=0.0)
    return sick(measured, expected, cause, remedy, value=float(begun), limit=0.0)


def and_of(names: list[str]) -> str:
    """ "torch's generator and the one in batches.generator"."""
    return " and ".join(f"{name}'s generator" if name in GLOBAL else f"the generator in {name}" for name in names)


def left_in(patient: Patient, left: list[str]) -> Finding:
    """The mode that evaluation leaves."""
    given = patient.given
    measured = "weights, gradients, generators and mode are as before"
    expected = "nothing of the training changes"
    if not left:
        return healthy(measured, expected, value=0.0, limit=0.0)
    if not mode_matters(patient):
        return healthy("the model is left in evaluation mode, which makes no difference to it", expected, value=0.0)
    remedy = "model.train() at the end of evaluate, or at the beginning of every step"
    cause = "the training goes on without dropout, or with fixed batch statistics, after the first evaluation"
    words = "the model is left in evaluation mode"
    if given.train_step is not None:
        call = None
        with contextlib.suppress(Exception):
            call = first_call(given, small_batch(patient))
        if call is not None and call.training:
            return healthy(f"{words}; train_step puts it back", expected, value=0.0, limit=0.0)
        if call is not None:
            return sick(
                f"{words}, and the next train_step runs in it", "training mode", cause, remedy,
                value=float(len(left)), limit=0.0,
            )  # fmt: skip
    return suspicious(
        words, "training mode, as before", cause, remedy,
        "Is model.train() called before the next step? Give `train_step`, and it is seen.",
        value=float(len(left)), limit=0.0,
    )  # fmt: skip


def twice(patient: Patient, first: Tensor) -> Finding | None:
    """Whether a second evaluation of the same weights says something else."""
    with modes_of_calls(patient.given.model):
        try:
            second = loss_in(call_evaluate(patient.given))
        except TooLong:
            return None
    if second is None or not math.isfinite(float(first)):
        return None
    apart = abs(float(second) - float(first)) / max(abs(float(first)), 1e-9)
    if apart <= 1e-6:
        return None
    return suspicious(
        f"two evaluations of the same weights differ by {apart:.2g} of the value",
        "0",
        "a random part of the validation data is looked at: the best model is then partly the luckiest",
        "walk the whole split in order, or seed the generator of the evaluation anew every time",
        "Is it meant to look at a random part? Then compare scores only beyond this difference.",
        value=apart,
        limit=1e-6,
    )


@check(
    "best-weights",
    "the best weights are the live ones",
    reference="torch.nn.Module.state_dict, documentation: the returned object is a shallow copy, it has references",
    needs=("best",),
    demonstration="""\
import copy
import torch
model = torch.nn.Linear(2, 2)
wrong = model.state_dict()                       # names of the live tensors
also_wrong = dict(model.state_dict())            # another dictionary, the same tensors
right = copy.deepcopy(model.state_dict())
with torch.no_grad():
    model.weight.zero_()                         # training goes on
for name, kept in (("state_dict()", wrong), ("dict(...)", also_wrong), ("deepcopy", right)):
    print(name, kept["weight"].abs().sum().item())
""",
)
def best_weights(patient: Patient) -> Finding:
    """What is kept as the best weights must not change while training goes on. `best()` is called, then every weight of
    the model is changed in place, as an optimizer does it:

        share = tensors kept that changed too / tensors kept          healthy: 0

    `state_dict()` copies no tensor, and neither do `dict()`, `copy.copy()`, `.detach()`, or `.cpu()` on a CPU: then the
    "best" weights are the last ones. Buffers that training changes are looked at too.
    """
    given, model = patient.given, patient.module
    assert given.best is not None
    with rehearsed(given):
        kept = given.best()
        if kept is None and given.evaluate is not None:
            call_evaluate(given)
            kept = given.best()
        tensors = kept_tensors(kept)
        if not tensors:
            raise NotExamined("nothing is kept yet" if kept is None else f"best returns a {type(kept).__name__}")
        values = {path: tensor.detach().clone() for path, tensor in tensors.items()}
        buffers = {name: one.detach().clone() for name, one in model.named_buffers()}
        if patient.failure is None:
            with contextlib.suppress(Exception), patient.mode(training=True), torch.no_grad():
                patient.run(patient.tokens(2, patient.length if patient.form.full else min(8, patient.length)))
        with torch.no_grad():
            for one in every_parameter(model).values():
                one.add_(1)
            for name, buffer in model.named_buffers():
                if not alike(buffer, buffers[name]):
                    buffer.add_(1)
        moved = [path for path, tensor in tensors.items() if not alike(tensor.detach(), values[path])]
    share = len(moved) / len(tensors)
    expected = "0"
    if not moved:
        return healthy(f"0 of {len(tensors)} kept tensors change with the live weights", expected, value=0.0, limit=0.0)
    return sick(
        f"{len(moved)} of {len(tensors)} kept tensors change with the live weights ({moved[0].strip('[]')})",
        expected,
        "what is kept are the live tensors under another name: the best weights are the last ones",
        "best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, or copy.deepcopy",
        value=share,
        limit=0.0,
    )


def kept_tensors(kept: Any) -> dict[str, Tensor]:
    """All tensors in what is kept: a state dict, a list, a model, a nest of these; arrays are looked at as tensors."""
    if isinstance(kept, nn.Module):
        return all_tensors(kept)
    if isinstance(kept, Mapping):
        kept = {name: torch.from_numpy(one) if isinstance(one, np.ndarray) else one for name, one in kept.items()}
    found: dict[str, Tensor] = {}
    for path, thing in inside(kept):
        within: dict[str, Tensor] = {path: thing} if isinstance(thing, Tensor) else all_tensors(thing)
        found.update({name if name == path else f"{path}.{name}": one for name, one in within.items()})
    return found


CHECKS: tuple[Check, ...] = (evaluation, best_weights, checkpoint)
