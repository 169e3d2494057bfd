"""From tokens to text: stop strings, pieces that never split a character, streaming.

for piece in stream_text(model, tokenizer, "Once", tokens=300):
    print(piece, end="", flush=True)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from handmade.errors import ConfigError
from handmade.generation import SamplingConfig, stream
from handmade.tokenizers import Tokenizer


class StopStrings:
    """Cuts a text that comes in pieces where the first of some strings is complete.

    What may be the beginning of a stop string waits until that is decided. Which cut is made depends on the text
    alone, not on its pieces: that of the string which ends first, and of two that end together the longer.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self.strings = tuple(strings)
        if "" in self.strings:
            raise ConfigError("a stop string is empty: it would stop before the first token.")
        self.waiting = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """The text that is certain now, without the stop string; and whether one was found."""
        text = self.waiting + piece
        found = [(text.index(string) + len(string), text.index(string)) for string in self.strings if string in text]
        if found:
            self.waiting = ""
            return text[: min(found)[1]], True
        held = max((_overlap(text, string) for string in self.strings), default=0)
        self.waiting = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """What was still waiting when the text ended."""
        text, self.waiting = self.waiting, ""
        return text


def _overlap(text: str, string: str) -> int:
    """The length of the longest end of `text` that is a beginning of `string`, not the whole of it."""
    longest = min(len(text), len(string) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(string[:length])), 0)


def stream_texts(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    tokens: int,
    sampling: SamplingConfig | None = None,
    *,
    seed: int | Sequence[int] | None = 0,
    cache: bool = True,
    start: int | None = None,
    stop: Iterable[str] = (),
    stop_tokens: Iterable[int] = (),
) -> Iterator[tuple[int, str]]:
    """The continuation of every prompt as it comes: (row, piece of text). See `stream` for the other arguments.

    A row ends before the first of the `stop` strings in its new text; a piece that may be the beginning of one
    waits. A piece never splits a character; one that the last token leaves incomplete is left out. An empty prompt
    continues the token `start`, by default that of a line break, or token 0 where the tokenizer has none.
    Raises TokenizerError for a prompt with an unknown character, ConfigError for an empty stop string, and what
    `stream` raises.
    """
    if start is None:
        start = int(tokenizer.encode("\n")[0]) if tokenizer.knows("\n") else 0
    stop = [stop] if isinstance(stop, str) else list(stop)
    decoders = [tokenizer.decoder() for _ in prompts]
    cutters = [StopStrings(stop) for _ in prompts]
    ended = [False for _ in prompts]
    pieces: list[tuple[int, str]] = []

    def take(row: int, text: str) -> bool:
        piece, ended[row] = cutters[row].feed(text)
        if piece:
            pieces.append((row, piece))
        return ended[row]

    steps = stream(
        model,
        [tokenizer.encode(prompt).tolist() for prompt in prompts],
        tokens,
        sampling,
        seed=seed,
        cache=cache,
        start=start,
        stop_tokens=stop_tokens,
        finished=lambda row, token: take(row, decoders[row].feed(token)),
    )

    def run() -> Iterator[tuple[int, str]]:
        for _ in steps:
            yield from pieces
            pieces.clear()
        for row, decoder in enumerate(decoders):
            if not ended[row] and not take(row, decoder.flush().rstrip("\N{REPLACEMENT CHARACTER}")):
                pieces.append((row, cutters[row].flush()))
        yield from [(row, piece) for row, piece in pieces if piece]

    return run()


def stream_text(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompt: str,
    tokens: int,
    sampling: SamplingConfig | None = None,
    **options: Any,
) -> Iterator[str]:
    """The continuation of one prompt, piece by piece. Options and errors are those of `stream_texts`."""
    pieces = stream_texts(model, tokenizer, [prompt], tokens, sampling, **options)
    return (piece for _, piece in pieces)


def generate_text(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    tokens: int,
    sampling: SamplingConfig | None = None,
    **options: Any,
) -> list[str]:
    """The continuation of every prompt, without the prompt: the pieces of `stream_texts`, joined. Options and
    errors are those of `stream_texts`."""
    texts = [""] * len(prompts)
    for row, piece in stream_texts(model, tokenizer, prompts, tokens, sampling, **options):
        texts[row] += piece
    return texts
