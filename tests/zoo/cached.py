"""A small GPT with a cache of keys and values: forward takes it and gives it back, generate may do without."""

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "positions-from-zero": "cached-generation",
    "prompt-without-mask": "cached-generation",
    "newest-key-forgotten": "cached-generation",
    "cache-never-cropped": "cached-generation",
    "layers-share-a-cache": "cached-generation",
}
ALSO: dict[str, tuple[str, ...]] = {}


def length(cache):
    return 0 if cache is None or cache[0][0] is None else cache[0][0].shape[2]


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x, past=None):
        B, T, C = x.shape
        q, k, v = (f(x).view(B, T, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        if past is not None and past[0] is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        S = k.shape[2]
        mask = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)
        # mask = mask if past is None else torch.ones_like(mask)  # sick: prompt-without-mask
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        y = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v
        # k, v = (k, v) if past is None or T > 1 else (k[:, :, :-1], v[:, :, :-1])  # sick: newest-key-forgotten
        return self.out(y.transpose(1, 2).reshape(B, T, C)), (k, v)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, past=None):
        y, present = self.attention(self.norm1(x), past)
        x = x + y
        return x + self.down(F.gelu(self.up(self.norm2(x)))), present


class GPT(nn.Module):
    def __init__(self, vocab_size, block_size, width, heads, layers):
        super().__init__()
        self.block_size = block_size
        self.wte, self.wpe = nn.Embedding(vocab_size, width), nn.Embedding(block_size, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, idx, kv_cache=None):
        T = idx.shape[1]
        begin = length(kv_cache)  # healthy: positions-from-zero
        # begin = 0  # sick: positions-from-zero
        x = self.wte(idx) + self.wpe(torch.arange(begin, begin + T, device=idx.device))
        presents = []
        for i, block in enumerate(self.blocks):
            x, present = block(x, None if kv_cache is None else kv_cache[i])  # healthy: layers-share-a-cache
            # x, present = block(x, None if kv_cache is None else kv_cache[0])  # sick: layers-share-a-cache
            presents.append(present)
        return self.head(self.norm(x)), presents

    def empty_cache(self):
        return [(None, None) for _ in self.blocks]

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, use_cache=True):
        cache, fed = self.empty_cache() if use_cache else None, idx[:, -self.block_size :]
        window = fed
        for _ in range(max_new_tokens):
            if use_cache:
                full = length(cache) + fed.shape[1] > self.block_size  # healthy: cache-never-cropped
                # full = False  # sick: cache-never-cropped
                if full:
                    cache, fed = self.empty_cache(), window  # start again from the last block_size tokens
                logits, cache = self(fed, cache)
            else:
                logits, _ = self(window)
            probs = F.softmax(logits[:, -1] / temperature, dim=-1)
            new = torch.multinomial(probs, num_samples=1)
            idx = torch.cat([idx, new], dim=1)
            window = idx[:, -self.block_size :]
            fed = new
        return idx


def make(seed=0, vocab_size=40, context=16, width=32, heads=2, layers=2):
    torch.manual_seed(seed)
    model = GPT(vocab_size, context, width, heads, layers)
    return {"model": model, "vocab_size": vocab_size, "generate": model.generate}
