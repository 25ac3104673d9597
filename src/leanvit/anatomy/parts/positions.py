"""Where tokens are: rotary positions and relative biases that stay right when tokens are removed or merged.

A table has a row for each patch of the grid. A step that takes tokens moves `State.positions` with them
(`State.taken`); a fused token is where the most attended of its tokens was, a merged one where its receiver was. Before
anything is taken the table is used as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanvit.anatomy.parts.tokens import with_prefix
from leanvit.anatomy.state import State


@dataclass(frozen=True)
class Rotary:
    """Rotary positions of one attention (Su et al., arXiv 2104.09864; in two dimensions, as timm's `Eva` has them)."""

    half: bool  # pairs are channels half a head apart, not neighbours
    row: int | None = None  # which row of a table that has one for each block; None: one table for all

    def turn(self, site: str, x: Any, state: State) -> Any:
        """q or k, (B, H, N, d) -> (B, H, N, d); prefix tokens have no position and stay."""
        table = state.rope if self.row is None or state.rope is None else state.rope[self.row]
        if table is None:
            return x
        table = rows_at(table, state.positions)
        return state.ops.rotate(site, x, table, prefix=state.num_prefix, half=self.half)


def rows_at(table: Tensor, positions: Tensor | None) -> Tensor:
    """Rows of the tokens at hand: (P, d) or (H, P, d) with (B, n) int64 -> (B, 1 or H, n, d)."""
    if positions is None:
        return table
    rows = table.index_select(-2, positions.flatten()).unflatten(
        -2, tuple(positions.shape)
    )  # (B, n, d) or (H, B, n, d)
    return rows.unsqueeze(1) if table.ndim == 2 else rows.transpose(0, 1)


def bias_of(table: Tensor, index: Tensor) -> Tensor:
    """Bias from a table of relative positions: (positions, H) by (N, N) int64 -> (1, H, N, N)."""
    return table[index.flatten()].unflatten(0, tuple(index.shape)).permute(2, 0, 1).contiguous().unsqueeze(0)


def bias_at(bias: Tensor, state: State) -> Tensor:
    """Bias between the tokens at hand: (1, H, N0, N0), N0 the prefix and the whole grid -> (B, H, N, N).

    Before anything was taken the bias comes back as it is; the leading 1 may be missing.
    """
    if state.positions is None:
        return bias
    bias = bias if bias.ndim == 3 else bias[0]
    index = with_prefix(state.positions, state.num_prefix)  # (B, N)
    batch, tokens = index.shape
    rows = bias.index_select(1, index.flatten()).unflatten(1, (batch, tokens)).transpose(0, 1)  # (B, H, N, N0)
    columns = index[:, None, None, :].expand(batch, bias.shape[0], tokens, tokens)
    return torch.gather(rows, 3, columns)
