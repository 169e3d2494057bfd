"""Padding: never seen, never NaN, never a real token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from handmade import doctor
from handmade.doctor.checks import padding

V, C, T = 20, 16, 8


class Model(nn.Module):
    """Attention that is causal or not, with the mask's treatment to be chosen."""

    def __init__(self, causal: bool = True, hide=None, pad: int | None = None) -> None:
        super().__init__()
        self.embedding, self.places, self.head = nn.Embedding(V, C), nn.Embedding(T, C), nn.Linear(C, V)
        self.qkv, self.out = nn.ModuleList([nn.Linear(C, 3 * C) for _ in range(2)]), nn.Linear(C, C)
        self.causal, self.hide, self.pad = causal, hide or keep_itself, pad

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        length = tokens.shape[1]
        x = self.embedding(tokens) + self.places(torch.arange(length))
        seen = torch.ones(length, length, dtype=torch.bool)
        seen = (seen.tril() if self.causal else seen)[None]
        real = mask if self.pad is None else tokens != self.pad
        for layer in self.qkv:
            q, k, v = layer(x).chunk(3, dim=-1)
            scores = q @ k.mT / math.sqrt(C)
            scores = scores.masked_fill(~seen, -math.inf) if real is None else self.hide(scores, seen, real)
            x = x + self.out(scores.softmax(-1) @ v)
        return self.head(x)


def keep_itself(scores, seen, real):
    eye = torch.eye(scores.shape[-1], dtype=torch.bool)
    return scores.masked_fill(~(seen & real.bool()[:, None, :] | eye), -math.inf)


def keep_nothing(scores, seen, real):
    return scores.masked_fill(~(seen & real.bool()[:, None, :]), -math.inf)


def inverted(scores, seen, real):
    eye = torch.eye(scores.shape[-1], dtype=torch.bool)
    return scores.masked_fill(~(seen & ~real.bool()[:, None, :] | eye), -math.inf)


def all_hidden(scores, seen, real):
    eye = torch.eye(scores.shape[-1], dtype=torch.bool)
    return scores.masked_fill(~eye, -math.inf)


def soft(scores, seen, real):  # minus ten is not enough
    return scores.masked_fill(~seen, -math.inf) - 10 * (1 - real.float()[:, None, :])


def ignored(scores, seen, real):
    return scores.masked_fill(~seen, -math.inf)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def found(model, check: str, **given):
    given = {"attention_mask": "mask"} | given if getattr(model, "pad", None) is None else given
    return doctor.examine(model, only=[check], vocab_size=V, context=T, **given)[check]


# What is seen


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("hide", "verdict", "said"),
    [
        (keep_itself, "healthy", ""),
        (ignored, "sick", "not used"),
        (soft, "sick", "not used"),
        (inverted, "sick", "inverted"),
        (all_hidden, "sick", "hides the real tokens too"),
    ],
)
def test_masks(causal: bool, hide, verdict: str, said: str) -> None:
    model = Model(causal, hide)
    for pad in (None, 3):
        one = found(model, "padding-mask", expect={"causal": causal}, padding=pad)
        assert (one.verdict, said in one.cause) == (verdict, True), one


@pytest.mark.parametrize("hide", [keep_itself, ignored, inverted])
def test_masks_made_of_the_ids(hide) -> None:
    bad = {keep_itself: "healthy", ignored: "sick", inverted: "sick"}
    encoder = Model(False, hide, pad=3)
    assert found(encoder, "padding-mask", padding=3, expect={"causal": False}).verdict == bad[hide]
    decoder = Model(True, hide, pad=3)
    left = torch.tensor([[3, 3, 1, 2, 4], [3, 1, 2, 4, 5]])
    assert found(decoder, "padding-mask", padding=3, batches=[(left, left)]).verdict == bad[hide]


def test_a_causal_model_that_knows_of_no_padding_is_held_to_the_right_side() -> None:
    right = torch.tensor([[1, 2, 4, 3, 3], [1, 2, 4, 5, 3]])
    model = Model(True, ignored, pad=3)
    for batches in (None, [(right, right)]):
        one = found(model, "padding-mask", padding=3, batches=batches)
        assert one.verdict == "healthy"
        assert "pad on the right alone" in one.measured


def test_a_tied_head_does_not_count_as_seen() -> None:
    model = Model(pad=3)
    model.head = nn.Linear(C, V, bias=False)
    model.head.weight = model.embedding.weight
    assert found(model, "padding-mask", padding=3).verdict == "healthy"


@pytest.mark.parametrize("kind", ["int", "bool", "float"])
def test_masks_of_every_type_are_given(kind: str) -> None:
    class Picky(Model):
        def forward(self, tokens, mask=None):
            if mask is not None:
                wanted = {"int": torch.int64, "bool": torch.bool, "float": torch.float32}[kind]
                if mask.dtype != wanted:
                    raise TypeError("another type")
            return super().forward(tokens, mask)

    assert found(Picky(), "padding-mask").verdict == "healthy"
    assert found(Picky(hide=ignored), "padding-mask").verdict == "sick"


def test_one_sequence_at_a_time_and_time_first() -> None:
    class Single(Model):
        def forward(self, tokens, mask=None):
            if tokens.dim() != 1:
                raise ValueError("one sequence")
            return super().forward(tokens[None], None if mask is None else mask[None])[0]

    class TimeFirst(Model):
        def forward(self, tokens, mask=None):
            return super().forward(tokens.T, mask).transpose(0, 1)

    class AllTimeFirst(TimeFirst):
        def forward(self, tokens, mask=None):
            return super().forward(tokens, None if mask is None else mask.T)

    for kind in (Single, TimeFirst, AllTimeFirst):
        assert found(kind(), "padding-mask").verdict == "healthy", kind
        assert found(kind(hide=ignored), "padding-mask").verdict == "sick", kind
        assert found(kind(hide=inverted), "padding-mask").verdict == "sick", kind
        assert found(kind(hide=keep_nothing), "masked-row").verdict == "sick", kind


def test_without_a_mask_there_is_nothing_to_examine() -> None:
    for check in ("padding-mask", "masked-row"):
        one = found(Model(), check, attention_mask=None)
        assert (one.verdict, "was given" in one.measured) == ("not examined", True)
        one = found(Model(), check, attention_mask="no_such_argument")
        assert (one.verdict, "no_such_argument" in one.measured) == ("not examined", True)
        assert found(Model(), check, attention_mask=None, padding=V).verdict == "not examined"


# Rows of nothing


def test_rows_that_see_nothing() -> None:
    assert found(Model(), "masked-row").verdict == "healthy"
    one = found(Model(hide=keep_nothing), "masked-row")
    assert (one.verdict, "on the left" in one.measured) == ("sick", True)
    encoder = Model(False, keep_nothing)  # it has none until a row is padding alone
    one = found(encoder, "masked-row")
    assert (one.verdict, "of padding alone" in one.measured) == ("sick", True)
    assert found(Model(True, keep_nothing, pad=3), "masked-row", padding=3).verdict == "sick"
    assert "finite" in found(Model(hide=keep_nothing), "padding-mask").measured


def test_nan_in_the_gradient_alone() -> None:
    class Cleaned(nn.Module):
        """Masks by adding, and puts zeros where softmax made NaN: the gradient stays NaN."""

        def __init__(self, nothing: float) -> None:
            super().__init__()
            self.embedding, self.line, self.nothing = nn.Embedding(V, C), nn.Linear(C, V), nothing

        def forward(self, tokens, mask=None):
            x = self.embedding(tokens)
            seen = torch.ones(x.shape[1], x.shape[1]).tril()[None] * (1 if mask is None else mask[:, None, :])
            scores = x @ x.mT + torch.where(seen > 0, 0.0, self.nothing)
            return self.line(x + scores.softmax(-1).nan_to_num(0.0) @ x)

    one = found(Cleaned(-math.inf), "masked-row")
    assert (one.verdict, "gradients" in one.measured) == ("sick", True)
    assert found(Cleaned(-1e30), "masked-row").verdict == "healthy"


def test_nan_in_training_alone() -> None:
    """As with kernels that are taken in evaluation only."""

    class Two(Model):
        def forward(self, tokens, mask=None):
            self.hide = keep_nothing if self.training else keep_itself
            return super().forward(tokens, mask)

    one = found(Two(), "masked-row")
    assert (one.verdict, "in training" in one.measured) == ("sick", True)


# The token


class Letters:
    def __init__(self, letters: str, special: int = 0, end: int | None = None) -> None:
        self.letters, self.special, self.end = letters, special, end

    def encode(self, text: str) -> list[int]:
        ids = [self.letters.index(one) + self.special for one in text]
        return ids if self.end is None else [*ids, self.end]


def token(**given):
    return doctor.examine(None, only=["padding-token"], padding=0, **given)["padding-token"]


def test_what_encode_gives() -> None:
    text = "to be or not to be\n"
    letters = "".join(sorted(set(text)))
    one = token(tokenizer=Letters(letters), train_data=text)
    assert (one.verdict, repr("\n") in one.measured) == ("sick", True)
    assert token(tokenizer=Letters(letters, special=1), train_data=text).verdict == "healthy"
    assert token(tokenizer=Letters(letters), train_data=["to be", "or not"]).verdict == "healthy"  # no newline in these
    assert token(tokenizer=Letters(letters)).verdict == "sick"  # an ordinary text has one
    assert token(tokenizer=Letters(letters, special=1)).verdict == "healthy"
    assert token(encode=lambda text: torch.tensor([ord(one) % 256 for one in text])).verdict == "healthy"
    assert token(encode=lambda text: [5, 0, 6] if len(text) > 1 else [5], train_data="ab cd").verdict == "sick"


def test_ends_of_text_and_unknown_letters_are_asked_about() -> None:
    for tokenizer, data in (
        (Letters("ab", special=1, end=0), "abba"),
        (type("Unknown", (), {"encode": lambda self, text: [max(0, "abc".find(one) + 1) for one in text]})(), None),
    ):
        one = token(tokenizer=tokenizer, train_data=data)
        assert one.verdict == "suspicious", one
        assert token(tokenizer=tokenizer, train_data=data, expect={"special_padding": True}).verdict == "healthy"
        assert token(tokenizer=tokenizer, train_data=data, expect={"special_padding": False}).verdict == "sick"


def test_flat_data_and_batches() -> None:
    assert token(train_data=torch.tensor([1, 2, 0, 3])).verdict == "sick"
    assert token(train_data=[1, 2, 3]).verdict == "healthy"
    assert token(train_data=torch.tensor([1, 0]), expect={"special_padding": True}).verdict == "healthy"
    row = torch.tensor([[1, 2, 0, 3, 0, 0]])
    scored, unscored = row.clone(), row.masked_fill(row == 0, -100)
    assert token(batches=[(row, scored)]).verdict == "sick"
    assert token(batches=lambda: (row, unscored)).verdict == "suspicious"
    assert token(batches=[(row, unscored)], expect={"special_padding": True}).verdict == "healthy"
    ends = torch.tensor([[0, 1, 2, 0], [0, 0, 3, 4]])
    assert token(batches=[(ends, ends)]).verdict == "healthy"
    assert token().verdict == "not examined"


def test_batches_may_have_time_first() -> None:
    """Padding below short columns is no padding between tokens, and none on the left."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 11, (16, 12), generator=draw)
    short = torch.where(torch.arange(12) < torch.randint(4, 13, (16, 1), generator=draw), rows, 0)
    turned = [(short.T[:-1], short.T[1:])]
    assert token(batches=turned).verdict == "healthy"
    model = Model(True, ignored, pad=0)
    assert found(model, "padding-mask", padding=0, batches=turned).verdict == "healthy"
    assert found(model, "padding-mask", padding=0, batches=[(short.flip(1), short)]).verdict == "sick"
    scattered = rows.where(torch.rand(rows.shape, generator=draw) > 0.1, torch.zeros(()).long())
    assert token(batches=[(scattered, scattered)]).verdict == "sick"
    assert token(batches=[(scattered[:2], scattered[:2])] * 4).verdict == "sick"


def test_an_id_that_is_no_token() -> None:
    one = doctor.examine(Model(), only=["padding-token"], padding=V, vocab_size=V, context=T)["padding-token"]
    assert one.verdict == "sick"


@pytest.mark.parametrize("one", padding.CHECKS, ids=lambda one: one.name)
def test_demonstrations_run(one, capsys) -> None:
    exec(compile(one.demonstration, one.name, "exec"), {})
    said = capsys.readouterr().out
    expected = {
        "masked-row": ("nan", "[[nan, nan, nan]]"),
        "padding-mask": ("0.5000, 0.5000, 0.0000",),
        "padding-token": ("'\\n' is id 0", "tensor(5) places look like padding, 4 are", "1\n"),
    }[one.name]
    assert all(part in said for part in expected), said
