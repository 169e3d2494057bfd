"""Lines of a poem, one a row: the model sees from the ids what is padding, which stands on the left."""

import torch
import torch.nn as nn
import torch.nn.functional as F

MISTAKES = {
    "newline-is-padding": "padding-token",
    "ids-mask-inverted": "padding-mask",
    "ids-mask-forgotten": "padding-mask",
    "first-rows-see-nothing": "masked-row",
}
ALSO: dict[str, tuple[str, ...]] = {
    "ids-mask-inverted": ("past",),
}

POEM = """tyger tyger burning bright
in the forests of the night
what immortal hand or eye
could frame thy fearful symmetry
"""


class Tokenizer:
    def __init__(self, text):
        self.letters = ["<pad>", *sorted(set(text))]  # healthy: newline-is-padding
        # self.letters = sorted(set(text))  # sick: newline-is-padding
        self.ids = {letter: i for i, letter in enumerate(self.letters)}

    def encode(self, text):
        return [self.ids[letter] for letter in text]

    def decode(self, ids):
        return "".join(self.letters[i] for i in ids)


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x, mask):
        B, T, C = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (C // self.heads) ** -0.5
        y = torch.softmax(scores.masked_fill(~mask[:, None], float("-inf")), dim=-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.relu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self, vocab_size, context, width, heads, layers, padding):
        super().__init__()
        self.context, self.padding = context, padding
        self.tokens = nn.Embedding(vocab_size, width)
        self.places = nn.Parameter(torch.randn(context, width) * 0.1)
        self.layers = nn.ModuleList([Layer(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size)
        nn.init.normal_(self.tokens.weight, std=0.1)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, ids):
        T = ids.shape[1]
        real = ids != self.padding  # healthy: ids-mask-inverted
        # real = ids == self.padding  # sick: ids-mask-inverted
        mask = torch.ones(T, T, dtype=torch.bool, device=ids.device).tril() & real[:, None, :]
        # mask = torch.ones(T, T, dtype=torch.bool, device=ids.device).tril()[None]  # sick: ids-mask-forgotten
        itself = torch.eye(T, dtype=torch.bool, device=ids.device)
        mask = mask | itself  # healthy: first-rows-see-nothing
        x = self.tokens(ids) + self.places[:T]
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(self.norm(x))


def make(seed=0, context=36, width=32, heads=2, layers=2):
    torch.manual_seed(seed)
    tokenizer, padding = Tokenizer(POEM), 0
    lines = [tokenizer.encode(line + "\n") for line in POEM.splitlines()]
    rows = torch.tensor([[padding] * (context + 1 - len(line)) + line for line in lines])
    inputs, targets = rows[:, :-1], rows[:, 1:].masked_fill(rows[:, 1:] == padding, -100)
    model = Model(len(tokenizer.letters), context, width, heads, layers, padding)
    return {
        "model": model,
        "vocab_size": len(tokenizer.letters),
        "padding": padding,
        "tokenizer": tokenizer,
        "train_data": POEM,
        "batches": [(inputs, targets)],
    }
