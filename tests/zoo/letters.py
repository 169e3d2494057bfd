"""A recurrent network that writes letter by letter, drawn with numpy; its state is what it remembers."""

import numpy as np
import torch
import torch.nn as nn

MISTAKES = {
    "state-not-carried": "cached-generation",
    "prompt-not-read": "sampling-mask",
    "shares-divided": "temperature",
    "power-upside-down": "temperature",
    "k-of-the-lowest": "filters",
}
ALSO: dict[str, tuple[str, ...]] = {}


class Net(nn.Module):
    def __init__(self, vocab_size, width):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, vocab_size)

    def forward(self, tokens, state=None):
        y, _ = self.rnn(self.embedding(tokens), state)
        return self.out(y)

    def step(self, tokens, state):
        y, state = self.rnn(self.embedding(tokens), state)
        return self.out(y)[:, -1], state


def write(net, prompt, count, temperature=1.0, top_k=None):
    """One prompt (1, T), one letter after the other."""
    net.eval()
    letters = prompt[0].tolist()
    with torch.no_grad():
        logits, state = net.step(prompt, None)  # healthy: prompt-not-read
        # logits, state = net.step(prompt[:, -1:], None)  # sick: prompt-not-read
        for _ in range(count):
            p = torch.softmax(logits[0].double(), dim=-1).numpy()
            p = p ** (1 / temperature)  # healthy: shares-divided, power-upside-down
            # p = p / temperature  # sick: shares-divided
            # p = p**temperature  # sick: power-upside-down
            if top_k is not None:
                worst = np.argsort(p)[: max(0, len(p) - top_k)]  # healthy: k-of-the-lowest
                # worst = np.argsort(p)[top_k:]  # sick: k-of-the-lowest
                p[worst] = 0.0
            letter = np.random.choice(len(p), p=p / p.sum())  # noqa: NPY002
            letters.append(int(letter))
            # state = None  # sick: state-not-carried
            logits, state = net.step(torch.tensor([[letter]]), state)
    return torch.tensor([letters])


def make(seed=0, vocab_size=30, width=32):
    torch.manual_seed(seed)
    net = Net(vocab_size, width).eval()
    return {
        "model": net,
        "vocab_size": vocab_size,
        "context": 16,
        "generate": lambda tokens, count, temperature=1.0, top_k=None: write(net, tokens, count, temperature, top_k),
    }
