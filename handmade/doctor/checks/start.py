"""How a model begins: its first loss, how its activations grow, what half precision does to it."""

from __future__ import annotations

from handmade.doctor.checks.base import Check

CHECKS: tuple[Check, ...] = ()
