"""The last line of a training: what was reached, in the unit of the task."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanvit.cli.train import _scored
from leanvit.verbs.training import Trained


@pytest.mark.parametrize(
    ("score", "metric", "unit", "says"),
    [
        (81.25, "top-1", "%", ", top-1 81.25 % on val"),
        (-0.5, "R2", "", ", R2 -0.5000 on val"),
        (2.0, "error", "steps", ", error 2.0000 steps on val"),
        (None, "R2", "", ""),
    ],
)
def test_the_score_is_said_with_its_unit_where_it_has_one(
    score: float | None, metric: str, unit: str, says: str
) -> None:
    assert _scored(Trained(Path("run"), "tiny", 1, 1.0, score, metric, unit)) == says
