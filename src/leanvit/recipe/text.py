"""Methods as text on the command line: `evit:keep_rate=0.7,blocks=[3,6,9]`."""

from __future__ import annotations

import json
from typing import Any

from leanvit.errors import BadInput
from leanvit.recipe.registry import make_method


def parse_with(text: str) -> Any:
    """A method from command-line text: `evit`, `evit:keep_rate=0.7,blocks=[3,6,9],fuse=false`.

    Values are JSON; what is not JSON is taken as text. Raises `BadInput`.
    """
    return make_method(*split_with(text))


def split_with(text: str) -> tuple[str, dict[str, Any]]:
    """(slug, knobs) of such a text. Raises `BadInput`."""
    slug, _, rest = text.partition(":")
    knobs: dict[str, Any] = {}
    for part in _split_outside_brackets(rest):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise BadInput(f"{text!r}: {part!r} is not knob=value")
        if name.strip() in knobs:
            raise BadInput(f"{text!r}: {name.strip()} is given twice")
        knobs[name.strip()] = _json_or_text(value.strip())
    return slug.strip(), knobs


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth, current = [], 0, ""
    for char in text:
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += char
    return [p for p in [*parts, current] if p.strip()]


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):  # also numbers of thousands of digits
        return value
