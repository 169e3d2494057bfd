"""Translation as a task: batches, loss and scores over real tokens only, learning by heart, and what a person types."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmade.errors import ConfigError, TokenizerError
from handmade.models.seq2seq import Seq2Seq, Seq2SeqConfig
from handmade.models.seq2seq_recurrent import Seq2SeqLSTM, Seq2SeqLSTMConfig
from handmade.optimizers import OptimizerConfig
from handmade.pair_tokenizer import END, PAD, START, PairTokenizer
from handmade.pairs import Pairs, PairSplit
from handmade.schedules import ScheduleConfig
from handmade.tasks.translation.batches import PairRows
from handmade.tasks.translation.data import folder_name
from handmade.tasks.translation.task import TranslationTask
from handmade.tasks.translation.translator import TranslationConfig, pieces
from handmade.training import TrainConfig, Trainer, seeded
from handmade.translating import BeamConfig

pytest.importorskip("tokenizers")
pytest.importorskip("sacrebleu")

NOUNS = {
    "猫": "cats",
    "犬": "dogs",
    "本": "books",
    "花": "flowers",
    "雨": "rain",
    "歌": "songs",
    "魚": "fish",
    "山": "mountains",
}
WHO = {"私": "I", "彼ら": "They", "私たち": "We", "子供たち": "The children"}
DOES = {"が好きです。": "like {}.", "を見ました。": "saw {}."}


def made_up() -> Pairs:
    """64 sentences in Japanese that follow from their parts, and their translations."""
    pairs = [
        (f"{who}は{noun}{does}", f"{subject} {verb.format(thing)}")
        for who, subject in WHO.items()
        for noun, thing in NOUNS.items()
        for does, verb in DOES.items()
    ]
    return Pairs(tuple(a for a, _ in pairs), tuple(b for _, b in pairs), "made up", ("ja", "en"))


def task_of(pairs: Pairs, tokens: str = "char", **options: Any) -> TranslationTask:
    """All three parts are the same pairs."""
    tokenizer = PairTokenizer.train(pairs.sources, pairs.targets, kind=tokens, source_size=330, target_size=330)
    return TranslationTask(TranslationConfig(**options), tokenizer, PairSplit(pairs, pairs, pairs))


def small_model(task: TranslationTask, **shape: Any) -> Seq2Seq:
    values = {"context": 40, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "width": 32, **shape}
    return Seq2Seq(Seq2SeqConfig(**task.sizes, **values), seeded(0, "initialization"))


# ---------------------------------------------------------------------------------------------------------------
# Batches


def rows_of(lengths: list[tuple[int, int]]) -> PairRows:
    """Pairs of these lengths: the n-th has n + 10 as its tokens on both sides, and END behind them."""
    sources = [torch.tensor([place + 10] * (source - 1) + [END]).numpy() for place, (source, _) in enumerate(lengths)]
    targets = [torch.tensor([place + 10] * (target - 1) + [END]).numpy() for place, (_, target) in enumerate(lengths)]
    return PairRows(sources, targets)


def test_a_batch_has_both_sides_padded_behind_and_targets_one_ahead() -> None:
    (batch,) = rows_of([(3, 4), (2, 2)]).walk(5)  # the shorter target first
    assert batch.source.tolist() == [[11, END, PAD], [10, 10, END]]
    assert batch.inputs.tolist() == [[START, 11, PAD, PAD], [START, 10, 10, 10]]
    assert batch.targets.tolist() == [[11, END, -100, -100], [10, 10, 10, END]]
    assert (batch.scored, batch.tokens, batch.real) == (6, 14, 11)


def test_a_walk_has_every_pair_once() -> None:
    rows = rows_of([(random.Random(place).randint(2, 9), 2 + place % 5) for place in range(23)])
    seen = [int(row[0]) for batch in rows.walk(4) for row in batch.targets]
    assert sorted(seen) == [place + 10 for place in range(23)]


def test_draws_follow_the_generator_alone() -> None:
    rows = rows_of([(2 + place % 7, 2 + place % 5) for place in range(50)])
    first, again, other = (rows.draw(6, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.targets, other.targets)


def test_every_pair_is_drawn_as_often() -> None:
    """Those at the ends of the order too."""
    rows = rows_of([(2 + place // 4, 2 + place // 4) for place in range(40)])
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(40)
    draws = 4_000
    for _ in range(draws):
        counts += torch.bincount(rows.draw(3, generator).targets[:, 0] - 10, minlength=40)
    expected = draws * 3 / 40
    assert float((counts - expected).abs().max()) < 5 * math.sqrt(expected)


def test_little_of_a_batch_is_padding() -> None:
    lengths = random.Random(0)
    rows = rows_of([(lengths.randint(4, 16), lengths.randint(4, 16)) for _ in range(20_000)])
    drawn = [rows.draw(32, torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert sum(batch.real for batch in drawn) / sum(batch.tokens for batch in drawn) > 0.9
    anyhow = rows.take(torch.randperm(20_000)[:32])
    assert anyhow.real / anyhow.tokens < 0.7


# ---------------------------------------------------------------------------------------------------------------
# Loss and scores


def test_the_loss_is_that_of_the_sentences_one_by_one() -> None:
    """Over real tokens alone: what is beside a sentence in its batch changes nothing."""
    task = task_of(made_up(), label_smoothing=0.1)
    model = small_model(task).double()
    batch = task.batch(16, torch.Generator().manual_seed(0))
    assert batch.tokens > batch.real  # there is padding to be fooled by
    together = task.loss(task.logits(model, batch), batch)
    alone = torch.zeros((), dtype=torch.float64)
    for source, inputs, targets in zip(*batch, strict=True):
        length = int((targets != -100).sum())
        logits = model(source[source != PAD][None], inputs[None, :length])[0]
        log_probabilities = logits.double().log_softmax(-1)
        right = log_probabilities.gather(1, targets[:length, None]).sum()
        alone -= 0.9 * right + 0.1 * log_probabilities.mean(-1).sum()
    torch.testing.assert_close(together.double(), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["transformer", "LSTM"])
def test_the_loss_in_pieces_is_the_loss_of_the_logits(family: str) -> None:
    task = task_of(made_up(), label_smoothing=0.1)
    model: nn.Module = small_model(task, head_bias=True)
    if family == "LSTM":
        config = Seq2SeqLSTMConfig(**task.sizes, width=16, attention="additive")
        model = Seq2SeqLSTM(config, seeded(0, "initialization"))
    model = model.double()
    batch = task.batch(16, torch.Generator().manual_seed(0))
    whole, pieces = task.loss(task.logits(model, batch), batch), task.loss_in_pieces(model, batch)
    torch.testing.assert_close(pieces, whole.double(), rtol=1e-12, atol=1e-9)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(whole, parameters)
    torch.testing.assert_close(torch.autograd.grad(pieces, parameters), expected, rtol=1e-9, atol=1e-9)


class Constant(nn.Module):
    """Says one token, whatever was read."""

    context = None

    def __init__(self, token: int, vocab_size: int) -> None:
        super().__init__()
        self.token, self.vocab_size = token, vocab_size

    def forward(self, source: Tensor, tokens: Tensor) -> Tensor:
        return F.one_hot(torch.full_like(tokens, self.token), self.vocab_size).float() * 50


def test_accuracy_counts_real_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that always says END is right once a sentence. Counting padding, it would be right more often or less,
    as there is more padding or less."""
    pairs = made_up()
    task = task_of(pairs)
    monkeypatch.setattr(task, "translate", lambda model, sentences, search: [[] for _ in sentences])
    monkeypatch.setattr("handmade.tasks.translation.reports.watch", lambda *_: [])
    monkeypatch.setattr(TranslationTask, "watched", Pairs((), ()))
    scores = task.score(Constant(END, task.sizes["vocab_size"]), torch.device("cpu"))
    tokens = sum(len(target) + 1 for target in pairs.targets)  # characters, and END
    assert scores["token_accuracy"] == pytest.approx(len(pairs) / tokens)


def test_evaluating_draws_nothing() -> None:
    task = task_of(made_up())
    model = small_model(task, dropout=0.5).eval()
    before = torch.get_rng_state()
    first, second = (task.score(model, torch.device("cpu")) for _ in range(2))
    assert first == second
    assert torch.equal(before, torch.get_rng_state())


# ---------------------------------------------------------------------------------------------------------------
# Learning


@pytest.fixture(scope="module")
def learnt() -> tuple[TranslationTask, Trainer]:
    """64 pairs by heart."""
    task = task_of(made_up(), tokens="bpe")
    model = small_model(task, width=64, norm="rms-plain", norm_placement="pre", bias=False, tied_head=False)
    trainer = Trainer(
        model,
        task,
        TrainConfig(steps=160, batch=32, precision="float32", device="cpu", evaluate_every=None, report_every=160),
        OptimizerConfig(name="adamw", learning_rate=0.004),
        ScheduleConfig(name="cosine", warmup=0.05, final=0.0),
    )
    for _ in trainer.steps():
        pass
    trainer.model.eval()
    return task, trainer


def test_64_pairs_are_learnt_by_heart_and_decoded_to_bleu_100(learnt: tuple[TranslationTask, Trainer]) -> None:
    task, trainer = learnt
    scores = task.evaluate(trainer.model)
    assert [one["bleu"] for one in scores["decodings"].values()] == [pytest.approx(100), pytest.approx(100)]
    assert scores["token_accuracy"] == 1
    assert task.answers(trainer.model, ["私は猫が好きです。", "彼らは山を見ました。"]) == [
        "I like cats.",
        "They saw mountains.",
    ]


def test_what_is_shown_while_it_learns_is_what_the_model_says(learnt: tuple[TranslationTask, Trainer]) -> None:
    task, trainer = learnt
    task.score(trainer.model, torch.device("cpu"))
    shown = "\n".join(task.watch())
    for source, target in task.watched:
        assert source in shown
        assert shown.count(target) >= 2  # the reference, and the translation, which is right


def test_the_attention_of_a_translation_is_drawn(learnt: tuple[TranslationTask, Trainer]) -> None:
    task, trainer = learnt
    names = [name for name, figure in task.pictures(trainer.model)]
    assert names == ["lengths.png", "attention.png"]


def test_a_text_is_cut_into_its_sentences_on_request(learnt: tuple[TranslationTask, Trainer]) -> None:
    task, trainer = learnt
    text = "私は猫が好きです。彼らは犬を見ました。"
    assert task.translate(trainer.model, [text], split=True)[0][0].text == "I like cats. They saw dogs."
    assert pieces("「行け。」と言った。もう帰る！") == ["「行け。」と言った。", "もう帰る！"]
    with pytest.raises(ConfigError, match="n-best"):
        task.translate(trainer.model, [text], BeamConfig(beams=2, nbest=2), split=True)


@pytest.mark.parametrize(
    ("sentence", "error", "words"),
    [
        ("", ConfigError, "empty line"),
        ("   ", ConfigError, "empty line"),
        ("私は猫が好きです。" * 9, ConfigError, "has .* tokens, its end included, and the model sees 40.*--split"),
    ],
)
def test_what_cannot_be_translated(
    learnt: tuple[TranslationTask, Trainer], sentence: str, error: Any, words: str
) -> None:
    task, trainer = learnt
    with pytest.raises(error, match=words):
        task.answers(trainer.model, [sentence])


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("tatoeba-ja-en", None, None), "tatoeba-ja-en"),
        (("tatoeba-ja-en", "ja", "en"), "tatoeba-ja-en"),
        (("tatoeba-ja-en", "de", None), "tatoeba-de-en"),
        (("tatoeba-ja-en", "en", "ja"), "tatoeba-en-ja"),
        (("data/pairs.tsv.gz", "de", "en"), "pairs"),
        (("all.ja", None, None), "all"),
    ],
)
def test_a_run_is_called_after_its_pairs(words: tuple, name: str) -> None:
    assert folder_name(*words) == name


def test_unknown_characters() -> None:
    """Some are read as UNKNOWN; a sentence of nothing else is refused."""
    task = task_of(made_up())
    model = small_model(task).eval()
    assert len(task.answers(model, ["私は鯨が好きです。"])) == 1
    with pytest.raises(TokenizerError, match=r"no character that the model knows"):
        task.answers(model, ["Привет мир"])
