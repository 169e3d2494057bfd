"""`norm-axis`: what a norm is taken over, by what moves when something else is changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmade import doctor
from handmade.doctor.checks.norms import Axes, length_for
from handmade.doctor.given import Given
from handmade.doctor.patient import Patient
from handmade.layers import LayerNorm, RMSNorm
from handmade.layers.kernels import kernels
from handmade.models.gpt import GPT, GPTConfig

V, T, C, H = 23, 16, 24, 4


class By(nn.Module):
    """A norm by hand over axes of (B, T, C)."""

    def __init__(self, *axes: int, root: bool = False) -> None:
        super().__init__()
        self.axes, self.root = axes, root
        self.weight = nn.Parameter(torch.rand(C) + 0.5)
        self.bias = nn.Parameter(torch.randn(C))

    def forward(self, x: Tensor) -> Tensor:
        if self.root:
            return self.weight * x / (x.square().mean(self.axes, keepdim=True) + 1e-6).sqrt()
        centred = x - x.mean(self.axes, keepdim=True)
        variance = x.var(self.axes, keepdim=True, unbiased=False)
        return self.weight * centred / (variance + 1e-5).sqrt() + self.bias


class Model(nn.Module):
    """(B, T) tokens, a norm, something that mixes positions, a head."""

    def __init__(self, norm: nn.Module, mixing: nn.Module | None = None) -> None:
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(V, C), norm, nn.Linear(C, V)
        self.mixing = nn.GRU(C, C, batch_first=True) if mixing is None else mixing

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.mixing(self.norm(self.embedding(tokens)))
        return self.head(mixed[0] if isinstance(mixed, tuple) else mixed)


def look(model: nn.Module, **options: object) -> doctor.Finding:
    return doctor.examine(model, vocab_size=V, context=T, only=["norm-axis"], **options)["norm-axis"]


HEALTHY: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: nn.LayerNorm(C),
    "layer without gain": lambda: nn.LayerNorm(C, elementwise_affine=False),
    "root mean square": lambda: nn.RMSNorm(C),
    "by hand": lambda: By(-1),
    "by hand, root": lambda: By(2, root=True),
    "ours": lambda: LayerNorm(C),
    "ours, root": lambda: RMSNorm(C),
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_over_features(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    found = look(Model(HEALTHY[name]()).to(dtype))
    assert found.verdict == "healthy", found
    assert (found.value, found.measured[:6]) == (0, "1 norm")


@pytest.mark.parametrize("axes", [(1,), (1, 2), (0,), (0, 2), (0, 1, 2), (0, 1)])
@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_over_anything_else(axes: tuple[int, ...], root: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    found = look(Model(By(*axes, root=root)).to(dtype))
    assert found.verdict == "sick", found
    assert found.where == "norm"
    if 0 not in axes:
        assert "positions move" in found.measured
    if 1 not in axes:
        assert "rows move" in found.measured


class Turned(nn.Module):
    """A norm of (B, C, T), or of whatever a view of it gives."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.inner = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class Channels(nn.Module):
    """The features' norm of a convolution: over the second axis of (B, C, T)."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize(
    ("norm", "verdict"),
    [
        (Channels(), "healthy"),
        (nn.GroupNorm(1, C), "sick"),  # over channels and time
        (nn.InstanceNorm1d(C), "sick"),  # over time
        (nn.BatchNorm1d(C), "sick"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_channels_first(norm: nn.Module, verdict: str) -> None:
    torch.manual_seed(0)
    assert look(Model(Turned(norm))).verdict == verdict


def test_batch_norm_is_sick_in_training_alone_and_says_so() -> None:
    found = look(Model(Turned(nn.BatchNorm1d(C))))
    assert "in training" in found.measured

    class Flat(nn.Module):  # rows and positions in one axis
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.BatchNorm1d(C)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.flatten(0, 1)).view(x.shape)

    assert look(Model(Flat())).verdict == "sick"


def test_batch_norm_before_the_one_prediction_of_a_row_is_meant() -> None:
    class Window(nn.Module):
        """Eight tokens side by side, a hidden layer with batch norm, the next one token."""

        def __init__(self, momentum: float) -> None:
            super().__init__()
            self.embedding, self.hidden, self.head = nn.Embedding(V, 6), nn.Linear(8 * 6, C), nn.Linear(C, V)
            self.norm = nn.BatchNorm1d(C, track_running_stats=momentum > 0)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(torch.tanh(self.norm(self.hidden(self.embedding(tokens).flatten(1)))))

    found = doctor.examine(Window(0.1), vocab_size=V, context=8, only=["norm-axis"])["norm-axis"]
    assert found.verdict == "healthy", found
    # Without running statistics a row depends on the others in evaluation too.
    found = doctor.examine(Window(0.0), vocab_size=V, context=8, only=["norm-axis"])["norm-axis"]
    assert found.verdict == "sick", found


class Heads(nn.Module):
    """A norm of queries, by heads."""

    def __init__(self, norm: Callable[[Tensor], Tensor], time_second: bool) -> None:
        super().__init__()
        self.norm, self.time_second, self.inner = norm, time_second, Call(norm)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (H, C // H))
        x = x if self.time_second else x.transpose(1, 2)
        x = self.inner(x)
        return (x if self.time_second else x.transpose(1, 2)).flatten(2)


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("time_second", [True, False])
def test_the_features_of_a_head(time_second: bool) -> None:
    torch.manual_seed(0)
    heads = -2 if time_second else 1
    for axes, verdict in (((-1,), "healthy"), ((heads, -1), "healthy"), ((heads,), "sick")):
        model = Model(Heads(lambda x, axes=axes: x / x.square().mean(axes, keepdim=True).sqrt(), time_second))
        found = look(model)
        assert found.verdict == verdict, (axes, found)
        assert verdict == "healthy" or "heads move" in found.measured


def test_functions_inside_a_forward_are_seen() -> None:
    class Inline(nn.Module):
        def __init__(self, over: int) -> None:
            super().__init__()
            self.over, self.inner = over, nn.Linear(C, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(F.layer_norm(x, x.shape[self.over :]))

    assert look(Model(Inline(2))).verdict == "healthy"
    found = look(Model(Inline(1)))
    assert found.verdict == "sick"
    assert "F.layer_norm" in found.measured


def test_arithmetic_inside_a_forward_is_not() -> None:
    class Inline(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(C, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))

    assert look(Model(Inline())).verdict == "not examined"


class Mixed(nn.Module):
    """What mixes positions on purpose, in one module: none of these is a norm."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.randn(C, C) * C**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "attention":
            unit = F.normalize(x, dim=-1)
            future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            scores = (unit @ unit.mT * 4).masked_fill(future, -torch.inf)
            return scores.softmax(-1) @ (unit @ self.weight)  # the same for twice the input
        if self.kind == "shift":
            return torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1) @ self.weight
        if self.kind == "mean":
            return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return torch.sign(x.cumsum(1) @ self.weight)  # "sign"


@pytest.mark.parametrize("kind", ["attention", "shift", "mean", "sign"])
def test_what_mixes_positions_on_purpose_is_no_norm(kind: str) -> None:
    torch.manual_seed(0)
    assert look(Model(nn.LayerNorm(C), Mixed(kind))).verdict == "healthy"
    if kind != "attention":  # it has a norm of torch's inside
        assert look(Model(nn.Dropout(0.5), Mixed(kind))).verdict == "not examined"


def test_the_first_of_several_is_named() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.LayerNorm(C), By(1), By(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.third(self.second(self.first(x)))

    found = look(Model(Two()))
    assert found.where == "norm.second"
    assert "and 1 more" in found.measured


def test_time_first() -> None:
    class First(Model):
        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.norm(self.embedding(tokens)) + self.mixing(self.embedding(tokens))[0])

    torch.manual_seed(0)
    for axes, verdict in (((-1,), "healthy"), ((0,), "sick"), ((1,), "sick")):
        model = First(By(*axes), nn.GRU(C, C))
        found = look(model)
        assert found.verdict == verdict, (axes, found)


@pytest.mark.parametrize("kernel", ["reference", "fused"])
@pytest.mark.parametrize("norm", ["layer", "rms", "rms-plain"])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_ours(kernel: str, norm: str, placement: str) -> None:
    with kernels(kernel):
        model = GPT(
            GPTConfig(
                vocab_size=V,
                context=T,
                layers=1,
                heads=H,
                width=C,
                norm=norm,
                norm_placement=placement,
                query_key_norm=True,
                embedding_norm=True,
            )
        )
    found = look(model)
    assert found.verdict == "healthy", found


def test_nothing_is_left_behind() -> None:
    norm = nn.BatchNorm1d(C)
    model = Model(Turned(norm))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    look(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not norm._forward_hooks
    assert norm.training


def test_parts() -> None:
    def axes(*shape: int) -> tuple[int | None, int | None]:
        found = Axes.of(torch.zeros(shape), rows=3, length=11)
        return found.batch, found.time

    assert axes(3, 11, 24) == (0, 1)
    assert axes(11, 3, 24) == (1, 0)
    assert axes(3, 24, 11) == (0, 2)
    assert axes(3, 4, 11, 6) == (0, 2)
    assert axes(12, 11, 6) == (0, 1)  # rows and heads in one
    assert axes(33, 24) == (None, 0)  # rows and positions in one
    patient = Patient(Given(nn.Sequential(nn.Embedding(V, 11), nn.Linear(11, V)), vocab_size=V, context=T))
    assert length_for(patient) not in (11, V)
