"""Several labels an image: a question by itself for each class, binary cross-entropy, mean average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanvit.data import Batch, Preprocess
from leanvit.errors import BadInput
from leanvit.tasks.classification import LabelTask
from leanvit.tasks.intervals import Change, Interval, bootstrapped, from_pairs, wilson
from leanvit.tasks.metric import Metric, metric_of
from leanvit.tasks.objectives import BinaryCrossEntropy, BinaryDistillation, Objective, mean_head
from leanvit.tasks.registry import task

THRESHOLD = 0.5  # of a label


@task("multi_label")
@dataclass(frozen=True)
class MultiLabel(LabelTask):
    """Each image has any number of the classes; an output is the logit of one of them.

    Images count as right when every one of their labels is, at probability 1/2: the change between two models is of
    those.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("map", "mAP"),
        Metric("labels", "labels right"),
        Metric("exact", "all labels right"),
    )
    changes: ClassVar[str] = "exact"
    label_kind: ClassVar[str] = "several"
    words: ClassVar[str] = "multi-label"
    objective_words: ClassVar[str] = "a binary"
    gathers: ClassVar[bool] = True  # a ranking needs all logits

    def recorded(self) -> dict[str, Any]:
        return {"multi_label": True}

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Binary cross-entropy of each class, averaged over classes and images."""
        return F.binary_cross_entropy_with_logits(mean_head(outputs).float(), batch.targets)

    def divergence(self, outputs: Any, taught: Any, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        """T² KL(sigmoid(taught / T) || sigmoid(outputs / T)), averaged over classes and images."""
        student, teacher = mean_head(outputs).float() / temperature, mean_head(taught).float() / temperature
        yes = teacher.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(teacher, yes)
        return temperature**2 * (F.binary_cross_entropy_with_logits(student, yes) - entropy)

    def objective(self, *, label_smoothing: float = 0.0) -> Objective:
        return BinaryCrossEntropy(label_smoothing)

    def distillation(
        self,
        teacher: nn.Module,
        *,
        preprocess: Preprocess,
        kind: str = "soft",
        alpha: float | None = None,
        temperature: float | None = None,
        label_smoothing: float = 0.0,
    ) -> Objective:
        self.check_distillation(kind)
        given = {"alpha": alpha, "temperature": temperature}
        options = {name: value for name, value in given.items() if value is not None}
        return BinaryDistillation(teacher, teacher_preprocess=preprocess, label_smoothing=label_smoothing, **options)

    def check_distillation(self, kind: str) -> None:
        if kind not in self.distillations:
            raise BadInput(
                f"distillation is {kind!r}, but the data is multi-label: a teacher decides for one class; give 'soft'"
            )

    def rows(self, outputs: Any, batch: Batch) -> np.ndarray:
        """(B, 2, classes) float32: logits, and 0 or 1 as the labels are."""
        logits = mean_head(outputs).detach().cpu().float()
        return torch.stack([logits, batch.targets.cpu().float()], dim=1).numpy()

    def score(self, rows: Any, weights: np.ndarray | None = None, metric: str = "") -> np.ndarray:
        name = metric_of(self.metrics, metric).name
        logits, truth = rows[:, 0], rows[:, 1] > 0
        if name == "map":
            return class_means(average_precision(logits, truth, weights))
        right = (logits > 0) == truth
        share = right.all(axis=1) if name == "exact" else right.mean(axis=1)
        counts = np.ones((1, len(rows))) if weights is None else weights
        return np.asarray(counts @ share.astype(np.float64) / counts.sum(axis=1))

    def interval(self, rows: Any, metric: str = "", *, level: float = 0.95) -> Interval:
        """A bootstrap for the mean average precision, Wilson's for shares.

        Of single labels that is on the safe side: an image's share of right decisions varies no more than right or
        wrong does.
        """
        one = metric_of(self.metrics, metric)
        if one.name == "map":
            return bootstrapped(lambda weights: self.score(rows, weights), rows, one, level=level)
        right, n = (rows[:, 0] > 0) == (rows[:, 1] > 0), len(rows)
        if one.name == "exact":
            return wilson(int(right.all(axis=1).sum()), n, level=level)
        share = float(right.mean())
        shape = wilson(round(share * n), n, level=level)
        return Interval(share, min(share, shape.low), max(share, shape.high), n, "fraction")

    def change(self, before: Any, after: Any, *, level: float = 0.95) -> Change:
        """Of images with all labels right: Tango's score interval, and McNemar's test."""
        was, now = (((rows[:, 0] > 0) == (rows[:, 1] > 0)).all(axis=1) for rows in (before, after))
        return from_pairs(int((now & ~was).sum()), int((was & ~now).sum()), len(was), level=level)

    def answers(self, outputs: Any) -> Tensor:
        """(B, classes) bool: which have probability > 1/2."""
        return mean_head(outputs) > 0

    def agreement(self, one: Any, other: Any, *, level: float = 0.95) -> Interval:
        """The share of images of which both answer all labels alike, with Wilson's interval."""
        same = (np.asarray(one) == np.asarray(other)).all(axis=1)
        return wilson(int(same.sum()), len(same), level=level)

    def columns(self, answer: Any, classes: Sequence[str]) -> dict[str, Any]:
        found = np.flatnonzero(np.asarray(answer)).tolist()
        return {"class": "|".join(classes[i] if classes else str(i) for i in found)}

    def truth(self, batch: Batch) -> Tensor:
        found: Tensor = batch.targets > 0
        return found


def average_precision(logits: Any, targets: Any, weights: np.ndarray | None = None) -> np.ndarray:
    """Average precision of each class: the mean, over its images, of the precision at that image's score.

    Args:
        logits: (N, C) float; a larger one means that the class is there more surely. Equal ones count as one threshold.
        targets: (N, C), above 0 where the image carries the class.
        weights: (R, N) >= 0: how often each image counts, in each of R evaluations; by default once, in one.

    Returns:
        (R, C) float64; NaN for a class that no image (of weight) carries.
    """
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(targets) > 0
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


def class_means(found: np.ndarray) -> np.ndarray:
    """(R,) means of (R, C) over the classes that occur. Raises `BadInput` if none does."""
    occurs = np.isfinite(found)
    if not occurs.any():
        raise BadInput("no image carries a class: there is no average precision")
    total = np.where(occurs, found, 0.0).sum(axis=1)
    return np.asarray(total / np.maximum(occurs.sum(axis=1), 1))
