"""Figures of merit: their names, directions and units; and per-image rows that scores are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from leanvit.errors import BadInput, unknown

Rows = np.ndarray | Mapping[str, Any]  # the first axis of every array is the image; a mapping has one entry a head
RESAMPLES = 200  # of a bootstrap


@dataclass(frozen=True)
class Metric:
    """One figure of a task: what it is called, which way is better, and in what unit it is shown."""

    name: str  # in logs and files
    title: str  # for people
    better: Literal["higher", "lower"] = "higher"
    unit: str = "%"  # a figure in "%" is a fraction, 0 to 1; any other is in its unit

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise BadInput(f"metric {self.name!r}: better is {self.better!r}; accepted: 'higher' or 'lower'")

        if self.unit in ("fraction", "percent", "points"):
            raise BadInput(
                f"metric {self.name!r}: unit is {self.unit!r}; accepted: '%' for a fraction, or another unit"
            )

    def improves(self, value: float, best: float | None) -> bool:
        """Whether a figure is better than the best so far; not where they are equal."""
        if best is None:
            return value == value  # nan is never the best
        return value > best if self.better == "higher" else value < best

    def shown(self, value: float) -> float:
        """The figure in its unit: percent for a fraction."""
        return 100 * value if self.unit == "%" else value

    def text(self, value: float) -> str:
        """As in "top-1 81.2 %"."""
        number = f"{self.shown(value):.1f}" if self.unit == "%" else f"{value:.4g}"
        return f"{self.title} {number} {self.unit}".rstrip()


def metric_of(metrics: Sequence[Metric], name: str) -> Metric:
    """The metric of a name; "" is the first. Raises `BadInput` for an unknown one."""
    found = {one.name: one for one in metrics}
    if name and name not in found:
        raise unknown("metric", name, found)
    return found[name] if name else metrics[0]


def totals(rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """(R, ...) float64 sums of rows (N, ...), each image counted as often as weights (R, N) say; by default once."""
    if weights is None:
        return np.asarray(rows.sum(axis=0, dtype=np.float64))[None]
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    return np.asarray(weights @ flat).reshape(len(weights), *rows.shape[1:])


def count(rows: Rows) -> int:
    """How many images rows are of."""
    return count(next(iter(rows.values()))) if isinstance(rows, Mapping) else len(rows)


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of several batches as one."""
    if isinstance(parts[0], Mapping):
        return {name: joined([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)  # type: ignore[arg-type]


def summed(rows: Rows) -> Rows:
    """Rows as one row, their sum: whole numbers stay whole."""
    if isinstance(rows, Mapping):
        return {name: summed(part) for name, part in rows.items()}
    exact = np.int64 if rows.dtype.kind in "iub" else np.float64
    return np.asarray(rows.sum(axis=0, dtype=exact))[None]


def picked(rows: Rows, order: np.ndarray) -> Rows:
    """The rows of the images at these places."""
    return {name: picked(part, order) for name, part in rows.items()} if isinstance(rows, Mapping) else rows[order]


def resamples(images: int, times: int = RESAMPLES) -> np.ndarray:
    """(times, images) float64: how often each image counts in each resample; always the same draws."""
    draws = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=times)
    return draws.astype(np.float64)
