"""Masks that multiply attention scores by how two patches lie to each other, learned (arXiv 2309.05375).

softmax(M * S): the scaled scores S are multiplied before any bias, so a far patch gets a logit near 0, not minus
infinity, and an additive mask cannot say the same. `GaussianMixtureMask` learns M as a mixture of Gaussians of the
distance, `ElementMask` every element of it. Both are score terms (`Attention.terms`), and the attentions of timm that
are built with one (`anatomy/parts/masked.py`) ask them for `factor`: one text for both sides.

Prefix tokens have no position: their rows and columns are 1. In windows, the grid is the window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanvit.anatomy.arithmetic.score import Phases
from leanvit.anatomy.parts.positions import bias_at, bias_of
from leanvit.anatomy.state import State
from leanvit.errors import BadInput, unknown

EPS = 1e-5  # added to the variances
WIDE = 1e6  # a sigma at which a Gaussian is 1 on every grid
KERNELS = 5  # in the mixture (arXiv 2309.05375, section 4.1)
INITS = ("paper", "identity")
Grid = tuple[int, int]


def offsets(grid: Grid, device: torch.device | str | None = None) -> Tensor:
    """(N, N) int64 on a grid of (rows, columns), row by row: rows apart x columns of the grid + columns apart."""
    rows, columns = grid
    y = torch.arange(rows, device=device).repeat_interleave(columns)
    x = torch.arange(columns, device=device).repeat(rows)
    return (y.unsqueeze(1) - y).abs() * columns + (x.unsqueeze(1) - x).abs()


def gaussian_mixture(sigma: Tensor, alpha: Tensor, grid: Grid, index: Tensor | None = None) -> Tensor:
    """M[h, i, j] = sum over k of alpha[k, h] exp(-d²(i, j) / (2 (sigma[k, h]² + 1e-5))), d in units of the grid.

    Each distance is computed once, rows x columns of them, and then put where it occurs. The official arithmetic,
    exp(-d²)^(1/2) to the power 1 / (sigma² + 1e-5), is 0 in float32 beyond d² = 103, on a 14x14 grid for 22 % of the
    pairs; this one is not.

    Args:
        sigma, alpha: (K, H, 1, 1).
        grid: (rows, columns).
        index: `offsets(grid)`, where it is kept.

    Returns:
        (H, N, N), N = rows x columns, float32 or wider.
    """
    wide = torch.promote_types(sigma.dtype, torch.float32)
    y, x = (torch.arange(side, device=sigma.device, dtype=wide).square() for side in grid)
    squared = y.unsqueeze(1) + x  # (rows, columns)
    spread = 2 * (sigma.to(wide).square() + EPS)
    table = (alpha.to(wide) * torch.exp(-squared / spread)).sum(dim=0)  # (H, rows, columns)
    return bias_of(table.flatten(1).transpose(0, 1), offsets(grid, sigma.device) if index is None else index)[0]


class ScoreMask(nn.Module):
    """A mask that multiplies scores; a score term `(phases, state) -> phases`.

    `grid` is the one that it is built for. With `weight_decay` False, an optimiser of leanvit leaves it out.
    """

    kind: ClassVar[str]
    positional: ClassVar[bool] = True  # it must know where tokens are, also after some were taken away
    fixed: Tensor | None

    def __init__(self, grid: Grid, *, weight_decay: bool = True, source: str = "") -> None:
        super().__init__()
        self.grid, self.weight_decay, self.source = grid, weight_decay, source
        self.register_buffer("fixed", None, persistent=False)

    def between(self, grid: Grid) -> Tensor:
        """(H or 1, N, N) the factors between the patches of a grid."""
        raise NotImplementedError

    def reset(self, init: str = "paper", generator: torch.Generator | None = None) -> None:
        """Fresh values: those that the paper starts from, or "identity", a mask of ones."""
        raise NotImplementedError

    def refit(self, heads: int) -> None:
        """The shapes of another number of heads; values are moved in by whoever cuts."""

    def regrid(self, grid: Grid) -> None:
        """Be built for another grid. Raises `BadInput` where the values are tied to the old one."""
        self.grid = grid

    def factor(self, grid: Grid, prefix: int = 0) -> Tensor:
        """(H or 1, prefix + N, prefix + N) in the values' dtype: the factors, and 1 where a prefix token has part."""
        fixed = self.fixed
        patches = self.between(grid) if fixed is None or grid != self.grid else fixed
        patches = patches.to(next(self.parameters()).dtype)
        return F.pad(patches, (prefix, 0, prefix, 0), value=1.0) if prefix else patches

    def forward(self, phases: Phases, state: State) -> Phases:
        if state.windows is not None:
            return phases.plus_multiply(self.factor(state.windows.size))
        return phases.plus_multiply(bias_at(self.factor(state.grid, state.num_prefix), state))

    @torch.no_grad()
    def fuse(self) -> None:
        """Keep the factors of `grid` as a constant until the mask is trained again: they no longer follow the values.

        For inference in PyTorch; a runtime that an artefact is made for folds them by itself.
        """
        self.fixed = self.between(self.grid).detach()

    def train(self, mode: bool = True) -> ScoreMask:
        if mode:
            self.fixed = None
        return super().train(mode)


class GaussianMixtureMask(ScoreMask):
    """GMM: K Gaussians of the distance for each head (arXiv 2309.05375, section 3.3). 2 K H parameters.

    Distances are in units of the grid, so that it goes with a model to other image sizes.
    """

    kind: ClassVar[str] = "gmm"
    index: Tensor

    def __init__(
        self, heads: int, grid: Grid, *, kernels: int = KERNELS, like: Tensor | None = None, **more: Any
    ) -> None:
        """`like`: whose device and dtype the parameters have. `more`: of `ScoreMask`."""
        super().__init__(grid, **more)
        placed: dict[str, Any] = {} if like is None else {"device": like.device, "dtype": like.dtype}
        self.sigma = nn.Parameter(torch.zeros(kernels, heads, 1, 1, **placed))
        self.alpha = nn.Parameter(torch.zeros(kernels, heads, 1, 1, **placed))
        self.register_buffer("index", offsets(grid, self.sigma.device), persistent=False)
        self.reset()

    def init_non_persistent_buffers(self) -> None:
        """Fill what no state dict holds (timm's name for it); a load calls it."""
        self.index.copy_(offsets(self.grid, self.index.device))

    @torch.no_grad()
    def reset(self, init: str = "paper", generator: torch.Generator | None = None) -> None:
        """sigma 10 + 10 N(0, 1), alpha 2 N(0, 1). "identity": the first Gaussian is 1 everywhere, others weigh 0."""
        _check_init(init)
        if self.sigma.is_meta:
            return
        self.sigma.copy_(10 + 10 * torch.randn(self.sigma.shape, generator=generator, device="cpu"))
        self.alpha.copy_(2 * torch.randn(self.alpha.shape, generator=generator, device="cpu"))
        if init == "identity":
            self.sigma[0] = min(WIDE, torch.finfo(self.sigma.dtype).max)
            self.alpha.zero_()
            self.alpha[0] = 1.0

    def between(self, grid: Grid) -> Tensor:
        return gaussian_mixture(self.sigma, self.alpha, grid, self.index if grid == self.grid else None)

    def refit(self, heads: int) -> None:
        for key in ("sigma", "alpha"):
            old = getattr(self, key)
            setattr(self, key, nn.Parameter(old.new_zeros(old.shape[0], heads, 1, 1)))

    def regrid(self, grid: Grid) -> None:
        super().regrid(grid)
        self.index = offsets(grid, self.index.device)

    def extra_repr(self) -> str:
        kernels, heads = self.sigma.shape[:2]
        return f"{kernels} kernels, {heads} heads, grid {self.grid}"


class ElementMask(ScoreMask):
    """ELM: a factor for every pair of patches, shared by all heads (arXiv 2309.05375, section 3.2). N² parameters.

    It starts at 0, from uniform attention: q and k have no gradient in the very first step.
    """

    kind: ClassVar[str] = "elm"

    def __init__(self, grid: Grid, *, like: Tensor | None = None, **more: Any) -> None:
        super().__init__(grid, **more)
        placed: dict[str, Any] = {} if like is None else {"device": like.device, "dtype": like.dtype}
        area = grid[0] * grid[1]
        self.elements = nn.Parameter(torch.zeros(area, area, **placed))

    @torch.no_grad()
    def reset(self, init: str = "paper", generator: torch.Generator | None = None) -> None:
        """0 everywhere; "identity": 1."""
        _check_init(init)
        self.elements.fill_(1.0 if init == "identity" else 0.0)

    def between(self, grid: Grid) -> Tensor:
        if grid != self.grid:
            raise BadInput(_tied(self.grid, grid))
        return self.elements.unsqueeze(0)

    def regrid(self, grid: Grid) -> None:
        if grid != self.grid:
            raise BadInput(_tied(self.grid, grid))

    def extra_repr(self) -> str:
        return f"grid {self.grid}"


MASKS: dict[str, Callable[..., ScoreMask]] = {
    "gmm": GaussianMixtureMask,
    "elm": lambda heads, grid, *, kernels=KERNELS, **more: ElementMask(grid, **more),
}


def make_mask(kind: str, heads: int, grid: Grid, *, kernels: int = KERNELS, **more: Any) -> ScoreMask:
    """A mask of a kind, "gmm" or "elm", with fresh values of the paper's. Raises `BadInput` for another kind."""
    if kind not in MASKS:
        raise unknown("mask", str(kind), MASKS)
    return MASKS[kind](heads, grid, kernels=kernels, **more)


def _check_init(init: str) -> None:
    if init not in INITS:
        raise unknown("init", str(init), INITS)


def _tied(own: Grid, given: Grid) -> str:
    sizes = ["x".join(map(str, grid)) for grid in (own, given)]
    return (
        f"an element-wise mask is tied to its grid of {sizes[0]} patches and was given {sizes[1]}; accepted: images "
        "of its own size, or a Gaussian mixture mask (gmm), which knows distances"
    )
