"""What a norm is taken over."""

from __future__ import annotations

from handmade.doctor.checks.base import Check

CHECKS: tuple[Check, ...] = ()
