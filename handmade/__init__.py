"""handmade: build a GPT from scratch, train it on your own text, and know that it is right.

    import handmade as hm
    model = hm.GPT(hm.GPTConfig(vocab_size=65))
    logits = model(tokens)

Importing does nothing: a name is loaded when it is first used, so `handmade --help` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> the module it lives in. A module stands for itself.
_HOME = {
    "GPT": "handmade.models.gpt",
    "GPTConfig": "handmade.models.gpt",
    "MLP": "handmade.models.mlp",
    "MLPConfig": "handmade.models.mlp",
    "Recurrent": "handmade.models.recurrent",
    "RecurrentConfig": "handmade.models.recurrent",
    "Seq2Seq": "handmade.models.seq2seq",
    "Seq2SeqConfig": "handmade.models.seq2seq",
    "Seq2SeqLSTM": "handmade.models.seq2seq_recurrent",
    "Seq2SeqLSTMConfig": "handmade.models.seq2seq_recurrent",
    "Bigram": "handmade.models.ngram",
    "BigramConfig": "handmade.models.ngram",
    "CountingModel": "handmade.models.ngram",
    "CountingConfig": "handmade.models.ngram",
    "ByteTokenizer": "handmade.tokenizers",
    "CharTokenizer": "handmade.tokenizers",
    "HandmadeError": "handmade.errors",
    "LanguageTask": "handmade.tasks.language",
    "PairTokenizer": "handmade.pair_tokenizer",
    "SubwordTokenizer": "handmade.subwords",
    "TrainConfig": "handmade.training",
    "Trainer": "handmade.training",
    "TranslationConfig": "handmade.tasks.translation.translator",
    "TranslationTask": "handmade.tasks.translation.task",
    "generate": "handmade.generation",
    "kernels": "handmade.layers.kernels",
    "load": "handmade.run",
}
_MODULES = (
    "attention",
    "checkpoint",
    "corpora",
    "data",
    "doctor",
    "errors",
    "evaluation",
    "generation",
    "ladder",
    "layers",
    "models",
    "optimizers",
    "pairs",
    "positions",
    "presets",
    "run",
    "schedules",
    "tasks",
    "tokenizers",
    "training",
    "translating",
    "writing",
)
__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"handmade.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'handmade' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
