"""Recovery: a compressed model learns back what it lost, from the network that it was made of.

The teacher is the root with its original weights: the closest network there is, and one that needs no labels beyond
those of the data at hand. This is what token reduction, pruning and quantization papers call fine-tuning with
distillation (NViT, arXiv 2110.04869; EViT, arXiv 2202.07800).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from torch import nn

from leanvit.data import AnyDataset, Preprocess
from leanvit.knobs import Choice, check
from leanvit.tasks import Task
from leanvit.tasks.objectives import Objective
from leanvit.training.assemble import task_of_run
from leanvit.training.config import FitConfig
from leanvit.training.engine import FitResult, M, fit

DISTILLATIONS = ("soft", "hard")

# A short run close to the weights that are there: low rate, little decay, no drop path (EViT and NViT fine-tune in
# eval mode), gradients clipped as the first steps after surgery are the rough ones.
RECOVERY = FitConfig(
    epochs=5, batch_size=64, lr=1e-4, warmup_epochs=0.25, weight_decay=0.01, clip_grad=1.0, train_mode="eval"
)


def recover(
    lean: M,
    teacher: nn.Module,
    dataset: AnyDataset,
    *,
    preprocess: Preprocess,
    config: FitConfig = RECOVERY,
    alpha: float = 0.5,
    temperature: float = 2.0,
    distillation: str = "soft",
    objective: Objective | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[object] = (),
    validate: AnyDataset | None = None,
    convert: bool = False,
    task: Task | None = None,
) -> FitResult[M]:
    """Train `lean` in place under distillation from `teacher`, by default its dense root; arguments as in `fit`.

    alpha: weight of the teacher against the labels. temperature: of both distributions, when `distillation` is "soft";
    "hard" takes the teacher's decision. `objective` takes the place of all three. `preprocess` is the root's, which is
    the teacher's too. Raises BadInput if the teacher shares trained weights with the lean model, or for a distillation
    that the task does not have.
    """
    task = task_of_run(lean, dataset, objective, task)
    if objective is None:
        check_distillation(distillation, task)
        objective = task.distillation(
            teacher,
            preprocess=preprocess,
            kind=distillation,
            alpha=alpha,
            temperature=temperature,
            label_smoothing=config.label_smoothing,
        )
    return fit(
        lean,
        dataset,
        preprocess=preprocess,
        config=replace(config, label_smoothing=0.0),
        objective=objective,
        callbacks=callbacks,
        out=out,
        resume=resume,
        validate=validate,
        convert=convert,
        task=task,
    )


def check_distillation(kind: str, task: Task) -> None:
    """Raise BadInput unless a recovery can distil this way."""
    check("distillation", kind, Annotated[str, Choice(DISTILLATIONS)])
    task.check_distillation(kind)
