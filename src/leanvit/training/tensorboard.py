"""TensorBoard's view of a run, beside the JSON lines: needs the extra `log`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from leanvit.errors import MissingExtra
from leanvit.knobs import Count, check
from leanvit.training.callbacks import Run


class TensorBoardLog:
    """Writes learning rate, losses, gradient norm and images/s every `every` steps, and top-1 (or mAP) each epoch.

    A resumed run writes on into its folder: TensorBoard drops what a killed run wrote past the step that it goes on
    from. Raises `MissingExtra` where TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path, *, every: int = 10) -> None:
        self._make = _writer_class()
        self.folder = Path(folder)
        self.every: int = check("every", every, Count)
        self._writer: Any = None
        self._last = (0, 0.0)  # step and time of the last row

    def start(self, run: Run) -> None:
        """Open the log; of a resumed run, what lies past its step is dropped."""
        self._writer = self._make(str(self.folder), purge_step=run.step + 1 if run.step else None)
        self._last = (run.step, time.perf_counter())

    def after_step(self, run: Run) -> None:
        """Write the step's learning rate, losses and speed."""
        if run.step % self.every:
            return
        now = time.perf_counter()
        steps, seconds = run.step - self._last[0], now - self._last[1]
        self._last = (run.step, now)
        images = steps * run.config.batch_size * run.config.accumulate
        values = {"lr": run.lr, "images_per_s": images / max(seconds, 1e-9), **run.losses}
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, run.step)

    def end_epoch(self, run: Run) -> None:
        """Write what validation measured."""
        row = run.history[-1]
        for metric in run.task.logged:
            if metric.name in row:
                self._writer.add_scalar(f"val/{metric.name}", row[metric.name], run.step)
        self._writer.flush()
        self._last = (run.step, time.perf_counter())  # validation is no time of steps

    def close(self, run: Run) -> None:
        """Close the log."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("TensorBoard logs need the extra 'log': pip install 'leanvit[log]'") from error
    return SummaryWriter
