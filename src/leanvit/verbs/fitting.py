"""A model and the data that it is trained or judged on: whether they fit, and each as the other needs it."""

from __future__ import annotations

from dataclasses import replace

from leanvit import tasks
from leanvit.data import AnyDataset, check_fits, for_model, matched_with
from leanvit.errors import BadInput
from leanvit.tasks import Task
from leanvit.verbs.models import Loaded, Log, silent


def with_range_of(dataset: AnyDataset, loaded: Loaded) -> Loaded:
    """A model that is trained on this data: its preprocessing keeps the values that were black and white in it."""
    if dataset.pixel_range is None:
        return loaded
    preprocess = replace(loaded.preprocess, pixel_range=dataset.pixel_range)
    loaded.model.preprocess = preprocess
    return replace(loaded, preprocess=preprocess)


def with_labels_of(dataset: AnyDataset, loaded: Loaded) -> Loaded:
    """A timm name that is judged by this data: whether its classes are questions by themselves is as the data has it.

    A run records it itself.
    """
    if loaded.folder is None:
        loaded.model.task = loaded.model.task or tasks.of(None, dataset)
    return loaded


def with_task(loaded: Loaded, task: Task | None, dataset: AnyDataset | None, *, log: Log = silent) -> Loaded:
    """A model whose outputs mean what a command says; without a task, as it is. A task of one's own is told.

    Raises `BadInput` for a task of other labels than the data has.
    """
    if task is not None:
        loaded.model.task = tasks.of(None, dataset, task)
    own = loaded.task
    if own is not None and not own.label_kind:
        loaded.model.task = own if dataset is None else own.fitted(dataset)
        log(f"task: {loaded.model.task}")
    return loaded


def require_fit(
    loaded: Loaded,
    dataset: AnyDataset,
    *,
    adapted: bool = False,
    convert: bool = False,
    adaptable: bool = True,
    trains: bool = False,
    class_names: str = "by-name",
    judges: str = "",
) -> bool:
    """Raise `BadInput`, before any work, unless model and data fit; names `--adapt` and `--convert` where they help.

    Preprocessing may enlarge images or convert their channels for a run, which was made that way, for a model that was
    adapted on request, and where `convert` says so. Returns whether it may.

    adaptable: whether the verb has `--adapt`. trains: whether that gives runs a new classifier. class_names: how the
    data's classes are found among the model's outputs, see `data.match_classes`. judges: what judges or trains, which
    refuses a model, and data, that the task at hand (`tasks.of`) does not fit.
    """
    if judges:
        tasks.of(loaded.model, dataset).check_judging(judges, model=loaded.model, dataset=dataset)
    named = loaded.folder is None and not adapted
    convert = convert or not named
    try:
        check_fits(loaded.model, loaded.preprocess, dataset, convert=convert, class_names=class_names, trains=trains)
    except BadInput as error:
        hints = []
        if named and adaptable:
            hints.append("\nOr let leanvit choose the constructor arguments: --adapt (adapt=True)")
        if trains and loaded.folder and not adapted and not _known(loaded, dataset, class_names):
            hints.append("\nOr give the run a new classifier for these classes: --adapt (adapt=True)")
        if not convert and _bridged(loaded, dataset, class_names, trains):
            hints.append("\nOr take the images as preprocessing makes them: --convert (convert=True)")
        raise BadInput(f"{error}{''.join(hints)}") from None
    return convert


def _bridged(loaded: Loaded, dataset: AnyDataset, class_names: str, trains: bool) -> bool:
    try:
        check_fits(loaded.model, loaded.preprocess, dataset, convert=True, class_names=class_names, trains=trains)
    except BadInput:
        return False
    return True


def _known(loaded: Loaded, dataset: AnyDataset, class_names: str) -> bool:
    try:
        matched_with(loaded.model, dataset, class_names=class_names, exact=True)
    except BadInput:
        return False
    return True


def with_classes_of(
    loaded: Loaded, dataset: AnyDataset, *, class_names: str = "by-name", trains: bool = False, log: Log = silent
) -> AnyDataset:
    """A data set that fits, with the model's outputs as its classes. A model without names gets those of the data."""
    mapped = for_model(dataset, loaded.model, class_names=class_names, exact=trains, log=log)
    if loaded.model.classifies and not loaded.model.classes:
        loaded.model.classes = tuple(mapped.classes)
    return mapped
