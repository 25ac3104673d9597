"""Whether methods fit a model, found out before any work: what a method only sees in the model that it is given."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

from leanvit.anatomy import OpenModel
from leanvit.recipe import history as histories
from leanvit.recipe.learning import Data
from leanvit.recipe.plan import Plan
from leanvit.recipe.protocol import ChecksFit, Finishes, Learns, Method, Prepares
from leanvit.recipe.registry import knobs_of


def check_fits(model: OpenModel, methods: Sequence[Method], data: Data | None) -> None:
    """Raise `Refused` or `BadInput` for a method that does not fit the model. The model is left as it is.

    Each method is asked by its `check_fits(model, data)`, if it has one. Those that learn nothing from data are then
    applied to a copy, so that the next one meets what it will meet; one that does is passed over, and what comes after
    it is only asked.
    """
    trial, known = model, True
    for number, m in enumerate(methods):
        if isinstance(m, ChecksFit):
            m.check_fits(trial, data)
        known = known and not (m.needs_data or m.trains)
        if not known:
            continue
        trial = copy.deepcopy(model) if number == 0 else trial
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come when it is done in earnest
            _apply_shape(trial, m, data)


def _apply_shape(model: OpenModel, m: Method, data: Data | None) -> None:
    if isinstance(m, Prepares):
        m.prepare(model)
    structure = m.learn(model.eval(), data) if isinstance(m, Learns) else {}
    histories.shape(model, Plan(m.slug, knobs_of(m), structure, finished=not isinstance(m, Finishes)))
