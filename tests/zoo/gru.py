"""A language model around torch's own GRU; a bridge brings its state to the size of the embeddings, for a tied head."""

import torch
import torch.nn as nn

MISTAKES = {
    "both-ways": "future",
    "view-for-transpose": "batch",
    "every-token-alone": "past",
    "bag-of-tokens": "order",
    "norm-over-time": "future",
    "bridge-never-called": "gradients",
    "bridge-in-a-list": "unregistered",
    "dropout-twice": "dropout",
}
ALSO: dict[str, tuple[str, ...]] = {
    "view-for-transpose": ("future", "past", "order"),  # rows and positions are dealt anew
    "every-token-alone": ("order", "gradients"),  # the old state is always zero
    "bag-of-tokens": ("gradients",),
    "norm-over-time": ("norm-axis", "gradients", "modes"),  # written into forward, it is no module
    "bridge-in-a-list": ("gradients",),
}


class GRUModel(nn.Module):
    def __init__(self, vocab_size, width, layers, dropout):
        super().__init__()
        self.encoder = nn.Embedding(vocab_size, width)
        options = {"num_layers": layers, "dropout": dropout if layers > 1 else 0.0, "batch_first": True}
        # options["batch_first"] = False  # sick: view-for-transpose
        self.rnn = nn.GRU(width, 2 * width, **options)  # healthy: both-ways
        # self.rnn = nn.GRU(width, width, bidirectional=True, **options)  # sick: both-ways
        self.bridge = nn.Linear(2 * width, width)  # healthy: bridge-in-a-list
        # self.bridges = [nn.Linear(2 * width, width)]  # sick: bridge-in-a-list
        self.norm = nn.LayerNorm(width)
        self.decoder = nn.Linear(width, vocab_size, bias=False)
        self.decoder.weight = self.encoder.weight
        self.drop = nn.Dropout(dropout)
        nn.init.normal_(self.encoder.weight, std=0.02)

    def forward(self, idx):
        x = self.drop(self.encoder(idx))
        out, _ = self.rnn(x)  # healthy: every-token-alone, bag-of-tokens, view-for-transpose
        # out = self.rnn(x.view(x.size(1), x.size(0), -1))[0].view(x.size(0), x.size(1), -1)  # sick: view-for-transpose
        # out = self.rnn(x.reshape(-1, 1, x.size(2)))[0].reshape(x.size(0), x.size(1), -1)  # sick: every-token-alone
        # out = torch.cat([x, x], dim=2).cumsum(1) / torch.arange(1, x.size(1) + 1)[:, None]  # sick: bag-of-tokens
        out = self.drop(out)
        # out = self.drop(out)  # sick: dropout-twice
        out = self.bridge(out)  # healthy: bridge-never-called, bridge-in-a-list
        # out = out[..., : x.size(2)]  # sick: bridge-never-called
        # out = self.bridges[0](out)  # sick: bridge-in-a-list
        out = self.norm(out)  # healthy: norm-over-time
        # out = (out - out.mean(1, keepdim=True)) / out.std(1, keepdim=True) * self.norm.weight  # sick: norm-over-time
        # out = out + self.norm.bias  # sick: norm-over-time
        return self.decoder(out)


def make(seed=0, vocab_size=40, context=16, width=32, heads=1, layers=2, dropout=0.1, dtype=torch.float32):
    torch.manual_seed(seed)
    model = GRUModel(vocab_size, width, layers, dropout).to(dtype)
    return {"model": model, "vocab_size": vocab_size, "context": context}
