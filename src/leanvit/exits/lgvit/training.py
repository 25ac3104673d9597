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


@dataclass(frozen=True)
class Stages:
    """How exits are trained: the knobs of `LGViT` by their names."""

    strategy: str
    stage1_epochs: int
    stage1_lr: float
    epochs: int
    lr: float
    weights: Weights
    images: int  # a step
    augment: str | None
    amp: str

    def train(self, model: OpenModel, dataset: AnyDataset, data: Data) -> None:
        """Stage 1 (backbone and heads), if it has epochs, then stage 2 (heads alone), in place.

        dataset: of `data`, what is left for the training.
        """
        if self.stage1_epochs:
            first = replace(data, dataset=dataset, out=None if data.out is None else data.out / "stage1")
            first.fit(model, Joint(self.strategy), epochs=self.stage1_epochs, **self._numbers(self.stage1_lr))
        if self.epochs:
            with only_heads_learn(model):
                objective = SelfDistillation(kinds_of(model), self.weights)
                replace(data, dataset=dataset).fit(
                    model, objective, epochs=self.epochs, train_mode="eval", **self._numbers(self.lr)
                )

    def check(self, model: OpenModel, dataset: AnyDataset, data: Data) -> None:
        """Raise `BadInput` unless the trainings fit model and data."""
        if self.stage1_epochs or self.epochs:
            replace(data, dataset=dataset).steps_per_epoch(model, **self._numbers(self.lr))

    def _numbers(self, lr: float) -> dict[str, Any]:
        numbers: dict[str, Any] = {"lr": lr, "min_lr": 0.0, "schedule": "linear", "weight_decay": 0.0}
        numbers |= {"batch_size": self.images, "augment": self.augment, "amp": self.amp}
        return numbers | {"save_every": 100}


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
