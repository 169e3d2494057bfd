"""A run folder as what the doctor takes: everything that it was made with, and nothing that is not there."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import handmade
from handmade import doctor, jobs, machine
from handmade.doctor import run_training, runs, targets
from handmade.doctor.given import Given
from handmade.doctor.patient import Patient
from handmade.errors import ConfigError, HandmadeError, ResourceError, RunError

TEXT = "the cat sat on the mat. a dog ran to the cat!\n" * 30
SETTINGS = {"train.steps": 6, "train.batch": 4, "train.precision": "float32", "train.compile": "no"}
GPT = {"model.layers": 2, "model.heads": 2, "model.width": 16, "model.context": 16, "model.dropout": 0.0}


def run_of(folder: Path, name: str, data: str, **request: Any) -> Path:
    """A small run, trained."""
    asked = {**SETTINGS, **request.pop("asked", {})}
    words = tuple(f"{option}={value}" for option, value in asked.items())
    job = jobs.new(jobs.Request(data=(data,), out=folder / name, set=words, **request), lambda *_: None)
    job.write()
    if job.trainer is not None:
        for _ in job.trainer.steps():
            pass
    return folder / name


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with a run of every kind."""
    folder = tmp_path_factory.mktemp("doctored")
    (folder / "text.txt").write_text(TEXT)
    pairs = "".join(f"{who}は{what}です。\t{who} {what}\n" for who in "私彼猫犬魚" for what in "猫犬魚鳥人")
    (folder / "pairs.tsv").write_text(pairs, encoding="utf-8")
    text = str(folder / "text.txt")
    run_of(folder, "text", text, asked={**GPT, "train.tokens_per_step": 128, "schedule.final": 0.1})
    run_of(folder, "lstm", text, model="recurrent", asked={"model.width": 16})
    run_of(folder, "bigram", text, model="bigram")
    counting = jobs.new(jobs.Request(data=(text,), model="counting", out=folder / "counting"), lambda *_: None)
    counting.write()
    few = {"task.train_problems": 600, "task.test_problems": 100}
    run_of(folder, "sort", "sort", asked={"model.width": 16, "model.heads": 2, **few})
    asked = {"model.width": 16, "model.heads": 2, "task.tokens": "char", "task.label_smoothing": 0.0}
    run_of(folder, "pairs", str(folder / "pairs.tsv"), task="translation", asked=asked)
    return folder


def given(folder: Path) -> Given:
    return targets.given_of(str(folder)).given


@pytest.mark.parametrize("name", ["text", "lstm", "bigram", "counting", "sort", "pairs"])
def test_a_run_of_every_kind_can_be_examined(trained, name):
    target = targets.given_of(str(trained / name))
    patient = Patient(target.given)
    assert patient.failure is None
    assert patient.every_position
    assert target.given.trained
    assert target.given.vocab_size == handmade.load(trained / name).tokenizer.vocab_size
    assert type(target.given.build()) is type(target.given.model)
    assert len(target.given.train_data) > len(target.given.validation_data) > 0
    if name != "counting":
        inputs, targets_ = target.given.batch()
        assert inputs.shape == targets_.shape
        loss = target.given.loss(patient.logits(inputs), targets_)
        assert float(loss) == pytest.approx(float(F.cross_entropy(patient.logits(inputs).mT, targets_)), rel=1e-5)
        target.given.train_step(*([] if name == "pairs" else [itertools.repeat((inputs, targets_))]))
        assert target.given.evaluate() > 0


def test_the_past_of_a_model_that_counts_is_measured_on_what_it_counted(trained):
    things = given(trained / "counting")
    assert "past" not in things.expect
    past = doctor.examine(things, only=["past"])["past"]
    assert past.verdict == "healthy"
    assert "tokens up to 3 of" in past.measured  # a 5-gram: the last token, and three before it


def test_the_weights_are_those_of_the_run(trained):
    found, loaded = given(trained / "text").model, handmade.load(trained / "text").model
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)


def test_a_step_is_that_of_the_trainer(trained):
    """Two micro-batches of 4 x 16 are added up before the weights change; the loss is the mean over both."""
    things = given(trained / "text")
    batches = [things.batch() for _ in range(3)]
    with torch.no_grad():
        losses = [float(things.loss(things.model(x), y)) for x, y in batches]
    before = {name: tensor.clone() for name, tensor in things.model.state_dict().items()}
    left = iter(batches)
    assert things.train_step(left) == pytest.approx(sum(losses[:2]) / 2, rel=1e-5)
    assert len(list(left)) == 1
    assert any(not torch.equal(tensor, before[name]) for name, tensor in things.model.state_dict().items())


def test_rates_are_those_that_are_stated(trained):
    things = given(trained / "text")
    low, high = things.schedule_bounds
    rates = []
    for step in range(things.steps):
        things.train_step(itertools.repeat(things.batch()))
        rates.append(things.optimizer[0].param_groups[0]["lr"])
        assert rates[-1] == pytest.approx(things.schedule(step))
    assert all(low <= rate <= high for rate in rates)
    assert len(set(rates)) > 3


def test_a_checkpoint_brings_back_weights_optimizer_and_generators(trained, tmp_path):
    things = given(trained / "text")
    things.train_step(itertools.repeat(things.batch()))
    things.save(tmp_path / "kept")
    first = [things.batch()[0] for _ in range(2)]
    weights = {name: tensor.clone() for name, tensor in things.model.state_dict().items()}
    momentum = next(iter(things.optimizer[0].state.values()))
    kept = {name: value.clone() for name, value in momentum.items() if torch.is_tensor(value)}
    things.train_step(itertools.repeat(things.batch()))
    things.load(tmp_path / "kept")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in things.model.state_dict().items())
    again = next(iter(things.optimizer[0].state.values()))
    assert kept
    assert all(torch.equal(again[name], value) for name, value in kept.items())
    assert all(torch.equal(things.batch()[0], one) for one in first)
    things.save(tmp_path / "kept")  # and again, in its place


def test_the_best_weights_are_a_copy(trained):
    things = given(trained / "text")
    best = things.best()
    before = {name: tensor.clone() for name, tensor in best.items()}
    things.train_step(itertools.repeat(things.batch()))
    assert before
    assert all(torch.equal(best[name], tensor) for name, tensor in before.items())


def test_evaluation_is_that_of_the_run(trained):
    assert given(trained / "text").evaluate() == pytest.approx(handmade.load(trained / "text").evaluate()["val_loss"])


@pytest.mark.parametrize("name", ["text", "lstm", "counting", "sort"])
def test_sampling_with_and_without_a_cache(trained, name):
    generate, start = given(trained / name).generate, torch.tensor([[1, 2], [3, 4], [5, 6]])
    cached, plain = (generate(start, 20, temperature=0, use_cache=use) for use in (True, False))
    assert cached.shape == (3, 20)
    assert torch.equal(cached, plain)
    torch.manual_seed(0)
    drawn = generate(start, 20)
    assert not torch.equal(drawn, generate(start, 20))
    torch.manual_seed(0)
    assert torch.equal(drawn, generate(start, 20))


def test_filters_are_those_of_sampling():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert runs.filters(logits, top_k=2).tolist() == [[-torch.inf, 3.0, 2.0]]
    assert runs.filters(logits, temperature=2.0).tolist() == [[0.5, 1.5, 1.0]]


def test_windows_are_those_of_training(trained):
    things = given(trained / "text")
    inputs, goals = things.windows[5]
    assert things.decode(inputs) == things.train_data[5:21]
    assert things.decode(goals) == things.train_data[6:22]
    assert things.decode(things.windows[len(things.windows) - 1][1]) == things.train_data[-16:]
    with pytest.raises(IndexError):
        things.windows[len(things.windows)]


def test_a_text_is_told_as_it_was_read(trained, monkeypatch):
    things = given(trained / "text")
    assert things.train_data + things.validation_data == TEXT
    monkeypatch.setattr(runs, "MOST_TOKENS", 200)
    target = targets.given_of(str(trained / "text"))
    assert target.given.train_data == things.train_data[-200:]
    assert target.given.validation_data == things.validation_data
    assert any("200 of 1,242 tokens are read" in note for note in target.notes)


def test_batches_may_be_drawn_while_a_step_is_made(trained):
    """As whoever watches a step may want to."""
    things = given(trained / "text")
    before = {name: tensor.clone() for name, tensor in things.model.state_dict().items()}
    loss = things.train_step(things.batches() for _ in itertools.count())
    assert 0 < loss < 10
    assert any(not torch.equal(tensor, before[name]) for name, tensor in things.model.state_dict().items())


def test_problems_are_told_as_they_are_read(trained):
    things = given(trained / "sort")
    task = handmade.load(trained / "sort").task
    assert things.train_data[:2] == [task.sentence(task.split.train[[i]]).strip() for i in range(2)]
    assert not set(things.train_data) & set(things.validation_data)


def test_what_the_settings_say_is_what_was_meant(trained):
    assert given(trained / "bigram").expect["past"] is False
    assert "past" not in given(trained / "text").expect
    assert given(trained / "text").expect["tied"] is handmade.load(trained / "text").config["model"]["tied_head"]


def test_a_translation_is_its_decoder_behind_one_source(trained):
    target = targets.given_of(str(trained / "pairs"))
    model = target.given.model
    inner = handmade.load(trained / "pairs").model
    tokens = torch.tensor([[1, 5, 6], [1, 7, 5]])
    expected = inner(model.source.expand(2, -1), tokens)
    assert torch.allclose(model(tokens), expected, atol=1e-6)
    assert any("decoder" in note for note in target.notes)
    inputs, goals = target.given.batch()
    assert inputs[0, 0] == 1  # START
    assert inputs[0, 1:].tolist() == goals[0, :-1].tolist()


def test_a_run_without_its_text_is_examined_without_it(trained, tmp_path):
    shutil.copytree(trained / "text", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data"]["files"] = [str(tmp_path / "gone.txt")]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    target = targets.given_of(str(tmp_path / "run"))
    things = target.given
    assert (things.batches, things.evaluate, things.train_step, things.train_data, things.windows) == (None,) * 5
    assert things.schedule is not None
    assert things.generate is not None
    assert any(note.startswith("without its data: ") and "gone.txt" in note for note in target.notes)


def test_of_a_large_run_fewer_layers_are_examined(trained, monkeypatch):
    monkeypatch.setattr(runs, "LARGE", 10)
    monkeypatch.setattr(runs.shallower, "__defaults__", (10,))
    run = trained / "text"
    assert len(given(run).model.blocks) == 2  # two are few
    shape = handmade.GPTConfig(vocab_size=11, context=8, layers=12, heads=2, width=8)
    smaller = runs.shallower(shape, 4000)
    assert smaller.layers == 3
    assert smaller.replace(layers=12) == shape
    assert runs.shallower(shape, 10**9) is None


def test_a_run_too_large_for_memory_even_so(monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda device: 1000)
    with pytest.raises(ResourceError, match="even with few"):
        runs.shallower(handmade.GPTConfig(vocab_size=11, layers=12, heads=2, width=8))


def test_large_runs_take_their_steps_with_fewer_rows(trained, monkeypatch):
    monkeypatch.setattr(run_training, "WORK", 6 * 10_000 * 16 * 2)
    target = targets.given_of(str(trained / "text"))
    assert target.given.batch()[0].shape[0] < 4
    assert any("steps of training are made with" in note for note in target.notes)


@pytest.mark.parametrize("options", [{"vocabulary": 5}, {"context": 5}, {"arguments": {"a": "1"}}])
def test_a_run_takes_no_sizes(trained, options):
    with pytest.raises(ConfigError, match=r"is a run, which has its own\. Leave it out"):
        targets.given_of(str(trained / "text"), **options)


def test_a_run_that_there_is_not(trained):
    with pytest.raises(RunError, match=r"no such run\. Did you mean .*text"):
        targets.given_of(str(trained / "txt"))


def test_a_damaged_run_says_so(trained, tmp_path):
    shutil.copytree(trained / "text", tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(HandmadeError, match=r"model\.safetensors: damaged"):
        targets.given_of(str(tmp_path / "run"))
