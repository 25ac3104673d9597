"""The objective of a task of one's own: its loss, and in a recovery its divergence from a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from leanvit.data import Batch
from leanvit.knobs import Fraction, check
from leanvit.training.objectives import Loss, Objective


class TaskLoss(Objective):
    """(1 - alpha) loss + alpha divergence, both of the task (`leanvit.recipe.Task`); the loss alone without a teacher.

    teacher: gives outputs of the same kind for the student's images. It is put in eval mode and runs without gradient;
    it is no sub-module, so it is neither saved with the run nor trained.
    """

    def __init__(self, task: Any, *, teacher: nn.Module | None = None, alpha: float = 0.5) -> None:
        super().__init__()
        self.task, self.alpha = task, check("alpha", alpha, Fraction)
        self.needs_labels = needs_labels(task)
        self._teacher = (None if teacher is None else teacher.eval(),)  # hidden from nn.Module's registration

    def extra_repr(self) -> str:
        """What a run to resume must have alike."""
        return f"{name_of(self.task)}, alpha={self.alpha if self._teacher[0] is not None else 0}"

    def terms(self, batch: Batch) -> int | None:
        return terms_of(self.task, batch)

    def forward(self, model: nn.Module, batch: Batch, step: int, context: Mapping[str, Any]) -> Loss:
        outputs = model(batch.images, **context)
        own = self.task.loss(outputs, batch)
        teacher = self._teacher[0]
        if teacher is None:
            return Loss(own)
        with torch.no_grad():
            taught = teacher.to(batch.images.device)(batch.images)
        apart = self.task.divergence(outputs, taught, batch)
        parts = {"base": own.detach(), "distillation": apart.detach()}
        return Loss((1 - self.alpha) * own + self.alpha * apart, parts)


def name_of(task: Any) -> str:
    """What tells tasks apart where a run goes on: the task in words, or its class where it says nothing of itself."""
    silent = type(task).__repr__ is object.__repr__
    return type(task).__qualname__ if silent else repr(task)


def needs_labels(task: Any) -> bool:
    """Whether a task reads `batch.targets`: it does unless it says `needs_labels = False`, and so does no task."""
    return bool(getattr(task, "needs_labels", True))


def terms_of(task: Any, batch: Batch) -> int | None:
    """What the loss of a task is the mean over, where it says so: its `terms(batch)`, as an objective's."""
    terms = getattr(task, "terms", None)
    return None if terms is None else terms(batch)
