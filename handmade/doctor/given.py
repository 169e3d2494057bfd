"""What a person gives the doctor: a model, and whatever of its training and sampling there is."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import nn

from handmade.errors import ConfigError, did_you_mean

EXPECTATIONS: dict[str, str] = {
    "time_first": "True: tokens go in as (T, B). False: as (B, T). Else it is found out",
    "causal": "True: no token may see a later one (the default). False: an encoder, where it may",
    "positions": "True: the order of the tokens counts (the default). False: a bag of tokens was meant",
    "past": "True: earlier tokens count (the default). False: a bigram was meant",
    "tied": "True: embedding and head share one matrix. False: they do not",
    "constants": "names of tensor attributes that are constant tables, not parameters; True: all of them",
    "frozen": "names (or beginnings of names) of parameters that are meant to get no gradient; True: all that get none",
    "score_scale": "True: the scale of the attention scores is meant to be what it is",
    "initial_loss": "True: the model is meant to begin where it does",
    "half_precision": "False: the model never runs in float16 or bfloat16",
    "dropout": "True: there is dropout, on in training alone. False: there is none",
    "decayed": "names (or beginnings of names) of biases, norms or embeddings that are meant to be decayed; True: all",
    "restarts": "True: the learning rate is meant to rise again after it has fallen. False: it is not",
    "same_batch": "True: every step is meant to see the same batch, or all of the data. False: it is not",
    "evaluation_draws": "True: evaluating may draw seeds of DataLoaders from torch's generator. False: it may not",
    "duplicates": "True: text that stands in both splits is meant to",
    "special_padding": "True: the padding token is never a real one",
    "normalised": "True: encode is meant to change case, spaces or rare words. False: it is not",
    "cache_window": "True: past the full context a cache is meant to keep another window than generation without one",
}
"""What `expect` may declare, and what it means."""


@dataclass
class Given:
    """All that can be examined. Only the model is needed; without it only what needs none is examined.

    B rows, T positions, V vocabulary. A batch is `(inputs, targets)`, both (B, T) int64, targets -100 (or
    `ignore_index`) where nothing is scored; or a mapping with the keys "input_ids"/"inputs" and "labels"/"targets".
    """

    model: nn.Module | Callable[..., Any] | None = None
    """Token ids to logits, in any of the usual forms: see `Patient`."""
    vocab_size: int | None = None
    context: int | None = None
    """Most positions that the model sees at once."""
    build: Callable[[], Any] | None = None
    """Makes another instance of the model, weights drawn anew."""
    trained: bool = False
    """Whether the model has learnt already. What is examined at the start of a training is then not examined."""
    padding: int | None = None
    """The id that fills short rows up, where there is one."""
    attention_mask: str | None = None
    """The name of forward's argument that says which tokens are real (1 or True = real), where there is one."""

    optimizer: Any = None
    """A torch.optim.Optimizer, or a list of them."""
    batches: Any = None
    """An iterable of batches, or a function without arguments that draws one."""
    loss: Callable[..., Any] | None = None
    """`loss(logits, targets) -> scalar`, logits (B, T, V)."""
    ignore_index: int = -100
    """The target that is not scored."""
    train_step: Callable[..., Any] | None = None
    """One step of the optimizer, from data to new weights: `train_step()`, `train_step(batch)` or
    `train_step(batches)` with an argument called `batches`: an iterator of which it takes what it accumulates."""
    schedule: Any = None
    """`schedule(step) -> rate`: the stated learning rate; or a torch learning-rate scheduler."""
    schedule_bounds: tuple[float, float] | None = None
    """Lowest and highest rate that the schedule states."""
    steps: int | None = None
    """Steps of the whole training, for the schedule."""
    evaluate: Callable[..., Any] | None = None
    """`evaluate() -> loss`, or `evaluate(model)`."""
    best: Callable[..., Any] | None = None
    """`best() -> state dict`: called now, what is kept as the best weights."""
    save: Callable[..., Any] | None = None
    """`save(path)`: a checkpoint of model, optimizer and generators."""
    load: Callable[..., Any] | None = None
    """`load(path)`: brings it back, in place, or returns the model."""

    generate: Callable[..., Any] | None = None
    """`generate(tokens (B, T) int64, count) -> (B, T + count)` or only the new ones (B, count); `temperature`,
    `top_k`, `top_p` and `use_cache` are tried where its signature has them."""
    filters: Callable[..., Any] | None = None
    """`filters(logits (B, V), temperature=, top_k=, top_p=) -> logits or probabilities (B, V)`; the signature says
    which of the options it has."""
    tokenizer: Any = None
    """An object with `encode` and `decode`, in place of the next two."""
    encode: Callable[..., Any] | None = None
    decode: Callable[..., Any] | None = None
    stream: Callable[..., Any] | None = None
    """`stream(ids) -> pieces of text`, one after the other as tokens come: how text is shown while it is written."""
    train_data: Any = None
    """What is trained on: a text, a list of texts or problems, token ids, or a dataset of (inputs, targets)."""
    validation_data: Any = None
    """What is validated on, of the same kind."""
    windows: Any = None
    """Training windows over `train_data` as token ids: a dataset with `len` and index, each (inputs, targets) of
    `context` tokens."""
    expect: Mapping[str, Any] = field(default_factory=dict)
    """What was meant, where only the person can know: `EXPECTATIONS`."""

    def __post_init__(self) -> None:
        for name in self.expect:
            if name not in EXPECTATIONS:
                near = did_you_mean(name, EXPECTATIONS) or f" There are {', '.join(EXPECTATIONS)}."
                raise ConfigError(f"expect: unknown name {name!r}.{near}")
        if self.tokenizer is not None:
            self.encode = self.encode or getattr(self.tokenizer, "encode", None)
            self.decode = self.decode or getattr(self.tokenizer, "decode", None)
        if self.model is not None and not callable(self.model):
            raise ConfigError(f"model: a {type(self.model).__name__} cannot be called. Give a module or a function.")
        for name in ("vocab_size", "context"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
                raise ConfigError(f"{name} = {value!r}: must be a whole number from 1 up.")
            setattr(self, name, int(value))

    @classmethod
    def of(cls, things: Any) -> Given:
        """From a mapping, from an object with attributes of these names, or from a model alone.
        Raises ConfigError for a name that is not known."""
        if isinstance(things, cls):
            return things
        if isinstance(things, nn.Module):
            return cls(model=things)
        if not isinstance(things, Mapping):
            found = {f.name: getattr(things, f.name) for f in fields(cls) if hasattr(things, f.name)}
            if not found:
                raise ConfigError(
                    f"a {type(things).__name__}: neither a module, nor a mapping, nor an object with what there is."
                    f" Give at least `model`; there may be {', '.join(f.name for f in fields(cls))}."
                )
            return cls(**found)
        known = [f.name for f in fields(cls)]
        for name in things:
            if name not in known:
                raise ConfigError(
                    f"{name!r} is nothing that the doctor knows."
                    f"{did_you_mean(str(name), known) or ' There may be ' + ', '.join(known) + '.'}"
                )
        return cls(**things)

    def belongings(self) -> list[Any]:
        """All that an examination may change, and has to put back: the model, and what is called or asked. Data is only
        read."""
        kept = [one.name for one in fields(self) if one.name not in DATA_FIELDS]
        return [getattr(self, name) for name in kept if getattr(self, name) is not None]

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One batch of the person's own: inputs and targets. Raises what their code raises."""
        drawn = self.batches() if callable(self.batches) else next(iter(self.batches), None)
        return parts_of(drawn)


DATA_FIELDS = ("train_data", "validation_data", "windows", "expect")
INPUTS, TARGETS = ("input_ids", "inputs", "input", "x", "tokens"), ("labels", "targets", "target", "y")


def parts_of(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of a batch; arrays of numpy become tensors. Raises ConfigError for one that has them not."""
    if isinstance(batch, Mapping):
        x = next((batch[name] for name in INPUTS if name in batch), None)
        y = next((batch[name] for name in TARGETS if name in batch), None)
    else:
        x, y = (batch[0], batch[1]) if isinstance(batch, (tuple, list)) and len(batch) >= 2 else (None, None)
    x, y = (torch.from_numpy(one) if isinstance(one, np.ndarray) else one for one in (x, y))
    if not torch.is_tensor(x) or not torch.is_tensor(y):
        raise ConfigError(f"batches: a {type(batch).__name__} came, not (inputs, targets) as two tensors.")
    return x, y
