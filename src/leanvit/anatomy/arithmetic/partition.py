"""How a grid of tokens is cut into windows and put back, as pure functions of shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT_MASK_SCORE = -100.0  # added to scores between tokens that only a cyclic shift brought together (Swin)


@dataclass(frozen=True)
class Windows:
    """Grids cut into windows: cyclic shift towards the top left, padding, then windows row by row.

    Pairs are (rows, columns). Pure functions of shapes: what is built from them exports with static shapes.
    """

    grid: tuple[int, int]
    size: tuple[int, int]
    shift: tuple[int, int] = (0, 0)
    images: int = 1  # grids in the batch

    @property
    def counts(self) -> tuple[int, int]:
        """Windows down and across."""
        return -(-self.grid[0] // self.size[0]), -(-self.grid[1] // self.size[1])

    @property
    def number(self) -> int:
        return self.counts[0] * self.counts[1]

    @property
    def area(self) -> int:
        """Positions in a window, padding included."""
        return self.size[0] * self.size[1]

    @property
    def padding(self) -> tuple[int, int]:
        """Rows below and columns on the right that the windows add to the grid."""
        return self.counts[0] * self.size[0] - self.grid[0], self.counts[1] * self.size[1] - self.grid[1]

    def partition(self, x: Tensor) -> Tensor:
        """(B, rows columns, C) -> (B windows, area, C), the windows of one image one after another; padding is zero."""
        (high, wide), (down, across) = self.size, self.counts
        x = x.unflatten(1, self.grid)
        if any(self.shift):
            x = torch.roll(x, (-self.shift[0], -self.shift[1]), dims=(1, 2))
        if any(self.padding):
            x = F.pad(x, (0, 0, 0, self.padding[1], 0, self.padding[0]))
        x = x.unflatten(2, (across, wide)).unflatten(1, (down, high))  # (B, down, high, across, wide, C)
        return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)

    def reverse(self, x: Tensor) -> Tensor:
        """The way back, (B windows, area, C) -> (B, rows columns, C); what stands in the padding is dropped."""
        x = x.unflatten(1, self.size).unflatten(0, (-1, *self.counts))  # (B, down, across, high, wide, C)
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        x = x[:, : self.grid[0], : self.grid[1]]
        if any(self.shift):
            x = torch.roll(x, self.shift, dims=(1, 2))
        return x.flatten(1, 2)

    def inside(self, device: torch.device) -> Tensor:
        """(windows, area) bool: which positions hold tokens and not padding."""
        ones = torch.ones(1, self.grid[0] * self.grid[1], 1, device=device)
        return self.partition(ones)[..., 0] > 0

    def shift_mask(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(windows, area, area): -100 between tokens that only the shift brought together, else 0.

        As Swin does, the seam is taken at the shift's distance from the padded edge (arXiv 2103.14030, figure 4).
        """
        rows, columns = (
            _regions(count * size, size, shift, device)
            for count, size, shift in zip(self.counts, self.size, self.shift, strict=True)
        )
        region = (3 * rows.unsqueeze(1) + columns).reshape(1, -1, 1)
        padded = Windows((rows.numel(), columns.numel()), self.size)
        region = padded.partition(region)[..., 0]  # (windows, area)
        apart = region.unsqueeze(1) != region.unsqueeze(2)
        return torch.zeros(apart.shape, device=device, dtype=dtype).masked_fill(apart, SHIFT_MASK_SCORE)


def _regions(length: int, size: int, shift: int, device: torch.device) -> Tensor:
    """(length,) int64 along one side: 0 up to the last window, 1 in it, 2 where the shift wrapped around."""
    place = torch.arange(length, device=device)
    return (place >= length - size).long() + (place >= length - shift).long() if shift else torch.zeros_like(place)
