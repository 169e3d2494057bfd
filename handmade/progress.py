"""What a person sees while a model is trained.

     61 %  step 171/280  loss 1.83  validation 1.790 (best)  6,310 tokens/s  1:09 left

On a terminal and in a notebook it is one line that moves; in a log it is a line at every evaluation and at every
tenth of the way. The curve in the run folder is drawn anew as training goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from handmade import curve
from handmade.errors import ConfigError, HandmadeError, optional

if TYPE_CHECKING:
    from handmade.training import Report, TrainConfig, Trainer

CURVE_SECONDS = 20.0  # between two drawings of the curve: one takes about half a second
TENTHS = 10  # lines in a log, besides those at evaluations
WIDE = 108  # columns from which there is room for a bar beside the figures


def check_tensorboard(config: TrainConfig, folder: Any) -> None:
    """Raise ResourceError, ConfigError when TensorBoard files are asked for and cannot be written."""
    if config.tensorboard and find_spec("tensorboard") is None:
        raise optional("tensorboard", "tensorboard", "train.tensorboard = true")
    if config.tensorboard and folder is None:
        raise ConfigError("TrainConfig.tensorboard = True: needs a run folder to write to.")


class Progress:
    """Shows how a trainer comes along.

        with Progress(trainer) as progress:
            for report in trainer.steps():
                progress.update(report)

    `show=False` shows nothing; curve and TensorBoard files are written all the same. `console` is where it is
    shown, by default standard error. Raises ResourceError when TensorBoard is asked for and not installed.
    """

    def __init__(self, trainer: Trainer, show: bool = True, console: Console | None = None) -> None:
        check_tensorboard(trainer.config, trainer.folder)
        self.trainer, self.show = trainer, show
        self.console = console or Console(stderr=True, highlight=False)
        self.live: Live | None = None
        self.board: Any = None
        self.report: Report | None = None
        self.loss = self.validation = math.nan  # the newest there is
        self.scores: dict[str, float] = {}  # likewise
        self.pace = 0.0  # tokens a second, likewise
        self.first: tuple[float, int] | None = None  # when the first report came, and at which step
        self.tenth = -1
        self.over = False
        self.began = self.drawn = time.monotonic()

    def __enter__(self) -> Progress:
        self.began = self.drawn = time.monotonic()
        if self.trainer.config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            assert self.trainer.folder is not None, "check_tensorboard has seen to it"
            # What an earlier, killed run wrote about later steps is hidden.
            self.board = SummaryWriter(str(self.trainer.folder / "tensorboard"), purge_step=self.trainer.step)
        if self.show and moves(self.console):
            self.live = Live(console=self.console, get_renderable=self.moving, refresh_per_second=2)
            self.live.start(refresh=True)
            self.console.show_cursor(True)  # a run that is killed must not leave the terminal without one
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.over = True
        if self.live is not None:
            self.live.stop()
        if self.board is not None:
            self.board.close()
        if kind is None:
            self.draw()

    def update(self, report: Report) -> None:
        """Take in what the trainer reports."""
        self.report = report
        self.first = self.first or (time.monotonic(), report.step)
        if math.isfinite(report.train_loss):
            self.loss = report.train_loss
        self.pace = report.tokens_per_second or self.pace
        self.scores = report.scores or self.scores
        if report.val_loss is not None:
            self.validation = report.val_loss
        if self.board is not None:
            self.record(report)
        if self.show:
            self.tell(report)
        if report.scores and time.monotonic() - self.drawn >= CURVE_SECONDS:
            self.draw()

    def tell(self, report: Report) -> None:
        """Events as lines of their own; without a moving line, a line now and then."""
        if report.event is not None:
            self.print(Text(report.event, style="yellow"))
        watch = getattr(self.trainer.task, "watch", None)  # a task of five methods has none
        shown = watch() if watch is not None and report.scores else ()
        if self.live is not None:
            if shown:
                self.print(Text(self.line()))
            self.show_lines(shown)
            self.live.refresh()
            return
        tenth = TENTHS * report.step // self.trainer.config.steps
        if report.scores or tenth > self.tenth:
            self.print(Text(self.line()))
        self.show_lines(shown)
        self.tenth = max(tenth, self.tenth)  # a run that goes back does not say it all again

    def show_lines(self, lines: Sequence[str]) -> None:
        """What a task has to show of the model at an evaluation, such as a few sentences that it translated."""
        for line in lines:
            self.print(Text(f"       {line}".rstrip(), style="dim"))

    def print(self, text: Text) -> None:
        """A line that stays, above the moving one. It is not broken: a log has no width."""
        self.console.print(text, soft_wrap=True)

    # ----------------------------------------------------------------------------------------------------------
    # The line

    def moving(self) -> Table | Text:
        """The line as it is now, with a bar where there is room. Between two reports the step goes on."""
        width = self.console.width
        if width < WIDE:
            return Text(self.line(width), no_wrap=True, overflow="ellipsis")
        table = Table.grid(padding=(0, 1))
        steps, room = self.trainer.config.steps, min(width - WIDE + 12, 30)
        bar = ProgressBar(total=steps, completed=self.trainer.step, width=room)
        table.add_row(bar, Text(self.line(width - room - 1), no_wrap=True, overflow="ellipsis"))
        return table

    def line(self, width: int | None = None) -> str:
        """How it stands, in one line. What does not fit into `width` columns is the pace first, then the rest."""
        step, steps = self.trainer.step, self.trainer.config.steps
        parts = [f"{100 * step // steps:3d} %", f"step {step:,}/{steps:,}"]
        if self.report is None:
            waiting = "compiling" if self.trainer.compiled else "starting"
            return "  ".join([*parts, f"{waiting}, {duration(time.monotonic() - self.began)}"])
        if math.isfinite(self.loss):
            parts.append(f"loss {self.loss:.2f}")
        parts += self.validated()
        pace = [f"{self.pace:,.0f} tokens/s"] if self.pace else []
        left = self.seconds_left()
        ending = []
        if self.over or step >= steps:
            ending = [f"in {duration(time.monotonic() - self.began)}"]
        elif left is not None:
            ending = [f"{duration(left)} left"]
        whole = "  ".join([*parts, *pace, *ending])
        return whole if width is None or len(whole) <= width else "  ".join([*parts, *ending])

    def validated(self) -> list[str]:
        """The last validation loss, and whether it is the best."""
        best = self.trainer.best_loss
        if not math.isfinite(best):
            return []
        if not math.isfinite(self.validation):  # resumed, and not evaluated since
            return [f"validation best {best:.3f}"]
        parts = [f"validation {self.validation:.3f} ({'best' if self.validation <= best else f'best {best:.3f}'})"]
        headline = getattr(self.trainer.task, "headline", None)  # a task of five methods has none
        told = headline(self.scores) if headline is not None and self.scores else ""
        return [*parts, told] if told else parts

    def seconds_left(self) -> float | None:
        """From the pace since the first report: what came before it, compilation say, does not come again;
        evaluations and checkpoints do."""
        if self.first is None or self.trainer.step <= self.first[1]:
            return None
        since, begin = self.first
        pace = (time.monotonic() - since) / (self.trainer.step - begin)
        return pace * (self.trainer.config.steps - self.trainer.step)

    # ----------------------------------------------------------------------------------------------------------
    # What is written

    def draw(self) -> None:
        """Draw the curve anew. That it cannot be drawn is no reason to end a training."""
        if self.trainer.folder is None:
            return
        try:
            curve.draw(self.trainer.folder)
        except (HandmadeError, OSError) as problem:
            if self.show:
                self.print(Text(f"the curve was not drawn: {problem}", style="yellow"))
        self.drawn = time.monotonic()

    def record(self, report: Report) -> None:
        """Write the figures of a report for TensorBoard, under the names of metrics.jsonl."""
        for name, value in report.line().items():
            if name not in ("step", "event") and math.isfinite(value):
                self.board.add_scalar(name, value, report.step)


def moves(console: Console) -> bool:
    """Whether a line can be written over: on a terminal, and in a notebook that has widgets."""
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


def duration(seconds: float) -> str:
    """A time for a person.

    >>> duration(69), duration(3 * 3600 + 125)
    ('1:09', '3:02:05')
    """
    whole = max(0, round(seconds))
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours}:{minutes % 60:02d}:{whole % 60:02d}"
    return f"{minutes}:{whole % 60:02d}"
