"""What a loss is divided by."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from handmade.doctor.checks.base import check
from handmade.doctor.findings import Finding, NotExamined, healthy, sick, worst_first
from handmade.doctor.patient import Patient
from handmade.doctor.puppet import PATIENCE, Sizes, TooLong, loss_in
from handmade.doctor.reach import call_evaluate, rehearsed
from handmade.doctor.scoring import COUNTED, Route, across, left_out, marks_in, marks_of

# Weight of a target in the row with most over that in the row with fewest, less 1. Over 10 seeds and V = 5..50,257
# sum over count has 6e-8..9e-6, also with label smoothing and softmax first; a mean of rows 6.
UNEQUAL = 0.01
# Loss of uniform logits with a part of the targets left out, over that with all, less 1: sum over count below 1e-5;
# divided by all places 0.48.
THINNED = 0.01


@check(
    "loss-mean",
    "the loss is an average of averages",
    reference="torch.nn.CrossEntropyLoss, documentation: reduction; design of handmade: Batch",
    needs=(),
    demonstration="""\
import torch
import torch.nn.functional as F
logits = torch.randn(2, 8, 20)
targets = torch.randint(20, (2, 8))
targets[1, 1:] = -100                            # the second row has one target, the first has eight
each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
scored = targets != -100
print("right       ", (each.sum() / scored.sum()).item())
print("row by row  ", (each.sum(1) / scored.sum(1)).mean().item())   # that one target counts as much as eight
print("over all    ", each.mean().item())                            # what is not scored thins it out
""",
)
def loss_mean(patient: Patient) -> Finding:
    """The loss of a batch is the sum over what is scored, divided by its count:

        loss = sum over scored (b, t) of l[b, t] / number scored

    A mean of rows' (or batches') means gives a target in a short row more weight than one in a long row; a division by
    all places makes the loss smaller the more padding there is. The weight of a row is measured by how much the loss
    falls when all its answers become right; it has to go with the number of its targets. A plain sum is healthy. Where
    `evaluate` is given, its calls of the cross-entropy are watched (cross_entropy and nll_loss of
    torch.nn.functional): what it returns has to be their mean over targets, not over batches.
    """
    findings, reasons = [], []
    try:
        findings.append(across(patient, lambda route: weighed(patient, route)))
    except NotExamined as reason:
        reasons.append(str(reason))
    if patient.given.evaluate is not None:
        try:
            findings.append(averaged(patient))
        except NotExamined as reason:
            reasons.append(str(reason))
    if not findings:
        raise NotExamined("; ".join(reasons))
    return worst_first(findings)[0]


def weighed(patient: Patient, route: Route) -> Finding:
    """Whether all scored targets weigh the same, with the mark of what is not scored that the person uses: where two
    would do and no batch tells which, the better one."""
    sizes = Sizes(patient)
    if route.rows < 2 or route.length < 4:
        raise NotExamined(f"{route.name} takes only batches of {route.rows} rows of {route.length}")
    seen = marks_in(patient)
    marks = [mark for mark in marks_of(patient) if not seen or mark in seen]
    free = [mark for mark in marks if (left_out(sizes, route, mark) or 0.0) <= COUNTED]
    free = [mark for mark in free if left_out(sizes, route, mark) is not None]
    if not free:
        raise NotExamined(f"{route.name} has no targets that are left out")
    return worst_first(weights_with(sizes, route, mark) for mark in free)[-1]


def weights_with(sizes: Sizes, route: Route, ignored: int) -> Finding:
    """The same with one mark."""
    token = sizes.token
    counts = [[route.length - 1, 1, max(2, (route.length - 1) // 2)][row % 3] for row in range(route.rows)]
    full = torch.full((route.rows, route.length), token, device=sizes.device)
    some = full.clone()
    some[:, 0] = full[:, 0] = ignored  # a loss that shifts inside never asks for the first
    for row, count in enumerate(counts):
        some[row, 1 + count :] = ignored
    uniform = torch.zeros(*full.shape, sizes.vocabulary, device=sizes.device)
    base, whole = route.value(uniform, some), route.value(uniform, full)
    weights = []
    for row, count in enumerate(counts):
        right = uniform.clone()
        right[row, :, token] = sizes.sure
        weights.append((base - route.value(right, some)) / count)
    last = uniform.clone()
    last[:, -1, token] = sizes.sure
    if abs(whole) < 1e-6 or whole - route.value(last, full) > 0.9 * whole:
        raise NotExamined(f"{route.name} scores the last place alone")
    if min(weights) <= 0:
        raise NotExamined(f"{route.name} does not fall when an answer becomes right")
    ratio = max(weights) / min(weights)
    expected = "every target weighs the same: sum / number scored"
    if ratio - 1 > UNEQUAL:
        most, fewest = max(counts), min(counts)
        return sick(
            f"a target in a row with {fewest} weighs {weights[counts.index(fewest)] / weights[counts.index(most)]:.3g}"
            f" times as much as in a row with {most} ({route.name})",
            expected,
            "every row's mean is taken, then the mean of these: nearly empty rows count as much as full ones",
            "loss = (each * scored).sum() / scored.sum(), or F.cross_entropy on all rows at once",
            value=ratio - 1,
            limit=UNEQUAL,
            where=route.name,
        )
    thinned = base / whole
    share = sum(counts) / (route.rows * (route.length - 1))
    if abs(thinned - 1) > THINNED and abs(thinned - share) < THINNED and not summed(sizes, route, token):
        return sick(
            f"with {share:.0%} of the targets scored {route.name} is {thinned:.0%} of what it is with all",
            expected,
            "it is divided by all places, those not scored too: the more padding, the smaller loss and gradients",
            "divide by the number scored: (each * scored).sum() / scored.sum()",
            value=abs(thinned - 1),
            limit=THINNED,
            where=route.name,
        )
    return healthy(
        f"targets of long and short rows weigh the same ({route.name}: ratio {ratio:.5g})",
        expected,
        value=ratio - 1,
        limit=UNEQUAL,
        where=route.name,
    )


def summed(sizes: Sizes, route: Route, token: int) -> bool:
    """Whether the loss is a sum: over twice as many rows, or places, it is twice as much. Raises NotExamined where it
    takes batches of one size alone."""
    values = []
    for rows, length in ((route.rows, route.length), (2 * route.rows, route.length), (route.rows, 2 * route.length)):
        wanted = torch.full((rows, length), token, device=sizes.device)
        logits = torch.zeros(rows, length, sizes.vocabulary, device=sizes.device)
        try:
            values.append(route.value(logits, wanted))
        except Exception:
            values.append(math.nan)
    found = [value / values[0] for value in values[1:] if math.isfinite(value)]
    if not found:
        raise NotExamined(f"{route.name} takes batches of one size alone: a sum or a mean cannot be told apart")
    return max(found) > 1.5


class Entropies(TorchFunctionMode):
    """Every mean cross-entropy that is taken inside: its value, and how many targets it scored."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.found: list[tuple[float, int]] = []
        self.end = time.thread_time() + seconds

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in (F.cross_entropy, F.nll_loss) and torch.is_tensor(result):
            if result.dim() or kwargs.get("reduction", "mean") != "mean":
                raise NotExamined("evaluate takes no means of batches")
            wanted = kwargs.get("target", args[1] if len(args) > 1 else None)
            if torch.is_tensor(wanted) and not wanted.is_floating_point():
                scored = int((wanted != kwargs.get("ignore_index", -100)).sum())
                self.found.append((float(result.detach()), scored))
        if time.thread_time() > self.end:
            raise TooLong
        return result


def averaged(patient: Patient) -> Finding:
    """Whether what `evaluate` returns is the mean over targets."""
    with rehearsed(patient.given), Entropies(PATIENCE) as seen:
        try:
            returned = call_evaluate(patient.given)
        except TooLong:
            raise NotExamined(f"evaluate takes more than {PATIENCE:g} s: give one over fewer batches") from None
    found = loss_in(returned)
    counts = [count for _, count in seen.found]
    if found is None or len(counts) < 2 or min(counts) == 0:
        raise NotExamined("in evaluate no several means of batches were seen, or it returns no single number")
    value = float(found)
    right = sum(mean * count for mean, count in seen.found) / sum(counts)
    flat = sum(mean for mean, _ in seen.found) / len(counts)
    ratio = max(counts) / min(counts)
    expected = "the mean over all targets: sum of losses / number scored"

    def is_it(mean: float) -> bool:
        return any(math.isclose(value, one, rel_tol=1e-6) for one in (mean, math.exp(min(mean, 700.0))))

    if math.isclose(right, flat, rel_tol=1e-5):
        return healthy(f"evaluate takes {len(counts)} batches of equal weight", expected, value=ratio, limit=1.0)
    if is_it(flat) and not is_it(right):
        return sick(
            f"evaluate says {value:.4f}, the mean of {len(counts)} means; over targets it is {right:.4f}",
            expected,
            f"batches with {min(counts)} and with {max(counts)} scored targets count the same",
            "add up loss * count and count over the batches, and divide once at the end",
            value=ratio,
            limit=1.0,
            where="evaluate",
        )
    return healthy(
        f"evaluate says {value:.4f}, as the mean over targets is {right:.4f}", expected, value=1.0, limit=1.0
    )
