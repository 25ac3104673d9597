"""Putting models together of parts, new ones and those of trained runs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from leanvit.anatomy import OpenModel, open_model
from leanvit.anatomy.composite import Composite, Wiring, arguments_of
from leanvit.anatomy.opened import Opened
from leanvit.errors import BadInput
from leanvit.recipe.history import History, create_part, root_of
from leanvit.recipe.plan import Plan
from leanvit.recipe.roots import AnyRoot, CompositeRoot, ForeignRoot, Root


def compose(wired: Wiring, parts: Mapping[str, nn.Module | AnyRoot]) -> Composite:
    """A model of parts, with its history, ready to train, compress and save.

    Args:
        wired: how they are connected.
        parts: by name. Models (a timm model, an opened one, the model of a run, a part of another composite) are
            copied with their weights, and their plans go on in the history of the whole; a root is built afresh, with
            random weights.

    Raises:
        BadInput: a part that is neither, or names that the wiring does not take.
        Refused: parts that do not fit together, as the wiring says, or whose root is not known.
    """
    if not isinstance(parts, Mapping):
        raise BadInput(f"parts is a {type(parts).__name__}; accepted: models or roots by the names of the parts")
    built = {name: _with_root(name, part) for name, part in parts.items()}
    model = Composite(wired, {name: part for name, (part, _, _) in built.items()})
    roots = {name: root for name, (_, root, _) in built.items()}
    plans = [replace(plan, part=_within(name, plan)) for name, (_, _, own) in built.items() for plan in own]
    model.history = History(CompositeRoot(wired.name, arguments_of(wired), roots), tuple(plans))
    model.preprocess = model.main_part.preprocess
    return model


def _within(name: str, plan: Plan) -> str:
    return f"{name}.{plan.part}" if plan.part else name


def _with_root(name: str, given: Any) -> tuple[nn.Module, AnyRoot, tuple[Plan, ...]]:
    """(a copy of the part, its root, its plans)."""
    if isinstance(given, Root | ForeignRoot | CompositeRoot):
        return create_part(given), given, ()
    if not isinstance(given, nn.Module):
        raise BadInput(f"part {name!r} is a {type(given).__name__}; accepted: a model or part, or the root of one")
    foreign = getattr(given, "foreign_root", None)
    if isinstance(foreign, ForeignRoot):
        return copy.deepcopy(given), foreign, ()
    part: Any = copy.deepcopy(given if isinstance(given, Opened) else open_model(given))
    if part.history is None and not isinstance(part, OpenModel):
        raise BadInput(
            f"part {name!r} is a {type(given).__name__} whose arguments are not known: give Root(NAME, ARGUMENTS) with "
            "the name that it is registered under, or the part of a composite"
        )
    if part.history is None:
        part.history = History(root_of(part))
    return part, part.history.root, part.history.plans
