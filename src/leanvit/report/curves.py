"""The course of a training, from the lines that it logged."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanvit.errors import CheckpointError

MOST_BYTES = 64 * 2**20
MOST_STEPS = 800  # drawn; of more, evenly many are left out

Points = tuple[tuple[float, float], ...]  # (step, value)


@dataclass(frozen=True)
class Curve:
    """Values by optimiser step; epochs at their last step."""

    loss: Points
    lr: Points
    epoch_loss: Points
    top1_percent: Points  # of the validation split


def read_curve(path: Path) -> Curve | None:
    """Read `train.jsonl`; None if there is none, or nothing in it yet. Raises `CheckpointError` if it is damaged.

    The last line may be cut short: a running training writes on.
    """
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines[:-1] if line.strip()]
        steps = [row for row in rows if row["event"] == "step"]
        epochs = [row for row in rows if row["event"] == "epoch"]
        curve = Curve(
            loss=_points(steps, "loss"),
            lr=_points(steps, "lr"),
            epoch_loss=_points(epochs, "loss"),
            top1_percent=tuple((step, 100 * share) for step, share in _points(epochs, "top1") if 0 <= share <= 1),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a log of training: {error}") from error
    return curve if curve.loss or curve.epoch_loss else None


def _points(rows: list[dict[str, Any]], key: str) -> Points:
    """Steps and finite values; a row without the key is passed over."""
    found = [(float(row["step"]), float(row[key])) for row in rows if row.get(key) is not None]
    finite = [point for point in found if all(map(math.isfinite, point))]
    return tuple(finite[:: math.ceil(len(finite) / MOST_STEPS) or 1])
