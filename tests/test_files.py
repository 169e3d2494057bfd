"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from handmade.errors import ResourceError
from handmade.files import readable, whole


def test_a_file_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "text"
    with whole(path, "a text") as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert os.listdir(path.parent) == ["text"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, ConnectionResetError])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"old")

    def write() -> None:
        with whole(path, "a text") as file:
            file.write(b"new")
            raise failure

    with pytest.raises(failure):
        write()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["text"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_says_what_would_have_been_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(ResourceError, match=r"the tokens of x\.txt \(1\.2 MB\) in .*Free some"),
        whole(tmp_path / "a", "the tokens of x.txt", 1_200_000) as file,
    ):
        file.write(b"new")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    path = tmp_path / "a"
    (tmp_path / f".a.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(ResourceError, match="No disk space for a text"), whole(path, "a text") as file:
        file.write(bytes(1 << 20))
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(ResourceError, match=r"cannot write a text there .*Choose another folder"),
        whole(tmp_path / "file" / "a", "a text"),
    ):
        pass


def test_what_a_killed_process_left_is_swept_up(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".text.{gone.pid}.part").write_bytes(b"left over")
    (tmp_path / f".text.{os.getppid()}.part").write_bytes(b"of one that runs")
    (tmp_path / f".other.{gone.pid}.part").write_bytes(b"of another file")
    with whole(tmp_path / "text", "a text"):
        pass
    left = {"text", f".text.{os.getppid()}.part", f".other.{gone.pid}.part"}
    assert set(os.listdir(tmp_path)) == left


def test_sizes_for_a_person() -> None:
    assert [readable(size) for size in (12, 1_000, 1_115_394, 4_200_000_000)] == [
        "12 bytes",
        "1.0 kB",
        "1.1 MB",
        "4.2 GB",
    ]
