"""Language models from counting to GPT, one signature for all: `model(tokens, cache=None, starts=None) -> logits`."""

from handmade.models.fixed_window import FixedWindow, FixedWindowConfig
from handmade.models.gpt import GPT, GPTConfig, parameter_count
from handmade.models.mlp import MLP, MLPConfig
from handmade.models.ngram import Bigram, BigramConfig, CountingConfig, CountingModel
from handmade.models.recurrent import Recurrent, RecurrentConfig

# What `--model` takes, each family with its own config.
FAMILIES = {
    "gpt": (GPT, GPTConfig),
    "recurrent": (Recurrent, RecurrentConfig),
    "mlp": (MLP, MLPConfig),
    "bigram": (Bigram, BigramConfig),
    "fixed-window": (FixedWindow, FixedWindowConfig),
    "counting": (CountingModel, CountingConfig),
}

__all__ = [
    "FAMILIES",
    "GPT",
    "MLP",
    "Bigram",
    "BigramConfig",
    "CountingConfig",
    "CountingModel",
    "FixedWindow",
    "FixedWindowConfig",
    "GPTConfig",
    "MLPConfig",
    "Recurrent",
    "RecurrentConfig",
    "parameter_count",
]
