"""The rungs as data: what each is called, which idea it adds to which other rung, and where the idea is from.

    rung = find("one-head")
    settings(rung)                 # everything that decides its run, resolved from its parents

A rung names its parent and **one** change. A change is one field ("model.residual": True), or another family of
models, with all of its own settings. A test compares the resolved settings of every rung and its parent.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from handmade.config import Config
from handmade.errors import ConfigError, did_you_mean
from handmade.models import FAMILIES
from handmade.optimizers import OptimizerConfig
from handmade.schedules import ScheduleConfig

CONTEXT = 64  # positions of a training window, for every rung
WIDTH = 64
STATE = 128  # of the recurrent models, which have about as many parameters then

SCHEDULES = {
    "constant": ScheduleConfig("constant", warmup=0.0),
    "warm-up and cosine": ScheduleConfig("cosine", warmup=0.05, final=0.1),
}
"""What the ladder's field `train.schedule` stands for: two ways to spend the same peak rate, each whole."""


@dataclass(frozen=True)
class Training(Config):
    """How a rung is trained. How long is not here: it is the same for all."""

    sequences: int = 16
    """Windows of a step."""
    pieces: int = 1
    """Micro-batches that a step's windows are dealt into."""
    optimizer: str = "adamw"
    """A name that `OptimizerConfig` knows."""
    weight_decay: float = 0.1
    schedule: str = "constant"
    """One of `SCHEDULES`."""
    precision: str = "float32"

    def check(self) -> None:
        self.require("sequences", self.sequences >= 1, "at least 1")
        self.require("pieces", self.pieces >= 1 and self.sequences % self.pieces == 0, "a divisor of sequences")
        self.require("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        self.require("precision", self.precision in ("float32", "bfloat16"), "float32 or bfloat16")
        OptimizerConfig.from_dict({"name": self.optimizer})  # raises, and names those there are

    @property
    def rows(self) -> int:
        """Windows of a micro-batch."""
        return self.sequences // self.pieces


@dataclass(frozen=True)
class Rung:
    """One rung: an idea, and what is changed for it."""

    name: str
    """What `--rungs` takes."""
    title: str
    parent: str | None
    idea: str
    """One sentence."""
    source: str
    """Paper, year, section or equation."""
    change: Mapping[str, Any] = field(default_factory=dict)
    """One field: {"model.heads": 4} or {"train.optimizer": "muon"}. Or another family, {"family": "gpt", "model":
    {...}}; the family is a name of `handmade.models.FAMILIES` or a pair (model class, config class)."""
    learning_rate: float | None = None
    """Peak rate; None for a rung that only counts. Chosen on a seed that is not reported: `tuning.tune`."""
    side: bool = False
    """Answers a question, and is not climbed: no other rung stands on it, unless it is a side rung too."""
    as_long_as_parent: bool = False
    """Trained for the seconds that the parent took instead of as many tokens."""
    findings: tuple[str, ...] = ()
    """What the doctor finds sick in its model, and nothing else: names of checks. What is missing here is the idea of
    a later rung, or the mistake that a side rung is there to show."""


@dataclass(frozen=True)
class Settings:
    """What decides a run, but for seed, learning rate and budget."""

    family: Any
    """A name of `FAMILIES`, or (model class, config class)."""
    model: dict[str, Any]
    train: Training

    @property
    def classes(self) -> tuple[Any, Any]:
        """Model and config class."""
        return FAMILIES[self.family] if isinstance(self.family, str) else self.family

    @property
    def counted(self) -> bool:
        """Whether the model counts, so that nothing is trained."""
        return hasattr(self.classes[0], "fit")

    def shape(self, vocab_size: int) -> Any:
        """The model's config. Raises ConfigError for one that cannot be."""
        return self.classes[1].from_dict({**self.model, "vocab_size": vocab_size})

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        family = self.family if isinstance(self.family, str) else self.family[0].__name__
        return {"family": family, "model": self.model, "train": self.train.to_dict()}


def settings(rung: Rung, rungs: Iterable[Rung] | None = None) -> Settings:
    """The settings of a rung: its parent's, with its change. Raises ConfigError for a parent that is not among
    `rungs` (by default all that there are), a circle, or a change that is no single field."""
    known = {one.name: one for one in (RUNGS + SIDE_RUNGS if rungs is None else rungs)}
    line = [rung]
    while "family" not in line[-1].change:
        parent = known.get(line[-1].parent or "")
        if parent is None or parent in line:
            raise ConfigError(
                f"rung {line[-1].name}: its parent {line[-1].parent!r} is "
                + ("above it." if parent in line else "not there. Name one that is, or a family of its own.")
            )
        line.append(parent)
    start = line.pop()
    tables = {
        "family": start.change["family"],
        "model": dict(start.change.get("model", {})),
        "train": _inherited(start, known).to_dict(),
    }
    for one in reversed(line):
        _apply(tables, one)
    return Settings(tables["family"], tables["model"], Training.from_dict(tables["train"]))


def _inherited(rung: Rung, known: Mapping[str, Rung]) -> Training:
    """A rung with a family of its own is trained as its parent is."""
    parent = known.get(rung.parent or "")
    return Training() if parent is None else settings(parent, known.values()).train


def _apply(tables: dict[str, Any], rung: Rung) -> None:
    if len(rung.change) != 1:
        raise ConfigError(f"rung {rung.name}: changes {len(rung.change)} fields. A rung is one idea: change one.")
    ((name, value),) = rung.change.items()
    table, _, one = name.partition(".")
    if table not in ("model", "train") or not one:
        raise ConfigError(f"rung {rung.name}: {name!r} is no field. Name it as model.heads or train.sequences.")
    tables[table][one] = copy.copy(value)


def differences(first: Settings, second: Settings) -> list[str]:
    """The fields in which two settings differ, resolved: what a config fills in by itself counts too. Another family
    is one difference, whatever fields it has."""
    found = [f"train.{name}" for name, value in first.train.to_dict().items() if value != second.train.to_dict()[name]]
    if first.classes != second.classes:
        return ["family", *found]
    shapes = first.shape(64).to_dict(), second.shape(64).to_dict()
    return [f"model.{name}" for name, value in shapes[0].items() if value != shapes[1][name]] + found


def find(name: str, rungs: Sequence[Rung] | None = None) -> Rung:
    """The rung of that name. Raises ConfigError with the nearest name."""
    known = {rung.name: rung for rung in (RUNGS + SIDE_RUNGS if rungs is None else rungs)}
    if name not in known:
        near = did_you_mean(name, known) or " `handmade ladder --list` explains each."
        raise ConfigError(f"No rung {name!r}.{near}")
    return known[name]


GPT_START = {
    "context": CONTEXT,
    "layers": 1,
    "heads": 1,
    "width": WIDTH,
    "hidden": 0,
    "mixing": "mean",
    "residual": False,
    "norm": "none",
    "positions": "none",
    "activation": "relu",
    "tied_head": False,
    "initialization": "torch",
}
"""The smallest model of the family `gpt`: tokens, the mean of the past, a head. Every later rung changes one field."""

VASWANI = "Vaswani et al. 2017, 'Attention Is All You Need' (arXiv:1706.03762)"
GPT2 = "Radford et al. 2019, 'Language Models are Unsupervised Multitask Learners'"
WITTEN_BELL = "Witten and Bell 1991, 'The zero-frequency problem', method C"

RUNGS: tuple[Rung, ...] = (
    Rung(
        "uniform",
        "uniform guess",
        None,
        "Every token is as likely as any other: the loss is ln V, and a model that starts above it is broken.",
        "Shannon 1948, 'A Mathematical Theory of Communication', section 6",
        {"family": "counting", "model": {"order": 0}},
        findings=("past",),
    ),
    Rung(
        "letter-frequencies",
        "letter frequencies",
        "uniform",
        "Some tokens are more frequent than others: count them.",
        "Shannon 1951, 'Prediction and Entropy of Printed English', F1",
        {"model.order": 1},
        findings=("past",),
    ),
    Rung(
        "counted-bigram",
        "bigram by counting",
        "letter-frequencies",
        "What comes next depends on the last token: count pairs.",
        f"Shannon 1951, F2; smoothed by {WITTEN_BELL}",
        {"model.order": 2},
        findings=("past",),
    ),
    Rung(
        "counted-ngram",
        "n-gram by counting",
        "counted-bigram",
        "The last four tokens say more than one: count runs of five, blended with shorter ones. The line to beat.",
        f"{WITTEN_BELL}; Chen and Goodman 1999, section 2.5",
        {"model.order": 5},
    ),
    Rung(
        "neural-bigram",
        "neural bigram",
        "counted-bigram",
        "The table of pairs is learnt by gradient descent instead of counted: nothing is gained yet but the method.",
        "Bengio et al. 2003, 'A Neural Probabilistic Language Model', section 2, with one token",
        {"family": "bigram", "model": {}},
        learning_rate=0.0125,
        findings=("past",),
    ),
    Rung(
        "mlp",
        "MLP over a window",
        "neural-bigram",
        "Tokens become vectors, and a hidden layer reads the last eight of them at once.",
        "Bengio et al. 2003, 'A Neural Probabilistic Language Model', equation 1",
        {"family": "mlp", "model": {"window": 8, "width": 32, "hidden": 256}},
        learning_rate=0.004,
    ),
    Rung(
        "rnn",
        "RNN",
        "mlp",
        "A state is carried along the text, so the past has no fixed length.",
        "Elman 1990, 'Finding Structure in Time'",
        {"family": "recurrent", "model": {"cell": "rnn", "width": STATE, "layers": 1}},
        learning_rate=0.004,
    ),
    Rung(
        "lstm",
        "LSTM",
        "rnn",
        "A memory cell that is added to, behind gates, so that gradients last.",
        "Hochreiter and Schmidhuber 1997, 'Long Short-Term Memory'; Gers et al. 2000",
        {"model.cell": "lstm"},
        learning_rate=0.008,
    ),
    Rung(
        "mean-of-past",
        "mean of the past",
        "neural-bigram",
        "Every position sees the mean of all before it: attention without queries and keys.",
        "Bahdanau et al. 2015, equation 5 (arXiv:1409.0473), with all weights equal",
        {"family": "gpt", "model": GPT_START},
        learning_rate=0.004,
        findings=("order",),
    ),
    Rung(
        "positions",
        "positions",
        "mean-of-past",
        "A learned vector for each place in the window: a mean does not know what came when.",
        f"Gehring et al. 2017, section 3.1 (arXiv:1705.03122); {VASWANI}, section 3.5",
        {"model.positions": "learned"},
        learning_rate=0.004,
        findings=("order",),  # a place is known, and not who stood there: the mean of sums is the same in any order
    ),
    Rung(
        "one-head",
        "one attention head",
        "positions",
        "A query meets the keys of the past, and decides whom to listen to.",
        f"{VASWANI}, equation 1",
        {"model.mixing": "attention"},
        learning_rate=0.004,
    ),
    Rung(
        "several-heads",
        "several heads",
        "one-head",
        "Four smaller heads listen for four things at the cost of one.",
        f"{VASWANI}, section 3.2.2",
        {"model.heads": 4},
        learning_rate=0.008,
    ),
    Rung(
        "feed-forward",
        "feed-forward layer",
        "several-heads",
        "After listening, each position thinks by itself.",
        f"{VASWANI}, equation 2",
        {"model.hidden": None},
        learning_rate=0.004,
    ),
    Rung(
        "residual",
        "residual connections",
        "feed-forward",
        "Each part adds to a stream instead of replacing it, so what was known is not lost.",
        "He et al. 2016, 'Deep Residual Learning', equation 1 (arXiv:1512.03385)",
        {"model.residual": True},
        learning_rate=0.008,
    ),
    Rung(
        "layer-norm",
        "layer norm (pre-norm)",
        "residual",
        "Each part reads the stream brought to mean 0 and variance 1.",
        f"Ba et al. 2016, equation 4 (arXiv:1607.06450); placed as in {GPT2}, section 2.3",
        {"model.norm": "layer"},
        learning_rate=0.016,
    ),
    Rung(
        "depth",
        "depth: four layers",
        "layer-norm",
        "Four blocks: what one has worked out, the next can use.",
        f"{VASWANI}, section 3.1",
        {"model.layers": 4},
        learning_rate=0.008,
    ),
    Rung(
        "dropout",
        "dropout",
        "depth",
        "A tenth of what each part says is left out by chance, against learning the text by heart.",
        "Srivastava et al. 2014, 'Dropout', section 4",
        {"model.dropout": 0.1},
        learning_rate=0.008,
    ),
    Rung(
        "gpt2-init",
        "GPT-2's initialisation",
        "dropout",
        "Weights start small, N(0, 0.02), and what writes into the stream smaller with depth.",
        f"{GPT2}, section 2.3; N(0, 0.02): Radford et al. 2018, section 4.1",
        {"model.initialization": "gpt2"},
        learning_rate=0.004,
    ),
    Rung(
        "gelu",
        "GELU",
        "gpt2-init",
        "A smooth bend instead of a corner at zero.",
        "Hendrycks and Gimpel 2016 (arXiv:1606.08415)",
        {"model.activation": "gelu"},
        learning_rate=0.004,
    ),
    Rung(
        "tied-head",
        "tied head",
        "gelu",
        "Reading and writing a token share one vector.",
        "Press and Wolf 2017 (arXiv:1608.05859)",
        {"model.tied_head": True},
        learning_rate=0.004,
    ),
    Rung(
        "warm-up-and-cosine",
        "warm-up and cosine",
        "tied-head",
        "The rate rises at first and then falls along a cosine, instead of staying where it is.",
        "Loshchilov and Hutter 2017, equation 5 (arXiv:1608.03983); Goyal et al. 2017, section 2.2 (arXiv:1706.02677)",
        {"train.schedule": "warm-up and cosine"},
        learning_rate=0.008,
    ),
    Rung(
        "rotary",
        "rotary positions",
        "warm-up-and-cosine",
        "Queries and keys are turned by their place, so that scores depend on the distance.",
        "Su et al. 2021, equation 34 (arXiv:2104.09864)",
        {"model.positions": "rotary"},
        learning_rate=0.016,
    ),
    Rung(
        "rms-norm",
        "RMSNorm",
        "rotary",
        "The norm without the mean: only the length is taken out.",
        "Zhang and Sennrich 2019, equation 4 (arXiv:1910.07467)",
        {"model.norm": "rms"},
        learning_rate=0.016,
    ),
    Rung(
        "qk-norm",
        "QK-norm",
        "rms-norm",
        "Queries and keys get one length, which bounds the scores.",
        "Henry et al. 2020 (arXiv:2010.04245)",
        {"model.query_key_norm": True},
        learning_rate=0.016,
    ),
    Rung(
        "squared-relu",
        "squared ReLU",
        "qk-norm",
        "ReLU, squared: zero below zero, and steeper above.",
        "So et al. 2021, 'Primer', section 4 (arXiv:2109.08668)",
        {"model.activation": "relu-squared"},
        learning_rate=0.008,
    ),
    Rung(
        "zero-projections",
        "zero-initialised projections",
        "squared-relu",
        "Each block starts as the identity: what writes into the stream begins at zero.",
        "Zhang et al. 2019, 'Fixup', section 3 (arXiv:1901.09321)",
        {"model.zero_projections": True},
        learning_rate=0.008,
    ),
    Rung(
        "no-biases",
        "no biases",
        "zero-projections",
        "Linear layers without a constant: fewer parts, and nothing is missed.",
        "Chowdhery et al. 2022, 'PaLM', section 2 (arXiv:2204.02311)",
        {"model.bias": False},
        learning_rate=0.008,
    ),
    Rung(
        "logit-cap",
        "logit cap",
        "no-biases",
        "Logits are bent to stay within 15: no token can be made certain by one large weight.",
        "Gemma Team 2024, 'Gemma 2', section 2 (arXiv:2408.00118)",
        {"model.logit_cap": 15.0},
        learning_rate=0.004,
    ),
    Rung(
        "muon",
        "Muon",
        "logit-cap",
        "The step of a matrix is made orthogonal: all its directions move alike. AdamW keeps the rest.",
        "Jordan et al. 2024, 'Muon: An optimizer for hidden layers in neural networks'",
        {"train.optimizer": "muon"},
        learning_rate=0.04,
    ),
)

SIDE_RUNGS: tuple[Rung, ...] = (
    Rung(
        "post-norm",
        "post-norm",
        "warm-up-and-cosine",
        "Does it matter where the norm stands? Here it is on the stream itself, as in 2017.",
        f"{VASWANI}, section 3.1; Xiong et al. 2020 (arXiv:2002.04745)",
        {"model.norm_placement": "post"},
        learning_rate=0.001,
        side=True,
    ),
    Rung(
        "unscaled-scores",
        "scores without 1/sqrt(d)",
        "warm-up-and-cosine",
        "What does the division by sqrt(d) do? Here it is left out.",
        f"{VASWANI}, section 3.2.1",
        {"model.score_scale": "none"},
        learning_rate=0.008,
        side=True,
        findings=("score-scale",),
    ),
    Rung(
        "width-scaled-scores",
        "scores scaled by the width",
        "warm-up-and-cosine",
        "A common slip: d taken as the width of the stream, not of a head.",
        f"{VASWANI}, section 3.2.1",
        {"model.score_scale": "width"},
        learning_rate=0.016,
        side=True,
        findings=("score-scale",),
    ),
    Rung(
        "sinusoidal",
        "sinusoidal positions",
        "warm-up-and-cosine",
        "Do positions have to be learnt? Here they are waves.",
        f"{VASWANI}, section 3.5",
        {"model.positions": "sinusoidal"},
        learning_rate=0.016,
        side=True,
    ),
    Rung(
        "swiglu",
        "SwiGLU",
        "warm-up-and-cosine",
        "A gate in the feed-forward layer. It has a third matrix, so each is made smaller: as many parameters.",
        "Shazeer 2020, equation 6 (arXiv:2002.05202)",
        {"model.activation": "swiglu"},
        learning_rate=0.008,
        side=True,
    ),
    *(
        Rung(
            f"batch-{sequences}",
            f"batch of {sequences}",
            "warm-up-and-cosine",
            "At equal tokens: many noisy steps, or few quiet ones? The climbed rungs have 16 sequences a step.",
            "McCandlish et al. 2018, section 2.2 (arXiv:1812.06162)",
            {"train.sequences": sequences},
            learning_rate=rate,
            side=True,
        )
        for sequences, rate in ((4, 0.008), (64, 0.004), (256, 0.004))
    ),
    Rung(
        "adam-l2",
        "Adam with L2",
        "warm-up-and-cosine",
        "Weight decay put into the gradient, where Adam rescales it, instead of beside it.",
        "Loshchilov and Hutter 2019, algorithm 2 (arXiv:1711.05101)",
        {"train.optimizer": "adam"},
        learning_rate=0.004,
        side=True,
    ),
    Rung(
        "bfloat16",
        "bfloat16",
        "warm-up-and-cosine",
        "Matrix products with 8 bits of precision instead of 24: is anything lost?",
        "Kalamkar et al. 2019 (arXiv:1905.12322)",
        {"train.precision": "bfloat16"},
        learning_rate=0.008,
        side=True,
    ),
    Rung(
        "accumulation",
        "accumulation",
        "batch-64",
        "The same 64 sequences in four micro-batches: the same step in a quarter of the memory.",
        "the gradient of a sum is the sum of gradients; equal but for rounding and the draws of dropout",
        {"train.pieces": 4},
        learning_rate=0.004,
        side=True,
    ),
    Rung(
        "scaled-up",
        "the last rung, twice as wide",
        "muon",
        "The same seconds spent on a wider model that sees fewer tokens: is the ladder's top too small?",
        "Kaplan et al. 2020, section 6 (arXiv:2001.08361)",
        {"model.width": 2 * WIDTH},
        learning_rate=0.02,
        side=True,
        as_long_as_parent=True,
    ),
)
