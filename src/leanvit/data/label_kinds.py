"""What the labels of a data set say of an image: one class, or several. All that depends on it is here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from leanvit.data.classes import Matched
from leanvit.data.labels import rarest_label

ONE, SEVERAL = "one", "several"  # what `label_kind` of a data set is; "" without labels


class LabelKind(Protocol):
    """The labels (N, ...) of a data set, of one kind."""

    words: str  # what an image has

    def target(self, label: Any) -> Any:
        """The label of one sample, as `dataset[i].target` is."""

    def batched(self, labels: Sequence[Any], classes: int) -> torch.Tensor:
        """Targets of a batch, as `Batch.targets` is."""

    def counted(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """(classes,) how many images carry each class."""

    def carried(self, label: Any) -> list[int]:
        """The classes of one sample."""

    def carries(self, labels: np.ndarray, number: int) -> np.ndarray:
        """(N,) bool: which images carry a class."""

    def without(self, labels: np.ndarray) -> int:
        """How many images carry no class."""

    def chosen(self, labels: np.ndarray, wanted: Sequence[int], classes: int) -> tuple[np.ndarray, np.ndarray]:
        """(labels among the classes `wanted`, which images carry one of them)."""

    def onto(self, labels: Any, matched: Matched) -> Any:
        """Labels, or the one of a sample, as outputs of a model."""

    def first_of_each(self, labels: np.ndarray, value: np.ndarray, shots: int) -> np.ndarray:
        """The images with the `shots` smallest values of each class, ascending."""

    def groups(self, labels: np.ndarray) -> np.ndarray:
        """(N,) int64 a class that each image stands for: what keeps splits and subsets even."""


class OneLabel:
    """(N,) int64: the class of each image."""

    words = "one label an image"

    def target(self, label: Any) -> int:
        return int(label)

    def batched(self, labels: Sequence[Any], classes: int) -> torch.Tensor:
        return torch.tensor(labels, dtype=torch.int64)

    def counted(self, labels: np.ndarray, classes: int) -> np.ndarray:
        return np.bincount(labels, minlength=classes)

    def carried(self, label: Any) -> list[int]:
        return [int(label)]

    def carries(self, labels: np.ndarray, number: int) -> np.ndarray:
        return labels == number

    def without(self, labels: np.ndarray) -> int:
        return 0

    def chosen(self, labels: np.ndarray, wanted: Sequence[int], classes: int) -> tuple[np.ndarray, np.ndarray]:
        places = np.full(classes, -1, dtype=np.int64)
        places[list(wanted)] = np.arange(len(wanted))
        found = places[labels]
        return found, found >= 0

    def onto(self, labels: Any, matched: Matched) -> Any:
        if np.ndim(labels) == 0:  # of one sample, without an array of all classes
            return matched.positions[int(labels)]
        return np.asarray(matched.positions, dtype=np.int64)[labels]

    def first_of_each(self, labels: np.ndarray, value: np.ndarray, shots: int) -> np.ndarray:
        return np.flatnonzero(rank_within(labels, value) < shots)

    def groups(self, labels: np.ndarray) -> np.ndarray:
        return labels


class SeveralLabels:
    """(N, classes) float32 of 0 and 1: which classes each image carries."""

    words = "several labels an image"

    def target(self, label: Any) -> Any:
        return label

    def batched(self, labels: Sequence[Any], classes: int) -> torch.Tensor:
        return torch.from_numpy(np.array(labels, dtype=np.float32).reshape(len(labels), classes))

    def counted(self, labels: np.ndarray, classes: int) -> np.ndarray:
        return np.asarray(labels.sum(axis=0))

    def carried(self, label: Any) -> list[int]:
        found: list[int] = np.flatnonzero(label).tolist()
        return found

    def carries(self, labels: np.ndarray, number: int) -> np.ndarray:
        return labels[:, number] > 0

    def without(self, labels: np.ndarray) -> int:
        return int((~labels.any(axis=1)).sum())

    def chosen(self, labels: np.ndarray, wanted: Sequence[int], classes: int) -> tuple[np.ndarray, np.ndarray]:
        found = np.ascontiguousarray(labels[:, list(wanted)])
        return found, np.asarray(found.any(axis=1))

    def onto(self, labels: Any, matched: Matched) -> Any:
        outputs = np.zeros((*labels.shape[:-1], matched.outputs), dtype=labels.dtype)
        outputs[..., list(matched.positions)] = labels
        return outputs

    def first_of_each(self, labels: np.ndarray, value: np.ndarray, shots: int) -> np.ndarray:
        order = np.argsort(value, kind="stable")
        ranked = labels[order] > 0
        first = ranked & (np.cumsum(ranked, axis=0) <= shots)
        return np.sort(order[first.any(axis=1)])

    def groups(self, labels: np.ndarray) -> np.ndarray:
        return rarest_label(labels)


KINDS: dict[str, LabelKind] = {ONE: OneLabel(), SEVERAL: SeveralLabels()}


def kind_of(labels: np.ndarray) -> str:
    """Which kind labels are, by their shape."""
    return SEVERAL if labels.ndim == 2 else ONE


class Labelled:
    """What data sets of both sorts say of their labels."""

    @property
    def label_kind(self) -> str:
        """What labels say of an image: "one" class, "several", or "" where there are none."""
        raise TypeError(f"{type(self).__name__} does not define label_kind")

    @property
    def multi_label(self) -> bool:
        """Whether an image may carry several classes."""
        return self.label_kind == SEVERAL


def rank_within(groups: np.ndarray, value: np.ndarray) -> np.ndarray:
    """(N,) rank, from 0, of each element among those of its group when sorted by `value`."""
    order = np.lexsort((value, groups))
    grouped = groups[order]
    first = np.r_[True, grouped[1:] != grouped[:-1]]
    starts = np.maximum.accumulate(np.where(first, np.arange(len(groups)), 0))
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - starts
    return rank
