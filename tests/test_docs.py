"""The pages say what is so: their Python runs, their commands exist, their files, names and options are there."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import shlex
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

import handmade
from handmade import cli, presets, settings
from handmade.models import FAMILIES
from handmade.request import Request, find_task
from handmade.tasks import TASKS, LanguageTask, TranslationTask

ROOT = Path(__file__).parents[1]
# log.md tells what was tried: some of it is gone, and rightly so.
PAGES = sorted(page for page in ROOT.glob("docs/*.md") if page.name != "log.md")
ALL = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "README.md"]
RUN = [page for page in [*PAGES, ROOT / "CONTRIBUTING.md"] if "```python\n" in page.read_text(encoding="utf-8")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
each_page = pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def quoted(text: str) -> list[str]:
    """What stands between backticks."""
    return [found.replace("\n", " ") for found in re.findall(r"`([^`]+)`", text)]


# ---------------------------------------------------------------------------------------------------------------
# Python


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a run of it, as the pages expect."""
    folder = tmp_path_factory.mktemp("docs")
    lines = [f"Once there were {n} mice. Then came a cat, and there were {n * n % 7}." for n in range(150)]
    (folder / "mybook.txt").write_text("\n".join(lines), encoding="utf-8")
    shape = ("layers=1", "heads=2", "width=16", "context=16")
    words = ["train", str(folder / "mybook.txt"), "--out", str(folder / "runs" / "mybook")]
    words += [word for option in shape for word in ("--set", f"model.{option}")]
    words += ["--set", "train.steps=3", "--set", "train.compile=no", "--set", "train.precision=float32"]
    cli.main(words)
    pairs = "".join(f"{who}は{what}です。\t{who} {what}\n" for who in "私彼猫犬魚" for what in "猫犬魚鳥人")
    (folder / "pairs.tsv").write_text(pairs, encoding="utf-8")
    words = ["train", str(folder / "pairs.tsv"), "--task", "translation"]
    for option in ("model.width=16", "model.heads=2", "train.steps=2", "train.precision=float32"):
        words += ["--set", option]
    cli.main([*words, "--out", str(folder / "runs" / "tatoeba-ja-en")])
    return folder


# What a page must have printed: that its task was learnt, say.
PRINTED = {"library.md": "abd -> dba"}


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_python_on_a_page_runs(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    text = page.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": page.stem}
    for found in FENCE.finditer(text):
        if found[1] == "python":
            file = re.match(r"# (\w+\.py)\n", found[2])  # a block that begins with a name is that file
            if file:
                (place / file[1]).write_text(found[2], encoding="utf-8")
            lines_before = text[: found.start(2)].count("\n")
            # Empty lines in front, so that a traceback names the line of the page.
            exec(compile("\n" * lines_before + found[2], str(page), "exec"), names)
    for name in [name for name in names if name.startswith("test_")]:  # a test that a page shows how to write
        for options in ({"form": "reference"}, {"form": "fused"}) if signature(names[name]).parameters else ({},):
            names[name](**options)
    assert PRINTED.get(page.name, "") in capsys.readouterr().out


def test_every_public_name_is_explained() -> None:
    explained = set(re.findall(r"\bhm\.(\w+)", (ROOT / "docs" / "library.md").read_text(encoding="utf-8")))
    assert set(handmade.__all__) <= explained, "public, and not in docs/library.md"
    assert explained <= set(handmade.__all__), "in docs/library.md, and not public"


# ---------------------------------------------------------------------------------------------------------------
# Commands


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every line in a fenced block, and of every `handmade ...` with arguments in the text."""
    for kind, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if kind in ("", "sh"):
            for line in block.splitlines():
                if re.match(r"(\.venv/bin/)?(handmade|make|python3?|pytest) ", line):
                    yield shlex.split(line.removeprefix(".venv/bin/"), comments=True)
    for text in quoted(prose(page)):
        if text.startswith("handmade ") and len(text.split()) > 2 and "..." not in text:
            yield shlex.split(text)


@each_page
def test_every_command_can_be_called(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[dict[str, Any]] = []
    real = cli.function_of

    def parsed_only(name: str) -> Any:
        function = real(name)

        @functools.wraps(function)
        def record(*data: Any, **options: Any) -> None:
            called.append({"command": name, "data": data, **options})

        return record

    monkeypatch.setattr(cli, "function_of", parsed_only)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for program, *words in commands(page):
        if program == "handmade":
            before = len(called)
            assert cli.run(words) == 0  # raises ConfigError for an option that there is not
            if words[0] in cli.COMMANDS and "--help" not in words:
                assert len(called) == before + 1
                check_settings(called[-1])
        elif program == "make":
            assert set(words) <= set(targets), words
        elif words[:1] == ["-m"] and words[1] not in ("pytest", "venv", "pip"):
            module = ROOT / words[1].replace(".", "/")
            assert module.with_suffix(".py").exists() or (module / "__main__.py").exists(), words
            for name in words[2:]:
                assert (module / f"{name}.py").exists(), words


def check_settings(call: dict[str, Any]) -> None:
    """The settings of a parsed command line: they build configs."""
    if call["command"] != "train":
        return
    preset = presets.find(call["preset"]) if call.get("preset") else None
    request = Request(data=call["data"], task=call.get("task"), source=call.get("source"), target=call.get("target"))
    kind = find_task(request) if call["data"] else LanguageTask
    family = call.get("model") or (preset.family if preset else kind.family)
    task = kind.settings
    layers = [{name: getattr(preset, name) for name in ("model", "train", "optimizer", "schedule")}] if preset else []
    settings.build(
        family,
        settings.merged(*layers, settings.from_words(call.get("set_") or (), family, task)),
        dict.fromkeys(settings.sizes_of(family), 65),
    )


def test_a_command_that_is_wrong_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in ("handmade train a.txt --minuets 3", "handmade train a.txt --set model.layrs=2", "make coffee"):
        page = tmp_path / "page.md"
        page.write_text(f"```sh\n{line}\n```\n", encoding="utf-8")
        with pytest.raises((handmade.HandmadeError, AssertionError)):
            test_every_command_can_be_called(page, monkeypatch)


# ---------------------------------------------------------------------------------------------------------------
# Options


@functools.cache
def options_script() -> Any:
    """docs/options.py. By its path: `docs` is no package."""
    spec = importlib.util.spec_from_file_location("docs_options", ROOT / "docs" / "options.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_options_is_that_of_the_code() -> None:
    script = options_script()
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "write it anew: python -m docs.options"


def test_the_table_has_every_option_of_every_family() -> None:
    tables = [entry for family in FAMILIES for entry in settings.classes(family).items()]
    tables += [("task", task.settings) for task in (LanguageTask, TranslationTask, *TASKS.values())]
    for entry in tables:
        assert entry in [shown[:2] for shown in options_script().TABLES]


@each_page
def test_every_option_that_is_named_exists(page: Path) -> None:
    tables = [settings.classes(family) for family in FAMILIES]
    known = {f"{table}.{name}" for one in tables for table, config in one.items() for name in config.annotations()}
    known |= {
        f"task.{name}"
        for task in (LanguageTask, TranslationTask, *TASKS.values())
        for name in task.settings.annotations()
    }
    named = [
        re.match(r"(?:--set )?((?:train|optimizer|schedule|task)\.\w+)(?:=|$)", text) for text in quoted(prose(page))
    ]
    assert {found[1] for found in named if found} <= known
    settled = [re.match(r"(?:--set )?(model\.\w+)=", text) for text in quoted(prose(page))]
    assert {found[1] for found in settled if found} <= known


# ---------------------------------------------------------------------------------------------------------------
# Files, links, names in the code


@each_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    for text in quoted(prose(page)):
        found = re.match(r"(?:handmade|tests|docs|benchmarks|\.ci)/[\w./-]*", text)
        if found:
            assert (ROOT / found[0]).exists(), text


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), target
        if anchor:
            assert anchor in anchors(goal), target


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_messages_that_are_explained_are_said_somewhere() -> None:
    said = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("handmade/**/*.py"))
    table = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").partition("## When something goes wrong")[2]
    messages = [
        message for cell in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for message in re.findall('"(.*?)"', cell)
    ]
    assert len(messages) > 8
    for message in messages:
        for part in message.split("..."):
            assert part.strip() in said, message


@functools.cache
def defined(path: Path) -> set[str]:
    """What a Python file defines: functions, classes, names, and `Class.member`."""
    found: set[str] = set()

    def walk(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(
                    prefix + name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)
                )

    walk(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


def places(text: str) -> Iterator[tuple[str, str]]:
    """(file, name) for every `file.py` followed by `names`, in one paragraph or table row; and `file.py::name`."""
    for paragraph in re.split(r"\n\n|\n(?=\|)|\n(?=- )|(?<=\.)\s", text):
        file = None
        for word in quoted(paragraph):
            path, colons, name = word.partition("::")
            if re.fullmatch(r"(handmade|tests|benchmarks|docs)/[\w/]+\.py", path):
                file = None if colons else path
                if colons:
                    yield path, name
            elif file and re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*(\(\))?", word):
                yield file, word.removesuffix("()")


@pytest.mark.parametrize("page", [ROOT / "docs" / "parts.md", ROOT / "docs" / "proof.md"], ids=lambda page: page.name)
def test_every_name_is_defined_where_the_page_says(page: Path) -> None:
    named = list(places(prose(page)))
    assert len(named) > 20
    missing = [f"{file}: {name}" for file, name in named if name not in defined(ROOT / file)]
    assert not missing
