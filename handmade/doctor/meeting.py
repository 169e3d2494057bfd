"""Getting to know a patient: in which form it can be called, how many tokens there are, how long a row may be.

B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from handmade.doctor.anatomy import loose_tensors
from handmade.doctor.forms import Form, arguments_of, axes_of, describe, forms_of, is_target, kind_of, logits_in
from handmade.errors import ConfigError

if TYPE_CHECKING:
    from handmade.doctor.patient import Patient

CONTEXT_NAMES = (
    "context", "block_size", "context_length", "context_size", "max_seq_len", "max_seq_length", "max_len", "seq_len",
    "seq_length", "n_positions", "n_ctx", "max_position_embeddings",
)  # fmt: skip
VOCABULARY_NAMES = ("vocab_size", "n_vocab", "vocabulary_size", "padded_vocab_size", "vocab_len", "ntoken")
CONFIG_NAMES = ("config", "cfg", "args", "hparams", "params")
USUAL_CONTEXT = 64
MOST_CONTEXT = 64
"""No examination needs longer rows than this, except at the context's end."""
LONGEST_TRIED = 2048
"""No longer row is tried to find out where a context ends that nobody stated."""
DEAR = 2e10
"""Products of a call (2 for each weight and token) from which on a context that was stated is believed."""


def meet(patient: Patient) -> tuple[int, int]:
    """Find the form in which a patient can be called, or why there is none (`patient.failure`). Returns vocabulary and
    context. Raises ConfigError where it cannot be seen how many tokens there are."""
    stated = patient.given.vocab_size or look_up(patient, VOCABULARY_NAMES)
    vocabularies = [stated] if stated else embeddings(patient)
    if not vocabularies:
        raise ConfigError("vocab_size: it cannot be seen from the model how many tokens there are. Give it.")
    patient.vocab_size = min(vocabularies)
    patient.stated_context = patient.given.context or look_up(patient, CONTEXT_NAMES)
    patient.context = patient.stated_context or USUAL_CONTEXT
    if patient.vocab_size < 2:
        patient.failure = f"vocab_size = {patient.vocab_size}: with one token there is nothing to tell apart"
        return patient.vocab_size, patient.context
    found = find_form(patient, vocabularies)
    if found is None:
        return patient.vocab_size, patient.context
    patient.form = found
    if not found.single and found.rows is None and not found.time_first and found.axes in ("BTV", "TBV", "NV"):
        patient.form = which_axis_is_time(patient, found)
    if not patient.form.full:
        find_context(patient)
    patient.remembers = remembers(patient)
    patient.notes += patient.form.describe()
    if patient.remembers:
        patient.notes.append("it carries something from one call to the next, which is put back before each")
    if patient.stated_context is None and not patient.form.full and patient.end is None:
        patient.notes.append(f"context is taken as {patient.context}: the model does not say")
    return patient.vocab_size, patient.context


# Sizes


def look_up(patient: Patient, names: tuple[str, ...]) -> int | None:
    """A size that the model or its configuration has under one of these names."""
    for model in (patient.given.model, *patient.roots):
        for owner in (model, *(getattr(model, name, None) for name in CONFIG_NAMES)):
            for name in names:
                try:
                    value = owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)
                except Exception:
                    continue  # a property of theirs that fails
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return value
    return None


def tables(patient: Patient) -> Iterator[Tensor]:
    """The weights of everything that calls itself an embedding."""
    for module in patient.modules.values():
        weight = getattr(module, "weight", None)
        if type(module).__name__.lower().endswith("embedding") and torch.is_tensor(weight) and weight.dim() == 2:
            yield weight


def embeddings(patient: Patient) -> list[int]:
    """How many tokens there may be: the rows of each embedding, in order."""
    return list(dict.fromkeys(int(weight.shape[0]) for weight in tables(patient)))


def lengths(patient: Patient) -> list[int]:
    """How long a context may be, where nobody says: the sides of square tables (masks), the rows of embeddings and of
    tables of positions. The longest first."""
    found = {int(weight.shape[0]) for weight in tables(patient)}
    others = list(loose_tensors(patient.given.model).values())
    for module in patient.modules.values():
        others += [one for one in module._buffers.values() if one is not None]
        others += [one for one in module._parameters.values() if one is not None and one.dim() == 3]
    for one in others:
        if one.dim() >= 2 and one.shape[-1] == one.shape[-2]:
            found.add(int(one.shape[-1]))
        elif one.dim() in (2, 3):
            found.update(int(size) for size in one.shape[:-1])
    return sorted((size for size in found if 2 <= size <= LONGEST_TRIED), reverse=True)


def shorter(context: int) -> list[int]:
    """Contexts to try when one fails."""
    return [length for length in (32, 16, 8, 4, 2, 1) if length < context]


# The form


def find_form(patient: Patient, vocabularies: list[int]) -> Form | None:
    """The first form in which it answers; sets `patient.vocab_size`, and for one that insists on full rows the context.
    None, with `patient.failure`, where there is none."""
    failures: list[str] = []
    forms = forms_of(patient.given.model, patient.given.attention_mask)
    whole = [patient.context] if patient.stated_context is not None else [*lengths(patient), patient.context]
    usual = [max(1, min(patient.context - 1, 7)), *shorter(patient.context)]
    for full, several in ((False, usual), (True, whole)):
        for length in several:
            rows = next(n for n in (3, 5, 2, 4, 6) if n != length and not {n, n * length} & set(vocabularies))
            for one in forms:
                found = attempt(patient, replace(one, full=full and length > 1), rows, length, vocabularies, failures)
                if found is not None:
                    patient.context = length if full else patient.context
                    return found
    shape = given_shape(patient)
    if shape is not None:  # exactly what it is trained on
        turned = shape[0] == patient.context != shape[1]
        rows, length = shape[::-1] if turned else shape
        for one in forms:
            if one.rows == 1:
                form = replace(one, rows=rows, time_first=turned, full=True)
                found = attempt(patient, form, rows, length, vocabularies, failures)
                if found is not None:
                    patient.context = length
                    return found
    patient.form = Form()
    patient.failure = "it could not be called with token ids: " + said(failures)
    return None


def said(failures: list[str]) -> str:
    """The failure that tells most: that an argument is missing, or the first one."""
    missing = [one for one in failures if "missing" in one and "argument" in one]
    wrap = ". Give a function that passes it: lambda tokens: model(tokens, ...)"
    return missing[0] + wrap if missing else failures[0] if failures else "nothing was tried"


def attempt(
    patient: Patient, form: Form, rows: int, length: int, vocabularies: list[int], failures: list[str]
) -> Form | None:
    """Call it once in a form. What it returned completes the form; None where it failed or answered nothing fitting."""
    rows = form.rows or rows
    patient.form = form
    tokens = patient.tokens(rows, length)
    shape = (length,) if form.single else (length, rows) if form.time_first else (rows, length)
    try:
        with torch.no_grad(), patient.mode(training=False):
            returned = patient.call(tokens)
        one = returned[0] if form.single or form.rows else returned
        sizes = (1, length) if form.single else (rows, length)
        logits = logits_in(one, vocabularies[0], *sizes)
    except Exception as problem:
        text = str(problem).strip().splitlines()
        hint = " (is vocab_size right?)" if isinstance(problem, IndexError) else ""
        failures.append(f"tokens {shape}: {type(problem).__name__}: {text[0] if text else ''}{hint}")
        return None
    for vocabulary in vocabularies:
        fits = logits_in(one, vocabulary, *sizes)
        axes = axes_of(fits.shape, *sizes, vocabulary)
        if axes is not None and (vocabulary in fits.shape or vocabulary == vocabularies[-1]):
            break
    else:
        axes = None
    if axes is None:
        several = vocabularies[0] if len(vocabularies) == 1 else " or ".join(map(str, vocabularies))
        failures.append(f"tokens {shape} gave {describe(one)}, in which no logits of {several} tokens can be seen")
        return None
    logits = fits
    if form.time_first and axes == "BTV":  # tokens go in as (T, B): then that is how it has to be read
        return None
    if axes == "BV" and length > 1 and not form.targets:
        name = next((one.name for one in arguments_of(patient.given.model)[1:] if is_target(one.name)), None)
        if name is not None:
            wanted = replace(form, targets=True, targets_name=name)
            more = attempt(patient, wanted, rows, length, vocabularies, failures)
            if more is not None and more.axes != "BV":
                return more
            patient.form = form
    patient.vocab_size = vocabulary
    if axes in ("BTV", "TBV") and logits.shape[-1] != vocabulary:
        patient.notes.append(f"logits have {logits.shape[-1]} entries for {vocabulary} tokens")
    return replace(form, axes=axes, kind=kind_of(logits, vocabulary, axes))


def given_shape(patient: Patient) -> tuple[int, int] | None:
    """The shape of the inputs in a batch of the person's own, where that can be had without using it up."""
    batches = patient.given.batches
    if batches is None or (not callable(batches) and iter(batches) is batches):
        return None
    try:
        shape = tuple(patient.given.batch()[0].shape)
    except Exception:
        return None
    return (shape[0], shape[1]) if len(shape) == 2 else None


def which_axis_is_time(patient: Patient, form: Form) -> Form:
    """Whether (B, T) is taken as (T, B). Then what is said about a token depends on other rows and on no other place of
    its own row, and rows of what it takes as a batch may change places.

    What the person declares or feeds decides first: a recurrent layer that was meant to have the batch first, and has
    not, looks just like one that was meant so.
    """
    turned = replace(form, time_first=True, axes={"BTV": "TBV", "TBV": "BTV"}.get(form.axes, form.axes))
    declared = patient.expects("time_first")
    if declared is not None:
        patient.time_is_known = True
        return turned if declared else form
    looks = looks_turned(patient)
    if looks is False:
        return form
    shape = given_shape(patient)
    if shape is not None and patient.stated_context is not None and shape[0] != shape[1] and patient.context in shape:
        patient.time_is_known = True
        return turned if shape[0] == patient.context else form
    return turned if looks else form


def looks_turned(patient: Patient) -> bool | None:
    """Whether it mixes along the first axis of its tokens and not along the second. None where it mixes along neither,
    or where that cannot be seen."""
    tokens = patient.tokens(3, min(5, patient.length))
    if tokens.shape[1] < 2:
        return None
    row, place = 1, tokens.shape[1] // 2
    changed = tokens.clone()
    changed[row, place] = patient.other(tokens)[row, place]
    order = torch.arange(tokens.shape[1], device=tokens.device).flip(0)
    try:
        with patient.steady(), patient.stirred():
            before, after, swapped = (patient.logits(one) for one in (tokens, changed, tokens[:, order]))
    except Exception:
        return None
    scale = float(before.abs().max().clamp_min(1e-6))
    moved = (after - before).abs().amax(-1) > 1e-5 * scale
    moved[row, place] = False
    if moved[row].any():
        return False
    if not moved[:, place].any():
        return None
    return bool((swapped - before[:, order]).abs().max() <= 1e-4 * scale)


def remembers(patient: Patient) -> bool:
    """Whether two calls with the same tokens and the same random numbers differ: a state, a counter or a cache is kept,
    or random numbers are drawn from a generator of its own."""
    tokens = patient.tokens(2)
    try:
        with patient.steady():
            first, second = patient.logits(tokens), patient.logits(tokens)
    except Exception:
        return True  # the second call failed: a cache that is full
    finite = first.isfinite()
    if not torch.equal(finite, second.isfinite()):
        return True
    first, second = first[finite], second[finite]
    scale = max(1e-6, float(first.abs().max())) if len(first) else 1.0
    return not torch.allclose(first, second, rtol=0, atol=1e-4 * scale)


# The context


def in_words(problem: Exception) -> str:
    """An error in a few words."""
    text = str(problem).strip().splitlines() or [""]
    return f"{type(problem).__name__}: {text[0][:70]}"


def works(patient: Patient, length: int) -> str | None:
    """None where a row of this length is answered, or what went wrong."""
    try:
        logits = patient.logits(patient.tokens(1, length))
    except Exception as problem:
        return in_words(problem)
    if patient.every_position and logits.shape[1] != length:
        return f"logits came for {logits.shape[1]} positions of {length}"
    return None


def find_context(patient: Patient) -> None:
    """Shorten the context to what the model can do, or find it where nobody stated it."""
    if patient.device.type != "cpu" and patient.stated_context is None:
        # An index past a table's end takes a whole process on a GPU down: nothing is tried.
        known = [int(one.shape[0]) for one in tables(patient) if one.shape[0] != patient.vocab_size]
        patient.context = min([patient.context, *known])
        return
    if patient.stated_context is not None:
        if 2.0 * patient.size * patient.context > DEAR or works(patient, patient.context) is None:
            return
        asked, patient.context = patient.context, longest(patient, patient.context)
        patient.end = works(patient, patient.context + 1)
        patient.notes.append(f"context is taken as {patient.context}: rows of {asked} fail")
        return
    for length in lengths(patient):
        if 2.0 * patient.size * length > DEAR or works(patient, length) is not None:
            continue
        end = works(patient, length + 1)
        if end is not None:
            patient.context, patient.end = length, end
            patient.notes.append(f"context is taken as {length}: longer rows fail")
            return
    if works(patient, patient.context) is not None:
        patient.context = longest(patient, patient.context)
        patient.end = works(patient, patient.context + 1)
        patient.notes.append(f"context is taken as {patient.context}: longer rows fail")


def longest(patient: Patient, failing: int) -> int:
    """The longest row that works, below one that fails."""
    good, bad = 1, failing
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if works(patient, middle) is None else (good, middle)
    return good
