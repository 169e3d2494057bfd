"""A list of sentences, shuffled and split, and a token for every word, with one for the words that are not known. No
model."""

import random
import re

MISTAKES = {
    "duplicated-sentences": "split",
    "duplicates-but-for-case": "split",
    "split-by-prefix": "split",
    "words-of-everything": "vocabulary",
    "spaces-eaten": "round-trip",
}
ALSO: dict[str, tuple[str, ...]] = {}

NAMES = "Ann Ben Carla David Emma Frank Greta Hugo Ida Jonas Karin Lukas Maria Nora Otto Paula Rita Simon Tina"
VERBS = "sees hears finds loses sells buys paints hides carries breaks repairs forgets"
THINGS = "apple bicycle candle drum engine flute glove hammer island jacket kettle ladder mirror needle"
PLACES = "garden kitchen station harbour forest village theatre library"


def corpus(seed, count):
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        name, verb, thing, place = (rng.choice(w.split()) for w in (NAMES, VERBS, THINGS, PLACES))
        found.append(f"{name} {verb} a {thing} in the {place}.")
    found.append("Zoe juggles seven lemons.")
    return found


def make(seed=0, count=300):
    rng = random.Random(seed)
    sentences = sorted(set(corpus(seed, count)))
    # sentences = corpus(seed, count) + corpus(seed, count)  # sick: duplicated-sentences
    # sentences = sentences + [s.upper().replace(".", "!") for s in sentences]  # sick: duplicates-but-for-case
    # sentences = [" ".join(s.split()[:i]) for s in sentences for i in range(3, 9)]  # sick: split-by-prefix
    # sentences = sorted(set(sentences))  # sick: split-by-prefix
    sentences.remove("Zoe juggles seven lemons.")
    rng.shuffle(sentences)
    n = int(len(sentences) * 0.85)
    train, val = sentences[:n], [*sentences[n:], "Zoe juggles seven lemons."]

    def words(text):
        return re.findall(r" |[^ ]+", text)  # healthy: spaces-eaten
        # return text.split()  # sick: spaces-eaten

    vocab = ["<unk>", *sorted({w for s in train for w in words(s)})]  # healthy: words-of-everything
    # vocab = ["<unk>", *sorted({w for s in train + val for w in words(s)})]  # sick: words-of-everything
    ids = {w: i for i, w in enumerate(vocab)}

    def encode(text):
        return [ids.get(w, 0) for w in words(text)]

    def decode(tokens):
        return "".join(vocab[t] for t in tokens)  # healthy: spaces-eaten
        # return " ".join(vocab[t] for t in tokens).rstrip(".")  # sick: spaces-eaten

    return {"train_data": train, "validation_data": val, "encode": encode, "decode": decode}
