"""The doctor: find the mistakes that do not crash, in anyone's model and training code.

    report = handmade.doctor.examine(model, vocab_size=65, context=64)
    for finding in report.findings: print(finding.verdict, finding.check, finding.measured)
    handmade.doctor.assert_healthy(model, vocab_size=65, context=64)         # in your own tests

A model is examined from outside, by what it answers: it need not be made of our parts.
"""

from __future__ import annotations

from handmade.doctor.checks.base import Check, check
from handmade.doctor.examination import assert_healthy, examine
from handmade.doctor.findings import Finding, NotExamined, Report, healthy, sick, suspicious
from handmade.doctor.given import EXPECTATIONS, Given
from handmade.doctor.patient import Patient

__all__ = [
    "EXPECTATIONS",
    "Check",
    "Finding",
    "Given",
    "NotExamined",
    "Patient",
    "Report",
    "assert_healthy",
    "check",
    "examine",
    "healthy",
    "sick",
    "suspicious",
]
