"""A step of the optimizer: what is added up, clipped, scheduled and decayed."""

from __future__ import annotations

from handmade.doctor.checks.base import Check

CHECKS: tuple[Check, ...] = ()
