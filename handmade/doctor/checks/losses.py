"""Between logits and loss: which targets, over what, divided by how many."""

from __future__ import annotations

from handmade.doctor.checks.base import Check

CHECKS: tuple[Check, ...] = ()
