"""Language models from counting to GPT, one signature for all: `model(tokens, cache=None, starts=None) -> logits`."""

from handmade.models.gpt import GPT, GPTConfig, parameter_count
from handmade.models.ngram import Bigram, BigramConfig, CountingConfig, CountingModel

# What `--model` takes, each family with its own config.
FAMILIES = {
    "gpt": (GPT, GPTConfig),
    "bigram": (Bigram, BigramConfig),
    "counting": (CountingModel, CountingConfig),
}

__all__ = [
    "FAMILIES",
    "GPT",
    "Bigram",
    "BigramConfig",
    "CountingConfig",
    "CountingModel",
    "GPTConfig",
    "parameter_count",
]
