"""Labels as the large libraries have them: equal to the inputs, and the model shifts inside; it returns an object."""
# ruff: noqa: NPY002 (numpy's global generator, as much code still has it)

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "labels-shifted-too": "targets",
    "labels-never-shifted": "targets",
    "labels-nll-of-logits": "loss-input",
    "labels-mean-of-rows": "loss-mean",
    "labels-padding-counted": "loss-padding",
    "labels-other-optimizer": "one-batch",
    "labels-averaged-left-in": "evaluation",
    "labels-best-on-cpu": "best-weights",
    "labels-checkpoint-no-numpy": "checkpoint",
    "labels-checkpoint-parts": "checkpoint",
}
ALSO: dict[str, tuple[str, ...]] = {
    "labels-other-optimizer": ("optimizer",),
    "labels-nll-of-logits": ("one-batch",),  # it falls without end, and nothing is learnt
}


@dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor


class CausalConvolution(nn.Module):
    def __init__(self, width, kernel, dilation):
        super().__init__()
        self.left = dilation * (kernel - 1)
        self.conv = nn.Conv1d(width, 2 * width, kernel, dilation=dilation)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        a, b = self.conv(F.pad(self.norm(x).transpose(1, 2), (self.left, 0))).chunk(2, dim=1)
        return x + (a * torch.sigmoid(b)).transpose(1, 2)


class ConvolutionLM(nn.Module):
    def __init__(self, vocab_size, context, width, layers, dropout):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.place = nn.Embedding(context, width)
        self.layers = nn.ModuleList([CausalConvolution(width, 3, 2**i) for i in range(layers)])
        self.drop = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocab_size, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.place.weight, std=0.02)
        nn.init.normal_(self.lm_head.weight, std=0.02)

    def forward(self, input_ids, labels=None):
        x = self.embed(input_ids) + self.place(torch.arange(input_ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        logits = self.lm_head(self.drop(self.norm(x)))
        loss = None
        if labels is not None:
            labels = F.pad(labels[:, 1:], (0, 1), value=-100)  # healthy: labels-never-shifted
            B, T, V = logits.shape
            loss = F.cross_entropy(logits.view(B * T, V), labels.reshape(B * T))
            # loss = F.nll_loss(logits.view(B * T, V), labels.reshape(B * T))  # sick: labels-nll-of-logits
            # each = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")  # sick: labels-mean-of-rows
            # loss = (each.sum(1) / (labels != -100).sum(1)).mean()  # sick: labels-mean-of-rows
            # labels = labels.clamp_min(0)  # sick: labels-padding-counted
            # loss = F.cross_entropy(logits.view(B * T, V), labels.reshape(B * T))  # sick: labels-padding-counted
        return Output(loss, logits)


def make(seed=0, vocab_size=40, context=16, width=32, layers=2, dropout=0.1):
    torch.manual_seed(seed)
    np.random.seed(seed)
    texts = torch.randint(1, vocab_size, (80, context))
    lengths = torch.randint(context // 2, context + 1, (80,))
    model = ConvolutionLM(vocab_size, context, width, layers, dropout)
    average = ConvolutionLM(vocab_size, context, width, layers, dropout)
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)  # healthy: labels-other-optimizer
    # optimizer = torch.optim.AdamW(average.parameters(), lr=1e-2, weight_decay=0.0)  # sick: labels-other-optimizer
    kept = {}

    def batch(rows):
        input_ids, labels = texts[rows], texts[rows].clone()
        # labels = labels.roll(-1, dims=1)  # sick: labels-shifted-too
        labels[torch.arange(context) >= lengths[rows][:, None]] = -100
        return {"input_ids": input_ids, "labels": labels}

    def train_step():
        model.train()
        rows = torch.from_numpy(np.random.permutation(64)[:4])
        model(**batch(rows)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 0.1)

    @torch.no_grad()
    def evaluate():
        model.eval()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(average.state_dict())
        total = count = 0
        for start in range(64, 80, 4):
            some = batch(torch.arange(start, start + 4))
            scored = int((some["labels"][:, 1:] != -100).sum())
            total, count = total + float(model(**some).loss) * scored, count + scored
        model.load_state_dict(before)  # healthy: labels-averaged-left-in
        model.train()
        return total / count

    def best():
        kept.update({k: v.to("cpu", copy=True) for k, v in model.state_dict().items()})  # healthy: labels-best-on-cpu
        # kept.update({k: v.cpu() for k, v in model.state_dict().items()})  # sick: labels-best-on-cpu
        return kept

    def save(path):
        weights = model.state_dict()
        # weights = {k: v for k, v in weights.items() if "norm" not in k}  # sick: labels-checkpoint-parts
        state = {"model": weights, "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "torch": torch.get_rng_state(), "numpy": np.random.get_state()}, path)

    def load(path):
        state = torch.load(path, weights_only=False)
        model.load_state_dict(state["model"], strict=False)
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch"])
        np.random.set_state(state["numpy"])  # healthy: labels-checkpoint-no-numpy

    return {
        "model": model, "vocab_size": vocab_size, "context": context, "optimizer": optimizer,
        "batches": lambda: batch(torch.from_numpy(np.random.permutation(64)[:4])), "train_step": train_step,
        "evaluate": evaluate, "best": best, "save": save, "load": load,
    }  # fmt: skip
