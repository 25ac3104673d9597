"""A class for each pixel: logits (B, classes, h, w) against masks, mean intersection over union."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from leanvit.data import AnyDataset, Batch
from leanvit.data.classes import listed
from leanvit.errors import BadInput
from leanvit.tasks.metric import Metric, metric_of, totals
from leanvit.tasks.registry import task
from leanvit.tasks.task import Task

IGNORE = 255  # where neither task nor data says another value


@task("segmentation")
@dataclass(frozen=True)
class Segmentation(Task):
    """Each pixel of an image has one class; the model is judged on the pixels that preprocessing leaves of a mask.

    field: the masks. classes: their names, in the order of the outputs; default: those of the data, where it has some.
    ignore: the value of pixels that count for nothing; None: that of the data's masks.
    Outputs of another size than the masks are resized to it, bilinear.
    """

    field: str = "mask"
    classes: tuple[str, ...] = ()
    ignore: int | None = None

    words: ClassVar[str] = "a class for each pixel"
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("miou", "mean IoU"), Metric("pixels", "pixels right"))

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.field,)

    @property
    def ignored(self) -> int:
        """The value of pixels that count for nothing."""
        return IGNORE if self.ignore is None else self.ignore

    def fitted(self, dataset: AnyDataset) -> Self:
        masks = dataset.fields.get(self.field)
        ignore = getattr(masks, "ignore", None) if self.ignore is None else self.ignore
        return replace(self, ignore=ignore, classes=self.classes or tuple(getattr(masks, "classes", ())))

    def problems(self, model: Any, dataset: Any) -> Iterator[str]:
        outputs = getattr(model, "num_classes", None)
        if self.classes and outputs and outputs != len(self.classes):
            yield f"the model tells {outputs} classes of pixels, the masks have {len(self.classes)}"
        if model is not None and getattr(model, "wiring", None) is None and getattr(model, "tells_classes", False):
            yield "the model gives one answer an image; accepted: one of each pixel, as a model with such a head gives"
        masks = None if dataset is None else dataset.fields.get(self.field)
        if masks is None:
            return
        if not hasattr(masks, "ignore"):
            yield f"the field {self.field!r} of data {dataset.spec!r} is {type(masks).__name__}; accepted: Masks"
        elif self.classes and masks.classes and tuple(masks.classes) != self.classes:
            yield (
                f"the classes are {listed(self.classes)}, and those of data {dataset.spec!r} {listed(masks.classes)}: "
                "pixels are numbers, so give both the same names in the same order, or the data none"
            )
        elif self.ignore is not None and masks.ignore != self.ignore:
            yield (
                f"ignore is {self.ignore}, and the masks of data {dataset.spec!r} say {masks.ignore}: give both "
                "the same"
            )
        elif 0 <= masks.ignore < (outputs or 0):
            yield f"pixels of {masks.ignore} are ignored, and the model has a class of that number (it has {outputs})"

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Cross-entropy, a mean over the pixels that are not ignored."""
        mask = self._mask(batch)
        logits = resized(outputs, mask.shape[1:])
        self._require_known(mask, logits.shape[1], batch)
        total = F.cross_entropy(logits.float(), mask, ignore_index=self.ignored, reduction="sum")
        return total / self._counted(mask).sum().clamp(min=1)

    def terms(self, batch: Batch) -> int:
        return int(self._counted(self._mask(batch)).sum())

    def divergence(self, outputs: Any, taught: Any, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        """T² KL(softmax(taught / T) || softmax(outputs / T)), a mean over the pixels that are not ignored."""
        mask = self._mask(batch)
        student, teacher = (resized(one, mask.shape[1:]).float() / temperature for one in (outputs, taught))
        apart = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).sum(1)
        counted = self._counted(mask)
        return temperature**2 * (apart * counted).sum() / counted.sum().clamp(min=1)

    def spread(self, outputs: Any) -> int:
        return int(outputs.shape[1])

    def rows(self, outputs: Any, batch: Batch) -> np.ndarray:
        """(B, 3, classes) int64 pixels of each class: found rightly, answered, in the mask."""
        mask = self._mask(batch).cpu()
        logits, counted = of_pixels(outputs).cpu(), self._counted(mask)
        classes, size = logits.shape[1], mask.shape[1:]
        # image by image: logits of a batch at the size of the masks take much memory
        answer = torch.cat([resized(one, size).argmax(dim=1) for one in logits.split(1)])
        self._require_known(mask, classes, batch)
        image = torch.arange(len(mask)).view(-1, 1, 1).expand_as(mask)[counted] * classes
        answered, truth = image + answer[counted], image + mask[counted]
        found = [
            torch.bincount(of, minlength=len(mask) * classes) for of in (truth[answered == truth], answered, truth)
        ]
        return torch.stack(found, dim=1).view(len(mask), classes, 3).transpose(1, 2).contiguous().numpy()

    def score(self, rows: Any, weights: np.ndarray | None = None, metric: str = "") -> np.ndarray:
        """Mean IoU over the classes that are in a mask or an answer; or the share of pixels that are right."""
        hits, answered, truth = totals(rows, weights).transpose(1, 0, 2)  # (R, classes) each
        if metric_of(self.metrics, metric).name == "pixels":
            return np.asarray(hits.sum(axis=1) / np.maximum(truth.sum(axis=1), 1))
        share, occurs = _iou(hits, answered, truth)
        return np.asarray(share.sum(axis=1) / np.maximum(occurs.sum(axis=1), 1))

    def per_class(self, rows: Any) -> np.ndarray:
        """The IoU of each class; NaN for one that is in no mask and no answer."""
        share, occurs = _iou(*totals(rows, None)[0])
        return np.where(occurs, share, np.nan)

    def answers(self, outputs: Any) -> Tensor:
        """(B, h, w) uint8, or int64 beyond 256 classes: the class of the largest logit, at the size of the outputs."""
        outputs = of_pixels(outputs)
        if self.classes and outputs.shape[1] != len(self.classes):
            raise BadInput(f"the model tells {outputs.shape[1]} classes of pixels, the task {len(self.classes)}")
        found = outputs.argmax(dim=1)
        return found.to(torch.uint8) if outputs.shape[1] <= 256 else found

    def sized(self, outputs: Any, size: Sequence[int]) -> Tensor:
        return resized(outputs, size)

    def columns(self, answer: Any, classes: Sequence[str]) -> dict[str, Any]:
        """The share of pixels of each class that the answer holds."""
        pixels = np.asarray(answer)
        shares = np.bincount(pixels.ravel(), minlength=len(classes)) / max(pixels.size, 1)
        named = [classes[i] if i < len(classes) else str(i) for i in range(len(shares))]
        return {f"share_{name}": round(float(share), 6) for name, share in zip(named, shares, strict=True)}

    def picture(self, answer: Any) -> np.ndarray:
        return np.asarray(answer)

    def truth(self, batch: Batch) -> Tensor:
        return self._mask(batch)

    def _mask(self, batch: Batch) -> Tensor:
        mask: Tensor = batch[self.field]
        return mask

    def _require_known(self, mask: Tensor, classes: int, batch: Batch) -> None:
        """Raise `BadInput`, naming an image, where a mask (B, H, W) holds a class that a model of so many has not."""
        beyond = self._counted(mask) & ((mask < 0) | (mask >= classes))
        if bool(beyond.any()):
            key = batch.keys[int(beyond.flatten(1).any(1).nonzero()[0])]
            raise BadInput(
                f"a mask of {key!r} holds {int(mask[beyond][0])}; accepted: 0 to {classes - 1}, the classes of the "
                f"model, or {self.ignored}, which is ignored (?ignore=N of the data for another value)"
            )

    def _counted(self, mask: Tensor) -> Tensor:
        return mask != self.ignored


def _iou(hits: np.ndarray, answered: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intersection over union of each class, and whether there is one, of pixels of the same shape."""
    union = answered + truth - hits
    return np.divide(hits, union, out=np.zeros_like(hits), where=union > 0), union > 0


def resized(logits: Any, size: Sequence[int]) -> Tensor:
    """Logits (B, classes, h, w) at a size (H, W). Raises `BadInput` for outputs of another form."""
    logits = of_pixels(logits)
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    return F.interpolate(logits.float(), tuple(size), mode="bilinear", align_corners=False)


def of_pixels(outputs: Any) -> Tensor:
    """Outputs as logits (B, classes, h, w). Raises `BadInput` for those of another form."""
    logits = torch.as_tensor(outputs) if hasattr(outputs, "shape") else outputs
    if not isinstance(logits, Tensor) or logits.ndim != 4:
        what = f"of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise BadInput(f"the model gave outputs {what}; accepted: logits of each pixel, (B, classes, h, w)")
    return logits
