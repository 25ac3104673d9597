"""Which methods `compare` sets side by side, each with the knob that sets its cost at the requested share of MACs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leanvit.data import AnyDataset
from leanvit.errors import BadInput, Refused
from leanvit.recipe import (
    Recovery,
    at_macs,
    check_needs,
    check_order,
    check_slots,
    check_teachers,
    choices,
    fit_to_data,
    known_papers,
    make_method,
    methods,
    split_with,
    trainings,
)
from leanvit.recipe.equal_macs import check_share, share_of
from leanvit.recipe.protocol import Method
from leanvit.report.values import shown
from leanvit.runs.compared import INT8
from leanvit.verbs.guarding import LeftOut
from leanvit.verbs.models import Loaded, Log


@dataclass(frozen=True)
class Candidate:
    """A method whose cost knob is set."""

    name: str  # of its row and folder: "evit"; of a method's second setting "evit-select-random"
    method: Method


def choose(
    start: Loaded, given: Sequence[str], macs: float, *, tolerance: float, controls: bool, log: Log
) -> tuple[list[Candidate], LeftOut]:
    """The methods with their cost knobs set, and why others are left out, named ones too.

    Args:
        given: as `--with` takes them; empty: all whose cards say that they are compared.
        tolerance: how far off, as a share of `macs`, the setting of a method may be that does not train.

    Raises:
        BadInput: a share outside (0, 1), an unknown knob, a method given twice.
        Refused: no method fits the model and the share.
    """
    check_share(macs)
    texts = list(given) or _compared()
    if controls:
        texts += [text for text in _controls(texts) if text not in texts]
    chosen: list[Candidate] = []
    left_out = LeftOut()
    for text in texts:
        slug, knobs = split_with(text)
        name = slug if slug not in (*(one.name for one in chosen), *left_out) else _name(slug, knobs)
        if any(one.name == name for one in chosen):
            raise BadInput(f"{text} is given twice: a method is compared with others, not with itself")
        log(f"compare-methods: {name} at {macs:g} of the MACs")
        with left_out.guard(name, log, but=BadInput if text in given else ()):  # a knob that was mistyped
            method = at_macs(start.model, slug, macs, knobs)
            check_order(start.model.traits(), [method])
            check_slots(start.model, [method])
            _require_share(start, method, macs, tolerance)
            chosen.append(Candidate(name, method))
    if not chosen:
        raise Refused(f"no method fits {start.name} at {macs:g} of its MACs: {'; '.join(left_out.values())}")
    return chosen, left_out


def checked(
    start: Loaded,
    chosen: Sequence[Candidate],
    train: AnyDataset | None,
    recovery: Recovery | None,
    int8: bool,
    was: Mapping[str, Any],
    left_out: LeftOut,
    log: Log,
) -> tuple[list[Candidate], list[str]]:
    """The methods that can do their work, with the knobs that follow from the data, and what they will train, in words.

    was: the methods of a comparison that is gone on with.
    """
    fitting: list[Candidate] = []
    plan: list[str] = []
    for one in chosen:
        own = recovery if one.method.trainable_after else None
        row = [one.method, *([make_method(INT8, {})] if int8 else [])]
        with left_out.guard(one.name, log, but=BadInput):  # data or a recovery that no method would be given
            check_needs(row, train, own)
        if one.name in left_out:
            continue
        with left_out.guard(one.name, log):
            check_teachers(row, own, start.model, start.model)
            check_order(start.model.traits(), row)
            check_slots(start.model, row)
            (method,), _ = fit_to_data([one.method], None, train, {"methods": [was.get(one.name, {})]})
            courses = trainings([method], own, train)
            fitting.append(Candidate(one.name, method))
            plan += choices([one.method], [method], train)
            plan += [f"{one.name}: will train {course}" for course in courses]
    if not fitting:
        raise Refused(f"no method can be compared: {'; '.join(left_out.values())}")
    return fitting, plan


def _compared() -> list[str]:
    return [card.slug for card in methods() if card.knobs.compared]


def _controls(texts: Sequence[str]) -> list[str]:
    """The controls of methods, as `--with` takes them."""
    known = known_papers()
    slugs = dict.fromkeys(split_with(text)[0] for text in texts)
    return [f"{slug}:{knobs}" for slug in slugs if slug in known for knobs in known[slug].knobs.controls]


def _name(slug: str, knobs: Mapping[str, Any]) -> str:
    words = [slug, *(f"{key}-{shown(value)}" for key, value in knobs.items())]
    return "-".join("".join(c if c.isalnum() or c in "._" else "-" for c in word) for word in words)


def _require_share(start: Loaded, method: Any, macs: float, tolerance: float) -> None:
    """Of a method whose setting was counted; one that learns its structure meets its target by itself."""
    if method.trains:
        return
    reached = share_of(start.model, method)
    if abs(reached / macs - 1) > tolerance:
        raise Refused(f"{method.slug} comes no nearer to {macs:g} of the MACs than {reached:.3f}")
