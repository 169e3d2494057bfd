"""Which parameter gets which optimizer, learning rate and weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import Parameter

from handmade import layers
from handmade.config import Config
from handmade.errors import ConfigError
from handmade.optimizers.adaptive import AdaGrad, Adam, AdamW, RMSProp
from handmade.optimizers.descent import SGD, Momentum, Nesterov
from handmade.optimizers.muon import Muon

KINDS = ("matrices", "embeddings", "head", "vectors")

EMBEDDINGS = (layers.Embedding, nn.Embedding, nn.EmbeddingBag)
NORMS = (
    layers.LayerNorm,
    layers.RMSNorm,
    nn.LayerNorm,  # of several axes, its weight has several too
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
)


def parameter_groups(model: nn.Module) -> dict[str, dict[str, Parameter]]:
    """Every trainable parameter of `model`, sorted into exactly one of four kinds.

    `embeddings`  tables that are looked up: tokens, learned positions; a head tied to one is one
    `head`        what `model.head` has with two axes or more
    `vectors`     biases, weights of norms, and whatever has fewer than two axes
    `matrices`    the rest: weights of hidden layers (convolutions too)

    The kind of module counts before the number of axes. A parameter in several places is listed once, under
    its first name; an embedding wins. Returns kind -> name -> parameter; a kind may be empty. Parameters with
    `requires_grad` off are left out.
    """
    embeddings = _owned_by(model, EMBEDDINGS)
    head = getattr(model, "head", None)
    heads = {id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set()
    norms = _owned_by(model, NORMS)
    found: dict[str, dict[str, Parameter]] = {kind: {} for kind in KINDS}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in embeddings:
            kind = "embeddings"
        elif id(parameter) in norms or parameter.ndim < 2:
            kind = "vectors"
        elif id(parameter) in heads:
            kind = "head"
        else:
            kind = "matrices"
        found[kind][name] = parameter
    return found


def _owned_by(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> set[int]:
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, kinds)
        for parameter in module.parameters(recurse=False)
    }


@dataclass(frozen=True)
class OptimizerConfig(Config):
    """Which optimizer, and how it is set. A field that the chosen optimizer does not have is not used."""

    name: Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    """Peak rate, before the schedule. For "muon" the rate of the hidden matrices."""
    embedding_learning_rate: float | None = None
    """Peak rate of the embeddings. None: `learning_rate`; with "muon", where AdamW has them, a fifth of it."""
    head_learning_rate: float | None = None
    """Peak rate of the head's matrix. None: as for the embeddings."""
    vector_learning_rate: float | None = None
    """Peak rate of biases and weights of norms. None: as for the embeddings."""
    betas: tuple[float, ...] = (0.9, 0.95)
    """How much of the running means of g and g² is kept at a step ("adam", "adamw", and AdamW beside "muon").
    "rmsprop" uses the second."""
    eps: float = 1e-8
    """Added to the root of the mean of g² ("adagrad", "rmsprop", "adam", "adamw", "muon")."""
    momentum: float = 0.95
    """Share of the velocity that is kept at a step ("momentum", "nesterov", "muon")."""
    weight_decay: float = 0.0
    """Of matrices and head. Per step a weight loses `rate * weight_decay` of itself ("adamw", "muon"); for the
    others it is added to the gradient."""
    decay_embeddings: bool = False
    """Whether weight decay reaches the embeddings too. Biases and norms are never decayed."""
    muon_precision: Literal["float32", "bfloat16"] = "float32"
    """Number type of Muon's Newton-Schulz products."""
    muon_steps: int = 5
    """Newton-Schulz iterations of a step of Muon."""

    def check(self) -> None:
        for name in ("learning_rate", "embedding_learning_rate", "head_learning_rate", "vector_learning_rate"):
            rate = getattr(self, name)
            self.require(name, rate is None or 0 < rate < float("inf"), "a number above 0")
        betas = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        self.require("betas", betas, "two numbers from 0 up to, not including, 1")
        self.require("eps", 0 <= self.eps < float("inf"), "a number from 0 up")
        self.require("momentum", 0 <= self.momentum < 1, "from 0 up to, not including, 1")
        self.require("weight_decay", 0 <= self.weight_decay < float("inf"), "a number from 0 up")
        self.require("muon_steps", 1 <= self.muon_steps <= 100, "from 1 to 100")

    def rate(self, kind: str) -> float:
        """The peak learning rate of a kind of parameters (one of `KINDS`)."""
        if kind == "matrices":
            return self.learning_rate
        own = {
            "embeddings": self.embedding_learning_rate,
            "head": self.head_learning_rate,
            "vectors": self.vector_learning_rate,
        }[kind]
        if own is not None:
            return own
        return self.learning_rate / 5 if self.name == "muon" else self.learning_rate

    def decay(self, kind: str) -> float:
        """The weight decay of a kind of parameters (one of `KINDS`)."""
        decayed = kind in ("matrices", "head") or (kind == "embeddings" and self.decay_embeddings)
        return self.weight_decay if decayed else 0.0


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """The optimizers that train `model`: one, or for "muon" two (Muon for the hidden matrices, AdamW for the
    rest). Each param group has a `name` (one of `KINDS`), and its peak rate in `initial_lr`.

    Raises ConfigError for a model without trainable parameters.
    """
    groups: list[dict[str, Any]] = [
        {
            "params": list(members.values()),
            "name": kind,
            "lr": config.rate(kind),
            "initial_lr": config.rate(kind),
            "weight_decay": config.decay(kind),
        }
        for kind, members in parameter_groups(model).items()
        if members
    ]
    if not groups:
        raise ConfigError(f"{type(model).__name__} has no trainable parameters, so there is nothing to optimize.")
    beta1, beta2 = config.betas
    if config.name == "sgd":
        return [SGD(groups)]
    if config.name == "momentum":
        return [Momentum(groups, momentum=config.momentum)]
    if config.name == "nesterov":
        return [Nesterov(groups, momentum=config.momentum)]
    if config.name == "adagrad":
        return [AdaGrad(groups, eps=config.eps)]
    if config.name == "rmsprop":
        return [RMSProp(groups, alpha=beta2, eps=config.eps)]
    if config.name == "adam":
        return [Adam(groups, betas=(beta1, beta2), eps=config.eps)]
    if config.name == "adamw":
        return [AdamW(groups, betas=(beta1, beta2), eps=config.eps)]
    matrices = [group for group in groups if group["name"] == "matrices"]
    others = [group for group in groups if group["name"] != "matrices"]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(
            Muon(
                matrices,
                momentum=config.momentum,
                steps=config.muon_steps,
                precision=config.muon_precision,
            )
        )
    if others:
        optimizers.append(AdamW(others, betas=(beta1, beta2), eps=config.eps))
    return optimizers
