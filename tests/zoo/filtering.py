"""Temperature, top-k and top-p as a function of logits, apart from any model."""

import torch

MISTAKES = {
    "power-forgotten": "temperature",
    "kth-of-the-first-row": "filters",
    "one-too-few": "filters",
    "zeroed-before-softmax": "filters",
    "crossing-token-dropped": "filters",
    "every-token-dropped": "filters",
    "cumulated-from-the-least": "filters",
}
ALSO: dict[str, tuple[str, ...]] = {}


def filters(logits, temperature=1.0, top_k=0, top_p=1.0):
    """Logits (B, V) to probabilities (B, V)."""
    probs = torch.softmax(logits / temperature, dim=-1)  # healthy: power-forgotten
    # probs = torch.softmax(logits, dim=-1) / temperature  # sick: power-forgotten
    # probs = probs / probs.sum(dim=-1, keepdim=True)  # sick: power-forgotten
    if top_k > 0:
        k = min(top_k, probs.shape[-1])  # healthy: one-too-few
        # k = min(top_k, probs.shape[-1]) - 1  # sick: one-too-few
        kth = torch.topk(probs, k).values[:, -1:]  # healthy: kth-of-the-first-row
        # kth = torch.topk(probs, k).values[0, -1]  # sick: kth-of-the-first-row
        probs = torch.where(probs < kth, torch.zeros_like(probs), probs)  # healthy: zeroed-before-softmax
        # probs = torch.softmax(probs.masked_fill(probs < kth, 0.0), dim=-1)  # sick: zeroed-before-softmax
    if top_p < 1.0:
        ranked, order = torch.sort(probs, dim=-1, descending=True)  # healthy: cumulated-from-the-least
        # ranked, order = torch.sort(probs, dim=-1)  # sick: cumulated-from-the-least
        above = torch.cumsum(ranked, dim=-1) > top_p
        above[:, 1:] = above[:, :-1].clone()  # healthy: crossing-token-dropped, every-token-dropped
        above[:, 0] = False  # healthy: every-token-dropped
        ranked = ranked.masked_fill(above, 0.0)
        probs = torch.zeros_like(probs).scatter(1, order, ranked)
    return probs / probs.sum(dim=-1, keepdim=True)


def make(vocab_size=30):
    return {"filters": filters, "vocab_size": vocab_size}
