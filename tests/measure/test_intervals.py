"""Intervals against published examples and against their defining property, coverage."""

from __future__ import annotations

import random

import pytest

from leanvit.errors import BadInput
from leanvit.tasks.intervals import Interval, mcnemar_exact, tango, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_of_published_examples(successes: int, n: int, low: float, high: float) -> None:
    found = wilson(successes, n)
    assert (found.value, found.n) == (successes / n, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_wilson_stays_inside_the_unit_interval() -> None:
    assert wilson(0, 7).low == 0.0 and wilson(7, 7).high == 1.0
    assert wilson(7, 7).low == pytest.approx(1 - wilson(0, 7).high)


def test_tango_and_mcnemar_of_a_published_example() -> None:
    """Airway hyper-responsiveness before and after transplantation: 1 and 7 of 21 pairs changed (Fagerlund,
    Lydersen & Laake, "Recommended tests and confidence intervals for paired binomial proportions", 2014)."""
    low, high = tango(1, 7, 21)
    assert (low, high) == (pytest.approx(-0.517, abs=5e-4), pytest.approx(-0.026, abs=5e-4))
    assert mcnemar_exact(1, 7) == pytest.approx(0.0703, abs=5e-5)


def test_tango_is_antisymmetric_and_honest_without_any_change() -> None:
    low, high = tango(3, 9, 100)
    assert tango(9, 3, 100) == (pytest.approx(-high), pytest.approx(-low))
    low, high = tango(0, 0, 500)
    assert -low == pytest.approx(high) and high == pytest.approx(3.8415 / (500 + 3.8415), rel=1e-3)
    assert tango(20, 0, 20)[1] == pytest.approx(1.0)


def test_tango_covers_the_truth_in_95_of_100_cases() -> None:
    draw = random.Random(5)
    gained, lost, n, trials = 0.04, 0.07, 200, 1500
    covered = 0
    for _ in range(trials):
        steps = [draw.random() for _ in range(n)]
        b = sum(u < gained for u in steps)
        c = sum(gained <= u < gained + lost for u in steps)
        low, high = tango(b, c, n)
        covered += low <= gained - lost <= high
    assert 0.93 <= covered / trials <= 0.97


def test_mcnemar_is_exact_for_any_size() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5, 5) == 1.0
    assert mcnemar_exact(0, 10) == 2 / 1024
    assert mcnemar_exact(900, 1100) == pytest.approx(8.6e-6, rel=0.03)
    assert 0 < mcnemar_exact(20_000, 21_000) < 1e-5


def test_level_and_units() -> None:
    assert wilson(30, 100, level=0.99).low < wilson(30, 100).low
    assert wilson(30, 100).percent() == Interval(
        30.0, 100 * wilson(30, 100).low, 100 * wilson(30, 100).high, 100, "percent"
    )
    with pytest.raises(BadInput, match="this interval is in percent"):
        wilson(30, 100).percent().percent()
    with pytest.raises(BadInput, match="level must lie between 0 and 1"):
        wilson(30, 100, level=95)
