"""A model, batches and a train_step that are tiny and healthy, for the tests of the doctor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from handmade import doctor

V = 11


class Tiny(nn.Module):
    """A model with something of every kind that a decay may fall on."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(V, width)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, V)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.embedding(x))))


def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


def batch(rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randint(V, (rows, 6))
    return x[:, :-1], x[:, 1:]


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor, **options: object) -> torch.Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), **options)  # type: ignore[arg-type]


def found(check: str, model: nn.Module | None = None, **given: object) -> doctor.Finding:
    return doctor.examine(model, only=[check], vocab_size=V, context=8, **given)[check]


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, after=lambda: None, before=lambda: None):
    """A train_step with nothing wrong."""

    def train_step():
        before()
        optimizer.zero_grad()
        loss_of(model, *batch()).backward()
        optimizer.step()
        after()

    return train_step
