"""Where a task comes from: a text that is read into tokens, pairs of sentences, or options from which problems are
made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from handmade import checkpoint, corpora, data, evaluation, run
from handmade.data import TextData
from handmade.errors import ConfigError, DataError, RunError, TokenizerError
from handmade.request import Request, is_named
from handmade.tasks import TASKS, GeneratedTask, LanguageTask, RunTask, Say, TranslationConfig, TranslationTask
from handmade.tasks.translation import data as pairs
from handmade.tokenizers import Tokenizer, digest

VALIDATION_AT_MOST = 250_000  # bytes: more of a large text would take longer to evaluate than to train on

Record = dict[str, Any]
"""What config.json says of the data."""


def make(request: Request, kind: type[RunTask], options: Any, old: run.Run | None, say: Say) -> tuple[RunTask, Record]:
    """A task that makes its own problems, said; and what config.json says of its data. Raises ConfigError where the
    run to begin with has other tokens."""
    task: GeneratedTask = kind(options)  # type: ignore[assignment, call-arg]
    if old is not None and old.tokenizer.to_dict() != task.tokenizer.to_dict():
        raise ConfigError(
            f"--from {request.start}: its tokens are not those of {task.name}, so its weights mean nothing here."
        )
    for line in task.describe():
        say(*line)
    return task, {"fingerprint": task.fingerprint(), "tokenizer": digest(task.tokenizer)}


def read(
    request: Request,
    found: list[corpora.Corpus],
    options: Any,
    tokenizer: Tokenizer | None,
    say: Say,
    progress: data.Progress | None,
) -> tuple[LanguageTask, Record]:
    """A text to be learnt, as tokens, said; and what config.json says of it."""
    files = [path for corpus in found for path in corpus.files]
    size = sum(path.stat().st_size for path in files)
    fraction = 0.1 if request.validation else min(0.1, VALIDATION_AT_MOST / max(1, size))
    encoding = request.encoding or "utf-8"
    try:
        text = data.prepare(
            files,
            corpora.cache_folder() / "tokens",
            tokenizer or request.tokenizer or "auto",
            validation=list(request.validation) or None,
            encoding=encoding,
            fraction=fraction,
            progress=progress,
        )
    except TokenizerError as problem:
        if tokenizer is None:
            raise
        what = str(problem).partition(" Take it out,")[0]
        raise TokenizerError(f"{what} Take it out, or train without --from {request.start}.") from None
    for corpus in found:
        if corpus.note:
            say(corpus.name, corpus.note)
    for name in request.data:
        if name in TASKS:
            say(name, f"the file or folder of that name here, not the task {name}: call it ./{name} to say so")
    label = Path(request.data[0]).name or found[0].name
    say(label + (f" + {len(found) - 1}" if len(found) > 1 else ""), text.describe())
    if fraction < 0.1:
        say("", f"validation is the last {100 * fraction:.2g} %, not 10 %: enough to tell models apart, and quicker")
    for note in text.notes:
        say("left out", note)
    say("tokens", text.reason)
    record = {
        "corpus": request.data[0] if len(request.data) == 1 and is_named(request.data[0]) else None,
        "files": [str(path.resolve()) for path in files],
        "validation": [str(path.resolve()) for path in request.validation],
        "encoding": encoding,
        "fraction": fraction,
        "fingerprint": text.fingerprint,
        "tokenizer": digest(text.tokenizer),
    }
    return LanguageTask(text, label_smoothing=options.label_smoothing), record


def read_pairs(
    request: Request, options: TranslationConfig, old: run.Run | None, say: Say
) -> tuple[TranslationTask, Record]:
    """Pairs to be translated, as tokens, said; and what config.json says of them. Raises ConfigError where the run to
    begin with does not translate, or from another language."""
    if old is not None and old.config["task"]["name"] != TranslationTask.name:
        raise ConfigError(f"--from {request.start}: does not translate, so its weights mean nothing here.")
    encoding = request.encoding or "utf-8"
    pairs.require_packages(options.tokens == "bpe")
    if old is not None:
        options = _as_begun(request, options, old)
    found = pairs.find(request.data, options, lambda line: say("corpus", line), encoding)
    split = pairs.prepare(found, options)
    tokenizer: Any = pairs.train_tokenizer(split, options) if old is None else old.tokenizer
    options = options.replace(source=found.languages[0], target=found.languages[1])
    task = TranslationTask(options, tokenizer, split)
    task.begun = old is not None
    for line in task.describe():
        say(*line)
    named = pairs.is_corpus(request.data[0])
    record = {
        "corpus": request.data[0] if named else None,
        "files": [] if named else [str(Path(name).resolve()) for name in request.data],
        "encoding": encoding,
        "fingerprint": split.fingerprint(),
        "tokenizer": digest(tokenizer),
    }
    return task, record


def _as_begun(request: Request, options: TranslationConfig, old: run.Run) -> TranslationConfig:
    """The options with languages and tokens of the run to begin with. Raises ConfigError for other languages."""
    begun = old.config["task"]
    known: dict[str, Any] = {
        name: begun.get(name) for name in ("source", "target") if begun.get(name) not in (None, name)
    }
    for name, language in known.items():
        if getattr(options, name) not in (None, language):
            raise ConfigError(
                f"--{name} {getattr(options, name)}: --from {request.start} translates"
                f" {known.get('source', 'another language')} to {known.get('target', 'another')}."
                " Leave it out, or train without --from."
            )
    record, files = old.config["data"], [str(Path(name).resolve()) for name in request.data]
    if request.data[0] == record["corpus"] or files == record["files"]:
        # Divided in another way, pairs that it was trained on would be asked of it.
        usual = TranslationConfig()
        for name in ("seed", "validation", "test"):
            if getattr(options, name) not in (getattr(usual, name), begun.get(name)):
                raise ConfigError(
                    f"task.{name} = {getattr(options, name)}: --from {request.start} kept other pairs back, with"
                    f" {begun.get(name)}: it would be tested on what it was trained on. Leave it out."
                )
            known[name] = begun.get(name)
    tokens: Any = old.tokenizer
    sizes = {name: begun[name] for name in ("source_vocabulary", "target_vocabulary") if name in begun}
    return options.replace(**known, **sizes, tokens=tokens.source.kind)


def again(
    folder: Path,
    config: Record,
    tokenizer: Tokenizer,
    given: tuple[str, ...],
    progress: data.Progress | None,
) -> RunTask:
    """The task of a run that goes on. Raises RunError where it is not the same any more, or cannot be."""
    values = config["task"]
    if values["name"] == LanguageTask.name:
        text = _text_again(folder, config["data"], tokenizer, given, progress)
        return LanguageTask(text, label_smoothing=values.get("label_smoothing", 0.0))
    if given and values["name"] != TranslationTask.name:
        raise ConfigError(f"--resume {folder}: {values['name']} reads no text. Leave out {', '.join(given)}.")
    try:
        if values["name"] == TranslationTask.name:
            moved = f"If they have moved: handmade train NEW_PLACE --resume {folder}"
            return evaluation.pairs_again(config, tokenizer, given, advice=moved)
        return evaluation.task_again(config, tokenizer, folder=folder)
    except ConfigError as problem:
        raise RunError(f"{folder / checkpoint.CONFIG}: damaged. {problem}") from None
    except DataError as problem:
        raise RunError(f"{folder}: cannot go on. {problem}") from None


def _text_again(
    folder: Path,
    record: Record,
    tokenizer: Tokenizer,
    given: tuple[str, ...],
    progress: data.Progress | None,
) -> TextData:
    """The text of a run, from where it was or from where it is `given` now. Raises RunError where it is gone, or is
    not the same any more."""
    try:
        if given or record["corpus"]:
            files = [path for name in given or [record["corpus"]] for path in corpora.find(name).files]
        else:
            files = [Path(path) for path in record["files"]]
        validation = [Path(path) for path in record["validation"]]
        gone = next((path for path in [*files, *validation] if not path.exists()), None)
        if gone is not None:
            where = "" if gone in validation else f"\nIf it has moved: handmade train NEW_PLACE --resume {folder}"
            raise DataError(f"The text {gone} is not there any more.{where}")
        text = data.prepare(
            files,
            corpora.cache_folder() / "tokens",
            tokenizer,
            validation=validation or None,
            encoding=record["encoding"],
            fraction=record["fraction"],
            progress=progress,
        )
    except TokenizerError:
        text = None  # the tokenizer knew every character of the text that it was trained on
    except DataError as problem:
        raise RunError(f"{folder}: cannot go on. {problem}") from None
    except (KeyError, TypeError) as problem:
        raise RunError(f"{folder / checkpoint.CONFIG}: damaged ({problem!r} in what it says of the data).") from None
    if text is None or text.fingerprint != record["fingerprint"]:
        what = f"{files[0]} is not the text that it was trained on" if given else f"{files[0]} was changed since"
        raise RunError(
            f"{folder}: cannot go on. {what}.\nGo on with the old text, or train anew on this one:"
            f" handmade train {files[0]} --from {folder} --out FOLDER"
        )
    return text
