"""The discrete cosine transform of a map as one matrix an axis: no complex numbers, so it exports and compiles."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from leanvit.anatomy.arithmetic.score import autocast_off


def dct_matrix(size: int, kept: int | None = None) -> Tensor:
    """Rows of the orthonormal DCT-II, (kept, size) float64: D[u, x] = a(u) cos(pi (x + 1/2) u / size).

    a(0) = sqrt(1 / size), otherwise sqrt(2 / size). The whole matrix (`kept` None) is orthogonal: its transpose is the
    inverse. Fewer rows are the lowest frequencies; their transpose takes the missing ones as zero.
    """
    x = torch.arange(size, dtype=torch.float64) + 0.5
    u = torch.arange(size if kept is None else kept, dtype=torch.float64).unsqueeze(1)
    matrix = (math.pi / size * u * x).cos() * math.sqrt(2 / size)
    matrix[0] = math.sqrt(1 / size)
    return matrix


def resampling_matrix(size: int, kept: int) -> Tensor:
    """(kept, size) float64: the signal's lowest `kept` frequencies, drawn with `kept` values; its mean is kept."""
    return math.sqrt(kept / size) * dct_matrix(kept).T @ dct_matrix(size, kept)


@register_notrace_module
class SeparableMap(nn.Module):
    """A linear map of a grid, one matrix an axis: A X B^T for each channel. In float32 under autocast too.

    Args:
        grid: (H, W) of the full grid. kept: (h, w) of the small one, at most as large.
        domain: "frequency", the small grid holds the lowest DCT coefficients; "spatial", it holds the map of these
            frequencies alone, drawn in h x w positions.
        inverse: from the small grid back to the full one, higher frequencies zero.
    """

    RUNS_WHOLE = True  # one step of a traced model: rounding a spectrum to 8 bits would leave its first value
    rows: Tensor
    columns: Tensor

    def __init__(
        self, grid: tuple[int, int], kept: tuple[int, int], *, domain: str = "frequency", inverse: bool = False
    ) -> None:
        super().__init__()
        self.grid, self.kept, self.domain, self.inverse = grid, kept, domain, inverse
        for name in ("rows", "columns"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Fill the matrices, which no state dict holds."""
        like = self.rows
        dtype = like.dtype if like.dtype == torch.float64 else torch.float32
        for name, size, kept in zip(("rows", "columns"), self.grid, self.kept, strict=True):
            with torch.device("cpu"):
                matrix = self._matrix(size, kept)
            setattr(self, name, matrix.to(device=like.device, dtype=dtype))

    def _matrix(self, size: int, kept: int) -> Tensor:
        if self.domain == "frequency":
            matrix = dct_matrix(size, kept)
            return matrix.T.contiguous() if self.inverse else matrix
        matrix = resampling_matrix(size, kept)
        return (matrix.T * (size / kept)).contiguous() if self.inverse else matrix

    def _apply(self, fn: Any, recurse: bool = True) -> SeparableMap:
        before = self.rows.dtype
        super()._apply(fn, recurse)
        if self.rows.dtype != before:  # half precision would spoil them, and float64 made of float32 is not exact
            self.init_non_persistent_buffers()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, h, w, C), or back."""
        with autocast_off(x.device.type):
            batch, height, width, channels = x.shape
            flat = x.to(self.rows.dtype).reshape(batch, height, width * channels)
            out: Tensor = self.columns @ (self.rows @ flat).unflatten(2, (width, channels))
            return out.to(x.dtype)
