"""Batches drawn at random out of one long array of token ids, as nanoGPT does it. No model."""

import numpy as np
import torch

MISTAKES = {
    "starts-end-early": "windows",
    "starts-end-late": "windows",
    "targets-not-moved-far-enough": "windows",
    "validation-from-training": "split",
}
ALSO: dict[str, tuple[str, ...]] = {"targets-not-moved-far-enough": ("targets",)}


def make(seed=0, vocab_size=40, context=16, batch_size=8, tokens=3000):
    rng = np.random.default_rng(seed)
    data = rng.integers(0, vocab_size, tokens).astype(np.uint16)
    n = int(len(data) * 0.9)
    train_data, val_data = data[:n], data[n:]  # healthy: validation-from-training
    # train_data, val_data = data[:n], data[: len(data) - n]  # sick: validation-from-training
    torch.manual_seed(seed)

    def get_batch():
        ix = torch.randint(len(train_data) - context, (batch_size,))  # healthy: starts-end-early, starts-end-late
        # ix = torch.randint(len(train_data) - context - 1, (batch_size,))  # sick: starts-end-early
        # ix = torch.randint(0, len(train_data) - context + 1, (batch_size,))  # sick: starts-end-late
        x = torch.stack([torch.from_numpy(train_data[i : i + context].astype(np.int64)) for i in ix])
        # ahead = context + 2  # sick: targets-not-moved-far-enough
        ahead = context + 1  # healthy: targets-not-moved-far-enough
        y = torch.stack([torch.from_numpy(train_data[i + ahead - context : i + ahead].astype(np.int64)) for i in ix])
        return x, y

    return {"batches": get_batch, "train_data": train_data, "validation_data": val_data, "context": context}
