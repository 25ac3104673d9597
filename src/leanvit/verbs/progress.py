"""What a person sees of a long training: what it will take, then a bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from leanvit.data.progress import Meter
from leanvit.recipe.training_steps import counted
from leanvit.training import ProgressBar, Run
from leanvit.training.callbacks import METRICS
from leanvit.verbs.models import Log

QUIET = 30.0  # seconds between two lines of counted work
TIMED = 3  # steps behind the first one, which also builds kernels and starts loaders


def progress(log: Log) -> tuple[object, ...]:
    """Callbacks of a `fit` that show its cost and progress; one after another may use them."""
    return (Cost(log), ProgressBar() if sys.stderr.isatty() else EpochLines(log))


def meter(log: Log) -> Meter:
    """Of calibrations and searches (`Data.meter`): a bar on a terminal, else a line from time to time."""

    @contextmanager
    def shown(what: str, total: int) -> Iterator[Callable[[int], None]]:
        if not sys.stderr.isatty():
            yield CountLines(log, what, total).done
            return
        left = (TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=True))
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *left)
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda number: bar.update(task, completed=number)

    return shown


class CountLines:
    """A line every half minute, with the time left, where there is no terminal for a bar."""

    def __init__(self, log: Log, what: str, total: int) -> None:
        self._log, self._what, self._total = log, what, total
        self._begun = self._said = time.perf_counter()

    def done(self, number: int) -> None:
        """So many are done."""
        now = time.perf_counter()
        if now - self._said < QUIET or number >= self._total:
            return
        self._said = now
        left = (now - self._begun) / number * (self._total - number)
        self._log(f"{self._what}: {number:,} of {self._total:,} done, about {duration(left)} left")


class Cost:
    """Epochs and steps of a training before its first one, and the time they take once a few are timed.

    It only looks at the clock: the weights are those of a run without it.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._from: tuple[int, float] | None = None  # step, and when it was done
        self._said = False

    def start(self, run: Run) -> None:
        self._from, self._said = None, False
        images = run.config.batch_size * run.config.accumulate
        epochs = math.ceil(run.last_step / run.steps_per_epoch)
        done = f", {run.step:,} of them done" if run.step else ""
        steps = f"{counted(run.last_step, 'step')} of {counted(images, 'image')}"
        self._log(f"training: {counted(epochs, 'epoch')}, {steps}{done}")

    def after_step(self, run: Run) -> None:
        if self._said:
            return
        now = time.perf_counter()
        if self._from is None:
            self._from = run.step, now
            return
        timed = run.step - self._from[0]
        if timed < TIMED:
            return
        each, self._said = (now - self._from[1]) / timed, True
        left = run.last_step - run.step
        if left:
            self._log(f"training: about {duration(each * left)} at {each:.2g} s a step, validation not counted")


class EpochLines:
    """A line an epoch, where there is no terminal for a bar."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._begun = (0, time.perf_counter())

    def start(self, run: Run) -> None:
        self._begun = (run.step, time.perf_counter())

    def end_epoch(self, run: Run) -> None:
        row = run.history[-1]
        score = f", {METRICS[run.metric]} {100 * row[run.metric]:.1f} %" if run.metric in row else ""
        self._log(
            f"epoch {row['epoch'] + 1} of {run.epochs}: loss {row['loss']:.3f}{score}, "
            f"{row['seconds']:.0f} s{self._left(run)}"
        )

    def _left(self, run: Run) -> str:
        """The time left, by all that this sitting has taken, validation included."""
        step, begun = self._begun
        left = 0 if run.stopped else run.last_step - run.step
        if run.step == step or left <= 0:
            return ""
        return f", about {duration((time.perf_counter() - begun) / (run.step - step) * left)} left"


def duration(seconds: float) -> str:
    """`3.2 days`, `4.1 h`, `12.0 min`, `8.4 s`."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
