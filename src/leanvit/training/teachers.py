"""Teachers of a training: what kind of distillation, and how a teacher of other habits sees the student's images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanvit.data import Preprocess
from leanvit.errors import BadInput, Refused
from leanvit.knobs import Choice, Fraction, Positive, Rule, Words, check_fields
from leanvit.tasks import Task
from leanvit.tasks.objectives import Objective

KINDS = ("soft", "hard", "token", "method")
TeacherName = Annotated[
    str, Rule(lambda name: bool(name.strip())), Words("a timm name, the path of a run folder, or a reference")
]


@dataclass(frozen=True, kw_only=True)
class Distill:
    """What is learned from a teacher. Raises `BadInput` for a field that is not accepted.

    kind: "soft" (its distribution), "hard" (its decision), or "token": hard, on the second head of a model with a
    distillation token (DeiT, arXiv 2012.12877), which the model must have; or "method": the objective that a method
    which was applied to the model brings (SiT's).
    """

    kind: Annotated[str, Choice(KINDS)]
    teacher: TeacherName | None = None  # a timm name (its pretrained weights) or a run folder; None: to be given
    alpha: Fraction | None = None  # weight of the teacher against the labels; None: the objective's
    temperature: Positive | None = None  # of soft distillation; None: the objective's

    def __post_init__(self) -> None:
        check_fields(self)
        if self.temperature is not None and self.kind != "soft":
            raise BadInput(f"temperature is {self.temperature!r}, and {self.kind} distillation has none: leave it out")
        if self.alpha is not None and self.kind == "method":
            raise BadInput(f"alpha is {self.alpha!r}, and distillation by a method goes by its knobs: leave it out")

    def objective(self, teacher: nn.Module, preprocess: Preprocess, *, label_smoothing: float, task: Task) -> Objective:
        """The objective under a teacher that takes images made by `preprocess`. Raises `Refused` for a kind that the
        task does not have."""
        if self.kind == "method":
            raise BadInput("distill is 'method': its objective is the method's, objective(model, data, config)")
        kind = "soft" if self.kind == "soft" else "hard"
        if kind not in task.distillations:
            raise Refused(f"{self.kind} distillation knows one class an image, but the data is {task.words}: use soft")
        return task.distillation(
            teacher,
            preprocess=preprocess,
            kind=kind,
            alpha=self.alpha,
            temperature=self.temperature,
            label_smoothing=label_smoothing,
        )

    def check_student(self, student: nn.Module) -> None:
        """Raise `BadInput` where token distillation has no token to learn by."""
        if self.kind == "token" and getattr(student, "dist_token", None) is None:
            raise BadInput(
                "distill is 'token', but the model has no distillation token; accepted: 'hard' or 'soft', or a model "
                "like deit_small_distilled_patch16_224"
            )


class Seen(nn.Module):
    """A teacher behind the student's images: normalised anew and resized to what it was trained with.

    Images are resized bicubic with antialiasing, as Pillow does.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, teacher: nn.Module, *, own: Preprocess, student: Preprocess) -> None:
        super().__init__()
        self.teacher = teacher
        self.num_classes = getattr(teacher, "num_classes", None)
        self.classes = tuple(getattr(teacher, "classes", ()))
        self.size = tuple(own.input_size[1:]) if own.input_size != student.input_size else None
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (own.mean, own.std))
        given_mean, given_std = (torch.tensor(values).view(-1, 1, 1) for values in (student.mean, student.std))
        self.register_buffer("scale", given_std / std)
        self.register_buffer("shift", (given_mean - mean) / std)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) as the student sees them -> logits (B, classes)."""
        images = images * self.scale + self.shift
        if self.size is not None:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        return self.teacher(images)


def as_seen_by(teacher: nn.Module, *, own: Preprocess, student: Preprocess) -> tuple[nn.Module, str]:
    """A teacher that takes the student's images, and what is done to them in words ("" where nothing is).

    own: what the teacher was trained with. Raises `BadInput` where the two take other channels.
    """
    if own.input_size[0] != student.input_size[0]:
        raise BadInput(
            f"the teacher takes {own.input_size[0]} channels, the student {student.input_size[0]}: "
            "give a teacher with as many"
        )
    done = []
    if (own.mean, own.std) != (student.mean, student.std):
        done.append("normalised as the teacher was trained")
    if own.input_size != student.input_size:
        done.append(f"resized to {own.input_size[1]}x{own.input_size[2]}")
    return (Seen(teacher, own=own, student=student), " and ".join(done)) if done else (teacher, "")
