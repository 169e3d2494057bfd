"""Training as the lectures have it: functions over what was made before them, a model that returns its own loss."""

import copy

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "lecture-not-shifted": "targets",
    "lecture-wrong-way": "targets",
    "lecture-softmax-first": "loss-input",
    "lecture-forgotten-step": "one-batch",
    "lecture-zeroed-before-step": "one-batch",
    "lecture-evaluation-draws": "evaluation",
    "lecture-evaluation-in-training-mode": "evaluation",
    "lecture-left-in-evaluation-mode": "evaluation",
    "lecture-best-alias": "best-weights",
    "lecture-checkpoint-weights-alone": "checkpoint",
    "lecture-checkpoint-no-generator": "checkpoint",
}
ALSO: dict[str, tuple[str, ...]] = {"lecture-zeroed-before-step": ("accumulation",)}


class Block(nn.Module):
    def __init__(self, width, heads, context, dropout):
        super().__init__()
        self.heads = heads
        self.ln1 = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width)
        self.ln2 = nn.LayerNorm(width)
        self.net = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("tril", torch.tril(torch.ones(context, context)))

    def attend(self, x):
        B, T, C = x.shape
        q, k, v = (
            f(x).view(B, T, self.heads, C // self.heads).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        y = F.softmax(scores, dim=-1) @ v
        return self.proj(y.transpose(1, 2).reshape(B, T, C))

    def forward(self, x):
        x = x + self.dropout(self.attend(self.ln1(x)))
        return x + self.dropout(self.net(self.ln2(x)))


class LanguageModel(nn.Module):
    def __init__(self, vocab_size, context, width, heads, layers, dropout):
        super().__init__()
        self.context = context
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[Block(width, heads, context, dropout) for _ in range(layers)])
        self.ln = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size)
        self.apply(self._init)

    def _init(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx, targets=None):
        B, T = idx.shape
        x = self.token_embedding(idx) + self.position_embedding(torch.arange(T, device=idx.device))
        logits = self.head(self.ln(self.blocks(x)))
        if targets is None:
            return logits, None
        flat = logits.view(B * T, -1)
        # flat = F.softmax(flat, dim=-1)  # sick: lecture-softmax-first
        loss = F.cross_entropy(flat, targets.view(B * T))
        return logits, loss


def make(seed=0, vocab_size=40, context=16, width=32, heads=2, layers=1, dropout=0.1, batch_size=8):
    torch.manual_seed(seed)
    data = torch.randint(vocab_size, (75 * context,))
    train_data, val_data = data[: 62 * context], data[62 * context :]
    model = LanguageModel(vocab_size, context, width, heads, layers, dropout)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=1e-2
    )
    best = {"loss": float("inf"), "state": None}

    def get_batch(data):
        ix = torch.randint(len(data) - context, (batch_size,))
        x = torch.stack([data[i : i + context] for i in ix])
        y = torch.stack([data[i + 1 : i + context + 1] for i in ix])  # healthy: lecture-not-shifted
        # y = torch.stack([data[i : i + context] for i in ix])  # sick: lecture-not-shifted
        # x, y = y, x  # sick: lecture-wrong-way
        return x, y

    def train_step():
        x, y = get_batch(train_data)
        logits, loss = model(x, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # optimizer.zero_grad()  # sick: lecture-zeroed-before-step
        optimizer.step()  # healthy: lecture-forgotten-step
        return loss.item()

    @torch.no_grad()
    def evaluate():
        model.eval()  # healthy: lecture-evaluation-in-training-mode
        losses = []
        for i in range(0, len(val_data) - context, context):
            x, y = val_data[i : i + context][None], val_data[i + 1 : i + context + 1][None]
            # x, y = get_batch(val_data)  # sick: lecture-evaluation-draws
            losses.append(model(x, y)[1].item())
        model.train()  # healthy: lecture-left-in-evaluation-mode
        loss = sum(losses) / len(losses)
        if loss < best["loss"]:
            best["loss"] = loss
            best["state"] = copy.deepcopy(model.state_dict())  # healthy: lecture-best-alias
            # best["state"] = model.state_dict()  # sick: lecture-best-alias
        return loss

    def save(path):
        checkpoint = {"model": model.state_dict()}
        checkpoint["optimizer"] = optimizer.state_dict()  # healthy: lecture-checkpoint-weights-alone
        checkpoint["generator"] = torch.get_rng_state()
        torch.save(checkpoint, path)

    def load(path):
        checkpoint = torch.load(path)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])  # healthy: lecture-checkpoint-weights-alone
        torch.set_rng_state(checkpoint["generator"])  # healthy: lecture-checkpoint-no-generator

    return {
        "model": model, "vocab_size": vocab_size, "context": context, "optimizer": optimizer,
        "batches": lambda: get_batch(train_data), "train_step": train_step, "evaluate": evaluate,
        "best": lambda: best["state"], "save": save, "load": load,
    }  # fmt: skip
