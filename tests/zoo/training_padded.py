"""Problems of different lengths, filled up with a padding token: a Dataset, a DataLoader and a recurrent model."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

MISTAKES = {
    "padded-loss-counts-padding": "loss-padding",
    "padded-accuracy-counts-padding": "loss-padding",
    "padded-mean-of-rows": "loss-mean",
    "padded-divided-by-all": "loss-mean",
    "padded-mean-of-batches": "loss-mean",
    "padded-sigmoid-first": "loss-input",
    "padded-model-softmax": "loss-input",
    "padded-squashed-logits": "one-batch",
    "padded-nothing-shifted": "targets",
    "padded-loader-draws-a-seed": "evaluation",
    "padded-best-detached": "best-weights",
    "padded-checkpoint-new-optimizer": "checkpoint",
}
ALSO: dict[str, tuple[str, ...]] = {}

PADDING = 0


class Problems(Dataset):
    """Copy what was read: `a b c = a b c`, with lengths of their own."""

    def __init__(self, count, vocab_size, longest, generator):
        self.rows = []
        for _ in range(count):
            length = int(torch.randint(2, longest + 1, (), generator=generator))
            word = torch.randint(2, vocab_size, (length,), generator=generator)
            self.rows.append(torch.cat([word, torch.tensor([1]), word]))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        return row[:-1], row[1:]  # healthy: padded-nothing-shifted
        # return row[:-1], row[:-1]  # sick: padded-nothing-shifted


def collate(rows):
    inputs, targets = zip(*rows, strict=True)
    pad = nn.utils.rnn.pad_sequence
    return pad(inputs, batch_first=True, padding_value=PADDING), pad(targets, batch_first=True, padding_value=PADDING)


class Recurrent(nn.Module):
    def __init__(self, vocab_size, width, dropout):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width, padding_idx=PADDING)
        self.dropout = nn.Dropout(dropout)
        self.rnn = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, tokens):
        hidden, _ = self.rnn(self.dropout(self.embedding(tokens)))
        logits = self.head(self.dropout(hidden))
        # logits = torch.softmax(logits, dim=-1)  # sick: padded-model-softmax
        # logits = torch.sigmoid(logits)  # sick: padded-squashed-logits
        return logits


def loss_of(logits, targets):
    # logits = torch.sigmoid(logits)  # sick: padded-sigmoid-first
    each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    scored = (targets != PADDING).float()  # healthy: padded-loss-counts-padding
    # scored = torch.ones_like(each)  # sick: padded-loss-counts-padding
    loss = (each * scored).sum() / scored.sum()
    # loss = ((each * scored).sum(1) / scored.sum(1)).mean()  # sick: padded-mean-of-rows
    # loss = (each * scored).mean()  # sick: padded-divided-by-all
    return loss


def make(seed=0, vocab_size=20, longest=6, width=32, dropout=0.1):
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    training = Problems(64, vocab_size, longest, order)
    validation = Problems(20, vocab_size, longest, order)
    loader = DataLoader(training, batch_size=8, shuffle=True, collate_fn=collate, generator=order)
    own = torch.Generator()  # a DataLoader draws a seed when it begins
    val_loader = DataLoader(validation, 8, collate_fn=collate, generator=own)  # healthy: padded-loader-draws-a-seed
    # val_loader = DataLoader(validation, 8, collate_fn=collate)  # sick: padded-loader-draws-a-seed
    model = Recurrent(vocab_size, width, dropout)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    best = {"accuracy": -1.0, "weights": None}

    def train_step(batch):
        inputs, targets = batch
        model.train()
        loss = loss_of(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss)

    def evaluate():
        model.eval()
        right = total = 0
        with torch.no_grad():
            for inputs, targets in val_loader:
                scored = targets != PADDING  # healthy: padded-accuracy-counts-padding
                # scored = torch.ones_like(targets, dtype=torch.bool)  # sick: padded-accuracy-counts-padding
                right += int((model(inputs).argmax(-1) == targets)[scored].sum())
                total += int(scored.sum())
        accuracy = right / total
        if accuracy > best["accuracy"]:
            best["accuracy"] = accuracy
            weights = dict(model.named_parameters())
            best["weights"] = {k: v.clone() for k, v in weights.items()}  # healthy: padded-best-detached
            # best["weights"] = {k: v.detach() for k, v in weights.items()}  # sick: padded-best-detached
        return accuracy

    def evaluate_loss():
        model.eval()
        total = count = 0
        with torch.no_grad():
            for inputs, targets in val_loader:
                loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=PADDING)
                scored = int((targets != PADDING).sum())
                # scored = 1  # sick: padded-mean-of-batches
                total, count = total + float(loss) * scored, count + scored
        return total / count

    # evaluate = evaluate_loss  # sick: padded-mean-of-batches

    def save(path):
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "torch": torch.get_rng_state(), "order": order.get_state()}, path)

    def load(path):
        nonlocal optimizer
        state = torch.load(path)
        model.load_state_dict(state["model"])
        # optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)  # sick: padded-checkpoint-new-optimizer
        optimizer.load_state_dict(state["optimizer"])  # healthy: padded-checkpoint-new-optimizer
        torch.set_rng_state(state["torch"])
        order.set_state(state["order"])

    return {
        "model": model, "vocab_size": vocab_size, "context": 2 * longest, "padding": PADDING,
        "optimizer": optimizer, "batches": loader, "loss": loss_of, "train_step": train_step, "evaluate": evaluate,
        "best": lambda: best["weights"], "save": save, "load": load, "expect": {"evaluation_draws": False},
    }  # fmt: skip
