"""Methods as text on the command line: `evit:keep_rate=0.7,blocks=[3,6,9]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leanvit.errors import BadInput
from leanvit.recipe.registry import knobs_of, make_method
from leanvit.values import read_pair, split_values, write_value


def parse_with(text: str) -> Any:
    """A method from command-line text: `evit`, `evit:keep_rate=70%,blocks=[3,6,9],fuse=false`.

    Values are those of `leanvit.values`: JSON, numbers with units, lists, words. Raises `BadInput`.
    """
    return make_method(*split_with(text))


def split_with(text: str) -> tuple[str, dict[str, Any]]:
    """(slug, knobs) of such a text. Raises `BadInput`."""
    slug, _, rest = text.partition(":")
    knobs: dict[str, Any] = {}
    for part in split_values(rest):
        if not part.strip():
            continue
        name, value = read_pair(part, f"{text!r}: {part!r} is not knob=value")
        if name in knobs:
            raise BadInput(f"{text!r}: {name} is given twice")
        knobs[name] = value
    return slug.strip(), knobs


def as_text(m: Any) -> str:
    """A method with all its knobs, as `parse_with` takes it: `toy:rate=0.5,blocks=[3,6]`."""
    return text_of(m.slug, knobs_of(m))


def text_of(slug: str, knobs: Mapping[str, Any]) -> str:
    """The same of a slug and knobs as JSON values, whether or not there is such a method."""
    pairs = ",".join(f"{name}={write_value(value)}" for name, value in knobs.items())
    return f"{slug}:{pairs}" if pairs else slug
