"""RNN and LSTM: a state that is carried along the sequence and changed at every step.

B sequences, T steps, I features in, H features of the state, L layers, G gates (1 in an RNN, 4 in an LSTM).

The loop over time is all that must be a loop. What the inputs add to the gates does not depend on the state, so
it is one matrix product for all steps, before the loop; in the loop stands one product for all gates. Steps are
taken apart by one `unbind` and put together by one `stack`: indexing x[t] would cost a pass over the whole
sequence per step on the way back. That is as fast as PyTorch's own loop over time; its fused kernel for float32
is faster still, most of all where the matrices are small.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from handmade.layers.kernels import Module
from handmade.layers.linear import require_sizes


class _Recurrent(Module):
    """What RNN and LSTM share: parameters with torch.nn's names, their initialisation, the product of the inputs."""

    gates: int

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = True,
    ) -> None:
        super().__init__()
        require_sizes(type(self).__name__, input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first = bias, batch_first
        rows = self.gates * hidden_size
        for layer in range(num_layers):
            columns = input_size if layer == 0 else hidden_size
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, columns), "weight_hh": (rows, hidden_size)}
            if bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            for name, shape in shapes.items():
                self.register_parameter(f"{name}_l{layer}", torch.nn.Parameter(torch.empty(shape)))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Everything uniform in +-1/sqrt(hidden_size): torch.nn's default."""
        if self.parameter("weight_hh", 0).is_meta:
            return  # there is nothing to fill, and PyTorch takes seconds to find that out
        bound = 1 / math.sqrt(self.hidden_size)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-bound, bound, generator=generator)

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, bias={self.bias}, "
            f"batch_first={self.batch_first}"
        )

    def parameter(self, name: str, layer: int) -> Tensor:
        return getattr(self, f"{name}_l{layer}")

    def weights(self) -> list[Tensor]:
        """All parameters in the order that PyTorch's kernels take them."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if self.bias else ("weight_ih", "weight_hh")
        return [self.parameter(name, layer) for layer in range(self.num_layers) for name in names]

    def from_inputs(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """What the inputs of all steps add to the gates, (T, B, G H), and the matrix for the state, (H, G H).

        Both biases are in the first. The matrix has its dtype (bfloat16 under autocast), cast once, not per step.
        """
        bias = self.parameter("bias_ih", layer) + self.parameter("bias_hh", layer) if self.bias else None
        gates = F.linear(x, self.parameter("weight_ih", layer), bias)
        return gates, self.parameter("weight_hh", layer).to(gates.dtype).T

    def check(self, x: Tensor, *states: Tensor | None) -> None:
        """Raise ValueError for shapes that broadcasting would let through, to a wrong result."""
        name = type(self).__name__
        if x.dim() != 3 or x.shape[-1] != self.input_size:
            order = "batch, time" if self.batch_first else "time, batch"
            raise ValueError(f"{name}: x has shape {tuple(x.shape)}: must be ({order}, {self.input_size}).")
        right = (self.num_layers, x.shape[0 if self.batch_first else 1], self.hidden_size)
        for state in states:
            if state is not None and state.shape != right:
                raise ValueError(f"{name}: the state has shape {tuple(state.shape)}: must be {right}.")

    def no_state(self, x: Tensor) -> Tensor:
        rows = x.shape[0 if self.batch_first else 1]
        # The parameters' dtype, not that of x: under autocast the LSTM's cell adds up in float32.
        dtype = self.parameter("weight_hh", 0).dtype
        return x.new_zeros(self.num_layers, rows, self.hidden_size, dtype=dtype)


class RNN(_Recurrent):
    """The plain recurrent network.

        h_t = tanh(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh)

    In a second layer the x_t are the h_t of the first, and so on. The state starts at zero unless given.

    Shapes: x (B, T, I), or (T, B, I) with `batch_first=False`; state (L, B, H)
            -> output, x's shape with H for I: the last layer's h_t; state (L, B, H): every layer's last h_t.
    Raises ConfigError for a size below 1, ValueError for x or a state of another shape.
    Source: Elman 1990, "Finding structure in time"; Goodfellow, Bengio and Courville 2016, equations 10.8 and 10.9.
    """

    gates = 1

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check(x, state)
        hidden = self.no_state(x) if state is None else state
        if self.fused:
            return torch.rnn_tanh(
                x, hidden, self.weights(), self.bias, self.num_layers, 0.0, self.training, False, self.batch_first
            )
        steps = x.transpose(0, 1) if self.batch_first else x
        last = []
        for layer, h in enumerate(hidden.unbind(0)):
            gates, weight = self.from_inputs(steps, layer)
            h, seen = h.to(gates.dtype), []
            for from_input in gates.unbind(0):
                h = torch.tanh(torch.addmm(from_input, h, weight))
                seen.append(h)
            steps = torch.stack(seen)
            last.append(h)
        return steps.transpose(0, 1) if self.batch_first else steps, torch.stack(last)


class LSTM(_Recurrent):
    """A recurrent network with a memory cell that is added to, not overwritten, so that gradients last.

        i, f, o = sigmoid(W x_t + U h_(t-1) + b), each with its own W, U, b        input, forget, output gate
        g       = tanh(W x_t + U h_(t-1) + b), with its own
        c_t     = f * c_(t-1) + i * g
        h_t     = o * tanh(c_t)

    The four W stand in weight_ih, the four U in weight_hh, in the order i, f, g, o; b is bias_ih + bias_hh.
    In a second layer the x_t are the h_t of the first, and so on. The state starts at zero unless given.

    With `lengths`, row b ends behind step lengths[b], of what is padded on the right nothing gets into the state that
    is returned, and the output there is arbitrary but finite.

    Shapes: x (B, T, I), or (T, B, I) with `batch_first=False`; state (h, c), each (L, B, H); lengths (B,) int64
            -> output, x's shape with H for I: the last layer's h_t; state (h, c): every layer's last.
    Raises ConfigError for a size below 1, ValueError for x or a state of another shape.
    Source: Hochreiter and Schmidhuber 1997; with the forget gate: Gers, Schmidhuber and Cummins 2000, section 3.
    """

    gates = 4

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        self.check(x, *(state or ()))
        hidden, cell = (self.no_state(x), self.no_state(x)) if state is None else state
        if self.fused and lengths is not None:
            return self.fused_up_to(lengths, x, hidden, cell)
        if self.fused:
            output, hidden, cell = torch.lstm(
                x,
                (hidden, cell),
                self.weights(),
                self.bias,
                self.num_layers,
                0.0,
                self.training,
                False,
                self.batch_first,
            )
            return output, (hidden, cell)
        steps = x.transpose(0, 1) if self.batch_first else x
        last_hidden, last_cell = [], []
        for layer, (h, c) in enumerate(zip(hidden.unbind(0), cell.unbind(0), strict=True)):
            gates, weight = self.from_inputs(steps, layer)
            h, seen = h.to(gates.dtype), []
            for step, from_input in enumerate(gates.unbind(0)):
                before = h, c
                h, c = step_of_lstm(torch.addmm(from_input, h, weight), c)
                if lengths is not None:
                    goes_on = (step < lengths)[:, None]
                    h, c = torch.where(goes_on, h, before[0]), torch.where(goes_on, c, before[1])
                seen.append(h)
            steps = torch.stack(seen)
            last_hidden.append(h)
            last_cell.append(c)
        output = steps.transpose(0, 1) if self.batch_first else steps
        return output, (torch.stack(last_hidden), torch.stack(last_cell))

    def fused_up_to(
        self, lengths: Tensor, x: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The fused kernel knows no lengths, and gives the cell of the last step only. So every step has one feature
        more, 1 behind the end of its row, whose weights shut the input gate and open the forget gate: the cell stays
        as it is, to the last bit. The last h is taken from the outputs."""
        x = x if self.batch_first else x.transpose(0, 1)
        over = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        # i, f, g, o: sigmoid(-SHUT) is 0, sigmoid(SHUT) is 1.
        weight = self.parameter("weight_hh", 0)
        column = torch.cat([weight.new_full((self.hidden_size, 1), sign * SHUT) for sign in (-1, 1, 0, 0)])
        names = ("weight_hh", "bias_ih", "bias_hh") if self.bias else ("weight_hh",)
        final = (lengths.clamp(min=1) - 1)[:, None, None].expand(-1, 1, self.hidden_size)
        states = []
        for layer, (h, c) in enumerate(zip(hidden.split(1), cell.split(1), strict=True)):
            inner = torch.cat([self.parameter("weight_ih", layer), column], dim=1)
            weights = [inner, *(self.parameter(name, layer) for name in names)]
            marked = torch.cat([x, over[..., None].to(x.dtype)], dim=-1)
            x, _, c = torch.lstm(marked, (h, c), weights, self.bias, 1, 0.0, self.training, False, True)
            last = x.gather(1, final).transpose(0, 1)
            states.append((torch.where((lengths > 0)[:, None], last, h.to(last.dtype)), c))
        hidden, cell = (torch.cat(part) for part in zip(*states, strict=True))
        return x if self.batch_first else x.transpose(0, 1), (hidden, cell)


SHUT = 10_000.0  # a gate's input beyond which float16, bfloat16 and float32 all say 0 or 1


def step_of_lstm(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """From what inputs and state add up to in the four gates, and the cell, to the next h and cell.
    Shapes: (B, 4 H), (B, H) -> (B, H) twice."""
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c).to(gates.dtype), c  # under autocast c stays in float32
