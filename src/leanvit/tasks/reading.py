"""Outputs of a model as a task reads them, or a refusal that names their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from leanvit.errors import BadInput, LeanvitError
from leanvit.tasks.task import Task


def answers_of(task: Task, outputs: Any, images: int) -> Any:
    """The task's answers for a number of images. Raises `BadInput` where it cannot read such outputs."""
    try:
        found = task.answers(outputs)
        counts = {len(one) for one in (found.values() if isinstance(found, Mapping) else [found])}
    except LeanvitError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"the task {task.name} cannot read the outputs of the model, {shapes_of(outputs)}: {reason}"
        ) from error
    if counts != {images}:
        raise BadInput(
            f"the task {task.name} gave {', '.join(map(str, sorted(counts)))} answers for {images} images, of outputs "
            f"{shapes_of(outputs)}; accepted: one an image"
        )
    return found


def image_by_image(answers: Any, images: int) -> list[Any]:
    """Answers (images, ...) of a task, or of each head, as a list with that of each image."""
    if isinstance(answers, Mapping):
        heads = {name: image_by_image(one, images) for name, one in answers.items()}
        return [{name: found[number] for name, found in heads.items()} for number in range(images)]
    if answers is None:
        return [None] * images
    return [np.array(one) if isinstance(one, Tensor) else one for one in (answers[number] for number in range(images))]


def shapes_of(outputs: Any) -> str:
    """`(4, 10)`, or of heads `class (4, 10), angle (4, 1)`; of anything else its type."""
    if isinstance(outputs, Mapping):
        return ", ".join(f"{name} {shapes_of(one)}" for name, one in outputs.items())
    return str(tuple(outputs.shape)) if hasattr(outputs, "shape") else f"a {type(outputs).__name__}"
