"""The model that a lesson begins with: a table of pairs, which is meant to see one token."""

import torch
import torch.nn as nn

MISTAKES = {
    "not-meant": "past",
}
ALSO: dict[str, tuple[str, ...]] = {}


class Bigram(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, idx):
        return self.table(idx)


def make(seed=0, vocab_size=27, context=8):
    torch.manual_seed(seed)
    given = {"model": Bigram(vocab_size), "context": context}
    given["expect"] = {"past": False, "tied": False}  # healthy: not-meant
    # given["expect"] = {"tied": False}  # sick: not-meant
    return given
