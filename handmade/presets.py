"""Presets: shapes and settings as data, each with its source. Behaviour never depends on a preset's name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from handmade.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Preset:
    """What `--preset NAME` sets. A field that is not named has its config's default."""

    about: str
    """One line."""
    source: str
    family: str = "gpt"
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    vocab_size: int | None = None
    """Of its own tokenizer. None: that of the text. A run always has the vocabulary of its text."""


GPT2_SOURCE = "Radford et al. 2019, 'Language Models are Unsupervised Multitask Learners', table 2"
# What the paper does not say is taken from GPT-3's: Adam with betas 0.9/0.95, decay 0.1, clip 1.0, 375 M tokens of
# warm-up, cosine to 10 % (Brown et al. 2020, appendix B), and the rate of the nearest size in its table 2.1. Its
# cosine ends at 260 of 300 billion tokens; ours at the end. Dropout is that of the released configuration. The
# paper's batch is 512 rows of 1,024; how many steps it does not say.
GPT3_OPTIMIZER = {"name": "adamw", "betas": (0.9, 0.95), "weight_decay": 0.1}


def _gpt2(layers: int, heads: int, width: int, rate: float) -> dict[str, Any]:
    return {
        "model": {
            "context": 1024,
            "layers": layers,
            "heads": heads,
            "width": width,
            "dropout": 0.1,
            "attention_dropout": 0.1,
        },
        "train": {"batch": 8, "tokens_per_step": 524_288, "steps": 100_000, "evaluate_every": 1000},
        "optimizer": {**GPT3_OPTIMIZER, "learning_rate": rate},
        "schedule": {"name": "cosine", "warmup": 0.00715, "final": 0.1},
    }


# Today's small models: what each field is worth is for the ladder to show. docs/log.md has what was tried.
MODERN: dict[str, Any] = {
    "positions": "rotary",
    "norm": "rms-plain",
    "query_key_norm": True,
    "activation": "relu-squared",
    "bias": False,
    "tied_head": False,
    "zero_projections": True,
    "logit_cap": 15.0,
}

NANOGPT_OPTIMIZER = {
    "name": "adamw",
    "learning_rate": 1e-3,
    "betas": (0.9, 0.99),
    "weight_decay": 0.1,
    "decay_embeddings": True,
}
# torch.optim.AdamW's defaults; it decays biases and gains too, which ours never does.
PYTORCH_ADAMW = {"name": "adamw", "betas": (0.9, 0.999), "weight_decay": 0.01, "decay_embeddings": True}

PRESETS: dict[str, Preset] = {
    "gpt1": Preset(
        "GPT-1: post-norm blocks, learned positions, GELU",
        "Radford et al. 2018, 'Improving Language Understanding by Generative Pre-Training', section 4.1",
        model={
            "context": 512,
            "layers": 12,
            "heads": 12,
            "width": 768,
            "norm_placement": "post",
            "dropout": 0.1,
            "attention_dropout": 0.1,
            "initialization": "normal",
        },
        # Adam, peak 2.5e-4, 2,000 updates of warm-up, cosine to 0, batches of 64, decay of 0.01 on all but biases and
        # gains. The paper trains for 100 epochs of its books; the number of steps is ours.
        train={"batch": 64, "steps": 100_000, "evaluate_every": 1000},
        optimizer={
            "name": "adamw",
            "learning_rate": 2.5e-4,
            "betas": (0.9, 0.999),
            "weight_decay": 0.01,
            "decay_embeddings": True,
        },
        schedule={"name": "cosine", "warmup": 0.02, "final": 0.0},
        vocab_size=40_478,
    ),
    "gpt2": Preset("GPT-2 small", GPT2_SOURCE, vocab_size=50_257, **_gpt2(12, 12, 768, 6e-4)),
    "gpt2-medium": Preset("GPT-2 medium", GPT2_SOURCE, vocab_size=50_257, **_gpt2(24, 16, 1024, 3e-4)),
    "gpt2-large": Preset("GPT-2 large", GPT2_SOURCE, vocab_size=50_257, **_gpt2(36, 20, 1280, 2.5e-4)),
    "gpt2-xl": Preset("GPT-2 XL", GPT2_SOURCE, vocab_size=50_257, **_gpt2(48, 25, 1600, 2e-4)),
    "gpt3-125m": Preset(
        "GPT-3 small: GPT-2's shape with a context of 2,048 (dense attention in every layer)",
        "Brown et al. 2020, 'Language Models are Few-Shot Learners', table 2.1 (arXiv:2005.14165)",
        model={"context": 2048, "layers": 12, "heads": 12, "width": 768},
        train={"batch": 4, "tokens_per_step": 524_288, "steps": 572_000, "evaluate_every": 1000},
        optimizer={**GPT3_OPTIMIZER, "learning_rate": 6e-4},
        schedule={"name": "cosine", "warmup": 0.00125, "final": 0.1},
        vocab_size=50_257,
    ),
    "nanogpt-cpu": Preset(
        "a small GPT-2 for a few minutes on a CPU; reports 1.88 on Tiny Shakespeare",
        "karpathy/nanoGPT, README, 'I only have a macbook'",
        model={"context": 64, "layers": 4, "heads": 4, "width": 128, "bias": False, "activation": "gelu"},
        train={"batch": 12, "steps": 2000, "compile": "no", "precision": "float32", "evaluate_every": 250},
        # 100 of 2,000 steps of warm-up, cosine to a tenth; all that has two axes decays
        optimizer=NANOGPT_OPTIMIZER,
        schedule={"name": "cosine", "warmup": 0.05, "final": 0.1},
    ),
    "nanogpt-gpu": Preset(
        "a 10 M parameter GPT-2 for a GPU; reports 1.4697 on Tiny Shakespeare",
        "karpathy/nanoGPT, config/train_shakespeare_char.py",
        model={
            "context": 256,
            "layers": 6,
            "heads": 6,
            "width": 384,
            "bias": False,
            "activation": "gelu",
            "dropout": 0.2,
            "attention_dropout": 0.2,
        },
        train={"batch": 64, "steps": 5000, "evaluate_every": 250},
        optimizer=NANOGPT_OPTIMIZER,
        schedule={"name": "cosine", "warmup": 0.02, "final": 0.1},
    ),
    # The lecture's settings with 512 features for its 384, which its 6 heads do not divide, so 8; and a rate of 1e-3
    # for its 3e-4. Its queries, keys and values have no bias; ours have.
    "baby-cpu": Preset(
        "the lecture's first transformer, for a CPU: 2 layers of width 16 over 8 characters",
        "after karpathy/ng-video-lecture, gpt.py, scaled down",
        model={
            "context": 8,
            "layers": 2,
            "heads": 2,
            "width": 16,
            "activation": "relu",
            "tied_head": False,
            "head_bias": True,
            "dropout": 0.2,
            "attention_dropout": 0.2,
            "initialization": "normal",
        },
        train={"batch": 16, "steps": 5000, "clip": None, "evaluate_every": 500},
        optimizer={**PYTORCH_ADAMW, "learning_rate": 5e-3},
        schedule={"name": "constant", "warmup": 0.0},
    ),
    "baby-gpu": Preset(
        "the lecture's scaled-up transformer, for a GPU: 6 layers of width 512 over 256 characters",
        "after karpathy/ng-video-lecture, gpt.py, with 512 features for its 384",
        model={
            "context": 256,
            "layers": 6,
            "heads": 8,
            "width": 512,
            "activation": "relu",
            "tied_head": False,
            "head_bias": True,
            "dropout": 0.2,
            "attention_dropout": 0.2,
            "initialization": "normal",
        },
        train={"batch": 64, "steps": 5000, "clip": None, "evaluate_every": 500},
        optimizer={**PYTORCH_ADAMW, "learning_rate": 1e-3},
        schedule={"name": "constant", "warmup": 0.0},
    ),
    "speedrun": Preset(
        "to the loss of nanogpt-cpu in a fraction of its time: one layer that is told the pairs",
        "handmade; docs/log.md says what was tried, results/ has the figures",
        model={
            **MODERN,
            "context": 64,
            "layers": 1,
            "heads": 4,
            "width": 128,
            "pair_embedding": True,
            "initialization": "fan-in",
        },
        train={"batch": 12, "steps": 280, "compile": "no", "precision": "bfloat16", "clip": None, "evaluate_every": 10},
        optimizer={
            "name": "muon",
            "learning_rate": 0.05,
            "embedding_learning_rate": 0.06,
            "head_learning_rate": 0.006,
            "momentum": 0.9,
            "muon_steps": 4,
            "muon_precision": "bfloat16",
        },
        schedule={"name": "stable-then-decay", "warmup": 0.07, "decay": 0.6, "final": 0.0},
    ),
    "shakespeare": Preset(
        "close to the loss of nanogpt-gpu on two CPU cores, in minutes",
        "handmade; docs/log.md says what was tried, results/ has the figures",
        model={
            **MODERN,
            "context": 256,
            "layers": 6,
            "heads": 3,
            "width": 192,
            "pair_embedding": True,
            "initialization": "fan-in",
            "dropout": 0.1,
        },
        train={
            "batch": 16,
            "steps": 1200,
            "compile": "no",
            "precision": "bfloat16",
            "clip": None,
            "evaluate_every": 100,
            "checkpoint_every": 100,
        },
        optimizer={
            "name": "muon",
            "learning_rate": 0.02,
            "embedding_learning_rate": 0.015,
            "head_learning_rate": 0.006,
            "muon_steps": 3,
            "muon_precision": "bfloat16",
            "weight_decay": 0.1,
        },
        schedule={"name": "stable-then-decay", "warmup": 0.02, "decay": 0.6, "final": 0.0},
    ),
}


# The ladder of translation: each as published in its parts, in a size that learns in minutes on a CPU. All have the
# same data, tokens and batches. Their rates are usual ones: only the transformer of today was tuned.
_TRANSLATING: dict[str, Any] = {"batch": 128, "steps": 1500, "clip": 1.0, "compile": "no", "evaluate_every": 250}
_LSTM: dict[str, Any] = {
    "family": "seq2seq-lstm",
    "vocab_size": 4_000,
    "train": _TRANSLATING,
    "optimizer": {"name": "adamw", "learning_rate": 0.003, "betas": (0.9, 0.98)},
    "schedule": {"name": "stable-then-decay", "warmup": 0.02, "decay": 0.6, "final": 0.0},
}

PRESETS |= {
    "sutskever-2014": Preset(
        "translation by two LSTMs, all of a sentence in one state; the source is read from its end",
        "Sutskever, Vinyals and Le 2014, 'Sequence to Sequence Learning with Neural Networks' (arXiv:1409.3215),"
        " smaller",
        model={"attention": "none", "width": 256, "layers": 2, "dropout": 0.1},
        **_LSTM,
    ),
    "bahdanau-2015": Preset(
        "translation with additive attention: before each token the decoder looks back at the whole source",
        "Bahdanau, Cho and Bengio 2015, 'Neural Machine Translation by Jointly Learning to Align and Translate'"
        " (arXiv:1409.0473), smaller, with LSTMs",
        model={"attention": "additive", "width": 256, "layers": 1, "dropout": 0.1},
        **_LSTM,
    ),
    "luong-2015": Preset(
        "translation with multiplicative attention: the decoder looks back after its LSTM",
        "Luong, Pham and Manning 2015, 'Effective Approaches to Attention-based Neural Machine Translation'"
        " (arXiv:1508.04025), 'general' scores, smaller",
        model={"attention": "multiplicative", "width": 256, "layers": 2, "dropout": 0.1},
        **_LSTM,
    ),
    "transformer-2017": Preset(
        "the transformer as it was published: post-norm, sinusoidal positions, scaled embeddings, its warm-up",
        "Vaswani et al. 2017, 'Attention Is All You Need' (arXiv:1706.03762), smaller",
        family="seq2seq",
        vocab_size=4_000,
        model={"encoder_layers": 2, "decoder_layers": 2, "heads": 4, "width": 256, "hidden": 1024, "dropout": 0.1},
        train={**_TRANSLATING, "clip": None},
        # Section 5.3: betas 0.9 and 0.98, eps 1e-9. Its 4,000 of 100,000 steps of warm-up are a larger part of few.
        optimizer={"name": "adam", "learning_rate": 0.002, "betas": (0.9, 0.98), "eps": 1e-9},
        schedule={"name": "inverse-root", "warmup": 0.2},
    ),
}


def find(name: str) -> Preset:
    """The preset of that name. Raises ConfigError with the nearest name."""
    if name not in PRESETS:
        near = did_you_mean(name, PRESETS) or f" There are {', '.join(PRESETS)}."
        raise ConfigError(f"No preset {name!r}.{near} `handmade presets` explains each.")
    return PRESETS[name]
