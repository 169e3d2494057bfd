"""What a task is: to the trainer five things, to the command line some more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from handmade.config import Config
from handmade.tokenizers import Tokenizer

Tables = dict[str, dict[str, Any]]
"""Settings by table: "task", "model", "train", "optimizer", "schedule"."""

Say = Callable[[str, str], None]
"""Called with a label and a sentence for the person."""


class Drawn(Protocol):
    """A batch, as the trainer knows it. A NamedTuple of tensors, so that torch.compile can take it apart."""

    def to(self, device: torch.device) -> Any:
        """The batch on `device`; to a GPU without waiting for it."""

    @property
    def scored(self) -> int:
        """Targets that count."""

    @property
    def tokens(self) -> int:
        """Tokens that the model reads, padding and all."""


class Batch(NamedTuple):
    """Inputs (B, T) int64 and what should come out, (B, T) int64; a target that is not scored is -100."""

    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        """On `device`; to a GPU without waiting for it."""
        return Batch(*(moved(part, device) for part in self))

    @property
    def scored(self) -> int:
        """Targets that count."""
        return int((self.targets != -100).sum())

    @property
    def tokens(self) -> int:
        """Tokens that the model reads."""
        return self.inputs.numel()


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A part of a batch on `device`; to a GPU without waiting for it."""
    if device.type == "cpu":
        return tensor
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class Task(Protocol):
    """What stands between data and model: all that the trainer knows."""

    def batch(self, rows: int, generator: torch.Generator) -> Any:
        """A `Drawn`: the next `rows` rows of training, drawn from `generator` and nothing else."""

    def logits(self, model: Any, batch: Any) -> Tensor:
        """What the model says to a batch: (B, T, V)."""

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """The *sum* over the scored targets, in nats, float32. The trainer divides by their number, over all
        micro-batches of a step: a mean of means is wrong as soon as anything is masked."""

    def score(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Figures on the whole validation part; `val_loss` is among them. Draws nothing at random."""

    def answer(self, model: nn.Module, prompt: str, **options: Any) -> str:
        """What the model answers to a prompt."""


PAIRS_ONLY = "takes pairs of sentences, reads no text. Train it on pairs, such as tatoeba-ja-en."


@dataclass
class Choice:
    """Settings that a task picked, and why, a sentence each."""

    tables: Tables
    reasons: list[str] = field(default_factory=list)


class RunTask(Task, Protocol):
    """A task that the command line can make a run of: it knows what to train for it in the time given, what to say
    of it before, during and after, and how it is found again in a run folder."""

    name: ClassVar[str]
    """What config.json calls it."""
    settings: ClassVar[type[Config]]
    """The class of its options: the table [task]."""
    family: ClassVar[str]
    """The model that learns it where nobody asks for another."""
    minutes: ClassVar[float]
    """Of a run that is given no time and no number of steps."""
    patience: ClassVar[int | None]
    """Evaluations without a new best after which a run is over; None where a task may turn for the better late."""
    closing_share: ClassVar[float]
    """The part of the time given that is kept for `closing`."""
    continues: ClassVar[bool]
    """Whether the model goes on after a prompt, as a text does. Otherwise it answers it."""

    config: Config
    tokenizer: Tokenizer

    @property
    def context(self) -> int:
        """Tokens of a row: what the model has to see at once."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """What the vocabulary decides of a model's shape: option of [model] -> number."""
        return {"vocab_size": self.tokenizer.vocab_size}

    @property
    def example(self) -> str:
        """A prompt, as a person types it."""

    @property
    def positions(self) -> int:
        """How many positions `walk` goes through."""

    def walk(self) -> Iterator[Any]:
        """The validation part, in the batches that `score` takes."""

    @classmethod
    def refusal(cls, family: str) -> str:
        """Why a model of this family cannot learn it; the empty string where it can."""

    @classmethod
    def candidates(cls, config: Config, family: str, asked: Mapping[str, Mapping[str, Any]]) -> list[Tables]:
        """Settings of which `choose` will pick one, from large to small: none of them may be refused only after the
        data were prepared."""

    def choose(
        self, family: str, seconds: float, device: torch.device, asked: Mapping[str, Mapping[str, Any]]
    ) -> Choice:
        """What to train in so many seconds. What is `asked` for stays, and the rest is made to fit it."""

    def fitted(self, context: int | None, say: Say) -> tuple[RunTask, int]:
        """The task for a model of so many positions (None: it can run for ever), and the positions that a new model
        should have. Raises ConfigError where the rows need more than there are."""

    def line_to_beat(self, seconds: float | None) -> float | None:
        """A validation loss that needs no learning, worked out in a small part of the time given; None: there is
        none."""

    def headline(self, scores: Mapping[str, float]) -> str:
        """What of `score` a person sees at an evaluation, beside the loss; it may be empty."""

    def watch(self) -> Sequence[str]:
        """What the model made of a few examples at the last evaluation, as lines for a person to see it learn."""
        return ()

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """All figures on the validation part, for `handmade eval`. JSON can hold them. The model is in evaluation
        mode, and no gradients are kept."""

    def tell(self, scores: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The figures of `evaluate` for a person: label, text of one line or several."""

    def pictures(self, model: nn.Module) -> Iterator[tuple[str, Any]]:
        """Pictures of the model at work: the name of a file, a matplotlib Figure. The model is in evaluation mode."""

    def answers(self, model: nn.Module, prompts: Sequence[str]) -> list[str]:
        """What the model answers to each prompt, decoded together. Raises ConfigError for a prompt that is none."""

    def closing(self, model: nn.Module, seconds: float) -> Iterator[str]:
        """What the trained model shows of itself at the end, piece by piece, in about so many seconds."""


class GeneratedTask(RunTask, Protocol):
    """A task that makes its own examples: its options are all it needs."""

    def __init__(self, config: Any = None) -> None:
        """Raises ConfigError for options that leave nothing to train on, or nothing to test with."""

    def describe(self) -> Iterator[tuple[str, str]]:
        """Lines for the person before training: label, sentence."""

    def right_answers(self, prompts: Sequence[str]) -> list[str]:
        """What should be answered. Raises ConfigError for a prompt that is none."""

    def fingerprint(self) -> str:
        """sha256 over all examples and the side that each is on: two of one fingerprint learn and score the same."""


def in_columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Labels and what is said to each, of one line or several, side by side.

    >>> in_columns([("right", "99 %"), ("wrong", "1+1=3\\n2+2=5")])
    ['  right          99 %', '  wrong          1+1=3', '                 2+2=5']
    """
    width = max([15, *(len(label) + 1 for label, _ in rows)])
    lines = []
    for label, text in rows:
        first, *more = text.splitlines() or [""]
        lines += [f"  {label:{width}}{first}", *(f"  {'':{width}}{other}".rstrip() for other in more)]
    return lines


__all__ = ["Batch", "Choice", "Drawn", "GeneratedTask", "RunTask", "Say", "Tables", "Task", "in_columns", "moved"]
