"""Training tasks of timm (`timm.task`) as objectives.

A task holds its student, its teacher and its loss: `task(images, targets)` gives a dict with `loss`, the student's
`output`, and further scalars, which are logged. The engine does what timm's script does around a task (averaged
weights, processes, saving), so of a task only its forward is used:

    task = timm.task.LogitDistillationTask(student, teacher, verbose=False)
    fit(student, dataset, preprocess=..., config=..., objective=TimmTask(task))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.task import TrainingTask
from torch import Tensor, nn

from leanvit.data import Batch, Preprocess
from leanvit.errors import BadInput, Refused
from leanvit.tasks.objectives import Loss, Objective


class TimmTask(Objective):
    """A task as an objective. Its student has to be the very model that `fit` trains.

    What else the task trains (the projection of a feature distillation) becomes the objective's own parameters, trained
    and saved along; the teacher is neither saved nor wrapped. Raises BadInput for something else than a task, for one
    that averages weights itself (`ema_decay` of the recipe does), and for one whose student is another model.
    """

    def __init__(self, task: TrainingTask) -> None:
        super().__init__()
        if not isinstance(task, TrainingTask):
            raise BadInput(f"task={type(task).__name__} is not accepted: give a timm.task.TrainingTask")
        if task.has_ema():
            raise BadInput("task averages weights itself: leave setup_ema() out and give ema_decay in the recipe")
        self.learns = "several" if getattr(task, "multi_label", False) else "one"
        self._task = (task,)  # the tuple hides student and teacher from nn.Module's registration

    def bind(self, model: nn.Module, preprocess: Preprocess) -> None:
        """Refuse a task of another student; take its own parameters over."""
        task = self._task[0]
        if not any(module is model for module in task.modules()):
            raise BadInput(
                "the task's student is not the model that is trained: make the task with that model (and train with "
                "parallel='ddp': fsdp2 trains a copy)"
            )
        task.to(next(model.parameters()).device)
        teacher = getattr(task, "teacher", None)
        if isinstance(teacher, nn.Module):
            teacher.requires_grad_(False)
        students = {id(p) for p in model.parameters()}
        for name, p in task.named_parameters():
            if p.requires_grad and id(p) not in students:
                self.register_parameter(name.replace(".", "_"), p)

    def forward(self, model: nn.Module, batch: Batch, step: int, context: Mapping[str, Any]) -> Loss:
        if context:
            raise Refused(f"timm tasks run their model without arguments, but callbacks give {sorted(context)}")
        result = self._task[0](batch.images, batch.targets)
        scalars = {name: value.detach() for name, value in result.items() if _is_scalar(value) and name != "loss"}
        return Loss(result["loss"], scalars)

    def extra_repr(self) -> str:
        """The task's class, so that a run resumed with another one is refused."""
        return type(self._task[0]).__name__


def _is_scalar(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0
