"""Matrices with one optimizer and all the rest with another, each with a rate of its own that falls in a line."""

import torch
import torch.nn.functional as F

from zoo.fused import GPT, Config

MISTAKES = {
    "one-never-cleared": "accumulation",
    "shared-parameters": "optimizer",
    "one-optimizer-forgotten": "optimizer",
    "first-group-alone": "schedule",
}
ALSO: dict[str, tuple[str, ...]] = {}


def make(seed=0, vocab_size=40, context=16, width=32, heads=4, layers=2, dropout=0.1):
    torch.manual_seed(seed)
    model = GPT(Config(vocab_size, context, width, heads, layers, dropout))
    matrices = [p for n, p in model.h.named_parameters() if p.dim() == 2]
    known = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in known]
    vectors = [p for p in rest if p.dim() == 1]  # healthy: shared-parameters
    # vectors = [p for p in rest if p.dim() == 1] + matrices[:2]  # sick: shared-parameters
    tables = [p for p in rest if p.dim() == 2]
    sgd = torch.optim.SGD(matrices, lr=0.02, momentum=0.95, nesterov=True)
    adam = torch.optim.Adam([{"params": tables, "lr": 0.02}, {"params": vectors}], lr=0.02)
    optimizers = [sgd, adam]  # healthy: one-optimizer-forgotten
    # optimizers = [adam]  # sick: one-optimizer-forgotten
    data = torch.randint(vocab_size, (64, context + 1))
    steps, done = 100, 0

    def rate(step):
        return 0.02 * (1 - step / steps)

    def train_step():
        nonlocal done
        rows = data[torch.randint(len(data), (4,))]
        logits = model(rows[:, :-1])
        loss = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:])
        loss.backward()
        for optimizer in optimizers:
            groups = optimizer.param_groups  # healthy: first-group-alone
            # groups = optimizer.param_groups[:1]  # sick: first-group-alone
            for group in groups:
                group["lr"] = rate(done)
            optimizer.step()
        cleared = optimizers  # healthy: one-never-cleared
        # cleared = optimizers[:1]  # sick: one-never-cleared
        for optimizer in cleared:
            optimizer.zero_grad()
        done += 1

    return {"model": model, "optimizer": optimizers, "train_step": train_step, "schedule": rate, "steps": steps}
