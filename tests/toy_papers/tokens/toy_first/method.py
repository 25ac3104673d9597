"""The knobs, and the step that they put into the last block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from leanvit.anatomy import OpenModel, Step
from leanvit.anatomy.parts.tokens import take_tokens, with_prefix
from leanvit.errors import BadInput
from leanvit.recipe.registry import method


class First(Step):
    """Takes the first patch tokens: (B, N, C) -> (B, N - dropped, C)."""

    reduces: ClassVar[bool] = True
    source: ClassVar[str] = "toy_first"

    def __init__(self, name: str, dropped: int) -> None:
        super().__init__()
        self.name, self.dropped = name, dropped

    def forward(self, x: Any, state: Any) -> tuple[Any, Any]:
        batch, tokens = state.ops.shape(x)[:2]
        left = tokens - state.num_prefix - self.dropped
        kept = torch.arange(left, device=x.device).expand(batch, left)
        index = with_prefix(kept, state.num_prefix)
        return state.ops.rearrange(f"{self.name}.first", x, lambda t: take_tokens(t, index)), state.taken(kept)


@method("toy_first")
@dataclass(frozen=True)
class ToyFirst:
    """Knobs of the method."""

    dropped: int = 1  # patch tokens that go

    requires: ClassVar[frozenset[str]] = frozenset({"float", "token_blocks"})
    destroys: ClassVar[frozenset[str]] = frozenset({"full_grid"})
    slot: ClassVar[str] = "between"

    def __post_init__(self) -> None:
        if not isinstance(self.dropped, int) or self.dropped < 0:
            raise BadInput(f"dropped is {self.dropped!r}; accepted: a whole number, 0 or more")

    def learn(self, model: OpenModel, data: Any) -> dict[str, Any]:
        return {"dropped": self.dropped}

    def shape(self, model: OpenModel, structure: dict[str, Any]) -> None:
        if structure["dropped"]:
            last: Any = model.blocks[-1]
            last.between.append(First(last.name, structure["dropped"]))
