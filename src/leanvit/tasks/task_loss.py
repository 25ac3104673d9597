"""The objective of a task of one's own: its loss, and in a recovery its divergence from a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from leanvit.data import Batch, Preprocess
from leanvit.data.fields import LABEL
from leanvit.errors import BadInput
from leanvit.knobs import Fraction, Positive, check
from leanvit.tasks.objectives import Loss, Objective, no_shared_weights, same_preprocess


class TaskLoss(Objective):
    """(1 - alpha) loss + alpha divergence, both of the task (`leanvit.tasks.Task`); the loss alone without a teacher.

    teacher: gives outputs of the same kind for the student's images. It is put in eval mode and runs without gradient;
    it is no sub-module, so it is neither saved with the run nor trained.
    """

    def __init__(
        self,
        task: Any,
        *,
        teacher: nn.Module | None = None,
        teacher_preprocess: Preprocess | None = None,
        alpha: float = 0.5,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if not getattr(task, "name", ""):
            raise BadInput(
                f"task is a {type(task).__name__}; accepted: a task, a subclass of leanvit.tasks.Task that is "
                "registered by @task(NAME)"
            )
        self.task, self.alpha = task, check("alpha", alpha, Fraction)
        self.temperature: float = check("temperature", temperature, Positive)  # of both, where it is of distributions
        self.needs_labels = LABEL in task.reads
        self.teacher_preprocess = teacher_preprocess
        self._teacher = (None if teacher is None else teacher.eval(),)  # hidden from nn.Module's registration

    def extra_repr(self) -> str:
        """What a run to resume must have alike."""
        alpha = self.alpha if self._teacher[0] is not None else 0
        softened = f", temperature={self.temperature}" if alpha and self.temperature != 1 else ""
        return f"{name_of(self.task)}, alpha={alpha}{softened}"

    def bind(self, model: nn.Module, preprocess: Preprocess) -> None:
        """Refuse a teacher that would mislead."""
        if self._teacher[0] is not None:
            same_preprocess(self.teacher_preprocess or preprocess, preprocess)
            no_shared_weights(self._teacher[0], model)

    @torch.no_grad()
    def ask_teacher(self, images: Tensor) -> Any:
        """What the teacher gives for the student's normalised images (B, C, H, W)."""
        assert self._teacher[0] is not None
        return self.task.run(self._teacher[0].to(images.device), images)

    def terms(self, batch: Batch) -> int | tuple[int, ...] | None:
        found: int | tuple[int, ...] | None = self.task.terms(batch)
        return found

    def forward(self, model: nn.Module, batch: Batch, step: int, context: Mapping[str, Any]) -> Loss:
        outputs = self.task.run(model, batch.images, **context)
        own = self.task.loss(outputs, batch)
        if self._teacher[0] is None:
            return Loss(own)
        taught = self.ask_teacher(batch.images)
        apart = self.task.divergence(outputs, taught, batch, temperature=self.temperature)
        parts = {"base": own.detach(), "distillation": apart.detach()}
        return Loss((1 - self.alpha) * own + self.alpha * apart, parts)


def name_of(task: Any) -> str:
    """What tells tasks apart where a run goes on: the task in words, or its class where it says nothing of itself."""
    silent = type(task).__repr__ is object.__repr__
    return type(task).__qualname__ if silent else repr(task)
