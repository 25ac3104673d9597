"""Values as text: the one grammar of the command line, for `--with`, `--model-arg`, `--set` and all others alike.

A value is JSON, or:

- a number with a unit: `10/255`, `50%` (0.5), `5ms`, `20us`, `2s` (a `Duration`), `4k`, `86M`, `1.82G`, `2T` (powers of
  1000, a whole number where it is one); also `.5`, `5.` and `+5`, which JSON lacks;
- a list in `[]` or `()` and an object in `{}`, nested, of such values: `[random,0.5]`, `{crop: pad}`;
- text in quotes, "" as in JSON or '' as it stands, where it holds a comma or looks like another value;
- any other word, which is text: `random`. A number with a unit that is none of these is text, too: `3a`.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

from leanvit.errors import BadInput

UNITS = {"%": "1e-2", "us": "1e-6", "ms": "1e-3", "s": "1", "k": "1e3", "M": "1e6", "G": "1e9", "T": "1e12"}
_WHOLE = "kMGT"  # units of what is counted
_TIMES = ("us", "ms", "s")
_DECIMAL = r"[+-]?(?:\d{1,15}(?:\.\d{0,15})?|\.\d{1,15})"
_NUMBER = re.compile(rf"({_DECIMAL})(?:/(\d{{1,15}})|(%|us|ms|s|k|M|G|T))?", re.ASCII)
_CLOSING = {"[": "]", "(": ")", "{": "}"}
_DEEPEST = 50


class Duration(float):
    """Seconds, written with their unit: no plain number, so that `5ms` is never taken for a share of 0.005."""

    def __repr__(self) -> str:
        return f"{float(self):g}s"


def read_value(text: str) -> Any:
    """The value that a text stands for, lists as lists. Raises `BadInput` for a bracket or quote that is not closed."""
    text = text.strip()
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or a number of thousands of digits
        pass
    parts = split_values(text)
    if text[:1] in ("[", "(") and text.endswith(_CLOSING[text[0]]):
        return [read_value(part) for part in _items(text)]
    if text[:1] == "{" and text.endswith("}"):
        return dict(_pair(part, text) for part in _items(text))
    if len(parts) > 1:
        raise BadInput(f"{_short(text)} has a comma outside brackets; accepted: a list as [a,b], or the text in quotes")
    if text[:1] == "'" and text.endswith("'") and len(text) > 1:
        return text[1:-1]
    number = read_number(text)
    return text if number is None else number


def read_pair(text: str, otherwise: str) -> tuple[str, Any]:
    """`name=value`, the value read. Raises `BadInput`, with this message, for what is no pair."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise BadInput(otherwise)
    try:
        return name.strip(), read_value(value)
    except BadInput as error:
        raise BadInput(f"{name.strip()}={error}") from None


def read_number(text: str) -> int | float | None:
    """A number with a unit, a fraction, or a number that JSON lacks; None for what is none of them, such as `007`."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    number, divisor, unit = found.groups()
    if divisor is None and unit is None:
        return float(number) if "." in number else int(number) if number.startswith("+") else None
    if divisor is not None:
        return None if int(divisor) == 0 else float(Fraction(number) / int(divisor))
    value = Decimal(number) * Decimal(UNITS[unit])
    if unit in _TIMES:
        return Duration(value)
    return int(value) if unit in _WHOLE and value == int(value) else float(value)


def write_value(value: Any) -> str:
    """The shortest text that `read_value` takes for a JSON value; tuples are lists."""
    if isinstance(value, tuple | list):
        return f"[{','.join(map(write_value, value))}]"
    if isinstance(value, str):
        bare = re.fullmatch(r"[\w.*/-]+", value) is not None and read_value(value) == value
        return value if bare else json.dumps(value)
    return json.dumps(value, separators=(",", ":"))


def split_values(text: str, mark: str = ",") -> list[str]:
    """The parts of a text between marks outside of brackets and quotes. Raises `BadInput` where one is not closed."""
    parts, open_, quote, start, i = [], [], "", 0, 0
    begins = True  # whether a value begins here: only there a quote is one, elsewhere an apostrophe
    while i < len(text):
        char = text[i]
        if quote:
            i += char == "\\" and quote == '"'  # what is behind it is no quote
            quote = "" if char == quote else quote
        elif begins and char in "\"'":
            quote = char
        elif char in _CLOSING:
            open_.append(_CLOSING[char])
        elif open_ and char == open_[-1]:
            open_.pop()
        elif char == mark and not open_:
            parts.append(text[start:i])
            start = i + 1
        if len(open_) > _DEEPEST:
            raise BadInput(f"{_short(text)} opens more than {_DEEPEST} brackets")
        begins = not quote and (char in "[({,:=" or (begins and char.isspace()))
        i += 1
    if open_ or quote:
        raise BadInput(f"{_short(text)} lacks a closing {quote or open_[-1]}; accepted: each bracket and quote closed")
    return [*parts, text[start:]]


def _items(text: str) -> list[str]:
    inner = text[1:-1]
    items = split_values(inner) if inner.strip() else []
    if not all(item.strip() for item in items):
        raise BadInput(f"{_short(text)} has an empty place between commas")
    return items


def _pair(item: str, text: str) -> tuple[str, Any]:
    name, *rest = split_values(item, ":")
    if not rest:
        raise BadInput(f"{_short(text)}: {item.strip()!r} is not name: value")
    key = read_value(name)
    return key if isinstance(key, str) else name.strip(), read_value(":".join(rest))


def _short(text: str) -> str:
    return repr(text if len(text) < 80 else f"{text[:77]}...")


def as_tuples(value: Any) -> Any:
    """A value of JSON as Python's constructors take it: lists, also in lists, are tuples."""
    return tuple(as_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def as_lists(value: Any) -> Any:
    """The other way: tuples are lists, as JSON gives them back."""
    return [as_lists(v) for v in value] if isinstance(value, list | tuple) else value
