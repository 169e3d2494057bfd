"""Which parameters an optimizer holds, and which of them it decays."""

from __future__ import annotations

import pytest
import torch
from tiny_training import Tiny, found, tiny
from torch import nn

from handmade.doctor.checks.groups import DEFAULT_DECAY


def test_a_frozen_parameter_may_be_missing_and_a_declared_one_too():
    model = tiny()
    model.embedding.weight.requires_grad_(False)
    rest = [*model.norm.parameters(), *model.head.parameters()]
    assert found("optimizer", model, optimizer=torch.optim.SGD(rest, lr=0.1)).verdict == "healthy"
    model.embedding.weight.requires_grad_(True)
    finding = found("optimizer", model, optimizer=torch.optim.SGD(rest, lr=0.1))
    assert finding.verdict == "sick"
    assert finding.where == "embedding.weight"
    optimizer = torch.optim.SGD(rest, lr=0.1)
    assert found("optimizer", model, optimizer=optimizer, expect={"frozen": ["embedding"]}).verdict == "healthy"


def test_a_wrapper_and_a_list_are_looked_into():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = tiny()
    first = torch.optim.SGD([*model.embedding.parameters(), *model.norm.parameters()], lr=0.1)
    second = Wrapper(torch.optim.Adam(model.head.parameters()))
    assert found("optimizer", model, optimizer=[first, second]).verdict == "healthy"
    assert found("optimizer", model, optimizer=second).verdict == "sick"
    assert found("optimizer", model, optimizer="AdamW").measured == "optimizer: a str has no param_groups"


def test_a_tied_weight_is_one_parameter():
    model = tiny()
    model.head.weight = model.embedding.weight
    assert found("optimizer", model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)).verdict == "healthy"
    with pytest.warns(UserWarning, match="duplicate"):
        twice = torch.optim.SGD([*model.embedding.parameters(), *model.head.parameters(), *model.norm.parameters()])
    finding = found("optimizer", model, optimizer=twice)
    assert finding.verdict == "sick"
    assert "more than once" in finding.measured


def split(model: nn.Module, decayed: list[nn.Parameter], decay: float = 0.1) -> torch.optim.Optimizer:
    known = {id(one) for one in decayed}
    rest = [one for one in model.parameters() if id(one) not in known]
    return torch.optim.AdamW([{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}])


def test_embeddings_may_be_decayed_or_not():
    model = tiny()
    matrices = [one for one in model.parameters() if one.dim() >= 2]
    assert found("weight-decay", model, optimizer=split(model, matrices)).verdict == "healthy"
    assert found("weight-decay", model, optimizer=split(model, [model.head.weight])).verdict == "healthy"


@pytest.mark.parametrize(
    ("decay", "expect", "verdict"),
    [
        (0.0, {}, "healthy"),
        (DEFAULT_DECAY, {}, "healthy"),
        (DEFAULT_DECAY, {"decayed": False}, "sick"),
        (0.1, {}, "sick"),
        (0.1, {"decayed": True}, "healthy"),
        (0.1, {"decayed": ["norm", "head.bias"]}, "healthy"),
        (0.1, {"decayed": ["norm"]}, "sick"),
    ],
)
def test_one_decay_for_all(decay, expect, verdict):
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=decay)
    finding = found("weight-decay", model, optimizer=optimizer, expect=expect)
    assert finding.verdict == verdict, finding
    if verdict == "sick":
        assert finding.value == decay


def test_torch_s_default_is_the_one_that_is_let_pass():
    assert torch.optim.AdamW(tiny().parameters()).defaults["weight_decay"] == DEFAULT_DECAY


def test_a_split_that_went_wrong_is_sick_however_small_the_decay():
    model = tiny()
    finding = found("weight-decay", model, optimizer=split(model, [model.head.weight, model.norm.weight], 1e-3))
    assert finding.verdict == "sick"
    assert finding.where == "norm.weight"


def test_a_norm_with_a_gain_of_two_axes_is_a_norm():
    class Normed(Tiny):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm((5, 8))

    model = Normed()
    finding = found("weight-decay", model, optimizer=split(model, [p for p in model.parameters() if p.dim() >= 2]))
    assert finding.verdict == "sick"
    assert finding.where == "norm.weight, norm.bias"
