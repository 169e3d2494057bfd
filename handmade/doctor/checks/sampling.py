"""Drawing tokens: the same model as in training, and the distribution that was asked for."""

from __future__ import annotations

from handmade.doctor.checks.base import Check

CHECKS: tuple[Check, ...] = ()
