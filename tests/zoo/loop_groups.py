"""Two groups, decayed and not, as in the training code of larger models; warm-up and cosine from torch."""

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from zoo.time_first import Transformer

MISTAKES = {
    "names-that-are-not-there": "weight-decay",
    "groups-upside-down": "weight-decay",
    "group-forgotten": "optimizer",
    "head-forgotten": "optimizer",
    "parameters-twice": "optimizer",
    "one-group-scheduled": "schedule",
    "warm-up-per-epoch": "schedule",
}
ALSO: dict[str, tuple[str, ...]] = {}

steps = 400
warmup = 40


def configure(model):
    no_decay = ["bias", "norm"]  # healthy: names-that-are-not-there
    # no_decay = ["bias", "LayerNorm.weight"]  # sick: names-that-are-not-there
    named = list(model.named_parameters())  # healthy: head-forgotten
    # named = [(n, p) for n, p in model.named_parameters() if not n.startswith("decoder")]  # sick: head-forgotten
    decayed = [p for n, p in named if not any(word in n for word in no_decay)]
    others = [p for n, p in named if any(word in n for word in no_decay)]
    main = {"params": decayed, "weight_decay": 0.1}  # healthy: groups-upside-down
    # main = {"params": decayed, "weight_decay": 0.0}  # sick: groups-upside-down
    rest = {"params": others, "weight_decay": 0.0}  # healthy: groups-upside-down
    # rest = {"params": others, "weight_decay": 0.1}  # sick: groups-upside-down
    groups = [main, rest]  # healthy: group-forgotten
    # groups = [main]  # sick: group-forgotten
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))


def make(seed=0, vocab_size=40, context=16, width=32, heads=2, layers=2, dropout=0.1):
    torch.manual_seed(seed)
    model = Transformer(vocab_size, context, width, heads, layers, dropout)
    optimizer = configure(model)
    # optimizer = [optimizer, torch.optim.SGD(model.decoder.parameters(), lr=1e-2)]  # sick: parameters-twice
    first = optimizer[0] if isinstance(optimizer, list) else optimizer
    scheduler = SequentialLR(
        first,
        [
            LinearLR(first, start_factor=0.1, total_iters=warmup),
            CosineAnnealingLR(first, T_max=steps - warmup, eta_min=1e-4),
        ],
        milestones=[warmup],
    )
    data = torch.randint(vocab_size, (context + 1, 64))
    epoch = 0

    def train_step():
        columns = data[:, torch.randint(data.size(1), (4,))]
        model.train()
        output = model(columns[:-1])
        loss = F.cross_entropy(output.view(-1, vocab_size), columns[1:].reshape(-1))
        model.zero_grad()
        loss.backward()
        first.step()
        scheduler.step()  # healthy: warm-up-per-epoch
        # if epoch: scheduler.step()  # sick: warm-up-per-epoch
        # first.param_groups[1]["lr"] = 1e-3  # sick: one-group-scheduled

    return {
        "model": model,
        "optimizer": optimizer,
        "train_step": train_step,
        "schedule": scheduler,
        "schedule_bounds": (1e-4, 1e-3),
        "steps": steps,
        "vocab_size": vocab_size,
        "context": context,
    }
