"""Text and tokens: splits, vocabularies, windows, and the way there and back."""

from __future__ import annotations

from handmade.doctor.checks.base import Check

CHECKS: tuple[Check, ...] = ()
