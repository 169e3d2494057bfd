"""Mixed precision with a GradScaler, and a torch scheduler that is stepped with every step."""

import torch
import torch.nn as nn

from zoo.heads import GPT

MISTAKES = {
    "clip-before-unscale": "clipping",
    "clip-by-hand-before-unscale": "clipping",
    "step-past-the-scaler": "accumulation",
    "scheduler-before-step": "schedule",
    "scheduler-of-another-optimizer": "schedule",
    "scheduler-written-over": "schedule",
    "scheduler-never-stepped": "schedule",
}
ALSO: dict[str, tuple[str, ...]] = {}


def make(seed=0, vocab_size=40, context=16, width=32, heads=2, layers=2, dropout=0.1):
    torch.manual_seed(seed)
    steps = 300
    model = GPT(vocab_size, context, width, heads, layers, dropout)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    # optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)  # sick: scheduler-of-another-optimizer
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    data = torch.randint(vocab_size, (500, context + 1))

    def train_step():
        rows = data[torch.randint(len(data), (4,))]
        inputs, targets = rows[:, :-1], rows[:, 1:]
        # scheduler.step()  # sick: scheduler-before-step
        # for g in optimizer.param_groups: g["lr"] = 3e-4  # sick: scheduler-written-over
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, _ = model(inputs)
            loss = criterion(logits.view(-1, vocab_size), targets.reshape(-1))
        scaler.scale(loss).backward()
        # for p in model.parameters(): p.grad.clamp_(-1, 1)  # sick: clip-by-hand-before-unscale
        scaler.unscale_(optimizer)  # healthy: clip-before-unscale, step-past-the-scaler
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # healthy: step-past-the-scaler
        scaler.step(optimizer)  # healthy: step-past-the-scaler
        scaler.update()  # healthy: step-past-the-scaler
        # optimizer.step()  # sick: step-past-the-scaler
        scheduler.step()  # healthy: scheduler-before-step, scheduler-never-stepped

    return {
        "model": model,
        "optimizer": optimizer,
        "train_step": train_step,
        "schedule": scheduler,
        "steps": steps,
        "vocab_size": vocab_size,
        "context": context,
    }
