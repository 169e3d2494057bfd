"""From what a person names to pairs that are apart, and to their tokens."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from handmade import subwords
from handmade.errors import ConfigError, DataError
from handmade.pair_corpora import PAIR_CORPORA, Say, find_pairs
from handmade.pair_tokenizer import PairTokenizer
from handmade.pairs import LANGUAGES, Pairs, PairSplit, read_parallel, read_table, split
from handmade.tasks.translation import scores
from handmade.tasks.translation.translator import TranslationConfig


def is_corpus(name: str) -> bool:
    """Whether this is a corpus of pairs by name, which may have to be fetched."""
    return name in PAIR_CORPORA and not os.path.exists(name)


def find(
    names: Sequence[str | os.PathLike[str]], config: TranslationConfig, say: Say | None = None, encoding: str = "utf-8"
) -> Pairs:
    """The pairs that one or two names mean: a table of pairs, two files of as many lines, or a corpus.

    Raises DataError where there is no such thing, and for what is wrong in a file; ConfigError for a language that
    the corpus does not have, and for options that do not go with what is named.
    """
    words = [os.fspath(name) for name in names]
    require(words)
    if not is_corpus(words[0]) and config.source is not None and config.source == config.target:
        raise ConfigError(f"--target {config.target}: the language of the sources too. Name two different ones.")
    if is_corpus(words[0]):
        if config.columns is not None:
            raise ConfigError(f"task.columns: {words[0]} has languages, not columns. Say task.source and task.target.")
        # Pairs of a file have no languages, only sides.
        source, target = (
            usual if said is None or said in LANGUAGES else said
            for said, usual in ((config.source, "ja"), (config.target, "en"))
        )
        return find_pairs(words[0], source, target, say=say)
    languages_said = (config.source or "source", config.target or "target")
    if len(words) == 2:
        if config.columns is not None:
            raise ConfigError("task.columns: two files have a sentence on each line, and no columns. Leave it out.")
        return read_parallel(words[0], words[1], languages_said, encoding)
    columns = None if config.columns is None else (config.columns[0], config.columns[1])
    return read_table(words[0], columns, languages_said, encoding)


def require(words: Sequence[str]) -> None:
    """Raise DataError, ConfigError for names that mean no pairs; what can be seen without reading them."""
    corpora = [word for word in words if is_corpus(word)]
    if corpora and len(words) > 1:
        others = ", ".join(word for word in words if word != corpora[0])
        raise ConfigError(f"{corpora[0]}: a corpus of pairs is learnt by itself. Leave out {others}.")
    if len(words) > 2:
        raise ConfigError(
            f"{len(words)} files: pairs are in one table, or in two files, one of sources and one of translations."
        )
    if len(words) == 2 and all(map(os.path.isfile, words)) and os.path.samefile(*words):
        raise ConfigError(f"{words[1]}: the same file twice. Name the file of the translations second.")
    for word in words:
        if os.path.isdir(word):
            raise DataError(f"{word}: a folder. Name a table of pairs, or two files of as many lines.")
        if not is_corpus(word) and not os.path.exists(word):
            near = difflib.get_close_matches(word, PAIR_CORPORA, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" Corpora by name: {', '.join(PAIR_CORPORA)}."
            raise DataError(f"{word or repr(word)}: no such file.{hint}")


def require_packages(subwords_too: bool) -> None:
    """Raise ResourceError for a package that is missing and will be needed, at the end of training too."""
    scores.require()
    if subwords_too:
        subwords.load_library()


def folder_name(name: str, source: str | None, target: str | None) -> str:
    """What a run on these pairs is called.

    >>> folder_name("tatoeba-ja-en", "de", None), folder_name("data/pairs.tsv.gz", None, None)
    ('tatoeba-de-en', 'pairs')
    """
    if not is_corpus(name):
        return Path(Path(name).name.removesuffix(".gz")).stem
    if (source or "ja", target or "en") == ("ja", "en"):
        return name
    return f"{name.removesuffix('-ja-en')}-{source or 'ja'}-{target or 'en'}"


def prepare(pairs: Pairs, config: TranslationConfig) -> PairSplit:
    """Apart, as the options say. Raises DataError where a part would be empty."""
    return split(pairs, config.validation, config.test, config.seed)


def train_tokenizer(parts: PairSplit, config: TranslationConfig) -> PairTokenizer:
    """From the training part alone."""
    train = parts.train
    return PairTokenizer.train(
        train.sources, train.targets, config.tokens, config.source_vocabulary, config.target_vocabulary
    )


__all__ = ["find", "folder_name", "is_corpus", "prepare", "require", "require_packages", "train_tokenizer"]
