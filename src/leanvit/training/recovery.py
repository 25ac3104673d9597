"""Recovery: a compressed model learns back what it lost, from the network that it was made of.

The teacher is the root with its original weights: the closest network there is, and one that needs no labels beyond
those of the data at hand. This is what token reduction, pruning and quantization papers call fine-tuning with
distillation (NViT, arXiv 2110.04869; EViT, arXiv 2202.07800).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from leanvit.data import AnyDataset, Preprocess
from leanvit.errors import BadInput
from leanvit.knobs import Choice, check
from leanvit.training.config import FitConfig
from leanvit.training.engine import FitResult, M, fit
from leanvit.training.objectives import BinaryDistillation, HardDistillation, Objective, SoftDistillation

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
) -> FitResult[M]:
    """Train `lean` in place under distillation from `teacher`, by default its dense root; arguments as in `fit`.

    alpha: weight of the teacher against the labels. temperature: of both distributions, when `distillation` is "soft";
    "hard" takes the teacher's decision. `objective` takes the place of all three. `preprocess` is the root's, which is
    the teacher's too. Raises BadInput if the teacher shares trained weights with the lean model, or for hard
    distillation of multi-label data.
    """
    if objective is None:
        check_distillation(distillation, multi_label=dataset.multi_label)
        given = {"teacher_preprocess": preprocess, "alpha": alpha, "label_smoothing": config.label_smoothing}
        soft = {} if distillation == "hard" else {"temperature": temperature}
        kinds: dict[str, type[Any]] = {"hard": HardDistillation, "soft": SoftDistillation}
        kind = BinaryDistillation if dataset.multi_label else kinds[distillation]
        objective = kind(teacher, **given, **soft)
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
    )


def check_distillation(kind: str, *, multi_label: bool) -> None:
    """Raise BadInput unless a recovery can distil this way."""
    check("distillation", kind, Annotated[str, Choice(DISTILLATIONS)])
    if kind == "hard" and multi_label:
        raise BadInput(
            "distillation is 'hard', but the data is multi-label: a teacher decides for one class; give 'soft'"
        )
