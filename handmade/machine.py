"""The machine: which device, which number type it is fast with, how much memory is free, whether it can compile."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import sys
import sysconfig
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

from handmade.errors import ResourceError, did_you_mean


def find_device(name: str) -> torch.device:
    """The device that `name` asks for; "auto" takes a GPU where there is one.
    Raises ResourceError for a device that is not there, naming those that are."""
    there = ["cpu"]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    if name == "auto":
        return torch.device("cuda" if "cuda" in there else there[-1])
    if name not in there:
        raise ResourceError(
            f"device {name}: not on this machine, which has {', '.join(there)}.{did_you_mean(name, there)}"
        )
    return torch.device(name)


def find_precision(name: str, device: torch.device) -> str:
    """`name`, or for "auto" the number type that matrix products are fastest in. Raises ResourceError for
    float16 on a CPU, which has no fast kernels for it."""
    if name == "float16" and device.type == "cpu":
        raise ResourceError("precision float16: a CPU has no fast kernels for it. Use bfloat16, or float32.")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device.type == "mps":
        return "float32"
    return "bfloat16" if bfloat16_gain() > 1.3 else "float32"


@functools.cache
def bfloat16_gain(size: int = 512) -> float:
    """How many times faster this CPU multiplies matrices in bfloat16 than in float32: the best of 15 each, in turn.

    The best and not the median: other processes only ever make a product slower, and two runs on a machine that is
    busy now and then should come to the same choice.
    """
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    matrices = {kind: torch.full((size, size), 0.5, dtype=kind) for kind in seconds}
    for _ in range(15):
        for kind, matrix in matrices.items():
            began = time.perf_counter()
            matrix @ matrix
            seconds[kind].append(time.perf_counter() - began)
    slow, fast = (min(times) for times in seconds.values())
    return slow / fast


def compiler_missing(device: torch.device) -> str | None:
    """Why torch.compile cannot work here, or None. It writes C++ for a CPU and Triton for a GPU; what is called from
    Python needs Python's headers on either."""
    if device.type == "mps":
        return "it is not reliable on MPS"
    if device.type == "cuda" and not (find_spec("triton") and _found("CC", "gcc", "clang", "cc")):
        return "Triton or a C compiler is missing"
    if device.type == "cpu" and not _found("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")):
        return "there is no C++ compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers (python3-dev) are missing"
    return None


def _found(variable: str, *usual: str) -> bool:
    """Whether there is the compiler that an environment variable names, or where it is not set one of the usual."""
    named = os.environ.get(variable)
    return any(shutil.which(name) for name in ([named] if named else usual))


def require_compiler(device: torch.device) -> None:
    """Raise ResourceError when torch.compile cannot work here."""
    missing = compiler_missing(device)
    if missing:
        raise ResourceError(f"train.compile = yes: {missing}. Install what is missing, or set train.compile=no.")


def free_memory(device: torch.device, limits: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that a run may take: of the GPU, or of main memory within this process's limits."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    # A container's own limit, as the two versions of control groups say it.
    for folder, limit, used in (
        (limits, "memory.max", "memory.current"),
        (limits / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # no such file; "max"
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            counts = dict(map(str.split, (folder / "memory.stat").read_text().splitlines()))
            # Files that were read are kept in memory and counted as used, until the room is needed.
            free = min(free, left + int(counts.get("inactive_file", 0)))
    return max(0, free)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, str | int]:
    """What a results file says about where it was measured."""
    import handmade

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    return {
        "processor": name,
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "handmade": handmade.__version__,
    }


def arithmetic_speed(device: torch.device, size: int = 1024) -> float:
    """Operations a second of this machine's matrix products, in the number type that "auto" precision takes: the best
    of ten, because other processes only ever make one slower and the size picked should not hang on a busy moment."""
    kind = getattr(torch, find_precision("auto", device))
    matrix = torch.full((size, size), 0.5, dtype=kind, device=device)
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        (matrix @ matrix).sum().item()  # .item() waits for a GPU
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)
