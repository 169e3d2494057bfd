"""A text as tokens on disk, and the windows taken from them."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handmade import corpora, data, texts
from handmade.data import TextData, Windows, fit_context, prepare
from handmade.errors import ConfigError, DataError, ResourceError, TokenizerError
from handmade.tokenizers import ByteTokenizer, CharTokenizer

JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 9
CHINESE = "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？\n" * 9
PORTUGUESE = "Ó mar salgado, quanto do teu sal são lágrimas de Portugal! Coração, avô, avó.\n" * 9
EMOJI = "👩‍👩‍👧 café e\u0301 🇯🇵\n" * 9

Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(content: str | bytes, name: str = "text.txt") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def parts(found: TextData) -> tuple[str, str]:
    return found.tokenizer.decode(found.train), found.tokenizer.decode(found.validation)


# --------------------------------------------------------------------------------------------------------------
# The split and the tokenizer


def test_shakespeare_is_divided_as_everywhere(cache: Path) -> None:
    folders = [Path(folder) for folder in os.environ.get("HANDMADE_DATA", "../shared/data").split(os.pathsep)]
    path = next((folder / corpora.FILE for folder in folders if (folder / corpora.FILE).exists()), None)
    if path is None:
        pytest.skip("HANDMADE_DATA does not lead to tinyshakespeare.txt")
    text = path.read_text()
    for kind, vocab_size in (("auto", 65), ("byte", 256)):
        found = prepare([path], cache, kind)
        assert (len(found.train), len(found.validation)) == (1_003_854, 111_540)
        assert found.tokenizer.vocab_size == vocab_size
        assert found.train.dtype == np.uint8
        assert parts(found) == (text[:1_003_854], text[1_003_854:])
        assert (found.characters, found.distinct, found.validation_bytes) == (1_115_394, 65, 111_539)
    assert prepare([path], cache).describe() == (
        "1,115,394 characters, 65 distinct, character tokens; 1,003,854 to train on, 111,540 to validate"
    )


@pytest.mark.parametrize("text", [JAPANESE, CHINESE, PORTUGUESE, EMOJI], ids=["ja", "zh", "pt", "emoji"])
@pytest.mark.parametrize("piece", [1, 3, 64, texts.PIECE])
def test_the_text_comes_back(put: Put, cache: Path, monkeypatch: pytest.MonkeyPatch, text: str, piece: int) -> None:
    monkeypatch.setattr(texts.read, "__defaults__", ("utf-8", piece))
    path = put(text)
    found = prepare([path], cache, "char")
    cut = int(len(text) * 0.9)
    assert parts(found) == (text[:cut], text[cut:])
    assert found.validation_bytes == len(text[cut + 1 :].encode())
    raw = text.encode()
    found = prepare([path], cache, "byte")
    cut = int(len(raw) * 0.9)
    while raw[cut] & 0xC0 == 0x80:
        cut -= 1
    assert found.train.tobytes() == raw[:cut]
    assert found.validation.tobytes() == raw[cut:]
    assert (found.tokenizer.to_dict(), found.characters) == (ByteTokenizer().to_dict(), len(text))


@given(text=st.text(st.sampled_from("aé猫👍\n"), min_size=20, max_size=60), fraction=st.sampled_from([0.1, 0.3, 0.5]))
def test_bytes_are_never_divided_inside_a_character(
    tmp_path_factory: pytest.TempPathFactory, text: str, fraction: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "divided.txt"
    path.write_text(text, newline="")
    found = prepare([path], tmp_path_factory.getbasetemp() / "divided", "byte", fraction=fraction)
    # Strict decoding: either part alone is valid UTF-8.
    train, held = found.train.tobytes().decode(), found.validation.tobytes().decode()
    assert train + held == text
    assert 0 <= int(len(text.encode()) * (1 - fraction)) - len(found.train) <= 3


def test_the_vocabulary_is_of_the_training_part_alone(put: Put, cache: Path) -> None:
    path = put("abab" * 23 + "abaz" * 2)  # 100 characters; z is in the last ten alone
    with pytest.raises(TokenizerError, match=r"text\.txt: character 96, 'z' .* is not in the training part"):
        prepare([path], cache, "char")
    found = prepare([path], cache)
    assert isinstance(found.tokenizer, ByteTokenizer)
    assert "only the validation part has 'z'" in found.reason
    # The same character once before the cut, and characters will do.
    found = prepare([put("abaz" + "abab" * 22 + "abaz" * 2)], cache)
    assert isinstance(found.tokenizer, CharTokenizer)
    assert found.tokenizer.characters == ("a", "b", "z")
    # Just before and just behind the cut, at 90 of 100.
    assert prepare([put("a" * 89 + "z" + "a" * 9 + "z")], cache).tokenizer.kind == "char"
    assert prepare([put("a" * 90 + "z" + "a" * 9)], cache).tokenizer.kind == "byte"


@pytest.mark.parametrize(("distinct", "kind"), [(256, "char"), (257, "byte")])
def test_characters_up_to_256(put: Put, cache: Path, distinct: int, kind: str) -> None:
    text = "".join(chr(0x4E00 + n) for n in range(distinct)) * 3
    found = prepare([put(text)], cache)
    assert found.tokenizer.kind == kind
    assert ("257 distinct characters are more than 256" in found.reason) == (kind == "byte")
    assert found.train.dtype == np.uint8


@pytest.mark.parametrize(("distinct", "dtype"), [(256, np.uint8), (257, np.uint16), (65537, np.uint32)])
def test_the_smallest_type_that_fits(put: Put, cache: Path, distinct: int, dtype: type) -> None:
    text = "".join(chr(0x10000 + n) for n in range(distinct))
    found = prepare([put(text + text[: distinct // 5])], cache, "char")
    assert found.train.dtype == found.validation.dtype == dtype
    assert found.tokenizer.vocab_size == distinct
    assert found.train[distinct - 1] == distinct - 1


def test_a_tokenizer_that_is_given_is_used_as_it_is(put: Put, cache: Path) -> None:
    tokenizer = CharTokenizer("zyx\nab")
    path = put("ab\nab\n" * 4)
    found = prepare([path], cache, tokenizer)
    assert found.train[:3].tolist() == [4, 5, 3]
    assert found.tokenizer.to_dict() == tokenizer.to_dict()
    # Another tokenizer is another entry in the cache.
    assert prepare([path], cache, CharTokenizer("ab\n")).train[:3].tolist() == [0, 1, 2]
    assert prepare([path], cache, ByteTokenizer()).train[:3].tolist() == [97, 98, 10]
    with pytest.raises(TokenizerError, match=r"b\.txt: character 2, 'é' .* not in the tokenizer that was given"):
        prepare([path, put("aébé", "b.txt")], cache, tokenizer)
    with pytest.raises(TokenizerError, match=r"v\.txt: character 5, '!'"):
        prepare([path], cache, tokenizer, validation=[put("abab!", "v.txt")])


def test_validation_files(put: Put, cache: Path) -> None:
    train, more, held = put("train\r\n", "a.txt"), put("ing", "b.txt"), put("aint", "v.txt")
    found = prepare([more, train], cache, validation=[held])
    assert parts(found) == ("train\ning", "aint")
    assert (found.characters, found.distinct, found.validation_bytes) == (13, 7, 3)
    # A folder that holds the validation file too does not train on it.
    again = prepare([more, held, train], cache, validation=[held])
    assert parts(again) == parts(found)
    assert len(again.notes) == 1
    # Characters of the validation file alone: bytes, or the error.
    other = put("quite", "w.txt")
    assert prepare([train], cache, validation=[other]).tokenizer.kind == "byte"
    with pytest.raises(TokenizerError, match=r"w\.txt: character 1, 'q'"):
        prepare([train], cache, "char", validation=[other])


def test_marks_line_ends_and_encodings(put: Put, cache: Path) -> None:
    lines = "Ça va?\nOui.\n" * 9
    wanted = parts(prepare([put(lines)], cache))
    crlf = lines.replace("\n", "\r\n")
    for name, content, encoding in (
        ("mark.txt", crlf.encode("utf-8-sig"), "utf-8"),
        ("wide.txt", crlf.encode("utf-16"), "utf-8"),
        ("old.txt", crlf.encode("cp1252"), "cp1252"),
    ):
        assert parts(prepare([put(content, name)], cache, encoding=encoding)) == wanted
    # The encoding is part of what the tokens depend on.
    path = put("Ça va?\n".encode("cp1252") * 9)
    for encoding, start in (("cp1252", "Ça va"), ("cp1251", "Зa va"), ("cp1252", "Ça va")):
        assert parts(prepare([path], cache, encoding=encoding))[0].startswith(start)
    # And so is where the text is divided.
    assert [len(prepare([path], cache, "byte", None, "cp1252", part).train) for part in (0.1, 0.5)] == [64, 36]


@pytest.mark.parametrize(
    ("content", "tokenizer", "problem"),
    [
        ("", "auto", r"text\.txt: the file is empty"),
        ("\ufeff", "auto", r"text\.txt: too short: 0 of at least 11 characters"),
        ("a", "auto", r"text\.txt: too short: 1 of at least 11 characters, .*--validation"),
        ("abcdefghij", "auto", r"too short: 10 of at least 11 characters"),
        ("abcdefghij", "char", r"too short: 10 of at least 11 characters"),
        ("éééé", "byte", r"too short: 8 of at least 11 bytes"),
        (b"\x89PNG\r\n\0\0", "auto", r"text\.txt: not a text file"),
        (b"caf\xe9 " * 9, "auto", r"text\.txt: byte 3 \(0xE9\) is not valid UTF-8\. .*--encoding cp1252"),
    ],
)
def test_a_text_that_cannot_be_used(put: Put, cache: Path, content: str | bytes, tokenizer: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        prepare([put(content)], cache, tokenizer)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or os.listdir(cache) == []


def test_the_shortest_texts_that_can_be_used(put: Put, cache: Path) -> None:
    for kind in ("auto", "char", "byte"):
        found = prepare([put("a" * 11)], cache, kind)
        assert (len(found.train), len(found.validation)) == (9, 2)
    found = prepare([put("a" * 5)], cache, fraction=0.4)
    assert (len(found.train), len(found.validation)) == (3, 2)
    found = prepare([put("ab", "a.txt")], cache, validation=[put("ba", "b.txt")])
    assert parts(found) == ("ab", "ba")
    for train, held, problem in (("a", "ab", r"a\.txt: .*training text: 1 of"), ("ab", "a", r"b\.txt: .*validation")):
        with pytest.raises(DataError, match=problem):
            prepare([put(train, "a.txt")], cache, "byte", validation=[put(held, "b.txt")])
    # The cut moves to the front of a character, and too little is left before it.
    with pytest.raises(DataError, match="too short"):
        prepare([put("👍👍👍")], cache, "byte", fraction=0.8)


def test_wrong_choices(put: Put, cache: Path) -> None:
    path = put("a" * 50)
    with pytest.raises(ConfigError, match=r"must be one of auto, char, byte\. Did you mean byte\?"):
        prepare([path], cache, "bytes")
    for fraction in (0, 1, -0.1, math.nan):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            prepare([path], cache, fraction=fraction)
    with pytest.raises(ConfigError, match="--encoding klingon"):
        prepare([path], cache, encoding="klingon")
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        prepare([path, cache / "none.txt"], cache)
    with pytest.raises(DataError, match="No text was given"):
        prepare([], cache)


# --------------------------------------------------------------------------------------------------------------
# The cache


def count_scans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    make = data._make
    monkeypatch.setattr(data, "_make", lambda *given: (made.append(1), make(*given)))
    return made


def test_a_second_time_nothing_is_made(put: Put, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, path, told = count_scans(monkeypatch), put(PORTUGUESE), []
    first = prepare([path], cache)
    again = prepare([path], cache, progress=lambda done, total: told.append((done, total)))
    assert made == [1]
    assert parts(again) == parts(first)
    assert again.tokenizer.to_dict() == first.tokenizer.to_dict()
    same = [getattr(found, name) for found in (first, again) for name in ("reason", "distinct", "fingerprint")]
    assert same[:3] == same[3:]
    assert told[-1][0] == told[-1][1]
    # Elsewhere under another name, the same text is the same; a changed one is another.
    prepare([put(PORTUGUESE, "copy.txt")], cache)
    assert made == [1]
    changed = prepare([put(PORTUGUESE[:-2] + "!\n")], cache)
    assert made == [1, 1]
    assert changed.fingerprint != first.fingerprint
    assert parts(changed)[1].endswith("!\n")


def test_what_is_not_whole_is_made_again(put: Put, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, path = count_scans(monkeypatch), put(PORTUGUESE)
    wanted = parts(prepare([path], cache))
    names = sorted(os.listdir(cache))
    assert [Path(name).suffix for name in names] == [".json", ".train", ".validation"]
    for number, name in enumerate(names):
        for damage in ("gone", "empty", "shorter"):
            file = cache / name
            content = file.read_bytes()
            file.unlink()
            if damage != "gone":
                file.write_bytes(b"" if damage == "empty" else content[:-3])
            made.clear()
            assert parts(prepare([path], cache)) == wanted
            assert made == [1], (number, damage)
    record = cache / names[0]
    for wrong in ("[]", "{}", json.dumps({**json.loads(record.read_text()), "version": 0})):
        record.write_text(wrong)
        made.clear()
        assert parts(prepare([path], cache)) == wanted
        assert made == [1]


@pytest.mark.skipif(not hasattr(os, "kill") or os.name == "nt", reason="needs POSIX signals")
def test_killed_while_the_tokens_are_written(put: Put, cache: Path) -> None:
    path = put(PORTUGUESE)
    script = (
        "import os, sys\nfrom handmade import data\n"
        "put = data._Part.put\n"
        "def die(part, ids):\n    put(part, ids); part.file.flush(); os.kill(os.getpid(), 9)\n"
        "data._Part.put = die\ndata.prepare([sys.argv[1]], sys.argv[2])"
    )
    assert subprocess.run([sys.executable, "-c", script, path, cache], check=False).returncode == -9
    left = os.listdir(cache)
    assert len(left) == 2
    assert all(name.endswith(".part") for name in left)
    text = PORTUGUESE
    assert parts(prepare([path], cache)) == (text[: int(len(text) * 0.9)], text[int(len(text) * 0.9) :])
    assert len(os.listdir(cache)) == 3  # what was left over is swept up


def test_a_disk_without_room_is_known_before(put: Put, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1500))
    path = put("a\n" * 1000)
    with pytest.raises(ResourceError, match=r"the tokens of .*text\.txt \(2\.0 kB\) in .*1\.5 kB is free.*HANDMADE"):
        prepare([path], cache)
    assert not cache.exists()
    prepare([put("a\n" * 700)], cache)


def test_a_disk_that_fills_up_leaves_nothing(put: Put, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = put("a\n" * 1000)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"No disk space for the tokens of .*text\.txt \(2\.0 kB\)"):
        prepare([path], cache)
    assert os.listdir(cache) == []
    monkeypatch.undo()
    assert len(prepare([path], cache).train) == 1800


def test_a_file_that_grows_meanwhile_is_refused(put: Put, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, choose = put("a\n" * 1000), data._choose

    def grow(*given: object) -> object:
        path.write_text("a\n" * 1001)
        return choose(*given)

    monkeypatch.setattr(data, "_choose", grow)
    with pytest.raises(DataError, match="changed while it was being read"):
        prepare([path], cache)
    assert os.listdir(cache) == []


def test_progress_goes_from_nothing_to_all(put: Put, cache: Path) -> None:
    told: list[tuple[int, int]] = []
    path = put("a\n" * 300_000)
    prepare([path], cache, progress=lambda done, total: told.append((done, total)))
    done = [entry[0] for entry in told]
    assert done == sorted(done)
    assert {entry[1] for entry in told} == {3 * 600_000}
    assert done[-1] == 3 * 600_000
    assert len(told) > 6


# --------------------------------------------------------------------------------------------------------------
# Memory

CHILD = """
import sys
from pathlib import Path
from handmade import data
from handmade.tokenizers import CharTokenizer
def resident():
    return next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon"))
print(resident(), flush=True)
data.prepare([sys.argv[1]], sys.argv[2], sys.argv[3])
"""


def peak_of_preparing(path: Path, cache: Path, tokenizer: str) -> tuple[int, int]:
    """Bytes of anonymous resident memory: after importing, and the peak."""
    command = [sys.executable, "-c", CHILD, str(path), str(cache), tokenizer]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        before = int(child.stdout.readline()) * 1024
        peak = before
        while child.poll() is None:
            status = Path(f"/proc/{child.pid}/status").read_text()
            found = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")]
            peak = max([peak, *found])
            time.sleep(0.005)
        assert child.returncode == 0
    return before, peak


def write_text(path: Path, size: int) -> None:
    block = (PORTUGUESE * 40 + JAPANESE * 4 + "plain words\n" * 4000).encode()
    with path.open("wb") as file:
        for _ in range(-(-size // len(block))):
            file.write(block)


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@needs_proc
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt", 60_000_000)
    before, peak = peak_of_preparing(tmp_path / "text.txt", tmp_path / "cache", "char")
    assert peak - before < 30_000_000  # half of the text; read whole it would be several times the text


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_a_text_of_1_gb_takes_less_than_300_mb(tmp_path: Path, tokenizer: str) -> None:
    write_text(tmp_path / "text.txt", 1_000_000_000)
    try:
        _, peak = peak_of_preparing(tmp_path / "text.txt", tmp_path / "cache", tokenizer)
    finally:
        shutil.rmtree(tmp_path)
    assert peak < 300_000_000


# --------------------------------------------------------------------------------------------------------------
# Windows


def test_every_window_can_be_drawn_and_no_other() -> None:
    tokens = np.arange(12, dtype=np.uint8)
    windows = Windows(tokens, context=4)
    assert len(windows) == 8
    inputs, targets = windows.draw(torch.Generator().manual_seed(0), 4000)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape == (4000, 4)
    assert inputs.is_contiguous()
    assert targets.is_contiguous()
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(4))
    drawn = Counter(inputs[:, 0].tolist())
    assert sorted(drawn) == list(range(8))
    # As likely as any other: 500 each, give or take five standard deviations.
    assert all(abs(count - 500) < 5 * math.sqrt(4000 * 1 / 8 * 7 / 8) for count in drawn.values())


def test_a_split_of_one_window() -> None:
    inputs, targets = Windows(np.array([7, 8, 9], dtype=np.uint16), 2).draw(torch.Generator(), 3)
    assert inputs.tolist() == [[7, 8]] * 3
    assert targets.tolist() == [[8, 9]] * 3


def test_a_generator_put_back_draws_the_same() -> None:
    windows, generator = Windows(np.arange(999, dtype=np.uint16), 8), torch.Generator().manual_seed(3)
    windows.draw(generator, 5)
    state = generator.get_state()
    first = [windows.draw(generator, 5)[0] for _ in range(3)]
    generator.set_state(state)
    assert all(torch.equal(windows.draw(generator, 5)[0], inputs) for inputs in first)
    assert not torch.equal(first[0], first[1])


@given(tokens=st.integers(2, 60), context=st.integers(1, 20), batch=st.integers(1, 5))
def test_a_walk_scores_every_token_after_the_first_once(tokens: int, context: int, batch: int) -> None:
    values = np.arange(1000, 1000 + tokens, dtype=np.uint16)
    scored, shapes, state = [], set(), torch.get_rng_state()
    for inputs, targets in Windows(values, context).walk(batch):
        shapes.add((*inputs.shape, *targets.shape))
        keep = targets != -100
        assert torch.equal(inputs[keep] + 1, targets[keep])
        # What is filled in is at the end, and a token that the model knows.
        assert (inputs[~keep] == 0).all()
        scored += targets[keep].tolist()
        # A row sees what comes before, without a gap.
        for row, kept in zip(inputs, keep, strict=True):
            assert row[kept].tolist() == list(range(int(row[0]), int(row[0]) + int(kept.sum())))
    assert scored == list(range(1001, 1000 + tokens))
    rows = min(batch, -(-(tokens - 1) // context))
    assert shapes == {(rows, context, rows, context)}
    assert torch.equal(torch.get_rng_state(), state)


def test_windows_hold_no_copy_of_the_split(put: Put, cache: Path) -> None:
    found = prepare([put("ab\n" * 1000)], cache)
    assert np.shares_memory(Windows(found.train, 64).tokens, found.train)
    assert not found.train.flags.writeable


def test_a_context_that_does_not_fit() -> None:
    windows = Windows(np.arange(5, dtype=np.uint8), 5)
    assert len(windows) == 0
    with pytest.raises(DataError, match=r"A context of 5 needs 6 tokens and the split has 5.* at most 4"):
        windows.draw(torch.Generator(), 1)
    ((inputs, targets),) = windows.walk(8)
    assert inputs.tolist() == [[0, 1, 2, 3, 0]]
    assert targets.tolist() == [[1, 2, 3, 4, -100]]
    context, told = fit_context(5, 5)
    assert context == 4
    assert "5 tokens, so the context is 4 instead of 5" in told
    assert len(Windows(np.arange(5), context)) == 1
    assert fit_context(6, 5) == (5, "")
    with pytest.raises(DataError, match="A split of 1 tokens has no window"):
        Windows(np.zeros(1), 4)
    with pytest.raises(ConfigError, match="context = 0"):
        Windows(np.zeros(9), 0)
