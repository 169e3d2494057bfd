"""Whether the whole can learn at all."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from handmade.doctor.anatomy import every_parameter
from handmade.doctor.checks.base import Check, check
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious
from handmade.doctor.patient import Patient
from handmade.doctor.puppet import Sizes, slow
from handmade.doctor.reach import Reach, cut_rows, draw, rehearsed, take_step, takes_batch

STEPS = 32
"""Of the person's own."""
FEWEST = 12
"""Steps that have to be taken before it is said that nothing is learnt."""
OWN_SECONDS, SECONDS = 0.5, 2.0
"""For the person's own steps, and for these and ours together."""
ROWS, LENGTH = 2, 24
RATES = (1e-2, 1e-3, 1e-1)
"""Of our Adam, in the order in which they are tried; from a million parameters on the second is the first. The third is
for tables of counts."""
# Learnt in 64 steps at the best of these rates, over vocabularies 11..500, widths 16..256, 1..6 layers, pre- and
# post-norm, LSTM and a bigram's table: 0.57..1.0; with logits squashed by a sigmoid 0.14 (V = 500) to 0.36 (11), of a
# detached or frozen model 0.
CLEARLY = 0.45
# Of a person's own steps: frozen or forgotten ones learn 0, one warm-up step in a thousand 1e-4 and more.
HARDLY = 0.002
RISEN = 0.05


class Batch:
    """One batch that is to be learnt by heart: what it costs now, and how little it could. `drawn`: one of the
    person's, else random tokens are taken."""

    def __init__(self, patient: Patient, drawn: Any = None) -> None:
        self.patient = patient
        self.inputs, *self.targets = self._random() if drawn is None else self._own(drawn)
        if not (self.targets[0] >= 0).any():
            raise NotExamined("nothing is scored in the batch")
        self.floors = [self._floor(one) for one in self.targets]
        self.before = self.costs()
        if not all(map(math.isfinite, self.before)):
            raise NotExamined("its loss is not finite before the first step")

    def _random(self) -> tuple[Tensor, Tensor]:
        """Rows in which as few tokens as possible come twice: a bigram can learn them too."""
        patient = self.patient
        length = patient.length if patient.form.full else min(patient.length, LENGTH)
        distinct = torch.randperm(patient.vocab_size, generator=patient.generator)
        distinct = distinct[distinct != (-1 if patient.given.padding is None else patient.given.padding)]
        rows = ROWS if patient.every_position else 8 * ROWS
        places = rows * (length + 1)
        tokens = distinct.repeat(places // len(distinct) + 1)[:places].view(rows, -1).to(patient.device)
        targets = tokens[:, 1:] if patient.every_position else tokens[:, -1:]
        return tokens[:, :-1].contiguous(), targets.contiguous()

    def _own(self, drawn: Any) -> tuple[Tensor, ...]:
        """The person's, targets -1 where nothing is scored: where they equal the inputs, shifted by one as well, since
        the loss may do that. Raises NotExamined where they are no tokens."""
        patient = self.patient
        inputs, targets = Sizes(patient).parts(drawn)
        targets = targets[:, None] if targets.dim() == 1 else targets
        if targets.shape != (inputs.shape if patient.every_position else (len(inputs), 1)):
            raise NotExamined(f"inputs are {tuple(inputs.shape)}, targets {tuple(targets.shape)}")
        missing = targets == patient.given.ignore_index
        if patient.given.padding is not None:
            missing |= targets == patient.given.padding
        wanted = targets.masked_fill(missing, -1)
        if targets.shape != inputs.shape or (targets == inputs)[~missing].float().mean() < 0.9:
            return inputs, wanted
        shifted = wanted.roll(-1, 1)
        shifted[:, -1] = -1
        return inputs, shifted, wanted

    def _floor(self, targets: Tensor) -> float:
        """What the batch costs a model that knows of every place only which token is there: the mean entropy of what
        follows the same token. A bigram can do no better."""
        if not self.patient.every_position:
            return 0.0
        followers: dict[int, list[int]] = {}
        for token, target in zip(self.inputs.flatten().tolist(), targets.flatten().tolist(), strict=True):
            if target >= 0:
                followers.setdefault(token, []).append(target)
        lost = sum(-math.log(all_.count(one) / len(all_)) for all_ in followers.values() for one in all_)
        return lost / max(1, sum(map(len, followers.values())))

    def loss(self, logits: Tensor) -> Tensor:
        """The mean cross-entropy. Shapes: (B, T, V) -> ()."""
        return entropy(logits, self.targets[0])

    def costs(self) -> list[float]:
        """What it costs now."""
        logits = self.patient.logits(self.inputs)
        return [float(entropy(logits, one)) for one in self.targets]

    def fallen(self) -> float:
        """How much of what there is to learn is learnt: 0 nothing, 1 all; -inf where the loss is not finite."""
        found = [
            (before - now) / max(before - floor, 1e-3) if math.isfinite(now) else -math.inf
            for before, now, floor in zip(self.before, self.costs(), self.floors, strict=True)
        ]
        return max(found)


def entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy over targets from 0 up. Shapes: (B, T, V), (B, T) -> ()."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def learn(step: Callable[[], Any], fallen: Callable[[], float], end: float, steps: int = STEPS) -> tuple[float, int]:
    """Take steps until enough is learnt, or the time or the steps are over: how much was learnt, in how many steps."""
    fall, taken = 0.0, 0
    while taken < steps:
        step()
        taken += 1
        late = time.thread_time() > end
        if taken in (2, 4, 8, 12, 16, 24, 32, 48, steps) or late:
            fall = fallen()
            if fall >= CLEARLY or late or fall < -1.0:
                break
    return fall, taken


class Adam:
    """Adam without weight decay, gradients clipped to a norm of 1. By hand: the first optimizer of torch.optim in a
    process loads its compiler, which takes longer than the whole check.

        m = b m + (1 - b) g,   v = c v + (1 - c) g^2,   w = w - rate m' / (sqrt(v') + eps)    ': bias taken out

    Source: Kingma and Ba 2015, algorithm 1 (arXiv:1412.6980).
    """

    def __init__(self, parameters: list[Parameter], rate: float) -> None:
        self.parameters, self.rate, self.taken = parameters, rate, 0
        self.first = [torch.zeros_like(one) for one in parameters]
        self.second = [torch.zeros_like(one) for one in parameters]

    def zero_grad(self) -> None:
        for one in self.parameters:
            one.grad = None

    @torch.no_grad()
    def step(self) -> None:
        self.taken += 1
        gradients = [one.grad for one in self.parameters if one.grad is not None]
        norm = float(torch.stack([g.float().norm() for g in gradients]).norm()) if gradients else 0.0
        for one, m, v in zip(self.parameters, self.first, self.second, strict=True):
            if one.grad is not None:
                g = one.grad / max(norm, 1.0)
                m.lerp_(g, 0.1)
                v.mul_(0.95).addcmul_(g, g, value=0.05)
                root = (v / (1 - 0.95**self.taken)).sqrt_().add_(1e-8)
                one.addcdiv_(m, root, value=-self.rate / (1 - 0.9**self.taken))


def stepping(batch: Batch, optimizers: list[Any]) -> Callable[[], None]:
    """A step on the batch with a plain cross-entropy, in training mode."""
    patient = batch.patient

    def step() -> None:
        for one in optimizers:
            one.zero_grad()
        with patient.mode(training=True):
            batch.loss(patient.run(batch.inputs)).backward()
        for one in optimizers:
            one.step()

    return step


def put(parameters: list[Parameter], values: list[Tensor]) -> None:
    """Weights as they were."""
    with torch.no_grad():
        for one, value in zip(parameters, values, strict=True):
            one.copy_(value)


def with_ours(batch: Batch, end: float) -> tuple[float, int, float]:
    """How much is learnt with an Adam of ours: the best of several rates, its steps, and the rate. Raises NotExamined
    where the time does not suffice to say."""
    parameters = [one for one in every_parameter(batch.patient.model).values() if one.requires_grad]
    start = [one.detach().clone() for one in parameters]
    best = (-math.inf, 0, RATES[0])
    large = sum(one.numel() for one in parameters) > 1_000_000
    order = (RATES[1], RATES[0], RATES[2]) if large else RATES
    for tried, rate in enumerate(order if parameters else ()):
        steps = 24 if tried == 1 else 64
        fall, taken = learn(stepping(batch, [Adam(parameters, rate)]), batch.fallen, end, steps)
        best = max(best, (fall, taken, rate))
        put(parameters, start)
        if fall >= CLEARLY:
            break
        if fall >= -1.0 and taken < FEWEST:
            raise NotExamined(
                f"only {taken} steps could be taken in {SECONDS:g} s, and they learn {fall:.0%} of a batch"
            )
    return best


@contextlib.contextmanager
def watched_losses() -> Iterator[list[float]]:
    """What `backward` is called on inside."""
    seen: list[float] = []
    backward = torch.autograd.backward

    def noted(tensors: Any, *args: Any, **options: Any) -> None:
        first = tensors[0] if isinstance(tensors, (list, tuple)) else tensors
        if torch.is_tensor(first) and first.numel() == 1:
            seen.append(float(first.detach()))
        backward(tensors, *args, **options)

    with mock.patch.object(torch.autograd, "backward", noted):
        yield seen


class Own:
    """The person's own steps on one batch: with `train_step`, else with `optimizer` and a plain cross-entropy.

    A `train_step` that draws by itself draws the same batch every time, since all generators that it can reach are set
    back before each step. What `backward` is called on counts too, (first - now) / first: the loss may ask for
    something else than the targets say."""

    def __init__(self, patient: Patient, reach: Reach) -> None:
        given = patient.given
        self.patient, self.reach = patient, reach
        drawn = draw(given) if given.batches is not None else None
        if drawn is not None:
            rows = max(1, ROWS * LENGTH // max(1, Sizes(patient).parts(drawn)[0].shape[1]))
            drawn = cut_rows(drawn, rows, 1 if patient.form.time_first else 0)
        self.drawn, self.losses = drawn, [math.inf, math.inf]
        self.fixed = given.train_step is None or takes_batch(given)
        self.batch = Batch(patient, drawn) if drawn is not None and self.fixed else None
        if given.train_step is None:
            self.batch = self.batch or Batch(patient)
            held = given.optimizer
            self._step = stepping(self.batch, list(held) if isinstance(held, (list, tuple)) else [held])
        else:
            too_slow = slow(given, drawn)
            if too_slow is not None:
                raise NotExamined(too_slow)
            self._step = self._taken
        self.states = reach.states()

    def _taken(self) -> None:
        if not self.fixed:
            self.reach.set_states(self.states)
        with watched_losses() as seen:
            take_step(self.patient.given, self.drawn)
        if seen:
            mean = sum(seen) / len(seen)
            self.losses[:] = [mean if self.losses[0] == math.inf else self.losses[0], mean]

    def fallen(self) -> float:
        """How much is learnt."""
        first, now = self.losses
        if math.isfinite(first) and not math.isfinite(now):
            return -math.inf
        of_loss = (first - now) / first if math.isfinite(first) and first > 0 and now > -0.01 else -math.inf
        if self.batch is None:  # a loss that falls below 0 is no loss: what it falls by is not learnt
            return of_loss if math.isfinite(of_loss) else min(0.0, (now - first) if math.isfinite(first) else 0.0)
        return max(self.batch.fallen(), of_loss)

    def learn(self, end: float) -> tuple[float, int]:
        return learn(self._step, self.fallen, end)


@check(
    "one-batch",
    "the model cannot learn one batch",
    reference="Karpathy, A Recipe for Training Neural Networks (2019), section 2: overfit one batch",
    demonstration="""\
import torch
from torch import nn
torch.manual_seed(0)
x = torch.randint(40, (2, 12)); y = torch.randint(40, (2, 12))
for name, end in (("logits", nn.Identity()), ("squashed to 0..1", nn.Sigmoid())):
    model = nn.Sequential(nn.Embedding(40, 32), nn.Linear(32, 40), end)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    print(name, loss.item())
""",
)
def one_batch(patient: Patient) -> Finding:
    """A model that is right learns a few rows by heart in some tens of steps. One that cannot has something that no
    amount of data will mend.

        learnt = (loss before - loss after) / (loss before - floor)

    The floor is what a model pays that sees only the token at each place: the mean entropy of what follows it, so that
    a bigram is healthy too. First the person's own steps are taken (`train_step`, or `optimizer` with a plain
    cross-entropy). Where these do not get there, a plain Adam with several rates tells a model that cannot learn from
    rates, or steps, that do not teach it.
    """
    parameters = list(every_parameter(patient.module).values())
    if not parameters:
        raise NotExamined("the model has no parameters")
    given = patient.given
    start = [one.detach().clone() for one in parameters]
    began = time.thread_time()
    expected = f"{CLEARLY:.0%} and more"
    own: tuple[float, int] | None = None
    words, rising = "", False
    if given.train_step is not None or given.optimizer is not None:
        with rehearsed(given) as reach:
            rates = [group["lr"] for one in reach.optimizers for group in one.param_groups]
            try:
                own = Own(patient, reach).learn(began + OWN_SECONDS)
            except NotExamined as reason:
                patient.notes.append(f"one-batch: your own steps were not taken: {reason}")
            except Exception as problem:
                said = f"{type(problem).__name__}: {problem}".splitlines()[0]
                patient.notes.append(f"one-batch: your own steps failed: {said}")
            rising = rates != [group["lr"] for one in reach.optimizers for group in one.param_groups]
            stuck = all(torch.equal(one, value) for one, value in zip(parameters, start, strict=True))
        if own is not None:
            words = f"your {own[1]} steps learn {max(own[0], -9.99):.1%} of a batch"
            if own[0] >= CLEARLY:
                return healthy(words, expected, value=own[0], limit=CLEARLY)
            if own[1] >= FEWEST and stuck:
                return nothing_moves(own[1])
        put(parameters, start)
    fall, taken, rate = with_ours(Batch(patient), max(began + SECONDS, time.thread_time() + SECONDS - OWN_SECONDS))
    told = f"Adam with rate {rate:g} learns {max(fall, -9.99):.1%} of a batch in {taken} steps"
    if fall < CLEARLY:
        return sick(
            told if any(one.requires_grad for one in parameters) else "no parameter wants a gradient",
            expected,
            "something stands between weights and loss: a detached or frozen part, squashed logits, dead activations",
            "look at the checks `gradients` and `loss-input`; take out .detach(), sigmoid or ReLU after the head",
            value=fall,
            limit=CLEARLY,
        )
    if own is None:
        return healthy(told, expected, value=fall, limit=CLEARLY)
    if own[0] < -RISEN:
        return sick(
            f"{words}; {told}",
            "it falls",
            "every step makes the loss larger: the rate is too large, or the sign is wrong (maximize, a loss negated)",
            f"a smaller rate: {rate:g} with Adam works; loss.backward() on the loss itself",
            value=own[0],
            limit=HARDLY,
        )
    if own[0] >= HARDLY or rising or warming(patient, own[1]):
        return healthy(f"{words}; {told}", "it falls", value=own[0], limit=HARDLY)
    if own[1] < FEWEST:
        raise NotExamined(f"only {own[1]} of your steps could be taken in {OWN_SECONDS:g} s; {told}")
    return suspicious(
        f"{words}; {told}",
        "it falls",
        "the rate is so small that some tens of steps teach nothing",
        f"a larger rate: {rate:g} with Adam works",
        "Is the rate meant to be so small? A warm-up is seen if `schedule` and `steps` are given.",
        value=own[0],
        limit=HARDLY,
    )


def nothing_moves(taken: int) -> Finding:
    return sick(
        f"after {taken} of your steps no weight has moved",
        "weights that move",
        "the optimizer holds other parameters, its step() is never called, gradients are zeroed before it, or the rate"
        " is 0",
        "zero_grad(), backward(), step(), in this order; make the optimizer from the parameters of this very model",
        value=0.0,
        limit=0.0,
    )


def warming(patient: Patient, taken: int) -> bool:
    """Whether the stated schedule is still far below its peak after so many steps."""
    schedule = patient.given.schedule
    if not callable(schedule) or not patient.given.steps:
        return False
    peak = max(float(schedule(step)) for step in range(0, patient.given.steps, max(1, patient.given.steps // 200)))
    return float(schedule(min(taken, patient.given.steps))) < 0.1 * peak


CHECKS: tuple[Check, ...] = (one_batch,)
