"""What a model answers on validation images, split over the processes of a run, and what is counted of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from leanvit.arguments import require_classifier
from leanvit.data import AnyDataset, Preprocess, loader, require_labels
from leanvit.measure.multilabel import mean_average_precision
from leanvit.training.callbacks import Run
from leanvit.training.objectives import mean_head
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
    require_classifier(model, "accuracy")
    require_labels(dataset, "accuracy")
    right, seen = _counted(
        answers(model, dataset, preprocess=preprocess, batch_size=batch_size, workers=workers, amp=amp)
    )
    return right / max(seen, 1)


def validated(run: Run, validate: AnyDataset, *, stop: Callable[[], bool]) -> float:
    """Top-1 (a fraction) of the averaged model, else the model; of multi-label data the mean average precision.

    Each process looks at its share of every batch, and whole numbers are summed: the figure does not depend on how many
    there are. `stop()` is asked before each batch. Raises StopRequested on all processes if it is true on one.
    """
    config = run.config
    with run.world.together(), as_whole(run.ema or run.model, run.given) as model:
        given = answers(
            model,
            validate,
            preprocess=run.preprocess,
            batch_size=config.batch_size,
            workers=config.workers,
            amp=config.amp,
            share=(run.world.rank, run.world.size),
            stop=stop,
        )
        logits = list(given) if validate.multi_label else []
        counted = _counted(given)  # nothing is left of them where they were kept
    right, seen, stopped = run.world.sums([*counted, stop()])
    if stopped:
        raise StopRequested
    return _mean_precision(run, logits) if validate.multi_label else right / max(seen, 1)


@torch.no_grad()
def answers(
    model: nn.Module,
    dataset: AnyDataset,
    *,
    preprocess: Preprocess,
    batch_size: int,
    workers: int,
    amp: str,
    share: tuple[int, int] = (0, 1),
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits (B, classes), targets) of each batch on the CPU, in eval mode, until `stop()`."""
    model.eval()
    device = next(model.parameters()).device
    for batch in loader(dataset, preprocess, batch_size=batch_size, workers=workers, share=share):
        if stop():
            return
        with autocast(device, amp):
            logits = mean_head(model(batch.images.to(device)))
        yield logits.cpu(), batch.targets


def _counted(given: Iterable[tuple[Tensor, Tensor]]) -> tuple[int, int]:
    """(rightly classified, all) images; fewer than the data set where images that cannot be read are skipped."""
    right = seen = 0
    for logits, targets in given:
        right += int((logits.argmax(dim=-1) == targets).sum())
        seen += len(targets)
    return right, seen


def _mean_precision(run: Run, own: list[tuple[Tensor, Tensor]]) -> float:
    """Mean average precision over the answers of all processes: a ranking needs all logits."""
    rows = [(logits.float().numpy(), targets.numpy()) for logits, targets in own]
    everyone = [row for part in run.world.gathered(rows) for row in part]
    logits, targets = (torch.cat([torch.from_numpy(row[i]) for row in everyone]) for i in (0, 1))
    return mean_average_precision(logits, targets)
