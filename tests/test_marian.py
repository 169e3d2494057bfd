"""Our encoder-decoder against Hugging Face's MarianMTModel of a tiny random shape, both ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from handmade.errors import ConfigError
from handmade.interop import marian
from handmade.models.seq2seq import Seq2Seq, Seq2SeqConfig

SOURCES, END = 23, 1
SHAPE: dict[str, Any] = {
    "vocab_size": SOURCES,
    "decoder_vocab_size": SOURCES,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 20,
    "activation_function": "swish",
    "scale_embedding": True,
    "pad_token_id": SOURCES - 1,
    "decoder_start_token_id": SOURCES - 1,
    "eos_token_id": END,
    "forced_eos_token_id": None,
}
OWN = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 29}
PAD, LENGTHS = SOURCES - 1, [7, 3, 5]
each_kind = pytest.mark.parametrize("changes", [{}, OWN], ids=["shared", "own"])


def theirs_of(changes: dict[str, Any]) -> Any:
    """A model of theirs, all of it drawn anew: their own first biases are zeros. Small embeddings and biases, so that
    the source has a say in what is written."""
    transformers = pytest.importorskip("transformers")
    model = transformers.MarianMTModel(transformers.MarianConfig(**{**SHAPE, **changes})).eval()
    generator = torch.Generator().manual_seed(34)  # of which one sentence ends
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), ("final_logits_bias", model.final_logits_bias)]:
            if "positions" not in name:  # their waves
                small = any(part in name for part in ("embed", "shared", "bias"))
                tensor.normal_(1.0 if "norm.weight" in name else 0.0, 0.1 if small else 0.6, generator=generator)
    return model


def ours_of(theirs: Any) -> Seq2Seq:
    config = marian.config_from(theirs.config.to_dict())
    model = Seq2Seq(config).eval()
    model.load_state_dict(marian.weights_from(theirs.state_dict(), config))
    return model


def pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(PAD, (3, 7), generator=generator)
    source = source.masked_fill(torch.arange(7) >= torch.tensor(LENGTHS)[:, None], PAD)
    return source, torch.randint(18, (3, 6), generator=generator)


@pytest.mark.bench
@each_kind
def test_equal_in_logits_and_gradients(changes: dict[str, Any]) -> None:
    theirs = theirs_of(changes)
    ours = ours_of(theirs)
    source, tokens = pairs()
    # In evaluation, where only dropout is off.
    expected = theirs(input_ids=source, attention_mask=(source != PAD).long(), decoder_input_ids=tokens).logits
    found = ours(source, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    factors = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    for logits in (found, expected):
        (logits * factors).sum().backward()
    # One matrix under several names has one gradient; the bias of their head is no parameter, so that it has none.
    gradients = {name: p.grad for name, p in theirs.named_parameters(remove_duplicate=False) if p.grad is not None}
    gradients["final_logits_bias"] = factors.sum((0, 1))[None]
    expected_gradients = marian.weights_from(gradients, ours.config)
    for name, parameter in ours.named_parameters(remove_duplicate=False):
        torch.testing.assert_close(parameter.grad, expected_gradients[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.bench
@each_kind
def test_equal_in_what_they_write(changes: dict[str, Any]) -> None:
    theirs = theirs_of({**changes, **({"decoder_start_token_id": 5} if changes else {})})
    ours = ours_of(theirs)
    source, _ = pairs()
    expected = theirs.generate(
        source, attention_mask=(source != PAD).long(), num_beams=1, do_sample=False, max_new_tokens=12
    )
    with torch.no_grad():
        memory = ours.encode(source)
        cache = ours.new_cache(memory)
        rows, ended = expected[:, :1], torch.zeros(3, dtype=torch.bool)
        while rows.shape[1] < expected.shape[1]:
            token = ours.decode(rows[:, -1:], memory, cache)[:, -1].argmax(-1)
            rows = torch.cat([rows, torch.where(ended, PAD, token)[:, None]], dim=1)
            ended |= token == END
    assert rows.tolist() == expected.tolist()
    assert len({tuple(row) for row in rows.tolist()}) > 1  # not one answer to all


@pytest.mark.bench
@each_kind
def test_there_and_back(changes: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = theirs_of(changes)
    ours = ours_of(theirs)
    state, expected = marian.weights_to(ours.state_dict(), ours.config), theirs.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        tolerance = 1e-6 if "positions" in name else 0.0
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=tolerance, msg=name)
    config = marian.config_to(ours.config, end=END)
    assert {name: value for name, value in config.items() if theirs.config.to_dict()[name] != value} == {
        "architectures": ["MarianMTModel"],
        "activation_function": "silu",
    }
    again = transformers.MarianMTModel(transformers.MarianConfig(**config)).eval()
    again.load_state_dict(state)
    assert marian.config_from(again.config.to_dict()) == ours.config


MINE = Seq2SeqConfig(19, 23, width=8, heads=2, activation="silu")


def test_without_their_library() -> None:
    model = Seq2Seq(MINE.replace(tied_head=False))
    config = model.config.replace(head_bias=True)
    theirs = marian.weights_to(model.state_dict(), model.config)
    assert (theirs["final_logits_bias"] == 0).all()
    again = marian.weights_from(theirs, config)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again[name], tensor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_ffn_dim": 8}, "encoder_ffn_dim = 24 and decoder_ffn_dim = 8 must be equal"),
        ({"activation_function": "tanh"}, "activation_function = 'tanh': must be one of swish, "),
        ({"d_model": 15, "encoder_attention_heads": 5, "decoder_attention_heads": 5}, "width = 15: must be even"),
    ],
)
def test_a_model_that_ours_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        marian.config_from({**SHAPE, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "rms"}, "norm = 'rms': must be layer for Marian"),
        ({"norm_placement": "pre"}, "norm_placement = 'pre': must be post for Marian"),
        ({"positions": "rotary"}, "positions = 'rotary': must be sinusoidal for Marian"),
        ({"bias": False}, "bias = False: must be True for Marian"),
        ({"activation": "swiglu"}, "activation = 'swiglu': must be one of silu, relu, gelu"),
    ],
)
def test_a_model_that_theirs_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        marian.config_to(MINE.replace(**changes), end=END)


def test_weights_that_are_not_there() -> None:
    model = Seq2Seq(MINE.replace(head_bias=True))
    weights = marian.weights_to(model.state_dict(), model.config)
    name = "model.decoder.layers.1.encoder_attn.v_proj.weight"
    with pytest.raises(ConfigError, match=rf"{name} has shape \(8, 7\): must be \(8, 8\)"):
        marian.weights_from({**weights, name: weights[name][:, 1:]}, model.config)
    del weights[name]
    with pytest.raises(ConfigError, match=f"the weights lack {name}"):
        marian.weights_from(weights, model.config)
