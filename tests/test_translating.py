"""Decoding for encoder–decoders: against an exhaustive search, a beam search in plain Python, and itself uncached."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from handmade.errors import ConfigError, HandmadeError
from handmade.generation import SamplingConfig, row_seed
from handmade.models.seq2seq import Seq2Seq, Seq2SeqConfig
from handmade.models.seq2seq_recurrent import Seq2SeqLSTM, Seq2SeqLSTMConfig
from handmade.translating import END, PAD, START, UNKNOWN, BeamConfig, Hypothesis, Search, align, decode

NEVER = [PAD, START, UNKNOWN]


class Shape:
    def __init__(self, vocab_size, source_vocab_size=30):
        self.vocab_size, self.source_vocab_size = vocab_size, source_vocab_size


class Double(torch.nn.Module):
    """An encoder–decoder without weights, whose logits depend on every source token but padding, on every token written
    and on its place. Its cache and its memory each keep what they need, so both have to be reordered rightly.
    `calls` holds the (rows, columns) of each call of the decoder."""

    class Memory:
        def __init__(self, states):
            self.states, self.mask, self.rows = states, None, len(states)

        def select(self, sentences):
            return Double.Memory(self.states[sentences])

    class Cache:
        def __init__(self, memory, beams):
            self.beams, self.states = beams, memory.states
            self.tokens = torch.zeros(memory.rows * beams, 0, dtype=torch.int64)

        @property
        def length(self):
            return self.tokens.shape[1]

        def select(self, rows):
            groups = rows.view(-1, self.beams) // self.beams
            assert (groups == groups[:, :1]).all(), "a beam has left its sentence"
            self.tokens, self.states = self.tokens[rows], self.states[groups[:, 0]]

    def __init__(self, vocab_size=9, context=None, sharpness=3.0, end=0.0):
        super().__init__()
        self.config, self.context, self.calls = Shape(vocab_size), context, []
        self.sharpness, self.end = sharpness, end

    def encode(self, source):
        place = torch.arange(source.shape[1])
        return self.Memory((((source + 3) ** 2 * (place + 1)) * (source != PAD)).sum(1) % 1009)

    def new_cache(self, memory, beams=1):
        return self.Cache(memory, beams)

    def decode_hidden(self, tokens, memory, cache=None):
        self.calls.append(tuple(tokens.shape))
        new, states = tokens.shape[1], memory.states
        if cache is not None:
            tokens = cache.tokens = torch.cat([cache.tokens, tokens], 1)
            assert torch.equal(cache.states, states)
            assert len(tokens) == len(states) * cache.beams
        assert (tokens[:, 0] == START).all()
        assert self.context is None or tokens.shape[1] <= self.context
        written = ((tokens + 1) * (torch.arange(tokens.shape[1]) + 2) ** 2).cumsum(1)
        states = states.repeat_interleave(len(tokens) // len(states))
        return (written + 7 * states[:, None])[:, -new:, None]

    def head(self, hidden):
        words = torch.arange(self.config.vocab_size).double()
        logits = self.sharpness * torch.sin(hidden * (0.37 + 0.61 * words))
        logits[..., END] += self.end
        return logits

    def decode(self, tokens, memory, cache=None):
        return self.head(self.decode_hidden(tokens, memory, cache))


def sentences(count, longest=9, seed=0, vocabulary=30):
    draw = random.Random(seed)
    return [[draw.randrange(4, vocabulary) for _ in range(draw.randrange(1, longest))] + [END] for _ in range(count)]


def log_probabilities(model, source, written):
    """Of every next token, one prefix at a time, without cache and batch. Shapes: -> (V,) float64."""
    memory = model.encode(torch.tensor([source]))
    logits = model.decode(torch.tensor([[START, *written]]), memory)[0, -1].double()
    logits[NEVER] = -math.inf
    return logits.log_softmax(-1)


def normalised(total, length, exponent):
    return total / ((5 + length) / 6) ** exponent


def by_hand(model, source, beams, nbest, exponent, most):
    """Beam search in plain Python: whole prefixes, no batch, no early stop. -> [(tokens, score, finished)]."""
    living, finished = [([], 0.0)], []
    for _ in range(most):
        found = []
        for written, total in living:
            for token, more in enumerate(log_probabilities(model, source, written).tolist()):
                if more > -math.inf:
                    found.append(([*written, token], total + more))
        found.sort(key=lambda pair: -pair[1])
        found = found[: beams - len(finished)]
        finished += [(w[:-1], normalised(s, len(w), exponent), True) for w, s in found if w[-1] == END]
        living = [(w, s) for w, s in found if w[-1] != END]
    living = [(w, normalised(s, len(w), exponent), False) for w, s in living]
    return [*sorted(finished, key=lambda h: -h[1]), *sorted(living, key=lambda h: -h[1])][:nbest]


def agree(hypotheses, expected, tolerance=1e-9):
    assert [(h.tokens, h.finished) for h in hypotheses] == [(tokens, finished) for tokens, _, finished in expected]
    assert [h.score for h in hypotheses] == pytest.approx([score for _, score, _ in expected], abs=tolerance)


def alike(found, other, tolerance=1e-9):
    """The same hypotheses, token for token."""
    for mine, theirs in zip(found, other, strict=True):
        agree(mine, [(h.tokens, h.score, h.finished) for h in theirs], tolerance)


# ---------------------------------------------------------------------------------------------------------------
# Against the whole truth


@pytest.mark.parametrize("exponent", [0.0, 0.6, 2.0])
def test_a_wide_beam_finds_the_best_of_all_strings(exponent):
    model, most = Double(vocab_size=7), 4
    for source in sentences(3):
        every = []
        for length in range(most):  # and the end
            for written in itertools.product([4, 5, 6], repeat=length):
                steps = [
                    log_probabilities(model, source, written[:t])[token].item()
                    for t, token in enumerate([*written, END])
                ]
                every.append((list(written), normalised(sum(steps), length + 1, exponent), True))
        every.sort(key=lambda hypothesis: -hypothesis[1])
        assert len(every) == 40
        agree(decode(model, [source], beams=130, nbest=40, length_penalty=exponent, most=most)[0], every)
        agree(decode(model, [source], beams=130, length_penalty=exponent, most=most)[0], every[:1])


@pytest.mark.parametrize(("beams", "nbest"), [(1, 1), (2, 1), (3, 2), (5, 5)])
@pytest.mark.parametrize("exponent", [0.0, 0.6])
@pytest.mark.parametrize("end", [-1.0, 1.5])
def test_beams_are_those_of_a_search_in_plain_python(beams, nbest, exponent, end):
    model, sources = Double(end=end), sentences(6)
    found = decode(model, sources, beams=beams, nbest=nbest, length_penalty=exponent, most=8)
    for source, hypotheses in zip(sources, found, strict=True):
        agree(hypotheses, by_hand(model, source, beams, nbest, exponent, 8))


def test_one_beam_is_the_likeliest_token_again_and_again():
    model, sources = Double(), sentences(20)
    ends = 0
    for source, (hypothesis,) in zip(sources, decode(model, sources, most=9), strict=True):
        written, total, token = [], 0.0, None
        while token != END and len(written) < 9:
            likely = log_probabilities(model, source, written)
            token = int(likely.argmax())
            total += likely[token].item()
            written += [] if token == END else [token]
        length = len(written) + (token == END)
        agree([hypothesis], [(written, normalised(total, length, 0.6), token == END)])
        ends += token == END
    assert 0 < ends < 20  # both kinds of ending have been seen


# ---------------------------------------------------------------------------------------------------------------
# The fast path


@pytest.mark.parametrize("beams", [1, 4])
def test_cached_is_uncached_and_a_batch_is_its_sentences(beams):
    model, sources = Double(), sentences(23)
    settings = {"beams": beams, "nbest": beams}
    found = decode(model, sources, rows=8, **settings)
    alike(decode(model, sources, rows=8, cache=False, **settings), found)
    alike([decode(model, [source], **settings)[0] for source in sources], found)
    alike(decode(model, sources, **settings), found)
    assert len({len(hypotheses[0].tokens) for hypotheses in found}) > 3


def test_a_sentence_that_is_over_leaves_the_batch():
    model = Double(end=0.5)
    decode(model, sentences(16), rows=16)
    rows = [rows for rows, _ in model.calls]
    assert rows[0] == 16
    assert all(columns == 1 for _, columns in model.calls)
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < 4


def test_sentences_of_like_length_are_together():
    model, sources = Double(), sentences(12)
    seen = []
    encode = model.encode
    model.encode = lambda source: (seen.append(source), encode(source))[1]
    decode(model, sources, rows=4)
    assert [len(batch) for batch in seen] == [4, 4, 4]
    lengths = sorted(map(len, sources))
    assert [batch.shape[1] for batch in seen] == [lengths[3], lengths[7], lengths[11]]
    # Padding is behind the end, and only there.
    assert all(
        row[row.index(END) + 1 :].count(PAD) == len(row) - 1 - row.index(END) for b in seen for row in b.tolist()
    )


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.5])
def test_stopping_early_changes_nothing(exponent, monkeypatch):
    model, sources = Double(end=1.0), sentences(20)
    settings = {"beams": 4, "nbest": 2, "length_penalty": exponent, "most": 20}
    found = decode(model, sources, **settings)
    rows = sum(rows for rows, _ in model.calls)
    model.calls.clear()
    monkeypatch.setattr(Search, "over", lambda search: search.length >= search.limits)
    alike(decode(model, sources, **settings), found)
    assert rows < sum(rows for rows, _ in model.calls)


# ---------------------------------------------------------------------------------------------------------------
# Limits and tokens


def test_the_limit():
    endless = Double(end=-100)
    sources = [[5, END], [5, 6, 7, END]]
    for beams in (1, 3):
        found = decode(endless, sources, beams=beams, nbest=beams)
        assert [[len(h.tokens) for h in hypotheses] for hypotheses in found] == [[14] * beams, [18] * beams]
        assert not any(h.finished for hypotheses in found for h in hypotheses)
    assert [len(h[0].tokens) for h in decode(endless, sources, most=3)] == [3, 3]
    # No more positions than the model has: the double complains itself.
    few = Double(end=-100, context=15)
    assert [len(h[0].tokens) for h in decode(few, sources)] == [14, 15]
    assert len(decode(few, sources, most=15)[0][0].tokens) == 15
    with pytest.raises(ConfigError, match=r"most = 16: the model has 15 positions\. Take at most"):
        decode(few, sources, most=16)


def test_a_finished_one_comes_before_a_likelier_one_that_is_not():
    model, seen = Double(end=-1.0), 0
    for source, hypotheses in zip(sentences(20), decode(model, sentences(20), beams=4, nbest=4, most=3), strict=True):
        agree(hypotheses, by_hand(model, source, 4, 4, 0.6, 3))
        kinds = [h.finished for h in hypotheses]
        assert kinds == sorted(kinds, reverse=True)
        seen += len(set(kinds)) == 2 and hypotheses[0].score < hypotheses[-1].score
    assert seen


class Wishes(Double):
    """Wants nothing so much as what is never written."""

    def head(self, hidden):
        logits = super().head(hidden)
        logits[..., NEVER] += 50
        return logits


@pytest.mark.parametrize("settings", [{}, {"beams": 8, "nbest": 8}, {"sampling": SamplingConfig(temperature=2.0)}])
def test_padding_start_and_unknown_are_never_written(settings):
    found = decode(Wishes(vocab_size=6), sentences(10), **settings)
    written = {token for hypotheses in found for h in hypotheses for token in h.tokens}
    assert written == {4, 5}
    assert all(math.isfinite(h.score) and h.score < 0 for hypotheses in found for h in hypotheses)


def test_more_beams_than_there_is_to_write():
    # Three tokens can be written: END at once, or 4 or 5 and no more.
    found = decode(Double(vocab_size=6), [[7, END]], beams=6, nbest=6, most=1)[0]
    assert sorted((h.tokens, h.finished) for h in found) == [([], True), ([4], False), ([5], False)]


# ---------------------------------------------------------------------------------------------------------------
# Sampling


def test_every_sentence_has_its_own_draws():
    model, sources, warm = Double(end=0.5), sentences(12), SamplingConfig(temperature=1.3, top_k=6)
    found = decode(model, sources, sampling=warm, seed=5, rows=5)
    alike(decode(model, sources, sampling=warm, seed=5, cache=False), found)
    for place, source in enumerate(sources):
        alike(decode(model, [source], sampling=warm, seed=row_seed(5, place)), [found[place]])
    assert decode(model, sources, sampling=warm, seed=6) != found
    assert len({tuple(h.tokens) for (h,) in decode(model, [sources[3]] * 10, sampling=warm)}) > 3


def test_drawn_as_often_as_likely():
    model, source, count = Double(sharpness=1.0), [5, 6, END], 4000
    expected = log_probabilities(model, source, []).exp()
    drawn = torch.zeros(9)
    for (h,) in decode(model, [source] * count, sampling=SamplingConfig(), most=1, rows=count):
        token = END if h.finished else h.tokens[0]
        drawn[token] += 1
        assert h.score == pytest.approx(expected[token].log().item(), abs=1e-9)
    assert ((drawn / count - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt() + 1e-9).all()


def test_a_temperature_of_zero_is_greedy():
    model, sources = Double(end=0.5), sentences(8)
    alike(decode(model, sources, sampling=SamplingConfig(temperature=0)), decode(model, sources))


# ---------------------------------------------------------------------------------------------------------------
# Real models


def unruly(model):
    """Random weights, and a sine behind the head: without it a model that has learnt nothing says much the same of all
    sentences, and a wrong row or a wrong place would go unseen."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    model.head.register_forward_hook(lambda _, __, logits: 3 * torch.sin(40 * logits))
    return model.double().eval()


def transformer(**options):
    sizes = {"vocab_size": 13, "source_vocab_size": 30, "context": 20, "heads": 2, "width": 16}
    return unruly(Seq2Seq(Seq2SeqConfig(**sizes, **options)))


def lstm(**options):
    return unruly(Seq2SeqLSTM(Seq2SeqLSTMConfig(vocab_size=13, source_vocab_size=30, width=12, **options)))


MODERN = {"norm": "rms", "norm_placement": "pre", "positions": "rotary", "query_key_norm": True, "tied_head": False}
MODELS = {
    "2017": lambda: transformer(),
    "modern": lambda: transformer(**MODERN),
    "learned positions": lambda: transformer(positions="learned", norm_placement="pre"),
    "no attention": lambda: lstm(attention="none", layers=2),
    "additive": lambda: lstm(attention="additive", layers=2),
    "multiplicative": lambda: lstm(attention="multiplicative"),
}
TRANSFORMERS = list(MODELS)[:3]
each_model = pytest.mark.parametrize("name", MODELS)


@each_model
@pytest.mark.parametrize("beams", [1, 3])
def test_a_real_model_cached_and_uncached_together_and_alone(name, beams):
    model, sources = MODELS[name](), sentences(10)
    settings = {"beams": beams, "nbest": beams, "length_penalty": 2.0}
    found = decode(model, sources, rows=4, **settings)
    alike(decode(model, sources, rows=4, cache=False, **settings), found)
    alike([decode(model, [source], **settings)[0] for source in sources[:4]], found[:4])
    assert len({len(hypotheses[0].tokens) for hypotheses in found}) > 1
    most = min(model.context or 99, 2 * len(sources[0]) + 10)
    agree(found[0], by_hand(model, sources[0], beams, beams, 2.0, most))


@each_model
def test_a_real_model_draws(name):
    model, sources, warm = MODELS[name](), sentences(7), SamplingConfig(temperature=0.9, top_p=0.95)
    found = decode(model, sources, sampling=warm, seed=2, rows=4)
    alike(decode(model, sources, sampling=warm, seed=2, cache=False), found)


def test_in_float32_too():
    model, sources = MODELS["modern"]().float(), sentences(13)
    found = decode(model, sources, beams=3)
    alike(decode(model, sources, beams=3, cache=False), found, 1e-3)
    alike(decode(model.double(), sources, beams=3), found, 1e-3)


# ---------------------------------------------------------------------------------------------------------------
# Alignment


def heard(model, source, written):
    """What the cross-attention of each layer is given. Shapes: -> [((T, C), (S, C))]."""
    given = []
    hooks = [
        block.cross.register_forward_hook(lambda _, inputs, __: given.append((inputs[0][0], inputs[1][0])))
        for block in model.decoder
    ]
    with torch.no_grad():
        model(torch.tensor([source]), torch.tensor([written]))
    for hook in hooks:
        hook.remove()
    return given


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_alignment_is_attention_to_the_source(name):
    model = MODELS[name]()
    for source, target in [([5, 6, 7, 8, END], [4, 9, END]), ([5, 6, END], [4, 9, END]), ([5, END], [4])]:
        weights = align(model, source, target)
        assert weights.shape == (2, 2, len(target), len(source))
        assert torch.allclose(weights.sum(-1), torch.ones(()).double())
        # By formula, from what the attentions of the decoder were given.
        given = heard(model, source, [START, *target[:-1]])
        for layer, block in enumerate(model.decoder):
            (x, memory), cross = given[layer], block.cross
            for head in range(2):
                features = slice(8 * head, 8 * head + 8)
                queries, keys = cross.query(x)[:, features], cross.key(memory)[:, features]
                if cross.norm is not None:
                    queries, keys = (v * 8**0.5 / v.norm(dim=-1, keepdim=True) for v in (queries, keys))
                expected = (queries @ keys.T / 8**0.5).softmax(-1)
                assert torch.allclose(weights[layer, head], expected, atol=1e-6)


@pytest.mark.parametrize("attention", ["additive", "multiplicative"])
def test_alignment_is_in_the_order_of_the_source_also_where_that_is_read_from_its_end(attention):
    plain = lstm(attention=attention, bidirectional=False)
    backwards = lstm(attention=attention, bidirectional=False, reverse_source=True)
    source, target = [5, 6, 7, 8, END], [4, 9, END]
    weights = align(plain, source, target)
    assert weights.shape == (1, 1, 3, 5)
    assert torch.allclose(weights.sum(-1), torch.ones(()).double())
    assert torch.allclose(align(backwards, source[::-1], target), weights.flip(-1), atol=1e-12)


def test_what_cannot_be_aligned():
    model = MODELS["2017"]()
    with pytest.raises(ConfigError, match=r"^source is empty"):
        align(model, [END], [4])
    with pytest.raises(ConfigError, match=r"^target is empty: there is nothing to align"):
        align(model, [5, END], [])
    with pytest.raises(ConfigError, match=r"^target has the token 13; the model knows 0 to 12\.$"):
        align(model, [5, END], [13])
    with pytest.raises(ConfigError, match=r"^target has 21 tokens, the model has 20 positions"):
        align(model, [5, END], [4] * 21)
    with pytest.raises(ConfigError, match=r"^This model has no attention"):
        align(MODELS["no attention"](), [5, END], [4])


# ---------------------------------------------------------------------------------------------------------------
# What cannot be


def test_nothing_gives_nothing():
    assert decode(Double(), []) == []


@pytest.mark.parametrize(
    ("sources", "settings", "message"),
    [
        ([[5, END], []], {}, r"^source 1 is empty: there is nothing to translate\. Leave it out\.$"),
        ([[5, END], [END]], {}, r"^source 1 is empty"),
        ([[5, PAD, 6, END]], {}, r"^source 0 has padding in it \(token 0\)\. Leave it out"),
        ([[5] * 12 + [END]], {}, r"^source 0 has 13 tokens, the model has 12 positions\. Split the sentence, or train"),
        ([[5, 30, END]], {}, r"^source 0 has the token 30; the model knows 0 to 29\.$"),
        ([[5, -1, END]], {}, r"^source 0 has the token -1; the model knows 0 to 29\.$"),
        ([[5, END]], {"beams": 0}, r"^BeamConfig.beams = 0: must be from 1 to 1,000\.$"),
        ([[5, END]], {"beams": 2, "nbest": 3}, r"^BeamConfig.nbest = 3: must be from 1 to beams = 2\.$"),
        ([[5, END]], {"nbest": 0}, r"^BeamConfig.nbest = 0"),
        ([[5, END]], {"length_penalty": -0.1}, r"^BeamConfig.length_penalty = -0.1: must be 0 or a number above"),
        ([[5, END]], {"length_penalty": math.nan}, r"^BeamConfig.length_penalty = nan"),
        ([[5, END]], {"most": 0}, r"^BeamConfig.most = 0: must be at least 1, or none"),
        ([[5, END]], {"rows": 0}, r"^rows = 0: must be at least 1\.$"),
        ([[5, END]], {"beams": 2, "sampling": SamplingConfig()}, r"^beams = 2 with sampling: .* one beam"),
        ([[5, END]], {"sampling": SamplingConfig(), "seed": -1}, r"^seed = -1: must be 0 or more"),
    ],
)
def test_refused(sources, settings, message):
    with pytest.raises(ConfigError, match=message):
        decode(Double(context=12), sources, **settings)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("settings", [{}, {"beams": 3}, {"sampling": SamplingConfig()}])
def test_logits_that_are_no_numbers(wrong, settings):
    class Broken(Double):
        def head(self, hidden):
            logits = super().head(hidden)
            logits[-1, :, 5] = wrong
            return logits

    with pytest.raises(HandmadeError, match="not finite numbers"):
        decode(Broken(), sentences(3), **settings)


def test_dropout_is_off_inside_and_the_mode_comes_back():
    model, modes = Double(), []
    model.part = torch.nn.Dropout(0.5).eval()
    model.train()
    model.part.training = False
    head = model.head
    model.head = lambda hidden: (modes.append(model.training), head(hidden))[1]
    decode(model, sentences(2))
    assert not any(modes)
    assert (model.training, model.part.training) == (True, False)


def test_a_config_goes_there_and_back():
    config = BeamConfig(beams=4, nbest=2, most=7)
    assert BeamConfig.from_dict(config.to_dict()) == config
    assert Hypothesis([5], -1.0, True) == Hypothesis([5], -1.0, True)
