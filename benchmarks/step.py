"""Figure 4. One training step of the nanogpt-cpu shape: handmade against `torch.nn` and `torch.optim`.

Both do forward, loss, backward, clipping at 1.0 and AdamW, eager, float32, on the same batches, in turn. torch's side
takes the fastest AdamW of torch.optim on this machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.record import said, save, spread
from benchmarks.torch_model import TorchGPT
from handmade.layers import cross_entropy
from handmade.models import GPT, GPTConfig
from handmade.optimizers import OptimizerConfig, build_optimizers
from handmade.presets import find

VOCABULARY, ROUNDS, STEPS = 65, 45, 10


def ours(batch: torch.Tensor) -> Callable[[], None]:
    """A step of the handmade model and optimizer."""
    preset = find("nanogpt-cpu")
    model = GPT(GPTConfig(vocab_size=VOCABULARY, **preset.model))
    optimizer = build_optimizers(model, OptimizerConfig(**preset.optimizer))[0]
    parameters = list(model.parameters())

    def step() -> None:
        cross_entropy(model(batch[:, :-1]), batch[:, 1:]).backward()
        clip(parameters)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def clip(parameters: list[torch.nn.Parameter]) -> None:
    """As `Trainer.clip_gradients` does it."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = float(torch.stack(torch._foreach_norm(gradients)).norm())
    if norm > 1.0:
        torch._foreach_mul_(gradients, 1.0 / norm)


def theirs(batch: torch.Tensor, **kind: bool) -> Callable[[], None]:
    """A step of the torch.nn model and torch.optim's AdamW (`kind`: foreach or fused)."""
    shape = find("nanogpt-cpu").model
    model = TorchGPT(VOCABULARY, *(shape[name] for name in ("context", "layers", "heads", "width")))
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), **kind)

    def step() -> None:
        logits = model(batch[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    torch.manual_seed(0)
    batch = torch.randint(VOCABULARY, (12, 65))
    contenders = {
        "handmade": ours(batch),
        "torch.nn, AdamW": theirs(batch),
        "torch.nn, AdamW foreach": theirs(batch, foreach=True),
        "torch.nn, AdamW fused": theirs(batch, fused=True),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for step in contenders.values():
        for _ in range(STEPS):
            step()
    for _ in range(ROUNDS):
        for name, step in contenders.items():
            began = time.perf_counter()
            for _ in range(STEPS):
                step()
            times[name].append(1000 * (time.perf_counter() - began) / STEPS)
    fastest = min((name for name in times if name != "handmade"), key=lambda name: statistics.median(times[name]))
    ratios = [mine / other for mine, other in zip(times["handmade"], times[fastest], strict=True)]
    figures = {
        "milliseconds": {name: spread(values) for name, values in times.items()},
        "fastest_of_torch": fastest,
        "ratio_of_medians": statistics.median(times["handmade"]) / statistics.median(times[fastest]),
        "ratio_by_round": spread(ratios),
    }
    for name, values in figures["milliseconds"].items():
        print(said(name, values, "ms"))
    print(said(f"handmade / {fastest}", figures["ratio_by_round"]))
    save("step", "milliseconds of a training step of the nanogpt-cpu shape", figures)
