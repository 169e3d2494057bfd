"""A GPT with queries, keys and values in one matrix, the fused kernel, a tied head: it returns logits alone."""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "not-causal": "future",
    "not-tied": "tied",
    "tied-by-data": "tied",
    "tied-by-copy": "tied",
    "attention-drops-in-evaluation": "dropout",
    "causal-in-evaluation-only": "modes",
    "causal-in-training-only": "modes",
}
ALSO: dict[str, tuple[str, ...]] = {
    "causal-in-evaluation-only": ("future",),
    "causal-in-training-only": ("future",),
}


@dataclass
class Config:
    vocab_size: int = 40
    block_size: int = 16
    n_embd: int = 32
    n_head: int = 4
    n_layer: int = 2
    dropout: float = 0.1


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v))
        p = self.dropout if self.training else 0.0  # healthy: attention-drops-in-evaluation
        # p = self.dropout  # sick: attention-drops-in-evaluation
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)  # healthy: not-causal
        # y = F.scaled_dot_product_attention(q, k, v, None, p, not self.training)  # sick: causal-in-evaluation-only
        # y = F.scaled_dot_product_attention(q, k, v, None, p, self.training)  # sick: causal-in-training-only
        # y = F.scaled_dot_product_attention(q, k, v, dropout_p=p)  # sick: not-causal
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight  # healthy: not-tied, tied-by-data
        # self.lm_head.weight.data = self.wte.weight.data  # sick: tied-by-data
        for name, p in self.named_parameters():
            if p.dim() > 1:
                last = name.endswith("c_proj.weight")
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer) if last else 0.02)
        # self.lm_head.weight = nn.Parameter(self.wte.weight.clone())  # sick: tied-by-copy

    def forward(self, idx):
        T = idx.size(1)
        x = self.drop(self.wte(idx) + self.wpe(torch.arange(T, device=idx.device)))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def make(seed=0, vocab_size=40, context=16, width=32, heads=4, layers=2, dropout=0.1):
    torch.manual_seed(seed)
    model = GPT(Config(vocab_size, context, width, heads, layers, dropout))
    return {"model": model, "expect": {"tied": True}}
