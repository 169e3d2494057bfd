"""A GPT out of torch.nn's own encoder layers, which are made causal by a mask: it returns (loss, logits)."""

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "no-mask": "future",
    "mask-inverted": "future",
    "no-positions": "order",
    "attention-to-itself": "past",
    "encoder-never-called": "past",
    "norm-over-time": "future",
    "last-layer-alone": "gradients",
    "positions-in-an-attribute": "unregistered",
    "dropout-in-evaluation": "dropout",
    "dropout-twice": "dropout",
}
ALSO: dict[str, tuple[str, ...]] = {
    "mask-inverted": ("past", "order"),  # what is seen is the token itself and all that come later
    "no-positions": ("gradients",),
    "attention-to-itself": ("order", "gradients"),
    "encoder-never-called": ("order", "gradients"),
    "norm-over-time": ("norm-axis", "gradients", "modes"),  # written into forward, it is no module
    "dropout-in-evaluation": ("modes",),
}


class Model(nn.Module):
    def __init__(self, vocab_size, context, width, heads, layers, dropout):
        super().__init__()
        self.max_len = context
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.randn(context, width) * 0.02)  # healthy: positions-in-an-attribute
        # self.positions = (torch.randn(context, width) * 0.02).requires_grad_()  # sick: positions-in-an-attribute
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocab_size, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, idx, targets=None):
        T = idx.size(1)
        mask = torch.ones(T, T, dtype=torch.bool, device=idx.device).triu(1)  # healthy: mask-inverted, no-mask
        # mask = torch.ones(T, T, dtype=torch.bool, device=idx.device).tril(-1)  # sick: mask-inverted
        # mask = None  # sick: no-mask
        # mask = ~torch.eye(T, dtype=torch.bool, device=idx.device)  # sick: attention-to-itself
        x = self.tokens(idx)
        x = x + self.positions[:T]  # healthy: no-positions
        x = self.dropout(x)  # healthy: dropout-in-evaluation
        # x = F.dropout(x, self.dropout.p)  # sick: dropout-in-evaluation
        # x = self.dropout(x)  # sick: dropout-twice
        x = self.encoder(x, mask=mask)  # healthy: encoder-never-called, last-layer-alone
        # x = self.encoder.norm(self.encoder.layers[-1](x, src_mask=mask))  # sick: last-layer-alone
        # x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()  # sick: norm-over-time
        logits = self.head(x)
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return loss, logits


def make(seed=0, vocab_size=40, context=16, width=32, heads=4, layers=2, dropout=0.1, dtype=torch.float32):
    torch.manual_seed(seed)
    model = Model(vocab_size, context, width, heads, layers, dropout).to(dtype)
    return {"model": model, "vocab_size": vocab_size, "context": context}
