"""What one method decided, as it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from leanvit.recipe.protocol import Method
from leanvit.recipe.registry import make_method


@dataclass(frozen=True)
class Plan:
    """What one method decided: JSON only. `structure` builds shapes; values live in the state dict."""

    slug: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    structure: Mapping[str, Any] = field(default_factory=dict)
    finished: bool = True  # False: what `prepare` put in for a while is still in the model
    part: str = ""  # of a model of parts, the one that it is of; "": the model itself

    @property
    def label(self) -> str:
        """The slug, with the part that it is of: `int8`, `int8 (head)`."""
        return f"{self.slug} ({self.part})" if self.part else self.slug

    def method(self) -> Method:
        made: Method = make_method(self.slug, self.knobs)
        return made

    def to_json(self) -> dict[str, Any]:
        payload: dict[str, Any] = {"slug": self.slug, "knobs": dict(self.knobs), "structure": dict(self.structure)}
        payload |= {} if self.finished else {"finished": False}
        return payload | ({"part": self.part} if self.part else {})
