"""Several small batches for one step, as on a small machine: plain SGD with momentum."""

import torch
import torch.nn.functional as F

from zoo.fused import GPT, Config

MISTAKES = {
    "zero-grad-inside": "accumulation",
    "zero-grad-by-hand-inside": "accumulation",
    "not-divided": "accumulation",
    "divided-twice": "accumulation",
    "clip-inside": "clipping",
    "averaged-after-clipping": "clipping",
}
ALSO: dict[str, tuple[str, ...]] = {}

accumulation_steps = 4


def make(seed=0, vocab_size=40, context=16, width=32, heads=4, layers=2, dropout=0.1):
    torch.manual_seed(seed)
    model = GPT(Config(vocab_size, context, width, heads, layers, dropout))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = torch.randint(vocab_size, (1000,))

    def loader():
        while True:
            starts = torch.randint(len(data) - context, (2,))
            rows = torch.stack([data[i : i + context + 1] for i in starts])
            yield rows[:, :-1], rows[:, 1:]

    batches = loader()

    def train_step():
        model.train()
        optimizer.zero_grad()
        for _ in range(accumulation_steps):
            inputs, targets = next(batches)
            # optimizer.zero_grad()  # sick: zero-grad-inside
            # for p in model.parameters(): p.grad = None  # sick: zero-grad-by-hand-inside
            logits = model(inputs)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss = loss / accumulation_steps  # healthy: not-divided, averaged-after-clipping
            loss.backward()
            # torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)  # sick: clip-inside
        # for p in model.parameters(): p.grad /= accumulation_steps  # sick: divided-twice
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)  # healthy: clip-inside
        # for p in model.parameters(): p.grad /= accumulation_steps  # sick: averaged-after-clipping
        optimizer.step()

    return {"model": model, "optimizer": optimizer, "train_step": train_step}
