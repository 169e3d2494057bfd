"""Figure 5. Tokens a second when sampling one stream: with the cache, without it, and Hugging Face's `generate`.

The shape is the preset `shakespeare`'s; Hugging Face has a GPT-2 of the same layers, heads, width, context and
vocabulary. Both have random weights, which cost the same as trained ones. Then the rate around token 300 and token
1,000, where the window has been full several times.
"""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.record import said, save, spread
from handmade.errors import optional
from handmade.generation import SamplingConfig, generate, stream
from handmade.models import GPT, GPTConfig
from handmade.presets import find

VOCABULARY, ROUNDS = 65, 7
SAMPLING = SamplingConfig(temperature=0.8, top_k=50)


def rate(model: GPT, prompt: int, tokens: int) -> float:
    """Tokens a second with the cache, a prompt of so many tokens included, as Hugging Face's is."""
    began = time.perf_counter()
    generate(model, [[1] * prompt], tokens, SAMPLING, seed=0)
    return tokens / (time.perf_counter() - began)


def full_rate(model: GPT, cache: bool) -> float:
    """Tokens a second while the context is full, or nearly: the last 24 before the window turns. The prompt is taken in
    before the first of them, with the cache and without."""
    times = []
    for _ in stream(model, [[1] * (model.config.context - 25)], 25, SAMPLING, seed=0, cache=cache):
        times.append(time.perf_counter())
    return 24 / (times[-1] - times[0])


def rate_of_hugging_face(model: object, prompt: int, tokens: int) -> float:
    """Tokens a second of `generate` with its cache, sampled the same way."""
    inputs = torch.ones(1, prompt, dtype=torch.int64)
    began = time.perf_counter()
    model.generate(  # type: ignore[attr-defined]
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=True,
        temperature=0.8,
        top_k=50,
        pad_token_id=0,
    )
    return tokens / (time.perf_counter() - began)


def hugging_face(layers: int, heads: int, width: int, context: int) -> object:
    """A GPT-2 of that shape with random weights; nothing is downloaded. Raises ResourceError without transformers."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        raise optional("transformers", "bench", "The comparison with Hugging Face") from None
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=context, n_embd=width, n_layer=layers, n_head=heads, eos_token_id=None
    )
    return GPT2LMHeadModel(config).eval()


def late_rates(model: GPT) -> tuple[float, float]:
    """Tokens a second over tokens 200 to 456 and 872 to 1,128: whole turns of the window around 300 and 1,000."""
    times = []
    for _ in stream(model, [[1]], 1130, SAMPLING, seed=0):
        times.append(time.perf_counter())
    return 256 / (times[456] - times[200]), 256 / (times[1128] - times[872])


def main() -> None:
    torch.manual_seed(0)
    shapes = {"shakespeare": dict(find("shakespeare").model), "6 layers x 384": dict(find("nanogpt-gpu").model)}
    figures: dict[str, object] = {"vocabulary": VOCABULARY, "sampling": "temperature 0.8, top-k 50, one stream"}
    for name, shape in shapes.items():
        model = GPT(GPTConfig(vocab_size=VOCABULARY, **shape)).eval()
        context = model.config.context
        size = (shape["layers"], shape["heads"], shape["width"], context)
        other = hugging_face(*size)
        half = context // 2
        found: dict[str, list[float]] = {
            key: [] for key in ("cached", "uncached", "hugging_face", "full", "at_300", "at_1000")
        }
        for round_ in range(ROUNDS + 1):
            with torch.inference_mode():
                measured = {
                    "cached": rate(model, half, half),
                    "hugging_face": rate_of_hugging_face(other, half, half),
                    "full": full_rate(model, cache=True),
                    "uncached": full_rate(model, cache=False),
                }
                if round_ % 2:
                    measured["at_300"], measured["at_1000"] = late_rates(model)
            if round_:  # the first round warms up
                for key, value in measured.items():
                    found[key].append(value)
        medians = {key: statistics.median(values) for key, values in found.items()}
        figures[name] = {
            "tokens_per_second": {key: spread(values) for key, values in found.items()},
            "cached_over_uncached_at_full_context": medians["full"] / medians["uncached"],
            "whole_turns_over_uncached_at_full_context": medians["at_300"] / medians["uncached"],
            "cached_over_hugging_face": medians["cached"] / medians["hugging_face"],
            "at_1000_over_at_300": medians["at_1000"] / medians["at_300"],
        }
        print(name)
        for key, values in found.items():
            print("  " + said(key, spread(values), "tokens/s"))
        for key, value in figures[name].items():  # type: ignore[attr-defined]
            if isinstance(value, float):
                print(f"  {key}: {value:.2f}")
    save("sampling", "tokens a second, one stream", figures)
