"""The layers, made by hand, with `torch.nn`'s parameter names: a state dict goes from one to the other."""

from handmade.layers.activations import (
    GELU,
    ReLU,
    SiLU,
    Softmax,
    SquaredReLU,
    gelu,
    relu,
    silu,
    softmax,
    squared_relu,
)
from handmade.layers.convolution import Conv2d, MaxPool2d
from handmade.layers.dropout import Dropout, dropout
from handmade.layers.kernels import Module, kernels
from handmade.layers.linear import Embedding, Linear
from handmade.layers.losses import IGNORED, CrossEntropy, cross_entropy, linear_cross_entropy
from handmade.layers.norms import BatchNorm1d, BatchNorm2d, LayerNorm, RMSNorm
from handmade.layers.recurrent import LSTM, RNN

__all__ = [
    "GELU",
    "IGNORED",
    "LSTM",
    "RNN",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv2d",
    "CrossEntropy",
    "Dropout",
    "Embedding",
    "LayerNorm",
    "Linear",
    "MaxPool2d",
    "Module",
    "RMSNorm",
    "ReLU",
    "SiLU",
    "Softmax",
    "SquaredReLU",
    "cross_entropy",
    "dropout",
    "gelu",
    "kernels",
    "linear_cross_entropy",
    "relu",
    "silu",
    "softmax",
    "squared_relu",
]
