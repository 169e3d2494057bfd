"""A small Llama from a notebook: norms and softmax by hand, einsum, a block that is called as attention and MLP."""

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "norm-over-time": "norm-axis",
    "norm-over-batch": "norm-axis",
    "norm-over-all": "norm-axis",
    "batch-norm": "norm-axis",
    "times-root": "score-scale",
    "mask-of-a-billion": "half-precision",
    "mask-in-a-buffer": "half-precision",
    "no-last-norm": "growth",
}
ALSO: dict[str, tuple[str, ...]] = {
    "norm-over-time": ("future", "modes"),
    "norm-over-batch": ("batch", "modes"),
    "norm-over-all": ("future", "batch"),
    "batch-norm": ("modes", "batch"),  # statistics of the batch in training, running ones in evaluation
}


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        # x: B, T, C
        squares = x.float().pow(2).mean(-1, keepdim=True)  # healthy: norm-over-time, norm-over-batch, norm-over-all
        # squares = x.float().pow(2).mean(1, keepdim=True)  # sick: norm-over-time
        # squares = x.float().pow(2).mean(0, keepdim=True)  # sick: norm-over-batch
        # squares = x.float().pow(2).mean()  # sick: norm-over-all
        return (x.float() * torch.rsqrt(squares + self.eps)).type_as(x) * self.weight


class BatchNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.bn = nn.BatchNorm1d(dim)

    def forward(self, x):
        return self.bn(x.transpose(1, 2)).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, dim, n_heads, max_len):
        super().__init__()
        self.n_heads = n_heads
        self.head_dim = dim // n_heads
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, dim, bias=False)
        self.wv = nn.Linear(dim, dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.register_buffer("tril", torch.tril(torch.ones(max_len, max_len)))
        # self.register_buffer("never", torch.tensor(-1e9))  # sick: mask-in-a-buffer

    def forward(self, x):
        B, T, C = x.shape
        q = self.wq(x).view(B, T, self.n_heads, self.head_dim)
        k = self.wk(x).view(B, T, self.n_heads, self.head_dim)
        v = self.wv(x).view(B, T, self.n_heads, self.head_dim)
        q = q * self.head_dim**-0.5  # healthy: times-root
        # q = q * self.head_dim**0.5  # sick: times-root
        att = torch.einsum("bqhd,bkhd->bhqk", q, k)
        tril = self.tril[:T, :T]
        att = att.masked_fill(tril == 0, float("-inf"))  # healthy: mask-of-a-billion, mask-in-a-buffer
        # att = att.masked_fill(tril == 0, -1e9)  # sick: mask-of-a-billion
        # att = att * tril + (1 - tril) * self.never  # sick: mask-in-a-buffer
        att = torch.exp(att - att.max(dim=-1, keepdim=True).values)
        att = att / att.sum(dim=-1, keepdim=True)
        y = torch.einsum("bhqk,bkhd->bqhd", att, v).reshape(B, T, C)
        return self.wo(y)


class MLP(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.w1 = nn.Linear(dim, 2 * dim, bias=False)
        self.w2 = nn.Linear(2 * dim, dim, bias=False)
        self.w3 = nn.Linear(dim, 2 * dim, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self, dim, n_heads, max_len):
        super().__init__()
        self.attention = Attention(dim, n_heads, max_len)
        self.mlp = MLP(dim)
        self.norm1 = RMSNorm(dim)
        self.norm2 = RMSNorm(dim)  # healthy: batch-norm
        # self.norm2 = BatchNorm(dim)  # sick: batch-norm

    def forward(self, x):
        h = x + self.attention(self.norm1(x))
        return h + self.mlp(self.norm2(h))


class Llama(nn.Module):
    def __init__(self, vocab_size, max_seq_len, dim, n_heads, n_layers):
        super().__init__()
        self.vocab_size = vocab_size
        self.max_seq_len = max_seq_len
        self.embed = nn.Embedding(vocab_size, dim)
        self.place = nn.Parameter(torch.randn(1, max_seq_len, dim) * 0.5)
        self.layers = nn.ModuleList()
        for _ in range(n_layers):
            self.layers.append(Layer(dim, n_heads, max_seq_len))
        self.norm = RMSNorm(dim)  # healthy: no-last-norm
        self.output = nn.Linear(dim, vocab_size, bias=False)

    def forward(self, tokens):
        h = self.embed(tokens) + self.place[:, : tokens.shape[1]]
        for layer in self.layers:
            h = layer(h)
        return self.output(self.norm(h))  # healthy: no-last-norm
        # return self.output(h)  # sick: no-last-norm


def make(seed=0, vocab_size=40, context=16, width=32, heads=4, layers=2):
    torch.manual_seed(seed)
    model = Llama(vocab_size, context, width, heads, layers)
    return {"model": model, "vocab_size": vocab_size, "context": context}
