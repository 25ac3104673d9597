"""A model and a data set: which classes the two share, and the data set as the model learns from it."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from leanvit.data.classes import Matched, match_classes
from leanvit.data.label_kinds import KINDS, ONE, SEVERAL
from leanvit.data.stream import AnyDataset
from leanvit.errors import BadInput


def matched_with(model: object, dataset: AnyDataset, *, class_names: str = "by-name", exact: bool = False) -> Matched:
    """`match_classes` of a model and a data set.

    model: anything that says `num_classes` and, where its outputs have names, `classes`; where it does not say how many
    outputs it has, as many as the data has classes. Raises BadInput.
    """
    if not hasattr(model, "classes"):
        model = getattr(model, "module", model)  # what DataParallel and DDP wrap
    known = tuple(getattr(model, "classes", ()))
    outputs = getattr(model, "num_classes", None) or len(known) or len(dataset.classes)
    return match_classes(known, outputs, dataset.classes, class_names=class_names, exact=exact)


def for_model(
    dataset: AnyDataset,
    model: object,
    *,
    class_names: str = "by-name",
    exact: bool = False,
    log: Callable[[str], object] = warnings.warn,
) -> AnyDataset:
    """The data set with a model's outputs as its classes: what the model learns from. `log` is called with what was
    matched. One without labels is as it is, and so is one for a model whose outputs are no classes of images.

    Raises BadInput for classes that the model does not know.
    """
    if not dataset.labelled or not getattr(model, "classifies", True):
        return dataset
    matched = matched_with(model, dataset, class_names=class_names, exact=exact)
    if kind := other_kind(model, dataset):
        log(kind)
    names = matched.names(tuple(getattr(model, "classes", ())), dataset.classes)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput(f"classes: {twice!r} comes twice; accepted: a name of its own for each output")
    if matched.same and names == list(dataset.classes):
        return dataset
    if matched.note:
        log(matched.note)
    return dataset.onto(matched, names)


def unseen_classes(dataset: AnyDataset) -> list[str]:
    """The classes that no image of a data set carries; of a stream, which is not looked through, none."""
    targets = getattr(dataset, "targets", None)
    if targets is None:
        return []
    counts = KINDS[dataset.label_kind].counted(targets, len(dataset.classes))
    return [name for name, count in zip(dataset.classes, counts, strict=True) if not count]


def other_kind(model: object, dataset: AnyDataset) -> str:
    """In one line, that a model tells one class of all and the data has several labels an image, or the reverse.

    Empty where they are of one kind, and of a model without names of classes: nothing says what it was trained for.
    """
    kinds = {ONE: "one class an image", SEVERAL: "several labels an image"}
    kind = getattr(getattr(model, "task", None), "label_kind", "one") if hasattr(model, "task") else ""
    if kind not in kinds or not dataset.labelled or not getattr(model, "classes", ()) or kind == dataset.label_kind:
        return ""
    was, now = kinds[kind], kinds[dataset.label_kind]
    return f"the model was trained for {was}, the data has {now}: its answers are read as {now}"
