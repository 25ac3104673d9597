"""From what stands beside an image to its target: a class index, or a vector of 0 and 1 over the classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from leanvit.errors import BadInput

_MOST_CLASSES = 100_000  # larger numbers are names of things, not indices
_SEPARATORS = "|;"  # found by themselves; any other is named by the user


def sorted_names(names: Iterable[str]) -> list[str]:
    """The distinct names: by value where all are whole numbers ("2" before "10"; "01" before "1"), else as text."""
    distinct = set(names)
    if all(name.isascii() and name.isdecimal() for name in distinct):
        return sorted(distinct, key=lambda name: (len(name.lstrip("0")), name.lstrip("0"), name))  # of any length
    return sorted(distinct)


def names_of(labels: Iterable[str]) -> list[str]:
    """Class names: "0" to the largest where every label is a whole number, else the distinct labels, sorted."""
    distinct = set(labels)
    if distinct and all(label.isdecimal() and int(label) < _MOST_CLASSES for label in distinct):
        return [str(value) for value in range(max(map(int, distinct)) + 1)]
    return sorted(distinct)


def separator_in(labels: Iterable[str]) -> str | None:
    """`|` or `;` if a label holds it: then the labels are lists of classes."""
    return next((mark for label in labels for mark in _SEPARATORS if mark in label), None)


def split_labels(labels: Iterable[str], separator: str) -> list[list[str]]:
    """Each label as the list of its classes; an empty text is none at all."""
    return [[part.strip() for part in label.split(separator) if part.strip()] for label in labels]


def class_targets(labels: Sequence[str], classes: Sequence[str], *, where: str) -> np.ndarray:
    """(N,) int64. Raises BadInput for a label that is no class."""
    position = {name: index for index, name in enumerate(classes)}
    found = [position.get(label, position.get(label.lstrip("0") or "0", -1)) for label in labels]
    if -1 in found:
        raise BadInput(f"{where}: label {labels[found.index(-1)]!r} is no class; classes: {_some(classes)}")
    return np.array(found, dtype=np.int64)


def label_vectors(labels: Sequence[Sequence[str]], classes: Sequence[str], *, where: str) -> np.ndarray:
    """(N, classes) float32 of 0 and 1. Raises BadInput for a label that is no class."""
    position = {name: index for index, name in enumerate(classes)}
    vectors = np.zeros((len(labels), len(classes)), dtype=np.float32)
    for row, names in enumerate(labels):
        for name in names:
            if name not in position:
                raise BadInput(f"{where}: label {name!r} is no class; classes: {_some(classes)}")
            vectors[row, position[name]] = 1.0
    return vectors


def rarest_label(vectors: np.ndarray) -> np.ndarray:
    """(N,) int64: the rarest class that each image carries, -1 for none: what multi-label sets are balanced by."""
    counts = vectors.sum(axis=0)
    rarity = np.where(vectors > 0, counts, np.inf)
    return np.where(vectors.any(axis=1), rarity.argmin(axis=1), -1)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")
