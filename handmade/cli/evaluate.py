"""`handmade eval RUN`: how good a model is on text it was not trained on."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter


def evaluate(
    run: Path,
    /,
    *,
    data: Annotated[tuple[str, ...], Parameter(consume_multiple=True, show_default=False)] = (),
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "auto",
    json: bool = False,
) -> None:
    """Score the best weights of a run on the whole validation part, every token once.

    Parameters
    ----------
    run
        The run folder.
    data
        Another text: files, folders, or a name. Its own validation part is scored. By default the run's text.
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
    scores: dict[str, Any] = found.evaluate(list(data) or None, precision=precision)
    line = None if found.config["family"] == "counting" else scores["counting_line"]
    if json:
        print(json_module.dumps({**scores, "precision": precision}, indent=2))
        return
    text = data or named(found.config["data"])
    print(describe(f"{run} on {', '.join(text)}", scores, line, precision))


def named(record: dict[str, Any]) -> list[str]:
    """What the text of a run was called."""
    return [record["corpus"]] if record.get("corpus") else list(record["files"])


def describe(title: str, scores: dict[str, Any], line: float | None, precision: str) -> str:
    """The figures for a person."""
    rows = [
        ("validation", f"{scores['val_loss']:.4f} nats a token, {precision}, all {scores['tokens']:,} tokens"),
        ("perplexity", f"{scores['perplexity']:,.2f}"),
        ("bits per byte", f"{scores['bits_per_byte']:.4f}"),
    ]
    if line is not None:
        distance = scores["val_loss"] - line
        rows.append(
            ("to beat", f"{line:.4f} by counting: {abs(distance):.4f} {'below' if distance < 0 else 'above'} it")
        )
    return "\n".join([title, *(f"  {name:15}{text}" for name, text in rows)])
