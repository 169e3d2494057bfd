"""Writes docs/options.md: every option of every config, read from the code.

    python -m docs.options

Type and default come from the dataclass, the meaning from the sentence under the field. A test fails where the page
is not what this prints, so the page cannot drift from the code.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from pathlib import Path
from typing import Any

from handmade.config import Config, describe
from handmade.generation import SamplingConfig
from handmade.models import (
    BigramConfig,
    CountingConfig,
    FixedWindowConfig,
    GPTConfig,
    MLPConfig,
    RecurrentConfig,
    Seq2SeqConfig,
    Seq2SeqLSTMConfig,
)
from handmade.optimizers import OptimizerConfig
from handmade.schedules import ScheduleConfig
from handmade.tasks import TASKS, TranslationConfig
from handmade.tasks.language import LanguageConfig
from handmade.training import TrainConfig

PAGE = Path(__file__).with_name("options.md")

INTRODUCTION = """\
# Every option

Written by `python -m docs.options` from the code. Do not edit it here: change the sentence under the field.

On the command line: `--set train.steps=3000`. In a TOML file: `steps = 3000` under `[train]`. In Python:
`TrainConfig(steps=3000)`. Where the default is `none`, the word `none` sets it back. A list is written with commas:
`--set optimizer.betas=0.9,0.95`.

What you do not set is decided by the preset; without a preset, by what suits the text, the time and the machine
(see [training.md](training.md)). The defaults below hold in Python, and for what nothing else decides.
"""

# Table of --set, config, heading. None: not set by --set.
TABLES: tuple[tuple[str | None, type[Config], str], ...] = (
    ("train", TrainConfig, "How training goes"),
    ("optimizer", OptimizerConfig, "How weights are changed"),
    ("schedule", ScheduleConfig, "The learning rate over time"),
    ("model", GPTConfig, "The model: GPT"),
    ("model", RecurrentConfig, "The model: RNN and LSTM (`--model recurrent`)"),
    ("model", MLPConfig, "The model: MLP (`--model mlp`)"),
    ("model", BigramConfig, "The model: bigram (`--model bigram`)"),
    ("model", FixedWindowConfig, "The model: fixed window (`--model fixed-window`)"),
    ("model", CountingConfig, "The model: counting (`--model counting`)"),
    ("model", Seq2SeqConfig, "The model: encoder-decoder (`--model seq2seq`)"),
    ("model", Seq2SeqLSTMConfig, "The model: encoder-decoder of LSTMs (`--model seq2seq-lstm`)"),
    ("task", LanguageConfig, "The task: a text"),
    ("task", TranslationConfig, "The task: translation (`handmade train tatoeba-ja-en`)"),
    *(("task", task.settings, f"The task: {name} (`handmade train {name}`)") for name, task in TASKS.items()),
    (None, SamplingConfig, "How text is drawn"),
)


# For fields whose name says it to a reader of the code, but not to one who meets a transformer for the first time.
# A sentence in the code wins over one here.
PLAIN = {
    "train.seed": "Another number is another run: other first weights, other order of the text, other dropout.",
    "optimizer.name": "From the simplest to Muon; [parts.md](parts.md) has the formulas.",
    "model.layers": "Blocks, one behind the other. Each is an attention and a feed-forward layer.",
    "model.encoder_layers": "Blocks that read, one behind the other: each an attention and a feed-forward layer.",
    "model.decoder_layers": "Blocks that write: each an attention, one over the source, and a feed-forward layer.",
    "model.heads": "Attentions side by side in a block, each in its own share of the width. Must divide `model.width`.",
    "model.activation": "What stands inside the feed-forward layer. swiglu has a gate, a third matrix.",
    "model.norm_placement": "Norm what goes into a layer (pre, as GPT-2) or what comes out (post, as GPT-1).",
    "model.positions": "How the model knows the order of the tokens.",
    "model.rotary_base": "Of rotary positions: the longest wave is about 2 pi times this many tokens.",
    "model.query_key_norm": "Norm queries and keys before they meet, which bounds the scores.",
    "model.head_bias": "A bias for each token in the head.",
}


def meanings(config: type[Config]) -> dict[str, str]:
    """Field -> the sentence that stands under it in the class, or in the one that it comes from."""
    found: dict[str, str] = {}
    for one in reversed(config.__mro__[: config.__mro__.index(Config)]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found


def shown(value: Any) -> str:
    """A default as it is typed after `--set`."""
    if value is dataclasses.MISSING:
        return "from the text"
    if value is None or isinstance(value, bool):  # not by ==: 1.0 equals True
        return {None: "none", True: "true", False: "false"}[value]
    return (
        ",".join(map(str, value))
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def rows(table: str | None, config: type[Config]) -> list[str]:
    """The lines of a config's table."""
    said, kinds = meanings(config), config.annotations()
    lines = ["| option | default | takes | what it does |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(config):
        name = f"{table}.{field.name}" if table else f"--{field.name.replace('_', '-')}"
        cells = (
            f"`{name}`",
            f"`{shown(field.default)}`",
            describe(kinds[field.name]),
            said.get(field.name) or PLAIN[f"{table}.{field.name}"],
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def page() -> str:
    """The whole of docs/options.md."""
    parts = [INTRODUCTION]
    for table, config, heading in TABLES:
        where = Path(inspect.getfile(config)).relative_to(PAGE.parents[1]).as_posix()
        parts.append(f"## {heading}\n\n`{config.__name__}` in `{where}`.\n\n" + "\n".join(rows(table, config)) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
