"""Other people's checks of models on our zoo and on the strangers, each called as its own documentation has it.

Run by `python -m benchmarks doctor_rivals` in an environment of its own, that has the packages: `python -m
benchmarks.rivals FILE` writes a line of JSON for every patient. Each package gets what it needs: a model from token ids
to logits (of our own reading of the patient, where it returns something else), a batch that a healthy model learns in
a second, a loss, an optimizer without weight decay; or the person's own, where the patient brings them.

B rows, T positions, V vocabulary, C features.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import json
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handmade import doctor

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import strangers
import zoo

ROWS, SECONDS = 8, 120
STEPS = 1000
"""Most steps to learn one batch in. A healthy patient needs far fewer, and then they stop."""
Verdicts = dict[str, str]
"""What a package says: check -> "fail", "warn" or "pass"; a check that it did not make is not there."""


class Model(nn.Module):
    """A patient as others want it: token ids in, logits of every position out, whatever its own form is.

    Shapes: (B, T) int64 -> (B, T, V), or, `classes_second`, (B, V, T) as torch's cross-entropy takes them. One-hot
    rows (B, T, V) float do as well: then they are multiplied with the embedding, so that gradients come to them.
    """

    def __init__(self, made: Any, classes_second: bool = False) -> None:
        super().__init__()
        self.given = doctor.Given.of(made)
        self.patient = doctor.Patient(self.given)
        if self.patient.failure is not None:
            raise LookupError(self.patient.failure)
        if not self.patient.every_position:
            raise LookupError("it has logits for the last position alone")
        if isinstance(self.given.model, nn.Module):
            self.model = self.given.model
        self.classes_second = classes_second

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.is_floating_point():
            rows = tokens.transpose(0, 1) if self.patient.form.time_first else tokens
            with multiplied(self.model, rows, self.patient.vocab_size):
                logits = self.patient.run(tokens.argmax(-1))
        else:
            logits = self.patient.run(tokens)
        logits = logits[..., : self.patient.vocab_size]
        return logits.transpose(1, 2) if self.classes_second else logits

    def batch(self, rows: int = ROWS) -> tuple[Tensor, Tensor]:
        """The patient's own, or rows in which every token has one that always follows it. Shapes: both (B, T)."""
        if self.given.batches is not None:
            return self.given.batch()
        generator = torch.Generator().manual_seed(0)
        size = self.patient.vocab_size
        follower = torch.randperm(size, generator=generator)
        columns = [torch.randint(size, (rows,), generator=generator)]
        for _ in range(min(self.patient.length, 16)):
            columns.append(follower[columns[-1]])
        text = torch.stack(columns, dim=1)
        return text[:, :-1], text[:, 1:]

    def optimizer(self) -> torch.optim.Optimizer:
        """The person's, or Adam over what torch knows of. Raises LookupError where that is nothing."""
        if isinstance(self.given.optimizer, torch.optim.Optimizer):
            return self.given.optimizer
        if not list(self.parameters()):
            raise LookupError("it has no parameters")
        return torch.optim.Adam(self.parameters(), lr=3e-3)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The person's, or cross-entropy. Shapes: (B, T, V), (B, T) -> ()."""
        if self.given.loss is not None:
            return self.given.loss(logits, targets)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@contextlib.contextmanager
def multiplied(model: nn.Module, rows: Tensor, vocabulary: int) -> Iterator[None]:
    """Inside, the embedding multiplies one-hot rows in place of looking up their ids. Raises RuntimeError where no
    embedding was asked for these. Shapes: rows as the model takes its ids, and V behind."""
    found = [one for one in model.modules() if "embedding" in type(one).__name__.lower()]
    found = [one for one in found if getattr(getattr(one, "weight", None), "shape", (0,))[0] == vocabulary]
    used = False

    def looked_up(plain: Callable[..., Tensor], weight: Tensor, ids: Tensor) -> Tensor:
        nonlocal used
        if ids.shape != rows.shape[:2]:  # those of another sentence
            return plain(ids)
        used = True
        return rows.to(weight.dtype) @ weight

    before = [vars(one).get("forward") for one in found]
    for one in found:
        one.forward = functools.partial(looked_up, one.forward, one.weight)
    try:
        yield
    finally:
        for one, was in zip(found, before, strict=True):
            del one.forward
            if was is not None:
                one.forward = was
    if not used:
        raise RuntimeError("no embedding took the one-hot rows")


# ---------------------------------------------------------------------------------------------------------------
# The packages


def handmade(make: Callable[[], Any]) -> Verdicts:
    """Ours."""
    said = {"sick": "fail", "suspicious": "warn", "healthy": "pass"}
    report = doctor.examine(doctor.Given.of(make()))
    return {finding.check: said[finding.verdict] for finding in report.findings if finding.verdict in said}


def torchtest2(make: Callable[[], Any]) -> Verdicts:
    """One call does all of it. Classes come second, which its check of the first loss wants."""
    import torchtest2 as package

    model = Model(make(), classes_second=True)
    inputs, targets = model.batch()
    own = model.given.loss
    loss = F.cross_entropy if own is None else lambda logits, wanted: own(logits.transpose(1, 2), wanted)
    report = package.check_model(model, inputs, targets, loss_fn=loss, optimizer=model.optimizer(), overfit_steps=STEPS)
    said = {"FAIL": "fail", "WARN": "warn", "PASS": "pass"}
    return {result.name: said[str(result.status)] for result in report.results if str(result.status) in said}


def neural_net_checklist(make: Callable[[], Any]) -> Verdicts:
    """Every part of its list for causal language models by itself, so that the first to fail does not hide the rest."""
    from neural_net_checklist import torch_diagnostics as package

    first = Model(make())
    vocabulary, loss = first.patient.vocab_size, first.loss
    first.optimizer()  # without parameters nothing can be asked

    def build() -> Model:
        return Model(make())

    def tokens(rows: int | None = None) -> tuple[Tensor, Tensor]:
        inputs, targets = first.batch(rows or ROWS)
        return inputs[:rows], targets[:rows]

    def one_hot(rows: int | None = None) -> tuple[Tensor, Tensor]:
        inputs, targets = tokens(rows)
        return F.one_hot(inputs, vocabulary).float(), targets

    def train(model: Model, batch: Any, **options: Any) -> Any:
        return package.train_batch(model, batch, optimizer=model.optimizer(), **options)

    classes = {"num_classes": vocabulary}
    learning = {"train_batch_fn": train, "loss_fn": loss}
    parts: dict[str, Callable[[], Any]] = {
        "loss_at_init": lambda: package.assert_balanced_classification_cross_entropy_loss_at_init(
            build(), tokens, loss_fn=loss, **classes
        ),
        "init_calibrated": lambda: package.assert_balanced_classification_cross_entropy_init_calibrated(
            build(), tokens, **classes
        ),
        "forward_batch_independence": lambda: package.assert_forward_batch_independence(build, one_hot),
        "forward_causal_property": lambda: package.assert_forward_causal_property(build, one_hot),
        "non_zero_gradients": lambda: package.assert_non_zero_gradients(build(), one_hot),
        "backward_batch_independence": lambda: package.assert_backward_batch_independence(build, one_hot),
        "backward_causal_property": lambda: package.assert_backward_causal_property(build, one_hot),
        "input_independent_baseline_worse": lambda: package.assert_input_independent_baseline_worse(
            build, tokens, **learning
        ),
        "overfit_to_batch": lambda: package.assert_overfit_to_batch(
            build(), tokens, threshold=1e-1, max_steps=STEPS, **learning
        ),
    }
    package.tqdm = functools.partial(package.tqdm, disable=True)
    found: Verdicts = {}
    for name, part in parts.items():
        try:
            part()
            found[name] = "pass"
        except AssertionError:
            found[name] = "fail"
        except (RuntimeError, TypeError, AttributeError, IndexError) as problem:
            found[name] = f"error: {type(problem).__name__}"
    return found


def torch_audit(make: Callable[[], Any]) -> Verdicts:
    """Three steps under its eyes: of the person's own loop where there is one, else of a plain one."""
    from torch_audit import Auditor

    made = make()
    given = doctor.Given.of(made)
    if given.train_step is not None and isinstance(given.optimizer, torch.optim.Optimizer):
        auditor = Auditor(given.model, optimizer=given.optimizer, every_n_steps=1)
        auditor.autopatch()
        for _ in range(3):
            step_of(given)
        auditor.unpatch()
    else:
        model = Model(made)
        optimizer, (inputs, targets) = model.optimizer(), model.batch()
        model.train()
        with Auditor(model, optimizer=optimizer, every_n_steps=1) as auditor:
            auditor.audit_static()
            auditor.audit_init()
            for _ in range(3):
                optimizer.zero_grad(set_to_none=True)
                auditor.backward(model.loss(auditor.forward(inputs), targets))
                auditor.optimizer_step()
    said = {"WARN": "warn", "ERROR": "fail", "FATAL": "fail"}
    findings = [finding for finding in auditor.finish().findings if finding.severity.value in said]
    # A rule may find several things: each by its place, so that one more of them is seen.
    return {f"{f.rule_id} {f.module_path or ''} {f.entity or ''}".strip(): said[f.severity.value] for f in findings}


def step_of(given: doctor.Given) -> None:
    """One step of a person's own training."""
    names = list(inspect.signature(given.train_step).parameters)
    if not names:
        given.train_step()
    elif names[0] == "batches":
        given.train_step(iter(lambda: given.batch(), None))
    else:
        given.train_step(given.batch())


PACKAGES: dict[str, Callable[[Callable[[], Any]], Verdicts]] = {
    "handmade": handmade,
    "torchtest2": torchtest2,
    "neural-net-checklist": neural_net_checklist,
    "torch-audit": torch_audit,
}
TAKEN: dict[str, set[str]] = {
    "torchtest2": {"callable", "model", "optimizer", "loss", "batches", "build"},
    "neural-net-checklist": {"callable", "model", "loss", "batches", "build"},
    "torch-audit": {"callable", "model", "optimizer", "loss", "batches", "build", "train_step"},
}
"""What each can be given: of what else there is in a training it cannot be asked."""


# ---------------------------------------------------------------------------------------------------------------
# All patients


def asked(package: str, make: Callable[[], Any]) -> dict[str, Any]:
    """What a package says of a patient, or why it says nothing; and the seconds of its computing."""
    began = time.process_time()

    def stop(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGPROF, stop)  # of its own computing: others on this machine do not count
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            found: dict[str, Any] = {"checks": PACKAGES[package](make)}
    except TimeoutError:
        found = {"error": f"longer than {SECONDS} s"}
    except LookupError as reason:
        found = {"cannot": str(reason)}
    except Exception as problem:
        said = str(problem).strip().splitlines()
        found = {"error": f"{type(problem).__name__}: {said[0][:150] if said else ''}"}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {**found, "seconds": round(time.process_time() - began, 2)}


def patients() -> Iterator[tuple[dict[str, Any], Callable[[], Any]]]:
    """(what it is, how it is made) of every patient: the zoo's, healthy and sick, and the strangers."""
    for path in zoo.files():
        known = zoo.load(path).MISTAKES
        for mistake in (None, *known):
            check = known[mistake] if mistake else None
            what = {"kind": "sick" if mistake else "healthy", "file": path.stem, "mistake": mistake, "check": check}
            yield what, functools.partial(zoo.make, path, mistake)
    for stranger in strangers.STRANGERS:
        if stranger.present:
            yield {"kind": "stranger", "file": stranger.name}, functools.partial(stranger.make, 0)


def model_given(made: Any) -> bool:
    """Whether there is a model at all among what a patient brings."""
    return not isinstance(made, Mapping) or made.get("model") is not None


def main(path: Path) -> None:
    torch.set_num_threads(1)
    with path.open("a", encoding="utf-8") as lines:
        done = {line["name"] for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
        for what, make in patients():
            name = f"{what['file']} {what.get('mistake') or ''}".strip()
            if name in done:
                continue
            found = {}
            for package in PACKAGES:
                if package != "handmade" and not model_given(make()):
                    found[package] = {"cannot": "there is no model"}
                else:
                    found[package] = asked(package, make)
            lines.write(json.dumps({"name": name, **what, "found": found}) + "\n")
            lines.flush()
            print(f"{name:50}", *(f"{one.get('seconds', 0):6}" for one in found.values()), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
