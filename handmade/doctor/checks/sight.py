"""What a position sees: the past, all of it, in order, and never the future."""

from __future__ import annotations

from handmade.doctor.checks.base import Check

CHECKS: tuple[Check, ...] = ()
