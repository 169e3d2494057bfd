"""`handmade eval RUN`: how good a model is on what it was not trained on."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from handmade.errors import ConfigError

if TYPE_CHECKING:
    from handmade.run import Run


def evaluate(
    run: Path,
    /,
    *,
    data: Annotated[tuple[str, ...], Parameter(consume_multiple=True, show_default=False)] = (),
    problems: str | None = None,
    beside: Annotated[tuple[Path, ...], Parameter(show_default=False)] = (),
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "auto",
    json: bool = False,
) -> None:
    """Score the best weights of a run on all that was kept back: every token of
    a text once, every problem of a task, every sentence to be translated.

    Parameters
    ----------
    run
        The run folder.
    data
        Another text (files, folders, a name; its own validation part is scored), or other pairs. Usual are the run's.
    problems
        Problems for the model of a task, instead: "12+34=, 99+1=".
    beside
        Another run of a task, to be in the picture of right answers over time too.
    precision
        Number type of the matrix products.
    device
        auto, cpu, cuda, cuda:1, mps.
    json
        Print the figures as JSON.
    """
    import handmade
    from handmade import machine

    found = handmade.load(run, device=device)
    machine.find_precision(precision, found.device)
    if data and problems is not None:
        raise ConfigError("--data is for texts and --problems for tasks. Leave one of the two out.")
    asked = None if problems is None else [text.strip() for text in problems.split(",") if text.strip()]
    if asked == []:
        raise ConfigError(f"--problems {problems!r}: names none. They look like this: {found.task.example}")
    scores: dict[str, Any] = found.evaluate(list(data) or None, precision=precision, problems=asked)
    if json:
        print(json_module.dumps({**scores, "precision": precision}, indent=2))
    elif asked is not None:
        print("\n".join(marked(scores)))
    else:
        # Of a translation the figures are told without its own pairs, which may be gone.
        teller = found.translator if found.translates else found.task
        line = None if found.config["family"] == "counting" else scores["counting_line"]
        print(describe(f"{run} on {', '.join(data or named(found.config))}", teller.tell(scores), scores, line))
    if asked is None and not (data and found.translates):
        show(found, beside, quiet=json)


def show(run: Run, beside: tuple[Path, ...], quiet: bool = False) -> None:
    """Draw, and say where. A picture that cannot be drawn, for want of a font say, is left out with a line: the
    figures are there."""
    from handmade.errors import ResourceError

    try:
        drawn = draw(run, beside)
    except (ResourceError, OSError) as problem:
        print(f"not drawn: {problem}", file=sys.stderr)
        return
    if drawn and not quiet:
        print(f"\nPictures: {', '.join(map(str, drawn))}")


def draw(run: Run, beside: tuple[Path, ...]) -> list[Path]:
    """Pictures of a task's run, into its folder: right answers over time, and what its task shows. Raises ConfigError
    for other runs that have none."""
    import torch

    from handmade import accuracy, checkpoint, files

    if run.continues:
        if beside:
            raise ConfigError(f"--beside: {run.folder} goes on with a text, and there are no right answers to compare.")
        return []
    drawn = []
    if (run.folder / checkpoint.METRICS).exists():
        found = accuracy.draw([run.folder, *beside], run.folder / accuracy.PICTURE)
        drawn += [found] if found else []
    with torch.inference_mode():
        for name, figure in run.task.pictures(run.model):
            with files.whole(run.folder / name, "a picture") as file:
                figure.savefig(file, format="png")
            drawn.append(run.folder / name)
    return drawn


def named(config: dict[str, Any]) -> list[str]:
    """What the text or the task of a run was called."""
    record = config["data"]
    if "files" not in record:
        return [config["task"]["name"]]
    return [record["corpus"]] if record.get("corpus") else list(record["files"])


def marked(scores: dict[str, Any]) -> list[str]:
    """The problems that were given, a line each, and how many are right."""
    rows = scores["problems"]
    lines = []
    for row in rows:
        verdict = "right" if row["answer"] == row["right"] else f"wrong, it is {row['right']}"
        lines.append(f"{row['problem']} {row['answer']:10} {verdict}")
    return [*lines, f"{sum(row['answer'] == row['right'] for row in rows)} of {len(rows)} right"]


def describe(title: str, told: list[tuple[str, str]], scores: dict[str, Any], line: float | None) -> str:
    """The figures for a person."""
    rows = list(told)
    if line is not None:
        distance = scores["val_loss"] - line
        rows.append(
            ("to beat", f"{line:.4f} by counting: {abs(distance):.4f} {'below' if distance < 0 else 'above'} it")
        )
    from handmade.tasks.base import in_columns

    return "\n".join([title, *in_columns(rows)])
