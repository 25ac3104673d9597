"""The stage of dumbbell units: image tokens to semantic tokens, through two blocks of these, and back.

A unit is six blocks (paper, figure 3 and section 3.3; the numbers here are those of the official code):
0 Swin's block; 1 and 2 make semantic tokens (first in windows, then globally); 3 attends in the windows of semantic
tokens, 4 among all of them; 5 recovers: image tokens attend to semantic ones. Image tokens skip blocks 1 to 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from timm.models import checkpoint_seq
from torch import Tensor, nn

from leanvit.anatomy.arithmetic.partition import Windows
from leanvit.errors import BadInput
from leanvit.tokens.stvit.parts import SemanticBlock, SwinBlock
from leanvit.tokens.stvit.semantic import adaptive_max, neighbourhoods, starts

UNIT = 6  # blocks
MASKED = -1000.0  # added to scores of padding: nothing after the softmax
REACH = (2, 3, 9)  # windows a side that keys are of, in the padded form: of blocks 1, 2 and 5


@register_notrace_module
class SemanticStage(nn.Module):
    """A stage of dumbbell units, (B, H, W, C) -> (B, H', W', C').

    Args:
        downsample: what makes the map that enters, or None.
        grid: (rows, columns) that it is built for.
        drop_paths: one rate a block; their number is that of the blocks, a multiple of six.
        window, samples: sides of a window of image tokens, and of the semantic tokens that it is pooled to.
        key_margin: image tokens that the windows of keys are larger a side than `window`.
        use_global: a learned centre for each semantic token is added to the queries of the first unit's block 2.
        shortcut: block 1 adds its attention to the pooled tokens, instead of replacing them by it.
        conv_pos: a depthwise convolution on the pooled tokens. relative_pos: a bias of relative positions among
            semantic tokens.
        padded: the form of dense prediction, for maps of any size (module docstring of the package).

    Raises:
        BadInput: a grid that the windows do not divide, or over which the windows of keys cannot be spread.
    """

    centres: nn.Parameter | None

    def __init__(
        self,
        downsample: nn.Module | None,
        dim: int,
        num_heads: int,
        hidden: int,
        drop_paths: Sequence[float],
        *,
        grid: tuple[int, int],
        window: int,
        samples: int,
        key_margin: int = 3,
        use_global: bool = False,
        shortcut: bool = False,
        conv_pos: bool = False,
        relative_pos: bool = False,
        padded: bool = False,
    ) -> None:
        super().__init__()
        self.window, self.samples, self.key_side = window, samples, window + key_margin
        self.shortcut, self.padded = shortcut or padded, padded
        self.grad_checkpointing = False
        self.fixed = grid if use_global or relative_pos else None
        if not padded:
            self._check(grid)
        self.downsample = nn.Identity() if downsample is None else downsample
        side = -(-grid[0] // window) * samples
        sides = {3: samples, 4: side} if relative_pos else {}
        self.blocks = nn.ModuleList(
            SwinBlock(dim, num_heads, window, 0, hidden, rate)
            if i % UNIT == 0
            else SemanticBlock(
                dim, num_heads, hidden, rate, side=sides.get(i % UNIT), conv_pos=conv_pos and i % UNIT == 1
            )
            for i, rate in enumerate(drop_paths)
        )
        centres = nn.Parameter(torch.empty(1, side**2, dim).normal_(std=0.02)) if use_global else None
        self.register_parameter("centres", centres)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if not self.padded:
            self._check((x.shape[1], x.shape[2]))
        units = [_Unit(self, i) for i in range(len(self.blocks) // UNIT)]
        if self.grad_checkpointing:
            out: Tensor = checkpoint_seq(units, x)
            return out
        for unit in units:
            x = unit(x)
        return x

    def unit(self, x: Tensor, index: int) -> Tensor:
        """One dumbbell unit, (B, H, W, C) -> the same."""
        first, *others, last = self.blocks[UNIT * index : UNIT * (index + 1)]
        x = first(x)
        tokens = x
        semantic = self.generated(tokens, index)
        windows = self._windows(x)[1]
        local, whole = (cast(SemanticBlock, block) for block in others[2:])
        semantic = self._attend_locally(local, semantic, windows)
        semantic = whole(semantic)
        if self.padded:
            return self._recover_nearby(cast(SemanticBlock, last), x, semantic)
        return last(x.flatten(1, 2), semantic).unflatten(1, (x.shape[1], x.shape[2]))

    def generated(self, x: Tensor, index: int = 0) -> Tensor:
        """Semantic tokens of a map, after blocks 1 and 2 of a unit: (B, H, W, C) -> (B, windows samples^2, C)."""
        first, second = (cast(SemanticBlock, self.blocks[UNIT * index + i]) for i in (1, 2))
        windows, semantic = self._windows(x)
        image = x.flatten(1, 2)
        cut = windows.partition(image).unflatten(1, (self.window, self.window))
        pooled = first.placed(adaptive_max(cut, self.samples), self.samples)  # (B windows, samples^2, C)
        if self.padded:
            attended = self._nearby(first, semantic.reverse(pooled), semantic, x, self.window, REACH[0])
        else:
            attended = semantic.reverse(self._first_keys(first, pooled, x))
        branch = first.ls1(attended)
        if self.shortcut:
            branch = semantic.reverse(pooled) + first.drop_path1(branch)
        tokens = first.transformed(branch)
        if self.padded:  # of block 2 too, keys are the image tokens around
            attended = self._nearby(second, tokens, semantic, x, self.window, REACH[1])
            return second.transformed(tokens + second.drop_path1(second.ls1(attended)))
        centres = self.centres if index == 0 else None
        out: Tensor = second(tokens if centres is None else tokens + centres, torch.cat([tokens, image], dim=1))
        return out

    def _first_keys(self, block: SemanticBlock, pooled: Tensor, x: Tensor) -> Tensor:
        """Pooled tokens of each window attend to themselves and to a larger window of the image."""
        at = [starts(side, self.window, self.key_side) for side in x.shape[1:3]]
        keys = neighbourhoods(x, at[0], at[1], self.key_side)
        normed = block.norm1(torch.cat([pooled, keys], dim=1))
        out: Tensor = block.attn(normed[:, : self.samples**2], normed)
        return out

    def _attend_locally(self, block: SemanticBlock, tokens: Tensor, windows: Windows) -> Tensor:
        normed = windows.partition(block.norm1(tokens))
        branch = windows.reverse(block.attn(normed, normed))
        return block.transformed(tokens + block.drop_path1(block.ls1(branch)))

    # --- the padded form ---------------------------------------------------------

    def _recover_nearby(self, block: SemanticBlock, x: Tensor, semantic: Tensor) -> Tensor:
        """Block 5: the image tokens of a window attend to the semantic tokens of the windows around."""
        windows, grid = self._windows(x)
        image = x.flatten(1, 2)
        attended = self._nearby(block, image, windows, semantic.unflatten(1, grid.grid), self.samples, REACH[2])
        out = block.transformed(image + block.drop_path1(block.ls1(attended)))
        return out.unflatten(1, windows.grid)

    def _nearby(
        self, block: SemanticBlock, tokens: Tensor, windows: Windows, keys: Tensor, stride: int, reach: int
    ) -> Tensor:
        """The tokens (B, N, C) of each window attend to the keys of `reach` windows a side around it -> (B, N, C).

        `keys`: a map (B, h, w, C), of which `stride` positions a side belong to a window.
        """
        queries, normed = block.normed(tokens, keys.flatten(1, 2))
        kv = block.attn.kv(normed).unflatten(1, (keys.shape[1], keys.shape[2]))
        margin, counts = (reach - 1) * stride, windows.counts
        before = margin // 2
        down, across = (count * stride - side for count, side in zip(counts, kv.shape[1:3], strict=True))
        around = (before, margin - before + across, before, margin - before + down)
        at = [[i * stride for i in range(count)] for count in counts]
        inside = F.pad(torch.zeros_like(kv[:, :, :, :1]), (0, 0, *around), value=MASKED)
        near = [neighbourhoods(t, at[0], at[1], reach * stride) for t in (F.pad(kv, (0, 0, *around)), inside)]
        mask = near[1].transpose(1, 2).unsqueeze(1)  # (B windows, 1, 1, keys)
        out: Tensor = windows.reverse(block.attn.met(windows.partition(queries), near[0], mask))
        return out

    # --- shapes ------------------------------------------------------------------

    def _windows(self, x: Tensor) -> tuple[Windows, Windows]:
        """How the map and the grid of semantic tokens are cut: as many windows, of `window` and of `samples` a side."""
        windows = Windows((x.shape[1], x.shape[2]), (self.window, self.window))
        down, across = windows.counts
        side = self.samples
        return windows, Windows((down * side, across * side), (side, side))

    def _check(self, grid: tuple[int, int]) -> None:
        """Raise `BadInput` unless the plain form can work on maps of this size."""
        rows, columns = grid
        advice = "; padded=True takes maps of any size"
        if rows != columns:
            raise BadInput(f"the stage of semantic tokens has a map of {rows}x{columns}; accepted: square ones{advice}")
        if self.fixed is not None and grid != self.fixed:
            raise BadInput(
                f"the stage of semantic tokens has a map of {rows}x{columns}; accepted: {self.fixed[0]}x{self.fixed[1]}"
                ", which its centres and relative positions are of"
            )
        try:
            starts(rows, self.window, self.key_side)
        except BadInput as error:
            raise BadInput(f"the stage of semantic tokens has {error}{advice}") from None


class _Unit:
    """One unit of a stage, as `checkpoint_seq` calls it."""

    def __init__(self, stage: SemanticStage, index: int) -> None:
        self.stage, self.index = stage, index

    def __call__(self, x: Tensor) -> Tensor:
        return self.stage.unit(x, self.index)
