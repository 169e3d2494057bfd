"""A small Llama: RMSNorm, rotary positions, SwiGLU, grouped heads, and QK-norm where it is asked for."""

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "no-mask": "future",
    "mask-one-too-late": "future",
    "view-for-transpose": "future",
    "no-rotation": "order",
    "attention-to-itself": "past",
    "blocks-never-called": "past",
    "norm-over-time": "norm-axis",
    "norm-over-batch": "norm-axis",
    "scale-by-width": "score-scale",
    "unscaled": "score-scale",
    "gate-never-used": "gradients",
    "detached": "gradients",
    "blocks-in-a-list": "unregistered",
    "gain-in-an-attribute": "unregistered",
    "dropout-in-evaluation": "dropout",
    "dropout-twice": "dropout",
}
ALSO: dict[str, tuple[str, ...]] = {
    "view-for-transpose": ("order",),
    "attention-to-itself": ("order", "gradients"),  # one score in a row: queries and keys get no gradient
    "blocks-never-called": ("order", "gradients", "dropout"),
    "norm-over-time": ("future",),
    "norm-over-batch": ("batch",),
    "blocks-in-a-list": ("gradients", "dropout", "modes"),  # eval() does not reach them
    "dropout-in-evaluation": ("modes",),
}


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))  # healthy: gain-in-an-attribute
        # self.weight = torch.ones(dim, requires_grad=True)  # sick: gain-in-an-attribute

    def forward(self, x):
        square = x.pow(2).mean(-1, keepdim=True)  # healthy: norm-over-time, norm-over-batch
        # square = x.pow(2).mean(1, keepdim=True)  # sick: norm-over-time
        # square = x.pow(2).mean(0, keepdim=True)  # sick: norm-over-batch
        return x * torch.rsqrt(square + self.eps) * self.weight


def rotary_tables(head_dim, context, base=10000.0):
    rate = 1.0 / base ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(context).float(), rate)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


class Attention(nn.Module):
    def __init__(self, dim, n_heads, n_kv_heads, qk_norm):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, dim // n_heads
        self.wq = nn.Linear(dim, n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(n_heads * self.head_dim, dim, bias=False)
        self.q_norm = RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim) if qk_norm else nn.Identity()

    def forward(self, x, cos, sin):
        B, T, C = x.shape
        q = self.q_norm(self.wq(x).view(B, T, self.n_heads, self.head_dim)).transpose(1, 2)
        k = self.k_norm(self.wk(x).view(B, T, self.n_kv_heads, self.head_dim)).transpose(1, 2)
        v = self.wv(x).view(B, T, self.n_kv_heads, self.head_dim).transpose(1, 2)  # healthy: view-for-transpose
        # v = self.wv(x).view(B, self.n_kv_heads, T, self.head_dim)  # sick: view-for-transpose
        q, k = rotate(q, cos[:T], sin[:T]), rotate(k, cos[:T], sin[:T])  # healthy: no-rotation
        group = self.n_heads // self.n_kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores = q @ k.transpose(2, 3) / self.head_dim**0.5  # healthy: scale-by-width, unscaled
        # scores = q @ k.transpose(2, 3) / C**0.5  # sick: scale-by-width
        # scores = q @ k.transpose(2, 3)  # sick: unscaled
        every = torch.ones(T, T, dtype=torch.bool, device=x.device)
        hidden = torch.triu(every, diagonal=1)  # healthy: mask-one-too-late, attention-to-itself
        # hidden = torch.triu(every, diagonal=2)  # sick: mask-one-too-late
        # hidden = every ^ torch.eye(T, dtype=torch.bool, device=x.device)  # sick: attention-to-itself
        scores = scores.masked_fill(hidden, float("-inf"))  # healthy: no-mask
        out = F.softmax(scores, dim=-1) @ v
        return self.wo(out.transpose(1, 2).reshape(B, T, -1))


class FeedForward(nn.Module):
    def __init__(self, dim, hidden_dim):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))  # healthy: gate-never-used
        # return self.w2(F.silu(self.w1(x)))  # sick: gate-never-used


class Block(nn.Module):
    def __init__(self, dim, n_heads, n_kv_heads, dropout, qk_norm):
        super().__init__()
        self.attention = Attention(dim, n_heads, n_kv_heads, qk_norm)
        self.feed_forward = FeedForward(dim, 8 * dim // 3)
        self.attention_norm = RMSNorm(dim)
        self.ffn_norm = RMSNorm(dim)
        self.dropout = dropout

    def drop(self, x):
        x = F.dropout(x, self.dropout, self.training)  # healthy: dropout-in-evaluation
        # x = F.dropout(x, self.dropout)  # sick: dropout-in-evaluation
        # x = F.dropout(x, self.dropout, self.training)  # sick: dropout-twice
        return x

    def forward(self, x, cos, sin):
        x = x + self.drop(self.attention(self.attention_norm(x), cos, sin))
        x = x + self.drop(self.feed_forward(self.ffn_norm(x)))  # healthy: detached
        # x = x + self.drop(self.feed_forward(self.ffn_norm(x))).detach()  # sick: detached
        return x


class Llama(nn.Module):
    def __init__(self, vocab_size, context, dim, n_heads, n_kv_heads, n_layers, dropout, qk_norm):
        super().__init__()
        self.max_seq_len = context
        self.tok_embeddings = nn.Embedding(vocab_size, dim)
        blocks = [Block(dim, n_heads, n_kv_heads, dropout, qk_norm) for _ in range(n_layers)]
        self.layers = nn.ModuleList(blocks)  # healthy: blocks-in-a-list
        # self.layers = blocks  # sick: blocks-in-a-list
        self.norm = RMSNorm(dim)
        self.output = nn.Linear(dim, vocab_size, bias=False)
        cos, sin = rotary_tables(dim // n_heads, context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens):
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)  # healthy: blocks-never-called
        return self.output(self.norm(x))


def make(
    seed=0, vocab_size=40, context=16, width=32, heads=4, layers=2, dropout=0.1, dtype=torch.float32, qk_norm=False
):
    torch.manual_seed(seed)
    model = Llama(vocab_size, context, width, heads, min(heads, max(2, heads // 2)), layers, dropout, qk_norm).to(dtype)
    given = {"model": model, "vocab_size": vocab_size, "context": context}
    return {**given, "expect": {"score_scale": True}} if qk_norm else given
