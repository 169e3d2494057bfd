"""Every parameter is one, learns, and is shared where that was meant."""

from __future__ import annotations

from handmade.doctor.checks.base import Check

CHECKS: tuple[Check, ...] = ()
