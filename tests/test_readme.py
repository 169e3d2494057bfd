"""README.md says what results/ says."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_figures_and_sample_are_those_in_results(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.readme import PAGES, filled

    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert filled(text) == text, f"{page.name}: run: python -m benchmarks.readme"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "| what | measured | file |" in text
    assert "benchmarks.readme" in sys.modules
