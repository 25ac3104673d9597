"""The logs of a run's trainings: which there are, what they record of the data, and the curve of the last."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from leanvit.errors import CheckpointError
from leanvit.files import write_atomic
from leanvit.runs.layout import EARLIER_LOG, MEASURED, TRAINING_LOG

MOST_BYTES = 64 * 2**20
MOST_STEPS = 800  # drawn; of more, evenly many are left out

Points = tuple[tuple[float, float], ...]  # (step, value)


def training_logs(folder: Path) -> list[Path]:
    """The logs of a run's trainings, oldest first."""
    earlier = (folder / EARLIER_LOG.format(number) for number in range(1, 1000))
    return [*takewhile(Path.is_file, earlier), *(p for p in [folder / TRAINING_LOG] if p.is_file())]


def trained_on_labels(folder: Path) -> bool:
    """Whether a run's last training was scored as multi-label data are (mAP), or its measurement was of such data."""
    for log in reversed(training_logs(folder)):
        rows = log.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [line for line in rows if '"map":' in line or '"top1":' in line]
        if found:
            return '"map":' in found[-1]
    measured = folder / MEASURED
    return (
        measured.is_file() and re.search(r'"multi_label":\s*true', measured.read_text("utf-8", "replace")) is not None
    )


def keep_logs(source: Path | None, target: Path) -> None:
    """Copy the training logs of the run that `target` was trained on from."""
    if source is None or source.resolve() == target.resolve():
        return
    for number, log in enumerate(training_logs(source), start=1):
        write_atomic(target / EARLIER_LOG.format(number), log.read_bytes())


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
