"""A GPT whose layers are made of tensors by hand: parameters, a norm of its own, a table of sines in an attribute."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "gain-requires-grad": "unregistered",
    "gain-is-a-tensor": "unregistered",
    "parameter-times-number": "unregistered",
    "parameters-in-a-list": "unregistered",
    "norm-is-no-module": "unregistered",
    "layer-made-in-forward": "unregistered",
    "embedding-by-data": "gradients",
    "bias-forgotten": "gradients",
    "no-grad-blocks": "gradients",
}
ALSO: dict[str, tuple[str, ...]] = {}


Base = nn.Module  # healthy: norm-is-no-module
# Base = object  # sick: norm-is-no-module


class Norm(Base):
    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))  # healthy: gain-requires-grad, gain-is-a-tensor
        # self.gain = torch.ones(width, requires_grad=True)  # sick: gain-requires-grad
        # self.gain = torch.ones(width)  # sick: gain-is-a-tensor
        self.shift = nn.Parameter(torch.zeros(width))

    def __call__(self, x):
        mean = x.mean(-1, keepdim=True)
        variance = x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(variance + 1e-5) * self.gain + self.shift


def weight(rows, columns, std=0.02):
    return nn.Parameter(torch.randn(rows, columns) * std)  # healthy: parameter-times-number
    # return nn.Parameter(torch.randn(rows, columns)) * std  # sick: parameter-times-number


class Block(nn.Module):
    def __init__(self, width, heads, context, residual):
        super().__init__()
        self.heads = heads
        self.scale = torch.tensor(1 / math.sqrt(width // heads))
        self.mask = torch.tril(torch.ones(context, context)) == 0
        inside = [weight(width, width) for _ in range(3)] + [weight(width, width, residual)]
        self.attention = nn.ParameterList(inside)  # healthy: parameters-in-a-list
        # self.attention = inside  # sick: parameters-in-a-list
        self.up = weight(width, 4 * width)
        self.up_bias = nn.Parameter(torch.zeros(4 * width))
        self.down = weight(4 * width, width, residual)
        self.norm1 = Norm(width)
        self.norm2 = Norm(width)  # healthy: layer-made-in-forward

    def forward(self, x):
        B, T, C = x.shape
        h = self.norm1(x)
        q, k, v = ((h @ w).view(B, T, self.heads, -1).transpose(1, 2) for w in list(self.attention)[:3])
        scores = (q @ k.transpose(-2, -1) * self.scale).masked_fill(self.mask[:T, :T], float("-inf"))
        x = x + (F.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(B, T, C) @ self.attention[3]
        h = self.norm2(x)  # healthy: layer-made-in-forward
        # h = nn.LayerNorm(C)(x)  # sick: layer-made-in-forward
        h = F.gelu(h @ self.up + self.up_bias)  # healthy: bias-forgotten
        # h = F.gelu(h @ self.up)  # sick: bias-forgotten
        return x + h @ self.down


class GPT(nn.Module):
    def __init__(self, vocab_size, context, width, heads, layers):
        super().__init__()
        self.context = context
        self.embedding = weight(vocab_size, width)
        place = torch.arange(context)[:, None]
        rate = 10000 ** (-torch.arange(0, width, 2) / width)
        self.table = torch.stack([torch.sin(place * rate), torch.cos(place * rate)], dim=-1).flatten(1) * 0.02
        residual = 0.02 / math.sqrt(2 * layers)
        self.blocks = nn.ModuleList([Block(width, heads, context, residual) for _ in range(layers)])
        self.norm = Norm(width)
        self.head = weight(width, vocab_size)

    def forward(self, idx):
        x = self.embedding[idx]  # healthy: embedding-by-data
        # x = self.embedding.data[idx]  # sick: embedding-by-data
        x = x + self.table[: idx.shape[1]]
        for block in self.blocks:
            # with torch.no_grad():  # sick: no-grad-blocks
            #     x = block(x)  # sick: no-grad-blocks
            x = block(x)  # healthy: no-grad-blocks
        return self.norm(x) @ self.head


def make(seed=0, vocab_size=40, context=16, width=32, heads=2, layers=2):
    torch.manual_seed(seed)
    model = GPT(vocab_size, context, width, heads, layers)
    return {"model": model, "vocab_size": vocab_size, "expect": {"constants": ["table", "scale", "mask"]}}
