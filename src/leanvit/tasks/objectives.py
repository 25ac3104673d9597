"""What a training step minimises.

An objective is a module called as `objective(model, batch, step, context) -> Loss`. It runs the model itself, so that
it may run it several times, run teachers, or read what the model leaves behind. Its own parameters are trained along,
its state is part of a resumable run. Under DDP it is wrapped together with the model; teachers are left alone.

An objective needs nothing of `fit`. In a loop of your own:

    objective = SoftDistillation(teacher, teacher_preprocess=preprocess)
    objective.bind(model, preprocess)
    optimizer = torch.optim.AdamW([*model.parameters(), *objective.parameters()], lr=1e-3)
    for step, (images, targets) in enumerate(batches):
        loss = objective(model, Batch(images, targets, keys=[]), step, {})
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()

    deit      Training data-efficient image transformers & distillation through attention, arXiv 2012.12877
    hinton    Distilling the Knowledge in a Neural Network, arXiv 1503.02531
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.nn import functional as F

from leanvit.data import Batch, Preprocess
from leanvit.data.classes import listed
from leanvit.errors import BadInput
from leanvit.knobs import Fraction, Positive, check


@dataclass(frozen=True)
class Loss:
    """`total`: scalar to differentiate. `parts`: detached scalars to log, by name."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """Base of all objectives; subclasses give `forward`, the rest has defaults that fit most."""

    learns: str = ""  # labels that it is for: "one" class an image, or "several"; "": any
    task: Any = None  # the task that it is made of, where it is made of one
    needs_labels: bool = True  # False: it never reads `batch.targets`, and also trains on data without labels
    pieces: int = 1  # losses of a forward that are differentiated one after the other; alike on all processes
    sees_clean: bool = False  # whether `batch.clean` holds the batch before mixing, where it is mixed; else it is None
    pairing: str = "reversed"  # which images are mixed with one another: `leanvit.data.loading.share_rows`

    def bind(self, model: nn.Module, preprocess: Preprocess) -> None:
        """Called once by `fit` before the first step. Refuse here (`BadInput`) what cannot work with this model."""

    def check_classes(self, classes: Sequence[str]) -> None:
        """Called once by `fit` with the names of the classes that the model learns. Refuse here (`BadInput`) others."""

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Optimiser groups of the objective's own parameters; a group may carry `lr_scale` (factor on the rate), or
        `peak_scale` (factor on lr alone: the rate ends at the same min_lr)."""
        return param_groups_weight_decay(self, weight_decay)

    def terms(self, batch: Batch) -> int | tuple[int, ...] | None:
        """How many things the loss of this batch is the mean of: pixels that are not ignored, tokens, positives.

        The step's loss is then the mean over those of all its batches and processes. None, the default: images; the
        `accumulate` batches of a step then count alike. Asked of the batch on the CPU, before it is mixed, also of one
        without images. A batch of 0 terms has no part in the step, whatever its loss. Where a loss adds sums over
        different things, divide them all by one count, and give that count; or take the means of each image first,
        then their sum is a mean over images; or give a number for each of them (the same length always), and scale its
        mean by the entry of `batch.scales`, which is not empty in a step.
        """
        return None

    def piece(self, number: int, model: nn.Module, batch: Batch, step: int, context: Mapping[str, Any]) -> Loss:
        """Loss number 0 to `pieces` - 1 of one forward: their sum is minimised, in the memory of one of them.

        Parts of one name are added up.
        """
        return self(model, batch, step, context)

    def forward(self, model: nn.Module, batch: Batch, step: int, context: Mapping[str, Any]) -> Loss:
        """Loss of one forward.

        batch: images (B, C, H, W) float32 on the model's device; targets (B,) int64, or (B, classes) float32:
        probabilities when images were mixed, 0 and 1 in multi-label data; None without labels. step: optimiser steps
        taken so far. context: keyword arguments for the model's forward.
        """
        raise TypeError(f"{type(self).__name__} does not define forward(model, batch, step, context)")


class CrossEntropy(Objective):
    """Cross-entropy on class indices or on soft targets, with label smoothing on either.

    Smoothing y' = (1 - e) y + e / classes commutes with mixing, so mixed targets need no smoothing of their own.
    """

    learns = "one"

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check("label_smoothing", label_smoothing, Fraction)
        self.label_smoothing = label_smoothing

    def forward(self, model: nn.Module, batch: Batch, step: int, context: Mapping[str, Any]) -> Loss:
        # a network with two heads is trained here as it is used: on the mean of its heads
        return Loss(self.of(mean_head(model(batch.images, **context)), batch.targets))

    def of(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Scalar loss of float logits (B, classes), computed in float32."""
        return F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)


class BinaryCrossEntropy(CrossEntropy):
    """For multi-label data: binary cross-entropy of each class, averaged over classes and images.

    Smoothing moves both answers towards the middle: y' = (1 - e) y + e / 2.
    """

    learns = "several"

    def of(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Scalar loss of float logits (B, classes) and targets (B, classes) of 0 and 1, computed in float32."""
        smooth = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits.float(), smooth)


class Distillation(Objective):
    """What soft and hard distillation share: a frozen teacher that sees the student's very images.

    teacher: any classifier with as many outputs as the student. It is put in eval mode and runs without gradient;
    it is no sub-module, so it is neither saved with the run nor trained.
    teacher_preprocess: what the teacher was trained with. Its fingerprint must equal the student's: a teacher that
    sees images normalised for another network answers wrongly without a sign.
    """

    learns = "one"

    def __init__(
        self,
        teacher: nn.Module,
        *,
        teacher_preprocess: Preprocess,
        alpha: float,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check("alpha", alpha, Fraction)
        self.alpha = alpha
        self.base = CrossEntropy(label_smoothing)
        self.teacher_preprocess = teacher_preprocess
        self._teacher = (teacher.eval(),)  # the tuple hides it from nn.Module's registration

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"

    def check_classes(self, classes: Sequence[str]) -> None:
        """Refuse a teacher whose outputs have other names, or the same in another order."""
        taught = tuple(getattr(self._teacher[0], "classes", ()))
        if taught and taught != tuple(classes):
            raise BadInput(
                f"teacher knows the classes {listed(taught)}, the student learns {listed(classes)}: give one with the "
                "student's classes, in their order"
            )

    def bind(self, model: nn.Module, preprocess: Preprocess) -> None:
        """Refuse a teacher that would mislead; switch a distilled network's second head on for training."""
        same_preprocess(self.teacher_preprocess, preprocess)
        no_shared_weights(self._teacher[0], model)
        student_classes, teacher_classes = (getattr(m, "num_classes", None) for m in (model, self._teacher[0]))
        if student_classes and teacher_classes and student_classes != teacher_classes:
            raise BadInput(f"teacher has {teacher_classes} outputs, the student {student_classes}: give equal ones")
        switch = getattr(model, "set_distilled_training", None)
        if callable(switch):
            switch(True)

    def forward(self, model: nn.Module, batch: Batch, step: int, context: Mapping[str, Any]) -> Loss:
        class_logits, distilled_logits = two_heads(model(batch.images, **context))
        base = self.base.of(class_logits, batch.targets)
        distilled = self.term(distilled_logits.float(), self.ask_teacher(batch.images).float())
        total = (1 - self.alpha) * base + self.alpha * distilled
        return Loss(total, {"base": base.detach(), "distillation": distilled.detach()})

    def term(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The part weighted by alpha, from float32 logits (B, classes) of both."""
        raise TypeError(f"{type(self).__name__} does not define term(student, teacher)")

    @torch.no_grad()
    def outputs_of_teacher(self, images: Tensor) -> Any:
        """What the teacher gives for the student's normalised images (B, C, H, W)."""
        return self._teacher[0].to(images.device)(images)

    def ask_teacher(self, images: Tensor) -> Tensor:
        """Teacher logits (B, classes) for the student's normalised images (B, C, H, W)."""
        teacher = self._teacher[0]
        logits = self.outputs_of_teacher(images)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise BadInput(f"teacher {type(teacher).__name__} returned {_described(logits)}, not logits (B, classes)")
        return logits


class SoftDistillation(Distillation):
    """The student matches the teacher's softened distribution (DeiT equation 2, after Hinton section 2).

    L = (1 - alpha) CE(Z_s, y) + alpha T^2 KL(softmax(Z_t / T) || softmax(Z_s / T)), KL summed over classes and
    averaged over images; T^2 keeps the gradient's size when T changes. DeiT uses T = 3, alpha = 0.1; its code divides
    by classes too, which makes its term smaller by that factor. With two heads the second one takes the KL.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        teacher_preprocess: Preprocess,
        alpha: float = 0.1,
        temperature: float = 3.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(teacher, teacher_preprocess=teacher_preprocess, alpha=alpha, label_smoothing=label_smoothing)
        self.temperature: float = check("temperature", temperature, Positive)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, temperature={self.temperature}"

    def term(self, student: Tensor, teacher: Tensor) -> Tensor:
        """T^2 KL(teacher || student) at temperature T."""
        log_student = F.log_softmax(student / self.temperature, dim=-1)
        log_teacher = F.log_softmax(teacher / self.temperature, dim=-1)
        return self.temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


class HardDistillation(Distillation):
    """The student learns the teacher's decision (DeiT equation 3).

    L = (1 - alpha) CE(Z_cls, y) + alpha CE(Z_dist, argmax Z_t), alpha = 1/2 in the paper. No label smoothing on the
    second term. A network with one head takes both terms on it.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        teacher_preprocess: Preprocess,
        alpha: float = 0.5,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(teacher, teacher_preprocess=teacher_preprocess, alpha=alpha, label_smoothing=label_smoothing)

    def term(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Cross-entropy against the teacher's class."""
        return F.cross_entropy(student, teacher.argmax(dim=-1))


class BinaryDistillation(SoftDistillation):
    """Soft distillation of multi-label networks: each class is a distribution of its own, yes or no.

    L = (1 - alpha) BCE(Z_s, y) + alpha T^2 KL(sigmoid(Z_t / T) || sigmoid(Z_s / T)), both averaged over classes and
    images (Hinton section 2, applied to each class).
    """

    learns = "several"

    def __init__(
        self,
        teacher: nn.Module,
        *,
        teacher_preprocess: Preprocess,
        alpha: float = 0.1,
        temperature: float = 3.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(teacher, teacher_preprocess=teacher_preprocess, alpha=alpha, temperature=temperature)
        self.base = BinaryCrossEntropy(label_smoothing)

    def term(self, student: Tensor, teacher: Tensor) -> Tensor:
        """T^2 KL(teacher || student) of every class's yes and no, averaged."""
        student, teacher = student / self.temperature, teacher / self.temperature
        yes = teacher.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(teacher, yes)
        return self.temperature**2 * (F.binary_cross_entropy_with_logits(student, yes) - entropy)


def two_heads(output: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(class logits, distillation logits) of a training forward; a single head stands for both."""
    return (output, output) if isinstance(output, Tensor) else (_pair(output)[0], _pair(output)[1])


def mean_head(output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Logits (B, classes) as a distilled network gives them at inference."""
    return output if isinstance(output, Tensor) else (_pair(output)[0] + _pair(output)[1]) / 2


def _pair(output: Any) -> Any:
    if isinstance(output, tuple | list) and len(output) > 1:
        return output
    raise BadInput(
        f"the model gave a {type(output).__name__}; accepted: logits (B, classes), or those of two heads. For other "
        "outputs say by a task what they mean: task=, --task NAME"
    )


def same_preprocess(teacher: Preprocess, student: Preprocess) -> None:
    """Raise `BadInput` for a teacher of other images than the student's."""
    if teacher.fingerprint() != student.fingerprint():
        raise BadInput(
            f"the teacher was trained with {teacher}, but the student's images are made with {student}: "
            "give the teacher images as it knows them (train the student with the teacher's preprocessing)"
        )


def no_shared_weights(teacher: nn.Module, student: nn.Module) -> None:
    """Raise `BadInput` for a teacher that would change while it teaches."""
    trained = {p.data_ptr() for p in student.parameters() if p.requires_grad and p.numel()}
    shared = _first(name for name, p in teacher.named_parameters() if p.numel() and p.data_ptr() in trained)
    if shared:
        raise BadInput(
            f"teacher and student share the parameter {shared!r}, so the teacher would change while it teaches: "
            "give a copy of the teacher made before the student was changed"
        )


def _first(names: Iterable[str]) -> str | None:
    return next(iter(names), None)


def _described(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
