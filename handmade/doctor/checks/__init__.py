"""Every check that there is, in the order in which they are made."""

from __future__ import annotations

from handmade.doctor.checks import (
    company,
    ends,
    groups,
    half,
    keeping,
    learning,
    losses,
    modes,
    norms,
    order,
    padding,
    parameters,
    rates,
    running,
    sampling,
    scores,
    sight,
    splits,
    start,
    steps,
    texts,
)
from handmade.doctor.checks.base import Check

MODULES = (
    sight,
    order,
    ends,
    company,
    norms,
    start,
    half,
    scores,
    parameters,
    modes,
    padding,
    losses,
    steps,
    rates,
    groups,
    running,
    learning,
    keeping,
    splits,
    texts,
    sampling,
)
ALL: tuple[Check, ...] = tuple(check for module in MODULES for check in module.CHECKS)
BY_NAME: dict[str, Check] = {check.name: check for check in ALL}
