"""What is found out about the machine, on machines that are made up."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch

from handmade import machine
from handmade.errors import ResourceError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_the_device_that_was_asked_for(two_gpus: None) -> None:
    assert machine.find_device("auto") == torch.device("cuda")
    for name in ("cpu", "cuda", "cuda:0", "cuda:1"):
        assert machine.find_device(name) == torch.device(name)


def test_a_device_that_is_not_there_is_said_with_those_that_are(two_gpus: None) -> None:
    with pytest.raises(ResourceError, match=r"device cuda:2: not on this machine, which has cpu, cuda, cuda:0, cuda:1"):
        machine.find_device("cuda:2")
    with pytest.raises(ResourceError, match=r"Did you mean cuda\?"):
        machine.find_device("cudo")


def test_without_a_gpu(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.find_device("auto") == CPU
    with pytest.raises(ResourceError, match=r"device cuda: not on this machine, which has cpu\."):
        machine.find_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert machine.find_device("auto") == torch.device("mps")


@pytest.mark.parametrize(("gain", "kind"), [(3.0, "bfloat16"), (1.2, "float32"), (0.1, "float32")])
def test_a_cpu_takes_bfloat16_where_it_is_faster_with_it(
    monkeypatch: pytest.MonkeyPatch, gain: float, kind: str
) -> None:
    monkeypatch.setattr(machine, "bfloat16_gain", lambda: gain)
    assert machine.find_precision("auto", CPU) == kind
    assert machine.find_precision("float32", CPU) == "float32"
    assert machine.find_precision("bfloat16", CPU) == "bfloat16"


def test_the_gain_is_measured() -> None:
    assert 0.001 < machine.bfloat16_gain(64) < 1000


@pytest.mark.parametrize(("has", "kind"), [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_takes_float16_where_it_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch, has: bool, kind: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    assert machine.find_precision("auto", GPU) == kind


def test_float16_is_refused_on_a_cpu() -> None:
    with pytest.raises(ResourceError, match=r"no fast kernels for it\. Use bfloat16"):
        machine.find_precision("float16", CPU)


def compilers(folder: Path, *names: str) -> str:
    """A PATH on which there are these programs and no others."""
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return str(folder)


def headers(folder: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    (folder / "include").mkdir()
    if there:
        (folder / "include" / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(folder / name))


@pytest.mark.skipif(os.name == "nt", reason="programs have other names there")
def test_why_nothing_can_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers(tmp_path, monkeypatch, there=True)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", compilers(tmp_path, "clang++"))
    # Inductor calls g++, or what CXX names, and nothing else.
    assert machine.compiler_missing(CPU) == "there is no C++ compiler"
    with pytest.raises(ResourceError, match=r"train\.compile = yes: there is no C\+\+ compiler\. .* train\.compile=no"):
        machine.require_compiler(CPU)
    monkeypatch.setenv("CXX", "clang++")
    assert machine.compiler_missing(CPU) is None
    machine.require_compiler(CPU)
    monkeypatch.delenv("CXX")
    compilers(tmp_path, "g++")
    assert machine.compiler_missing(CPU) is None
    monkeypatch.setenv("CXX", "another")
    assert machine.compiler_missing(CPU) == "there is no C++ compiler"
    assert "MPS" in str(machine.compiler_missing(torch.device("mps")))


@pytest.mark.skipif(os.name == "nt", reason="programs have other names there")
def test_what_a_gpu_needs_to_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers(tmp_path, monkeypatch, there=True)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", compilers(tmp_path, "gcc"))
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    assert "Triton" in str(machine.compiler_missing(GPU))
    monkeypatch.setattr(machine, "find_spec", lambda name: name)
    assert machine.compiler_missing(GPU) is None
    (tmp_path / "gcc").unlink()
    assert "C compiler" in str(machine.compiler_missing(GPU))


def test_without_the_headers_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers(tmp_path, monkeypatch, there=False)
    monkeypatch.setattr(machine, "_found", lambda *names: True)
    assert machine.compiler_missing(CPU) == "Python's headers (python3-dev) are missing"


GIB = 2**30


def test_memory_is_what_the_system_says(tmp_path: Path) -> None:
    free = machine.free_memory(CPU, limits=tmp_path)  # where no limits are
    assert 0.5 * psutil.virtual_memory().available < free < psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("place", "limit", "used"),
    [("", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes")],
)
def test_memory_within_the_limit_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, limit: str, used: str
) -> None:
    class Memory:
        available = 64 * GIB

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    (folder / limit).write_text(f"{4 * GIB}\n")
    (folder / used).write_text(f"{3 * GIB}\n")
    (folder / "memory.stat").write_text(f"anon {GIB}\ninactive_file {2 * GIB}\nactive_file 7\n")
    assert machine.free_memory(CPU, tmp_path) == 3 * GIB  # 1 GiB, and 2 that only remember files
    (folder / "memory.stat").write_text("anon 5\n")
    assert machine.free_memory(CPU, tmp_path) == GIB
    (folder / used).write_text(f"{5 * GIB}\n")
    assert machine.free_memory(CPU, tmp_path) == 0
    (folder / limit).write_text("max\n")
    assert machine.free_memory(CPU, tmp_path) == 64 * GIB


def test_a_results_file_says_where_it_was_measured() -> None:
    described = machine.describe()
    assert described["torch"] == torch.__version__
    assert described["cores"] in range(1, (os.cpu_count() or 1) + 1)
    assert all(described.values())
