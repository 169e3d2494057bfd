"""Optimizers made by hand, in order of growing complexity, and what sorts a model's parameters for them.

descent    SGD, Momentum, Nesterov
adaptive   AdaGrad, RMSProp, Adam, AdamW
muon       Muon
groups     parameter_groups, OptimizerConfig, build_optimizers
"""

from handmade.optimizers.adaptive import AdaGrad, Adam, AdamW, RMSProp
from handmade.optimizers.base import Optimizer
from handmade.optimizers.descent import SGD, Momentum, Nesterov
from handmade.optimizers.groups import KINDS, OptimizerConfig, build_optimizers, parameter_groups
from handmade.optimizers.muon import Muon, orthogonalize

__all__ = [
    "KINDS",
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Momentum",
    "Muon",
    "Nesterov",
    "Optimizer",
    "OptimizerConfig",
    "RMSProp",
    "build_optimizers",
    "orthogonalize",
    "parameter_groups",
]
