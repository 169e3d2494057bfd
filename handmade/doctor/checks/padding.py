"""Padding is never seen and never real."""

from __future__ import annotations

from handmade.doctor.checks.base import Check

CHECKS: tuple[Check, ...] = ()
