"""What evaluation, best weights and checkpoints leave behind."""

from __future__ import annotations

from handmade.doctor.checks.base import Check

CHECKS: tuple[Check, ...] = ()
