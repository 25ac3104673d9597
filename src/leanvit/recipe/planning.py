"""A compression before it begins: its methods and its recovery with the data known, and what they will train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from leanvit.recipe.protocol import ChoosesKnobs, ForeseesTraining, Method
from leanvit.recipe.recovering import Recovery, recovery_points
from leanvit.recipe.registry import knobs_of
from leanvit.recipe.training_steps import Training

if TYPE_CHECKING:
    from leanvit.data import AnyDataset


def fit_to_data(
    methods: Sequence[Method],
    recovery: Recovery | None,
    dataset: AnyDataset | None,
    was: Mapping[str, Any] | None = None,
) -> tuple[tuple[Method, ...], Recovery | None]:
    """Methods and recovery with what they leave open set for a data set; without one, as they are.

    was: what an interrupted compression that is gone on with is of (see `Steps`): there it is chosen already.
    """
    if dataset is None:
        return tuple(methods), recovery
    rows = list((was or {}).get("methods") or [])
    before = [rows[i] if i < len(rows) and rows[i].get("slug") == m.slug else {} for i, m in enumerate(methods)]
    settled = tuple(chosen_for(m, dataset, knobs) for m, knobs in zip(methods, before, strict=True))
    batch = ((was or {}).get("recovery") or {}).get("batch_size")
    return settled, None if recovery is None else recovery.chosen_for(dataset, batch)


def chosen_for(m: Method, dataset: AnyDataset, was: Mapping[str, Any]) -> Method:
    """A method with the knobs that it leaves open set for a training data set: as `was` has them, else its choice.

    was: its knobs in an interrupted compression that is gone on with, or nothing.
    """
    if not m.trains or not isinstance(m, ChoosesKnobs):
        return m
    known = {name: was[name] for name in m.open_knobs if getattr(m, name) is None and was.get(name) is not None}
    given: Any = m
    found: Method = (replace(given, **known) if known else given).chosen_for(dataset)
    return found


def trainings(methods: Sequence[Method], recovery: Recovery | None, dataset: AnyDataset | None) -> list[Training]:
    """Each training of a compression, in order. A method from outside that does not say what it trains is left out."""
    if dataset is None:
        return []
    due = recovery_points(methods, recovery)
    found: list[Training] = []
    for i, m in enumerate(methods):
        if m.trains and isinstance(m, ForeseesTraining):
            found += m.trainings(dataset)
        if recovery is not None and i in due:
            found.append(recovery.training(dataset))
    return found


def choices(given: Sequence[Method], settled: Sequence[Method], dataset: AnyDataset | None) -> list[str]:
    """In words, each knob that was chosen for the data: `nvit: max_steps=200, chosen for 270 training images`."""
    notes = []
    for before, after in zip(given, settled, strict=True):
        was, now = knobs_of(before), knobs_of(after)
        changed = [f"{name}={now[name]}" for name in now if now[name] != was[name]]
        if changed and dataset is not None:
            notes.append(f"{after.slug}: {', '.join(changed)}, chosen for {len(dataset):,} training images")
    return notes
