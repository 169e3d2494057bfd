"""What all tests share: the corpus, a cache of their own, one thread (two make tiny tensors slower)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

# A shell that starts the tests in the background has SIGINT ignored in all that it starts, and there is no Ctrl-C then:
# not here, nor in the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# With it nothing waits in a buffer, and what goes wrong when the buffer is written at the end is not seen.
os.environ.pop("PYTHONUNBUFFERED", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` run where there is one."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Token files of tests do not end up in the user's cache."""
    os.environ["HANDMADE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shakespeare() -> Path:
    """The Tiny Shakespeare file, where a folder in HANDMADE_DATA, or ../shared/data, has it."""
    here = Path(__file__).parents[1].parent / "shared" / "data"
    for folder in [*map(Path, os.environ.get("HANDMADE_DATA", "").split(os.pathsep)), here]:
        if str(folder) and (folder / "tinyshakespeare.txt").exists():
            return folder / "tinyshakespeare.txt"
    pytest.skip("no tinyshakespeare.txt: name its folder in HANDMADE_DATA")
