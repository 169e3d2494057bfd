"""Reading text files: encodings, line endings, piece borders, and files that are not text."""

from __future__ import annotations

import codecs
import os
import random
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handmade import texts
from handmade.errors import ConfigError, DataError

JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"
CHINESE = "我们在这里学习中文，这是一个很有意思的国家，他们都来了，大家不说了。\n"
TRADITIONAL = "我們在這裡學習中文，這是一個很有意思的國家，他們都來了，大家不說了。\n"
KOREAN = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.\n"
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"
PORTUGUESE = "Ó mar salgado, quanto do teu sal são lágrimas de Portugal! Coração, avô, avó.\n"


def read(path: Path, encoding: str = "utf-8", piece: int = texts.PIECE) -> str:
    return "".join(text for text, _ in texts.read(path, encoding, piece))


def put(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --------------------------------------------------------------------------------------------------------------
# One file


@given(
    text=st.text(st.sampled_from("a猫é👍\r\n"), min_size=1, max_size=30),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-32-be", "gb18030"]),
    piece=st.integers(1, 9),
)
def test_pieces_break_nothing(tmp_path_factory: pytest.TempPathFactory, text: str, encoding: str, piece: int) -> None:
    path = put(tmp_path_factory.getbasetemp() / "pieces.txt", text.encode(encoding))
    assert read(path, encoding, piece) == text.replace("\r\n", "\n").replace("\r", "\n")
    assert sum(size for _, size in texts.read(path, encoding, piece)) == path.stat().st_size


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_byte_order_mark_decides_and_goes(tmp_path: Path, mark: bytes, encoding: str) -> None:
    path = put(tmp_path / "marked.txt", mark + JAPANESE.encode(encoding))
    for asked in ("utf-8", encoding, "utf-16", "cp1252"):
        assert read(path, asked) == JAPANESE
        assert read(path, asked, piece=3) == JAPANESE
    assert texts.kind(path) == "text"
    assert texts.kind(put(tmp_path / "only.txt", mark)) == "empty"


def test_a_mark_inside_the_text_stays(tmp_path: Path) -> None:
    assert read(put(tmp_path / "a.txt", "a\ufeffb")) == "a\ufeffb"


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 64, texts.PIECE])
def test_invalid_utf8_names_the_byte(tmp_path: Path, piece: int) -> None:
    good = "猫é" * 20
    path = put(tmp_path / "bad.txt", codecs.BOM_UTF8 + good.encode() + b"\xe7\x8c!" + good.encode())
    with pytest.raises(DataError, match=r"bad\.txt: byte 103 \(0xE7\) is not valid UTF-8\. .*damaged there"):
        read(path, piece=piece)


def test_a_sequence_cut_at_the_end_names_its_byte(tmp_path: Path) -> None:
    path = put(tmp_path / "bad.txt", b"abc" + "猫".encode()[:2])
    with pytest.raises(DataError, match=r"byte 3 \(0xE7\) is not valid UTF-8"):
        read(path)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
        (CHINESE, "gb18030"),
        (TRADITIONAL, "big5"),
        (KOREAN, "euc_kr"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8_r"),
        (PORTUGUESE, "cp1252"),
        ("caf\xe9", "cp1252"),
        ("plain English in wide letters\n", "utf-16-le"),
        ("plain English in wide letters\n", "utf-16-be"),
    ],
)
def test_the_likely_encoding_is_named_and_reads_it(tmp_path: Path, text: str, encoding: str) -> None:
    path = put(tmp_path / "other.txt", text.encode(encoding))
    with pytest.raises(DataError, match=rf"try --encoding {encoding}\b"):
        read(path)
    assert read(path, encoding) == text


def test_the_likely_encoding_far_into_a_file(tmp_path: Path) -> None:
    path = put(tmp_path / "far.txt", b"plain\n" * 100_000 + JAPANESE.encode("shift_jis") * 100)
    with pytest.raises(DataError, match=r"byte 600,000 \(0x8C\) .*--encoding shift_jis"):
        read(path)


def test_utf8_read_as_something_else_is_told(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", JAPANESE * 3)
    with pytest.raises(DataError, match=r"not valid euc_jp.* looks like UTF-8: leave --encoding out"):
        read(path, "euc_jp")


@pytest.mark.parametrize("name", ["utf8x", "hex", "rot13", "", "no such"])
def test_an_unknown_encoding(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--encoding {name}: not an encoding"):
        texts.check_encoding(name)


def test_an_encoding_with_a_slip_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean shift-jis\?"):
        texts.check_encoding("shift-jiss")


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        zlib.compress(random.Random(0).randbytes(5000)),
        b"a few words\0and more",
        bytes(range(1, 9)) * 20,
    ],
    ids=["png", "compressed", "nul", "controls"],
)
def test_a_binary_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "picture.txt", content)
    assert texts.kind(path) == "binary"
    with pytest.raises(DataError, match=r"picture\.txt: not a text file"):
        read(path)


def test_a_nul_late_in_a_file_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "late.txt", b"words\n" * 100_000 + b"\0")
    assert texts.kind(path) == "text"
    with pytest.raises(DataError, match=r"late\.txt: not a text file \(a NUL after byte 524,288\)"):
        read(path)


def test_coloured_terminal_output_is_text(tmp_path: Path) -> None:
    assert read(put(tmp_path / "log.txt", "\x1b[31mred\x1b[0m\t\x0c\n" * 9)).startswith("\x1b[31mred")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        read(tmp_path / "none.txt")
    with pytest.raises(DataError, match="a folder, not a file"):
        read(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / ("x" * 5000))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="cannot be read twice"):
        read(tmp_path / "pipe")


# --------------------------------------------------------------------------------------------------------------
# Several files


def joined(files: texts.TextFiles, held: bool = False) -> str:
    return "".join(text for _, text in files.pieces(files.held if held else files.train))


def test_files_are_joined_in_sorted_order_each_ending_in_a_newline(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    inside = put(tmp_path / "a" / "z.txt", "inside\r\n")
    first = put(tmp_path / "a-first.txt", "first")
    second = put(tmp_path / "b.txt", "second")
    for order in ([second, first, inside], [inside, second, first, second]):
        files = texts.take(order)
        assert files.train == [inside, first, second]
        assert joined(files) == "inside\nfirst\nsecond"
        # The newline belongs to the file that lacked it.
        pieces: dict[Path, str] = {}
        for path, text in files.pieces(files.train):
            pieces[path] = pieces.get(path, "") + text
        assert pieces == {inside: "inside\n", first: "first\n", second: "second"}


def test_a_file_is_taken_once(tmp_path: Path) -> None:
    first, copy = put(tmp_path / "a.txt", "same"), put(tmp_path / "b.txt", "same")
    link = tmp_path / "c.txt"
    link.symlink_to(first)
    files = texts.take([first, link, copy, os.path.relpath(first)])
    assert joined(files) == "same"
    assert len(files.notes) == 1
    assert "b.txt: the same text as" in files.notes[0]


def test_empty_files_are_left_out_unless_there_is_nothing_else(tmp_path: Path) -> None:
    empty, full = put(tmp_path / "a.txt", ""), put(tmp_path / "b.txt", "text")
    files = texts.take([empty, full])
    assert joined(files) == "text"
    assert files.notes == [f"{empty}: empty, left out"]
    with pytest.raises(DataError, match=r"a\.txt: the file is empty"):
        texts.take([empty])
    with pytest.raises(DataError, match=r"a\.txt: the file is empty"):
        texts.take([full], [empty])


def test_the_validation_text_is_never_trained_on(tmp_path: Path) -> None:
    train, held = put(tmp_path / "a.txt", "train"), put(tmp_path / "b.txt", "held")
    files = texts.take([train, held], [held])
    assert (joined(files), joined(files, held=True)) == ("train", "held")
    assert files.notes == [f"{held}: the validation text, so not trained on"]
    with pytest.raises(DataError, match=r"b\.txt: there is no other text to train on"):
        texts.take([held], [held])
    copy = put(tmp_path / "c.txt", "train")
    with pytest.raises(DataError, match=r"c\.txt: the same text as .*a\.txt, which is trained on"):
        texts.take([train], [copy])


def test_the_fingerprint_is_of_the_contents_and_their_parts(tmp_path: Path) -> None:
    one, two = put(tmp_path / "a.txt", "one"), put(tmp_path / "b.txt", "two")
    plain = texts.take([one, two]).fingerprint
    (tmp_path / "elsewhere").mkdir()
    moved = [put(tmp_path / "elsewhere" / "c.txt", "one"), put(tmp_path / "elsewhere" / "d.txt", "two")]
    assert texts.take(moved).fingerprint == plain
    others = {
        texts.take([one]).fingerprint,
        texts.take([one], [two]).fingerprint,
        texts.take([two], [one]).fingerprint,
        texts.take([put(tmp_path / "a.txt", "onf"), two]).fingerprint,
    }
    assert len(others | {plain}) == 5


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "text")
    files = texts.take([path])
    files.check_unchanged()
    put(path, "text and more")
    with pytest.raises(DataError, match=r"a\.txt: changed while"):
        files.check_unchanged()


def test_progress_counts_every_byte_of_every_pass(tmp_path: Path) -> None:
    path, told = put(tmp_path / "a.txt", "x" * (texts.PIECE + 5)), []
    files = texts.take([path], progress=lambda done, total: told.append((done, total)), passes=2)
    joined(files)
    done = [entry[0] for entry in told]
    assert done == sorted(done)
    assert told[-1] == (2 * (texts.PIECE + 5), 2 * (texts.PIECE + 5))


def test_the_text_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b/two.md", "b/.hidden/x.txt", ".git/x.txt", "a.txt", ".x.txt", "empty.txt", "b/no-ending"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        put(tmp_path / name, "" if "empty" in name else "text")
    put(tmp_path / "wide.txt", "text".encode("utf-16"))
    put(tmp_path / "picture.png", b"\x89PNG\0\0")
    found, others = texts.text_files(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["a.txt", "b/no-ending", "b/two.md", "wide.txt"]
    assert [path.name for path in others] == ["picture.png"]
