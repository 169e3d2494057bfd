"""A whole script as larger trainings have it: words, groups, a scaler, compiling, several batches a step. Healthy."""

import argparse
import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from zoo.fused import GPT, Config

parser = argparse.ArgumentParser()
parser.add_argument("--batch_size", type=int, default=4)
parser.add_argument("--max_iters", type=int, default=2000)
parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
args = parser.parse_args()

gradient_accumulation_steps = 3
block_size = 16
learning_rate, min_lr = 1e-3, 1e-4
warmup_iters, lr_decay_iters = 100, 2000
grad_clip = 1.0

torch.manual_seed(1337)
data = torch.randint(0, 40, (4000,))
ctx = nullcontext() if args.device == "cpu" else torch.amp.autocast(device_type="cuda", dtype=torch.float16)


def get_batch():
    ix = torch.randint(len(data) - block_size, (args.batch_size,))
    x = torch.stack([data[i : i + block_size] for i in ix])
    y = torch.stack([data[i + 1 : i + 1 + block_size] for i in ix])
    return x.to(args.device), y.to(args.device)


def get_lr(it):
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    ratio = min(1.0, (it - warmup_iters) / (lr_decay_iters - warmup_iters))
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


model = GPT(Config(vocab_size=40, block_size=block_size))
model.to(args.device)
scaler = torch.amp.GradScaler("cuda", enabled=True)
params = [p for p in model.parameters() if p.requires_grad]
groups = [
    {"params": [p for p in params if p.dim() >= 2], "weight_decay": 0.1},
    {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
]
optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))
raw_model = model
model = torch.compile(model)

X, Y = get_batch()
iter_num = 0
while True:
    lr = get_lr(iter_num)
    for param_group in optimizer.param_groups:
        param_group["lr"] = lr  # healthy: first-group-alone
    # optimizer.param_groups[0]["lr"] = lr  # sick: first-group-alone
    for _ in range(gradient_accumulation_steps):
        # optimizer.zero_grad()  # sick: zero-grad-inside
        with ctx:
            logits = model(X)
            loss = F.cross_entropy(logits.view(-1, logits.size(-1)), Y.view(-1))
            loss = loss / gradient_accumulation_steps  # healthy: not-divided
        X, Y = get_batch()
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)  # healthy: clip-before-unscale
    torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    iter_num += 1
    if iter_num > args.max_iters:
        break
