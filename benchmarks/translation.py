"""BLEU of translations from Japanese: the transformer that `handmade train tatoeba-ja-en` picks, and what attention is
worth: the models of 2014, 2015, 2015 and 2017 beside it, five minutes each.

    python -m benchmarks translation

Every case and seed is kept when it is done; a call with the same settings goes on from there. Each seed of the first
case takes 20 minutes on two cores that do nothing else, each of the others five.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.record import RESULTS, save, spread
from handmade import jobs
from handmade.evaluation import evaluate
from handmade.presets import find
from handmade.tasks import TranslationConfig
from handmade.tasks.translation import pictures, recipes, reports

DATA = "tatoeba-ja-en"
SEEDS = (0, 1, 2)

# Case -> preset (None: what is picked), minutes (None: the steps are given), settings.
MAIN = "transformer of today, 4,200 steps"
CASES: dict[str, tuple[str | None, float | None, tuple[str, ...]]] = {
    MAIN: (None, None, ("train.steps=4200", "train.evaluate_every=600")),
    "LSTM without attention (2014)": ("sutskever-2014", 5, ()),
    "LSTM with additive attention (2015)": ("bahdanau-2015", 5, ()),
    "LSTM with multiplicative attention (2015)": ("luong-2015", 5, ()),
    "transformer as published (2017)": ("transformer-2017", 5, ()),
    "transformer of today": (None, 5, ()),
}


def main(cases: Sequence[str] = tuple(CASES), seeds: Sequence[int] = SEEDS) -> None:
    """Make the runs that are not done, the first seed of every case before the second of any."""
    for seed in seeds:
        for name in cases:
            key, settings = f"{name} | {seed}", settings_of(name)
            if done().get(key, {}).get("settings") == settings:
                continue
            found = {"model": name, "seed": seed, "settings": settings, **one(name, seed)}
            print(
                f"{name}, seed {seed}: BLEU {found['bleu_greedy']:.2f} greedy, {found['bleu_beam']:.2f} with beams,"
                f" {found['steps']:,} steps in {found['seconds']:.0f} s",
                flush=True,
            )
            keep({**done(), key: found})
    keep({key: run for key, run in done().items() if run["model"] in CASES})


def settings_of(name: str) -> dict[str, Any]:
    """All that decides a case, the defaults of today too: seeds of two recipes have no median."""
    preset, minutes, words = CASES[name]
    recipe = dataclasses.asdict(find(preset)) if preset else recipes.transformer(recipes.SHAPE, {})
    task = TranslationConfig().to_dict()
    return json.loads(json.dumps({"minutes": minutes, "set": words, "recipe": recipe, "task": task}))


def done() -> dict[str, Any]:
    """The runs that earlier calls have made."""
    path = RESULTS / "translation.json"
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else {}


def keep(runs: dict[str, Any]) -> None:
    """Write the runs, their medians, and the table of the ladder."""
    cases = {}
    for name in CASES:
        of_case = [run for run in runs.values() if run["model"] == name]
        if of_case:
            cases[name] = {
                "seeds": [run["seed"] for run in of_case],
                "parameters": of_case[0]["parameters"],
                **{figure: spread([run[figure] for run in of_case]) for figure in FIGURES},
            }
    save("translation", "BLEU on 2,000 held-out Japanese-English pairs", {"cases": cases, "runs": runs})
    ladder = [run for name in CASES for run in runs.values() if run["model"] == name != MAIN]
    if ladder:
        (RESULTS / "translation.md").write_text(reports.ladder_table(ladder), encoding="utf-8")
        threads = sorted({run["threads"] for run in ladder})
        said = "one thread" if threads == [1] else f"{' or '.join(map(str, threads))} threads"
        about = f"57,000 Japanese-English pairs, about five minutes each on {said}; 2,000 others translated"
        pictures.ladder_picture(ladder, about=about).savefig(RESULTS / "translation.png")


FIGURES = ("bleu_greedy", "bleu_beam", "chrf", "token_accuracy", "val_loss", "seconds", "steps", "real_share")


def one(name: str, seed: int) -> dict[str, Any]:
    """Train one case with one seed; its best weights translate the test part."""
    preset, minutes, words = CASES[name]
    settings = (*words, f"train.seed={seed}", "train.device=cpu")
    job = jobs.new(jobs.Request(data=(DATA,), preset=preset, minutes=minutes, set=settings), say=lambda *_: None)
    trainer, task = job.trainer, job.task
    assert trainer is not None
    trainer.folder = None  # nothing is kept but the figures
    curve = []
    for report in trainer.steps():
        if report.scores:
            curve.append([report.step, round(report.train_seconds, 1), *(round(x, 4) for x in report.scores.values())])
            print(f"  {name}, seed {seed}: {curve[-1]}", flush=True)
    trainer.put_best()
    began = time.perf_counter()
    scores = evaluate(trainer.model, task)
    greedy, beam = list(scores["decodings"].values())
    return {
        "bleu_greedy": greedy["bleu"],
        "bleu_beam": beam["bleu"],
        "chrf": beam["chrf"],
        "bleu_signature": beam["bleu_signature"],
        "token_accuracy": scores["token_accuracy"],
        "val_loss": scores["val_loss"],
        "sentences": scores["sentences"],
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "real_share": task.real_share(trainer.config.batch),  # type: ignore[attr-defined]
        "steps": trainer.step,
        "best_step": trainer.best_step,
        "seconds": round(trainer.train_seconds, 1),
        "seconds_to_translate": round(time.perf_counter() - began, 1),
        "threads": torch.get_num_threads(),
        "curve": curve,
        "by_length": scores["by_length"],
        "best": scores["best"],
        "worst": scores["worst"],
    }
