"""`handmade presets`: what `--preset NAME` stands for."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

CHARACTERS = 65  # of Tiny Shakespeare: what is counted where the vocabulary is that of the text
COLUMNS = (  # title, width
    ("name", -17),
    ("parameters", 11),
    ("context", 8),
    ("batch", 7),
    ("memory", 10),
    ("steps", 9),
)


def presets(*, json: bool = False) -> None:
    """List every preset: parameters, memory while training, steps, source.

    Parameters
    ----------
    json
        Print everything that a preset sets, as JSON.
    """
    rows = [facts(name) for name in names()]
    if json:
        print(json_module.dumps(rows, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    show(rows, Console(highlight=False))


def names() -> list[str]:
    from handmade.presets import PRESETS

    return list(PRESETS)


def facts(name: str) -> dict[str, Any]:
    """What there is to know about a preset, with its parameters counted."""
    from handmade import planning
    from handmade.models import FAMILIES
    from handmade.presets import PRESETS
    from handmade.settings import sizes_of
    from handmade.training import TrainConfig

    preset = PRESETS[name]
    settings: Any = FAMILIES[preset.family][1]
    vocab_size = preset.vocab_size or CHARACTERS
    config = settings.from_dict({**preset.model, **dict.fromkeys(sizes_of(preset.family), vocab_size)})
    train = TrainConfig.from_dict(preset.train)
    parameters = planning.parameters_of(config)
    memory = planning.memory_needed(config, train, preset.optimizer.get("name", "adamw"))
    context = getattr(config, "context", 1)
    return {
        "name": name,
        "about": preset.about,
        "source": preset.source,
        "family": preset.family,
        "parameters": parameters,
        "vocab_size": preset.vocab_size,
        "context": context,
        "batch": train.batch,
        "batches_per_step": -(-(train.tokens_per_step or 1) // (train.batch * context)),
        "memory_bytes": memory,
        "steps": train.steps,
        "model": preset.model,
        "train": preset.train,
        "optimizer": preset.optimizer,
        "schedule": preset.schedule,
    }


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """The figures of a preset in a line, below it what it is and where it comes from."""
    from rich.padding import Padding
    from rich.text import Text

    def line(cells: list[str]) -> str:
        return "".join(
            cell.ljust(-width) if width < 0 else cell.rjust(width)
            for cell, (_, width) in zip(cells, COLUMNS, strict=True)
        )

    console.print(Text(line([title for title, _ in COLUMNS]), style="bold"))
    for row in rows:
        several = row["batches_per_step"]
        figures = Text(
            line(
                [
                    row["name"],
                    millions(row["parameters"]),
                    f"{row['context']:,}",
                    f"{several} x {row['batch']}" if several > 1 else f"{row['batch']}",
                    gigabytes(row["memory_bytes"]),
                    f"{row['steps']:,}",
                ]
            )
        )
        figures.stylize("bold cyan", 0, len(row["name"]))
        console.print(figures)
        console.print(Padding(Text(row["about"]), (0, 0, 0, 2), expand=False))
        console.print(Padding(Text(row["source"], style="dim"), (0, 0, 0, 2), expand=False))
        console.print()
    console.print(
        Text(
            "memory  while training\n"
            "batch   rows at once; 64 x 8: a step adds up 64 batches of 8\n"
            f"Counted with {CHARACTERS} characters, except where the source has its own vocabulary;\n"
            "those of translation with 4,000 tokens a language.\n"
            "Train one: handmade train TEXT --preset NAME, translation: handmade train PAIRS ..."
        )
    )


def millions(count: int) -> str:
    """A number of parameters for a person.

    >>> millions(8865), millions(804_096), millions(124_439_808)
    ('8,865', '0.80 M', '124 M')
    """
    if count < 100_000:
        return f"{count:,}"
    return (
        f"{count / 1e6:.2f} M" if count < 1e7 else f"{count / 1e6:,.1f} M" if count < 1e8 else f"{count / 1e6:,.0f} M"
    )


def gigabytes(size: float) -> str:
    """A number of bytes for a person.

    >>> gigabytes(21_000_000), gigabytes(34_500_000_000)
    ('0.02 GB', '34.5 GB')
    """
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:,.1f} GB"
