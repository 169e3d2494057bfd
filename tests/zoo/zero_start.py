"""A small GPT as in speed records: every block begins as the identity, QK-norm, squared ReLU, capped logits.

At the start no block writes anything into the stream, so neither the past nor a leak can be seen there.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "no-mask": "future",
    "norm-over-time": "future",
    "unrotated": "order",
    "blocks-never-called": "past",
    "mlp-never-called": "gradients",
    "dropout-in-evaluation": "dropout",
}
ALSO: dict[str, tuple[str, ...]] = {
    "norm-over-time": ("norm-axis", "gradients", "modes"),  # written into forward, it is no module
    "blocks-never-called": ("order", "gradients", "dropout"),
    "dropout-in-evaluation": ("modes",),
}


def norm(x):
    return F.rms_norm(x, (x.size(-1),))


def stream_norm(x):
    return norm(x)  # healthy: norm-over-time
    # return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)  # sick: norm-over-time


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.proj.weight)

    def turn(self, x):
        half = x.size(-1) // 2
        rate = (1 / 1000) ** torch.linspace(0, 1, half, device=x.device)
        angle = torch.arange(x.size(-2), device=x.device)[:, None] * rate
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k = norm(q), norm(k)
        q, k = self.turn(q), self.turn(k)  # healthy: unrotated
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # healthy: no-mask
        # y = F.scaled_dot_product_attention(q, k, v)  # sick: no-mask
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x):
        return self.down(F.relu(self.up(x)).square())


class GPT(nn.Module):
    def __init__(self, vocab_size, width, heads, layers, dropout):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList([nn.ModuleList([Attention(width, heads), MLP(width)]) for _ in range(layers)])
        self.head = nn.Linear(width, vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        self.dropout = dropout

    def forward(self, idx):
        x = norm(self.embed(idx))
        for attention, mlp in self.blocks:
            x = x + attention(stream_norm(x))  # healthy: blocks-never-called
            x = x + mlp(stream_norm(x))  # healthy: blocks-never-called, mlp-never-called
            x = F.dropout(x, self.dropout, self.training)  # healthy: dropout-in-evaluation
            # x = F.dropout(x, self.dropout)  # sick: dropout-in-evaluation
        logits = self.head(norm(x))
        return 15 * torch.tanh(logits / 15)


def make(seed=0, vocab_size=40, context=16, width=32, heads=4, layers=2, dropout=0.1, dtype=torch.float32):
    torch.manual_seed(seed)
    model = GPT(vocab_size, width, heads, layers, dropout).to(dtype)
    return {"model": model, "vocab_size": vocab_size, "context": context, "expect": {"score_scale": True}}
