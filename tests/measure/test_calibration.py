"""Reliability and expected calibration error against sums made by hand."""

import numpy as np
import pytest

from leanvit.errors import BadInput
from leanvit.measure import reliability


def test_bins_and_error_by_hand() -> None:
    confidence = np.array([0.95, 0.99, 0.97, 0.41, 0.45])
    right = np.array([True, True, False, False, True])
    found = reliability(confidence, right)
    assert [b.count for b in found.bins] == [2, 3], "(0.4, 0.467] and (0.933, 1]"
    assert found.bins[0].confidence == pytest.approx(0.43) and found.bins[0].accuracy == 0.5
    assert found.ece == pytest.approx((2 * abs(0.5 - 0.43) + 3 * abs(2 / 3 - 0.97)) / 5)


def test_a_bin_holds_its_upper_edge() -> None:
    found = reliability(np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), np.ones(6, bool), bins=5)
    assert [b.count for b in found.bins] == [2, 1, 1, 1, 1]
    assert [b.count for b in reliability(np.array([9 / 15], np.float32), np.ones(1, bool)).bins] == [1]


def test_perfect_confidence_has_no_error() -> None:
    assert reliability(np.ones(4), np.ones(4, bool)).ece == 0
    assert reliability(np.ones(4), np.zeros(4, bool)).ece == 1


@pytest.mark.parametrize(
    ("confidence", "right", "bins", "message"),
    [
        ([], [], 15, "at least one image"),
        ([0.5], [True, False], 15, "two arrays"),
        ([1.5], [True], 15, "probabilities"),
        ([float("nan")], [True], 15, "probabilities"),
        ([0.5], [True], 0, "bins must be at least 1"),
    ],
)
def test_bad_input_is_named(confidence, right, bins, message) -> None:
    with pytest.raises(BadInput, match=message):
        reliability(np.array(confidence), np.array(right, bool), bins=bins)
