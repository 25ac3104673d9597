"""What a person sees of a long training: a bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import sys

from leanvit.training import ProgressBar, Run
from leanvit.training.callbacks import METRICS
from leanvit.verbs.models import Say


def progress(say: Say) -> tuple[object, ...]:
    """Callbacks of a `fit` that show how far it is; one after another may use them."""
    return (ProgressBar() if sys.stderr.isatty() else EpochLines(say),)


class EpochLines:
    """A line an epoch, where there is no terminal for a bar."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def end_epoch(self, run: Run) -> None:
        row = run.history[-1]
        score = f", {METRICS[run.metric]} {100 * row[run.metric]:.1f} %" if run.metric in row else ""
        self._say(
            f"epoch {row['epoch'] + 1} of {run.config.epochs}: loss {row['loss']:.3f}{score}, {row['seconds']:.0f} s"
        )
