"""Causal convolutions in place of attention: gated, dilated, each over the last few tokens. No positions are needed."""

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "padding-on-both-sides": "future",
    "cut-off-by-one": "future",
    "cut-from-the-wrong-end": "future",
    "kernel-of-one": "past",
    "group-norm": "norm-axis",
    "batch-norm": "norm-axis",
    "last-block-alone": "gradients",
    "gate-unused": "gradients",
    "blocks-in-a-list": "unregistered",
    "scale-in-an-attribute": "unregistered",
    "dropout-in-evaluation": "dropout",
    "dropout-twice": "dropout",
}
ALSO: dict[str, tuple[str, ...]] = {
    "kernel-of-one": ("order",),
    "group-norm": ("future",),
    "batch-norm": ("batch", "future", "modes"),
    "blocks-in-a-list": ("gradients", "dropout", "modes"),  # eval() does not reach them
    "dropout-in-evaluation": ("modes",),
}
KERNEL = 3


class CausalConv(nn.Module):
    def __init__(self, channels, out_channels, kernel, dilation):
        super().__init__()
        # kernel = 1  # sick: kernel-of-one
        self.reach = (kernel - 1) * dilation
        padding = self.reach  # healthy: padding-on-both-sides
        # padding = self.reach // 2  # sick: padding-on-both-sides
        self.conv = nn.Conv1d(channels, out_channels, kernel, padding=padding, dilation=dilation)

    def forward(self, x):
        T = x.size(2)
        y = self.conv(x)
        y = y[:, :, :T]  # healthy: cut-off-by-one, cut-from-the-wrong-end
        # y = y[:, :, 1 : T + 1]  # sick: cut-off-by-one
        # y = y[:, :, -T:]  # sick: cut-from-the-wrong-end
        return y


class Block(nn.Module):
    def __init__(self, width, dilation, dropout):
        super().__init__()
        self.norm = nn.LayerNorm(width)  # healthy: group-norm, batch-norm
        # self.norm = nn.GroupNorm(1, width)  # sick: group-norm
        # self.norm = nn.BatchNorm1d(width)  # sick: batch-norm
        self.filter = CausalConv(width, width, KERNEL, dilation)
        self.gate = CausalConv(width, width, KERNEL, dilation)
        self.mix = nn.Conv1d(width, width, 1)
        self.scale = nn.Parameter(torch.full((width, 1), 0.5))  # healthy: scale-in-an-attribute
        # self.scale = torch.full((width, 1), 0.5, requires_grad=True)  # sick: scale-in-an-attribute
        self.p = dropout

    def forward(self, x):
        y = self.norm(x.transpose(1, 2)).transpose(1, 2)  # healthy: group-norm, batch-norm
        # y = self.norm(x)  # sick: group-norm, batch-norm
        y = torch.tanh(self.filter(y)) * torch.sigmoid(self.gate(y))  # healthy: gate-unused
        # y = torch.tanh(self.filter(y))  # sick: gate-unused
        y = F.dropout(self.mix(y), self.p, self.training)  # healthy: dropout-in-evaluation
        # y = F.dropout(self.mix(y), self.p)  # sick: dropout-in-evaluation
        # y = F.dropout(y, self.p, self.training)  # sick: dropout-twice
        return x + self.scale * y


class ConvLM(nn.Module):
    def __init__(self, vocab_size, width, layers, dropout):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        blocks = [Block(width, 2**i, dropout) for i in range(layers)]
        self.blocks = nn.ModuleList(blocks)  # healthy: blocks-in-a-list
        # self.blocks = blocks  # sick: blocks-in-a-list
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, idx):
        x = start = self.embed(idx).transpose(1, 2)
        for block in self.blocks:
            x = block(x)  # healthy: last-block-alone
            # x = block(start)  # sick: last-block-alone
        return self.head(self.norm(x.transpose(1, 2)))


def make(seed=0, vocab_size=40, context=16, width=32, heads=1, layers=2, dropout=0.1, dtype=torch.float32):
    torch.manual_seed(seed)
    model = ConvLM(vocab_size, width, layers, dropout).to(dtype)
    return {"model": model, "vocab_size": vocab_size, "context": context}
