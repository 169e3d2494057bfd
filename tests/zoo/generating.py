"""A small GPT that generates: every step computes the whole window again, with temperature, top-k and top-p."""

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "asked-without-mask": "sampling-mask",
    "masked-while-training-only": "sampling-mask",
    "stays-in-evaluation": "sampling-mask",
    "hot-probabilities": "temperature",
    "cold-probabilities": "temperature",
    "times-temperature": "temperature",
    "top-p-drops-the-crossing": "filters",
    "top-p-can-drop-all": "filters",
    "top-p-in-sorted-order": "filters",
}
ALSO: dict[str, tuple[str, ...]] = {
    "masked-while-training-only": ("future", "modes"),
    "hot-probabilities": ("filters",),  # what was filtered out has probability 0, and softmax(0) is not 0
}


class Block(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads = heads
        self.ln1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.ln2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, causal):
        B, T, C = x.shape
        q, k, v = self.qkv(self.ln1(x)).chunk(3, dim=-1)
        q, k, v = (t.view(B, T, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        # causal = causal and self.training  # sick: masked-while-training-only
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        y = y.transpose(1, 2).reshape(B, T, C)
        x = x + self.dropout(self.proj(y))
        return x + self.dropout(self.mlp(self.ln2(x)))


class GPT(nn.Module):
    def __init__(self, vocab_size, context, width, heads, layers, dropout):
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList([Block(width, heads, dropout) for _ in range(layers)])
        self.ln = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, idx, causal=True):
        x = self.tokens(idx) + self.positions(torch.arange(idx.shape[1], device=idx.device))
        for block in self.blocks:
            x = block(x, causal)
        return self.head(self.ln(x))

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None):
        was_training = self.training
        self.eval()
        for _ in range(max_new_tokens):
            window = idx[:, -self.context :]
            logits = self(window)[:, -1]  # healthy: asked-without-mask
            # logits = self(window, causal=False)[:, -1]  # sick: asked-without-mask
            logits = logits / temperature  # healthy: times-temperature, hot-probabilities, cold-probabilities
            # logits = logits * temperature  # sick: times-temperature
            if top_k is not None:
                v, _ = torch.topk(logits, min(top_k, logits.size(-1)))
                logits[logits < v[:, [-1]]] = -float("inf")
            if top_p is not None:
                ranked, order = torch.sort(logits, descending=True)
                p = F.softmax(ranked, dim=-1)
                drop = p.cumsum(dim=-1) - p >= top_p  # healthy: top-p-drops-the-crossing, top-p-can-drop-all
                # drop = p.cumsum(dim=-1) > top_p  # sick: top-p-drops-the-crossing, top-p-can-drop-all
                # drop[:, 0] = False  # sick: top-p-drops-the-crossing
                drop = drop.scatter(1, order, drop)  # healthy: top-p-in-sorted-order
                logits = logits.masked_fill(drop, -float("inf"))
            probs = F.softmax(logits, dim=-1)
            # probs = F.softmax(probs / temperature, dim=-1)  # sick: hot-probabilities
            # probs = probs / temperature  # sick: cold-probabilities
            idx = torch.cat([idx, torch.multinomial(probs, num_samples=1)], dim=1)
        self.train(was_training)  # healthy: stays-in-evaluation
        return idx


def make(seed=0, vocab_size=40, context=16, width=32, heads=2, layers=2, dropout=0.1):
    torch.manual_seed(seed)
    model = GPT(vocab_size, context, width, heads, layers, dropout)
    return {"model": model, "vocab_size": vocab_size, "context": context, "generate": model.generate}
