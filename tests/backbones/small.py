"""A small build of each architecture, by name: what its card gives as examples."""

from __future__ import annotations

from typing import Any

import leanvit.backbones  # noqa: F401 (registers the names)
from leanvit.cards import Example, papers


def small(example: Example) -> dict[str, Any]:
    """Constructor arguments of an example, with lists as tuples, and five classes."""
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in example.args.items()}
    return {**given, "num_classes": 5}


EXAMPLES = {one.model: one for card in papers().values() for one in card.example}
SMALL = {name: small(example) for name, example in EXAMPLES.items()}
