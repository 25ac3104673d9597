"""How well several labels an image are found: average precision, and the share of labels that are decided rightly."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from leanvit.errors import BadInput
from leanvit.measure.predictions import Predictions
from leanvit.tasks.intervals import Interval, wilson

RESAMPLES = 200


def average_precision(logits: Tensor, targets: Tensor, weights: np.ndarray | None = None) -> np.ndarray:
    """Average precision of each class: the mean, over its images, of the precision at that image's score.

    Args:
        logits: (N, C) float; a larger one means that the class is there more surely. Equal ones count as one threshold.
        targets: (N, C), 1 where the image carries the class.
        weights: (R, N) >= 0: how often each image counts, in each of R evaluations; by default once, in one.

    Returns:
        (R, C) float64; NaN for a class that no image (of weight) carries.
    """
    scores, truth = logits.double().cpu().numpy(), targets.cpu().numpy() > 0
    count, classes = scores.shape
    weights = np.ones((1, count)) if weights is None else weights
    found = np.full((len(weights), classes), np.nan)
    for c in range(classes):
        order = np.argsort(-scores[:, c], kind="stable")
        ranked = -scores[order, c]
        last = np.searchsorted(ranked, ranked, side="right") - 1  # of those with an equal score
        weight = weights[:, order]
        hits = weight * truth[order, c]
        total = hits.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = hits.cumsum(axis=1)[:, last] / weight.cumsum(axis=1)[:, last]
            found[:, c] = np.where(hits > 0, hits * precision, 0.0).sum(axis=1) / total
    return found


def mean_average_precision(logits: Tensor, targets: Tensor) -> float:
    """The mean of `average_precision` over the classes that occur; a fraction. Raises BadInput if none does."""
    return float(_means(average_precision(logits, targets))[0])


def map_interval(predictions: Predictions, *, level: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """Mean average precision with a percentile interval from a bootstrap over images, always of the same draws."""
    logits, targets = predictions.logits, predictions.targets
    n = len(predictions)
    value = mean_average_precision(logits, targets)
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    means = _means(average_precision(logits, targets, draws))
    low, high = np.quantile(means[np.isfinite(means)], [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, min(value, float(low)), max(value, float(high)), n, "fraction")


def label_accuracy(predictions: Predictions, *, level: float = 0.95) -> Interval:
    """The fraction of (image, class) decisions that are right at probability 1/2, with Wilson's interval over images.

    The interval is on the safe side: an image's share of right decisions varies no more than right or wrong does.
    High where labels are rare, whatever the model says: read it beside the mean average precision.
    """
    right = predictions.answers == predictions.targets.bool()
    share = float(right.double().mean())
    shape = wilson(round(share * len(predictions)), len(predictions), level=level)
    return Interval(share, min(share, shape.low), max(share, shape.high), len(predictions), "fraction")


def _means(found: np.ndarray) -> np.ndarray:
    occurs = np.isfinite(found)
    if not occurs.any():
        raise BadInput("no image carries a class: there is no average precision")
    total = np.where(occurs, found, 0.0).sum(axis=1)
    return total / np.maximum(occurs.sum(axis=1), 1)
