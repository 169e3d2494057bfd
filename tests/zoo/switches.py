"""A recurrent language model with a dropout of its own and a head that is the embedding again."""

import torch
import torch.nn as nn

MISTAKES = {
    "own-dropout-always": "dropout",
    "own-generator-starts-over": "dropout",
    "dropout-in-a-list": "dropout",
    "dropout-not-scaled": "modes",
    "batch-norm": "modes",
    "sharper-in-evaluation": "modes",
    "head-by-lambda": "tied",
    "head-by-data": "tied",
}
ALSO: dict[str, tuple[str, ...]] = {
    "batch-norm": ("batch", "norm-axis"),
}


class Dropout(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        generator = None  # healthy: own-generator-starts-over
        # generator = torch.Generator(x.device).manual_seed(0)  # sick: own-generator-starts-over
        keep = (torch.rand(x.shape, generator=generator, device=x.device) > self.p).to(x.dtype)
        y = x * keep / (1 - self.p)  # healthy: dropout-not-scaled
        # y = x * keep  # sick: dropout-not-scaled
        return y if self.training else x  # healthy: own-dropout-always
        # return y  # sick: own-dropout-always


class BatchNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x):
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class Model(nn.Module):
    def __init__(self, vocab_size, width, layers, dropout):
        super().__init__()
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, width)
        self.cells = nn.ModuleList([nn.GRU(width, width, batch_first=True) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)  # healthy: batch-norm
        # self.norm = BatchNorm(width)  # sick: batch-norm
        self.drops = nn.ModuleList([Dropout(dropout) for _ in range(layers)])  # healthy: dropout-in-a-list
        # self.drops = [Dropout(dropout) for _ in range(layers)]  # sick: dropout-in-a-list
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        # self.head = lambda x: x @ self.embedding.weight.T  # sick: head-by-lambda

    def forward(self, tokens):
        x = self.embedding(tokens)
        for cell, drop in zip(self.cells, self.drops, strict=True):
            x = x + drop(cell(x)[0])
        x = 0.3 * self.norm(x)
        # x = x if self.training else 1.5 * x  # sick: sharper-in-evaluation
        # return self.head(x)  # sick: head-by-lambda
        # return x @ self.embedding.weight.data.T  # sick: head-by-data
        return x @ self.embedding.weight.T


def make(seed=0, vocab_size=40, context=16, width=32, layers=2, dropout=0.2):
    torch.manual_seed(seed)
    return {"model": Model(vocab_size, width, layers, dropout), "vocab_size": vocab_size, "context": context}
