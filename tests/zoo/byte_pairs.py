"""Byte pairs learnt from a text, and text shown token by token. No model."""

import codecs
from collections import Counter

MISTAKES = {
    "pairs-of-everything": "vocabulary",
    "shown-token-by-token": "streaming",
    "shown-without-the-rest": "streaming",
    "strict": "streaming",
    "accents-dropped": "round-trip",
}
ALSO: dict[str, tuple[str, ...]] = {}

TEXT = """Die alte Mühle am Fluß stand still. Früher drehte sich das große Rad Tag für Tag, und die Müller trugen
weiße Säcke über die Brücke. Später kamen keine Bauern mehr. Die Tür blieb zu, das Dach wurde löchrig, und Vögel
bauten Nester unter den Balken. Nur im Frühling, wenn der Fluß über die Ufer trat, hörte man das Wasser wieder
durch die Räder rauschen. Ein Mädchen aus dem Dorf fand eines Tages den Schlüssel. Sie öffnete die Tür, fegte den
Staub hinaus und hängte eine Lampe über die Schwelle. “Wer will noch Mehl?” fragte sie. – Alle wollten. Und so
drehte sich das große Rad wieder, Tag für Tag, und die Säcke wurden über die Brücke getragen wie früher.
"""
LATER = """Zwiebelquark und Quittengelee: der Zuckerbäcker quengelte quer über den Platz, Zwiebelquark und Quittengelee!
Zwiebelquark hier, Quittengelee dort, quengelte er quer durch die Gassen.
"""


def merge(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def learn(text, merges):
    ids = list(text.encode("utf-8"))
    found = {}
    for k in range(merges):
        pairs = Counter((ids[i], ids[i + 1]) for i in range(len(ids) - 1))
        pair, count = pairs.most_common(1)[0]
        if count < 2:
            break
        found[pair] = 256 + k
        ids = merge(ids, pair, 256 + k)
    return found


def make(merges=120):
    train, val = TEXT, LATER
    table = learn(train, merges)  # healthy: pairs-of-everything
    # table = learn(train + val, merges)  # sick: pairs-of-everything
    vocab = {i: bytes([i]) for i in range(256)}
    for (a, b), i in table.items():
        vocab[i] = vocab[a] + vocab[b]

    def encode(text):
        # text = text.encode("ascii", errors="ignore").decode()  # sick: accents-dropped
        ids = list(text.encode("utf-8"))
        for pair, i in table.items():
            ids = merge(ids, pair, i)
        return ids

    def decode(ids):
        return b"".join(vocab[i] for i in ids).decode("utf-8", errors="replace")  # healthy: strict
        # return b"".join(vocab[i] for i in ids).decode("utf-8")  # sick: strict

    def stream(ids):
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for i in ids:
            yield utf8.decode(vocab[i])  # healthy: shown-token-by-token, shown-without-the-rest
            # yield decode([i])  # sick: shown-token-by-token
            # yield vocab[i].decode("utf-8", errors="ignore")  # sick: shown-without-the-rest

    given = {"encode": encode, "decode": decode, "stream": stream, "train_data": train, "validation_data": val}
    # del given["stream"]  # sick: strict
    given["vocab_size"] = len(vocab)
    return given
