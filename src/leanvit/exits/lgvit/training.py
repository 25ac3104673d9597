"""The two trainings of LGViT in the one loop of `leanvit.training`, each resumable in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from leanvit.anatomy import OpenModel
from leanvit.data import AnyDataset
from leanvit.exits.lgvit.losses import Joint, SelfDistillation, Weights, kinds_of
from leanvit.recipe.learning import Data
from leanvit.training import FitConfig, Objective, check_run, fit

if TYPE_CHECKING:
    from leanvit.exits.lgvit.method import LGViT


def train_exits(knobs: LGViT, model: OpenModel, dataset: AnyDataset, data: Data) -> None:
    """Stage 1 (backbone and heads), if it has epochs, then stage 2 (heads alone), in place."""
    if knobs.stage1_epochs:
        first = replace(data, out=None if data.out is None else data.out / "stage1")
        _fit(knobs, model, dataset, first, Joint(knobs.strategy), epochs=knobs.stage1_epochs, lr=knobs.stage1_lr)
    if knobs.epochs:
        weights = Weights(knobs.alpha, knobs.beta_heterogeneous, knobs.beta_homogeneous, knobs.temperature)
        with only_heads_learn(model):
            objective = SelfDistillation(kinds_of(model), weights)
            _fit(knobs, model, dataset, data, objective, epochs=knobs.epochs, lr=knobs.lr, train_mode="eval")


def check_training(knobs: LGViT, model: OpenModel, dataset: AnyDataset, data: Data) -> None:
    """Raise `BadInput` unless the trainings fit model and data."""
    if knobs.stage1_epochs or knobs.epochs:
        config = FitConfig(epochs=1, lr=knobs.lr, batch_size=knobs.images, augment=knobs.augment)
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
    knobs: LGViT,
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
    recipe |= {"batch_size": knobs.images, "seed": data.seed, "amp": knobs.amp, "augment": knobs.augment}
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
