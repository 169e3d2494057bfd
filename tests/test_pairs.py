"""Pairs of sentences: read as they stand, refused with file and line, and divided so that nothing leaks."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from handmade.errors import ConfigError, DataError
from handmade.pairs import Pairs, PairSplit, normalized, read_parallel, read_table, split


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --------------------------------------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("猫\tcat\n犬\tdog\n", None),
        ("猫\tcat\r\n犬\tdog\r\n\r\n", None),  # CRLF, an empty line at the end
        ("\ufeff猫 \t cat\n犬\tdog", None),  # a byte-order mark, spaces, no newline at the end
        ("1\t猫\tcat\n22\t犬\tdog\n", None),
        ("cat\tx\t猫\ty\ndog\t\t犬\n", (3, 1)),  # longer and shorter lines, the columns turned round
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_table(tmp_path: Path, content: str, columns: tuple[int, int] | None, packed: bool) -> None:
    raw = gzip.compress(content.encode()) if packed else content.encode()
    found = read_table(put(tmp_path / f"my.pairs.tsv{'.gz' if packed else ''}", raw), columns, ("ja", "en"))
    assert found == Pairs(("猫", "犬"), ("cat", "dog"), "my.pairs", ("ja", "en"))


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    # What str.splitlines would cut too.
    found = read_table(put(tmp_path / "p.tsv", "a\u2028b\x85\tc\x0bd\n"))
    assert list(found) == [("a\u2028b", "c\x0bd")]


@pytest.mark.parametrize(
    ("content", "columns", "answer"),
    [
        ("a\tb\nc\n", None, "line 2 has no tab; line 1 has 2 columns. Mend the line or take it out."),
        ("a\tb\nc\td\te\n", None, "line 2 has 3 columns; line 1 has 2 columns."),
        ("1\ta\tb\n\n2\tc\td\n", None, "line 2 has no tab; line 1 has 3 columns."),
        ("a\tb\tc\nd\te\n", (1, 3), "line 2 has 2 columns; column 3 is needed."),
        ("just a text\n", None, "line 1 has no tab. Each line should be a sentence, a tab, its translation."),
        ("a\tb\tc\td\n", None, "line 1 has 4 columns. Say which two columns hold the sentences"),
        ("1\ta\tb\nx\tc\td\n", None, "line 2 begins with 'x', no number. Say which two columns hold the sentences"),
        ("a\tb\nc\t \n\td\n", None, "line 2: column 2 is empty, and so are 1 more. Fill in the sentence"),
        ("1\t\tb\n", None, "line 1: column 2 is empty. Fill in"),
        ("", None, "there are no pairs in it. Each line should be"),
        ("\n \n", None, "there are no pairs in it."),
        ("a\tb\nc\t\xff\n".encode("latin-1"), None, "byte 6 (0xFF) is not valid UTF-8."),
        (b"a\tb\0\n", None, "not a text file"),
        (gzip.compress("a\tb\nc\t\xff\n".encode("latin-1")), None, "line 2 is not valid UTF-8 once unpacked."),
        (gzip.compress(b"a\tb\n" * 99)[:-9], None, "damaged, cannot be unpacked"),
        (gzip.compress(b"a\tb\0"), None, "what is packed in it is not text."),
        ("ja\ten\n猫\tcat\n", None, "line 1 says ja and en, the names of columns. Take the line out"),
        ("1\tSource\tTarget\n2\t猫\tcat\n", None, "line 1 says Source and Target, the names of columns."),
        ("id\tJapanese\tx\tEnglish\n1\t猫\tx\tcat\n", (2, 4), "line 1 says Japanese and English, the names of columns"),
    ],
)
def test_a_table_that_cannot_be_used(
    tmp_path: Path, content: str | bytes, columns: tuple[int, int] | None, answer: str
) -> None:
    path = put(tmp_path / "p.tsv", content)
    with pytest.raises(DataError) as caught:
        read_table(path, columns)
    assert str(caught.value).startswith(f"{path}: {answer}")


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.tsv: no such file"):
        read_table(tmp_path / "none.tsv")
    for columns in ((0, 1), (2, 2)):
        with pytest.raises(ConfigError, match=f"columns {columns[0]},{columns[1]}: name two different ones"):
            read_table(tmp_path / "none.tsv", columns)
    with pytest.raises(ConfigError, match="not an encoding"):
        read_table(put(tmp_path / "p.tsv", "a\tb"), encoding="utf-88")


def test_names_of_columns_are_no_pair(tmp_path: Path) -> None:
    one, two = put(tmp_path / "a", "eo\nkato\n"), put(tmp_path / "b", "en\ncat\n")
    assert next(iter(read_parallel(one, two))) == ("eo", "en")  # a language that nobody named
    with pytest.raises(DataError, match="line 1 says eo and en, the names of columns"):
        read_parallel(one, two, ("eo", "en"))
    for fine in ("猫\ten\n", "de\tde\n", "a\tb\nja\ten\n"):
        assert len(read_table(put(tmp_path / "p.tsv", fine), languages=("ja", "en"))) == fine.count("\n")


def test_another_encoding(tmp_path: Path) -> None:
    raw = "猫が好き。\tI like cats.\n".encode("euc_jp")
    for path in (put(tmp_path / "p.tsv", raw), put(tmp_path / "p.tsv.gz", gzip.compress(raw))):
        assert list(read_table(path, encoding="euc_jp")) == [("猫が好き。", "I like cats.")]


def test_two_files(tmp_path: Path) -> None:
    one, two = put(tmp_path / "train.ja", "猫\r\n犬\n"), put(tmp_path / "train.en.gz", gzip.compress(b"cat\ndog"))
    assert read_parallel(one, two, ("ja", "en")) == Pairs(("猫", "犬"), ("cat", "dog"), "train", ("ja", "en"))
    put(two, "cat\ndog\ncow\n")
    with pytest.raises(DataError, match=r"train\.ja has 2 lines, .*train\.en\.gz has 3: each line"):
        read_parallel(one, two)
    put(two, "cat\n\n")
    with pytest.raises(DataError, match=r"train\.en\.gz: line 2 is empty\. Fill in the sentence, or take out the"):
        read_parallel(one, two)
    put(one, "")
    put(two, "")
    with pytest.raises(DataError, match=r"train\.ja: the file is empty"):
        read_parallel(one, two)


def test_pairs() -> None:
    pairs = Pairs(("猫", "犬"), ("cat", "dog"), "pets", ("ja", "en"), "mine")
    assert len(pairs) == 2
    assert pairs.turned() == Pairs(("cat", "dog"), ("猫", "犬"), "pets", ("en", "ja"), "mine")
    assert pairs.of([]) == Pairs((), (), "pets", ("ja", "en"), "mine")
    others = [pairs.of([("猫", "dog"), ("犬", "cat")]), pairs.of([("犬", "dog"), ("猫", "cat")]), pairs.turned()]
    assert len({found.fingerprint() for found in [pairs, *others]}) == 4
    with pytest.raises(DataError, match="2 sources and 1 targets"):
        Pairs(("a", "b"), ("c",))


# --------------------------------------------------------------------------------------------------------------
# Holding some back


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("I like cats.", "  i LIKE -- cats!", True),
        ("I'm here", "I’m here…", True),
        ("猫が好き。", "猫が、好き！", True),
        ("ﾈｺ", "ネコ", True),
        ("ＡＢＣ１", "abc1", True),
        ("が", "か\u3099", True),  # a letter and its mark, as one character and as two
        ("Straße", "STRASSE", True),
        ("ネコ", "ねこ", False),
        ("かき", "がき", False),
        ("ビル", "ビール", False),
        ("I like cats", "I like cat", False),
        ("Page 1", "Page 2", False),
        ("की", "का", False),  # marks are not punctuation
        ("!!", "??", False),  # nothing is left of either: they are not the same for that
        ("😀", "😭", False),
    ],
)
def test_normalized(one: str, other: str, same: bool) -> None:
    assert (normalized(one) == normalized(other)) is same


def many(count: int, seed: int = 3) -> Pairs:
    """Pairs with many sentences in common, some of them but for a comma or capitals."""
    generator = random.Random(seed)
    sources, targets = [], []
    for _ in range(count):
        word, other = (generator.randrange(count * 2) for _ in range(2))
        sources.append(f"文{word}{generator.choice(['', '。', '！'])}")
        targets.append(generator.choice([f"Word {other}", f"word, {other}.", f"WORD{other}"]))
    return Pairs(tuple(sources), tuple(targets))


def parts(found: PairSplit) -> list[Pairs]:
    return [found.train, found.validation, found.test]


def test_no_sentence_crosses() -> None:
    pairs = many(3000)
    found = split(pairs, validation=200, test=400)
    assert [len(part) for part in parts(found)][1:] == [200, 400]
    together = [pair for part in parts(found) for pair in part]
    assert sorted(together) == sorted(set(pairs))
    for side in (0, 1):
        seen = [{normalized(pair[side]) for pair in part} for part in parts(found)]
        assert not seen[0] & seen[1]
        assert not seen[0] & seen[2]
        assert not seen[1] & seen[2]


def test_twins_by_way_of_a_third_stay_together() -> None:
    # a-1, b-1, b-2, c-2: neither sentence of the first is in the last, but a chain leads there.
    chain = [("a", "x1"), ("b", "X1!"), ("B.", "x2"), ("c", "x2")]
    others = [(f"word {n}", f"文 {n}") for n in range(20)]
    for seed in range(8):
        found = split(Pairs((), ()).of(chain + others), validation=5, test=5, seed=seed)
        assert len({index for index, part in enumerate(parts(found)) for pair in part if pair in chain}) == 1


def test_order_and_repetition_change_nothing() -> None:
    pairs = many(500)
    lines = list(pairs)
    found = split(pairs, 20, 30, seed=1)
    twice = lines + lines[:50]
    random.Random(0).shuffle(twice)
    again = split(pairs.of(twice), 20, 30, seed=1)
    assert parts(again) == parts(found)
    assert again.fingerprint() == found.fingerprint()
    assert again.left_out == found.left_out + 50
    other = split(pairs, 20, 30, seed=2)
    assert set(other.test) != set(found.test)
    assert other.fingerprint() != found.fingerprint()
    assert split(pairs.turned(), 20, 30).train.languages == ("target", "source")


def test_the_fingerprint_is_of_the_parts_too() -> None:
    pairs = many(100)
    assert split(pairs, 10, 20).fingerprint() != split(pairs, 20, 10).fingerprint()


def test_a_new_pair_moves_few_others() -> None:
    pairs = many(2000)
    more = pairs.of([*pairs, ("新しい", "brand new")])
    moved = set(split(pairs, 100, 200).test) ^ set(split(more, 100, 200).test)
    assert len(moved) <= 4


@pytest.mark.parametrize(("count", "sizes"), [(20_000, (1000, 2000)), (5000, (500, 500)), (12, (1, 1)), (3, (1, 1))])
def test_sizes_where_none_are_asked(count: int, sizes: tuple[int, int]) -> None:
    numbers = [str(n) for n in range(count)]
    found = split(Pairs(tuple(numbers), tuple(reversed(numbers))))
    assert (len(found.validation), len(found.test)) == sizes
    assert len(found.train) == count - sum(sizes)


def test_what_cannot_be_divided() -> None:
    two = Pairs(("a", "b"), ("c", "d"), "small")
    with pytest.raises(DataError, match="small: 2 different pairs; 1 for validation and 1 for the test leave none"):
        split(two)
    with pytest.raises(DataError, match="0 for validation and 1 for the test are both needed"):
        split(two, validation=0, test=1)
    one_source = Pairs(("a",) * 50, tuple(map(str, range(50))), "one")
    with pytest.raises(DataError, match="one: the pairs cannot be divided: too many have a sentence in common"):
        split(one_source)
