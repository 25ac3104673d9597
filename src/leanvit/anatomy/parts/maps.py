"""Feature maps: their sizes, known before a run, and reduced tokens brought back to the full grid of patches.

A patch that was merged takes the token that holds it (`State.owner`). One that was dropped, or that went into a sum
which stands for none of its tokens (`Step.fuses`), keeps the value that it had after the block before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models._features import feature_take_indices

from leanvit.anatomy.parts.blocks import Block, apply_norm
from leanvit.anatomy.parts.tokens import take_tokens
from leanvit.anatomy.state import State
from leanvit.errors import BadInput, Refused, is_whole

EMBED = "embed"  # tap: the embedded tokens (B, N, C) before patch dropout took some


@dataclass(frozen=True)
class MapSizes:
    """What a neck or a head must know of the maps that `OpenModel.maps` gives, finest first; one entry a map."""

    channels: tuple[int, ...]
    strides: tuple[tuple[int, int], ...]  # pixels (rows, columns) from one cell to the next

    @property
    def multiple_of(self) -> tuple[int, int]:
        """(rows, columns): for images whose sides are multiples of these, a map's sides are theirs over its stride.

        Other sizes are refused by most models; those that pad give maps that are rounded up.
        """
        rows, columns = zip(*self.strides, strict=True)
        return math.lcm(*rows), math.lcm(*columns)


def taken(number: int, indices: int | Sequence[int] | None, default: int) -> list[int]:
    """Which of `number` maps are asked for, ascending: timm's `feature_take_indices`, None being the last `default`.

    Raises `BadInput` for anything but the number of last ones, or a list of maps that exist.
    """
    asked = default if indices is None else indices
    if isinstance(asked, Sequence) and not isinstance(asked, str):
        fits = len(asked) > 0 and all(is_whole(i, least=-number, most=number - 1) for i in asked)
        asked = list(asked)
    else:
        fits = is_whole(asked, least=1, most=number)
    if not fits:
        raise BadInput(
            f"indices is {indices!r}; accepted: how many of the last of {number} maps (1 to {number}), or a list of "
            f"maps ({-number} to {number - 1})"
        )
    return sorted(set(feature_take_indices(number, asked)[0]))


def mixing(block: Block) -> str:
    """The method that mixes patches in this block, so that no token behind it stands for one; "" where none does."""
    if block.source and block.reduces_tokens:
        return block.source
    return next((step.source for step in block.steps() if step.blends), "")


@dataclass(frozen=True)
class Flow:
    """A run block by block, of a model whose blocks all see one grid, with what its patches need to return to it."""

    x: Any  # (B, N, C) tokens
    state: State
    before: Any = None  # (B, P, C) the full grid before the last reduction; None: all patches are in `x`
    lost: str = ""  # why the full grid cannot be had any more

    @classmethod
    def begin(cls, model: Any, images: Any, **context: Any) -> Flow:
        """After the embedding of an `OpenViT`. `context` as in `OpenModel.forward`."""
        state = model.start(images, **context)
        fused = {f"{step.name}.fused" for step in model.steps() if step.fuses}
        x, state = model.embed(images, state.with_(trace=True, tap=state.tap | {EMBED} | fused))
        whole = state.taps.get(EMBED)
        if whole is None:
            return cls(x, state)
        whole = apply_norm(state.ops, "norm_pre", model.norm_pre, whole)
        return cls(x, state, cls(whole, state.with_(owner=None)).patches("maps.embed"))

    def through(self, model: Any, i: int) -> Flow:
        """After block i."""
        block, seen = model.blocks[i], self.state
        x, state = model.run(self.x, seen, i, i + 1)
        tokens, same = state.ops.shape(x)[1], state.owner is seen.owner
        if self.lost or mixing(block) or (same and tokens != seen.ops.shape(self.x)[1]):
            lost = (
                f"block {i} gives {tokens} tokens, not {seen.num_prefix + seen.num_patches}: token reduction left no "
                "full grid of patches; ask for earlier blocks, or use the dense root"
            )
            return Flow(x, state, lost=self.lost or lost)
        if same:
            return Flow(x, state, self.before)
        owner = state.owner
        assert owner is not None  # a step has just set it
        for step in block.steps():
            if step.fuses and (gone := state.taps.get(f"{step.name}.fused")) is not None:
                owner = owner.masked_fill(gone, -1)
        return Flow(x, state.with_(owner=owner), self.patches(f"{block.name}.grid"))

    def patches(self, at: str) -> Any:
        """The full grid, (B, P, C). `at`: the name of its sites. Raises `Refused` where it cannot be had."""
        ops, owner, prefix = self.state.ops, self.state.owner, self.state.num_prefix
        if self.lost:
            raise Refused(self.lost)
        if owner is None:
            return ops.rearrange(at, self.x, lambda t: t[:, prefix:])
        own = torch.arange(owner.shape[1], device=owner.device) + ops.shape(self.x)[1]  # places in `before`
        index = torch.where(owner < 0, own, owner)
        both = ops.cat(f"{at}.both", [self.x, self.before])
        return ops.rearrange(at, both, lambda t: take_tokens(t, index))


def as_map(state: State, at: str, x: Any) -> Any:
    """(B, h w, C) -> (B, C, h, w), of the grid in the state."""
    return state.ops.rearrange(at, x, lambda t: t.unflatten(1, state.grid).permute(0, 3, 1, 2).contiguous())
