"""One class an image: logits (B, classes), cross-entropy, top-1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanvit.arguments import require_classifier
from leanvit.data import AnyDataset, Batch, Preprocess, require_labels
from leanvit.data.classes import listed
from leanvit.data.fields import LABEL, Values
from leanvit.tasks.intervals import Change, Interval, from_pairs, wilson
from leanvit.tasks.metric import Metric, totals
from leanvit.tasks.objectives import (
    CrossEntropy,
    HardDistillation,
    Objective,
    SoftDistillation,
    mean_head,
)
from leanvit.tasks.registry import task
from leanvit.tasks.task import Task


class LabelTask(Task):
    """What one class an image and several have in common: logits of the classes that the data set names."""

    needs: ClassVar[tuple[str, ...]] = (LABEL,)

    def check(self, what: str, *, model: Any = None, dataset: Any = None, instead: str = "") -> None:
        if model is not None:
            require_classifier(model, what)
        if dataset is not None:
            require_labels(dataset, what, instead=instead)

    def stamp(self, model: Any, dataset: AnyDataset | None = None) -> None:
        if model.classifies and model.num_classes and dataset is not None and dataset.labelled:
            model.task, model.classes = self, tuple(dataset.classes)

    def changes_meaning(self, model: Any) -> bool:
        return bool(model.classifies) and bool(self.recorded())

    def recorded(self) -> dict[str, Any]:
        return {}

    @property
    def logged(self) -> tuple[Metric, ...]:
        return self.metrics[:1]

    def columns(self, answer: Any, classes: Sequence[str]) -> dict[str, Any]:
        number = int(answer)
        return {"class": classes[number] if classes else str(number)}


@task("classification")
@dataclass(frozen=True)
class Classification(LabelTask):
    """Each image has one class.

    field: where the class is: "label", the data set's own, whose names are matched with the model's; or a field of
        whole numbers (`Values`), a further label of the same images. classes: names of that field's.
    """

    field: str = LABEL
    classes: tuple[str, ...] = ()

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("top1", "top-1"),)
    words: ClassVar[str] = "one class an image"
    objective_words: ClassVar[str] = "a softmax"

    @property
    def distillations(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("soft", "hard") if self.field == LABEL else ("soft",)

    @property
    def label_kind(self) -> str:  # type: ignore[override]
        return "one" if self.field == LABEL else ""

    @property
    def mixes(self) -> bool:  # type: ignore[override]
        return self.field == LABEL  # images are mixed with their labels, not with their fields

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.field,)

    def check(self, what: str, *, model: Any = None, dataset: Any = None, instead: str = "") -> None:
        if self.field == LABEL:
            super().check(what, model=model, dataset=dataset, instead=instead)
        else:
            Task.check(self, what, model=model, dataset=dataset, instead=instead)

    def fitted(self, dataset: AnyDataset) -> Self:
        """The names of the data's classes, of a head that learns them; fields have none."""
        return self if self.field != LABEL or self.classes else replace(self, classes=tuple(dataset.classes))

    def problems(self, model: Any, dataset: Any) -> Iterator[str]:
        """Of a head: outputs are the classes in their order."""
        has = tuple(getattr(dataset, "classes", ()))
        if self.field == LABEL and self.classes and has and has != self.classes:
            yield (
                f"the classes are {listed(self.classes)}, and those of data {dataset.spec!r} {listed(has)}: give both "
                "the same names in the same order"
            )
        if self.field == LABEL and getattr(dataset, "label_kind", "one") == "several":
            yield f"an image of data {dataset.spec!r} may have several classes; accepted: data with one class an image"
        if (
            self.field != LABEL
            and dataset is not None
            and not isinstance(kind := dataset.fields.get(self.field), Values)
        ):
            yield f"the field {self.field!r} of data {dataset.spec!r} is {type(kind).__name__}; accepted: Values"
        outputs = getattr(model, "num_classes", None)
        if self.classes and outputs and outputs != len(self.classes):
            yield f"the model has {outputs} outputs, and the field {self.field!r} {len(self.classes)} classes"

    def stamp(self, model: Any, dataset: AnyDataset | None = None) -> None:
        if self.field == LABEL:
            super().stamp(model, dataset)
        else:
            Task.stamp(self, model, dataset)

    def recorded(self) -> dict[str, Any]:
        return {} if self == Classification() else Task.recorded(self)

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Cross-entropy; of a network with two heads on their mean."""
        return F.cross_entropy(mean_head(outputs).float(), batch[self.field])

    def divergence(self, outputs: Any, taught: Any, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        """T² KL(softmax(taught / T) || softmax(outputs / T)), summed over classes, a mean over images."""
        return kl(mean_head(outputs).float(), mean_head(taught).float(), temperature)

    def spread(self, outputs: Any) -> int:
        return int(mean_head(outputs).shape[-1])

    def objective(self, *, label_smoothing: float = 0.0) -> Objective:
        if self.field != LABEL:
            return super().objective(label_smoothing=label_smoothing)
        return CrossEntropy(label_smoothing)

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
        self.check_distillation(kind)
        if self.field != LABEL:
            given = {"kind": "soft", "alpha": alpha, "temperature": temperature, "label_smoothing": label_smoothing}
            return super().distillation(teacher, preprocess=preprocess, **given)  # type: ignore[arg-type]
        cls: Any = SoftDistillation if kind == "soft" else HardDistillation
        options = {"alpha": alpha, **({"temperature": temperature} if kind == "soft" else {})}
        options = {name: value for name, value in options.items() if value is not None}
        made: Objective = cls(teacher, teacher_preprocess=preprocess, label_smoothing=label_smoothing, **options)
        return made

    def rows(self, outputs: Any, batch: Batch) -> np.ndarray:
        """(B, 2) int64: 1 where the image is classified rightly, and 1."""
        logits = mean_head(outputs).cpu()
        right = logits.argmax(dim=-1) == batch[self.field].cpu()
        return torch.stack([right.long(), torch.ones_like(right, dtype=torch.long)], dim=1).numpy()

    def score(self, rows: Any, weights: np.ndarray | None = None, metric: str = "") -> np.ndarray:
        right, seen = totals(rows, weights).T
        return np.asarray(right / np.maximum(seen, 1))

    def interval(self, rows: Any, metric: str = "", *, level: float = 0.95) -> Interval:
        """Wilson's score interval."""
        return wilson(int(rows[:, 0].sum()), len(rows), level=level)

    def change(self, before: Any, after: Any, *, level: float = 0.95) -> Change:
        """Tango's score interval, and McNemar's test."""
        was, now = before[:, 0] > 0, after[:, 0] > 0
        return from_pairs(int((now & ~was).sum()), int((was & ~now).sum()), len(was), level=level)

    def answers(self, outputs: Any) -> Tensor:
        """(B,) int64, the class of the largest logit."""
        return mean_head(outputs).argmax(dim=-1)

    def agreement(self, one: Any, other: Any, *, level: float = 0.95) -> Interval:
        """The share of images that both answer alike, with Wilson's interval."""
        same = np.asarray(one) == np.asarray(other)
        return wilson(int(same.sum()), len(same), level=level)

    def truth(self, batch: Batch) -> Tensor:
        found: Tensor = batch[self.field]
        return found


def kl(student: Tensor, teacher: Tensor, temperature: float, *, dim: int = -1) -> Tensor:
    """T² KL(softmax(teacher / T) || softmax(student / T)): summed over `dim`, a mean over the images (first axis)."""
    log_student = F.log_softmax(student / temperature, dim=dim)
    log_teacher = F.log_softmax(teacher / temperature, dim=dim)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
