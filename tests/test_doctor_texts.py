"""The checks of texts and tokens: against counting by sets, on real text, and in the forms that people have."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, random_split

from handmade import doctor
from handmade.characters import ByteTokenizer, CharTokenizer
from handmade.doctor import checks, overlap, windowing
from handmade.doctor.findings import NotExamined
from handmade.doctor.material import Codec, material
from handmade.subwords import SubwordTokenizer

MINE = ("split", "vocabulary", "windows", "round-trip", "streaming")
WORDS = "river stone night morning letter garden voice winter summer road house hand light bread water fire"


DATA = torch.randint(30, (600,), generator=torch.Generator().manual_seed(0))


def examine(only: str, **given: Any) -> doctor.Finding:
    return doctor.examine(doctor.Given(**given), only=[only]).findings[0]


def prose(seed: int, sentences: int) -> str:
    rng = random.Random(seed)
    return "\n".join(
        " ".join(rng.choices(WORDS.split(), k=rng.randint(4, 9))).capitalize() + "." for _ in range(sentences)
    )


# ---------------------------------------------------------------------------------------------------------------
# Stretches


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 20, 50])
def test_hashes_are_equal_where_stretches_are(length: int) -> None:
    row = np.random.default_rng(length).integers(0, 3, 400)
    hashes = overlap.hashed(row, length)
    grams = [tuple(row[i : i + length]) for i in range(len(row) - length + 1)]
    assert len(hashes) == len(grams)
    assert len(set(hashes.tolist())) == len(set(grams))
    groups: dict[tuple, set] = {}
    for gram, one in zip(grams, hashes.tolist(), strict=True):
        groups.setdefault(gram, set()).add(one)
    assert all(len(found) == 1 for found in groups.values())


@pytest.mark.parametrize("block", [64, 1 << 16])
def test_shared_stretches_are_those_that_sets_share(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "BLOCK", block)
    train = prose(0, 60)
    held = prose(1, 8) + train[300:700] + prose(2, 3)
    found = overlap.stretches(material(train, "train"), material(held, "held"))
    assert found is not None
    grams = {train[i : i + found.length] for i in range(len(train) - found.length + 1)}
    hits = [held[i : i + found.length] in grams for i in range(len(held) - found.length + 1)]
    assert found.share == pytest.approx(sum(hits) / len(hits))
    assert found.place == len(prose(1, 8))
    assert found.source == 300
    assert found.longest == 400


def test_what_is_natural_is_what_sets_find() -> None:
    refrain = "\nAnd round and round and round it goes, nobody knows.\n"
    train = "".join(prose(i, 2) + (refrain if i == 0 or i > 45 else "") for i in range(60))
    held = prose(99, 25)
    found = overlap.stretches(material(train, "train"), material(held, "held"))
    assert found is not None
    size, n = len(held), found.length
    shares = []
    for begin in np.linspace(0, len(train) - size, overlap.CHUNKS).astype(int):
        inside = [train[i : i + n] for i in range(begin, min(begin + size, len(train) - n + 1))]
        rest = {train[i : i + n] for i in range(len(train) - n + 1) if i < begin - n or i >= begin + size + n}
        shares.append(sum(one in rest for one in inside) / len(inside))
    assert found.natural == pytest.approx(max(shares))
    assert 0.01 < found.natural < 0.9


def test_rows_do_not_run_into_each_other() -> None:
    train, held = ["ab" * 40, "cd" * 40], ["ab" * 20 + "cd" * 20]
    given = material(train, "train")
    prints = overlap.fingerprints(given, 30, 0)
    assert len(prints.places) == 2 * (80 - 30 + 1)
    assert given.rows[0] + given.rows[1] != held[0]


def test_a_sample_of_stretches_gives_the_same_share(monkeypatch: pytest.MonkeyPatch) -> None:
    train, held = prose(0, 400), prose(1, 30)
    held += train[-len(held) :]
    whole = overlap.stretches(material(train, "train"), material(held, "held"))
    monkeypatch.setattr(overlap, "KEPT", 2_000)
    sample = overlap.stretches(material(train, "train"), material(held, "held"))
    assert whole is not None
    assert sample is not None
    assert 0 < abs(whole.share - sample.share) < 0.1


def test_real_text_split_in_one_place_is_healthy(shakespeare: Path) -> None:
    text = shakespeare.read_text()
    n = int(0.9 * len(text))
    finding = examine("split", train_data=text[:n], validation_data=text[n:])
    assert finding.verdict == "healthy"
    assert finding.value == 0
    late = examine("split", train_data=text[: n + 5_000], validation_data=text[n:])
    assert late.verdict == "sick"
    assert late.value == pytest.approx(5_000 / (len(text) - n), abs=0.01)
    speeches = text.split("\n\n")
    random.Random(0).shuffle(speeches)
    assert examine("split", train_data=speeches[:6000], validation_data=speeches[6000:]).verdict == "healthy"


@pytest.mark.parametrize("form", ["list", "array", "tensor", "bytes", "uint16"])
def test_token_ids_in_every_form(form: str) -> None:
    ids = np.random.default_rng(0).integers(0, 50, 3_000)
    make: dict[str, Any] = {
        "list": lambda row: row.tolist(),
        "array": lambda row: row,
        "tensor": torch.tensor,
        "bytes": lambda row: row.astype(np.uint8).tobytes(),
        "uint16": lambda row: row.astype(np.uint16),
    }
    give = make[form]
    assert examine("split", train_data=give(ids[:2700]), validation_data=give(ids[2700:])).verdict == "healthy"
    finding = examine("split", train_data=give(ids), validation_data=give(ids[2700:]))
    assert finding.verdict == "sick"
    assert "tokens" in finding.measured


def test_a_refrain_is_nature_up_to_a_share() -> None:
    refrain = "\nAnd round and round and round it goes, and nobody knows where it will stop again.\n"

    def songs(seed: int, verses: int, lines: int) -> str:
        return "".join(prose(seed * 1000 + i, lines) + refrain for i in range(verses))

    seldom = examine("split", train_data=songs(1, 60, 12), validation_data=songs(2, 12, 12))
    assert seldom.verdict == "healthy"
    assert seldom.value is not None
    assert seldom.value > overlap.BITS / 1e5
    often = {"train_data": songs(1, 60, 2), "validation_data": songs(2, 12, 2)}
    finding = examine("split", **often)
    assert finding.verdict == "suspicious"
    assert "duplicates" in finding.question
    assert examine("split", **often, expect={"duplicates": True}).verdict == "healthy"


@pytest.mark.parametrize("step", [1, 20])
@pytest.mark.parametrize("whole", [True, False])
def test_windows_split_at_random(step: int, whole: bool) -> None:
    data = torch.randint(40, (1_500,), generator=torch.Generator().manual_seed(0))
    rows = torch.stack([data[i : i + 41] for i in range(0, len(data) - 40, step)])
    windows: Any = TensorDataset(rows[:, :-1], rows[:, 1:])
    parts = random_split(windows, [0.9, 0.1], torch.Generator().manual_seed(1))
    if not whole:  # as rows, without the dataset they are from
        parts = [rows[part.indices] for part in parts]
    finding = examine("split", train_data=parts[0], validation_data=parts[1])
    assert finding.verdict == "sick", finding
    assert "split the text first" in finding.remedy


def test_of_two_subsets_one_region_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handmade.doctor.checks.splits.REGION", 300)
    read = []

    class Slow(Dataset):
        def __len__(self) -> int:
            return 10_000

        def __getitem__(self, index: int) -> Any:
            read.append(index)
            generator = np.random.default_rng(index)
            return torch.tensor(generator.integers(0, 50, 30))

    order = torch.randperm(10_000, generator=torch.Generator().manual_seed(0)).tolist()
    everything = Slow()
    given = {"train_data": Subset(everything, order[:9000]), "validation_data": Subset(everything, order[9000:])}
    assert examine("split", **given).verdict == "healthy"
    assert max(read) < 300
    read.clear()
    given = {"train_data": Subset(everything, range(9000)), "validation_data": Subset(everything, range(9000, 10_000))}
    assert examine("split", **given).verdict == "healthy"
    assert min(read) == 9000 - 150
    assert max(read) == 9000 + 149


# ---------------------------------------------------------------------------------------------------------------
# Rows


def test_beginnings_are_those_that_trying_all_finds() -> None:
    rng = random.Random(0)
    rows = sorted({bytes(rng.choices(b"ab", k=rng.randint(1, 7))) for _ in range(60)})
    for raw in {bytes(rng.choices(b"abc", k=rng.randint(1, 9))) for _ in range(300)}:
        tried = [len(row) for row in rows if raw.startswith(row) and row != raw]
        assert sorted(overlap.beginnings(raw, rows)) == sorted(tried)


def test_lines_of_a_play_are_a_question(shakespeare: Path) -> None:
    lines = shakespeare.read_text().split("\n")[:20_000]
    random.Random(0).shuffle(lines)
    finding = examine("split", train_data=lines[:18_000], validation_data=lines[18_000:])
    assert finding.verdict == "suspicious"
    assert finding.value is not None
    assert overlap.duplicates(material(lines[:100], ""), material(lines[:100], "")).exact == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("I don't know.", "i dont know", True),
        ("Yes, we can!", "yes  we can", True),
        ("12 + 7", "12+7", True),
        ("a+b", "a-b", False),
        ("1.5+2", "15+2", False),
        ("12+7=19", "12+7=18", False),
        ("だめ。", "だめ", True),
        ("...", "???", False),
    ],
)
def test_what_is_the_same_sentence(one: str, other: str, same: bool) -> None:
    assert (overlap.plain(one) == overlap.plain(other)) == same


def test_words_and_names_begin_alike_by_nature(shakespeare: Path) -> None:
    words = sorted({*shakespeare.read_text().lower().split()})[::3]
    words = [word for word in words if word.isalpha()]
    random.Random(0).shuffle(words)
    n = int(0.9 * len(words))
    finding = examine("split", train_data=words[:n], validation_data=words[n:])
    assert finding.verdict == "healthy", finding


@pytest.mark.parametrize("padded", ["left", "right", "no"])
def test_beginnings_of_one_sentence_on_both_sides(padded: str) -> None:
    rng = random.Random(0)
    rows = [rng.choices(range(1, 60), k=rng.randint(6, 12)) for _ in range(120)]
    parts = [row[:i] for row in rows for i in range(2, len(row) + 1)]
    filled: Any = parts
    if padded == "left":
        filled = torch.tensor([[0] * (12 - len(row)) + row for row in parts])
    elif padded == "right":
        filled = torch.tensor([row + [0] * (12 - len(row)) for row in parts])
    order = rng.sample(range(len(parts)), len(parts))
    n = int(0.9 * len(order))
    pick = (lambda places: filled[places]) if padded != "no" else (lambda places: [filled[i] for i in places])
    finding = examine("split", train_data=pick(order[:n]), validation_data=pick(order[n:]))
    assert finding.verdict == "sick"
    assert "longer or shorter" in finding.measured
    whole = [row for row in rows if len(row) > 6]
    healthy = examine("split", train_data=whole[:60], validation_data=whole[60:])
    assert healthy.verdict == "healthy"


def test_pairs_are_known_by_their_first() -> None:
    pairs = [(f"sentence number {i} is here", f"satz nummer {i}") for i in range(200)]
    twice = [(source, target + " !") for source, target in pairs[:50]]
    assert examine("split", train_data=pairs[:150], validation_data=pairs[150:]).verdict == "healthy"
    finding = examine("split", train_data=pairs, validation_data=twice)
    assert finding.verdict == "sick"
    assert finding.value == 1


def test_short_windows_of_a_text_repeat_by_nature_and_problems_do_not(shakespeare: Path) -> None:
    ids = np.frombuffer(shakespeare.read_bytes(), dtype=np.uint8).astype(np.int64)[:60_000]
    windows = torch.tensor(np.lib.stride_tricks.sliding_window_view(ids, 9)[::9].copy())
    assert overlap.duplicates(material(windows[:6000], ""), material(windows[6000:], "")).exact > 0.02
    assert examine("split", train_data=windows[:6000], validation_data=windows[6000:]).verdict == "not examined"
    rng = np.random.default_rng(0)
    sums = [[*map(int, f"{a:02d}{b:02d}{a + b:03d}")] for a, b in rng.integers(0, 100, (3000, 2))]
    finding = examine("split", train_data=torch.tensor(sums[:2700]), validation_data=torch.tensor(sums[2700:]))
    assert finding.verdict == "sick"
    assert finding.value == pytest.approx(1 - (1 - 1 / 10_000) ** 2700, abs=0.06)


def test_rows_that_are_too_short_say_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(5, (400, 3), generator=generator)
    prefix = overlap.stretches(material(rows[:300], ""), material(rows[300:], ""))
    assert prefix is None


@pytest.mark.parametrize(
    ("train", "held", "said"),
    [
        ("text", [1, 2], "one of train_data and validation_data is text"),
        (Path("a.txt"), "text", "is a path"),
        ("", "text", "is empty"),
        ([], ["a b"], "is empty"),
        (torch.rand(5), [1, 2], "whole numbers"),
        (iter("ab"), "text", "without a length"),
        ({"a": 1}, "text", "is a dict"),
        ([object()], "text", "holds a object"),
        (["ab", [1, 2]], "text", "mixed"),
    ],
)
def test_what_holds_no_text_is_not_examined(train: Any, held: Any, said: str) -> None:
    finding = examine("split", train_data=train, validation_data=held)
    assert finding.verdict == "not examined"
    assert said in finding.measured


@pytest.mark.parametrize(
    ("thing", "rows", "single"),
    [
        (list("abc"), ["abc"], True),
        ((torch.tensor([1, 2]), torch.tensor([2, 3])), [[1, 2, 3]], True),
        ((torch.tensor([[1, 2], [5, 6]]), torch.tensor([3, 7])), [[1, 2, 3], [5, 6, 7]], False),
        ([{"input_ids": [1, 2], "labels": [1, 2]}], [[1, 2]], False),
        ([{"text": "a b"}], ["a b"], False),
        (TensorDataset(torch.tensor([[1, 2]]), torch.tensor([[2, 3]])), [[1, 2, 3]], False),
        (DataLoader(TensorDataset(torch.tensor([[1, 2], [4, 5]]), torch.tensor([3, 6]))), [[1, 2, 3], [4, 5, 6]], 0),
        ([(np.array([1, 2]), np.array([9]))], [[1, 2, 9]], False),
    ],
)  # fmt: skip
def test_material_in_the_forms_that_people_have(thing: Any, rows: list[Any], single: bool) -> None:
    found = material(thing, "train_data")
    assert [row if isinstance(row, str) else row.tolist() for row in found.rows] == rows
    assert found.single == single


# ---------------------------------------------------------------------------------------------------------------
# Vocabularies


LATE = "\nWhy? Quizzical 5 jukebox; 7 (zigzag) waltz: é ß!\n"


@pytest.mark.parametrize(
    ("made_of", "verdict"),
    [("training", "healthy"), ("both", "sick"), ("printable", "healthy"), ("three", "suspicious")],
)
def test_where_a_character_vocabulary_is_from(made_of: str, verdict: str) -> None:
    train, held = prose(0, 40), prose(1, 4) + (LATE if made_of != "printable" else "\nWhy? Quiz 5.\n")
    source = {"training": train, "both": train + held, "printable": string.printable + "éß", "three": train + held}
    characters = sorted(set(source[made_of] + ("@#$%&*<>|~ä0" if made_of == "three" else "")))
    ids = {c: i for i, c in enumerate(characters)}
    given: dict[str, Any] = {
        "encode": lambda text: [ids[c] for c in text],
        "decode": lambda tokens: "".join(characters[i] for i in tokens),
        "train_data": train,
        "validation_data": held,
        "vocab_size": len(characters),
    }
    assert examine("vocabulary", **given).verdict == verdict
    del given["decode"], given["vocab_size"]  # by encoding alone
    assert examine("vocabulary", **given).verdict == verdict


def test_an_unknown_token_is_no_token_of_its_own() -> None:
    train, held = prose(0, 40), prose(1, 4) + LATE
    ids = {c: i + 1 for i, c in enumerate(sorted(set(train)))}
    given = {"encode": lambda text: [ids.get(c, 0) for c in text], "train_data": train, "validation_data": held}
    finding = examine("vocabulary", **given)
    assert finding.verdict == "healthy"
    assert "new in validation" in finding.measured


@pytest.mark.parametrize("kind", [CharTokenizer, SubwordTokenizer])
def test_our_own_tokenizers_and_what_they_are_made_of(kind: Any) -> None:
    train, held = prose(0, 150), LATE * 6
    make = kind.train if kind is CharTokenizer else lambda texts: kind.train(texts, vocab_size=400)
    given = {"train_data": train, "validation_data": held}
    assert examine("vocabulary", tokenizer=make([train]), **given).verdict == "healthy"
    assert examine("vocabulary", tokenizer=make([train, held]), **given).verdict == "sick"


def test_byte_pairs_made_elsewhere_are_told_apart(shakespeare: Path) -> None:
    elsewhere = SubwordTokenizer.train([shakespeare.read_text()[:150_000]], vocab_size=1500)
    held = prose(1, 6) + "\nGentlemen of Rome, what noble consul stands before the citizens?"
    finding = examine("vocabulary", tokenizer=elsewhere, train_data=prose(0, 40), validation_data=held)
    assert finding.verdict == "healthy"
    assert "elsewhere" in finding.measured


def test_every_byte_is_known_to_bytes() -> None:
    given = {"tokenizer": ByteTokenizer(), "train_data": prose(0, 20), "validation_data": LATE}
    assert examine("vocabulary", **given).verdict == "healthy"


# ---------------------------------------------------------------------------------------------------------------
# Windows


class Windows(Dataset):
    """Starts first, first + step ..; as many as `many`."""

    def __init__(self, data: Any, context: int, step: int = 1, many: int | None = None, form: str = "pair") -> None:
        self.data, self.context, self.step, self.form = data, context, step, form
        self.many = (len(data) - context - 1) // step + 1 if many is None else many

    def __len__(self) -> int:
        return self.many

    def __getitem__(self, index: int) -> Any:
        begin = index * self.step
        x, y = self.data[begin : begin + self.context], self.data[begin + 1 : begin + self.context + 1]
        if self.form == "mapping":
            return {"input_ids": x, "labels": y}
        if self.form == "same":
            return {"input_ids": x, "labels": x}
        return self.data[begin : begin + self.context + 1] if self.form == "row" else (x, y)


@pytest.mark.parametrize("form", ["pair", "mapping", "row"])
@pytest.mark.parametrize("step", [1, 3, 16, 17])
def test_windows_that_reach_the_end(form: str, step: int) -> None:
    for length in range(580, 600, 3):
        data = DATA[:length]
        given = {"windows": Windows(data, 16, step, form=form), "train_data": data, "context": 16}
        finding = examine("windows", **given)
        assert finding.verdict == "healthy", (length, finding)


@pytest.mark.parametrize("step", [1, 3, 16])
def test_one_window_too_few_or_too_many(step: int) -> None:
    right = Windows(DATA, 16, step).many
    few = examine("windows", windows=Windows(DATA, 16, step, right - 1), train_data=DATA, context=16)
    assert few.verdict == "sick"
    assert "still fits" in few.measured
    assert few.value == 1
    many = examine("windows", windows=Windows(DATA, 16, step, right + 1), train_data=DATA, context=16)
    assert many.verdict == "sick"
    assert "targets" in many.measured or "inputs" in many.measured


@pytest.mark.parametrize("filled", [None, 99, 0])
@pytest.mark.parametrize("length", [590, 592, 593, 594, 600])
def test_the_rest_may_be_a_window_of_its_own(filled: int | None, length: int) -> None:
    data = DATA[:length]

    class Rest(Windows):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            x = x[: len(y)]
            if filled is not None:
                x, y = (torch.cat([row, torch.full((16 - len(row),), fill)]) for row, fill in ((x, filled), (y, -100)))
            return x, y

    windows = Rest(data, 16, 16, -(-(length - 1) // 16))
    finding = examine("windows", windows=windows, train_data=data, context=16)
    assert finding.verdict == "healthy", finding


def test_targets_that_the_model_shifts_itself() -> None:
    windows = Windows(DATA, 16, 1, len(DATA) - 15, "same")
    assert examine("windows", windows=windows, train_data=DATA, context=16).verdict == "healthy"
    windows = Windows(DATA, 16, 1, len(DATA) - 16, "same")
    assert examine("windows", windows=windows, train_data=DATA, context=16).verdict == "sick"


def test_a_loader_is_looked_at_by_its_dataset() -> None:
    loader = DataLoader(Windows(DATA, 16), batch_size=8, shuffle=True)
    assert examine("windows", windows=loader, train_data=DATA).verdict == "healthy"
    loader = DataLoader(Windows(DATA, 16, 1, 500), batch_size=8, shuffle=True)
    assert examine("windows", windows=loader, train_data=DATA).verdict == "sick"


def test_windows_of_a_text_that_encode_turns_into_ids() -> None:
    text = prose(0, 10)
    tokenizer = CharTokenizer.train([text])
    windows = Windows(tokenizer.encode(text), 16)
    assert examine("windows", windows=windows, train_data=text, tokenizer=tokenizer).verdict == "healthy"


def test_windows_of_repeating_data_have_many_places() -> None:
    data = torch.arange(600) % 7
    assert examine("windows", windows=Windows(data, 16), train_data=data, context=16).verdict == "healthy"


@pytest.mark.parametrize(
    ("windows", "said"),
    [
        (Windows(DATA.flip(0), 16), "no stretches of train_data"),
        (iter([1]), "give a dataset"),
        (Windows(DATA, 599), "there is one window"),
    ],
)
def test_windows_that_cannot_be_judged(windows: Any, said: str) -> None:
    data = torch.cat([DATA, DATA[:5]]) if "one window" in said else DATA
    finding = examine("windows", windows=windows, train_data=data)
    assert finding.verdict in ("not examined", "sick")
    assert said in finding.measured or "one window" in said


def batches(draw: Any, wrong: int = 0, step: int = 1, first: bool = False) -> Any:
    def get_batch() -> tuple[torch.Tensor, torch.Tensor]:
        starts = [int(i) * step for i in draw((len(DATA) - 16 - 1) // step + 1 + wrong)]
        x = torch.stack([DATA[i : i + 16] for i in starts])
        y = torch.stack([DATA[i + 1 : i + 17] for i in starts])
        return (x.T, y.T) if first else (x, y)

    return get_batch


DRAWS = {
    "torch": lambda many: torch.randint(many, (8,)),
    "torch-keywords": lambda many: torch.randint(low=0, high=many, size=(8,)),
    "numpy": lambda many: np.random.randint(0, many, size=8),  # noqa: NPY002
    "randrange": lambda many: [random.randrange(many) for _ in range(8)],
    "randint": lambda many: [random.randint(0, many - 1) for _ in range(8)],
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=list(DRAWS))
@pytest.mark.parametrize("step", [1, 5])
@pytest.mark.parametrize("first", [False, True])
def test_random_batches_reach_the_end_or_do_not(draw: Any, step: int, first: bool) -> None:
    given: dict[str, Any] = {"train_data": DATA, "context": 16}
    right = examine("windows", batches=batches(draw, 0, step, first), **given)
    assert right.verdict == "healthy", right
    assert examine("windows", batches=batches(draw, -1, step, first), **given).verdict == "sick"
    assert examine("windows", batches=batches(draw, 1, step, first), **given).verdict == "sick"
    assert np.random.randint is not None
    assert "between" not in np.random.randint.__name__


def test_random_batches_that_cannot_be_steered() -> None:
    generator = np.random.default_rng(0)
    finding = examine("windows", batches=batches(lambda many: generator.integers(0, many, 8)), train_data=DATA)
    assert finding.verdict == "not examined"
    assert "steered" in finding.measured


def test_steps_are_found_among_several_places() -> None:
    assert windowing.steps({0: [0, 40], 1: [3, 43], 5: [15]}) == (0, 3)
    assert windowing.steps({0: [0], 1: [3], 2: [7]}) is None
    assert windowing.steps({0: [0], 2: [7]}) is None


# ---------------------------------------------------------------------------------------------------------------
# There and back


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_our_own_tokenizers_come_back_and_stream(tokenizer: str) -> None:
    text = prose(0, 60) + "\nÜber die Brücke: 日本語!\n"
    made: dict[str, Any] = {
        "char": CharTokenizer.train([text]),
        "byte": ByteTokenizer(),
        "bpe": SubwordTokenizer.train([text], vocab_size=320),
    }
    for name in ("round-trip", "streaming"):
        assert examine(name, tokenizer=made[tokenizer], train_data=text).verdict == "healthy"
        assert examine(name, tokenizer=made[tokenizer]).verdict == "healthy"


def char_codec(text: str) -> tuple[Any, Any]:
    characters = sorted(set(text))
    return (lambda s: [characters.index(c) for c in s]), (lambda ids: "".join(characters[i] for i in ids))


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        (str.lower, str, "case"),
        (lambda s: s.replace("\r\n", "\n"), str, "line ends"),
        (lambda s: " ".join(s.split()), str, "spaces"),
        (str, lambda s: " " + s, "spaces"),
        (lambda s: s.lower().strip(), str, "case and spaces"),
    ],
)
def test_what_is_normalised_is_a_question(before: Any, after: Any, names: str) -> None:
    text = prose(0, 20) + "\r\nA line.\r\n"
    encode, decode = char_codec(text + string.ascii_letters)
    given: dict[str, Any] = {
        "encode": lambda s: encode(before(s)),
        "decode": lambda ids: after(decode(ids)),
        "train_data": text,
    }
    finding = examine("round-trip", **given)
    assert finding.verdict == "suspicious"
    assert finding.measured.startswith(f"{names} changed")
    assert examine("round-trip", **given, expect={"normalised": True}).verdict == "healthy"
    assert examine("round-trip", **given, expect={"normalised": False}).verdict == "sick"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (lambda s: s.replace("e", ""), str),
        (str, lambda s: s[:-1]),
        (lambda s: s[::-1], str),
        (lambda s: s.replace(".", ""), str),
        (str, lambda s: s + s[-1:]),
    ],
)
def test_what_is_lost_is_sick_whatever_was_meant(before: Any, after: Any) -> None:
    text = prose(0, 20)
    encode, decode = char_codec(text)
    given: dict[str, Any] = {
        "encode": lambda s: encode(before(s)),
        "decode": lambda ids: after(decode(ids)),
        "train_data": text,
        "expect": {"normalised": True},
    }
    assert examine("round-trip", **given).verdict == "sick"


def test_an_error_for_the_unknown_is_well_and_for_the_known_is_not() -> None:
    text = prose(0, 20)
    encode, decode = char_codec(text)
    assert examine("round-trip", encode=encode, decode=decode, train_data=text).verdict == "healthy"
    encode, decode = char_codec(text.replace("R", ""))
    finding = examine("round-trip", encode=encode, decode=decode, train_data=text)
    assert finding.verdict == "sick"
    assert "encode fails" in finding.measured


def test_unknown_characters_become_a_mark_or_vanish() -> None:
    text = prose(0, 20)
    characters = ["<unk>", *sorted(set(text))]
    ids = {c: i for i, c in enumerate(characters)}
    mark: dict[str, Any] = {
        "encode": lambda s: [ids.get(c, 0) for c in s],
        "decode": lambda tokens: "".join(characters[i] for i in tokens),
        "train_data": text,
    }
    assert examine("round-trip", **mark).verdict == "healthy"
    vanish = mark | {"encode": lambda s: [ids[c] for c in s if c in ids]}
    finding = examine("round-trip", **vanish)
    assert finding.verdict == "sick"
    assert "left out" in finding.measured
    rare = mark | {"encode": lambda s: [ids.get(c, 0) if c not in "Rr" else 0 for c in s]}
    finding = examine("round-trip", **rare)
    assert finding.verdict == "suspicious"
    assert "rare words" in finding.measured


def test_what_is_put_around_every_text_is_taken_off() -> None:
    text = prose(0, 20)
    encode, decode = char_codec(text)
    size = len(set(text))

    def whole(ids: list[int]) -> str:
        return "".join("<s>" if i == size else "</s>" if i == size + 1 else decode([i]) for i in ids)

    codec = Codec(lambda s: [size, *encode(s), size + 1], whole)
    assert codec.inner("night") == encode("night")
    finding = examine("round-trip", encode=lambda s: [size, *encode(s), size + 1], decode=whole, train_data=text)
    assert finding.verdict == "healthy"


@pytest.mark.parametrize("form", ["tensor", "array", "ids", "mapping", "bytes", "pieces"])
def test_encoders_in_the_forms_that_people_have(form: str) -> None:
    encode, decode = char_codec(string.printable)

    class Encoding:
        def __init__(self, ids: list[int]) -> None:
            self.ids = ids

    forms: dict[str, tuple[Any, Any]] = {
        "tensor": (lambda s: torch.tensor(encode(s)), lambda ids: decode(ids.tolist())),
        "array": (lambda s: np.array(encode(s), dtype=np.uint16), lambda ids: decode(list(ids))),
        "ids": (lambda s: Encoding(encode(s)), decode),
        "mapping": (lambda s: {"input_ids": encode(s)}, decode),
        "bytes": (encode, lambda ids: decode(ids).encode()),
        "pieces": (encode, lambda ids: [decode([i]) for i in ids]),
    }
    codec = Codec(*forms[form])
    assert codec.encode("To be") == encode("To be")
    assert codec.decode(codec.encode("To be")) == "To be"
    assert codec.encode("") == []
    assert examine("round-trip", encode=forms[form][0], decode=forms[form][1]).verdict == "healthy"


def test_what_are_no_ids_is_said() -> None:
    finding = examine("round-trip", encode=str.split, decode=" ".join, train_data=prose(0, 5))
    assert finding.verdict == "not examined"
    assert "list of str" in finding.measured
    with pytest.raises(NotExamined, match="not given: encode"):
        Codec(None, None).encode("a")


# ---------------------------------------------------------------------------------------------------------------
# Streaming


def test_bytes_without_a_stream_are_not_examined() -> None:
    tokenizer = ByteTokenizer()
    finding = examine("streaming", encode=tokenizer.encode, decode=tokenizer.decode)
    assert finding.verdict == "not examined"
    assert "stream" in finding.measured
    assert examine("streaming", decode=tokenizer.decode, vocab_size=256).verdict == "not examined"
    finding = examine("streaming", encode=tokenizer.encode, decode=lambda ids: bytes(ids).decode())
    assert finding.verdict == "sick"
    assert "UnicodeDecodeError" in finding.measured


@pytest.mark.parametrize(
    ("stream", "verdict"),
    [
        (lambda ids: (bytes([i]).decode("utf-8", "replace") for i in ids), "sick"),
        (lambda ids: (bytes([i]).decode("utf-8", "ignore") for i in ids), "sick"),
        (lambda ids: (bytes([i]).decode() for i in ids), "sick"),
        (lambda ids: [bytes(ids).decode("utf-8", "replace")], "healthy"),
    ],
)
def test_a_stream_of_bytes(stream: Any, verdict: str) -> None:
    tokenizer = ByteTokenizer()
    finding = examine("streaming", encode=tokenizer.encode, decode=tokenizer.decode, stream=stream)
    assert finding.verdict == verdict


def test_words_that_lose_their_spaces_one_by_one() -> None:
    words = sorted(set(prose(0, 20).split()))
    given: dict[str, Any] = {
        "encode": lambda s: [words.index(w) for w in s.split()],
        "decode": lambda ids: " ".join(words[i] for i in ids),
        "train_data": " ".join(words * 3),
    }
    assert examine("streaming", **given).verdict == "not examined"
    assert examine("streaming", **given, stream=lambda ids: (words[i] for i in ids)).verdict == "sick"


@pytest.mark.parametrize("name", MINE)
def test_the_demonstrations_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(checks.BY_NAME[name].demonstration, {})
    assert capsys.readouterr().out.count("\n") >= 2
