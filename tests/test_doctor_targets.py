"""What a target names: a class, a function or a model in a person's file, and whatever can be wrong with it."""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch

from handmade import machine
from handmade.doctor import importing, targets
from handmade.doctor.given import Given
from handmade.doctor.patient import Patient
from handmade.errors import ConfigError, PatientError, ResourceError

PARTS = """
import torch
import torch.nn as nn
from dataclasses import dataclass

class Net(nn.Module):
    def __init__(self, {signature}):
        super().__init__()
        {config}
        self.e = nn.Embedding({vocabulary}, 4)
        self.p = nn.Embedding({context}, 4)
        self.h = nn.Linear(4, {vocabulary})

    def forward(self, idx):
        return self.h(self.e(idx) + self.p(torch.arange(idx.shape[1])))
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a Python file into a folder to work in. Returns its path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def put(text: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")
        return path

    return put


def net(signature="vocab_size, block_size", vocabulary="vocab_size", context="block_size", config="pass", before=""):
    """A file with a class `Net`."""
    parts = PARTS.format(signature=signature, vocabulary=vocabulary, context=context, config=config)
    return parts.replace("\nclass Net", f"\n{dedent(before)}\nclass Net")


def sizes(model: Any) -> tuple[int, int]:
    return model.e.num_embeddings, model.p.num_embeddings


# ---------------------------------------------------------------------------------------------------------------
# A class


@pytest.mark.parametrize("vocabulary", ["vocab_size", "n_vocab", "ntoken", "num_tokens"])
@pytest.mark.parametrize("context", ["block_size", "context_length", "max_seq_len", "n_positions"])
def test_sizes_go_where_the_signature_has_them(write, vocabulary, context):
    write(net(f"{vocabulary}, {context}", vocabulary, context))
    target = targets.given_of("mine.py:Net", 11, 6)
    assert sizes(target.given.model) == (11, 6)
    assert (target.given.vocab_size, target.given.context, target.name) == (11, 6, "mine.py:Net")
    assert target.notes == (f"built as Net({vocabulary}=11, {context}=6)",)
    assert Patient(target.given).failure is None


def test_without_a_context_a_usual_one_is_said(write):
    write(net())
    target = targets.given_of("mine.py:Net", 11)
    assert sizes(target.given.model) == (11, 64)
    assert any("block_size = 64" in note for note in target.notes)


def test_defaults_stay_where_nothing_is_said(write):
    write(net("vocab_size=9, block_size=5"))
    target = targets.given_of("mine.py:Net")
    assert sizes(target.given.model) == (9, 5)
    assert target.notes == ()


CONFIG = "@dataclass\nclass NetConfig:\n    vocab_size: int = 300\n    block_size: int = 30\n    wide: bool = False\n"


@pytest.mark.parametrize(
    ("before", "signature"),
    [
        (CONFIG, "config"),
        (CONFIG, "config: 'NetConfig'"),
        (CONFIG, "c: NetConfig"),
        (CONFIG + "@dataclass\nclass TrainConfig:\n    rate: float = 0.1\n", "cfg"),
        ("class Config:\n    vocab_size = 300\n    block_size = 30\n    wide = False\n", "config"),
        (
            "class Args:\n    def __init__(self):\n        self.vocab_size, self.block_size, self.wide = 1, 2, 0\n",
            "args",
        ),
        ("from types import SimpleNamespace\ncfg = SimpleNamespace(vocab_size=1, block_size=2, wide=0)\n", "config"),
        ("", "config"),
    ],
)
def test_a_config_is_made_of_what_the_file_has(write, before, signature):
    name = signature.split(":")[0]
    write(net(signature, f"{name}.vocab_size", f"{name}.block_size", f"self.wide = {name}.wide", before))
    target = targets.given_of("mine.py:Net", 11, 6, {"wide": "true"})
    assert sizes(target.given.model) == (11, 6)
    assert target.given.model.wide is True


@pytest.mark.parametrize("before", ["SMALL = {'vocab_size': 300, 'context_length': 30, 'wide': 0}", ""])
def test_a_config_may_be_a_mapping(write, before):
    write(net("cfg", "cfg['vocab_size']", "cfg['context_length']", "self.wide = cfg['wide']", before))
    target = targets.given_of("mine.py:Net", 11, 6, {"wide": "3"})
    assert sizes(target.given.model) == (11, 6)
    assert target.given.model.wide == 3


def test_what_a_loose_config_lacks_is_asked_for_by_name(write):
    write(net("config", "config.vocab_size", "config.block_size", "self.wide = config.n_wide"))
    with pytest.raises(PatientError, match=r"^Net asks its config for n_wide\. Give --arg n_wide=VALUE\.$"):
        targets.given_of("mine.py:Net", 11, 6)
    write(net("config", "config['vocab_size']", "4"), "other.py")
    with pytest.raises(PatientError, match=r"asks its config for vocab_size\. Give --vocab-size N\.$"):
        targets.given_of("other.py:Net")
    write(net("config", "config.vocab_size", "4", "self.wide = getattr(config, 'wide', 7)"), "third.py")
    assert targets.given_of("third.py:Net", 11).given.model.wide == 7


def test_a_class_may_say_which_config_it_begins_with(write):
    settings = "class Settings:\n    def __init__(self, **all_):\n        self.__dict__.update(all_)\n"
    begins = """
    @staticmethod
    def get_default_config():
        return Settings(vocab_size=None, block_size=None, wide=1)
"""
    write(net("config", "config.vocab_size", "config.block_size", "self.wide = config.wide", settings) + begins)
    target = targets.given_of("mine.py:Net", 11, 6, {"wide": "3"})
    assert (sizes(target.given.model), target.given.model.wide) == ((11, 6), 3)
    assert target.notes == ("built as Net(config=Settings(vocab_size=11, block_size=6, wide=3))",)


@pytest.mark.parametrize("base", ["", "(dict)"])
def test_a_config_that_takes_any_name_has_the_sizes_and_what_is_typed(write, base):
    keep = "self.update(all_)" if base else "self.__dict__.update(all_)"
    config = f"class Config{base}:\n    def __init__(self, **all_):\n        {keep}\n"
    read = ("config['vocab_size']", "config['n_ctx']", "self.wide = config['wide']")
    write(net("config", *(read if base else (one.replace("['", ".").replace("']", "") for one in read)), before=config))
    target = targets.given_of("mine.py:Net", 11, 6, {"wide": "3"})
    assert (sizes(target.given.model), target.given.model.wide) == ((11, 6), 3)
    with pytest.raises(PatientError, match=r"^mine.py, line \d+: (Attribute|Key)Error: .*wide") as problem:
        targets.given_of("mine.py:Net", 11, 6)
    assert "It was built as Net(config=" in str(problem.value)
    assert "--arg NAME=VALUE, or write a function" in str(problem.value)


FROZEN = CONFIG.replace("@dataclass", "@dataclass(frozen=True)")


@pytest.mark.parametrize("before", [FROZEN, "from of_the_frozen import config"])
def test_a_config_may_be_frozen(write, before):
    write(f"from dataclasses import dataclass\n{FROZEN}\nconfig = NetConfig()", "of_the_frozen.py")
    write(net("config", "config.vocab_size", "config.block_size", "self.wide = config.wide", before))
    target = targets.given_of("mine.py:Net", 11, 6, {"wide": "true"})
    assert (sizes(target.given.model), target.given.model.wide) == ((11, 6), True)


def test_a_config_that_refuses_what_it_is_given_is_their_error(write):
    refuses = "    def __post_init__(self):\n        assert self.vocab_size % 2 == 0, 'an even one'\n"
    write(net("config", "config.vocab_size", "config.block_size", before=CONFIG + refuses))
    with pytest.raises(PatientError, match=r"^mine.py, line \d+: AssertionError: an even one\n    assert self"):
        targets.given_of("mine.py:Net", 11, 6)


def test_two_configs_that_may_be_meant_are_named(write):
    two = "@dataclass\nclass AConfig:\n    a: int = 1\n@dataclass\nclass BConfig:\n    b: int = 1\n"
    write(net("config", "config.a", "config.b", before=two))
    with pytest.raises(ConfigError, match=r"may be AConfig or BConfig\. Write a function"):
        targets.given_of("mine.py:Net", 11, 6)


def test_instances_do_not_share_a_config(write):
    write(net("config", "config.vocab_size", "config.block_size", "config.block_size += 1", CONFIG))
    target = targets.given_of("mine.py:Net", 11, 6)
    assert sizes(target.given.model) == sizes(target.given.build()) == (11, 7)


@pytest.mark.parametrize(
    ("signature", "text", "value"),
    [
        ("wide: int", "3", 3),
        ("wide: float", "3", 3.0),
        ("wide: 'bool'", "no", False),
        ("wide: str", "3", "3"),
        ("wide: 'int | None' = 4", "none", None),
        ("wide='a'", "3", "3"),
        ("wide=True", "false", False),
        ("wide=0", "0.5", 0.5),
        ("wide", "(1, 2)", (1, 2)),
        ("wide", "none", None),
        ("wide", "gelu", "gelu"),
        ("**options", "3", 3),
    ],
)
def test_what_is_typed_becomes_what_is_asked_for(write, signature, text, value):
    kept = "options['wide']" if signature == "**options" else "wide"
    write(net(f"vocab_size, block_size, {signature}", config=f"self.wide = {kept}"))
    found = targets.given_of("mine.py:Net", 11, 6, {"wide": text}).given.model.wide
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ({"n_layr": "2"}, r"--arg n_layr=2: Net takes no n_layr\. Did you mean n_layer\?"),
        ({"zz": "2"}, r"--arg zz=2: Net takes no zz\. It takes block_size, n_layer, vocab_size\."),
        ({"n_layer": "two"}, r"--arg n_layer=two: must be a whole number\."),
    ],
)
def test_arguments_that_are_wrong(write, arguments, answer):
    write(net("vocab_size, block_size, n_layer: int = 1"))
    with pytest.raises(ConfigError, match=answer):
        targets.given_of("mine.py:Net", 11, 6, arguments)


def test_what_a_class_needs_is_asked_for(write):
    write(net())
    with pytest.raises(ConfigError, match=r"mine.py:Net: asks for vocab_size\. Give --vocab-size N\."):
        targets.given_of("mine.py:Net")
    write(net("vocab_size, block_size, heads, wide"), "other.py")
    with pytest.raises(ConfigError, match=r"asks for heads, wide\. Give --arg heads=VALUE --arg wide=VALUE"):
        targets.given_of("other.py:Net", 11)


def test_weights_follow_from_the_seed_and_generators_are_left(write):
    write(net())
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = (targets.given_of("mine.py:Net", 11, 6, seed=3).given for _ in range(2))
    other = targets.given_of("mine.py:Net", 11, 6, seed=4).given.model
    fresh = first.build()
    assert torch.equal(first.model.e.weight, again.model.e.weight)
    assert not torch.equal(first.model.e.weight, other.e.weight)
    assert not torch.equal(first.model.e.weight, fresh.e.weight)
    assert torch.equal(fresh.e.weight, other.e.weight)  # the next instance has the next seed
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002


# ---------------------------------------------------------------------------------------------------------------
# A function, a model


MADE = net("vocab_size=11, block_size=6") + "\n\n"


@pytest.mark.parametrize(
    "text",
    [
        "thing = Net()",
        "def thing():\n    return Net()",
        "def thing():\n    return {'model': Net(), 'context': 6}",
        "def thing(block_size=6):\n    return Net(block_size=block_size)",
        "class thing:\n    def __init__(self):\n        self.model = Net()",
        "class thing:\n    model = Net()",
        "thing = {'model': Net()}",
    ],
)
def test_a_function_or_an_object_may_give_what_there_is(write, text):
    write(MADE + text)
    given = targets.given_of("mine.py:thing").given
    assert isinstance(given, Given)
    assert sizes(given.model) == (11, 6)
    if given.build is not None:
        assert sizes(given.build()) == (11, 6)


@pytest.mark.parametrize(
    "text",
    [
        "net = Net()\ndef thing(tokens):\n    return net(tokens)",
        "net = Net()\ndef thing(what: torch.Tensor):\n    return net(what)",
        "net = Net()\ndef thing(idx, scale=1):\n    return net(idx) * scale",
        "def thing(vocab_size=11):\n    net = Net(vocab_size)\n    return lambda tokens: net(tokens)",
        "class thing:\n    net = Net()\n    def __call__(self, x):\n        return self.net(x)",
    ],
)
def test_a_function_may_be_the_model(write, text):
    write(MADE + text)
    given = targets.given_of("mine.py:thing", 11, 6).given
    assert given.model(torch.zeros(2, 3, dtype=torch.int64)).shape == (2, 3, 11)
    assert Patient(given).failure is None


def test_what_is_given_besides_the_model_is_kept(write):
    write(MADE + "def thing(vocab_size):\n    return {'model': Net(vocab_size), 'loss': len, 'build': max, 'steps': 3}")
    given = targets.given_of("mine.py:thing", 9, 5).given
    assert (given.loss, given.build, given.steps, given.vocab_size, given.context) == (len, max, 3, 9, 5)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("def thing():\n    pass", "mine.py:thing: returned nothing"),
        ("def thing():\n    return Net(), 1", "mine.py:thing: a tuple: neither a module, nor a mapping"),
        ("def thing():\n    return {'modle': 1}", "mine.py:thing: 'modle' is nothing .* Did you mean model"),
        ("thing = 3", "mine.py:thing: a int: neither"),
        ("def thing(this, that):\n    pass", "asks for this, that"),
    ],
)
def test_what_is_nothing_to_examine(write, text, answer):
    write(MADE + text)
    with pytest.raises(ConfigError, match=answer):
        targets.given_of("mine.py:thing")


def test_a_model_that_is_there_takes_no_arguments(write):
    write(MADE + "thing = Net()")
    with pytest.raises(ConfigError, match=r"--arg a=1: mine\.py:thing takes no a"):
        targets.given_of("mine.py:thing", arguments={"a": "1"})


# ---------------------------------------------------------------------------------------------------------------
# Importing


def test_a_file_is_imported_by_itself(write, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["handmade", "doctor", "--lr", "3"])
    write("value = 5", "beside.py")
    path = write(
        """
        import sys
        import beside
        print("loud")
        words, name = list(sys.argv), __name__
        if __name__ == "__main__":
            raise SystemExit
        """
    )
    module = importing.bring_in(path)
    assert module.words == [str(path)]
    assert module.name not in ("__main__", "mine")
    assert sys.modules[module.name] is module
    assert module.beside.value == 5
    assert sys.argv == ["handmade", "doctor", "--lr", "3"]
    assert not sys.dont_write_bytecode or sys.flags.dont_write_bytecode
    assert not list(path.parent.rglob("__pycache__"))
    assert capsys.readouterr() == ("", "loud\n")


def test_a_part_of_a_package_is_imported_as_one(write):
    write("", "house_of_nets/__init__.py")
    write("from .parts import width", "house_of_nets/net.py")
    write("width = 3", "house_of_nets/parts.py")
    assert importing.bring_in(Path("house_of_nets/net.py")).width == 3


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("import torch\n\nclass A(nn.Module):\n    pass\n", "mine.py, line 3: NameError: name 'nn' is not defined\n"
                                                             "    class A(nn.Module):"),
        ("def f(:\n    pass\n", "mine.py, line 1: SyntaxError: invalid syntax\n    def f(:"),
        ("import no_such_package\n", "mine.py, line 1: ModuleNotFoundError: No module named 'no_such_package'\n"
                                     "    import no_such_package"),
        ("def f():\n    return 1 / 0\nf()\n", "mine.py, line 2: ZeroDivisionError: division by zero\n    return 1 / 0"),
        ("import torch\ntorch.zeros(2) @ torch.zeros(3)\n", "mine.py, line 2: RuntimeError: inconsistent tensor size"),
        ("raise ValueError\n", "mine.py, line 1: ValueError: \n    raise ValueError"),
        ("import sys\nsys.exit(1)\n", "mine.py, line 2: it ends the program, so it does not import.\n"
                                      'Put what it does as a script under: if __name__ == "__main__":'),
    ],
)  # fmt: skip
def test_their_error_and_their_line(write, text, answer):
    write(text)
    with pytest.raises(PatientError) as problem:
        targets.given_of("mine.py:A")
    assert str(problem.value).startswith(answer)
    assert str(problem.value).count("\n") <= 1


def test_an_error_in_another_of_their_files(write):
    write("import wrong_one\n")
    write("\nboom\n", "wrong_one.py")
    with pytest.raises(PatientError, match=r"^wrong_one.py, line 2: NameError"):
        targets.given_of("mine.py:A")


def test_an_error_while_it_is_built_is_theirs_too(write):
    write(net(config="self.x = torch.zeros(-1)"))
    with pytest.raises(PatientError) as problem:
        targets.given_of("mine.py:Net", 11, 6)
    assert str(problem.value).startswith("mine.py, line 10: RuntimeError: ")
    assert "\n    self.x = torch.zeros(-1)\nIt was built as Net(vocab_size=11, block_size=6).\n" in str(problem.value)


def test_a_name_that_is_not_in_it(write):
    write(MADE + "import os\n_hidden = 1\ndef make():\n    pass\nready = Net()")
    with pytest.raises(ConfigError, match=r"^mine.py: has no Nett\. Did you mean Net\?$"):
        targets.given_of("mine.py:Nett")
    with pytest.raises(ConfigError, match=r"^mine.py: has no zzzz\. There are Net, make, ready\.$"):
        targets.given_of("mine.py:zzzz")


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("mine.py", r"^mine.py: name what of it, as in mine.py:Net\. It has Net, make\.$"),
        ("mime.py:Net", r"^mime.py: no such file\. Did you mean mine.py\?$"),
        ("mime.py", r"^mime.py: no such file\. Did you mean mine.py\?$"),
        ("mine:Net", r"^mine: no such file\. Did you mean mine.py:Net\?$"),
        ("text.txt", r"^text.txt: is neither the folder of a run nor a Python file"),
        ("empty.py", r"^empty.py: name the class, function or model of it"),
        ("no/where.py:A", r"^no/where.py: no such file\.$"),
    ],
)
def test_a_target_that_there_is_not(write, target, answer):
    write(MADE + "def make():\n    raise SystemExit('it is not run')")
    write("", "empty.py")
    write("a text", "text.txt")
    with pytest.raises(ConfigError, match=answer):
        targets.given_of(target)


# ---------------------------------------------------------------------------------------------------------------
# What takes no tokens


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (
            "return self.c(x)",
            r"called with token ids: tokens \(\d, \d\): RuntimeError: .* \(mine.py, line 9\)",
        ),
        ("return self.e(x).mean(1)", r"tokens \(\d, \d\) gave a tensor \(3, 4\), in which no logits"),
        ("return None", r"tokens \(\d, \d\): TypeError: it returned"),
    ],
)
def test_what_was_called_and_what_came_back(write, body, answer):
    write(
        f"""
        import torch.nn as nn
        class Net(nn.Module):
            vocab_size, context = 11, 6
            def __init__(self):
                super().__init__()
                self.e, self.c = nn.Embedding(11, 4), nn.Conv2d(3, 3, 3)
            def forward(self, x):
                {body}
        """
    )
    with pytest.raises(PatientError, match=answer) as problem:
        targets.require_met(targets.given_of("mine.py:Net"))
    assert str(problem.value).startswith("mine.py:Net: it could not be called")


def test_a_vocabulary_that_is_not_to_be_seen_is_asked_for(write):
    write("def logits(tokens):\n    return tokens\n")
    with pytest.raises(ConfigError, match=r"^mine.py:logits: how many tokens .* Give --vocab-size N\.$"):
        targets.require_met(targets.given_of("mine.py:logits"))


def test_what_takes_no_tokens_but_has_data_is_examined_for_that(write):
    write("def make():\n    return {'model': len, 'vocab_size': 5, 'train_data': 'abc', 'validation_data': 'abd'}\n")
    target = targets.given_of("mine.py:make")
    targets.require_met(target)
    assert Patient(target.given).failure is not None
    assert (target.given.train_data, target.given.validation_data) == ("abc", "abd")


# ---------------------------------------------------------------------------------------------------------------
# Memory and size


DEEP = net("vocab_size, block_size, n_layer=12", config="self.l = nn.ModuleList([nn.Linear(4, 4)] * n_layer)")


def test_of_a_large_model_fewer_layers_are_examined_and_it_is_said(write, monkeypatch):
    write(DEEP)
    target = targets.given_of("mine.py:Net", 11, 6)
    assert len(target.given.model.l) == 12
    parameters, _ = targets.size_of(target.given.model)
    monkeypatch.setattr(targets, "LARGE", parameters // 3 + 1)
    target = targets.given_of("mine.py:Net", 11, 6)
    assert len(target.given.model.l) == len(target.given.build().l) == 4
    assert target.notes[0] == "built as Net(vocab_size=11, block_size=6, n_layer=4)"
    assert target.notes[1].startswith("examined with 4 of its 12 layers")
    assert len(targets.given_of("mine.py:Net", 11, 6, {"n_layer": "20"}).given.model.l) == 6


def test_a_model_too_large_for_memory_is_examined_smaller(write, monkeypatch):
    write(DEEP)
    _, size = targets.size_of(targets.given_of("mine.py:Net", 11, 6).given.model)
    enough = 10**9  # to build it
    frees = itertools.chain([enough, targets.COPIES * size // 4 - size], itertools.repeat(enough))
    monkeypatch.setattr(machine, "free_memory", lambda device: next(frees))
    target = targets.given_of("mine.py:Net", 11, 6)
    assert len(target.given.model.l) == 3
    assert "examined with 3 of its 12 layers" in target.notes[1]


def test_a_model_that_cannot_even_be_built_is_built_smaller(write):
    write(net("vocab_size, block_size, n_layer=12", config="self.x = torch.empty(10**14 if n_layer > 2 else 1)"))
    target = targets.given_of("mine.py:Net", 11, 6)
    assert "examined with 2 of its 12 layers" in target.notes[1]
    for layers in ("n_layer=12", "wide=12"):  # where fewer do not help, and where nothing says how many there are
        write(net(f"vocab_size, block_size, {layers}", config="self.x = torch.empty(10**14)"), "huge.py")
        with pytest.raises(ResourceError, match=r"huge\.py:Net: memory is too small for Net"):
            targets.given_of("huge.py:Net", 11, 6)


def test_an_instance_too_large_for_memory_is_refused(write, monkeypatch):
    write(MADE + "thing = Net()")
    monkeypatch.setattr(machine, "free_memory", lambda device: 100)
    with pytest.raises(ResourceError, match=r"mine\.py:thing: takes .* of memory to examine, and .* are free"):
        targets.given_of("mine.py:thing")
