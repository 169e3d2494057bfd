"""Training and evaluation: dropout wherever it hides, and what else makes two functions of one model."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import handmade as hm
from handmade import doctor
from handmade.doctor.chance import Chance, Noise
from handmade.doctor.checks import modes

V, C, P = 20, 16, 0.25


class Model(nn.Module):
    """Tokens to logits, with whatever is put between."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(V, C), nn.Linear(C, V)
        self.middle = middle if middle is not None else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.middle(self.embedding(tokens)))


class Of(nn.Module):
    """A module whose forward is a function of itself and x."""

    def __init__(self, use: Callable[[nn.Module, Tensor], Tensor], **things) -> None:
        super().__init__()
        self.use = use
        for name, thing in things.items():
            setattr(self, name, thing)

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, x)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def found(model, check: str, **given):
    return doctor.examine(model, only=[check], vocab_size=V, context=8, **given)[check]


def attend(self, x: Tensor) -> Tensor:
    x = x.unsqueeze(1)
    return F.scaled_dot_product_attention(x, x, x, is_causal=True, dropout_p=P if self.training else 0.0).squeeze(1)


def by_rand(self, x: Tensor) -> Tensor:
    return x * (torch.rand_like(x) > P) / (1 - P) if self.training else x


def by_draws(self, x: Tensor) -> Tensor:
    return x * torch.bernoulli(torch.full(x.shape, 1 - P)) / (1 - P) if self.training else x


def by_uniform(self, x: Tensor) -> Tensor:
    return x * (torch.empty_like(x).uniform_() < 1 - P).float().div(1 - P) if self.training else x


def by_fill(self, x: Tensor) -> Tensor:
    return x.masked_fill(torch.rand(x.shape) < P, 0.0) / (1 - P) if self.training else x


def by_where(self, x: Tensor) -> Tensor:
    return torch.where(torch.rand(x.shape) < P, torch.zeros(()), x / (1 - P)) if self.training else x


def by_floor(self, x: Tensor) -> Tensor:  # a whole row at a time
    return x / (1 - P) * (1 - P + torch.rand(x.shape[0], 1, 1)).floor_() if self.training else x


def by_noise(self, x: Tensor) -> Tensor:
    return x + 0.1 * torch.randn_like(x) if self.training else x


WAYS = {
    "nn.Dropout": nn.Dropout(P),
    "F.dropout": Of(lambda self, x: F.dropout(x, P, self.training)),
    "attention": Of(attend),
    "nn.MultiheadAttention": Of(
        lambda self, x: self.inner(x, x, x)[0], inner=nn.MultiheadAttention(C, 2, dropout=P, batch_first=True)
    ),
    "nn.LSTM": Of(lambda self, x: self.inner(x)[0], inner=nn.LSTM(C, C, 2, dropout=P, batch_first=True)),
    "whole features": nn.Dropout1d(P),
    "ours, fused": hm.layers.Dropout(P),
    "rand": Of(by_rand),
    "bernoulli": Of(by_draws),
    "uniform": Of(by_uniform),
    "masked_fill": Of(by_fill),
    "where": Of(by_where),
    "rows": Of(by_floor),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_drop_is_seen_and_can_be_averaged(way: str) -> None:
    model = Model(WAYS[way])
    one = found(model, "dropout")
    assert one.verdict == "healthy"
    assert one.value > 1e-3
    assert found(model, "dropout", expect={"dropout": False}).verdict == "sick"
    same = found(model, "modes")
    assert same.verdict == "healthy", same
    assert same.value < 1e-6


def test_chance_says_where_something_was_dropped() -> None:
    model = Model(Of(lambda self, x: self.a(x) + F.dropout(self.b(x), P), a=nn.Dropout(P), b=nn.Linear(C, C)))
    modules = dict(model.named_modules())
    with Chance(modules) as chance:
        model(torch.zeros(2, 3, dtype=torch.int64))
    assert chance.drops == ["middle.a", "middle"]
    assert not chance.twice
    assert {"", "middle", "middle.a", "middle.b", "head"} <= chance.ran
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in modules.values())


def test_what_is_known_of_random_numbers() -> None:
    uniform = Noise(0.5, (0.0, 1.0))
    assert uniform.after("gt", 0.25).mean == 0.75
    assert uniform.after("lt", 0.25).mean == 0.25
    assert uniform.after("add", 0.75).after("floor_", None).mean == 0.75
    assert uniform.after("mul", 4.0) == Noise(2.0, (0.0, 4.0))
    assert Noise(0.75).after("div_", 0.75).mean == 1
    assert Noise(0.75).after("bitwise_not", None).mean == 0.25
    assert uniform.after("rsub", 1.0).between == (0.0, 1.0)
    assert uniform.after("exp", None) == Noise()


# Dropout


def test_on_in_evaluation_and_where() -> None:
    one = found(Model(Of(lambda self, x: F.dropout(x, P))), "dropout")
    assert (one.verdict, one.where) == ("sick", "middle")
    assert "self.training" in one.remedy
    one = found(Model(Of(lambda self, x: nn.Dropout(P)(x))), "dropout")
    assert one.verdict == "sick"
    one = found(Model(Of(lambda self, x: x * (1 + 0.1 * random.random()))), "dropout")
    assert one.verdict == "sick"
    assert "other means" in one.cause


@pytest.mark.parametrize("name", ["eval", "train"])
def test_overridden_modes(name: str) -> None:
    class Stuck(Model):
        pass

    overrides = {"eval": lambda self: self, "train": lambda self, mode=True: nn.Module.train(self, True)}
    setattr(Stuck, name, overrides[name])
    one = found(Stuck(nn.Dropout(P)), "dropout")
    assert (one.verdict, one.where) == ("sick", "middle")
    assert "overridden" in one.cause
    Stuck.train = lambda self, mode=True: nn.Module.train(self, False)
    if name == "train":
        one = found(Stuck(nn.Dropout(P)), "dropout")
        assert one.verdict == "sick"
        assert "evaluation mode after train()" in one.cause


def test_off_in_training() -> None:
    one = found(Model(Of(lambda self, x: F.dropout(x, self.drop.p, False), drop=nn.Dropout(P))), "dropout")
    assert (one.verdict, one.value) == ("sick", 0)
    assert found(Model(nn.Dropout(0.0)), "dropout").verdict == "healthy"
    assert found(Model(nn.Dropout(0.0)), "dropout", expect={"dropout": True}).verdict == "sick"
    stated = Model(Of(lambda self, x: x, dropout=P))
    assert found(stated, "dropout").verdict == "suspicious"
    assert found(stated, "dropout", expect={"dropout": True}).verdict == "sick"
    assert found(stated, "dropout", expect={"dropout": False}).verdict == "healthy"


def test_a_layer_that_never_runs_beside_one_that_does() -> None:
    def use(self, x):
        return self.a(x)

    model = Model(Of(use, a=nn.Dropout(P), b=nn.Dropout(P)))
    one = found(model, "dropout")
    assert (one.verdict, one.where) == ("sick", "middle.b")
    # its chance is given to the fused attention instead, as nanoGPT and Hugging Face do
    assert found(Model(Of(attend, attn_dropout=nn.Dropout(P))), "dropout").verdict == "healthy"
    # a whole block that never runs is for `gradients` to name
    idle = Of(use, a=nn.Dropout(P), b=nn.Sequential(), block=Of(use, a=nn.Dropout(P)))
    assert found(Model(idle), "dropout").verdict == "healthy"


@pytest.mark.parametrize(
    ("between", "verdict"),
    [
        (lambda self, x: self.b(self.a(x)), "sick"),
        (lambda self, x: self.b(self.a(x).transpose(1, 2).contiguous().transpose(1, 2)), "sick"),
        (lambda self, x: self.b(torch.cat([self.a(x[:, :1]), self.a(x[:, 1:])], dim=1)), "sick"),
        (lambda self, x: self.b(0.5 * self.a(x)), "sick"),
        (lambda self, x: self.b(x + self.a(x)), "healthy"),
        (lambda self, x: self.b(self.line(self.a(x))), "healthy"),
        (lambda self, x: self.b(F.layer_norm(self.a(x), (C,))), "healthy"),
        (lambda self, x: by_floor(self, self.b(x) + 0 * self.a(x)), "healthy"),
        (lambda self, x: x + by_floor(self, self.b(self.line(self.a(x)))), "healthy"),  # a whole branch at a time
    ],
)
def test_twice_in_a_row(between, verdict: str) -> None:
    things = {"a": nn.Dropout(P), "b": nn.Dropout(P), "line": nn.Linear(C, C)}
    model = Model(Of(between, **things))
    one = found(model, "dropout")
    assert one.verdict == verdict, one
    assert verdict == "healthy" or (one.where, "middle.a" in one.measured) == ("middle.b", True)


def test_a_block_that_never_runs_is_not_blamed_on_dropout() -> None:
    class Between(Model):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.blocks, self.last = nn.Dropout(P), nn.ModuleList([nn.Linear(C, C)]), nn.Dropout(P)

        def forward(self, tokens):
            return self.head(self.last(self.first(self.embedding(tokens))))

    model = Between()
    assert found(model, "dropout").verdict == "healthy"
    assert found(model, "gradients").where == "blocks"
    del model.blocks
    assert found(model, "dropout").verdict == "sick"
    stated = Model(Of(lambda self, x: x, block=Of(lambda self, x: x, dropout=P)))
    assert found(stated, "dropout").verdict == "healthy"  # what never runs has no dropout to miss


def test_seeds_inside_forward() -> None:
    def seeded(self, x):
        torch.manual_seed(1)
        return F.dropout(x, P, self.training)

    one = found(Model(Of(seeded)), "dropout")
    assert "seed is set inside forward" in one.cause
    own = Of(by_generator)
    one = found(Model(own), "dropout")
    assert one.verdict == "sick"
    assert "starts over" in one.cause


def test_evaluation_that_always_drops_the_same() -> None:
    def use(self, x):
        return x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) > P) / (1 - P)

    one = found(Model(Of(use)), "dropout")
    assert one.verdict == "sick"
    assert "from those without dropout" in one.measured
    harmless = Of(lambda self, x: x * (torch.rand(x.shape) >= 0))
    assert found(Model(harmless), "dropout").verdict == "healthy"


def by_generator(self, x: Tensor) -> Tensor:
    keep = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) > P
    return x * keep / (1 - P) if self.training else x


def test_what_is_no_dropout_is_left_to_others() -> None:
    made = found(Model(Of(lambda self, x: nn.Linear(C, C)(x))), "dropout")
    assert made.verdict == "not examined"  # `unregistered` names it
    assert found(Model(Of(by_noise)), "dropout").verdict == "healthy"
    counts = torch.randn(V, V)
    assert found(lambda tokens: counts[tokens], "dropout").verdict == "healthy"
    assert found(lambda tokens: F.dropout(counts[tokens], P), "dropout").verdict == "not examined"


def test_modes_and_generators_are_as_before() -> None:
    model = Model(nn.Dropout(P))
    model.middle.eval()
    state = torch.get_rng_state()
    doctor.examine(model, only=["dropout", "modes"], vocab_size=V, context=8)
    assert [model.training, model.middle.training] == [True, False]
    assert torch.equal(torch.get_rng_state(), state)


# Modes


def test_the_first_module_that_differs_is_named() -> None:
    model = Model(nn.Sequential(nn.Linear(C, C), Of(lambda self, x: self.n(x.mT).mT, n=nn.BatchNorm1d(C)), nn.Tanh()))
    one = found(model, "modes")
    assert (one.verdict, one.where) == ("sick", "middle.1.n")
    assert "LayerNorm" in one.remedy
    branch = Of(lambda self, x: self.a(x if self.training else 2 * x), a=nn.Linear(C, C))
    one = found(Model(branch), "modes")
    assert (one.verdict, one.where) == ("sick", "middle")


def test_dropout_that_is_not_scaled_is_more_than_dropout() -> None:
    one = found(Model(Of(lambda self, x: x * (torch.rand_like(x) > P) if self.training else x)), "modes")
    assert one.verdict == "sick"
    old = Of(lambda self, x: x * (torch.rand_like(x) > P) if self.training else x * (1 - P))
    assert found(Model(old), "modes").verdict == "healthy"  # as it was first done: scaled in evaluation


def test_another_form_in_evaluation_is_no_difference() -> None:
    class Forms(Model):
        say: Callable[[Tensor], Tensor]

        def forward(self, tokens):
            logits = super().forward(tokens)
            return logits if self.training else self.say(logits)

    for say in (lambda x: x.softmax(-1), lambda x: x.log_softmax(-1), lambda x: x[:, -1], lambda x: x[:, -1:]):
        model = Forms()
        model.say = say
        one = found(model, "modes")
        assert one.verdict == "healthy", one
        model.say = lambda x, say=say: say(1.5 * x)
        assert found(model, "modes").verdict == "sick"


def test_noise_without_a_mean_is_not_examined() -> None:
    one = found(Model(Of(lambda self, x: x * (1 + random.random()) if self.training else x)), "modes")
    assert one.verdict == "not examined"
    assert found(Model(Of(by_noise)), "modes").verdict == "healthy"  # its mean is 0


def test_half_precision_hides_nothing() -> None:
    branch = Of(lambda self, x: x if self.training else x * 1.001)
    assert found(Model(branch).bfloat16(), "modes").verdict == "sick"
    model = Model(Of(attend)).bfloat16()
    one = found(model, "modes")
    assert one.verdict == "healthy"
    assert one.value < 1e-5
    assert model.head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("one", modes.CHECKS, ids=lambda one: one.name)
def test_demonstrations_run(one, capsys) -> None:
    exec(compile(one.demonstration, one.name, "exec"), {})
    said = capsys.readouterr().out.split("\n")
    if one.name == "dropout":
        shares = [float(line[7:-1]) for line in said[:3]]
        assert shares == pytest.approx([0.2, 0, 0.36], abs=0.03)
        assert said[3] == said[4]
    else:
        numbers = [float(line[7:].split(",")[0].rstrip(")")) for line in said[:3]]
        assert numbers[0] > 1
        assert numbers[1] == 0
        assert numbers[2] == pytest.approx(1, abs=0.02)
