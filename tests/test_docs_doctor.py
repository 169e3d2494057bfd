"""docs/doctor.md: its tables are those of the code, and its examples say what they say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from handmade import doctor
from handmade.doctor import checks

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "doctor.md"


@pytest.fixture(scope="module")
def script() -> Any:
    """docs/doctor.py. By its path: `docs` is no package."""
    spec = importlib.util.spec_from_file_location("docs_doctor", ROOT / "docs" / "doctor.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_code(script):
    page = PAGE.read_text(encoding="utf-8")
    assert script.filled(page, run=False) == page, "write it anew: python -m docs.doctor"
    for one in checks.ALL:
        assert f"\n| `{one.name}` | " in page
    assert page.count("<!-- output of: ") == 3
    assert page.count("```text\n") == 3


@pytest.mark.slow
def test_what_is_printed_is_what_the_page_says(script):
    """But for times, and the last digits of what is measured."""
    page = PAGE.read_text(encoding="utf-8")

    def told(text: str) -> list[str]:
        return [re.sub(r"[\d.]+(e-?\d+)?", "N", part) for part in re.findall(r"```text\n(.*?)```", text, re.DOTALL)]

    assert told(script.filled(page)) == told(page), "write it anew: python -m docs.doctor"


def test_a_check_of_fifteen_lines(capsys):
    """The one on the page: it finds what it is for, and nothing in a model that has it not."""
    import torch

    page = PAGE.read_text(encoding="utf-8")
    block = next(text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "@check(" in text)
    body = block[block.index("@check(") : block.index("\n\n\nreport")]
    assert len(body.splitlines()) <= 15
    names = {"model": torch.nn.Sequential(torch.nn.Embedding(65, 65))}
    exec(block, names)
    assert capsys.readouterr().out == "healthy\n"

    class Restless(torch.nn.Module):
        def forward(self, tokens):
            return torch.randn(*tokens.shape, 65)

    report = doctor.examine(Restless(), vocab_size=65, context=8, only=[names["twins"]])
    assert report.sick == ["twins"]
    assert report["twins"].reference == "a lecture of mine, slide 12"
