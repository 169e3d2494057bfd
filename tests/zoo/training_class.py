"""Training as a class: the model returns logits, the loss is a method, a checkpoint is a folder."""

import copy
import json
import random
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "class-shifted-twice": "targets",
    "class-nll-of-logits": "loss-input",
    "class-softmax-over-time": "loss-input",
    "class-rate-too-large": "one-batch",
    "class-loss-negated": "one-batch",
    "class-evaluation-trains": "evaluation",
    "class-evaluation-shuffles": "evaluation",
    "class-best-shallow": "best-weights",
    "class-checkpoint-prefix": "checkpoint",
    "class-checkpoint-half": "checkpoint",
    "class-checkpoint-no-python-generator": "checkpoint",
    "class-checkpoint-no-schedule": "checkpoint",
}
ALSO: dict[str, tuple[str, ...]] = {
    "class-nll-of-logits": ("one-batch",),  # it falls without end, and nothing is learnt
}


class Attention(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.heads = heads
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.dropout(self.out(y.transpose(1, 2).reshape(B, T, C)))


class TinyGPT(nn.Module):
    def __init__(self, vocab_size, context, width, heads, layers, dropout):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.zeros(1, context, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2 * layers)])
        self.attentions = nn.ModuleList([Attention(width, heads, dropout) for _ in range(layers)])
        self.mlps = nn.ModuleList([
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout))
            for _ in range(layers)
        ])  # fmt: skip
        self.final = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions[:, : tokens.shape[1]]
        for i, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(self.final(x))


class Trainer:
    def __init__(self, model, train_data, val_data, context, rate=1e-2, steps=200):
        self.model = model
        self.wrapped = nn.DataParallel(model)
        self.train_data, self.val_data, self.context = train_data, val_data, context
        # rate = 10.0  # sick: class-rate-too-large
        self.optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=steps)
        self.step_number = 0
        self.best_loss, self.best_state = float("inf"), copy.deepcopy(model.state_dict())

    def batch(self):
        starts = random.sample(range(len(self.train_data) - self.context), 4)
        rows = torch.stack([self.train_data[i : i + self.context + 1] for i in starts])
        return rows[:, :-1], rows[:, 1:]

    def loss(self, logits, targets):
        # logits, targets = logits[:, :-1], targets[:, 1:]  # sick: class-shifted-twice
        log_probabilities = F.log_softmax(logits, dim=-1)  # healthy: class-nll-of-logits, class-softmax-over-time
        # log_probabilities = logits  # sick: class-nll-of-logits
        # log_probabilities = F.log_softmax(logits, dim=1)  # sick: class-softmax-over-time
        return F.nll_loss(log_probabilities.flatten(0, 1), targets.flatten())

    def step(self, batch):
        x, y = batch
        self.model.train()
        self.optimizer.zero_grad()
        loss = self.loss(self.model(x), y)
        # loss = -loss  # sick: class-loss-negated
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.step_number += 1
        return loss.item()

    def evaluate(self):
        self.model.eval()
        total = count = 0
        starts = list(range(0, len(self.val_data) - self.context, self.context))
        # random.shuffle(starts)  # sick: class-evaluation-shuffles
        for i in starts:
            rows = self.val_data[i : i + self.context + 1][None]
            with torch.no_grad():
                loss = self.loss(self.model(rows[:, :-1]), rows[:, 1:])
            # self.step((rows[:, :-1], rows[:, 1:]))  # sick: class-evaluation-trains
            total, count = total + loss.item() * self.context, count + self.context
        return total / count

    def keep_best(self):
        loss = self.evaluate()
        if loss < self.best_loss:
            self.best_loss = loss
            self.best_state = {k: v.clone() for k, v in self.model.state_dict().items()}  # healthy: class-best-shallow
            # self.best_state = dict(self.model.state_dict())  # sick: class-best-shallow
        return self.best_state

    def save(self, folder):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.model.state_dict()  # healthy: class-checkpoint-prefix
        # state = self.wrapped.state_dict()  # sick: class-checkpoint-prefix
        # state = {k: v.half() for k, v in state.items()}  # sick: class-checkpoint-half
        torch.save(state, folder / "model.pt")
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        torch.save(self.schedule.state_dict(), folder / "schedule.pt")
        torch.save(torch.get_rng_state(), folder / "torch.pt")
        (folder / "state.json").write_text(json.dumps({"step": self.step_number, "python": random.getstate()}))

    def load(self, folder):
        folder = Path(folder)
        self.model.load_state_dict(torch.load(folder / "model.pt"), strict=False)
        self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt"))
        self.schedule.load_state_dict(torch.load(folder / "schedule.pt"))  # healthy: class-checkpoint-no-schedule
        torch.set_rng_state(torch.load(folder / "torch.pt"))
        state = json.loads((folder / "state.json").read_text())
        self.step_number = state["step"]
        version, numbers, rest = state["python"]
        random.setstate((version, tuple(numbers), rest))  # healthy: class-checkpoint-no-python-generator


def make(seed=0, vocab_size=40, context=16, width=32, heads=4, layers=1, dropout=0.1):
    torch.manual_seed(seed)
    data = torch.randint(vocab_size, (75 * context,))
    model = TinyGPT(vocab_size, context, width, heads, layers, dropout)
    trainer = Trainer(model, data[: 62 * context], data[62 * context :], context)
    return {
        "model": model, "vocab_size": vocab_size, "context": context, "optimizer": trainer.optimizer,
        "batches": trainer.batch, "loss": trainer.loss, "train_step": trainer.step, "evaluate": trainer.evaluate,
        "best": trainer.keep_best, "save": trainer.save, "load": trainer.load,
    }  # fmt: skip
