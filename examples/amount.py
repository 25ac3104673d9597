"""A number instead of a class: a task of one's own, for ages, counts, grades. The names of labels are numbers.

The model has one output. It is judged by the mean absolute error, in the unit of the labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor, tensor
from torch.nn.functional import mse_loss, smooth_l1_loss

from leanvit.data import AnyDataset, Batch
from leanvit.tasks import Metric, Task, task
from leanvit.tasks.metric import totals


@task("amount")
@dataclass(frozen=True)
class Amount(Task):
    """values: the number of each label, in the order of the data's classes; default: what their names say."""

    values: tuple[float, ...] = ()

    needs: ClassVar[tuple[str, ...]] = ("label",)
    words: ClassVar[str] = "a number each image"
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("mae", "mean absolute error", better="lower", unit="steps"),)

    def fitted(self, dataset: AnyDataset) -> Self:
        named = tuple(map(_number, dataset.classes))
        return self if self.values or np.isnan(named).any() else replace(self, values=named)

    def problems(self, model: Any, dataset: Any) -> Iterator[str]:
        outputs = getattr(model, "num_classes", 1)
        if outputs != 1:
            yield f"the model has {outputs} outputs; accepted: one (--model-arg num_classes=1)"
        wrong = [name for name in getattr(dataset, "classes", ()) if np.isnan(_number(name))]
        if wrong and not self.values:
            yield f"the label {wrong[0]!r} is no number; accepted: labels that are, or values=[...]"

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return smooth_l1_loss(outputs[:, 0].float(), self.truth(batch))

    def divergence(self, outputs: Any, taught: Any, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        return mse_loss(outputs.float(), taught.float())

    def rows(self, outputs: Any, batch: Batch) -> np.ndarray:
        """(B, 2) float64: the error, and 1."""
        error = (outputs[:, 0].float() - self.truth(batch)).abs().double().cpu().numpy()
        return np.stack([error, np.ones_like(error)], axis=1)

    def score(self, rows: Any, weights: np.ndarray | None = None, metric: str = "") -> np.ndarray:
        error, images = totals(rows, weights).T
        return np.asarray(error / images)

    def truth(self, batch: Batch) -> Tensor:
        return tensor(self.values, device=batch.targets.device)[batch.targets]

    def columns(self, answer: Any, classes: Sequence[str]) -> dict[str, Any]:
        return {"amount": round(float(answer[0]), 4)}


def _number(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return float("nan")
