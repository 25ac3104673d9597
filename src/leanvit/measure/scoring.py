"""Accuracy with its uncertainty: one model alone, and two models on the same images.

An image of multi-label data counts as right when every one of its labels is, at probability 1/2.
"""

from __future__ import annotations

from torch import Tensor, eq

from leanvit.errors import BadInput
from leanvit.measure.judged import Judged
from leanvit.measure.predictions import Predictions
from leanvit.tasks.intervals import Change, Interval, wilson


def accuracy(predictions: Predictions, *, topk: int = 1, level: float = 0.95) -> Interval:
    """The fraction of images whose target is among the `topk` largest logits, with Wilson's interval.

    Multi-label: whose labels are all answered rightly; `topk` must be 1.
    """
    classes = predictions.logits.shape[1]
    if not isinstance(topk, int) or not 1 <= topk <= classes:
        raise BadInput(f"topk must be an integer between 1 and the {classes} classes, got {topk!r}")
    if topk == 1:
        return Judged.of(predictions).interval(predictions.task.changes, level=level)
    if predictions.targets.ndim == 2:
        raise BadInput(f"topk={topk}: multi-label images have no top-k accuracy; accepted: 1")
    best = predictions.logits.topk(topk, dim=1).indices  # (N, topk)
    hits = (best == predictions.targets[:, None]).any(dim=1)
    return wilson(int(hits.sum()), len(hits), level=level)


def accuracy_per_class(predictions: Predictions, *, level: float = 0.95) -> dict[int, Interval]:
    """Top-1 accuracy of each class that occurs among the targets; multi-label: the share of its images that find it."""
    if predictions.targets.ndim == 2:
        found = {c: predictions.answers[predictions.targets[:, c] > 0, c] for c in range(predictions.targets.shape[1])}
        return {c: wilson(int(h.sum()), len(h), level=level) for c, h in found.items() if len(h)}
    hits = _hits(predictions)
    of_class = {int(c): hits[predictions.targets == c] for c in predictions.targets.unique()}
    return {c: wilson(int(h.sum()), len(h), level=level) for c, h in of_class.items()}


def accuracy_change(before: Predictions, after: Predictions, *, level: float = 0.95) -> Change:
    """Top-1 accuracy of `after` minus that of `before` on the same images, in percentage points (negative: a loss).

    Images are paired by key. The interval is Tango's score interval, which stays honest for small samples and when no
    image changed (after 500 images without a change it still reaches ±0.76 points). Raises BadInput when the keys or
    the targets differ, naming the first key.
    """
    return Judged.of(before).change(Judged.of(_paired(before, after)), level=level)


def agreement(a: Predictions, b: Predictions, *, level: float = 0.95) -> Interval:
    """The fraction of images that both answer alike (same largest logit), right or wrong. Paired by key."""
    b = _paired(a, b)
    if a.logits.shape[1] != b.logits.shape[1]:
        raise BadInput(f"agreement needs the same classes, got {a.logits.shape[1]} and {b.logits.shape[1]}")
    found: Interval = Judged.of(a).agreement(Judged.of(b), level=level)  # type: ignore[assignment]
    return found


def _paired(a: Predictions, b: Predictions) -> Predictions:
    b = b.ordered_by(a.keys)
    if a.targets.ndim != b.targets.ndim:
        raise BadInput("predictions cannot be paired: one side is multi-label, the other is not")
    different = (~_row_equal(a.targets, b.targets)).nonzero().flatten()
    if len(different):
        i = int(different[0])
        raise BadInput(
            f"predictions cannot be paired: key {a.keys[i]!r} has target {_text(a.targets[i])} on one side and "
            f"{_text(b.targets[i])} on the other"
        )
    return b


def _hits(predictions: Predictions) -> Tensor:
    return _row_equal(predictions.answers, predictions.targets)


def _row_equal(a: Tensor, b: Tensor) -> Tensor:
    """(N,) bool: which images have equal values, all of them where there are several."""
    same = eq(a, b)
    return same if same.ndim == 1 else same.all(dim=1)


def _text(target: Tensor) -> str:
    return str(int(target)) if target.ndim == 0 else str(target.nonzero().flatten().tolist())
