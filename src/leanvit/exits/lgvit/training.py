"""The two trainings of LGViT in the one loop of `leanvit.training`, each resumable in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from leanvit.anatomy import OpenModel
from leanvit.data import AnyDataset
from leanvit.exits.lgvit.losses import Joint, SelfDistillation, Weights, kinds_of
from leanvit.recipe.learning import Data
from leanvit.training import FitConfig, Objective, check_run, fit


@dataclass(frozen=True)
class Stages:
    """What the two trainings are done with: the first of backbone and heads, the second of the heads alone."""

    stage1_epochs: int
    stage1_lr: float
    strategy: str  # of stage 1, one of `losses.STRATEGIES`
    epochs: int  # of stage 2
    lr: float  # of stage 2
    weights: Weights  # of stage 2's losses
    images: int  # a step
    augment: str | None
    amp: str


def train_exits(stages: Stages, model: OpenModel, dataset: AnyDataset, data: Data) -> None:
    """Stage 1 (backbone and heads), if it has epochs, then stage 2 (heads alone), in place."""
    if stages.stage1_epochs:
        first = replace(data, out=None if data.out is None else data.out / "stage1")
        _fit(stages, model, dataset, first, Joint(stages.strategy), epochs=stages.stage1_epochs, lr=stages.stage1_lr)
    if stages.epochs:
        with only_heads_learn(model):
            objective = SelfDistillation(kinds_of(model), stages.weights)
            _fit(stages, model, dataset, data, objective, epochs=stages.epochs, lr=stages.lr, train_mode="eval")


def check_training(stages: Stages, model: OpenModel, dataset: AnyDataset, data: Data) -> None:
    """Raise `BadInput` unless the trainings fit model and data."""
    if stages.stage1_epochs or stages.epochs:
        config = FitConfig(epochs=1, lr=stages.lr, batch_size=stages.images, augment=stages.augment)
        check_run(model, dataset, preprocess=data.preprocess, config=config, convert=True)


@contextmanager
def only_heads_learn(model: OpenModel) -> Iterator[None]:
    """Inside, the backbone is frozen; afterwards every parameter is as it was."""
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        for name, p in model.named_parameters():
            p.requires_grad_(name.startswith("exits."))
        yield
    finally:
        for name, p in model.named_parameters():
            p.requires_grad_(before[name])


def _fit(
    stages: Stages,
    model: OpenModel,
    dataset: AnyDataset,
    data: Data,
    objective: Objective,
    *,
    epochs: int,
    lr: float,
    train_mode: str = "train",
) -> None:
    recipe: dict[str, Any] = {"lr": lr, "min_lr": 0.0, "schedule": "linear", "weight_decay": 0.0}
    recipe |= {"batch_size": stages.images, "seed": data.seed, "amp": stages.amp, "augment": stages.augment}
    fit(
        model,
        dataset,
        preprocess=data.preprocess,
        config=FitConfig(epochs=epochs, train_mode=train_mode, save_every=100, **recipe),
        objective=objective,
        callbacks=data.callbacks,
        out=data.out,
        resume=data.resume,
        convert=True,  # whether data and model fit was decided when the dense model was made
    )
