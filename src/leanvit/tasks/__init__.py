"""Tasks: what the outputs of a model mean, what is learned from them, and how a model is judged.

One class a task, one place that says everything about it; the rest of leanvit asks (`leanvit.tasks.task.Task`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leanvit.errors import BadInput
from leanvit.tasks.classification import Classification
from leanvit.tasks.heads import Head, Heads, make_of
from leanvit.tasks.metric import Metric
from leanvit.tasks.multilabel import MultiLabel
from leanvit.tasks.reading import answers_of, image_by_image, shapes_of
from leanvit.tasks.registry import make_task, module_of, task, task_names, task_of_text
from leanvit.tasks.segmentation import Segmentation
from leanvit.tasks.task import Task

__all__ = [
    "LABEL_METRICS",
    "Classification",
    "Head",
    "Heads",
    "Metric",
    "MultiLabel",
    "Segmentation",
    "Task",
    "answers_of",
    "image_by_image",
    "make_task",
    "module_of",
    "of",
    "of_record",
    "read_task",
    "require_task",
    "shapes_of",
    "stated",
    "task",
    "task_names",
]

_BY_LABELS = {"one": Classification(), "several": MultiLabel()}
LABEL_METRICS = (*Classification.metrics, *MultiLabel.metrics)  # of labels of images


def of(model: Any = None, dataset: Any = None, given: Task | None = None) -> Task:
    """The task at hand: the one that is given, else the model's own, else what the labels of the data are for.

    A model of classes of images learns, and is judged, by the labels that the data has: one class an image, or several.
    Raises `BadInput` where the task that is given is of other labels than the data has.
    """
    own = given if given is not None else stated(model)
    if own is not None and not own.label_kind:
        found: Task = own.fitted(dataset) if dataset is not None else own
        return found
    if dataset is not None and dataset.labelled:
        if given is not None and given.label_kind != dataset.label_kind:
            has = _BY_LABELS[dataset.label_kind].words
            raise BadInput(
                f"the task {given.name} is given, and data {dataset.spec!r} is {has}; accepted: no task, or data that "
                "fits it"
            )
        return _BY_LABELS[dataset.label_kind]
    return _BY_LABELS["one"] if own is None else own


def stated(model: Any) -> Task | None:
    """The task that a model says itself; None where it says none, or calls something else so."""
    own = getattr(model, "task", None)
    return own if isinstance(own, Task) else None


def of_record(info: Mapping[str, Any]) -> Task | None:
    """The task that a saved run says it is of; None: one class an image. Raises `BadInput` for an unknown one."""
    if info.get(MultiLabel.name) is True:
        return _BY_LABELS["several"]
    found = info.get("task")
    if found is None:
        return None
    if not isinstance(found, Mapping) or not isinstance(found.get("name"), str):
        raise BadInput(f"task is {found!r:.80}; accepted: a name and its fields")
    made: Task = make_of(found)
    return made


def read_task(given: Task | str | None, name: str = "task") -> Task | None:
    """A task, or one of its text (`NAME` or `NAME:field=value,...`), or None. Raises `BadInput` for anything else."""
    found: Task | None = task_of_text(given) if isinstance(given, str) else given
    require_task(found, name)
    return found


def require_task(given: object, name: str = "task") -> None:
    """Raise `BadInput` unless this is a task that is registered, or None."""
    if given is not None and not isinstance(given, Task):
        raise BadInput(f"{name} is a {type(given).__name__}; accepted: a task, as leanvit.tasks.Segmentation()")
    if isinstance(given, Task) and not given.name:
        raise BadInput(
            f"{name} is a {type(given).__name__}, which is not registered; accepted: a class with @task(NAME), so that "
            "a run that has it can be loaded"
        )
