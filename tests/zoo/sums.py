"""Problems of addition with answers, as a list of texts. No model."""

import random

MISTAKES = {
    "problems-drawn-twice": "split",
    "answers-digit-by-digit": "split",
}
ALSO: dict[str, tuple[str, ...]] = {}


def make(seed=0, count=600):
    rng = random.Random(seed)
    problems = [(a, b) for a in range(60) for b in range(60)]
    problems = rng.sample(problems, count)  # healthy: problems-drawn-twice
    # problems = [rng.choice(problems) for _ in range(3 * len(problems))]  # sick: problems-drawn-twice
    rows = [f"{a}+{b}={a + b}" for a, b in problems]
    # rows = [f"{a}+{b}={str(a + b)[:i]}" for a, b in problems for i in range(3)]  # sick: answers-digit-by-digit
    # rows = sorted(set(rows))  # sick: answers-digit-by-digit
    rng.shuffle(rows)
    n = int(0.9 * len(rows))
    train_rows, val_rows = rows[:n], rows[n:]

    chars = "0123456789+="
    return {
        "train_data": train_rows,
        "validation_data": val_rows,
        "encode": lambda s: [chars.index(c) for c in s],
        "decode": lambda ids: "".join(chars[i] for i in ids),
    }
