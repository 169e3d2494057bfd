"""A post-norm transformer that takes tokens as (T, B), with sinusoidal positions, as the older tutorials have it."""

import math

import torch
import torch.nn as nn

MISTAKES = {
    "mask-upside-down": "future",
    "always-training": "dropout",
    "scaled-in-training": "modes",
}
ALSO: dict[str, tuple[str, ...]] = {
    "always-training": ("batch",),
}


class Positions(nn.Module):
    def __init__(self, width, context):
        super().__init__()
        place = torch.arange(context).float()[:, None]
        rate = torch.exp(torch.arange(0, width, 2).float() * (-math.log(10000.0) / width))
        table = torch.zeros(context, 1, width)
        table[:, 0, 0::2] = torch.sin(place * rate)
        table[:, 0, 1::2] = torch.cos(place * rate)
        self.register_buffer("table", table)

    def forward(self, x):
        return x + self.table[: x.size(0)]


class Layer(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def split(self, x):
        T, B, C = x.shape
        return x.reshape(T, B * self.heads, C // self.heads).transpose(0, 1)  # (B * H, T, D)

    def attend(self, x, mask):
        T, B, C = x.shape
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        scores = torch.bmm(q, k.transpose(1, 2)) / math.sqrt(q.size(-1)) + mask
        y = torch.bmm(torch.softmax(scores, dim=-1), v)
        return self.out(y.transpose(0, 1).reshape(T, B, C))

    def forward(self, x, mask):
        x = self.norm1(x + self.dropout(self.attend(x, mask)))
        return self.norm2(x + self.dropout(self.down(torch.relu(self.up(x)))))


class Transformer(nn.Module):
    def __init__(self, vocab_size, context, width, heads, layers, dropout):
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = Positions(width, context)
        self.layers = nn.ModuleList([Layer(width, heads, dropout) for _ in range(layers)])
        self.decoder = nn.Linear(width, vocab_size)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    # def train(self, mode=True):  # sick: always-training
    #     return super().train(True)  # sick: always-training

    def forward(self, src):
        T = src.size(0)
        mask = torch.triu(torch.full((T, T), float("-inf")), diagonal=1)  # healthy: mask-upside-down
        # mask = torch.tril(torch.full((T, T), float("-inf")), diagonal=-1)  # sick: mask-upside-down
        x = self.embedding(src) * math.sqrt(self.width)  # healthy: scaled-in-training
        # x = self.embedding(src) * (math.sqrt(self.width) if self.training else 1)  # sick: scaled-in-training
        x = self.positions(x)
        for layer in self.layers:
            x = layer(x, mask)
        return self.decoder(x)


def make(seed=0, vocab_size=40, context=16, width=32, heads=2, layers=2, dropout=0.1):
    torch.manual_seed(seed)
    model = Transformer(vocab_size, context, width, heads, layers, dropout)
    return {"model": model, "vocab_size": vocab_size, "context": context}
