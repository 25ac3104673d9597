"""Answers of a model by its task, where that is not about classes of images: as columns, and as maps beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from leanvit.errors import BadInput
from leanvit.measure.runners import outputs_of
from leanvit.tasks import Task, answers_of, image_by_image
from leanvit.verbs.answers import OWN_COLUMNS, Answer


def task_answers(
    task: Task,
    runner: Any,
    images: Tensor,
    keys: Sequence[str],
    classes: Sequence[str],
) -> Iterator[Answer]:
    """The answers for one batch, in its order.

    Args:
        images: (B, C, H, W).
        classes: names of the outputs; empty: numbers, where the outputs are one tensor with an axis of classes.

    Raises `BadInput` for outputs that the task cannot read, or that are not finite.
    """
    outputs = outputs_of(runner, images, keys, task.run)
    axis = outputs.shape[1] if isinstance(outputs, Tensor) and outputs.ndim > 1 else 0
    names = tuple(classes) or tuple(map(str, range(axis)))
    for number, key in enumerate(keys):
        alone = task.sized(_alone(outputs, number), images.shape[2:])  # maps of a batch at that size take much memory
        (answer,) = image_by_image(answers_of(task, alone, 1), 1)
        columns = task.columns(answer, names)
        if taken := sorted(OWN_COLUMNS & set(columns)):
            raise BadInput(f"the task {task.name} has a column {taken[0]!r}, which predict writes itself")
        yield Answer(key, answer=answer, columns=columns)


def _alone(outputs: Any, number: int) -> Any:
    """The outputs of one image, as a batch (1, ...)."""
    if isinstance(outputs, Mapping):
        return {name: _alone(one, number) for name, one in outputs.items()}
    if isinstance(outputs, tuple):
        return tuple(_alone(one, number) for one in outputs)
    return outputs[number : number + 1]
