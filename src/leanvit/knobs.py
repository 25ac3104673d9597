"""Knobs: fields of frozen dataclasses whose annotations state what is accepted, for validation and for error messages.

    @dataclass(frozen=True)
    class EViT:
        keep_rate: Share | tuple[Share, ...] = knob(0.7, "patch tokens that stay")
        select: Annotated[str, Choice(SELECTIONS)] = knob("attention", "which tokens stay")

        def __post_init__(self) -> None:
            check_fields(self)

Constraints are those of `annotated_types` (Ge, Gt, Le, Lt, Len), and `Choice` and `Rule` of this module. What is
accepted is put into words from them; `Words` takes the place of these words. Nothing is converted: an int where a float
belongs stays one, True is no number, NaN and infinity are refused. Only lists become tuples, nested ones too, and one
text becomes a list of it where a list of texts belongs. A dataclass as an annotation also takes a mapping with exactly
its keys, as a plan has them.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, is_dataclass
from functools import cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MaxLen, MinLen

from leanvit.errors import BadInput, is_number, is_whole, nearest
from leanvit.values import Duration


@dataclass(frozen=True)
class Words:
    """What is accepted, where the words that follow from the constraints would be hard to read."""

    text: str


@dataclass(frozen=True, eq=False)  # the table may have no hash
class Choice:
    """One of the names of a table: a sequence or mapping that the code has, or a function that gives it."""

    table: Iterable[str] | Callable[[], Iterable[str]]

    def names(self) -> list[str]:
        return list(self.table() if callable(self.table) else self.table)


@dataclass(frozen=True)
class Rule:
    """A condition on a value of the right kind, and its wording behind the kind (nothing beside `Words`)."""

    holds: Callable[[Any], bool]
    words: str = ""


def _rising(values: tuple[Any, ...]) -> bool:
    places = [getattr(value, "block", value) for value in values]
    return all(before < after for before, after in pairwise(places))


DISTINCT = Rule(lambda values: len(set(values)) == len(values), "none twice")
RISING = Rule(_rising, "each more than the last")  # numbers, or rows of a plan by their block

MAX = sys.float_info.max  # whole numbers beyond it are no number where a float belongs
Index = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]
Rounds = Annotated[int, Ge(3)]  # of interleaved timing
Counts = Annotated[tuple[Count, ...], MinLen(1), Words("a list of whole numbers, 1 or more each")]
Share = Annotated[float, Gt(0), Le(1)]
Fraction = Annotated[float, Ge(0), Le(1)]
BelowOne = Annotated[float, Ge(0), Lt(1)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Blocks = Annotated[tuple[Index, ...], DISTINCT, Words("a list of different block numbers, from 0")]


def knob(default: Any = MISSING, meaning: str = "", *, example: Any = None) -> Any:
    """A field with what it means, and a value to show where the default is none: for `leanvit methods` and the docs."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, "example": example})


# --- the check -------------------------------------------------------------------


class _Misfit(Exception):
    """A value does not match its annotation; the caller, which knows its name, makes the message."""


def check_fields(owner: Any, prefix: str = "") -> None:
    """Check the fields of a frozen dataclass by their annotations; lists become tuples. For its `__post_init__`.

    A default of None is accepted, whatever the annotation. `prefix` stands before each name, as "recovery ".

    Raises:
        BadInput: `FIELD is VALUE; accepted: WORDS`.
    """
    kind: Any = type(owner)
    hints = field_hints(kind)
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        if field.init and not (value is None and field.default is None):
            object.__setattr__(owner, field.name, check(prefix + field.name, value, hints[field.name]))


def check(name: str, value: Any, hint: Any) -> Any:
    """The value, its lists as tuples and its records made. Raises `BadInput` unless an annotation accepts it."""
    try:
        return _fitted(name, value, hint)
    except _Misfit:
        raise BadInput(f"{name} is {_shown(value)}; accepted: {words(hint)}{_near(value, hint)}") from None


def check_each(hint: Any, **given: Any) -> None:
    """`check` for several values that one annotation speaks of, by their names."""
    for name, value in given.items():
        check(name, value, hint)


def _fitted(name: str, value: Any, hint: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        fitted = _fitted(name, value, args[0])
        return _kept(fitted, all(_holds(rule, fitted) for rule in _constraints(args)))
    if origin in (Union, UnionType):
        return _first_that_fits(name, value, args)
    if origin in (tuple, list):
        return _fitted_list(name, value, args)
    if origin is not None:  # Mapping[str, ...]
        kept = _kept(value, isinstance(value, Mapping) and all(isinstance(key, str) for key in value))
        return {key: check(f"{name}.{key}", inner, args[1]) for key, inner in kept.items()}
    if is_dataclass(hint) and isinstance(value, Mapping):
        return _record(name, value, hint)
    return _kept(value, _is(value, hint))


def _kept(value: Any, accepted: bool) -> Any:
    if not accepted:
        raise _Misfit
    return value


def _is(value: Any, kind: Any) -> bool:
    if kind in (int, float):
        fits = is_whole(value) if kind is int else is_number(value, least=-MAX, most=MAX)
        return fits and not isinstance(value, Duration)
    return kind is Any or isinstance(value, NoneType if kind is None else kind)


def _first_that_fits(name: str, value: Any, kinds: Iterable[Any]) -> Any:
    for kind in kinds:
        try:
            return _fitted(name, value, kind)
        except _Misfit:
            continue
    raise _Misfit


def _fitted_list(name: str, value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    several = len(kinds) == 1 or kinds[1] is ...
    if isinstance(value, str) and several and _plain(kinds[0]) is str:
        value = (value,)
    _kept(value, isinstance(value, tuple | list))
    each = [kinds[0]] * len(value) if several else kinds
    _kept(value, len(each) == len(value))
    return tuple(_fitted(f"{name}[{i}]", one, kind) for i, (one, kind) in enumerate(zip(value, each, strict=True)))


def _record(name: str, value: Mapping[str, Any], kind: Any) -> Any:
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key in value:
        if key not in known:
            raise BadInput(f"{name or 'it'} has no key {key!r}: {nearest(key, known)}")
    if missing := [key for key, field in known.items() if key not in value and _required(field)]:
        raise BadInput(f"{name or 'it'} lacks {', '.join(missing)}")
    where = f"block {value['block']}" if is_whole(value.get("block"), least=0) else name
    hints = field_hints(kind)
    made = {key: check(f"{key} of {where}" if where else key, inner, hints[key]) for key, inner in value.items()}
    try:
        return kind(**made)
    except BadInput as error:
        raise BadInput(f"{where}: {error}" if where else str(error)) from None


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _holds(rule: Any, value: Any) -> bool:
    match rule:
        case Ge(ge=bound):
            return bool(value >= bound)
        case Gt(gt=bound):
            return bool(value > bound)
        case Le(le=bound):
            return bool(value <= bound)
        case Lt(lt=bound):
            return bool(value < bound)
        case MinLen(min_length=least):
            return len(value) >= least
        case MaxLen(max_length=most):
            return len(value) <= most
        case Choice():
            return value in rule.names()
        case Rule():
            return rule.holds(value)
    return True


def _constraints(args: tuple[Any, ...]) -> Iterator[Any]:
    for one in args[1:]:
        yield from one if isinstance(one, GroupedMetadata) else (one,)


@cache
def field_hints(kind: Any) -> dict[str, Any]:
    """The annotations of a dataclass, by field."""
    return get_type_hints(kind, include_extras=True)


# --- in words --------------------------------------------------------------------


def words(hint: Any) -> str:
    """What an annotation accepts: "a number above 0, up to 1, or a list of such"."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _constrained(args[0], list(_constraints(args)))
    if origin in (Union, UnionType):
        parts: list[str] = []
        for kind in args:
            each = _words_of_each(kind)
            parts.append(words(kind).replace(f", each {each}", " of such", 1) if each in parts else words(kind))
        return ", or ".join(parts) if len(parts) < 3 else "; ".join(parts[:-1]) + f"; or {parts[-1]}"
    if origin in (tuple, list):
        parts = [words(kind) for kind in args if kind is not ...]
        same = f", each {parts[0]}" if len(set(parts)) == 1 else f": {'; '.join(parts)}"
        return f"a list{f' of {len(parts)}' if len(parts) > 1 else ''}{same}"
    if origin is not None or is_dataclass(hint):
        return "an object"
    known = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}
    return known.get(hint) or ("anything" if hint is Any else hint.__name__)


def _words_of_each(hint: Any) -> str | None:
    """Of the values of a list; None of what is none."""
    kind = _plain(hint)
    return words(get_args(kind)[0]) if get_origin(kind) in (tuple, list) else None


def _constrained(kind: Any, rules: list[Any]) -> str:
    for rule in rules:
        if isinstance(rule, Words):
            return rule.text
        if isinstance(rule, Choice):
            *first, last = [name or "''" for name in rule.names()]
            return f"{', '.join(first)} or {last}" if first else last
    bounds = {name: getattr(rule, name) for rule in rules for name in ("ge", "gt", "le", "lt") if hasattr(rule, name)}
    more = [rule.words for rule in rules if isinstance(rule, Rule)]
    more += ["one or more" for rule in rules if isinstance(rule, MinLen)]
    return ", ".join([words(kind) + _between(**bounds), *more])


def _between(ge: float | None = None, gt: float | None = None, le: float | None = None, lt: float | None = None) -> str:
    high = f"up to {le:g}" if le is not None else f"below {lt:g}" if lt is not None else ""
    if ge is not None:
        return f" from {ge:g} to {le:g}" if le is not None else f" from {ge:g}, {high}" if high else f", {ge:g} or more"
    if gt is not None:
        return f" above {gt:g}" + (f", {high}" if high else "")
    return f", {high}" if high else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _near(value: Any, hint: Any) -> str:
    """The choices that look like what was given."""
    given = value if isinstance(value, tuple | list) else (value,)
    names = [name for choice in _choices(hint) for name in choice.names()]
    for one in given:
        if isinstance(one, str) and one not in names and names:
            hinted, _, _ = nearest(one, names).rpartition("? ")
            return f"; {hinted}?" if hinted else ""
    return ""


def _choices(hint: Any) -> Iterator[Choice]:
    for part in get_args(hint):
        if isinstance(part, Choice):
            yield part
        yield from _choices(part)


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint
