"""A GPT for sentences of different lengths: padded on the left, with a mask that says which tokens are real."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "mask-inverted": "padding-mask",
    "mask-ignored": "padding-mask",
    "mask-over-queries": "padding-mask",
    "masked-row-of-infinities": "masked-row",
    "zeroed-after-nan": "masked-row",
}
ALSO: dict[str, tuple[str, ...]] = {}


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x, mask):
        B, T, C = x.shape
        h = self.norm1(x)
        q, k, v = (f(h).view(B, T, self.heads, C // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(C // self.heads)
        nothing = torch.finfo(scores.dtype).min  # healthy: masked-row-of-infinities
        # nothing = float("-inf")  # sick: masked-row-of-infinities
        scores = scores.masked_fill(~mask, nothing)  # healthy: zeroed-after-nan
        # scores = scores + torch.where(mask, 0.0, float("-inf"))  # sick: zeroed-after-nan
        weights = F.softmax(scores, dim=-1)
        # weights = torch.nan_to_num(weights, 0.0)  # sick: zeroed-after-nan
        x = x + self.out((weights @ v).transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, vocab_size, context, width, heads, layers):
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(vocab_size, width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, input_ids, attention_mask=None):
        B, T = input_ids.shape
        mask = torch.ones(T, T, dtype=torch.bool, device=input_ids.device).tril()[None, None]
        if attention_mask is not None:
            real = attention_mask.bool()  # healthy: mask-inverted
            # real = ~attention_mask.bool()  # sick: mask-inverted
            mask = mask & real[:, None, None, :]  # healthy: mask-ignored, mask-over-queries
            # mask = mask & real[:, None, :, None]  # sick: mask-over-queries
        x = self.tokens(input_ids) + self.places(torch.arange(T, device=input_ids.device))
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


def make(seed=0, vocab_size=40, context=16, width=32, heads=2, layers=2):
    torch.manual_seed(seed)
    model = GPT(vocab_size, context, width, heads, layers)
    return {"model": model, "vocab_size": vocab_size, "attention_mask": "attention_mask"}
