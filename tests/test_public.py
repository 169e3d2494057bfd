"""What `import handmade as hm` promises: its names, their docstrings, and that importing does nothing."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import handmade as hm
from handmade import jobs

ROOT = Path(__file__).parents[1]


def in_a_fresh_python(code: str) -> Any:
    """What `code` leaves in `found`, run by itself."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json\nprint(json.dumps(found))"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warning either
    return json.loads(done.stdout)


# --- names -----------------------------------------------------------------------------------------------------


def test_every_public_name_is_there():
    assert list(hm.__all__) == sorted(set(hm.__all__))
    for name in hm.__all__:
        assert getattr(hm, name) is not None
    assert set(hm.__all__) <= set(dir(hm))
    assert isinstance(hm.__version__, str)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'handmade' has no attribute 'GTP'"):
        _ = hm.GTP  # type: ignore[attr-defined]


def test_names_come_from_where_they_live():
    for name in hm.__all__:
        value = getattr(hm, name)
        if isinstance(value, types.ModuleType):
            assert value.__name__ == f"handmade.{name}"
        else:
            assert getattr(sys.modules[value.__module__], name) is value


def public() -> dict[str, Any]:
    """Every public class and function, those of the two large folders of parts too."""
    found = {name: getattr(hm, name) for name in hm.__all__}
    for folder in (hm.layers, hm.optimizers, hm.models):
        found |= {f"{folder.__name__}.{name}": getattr(folder, name) for name in folder.__all__}
    return found


@pytest.mark.parametrize("name", list(public()))
def test_everything_public_is_explained(name):
    value = public()[name]
    if not isinstance(value, types.ModuleType | type | types.FunctionType):
        return  # a constant
    own = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
    assert own, f"{name} has no docstring"
    written_by_dataclass = own.startswith(f"{getattr(value, '__name__', '')}(")
    assert not written_by_dataclass, f"{name} has no docstring"


def test_every_module_is_explained():
    for path in (ROOT / "handmade").rglob("*.py"):
        first = path.read_text(encoding="utf-8").lstrip()
        assert first.startswith('"""'), path


def test_signatures_are_readable():
    # A person asks help(hm.GPT); the type of every parameter of what is public is written down.
    for name, value in public().items():
        if isinstance(value, types.FunctionType):
            bare = [p.name for p in inspect.signature(value).parameters.values() if p.annotation is p.empty]
            assert bare == [], name


# --- importing does nothing ------------------------------------------------------------------------------------


def test_importing_loads_nothing_heavy():
    found = in_a_fresh_python("import handmade, handmade.errors, handmade.cli, sys\nfound = sorted(sys.modules)")
    heavy = {"torch", "numpy", "matplotlib", "safetensors", "tensorboard", "transformers", "psutil", "hypothesis"}
    assert heavy.isdisjoint(found)


def test_importing_everything_changes_nothing():
    found = in_a_fresh_python(
        """
import logging, os, pkgutil, random, signal, sys, warnings
import numpy, torch
import rich.style  # it draws a number for itself from Python's generator; nothing of ours does

warnings.filterwarnings("ignore", "Please use the new API")  # PyTorch 2.9 about the question below

def state():
    return [
        torch.get_rng_state().tolist(), repr(random.getstate()), repr(numpy.random.get_state()),
        torch.get_num_threads(), str(torch.get_default_dtype()), str(torch.get_default_device()),
        torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(), torch.cuda.is_initialized(),
        repr(logging.root.handlers), logging.root.level, repr(warnings.filters), repr(sys.excepthook),
        repr(signal.getsignal(signal.SIGINT)), repr(signal.getsignal(signal.SIGTERM)), dict(os.environ), os.getcwd(),
    ]

before = state()
import importlib, handmade
names = [part.name for part in pkgutil.walk_packages(handmade.__path__, "handmade.") if "__main__" not in part.name]
for name in names:
    importlib.import_module(name)
after = state()
found = {
    "names": names,
    "changed": [index for index, (a, b) in enumerate(zip(before, after)) if a != b],
    "loaded": [name for name in ("matplotlib.pyplot", "tensorboard", "transformers", "IPython") if name in sys.modules],
}
"""
    )
    assert len(found["names"]) > 30
    assert found["changed"] == []
    assert found["loaded"] == []


# --- the surface of the design, small --------------------------------------------------------------------------


def test_the_surface(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = hm.GPTConfig(vocab_size=65, context=16, layers=2, heads=2, width=16)
    model = hm.GPT(config)
    tokens = torch.randint(65, (2, 16))
    assert model(tokens).shape == (2, 16, 65)
    with hm.kernels("reference"):
        assert not hm.GPT(config).fused
    with hm.attention.record() as maps:
        model(tokens)
    assert len(maps) == 2

    assert issubclass(hm.layers.LayerNorm, torch.nn.Module)
    assert issubclass(hm.layers.LSTM, torch.nn.Module)
    assert issubclass(hm.optimizers.AdamW, torch.optim.Optimizer)
    assert issubclass(hm.optimizers.Muon, torch.optim.Optimizer)

    text = "To be, or not to be: that is the question. " * 40
    letters = hm.CharTokenizer.train([text])
    assert letters.decode(letters.encode("not to be")) == "not to be"
    assert len(hm.ByteTokenizer().encode("é")) == 2

    Path("book.txt").write_text(text, encoding="utf-8")
    data = hm.data.prepare(["book.txt"], "cache")
    task = hm.LanguageTask(data, context=16)
    model = hm.GPT(config.replace(vocab_size=data.tokenizer.vocab_size))
    best = hm.Trainer(model, task, hm.TrainConfig(steps=2, batch=2, precision="float32")).train(progress=False)
    assert 0 < best < 10

    small = ("train.steps=1", "train.compile=no", "train.precision=float32")
    shape = ("model.layers=1", "model.heads=1", "model.width=8", "model.context=16")
    job = jobs.new(jobs.Request(data=("book.txt",), set=(*small, *shape), out=Path("runs/book")), say=lambda *_: None)
    job.write()
    job.trainer.train(progress=False)
    run = hm.load("runs/book")
    assert run.model.config.vocab_size == run.tokenizer.vocab_size
    assert run.config
    options = {"tokens": 20, "temperature": 0.8, "top_k": 5, "seed": 0}
    assert run.generate("To", **options) == run.generate("To", **options)
    assert len(run.generate("To", **options)) == 20
