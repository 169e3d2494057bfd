"""Where a model looks while it writes an answer, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from handmade import attention
from handmade.tasks.base import Batch

if TYPE_CHECKING:
    from handmade.tasks.arithmetic.task import ArithmeticTask

LOOKED_AT = 500  # test problems of which one is shown
CELL = 0.26  # inches of a token
WIDEST = 16  # inches of heads side by side


def solved(task: ArithmeticTask, model: nn.Module) -> np.ndarray:
    """A test problem that is answered right, of the hardest kind that there is (most carries, longest); where none
    is, the first. Shapes: -> (1, columns)."""
    problems = task.split.test[:LOOKED_AT]
    right = np.array([a == b for a, b in zip(task.decoded(model, problems), task.written(problems), strict=True)])
    hard, _ = next(iter(task.groups(problems).values()))
    best = int(np.where(right, hard, -1).argmax())
    return problems[[best]]


@torch.inference_mode()
def attention_rows(task: ArithmeticTask, model: nn.Module, problem: np.ndarray) -> list[np.ndarray]:
    """How much each token of the row is looked at while each token of the answer is written: an array (heads, answer,
    row) for each layer, empty for a model without attention. Each line of it sums to 1. Shapes: problem (1, columns).
    """
    rows = task.rows(problem)
    device = next((part.device for part in model.parameters()), torch.device("cpu"))
    batch = Batch(rows.inputs.long(), rows.targets.long()).to(device)
    length = int(rows.lengths[0]) - 1
    places = (batch.targets[0] != -100).nonzero()[:, 0]
    with attention.record() as maps:
        task.logits(model, batch)
    if getattr(model, "last_only", False):  # a row of its own for each token: look from the last place of each
        each = torch.arange(len(places), device=device)
        return [weights[each, :, places, :length].transpose(0, 1).float().cpu().numpy() for weights in maps]
    return [weights[0][:, places, :length].float().cpu().numpy() for weights in maps]


def attention_picture(task: ArithmeticTask, model: nn.Module) -> Any | None:
    """A solved problem as a matplotlib Figure: a map for each head, layers from top to bottom, long problems with few
    heads side by side; None for a model without attention. Where the model has solved none, the title says what it
    answers instead."""
    problem = solved(task, model)
    layers = attention_rows(task, model, problem)
    if not layers:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = task.rows(problem)
    length = int(rows.lengths[0]) - 1
    read = [shown(token) for token in task.tokenizer.decode(rows.inputs[0, :length])]
    written = [shown(token) for token in task.tokenizer.decode(rows.targets[0][rows.targets[0] != -100])]
    heads = layers[0].shape[0]
    across, down = 0.7 + CELL * len(read), 0.8 + CELL * len(written)
    columns = max(n for n in range(1, heads + 1) if heads % n == 0 and (n == 1 or n * across <= WIDEST))
    lines = heads // columns  # of a layer
    size = (1.2 + columns * across, 1.1 + len(layers) * lines * down)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    (answer,), (right,) = task.decoded(model, problem), task.written(problem)
    verdict = "" if answer == right else f"; not solved: the model writes {answer or 'nothing'}"
    title = f"{''.join(read)}   where each token of the answer looks{verdict}"
    figure.suptitle(title, fontsize=11, parse_math=False)
    grid = figure.subplots(len(layers) * lines, columns, squeeze=False)
    for layer, weights in enumerate(layers):
        for head in range(heads):
            axes = grid[layer * lines + head // columns][head % columns]
            axes.imshow(weights[head], cmap="Blues", vmin=0, vmax=1, aspect="equal")
            axes.set_xticks(range(len(read)), read, fontsize=8, parse_math=False)
            axes.set_yticks(range(len(written)), written, fontsize=8, parse_math=False)
            axes.tick_params(length=0)
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
    grid[-1][0].set_xlabel("looks at", fontsize=8)
    grid[0][0].set_ylabel("writes", fontsize=8)
    return figure


def shown(token: str) -> str:
    """A token for an axis: the end as a sign that can be seen."""
    return "⏎" if token == "\n" else token
