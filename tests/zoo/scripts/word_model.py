"""A whole script in the older way: an LSTM over columns of text, its state carried along, weights moved by hand."""

import torch
import torch.nn as nn


class RNNModel(nn.Module):
    def __init__(self, ntoken, width, layers, dropout=0.2):
        super().__init__()
        self.ntoken, self.width, self.layers = ntoken, width, layers
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(ntoken, width)
        self.rnn = nn.LSTM(width, width, layers, dropout=dropout)
        self.decoder = nn.Linear(width, ntoken)

    def forward(self, input, hidden):
        output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
        decoded = self.decoder(self.drop(output))
        return torch.log_softmax(decoded.view(-1, self.ntoken), dim=1), hidden  # healthy: no-softmax
        # return decoded.view(-1, self.ntoken), hidden  # sick: no-softmax

    def init_hidden(self, rows):
        return torch.zeros(self.layers, rows, self.width), torch.zeros(self.layers, rows, self.width)


def batchify(data, rows):
    length = data.size(0) // rows
    return data.narrow(0, 0, length * rows).view(rows, -1).t().contiguous()


def get_batch(source, i):
    data = source[i : i + bptt]
    target = source[i + 1 : i + 1 + bptt].view(-1)  # healthy: one-step-too-far
    # target = source[i + 2 : i + 2 + bptt].view(-1)  # sick: one-step-too-far
    return data, target


if __name__ == "__main__":
    torch.manual_seed(1111)
    bptt, rows, lr = 12, 5, 1.0
    corpus = batchify(torch.randint(30, (3000,)), rows)
    model = RNNModel(30, 24, 2)
    criterion = nn.NLLLoss()
    for _ in range(1, 40):
        model.train()  # healthy: never-in-training
        # model.eval()  # sick: never-in-training
        hidden = model.init_hidden(rows)
        for i in range(0, corpus.size(0) - 2 * bptt, bptt):
            data, targets = get_batch(corpus, i)
            model.zero_grad()  # healthy: never-cleared
            hidden = tuple(h.detach() for h in hidden)
            output, hidden = model(data, hidden)
            loss = criterion(output, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)  # healthy: clipped-too-late
            for p in model.parameters():
                p.data.add_(p.grad, alpha=-lr)
            # torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)  # sick: clipped-too-late
