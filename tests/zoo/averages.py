"""A model of averages: each position takes the mean of what came before it, as in the first steps of a lesson."""

import torch
import torch.nn as nn

MISTAKES = {
    "mean-over-all": "future",
    "mean-of-itself": "past",
    "no-place": "order",
}
ALSO: dict[str, tuple[str, ...]] = {"no-place": ("gradients",)}


class Averages(nn.Module):
    def __init__(self, vocab_size, context, width, layers):
        super().__init__()
        self.vocab_size = vocab_size
        self.context = context
        self.embed = nn.Embedding(vocab_size, width)
        self.place = nn.Parameter(torch.randn(context, width))
        self.mixes = nn.ModuleList([nn.Sequential(nn.Linear(2 * width, width), nn.Tanh()) for _ in range(layers)])
        self.out = nn.Linear(width, vocab_size)
        nn.init.normal_(self.out.weight, std=0.02)

    def forward(self, idx):
        B, T = idx.shape
        x = self.embed(idx)
        x = x + self.place[:T]  # healthy: no-place
        for mix in self.mixes:
            total = x.cumsum(1) / torch.arange(1, T + 1).view(1, T, 1)
            # total = x.mean(1, keepdim=True).expand(B, T, -1)  # sick: mean-over-all
            # total = x  # sick: mean-of-itself
            x = x + mix(torch.cat([x, total], dim=-1))
        return self.out(x)


def make(seed=0, vocab_size=30, context=12, width=24, depth=2):
    torch.manual_seed(seed)
    return {"model": Averages(vocab_size, context, width, depth)}
