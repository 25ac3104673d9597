"""Intervals and tests for proportions: one alone, and the difference of two on the same images.

Sources: Wilson (1927), score interval of a proportion. Tango, "Equivalence test and confidence interval for the
difference in proportions for the paired-sample design", Statistics in Medicine 17 (1998). McNemar's test in its exact
form: binomial on the pairs that changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from leanvit.errors import BadInput
from leanvit.tasks.metric import RESAMPLES, Metric, Rows, count, resamples


@dataclass(frozen=True)
class Interval:
    """An estimate from n images and its 95 % confidence interval (or `level`'s), in `unit`."""

    value: float
    low: float
    high: float
    n: int
    unit: str  # "fraction", "percent", "points" (percentage points), or the unit of a metric

    def percent(self) -> Interval:
        """The same in percent, from a fraction."""
        if self.unit != "fraction":
            raise BadInput(f"only a fraction can be turned into percent, this interval is in {self.unit}")
        return replace(self, value=100 * self.value, low=100 * self.low, high=100 * self.high, unit="percent")

    def shown(self) -> Interval:
        """In percent from a fraction; as it is in any other unit."""
        return self.percent() if self.unit == "fraction" else self


@dataclass(frozen=True)
class Change(Interval):
    """A paired difference of a metric, in percentage points or its unit. Where an image is right or wrong: `lost` and
    `gained` images, and McNemar's exact two-sided p."""

    lost: int | None = None  # right before, wrong after
    gained: int | None = None  # wrong before, right after
    p_value: float | None = None


Scores = Callable[[np.ndarray | None], np.ndarray]  # weights (R, N), or None for each image once -> scores (R,)


def bootstrapped(
    scores: Scores, rows: Rows, metric: Metric, *, level: float = 0.95, times: int = RESAMPLES
) -> Interval:
    """A score with the percentile interval of a bootstrap over images, always of the same draws."""
    n = count(rows)
    value = float(scores(None)[0])
    low, high = _quantiles(scores(resamples(n, times)), level)
    unit = "fraction" if metric.unit == "%" else metric.unit
    return Interval(value, min(value, low), max(value, high), n, unit)


def paired(before: Scores, after: Scores, rows: Rows, metric: Metric, *, level: float = 0.95) -> Change:
    """The difference of two scores of the same images, with the interval of a bootstrap that draws for both alike."""
    n = count(rows)
    value = float(after(None)[0] - before(None)[0])
    weights = resamples(n)
    low, high = _quantiles(after(weights) - before(weights), level)
    scale, unit = (100, "points") if metric.unit == "%" else (1, metric.unit)
    return Change(scale * value, scale * min(value, low), scale * max(value, high), n, unit)


def from_pairs(gained: int, lost: int, n: int, *, level: float = 0.95) -> Change:
    """The change of a share of images, of which some were gained and some lost: Tango's score interval, in points.

    It stays honest for small samples and when no image changed (after 500 images without a change it still reaches
    ±0.76 points).
    """
    low, high = tango(gained, lost, n, level=level)
    value, p = 100 * (gained - lost) / n, mcnemar_exact(gained, lost)
    return Change(value, 100 * low, 100 * high, n, "points", lost=lost, gained=gained, p_value=p)


def _quantiles(scores: np.ndarray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise BadInput(f"level must lie between 0 and 1, got {level!r}")
    sure = scores[np.isfinite(scores)]
    if not len(sure):
        return math.inf, -math.inf
    low, high = np.quantile(sure, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion."""
    z2, p = _z(level) ** 2, successes / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # Exact at the ends, where rounding would leave 1e-17 outside [0, 1].
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(p, low, high, n, "fraction")


def tango(b: int, c: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Tango's score interval of (b - c) / n, where b and c of n pairs changed, one way and the other."""
    z = _z(level)
    estimate = (b - c) / n
    low = _crossing(lambda delta: _tango_score(b, c, n, delta) - z, -1.0, estimate)
    high = _crossing(lambda delta: _tango_score(b, c, n, delta) + z, estimate, 1.0)
    return low, high


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact p of McNemar's test: twice the binomial tail (b + c, 1/2) up to min(b, c), at most 1."""
    n, tail, term = b + c, 0, 1
    for k in range(min(b, c) + 1):
        tail += term  # term is n choose k
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def _tango_score(b: int, c: int, n: int, delta: float) -> float:
    """The score statistic of "the difference is delta"; it falls as delta grows."""
    linear = -b - c + (2 * n - b + c) * delta
    constant = -c * delta * (1 - delta)
    q = (math.sqrt(max(linear * linear - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2 * q + delta * (1 - delta))
    difference = b - c - n * delta
    return difference / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, difference)


def _crossing(f: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling f crosses zero between low and high, by bisection to the last bits."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) > 0 else (low, middle)
    return (low + high) / 2


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise BadInput(f"level must lie between 0 and 1, got {level!r}")
    return NormalDist().inv_cdf((1 + level) / 2)
