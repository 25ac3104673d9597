"""How well several labels an image are found: average precision, and the share of labels that are decided rightly."""

from __future__ import annotations

from torch import Tensor

from leanvit.measure.judged import Judged
from leanvit.measure.predictions import Predictions
from leanvit.tasks.intervals import Interval, bootstrapped
from leanvit.tasks.metric import RESAMPLES, metric_of
from leanvit.tasks.multilabel import average_precision, class_means


def mean_average_precision(logits: Tensor, targets: Tensor) -> float:
    """The mean of `average_precision` over the classes that occur; a fraction. Raises BadInput if none does."""
    return float(class_means(average_precision(logits.double().cpu(), targets.cpu()))[0])


def map_interval(predictions: Predictions, *, level: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """Mean average precision with a percentile interval from a bootstrap over images, always of the same draws."""
    own = Judged.of(predictions)
    rows, metric = own.rows, metric_of(own.task.metrics, "map")
    return bootstrapped(lambda weights: own.task.score(rows, weights), rows, metric, level=level, times=resamples)


def label_accuracy(predictions: Predictions, *, level: float = 0.95) -> Interval:
    """The fraction of (image, class) decisions that are right at probability 1/2, with Wilson's interval over images.

    The interval is on the safe side: an image's share of right decisions varies no more than right or wrong does.
    High where labels are rare, whatever the model says: read it beside the mean average precision.
    """
    return Judged.of(predictions).interval("labels", level=level)
