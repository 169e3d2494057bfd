"""Issue 5, figure 3. Decoding with the cache against decoding without it, and how long 2,000 sentences take.

The model is a modern `Seq2Seq` of 2 + 2 layers, width 256, with random weights, which cost the same as trained ones.
But they end a sentence where they like, so the end is never written here and the limit decides: 24 tokens for the 64
sentences; 12 for each of the 2,000, whose sources have 5 to 15 tokens. So no sentence leaves its batch early, and
the 12 steps stand for 10 tokens, the end, and a step in which the search makes sure.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from typing import Any

import torch

from benchmarks.record import said, save, spread
from handmade.models.seq2seq import Seq2Seq, Seq2SeqConfig
from handmade.translating import END, decode

SHAPE: dict[str, Any] = {
    "vocab_size": 6000,
    "source_vocab_size": 8000,
    "context": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "heads": 4,
    "width": 256,
    "norm": "rms",
    "norm_placement": "pre",
    "positions": "rotary",
}


def endless(shape: dict[str, Any]) -> Seq2Seq:
    """A model of that shape that never writes the end."""
    model = Seq2Seq(Seq2SeqConfig(**shape), torch.Generator().manual_seed(0)).eval()
    model.head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.tensor([END]), -math.inf))
    return model


def sources(count: int, shortest: int, longest: int, vocab_size: int) -> list[list[int]]:
    """Sentences of random tokens; so many tokens each, the end among them."""
    draw = random.Random(0)
    lengths = [draw.randint(shortest, longest) for _ in range(count)]
    return [[draw.randrange(4, vocab_size) for _ in range(length - 1)] + [END] for length in lengths]


def seconds(model: Seq2Seq, sentences: list[list[int]], tokens: int, **settings: Any) -> float:
    """How long it takes to decode the sentences to so many tokens each."""
    began = time.perf_counter()
    found = decode(model, sentences, most=tokens, **settings)
    taken = time.perf_counter() - began
    assert all(len(best.tokens) == tokens for best, *_ in found)
    return taken


def measure(shape: dict[str, Any], batch: int, tokens: int, many: int, limit: int, rounds: int) -> dict[str, Any]:
    """The figures: `batch` sentences of `tokens` tokens both ways, then `many` sentences with 4 beams."""
    model = endless(shape)
    figures: dict[str, Any] = {"shape": shape, "parameters": sum(part.numel() for part in model.parameters())}
    few = sources(batch, tokens, tokens, shape["source_vocab_size"])
    for name, beams in (("greedy", 1), ("beam 4", 4)):
        found: dict[str, list[float]] = {"cached": [], "uncached": []}
        for round_ in range(rounds + 1):
            for key, times in found.items():
                taken = seconds(model, few, tokens, beams=beams, rows=batch, cache=key == "cached")
                if round_:  # the first round warms up
                    times.append(taken)
        ratios = [slow / fast for fast, slow in zip(*found.values(), strict=True)]
        medians = {key: statistics.median(times) for key, times in found.items()}
        figures[f"{batch} sentences of {tokens} tokens, {name}"] = {
            "seconds": {key: spread(times) for key, times in found.items()},
            "cached_over_uncached": medians["uncached"] / medians["cached"],
            "cached_over_uncached_by_rounds": spread(ratios),
        }
        print(f"{batch} sentences of {tokens} tokens, {name}")
        for key, times in found.items():
            print("  " + said(key, spread(times), "s"))
        print("  " + said("cached is faster by", spread(ratios), "times"))
    half, more = limit // 2 - 1, limit + 3
    crowd = sources(many, half, more, shape["source_vocab_size"])
    times = [seconds(model, crowd, limit, beams=4) for _ in range(max(1, rounds // 2))]
    figures[f"{many} sentences of {half} to {more} tokens, {limit} steps, beam 4"] = {"seconds": spread(times)}
    print(said(f"{many} sentences, beam 4", spread(times), "s"))
    return figures


def main() -> None:
    figures = measure(SHAPE, batch=64, tokens=24, many=2000, limit=12, rounds=5)
    save("translating", "seconds to decode sentences, with the cache and without", figures)
