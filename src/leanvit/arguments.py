"""Checks of what Python calls are given: a text or a path where an object belongs, or the object itself without its
list. The error says what to write.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from leanvit.errors import BadInput, Refused


def require_model(value: object, name: str = "model") -> None:
    """Raise `BadInput` unless this is a model (a torch module)."""
    from torch import nn

    if isinstance(value, nn.Module):
        return
    if _is_path(value):
        raise BadInput(
            f"{name} is {_shown(value)}; accepted: a model. leanvit.load({_shown(value)}) gives that of a run folder, "
            "timm.create_model(NAME) a timm model; names and paths are for commands"
        )
    raise BadInput(f"{name} is {_kind(value)}; accepted: a model, as leanvit.load or timm.create_model gives")


def require_classifier(model: object, what: str, *, by_task: bool = True) -> None:
    """Raise `Refused`, saying what needs one, for an opened model whose outputs are no logits of classes of images.

    by_task: whether it would work for another task of the model.
    """
    if not getattr(model, "classifies", True):
        wired, task = getattr(model, "wiring", None), getattr(model, "task", None)
        whose = f"wiring {wired.name}" if wired is not None else f"a model of the task {getattr(task, 'name', '')}"
        instead = ": say what they mean, --task NAME (in Python task=)" if by_task and task is None else ""
        raise Refused(
            f"{what} needs a model that tells classes of images apart, and the outputs of {whose} are "
            f"something else{instead}"
        )


def require_methods(methods: object) -> None:
    """Raise `BadInput` unless this is a list of methods, whatever they are."""
    if hasattr(methods, "slug"):
        shown = methods.__name__ + "()" if isinstance(methods, type) else repr(methods)
        raise BadInput(f"methods is one method; accepted: a list of them: [{shown[:200]}]")
    if isinstance(methods, str):
        raise BadInput(f"methods is {methods!r}; accepted: a list of methods, as [parse_with({methods!r})]")
    if not isinstance(methods, (list, tuple)):
        raise BadInput(f"methods is {_kind(methods)}; accepted: a list of methods, as [ToMe(r=8)]")


def require_training_data(data: object) -> None:
    """Raise `BadInput` for a data spec or a bare data set where `Data` belongs."""
    if _is_path(data):
        dataset = f"leanvit.open_dataset({_shown(data)}, 'train')"
        raise BadInput(f"data is {_shown(data)}; accepted: Data({dataset}, Preprocess.of(model)), of leanvit.recipe")
    if hasattr(data, "spec") and hasattr(data, "classes"):
        raise BadInput("data is a data set; accepted: Data(dataset, Preprocess.of(model)), of leanvit.recipe")
    if hasattr(data, "dataset") and hasattr(data, "preprocess"):
        require_dataset(data.dataset, "data.dataset")
        if isinstance(data.preprocess, type) or not hasattr(data.preprocess, "input_size"):
            raise BadInput(f"data.preprocess is {_kind(data.preprocess)}; accepted: Preprocess.of(model)")


def require_dataset(value: object, name: str, split: str = "train", *, loaders: bool = False) -> None:
    """Raise `BadInput` for a data spec, or what is no data set of leanvit, where one belongs.

    loaders: whether any iterable of batches will do.
    """
    if _is_path(value):
        raise BadInput(
            f"{name} is {_shown(value)}; accepted: a data set, as leanvit.open_dataset({_shown(value)}, {split!r}) "
            "gives"
        )
    if not loaders and not ((hasattr(value, "classes") and hasattr(value, "targets")) or hasattr(value, "parts")):
        raise BadInput(
            f"{name} is {_kind(value)}; accepted: a data set, as leanvit.open_dataset('photos/', {split!r}) gives"
        )


def require_named_models(models: object) -> None:
    """Raise `BadInput` unless this maps names to models."""
    if isinstance(models, Mapping):
        for name, model in models.items():
            if _is_path(model):
                require_model(model, f"models[{name!r}]")
        return
    what = _shown(models) if _is_path(models) else _kind(models)
    raise BadInput(f"models is {what}; accepted: models by name, as {{'dense': model, 'lean': lean}}")


def require_path(value: object, name: str) -> None:
    """Raise `BadInput` unless this is the path of a file or folder."""
    if not _is_path(value):
        raise BadInput(f"{name} is {_kind(value)}; accepted: a path")


def _is_path(value: object) -> bool:
    return isinstance(value, (str, os.PathLike))


def _shown(value: Any) -> str:
    return repr(os.fspath(value))[:200]


def _kind(value: object) -> str:
    if value is None or isinstance(value, type):
        return "None" if value is None else value.__name__
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
