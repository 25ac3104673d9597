"""The methods by their slugs: registered by a decorator, imported on first use, made from knobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from leanvit.cards import Card, Knobs, Measured, add_registered, import_code, known_papers, own_methods, paper
from leanvit.errors import BadInput, nearest
from leanvit.kinds import KINDS, steps_asked
from leanvit.values import as_lists, as_tuples

_DEFAULTS: dict[str, Any] = {
    "requires": frozenset(),
    "destroys": frozenset(),
    "slot": "",
    "blends": False,
    "export": "whole",
    "needs_data": False,
    "trains": False,
    "resumable": False,
    "trainable_after": True,
    "learns_from": (),
    "tunable": (),
    "open_knobs": (),
}
_REGISTRY: dict[str, type] = {}
_COLUMNS = ("arxiv", "venue", "family", "published", "measured", "command", "machine")
_SIGNATURES = {
    "shape": "shape(model, structure)",
    "objective": "objective(model, data, config)",
    "callbacks": "callbacks(model)",
}


def method(slug: str) -> Callable[[type], type]:
    """Class decorator: register a method under the slug of its card, the name of its folder.

    Raises:
        BadInput: no paper has this slug, or it is another folder's.
        TypeError: the class has not the step that a kind of the paper asks for.
    """

    def register(cls: type) -> type:
        card = known_papers().get(slug)
        if card is None or not f"{cls.__module__}.".startswith(f"{card.module}."):
            owner = "no paper's" if card is None else f"that of {card.module}"
            raise BadInput(f"@method({slug!r}) of {cls.__module__}: the slug is {owner}; accepted: its folder's name")
        _check_steps(cls, card.kinds)
        cls.slug = slug  # type: ignore[attr-defined]
        for key, value in _DEFAULTS.items():
            if not hasattr(cls, key):
                setattr(cls, key, value)
        _REGISTRY[slug] = cls
        return cls

    return register


def _check_steps(cls: type, kinds: Iterable[str]) -> None:
    """Raise `TypeError` unless the class has a step of each protocol."""
    for steps in steps_asked(kinds):
        if not any(callable(getattr(cls, step, None)) for step in steps):
            raise TypeError(f"{cls.__name__} has no {' or '.join(_SIGNATURES[step] for step in steps)}")


def register(
    slug: str,
    *,
    title: str,
    summary: str,
    kind: str = "compress",
    compared: bool = False,
    cost_knobs: Sequence[str] = (),
    **more: str,
) -> Callable[[type], type]:
    """Class decorator: register a method that is not part of leanvit, from a module of your own.

    Afterwards it is a method like any other: `leanvit methods`, `--with SLUG`, recipe files, compatibility. A run that
    was made with it names this module, and loads in a process that has imported it.

    Args:
        slug: lower-case letters, digits and `_`; not one that is taken.
        title: of the paper, or of the idea.
        summary: what it does, in half a sentence.
        kind: one of `leanvit.kinds`.
        compared: whether `leanvit compare-methods` sets it beside others where no method is named.
        cost_knobs: the knobs that set its cost, of a method with `at_macs`.
        more: arxiv, venue, family (default "outside"), published, and what was measured here: measured, command,
            machine.

    Raises:
        BadInput: the slug is malformed, or belongs to another module's method; a column that there is not.
        TypeError: the class lacks the step that its kind requires (`shape`).
    """
    for name in more:
        if name not in _COLUMNS:
            known = [*_COLUMNS, "kind", "compared", "cost_knobs"]
            raise BadInput(f"register has no column {name!r}: {nearest(name, known)}")
    kinds = [name for name, one in KINDS.items() if one.is_method]
    if kind not in kinds:
        raise BadInput(f"kind is {kind!r}; accepted: {', '.join(kinds)}")

    def decorate(cls: type) -> type:
        _check_steps(cls, [kind])
        columns = {"family": "outside", **more}
        ours = Measured(
            columns.pop("measured", ""), command=columns.pop("command", ""), machine=columns.pop("machine", "")
        )
        knobs = Knobs(compared=compared, cost=dict.fromkeys(cost_knobs, ()))
        row: dict[str, Any] = {"measured": ours, "knobs": knobs, **columns}
        add_registered(Card(slug=slug, title=title, summary=summary, kinds=(kind,), module=cls.__module__, **row))
        return method(slug)(cls)

    return decorate


def outside_module(slug: str) -> str:
    """The module to import for a method from outside; "" for leanvit's own."""
    return paper(slug).package


def shaping_methods() -> list[str]:
    """The slugs of the papers with a card whose class has `shape`: what `compress` applies. Imports all of them."""
    return [slug for slug in own_methods() if hasattr(method_class(slug), "shape")]


def method_class(slug: str) -> type:
    """The class behind a slug, imported on first use. Raises `BadInput` for any other, with the nearest."""
    row = paper(slug)
    if not row.is_method:
        raise BadInput(
            f"{slug} is an architecture, not a method: its models are built by name (leanvit methods {slug})"
        )
    if slug not in _REGISTRY:
        import_code(row.module)
    if slug not in _REGISTRY:
        raise BadInput(f"{row.module} registers no class with @method({slug!r})")
    return _REGISTRY[slug]


def make_method(slug: str, knobs: Mapping[str, Any]) -> Any:
    """A method from its slug and its knobs as JSON values. Raises `BadInput` naming an unknown knob or a bad value."""
    known = check_knobs(slug, knobs)
    missing = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in knobs]
    if missing:
        raise BadInput(f"method {slug!r} needs {', '.join(missing)}")
    return method_class(slug)(**frozen(knobs))


def check_knobs(slug: str, names: Iterable[str]) -> dict[str, Field[Any]]:
    """The knobs of a method, by name. Raises `BadInput` for a name that is none of them."""
    known = {f.name: f for f in fields(method_class(slug)) if f.init}
    for name in names:
        if name not in known:
            raise BadInput(f"method {slug!r} has no knob {name!r}: {nearest(name, known)}")
    return known


def frozen(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Knobs as a method holds them: lists are tuples."""
    return {name: as_tuples(value) for name, value in knobs.items()}


def knobs_of(m: Any) -> dict[str, Any]:
    """A method's knobs as JSON values."""
    return {f.name: as_lists(getattr(m, f.name)) for f in fields(m) if f.init}
