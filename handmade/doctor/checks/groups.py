"""What an optimizer holds: which parameters, and which of them it decays."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor, nn

from handmade.doctor.checks.base import Check, check
from handmade.doctor.findings import Finding, NotExamined, healthy, sick
from handmade.doctor.patient import Patient
from handmade.doctor.rehearsing import optimizers_of

# The decay that torch's AdamW has when nobody says any. At a rate of 3e-4 it takes 0.3 % of a weight in 1000 steps.
DEFAULT_DECAY = 0.01


def listed(names: list[str], most: int = 3) -> str:
    """The first few names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def declared(patient: Patient, what: str, name: str) -> bool:
    """Whether a person said by `expect` that this parameter is one of those."""
    said = patient.expects(what)
    if said is None or isinstance(said, bool):
        return bool(said)
    return any(name.startswith(one) for one in ([said] if isinstance(said, str) else said))


@check(
    "optimizer",
    "the optimizer does not hold the parameters of the model, each once",
    reference="PyTorch documentation, torch.optim: Constructing it",
    needs=("optimizer",),
    quick=True,
    demonstration="""\
import torch
model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model[1] = torch.nn.Linear(2, 3)                 # wrong: a new head, after the optimizer was made
held = {id(p) for group in optimizer.param_groups for p in group["params"]}
print([name for name, p in model.named_parameters() if id(p) not in held])    # it will never learn
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)                       # right: made last
held = {id(p) for group in optimizer.param_groups for p in group["params"]}
print([name for name, p in model.named_parameters() if id(p) not in held])
""",
)
def optimizer(patient: Patient) -> Finding:
    """Every parameter that wants a gradient has to be in one group of one optimizer:

        missing = { p of the model, p.requires_grad } \\ { p of all groups }

    One that is in none stays as it was drawn; the rest learns around it, so the loss falls, only not as far. Such are
    layers that were added or replaced after the optimizer was made, blocks whose group was forgotten, and an optimizer
    of another instance of the model. One that is there twice is stepped twice.
    """
    module = patient.module
    held = Counter(
        id(one) for each in optimizers_of(patient.given) for group in each.param_groups for one in group["params"]
    )
    wanted = {name: one for name, one in module.named_parameters() if one.requires_grad}
    if not wanted:
        raise NotExamined("the model has no parameters that want a gradient")
    missing = [name for name, one in wanted.items() if id(one) not in held and not declared(patient, "frozen", name)]
    twice = [name for name, one in wanted.items() if held[id(one)] > 1]
    share = sum(wanted[name].numel() for name in missing) / sum(one.numel() for one in wanted.values())
    measured = f"it holds {len(wanted) - len(missing)} of {len(wanted)} parameters that want a gradient"
    details: dict[str, Any] = {"value": share, "limit": 0.0}
    if len(missing) == len(wanted):
        return sick(
            "it holds none of the model's parameters",
            "all of them",
            "it was made for another instance of the model, or the model was made anew after it: nothing is learnt",
            "make the optimizer last, from the model that is trained: AdamW(model.parameters(), ...)",
            **details,
        )
    if missing:
        return sick(
            f"{measured}; {100 * share:.2g} % of the weights are never stepped",
            "all of them",
            "they keep the values they were drawn with: they were added or replaced after the optimizer was made, or "
            "stand in no group",
            "make the optimizer from model.parameters(), after the model is complete",
            where=listed(missing),
            **details,
        )
    if twice:
        return sick(
            f"{len(twice)} parameters are in it more than once",
            "each once",
            "they are stepped twice with one gradient: twice the rate, twice the decay",
            "put each parameter into one group of one optimizer; a tied weight is one parameter",
            where=listed(twice),
            value=float(len(twice)),
            limit=0.0,
        )
    frozen = sum(not one.requires_grad for one in module.parameters())
    said = f", {frozen} frozen" if frozen else ""
    return healthy(f"{measured}{said}", "all of them", **details)


@check(
    "weight-decay",
    "biases and norms are decayed",
    reference="Loshchilov and Hutter 2019 (arXiv:1711.05101), section 2; Brown et al. 2020 (arXiv:2005.14165), "
    "appendix B, and the groups of GPT-2's and BERT's published training code",
    needs=("optimizer",),
    quick=True,
    demonstration="""\
import torch
norm = torch.nn.LayerNorm(4)
def after(decay, steps=200):
    with torch.no_grad(): norm.weight.fill_(1.0)
    optimizer = torch.optim.AdamW([{"params": [norm.weight], "weight_decay": decay}], lr=1e-2)
    for _ in range(steps):
        norm.weight.grad = torch.zeros(4)        # no loss asks for a change
        optimizer.step()
    return norm.weight[0].item()
print("decayed:", after(0.1))                    # 0.82: the norm has become quieter, for nothing
print("not decayed:", after(0.0))                # 1.0
""",
)
def weight_decay(patient: Patient) -> Finding:
    """Decay pulls a weight towards 0 in every step:

        w <- w - rate * decay * w,          by exp(-rate * decay * steps) in all

    That is meant for matrices, where small weights make a smooth function. The gain of a norm belongs near 1, and a
    bias has no scale of its own: pulling them to 0 only makes them wrong. So they stand in a group of their own with
    weight_decay=0. Biases and gains are known by their shape (at most one axis) or by standing in a module that is
    called a norm; embeddings may be decayed or not, both is usual.

    Sick: groups differ in decay, so a difference was meant, and biases or norms are on the wrong side; or one decay
    above torch's default of 0.01 for all, which somebody chose for the matrices. One group with the default or less
    is healthy, though it decays them too: it takes 0.3 % in 1000 steps at a rate of 3e-4, and every other training
    script that is well has it. A decay of all that is meant is declared with expect={"decayed": True}; where none
    is meant to be, expect={"decayed": False} finds even the default.
    """
    module = patient.module
    decays = {
        id(one): float(group.get("weight_decay") or 0.0)
        for each in optimizers_of(patient.given)
        for group in each.param_groups
        for one in group["params"]
    }
    names = {id(one): name for name, one in module.named_parameters()}
    small = vectors(module)
    held = {key: decay for key, decay in decays.items() if key in names}
    wrong = [
        key for key, decay in held.items() if decay and key in small and not declared(patient, "decayed", names[key])
    ]
    matrices = [decay for key, decay in held.items() if key not in small]
    most = max((held[key] for key in wrong), default=0.0)
    split = len(set(held.values()) & {0.0}) == 1 and any(held.values())
    decayed = sum(decay > 0 for decay in matrices)
    measured = f"{len(wrong)} of {sum(key in small for key in held)} biases and norms are decayed, by {most:g}"
    expected = "matrices alone"
    details: dict[str, Any] = {"value": most, "limit": 0.0 if split else DEFAULT_DECAY}
    if not held:
        raise NotExamined("the optimizer holds no parameter of the model: see the check optimizer")
    if not wrong:
        said = f"{decayed} of {len(matrices)} matrices are decayed, no bias and no norm"
        if any(held[key] for key in small if key in held):
            said = "biases and norms are decayed, as was declared"
        return healthy(said, expected, **details)
    meant = patient.expects("decayed") is not None
    if not split and most <= DEFAULT_DECAY and not meant:
        return healthy(f"all are decayed alike, by {most:g}: too little to matter", expected, **details)
    upside_down = split and not decayed
    return sick(
        f"{measured}; {decayed} of {len(matrices)} matrices are",
        expected,
        "the groups are the wrong way round: matrices are not decayed and biases and norms are"
        if upside_down
        else "it pulls the gains of norms towards 0, where they belong near 1, and biases for nothing"
        + (
            "; the groups were to keep them out, and do not: names that are looked for may not be there"
            if split
            else ""
        ),
        "groups by shape: weight_decay=0 for p.dim() < 2; if it is meant: expect={'decayed': True}",
        where=listed([names[key] for key in wrong]),
        **details,
    )


def vectors(module: nn.Module) -> set[int]:
    """ids of biases and gains: of at most one axis, or in a module that is called a norm."""
    found = set()
    for one in module.modules():
        norm = "norm" in type(one).__name__.lower()
        for parameter in one.parameters(recurse=False):
            if isinstance(parameter, Tensor) and (parameter.dim() <= 1 or norm):
                found.add(id(parameter))
    return found


CHECKS: tuple[Check, ...] = (optimizer, weight_decay)
