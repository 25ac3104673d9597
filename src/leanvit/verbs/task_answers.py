"""Answers of a model by its task, where that is not about classes of images: as columns, and as maps beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leanvit.errors import BadInput
from leanvit.measure.runners import device_of, fixed_batch_of, float_dtype_of
from leanvit.tasks import Task, answers_of, shapes_of
from leanvit.verbs.answers import OWN_COLUMNS, Answer

_NAMED = 5  # images that a message names


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
    outputs = outputs_of(task, runner, images, keys)
    axis = outputs.shape[1] if isinstance(outputs, Tensor) and outputs.ndim > 1 else 0
    names = tuple(classes) or tuple(map(str, range(axis)))
    for number, key in enumerate(keys):
        alone = task.sized(_alone(outputs, number), images.shape[2:])  # maps of a batch at that size take much memory
        answer = _of_image(answers_of(task, alone, 1), 0)
        columns = task.columns(answer, names)
        if taken := sorted(OWN_COLUMNS & set(columns)):
            raise BadInput(f"the task {task.name} has a column {taken[0]!r}, which predict writes itself")
        yield Answer(key, answer=answer, columns=columns)


def outputs_of(task: Task, runner: Any, images: Tensor, keys: Sequence[str]) -> Any:
    """What a runner gives for images (B, C, H, W): a tensor (B, ...) on the CPU, or such tensors by the name of a head.

    A runner of a fixed batch gets its batch, the last one filled up. Raises `BadInput` for what is not finite.
    """
    batch = fixed_batch_of(runner) or len(images)
    pieces = [_run(task, runner, piece, batch) for piece in images.split(batch)]
    if not isinstance(pieces[0], Mapping):
        return _joined(pieces, keys)
    return {name: _joined([piece[name] for piece in pieces], keys) for name in pieces[0]}


def _run(task: Task, runner: Any, images: Tensor, batch: int) -> Any:
    """Outputs for at most `batch` images of a runner that takes exactly these, or any number."""
    count, missing = len(images), batch - len(images)
    filled = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]) if missing else images
    found = task.run(runner, filled.to(device_of(runner), float_dtype_of(runner)))
    for one in found.values() if isinstance(found, Mapping) else [found]:
        if not hasattr(one, "shape") or not len(one.shape) or one.shape[0] != len(filled):
            raise BadInput(
                f"the model gave {shapes_of(found)} for {len(filled)} images; accepted: a tensor "
                f"({len(filled)}, ...), or such tensors by the names of heads"
            )
    return {name: one[:count] for name, one in found.items()} if isinstance(found, Mapping) else found[:count]


def _joined(pieces: Sequence[Any], keys: Sequence[str]) -> Tensor:
    outputs = torch.cat([torch.as_tensor(piece).detach().cpu() for piece in pieces])
    outputs = outputs.float() if outputs.is_floating_point() else outputs
    finite = torch.isfinite(outputs).reshape(len(keys), -1).all(dim=1).tolist()
    if not all(finite):
        bad = [key for key, one in zip(keys, finite, strict=True) if not one]
        shown = ", ".join(map(repr, bad[:_NAMED])) + (", …" if len(bad) > _NAMED else "")
        raise BadInput(f"outputs are not finite for {len(bad)} of {len(keys)} images: {shown}")
    return outputs


def _alone(outputs: Any, number: int) -> Any:
    """The outputs of one image, as a batch (1, ...)."""
    if isinstance(outputs, Mapping):
        return {name: _alone(one, number) for name, one in outputs.items()}
    return outputs[number : number + 1]


def _of_image(answers: Any, number: int) -> Any:
    """One image's answer: an array, or one by the name of each head."""
    if isinstance(answers, Mapping):
        return {name: _of_image(one, number) for name, one in answers.items()}
    one = answers[number]
    return np.array(one) if isinstance(one, Tensor) else one
