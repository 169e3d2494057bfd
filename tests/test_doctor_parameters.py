"""Parameters: which get no gradient, what learns and is none, and what is tied."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from handmade import doctor
from handmade.doctor.checks import parameters
from handmade.doctor.roles import roles, stir
from handmade.doctor.tables import table

V, C = 20, 16


class Model(nn.Module):
    """Tokens to logits, with whatever is put between."""

    def __init__(self, middle: nn.Module | None = None, tie: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, C)
        self.middle = middle if middle is not None else nn.Identity()
        self.head = nn.Linear(C, V, bias=False)
        if tie:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.embedding(tokens)))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def found(model, check: str, **given):
    return doctor.examine(model, only=[check], vocab_size=V, context=8, **given)[check]


# Gradients


def test_what_is_never_called_is_named_as_a_module_and_what_is_not_used_as_a_parameter() -> None:
    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(C, C), nn.Sequential(nn.Linear(C, C), nn.Linear(C, C))
            self.scale = nn.Parameter(torch.ones(C))

        def forward(self, x):
            return self.used(x)

    one = found(Model(Middle()), "gradients")
    assert one.verdict == "sick"
    assert one.where == "middle.spare"
    assert "never called" in one.cause
    assert one.value == 5  # two weights, two biases, the scale
    middle = Middle()
    del middle.spare
    one = found(Model(middle), "gradients")
    assert (one.verdict, one.where) == ("sick", "middle.scale")
    assert "changing them changes no logit" in one.cause


@pytest.mark.parametrize(
    "cut",
    [lambda x: x.detach(), lambda x: x.data, lambda x: torch.tensor(x.tolist()), lambda x: x.round()],
    ids=["detach", "data", "numbers", "round"],
)
def test_what_is_cut_off_is_told_from_what_is_not_used(cut) -> None:
    class Middle(nn.Linear):
        def forward(self, x):
            return cut(super().forward(8 * x))

    one = found(Model(Middle(C, C)), "gradients")
    assert one.verdict == "sick"
    assert "do change the logits" in one.cause
    assert one.value == 3  # the embedding too


def test_without_a_graph_nothing_learns() -> None:
    class Frozen(Model):
        @torch.no_grad()
        def forward(self, tokens):
            return super().forward(tokens)

    one = found(Frozen(), "gradients")
    assert (one.verdict, one.value) == ("sick", 2)


def test_zeros_at_the_beginning_hide_nothing() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.gate = nn.Linear(C, C), nn.Linear(C, C), nn.Parameter(torch.zeros(()))
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

        def forward(self, x):
            return x + self.gate * self.down(torch.tanh(self.up(x)))

    model = Model(Branch())
    nn.init.zeros_(model.head.weight)
    assert found(model, "gradients").verdict == "healthy"
    assert not model.head.weight.any()  # and they are zero again


def test_an_expert_that_a_batch_leaves_out_is_no_fault() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.experts = nn.Linear(C, 12), nn.ModuleList(nn.Linear(C, C) for _ in range(12))

        def forward(self, x):
            weights, chosen = self.router(x).softmax(-1).max(-1, keepdim=True)
            out = torch.zeros_like(x)
            for i, expert in enumerate(self.experts):
                if (chosen == i).any():
                    out = out + torch.where(chosen == i, expert(x) * weights, 0.0)
            return x + out

    one = found(Model(Experts()), "gradients")
    assert one.verdict == "healthy", one.measured


def test_a_called_module_behind_its_own_call_is_not_said_to_be_idle() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(C, C))

        def __call__(self, x):
            return (x @ self.weight).detach()

    one = found(Model(Own()), "gradients")
    assert "cuts the graph" in one.cause


def test_frozen_parameters_are_asked_about() -> None:
    model = Model(nn.Linear(C, C))
    model.middle.weight.requires_grad_(False)
    one = found(model, "gradients")
    assert one.verdict == "suspicious"
    assert "frozen" in one.question
    assert found(model, "gradients", expect={"frozen": ["middle.weight"]}).verdict == "healthy"
    assert found(model, "gradients", expect={"frozen": ["middle"]}).verdict == "sick"  # its bias learns
    assert found(model, "gradients", expect={"frozen": True}).verdict == "healthy"
    assert found(model, "gradients", expect={"frozen": ["head"]}).verdict == "sick"  # the head learns
    assert not model.middle.weight.requires_grad
    sines = torch.sin(torch.arange(8)[:, None] * torch.rand(C))
    model = Model()
    model.table = nn.Parameter(sines, requires_grad=False)
    assert found(model, "gradients").verdict == "healthy"


def test_a_missing_gradient_that_was_declared_is_healthy() -> None:
    model = Model()
    model.value_head = nn.Linear(C, 1)
    assert found(model, "gradients").verdict == "sick"
    assert found(model, "gradients", expect={"frozen": "value_head"}).verdict == "healthy"


def test_the_loss_that_comes_with_detached_logits_counts() -> None:
    class Both(Model):
        def forward(self, tokens, targets=None):
            logits = super().forward(tokens)
            if targets is None:
                return logits[:, -1:], None
            return logits.detach(), nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    assert found(Both(), "gradients").verdict == "healthy"


def test_who_has_no_parameters_or_no_finite_logits_is_not_examined() -> None:
    table_of_counts = torch.randn(V, V)
    assert found(lambda tokens: table_of_counts[tokens], "gradients").verdict == "not examined"
    lost = Holder(lambda self, x: x * float("nan") if self.training else x)
    assert "not finite" in found(Model(lost), "gradients").measured


def test_gradients_are_as_before_afterwards() -> None:
    model = Model()
    model(torch.zeros(1, 2, dtype=torch.int64)).sum().backward()
    before = {name: (one.clone(), one.grad.clone()) for name, one in model.named_parameters()}
    doctor.examine(model, only=["gradients", "unregistered", "tied"], vocab_size=V, context=8)
    for name, one in model.named_parameters():
        assert torch.equal(one, before[name][0])
        assert torch.equal(one.grad, before[name][1])


# Unregistered


class Holder(nn.Module):
    """Keeps a thing under a name, and uses it."""

    def __init__(self, use, **things) -> None:
        super().__init__()
        self.use = use
        for name, thing in things.items():
            setattr(self, name, thing)

    def forward(self, x):
        return self.use(self, x)


@pytest.mark.parametrize("thing", [[nn.Linear(C, C)], (nn.Linear(C, C),), {"a": nn.Linear(C, C)}], ids=type)
def test_modules_in_plain_containers_are_found_when_they_run(thing) -> None:
    key = "a" if isinstance(thing, dict) else 0
    one = found(Model(Holder(lambda self, x: self.thing[key](x), thing=thing)), "unregistered")
    assert one.verdict == "sick"
    assert one.where == "middle.thing"
    assert "2" not in one.measured.split(" ")[0]
    idle = Model(Holder(lambda self, x: x, thing=thing))
    assert found(idle, "unregistered").verdict == "healthy"


def test_weights_of_a_hidden_module_count_without_its_call() -> None:
    middle = Holder(lambda self, x: x @ self.thing[0].weight, thing=[nn.Linear(C, C)])
    assert found(Model(middle), "unregistered").verdict == "sick"


def test_a_list_of_modules_that_torch_knows_is_no_fault() -> None:
    known = nn.Linear(C, C)
    middle = Holder(lambda self, x: self.chosen[0](x), known=known, chosen=[known])
    assert found(Model(middle), "unregistered").verdict == "healthy"

    def sliced(self, x):  # as in Hugging Face's Llama: a slice of a ModuleList is a new one
        for one in self.layers[:1]:
            x = one(x)
        return x

    middle = Holder(sliced, layers=nn.ModuleList([nn.Linear(C, C)]))
    assert found(Model(middle), "unregistered").verdict == "healthy"

    def lent(self, x):  # a layer that is made for the call, around a weight that torch knows
        layer = nn.Linear(C, C, bias=False)
        layer.weight = self.weight
        return layer(x)

    assert found(Model(Holder(lent, weight=nn.Parameter(torch.randn(C, C)))), "unregistered").verdict == "healthy"


@pytest.mark.parametrize("made", [lambda: nn.LayerNorm(C), lambda: nn.Sequential(nn.Linear(C, C))], ids=["norm", "mlp"])
def test_layers_made_in_forward_are_found(made) -> None:
    one = found(Model(Holder(lambda self, x: made()(x))), "unregistered")
    assert (one.verdict, one.where) == ("sick", "middle")
    assert found(Model(Holder(lambda self, x: nn.GELU()(x))), "unregistered").verdict == "healthy"
    assert nn.Module.__init__.__module__ == "torch.nn.modules.module"


def multiplied(self, x):
    return x * self.thing


@pytest.mark.parametrize(
    ("thing", "verdict"),
    [
        (torch.rand(C, requires_grad=True), "sick"),
        (nn.Parameter(torch.rand(C)) * 0.5, "sick"),
        (torch.rand(C), "suspicious"),
        (torch.ones(C), "suspicious"),  # a gain begins so
        (torch.tensor(0.25), "healthy"),
        (torch.tensor([1.0, 0.0] * (C // 2)), "healthy"),
        (torch.arange(C).float(), "healthy"),
        (torch.exp(torch.arange(C) * -0.3), "healthy"),
        (torch.sin(torch.arange(C) * 0.7 + 0.1), "healthy"),
    ],
)
def test_tensors_in_attributes(thing, verdict) -> None:
    model = Model(Holder(multiplied, thing=thing))
    assert found(model, "unregistered").verdict == verdict
    assert found(Model(Holder(lambda self, x: x, thing=thing)), "unregistered").verdict == "healthy"
    if verdict == "suspicious":
        assert found(model, "unregistered", expect={"constants": ["thing"]}).verdict == "healthy"
        assert found(model, "unregistered", expect={"constants": True}).verdict == "healthy"
        assert found(model, "unregistered", expect={"constants": ["other"]}).verdict == "sick"


def test_what_forward_keeps_and_what_belongs_to_a_parameter_is_no_matter() -> None:
    def kept(self, x):
        self.seen = x.softmax(-1)
        return self.seen

    assert found(Model(Holder(kept, seen=None)), "unregistered").verdict == "healthy"
    linear = nn.Linear(C, C)
    view = Holder(lambda self, x: x @ self.turned, linear=linear, turned=linear.weight.data.T)
    assert found(Model(view), "unregistered").verdict == "healthy"


@pytest.mark.parametrize("seed", range(10))
def test_no_random_weights_look_like_a_table(seed: int) -> None:
    torch.manual_seed(seed)
    for shape in ((6,), (16,), (4, 8), (64, 64), (2, 3, 32)):
        for kind in (torch.float32, torch.bfloat16):
            assert table((torch.randn(shape) * 0.02).to(kind)) is None, (shape, kind)
            assert table(torch.rand(shape).to(kind)) is None


def test_tables_look_like_tables() -> None:
    place, rate = torch.arange(2000.0)[:, None], 10000 ** (-torch.arange(0, 32, 2) / 32)
    slopes = 2 ** (-8 * torch.arange(1, 9) / 8)
    assert table(torch.cat([torch.sin(place * rate), torch.cos(place * rate)], dim=1))
    assert table(torch.sin(place * rate).bfloat16())
    assert table(rate)
    assert table(slopes)
    assert table(-slopes[:, None, None] * (place[:16] - place[:16].T).abs().tril())  # ALiBi
    assert table(torch.polar(torch.ones(8, 4), torch.rand(8, 4)))
    assert table(torch.full((8, 8), -math.inf).triu(1))
    assert table(torch.randint(0, 30, (9, 9)))


# Tied


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("tie", [True, False])
def test_who_reads_and_who_writes(tie: bool, kind: torch.dtype) -> None:
    model = Model(nn.Sequential(nn.Linear(C, 2 * V), nn.ReLU(), nn.Linear(2 * V, C)), tie).to(kind)
    found_roles = roles(doctor.Patient(doctor.Given(model, vocab_size=V, context=8)))
    assert list(found_roles.embeddings) == ["embedding.weight"]
    assert list(found_roles.heads) == (["embedding.weight"] if tie else ["head.weight"])


def test_roles_of_other_layouts() -> None:
    class Odd(nn.Module):
        """One-hot times a matrix, a head that stands on its side, log-probabilities, a rounded vocabulary."""

        def __init__(self) -> None:
            super().__init__()
            self.read, self.places = nn.Parameter(torch.randn(C, V)), nn.Parameter(torch.randn(V, C))
            self.write = nn.Parameter(torch.randn(C, V + 4))

        def forward(self, tokens):
            x = nn.functional.one_hot(tokens, V).float() @ self.read.T + self.places[: tokens.shape[1]]
            return (torch.tanh(x) @ self.write)[..., :V].log_softmax(-1)

    patient = doctor.Patient(doctor.Given(Odd(), vocab_size=V, context=8))
    assert patient.form.kind == "log-probabilities"
    found_roles = roles(patient)
    assert {path: role.axis for path, role in found_roles.embeddings.items()} == {"read": 1}
    assert {path: role.axis for path, role in found_roles.heads.items()} == {"write": 1}


def test_stirring_moves_zeros_alone() -> None:
    model = Model()
    with torch.no_grad():
        model.head.weight.zero_()
        before = model.embedding.weight.clone()
    stir(doctor.Patient(doctor.Given(model, vocab_size=V, context=8)))
    assert model.head.weight.abs().min() > 0
    assert torch.equal(model.embedding.weight, before)


def test_equal_values_are_asked_about_and_declarations_decide() -> None:
    model = Model()
    model.head.weight = nn.Parameter(model.embedding.weight.clone())
    one = found(model, "tied")
    assert one.verdict == "suspicious"
    assert "equal values" in one.measured
    assert found(model, "tied", expect={"tied": True}).verdict == "sick"
    assert found(model, "tied", expect={"tied": False}).verdict == "healthy"
    assert found(Model(), "tied").verdict == "healthy"
    assert found(Model(), "tied", expect={"tied": True}).verdict == "sick"
    assert found(Model(tie=True), "tied", expect={"tied": True}).verdict == "healthy"
    assert found(Model(tie=True), "tied", expect={"tied": False}).verdict == "sick"


@pytest.mark.parametrize("how", ["data", "parameter"])
def test_one_memory_under_two_names(how: str) -> None:
    model = Model()
    if how == "data":
        model.head.weight.data = model.embedding.weight.data
    else:
        model.head.weight = nn.Parameter(model.embedding.weight)
    one = found(model, "tied")
    assert one.verdict == "sick"
    assert "one memory" in one.measured


def test_heads_that_begin_at_zero_and_ties_through_other_matrices() -> None:
    model = Model()
    nn.init.zeros_(model.head.weight)
    assert found(model, "tied").verdict == "healthy"

    class Factors(nn.Module):  # as in ALBERT: a small embedding, widened, and narrowed again for the head
        def __init__(self) -> None:
            super().__init__()
            self.small, self.widen = nn.Embedding(V, 4), nn.Linear(4, C)

        def forward(self, tokens):
            return self.widen(self.small(tokens)) @ self.widen.weight @ self.small.weight.T

    assert "small.weight" in found(Factors(), "tied", expect={"tied": True}).measured


def test_a_tie_that_a_copy_loses() -> None:
    class Lambda(Model):
        def __init__(self) -> None:
            super().__init__()
            del self.head
            self.head = lambda x: x @ self.embedding.weight.T

    assert "deep copy" in found(Lambda(), "tied").measured

    class Load(Model):
        def load_state_dict(self, state, strict=True, assign=False):
            done = super().load_state_dict(state, strict, assign)
            self.head.weight = nn.Parameter(state["head.weight"])
            return done

    assert "loaded copy" in found(Load(tie=True), "tied").measured


def test_a_head_without_the_graph() -> None:
    class Values(Model):
        def forward(self, tokens):
            return self.embedding(tokens) @ self.embedding.weight.detach().T

    model = Values()
    del model.head
    assert "no gradient from there" in found(model, "tied").measured
    model.embedding.weight.requires_grad_(False)
    assert found(model, "tied").verdict == "healthy"


@pytest.mark.parametrize("one", parameters.CHECKS, ids=lambda one: one.name)
def test_demonstrations_run(one, capsys) -> None:
    exec(compile(one.demonstration, one.name, "exec"), {})
    said = capsys.readouterr().out
    assert {"gradients": "None None", "unregistered": "0 {}", "tied": "True"}[one.name] in said.replace(
        "OrderedDict()", "{}"
    )
