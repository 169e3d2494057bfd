"""The command line as a person meets it: help, mistakes, sample, eval, presets. `train` has its own file."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import handmade
from handmade import cli
from handmade.cli import main
from handmade.errors import HandmadeError

TEXT = "the cat sat on the mat. a dog ran to the cat!\n" * 40
TINY = {
    "model.layers": 2,
    "model.heads": 2,
    "model.width": 16,
    "model.context": 16,
    "train.steps": 60,
    "train.batch": 8,
    "train.precision": "float32",
    "train.compile": "no",
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with text.txt and a tiny run of it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    options = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
    main(["train", str(folder / "text.txt"), "--out", str(folder / "run"), *options])
    return folder


@pytest.fixture
def run(trained):
    return str(trained / "run")


@pytest.fixture
def copy(trained, tmp_path):
    """A run that may be damaged."""
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


@pytest.fixture
def say(capsys):
    """Call the command line. Returns its exit code, standard output, standard error."""

    def call(*words):
        capsys.readouterr()
        try:
            main([str(word) for word in words])
            code = 0
        except SystemExit as leaving:
            code = leaving.code
        output, errors = capsys.readouterr()
        return code, output, errors

    return call


@pytest.fixture
def refused(say):
    """Call the command line with a mistake: exit code 2, a line or two that say it, nothing else. Returns them."""

    def call(*words):
        code, output, errors = say(*words)
        assert code == 2, errors
        assert output == ""
        assert errors.startswith("handmade: ")
        assert errors.count("\n") <= 2
        assert errors.endswith("\n")
        assert "Traceback" not in errors
        return errors.removeprefix("handmade: ").rstrip("\n")

    return call


@pytest.fixture
def typed(monkeypatch):
    """Have standard input hold some bytes, as from a pipe."""

    def put(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return put


# ---------------------------------------------------------------------------------------------------------------
# Help


def test_help_answers_at_once_and_loads_nothing():
    """In a process of its own. What counts is its processor time: the machine may be busy with other tests."""
    code = "import sys, handmade.cli; handmade.cli.main(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = os.times()
    seconds = after.children_user - before.children_user + after.children_system - before.children_system
    assert seconds < 0.3
    loaded = set(re.findall(r"'([\w.]+)'", done.stderr))
    assert "handmade.cli" in loaded
    assert not loaded & {"torch", "numpy", "rich", "cyclopts", "matplotlib"}
    for command in cli.COMMANDS:
        assert re.search(rf"^  {command} +\w", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("words", [[], ["-h"], ["help"]])
def test_help_by_other_words(say, words):
    assert say(*words) == say("--help")


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_of_a_command(command):
    """Without torch, in plain text when piped, and every option explained."""
    code = f"import sys, handmade.cli; handmade.cli.main(['{command}', '--help']); assert 'torch' not in sys.modules"
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert done.stdout.startswith(f"Usage: handmade {command}")
    options = re.findall(r"^ +(--[\w-]+)(.*)$", done.stdout, re.MULTILINE)
    assert options
    for name, rest in options:
        assert re.search(r"  [\w(]", rest), f"{name} is not explained"


def test_version(say):
    assert say("--version") == (0, f"handmade {handmade.__version__}\n", "")


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "handmade", "--version"], capture_output=True, text=True)
    assert done.stdout == f"handmade {handmade.__version__}\n"


# ---------------------------------------------------------------------------------------------------------------
# Wrong words


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["smple"], "unknown command smple. Did you mean sample?"),
        (["xyzzy"], "unknown command xyzzy. There are train, sample, eval, ladder, doctor, presets."),
        (["--versoin"], "unknown option --versoin. Did you mean --version?"),
        (["sample"], "sample needs a RUN. See: handmade sample --help"),
        (["sample", "RUN", "--toknes", "3"], "unknown option --toknes. Did you mean --tokens?"),
        (["sample", "RUN", "--toknes=3"], "unknown option --toknes. Did you mean --tokens?"),
        (["sample", "RUN", "--qqqqqqqqqqqq"], "unknown option --qqqqqqqqqqqq. See: handmade sample --help"),
        (["sample", "RUN", "--tokens"], "--tokens needs a value. See: handmade sample --help"),
        (["sample", "RUN", "--prompt"], "--prompt needs a value. See: handmade sample --help"),
        (["sample", "RUN", "--tokens", "ten"], "--tokens ten: must be a whole number."),
        (["sample", "RUN", "--tokens", "1.5"], "--tokens 1.5: must be a whole number."),
        (["sample", "RUN", "--top-k", "1.5"], "--top-k 1.5: must be a whole number."),
        (["sample", "RUN", "--temperature", "hot"], "--temperature hot: must be a number."),
        (["sample", "RUN", "--tokens", "1", "--tokens", "2"], "--tokens is given twice. See: handmade sample --help"),
        (["sample", "RUN", "another"], "another: not expected here. See: handmade sample --help"),
        (["sample", "RUN", "--tokens", "-1"], "--tokens -1: must be 0 or more."),
        (["sample", "RUN", "--samples", "0"], "--samples 0: must be at least 1."),
        (["sample", "RUN", "--seed", "-1"], "--seed -1: must be from 0 to 2^63 - 1."),
        (["sample", "RUN", "--top-k", "0"], "--top-k 0: must be at least 1, or none."),
        (["sample", "RUN", "--top-p", "1.5"], "--top-p 1.5: must be above 0 and at most 1, or none."),
        (["sample", "RUN", "--min-p", "-0.1"], "--min-p -0.1: must be from 0 to 1, or none."),
        (["sample", "RUN", "--temperature", "-1"], "--temperature -1.0: must be 0 "),
        (["sample", "RUN", "--temperature", "nan"], "--temperature nan: must be 0 "),
        (["sample", "RUN", "--stop", ""], "--stop '': must be some text"),
        (["eval", "RUN", "--precision", "bfloat"], "--precision bfloat: must be one of float32, bfloat16, float16."),
        (["eval", "RUN", "--jsn"], "unknown option --jsn. Did you mean --json?"),
        (["presets", "all"], "all: not expected here. See: handmade presets --help"),
    ],
)
def test_wrong_words(refused, run, words, answer):
    assert refused(*[run if word == "RUN" else word for word in words]).startswith(answer)


def test_a_device_that_is_not_there(refused, run):
    for command in ("sample", "eval"):
        assert refused(command, run, "--device", "cuda:99").startswith("device cuda:99: not on this machine")


def test_errors_from_the_installed_command():
    done = subprocess.run([sys.executable, "-m", "handmade", "smple"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "handmade: unknown command smple. Did you mean sample?\n"


def fail(monkeypatch, problem):
    """Have `handmade presets` raise."""

    def presets():
        raise problem

    monkeypatch.setattr(cli, "function_of", lambda name: presets)


def test_an_error_of_a_person_is_a_line(monkeypatch, refused):
    fail(monkeypatch, HandmadeError("text.txt: no such file."))
    assert refused("presets") == "text.txt: no such file."


def test_a_file_that_may_not_be_read_is_a_line(monkeypatch, refused):
    fail(monkeypatch, PermissionError(13, "Permission denied", "text.txt"))
    assert refused("presets") == "text.txt: permission denied."


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch, say):
    fail(monkeypatch, ValueError("ours"))
    with pytest.raises(ValueError, match="ours"):
        say("presets")


def test_ctrl_c_is_quiet(monkeypatch, say):
    fail(monkeypatch, KeyboardInterrupt())
    assert say("presets") == (130, "", "")


def test_text_comes_as_it_is_made_and_a_closed_pipe_is_quiet(run):
    words = [sys.executable, "-m", "handmade", "sample", run, "--prompt", "the ", "--tokens", "1000000"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    watchdog = threading.Timer(120, process.kill)  # a million tokens take much longer
    watchdog.start()
    try:
        assert process.stdout.read(40).startswith(b"the ")
        process.stdout.close()
        assert process.wait() == 141
        assert process.stderr.read() == b""
    finally:
        watchdog.cancel()
        process.kill()
        process.stderr.close()
        process.wait()


def test_a_pipe_that_was_closed_from_the_start_is_quiet():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "handmade", "--help"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_exit_code_of_a_command_is_passed_on(monkeypatch, say):
    monkeypatch.setattr(cli, "function_of", lambda name: lambda: 143)
    assert say("presets") == (143, "", "")


# ---------------------------------------------------------------------------------------------------------------
# sample


def test_sample_is_what_generate_gives(say, run):
    options = {"temperature": 0.8, "top_k": 9, "top_p": 0.95, "min_p": 0.02, "seed": 7}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    code, output, errors = say("sample", run, "--prompt", "the ", "--tokens", 50, *words)
    assert (code, errors) == (0, "")
    text = handmade.load(run).generate("the ", tokens=50, **options)
    assert len(text) == 50
    assert output == "the " + text + ("" if text.endswith("\n") else "\n")


def test_several_samples_are_what_generate_gives(say, run):
    _, output, _ = say("sample", run, "--prompt", "a ", "--tokens", 9, "--samples", 3, "--seed", 5)
    texts = handmade.load(run).generate("a ", tokens=9, samples=3, seed=5)
    assert len(set(texts)) == 3
    assert output.splitlines() == "\n---\n".join("a " + text for text in texts).splitlines()


def test_several_prompts_of_different_lengths(say, run):
    _, output, _ = say("sample", run, "--prompt", "the cat sat", "--prompt", "a ", "--tokens", 8, "--temperature", 0)
    loaded = handmade.load(run)
    first, second = (p + loaded.generate(p, tokens=8, temperature=0) for p in ("the cat sat", "a "))
    assert output.splitlines() == f"{first}\n---\n{second}\n".splitlines()


def test_the_same_seed_gives_the_same_text(say, run):
    texts = [say("sample", run, "--prompt", "the", "--tokens", 20, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_stop_strings_as_typed_in_a_shell(say, run):
    _, output, _ = say("sample", run, "--prompt", "the cat", "--tokens", 500, "--stop", r"\n", "--stop", "qq")
    whole = say("sample", run, "--prompt", "the cat", "--tokens", 500)[1]
    assert whole.startswith(output)
    assert output.count("\n") == 1
    assert whole.count("\n") > 1


def test_prompts_as_typed_in_a_shell(say, run):
    code, output, _ = say("sample", run, "--prompt", r"the cat!\na", "--tokens", 3)
    assert code == 0
    assert output.startswith("the cat!\na")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"a\nb", "a\nb"),
        (r"\n\n", "\n\n"),
        (r"\t\r", "\t\r"),
        (r"a\\nb", r"a\nb"),
        (r"\alpha\q", r"\alpha\q"),
        ("é", "é"),
    ],
)
def test_escapes(typed, meant):
    from handmade.cli.sample import unescape

    assert unescape(typed) == meant


def test_a_prompt_may_begin_with_dashes_and_brackets(refused, run):
    """It is taken as it is: what is wrong with it is only that the model never saw these characters."""
    for prompt in ("--tokens", "-a", "[1, 2]", '{"a": 1}'):
        assert refused("sample", run, "--prompt", prompt).startswith(f"prompt {prompt!r}: Character 1, ")


def test_an_unknown_character_is_named_before_anything_is_written(refused, run):
    message = refused("sample", run, "--prompt", "the ", "--prompt", "a cat é")
    assert message.startswith("prompt 'a cat é': Character 7, 'é' (U+00E9, LATIN SMALL LETTER E WITH ACUTE)")


def test_bytes_that_are_no_text(refused, run):
    assert "Character 2" in refused("sample", run, "--prompt", "a\udcff")  # what a shell's \xff becomes


def test_each_line_of_a_pipe_is_a_prompt(say, run, typed):
    typed(b"\xef\xbb\xbfthe\r\na dog\n")
    code, output, _ = say("sample", run, "--tokens", 5, "--temperature", 0)
    assert code == 0
    first, second = output.split("\n---\n")
    assert re.fullmatch(r"the.{5}", first, re.DOTALL)
    assert re.fullmatch(r"a dog.{5}\n?", second, re.DOTALL)


def test_an_empty_pipe_has_the_model_begin(say, run, typed):
    typed(b"")
    code, output, _ = say("sample", run, "--tokens", 30)
    assert code == 0
    assert len(output) in (30, 31)


def test_a_bad_line_of_a_pipe_is_named(say, run, typed):
    for content, what in ((b"the\nC3PO\n", "prompt 'C3PO': Character 1"), (b"the\nab\xff\n", "not UTF-8 at byte 3")):
        typed(content)
        code, output, errors = say("sample", run, "--tokens", 3)
        assert code == 2
        assert output.startswith("the")
        assert errors.startswith(f"handmade: standard input, line 2: {what}")
        assert errors.count("\n") == 1


def converse(run, keys, *words):
    """Type into a session on a terminal. Returns what is on its screen, and the exit code."""
    pty = pytest.importorskip("pty")
    screen, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(
        [sys.executable, "-m", "handmade", "sample", run, "--tokens", "20", *words],
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
        env=environment,
        start_new_session=True,
    )
    os.close(terminal)
    seen, typed = b"", 0
    try:
        while True:
            try:
                seen += os.read(screen, 1000)
            except OSError:  # the other side has closed
                break
            if typed < len(keys) and seen.count(b"> ") == typed + 1:
                os.write(screen, keys[typed])
                typed += 1
    finally:
        code = process.wait(timeout=60)
        os.close(screen)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode()).replace("\r\n", "\n"), code


def test_a_conversation(run):
    text, code = converse(run, [b"the cat\n", b"C3PO\n", b"the cat\n", b"\x04"])
    assert code == 0
    prompts = text.split("> ")
    assert len(prompts) == 5  # three lines, and the one that Ctrl-D ends
    assert "handmade: prompt 'C3PO': Character 1, 'C'" in prompts[2]
    loaded = handmade.load(run)
    one, two = loaded.generate("the cat", tokens=20, samples=2, seed=0)
    assert one != two
    assert f"the cat\nthe cat{one}" in prompts[1]
    assert f"the cat\n---\nthe cat{two}" in prompts[3]


def test_a_terminal_is_not_steered_by_a_model():
    from handmade.cli.sample import CONTROL

    assert CONTROL.sub("?", "a\x1b[2J\tb\n\x07\x9b\r") == "a?[2J\tb\n???"


# ---------------------------------------------------------------------------------------------------------------
# eval


def test_eval(say, run):
    code, output, errors = say("eval", run)
    assert (code, errors) == (0, "")
    scores = json.loads(say("eval", run, "--json")[1])
    assert scores["tokens"] == len(TEXT) // 10 - 1
    assert scores["perplexity"] == pytest.approx(math.exp(scores["val_loss"]))
    assert scores["bits_per_byte"] == pytest.approx(scores["val_loss"] / math.log(2))  # a byte is a token in ASCII
    line = json.loads((Path(run) / "config.json").read_text())["counting_line"]
    assert scores["counting_line"] == line
    for figure in (f"{scores['val_loss']:.4f}", f"{scores['perplexity']:,.2f}", f"{line:.4f}", "183 tokens", "float32"):
        assert figure in output
    assert f"{scores['val_loss'] - line:.4f} above it" in output


def test_eval_scores_the_best_weights(say, run):
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    best = min(line["val_loss"] for line in lines if "val_loss" in line)
    assert json.loads(say("eval", run, "--json")[1])["val_loss"] == pytest.approx(best, rel=1e-5)


def test_eval_on_another_text(say, run, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("a cat ran. " * 60)
    code, output, _ = say("eval", run, "--data", other)
    assert code == 0
    assert f"on {other}" in output
    assert "65 tokens" in output
    assert "to beat" not in output  # the counting line is of the run's own text


def test_eval_in_lower_precision(say, run):
    exact, rough = (json.loads(say("eval", run, "--json", "--precision", kind)[1]) for kind in ("float32", "bfloat16"))
    assert rough["val_loss"] == pytest.approx(exact["val_loss"], rel=0.05)
    assert rough["val_loss"] != exact["val_loss"]


def test_eval_of_a_text_that_is_gone_or_has_changed(refused, trained, run):
    text = trained / "text.txt"
    content = text.read_text()
    try:
        text.unlink()
        assert refused("eval", run).startswith(f"{text}: ")
        text.write_text(content.replace("dog", "god"))
        assert "has changed" in refused("eval", run)
    finally:
        text.write_text(content)


def test_eval_of_a_text_that_cannot_be_used(refused, run, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "other.txt").write_text("ÜBER " * 100)
    assert "no such file" in refused("eval", run, "--data", tmp_path / "nothing.txt")
    assert "empty" in refused("eval", run, "--data", tmp_path / "empty.txt")
    assert "Ü" in refused("eval", run, "--data", tmp_path / "other.txt")


# ---------------------------------------------------------------------------------------------------------------
# Run folders that are not whole


def test_a_run_that_is_not_there(refused, trained, tmp_path):
    for command in ("sample", "eval"):
        assert refused(command, tmp_path / "runs" / "x").startswith(f"{tmp_path / 'runs' / 'x'}: no such run.")
        assert refused(command, tmp_path).startswith(f"{tmp_path}: holds no run")
        assert f"Did you mean {trained / 'run'}?" in refused(command, trained / "rin")
        assert refused(command, trained / "text.txt").startswith(f"{trained / 'text.txt'}: ")


NEEDED = ("config.json", "tokenizer.json", "model.safetensors")
DAMAGES = {
    "removed": lambda content: None,
    "emptied": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content.rstrip()[:-1],
    "garbage": lambda content: b"\x00\xffgarbage" * 30,
}


def put(path, content):
    path.unlink() if content is None else path.write_bytes(content)


@pytest.mark.parametrize("damage", list(DAMAGES))
@pytest.mark.parametrize("name", NEEDED)
def test_a_damaged_file_is_named(refused, copy, name, damage):
    put(copy / name, DAMAGES[damage]((copy / name).read_bytes()))
    for command in (["sample", copy, "--prompt", "the"], ["eval", copy]):
        message = refused(*command)
        assert message.startswith(str(copy))
        assert name in message or damage == "removed"


def test_a_flipped_bit_in_the_weights(refused, copy):
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    assert "model.safetensors: damaged" in refused("sample", copy, "--prompt", "the")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 99),
        ("family", "transformer"),
        ("family", ["gpt"]),
        ("model", {}),
        ("model", 3),
        ("model", None),
        ("model", {"vocab_size": 16, "layers": -1}),
        ("model", {"vocab_size": 16, "no_such_option": 1}),
        ("model", {"vocab_size": 17}),
        ("data", None),
        ("data", {}),
        ("data", {"files": 3}),
    ],
)
def test_a_config_with_nonsense_is_named(refused, copy, key, value):
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    message = refused("eval", copy)
    assert message.startswith(str(copy))
    assert "\n" not in message


@pytest.mark.parametrize(
    "content",
    [
        '{"kind": "char"}',
        "[]",
        '{"kind": "char", "version": 1, "characters": "ab"}',  # of another vocabulary than the model
    ],
)
def test_a_tokenizer_with_nonsense_is_named(refused, copy, content):
    (copy / "tokenizer.json").write_text(content)
    assert refused("sample", copy, "--prompt", "a").startswith(str(copy))


def test_a_tokenizer_of_as_many_other_tokens_is_named(refused, copy):
    path = copy / "tokenizer.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "characters": whole["characters"][::-1]}))
    for command in (["sample", copy, "--prompt", "the"], ["eval", copy]):
        assert refused(*command) == f"{path}: not the tokenizer of this run: its tokens were changed."


@pytest.mark.parametrize("name", ["metrics.jsonl", "curve.png", "checkpoints"])
def test_what_sampling_does_not_need_may_be_gone(say, copy, name):
    path = copy / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert say("sample", copy, "--prompt", "the", "--tokens", 2)[0] == 0


# ---------------------------------------------------------------------------------------------------------------
# presets


@pytest.fixture(scope="module")
def rows():
    """What `handmade presets --json` prints."""
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        main(["presets", "--json"])
    return {row["name"]: row for row in json.loads(written.getvalue())}


@pytest.mark.parametrize("width", [80, 100])
def test_presets(say, rows, monkeypatch, width):
    from handmade.cli import presets

    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(presets, "facts", rows.get)  # counted already
    code, output, errors = say("presets")
    assert (code, errors) == (0, "")
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= width
    words = " ".join(output.split())
    for name, row in rows.items():
        figures = [presets.millions(row["parameters"]), f"{row['context']:,}", presets.gigabytes(row["memory_bytes"])]
        assert re.search(rf"^{name} .*{'.*'.join(map(re.escape, figures))} +{row['steps']:,}$", output, re.MULTILINE)
        assert " ".join(row["about"].split()) in words
        assert " ".join(row["source"].split()) in words


def test_every_preset_is_there_and_counts_as_its_source_does(rows):
    from handmade.models import GPT, GPTConfig
    from handmade.presets import PRESETS

    assert list(rows) == list(PRESETS)
    millions = {"gpt1": 117, "gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558, "gpt3-125m": 125}
    assert {name: round(rows[name]["parameters"] / 1e6) for name in millions} == millions
    small = GPT(GPTConfig.from_dict({**rows["baby-cpu"]["model"], "vocab_size": 65}))
    assert rows["baby-cpu"]["parameters"] == sum(p.numel() for p in small.parameters())
    assert rows["nanogpt-cpu"]["batch"] == 12
    assert rows["gpt2"]["batches_per_step"] * rows["gpt2"]["batch"] * rows["gpt2"]["context"] == 524_288
    assert rows["gpt2-xl"]["memory_bytes"] > 4 * 4 * rows["gpt2-xl"]["parameters"]  # weights, gradients, two of Adam


@pytest.mark.parametrize(
    ("count", "text"),
    [(8865, "8,865"), (804_096, "0.80 M"), (10_745_088, "10.7 M"), (124_439_808, "124 M"), (1_557_611_200, "1,558 M")],
)
def test_millions(count, text):
    from handmade.cli.presets import millions

    assert millions(count) == text
