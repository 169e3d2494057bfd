"""A GPT with a module for every head, as in the lessons: forward returns logits and loss."""

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "no-mask": "future",
    "scale-by-width": "score-scale",
    "head-drawn-large": "initial-loss",
    "no-final-norm": "growth",
    "block-never-called": "gradients",
    "keys-detached": "gradients",
    "heads-in-a-list": "unregistered",
    "dropout-in-evaluation": "dropout",
    "dropout-twice": "dropout",
    "dropout-not-applied": "dropout",
    "seed-in-forward": "dropout",
    "mask-after-softmax": "future",
    "mask-too-short": "context-end",
    "no-positions": "order",
    "sees-itself-alone": "past",
    "blocks-never-called": "past",
}
ALSO: dict[str, tuple[str, ...]] = {
    "sees-itself-alone": ("gradients",),  # a softmax over one key
    "blocks-never-called": ("gradients", "dropout"),
    "no-positions": ("gradients",),  # the table that is never looked up
}


class Head(nn.Module):
    def __init__(self, width, size, context, dropout):
        super().__init__()
        self.key = nn.Linear(width, size, bias=False)
        self.query = nn.Linear(width, size, bias=False)
        self.value = nn.Linear(width, size, bias=False)
        self.register_buffer("tril", torch.tril(torch.ones(context, context)))  # healthy: mask-too-short
        # self.register_buffer("tril", torch.tril(torch.ones(context - 1, context - 1)))  # sick: mask-too-short
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        B, T, C = x.shape
        k, q, v = self.key(x), self.query(x), self.value(x)
        # k = k.detach()  # sick: keys-detached
        scores = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5  # healthy: scale-by-width
        # scores = q @ k.transpose(-2, -1) * C**-0.5  # sick: scale-by-width
        visible = self.tril[:T, :T]
        # visible = torch.eye(T)  # sick: sees-itself-alone
        scores = scores.masked_fill(visible == 0, float("-inf"))  # healthy: no-mask, mask-after-softmax
        weights = self.dropout(F.softmax(scores, dim=-1))  # healthy: dropout-in-evaluation
        # weights = F.dropout(F.softmax(scores, dim=-1), 0.1)  # sick: dropout-in-evaluation
        # weights = weights.masked_fill(visible == 0, 0.0)  # sick: mask-after-softmax
        return weights @ v


class MultiHead(nn.Module):
    def __init__(self, width, heads, context, dropout):
        super().__init__()
        made = [Head(width, width // heads, context, dropout) for _ in range(heads)]
        self.heads = nn.ModuleList(made)  # healthy: heads-in-a-list
        # self.heads = made  # sick: heads-in-a-list
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        out = torch.cat([head(x) for head in self.heads], dim=-1)
        return self.dropout(self.proj(out))  # healthy: dropout-not-applied
        # return self.proj(out)  # sick: dropout-not-applied


class FeedForward(nn.Module):
    def __init__(self, width, dropout):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x):
        return self.net(x)


class Block(nn.Module):
    def __init__(self, width, heads, context, dropout):
        super().__init__()
        self.attention = MultiHead(width, heads, context, dropout)
        self.feed_forward = FeedForward(width, dropout)
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)

    def forward(self, x):
        x = x + self.attention(self.ln1(x))
        x = x + self.feed_forward(self.ln2(x))  # healthy: dropout-twice
        # x = x + self.attention.dropout(self.feed_forward(self.ln2(x)))  # sick: dropout-twice
        return x


class GPT(nn.Module):
    def __init__(self, vocab_size, context, width, heads, layers, dropout):
        super().__init__()
        self.context = context
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[Block(width, heads, context, dropout) for _ in range(layers)])
        self.ln = nn.LayerNorm(width)  # healthy: no-final-norm
        self.head = nn.Linear(width, vocab_size)
        self.apply(self._init)
        # nn.init.normal_(self.head.weight)  # sick: head-drawn-large

    def _init(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx, targets=None):
        B, T = idx.shape
        # torch.manual_seed(1337)  # sick: seed-in-forward
        x = self.token_embedding(idx)
        x = x + self.position_embedding(torch.arange(T, device=idx.device))  # healthy: no-positions
        x = self.blocks(x)  # healthy: blocks-never-called, block-never-called
        # x = self.blocks[0](x)  # sick: block-never-called
        logits = self.head(self.ln(x))  # healthy: no-final-norm
        # logits = self.head(x)  # sick: no-final-norm
        loss = None
        if targets is not None:
            loss = F.cross_entropy(logits.view(B * T, -1), targets.reshape(B * T))
        return logits, loss


def make(seed=0, vocab_size=40, context=16, width=32, heads=2, layers=2, dropout=0.1):
    torch.manual_seed(seed)
    model = GPT(vocab_size, context, width, heads, layers, dropout)
    return {"model": model, "vocab_size": vocab_size, "context": context}
