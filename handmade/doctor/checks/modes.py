"""Training and evaluation: dropout, and what else differs between them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from handmade.doctor.anatomy import hidden_modules
from handmade.doctor.chance import Chance, paths_of
from handmade.doctor.checks.base import Check, check
from handmade.doctor.checks.registered import unknown
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, suspicious
from handmade.doctor.patient import Patient, logits_in
from handmade.doctor.roles import some

REPEATED = 1e-5
"""Two calls that are further apart, as a part of the largest logit, were not the same. Ten seeds, widths 16 to 256, 1
to 6 layers, 11 and 500 tokens, three types: in evaluation, healthy 0 (280 models), sick 0.022 to 1.1 (200); in
training, with dropout of 0.1 or 0.2, healthy 0.10 to 1.1."""
SAME, SAME_IN_HALF = 1e-5, 0.05
"""How far training may be from evaluation without dropout, in float32 or more, and for a model that cannot leave half
precision. The same seeds and sizes, half precision in float32: healthy 0 to 1.3e-7 (280 models: kernels with and
without dropout round differently); sick 5e-4 (a causal mask in one mode alone) to 1.8 (a batch norm). In bfloat16
itself, healthy were up to 3e-3, and the least sick as well: hence float32."""
ONE = 1e-3
"""So near to 1 is what probabilities add up to."""
COARSE = 8
"""Seeds that are tried where something is dropped and nothing changes: whole rows or layers are dropped seldom."""


def seed(number: int) -> None:
    """All global generators."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002 (whoever draws from the old one)


def apart(first: Tensor, second: Tensor) -> float:
    """max |a - b| / max |a|; infinite where one has NaN and the other not."""
    if first.shape != second.shape or not torch.equal(first.isnan(), second.isnan()):
        return float("inf")
    first, second = first.nan_to_num(), second.nan_to_num()
    return float((first - second).abs().max() / first.abs().max().clamp_min(1e-6))


def switch(patient: Patient, training: bool) -> None:
    """The mode as the person's own train() and eval() make it. Hidden modules that hold weights follow: that they do
    not by themselves is what `unregistered` says."""
    module = patient.module
    if training:
        module.eval()
        module.train()
    else:
        module.train()
        module.eval()
    for one in unknown(module).values():
        for below in one.modules():
            below.training = training


def dropouts(patient: Patient) -> dict[str, float]:
    """Path -> chance, of the dropout layers that drop at all."""
    found = {}
    for path, one in patient.modules.items():
        chance = getattr(one, "p", None)
        named = isinstance(one, nn.modules.dropout._DropoutNd) or "dropout" in type(one).__name__.lower()
        if named and isinstance(chance, (int, float)) and chance > 0:
            found[path] = float(chance)
    return found


def stated(patient: Patient, ran: set[str]) -> dict[str, float]:
    """Path -> chance, of numbers called something with "drop" on modules that ran."""
    return {
        f"{path}.{name}" if path else name: float(value)
        for path, one in patient.modules.items()
        for name, value in vars(one).items()
        if path in ran and "drop" in name.lower() and isinstance(value, float) and 0 < value < 1
    }


def run(patient: Patient, tokens: Tensor, number: int) -> tuple[Tensor, Chance, Tensor]:
    """Logits from a seed in the present mode, what was drawn on the way, and where torch's generator stood after."""
    seed(number)
    chance = Chance(patient.modules)
    with torch.no_grad(), chance:
        logits = patient.run(tokens)
    return logits, chance, torch.get_rng_state()


@check(
    "dropout",
    "dropout on in evaluation, off in training, or twice in a row",
    reference="Srivastava et al. 2014 (JMLR 15:1929), section 4 and 10",
    quick=True,
    demonstration="""\
import torch
import torch.nn.functional as F
x = torch.ones(10_000)
print(F.dropout(x, 0.2).eq(0).float().mean())            # 0.2, also in evaluation: training=True is the default
print(F.dropout(x, 0.2, training=False).eq(0).float().mean())    # 0
print(F.dropout(F.dropout(x, 0.2), 0.2).eq(0).float().mean())    # 0.36: twice in a row is another chance
for _ in range(2):
    torch.manual_seed(0)                                 # inside forward: the same are dropped at every step
    print(F.dropout(torch.ones(8), 0.5))
""",
)
def dropout(patient: Patient) -> Finding:
    """While training, y = x * keep / (1 - p), keep drawn anew at every call; in evaluation, y = x. So two calls are

        equal        in evaluation, after the model's own eval(), from two seeds
        different    in training, if anything drops

    How the draws are made does not matter: what torch draws during a forward, and what is multiplied by it, is
    followed operation by operation, with the module in which it happens. So a layer of dropout that never ran, one
    right after another (p + p - p^2 is dropped), and a seed set inside forward are seen too.
    """
    tokens = some(patient)
    try:
        patient.module  # noqa: B018
    except NotExamined:
        return of_a_function(patient, tokens)
    switch(patient, training=False)
    stuck = [path for path, one in patient.modules.items() if one.training and path in dropouts(patient)]
    first, chance, after = run(patient, tokens, 1)
    again, _, _ = run(patient, tokens, 1)
    second, _, after_second = run(patient, tokens, 2)
    if apart(first, again) > REPEATED and not chance.draws:
        raise NotExamined("it answers the same question differently the second time: it keeps something between calls")
    distance = apart(first, second)
    if distance > REPEATED and not chance.drops and chance.draws:
        raise NotExamined(f"evaluation draws random numbers that are no dropout: {paths_of(chance.draws)}")
    if distance > REPEATED:
        return on_in_evaluation(patient, distance, "from one call to the next", chance, stuck)
    if chance.drops:  # the same every time, or so seldom that it was not seen
        still = apart(without_dropout(patient, tokens), first)
        if still > REPEATED:
            return on_in_evaluation(patient, still, "from those without dropout", chance, stuck)
    if torch.equal(after, after_second):
        return seeded(paths_of(chance.draws) if chance.draws else "")
    switch(patient, training=True)
    with patient.stirred():  # behind a projection that begins at zero, nothing is seen of what was dropped
        return in_training(patient, tokens, distance)


def coarse(patient: Patient, tokens: Tensor, first: Tensor) -> float:
    """How far logits are apart from the first ones at the first of some seeds at which they differ."""
    for number in range(3, 3 + COARSE):
        distance = apart(first, run(patient, tokens, number)[0])
        if distance > 0:
            return distance
    return 0.0


def of_a_function(patient: Patient, tokens: Tensor) -> Finding:
    """Of a function no modes are known: only that it is the same twice can be seen."""
    distance = apart(run(patient, tokens, 1)[0], run(patient, tokens, 2)[0])
    if distance > REPEATED:
        raise NotExamined("a function that draws random numbers: it cannot be seen which mode it is in")
    return healthy("two calls say the same", "the same", value=distance, limit=REPEATED)


def without_dropout(patient: Patient, tokens: Tensor) -> Tensor:
    """Logits in the present mode with every random factor replaced by its mean."""
    with torch.no_grad(), Chance(patient.modules, averaged=True):
        return patient.run(tokens)


def on_in_evaluation(patient: Patient, distance: float, of_what: str, chance: Chance, stuck: Sequence[str]) -> Finding:
    hidden = [path for path in stuck if path in hidden_modules(patient.module)]
    if hidden:
        cause = "the dropout layer stands in a plain list or object, where eval() does not find it"
        remedy = "keep it in an attribute, or in an nn.ModuleList"
    elif stuck:
        cause = "after eval() the layer is still in training mode: eval() or train() is overridden"
        remedy = "let eval() and train() call super(), and return self"
    elif chance.drops:
        cause = "F.dropout is on unless it is told the mode, and so is a layer that is made inside forward"
        remedy = "F.dropout(x, p, training=self.training), or an nn.Dropout made in __init__"
    else:
        cause = "something is drawn at random by other means than torch's"
        remedy = "draw only if self.training"
    return sick(
        f"in evaluation, logits differ by {distance:.2g} of the largest {of_what}",
        "0: evaluation draws nothing",
        cause + "; losses are measured too high, and samples are worse than the model",
        remedy,
        value=distance,
        limit=REPEATED,
        where=paths_of(stuck or chance.drops) if stuck or chance.drops else "",
    )


def seeded(where: str) -> Finding:
    return sick(
        "after a forward from two different seeds, torch's generator stands at the same place",
        "a forward sets no seed",
        "a seed is set inside forward: all steps drop the same numbers, and whatever else is drawn (batches, samples)"
        " repeats too",
        "set the seed once, before the training",
        where=where,
    )


def in_training(patient: Patient, tokens: Tensor, in_evaluation: float) -> Finding:
    """The finding about training, once nothing is wrong in evaluation."""
    layers, meant = dropouts(patient), patient.expects("dropout")
    first, chance, after = run(patient, tokens, 1)
    second, _, after_second = run(patient, tokens, 2)
    distance = apart(first, second) or (coarse(patient, tokens, first) if chance.drops else 0.0)
    numbers: dict[str, Any] = {"value": distance, "limit": REPEATED}
    if torch.equal(after, after_second):
        return seeded(paths_of(chance.drops) if chance.drops else "")
    seed(1)
    if chance.drops and distance == 0 and torch.equal(after, torch.get_rng_state()):
        return sick(
            "in training, two calls from different seeds say exactly the same",
            "each step drops others",
            "dropout draws from a generator that starts over at every call: the same numbers are dropped at every step",
            "make the generator once, or use torch's own",
            where=paths_of(chance.drops),
            **numbers,
        )
    if meant is False and (chance.drops or distance > REPEATED):
        return sick(
            f"in training, logits differ by {distance:.2g} of the largest from one call to the next",
            "no dropout, as declared",
            "something drops, though there was to be none",
            "dropout = 0.0",
            where=paths_of(chance.drops) if chance.drops else "",
            **numbers,
        )
    if chance.twice and not left_out(patient, chance.ran):
        one, other = chance.twice[0]
        return sick(
            f"dropout twice in a row: in {one or 'the model'}, then in {other or 'the model'}",
            "a weight, a sum or a norm between them",
            "nothing is between the two: together they drop p + p - p^2, nearly double of what was asked for",
            f"remove one of the two ({one or 'the model'}, {other or 'the model'})",
            value=float(len(chance.twice)),
            limit=0.0,
            where=other,
        )
    if not chance.drops and distance <= REPEATED:
        return nothing_drops(patient, layers, meant, numbers, chance.ran)
    idle = [path for path in layers if never_used(path, patient, chance)]
    if idle:
        return sick(
            f"{len(idle)} of {len(layers)} dropout layers never run: {paths_of(idle)}",
            "each runs in training",
            "it is built and not applied: what was to be regularised is not",
            f"apply {idle[0]} in forward, or do not build it",
            value=float(len(idle)),
            limit=0.0,
            where=idle[0],
        )
    return healthy(
        f"two calls differ by {distance:.2g} of the largest logit in training, by {in_evaluation:.2g} in evaluation",
        "more than 0, and 0",
        **numbers,
    )


def nothing_drops(
    patient: Patient, layers: dict[str, float], meant: Any, numbers: dict[str, Any], ran: set[str]
) -> Finding:
    """The finding about a model that drops nothing in training."""
    said = "in training, two calls say exactly the same"
    if layers or meant is True:
        off = [path for path in layers if not patient.modules[path].training]
        return sick(
            said + (f", with {len(layers)} dropout layers of p = {max(layers.values()):g}" if layers else ""),
            "dropout drops in training",
            "the layers are in evaluation mode after train(): train() is overridden, or does not reach them"
            if off
            else "dropout is not applied, or only in evaluation: the model will overfit sooner than it should",
            "let train() call super().train(mode)" if off else "apply dropout in forward, if self.training",
            where=paths_of(list(layers)) if layers else "",
            **numbers,
        )
    names = stated(patient, ran)
    if names and meant is None:
        first, chance = next(iter(names.items()))
        return suspicious(
            f"{said}, and {first} = {chance:g}",
            "dropout drops in training",
            "a chance to drop is kept, and nothing in forward uses it in training",
            "F.dropout(x, p, training=self.training)",
            'Is there to be dropout? expect={"dropout": True}, or False.',
            where=first,
            **numbers,
        )
    return healthy("no dropout: " + said, "", **numbers)


def left_out(patient: Patient, ran: set[str]) -> bool:
    """Whether modules with weights never ran, and none around them did: what they would put between two layers of
    dropout is missing, which `gradients` names."""
    for path, one in patient.modules.items():
        around = [path[:end] for end in range(1, len(path) + 1) if path[end : end + 1] in ("", ".")]
        held = isinstance(one, (nn.ParameterList, nn.ParameterDict))
        if (
            path
            and not held
            and any(weight is not None for weight in one._parameters.values())
            and not ran.intersection(around)
        ):
            return True
    return False


def never_used(path: str, patient: Patient, chance: Chance) -> bool:
    """Whether a dropout layer did not run, though the module it belongs to did, and drops nothing in its own code (as
    one that gives the layer's chance to a fused attention does)."""
    if path in chance.ran:
        return False
    owner = path
    while owner:
        owner = owner.rpartition(".")[0]
        if owner in chance.ran:
            return owner not in chance.drops
        if not isinstance(patient.modules.get(owner), (nn.ModuleList, nn.ModuleDict, nn.Sequential, type(None))):
            return False  # a whole block that never runs is what `gradients` names
    return False


@check(
    "modes",
    "training and evaluation differ by more than dropout",
    reference="https://docs.pytorch.org/docs/stable/notes/autograd.html (evaluation mode); Ioffe and Szegedy 2015, 3.1",
    quick=True,
    demonstration="""\
import torch
from torch import nn
torch.manual_seed(0)
norm, x = nn.BatchNorm1d(4), torch.randn(8, 4) * 3 + 1
print((norm.train()(x) - norm.eval()(x)).abs().max())         # another function in evaluation
norm = nn.LayerNorm(4)
print((norm.train()(x) - norm.eval()(x)).abs().max())         # 0
drop = nn.Dropout(0.5)
print(drop.train()(torch.ones(100_000)).mean())               # 1: on average dropout changes nothing
""",
)
def modes(patient: Patient) -> Finding:
    """Without dropout, training and evaluation are one function:

        d = max |f_train(x) - f_eval(x)| / max |f_eval(x)|        every random factor replaced by its mean

    A batch norm (statistics of the batch in one mode, kept ones in the other), a mask or a branch on `self.training`
    make two of it: then what is measured and sampled is not what was trained. Modules are compared one by one, in the
    order in which they finish, to name the first that differs.
    """
    patient.module  # noqa: B018 (a function has no modes)
    tokens = some(patient)
    with in_full_precision(patient) as full:
        limit = SAME if full else SAME_IN_HALF
        asked, there = recorded(patient, tokens, training=False, number=1)
        learning, here = recorded(patient, tokens, training=True, number=1)
        again, _ = recorded(patient, tokens, training=True, number=2)
    learning, again = like(learning, asked), like(again, asked)
    if apart(learning, again) > limit:
        raise NotExamined("training draws random numbers that are no factor: what it would say without is not known")
    distance = min(apart(asked, learning), apart(asked.log_softmax(-1), learning.log_softmax(-1)))
    measured = f"without dropout, training differs from evaluation by {distance:.2g} of the largest logit"
    if distance <= limit:
        return healthy(measured, "0", value=distance, limit=limit)
    where = first_difference(there, here, limit)
    kind = type(patient.modules.get(where)).__name__
    return sick(
        measured + (f", first in {where}" if where else ", in its own forward"),
        "0",
        f"{kind} uses statistics of the batch in training and kept ones in evaluation; what is sampled is not what was"
        " trained"
        if "batchnorm" in kind.lower().replace("_", "")
        else "something is done in one mode only (a mask, a norm over the batch, an `if self.training`); what is"
        " sampled is not what was trained",
        "use a norm over the features (LayerNorm, RMSNorm)"
        if "norm" in kind.lower()
        else "do the same in both modes; only dropout may look at self.training",
        value=distance,
        limit=limit,
        where=where,
    )


Seen = list[tuple[str, list[Tensor], list[Tensor]]]


def recorded(patient: Patient, tokens: Tensor, training: bool, number: int) -> tuple[Tensor, Seen]:
    """Logits without chance in a mode, and what each module got and gave, in the order in which they finished."""
    seed(number)
    seen: Seen = []
    with torch.no_grad(), patient.mode(training), keeping(patient, seen), Chance(patient.modules, averaged=True):
        returned = patient.call(tokens)
    try:
        logits = patient.read(returned, tokens.shape)
    except (RuntimeError, TypeError):
        logits = logits_in(returned, patient.vocab_size)
    if not patient.form.single and not patient.every_position:  # in the other mode it may say all positions
        raw = logits_in(returned, patient.vocab_size)
        logits = raw[:, -1:] if raw.dim() == 3 and raw.shape[:2] == tokens.shape else logits
    logits = logits.double()
    if bool((logits >= 0).all()) and float((logits.sum(-1) - 1).abs().max()) < ONE:
        logits = logits.clamp_min(1e-30).log()  # probabilities in this mode
    return logits, seen


@contextlib.contextmanager
def keeping(patient: Patient, seen: Seen) -> Iterator[None]:
    handles = []
    for path, module in patient.modules.items():

        def keep(_: nn.Module, given: Any, output: Any, path: str = path) -> None:
            seen.append((path, tensors(given), tensors(output)))

        handles.append(module.register_forward_hook(keep))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors(value: Any) -> list[Tensor]:
    """Copies of the tensors in what a module got or gave."""
    if torch.is_tensor(value):
        return [value.detach().clone()]
    return [inner for one in value for inner in tensors(one)] if isinstance(value, (tuple, list)) else []


@contextlib.contextmanager
def in_full_precision(patient: Patient) -> Iterator[bool]:
    """Inside, weights in half precision are in float32, where the model stands that; gives whether nothing is left in
    half precision. Its rounding, which kernels for training and for evaluation do differently, hides small things."""
    tensors = [t for one in patient.modules.values() for t in (*one._parameters.values(), *one._buffers.values())]
    half = {id(t): (t, t.data) for t in tensors if t is not None and t.dtype in (torch.bfloat16, torch.float16)}
    try:
        for one, data in half.values():
            one.data = data.float()
        try:
            patient.logits(some(patient))
        except Exception:
            for one, data in half.values():
                one.data = data
            yield False
        else:
            yield True
    finally:
        for one, data in half.values():
            one.data = data


def like(logits: Tensor, other: Tensor) -> Tensor:
    """In the form in which the other mode says it. Raises NotExamined for another shape."""
    if logits.shape != other.shape and logits.dim() == 3 and other.shape[1] == 1:
        logits = logits[:, -1:]
    if logits.shape != other.shape:
        raise NotExamined(f"training returns {tuple(logits.shape)}, evaluation {tuple(other.shape)}")
    return logits


def first_difference(one: Seen, other: Seen, limit: float) -> str:
    """The path of the first module that gave something else; the module around it where it already got something
    else."""
    for (path, got, gave), (second, got_second, gave_second) in zip(one, other, strict=False):
        if path != second:
            return path.rpartition(".")[0]
        if differ(gave, gave_second, limit):
            return path.rpartition(".")[0] if differ(got, got_second, limit) else path
    return ""


def differ(first: Sequence[Tensor], second: Sequence[Tensor], limit: float) -> bool:
    if len(first) != len(second):
        return True
    return any(apart(a.double(), b.double()) > limit / 10 for a, b in zip(first, second, strict=True))


CHECKS: tuple[Check, ...] = (dropout, modes)
