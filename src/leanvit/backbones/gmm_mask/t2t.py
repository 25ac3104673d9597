"""T2T-ViT for small images, as the small-data line of work has it: soft splits of 3x3, no class token, all masked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from timm.layers import register_notrace_module
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from leanvit.anatomy.parts.masked import masked
from leanvit.anatomy.parts.masks import ScoreMask
from leanvit.backbones.t2t_vit.model import sinusoid
from leanvit.backbones.t2t_vit.tokenizer import SoftmaxMean, TransformerCell, as_map
from leanvit.errors import BadInput


class MaskedMean(SoftmaxMean):
    """The mean of the tokenizer's attention with one head, its scores masked; one float step, as without a mask."""

    def __init__(self, scale: float, mask: ScoreMask) -> None:
        super().__init__(scale)
        self.mask = mask

    def forward(self, qkv: Tensor) -> Tensor:
        """q, k, v side by side, (B, N, 3 width) -> (B, N, width)."""
        q, k, v = qkv.unsqueeze(1).chunk(3, dim=-1)  # one head: (B, 1, N, width)
        scores = masked(q * self.scale @ k.transpose(-2, -1), self.mask)
        return (scores.softmax(dim=-1) @ v).squeeze(1)


@register_notrace_module
class SoftSplits(nn.Module):
    """Images to tokens by soft splits of 3x3 that each halve the grid, a cell of attention between two of them.

    (B, C, H, W) -> (B, H W / patch_size², embed_dim). `patch_size` is 2 to the power of their number.
    """

    strict_img_size, dynamic_img_pad = True, False

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        *,
        token_dim: int = 64,
        **unused: Any,  # what timm's class tells a patch embedding
    ) -> None:
        super().__init__()
        splits = patch_size.bit_length() - 1
        if splits < 1 or 2**splits != patch_size or any(side % patch_size for side in img_size):
            raise BadInput(
                f"patch_size is {patch_size!r} for images of {img_size[0]}x{img_size[1]}; accepted: 2, 4, 8, ... that "
                "divides both sides"
            )
        self.img_size, self.in_chans, self.patch_size = img_size, in_chans, (patch_size, patch_size)
        self.grids = [(img_size[0] >> i, img_size[1] >> i) for i in range(1, splits + 1)]
        self.grid_size = self.grids[-1]
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.split = nn.Unfold(kernel_size=3, stride=2, padding=1)
        widths = [in_chans, *[token_dim] * (splits - 1)]
        self.cells = nn.ModuleList(TransformerCell(9 * width, token_dim) for width in widths[:-1])
        self.project = nn.Linear(9 * widths[-1], embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Raises `BadInput` for images of another size than the module was built for."""
        if tuple(x.shape[-2:]) != self.img_size:
            raise BadInput(f"images are {x.shape[-2]}x{x.shape[-1]}, the model takes {self.img_size} (img_size)")
        x = self.split(x).transpose(1, 2)
        for cell, grid in zip(self.cells, self.grids, strict=False):
            x = self.split(as_map(cell(x), grid)).transpose(1, 2)
        return self.project(x)

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        return self.patch_size[0] if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        return img_size[0] // self.patch_size[0], img_size[1] // self.patch_size[1]


class MaskedT2T(VisionTransformer):
    """timm's vision transformer behind soft splits, with a fixed table of positions."""

    OPENS = "leanvit.anatomy.adapters.hybrid"

    def __init__(self, **arguments: Any) -> None:
        """`arguments`: those of timm's class; `embed_layer` makes a `SoftSplits`."""
        super().__init__(**arguments)
        like = cast(Tensor, self.pos_embed)
        del self.pos_embed
        self.register_buffer("pos_embed", sinusoid(like.shape[1], like.shape[2]).to(like.device))

    def mask_cells(self, make: Callable[[tuple[int, int]], ScoreMask]) -> None:
        """Put a mask, `make(grid)`, into each cell of the tokenizer."""
        stem: Any = self.patch_embed
        for cell, grid in zip(stem.cells, stem.grids, strict=False):
            cell.attn.mean = MaskedMean(cell.attn.mean.scale, make(grid))
