"""A person's own script, run for a few steps: what is found, how it ends, and that nothing of it stays."""

from __future__ import annotations

import atexit
import random
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import zoo

from handmade.doctor import checks
from handmade.doctor.watching import watch
from handmade.errors import ConfigError, PatientError

SCRIPTS = Path(__file__).parent / "zoo" / "scripts"

MISTAKES = {
    "lecture": {
        "another-model": "optimizer",
        "divided-by-zero": "finite",
        "left-in-evaluation": "training-mode",
        "never-cleared": "accumulation",
        "not-shifted": "targets",
        "rate-to-an-attribute": "schedule",
        "seed-in-the-loop": "same-batch",
        "shifted-twice": "targets",
        "softmax-first": "loss-input",
    },
    "accumulating": {
        "clip-before-unscale": "clipping",
        "first-group-alone": "schedule",
        "not-divided": "accumulation",
        "zero-grad-inside": "accumulation",
    },
    "word_model": {
        "clipped-too-late": "clipping",
        "never-cleared": "accumulation",
        "never-in-training": "training-mode",
        "no-softmax": "loss-input",
        "one-step-too-far": "targets",
    },
}


def written(folder: Path, text: str, name: str = "train.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


SMALL = """
import torch, torch.nn as nn, torch.nn.functional as F
torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def step():
    x = torch.randint(9, (2, 6))
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    return loss
"""


# The zoo of scripts: the second one asks for a scaler on CUDA, which torch says where there is none

no_cuda = pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled")


@no_cuda
@pytest.mark.parametrize("name", MISTAKES)
def test_nothing_is_found_in_a_healthy_script(name):
    report = watch(SCRIPTS / f"{name}.py")
    assert not report.sick, [report[check] for check in report.sick]
    assert not report.suspicious, [report[check] for check in report.suspicious]
    assert {"accumulation", "finite", "training-mode", "targets", "same-batch"} <= {
        f.check for f in report.of("healthy")
    }
    assert report.notes[0] == f"{name}.py ran for 8 steps; it was ended after 8 steps"
    # What a script does not show is said, as everywhere.
    assert {f.check for f in report.findings} == set(checks.BY_NAME)
    assert "my_train.py:make" in report["split"].measured


@no_cuda
@pytest.mark.parametrize(
    ("name", "mistake", "check"), [(name, m, check) for name in MISTAKES for m, check in MISTAKES[name].items()]
)
def test_the_mistake_of_a_script_is_named(tmp_path, name, mistake, check):
    script = written(tmp_path, zoo.source(SCRIPTS / f"{name}.py", mistake))
    report = watch(script, expect={"same_batch": False})
    assert report.sick == [check], report.findings
    assert not report.suspicious


def test_every_mark_in_a_script_is_tried():
    for name, mistakes in MISTAKES.items():
        marked = {
            one.strip()
            for line in (SCRIPTS / f"{name}.py").read_text(encoding="utf-8").splitlines()
            if (found := zoo.MARK.match(line))
            for one in found["names"].split(",")
        }
        assert marked == set(mistakes)


def test_the_same_batch_is_a_question_until_it_is_answered(tmp_path):
    script = written(tmp_path, zoo.source(SCRIPTS / "lecture.py", "seed-in-the-loop"))
    report = watch(script, steps=3)
    assert report.suspicious == ["same-batch"]
    assert "expect={'same_batch': True}" in report["same-batch"].question
    assert watch(script, steps=3, expect={"same_batch": True})["same-batch"].verdict == "healthy"


TRANSLATING = """
import torch, torch.nn as nn, torch.nn.functional as F
torch.manual_seed(0)
class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.source, self.target, self.head = nn.Embedding(9, 8), nn.Embedding(9, 8), nn.Linear(8, 9)
    def forward(self, source, target):
        return self.head(self.source(source).mean(1, keepdim=True) + self.target(target))
model = Both()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
while True:
    source, target = torch.randint(9, (4, 6)), torch.randint(9, (4, 7))
    optimizer.zero_grad()
    F.cross_entropy(model(source, target[:, :-1]).flatten(0, 1), ASKED.flatten()).backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("asked", "verdict"), [("target[:, 1:]", "healthy"), ("target[:, :-1]", "sick"), ("source", "sick")]
)
def test_the_tokens_of_an_encoder_decoder_are_those_that_it_continues(tmp_path, asked, verdict):
    report = watch(written(tmp_path, TRANSLATING.replace("ASKED", asked)), steps=3)
    assert report["targets"].verdict == verdict


# How it runs


def test_a_script_has_its_words_its_folder_and_its_name(tmp_path):
    written(tmp_path, "rate = 0.125", "settings.py")
    script = written(
        tmp_path,
        SMALL
        + """
import sys, settings
assert sys.argv[1:] == ["--size", "3"] and sys.argv[0] == __file__, sys.argv
assert __name__ == "__main__" and sys.modules["__main__"].model is model
optimizer.param_groups[0]["lr"] = settings.rate
if __name__ == "__main__":
    while True: step()
""",
    )
    report = watch(script, ["--size", "3"], steps=2)
    assert report["schedule"].measured.startswith("rates 0.125, 0.125;")
    assert "settings" not in sys.modules
    assert not (tmp_path / "__pycache__").exists()


def test_nothing_of_a_script_stays(tmp_path):
    script = written(
        tmp_path,
        SMALL
        + """
import os, sys, random
torch.set_default_dtype(torch.float64)
os.chdir(os.path.dirname(__file__))
sys.path.append("nowhere")
print("printed by the script")
random.seed(1)
torch.set_grad_enabled(True)
while True: step()
""",
    )
    kept = Path.cwd(), sys.path[:], sys.argv, sys.stdin, sys.modules["__main__"], torch.get_default_dtype()
    drawn = torch.get_rng_state(), random.getstate()
    watch(script, steps=2)
    assert kept == (Path.cwd(), sys.path, sys.argv, sys.stdin, sys.modules["__main__"], torch.get_default_dtype())
    assert torch.equal(drawn[0], torch.get_rng_state())
    assert drawn[1] == random.getstate()
    with pytest.raises(PatientError):
        watch(written(tmp_path, "import os, torch; os.chdir('/'); torch.set_default_dtype(torch.float64); 1 / 0"))
    assert kept == (Path.cwd(), sys.path, sys.argv, sys.stdin, sys.modules["__main__"], torch.get_default_dtype())


def test_what_a_script_prints_goes_to_standard_error(tmp_path, capsys):
    watch(written(tmp_path, SMALL + "print('loss', float(step().detach()))\nwhile True: step()"), steps=2)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("loss 2.")


def test_finally_runs_and_atexit_waits_for_the_end_of_the_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    happened: list[str] = []
    monkeypatch.setattr("builtins.happened", happened, raising=False)
    script = written(
        tmp_path,
        SMALL
        + """
import atexit
atexit.register(happened.append, "at exit")
try:
    while True:
        try: step()
        except Exception: happened.append("caught")
finally:
    happened.append("finally")
""",
    )
    report = watch(script, steps=3)
    assert report.notes[0] == "train.py ran for 3 steps; it was ended after 3 steps"
    assert happened == ["finally"]
    atexit.unregister(happened.append)  # else it would run when the tests end


def test_a_script_that_catches_everything_is_ended_all_the_same(tmp_path):
    loop = "for i in range(50):\n    try: step()\n    except: pass"
    report = watch(written(tmp_path, SMALL + loop), steps=2)
    assert report.notes[0] == "train.py ran for 2 steps; it was ended after 2 steps"


def test_a_model_that_is_called_by_its_forward_is_found(tmp_path):
    text = SMALL.replace("model(x", "model.forward(x")
    report = watch(written(tmp_path, text + "while True: step()"), steps=2)
    assert "examined: Sequential, with the weights that it began with" in report.notes
    assert report["optimizer"].measured == "it holds 3 of 3 parameters that want a gradient"


def test_the_model_is_examined_with_the_weights_that_it_began_with(tmp_path):
    text = (
        SMALL + "import builtins; builtins.kept = (model, [p.clone() for p in model.parameters()])\nwhile True: step()"
    )
    watch(written(tmp_path, text), steps=3)
    import builtins

    model, before = builtins.kept  # type: ignore[attr-defined]
    del builtins.kept  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_a_model_that_has_learnt_already_is_said_to(tmp_path):
    text = SMALL + "with torch.no_grad(): model[0].weight.zero_(); model[1].weight.zero_()\n"
    text += "x = torch.zeros(2, 6, dtype=torch.long)\nmodel[1].bias.data[0] = 9.0\n"
    text = text.replace("x = torch.randint(9, (2, 6))\n", "x = torch.zeros(2, 6, dtype=torch.long)\n", 1)
    report = watch(written(tmp_path, text + "while True: step()"), steps=3)
    assert any("has learnt already" in note for note in report.notes)


def test_a_list_of_tensors_without_a_module(tmp_path):
    script = written(
        tmp_path,
        """
        import torch, torch.nn.functional as F
        weights = [torch.randn(9, 8).requires_grad_(), (torch.randn(8, 9) * 0.1).requires_grad_()]
        for i in range(100):
            x, y = torch.randint(9, (12,)), torch.randint(9, (12,))
            loss = F.cross_entropy(weights[0][x] @ weights[1], y)
            loss.backward()
            for w in weights: w.data -= 0.1 * w.grad
        """,
    )
    report = watch(script, steps=4)
    assert report.sick == ["accumulation"]
    assert "no torch module was seen that holds what is stepped" in report.notes


# How it ends


def test_a_script_that_ends_after_fewer_steps_is_examined_by_those(tmp_path):
    assert "it ended by itself" in watch(written(tmp_path, SMALL + "step(); step()")).notes[0]
    left = watch(written(tmp_path, SMALL + "import sys\nstep(); step(); sys.exit(3)"))
    assert left.notes[0] == "train.py ran for 2 steps; it ended by sys.exit(3)"
    assert left["accumulation"].verdict == "healthy"
    failed = watch(written(tmp_path, SMALL + "step(); step()\n1 / 0"))
    assert "it ended with an error: " in failed.notes[0]
    assert "train.py, line 14: ZeroDivisionError: division by zero 1 / 0" in failed.notes[0]


def test_an_error_before_the_first_step_is_theirs_with_its_line(tmp_path):
    written(tmp_path, "def half(x):\n    return x / 0\n", "parts.py")
    with pytest.raises(PatientError) as caught:
        watch(written(tmp_path, "import parts\n\nparts.half(1)\n"))
    assert str(caught.value) == "parts.py, line 2: ZeroDivisionError: division by zero\n    return x / 0"
    with pytest.raises(PatientError, match=r"train\.py, line 3: RuntimeError: mat1 and mat2"):
        watch(written(tmp_path, "import torch\n\ntorch.ones(2, 3) @ torch.ones(2, 3)\n"))
    with pytest.raises(PatientError, match=r"train\.py, line 2: SyntaxError: "):
        watch(written(tmp_path, "x = 1\nfor for\n"))
    with pytest.raises(
        PatientError, match=r"train\.py, line 1: EOFError: it reads standard input, which is empty here"
    ):
        watch(written(tmp_path, "name = input('which one? ')"))
    written(tmp_path, "def", "broken.py")
    with pytest.raises(PatientError, match=r"broken\.py, line 1: SyntaxError"):
        watch(written(tmp_path, "import broken"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pass", "it ended by itself, before a first step.\nSeen: no call of a model; no backward call"),
        ("import sys; sys.exit('no data')", "it ended by sys.exit('no data'), before a first step."),
        (
            SMALL + "model(torch.zeros(1, 2, dtype=torch.long)).sum().backward()",
            "calls of Sequential; 1 backward call;",
        ),
        (SMALL + "while True: model(torch.zeros(1, 2, dtype=torch.long)).sum().backward()", "512 backward calls"),
        ("import argparse; p = argparse.ArgumentParser(); p.add_argument('d'); p.parse_args()", "sys.exit(2)"),
    ],
)
def test_a_script_without_a_step_says_what_was_seen(tmp_path, text, said):
    with pytest.raises(PatientError) as caught:
        watch(written(tmp_path, text))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


def test_a_script_that_takes_too_long_is_ended(tmp_path):
    text = SMALL + "import time\nwhile True:\n    with torch.no_grad(): model(torch.zeros(1, 2, dtype=torch.long))"
    with pytest.raises(PatientError, match=r"it was ended after 0\.5 s, before a first step"):
        watch(written(tmp_path, text), seconds=0.5)


def test_bad_words(tmp_path):
    script = written(tmp_path, SMALL)
    with pytest.raises(ConfigError, match=r"tran\.py: no such file\. Did you mean .*train\.py\?"):
        watch(tmp_path / "tran.py")
    with pytest.raises(ConfigError, match="no such file"):
        watch(tmp_path)
    with pytest.raises(ConfigError, match="steps = 0: must be at least 1"):
        watch(script, steps=0)
    with pytest.raises(ConfigError, match="expect: unknown name 'same_bach'"):
        watch(written(tmp_path, SMALL + "step()"), expect={"same_bach": True})


def test_ctrl_c_stays_ctrl_c(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        watch(written(tmp_path, SMALL + "step()\nraise KeyboardInterrupt"))
