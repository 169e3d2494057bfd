"""A language model of LSTM cells written out by hand, gate by gate."""

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "reads-backwards": "future",
    "state-never-carried": "past",
    "norm-over-time": "future",
    "forget-gate-unused": "gradients",
    "detached-state": "gradients",
    "cells-in-a-list": "unregistered",
    "first-state-in-an-attribute": "unregistered",
    "dropout-in-evaluation": "dropout",
    "dropout-twice": "dropout",
}
ALSO: dict[str, tuple[str, ...]] = {
    "state-never-carried": ("order", "gradients"),  # what the old state is multiplied with gets no gradient
    "norm-over-time": ("norm-axis", "gradients", "modes"),  # written into forward, it is no module
    "cells-in-a-list": ("gradients",),
    "dropout-in-evaluation": ("modes",),
}


class LSTMCell(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.input_gate = nn.Linear(2 * width, width)
        self.forget_gate = nn.Linear(2 * width, width)
        self.output_gate = nn.Linear(2 * width, width)
        self.candidate = nn.Linear(2 * width, width)
        nn.init.ones_(self.forget_gate.bias)

    def forward(self, x, h, c):
        both = torch.cat([x, h], dim=1)
        i = torch.sigmoid(self.input_gate(both))
        f = torch.sigmoid(self.forget_gate(both))
        o = torch.sigmoid(self.output_gate(both))
        g = torch.tanh(self.candidate(both))
        c = f * c + i * g  # healthy: forget-gate-unused
        # c = (1 - i) * c + i * g  # sick: forget-gate-unused
        return o * torch.tanh(c), c


class LSTM(nn.Module):
    def __init__(self, vocab_size, width, layers, dropout):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        cells = [LSTMCell(width) for _ in range(layers)]
        self.cells = nn.ModuleList(cells)  # healthy: cells-in-a-list
        # self.cells = cells  # sick: cells-in-a-list
        self.start = nn.Parameter(torch.randn(layers, width) * 0.1)  # healthy: first-state-in-an-attribute
        # self.start = torch.randn(layers, width).mul(0.1).requires_grad_()  # sick: first-state-in-an-attribute
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size)
        self.dropout = dropout
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, idx):
        B, T = idx.shape
        x = F.dropout(self.embedding(idx), self.dropout, self.training)
        for number, cell in enumerate(self.cells):
            h = self.start[number].expand(B, -1)
            c = torch.zeros_like(h)
            outputs = []
            for t in range(T):
                new, c = cell(x[:, t], h, c)  # healthy: state-never-carried, detached-state, reads-backwards
                # new, _ = cell(x[:, t], h, c)  # sick: state-never-carried
                # new, c = cell(x[:, t], h.detach(), c.detach())  # sick: detached-state
                # new, c = cell(x[:, T - 1 - t], h, c)  # sick: reads-backwards
                h = new  # healthy: state-never-carried
                outputs.append(new)
            # outputs.reverse()  # sick: reads-backwards
            x = torch.stack(outputs, dim=1)
            x = F.dropout(x, self.dropout, self.training)  # healthy: dropout-in-evaluation
            # x = F.dropout(x, self.dropout)  # sick: dropout-in-evaluation
            # x = F.dropout(x, self.dropout, self.training)  # sick: dropout-twice
        x = self.norm(x)  # healthy: norm-over-time
        # x = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)  # sick: norm-over-time
        # x = x * self.norm.weight + self.norm.bias  # sick: norm-over-time
        return self.head(x)


def make(seed=0, vocab_size=40, context=16, width=32, heads=1, layers=2, dropout=0.1, dtype=torch.float32):
    torch.manual_seed(seed)
    model = LSTM(vocab_size, width, layers, dropout).to(dtype)
    return {"model": model, "vocab_size": vocab_size, "context": context}
