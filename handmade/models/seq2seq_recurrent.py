"""Translation with a state: an LSTM reads a sentence, another one writes the translation; without attention, and with
the two that came before the transformer.

B sentences, S source tokens, T target tokens, C width, A features of a source token's annotation (C, or 2 C where it
is read both ways), V target vocabulary, R = B * beams rows that are written.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from handmade.attention import attend, attend_quickly, attention_weights, hear, recording
from handmade.config import Config
from handmade.errors import ConfigError
from handmade.layers import LSTM, Dropout, Embedding, Linear
from handmade.layers.kernels import Module
from handmade.layers.recurrent import step_of_lstm
from handmade.models.blocks import Head
from handmade.models.seq2seq import Memory, State, beams_of, sentences_of


@dataclass(frozen=True)
class Seq2SeqLSTMConfig(Config):
    """The shape of a `Seq2SeqLSTM`."""

    vocab_size: int
    """Distinct target tokens."""
    source_vocab_size: int
    """Distinct source tokens."""
    attention: Literal["none", "additive", "multiplicative"] = "additive"
    """"none": all of a sentence in one state (Sutskever 2014). "additive": a look back before each token (Bahdanau
    2015). "multiplicative": after it (Luong 2015), which is faster."""
    width: int = 256
    """Features of a token, and of the state of a layer."""
    layers: int = 1
    """LSTMs one behind the other, in the encoder and in the decoder."""
    bidirectional: bool | None = None
    """The source is read from both ends, which needs an attention. None: with the additive one, as published."""
    reverse_source: bool | None = None
    """The source is read from its end to its beginning. None: without attention, as published."""
    dropout: float = 0.0
    """On what goes into a layer, an attention and the head, never on the state."""
    context: int = 64
    """Most positions of a source, and of a target, in training. The model itself can run for ever."""
    padding: int = 0
    """The source token that fills short rows up. It is never read."""

    @property
    def both_ways(self) -> bool:
        """`bidirectional`, or its default."""
        return self.attention == "additive" if self.bidirectional is None else self.bidirectional

    @property
    def backwards(self) -> bool:
        """`reverse_source`, or its default."""
        if self.reverse_source is None:
            return self.attention == "none"
        return self.reverse_source

    @property
    def annotation_features(self) -> int:
        """Of what the encoder says of a source token."""
        return 2 * self.width if self.both_ways else self.width

    def check(self) -> None:
        for field in ("vocab_size", "source_vocab_size", "width", "layers", "context"):
            self.require(field, getattr(self, field) >= 1, "at least 1")
        self.require("dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        self.require("padding", 0 <= self.padding < self.source_vocab_size, "a token of the source vocabulary")
        if self.both_ways and self.attention == "none":
            self.fail("bidirectional", "must be false without attention: nothing would look at what is read forward")
        if self.both_ways and self.backwards:
            self.fail("reverse_source", "must be false for an encoder that reads both ways")


class Encoder(Module):
    """What stands in a source: `layers` LSTMs, each from left to right or, read both ways, one for each direction.

        h_j = LSTM(x_j, h_(j-1))                               or h_j = [LSTM(x_j, h_(j-1)); LSTM'(x_j, h_(j+1))]

    Rows are padded on the right. The backward direction begins at a row's last real token.

    Shapes: x (B, S, C), lengths (B,) or None -> annotations (B, S, A), and of every layer the state it ends in, (h, c):
    of a direction that is read backward its state at the first token.
    """

    def __init__(self, width: int, layers: int, both_ways: bool, dropout: float) -> None:
        super().__init__()
        columns = [width, *[2 * width if both_ways else width] * (layers - 1)]
        self.forward_cells = nn.ModuleList(LSTM(inputs, width) for inputs in columns)
        self.backward_cells = nn.ModuleList(LSTM(inputs, width) for inputs in columns if both_ways)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, list[State]]:
        places = turned_around(x.shape[1], lengths, x.device) if len(self.backward_cells) else None
        states = []
        for layer, cell in enumerate(self.forward_cells):
            x = self.dropout(x)
            y, state = cell(x, None, lengths)
            if places is not None:
                other, state = self.backward_cells[layer](along(x, places), None, lengths)
                y = torch.cat([y, along(other, places)], dim=-1)
            x = y
            states.append(state)
        return self.dropout(x), states


def turned_around(length: int, lengths: Tensor | None, device: torch.device) -> Tensor:
    """The places of a row's tokens from its last real one to its first; of padding, its own. It undoes itself.
    Shapes: lengths (B,) -> (B, S), without lengths (1, S)."""
    places = torch.arange(length, device=device)
    if lengths is None:
        return places.flip(0)[None]
    from_end = lengths[:, None] - 1 - places
    return torch.where(from_end >= 0, from_end, places)


def along(x: Tensor, places: Tensor) -> Tensor:
    """The vectors at these places of each row. Shapes: x (B, S, C), places (B, S) or (1, S) -> (B, S, C)."""
    if len(places) == 1:
        return x.index_select(1, places[0])
    return x.gather(1, places[..., None].expand_as(x))


class Seq2SeqLSTMCache:
    """What decoding keeps: of R rows the state of each layer (`states`), of B sentences the annotations, as keys and as
    values, and their mask, and how many tokens are written (`length`)."""

    def __init__(self, states: list[State], asked: tuple[Tensor, ...], mask: Tensor | None, beams: int) -> None:
        self.states, self.asked, self.mask, self.beams = states, asked, mask, beams
        self.length = 0

    def select(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was. The rows come in whole groups of `beams`, each out of one sentence's
        rows. Shapes: rows (R',) int64."""
        sentences = sentences_of(rows, self.beams)
        before = self.states[0][0].shape[1] // self.beams
        self.states = [(h[:, rows], c[:, rows]) for h, c in self.states]
        if torch.equal(sentences, torch.arange(before, device=rows.device)):
            return
        self.asked = tuple(part[sentences] for part in self.asked)
        self.mask = None if self.mask is None else self.mask[sentences]


class AdditiveDecoder(Module):
    """An LSTM that looks at the source before each of its steps.

        e_ij = v . tanh(W s_(i-1) + U h_j)                 how much step i wants to know of source token j
        a_ij = exp(e_ij) / sum_k exp(e_ik)
        c_i  = sum_j a_ij h_j
        s_i  = LSTM([y_(i-1); c_i], s_(i-1))
        t_i  = max of each pair of  W_s s_i + W_y y_(i-1) + W_c c_i        (maxout)

    s_i is the LSTM's h_i. Every step waits for the last one, so there is a loop. In it stands only what has to: what
    y adds to the gates, and t, are made for all steps at once.

    Shapes: y (R, T, C), keys (B, S, C) from `keys`, annotations (B, S, A), mask (B, S), state (1, R, C) twice
            -> t (R, T, C), the last state.
    Source: Bahdanau et al. 2015, appendix A.1.2 and A.2.2 (arXiv:1409.0473). There the state is that of a gated unit
    with one vector, here of an LSTM with a cell; and t is made from s_(i-1) in the appendix, from s_i in section 3.1
    and here.
    """

    def __init__(self, width: int, annotation: int) -> None:
        super().__init__()
        self.width = width
        self.query = Linear(width, width, bias=False)
        self.key = Linear(annotation, width, bias=False)
        self.energy = Linear(width, 1, bias=False)
        self.cell = LSTM(width + annotation, width)
        self.readout = Linear(2 * width + annotation, 2 * width)

    def keys(self, annotations: Tensor) -> Tensor:
        """U h_j of all tokens: they are the same at every step. Shapes: (B, S, A) -> (B, S, C)."""
        return self.key(annotations)

    def forward(
        self, y: Tensor, keys: Tensor, annotations: Tensor, mask: Tensor | None, state: State
    ) -> tuple[Tensor, State]:
        steps, contexts, weights, state = self.steps(y, keys, annotations, mask, state)
        if recording():
            hear(weights[:, None])
        maxout = self.readout(torch.cat([steps, y.to(steps.dtype), contexts.to(steps.dtype)], dim=-1))
        return maxout.unflatten(-1, (-1, 2)).amax(-1), state

    def steps(
        self, y: Tensor, keys: Tensor, annotations: Tensor, mask: Tensor | None, state: State
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """The loop. Shapes: -> s (R, T, C), c (R, T, A), a (B, beams * T, S) in the order of the rows, state."""
        rows, sentences, tokens = len(y), len(keys), y.shape[1]
        beams = beams_of(rows, sentences)
        hidden, cell = state[0][0], state[1][0]
        weight_ih, weight_hh = self.cell.parameter("weight_ih", 0), self.cell.parameter("weight_hh", 0)
        bias = self.cell.parameter("bias_ih", 0) + self.cell.parameter("bias_hh", 0)
        from_tokens = nn.functional.linear(y, weight_ih[:, : self.width], bias)  # (R, T, 4 C)
        kind = from_tokens.dtype
        # Cast once, not at every step.
        inward = torch.cat([weight_ih[:, self.width :], weight_hh], dim=1).to(kind).T  # (A + C, 4 C)
        query, energy = self.query.weight.to(kind).T, self.energy.weight.to(kind).T
        keys, annotations, hidden = keys.to(kind)[:, None], annotations.to(kind), hidden.to(kind)
        cell = cell.to(weight_hh.dtype)  # under autocast it adds up in float32
        shut = seeing = None
        if mask is not None:
            # A sentence of nothing is left to be seen whole, because a softmax of nothing is 0 / 0. It is made zero.
            seeing = mask.any(1, keepdim=True)
            shut = torch.zeros_like(mask, dtype=kind).masked_fill_(~mask & seeing, -math.inf)[:, None]
            seeing = None if seeing.all() else seeing[..., None].to(kind)
        outputs, contexts, weights = [], [], []
        for from_token in from_tokens.unbind(1):
            wanted = (hidden @ query).view(sentences, beams, 1, self.width)
            scores = (torch.tanh(wanted + keys) @ energy).squeeze(-1)  # (B, beams, S)
            weight = (scores if shut is None else scores + shut).softmax(-1)
            weight = weight if seeing is None else weight * seeing
            context = torch.bmm(weight, annotations).flatten(0, 1)  # (R, A)
            gates = torch.addmm(from_token, torch.cat([context, hidden], dim=1), inward)
            hidden, cell = step_of_lstm(gates, cell)
            outputs.append(hidden)
            contexts.append(context)
            weights.append(weight)
        seen = torch.stack(weights, dim=2).view(sentences, beams * tokens, -1)
        return torch.stack(outputs, 1), torch.stack(contexts, 1), seen, (hidden[None], cell[None])


class MultiplicativeAttention(Module):
    """A look back after the LSTM's steps, for all of them at once.

        score(s_i, h_j) = s_i . W h_j                      "general"
        a_ij = exp(score_ij) / sum_k exp(score_ik)
        c_i  = sum_j a_ij h_j
        t_i  = tanh(W_c [c_i; s_i])

    Shapes: s (R, T, C), keys (B, S, C) from `keys`, annotations (B, S, A), mask (B, S) -> t (R, T, C).
    Source: Luong et al. 2015, equations 5 to 8 (arXiv:1508.04025), without input feeding (section 3.3): with it the
    LSTM would wait for t_i, a loop again.
    """

    def __init__(self, width: int, annotation: int) -> None:
        super().__init__()
        self.key = Linear(annotation, width, bias=False)
        self.output = Linear(annotation + width, width, bias=False)

    def keys(self, annotations: Tensor) -> Tensor:
        """W h_j of all tokens. Shapes: (B, S, A) -> (B, S, C)."""
        return self.key(annotations)

    def forward(self, steps: Tensor, keys: Tensor, annotations: Tensor, mask: Tensor | None) -> Tensor:
        # The rows of a sentence ask it as if they were one; one head.
        asking = steps.reshape(len(keys), 1, -1, steps.shape[-1]).to(keys.dtype)
        keys, annotations = keys[:, None], annotations[:, None].to(keys.dtype)
        allowed = None if mask is None else mask[:, None, None]
        if recording():
            hear(attention_weights(asking, keys, allowed, scale=1.0))
        way = attend_quickly if self.fused else attend
        contexts = way(asking, keys, annotations, allowed, scale=1.0)
        contexts = contexts.reshape(*steps.shape[:2], -1)
        return torch.tanh(self.output(torch.cat([contexts, steps.to(contexts.dtype)], dim=-1)))


class Seq2SeqLSTM(Module):
    """An encoder and a decoder of LSTMs, and an attention between them, or none.

        h, last = encoder(embedding(source))
        s = tanh(W last.h), last.c  where the source is read both ways, of the backward direction; else last
        x = LSTM(embedding(tokens), s)                 `layers` times; with additive attention the first looks back
        x = attend(x, h)                               multiplicative attention, behind the last
        logits = head(x)

    With additive attention the first layer is an `AdditiveDecoder`, and its t goes on to the next, or to the head.

    Shapes: source (B, S) int64, tokens (B, T) int64 -> logits (B, T, V) float32. Source rows are padded on the right
    with `config.padding`, which is never read.
    Sources: without attention, Sutskever et al. 2014 (arXiv:1409.3215): the last state of each layer begins the
    decoder's, the source reversed (section 3.3). Additive, Bahdanau et al. 2015 (`AdditiveDecoder`), s_0 after
    appendix A.2.2. Multiplicative, Luong et al. 2015 (`MultiplicativeAttention`).

    `generator` makes the initial weights; None takes torch's global one.
    """

    context = None  # what was written is in the state: it can run for ever
    compiles = False  # torch.compile would write the loop over time out, step by step: that takes minutes

    def __init__(self, config: Seq2SeqLSTMConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        c = config
        with torch.random.fork_rng(devices=[]):  # what the parts draw for themselves is drawn anew below
            self.source_embedding = Embedding(c.source_vocab_size, c.width)
            self.encoder = Encoder(c.width, c.layers, c.both_ways, c.dropout)
            self.first = nn.ModuleList(Linear(c.width, c.width) for _ in range(c.layers if c.both_ways else 0))
            self.embedding = Embedding(c.vocab_size, c.width)
            additive = c.attention == "additive"
            self.additive = AdditiveDecoder(c.width, c.annotation_features) if additive else None
            self.cells = nn.ModuleList(LSTM(c.width, c.width) for _ in range(c.layers - additive))
            multiplicative = c.attention == "multiplicative"
            self.multiplicative = MultiplicativeAttention(c.width, c.annotation_features) if multiplicative else None
            self.dropout = Dropout(c.dropout)
            self.head = Head(c.width, c.vocab_size, bias=True)
        self.initialize(generator)

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight anew, in a fixed order: torch.nn's defaults. On the meta device, where weights are shapes
        only, nothing is done."""
        if self.head.weight.is_meta:
            return
        for module in self.modules():
            if isinstance(module, (Linear, Embedding, LSTM)):
                module.reset_parameters(generator)

    def encode(self, source: Tensor) -> Memory:
        """Read B sentences, once. Shapes: (B, S) int64 -> states (B, S, A)."""
        real = source != self.config.padding
        padded = not real.all()
        lengths = real.sum(1) if padded else None
        x = self.source_embedding(source)
        if self.config.backwards:
            places = turned_around(source.shape[1], lengths, source.device)
            annotations, states = self.encoder(along(x, places), lengths)
            annotations = along(annotations, places)  # each at its token again
        else:
            annotations, states = self.encoder(x, lengths)
        if self.config.both_ways:
            states = [(torch.tanh(layer(h)), c) for layer, (h, c) in zip(self.first, states, strict=True)]
        return Memory(annotations, real if padded else None, tuple(states))

    def decoder(self) -> list[nn.Module]:
        """The decoder's layers, from the first."""
        return [*([] if self.additive is None else [self.additive]), *self.cells]

    def _asked(self, memory: Memory) -> tuple[Tensor, ...]:
        """Keys and annotations for the attention; nothing without one."""
        looking = self.additive or self.multiplicative
        return () if looking is None else (looking.keys(memory.states), memory.states)

    def new_cache(self, memory: Memory, beams: int = 1) -> Seq2SeqLSTMCache:
        """The state that decoding begins with, `beams` times for each sentence, and its annotations, once."""
        states = [(h.repeat_interleave(beams, 1), c.repeat_interleave(beams, 1)) for h, c in memory.first]
        return Seq2SeqLSTMCache(states, self._asked(memory), memory.mask, beams)

    def decode_hidden(self, tokens: Tensor, memory: Memory, cache: Seq2SeqLSTMCache | None = None) -> Tensor:
        """What the head takes. Shapes: (R, T) int64 -> (R, T, C).

        `cache` holds the state before these tokens and takes them in; it has its own part of the memory. Raises
        ConfigError unless the rows come in whole groups, one for each sentence.
        """
        if cache is None:
            cache = self.new_cache(memory, beams_of(len(tokens), memory.rows))
        if len(tokens) != (rows := cache.states[0][0].shape[1]):
            raise ConfigError(f"cache: made for {rows} rows, not {len(tokens)}.")
        x, states = self.dropout(self.embedding(tokens)), []
        for cell, state in zip(self.decoder(), cache.states, strict=True):
            if isinstance(cell, AdditiveDecoder):
                x, state = cell(x, *cache.asked, cache.mask, state)
            else:
                x, state = cell(x, state)
            states.append(state)
            x = self.dropout(x)
        if self.multiplicative is not None:
            x = self.dropout(self.multiplicative(x, *cache.asked, cache.mask))
        cache.states, cache.length = states, cache.length + tokens.shape[1]
        return x

    def decode(self, tokens: Tensor, memory: Memory, cache: Seq2SeqLSTMCache | None = None) -> Tensor:
        """The logits of the token behind each. Shapes: (R, T) int64 -> (R, T, V) float32. See `decode_hidden`."""
        return self.head(self.decode_hidden(tokens, memory, cache))

    def forward(self, source: Tensor, tokens: Tensor) -> Tensor:
        """All positions of the target at once, each from those before it. Shapes: (B, S), (B, T) -> (B, T, V)."""
        return self.decode(tokens, self.encode(source))


__all__ = ["Seq2SeqLSTM", "Seq2SeqLSTMCache", "Seq2SeqLSTMConfig"]
