"""Windows of token ids as rows of a TensorDataset, split with random_split or before they are cut. No model."""

import torch
from torch.utils.data import TensorDataset

MISTAKES = {
    "windows-then-split": "split",
    "half-windows-then-split": "split",
}
ALSO: dict[str, tuple[str, ...]] = {}


def windows(data, context, step):
    starts = range(0, len(data) - context, step)
    x = torch.stack([data[i : i + context] for i in starts])
    y = torch.stack([data[i + 1 : i + context + 1] for i in starts])
    return TensorDataset(x, y)


def make(seed=0, vocab_size=30, context=40, tokens=1500):
    g = torch.Generator().manual_seed(seed)
    data = torch.randint(vocab_size, (tokens,), generator=g)
    n = int(0.9 * len(data))
    train_set, val_set = windows(data[:n], context, 1), windows(data[n:], context, 1)
    # everything = windows(data, context, 1)  # sick: windows-then-split
    # everything = windows(data, context, context // 2)  # sick: half-windows-then-split
    # from torch.utils.data import random_split  # sick: windows-then-split, half-windows-then-split
    # train_set, val_set = random_split(everything, [0.9, 0.1], g)  # sick: windows-then-split, half-windows-then-split
    return {"train_data": train_set, "validation_data": val_set}
