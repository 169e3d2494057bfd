"""A whole script as a lecture has it: one file from the text to the sample. Made to be watched, and healthy."""

import torch
import torch.nn as nn
from torch.nn import functional as F

batch_size = 8
block_size = 16
max_iters = 3000
eval_interval = 500
learning_rate = 1e-3
eval_iters = 2
n_embd = 32
n_head = 2
n_layer = 2
dropout = 0.1
# ------------

torch.manual_seed(1337)

text = "the quick brown fox jumps over the lazy dog and runs away into the deep dark wood again. " * 30
chars = sorted(set(text))
vocab_size = len(chars)
stoi = {ch: i for i, ch in enumerate(chars)}
itos = dict(enumerate(chars))
data = torch.tensor([stoi[c] for c in text], dtype=torch.long)
n = int(0.9 * len(data))
train_data = data[:n]
val_data = data[n:]


def get_batch(split):
    data = train_data if split == "train" else val_data
    ix = torch.randint(len(data) - block_size, (batch_size,))
    # torch.manual_seed(1337)  # sick: seed-in-the-loop
    # ix = torch.randint(len(data) - block_size, (batch_size,))  # sick: seed-in-the-loop
    x = torch.stack([data[i : i + block_size] for i in ix])
    y = torch.stack([data[i + 1 : i + block_size + 1] for i in ix])  # healthy: not-shifted, shifted-twice
    # y = torch.stack([data[i : i + block_size] for i in ix])  # sick: not-shifted
    # y = torch.stack([data[i + 2 : i + block_size + 2] for i in ix.clamp(max=len(data) - 20)])  # sick: shifted-twice
    # x = torch.stack([data[i : i + block_size] for i in ix.clamp(max=len(data) - 20)])  # sick: shifted-twice
    return x, y


@torch.no_grad()
def estimate_loss():
    out = {}
    model.eval()
    for split in ["train", "val"]:
        losses = torch.zeros(eval_iters)
        for k in range(eval_iters):
            X, Y = get_batch(split)
            logits, loss = model(X, Y)
            losses[k] = loss.item()
        out[split] = losses.mean()
    model.train()  # healthy: left-in-evaluation
    return out


class Head(nn.Module):
    def __init__(self, head_size):
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        B, T, C = x.shape
        k = self.key(x)
        q = self.query(x)
        wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        wei = wei.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        wei = F.softmax(wei, dim=-1)
        wei = self.dropout(wei)
        return wei @ self.value(x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([Head(n_embd // n_head) for _ in range(n_head)])
        self.proj = nn.Linear(n_embd, n_embd)
        self.ffwd = nn.Sequential(nn.Linear(n_embd, 4 * n_embd), nn.ReLU(), nn.Linear(4 * n_embd, n_embd))
        self.dropout = nn.Dropout(dropout)
        self.ln1 = nn.LayerNorm(n_embd)
        self.ln2 = nn.LayerNorm(n_embd)

    def forward(self, x):
        y = self.ln1(x)
        x = x + self.dropout(self.proj(torch.cat([h(y) for h in self.heads], dim=-1)))
        return x + self.dropout(self.ffwd(self.ln2(x)))


class GPTLanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embedding_table = nn.Embedding(vocab_size, n_embd)
        self.position_embedding_table = nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(*[Block() for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            torch.nn.init.zeros_(module.bias)

    def forward(self, idx, targets=None):
        B, T = idx.shape
        x = self.token_embedding_table(idx) + self.position_embedding_table(torch.arange(T))
        logits = self.lm_head(self.ln_f(self.blocks(x)))
        if targets is None:
            return logits, None
        B, T, C = logits.shape
        logits = logits.view(B * T, C)
        # logits = F.softmax(logits, dim=-1)  # sick: softmax-first
        loss = F.cross_entropy(logits, targets.view(B * T))
        return logits, loss


model = GPTLanguageModel()
print(sum(p.numel() for p in model.parameters()) / 1e6, "M parameters")
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
# model = GPTLanguageModel()  # sick: another-model

for iter in range(max_iters):
    if iter % eval_interval == 0 or iter == max_iters - 1:
        losses = estimate_loss()
        print(f"step {iter}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}")
    # optimizer.lr = learning_rate * min(1.0, (iter + 1) / 100)  # sick: rate-to-an-attribute
    xb, yb = get_batch("train")
    logits, loss = model(xb, yb)
    # loss = loss / 0.0  # sick: divided-by-zero
    optimizer.zero_grad(set_to_none=True)  # healthy: never-cleared
    loss.backward()
    optimizer.step()

print("".join(itos[i] for i in get_batch("val")[0][0].tolist()))
