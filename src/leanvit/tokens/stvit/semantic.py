"""Semantic tokens: how windows of a grid are pooled to a few tokens, and the windows whose tokens these attend to.

Chang et al., "Making Vision Transformers Efficient from A Token Sparsification View", CVPR 2023, arXiv 2303.08685,
section 3. Pure functions of shapes, of slices only: what is built from them exports with static shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from leanvit.errors import BadInput


def cells(side: int, count: int) -> list[tuple[int, int]]:
    """(first, end) of `count` cells along `side` positions, as adaptive pooling cuts them: they cover all, and overlap
    where the count does not divide the side."""
    return [(i * side // count, -(-(i + 1) * side // count)) for i in range(count)]


def adaptive_max(x: Tensor, count: int) -> Tensor:
    """Adaptive max pooling, (B, h, w, C) -> (B, count^2, C), row by row."""
    return _adaptive(x, count, torch.amax)


def adaptive_mean(x: Tensor, count: int) -> Tensor:
    """Adaptive average pooling, (B, h, w, C) -> (B, count^2, C), row by row."""
    return _adaptive(x, count, torch.mean)


def _adaptive(x: Tensor, count: int, over: Callable[[Tensor, int], Tensor]) -> Tensor:
    """`over` is applied along columns and then along rows: all of a cell count alike, as rows of it are as long."""
    rows = torch.stack([over(x[:, first:end], 1) for first, end in cells(x.shape[1], count)], dim=1)
    both = [over(rows[:, :, first:end], 2) for first, end in cells(x.shape[2], count)]
    return torch.stack(both, dim=2).flatten(1, 2)


def cell_of(side: int, window: int, count: int) -> list[int]:
    """Which semantic token along one side each place belongs to, windows one after another (the nearer of two)."""
    return [place // window * count + place % window * count // window for place in range(side)]


def starts(side: int, window: int, keys: int) -> list[int]:
    """First positions of evenly spread windows of `keys` positions, one for each of the side's windows, none outside.

    14 positions in windows of 7, keys of 10: 0 and 4, the official code's stride. Raises `BadInput` where they cannot
    be spread evenly.
    """
    count = side // window
    spare = side - keys
    if side % window or spare < 0 or (spare % (count - 1) if count > 1 else spare):
        raise BadInput(
            f"{side} tokens a side in windows of {window}: windows of {keys} for the keys cannot be spread evenly over "
            "them"
        )
    return [i * spare // max(count - 1, 1) for i in range(count)]


def neighbourhoods(x: Tensor, rows: Sequence[int], columns: Sequence[int], side: int) -> Tensor:
    """Windows of `side` x `side` positions that may overlap, (B, h, w, C) -> (B len(rows) len(columns), side^2, C)."""
    x = torch.stack([x[:, first : first + side] for first in rows], dim=1)  # (B, n, side, w, C)
    x = torch.stack([x[:, :, :, first : first + side] for first in columns], dim=2)  # (B, n, m, side, side, C)
    return x.flatten(3, 4).flatten(0, 2)


def owners(grid: tuple[int, int], window: tuple[int, int], count: int, *, device: torch.device) -> Tensor:
    """(P,) int64: the semantic token whose cell holds each patch, counted from 0, row by row of the semantic grid."""
    across = [cell_of(side, size, count) for side, size in zip(grid, window, strict=True)]
    width = grid[1] // window[1] * count
    return torch.tensor([row * width + column for row in across[0] for column in across[1]], device=device)
