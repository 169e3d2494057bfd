"""Healthy models that no zoo was made for: torch's own, other packages', and ours. Tiny, with random weights.

    for stranger in STRANGERS: report = doctor.examine(doctor.Given.of(stranger.make(0)))

Used by tests/test_doctor_strangers.py and by the benchmarks `doctor` and `doctor_rivals`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from handmade.models import ENCODER_DECODERS, FAMILIES
from handmade.presets import PRESETS, Preset
from handmade.randomness import seeded

VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS = 97, 32, 32, 4, 2
MOST_VOCABULARY, MOST_OF_OWN_WIDTH = 512, 4096
"""Tokens of a preset of ours; and where it has its own width."""


@dataclass(frozen=True)
class Stranger:
    """A healthy model that has nothing to do with the zoo."""

    name: str
    make: Callable[[int], dict[str, Any]]
    """Of a seed: what the doctor takes."""
    package: str = "torch"
    """What has to be installed."""

    @property
    def present(self) -> bool:
        """Whether its package is here."""
        return importlib.util.find_spec(self.package) is not None


# ---------------------------------------------------------------------------------------------------------------
# torch


class TorchEncoder(nn.Module):
    """torch's encoder as a language model: what it lacks is around it."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, batch_first=True, norm_first=norm_first)
        last = nn.LayerNorm(WIDTH) if norm_first else None
        self.encoder = nn.TransformerEncoder(layer, LAYERS, last, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.embedding(tokens) + self.position(torch.arange(length))
        return self.head(self.encoder(x, mask=mask, is_causal=True))


def torch_encoder(norm_first: bool) -> Callable[[int], dict[str, Any]]:
    def make(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        return {"model": TorchEncoder(norm_first), "vocab_size": VOCABULARY, "context": CONTEXT}

    return make


# ---------------------------------------------------------------------------------------------------------------
# Hugging Face, as it comes: it has no idea of us

LLAMA_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
HUGGING_FACE: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": (
        "GPT2",
        {
            "vocab_size": VOCABULARY,
            "n_positions": CONTEXT,
            "n_embd": WIDTH,
            "n_layer": LAYERS,
            "n_head": HEADS,
            **NO_TOKENS,
        },
    ),
    "Llama": ("Llama", LLAMA_LIKE),
    "GPT-NeoX": ("GPTNeoX", {**LLAMA_LIKE, "num_key_value_heads": None}),
    "Qwen2": ("Qwen2", LLAMA_LIKE),
    "Qwen3": ("Qwen3", {**LLAMA_LIKE, "head_dim": WIDTH // HEADS}),
    "Mamba": (
        "Mamba",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "state_size": 8,
            "time_step_rank": 4,
            **NO_TOKENS,
        },
    ),
}
HEAD_OF = {"GPT2": "GPT2LMHeadModel"}


def hugging_face(kind: str, shape: dict[str, Any]) -> Callable[[int], dict[str, Any]]:
    def make(seed: int) -> dict[str, Any]:
        import transformers

        transformers.logging.set_verbosity_error()
        given = {name: value for name, value in shape.items() if value is not None or name in NO_TOKENS}
        config = getattr(transformers, f"{kind}Config")(**given)
        torch.manual_seed(seed)
        return {"model": getattr(transformers, HEAD_OF.get(kind, f"{kind}ForCausalLM"))(config)}

    return make


# ---------------------------------------------------------------------------------------------------------------
# x-transformers

X_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary, SwiGLU, RMSNorm": {
        "rotary_pos_emb": True,
        "rotary_emb_dim": WIDTH,
        "ff_glu": True,
        "ff_swish": True,
        "use_rmsnorm": True,
    },
    "QK-norm": {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
    "ALiBi": {"alibi_pos_bias": True},
}


def x_transformer(options: dict[str, Any]) -> Callable[[int], dict[str, Any]]:
    def make(seed: int) -> dict[str, Any]:
        from x_transformers import Decoder, TransformerWrapper

        torch.manual_seed(seed)
        layers = Decoder(dim=WIDTH, depth=LAYERS, heads=HEADS, attn_dim_head=WIDTH, **options)
        model = TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=CONTEXT, attn_layers=layers)
        return {"model": model, "vocab_size": VOCABULARY, "context": CONTEXT}

    return make


# ---------------------------------------------------------------------------------------------------------------
# Ours


class Written(nn.Module):
    """What an encoder-decoder of ours writes, one source having been read."""

    def __init__(self, model: nn.Module, source: Tensor) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.register_buffer("source", source)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(self.source[None].expand(len(tokens), -1), tokens)


def built(family: str, shape: dict[str, Any], seed: int) -> dict[str, Any]:
    """A model of ours, and what there is to say of it. `shape` has its sizes."""
    made, config = FAMILIES[family]
    if family in ENCODER_DECODERS:
        shape = {"source_vocab_size": shape["vocab_size"], **shape}
    shape = config.from_dict(shape)
    model = made(shape, seeded(seed, "initialization"))
    if family in ENCODER_DECODERS:
        source = torch.randint(1, shape.vocab_size, (23,), generator=torch.Generator().manual_seed(seed))
        return {"model": Written(model, source), "vocab_size": shape.vocab_size, "context": shape.context}
    if family == "counting":
        model.fit(np.random.default_rng(seed).integers(shape.vocab_size, size=20_000))
    context = getattr(shape, "context", CONTEXT)
    return {"model": model, "vocab_size": shape.vocab_size, "context": context, "trained": family == "counting"}


def reduced(preset: Preset, own_width: bool) -> dict[str, Any]:
    """The shape of a preset at a depth of at most 2, with a short context and a small vocabulary; unless in its own
    width, also with few heads, of their own size."""
    shape = dict(preset.model)
    for name in ("layers", "encoder_layers", "decoder_layers"):
        if name in shape:
            shape[name] = min(shape[name], LAYERS)
    shape["context"] = min(shape.get("context", 64), 64)
    if not own_width:
        if "heads" in shape:
            size = shape["width"] // shape["heads"]
            shape["heads"] = min(shape["heads"], 2)
            shape["width"] = size * shape["heads"]
        else:
            shape["width"] = min(shape["width"], 64)
        shape.pop("hidden", None)
    most = MOST_OF_OWN_WIDTH if own_width else MOST_VOCABULARY
    return {**shape, "vocab_size": min(preset.vocab_size or 65, most)}


def preset(name: str, own_width: bool = False) -> Callable[[int], dict[str, Any]]:
    found = PRESETS[name]
    return lambda seed: built(found.family, reduced(found, own_width), seed)


SMALL: dict[str, dict[str, Any]] = {
    "gpt": {"context": CONTEXT, "layers": LAYERS, "heads": HEADS, "width": WIDTH},
    "recurrent": {"context": CONTEXT, "layers": LAYERS, "width": WIDTH},
    "mlp": {"context": CONTEXT},
    "bigram": {"context": CONTEXT},
    "fixed-window": {"context": 12, "width": 24},
    "counting": {"order": 3},
    "seq2seq": {"context": CONTEXT, "width": WIDTH},
    "seq2seq-lstm": {"context": CONTEXT, "width": WIDTH},
}
MEANT: dict[str, dict[str, Any]] = {"bigram": {"past": False}}
"""What a family is meant to be."""


def family(name: str) -> Callable[[int], dict[str, Any]]:
    # Few tokens for the one that counts: then most of what it is asked it has seen.
    size = 11 if name == "counting" else VOCABULARY
    return lambda seed: {**built(name, {**SMALL[name], "vocab_size": size}, seed), "expect": MEANT.get(name, {})}


STRANGERS: tuple[Stranger, ...] = (
    Stranger("torch.nn.TransformerEncoder, pre-norm", torch_encoder(True)),
    Stranger("torch.nn.TransformerEncoder, post-norm", torch_encoder(False)),
    *(Stranger(f"Hugging Face {name}", hugging_face(*one), "transformers") for name, one in HUGGING_FACE.items()),
    *(Stranger(f"x-transformers, {name}", x_transformer(o), "x_transformers") for name, o in X_TRANSFORMERS.items()),
    *(Stranger(f"family {name}", family(name)) for name in FAMILIES),
    *(Stranger(f"preset {name}", preset(name)) for name in PRESETS),
)
OWN_WIDTH: tuple[Stranger, ...] = tuple(Stranger(f"preset {name}, own width", preset(name, True)) for name in PRESETS)
"""The presets at a depth of 2 in their own width: up to 70 million parameters."""
