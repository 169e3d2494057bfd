from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_parity import assert_parity, both_forms, build, few, flatten, normal, seeds

from handmade import layers
from handmade.errors import ConfigError

PAIRS = {"RNN": (layers.RNN, torch.nn.RNN), "LSTM": (layers.LSTM, torch.nn.LSTM)}
both_kinds = pytest.mark.parametrize("kind", PAIRS)


class WithState(torch.nn.Module):
    """Takes the parts of the state as plain arguments, so that their gradients are compared, too."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, *state):
        if not state:
            return self.layer(x)
        return self.layer(x, state[0] if len(state) == 1 else state)


@both_forms
@both_kinds
@few
@given(
    rows=st.integers(0, 3),
    steps=st.integers(1, 5),
    inputs=st.integers(1, 4),
    hidden=st.integers(1, 5),
    depth=st.integers(1, 3),
    bias=st.booleans(),
    batch_first=st.booleans(),
    with_state=st.booleans(),
    seed=seeds,
)
def test_equals_torch(kind, form, rows, steps, inputs, hidden, depth, bias, batch_first, with_state, seed):
    make_ours, make_theirs = PAIRS[kind]
    ours = build(form, lambda: make_ours(inputs, hidden, depth, bias, batch_first))
    theirs = make_theirs(inputs, hidden, depth, bias=bias, batch_first=batch_first)
    x = normal(seed, rows, steps, inputs) if batch_first else normal(seed, steps, rows, inputs)
    parts = {"RNN": 1, "LSTM": 2}[kind] if with_state else 0
    state = [normal(seed + 1 + part, depth, rows, hidden) for part in range(parts)]
    assert_parity(WithState(ours), WithState(theirs), [x, *state])


@both_forms
@both_kinds
def test_the_state_carries_on(kind, form):
    layer = build(form, lambda: PAIRS[kind][0](3, 4, 2)).double()
    x = normal(1, 2, 7, 3)
    whole, end = layer(x)
    first, state = layer(x[:, :3])
    second, state = layer(x[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-12, atol=1e-12)
    for part, expected in zip(flatten(state), flatten(end), strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-12)


@both_forms
@both_kinds
def test_the_past_does_not_see_the_future(kind, form):
    layer, x = build(form, lambda: PAIRS[kind][0](3, 4, 2)).double(), normal(1, 2, 6, 3)
    changed = x.clone()
    changed[:, 4:] += 1
    assert torch.equal(layer(x)[0][:, :4], layer(changed)[0][:, :4])
    assert not torch.equal(layer(x)[0][:, 4:], layer(changed)[0][:, 4:])


class UpTo(torch.nn.Module):
    """An LSTM of rows of several lengths: ours, or torch's with packed rows. The output without what is padded."""

    def __init__(self, layer, lengths):
        super().__init__()
        self.layer, self.lengths = layer, torch.tensor(lengths)

    def forward(self, x, *state):
        first = self.layer.batch_first
        if isinstance(self.layer, layers.LSTM):
            output, last = self.layer(x, state or None, self.lengths)
        else:
            packed = torch.nn.utils.rnn.pack_padded_sequence(x, self.lengths, first, enforce_sorted=False)
            output, last = self.layer(packed, state or None)
            output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, first, total_length=x.shape[1 if first else 0])
        real = torch.arange(x.shape[1 if first else 0]) < self.lengths[:, None]
        assert output.isfinite().all()
        return output.masked_fill(~(real if first else real.T)[..., None], 0.0), last


@both_forms
@few
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    more=st.integers(0, 2),
    depth=st.integers(1, 3),
    bias=st.booleans(),
    batch_first=st.booleans(),
    with_state=st.booleans(),
    seed=seeds,
)
def test_rows_of_several_lengths_equal_packed_ones(form, lengths, more, depth, bias, batch_first, with_state, seed):
    rows, steps = len(lengths), max(lengths) + more
    ours = build(form, lambda: layers.LSTM(3, 4, depth, bias, batch_first))
    theirs = torch.nn.LSTM(3, 4, depth, bias=bias, batch_first=batch_first)
    x = normal(seed, rows, steps, 3) if batch_first else normal(seed, steps, rows, 3)
    state = [normal(seed + 1 + part, depth, rows, 4) for part in range(2 * with_state)]
    assert_parity(UpTo(ours, lengths), UpTo(theirs, lengths), [x, *state])


@both_forms
def test_a_row_of_no_length_keeps_its_state(form):
    layer, state = build(form, lambda: layers.LSTM(3, 4)).double(), (normal(1, 1, 2, 4), normal(2, 1, 2, 4))
    _, found = layer(normal(0, 2, 5, 3), state, torch.tensor([0, 2]))
    for part, before in zip(found, state, strict=True):
        assert torch.equal(part[:, 0], before[:, 0])
        assert not torch.equal(part[:, 1], before[:, 1])


@both_forms
def test_lengths_under_autocast(form):
    layer, x, lengths = build(form, lambda: layers.LSTM(8, 16)), normal(2, 3, 20, 8).float(), torch.tensor([20, 3, 11])
    exact = layer(x, None, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x, None, lengths)
    for part, expected in zip(flatten(found[1]), flatten(exact[1]), strict=True):
        torch.testing.assert_close(part.float(), expected, rtol=0.05, atol=0.1)
    changed = x.clone()
    changed[1, 3:] = 50.0
    with torch.autocast("cpu", torch.bfloat16):
        for part, expected in zip(flatten(layer(changed, None, lengths)[1]), flatten(found[1]), strict=True):
            assert torch.equal(part, expected)


@both_forms
@both_kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast(kind, form, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with layers.kernels(form):
            layer = PAIRS[kind][0](8, 16, 2)
    x = normal(2, 3, 20, 8).float()
    expected, _ = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        output, state = layer(x.to(dtype))
        again, _ = layer(x.to(dtype), state)
    assert output.dtype == again.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)
    again.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_the_cell_adds_up_in_float32_under_autocast():
    with layers.kernels("reference"):
        layer = layers.LSTM(8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        _, (_, cell) = layer(torch.zeros(2, 3, 8, dtype=torch.bfloat16))
    assert cell.dtype == torch.float32


@both_forms
@both_kinds
def test_other_shapes_are_refused(kind, form):
    layer = build(form, lambda: PAIRS[kind][0](3, 4, 2))
    parts = {"RNN": 1, "LSTM": 2}[kind]
    x = torch.zeros(5, 6, 3)
    for wrong in (torch.zeros(6, 3), torch.zeros(5, 6, 4), torch.zeros(3)):
        with pytest.raises(ValueError, match=f"{kind}: x has shape"):
            layer(wrong)
    # One row of state for five rows of input would broadcast.
    for shape in ((2, 1, 4), (1, 5, 4), (2, 5, 1)):
        state = torch.zeros(shape) if parts == 1 else (torch.zeros(2, 5, 4), torch.zeros(shape))
        with pytest.raises(ValueError, match=r"the state has shape .*: must be \(2, 5, 4\)"):
            layer(x, state)
    with pytest.raises(RuntimeError):
        layer(torch.zeros(5, 0, 3))


@both_kinds
@pytest.mark.parametrize("name", ["input_size", "hidden_size", "num_layers"])
def test_sizes_are_checked(kind, name):
    with pytest.raises(ConfigError, match=f"{kind}: {name} = 0: must be a whole number from 1"):
        PAIRS[kind][0](**{"input_size": 2, "hidden_size": 2, "num_layers": 1, name: 0})
