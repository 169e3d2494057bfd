"""The data of a character model, as in the lessons: one text, split in one place, a token for every character, and a
Dataset of overlapping windows. No model."""

import random

import torch
from torch.utils.data import Dataset

MISTAKES = {
    "training-reaches-over": "split",
    "trained-on-everything": "split",
    "characters-of-everything": "vocabulary",
    "last-window-missing": "windows",
    "one-window-too-many": "windows",
    "windows-wrap-around": "windows",
    "targets-two-ahead": "windows",
    "lowered": "round-trip",
    "unknown-left-out": "round-trip",
    "newlines-lost": "round-trip",
}
ALSO: dict[str, tuple[str, ...]] = {}

WORDS = """
the a old new king queen river stone night morning letter garden voice winter summer road house hand light
bread water fire horse ship friend enemy speaks walks sleeps finds loses keeps breaks opens sees hears of under over
with without before after quietly slowly never always again
"""


def write(seed, sentences):
    rng = random.Random(seed)
    lines = []
    for _ in range(sentences):
        words = [rng.choice(WORDS.split()) for _ in range(rng.randint(4, 9))]
        lines.append(" ".join(words).capitalize() + rng.choice([".", ".", "!", ","]))
    return "\n".join(lines)


class TextDataset(Dataset):
    def __init__(self, data, block_size):
        self.data = data
        # self.data = torch.cat([data, data[:block_size]])  # sick: windows-wrap-around
        self.block_size = block_size

    def __len__(self):
        return len(self.data) - self.block_size  # healthy: last-window-missing, one-window-too-many
        # return len(self.data) - self.block_size - 1  # sick: last-window-missing
        # return len(self.data) - self.block_size + 1  # sick: one-window-too-many

    def __getitem__(self, i):
        x = self.data[i : i + self.block_size]
        y = self.data[i + 1 : i + 1 + self.block_size]  # healthy: targets-two-ahead
        # y = self.data.roll(-2)[i : i + self.block_size]  # sick: targets-two-ahead
        return x, y


def make(seed=0, context=16, sentences=120):
    text = write(seed, sentences) + "\nThe queen (who sleeps) hears: 'a ship; a road?'\n"
    n = int(0.9 * len(text))
    train_text, val_text = text[:n], text[n:]  # healthy: training-reaches-over, trained-on-everything
    # train_text, val_text = text[: int(0.95 * len(text))], text[n:]  # sick: training-reaches-over
    # train_text, val_text = text, text[n:]  # sick: trained-on-everything

    chars = sorted(set(train_text))  # healthy: characters-of-everything
    # chars = sorted(set(text))  # sick: characters-of-everything
    stoi = {c: i for i, c in enumerate(chars)}
    itos = {i: c for c, i in stoi.items()}

    def encode(s):
        # s = s.lower()  # sick: lowered
        # s = s.replace("\n", " ")  # sick: newlines-lost
        return [stoi[c] for c in s]  # healthy: unknown-left-out
        # return [stoi[c] for c in s if c in stoi]  # sick: unknown-left-out

    def decode(ids):
        return "".join(itos[int(i)] for i in ids)

    return {
        "encode": encode,
        "decode": decode,
        "windows": TextDataset(torch.tensor(encode(train_text)), context),
        "context": context,
        "expect": {"normalised": False},
        "train_data": train_text,
        "validation_data": val_text,
    }
