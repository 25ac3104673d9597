"""The parts of Swin and Swin V2 that a plain ViT does not have: their attention, patch merging, a stage.

Swin: Liu et al., ICCV 2021, arXiv 2103.14030. Swin V2: Liu et al., CVPR 2022, arXiv 2111.09883.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor, nn

from leanvit.anatomy.arithmetic.ops import Ops
from leanvit.anatomy.arithmetic.score import Phases
from leanvit.anatomy.parts.blocks import Block, apply_norm
from leanvit.anatomy.parts.head_tables import HeadTable
from leanvit.anatomy.parts.positions import bias_of
from leanvit.anatomy.parts.windows import WindowAttention
from leanvit.anatomy.state import State

MAX_LOGIT_SCALE = math.log(100.0)  # Swin V2, section 3.2: the temperature is not smaller than 0.01


class SwinAttention(WindowAttention):
    """Window attention with a learned bias for each relative position and head (arXiv 2103.14030, equation 4)."""

    PLAIN = True
    PRUNABLE = True
    relative_position_index: Tensor

    def __init__(self, *, table: nn.Parameter, **parts: Any) -> None:
        """`table`: ((2 rows - 1) (2 columns - 1), heads)."""
        super().__init__(**parts)
        self.relative_position_bias_table = table
        self.keep("relative_position_index", relative_index(self.window))

    def own_phases(self, state: State) -> Phases:
        bias = bias_of(self.relative_position_bias_table, self.relative_position_index)
        return super().own_phases(state).with_(model_bias=bias)

    def refit(self) -> None:
        super().refit()
        table = self.relative_position_bias_table
        self.relative_position_bias_table = nn.Parameter(table.new_zeros(table.shape[0], self.heads))

    def head_tables(self) -> tuple[HeadTable, ...]:
        table = self.relative_position_bias_table
        return (HeadTable("relative_position_bias_table", tuple(table.shape), ("", "head")),)


class SwinV2Attention(WindowAttention):
    """Cosine window attention with a learned temperature per head and a bias from a small MLP over log distances.

    arXiv 2111.09883, sections 3.2 and 3.3. `q_norm` and `k_norm` are `UnitNorm`, the scale is 1.
    """

    PRUNABLE = True
    relative_position_index: Tensor
    relative_coords_table: Tensor

    def __init__(
        self,
        *,
        logit_scale: nn.Parameter,
        cpb_mlp: nn.Sequential,
        q_bias: nn.Parameter | None,
        v_bias: nn.Parameter | None,
        pretrained_window: tuple[int, int],
        **parts: Any,
    ) -> None:
        """`logit_scale` (heads, 1, 1), in logarithms; `cpb_mlp` 2 -> hidden -> heads; k has no bias."""
        super().__init__(**parts)
        self.logit_scale = logit_scale
        self.cpb_mlp = cpb_mlp
        self.q_bias, self.v_bias = q_bias, v_bias
        self.keep("relative_position_index", relative_index(self.window))
        coords = log_coordinates(self.window, pretrained_window)
        self.keep("relative_coords_table", coords.to(logit_scale.dtype))

    def project(self, x: Any, ops: Ops) -> tuple[Any, Any, Any]:
        q, v, bias = self.q_bias, self.v_bias, None
        if q is not None and v is not None:
            bias = torch.cat((q, q.new_zeros(self.heads * self.qk_dim), v))
        return self.split_heads(ops, ops.linear(f"{self.name}.qkv", self.qkv, x, bias))

    def own_phases(self, state: State) -> Phases:
        ops, at = state.ops, self.name
        hidden, act, out = self.cpb_mlp
        table = ops.linear(f"{at}.cpb_mlp.0", hidden, self.relative_coords_table)
        table = ops.linear(f"{at}.cpb_mlp.2", out, ops.act(f"{at}.cpb_mlp.1", act, table))
        bias = ops.rearrange(
            f"{at}.relative_position_bias",
            table,
            lambda t: bias_of(t.flatten(0, 2), self.relative_position_index),
        )
        bias = ops.scale(f"{at}.relative_position_scale", ops.sigmoid(f"{at}.relative_position_gate", bias), 16)
        sharpness = torch.clamp(self.logit_scale, max=MAX_LOGIT_SCALE).exp()
        return super().own_phases(state).with_(model_bias=bias, multiply=sharpness)

    def refit(self) -> None:
        super().refit()
        like = self.logit_scale
        self.logit_scale = nn.Parameter(like.new_zeros(self.heads, 1, 1))
        old = cast(nn.Linear, self.cpb_mlp[2])
        new = nn.Linear(old.in_features, self.heads, bias=False, device=like.device, dtype=like.dtype)
        nn.init.zeros_(new.weight)
        self.cpb_mlp[2] = new
        if self.q_bias is not None:
            self.q_bias = nn.Parameter(like.new_zeros(self.heads * self.qk_dim))
            self.v_bias = nn.Parameter(like.new_zeros(self.heads * self.v_dim))

    def head_tables(self) -> tuple[HeadTable, ...]:
        last = cast(nn.Linear, self.cpb_mlp[2])
        tables = (
            HeadTable("logit_scale", (self.heads, 1, 1), ("head", "", "")),
            HeadTable("cpb_mlp.2.weight", tuple(last.weight.shape), ("head", ""), site="cpb_mlp.2"),
        )
        if self.q_bias is None:
            return tables
        q = HeadTable("q_bias", (self.heads, self.qk_dim), ("head", "qk"))
        return (*tables, q, HeadTable("v_bias", (self.heads, self.v_dim), ("head", "v")))


class UnitNorm(nn.Module):
    """Vectors (..., width) of length 1."""

    def __init__(self, width: int, *, eps: float = 1e-12) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.width}"


class PlacedPatchEmbed(PatchEmbed):
    """timm's patch embedding with a learned position for each patch, as Swin has it by choice (ape, section 4.3)."""

    def __init__(self, *, embed_dim: int, **arguments: Any) -> None:
        """`arguments`: those of timm's class. The positions belong to its `img_size`."""
        super().__init__(embed_dim=embed_dim, output_fmt="NHWC", **arguments)
        rows, columns = cast("tuple[int, int]", self.grid_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, rows * columns, embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, rows, columns, D)."""
        x = super().forward(x)
        return (x.flatten(1, 2) + self.pos_embed).unflatten(1, self.grid_size)


def relative_index(window: tuple[int, int]) -> Tensor:
    """(area, area) int64: the row of the table of relative positions for each pair of positions in a window."""
    rows, columns = window
    place = torch.arange(rows * columns, device="cpu")
    down, right = place // columns, place % columns
    down = down.unsqueeze(1) - down + rows - 1
    right = right.unsqueeze(1) - right + columns - 1
    return down * (2 * columns - 1) + right


def log_coordinates(window: tuple[int, int], pretrained: tuple[int, int]) -> Tensor:
    """(1, 2 rows - 1, 2 columns - 1, 2) float32: distances on a log scale, +-8 at the pre-trained window's edge.

    arXiv 2111.09883, equation 4 (with its code's division by log2(8)); `pretrained` (0, 0): the window itself.
    """
    sides = [torch.arange(1 - side, side, dtype=torch.float32, device="cpu") for side in window]
    reach = [max((old if pretrained[0] > 0 else side) - 1, 1) for side, old in zip(window, pretrained, strict=True)]
    grid = torch.meshgrid(*(side / far for side, far in zip(sides, reach, strict=True)), indexing="ij")
    linear = torch.stack(grid, dim=-1).unsqueeze(0) * 8
    return torch.sign(linear) * torch.log2(torch.abs(linear) + 1.0) / math.log2(8)


class PatchMerging(nn.Module):
    """Four neighbours become one token of another width: `(x (B, h w, C), state) -> (B, ceil(h/2) ceil(w/2), D)`.

    The norm comes before the reduction, over 4 C channels (Swin).
    """

    def __init__(self, *, name: str, norm: nn.Module, reduction: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.norm, self.reduction = norm, reduction

    @property
    def norm_width(self) -> int:
        """Channels that the norm sees."""
        return cast(nn.Linear, self.reduction).in_features

    def forward(self, x: Any, state: State) -> tuple[Any, State]:
        x, after = self.neighbours(x, state)
        x = apply_norm(after.ops, f"{self.name}.norm", self.norm, x)
        return after.ops.linear(f"{self.name}.reduction", self.reduction, x), after

    def neighbours(self, x: Any, state: State) -> tuple[Any, State]:
        """(B, h w, C) -> (B, ceil(h/2) ceil(w/2), 4 C), odd sides padded with zeros; the state has the new grid."""
        height, width = state.grid
        grid = ((height + 1) // 2, (width + 1) // 2)
        x = state.ops.rearrange(f"{self.name}.neighbours", x, _neighbours(state.grid))
        if state.trace:
            owner = state.owners(state.ops.shape(x)[0], x.device)
            cells = torch.arange(height * width, device=x.device)
            cells = (cells // width // 2) * grid[1] + cells % width // 2
            state = state.with_(owner=cells[owner.clamp(min=0)].masked_fill(owner < 0, -1))
        return x, state.with_(grid=grid)


class PostNormPatchMerging(PatchMerging):
    """Patch merging with the norm after the reduction (Swin V2)."""

    @property
    def norm_width(self) -> int:
        return cast(nn.Linear, self.reduction).out_features

    def forward(self, x: Any, state: State) -> tuple[Any, State]:
        x, after = self.neighbours(x, state)
        x = after.ops.linear(f"{self.name}.reduction", self.reduction, x)
        return apply_norm(after.ops, f"{self.name}.norm", self.norm, x), after


def _neighbours(grid: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    def gather(t: Tensor) -> Tensor:
        t = t.unflatten(1, grid)
        if grid[0] % 2 or grid[1] % 2:
            t = F.pad(t, (0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
        t = t.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, h/2, 2, w/2, 2, C)
        return t.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)

    return gather


class Stage(nn.Module):
    """A patch merging (or nothing, in the first stage) and the blocks that follow it. Run by `OpenSwin.run`."""

    blocks: Any

    def __init__(self, *, downsample: nn.Module, blocks: Iterable[Block]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
