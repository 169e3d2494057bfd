"""Fetching from a package index: by pip itself, here out of a folder, and nothing that comes is run."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from handmade import package_index

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="there is no pip here")
SETUP = b"import os, setuptools\nopen(os.environ['HANDMADE_TEST_RAN'], 'w').close()\nsetuptools.setup()\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, where pip looks and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    with tarfile.open(folder / "handmadetest-1.0.tar.gz", "w:gz") as archive:
        for name, content in (("setup.py", SETUP), ("PKG-INFO", b"Name: handmadetest\nVersion: 1.0\n")):
            member = tarfile.TarInfo(f"handmadetest-1.0/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(folder / "handmadewheel-1.0-py3-none-any.whl", "w") as archive:
        about = "handmadewheel-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: handmadewheel\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        archive.writestr(f"{about}/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("HANDMADE_TEST_RAN", str(tmp_path / "ran"))
    (tmp_path / "here").mkdir()
    return folder


def test_a_source_package_comes_and_is_not_run(index: Path, tmp_path: Path) -> None:
    found = package_index.source("handmadetest==1.0", tmp_path / "here", 60)
    assert found.read_bytes() == (index / "handmadetest-1.0.tar.gz").read_bytes()
    assert not (tmp_path / "ran").exists()
    assert os.listdir(tmp_path / "here" / "scratch") == []


def test_a_wheel_comes(index: Path, tmp_path: Path) -> None:
    found = package_index.wheel("handmadewheel==1.0", tmp_path / "here", 60)
    assert found.read_bytes() == (index / "handmadewheel-1.0-py3-none-any.whl").read_bytes()


def test_what_pip_says_is_told(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=r"^pip: ERROR: No matching distribution found for handmadetest==2\.0$"):
        package_index.source("handmadetest==2.0", tmp_path / "here", 60)
    with pytest.raises(subprocess.TimeoutExpired):
        package_index.wheel("handmadewheel==1.0", tmp_path / "here", 0.01)
