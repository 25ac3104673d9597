"""What each method of a compression did by itself, counted on the model before and after it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from leanvit.anatomy import OpenModel
from leanvit.measure import count
from leanvit.recipe.compressing import as_made
from leanvit.recipe.history import part_of
from leanvit.recipe.plan import Plan
from leanvit.recipe.protocol import Achieves, Method
from leanvit.runs.saving import TargetRow

KINDS = ("macs", "params")


class Tally:
    """Counts a model at each step of a compression (`take` is its `on_step`).

    A method's own share is what is left of the model as the method met it, after the recovery that followed; exits are
    not counted, as their cost depends on the image.
    """

    def __init__(self, methods: Sequence[Method], before: Sequence[TargetRow] = ()) -> None:
        """before: of the methods that the start was made with."""
        self._methods = methods
        self._before = before[-1].share if before else {}
        self._costs: list[dict[str, int | None]] = []  # at the start, then at the end of each method
        self._achieved: list[dict[str, Any] | None] = []

    def take(self, label: str, model: OpenModel) -> None:
        """The model at the start, after a method, or after the recovery that belongs to the method before."""
        through = len(self._costs) - 1  # methods; -1: not begun
        if through < 0:
            self._costs.append(_cost(model))
            return
        if through == len(self._methods) or label != self._methods[through].slug:  # the recovery
            self._costs.pop()
            self._achieved.pop()
        self._costs.append(_cost(model))
        method, plan = self._methods[len(self._achieved)], model.history.plans[-1]
        counted = isinstance(method, Achieves) and plan.slug == method.slug and plan.finished
        self._achieved.append(achieved_by(method, plan, model) if counted else None)

    def achieved(self, number: int) -> dict[str, Any] | None:
        """What a method achieved on the model that it gave on to the next; None where that was not finished then."""
        return self._achieved[number] if number < len(self._achieved) else None

    def share(self, number: int) -> dict[str, float]:
        """{"macs": own share, "params": own share, "macs_total": of the dense model, "params_total": likewise}."""
        if number + 2 > len(self._costs):
            return {}
        start, before, after = self._costs[0], self._costs[number], self._costs[number + 1]
        own = {kind: _ratio(after[kind], before[kind]) for kind in KINDS}
        total = {f"{kind}_total": _ratio(after[kind], start[kind], self._earlier(kind)) for kind in KINDS}
        return {key: value for key, value in (own | total).items() if value is not None}

    def _earlier(self, kind: str) -> float:
        return self._before.get(f"{kind}_total") or 1.0


def achieved_by(method: Method, plan: Plan, model: OpenModel) -> dict[str, Any]:
    """What a method achieved, counted on the model that it made or others made of it; empty if it counts nothing."""
    if not isinstance(method, Achieves):
        return {}
    made = part_of(model, plan.part)
    with as_made(made, method.slug):
        return dict(method.achieved(made, dict(plan.structure)))


def _cost(model: OpenModel) -> dict[str, int | None]:
    """Of one image; MACs are None where not all of them can be counted."""
    with model.without_exits() if model.exits is not None else nullcontext(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="MACs are a lower bound")
        found = count(model, model.probe_size())
    return {"macs": None if found.uncounted else found.macs, "params": found.params}


def _ratio(after: int | None, before: int | None, factor: float = 1.0) -> float | None:
    return factor * after / before if after is not None and before else None
