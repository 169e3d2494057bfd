"""Language models from counting to GPT, one signature for all: `model(tokens, cache=None, starts=None) -> logits`; and
encoder-decoders: `model(source, tokens) -> logits`, by `encode(source)` and `decode(tokens, memory, cache=None)`."""

from handmade.models.fixed_window import FixedWindow, FixedWindowConfig
from handmade.models.gpt import GPT, GPTConfig, parameter_count
from handmade.models.mlp import MLP, MLPConfig
from handmade.models.ngram import Bigram, BigramConfig, CountingConfig, CountingModel
from handmade.models.recurrent import Recurrent, RecurrentConfig
from handmade.models.seq2seq import Seq2Seq, Seq2SeqConfig
from handmade.models.seq2seq_recurrent import Seq2SeqLSTM, Seq2SeqLSTMConfig

# What `--model` takes, each family with its own config.
FAMILIES = {
    "gpt": (GPT, GPTConfig),
    "recurrent": (Recurrent, RecurrentConfig),
    "mlp": (MLP, MLPConfig),
    "bigram": (Bigram, BigramConfig),
    "fixed-window": (FixedWindow, FixedWindowConfig),
    "counting": (CountingModel, CountingConfig),
    "seq2seq": (Seq2Seq, Seq2SeqConfig),
    "seq2seq-lstm": (Seq2SeqLSTM, Seq2SeqLSTMConfig),
}
ENCODER_DECODERS = ("seq2seq", "seq2seq-lstm")  # learn pairs of sentences

__all__ = [
    "ENCODER_DECODERS",
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
    "Seq2Seq",
    "Seq2SeqConfig",
    "Seq2SeqLSTM",
    "Seq2SeqLSTMConfig",
    "parameter_count",
]
