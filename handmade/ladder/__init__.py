"""The ladder: from counting letters to today's GPT, one idea a rung, each with its evidence.

    from handmade import ladder

    climb = ladder.Climb("mybook.txt", rungs=[ladder.find("neural-bigram"), ladder.find("one-head")])
    for record in climb.run():
        print(record["rung"], record["seed"], record["val_loss"])

A rung of one's own:

    mine = ladder.Rung(
        "narrow", "half as wide", "layer-norm", "Does the width matter?", "me", {"model.width": 64}, learning_rate=0.004
    )
    ladder.Climb("mybook.txt", rungs=[ladder.find("layer-norm"), mine])
"""

from handmade.ladder.climbing import SEEDS, TOKENS, Climb
from handmade.ladder.rungs import RUNGS, SIDE_RUNGS, Rung, Training, differences, find, settings

__all__ = [
    "RUNGS",
    "SEEDS",
    "SIDE_RUNGS",
    "TOKENS",
    "Climb",
    "Rung",
    "Training",
    "differences",
    "find",
    "settings",
]
