"""Exact match on problems never seen, after seconds of training: sums of two and three digits, expressions, the
fixed-window pair, and sums longer than any trained on.

    python -m benchmarks arithmetic

Every case and seed is kept when it is done; a call with the same settings goes on from there. Two hours in all.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.record import RESULTS, save
from handmade import jobs

SEEDS = (0, 1, 2)
WINDOW = ("--model=fixed-window", "task.tokens=shared")
FRESH = ("addition, fresh splits",)  # other problems are learnt than those that the settings were chosen on

# Case -> task, settings.
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "addition": ("addition", ("train.steps=200", "train.evaluate_every=20")),
    "addition, fresh splits": ("addition", ("train.steps=200", "train.evaluate_every=20")),
    "addition, twins together": (
        "addition",
        ("train.steps=200", "train.evaluate_every=20", "task.twins=together"),
    ),
    "addition, forwards": ("addition", ("train.steps=200", "train.evaluate_every=20", "task.reversed=false")),
    "addition, not padded": ("addition", ("train.steps=200", "train.evaluate_every=20", "task.padded=false")),
    "addition, digits only": ("addition", ("train.steps=200", "train.evaluate_every=20", "task.operators=false")),
    "addition, three digits": (
        "addition",
        ("train.steps=1500", "train.evaluate_every=100", "task.digits=3", "task.train_problems=10000"),
    ),
    "sums of up to ten digits, longer ones asked": (
        "addition",
        (
            "train.steps=4000",
            "train.evaluate_every=1000",
            "task.digits=10",
            "task.shared_positions=true",
            "task.test_problems=2000",
        ),
    ),
    "expressions of two and three": ("expression", ("train.steps=3000", "train.evaluate_every=300")),
    "expressions of up to four": (
        "expression",
        ("train.steps=3000", "train.evaluate_every=300", "task.operands=4"),
    ),
    "expressions of up to four, with steps": (
        "expression",
        ("train.steps=3000", "train.evaluate_every=300", "task.operands=4", "task.steps=true"),
    ),
    "fixed window, transformer": (
        "addition",
        (*WINDOW, "train.steps=5000", "train.batch=32", "train.evaluate_every=500"),
    ),
    "fixed window, dense": (
        "addition",
        (*WINDOW, "model.body=dense", "train.steps=3500", "train.batch=32", "train.evaluate_every=500"),
    ),
    "addition, LSTM": ("addition", ("--model=recurrent", "train.steps=1500", "train.evaluate_every=150")),
    "addition, MLP": ("addition", ("--model=mlp", "train.steps=1500", "train.evaluate_every=150")),
}


def main(cases: Sequence[str] = tuple(CASES)) -> None:
    """Make the runs that are not done, the first seed of every case before the second of any."""
    for seed in SEEDS:
        for name in cases:
            key, settings = f"{name} | {seed}", list(CASES[name][1])
            if done().get(key, {}).get("settings") == settings:
                continue
            found = {"case": name, "seed": seed, "settings": settings, **one(name, seed)}
            print(
                f"{name}, seed {seed}: {100 * found['exact_match']:.2f} % right, {100 * found['token_accuracy']:.2f} %"
                f" of tokens, after {found['train_seconds']:.1f} s",
                flush=True,
            )
            keep({**done(), key: found})  # read again: another call may have made other cases meanwhile
    keep(done())  # where nothing was left to do, the summary is that of the cases there are now


def keep(runs: dict[str, Any]) -> None:
    """Write the runs and their summary."""
    save("arithmetic", "exact match on whole answers to problems never seen", figures(runs))


def done() -> dict[str, Any]:
    """The runs that earlier calls have made."""
    path = RESULTS / "arithmetic.json"
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else {}


def figures(kept: dict[str, Any]) -> dict[str, Any]:
    """By case: medians over the seeds, and the best; then every run."""
    cases = {}
    for name in CASES:
        runs = [run for run in kept.values() if run["case"] == name]
        if runs:
            cases[name] = {
                "seeds": [run["seed"] for run in runs],
                "exact_match": statistics.median(run["exact_match"] for run in runs),
                "best": max(run["exact_match"] for run in runs),
                "worst": min(run["exact_match"] for run in runs),
                "token_accuracy": statistics.median(run["token_accuracy"] for run in runs),
                "train_exact_match": statistics.median(run["train_exact_match"] for run in runs),
                "train_seconds": statistics.median(run["train_seconds"] for run in runs),
                "parameters": runs[0]["parameters"],
                "test_problems": runs[0]["test_problems"],
                "longer": longer(runs),
            }
    return {"cases": cases, "runs": kept}


def longer(runs: list[dict[str, Any]]) -> dict[str, float]:
    """By length of problems longer than any trained on: the median of the seeds. Empty where no model holds them."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for row in run["longer"]:
            if row["exact_match"] is not None:
                found.setdefault(row["length"], []).append(row["exact_match"])
    return {length: statistics.median(values) for length, values in found.items()}


def one(name: str, seed: int) -> dict[str, Any]:
    """Train one case with one seed; its last weights answer all test problems."""
    task, words = CASES[name]
    family = next((word.partition("=")[2] for word in words if word.startswith("--model=")), None)
    words = tuple(word for word in words if not word.startswith("--"))
    settings = (*words, f"train.seed={seed}", "train.compile=no", "train.device=cpu")
    if name in FRESH:
        settings += (f"task.seed={1_000 + seed}",)
    job = jobs.new(jobs.Request(data=(task,), model=family, set=settings), say=lambda *_: None)
    trainer = job.trainer
    assert trainer is not None
    trainer.folder = None  # nothing is kept but the figures
    curve, began = [], time.process_time()
    for report in trainer.steps():
        if report.scores:
            right, seen = report.scores["exact_match"], report.scores["train_exact_match"]
            curve.append((round(report.train_seconds, 2), right, seen))
            print(
                f"  {name}, seed {seed}: {report.train_seconds:5.1f} s  {right:.4f}  of the trained {seen:.4f}",
                flush=True,
            )
    spent = time.process_time() - began
    with torch.inference_mode():
        scores: dict[str, Any] = job.task.evaluate(trainer.model.eval())  # type: ignore[attr-defined]
    return {
        "exact_match": scores["exact_match"],
        "token_accuracy": scores["token_accuracy"],
        "train_exact_match": scores["train_exact_match"],
        "train_seconds": round(trainer.train_seconds, 2),
        "cpu_seconds": round(spent, 1),  # of all threads, evaluations included: other jobs do not lengthen it
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in trainer.parameters),
        "test_problems": len(job.task.test),  # type: ignore[attr-defined]
        "curve": curve,
        "errors": scores["errors"],
        "longer": scores["longer"],
    }
