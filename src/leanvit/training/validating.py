"""What a model gives on validation images, split over the processes of a run, and the score of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from leanvit.data import AnyDataset, Batch, Preprocess, loader
from leanvit.errors import BadInput
from leanvit.tasks import Classification, Task
from leanvit.tasks.metric import Rows, joined, summed
from leanvit.training.callbacks import Run
from leanvit.training.parallel import as_whole
from leanvit.training.signals import StopRequested

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The context of a forward at a precision of `FitConfig.amp`."""
    return torch.autocast(device.type, dtype=_DTYPES.get(amp), enabled=amp in _DTYPES)


def top1_accuracy(
    model: nn.Module,
    dataset: AnyDataset,
    *,
    preprocess: Preprocess,
    batch_size: int = 128,
    workers: int = 0,
    amp: str = "fp32",
) -> float:
    """Fraction of `dataset` that the model classifies rightly, with the eval transform; puts the model in eval mode.

    Under torchrun every process that calls this looks at all of the data.
    """
    task = Classification()
    task.check("accuracy", model=model, dataset=dataset)
    given = answers(model, task, dataset, preprocess=preprocess, batch_size=batch_size, workers=workers, amp=amp)
    return _score(task, [_kept(task, outputs, batch) for outputs, batch in given])


def validated(run: Run, validate: AnyDataset, *, stop: Callable[[], bool]) -> dict[str, float]:
    """What the task of the run says (`Task.logged`) of the averaged model, else the model, by the metrics' names.

    Each process looks at its share of every batch, and sums its rows, or sends them where the task needs them all: the
    figures do not depend on how many processes there are, up to the rounding of sums that are no whole numbers.
    `stop()` is asked before each batch. Raises StopRequested on all processes if it is true on one.
    """
    config, task = run.config, run.task
    with run.world.together(), as_whole(run.ema or run.model, run.given) as model:
        given = answers(
            model,
            task,
            validate,
            preprocess=run.preprocess,
            batch_size=config.batch_size,
            workers=config.workers,
            amp=config.amp,
            share=(run.world.rank, run.world.size),
            stop=stop,
        )
        own = [_kept(task, outputs, batch) for outputs, batch in given]
    # a process that had no batch does not know the shape of a row
    every = run.world.gathered((own if task.gathers else [summed(joined(own))] if own else [], stop()))
    if any(stopped for _, stopped in every):
        raise StopRequested
    parts = [rows for part, _ in every for rows in part]
    return {metric.name: _score(task, parts, metric.name) for metric in task.logged}


@torch.no_grad()
def answers(
    model: nn.Module,
    task: Task,
    dataset: AnyDataset,
    *,
    preprocess: Preprocess,
    batch_size: int,
    workers: int,
    amp: str,
    share: tuple[int, int] = (0, 1),
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Any, Batch]]:
    """(outputs, batch) on the model's device, in eval mode, until `stop()`."""
    model.eval()
    device = next(model.parameters()).device
    for batch in loader(dataset, preprocess, batch_size=batch_size, workers=workers, share=share):
        if stop():
            return
        batch = batch.to(device)
        with autocast(device, amp):
            outputs = task.run(model, batch.images)
        yield outputs, batch


def _kept(task: Task, outputs: Any, batch: Batch) -> Rows:
    """The rows of a batch, or their sum where that is enough."""
    rows = task.rows(outputs, batch)
    return rows if task.gathers else summed(rows)


def _score(task: Task, parts: list[Rows], metric: str = "") -> float:
    """Of rows, fewer than the data set has where images that cannot be read are skipped. Raises BadInput for none."""
    if not parts:
        raise BadInput("no image of the validation data can be read: there is nothing to judge by")
    return float(task.score(joined(parts), None, metric)[0])
