"""What travels with the tokens through the blocks of a model, passed by value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from leanvit.anatomy.arithmetic.ops import Ops
    from leanvit.anatomy.arithmetic.partition import Windows


@dataclass(frozen=True)
class State:
    """Context that a run hands in and results that blocks hand out.

    Frozen: a block returns a new state and never changes the one it was given, so a block can be run twice
    (gradient checkpointing) and two runs of one model do not meet.
    """

    # context in
    ops: Ops
    grid: tuple[int, int]  # patches (rows, columns) of the image; in a hierarchical net, of the stage
    num_prefix: int  # class, distillation and register tokens, at the front of the sequence
    keep_rate: float | None = None  # run-time rate of token reduction; None: each block uses its own
    task: int | None = None  # which task's route to take (routed experts)
    trace: bool = False  # follow each patch: fill `owner`
    tap: frozenset[str] = frozenset()  # names of intermediate results to keep in `taps`
    extra: Mapping[str, Any] = field(default_factory=dict)  # context of one method, under the method's own key
    positional: bool = False  # blocks read where tokens are (rotary positions, relative bias): `positions` must be kept
    rope: Tensor | None = None  # (..., P, 2 d) sines and cosines of each patch of the grid
    position_bias: Tensor | None = None  # ([1,] H, prefix + P, prefix + P), shared by all blocks

    # results out
    size: Tensor | None = None  # (B, N) patches that each token stands for; None: one each
    positions: Tensor | None = None  # (B, N - num_prefix) int64, where in the grid each patch token is; None: in order
    owner: Tensor | None = None  # (B, P) int64, the token that holds each patch; -1: dropped
    cls_attn: Tensor | None = None  # (B, N - num_prefix) class attention, only inside a block that asks for it
    keys: Tensor | None = None  # (B, H, N, d) keys, only inside a block that asks for them; B counts windows if cut
    windows: Windows | None = None  # how the tokens were cut, in an attention in windows; outlives it with `keys`
    tokens: tuple[int, ...] = ()  # sequence length in each block's MLP
    patch_tokens: tuple[int, ...] = ()  # likewise, without the prefix tokens
    left: Tensor | None = None  # (B,) int64, blocks that each image passed before it left; None: no exits
    losses: tuple[Tensor, ...] = ()  # auxiliary losses of this run
    taps: Mapping[str, Tensor] = field(default_factory=dict)

    def with_(self, **changes: Any) -> State:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def tapped(self, name: str, value: Tensor) -> State:
        """A copy that keeps `value` under `name` if the run asked for that name (or for `"*"`)."""
        if name not in self.tap and "*" not in self.tap:
            return self
        return replace(self, taps={**self.taps, name: value})

    def counted(self, tokens: int) -> State:
        """A copy after one more block's MLP, whose sequence is `tokens` long."""
        patch_tokens = (*self.patch_tokens, tokens - self.num_prefix)
        return replace(self, tokens=(*self.tokens, tokens), patch_tokens=patch_tokens)

    def taken(self, index: Tensor) -> State:
        """A copy after patch tokens were taken by `index` (B, K) int64: their positions in the grid go with them."""
        if not self.positional:
            return self
        return replace(self, positions=index if self.positions is None else self.positions.gather(1, index))

    def rows(self, index: Tensor) -> State:
        """A copy for some images of the batch, `index` (K,) int64. `taps` and `losses` stay those of all."""
        return replace(
            self,
            **{
                name: value[index]
                for name in ("size", "positions", "owner")
                if (value := getattr(self, name)) is not None
            },
        )

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    def owners(self, batch: int, device: torch.device) -> Tensor:
        """`owner`, or the identity (each patch in its own token) before anything was reduced: (B, P) int64."""
        if self.owner is not None:
            return self.owner
        own = torch.arange(self.num_prefix, self.num_prefix + self.num_patches, device=device)
        return own.expand(batch, -1)
