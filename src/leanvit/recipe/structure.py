"""What the structure of a plan may hold, checked before anything is built.

A method names its `structure_model`, a class variable: a frozen dataclass, whose annotations are those of knobs
(`leanvit.knobs`). The structure has its keys and no others, a field with a default may be missing, lists of rows are
`tuple[Row, ...]`, and relations between values are in its `__post_init__`. What depends on the model is the method's
own to check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leanvit.errors import BadInput
from leanvit.knobs import Index, check


@dataclass(frozen=True)
class BlockRow:
    """What a method does in one block; a message about its other values names the block."""

    block: Index


def check_structure(m: Any, structure: Mapping[str, Any]) -> None:
    """Raise `BadInput`, naming plan and key, unless a structure is as the method's `structure_model` says."""
    model = getattr(m, "structure_model", None)
    if model is None:
        return
    try:
        check("", structure, model)
    except BadInput as error:
        raise BadInput(f"the structure of plan {m.slug!r} does not fit: {error}") from error
