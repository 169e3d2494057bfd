"""A GPT with rotary positions and a cache laid out once: generate reads the prompt, then one token at a time."""

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "turned-from-zero": "cached-generation",
    "prompt-unmasked": "cached-generation",
    "written-one-place-behind": "cached-generation",
    "old-text-seen": "cached-generation",
    "half-the-temperature": "temperature",
}
ALSO: dict[str, tuple[str, ...]] = {"prompt-unmasked": ("sampling-mask",), "old-text-seen": ("sampling-mask", "future")}


def rotate(x, positions):
    half = x.shape[-1] // 2
    rate = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angle = positions[:, None] * rate
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.keys = self.values = None

    def lay_out(self, rows, length):
        zeros = self.qkv.weight.new_zeros(rows, self.heads, length, self.size)
        self.keys, self.values = zeros, zeros.clone()

    def forward(self, x, start):
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.heads, self.size).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        place = torch.arange(T, device=x.device) + (start or 0)  # healthy: turned-from-zero
        # place = torch.arange(T, device=x.device)  # sick: turned-from-zero
        q, k = rotate(q, place), rotate(k, place)
        if start is not None:
            first = start
            # first = max(0, start - 1) if T == 1 else start  # sick: written-one-place-behind
            self.keys[:, :, first : first + T], self.values[:, :, first : first + T] = k, v
            k, v = self.keys[:, :, : start + T], self.values[:, :, : start + T]
            # k, v = self.keys, self.values  # sick: old-text-seen
        S = k.shape[2]
        mask = torch.arange(S, device=x.device) <= place[:, None]  # healthy: prompt-unmasked, old-text-seen
        # mask = torch.arange(S, device=x.device) <= S + place[:, None]  # sick: old-text-seen
        # mask = (start is not None) | (torch.arange(S) <= place[:, None])  # sick: prompt-unmasked
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.gain * x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attention, self.norm1, self.norm2 = Attention(width, heads), RMSNorm(width), RMSNorm(width)
        self.gate, self.up = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x, start):
        x = x + self.attention(self.norm1(x), start)
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(self, vocab_size, max_seq_len, width, heads, layers):
        super().__init__()
        self.max_seq_len = max_seq_len
        self.embed = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, start=None):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, start)
        return self.head(self.norm(x))


@torch.no_grad()
def generate(model, tokens, count, temperature=1.0, top_p=1.0):
    B, T = tokens.shape
    tokens = tokens[:, -model.max_seq_len :]
    if model.layers[0].attention.keys is None or len(model.layers[0].attention.keys) != B:
        for layer in model.layers:
            layer.attention.lay_out(B, model.max_seq_len)
    start, fed, out = 0, tokens, tokens
    for _ in range(count):
        if start + fed.shape[1] > model.max_seq_len:
            start, fed = 0, out[:, -model.max_seq_len // 2 :]  # full: read the newer half again
        logits = model(fed, start)[:, -1]
        start += fed.shape[1]
        probs = torch.softmax(logits / temperature, dim=-1)  # healthy: half-the-temperature
        # probs = torch.softmax(logits / temperature**0.5, dim=-1)  # sick: half-the-temperature
        ranked, order = torch.sort(probs, dim=-1, descending=True)
        ranked[torch.cumsum(ranked, dim=-1) - ranked > top_p] = 0.0
        fed = torch.gather(order, -1, torch.multinomial(ranked / ranked.sum(-1, keepdim=True), num_samples=1))
        out = torch.cat([out, fed], dim=1)
    return out


def make(seed=0, vocab_size=40, context=16, width=32, heads=2, layers=2):
    torch.manual_seed(seed)
    model = Llama(vocab_size, context, width, heads, layers)

    def generate_with(tokens, count, temperature=1.0, top_p=1.0):
        return generate(model, tokens, count, temperature, top_p)

    return {"model": model, "vocab_size": vocab_size, "context": context, "generate": generate_with}
