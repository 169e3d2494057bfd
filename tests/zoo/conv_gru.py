"""A causal convolution and a GRU, with the batches that they are trained on."""

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "padded-on-both-sides": "future",
    "batch-second": "batch",
    "norm-over-rows": "batch",
}
ALSO: dict[str, tuple[str, ...]] = {
    "norm-over-rows": ("norm-axis", "modes"),
}


class Net(nn.Module):
    def __init__(self, vocab_size, width):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.conv = nn.Conv1d(width, width, kernel_size=3)
        self.gru = nn.GRU(width, width, batch_first=True)  # healthy: batch-second
        # self.gru = nn.GRU(width, width)  # sick: batch-second
        self.out = nn.Linear(width, vocab_size)
        nn.init.normal_(self.out.weight, std=0.02)

    def forward(self, idx):
        x = self.embed(idx).transpose(1, 2)
        x = F.pad(x, (2, 0))  # healthy: padded-on-both-sides
        # x = F.pad(x, (1, 1))  # sick: padded-on-both-sides
        x = self.conv(x).transpose(1, 2)
        # x = (x - x.mean(0)) / (x.std(0) + 1e-3)  # sick: norm-over-rows
        y, _ = self.gru(torch.tanh(x))
        return self.out(x + y)


def make(seed=0, vocab_size=30, context=12, width=24):
    torch.manual_seed(seed)
    text = torch.randint(vocab_size, (400,))

    def get_batch():
        starts = torch.randint(len(text) - context, (8,))
        x = torch.stack([text[i : i + context] for i in starts])
        y = torch.stack([text[i + 1 : i + 1 + context] for i in starts])
        return x, y

    return {"model": Net(vocab_size, width), "vocab_size": vocab_size, "context": context, "batches": get_batch}
