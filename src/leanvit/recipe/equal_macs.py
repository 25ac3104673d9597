"""Methods at an equal share of a model's MACs: the setting of each whose cost, counted, comes nearest."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from annotated_types import Gt, Lt

from leanvit.cards import paper
from leanvit.errors import BadInput, Refused
from leanvit.knobs import Words, check
from leanvit.measure import count
from leanvit.recipe.protocol import AtMacs
from leanvit.recipe.registry import check_knobs, frozen, method_class

if TYPE_CHECKING:
    from leanvit.anatomy import OpenModel

M = TypeVar("M")


def at_macs(model: OpenModel, slug: str, share: float, knobs: Mapping[str, Any] | None = None) -> Any:
    """The method of a slug with these knobs, its cost set so that the model keeps `share` of its MACs.

    A method that finds its structure while it learns is given the target; of the others the setting is found by
    counting, without training.

    Raises:
        BadInput: a share outside (0, 1), an unknown knob, or a knob that the share decides.
        Refused: the method has no knob that sets its MACs, or does not fit the model.
    """
    cls = method_class(slug)
    knobs = dict(knobs or {})
    check_share(share)
    if not issubclass(cls, AtMacs):
        raise Refused(f"{slug} has no knob that sets its MACs")
    for name in knobs:
        if name in paper(slug).knobs.cost:
            raise BadInput(f"{slug} is given {name}, which the share of MACs decides: leave it out")
    check_knobs(slug, knobs)
    return cls.at_macs(model, share, frozen(knobs))


def check_share(share: object) -> None:
    """Raise `BadInput` unless it is a share of the MACs that methods can be set to."""
    check("macs", share, Annotated[float, Gt(0), Lt(1), Words("a share of the model's MACs, above 0 and below 1")])


def macs_of(model: OpenModel) -> int:
    """Multiply-accumulates of one image at the model's own size."""
    return count(model, model.input_size()).macs


def share_of(model: OpenModel, method: Any, dense: int | None = None) -> float:
    """The share of the model's MACs (`dense`, if they are known) that an untrained method leaves. Works on a copy."""
    from leanvit.recipe.compressing import apply

    lean = copy.deepcopy(model)
    apply(lean, method)
    return macs_of(lean) / (dense or macs_of(model))


def nearest_setting(model: OpenModel, settings: Sequence[M], share: float) -> M:
    """Of settings in the order of falling cost, the one whose share of the model's MACs comes nearest.

    Counts as few of them as a bisection needs. Raises `Refused` where there is no setting.
    """
    if not settings:
        raise Refused("no setting of the method suits this model: it has too few blocks, or too few tokens, to reduce")
    dense = macs_of(model)
    reached = cache(lambda i: share_of(model, settings[i], dense))
    low, high = 0, len(settings) - 1
    while low < high:  # the first setting at or below the share
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) <= share else (middle + 1, high)
    near = [i for i in (low - 1, low) if i >= 0]
    return settings[min(near, key=lambda i: abs(reached(i) - share))]
