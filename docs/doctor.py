"""Writes into docs/doctor.md what comes from the code: every check, what a function may return, what may be declared;
and what the commands on the page print.

    python -m docs.doctor

The page's own examples are run: a block that begins with `# my_model.py` is that file. A test fails where the tables
are not those of the code.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import os
import re
import shlex
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

from handmade import cli, jobs
from handmade.doctor import EXPECTATIONS, checks, given

PAGE = Path(__file__).with_name("doctor.md")
WIDTH = 118  # columns of what is printed
FILE = re.compile(r"^```python\n(# (\w+\.py)\n.*?)^```", re.MULTILINE | re.DOTALL)
MARKED = re.compile(
    r"(?<=^<!-- )(?!end)(?P<what>[^>\n]*?)(?P<between> -->\n)(?P<text>.*?)(?=^<!-- end -->)", re.MULTILINE | re.DOTALL
)


def cells(*texts: str) -> str:
    """A row of a table."""
    return "| " + " | ".join(" ".join(text.split()).replace("|", "\\|") for text in texts) + " |\n"


def table(*titles: str) -> str:
    return cells(*titles) + cells(*["---"] * len(titles))


def every_check() -> str:
    """Check, what is wrong, what it needs, quick or not, source."""
    lines = [table("check", "what is wrong where it finds something", "needs", "quick", "source")]
    for check in checks.ALL:
        needs = ", ".join("model" if need == "callable" else f"`{need}`" for need in check.needs) or "nothing"
        lines.append(cells(f"`{check.name}`", check.title, needs, "yes" if check.quick else "", check.reference))
    return "".join(lines)


def fields() -> str:
    """Name, and the sentence under it in `Given`."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(given.Given))).body
    assert isinstance(body, ast.ClassDef)
    lines = [table("name", "what it is")]
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            said = ast.literal_eval(after.value) if isinstance(after, ast.Expr) else PLAIN[field.target.id]
            lines.append(cells(f"`{field.target.id}`", said))
    return "".join(lines)


# For names that say it to a reader of the code.
PLAIN = {
    "vocab_size": "How many tokens there are; needed where it cannot be seen from the model.",
    "encode": "`encode(text) -> ids`",
    "decode": "`decode(ids) -> text`",
}


def expectations() -> str:
    lines = [table("name", "what it declares")]
    return "".join([*lines, *(cells(f"`{name}`", meaning) for name, meaning in EXPECTATIONS.items())])


TABLES = {"checks": every_check, "given": fields, "expectations": expectations}


# ---------------------------------------------------------------------------------------------------------------
# What the commands print


SMALL = (
    "model.layers=2", "model.heads=4", "model.width=64", "model.context=64",
    "train.steps=20", "train.compile=no", "train.precision=float32",
)  # fmt: skip


@contextlib.contextmanager
def workplace(page: str) -> Iterator[Path]:
    """A folder with the files of the page, and a run, as the working directory."""
    before = os.getcwd(), dict(os.environ)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for text, file in FILE.findall(page):
            (folder / file).write_text(text, encoding="utf-8")
        prose = "".join((PAGE.parent / f"{page}.md").read_text(encoding="utf-8") for page in ("parts", "training"))
        (folder / "mybook.txt").write_text(prose, encoding="utf-8")
        os.chdir(folder)
        os.environ["COLUMNS"] = str(WIDTH)
        try:
            shape = ("layers=2", "heads=4", "width=64", "context=64")
            words = [
                *(f"model.{one}" for one in shape),
                "train.steps=20",
                "train.compile=no",
                "train.precision=float32",
            ]
            job = jobs.new(jobs.Request(data=("mybook.txt",), set=tuple(words)), lambda *_: None)
            job.write()
            assert job.trainer is not None
            job.trainer.train(progress=False)
            yield folder
        finally:
            os.chdir(before[0])
            os.environ.clear()
            os.environ.update(before[1])


def printed(command: str) -> str:
    """What a command prints, as a block."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        cli.main(shlex.split(command)[1:])
    return f"```text\n{output.getvalue()}```\n"


def filled(page: str, run: bool = True) -> str:
    """The page with what is between its markers written anew; what commands print only with `run`."""

    def anew(found: re.Match[str]) -> str:
        what = found["what"]
        if what in TABLES:
            text = "\n" + TABLES[what]() + "\n"
        elif run and what.startswith("output of: "):
            text = "\n" + printed(what.removeprefix("output of: ")) + "\n"
        else:
            text = found["text"]
        return what + found["between"] + text

    with workplace(page) if run else contextlib.nullcontext():
        return MARKED.sub(anew, page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {PAGE}")
