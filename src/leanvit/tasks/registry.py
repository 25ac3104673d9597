"""Tasks by name: registered by a decorator, made of the fields that a run or a command gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from leanvit.cards import builders, import_code
from leanvit.errors import BadInput, nearest, unknown
from leanvit.values import as_tuples, read_pair, split_values

C = TypeVar("C", bound=type)
_TASKS: dict[str, type] = {}


def task(name: str) -> Callable[[C], C]:
    """Class decorator: register a task by name, so that a run that has it can be loaded."""

    def register(cls: C) -> C:
        known, module = _TASKS.get(name), cls.__module__
        if known is not None and (known.__module__, known.__qualname__) != (module, cls.__qualname__):
            raise BadInput(f"task {name!r} is registered by {known.__module__} already: give another name")
        if not name.isidentifier():
            raise BadInput(f"task name {name!r}; accepted: a Python name")
        own: Any = cls
        if getattr(own, "label_kind", "") and not module.startswith("leanvit."):
            raise BadInput(
                f"task {name!r}: {cls.__qualname__} is of labels of images, which leanvit judges by its own tasks; "
                "accepted: a subclass of leanvit.tasks.Task. For another loss give an objective of your own"
            )
        for taken in {"name", "module"} & set(getattr(cls, "__dataclass_fields__", ())):
            raise BadInput(
                f"task {name!r}: {cls.__qualname__} has a field {taken!r}, which a run writes itself: rename it"
            )
        own.name, own.words = name, getattr(own, "words", "") or f"of the task {name}"
        _TASKS[name] = cls
        return cls

    return register


def task_names() -> list[str]:
    """The names of all tasks that are registered."""
    return sorted(_TASKS)


def task_class(name: str) -> type:
    """The class that is registered under a name; a paper that brings it is imported. Raises `BadInput`."""
    if name not in _TASKS and name in builders():
        import_code(builders()[name].module)
    if name not in _TASKS:
        raise unknown("task", name, _TASKS)
    return _TASKS[name]


def make_task(name: str, arguments: Mapping[str, Any]) -> Any:
    """A task of its name and fields. Raises `BadInput` for an unknown name, field or value."""
    cls: Any = task_class(name)
    known = fields(cls) if is_dataclass(cls) else ()
    accepted = [f.name for f in known]
    for key in arguments:
        if key not in accepted:
            raise BadInput(f"the task {name} has no field {key!r}: {nearest(key, accepted)}")
    needed = [f.name for f in known if f.default is f.default_factory is MISSING and f.name not in arguments]
    if needed:
        raise BadInput(f"the task {name} needs its field {needed[0]!r}, as {name}:{needed[0]}=VALUE")
    try:
        return cls(**{key: as_tuples(value) for key, value in arguments.items()})
    except TypeError as error:
        raise BadInput(f"task {name}: {error}") from error


def task_of_text(text: str) -> Any:
    """A task of `NAME` or `NAME:field=value,...`. Raises `BadInput`."""
    name, colon, rest = text.partition(":")
    arguments: dict[str, Any] = {}
    for part in split_values(rest) if colon else ():
        key, value = read_pair(part, f"--task {name} takes field=value")
        arguments[key] = value
    return make_task(name.strip(), arguments)


def module_of(name: str) -> str:
    """The module that registered a task; "" for one of leanvit's own, or of a paper's card."""
    module = _TASKS[name].__module__ if name in _TASKS else ""
    return "" if name in builders() or module.startswith("leanvit.") else module
