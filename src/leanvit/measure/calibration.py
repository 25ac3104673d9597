"""How far confidences can be believed: reliability by bins of confidence, and the expected calibration error.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv 1706.04599), equations 2, 3 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leanvit.errors import BadInput

BINS = 15  # the paper's


@dataclass(frozen=True)
class Bin:
    """The images whose confidence fell into one bin."""

    count: int
    confidence: float  # mean, 0 to 1
    accuracy: float  # fraction answered rightly


@dataclass(frozen=True)
class Reliability:
    """The bins that hold an image, from low to high confidence, and the expected calibration error (0 to 1)."""

    ece: float
    bins: tuple[Bin, ...]


def reliability(confidence: np.ndarray, right: np.ndarray, *, bins: int = BINS) -> Reliability:
    """Bin answers by the probability that was given to them.

    Args:
        confidence: (N,) float, largest softmax probability of each image.
        right: (N,) bool, whether the answer was the target.
        bins: bins of equal width; each holds its upper edge, the lowest also 0.

    Raises BadInput for no image, shapes that differ, or values that are no probabilities.
    """
    confidence, right = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=bool)
    if confidence.shape != right.shape or confidence.ndim != 1 or not len(confidence):
        raise BadInput(
            f"reliability needs two arrays (N,) of at least one image, got {confidence.shape}, {right.shape}"
        )
    if not ((confidence >= 0) & (confidence <= 1 + 1e-6)).all():
        raise BadInput("reliability: confidence must hold probabilities from 0 to 1")
    if bins < 1:
        raise BadInput(f"reliability: bins must be at least 1, got {bins!r}")
    # Binned in float32, as softmax gives them: float64 would move 0.6 out of (0.533, 0.6].
    place = np.clip(np.ceil(confidence.astype(np.float32) * np.float32(bins)).astype(int) - 1, 0, bins - 1)
    made = []
    for number in np.unique(place):
        inside = place == number
        made.append(Bin(int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean())))
    ece = sum(b.count * abs(b.accuracy - b.confidence) for b in made) / len(confidence)
    return Reliability(ece, tuple(made))
