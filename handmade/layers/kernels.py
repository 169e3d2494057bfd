"""Which of its two forms a part takes: the formula (`reference`) or PyTorch's fused kernel for it (`fused`).

The choice is fixed when a part is made, so that a compiled model has no switch in it:

    with kernels("reference"):
        model = GPT(config)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from handmade.errors import ConfigError

_choice: ContextVar[str] = ContextVar("kernels", default="fused")


@contextmanager
def kernels(choice: str) -> Iterator[None]:
    """Parts made inside take this form. Raises ConfigError unless `choice` is "reference" or "fused"."""
    if choice not in ("reference", "fused"):
        raise ConfigError(f"kernels({choice!r}): must be 'reference' or 'fused'.")
    token = _choice.set(choice)
    try:
        yield
    finally:
        _choice.reset(token)


def fused_chosen() -> bool:
    """Whether a part made now takes the fused form."""
    return _choice.get() == "fused"


class Module(torch.nn.Module):
    """What every part made by hand stands on: `torch.nn.Module` (parameters, state dict) and the choice of
    form in `self.fused`. Nothing of a layer's arithmetic comes from here."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = fused_chosen()
