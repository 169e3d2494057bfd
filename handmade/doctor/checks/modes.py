"""Training and evaluation: dropout, and what else differs between them."""

from __future__ import annotations

from handmade.doctor.checks.base import Check

CHECKS: tuple[Check, ...] = ()
