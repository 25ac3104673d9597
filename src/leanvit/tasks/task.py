"""The base of all tasks. A task says what the outputs of a model mean; every verb asks it, and none knows which it is.

Of one's own, in a file (`docs/own-task.md`): a frozen dataclass with `loss`, `rows`, `score` and the name of a metric,
registered by `@task("name")`. What it does not define has a default that fits most tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from leanvit.data import AnyDataset, Batch, Preprocess
from leanvit.errors import BadInput
from leanvit.knobs import check_fields
from leanvit.tasks.intervals import Change, Interval, bootstrapped, paired
from leanvit.tasks.metric import Metric, Rows, metric_of, totals
from leanvit.tasks.objectives import Objective
from leanvit.tasks.registry import module_of
from leanvit.tasks.task_loss import TaskLoss
from leanvit.values import as_lists


class Task:
    """What outputs mean. Everything is a pure function of outputs and batch; the fields of a subclass are JSON."""

    name: ClassVar[str] = ""  # set by `task`: what files and `--task` call it
    metrics: ClassVar[tuple[Metric, ...]] = ()  # what it is judged by; the first is the score of a training
    changes: ClassVar[str] = ""  # the metric whose paired change between two models is shown; "": the first
    needs: ClassVar[tuple[str, ...]] = ()  # fields of a sample that it reads; "label" is the class of an image
    label_kind: ClassVar[str] = ""  # of labels that it learns from: "one" class an image, "several", "": none
    gathers: ClassVar[bool] = False  # a score needs every row; else their sum is enough
    mixes: ClassVar[bool] = False  # whether mixup and cutmix make targets that its loss takes
    distillations: ClassVar[tuple[str, ...]] = ("soft",)  # kinds of `distillation`
    words: ClassVar[str] = ""  # what it is about, for messages: "one class an image"
    objective_words: ClassVar[str] = "its own"  # what kind of objective it takes, likewise
    classes: tuple[str, ...] = ()  # names of what outputs tell apart, where the task says so itself

    def __post_init__(self) -> None:
        if is_dataclass(self):
            check_fields(self, f"{self.name}.")

    # --- whether model and data fit ---------------------------------------------------------------------------------

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of a sample that it reads."""
        return self.needs

    def fitted(self, dataset: AnyDataset) -> Self:
        """The task with what the data says of its fields (names of classes, what is ignored) where it does not."""
        return self

    def problems(self, model: Any, dataset: Any) -> Iterator[str]:
        """What does not fit, in words, beyond fields that are missing; either may be None, where it is not known."""
        yield from ()

    def check(self, what: str, *, model: Any = None, dataset: Any = None, instead: str = "") -> None:
        """Raise `BadInput` or `Refused`, saying what cannot work, before anything runs.

        what: what asks, in words. instead: what else is accepted where labels are missing.
        """
        if dataset is not None:
            for field in self.reads:
                if field not in dataset.field_names:
                    has = ", ".join(dataset.field_names) or "none"
                    raise BadInput(
                        f"{what} ({self.name}) needs the field {field!r} of every sample, and data {dataset.spec!r} "
                        f"has {has}; accepted: data with it, as ?{field}=COLUMN or with_field({field!r}, ...) gives"
                    )
        for problem in self.problems(model, dataset):
            raise BadInput(f"{what} ({self.name}): {problem}")

    def check_judging(self, what: str, *, model: Any = None, dataset: Any = None, instead: str = "") -> None:
        """`check`, and raise `BadInput` for a task that judges no model."""
        self.check(what, model=model, dataset=dataset, instead=instead)
        if not self.judges:
            raise BadInput(
                f"{what}: the task {self.name} judges no model; accepted: one with rows(outputs, batch) and "
                "score(rows, weights, metric)"
            )

    def stamp(self, model: Any, dataset: AnyDataset | None = None) -> None:
        """Say on a trained model what its outputs mean now."""
        model.task = self

    def changes_meaning(self, model: Any) -> bool:
        """Whether a model that learns by this task says so from then on."""
        return True

    # --- learning ----------------------------------------------------------------------------------------------------

    def run(self, model: nn.Module, images: Tensor, **context: Any) -> Any:
        """The outputs for images (B, C, H, W)."""
        return model(images, **context)

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Scalar to minimise: how far outputs are from what the batch says, a mean."""
        raise BadInput(f"the task {self.name} trains no model: it has no loss(outputs, batch)")

    def terms(self, batch: Batch) -> int | tuple[int, ...] | None:
        """What the loss is the mean over, as `Objective.terms`; None: images."""
        return None

    def divergence(self, outputs: Any, taught: Any, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        """Scalar, 0 where they are equal: how far outputs are from those of a teacher, a mean like `loss`."""
        raise BadInput(f"the task {self.name} has no divergence from a teacher: train it without one")

    def spread(self, outputs: Any) -> int:
        """How many classes the divergence of one image (pixel, token) is a sum over."""
        return 1

    def objective(self, *, label_smoothing: float = 0.0) -> Objective:
        """What a training minimises by default."""
        if label_smoothing:
            raise BadInput(f"label_smoothing={label_smoothing}: the task {self.name} has none; accepted: 0")
        return TaskLoss(self)

    def distillation(
        self,
        teacher: nn.Module,
        *,
        preprocess: Preprocess,
        kind: str = "soft",
        alpha: float | None = None,
        temperature: float | None = None,
        label_smoothing: float = 0.0,
    ) -> Objective:
        """What a training under a teacher minimises, which takes the images that `preprocess` makes.

        alpha: weight of the teacher against the data. None, of it and of `temperature`: the default of the kind.
        """
        self.check_distillation(kind)
        if label_smoothing:
            raise BadInput(f"label_smoothing={label_smoothing}: the task {self.name} has none; accepted: 0")
        given = {"alpha": alpha, "temperature": temperature}
        options = {name: value for name, value in given.items() if value is not None}
        return TaskLoss(self, teacher=teacher, teacher_preprocess=preprocess, **options)

    def check_distillation(self, kind: str) -> None:
        """Raise `BadInput` for a kind of distillation that the task does not have, before any work."""
        if type(self).divergence is Task.divergence:
            raise BadInput(
                f"the task {self.name} has no divergence from a teacher, so nothing is learned from one: define "
                "divergence(outputs, taught, batch), or leave the recovery out"
            )
        if kind not in self.distillations:
            raise BadInput(
                f"distillation is {kind!r}; accepted for the task {self.name}: {' or '.join(self.distillations)}"
            )

    # --- judging -----------------------------------------------------------------------------------------------------

    @property
    def judges(self) -> bool:
        """Whether it can judge a model: it has rows, and a score of them."""
        return type(self).rows is not Task.rows and type(self).score is not Task.score

    @property
    def metric(self) -> Metric:
        """What a training is judged by."""
        return self.metrics[0] if self.metrics else Metric("score", "score", unit="")

    @property
    def logged(self) -> tuple[Metric, ...]:
        """What a training says after each epoch; the first is its score."""
        return self.metrics or (self.metric,)

    def rows(self, outputs: Any, batch: Batch) -> Rows:
        """(B, ...) what each image adds to a score, on the CPU: whole numbers, or floating point."""
        raise BadInput(f"the task {self.name} judges no model: it has no rows(outputs, batch)")

    def score(self, rows: Rows, weights: np.ndarray | None = None, metric: str = "") -> np.ndarray:
        """(R,) the figure of rows (N, ...) where each image counts as often as weights (R, N) say; None: each once.

        Unless the task `gathers`, it follows from sums of rows: that of one row, their sum, is that of them all.
        """
        raise BadInput(f"the task {self.name} judges no model: it has no score(rows, weights, metric)")

    def interval(self, rows: Rows, metric: str = "", *, level: float = 0.95) -> Interval:
        """The figure with its confidence interval: by default a bootstrap over images."""
        one = metric_of(self.metrics, metric)
        return bootstrapped(lambda weights: self.score(rows, weights, one.name), rows, one, level=level)

    def change(self, before: Rows, after: Rows, *, level: float = 0.95) -> Change:
        """The paired change of `changes` from one model to another on the same images, rows in the same order."""
        one = metric_of(self.metrics, self.changes)
        scores = (lambda w: self.score(before, w, one.name)), (lambda w: self.score(after, w, one.name))
        return paired(*scores, before, one, level=level)

    def answers(self, outputs: Any) -> Any:
        """(B, ...) what a model answers: whole numbers or truth values where it decides, else numbers."""
        return torch.as_tensor(outputs)

    def sized(self, outputs: Any, size: Sequence[int]) -> Any:
        """Outputs for images of (height, width) as they are judged: maps at that size. By default as they are."""
        return outputs

    def agreement(self, one: Any, other: Any, *, level: float = 0.95) -> Interval | None:
        """How far two models' answers (N, ...) are the same: the share of decisions. None: it is not said."""
        a, b = np.asarray(one), np.asarray(other)
        if a.shape != b.shape or a.dtype.kind not in "iub":
            return None
        same = (a == b).reshape(len(a), -1)
        rows = np.stack([same.sum(axis=1), np.full(len(a), same.shape[1])], axis=1)
        share = Metric("agreement", "agreement")

        def score(weights: np.ndarray | None) -> np.ndarray:
            alike, every = totals(rows, weights).T
            return np.asarray(alike / every)

        return bootstrapped(score, rows, share, level=level)

    # --- saying ------------------------------------------------------------------------------------------------------

    def columns(self, answer: Any, classes: Sequence[str]) -> dict[str, Any]:
        """One image's answer as columns of a table: JSON values by name. classes: names of the outputs, or none."""
        flat = torch.as_tensor(answer).flatten().tolist()
        return {f"output_{number}": value for number, value in enumerate(flat)}

    def picture(self, answer: Any) -> np.ndarray | None:
        """One image's answer, or truth, as a map (h, w) of whole numbers to draw over the image; None: it is no map."""
        return None

    @property
    def map_classes(self) -> tuple[str, ...]:
        """Names of the values in its pictures, where they are known."""
        return self.classes

    def per_class(self, rows: Rows) -> np.ndarray | None:
        """(classes,) the share of `metrics[0]` that each class has of rows (N, ...), NaN where it is not there; None:
        the task has no classes to tell apart."""
        return None

    def truth(self, batch: Batch) -> Any | None:
        """(B, ...) what the batch says, in the form of `answers`; None where it has no such form."""
        return None

    # --- kept --------------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Name and fields, as JSON; of a task from outside also the module that registered it."""
        own: Any = self
        named: tuple[Any, ...] = fields(own) if is_dataclass(self) else ()
        module = {"module": found} if (found := module_of(self.name)) else {}
        return {"name": self.name, **{f.name: as_lists(getattr(self, f.name)) for f in named}, **module}

    def recorded(self) -> dict[str, Any]:
        """What a saved run says of it."""
        return {"task": self.to_json()}
