"""What learns is known to torch: modules and tensors that are not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from handmade.doctor.anatomy import hidden_modules, loose_tensors
from handmade.doctor.chance import paths_of, places
from handmade.doctor.checks.base import check
from handmade.doctor.findings import Finding, healthy, sick, suspicious
from handmade.doctor.patient import Patient
from handmade.doctor.roles import some, stir, takes_part
from handmade.doctor.tables import is_counted, table


def declared(names: Any, path: str) -> bool:
    """Whether a declaration names a path, its beginning, or its last attribute."""
    if names is True or not names:
        return bool(names)
    given = [names] if isinstance(names, str) else list(names)
    return any(path == one or path.startswith((f"{one}.", f"{one}[")) or path.endswith(f".{one}") for one in given)


@check(
    "unregistered",
    "a module or tensor that ought to learn is none that torch knows",
    reference="https://docs.pytorch.org/docs/stable/generated/torch.nn.ModuleList.html",
    quick=True,
    demonstration="""\
import torch
from torch import nn
class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = [nn.Linear(8, 8) for _ in range(3)]    # a plain list
        self.gain = torch.ones(8, requires_grad=True)        # a plain tensor
print(len(list(Wrong().parameters())), Wrong().state_dict())  # 0, nothing: not trained, not saved
right = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
print(len(list(right.parameters())))                         # 6
""",
)
def unregistered(patient: Patient) -> Finding:
    """What learns has to be found by torch, in `parameters()` and `state_dict()`:

        {tensors that move the logits} = {parameters} + {buffers} + {constant tables}

    Looked at: modules in plain lists, dictionaries and objects, which are sick when they run in a forward; layers made
    inside forward; tensors in attributes. Those are moved a little, one after another. A tensor that moves no logit,
    or that every forward makes anew, is no matter. One that requires a gradient is sick. Of the others, a mask, whole
    numbers, sines, and lines that obey x[t+1] + x[t-1] = c x[t] are constant tables, and healthy, though a buffer
    would move with the model and be saved; about anything else the person is asked.
    """
    module = patient.module
    stir(patient)
    ran: set[str] = set()
    stack: list[str] = []
    before = {path: (tensor, tensor.detach().clone()) for path, tensor in loose_tensors(module).items()}
    with places(patient.modules, stack, ran), born(stack) as made:
        patient.logits(some(patient))
    hidden = {path: one for path, one in unknown(module).items() if runs(patient, path, one, ran)}
    if hidden:
        return not_a_module(hidden)
    known = {id(one) for below in patient.modules.values() for one in below._parameters.values()}
    fresh = [
        (place, one) for place, one in made
        if any(one is not None and id(one) not in known for one in one._parameters.values())
    ]  # fmt: skip
    if fresh:
        kind = type(fresh[0][1]).__name__
        return sick(
            f"{len(fresh)} layers with weights are made inside forward: {kind} in {fresh[0][0] or 'the model'}",
            "none",
            "its weights are drawn anew at every call: no optimizer ever has them",
            f"make the {kind} in __init__, and call it in forward",
            value=float(len(fresh)),
            limit=0.0,
            where=fresh[0][0],
        )
    return judged(patient, before)


def judged(patient: Patient, before: Mapping[str, tuple[Tensor, Tensor]]) -> Finding:
    """The finding about tensors in plain attributes. `before`: what they were before a forward."""
    places_known = {
        one.untyped_storage().data_ptr() for one in (*patient.module.parameters(), *patient.module.buffers())
    }
    now = loose_tensors(patient.module)
    constants = patient.expects("constants")
    grown: list[str] = []
    asked: list[str] = []
    tables: list[str] = []
    for path, (tensor, value) in before.items():
        same = now.get(path) is tensor and torch.equal(tensor.detach(), value)
        if is_counted(tensor) or not tensor.numel() or not same:
            continue  # whole numbers, or made anew by every forward
        if tensor.untyped_storage().data_ptr() in places_known:
            continue  # a view of a parameter or buffer
        why = None if tensor.requires_grad else table(tensor)
        if why is not None:
            tables.append(f"{path} ({why})")
        elif takes_part(patient, tensor):
            (grown if tensor.requires_grad else asked).append(path)
    if constants is not None:
        grown += [path for path in asked if not declared(constants, path)]
        asked = []
    expected = "what learns is nn.Parameter, what is constant is a buffer"
    if grown:
        name = grown[0].rpartition(".")[2]
        derived = before[grown[0]][0].grad_fn is not None
        return sick(
            f"{len(grown)} tensors move the logits and are no parameters: {paths_of(grown)}",
            expected,
            "it was computed from a parameter (nn.Parameter(...) * x, .to(), .half()): the result is a plain tensor"
            if derived
            else "a plain tensor is in neither parameters() nor state_dict(): it is not trained, saved or moved",
            f"self.{name} = nn.Parameter({'the finished value' if derived else name})",
            value=float(len(grown)),
            limit=0.0,
            where=grown[0],
        )
    if asked:
        return suspicious(
            f"{len(asked)} tensors move the logits, are no parameters, and look like no table: {paths_of(asked)}",
            expected,
            "a plain tensor is not trained, saved or moved: right for a constant, wrong for a weight",
            "nn.Parameter if it is to learn, register_buffer if it is constant",
            f'Is it constant? Then expect={{"constants": {asked[:3]!r}}}.',
            value=float(len(asked)),
            limit=0.0,
            where=asked[0],
        )
    said = "all modules that run and all tensors that learn are registered"
    return healthy(
        said + (f"; constants that are no buffers: {paths_of(tables, 2)}" if tables else ""),
        expected,
        value=0.0,
        limit=0.0,
    )


@contextlib.contextmanager
def born(stack: Sequence[str]) -> Iterator[list[tuple[str, nn.Module]]]:
    """Inside, the modules that are made, each with the place (the last of `stack`) where."""
    found: list[tuple[str, nn.Module]] = []
    original = nn.Module.__init__

    def noted(self: nn.Module, *arguments: Any, **options: Any) -> None:
        found.append((stack[-1] if stack else "", self))
        original(self, *arguments, **options)

    nn.Module.__init__ = noted  # type: ignore[method-assign]
    try:
        yield found
    finally:
        nn.Module.__init__ = original  # type: ignore[method-assign]


def unknown(module: nn.Module) -> dict[str, nn.Module]:
    """Path -> hidden module with parameters that torch does not know, the outermost ones."""
    known = {id(one) for one in module.parameters()}
    found: dict[str, nn.Module] = {}
    inner: set[int] = set()
    for path, one in hidden_modules(module).items():
        if id(one) not in inner and any(id(parameter) not in known for parameter in one.parameters()):
            found[path] = one
        inner |= {id(below) for below in one.modules()}
    return found


def runs(patient: Patient, path: str, module: nn.Module, ran: set[str]) -> bool:
    """Whether a hidden module has a part in forward: it is called, or its weights are used."""
    if path in ran or any(one.startswith(f"{path}.") for one in ran):
        return True
    return any(takes_part(patient, one) for one in list(module.parameters())[:4])


def not_a_module(hidden: Mapping[str, nn.Module]) -> Finding:
    numbers = sum(one.numel() for module in hidden.values() for one in module.parameters())
    first = next(iter(hidden))
    owner = first.partition("[")[0]
    listed = "[" in first
    name = owner.rpartition(".")[2]
    return sick(
        f"{len(hidden)} modules with {numbers:,} numbers run and are not registered: {paths_of(list(hidden))}",
        "every module that runs is known to torch",
        "torch looks for modules in attributes of modules, not in lists, dictionaries or other objects: parameters(),"
        " state_dict(), .to() and .eval() pass them over, so that they are neither trained nor saved",
        f"self.{name} = nn.ModuleList(self.{name})" if listed else f"derive the class that holds {name} from nn.Module",
        value=float(len(hidden)),
        limit=0.0,
        where=owner,
    )
