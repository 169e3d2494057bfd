"""A loop without any optimizer: the weights are moved by hand, the loss is written out."""

import torch

from zoo.heads import GPT

MISTAKES = {
    "gradients-kept": "accumulation",
    "gradients-summed": "accumulation",
}
ALSO: dict[str, tuple[str, ...]] = {}


def make(seed=0, vocab_size=40, context=16, width=32, heads=2, layers=2, dropout=0.1):
    torch.manual_seed(seed)
    model = GPT(vocab_size, context, width, heads, layers, dropout)
    data = torch.randint(vocab_size, (64, context + 1))
    n = 3

    def cross_entropy(logits, targets):
        logprobs = logits.log_softmax(-1)
        return -logprobs.gather(-1, targets[..., None]).mean()

    def train_step():
        for _ in range(n):
            rows = data[torch.randint(len(data), (4,))]
            x, y = rows[:, :-1], rows[:, 1:]
            logits, _ = model(x, y)
            loss = cross_entropy(logits, y) / n  # healthy: gradients-summed
            # loss = cross_entropy(logits, y)  # sick: gradients-summed
            loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.05 * p.grad
                p.grad = None  # healthy: gradients-kept

    return {"model": model, "train_step": train_step, "vocab_size": vocab_size, "context": context}
