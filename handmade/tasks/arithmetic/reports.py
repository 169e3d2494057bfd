"""What a trained model got right, and where it went wrong: figures, tables, the wrong answers themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from handmade.errors import ConfigError

if TYPE_CHECKING:
    from handmade.tasks.arithmetic.task import ArithmeticTask

WRONG_KEPT = 100  # wrong answers in the figures
WRONG_TOLD = 10  # and for a person


TRAINED_AT_MOST = 10_000  # training problems that are asked once more


def examined(task: ArithmeticTask, model: nn.Module, most: int | None = None) -> dict[str, Any]:
    """All test problems, or the first `most`, each answered by greedy decoding with the cache.

    `val_loss`, `token_accuracy` (of tokens foreseen with the right answer before them), `exact_match` (of whole
    answers), `held_out` (the same of the test problems that no evaluation while it trained looked at, and how many
    those are; None where there are none), `train_exact_match` (on training problems, 10,000 at most); `problems`,
    `errors` (title -> group -> problems and how many are right), `wrong` (question, answer, right answer), `longer`
    (problems longer than any trained on).
    """
    device = next((part.device for part in model.parameters()), torch.device("cpu"))
    problems = task.split.test[:most]
    passed, seen = (
        task.passed(model, task.test[:most], device),
        task.passed(model, task.train[:TRAINED_AT_MOST], device),
    )
    given, wanted = task.decoded(model, problems), task.written(problems)
    right = np.array([answer == solution for answer, solution in zip(given, wanted, strict=True)])
    (places,) = np.nonzero(~right)
    kept = places[:WRONG_KEPT]
    questions = task.asked(problems[kept])
    wrong = [
        {"problem": question, "answer": task.shown(given[place]), "right": task.shown(wanted[place])}
        for question, place in zip(questions, kept.tolist(), strict=True)
    ]
    return {
        "val_loss": passed["loss"],
        "exact_match": float(right.mean()),
        "held_out": held_out(right[task.looked_at :]),
        "token_accuracy": passed["tokens"],
        "train_exact_match": seen["exact"],
        "problems": len(problems),
        "errors": {title: by_group(right, *kinds) for title, kinds in task.groups(problems).items()},
        "wrong": wrong,
        "longer": [length_row(model, *one) for one in task.longer()],
    }


def held_out(right: np.ndarray) -> dict[str, Any] | None:
    """Of problems by which no weights were picked. The weights that are kept are those of the evaluation with the
    lowest loss, on the first test problems: on those they are as good as by chance they can be."""
    return {"problems": len(right), "exact_match": float(right.mean())} if len(right) else None


def by_group(right: np.ndarray, group: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """How many problems of each group there are, and how many are right. Groups without a problem are left out."""
    problems, hits = np.bincount(group, minlength=len(names)), np.bincount(group[right], minlength=len(names))
    return {
        name: {"problems": int(count), "right": int(hit)}
        for name, count, hit in zip(names, problems, hits, strict=True)
        if count
    }


def length_row(model: nn.Module, name: str, task: ArithmeticTask, problems: np.ndarray) -> dict[str, Any]:
    """Exact match on longer problems; None where their rows do not fit the model's context. `tokens` are the positions
    they need."""
    tokens = task.tokens_needed(problems)
    try:
        given = task.decoded(model, problems)
    except ConfigError:
        return {"length": name, "problems": len(problems), "tokens": tokens, "exact_match": None}
    wanted = task.written(problems)
    matches = sum(answer == solution for answer, solution in zip(given, wanted, strict=True))
    return {"length": name, "problems": len(problems), "tokens": tokens, "exact_match": matches / len(problems)}


# --------------------------------------------------------------------------------------------------------------
# For a person


def share(part: float) -> str:
    """A part as a person reads it: never 100 % unless it is all.

    >>> share(1.0), share(0.99987), share(0.5)
    ('100 %', '99.98 %', '50.00 %')
    """
    return "100 %" if part >= 1 else f"{np.floor(part * 10_000) / 100:.2f} %"


def told(task: ArithmeticTask, scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of `examined` as lines and tables: label, text."""
    count = scores["problems"]
    wrong = count - round(scores["exact_match"] * count)
    rows = [
        ("right", f"{share(scores['exact_match'])} of {count:,} problems never seen, whole answers; {wrong:,} wrong"),
        *held_out_line(scores),
        ("tokens right", f"{share(scores['token_accuracy'])}, each with the right ones before it"),
        ("of the trained", f"{share(scores['train_exact_match'])} right"),
        ("validation", f"{scores['val_loss']:.4f} nats a token, {scores['precision']}"),
    ]
    for title, groups in scores["errors"].items():
        rows.append((f"by {title}", table(groups)))
    if scores["longer"]:
        rows.append(("longer ones", "\n".join(map(length_line, scores["longer"]))))
    if scores["wrong"]:
        shown = scores["wrong"][:WRONG_TOLD]
        lines = [f"{row['problem']}{row['answer']}   it is {row['right']}" for row in shown]
        more = wrong - len(shown)
        rows.append(("wrong answers", "\n".join(lines + ([f"and {more:,} more"] if more > 0 else []))))
    return rows


def held_out_line(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `held_out` found."""
    found = scores["held_out"]
    if found is None:
        return []
    return [("", f"{share(found['exact_match'])} of the {found['problems']:,} that were not looked at in training")]


def table(groups: Mapping[str, Mapping[str, int]]) -> str:
    """A line for each group: its name, the part that is right, how many are wrong."""
    widest = max(map(len, groups), default=0)
    lines = []
    for name, found in groups.items():
        wrong = found["problems"] - found["right"]
        part = share(found["right"] / found["problems"])
        lines.append(f"{name:{widest}}  {part:>8}  {wrong:,} of {found['problems']:,} wrong")
    return "\n".join(lines)


def length_line(row: Mapping[str, Any]) -> str:
    """How it goes at one length that was not trained on."""
    if row["exact_match"] is None:
        room = f"train with --set model.context={row['tokens']} to ask them"
        return f"{row['length']:10}  do not fit the model's context: {room}"
    return f"{row['length']:10}  {share(row['exact_match']):>8} of {row['problems']:,}"
