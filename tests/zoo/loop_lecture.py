"""The training loop of a lecture: batches out of one long row of tokens, AdamW, a rate set by hand, clipping."""

import math

import torch
from torch.nn.utils import clip_grad_norm_

from zoo.heads import GPT

MISTAKES = {
    "zero-grad-missing": "accumulation",
    "zero-grad-before-step": "accumulation",
    "no-backward": "accumulation",
    "rate-to-an-attribute": "schedule",
    "rate-to-the-defaults": "schedule",
    "rate-to-a-wrong-key": "schedule",
    "rate-never-set": "schedule",
    "rate-of-another-count": "schedule",
    "warm-up-too-steep": "schedule",
    "cosine-too-short": "schedule",
    "rate-below-zero": "schedule",
    "optimizer-of-the-old-model": "optimizer",
    "head-after-optimizer": "optimizer",
    "clip-after-step": "clipping",
    "clip-before-backward": "clipping",
    "clip-nothing": "clipping",
    "decay-for-all": "weight-decay",
    "left-in-evaluation": "training-mode",
    "logarithm-of-zero": "finite",
}
ALSO: dict[str, tuple[str, ...]] = {
    # No weight moves, which is seen by who tries to learn one batch.
    "zero-grad-before-step": ("one-batch",),
    "no-backward": ("one-batch",),
    "optimizer-of-the-old-model": ("one-batch",),
}

max_iters = 500
warmup_iters = 20
learning_rate = 1e-3
min_lr = 1e-4


def get_lr(it):
    if it < warmup_iters:
        return learning_rate * (it + 1) / warmup_iters  # healthy: warm-up-too-steep
        # return learning_rate * (it + 1) / 10  # sick: warm-up-too-steep
    decay_ratio = (it - warmup_iters) / (max_iters - warmup_iters)  # healthy: cosine-too-short
    # decay_ratio = (it - warmup_iters) / 370  # sick: cosine-too-short
    coeff = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))  # healthy: rate-below-zero
    # coeff = 1.0 - 1.3 * decay_ratio  # sick: rate-below-zero
    return min_lr + coeff * (learning_rate - min_lr)


def make(seed=0, vocab_size=40, context=16, width=32, heads=2, layers=2, dropout=0.1):
    torch.manual_seed(seed)
    data = torch.randint(vocab_size, (1000,))
    model = GPT(vocab_size, context, width, heads, layers, dropout)
    params = model.parameters()
    decay = 0.01  # healthy: decay-for-all
    # decay = 0.1  # sick: decay-for-all
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=decay)  # healthy: clip-nothing
    # optimizer = torch.optim.AdamW(params, lr=learning_rate, weight_decay=decay)  # sick: clip-nothing
    # model = GPT(vocab_size, context, width, heads, layers, dropout)  # sick: optimizer-of-the-old-model
    # model.head = torch.nn.Linear(width, vocab_size)  # sick: head-after-optimizer
    # torch.nn.init.normal_(model.head.weight, std=0.02)  # sick: head-after-optimizer
    # torch.nn.init.zeros_(model.head.bias)  # sick: head-after-optimizer
    step = 0

    def get_batch():
        ix = torch.randint(len(data) - context, (4,))
        x = torch.stack([data[i : i + context] for i in ix])
        y = torch.stack([data[i + 1 : i + context + 1] for i in ix])
        return x, y

    def evaluate():
        model.eval()
        with torch.no_grad():
            _, loss = model(*get_batch())
        model.train()  # healthy: left-in-evaluation
        return loss.item()

    def train_step():
        nonlocal step
        if step % 10 == 0:
            evaluate()
        lr = get_lr(step)  # healthy: rate-of-another-count
        # lr = get_lr(step // 2)  # sick: rate-of-another-count
        for group in optimizer.param_groups:
            group["lr"] = lr  # healthy: rate-to-an-attribute, rate-to-the-defaults, rate-to-a-wrong-key, rate-never-set
            # optimizer.lr = lr  # sick: rate-to-an-attribute
            # optimizer.defaults["lr"] = lr  # sick: rate-to-the-defaults
            # group["learning_rate"] = lr  # sick: rate-to-a-wrong-key
        xb, yb = get_batch()
        logits, loss = model(xb, yb)
        # loss = loss + torch.log(logits.softmax(-1).amin() * 0)  # sick: logarithm-of-zero
        optimizer.zero_grad()  # healthy: zero-grad-missing, zero-grad-before-step
        # clip_grad_norm_(model.parameters(), 1.0)  # sick: clip-before-backward
        loss.backward()  # healthy: no-backward
        # optimizer.zero_grad()  # sick: zero-grad-before-step
        clip_grad_norm_(model.parameters(), 1.0)  # healthy: clip-after-step, clip-before-backward, clip-nothing
        # clip_grad_norm_(params, 1.0)  # sick: clip-nothing
        optimizer.step()
        # clip_grad_norm_(model.parameters(), 1.0)  # sick: clip-after-step
        step += 1
        return loss.item()

    return {
        "model": model,
        "vocab_size": vocab_size,
        "context": context,
        "optimizer": optimizer,
        "train_step": train_step,
        "schedule": get_lr,
        "schedule_bounds": (min_lr, learning_rate),
        "steps": max_iters,
        "expect": {"restarts": False},
    }
