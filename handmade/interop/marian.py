"""`Seq2Seq` to and from Marian, the translation models that Hugging Face's transformers has as `MarianMTModel`.

    config = marian.config_from(json.loads(Path("config.json").read_text()))
    model  = Seq2Seq(config)
    model.load_state_dict(marian.weights_from(weights, config))

It is the transformer of 2017 with other names and three other habits. Position waves come in two halves, all sines,
then all cosines, where ours stand in pairs: the features of the stream are in another order, so that every matrix that
reads the stream or writes into it has its columns or rows reordered. The head's bias is a buffer. And the padding
token begins a translation.

C width, V vocabulary, P positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from handmade.errors import ConfigError
from handmade.models.seq2seq import Seq2SeqConfig
from handmade.positions import sinusoidal

ACTIVATIONS = {
    "swish": "silu",
    "silu": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "relu2": "relu-squared",
}
# Ours -> theirs, and the axis of the stream's features in weight and bias; None: there is none.
Part = tuple[str, int, int | None]
PARTS: dict[str, Part] = {
    "query": ("q_proj", 1, None),
    "key": ("k_proj", 1, None),
    "value": ("v_proj", 1, None),
    "output": ("out_proj", 0, 0),
}
ATTENTIONS = {"attention": "self_attn", "cross": "encoder_attn"}
OTHERS: dict[str, Part] = {
    "attention_norm": ("self_attn_layer_norm", 0, 0),
    "cross_norm": ("encoder_attn_layer_norm", 0, 0),
    "feed_forward_norm": ("final_layer_norm", 0, 0),
    "feed_forward.input": ("fc1", 1, None),
    "feed_forward.output": ("fc2", 0, 0),
}


def config_from(theirs: Mapping[str, Any]) -> Seq2SeqConfig:
    """From the fields of a `MarianConfig`. Activation dropout and layer drop, which only training has, are left out.
    Raises ConfigError for a model that ours cannot be."""
    for field in ("attention_heads", "ffn_dim"):
        sides = [theirs[f"{side}_{field}"] for side in ("encoder", "decoder")]
        if sides[0] != sides[1]:
            raise ConfigError(f"Marian: encoder_{field} = {sides[0]} and decoder_{field} = {sides[1]} must be equal.")
    activation = theirs["activation_function"]
    if activation not in ACTIVATIONS:
        raise ConfigError(f"Marian: activation_function = {activation!r}: must be one of {', '.join(ACTIVATIONS)}.")
    shared = theirs.get("share_encoder_decoder_embeddings", True)
    return Seq2SeqConfig.from_dict(
        {
            "vocab_size": theirs["vocab_size"] if shared else theirs.get("decoder_vocab_size") or theirs["vocab_size"],
            "source_vocab_size": theirs["vocab_size"],
            "context": theirs["max_position_embeddings"],
            "encoder_layers": theirs["encoder_layers"],
            "decoder_layers": theirs["decoder_layers"],
            "heads": theirs["encoder_attention_heads"],
            "width": theirs["d_model"],
            "hidden": theirs["encoder_ffn_dim"],
            "activation": ACTIVATIONS[activation],
            "scale_embeddings": theirs["scale_embedding"],
            "tied_head": theirs.get("tie_word_embeddings", True),
            "tied_embeddings": shared,
            "head_bias": True,
            "dropout": theirs.get("dropout", 0.0),
            "attention_dropout": theirs.get("attention_dropout", 0.0),
            "initialization": "normal",
            "padding": theirs["pad_token_id"],
        }
    )


def config_to(ours: Seq2SeqConfig, *, end: int, start: int | None = None) -> dict[str, Any]:
    """The fields of a `MarianConfig`. `end` and `start` are tokens of the target; None: the padding token starts.
    Raises ConfigError for a model that Marian cannot be."""
    needed: dict[str, Any] = {
        "norm": "layer",
        "norm_placement": "post",
        "positions": "sinusoidal",
        "query_key_norm": False,
        "bias": True,
    }
    for field, value in needed.items():
        if getattr(ours, field) != value:
            ours.fail(field, f"must be {value} for Marian")
    names = {mine: other for other, mine in ACTIVATIONS.items()}
    if ours.activation not in names:
        ours.fail("activation", f"must be one of {', '.join(names)} for Marian")
    return {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "is_encoder_decoder": True,
        "vocab_size": ours.source_vocab_size,
        "decoder_vocab_size": ours.vocab_size,
        "max_position_embeddings": ours.context,
        **{f"{side}_layers": getattr(ours, f"{side}_layers") for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": ours.heads for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": ours.hidden_features for side in ("encoder", "decoder")},
        "d_model": ours.width,
        "activation_function": names[ours.activation],
        "scale_embedding": ours.scale_embeddings,
        "tie_word_embeddings": ours.tied_head,
        "share_encoder_decoder_embeddings": ours.tied_embeddings,
        "dropout": ours.dropout,
        "attention_dropout": ours.attention_dropout,
        "pad_token_id": ours.padding,
        "decoder_start_token_id": ours.padding if start is None else start,
        "eos_token_id": end,
        "forced_eos_token_id": None,
    }


def weights_from(theirs: Mapping[str, Tensor], config: Seq2SeqConfig) -> dict[str, Tensor]:
    """A state dict of `MarianMTModel` as one of `Seq2Seq`; gradients by their names go the same way. What is tied may
    be missing. Raises ConfigError for a tensor that is missing or has another shape."""
    order = pairs_of_halves(config.width)
    found: dict[str, Tensor] = {}
    for name, others, axis, shape in names(config):
        other = next((one for one in others if one in theirs), None)
        if other is None:
            raise ConfigError(f"Marian: the weights lack {others[0]}.")
        tensor = theirs[other].squeeze(0) if name == "head.bias" else theirs[other]
        if tuple(tensor.shape) != shape:
            raise ConfigError(f"Marian: {other} has shape {tuple(tensor.shape)}: must be {shape}.")
        found[name] = tensor if axis is None else tensor.index_select(axis, order)
    return found


def weights_to(ours: Mapping[str, Tensor], config: Seq2SeqConfig) -> dict[str, Tensor]:
    """A state dict of `Seq2Seq` as one of `MarianMTModel`, whole: with its waves, and what is tied under each name."""
    back = pairs_of_halves(config.width).argsort()
    found: dict[str, Tensor] = {}
    for name, others, axis, _ in names(config):
        if name == "head.bias":
            like = ours["head.weight"]
            tensor = ours[name] if config.head_bias else like.new_zeros(len(like))
            found[others[0]] = tensor[None].clone()
            continue
        tensor = ours[name] if axis is None else ours[name].index_select(axis, back)
        found |= dict.fromkeys(others, tensor)
    waves = sinusoidal(torch.arange(config.context), config.width)[:, back]
    for side in ("encoder", "decoder"):
        found[f"model.{side}.embed_positions.weight"] = waves
    return found


def pairs_of_halves(width: int) -> Tensor:
    """Where each of our features stands with them: 0, C/2, 1, C/2 + 1 and so on. Shapes: -> (C,) int64."""
    return torch.arange(width).view(2, -1).T.flatten()


def names(config: Seq2SeqConfig) -> Iterator[tuple[str, list[str], int | None, tuple[int, ...]]]:
    """Of each of our tensors the name, its names with them, the axis of the stream's features, and shape."""
    c = config
    source, target = ["model.encoder.embed_tokens.weight"], ["model.decoder.embed_tokens.weight"]
    if c.tied_embeddings:
        source = target = ["model.shared.weight", *source, *target]
    head = ["lm_head.weight"]
    if c.tied_head:
        target, head = [*target, *head], [*head, *target]
        source = target if c.tied_embeddings else source
    yield "source_embedding.weight", source, 1, (c.source_vocab_size, c.width)
    yield "embedding.weight", target, 1, (c.vocab_size, c.width)
    yield "head.weight", head, 1, (c.vocab_size, c.width)
    yield "head.bias", ["final_logits_bias"], None, (c.vocab_size,)
    outside = {"feed_forward.input": (c.hidden_features, c.width), "feed_forward.output": (c.width, c.hidden_features)}
    for side, layers in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
        parts: dict[str, Part] = {
            f"{mine}.{part}": (f"{other}.{name}", weight_axis, bias_axis)
            for mine, other in ATTENTIONS.items()
            for part, (name, weight_axis, bias_axis) in PARTS.items()
        }
        parts = {name: part for name, part in {**parts, **OTHERS}.items() if side == "decoder" or "cross" not in name}
        for index in range(layers):
            for mine, (other, weight_axis, bias_axis) in parts.items():
                ours, theirs = f"{side}.{index}.{mine}", f"model.{side}.layers.{index}.{other}"
                shape: tuple[int, ...] = (c.width,) if "norm" in mine else outside.get(mine, (c.width, c.width))
                yield f"{ours}.weight", [f"{theirs}.weight"], weight_axis, shape
                yield f"{ours}.bias", [f"{theirs}.bias"], bias_axis, shape[:1]


__all__ = ["config_from", "config_to", "weights_from", "weights_to"]
