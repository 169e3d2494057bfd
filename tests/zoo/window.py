"""A dense net over a window of fixed length, which says the one token that comes next."""

import torch
import torch.nn as nn

MISTAKES = {
    "bag-of-words": "order",
    "last-word": "past",
}
ALSO: dict[str, tuple[str, ...]] = {}


class Window(nn.Module):
    def __init__(self, vocab_size, block_size, width, hidden):
        super().__init__()
        self.block_size = block_size
        self.embed = nn.Embedding(vocab_size, width)
        self.layer = nn.Linear(block_size * width, hidden)
        self.out = nn.Linear(hidden, vocab_size)
        nn.init.normal_(self.out.weight, std=0.02)

    def forward(self, x):
        e = self.embed(x)
        # e = e.mean(1, keepdim=True).expand_as(e)  # sick: bag-of-words
        # e = e[:, -1:].expand_as(e)  # sick: last-word
        h = torch.tanh(self.layer(e.reshape(len(x), -1)))
        return self.out(h)


def make(seed=0, vocab_size=27, context=5, width=12, hidden=40):
    torch.manual_seed(seed)
    return {"model": Window(vocab_size, context, width, hidden)}
