"""The logs of a run's trainings: which there are, what they record of the data, and the curve of the last."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from leanvit.errors import CheckpointError
from leanvit.files import write_atomic
from leanvit.measure import Comparison
from leanvit.runs.layout import EARLIER_LOG, MEASURED, TRAINING_LOG
from leanvit.tasks import LABEL_METRICS, Metric, MultiLabel

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
    try:
        return measured.is_file() and Comparison.from_json(measured.read_bytes()).task == MultiLabel.name
    except CheckpointError:  # damaged: the report names it
        return False


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
    score: Points  # of the validation split: in percent where the metric's unit is "%", else in its unit
    metric: Metric = LABEL_METRICS[0]  # of the score


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
        metric = _metric(rows)
        curve = Curve(
            loss=_points(steps, "loss"),
            lr=_points(steps, "lr"),
            epoch_loss=_points(epochs, "loss"),
            score=_scores(epochs, metric),
            metric=metric,
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a log of training: {error}") from error
    return curve if curve.loss or curve.epoch_loss else None


def _metric(rows: list[dict[str, Any]]) -> Metric:
    """The metric of a log: as its start says; else the one of labels of images that its epochs have."""
    stated = next((row["metric"] for row in reversed(rows) if row["event"] == "start" and "metric" in row), None)
    if stated is not None:
        return Metric(**{key: str(stated[key]) for key in ("name", "title", "better", "unit")})  # type: ignore[arg-type]
    known = (one for one in LABEL_METRICS if any(row["event"] == "epoch" and one.name in row for row in rows))
    return next(known, LABEL_METRICS[0])


def _scores(epochs: list[dict[str, Any]], metric: Metric) -> Points:
    found = _points(epochs, metric.name)
    if metric.unit != "%":
        return found
    return tuple((step, metric.shown(share)) for step, share in found if 0 <= share <= 1)


def _points(rows: list[dict[str, Any]], key: str) -> Points:
    """Steps and finite values; a row without the key is passed over."""
    found = [(float(row["step"]), float(row[key])) for row in rows if row.get(key) is not None]
    finite = [point for point in found if all(map(math.isfinite, point))]
    return tuple(finite[:: math.ceil(len(finite) / MOST_STEPS) or 1])
