"""What a temperature or a filter makes of a distribution, and what it should. B rows, V vocabulary."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from handmade.doctor.findings import NotExamined
from handmade.doctor.patient import Patient
from handmade.doctor.sampler import MOST_DRAWN, NOTHING, OFF, Sampler, roles_of


class Prompt:
    """What the token after one prompt is drawn from."""

    def __init__(self, patient: Patient, sampler: Sampler, most: int = MOST_DRAWN) -> None:
        self.sampler, self.most = sampler, most
        self.row = patient.tokens(1, patient.context if patient.form.full else 2)[0]
        logits = patient.logits(self.row[None])[:, -1, : patient.vocab_size]
        self.learnt = logits.double().cpu().softmax(-1)
        self.cache = {"use_cache": False} if "use_cache" in sampler.roles else {}

    def shares(self, **options: Any) -> tuple[Tensor, int]:
        """Options -> probabilities (1, V), and of how many draws: 0 where they were seen."""
        found, many = self.sampler.distribution(self.row, self.most, **options, **self.cache)
        return found[None], many


class Filter:
    """The person's `filters` on made-up logits."""

    def __init__(self, patient: Patient) -> None:
        assert patient.given.filters is not None
        self.function = patient.given.filters
        self.roles = roles_of(self.function)
        size = patient.given.vocab_size or (patient.vocab_size if patient.failure is None else 32)
        self.logits = made_up(max(8, min(size, 1_000)))
        self.probabilities = False
        self.probabilities = self._looks_normal(self.raw())

    @property
    def before(self) -> Tensor:
        return self.logits.double().softmax(-1)

    def raw(self, **options: Any) -> Tensor:
        found = {}
        for role, parameter in self.roles.items():
            if role in options:
                found[parameter.name] = options[role]
            elif role in OFF and parameter.default not in OFF[role]:
                found[parameter.name] = NOTHING.get(role, self.logits.shape[-1])
        got = self.function(self.logits.clone(), **found)
        if not torch.is_tensor(got) or got.shape != self.logits.shape:
            raise NotExamined(f"filters gives no tensor {tuple(self.logits.shape)} for one")
        return got.detach().double().cpu()

    def shares(self, **options: Any) -> tuple[Tensor, int]:
        """Options -> probabilities (B, V), and 0: nothing is drawn."""
        got = self.raw(**options)
        return (got / got.sum(-1, keepdim=True) if self.probabilities else got.softmax(-1)), 0

    def _looks_normal(self, got: Tensor) -> bool:
        return bool((got >= 0).all() and ((got.sum(-1) - 1).abs() < 1e-3).all())


def made_up(size: int) -> Tensor:
    """Logits with what goes wrong: ordinary rows, one sure token, all the same, two the same, some left out already.
    Shapes: -> (7, size)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, size, generator=generator) * 1.5
    logits[2, 3] = 20.0
    logits[3] = 0.5
    logits[4, :2] = 8.0
    logits[5, 0], logits[5, 1], logits[5, 2], logits[5, 3:] = 3.0, 2.0, 1.0, -2.0 - torch.arange(size - 3) / size
    logits[6, 1:3] = -torch.inf
    return logits


def powered(shares: Tensor, power: float) -> Tensor:
    raised = shares**power
    return raised / raised.sum(-1, keepdim=True)


def distance(got: Tensor, wanted: Tensor, drawn: int = 0) -> float:
    """Half the sum of differences, the worst row's; 1 for what are no numbers. Of `drawn` draws, by how much it is
    more than what chance brings:  E |p' - p| = sqrt(2 p / (pi n)), at most 2 p."""
    apart = (got - wanted).abs().sum(-1) / 2
    if drawn:
        chance = torch.minimum(2 * wanted, (2 * wanted * (1 - wanted) / (math.pi * drawn)).sqrt()).sum(-1) / 2
        apart = (apart - chance).clamp_min(0)
    return float(apart.nan_to_num(1.0).max())


def wrong(before: Tensor, after: Tensor, role: str, value: float, drawn: bool, slack: float) -> str:
    """What is wrong with what is left, in words; nothing where it is well. Shapes: (B, V), (B, V)."""
    for row, (p, q) in enumerate(zip(before, after, strict=True)):
        which = f" in row {row} of {len(before)}" if len(before) > 1 else ""
        if not bool(q.isfinite().all()) or float(q.sum()) <= 0:
            return f"no token is left{which}"
        stays = q > 0
        least = float(p[stays].min())
        if drawn:  # an unlikely token may not have come
            many = int(stays.sum())
            if role == "top_k" and many > value:
                return f"{many} different tokens were drawn"
            likelier = torch.where(p[None] > p[:, None] * (1 + 1e-6), p[None], 0).sum(-1)
            if role == "top_p" and float(likelier[stays].max()) > value + 0.01:
                return "tokens were drawn beyond the likeliest"
            continue
        if bool((~stays).any()) and float(p[~stays].max()) > least * (1 + 1e-6):
            return f"likelier tokens are dropped than are kept{which}"
        if role == "top_k":
            there = int((p > 0).sum())
            many, ties = int(stays.sum()), int((p >= least * (1 - 1e-6)).sum())
            if not min(value, there) <= many <= max(min(value, there), ties) or many > ties:
                return f"{many} tokens stay{which}"
            if many > value and int((p > least * (1 + 1e-6)).sum()) >= value:
                return f"{many} tokens stay{which}"
        elif float(p[stays].sum()) < value - slack:
            return f"only {float(p[stays].sum()):.2f} of the probability stays{which}"
        if float((q / q.sum() - p * stays / (p * stays).sum()).abs().max()) > 0.02:
            return f"what stays is in other proportions{which}"
    return ""
