"""Whether the whole can learn at all."""

from __future__ import annotations

from handmade.doctor.checks.base import Check

CHECKS: tuple[Check, ...] = ()
