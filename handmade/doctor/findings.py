"""What an examination says: findings, and the report that holds them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Verdict = Literal["sick", "suspicious", "not examined", "healthy"]
VERDICTS: tuple[Verdict, ...] = ("sick", "suspicious", "not examined", "healthy")
"""Worst first."""


@dataclass(frozen=True)
class Finding:
    """What one check has to say."""

    check: str
    """The check's name."""
    verdict: Verdict
    measured: str = ""
    """What was measured, with its number."""
    expected: str = ""
    """What a healthy patient would have shown."""
    cause: str = ""
    """What brings such a measurement about, and why it matters."""
    remedy: str = ""
    """What to change. One line."""
    reference: str = ""
    """Where the idea can be read."""
    question: str = ""
    """Of a suspicious finding: what only the person can answer, with the `expect` that answers it."""
    where: str = ""
    """The module, layer or line in which it is."""
    value: float | None = None
    """The number that decided."""
    limit: float | None = None
    """The number that it was compared with."""
    seconds: float = 0.0
    """How long the check took."""


class NotExamined(Exception):
    """Raised inside a check that cannot be made; its text is the reason, said to the person."""


def healthy(measured: str, expected: str = "", **details: Any) -> Finding:
    """All is well. The name and the reference are put in by the examination."""
    return Finding("", "healthy", measured, expected, **details)


def sick(measured: str, expected: str, cause: str, remedy: str, **details: Any) -> Finding:
    """Something is wrong for certain."""
    return Finding("", "sick", measured, expected, cause, remedy, **details)


def suspicious(measured: str, expected: str, cause: str, remedy: str, question: str, **details: Any) -> Finding:
    """It may be wrong: what was meant decides. `question` ends with the `expect=` that answers it."""
    return Finding("", "suspicious", measured, expected, cause, remedy, question=question, **details)


@dataclass(frozen=True)
class Report:
    """All findings of an examination, worst first."""

    patient: str
    """What was examined, in words."""
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    """How the patient was adapted to: how it is called, what it returns, what was cut down."""
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    def of(self, verdict: Verdict) -> list[Finding]:
        """The findings of one verdict."""
        return [finding for finding in self.findings if finding.verdict == verdict]

    @property
    def sick(self) -> list[str]:
        """The names of the checks that found something wrong."""
        return [finding.check for finding in self.of("sick")]

    @property
    def suspicious(self) -> list[str]:
        """The names of the checks that have a question."""
        return [finding.check for finding in self.of("suspicious")]

    def __getitem__(self, check: str) -> Finding:
        """The finding of a check. Raises KeyError with the checks that there are."""
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(f"{check}: not in this report, which has {', '.join(f.check for f in self.findings)}")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "patient": self.patient,
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
            "versions": self.versions,
            "counts": {verdict: len(self.of(verdict)) for verdict in VERDICTS},
            "findings": [asdict(replace(finding, seconds=round(finding.seconds, 3))) for finding in self.findings],
        }


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sick before suspicious before not examined before healthy; else as they came."""
    return tuple(sorted(findings, key=lambda finding: VERDICTS.index(finding.verdict)))
