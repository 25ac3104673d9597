"""What a model gave on a data set, as its task judges it: rows and answers by key. The common currency of `compare`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from leanvit.data import Batch
from leanvit.errors import BadInput
from leanvit.measure.predictions import Predictions, places, require_keys
from leanvit.measure.runners import Runner, evaluating, outputs_of
from leanvit.tasks import Task
from leanvit.tasks.intervals import Change, Interval
from leanvit.tasks.metric import Rows, count, joined, picked

MOST_ANSWERS_BYTES = 512 * 2**20  # of one model; of a model with more none are kept


@dataclass(frozen=True, eq=False)
class Judged:
    """Rows of a score and answers of N images with distinct keys, in the same order.

    answers: an array (N, ...), or one for each head; None where they were too large to keep. Raises BadInput when the
    numbers do not fit, or a key comes twice.
    """

    task: Task
    keys: tuple[str, ...]
    rows: Rows
    answers: Any

    def __post_init__(self) -> None:
        require_keys(self.keys)
        if count(self.rows) != len(self.keys):
            raise BadInput(f"rows of {self.task.name}: {count(self.rows)} for {len(self.keys)} keys")

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(cls, predictions: Predictions) -> Judged:
        """Of logits and targets: one class an image, or several."""
        task, keys = predictions.task, predictions.keys
        batch = Batch(torch.empty(len(keys), 0), predictions.targets, list(keys))  # rows need no images
        return cls(task, keys, task.rows(predictions.logits, batch), predictions.answers.numpy())

    def interval(self, metric: str = "", *, level: float = 0.95) -> Interval:
        """A figure of the task with its confidence interval; by default the first."""
        return self.task.interval(self.rows, metric, level=level)

    def change(self, after: Judged, *, level: float = 0.95) -> Change:
        """From these to others of the same images, paired by key. Raises BadInput naming a key that one side lacks."""
        return self.task.change(self.rows, after.ordered_by(self.keys).rows, level=level)

    def agreement(self, other: Judged, *, level: float = 0.95) -> Interval | None:
        """How far both answer the same images alike, paired by key; None where the task does not say, or answers of one
        were not kept."""
        if self.answers is None or other.answers is None:
            return None
        return self.task.agreement(self.answers, other.ordered_by(self.keys).answers, level=level)

    def ordered_by(self, keys: tuple[str, ...]) -> Judged:
        """The same in the order of `keys`. Raises BadInput naming the first key that only one side has."""
        if keys == self.keys:
            return self
        order = np.array(places(self.keys, keys))
        answers = None if self.answers is None else picked(self.answers, order)
        return replace(self, keys=keys, rows=picked(self.rows, order), answers=answers)


def judge_all(task: Task, runners: Mapping[str, Runner], loader: Iterable[Any]) -> dict[str, Judged]:
    """Run every batch of a loader through each runner (eval mode, inference mode), and judge the outputs by a task.

    One pass over the data. Raises BadInput for an empty loader, and for outputs of another form than the task takes, or
    that are not finite; the text names the runner and keys of the batch.
    """
    parts = {name: _Parts() for name in runners}
    keys: list[str] = []
    with evaluating(*runners.values()), torch.inference_mode():
        for batch in loader:
            keys.extend(batch.keys)
            for name, runner in runners.items():
                try:
                    outputs = outputs_of(runner, batch.images, batch.keys, task.run)
                    parts[name].add(task.rows(outputs, batch), task.answers(outputs))
                except BadInput as error:
                    raise BadInput(f"{name}: {error}") from None
    if not keys:
        raise BadInput("loader gave no batch: there is nothing to judge")
    return {name: Judged(task, tuple(keys), joined(own.rows), own.whole()) for name, own in parts.items()}


@dataclass
class _Parts:
    """What one model gave, batch by batch."""

    rows: list[Rows] = field(default_factory=list)
    answers: list[Any] | None = field(default_factory=list)
    size: int = 0

    def add(self, rows: Rows, answers: Any) -> None:
        self.rows.append(rows)
        if self.answers is None:
            return
        found = _arrays(answers)
        self.size += _bytes(found)
        if self.size > MOST_ANSWERS_BYTES:
            self.answers = None
        else:
            self.answers.append(found)

    def whole(self) -> Any:
        return None if self.answers is None else joined(self.answers)


def _arrays(answers: Any) -> Any:
    """Answers as arrays."""
    if isinstance(answers, Mapping):
        return {name: _arrays(one) for name, one in answers.items()}
    return answers.numpy() if isinstance(answers, torch.Tensor) else np.asarray(answers)


def _bytes(answers: Any) -> int:
    return sum(map(_bytes, answers.values())) if isinstance(answers, Mapping) else int(answers.nbytes)
