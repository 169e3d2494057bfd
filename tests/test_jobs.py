"""How a run is put together: what is asked for, the time that is left, whether compiling pays."""

from __future__ import annotations

import dataclasses
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import CONTEXT, small_gpt, small_trainer, text_data
from torch._dynamo.exc import TorchDynamoException

from handmade import corpora, data, jobs, machine, planning, sources
from handmade.errors import ConfigError, ResourceError
from handmade.jobs import Request, time_left
from handmade.models import (
    FAMILIES,
    BigramConfig,
    CountingConfig,
    GPTConfig,
    MLPConfig,
    RecurrentConfig,
    Seq2SeqConfig,
    Seq2SeqLSTMConfig,
)
from handmade.optimizers import OptimizerConfig
from handmade.rehearsal import Rehearsal
from handmade.settings import build, merged
from handmade.tasks import LanguageTask, language, sizes
from handmade.tasks.language import LanguageConfig
from handmade.training import TrainConfig, Trainer

# ---------------------------------------------------------------------------------------------------------------
# What is asked for


def test_the_command_of_a_request():
    request = Request(
        data=("my book.txt", "b.txt"),
        minutes=0.5,
        set=("model.layers=2", "train.seed=1"),
        start=Path("runs/a"),
        out=Path("x y"),
        force=True,
    )
    words = shlex.split(request.command())
    assert words[:4] == ["handmade", "train", "my book.txt", "b.txt"]
    assert words[4:] == [
        *("--minutes", "0.5", "--set", "model.layers=2", "--set", "train.seed=1"),
        *("--from", "runs/a", "--out", "x y", "--force"),
    ]
    assert Request(data=("a",)).command() == "handmade train a"
    assert list(Request(minutes=1, start=Path("a")).given()) == ["--minutes", "--from"]


# ---------------------------------------------------------------------------------------------------------------
# Time


def test_the_time_that_is_left(monkeypatch):
    """What has passed and what comes after is part of the time given, until half of it is gone."""
    monkeypatch.setattr(time, "perf_counter", lambda: 100.0)
    assert time_left(60, began=90.0) == 60 - 10 - jobs.CLOSING_SECONDS
    assert time_left(600, began=0.0) == 600 - 100 - jobs.CLOSING_SECONDS
    assert time_left(6, began=97.0) == 3
    assert time_left(6, began=97.0, evaluation=2.0) == 5
    assert time_left(60, began=0.0) == 30


def test_steps_fill_the_time(monkeypatch):
    """Steps and evaluations together last as long as there is, and no longer."""
    for seconds, step, evaluation in ((60.0, 0.1, 1.0), (10.0, 0.02, 3.0), (3600.0, 1.0, 20.0)):
        trainer = small_trainer(steps=7)
        planning.lay_out(trainer, seconds, planning.Measured(step, evaluation, 1.0, 0.0, 1))
        found = trainer.config
        evaluations = -(-found.steps // found.evaluate_every)
        assert seconds - 2 * step - evaluation < found.steps * step + evaluations * evaluation <= seconds
        assert evaluations * evaluation <= max(evaluation, planning.EVALUATION_SHARE * seconds)


def test_a_large_step_is_measured_by_its_parts(monkeypatch):
    """Of a step of forty micro-batches one and two are tried, and the others reckoned."""
    trainer = small_trainer(batch=2, tokens_per_step=40 * 2 * CONTEXT)
    tried = []

    def rehearse(steps):
        count = -(-(trainer.config.tokens_per_step or 1) // (2 * CONTEXT))
        tried.append(count)
        return [0.5 + 2.0 * count] * steps

    monkeypatch.setattr(trainer, "rehearse", rehearse)
    measured = planning.measure(trainer, trainer.task, spend=0.0)
    assert max(tried) == 2
    assert measured.step_seconds == pytest.approx(0.5 + 2.0 * 40)
    assert measured.tokens_per_second == pytest.approx(40 * 2 * CONTEXT / measured.step_seconds)
    assert trainer.config.tokens_per_step == 40 * 2 * CONTEXT


def test_memory_is_measured():
    with planning.peak_memory(torch.device("cpu")) as idle:
        time.sleep(0.02)
    with planning.peak_memory(torch.device("cpu")) as peak:
        block = np.ones(100_000_000, dtype=np.uint8)
        end = time.monotonic() + 5
        while peak.bytes < idle.bytes + 90e6 and time.monotonic() < end:  # on a busy machine it looks seldom
            time.sleep(0.005)
        del block
    assert 90e6 < peak.bytes - idle.bytes < 200e6


@pytest.mark.parametrize("shape", [{}, {"layers": 1}, {"layers": 5, "tied_head": False, "width": 32}])
def test_parameters_are_counted_without_making_them(shape):
    model = small_gpt(**shape)
    assert planning.parameters_of(model.config) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "config",
    [
        BigramConfig(11),
        CountingConfig(11),
        MLPConfig(11, window=3, width=5, hidden=7),
        RecurrentConfig(11, cell="rnn", width=6),
        RecurrentConfig(11, cell="lstm", width=6, layers=3),
        Seq2SeqConfig(11, 13, width=8, encoder_layers=3),
        Seq2SeqLSTMConfig(11, 13, width=8, layers=3),
        Seq2SeqLSTMConfig(11, 13, width=8, attention="multiplicative", layers=2),
    ],
)
def test_parameters_of_every_family_are_counted_without_making_them(config):
    (made,) = (made for made, settings in FAMILIES.values() if type(config) is settings)
    assert planning.parameters_of(config) == sum(parameter.numel() for parameter in made(config).parameters())


def kept_bytes(model, *tokens):
    """What the backward pass keeps of a batch, beside the weights: every piece of memory once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    pieces = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            pieces[storage.data_ptr()] = storage  # held, so that no other piece gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        torch.nn.functional.cross_entropy(model(*tokens).flatten(0, 1), tokens[-1].flatten())
    return sum(storage.nbytes() for storage in pieces.values())


@pytest.mark.parametrize(
    "config",
    [
        MLPConfig(11),
        MLPConfig(11, window=16, hidden=32),
        RecurrentConfig(11, cell="rnn"),
        RecurrentConfig(11, cell="rnn", layers=2, dropout=0.1),
        RecurrentConfig(11, cell="lstm"),
        RecurrentConfig(11, cell="lstm", layers=2, dropout=0.1),
    ],
)
def test_memory_is_foreseen(config):
    """Not less than the backward pass keeps, and not many times as much: its own gradients take room too."""
    (made,) = (made for made, settings in FAMILIES.values() if type(config) is settings)
    found = kept_bytes(made(config), torch.zeros(16, 64, dtype=torch.int64))
    foreseen = [planning.memory_needed(config, TrainConfig(batch=batch, precision="float32")) for batch in (16, 32)]
    assert found <= foreseen[1] - foreseen[0] <= 4 * found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "config",
    [
        Seq2SeqConfig(50, 40),
        Seq2SeqConfig(50, 40, norm_placement="pre", positions="rotary", query_key_norm=True, dropout=0.1),
        Seq2SeqConfig(50, 40, activation="swiglu", encoder_layers=4, norm="rms"),
        Seq2SeqLSTMConfig(50, 40, attention="none", layers=2),
        Seq2SeqLSTMConfig(50, 40, attention="additive", dropout=0.1),
        Seq2SeqLSTMConfig(50, 40, attention="multiplicative", layers=2, dropout=0.1),
    ],
)
def test_memory_of_pairs_is_foreseen(config, precision):
    config = config.replace(width=64, context=32)
    (made,) = (made for made, settings in FAMILIES.values() if type(config) is settings)
    tokens = torch.ones(16, 32, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        found = kept_bytes(made(config), tokens, tokens)
    foreseen = [planning.memory_needed(config, TrainConfig(batch=batch, precision=precision)) for batch in (16, 32)]
    assert found <= foreseen[1] - foreseen[0] <= 2.5 * found


@pytest.mark.parametrize(
    ("wanted", "positions", "small"),
    [
        ({}, "rotary", True),
        ({"width": 65}, "learned", True),
        ({"width": 66}, "rotary", True),
        ({"width": 60, "heads": 4}, "learned", True),
        ({"heads": 3}, "rotary", True),
        ({"width": 512}, "rotary", False),
    ],
)
def test_a_shape_that_was_asked_for_gets_rates_and_positions_that_fit_it(wanted, positions, small):
    choice = sizes.choose(text_data(), 5.0, torch.device("cpu"), {"model": wanted})
    shape = GPTConfig.from_dict({**choice.tables["model"], **wanted, "vocab_size": 11})  # raises where it does not fit
    assert shape.positions == positions
    assert any("learned positions" in reason for reason in choice.reasons) == (positions == "learned")
    assert choice.tables["optimizer"]["learning_rate"] == (0.05 if small else 0.02)


@pytest.mark.parametrize(
    ("config", "smaller"),
    [
        (BigramConfig(11), "a smaller context"),
        (MLPConfig(11), r"a smaller model \(model.width, model.hidden\), context"),
        (RecurrentConfig(11), r"a smaller model \(model.layers, model.width\), context"),
    ],
)
def test_what_to_make_smaller_is_what_the_family_has(config, smaller):
    with pytest.raises(ResourceError, match=smaller):
        planning.require_memory(config, TrainConfig(batch=10**12), "adamw", torch.device("cpu"))


def test_what_suits_a_cell():
    """The gradient of an RNN needs smaller steps than that of an LSTM, and the compiler is no help to either."""
    rates = {}
    for cell in ("rnn", "lstm"):
        asked = merged({"model": {"cell": cell}})
        tables = merged(sizes.usual("recurrent", asked), asked)
        _, train, optimizer, schedule = build("recurrent", tables, {"vocab_size": 65})
        rates[cell] = optimizer.learning_rate
        assert (train.clip, schedule.name) == (1.0, "cosine")
    assert rates["rnn"] < rates["lstm"] == sizes.usual("recurrent", merged())["optimizer"]["learning_rate"]


def test_a_loop_over_time_is_not_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "compiler_missing", lambda device: None)
    monkeypatch.setattr(Trainer, "compile", lambda self: setattr(self, "compiled", True))
    monkeypatch.setattr(planning, "COMPILE_FROM", 0.0)
    monkeypatch.setattr(planning, "measure", lambda *given: planning.Measured(1.0, 1.0, 1.0, 0.0, 1))
    book = tmp_path / "book.txt"
    book.write_text("a text that is there to be read. " * 40)
    found = {}
    for family in ("recurrent", "mlp"):
        said = found[family] = []
        request = Request(
            (str(book),), model=family, set=("train.steps=2", "train.precision=float32"), out=tmp_path / family
        )
        job = jobs.new(request, lambda *line, said=said: said.append(line))
        assert job.trainer.compiled is (family == "mlp")
    assert ("picked", "not compiled: for a loop over time that takes minutes") in found["recurrent"]


def test_parameters_beyond_counting():
    assert planning.parameters_of(RecurrentConfig(65, layers=10**9)) > 10**13
    assert planning.parameters_of(MLPConfig(65, hidden=10**20)) > 10**15
    assert planning.parameters_of(GPTConfig(65, layers=10**9)) > 10**15
    assert planning.parameters_of(GPTConfig(65, width=6 * 10**11)) > 10**15


# ---------------------------------------------------------------------------------------------------------------
# Compiling


@pytest.fixture
def rehearse(monkeypatch):
    """A rehearsal where compiling is pretended. Returns whether it was compiled, and what was said."""

    def run(wish, seconds=None, steps=10, step_seconds=1.0, broken=None, missing=None, precision="float32", slower=1.0):
        said = []
        monkeypatch.setattr(machine, "compiler_missing", lambda device: missing)
        monkeypatch.setattr(Trainer, "compile", lambda self: setattr(self, "compiled", True))

        def measure(trainer, task, spend):
            if trainer.compiled and broken is not None:
                trainer.one_step()  # it got that far
                raise broken
            return planning.Measured(step_seconds * (slower if trainer.compiled else 1.0), 1.0, 1.0, 0.0, 1)

        monkeypatch.setattr(planning, "measure", measure)
        parts = small_trainer()
        tell = lambda label, sentence: said.append(sentence)  # noqa: E731
        rehearsal = Rehearsal(small_gpt, parts.task, OptimizerConfig(), parts.schedule, seconds, tell)
        config = TrainConfig(steps=steps, batch=4, precision=precision, device="cpu", compile=wish)
        trainer, _ = rehearsal.run(config, torch.device("cpu"))
        assert trainer.config.compile == ("yes" if trainer.compiled else "no")
        assert trainer.config.threads == torch.get_num_threads()
        torch.testing.assert_close(trainer.model.state_dict(), small_gpt().state_dict(), rtol=0, atol=0)
        return trainer.compiled, said

    return run


@pytest.mark.parametrize(
    ("case", "compiled"),
    [
        ({"wish": "auto", "seconds": 60.0}, False),
        ({"wish": "auto", "seconds": 600.0}, True),
        ({"wish": "auto", "steps": 10}, False),
        ({"wish": "auto", "steps": 1000}, True),
        ({"wish": "auto", "seconds": 600.0, "missing": "there is no C++ compiler"}, False),
        ({"wish": "auto", "seconds": 600.0, "slower": 1.1}, False),
        ({"wish": "auto", "seconds": 600.0, "slower": 0.9}, True),
        ({"wish": "auto", "seconds": 600.0, "precision": "bfloat16"}, False),
        ({"wish": "yes", "steps": 1, "precision": "bfloat16"}, True),
        ({"wish": "yes", "steps": 1}, True),
        ({"wish": "no", "seconds": 600.0}, False),
    ],
)
def test_compiled_where_it_pays(rehearse, case, compiled):
    found, said = rehearse(**case)
    assert found is compiled
    assert bool(said) is (case["wish"] != "no")
    if case["wish"] == "auto":
        assert said[-1].startswith("compiled" if compiled else "not compiled")
    if "missing" in case:
        assert "there is no C++ compiler" in said[-1]
    if not compiled and "slower" in case:
        assert said[-1] == "not compiled after all: a step took 1100 ms, without 1000 ms"


def test_a_compiler_that_fails(rehearse):
    """Where nobody asked for it, the run goes on without; where somebody did, it is refused. What is not about
    compiling is a mistake of ours, and stays one."""
    compiled, said = rehearse("auto", seconds=600.0, broken=TorchDynamoException("g++ is broken\nsee above"))
    assert not compiled
    assert said[-1] == "not compiled after all: it does not work on this machine (g++ is broken)"
    with pytest.raises(ResourceError, match=r"train.compile = yes: does not work .*g\+\+ is broken.*compile=no"):
        rehearse("yes", broken=TorchDynamoException("g++ is broken"))
    with pytest.raises(KeyError, match="ours"):
        rehearse("auto", seconds=600.0, broken=KeyError("ours"))


def test_too_little_memory_is_said(rehearse):
    for broken in (RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError("CUDA")):
        with pytest.raises(ResourceError, match=f"batch of 4 x {CONTEXT} tokens. Lower train.batch"):
            rehearse("yes", broken=broken)


# ---------------------------------------------------------------------------------------------------------------
# The text


def test_the_last_tenth_of_a_large_text_is_not_all_validated_on(tmp_path, monkeypatch):
    asked = {}

    def prepare(files, folder, tokenizer, **choices):
        asked.update(choices, files=files)
        return text_data()

    monkeypatch.setattr(data, "prepare", prepare)
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    small.write_bytes(b"a" * 1000)
    large.write_bytes(b"")
    with open(large, "r+b") as file:
        file.truncate(1_000_000_000)
    said = []
    for path, fraction in ((small, 0.1), (large, sources.VALIDATION_AT_MOST / 1e9)):
        sources.read(
            Request((str(path),)),
            [corpora.find(str(path))],
            LanguageConfig(),
            None,
            lambda *line: said.append(line),
            None,
        )
        assert asked["fraction"] == pytest.approx(fraction)
    assert [sentence for _, sentence in said if "not 10 %" in sentence] == [
        "validation is the last 0.025 %, not 10 %: enough to tell models apart, and quicker"
    ]
    request = Request((str(large),), validation=(small,))
    sources.read(request, [corpora.find(str(large))], LanguageConfig(), None, lambda *line: None, None)
    assert asked["validation"] == [small]


def test_of_a_large_text_a_part_is_counted(monkeypatch):
    counted = []
    monkeypatch.setattr(language, "counted", lambda text: counted.append(len(text.train)) or -1e-17)
    long = LanguageTask(dataclasses.replace(text_data(), train=np.zeros(50_000_000, dtype=np.uint8)))
    assert [long.line_to_beat(seconds) for seconds in (10.0, 120.0, None)] == [0.0, 0.0, 0.0]
    assert counted == [1_200_000, 2_400_000, 6_000_000]
    LanguageTask(text_data()).line_to_beat(10.0)
    assert counted[-1] == len(text_data().train)


def test_a_job_from_python(tmp_path):
    """Without a command line: decided, measured, and nothing written until `write`."""
    (tmp_path / "text.txt").write_text("to be, or not to be\n" * 50)
    settings = ("model.layers=1", "model.width=16", "model.context=8", "train.steps=2", "train.precision=float32")
    request = Request((str(tmp_path / "text.txt"),), set=(*settings, "train.compile=no"), out=tmp_path / "run")
    said = []
    job = jobs.new(request, lambda label, sentence: said.append((label, sentence)))
    assert not (tmp_path / "run").exists()
    assert said[0][0] == "text.txt"
    job.write()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "tokenizer.json"]
    assert job.trainer.train(progress=False) < 3
    with pytest.raises(ConfigError, match=r"--resume .*Leave out --set, --out"):
        jobs.resume(tmp_path / "run", request, lambda *line: None)
