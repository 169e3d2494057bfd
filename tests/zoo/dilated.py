"""A WaveNet of the smallest kind: dilated convolutions that see the past alone, residual, with one norm at the end."""

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "blocks-drawn-large": "growth",
    "norm-over-channels-and-time": "norm-axis",
}
ALSO: dict[str, tuple[str, ...]] = {
    "norm-over-channels-and-time": ("future",),
}


class Block(nn.Module):
    def __init__(self, channels, dilation):
        super().__init__()
        self.left = dilation
        self.filter = nn.Conv1d(channels, channels, 2, dilation=dilation)
        self.gate = nn.Conv1d(channels, channels, 2, dilation=dilation)
        self.mix = nn.Conv1d(channels, channels, 1)
        # nn.init.normal_(self.filter.weight, std=0.5)  # sick: blocks-drawn-large
        # nn.init.normal_(self.mix.weight, std=0.5)  # sick: blocks-drawn-large

    def forward(self, x):
        past = F.pad(x, (self.left, 0))
        return x + self.mix(torch.relu(self.filter(past)) * torch.sigmoid(self.gate(past)))


class WaveNet(nn.Module):
    def __init__(self, vocab_size, channels, layers):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, channels)
        self.blocks = nn.ModuleList([Block(channels, 2**i) for i in range(layers)])
        self.norm = nn.LayerNorm(channels)  # healthy: norm-over-channels-and-time
        # self.norm = nn.GroupNorm(1, channels)  # sick: norm-over-channels-and-time
        self.out = nn.Conv1d(channels, vocab_size, 1)

    def forward(self, idx):
        x = self.embedding(idx).transpose(1, 2)  # (B, C, T)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)  # healthy: norm-over-channels-and-time
        # x = self.norm(x)  # sick: norm-over-channels-and-time
        return self.out(x).transpose(1, 2)


def make(seed=0, vocab_size=40, context=16, width=24, layers=4):
    torch.manual_seed(seed)
    return {"model": WaveNet(vocab_size, width, layers), "vocab_size": vocab_size, "context": context}
