"""What a method may look at while it learns."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from torch import Tensor, nn

    from leanvit.anatomy import OpenModel
    from leanvit.data import AnyDataset, Batch, Preprocess
    from leanvit.training import FitConfig, Objective, Run


class Task(Protocol):
    """What the outputs of a model mean where they are no logits of classes of images: pure functions of them.

    A task whose loss is no mean over images also has `terms(batch) -> int`, as `leanvit.training.Objective` has.
    """

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Scalar to minimise: how far outputs are from what the batch says, a mean."""

    def divergence(self, outputs: Any, taught: Any, batch: Batch) -> Tensor:
        """Scalar, 0 where they are equal: how far outputs are from those of a teacher, a mean."""


@dataclass(frozen=True)
class Data:
    """What a method may look at while it learns: the training split and how images are prepared."""

    dataset: AnyDataset
    preprocess: Preprocess
    seed: int = 0
    batch_size: int = 32
    teacher: nn.Module | None = None  # the dense root with its original weights, or the user's; `compress` gives it
    out: Path | None = None  # where a method that trains keeps its resumable state; None: nowhere
    callbacks: tuple[object, ...] = ()  # of the training that a method does (progress); see `leanvit.training`
    whole: OpenModel | None = None  # of a model of parts: the whole, whose part `part` the method is applied to
    part: str = ""
    task: Task | None = None  # what the outputs mean where they are no classes of images (`Task`); None: they are

    def inside(self, whole: OpenModel, part: str) -> Data:
        """For a method that is applied to a part of a whole: images reach the part through the whole."""
        return replace(self, whole=whole if part else None, part=part)

    def copied(self, model: OpenModel) -> tuple[OpenModel, Data]:
        """A copy of the model that a method was given, for a search on it, and the data with the copy of the whole."""
        if self.whole is None:
            return copy.deepcopy(model), self
        whole = copy.deepcopy(self.whole)
        return cast("OpenModel", whole.get_submodule(self.part)), replace(self, whole=whole)

    def run(self, model: nn.Module, images: Tensor, **context: Any) -> Any:
        """The outputs for images (B, C, H, W) of the model that a method was given, or of the whole around it."""
        return whole_of(model, self)(images, **context)

    @property
    def prefix(self) -> str:
        """What stands before the names of the method's model in the one that `fit` trains: "", or `backbone.`."""
        return f"{self.part}." if self.whole is not None else ""

    def fit(
        self,
        model: nn.Module,
        objective: Objective | None = None,
        *,
        steps: int | None = None,
        callbacks: Sequence[object] = (),
        **numbers: Any,
    ) -> None:
        """Train a model in place on these images (`leanvit.training.fit`), in a way that a killed run goes on from.

        The part of a whole is trained with the whole, which the objective runs.

        Args:
            objective: what to minimise; None: cross-entropy.
            steps: optimiser steps, after which it ends; in place of `epochs`.
            callbacks: the method's own; those of `self.callbacks` come after them.
            numbers: of `FitConfig`, but for its seed, which is `self.seed`.

        Raises:
            BadInput: a number that is not accepted, or images that do not suit the model or fill no batch.
        """
        from leanvit.training import fit

        course = [] if steps is None else [_StopAt(steps)]
        if steps is not None:
            numbers["epochs"] = -(-steps // self.steps_per_epoch(model, **numbers))
        fit(
            whole_of(model, self),
            self.dataset,
            preprocess=self.preprocess,
            config=self._config(numbers),
            objective=objective,
            callbacks=[*course, *callbacks, *self.callbacks],
            out=self.out,
            resume=self.resume,
            convert=True,  # whether data and model fit was decided when the dense model was made
        )

    def steps_per_epoch(self, model: nn.Module, **numbers: Any) -> int:
        """Steps that `fit` takes through the images. Raises what it would before its first one."""
        from leanvit.training import check_run

        length = {} if "samples" in numbers else {"epochs": 1}
        config = self._config({**length, **numbers})
        return check_run(whole_of(model, self), self.dataset, preprocess=self.preprocess, config=config, convert=True)

    def _config(self, numbers: dict[str, Any]) -> FitConfig:
        from leanvit.training import FitConfig

        return FitConfig(seed=self.seed, **numbers)

    @property
    def resume(self) -> bool:
        """Whether `out` holds the state of an interrupted training, from which `fit` goes on."""
        from leanvit.training.checkpoint import STATE

        return self.out is not None and (self.out / STATE).is_file()

    def images(self, count: int) -> Iterator[Tensor]:
        """Batches of `count` training images in all, drawn by the seed, prepared as for evaluation."""
        from leanvit.data import loader

        left = count
        batches = loader(
            self.dataset, self.preprocess, batch_size=self.batch_size, seed=self.seed, train=True, augment=None
        )
        for batch in batches:
            yield batch.images[:left]
            left -= len(batch.images)
            if left <= 0:
                return


def whole_of(model: nn.Module, data: Any) -> nn.Module:
    """What images are given to so that they reach the model of a method: the whole around it, or the model itself."""
    whole: nn.Module | None = getattr(data, "whole", None)
    return model if whole is None else whole


@dataclass(frozen=True)
class _StopAt:
    """Callback: the run ends after so many steps."""

    step: int

    def start(self, run: Run) -> None:
        run.ends_at = self.step

    def after_step(self, run: Run) -> None:
        if run.step >= self.step:
            run.stop()
