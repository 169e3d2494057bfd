"""What may be left out of a GPT to see what it is worth: queries and keys, the residual connections, the feed-forward
layer, the scale of the scores. (Caches, padding, causality: the variants in test_gpt.py.)"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from layer_parity import both_forms, build, normal, run
from torch import Tensor, nn

from handmade import attention, planning
from handmade.attention import Attention, MeanOfPast, record
from handmade.errors import ConfigError
from handmade.layers import kernels
from handmade.models.gpt import GPT, GPTConfig, parameter_count

VOCAB, CONTEXT, WIDTH = 13, 16, 12
SHAPE = {"vocab_size": VOCAB, "context": CONTEXT, "layers": 3, "heads": 2, "width": WIDTH}


def make(form: str = "fused", **changes: Any) -> GPT:
    """A small model in float64, every parameter drawn, so that no zero and no 1 hides a mistake."""
    return build(form, lambda: GPT(GPTConfig(**{**SHAPE, **changes}))).double().eval()


def some_tokens(*shape: int) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(0))


def equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# --- the mean of the past --------------------------------------------------------------------------------------


def without_questions(mean: MeanOfPast, heads: int) -> Attention:
    """An attention with the same values and output, its queries and keys all zero."""
    twin = Attention(mean.width, heads, causal=True).to(mean.value.weight.dtype)
    missing, unexpected = twin.load_state_dict(mean.state_dict(), strict=False)
    assert {name.split(".")[0] for name in missing} == {"query", "key"}
    assert not unexpected
    with torch.no_grad():
        for layer in (twin.query, twin.key):
            layer.weight.zero_()
            layer.bias.zero_()
    return twin


def padding(starts: list[int], asked: int) -> Tensor:
    return torch.tensor([[[[column >= start for column in range(asked)]]] for start in starts])


MASKS = {
    "none": None,
    "padding": padding([0, 3, 6], 7),  # the last row sees one token
    "nothing": padding([0, 7, 2], 7),
    "each its own": normal(3, 3, 1, 7, 7) > 0,
    "for all rows": normal(4, 7, 7) > 0,
}


@both_forms
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("mask", MASKS)
def test_the_mean_is_attention_without_questions(form, heads, mask):
    ours = build(form, lambda: MeanOfPast(WIDTH)).double()
    theirs, x = without_questions(ours, heads), normal(0, 3, 7, WIDTH)
    found, truth = (run(lambda x, part=part: part(x, None, MASKS[mask]), [x]) for part in (ours, theirs))
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        equal(found[name], value)
    for name, parameter in ours.named_parameters():
        equal(parameter.grad, theirs.get_parameter(name).grad)


@both_forms
def test_a_model_of_means_is_a_gpt_without_questions(form):
    ours = make(form, mixing="mean")
    theirs = make(form)
    theirs.load_state_dict({**theirs.state_dict(), **ours.state_dict()})
    with torch.no_grad():
        for block in theirs.blocks:
            block.attention.query.weight.zero_()
            block.attention.query.bias.zero_()
    equal(ours(some_tokens(2, CONTEXT)), theirs(some_tokens(2, CONTEXT)))


# --- the scale of the scores -----------------------------------------------------------------------------------

DIVISORS = {"head": math.sqrt(WIDTH / 2), "width": math.sqrt(WIDTH), "none": 1.0}


def written_attention(layer: Attention, x: Tensor, divisor: float) -> Tensor:
    """One head after another, one token after another. (T, C) -> (T, C)."""
    queries, keys, values = (part.weight @ x.T + part.bias[:, None] for part in (layer.query, layer.key, layer.value))
    size, rows = layer.features, []
    for t in range(len(x)):
        heads = []
        for h in range(layer.heads):
            at = slice(h * size, (h + 1) * size)
            weights = ((queries[at, t] @ keys[at, : t + 1]) / divisor).exp()
            heads.append(values[at, : t + 1] @ weights / weights.sum())
        rows.append(layer.output.weight @ torch.cat(heads) + layer.output.bias)
    return torch.stack(rows)


@both_forms
@pytest.mark.parametrize("scale", DIVISORS)
def test_scores_are_divided_as_the_config_says(form, scale):
    layer = make(form, score_scale=scale, layers=1).blocks[0].attention
    x = normal(0, 1, 6, WIDTH, scale=0.3)
    equal(layer(x)[0], written_attention(layer, x[0], DIVISORS[scale]))


# --- the stream ------------------------------------------------------------------------------------------------


def composed(model: GPT, tokens: Tensor) -> Tensor:
    """The model's own parts, put together again by hand."""
    c = model.config
    x = model.embedding.weight[tokens] + model.position.weight[: tokens.shape[1]]
    for block in model.blocks:
        assert (block.feed_forward is None) == (c.hidden == 0)
        parts = [(block.attention_norm, block.attention)]
        parts += [] if c.hidden == 0 else [(block.feed_forward_norm, block.feed_forward)]
        for norm, part in parts:
            new = part(norm(x) if c.norm_placement == "pre" else x)
            new = x + new if c.residual else new
            x = norm(new) if c.norm_placement == "post" else new
    return model.norm(x) @ model.embedding.weight.T


@both_forms
@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("hidden", [None, 0])
def test_the_stream(form, placement, residual, hidden):
    model = make(form, norm_placement=placement, residual=residual, hidden=hidden)
    equal(model(some_tokens(2, 9)), composed(model, some_tokens(2, 9)))
