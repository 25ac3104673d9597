"""What a method may look at while it learns."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from leanvit import tasks
from leanvit.data.progress import Meter
from leanvit.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor, nn

    from leanvit.anatomy import OpenModel
    from leanvit.data import AnyDataset, Preprocess
    from leanvit.recipe.kept_units import Kept
    from leanvit.tasks import Task
    from leanvit.training import FitConfig, Objective, Run

T = TypeVar("T")
_STAGE = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True)
class Data:
    """What a method may look at while it learns: the training split and how images are prepared."""

    dataset: AnyDataset
    preprocess: Preprocess
    seed: int = 0
    batch_size: int = 32
    teacher: nn.Module | None = None  # the dense root with its original weights, or the user's; `compress` gives it
    out: Path | None = None  # where a method that trains or keeps units has its resumable state; None: nowhere
    callbacks: tuple[object, ...] = ()  # of the training that a method does (progress); see `leanvit.training`
    meter: Meter | None = None  # shows how far a calibration or search is; None: nothing is shown
    bound_to: str = ""  # what state in `out` is of; `compress` gives the digest of the compression
    whole: OpenModel | None = None  # of a model of parts: the whole, whose part `part` the method is applied to
    part: str = ""
    task: Task | None = None  # what the outputs mean, also as text; None: what the model or the labels of the data say

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", tasks.read_task(self.task, "data.task"))

    def inside(self, whole: OpenModel, part: str) -> Data:
        """For a method that is applied to a part of a whole: images reach the part through the whole."""
        return replace(self, whole=whole if part else None, part=part, task=self.task_of(whole))

    def task_of(self, model: Any) -> Task:
        """What the outputs of a model mean: as this data says, else the model, else the labels."""
        return tasks.of(model, self.dataset, self.task)

    def copied(self, model: OpenModel) -> tuple[OpenModel, Data]:
        """A copy of the model that a method was given, for a search on it, and the data with the copy of the whole."""
        if self.whole is None:
            return copy.deepcopy(model), self
        whole = copy.deepcopy(self.whole)
        return cast("OpenModel", whole.get_submodule(self.part)), replace(self, whole=whole)

    def run(self, model: nn.Module, images: Tensor, **context: Any) -> Any:
        """The outputs for images (B, C, H, W) of the model that a method was given, or of the whole around it."""
        return whole_of(model, self)(images, **context)

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
            objective: what to minimise; None: that of the task.
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
            task=self.task,
        )

    def steps_per_epoch(self, model: nn.Module, **numbers: Any) -> int:
        """Steps that `fit` takes through the images. Raises what it would before its first one."""
        from leanvit.training import check_run

        length = {} if "samples" in numbers else {"epochs": 1}
        config = self._config({**length, **numbers})
        return check_run(
            whole_of(model, self), self.dataset, preprocess=self.preprocess, config=config, convert=True, task=self.task
        )

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
        for batch in self.metered("calibrating", batches, -(-min(count, len(self.dataset)) // self.batch_size)):
            yield batch.images[:left]
            left -= len(batch.images)
            if left <= 0:
                return

    def units(self, stage: str, names: Sequence[str], work: Callable[[str], Kept]) -> Iterator[tuple[str, Kept]]:
        """The units of a long calibration or search, one after another, with progress: (name, what its work found).

        A unit that a killed run has done is read from `out` and not done again. The work changes nothing itself: what
        it found is applied by the caller, who then goes on bit-identically whether it was read or done:

            for name, kept in data.units("reconstruct", names, lambda name: reconstructed(model, name)):
                model.get_submodule(name).load_state_dict(kept.tensors)

        Args:
            stage: what is done, a word of its own in this method: `a-z`, digits, `-` and `_`.
            names: of the units, in their order; the same after a kill.
            work: a unit's name to what it found (`Kept`: tensors, and facts that are JSON).

        The files go with the step that they are of; `out` is None: nothing is written. A method that does so declares
        `resumable = True`, or `trains`.

        Raises:
            CheckpointError: a unit in `out` is damaged, or of something else.
            LeanvitError: a unit cannot be written.
        """
        from leanvit.recipe.kept_units import UNITS, UnitFolder, found_by

        if not _STAGE.fullmatch(stage):
            raise BadInput(f"stage is {stage!r}; accepted: a word of a-z, 0-9, - and _")
        folder = None if self.out is None else UnitFolder(self.out / UNITS / stage, self.bound_to)
        for number, name in enumerate(self.metered(stage, names, len(names))):

            def found(name: str = name) -> Kept:
                return work(name)

            yield name, found_by(found) if folder is None else folder.result(number, name, found)

    def metered(self, what: str, items: Iterable[T], total: int) -> Iterator[T]:
        """The items, with progress shown: an item counts as done when the next one is asked for."""
        with nullcontext(_unseen) if self.meter is None else self.meter(what, total) as done:
            for number, item in enumerate(items, 1):
                yield item
                done(number)


def _unseen(number: int) -> None:
    """Where nothing is shown."""


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
