"""ToMe among all tokens of an image: what merges stays merged, and attention counts a token by its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from leanvit.anatomy import OpenModel, State, Step
from leanvit.anatomy.arithmetic.score import proportional
from leanvit.anatomy.parts.tokens import moved_owner
from leanvit.anatomy.surgery.steps import add_term, insert_step
from leanvit.errors import BadInput
from leanvit.tokens.tome.matching import match, merge, shares, summed_keys


class Merge(Step):
    """Merges r pairs of one block; fewer where fewer tokens are left."""

    needs: ClassVar[frozenset[str]] = frozenset({"keys"})
    reduces: ClassVar[bool] = True
    source: ClassVar[str] = "tome"

    def __init__(self, name: str, *, r: int) -> None:
        super().__init__()
        self.name, self.r = name, r

    def forward(self, x: Any, state: State) -> tuple[Any, State]:
        batch, tokens = state.ops.shape(x)[:2]
        r = min(self.r, (tokens - state.num_prefix) // 2)
        if r < 1:
            return x, state
        keys = state.keys
        if keys is None:
            raise BadInput(f"{self.name}: no keys in the state; the step belongs into a block's `between`")
        even, odd = (state.num_prefix + 1) // 2, state.num_prefix // 2
        matching = match(summed_keys(keys), r, even=even, odd=odd, keep_order=state.num_prefix > 0)
        size = torch.ones(batch, tokens, device=keys.device) if state.size is None else state.size
        share, size = shares(matching, size)
        x = state.ops.mix(f"{self.name}.merge", x, lambda t: merge(t, matching, share))
        state = state.with_(size=size).tapped(f"{self.name}.merged", matching.source)
        state = state.taken(matching.order[:, state.num_prefix :] - state.num_prefix)
        if state.trace:
            owner = moved_owner(state.owners(batch, keys.device), matching.indices())
            state = state.with_(owner=owner).tapped(f"{self.name}.owner", owner)
        return x, state


def put(model: OpenModel, rows: Sequence[tuple[int, int]], *, prop_attn: bool) -> None:
    """Put the steps of `rows`, (block, r), in, and the score term into every attention that may meet merged tokens."""
    for block, r in rows:
        if r:
            insert_step(model, block, "between", Merge(model.blocks[block].name, r=r))
    if prop_attn and any(r for _, r in rows):
        add_term(model, proportional)


def misses(model: OpenModel, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Blocks in whose MLP more patch tokens are than the plan leaves there; at most half of them can merge."""
    counts = model.patch_tokens()
    entering = [model.patches(), *counts]
    planned = [(row["block"], entering[row["block"]], row["r"]) for row in rows]
    left = [(i, given, given - min(r, given // 2)) for i, given, r in planned]
    return [
        f"block {i}: requested {few} patch tokens of {given}, has {counts[i]}"
        for i, given, few in left
        if counts[i] > few
    ]
