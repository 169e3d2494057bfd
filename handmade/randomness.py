"""Random numbers: a generator of its own for each purpose, so that drawing more of one never changes another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def seeded(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator for a purpose ("initialization", "data", "dropout", "sampling"): one that no other seed or
    purpose has."""
    number = hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8]
    return torch.Generator(device).manual_seed(int.from_bytes(number, "little") >> 1)


class DropoutGenerator:
    """A run's own random numbers for dropout, which can only draw from torch's global generators.

        with generator.lent():          # the global generators are the run's
            loss = model(...)
        torch.rand(3)                   # they are the caller's again, as if nothing had been drawn

    `cpu` and `gpu` are the states that the run has come to; `gpu` is None on a CPU.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.cpu = seeded(seed, "dropout").get_state()
        on_gpu = device.type != "cpu"
        self.gpu = seeded(seed, "dropout on device", device).get_state() if on_gpu else None

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Inside, torch's global generators are the run's own; outside they are the caller's."""
        cpu, gpu = torch.get_rng_state(), self._global_gpu()
        self._set(self.cpu, self.gpu)
        try:
            yield
        finally:
            self.cpu, self.gpu = torch.get_rng_state(), self._global_gpu()
            self._set(cpu, gpu)

    def _global_gpu(self) -> Tensor | None:
        if self.device.type == "cpu":
            return None
        return torch.mps.get_rng_state() if self.device.type == "mps" else torch.cuda.get_rng_state(self.device)

    def _set(self, cpu: Tensor, gpu: Tensor | None) -> None:
        torch.set_rng_state(cpu)
        if gpu is not None and self.device.type == "mps":
            torch.mps.set_rng_state(gpu)
        elif gpu is not None:
            torch.cuda.set_rng_state(gpu, self.device)

    def state(self) -> dict[str, Tensor | None]:
        """For a checkpoint."""
        return {"cpu": self.cpu, "gpu": self.gpu}

    def restore(self, state: dict[str, Tensor | None]) -> None:
        """Go on from a `state`."""
        cpu = state["cpu"]
        assert cpu is not None
        self.cpu, self.gpu = cpu, state["gpu"]
