"""Figure 3. The preset `shakespeare`: its best validation loss and the seconds of training until 1.4697, which
nanoGPT reports for `nanogpt-gpu` after three minutes on an A100."""

from __future__ import annotations

from benchmarks.record import said, save, shakespeare, spread, trainer_of

TARGET = 1.4697
SEEDS = (0, 1, 2)


def main() -> None:
    best, seconds, until, curves = [], [], [], []
    for seed in SEEDS:
        trainer = trainer_of("shakespeare", shakespeare(), seed)
        points = [(r.step, r.train_seconds, r.val_loss) for r in trainer.steps() if r.val_loss is not None]
        best.append(min(loss for _, _, loss in points))
        seconds.append(points[-1][1])
        until.append(next((at for _, at, loss in points if loss <= TARGET), None))
        curves.append([[step, round(at, 1), round(loss, 4)] for step, at, loss in points])
        if seed == SEEDS[0]:
            trainer.put_best()
            sample = trainer.task.answer(trainer.model.eval(), "ROMEO:", tokens=500, temperature=0.8, seed=0)
        print(f"seed {seed}: best {best[-1]:.4f} in {seconds[-1]:.0f} s; 1.4697 after {until[-1]} s", flush=True)
    figures = {
        "target": TARGET,
        "seeds": list(SEEDS),
        "best_loss": spread(best, 5),
        "train_seconds": spread(seconds),
        "seconds_to_target": until,
        "curves": curves,
        "sample": {"seed": SEEDS[0], "prompt": "ROMEO:", "temperature": 0.8, "text": "ROMEO:" + sample},
    }
    print(said("best validation loss", figures["best_loss"], "nats"))
    print(said("train_seconds", figures["train_seconds"], "s"))
    save("shakespeare", "best validation loss of the preset `shakespeare`", figures)
