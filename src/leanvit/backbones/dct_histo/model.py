"""The network of DCT-HistoTransformer: blocks of two branches, and the model. Maps are (B, H, W, C)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, DropPath, Mlp, calculate_drop_path_rates, register_notrace_module, trunc_normal_
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from leanvit.backbones.dct_histo.dct import SeparableMap
from leanvit.errors import BadInput, Refused
from leanvit.knobs import Choice, Counts, Share, check, check_each
from leanvit.models.sizes import checked_size
from leanvit.models.stages import Stage, Staged, check_lengths, check_pool

DOMAINS = ("frequency", "spatial")
BRANCHES = ("both", "dct", "conv")
LEAST_GRID = 8  # tokens a side after the stem


# --- the two branches ---------------------------------------------------------------------------


@register_notrace_module
class DctAttention(nn.Module):
    """Self-attention among the lowest frequencies of a map.

    "frequency": the kept coefficients are the tokens, with a learned embedding for each and a norm of their own (the
    first is sqrt(H W) times as large as the rest). "spatial": the tokens are those of a smaller, band-limited map.
    """

    def __init__(self, dim: int, heads: int, grid: tuple[int, int], keep: float, domain: str) -> None:
        super().__init__()
        self.heads, self.keep, self.domain = heads, keep, domain
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        kept = kept_of(grid, keep)
        if domain == "frequency":
            self.token_norm: nn.LayerNorm | None = nn.LayerNorm(dim)
            self.pos_embed: nn.Parameter | None = nn.Parameter(torch.zeros(1, *kept, dim))
        else:
            self.token_norm = self.pos_embed = None
        self.down = SeparableMap(grid, kept, domain=domain)
        self.up = SeparableMap(grid, kept, domain=domain, inverse=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), through h * w tokens."""
        tokens = self.down(self.norm(x))
        if self.token_norm is not None and self.pos_embed is not None:
            tokens = self.token_norm(tokens) + self.pos_embed
        batch, height, width, channels = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, height * width, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height, width, -1)
        out: Tensor = self.up(self.proj(y))
        return out

    def require_positions(self, grid: tuple[int, int]) -> None:
        """Raise `BadInput` where a map of this size has other frequencies than the learned positions are of."""
        kept = kept_of(grid, self.keep)
        if self.pos_embed is not None and kept != tuple(self.pos_embed.shape[1:3]):
            old = "x".join(map(str, self.pos_embed.shape[1:3]))
            raise BadInput(
                f"the learned positions are those of {old} frequencies, this size has {kept[0]}x{kept[1]}; accepted: "
                "the old size, or resize_pos=True, which interpolates them"
            )

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Make the transforms for another size of map; positions are interpolated."""
        kept = kept_of(grid, self.keep)
        if self.pos_embed is not None and kept != tuple(self.pos_embed.shape[1:3]):
            self.pos_embed = nn.Parameter(resized_positions(self.pos_embed.detach(), kept))
        for transform in (self.down, self.up):
            transform.grid, transform.kept = grid, kept
            transform.init_non_persistent_buffers()


def kept_of(grid: tuple[int, int], keep: float) -> tuple[int, int]:
    """How many frequencies are kept along each axis."""
    return math.ceil(keep * grid[0]), math.ceil(keep * grid[1])


def resized_positions(positions: Tensor, kept: tuple[int, int]) -> Tensor:
    """(1, h, w, C) of one size for another: a frequency in waves a pixel keeps its position."""
    moved = F.interpolate(positions.permute(0, 3, 1, 2).float(), kept, mode="bilinear", align_corners=True)
    return moved.permute(0, 2, 3, 1).to(positions.dtype).contiguous()


class MobileConv(nn.Module):
    """An inverted residual without its shortcut: 1x1 to twice the width, depthwise 3x3, 1x1; BN behind each."""

    def __init__(self, dim: int, out_dim: int, *, stride: int = 1, expand: int = 2) -> None:
        super().__init__()
        hidden = expand * dim
        self.expand = ConvNormAct(dim, hidden, 1, act_layer=nn.SiLU)
        self.depthwise = ConvNormAct(hidden, hidden, 3, stride=stride, groups=hidden, act_layer=nn.SiLU)
        self.reduce = ConvNormAct(hidden, out_dim, 1, apply_act=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), C')."""
        return self.reduce(self.depthwise(self.expand(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)


class Fuse(nn.Module):
    """A 1x1 convolution of both branches side by side, then BN."""

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, dim, 1, bias=False)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, inputs) -> (B, H, W, C)."""
        return self.bn(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class DctConvBlock(nn.Module):
    """x + Fuse(DctAttention(x), MobileConv(x)), then x + MLP(LN(x))."""

    def __init__(
        self, dim: int, dct: DctAttention | None, conv: MobileConv | None, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.dct, self.conv = dct, conv
        self.fusing: Fuse | None = Fuse(dim * ((dct is not None) + (conv is not None)), dim)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        branches = [branch(x) for branch in (self.dct, self.conv) if branch is not None]
        if self.fusing is not None:
            mixed = self.fusing(branches[0] if len(branches) == 1 else torch.cat(branches, dim=-1))
        else:
            mixed = branches[0] if len(branches) == 1 else branches[0] + branches[1]
        x = x + self.drop_path1(mixed)
        return x + self.drop_path2(self.mlp(self.norm(x)))

    def fuse(self) -> None:
        """Work the fusing convolution into the last linear of each branch, in place.

        It acts on channels, the inverse transform on positions, so the two may swap: what it does to the
        attention is done on the few tokens. Only its constant stays with the map, in the convolution's bias.
        """
        if self.fusing is None or not isinstance(self.fusing.bn, nn.BatchNorm2d):
            return
        folded = fuse_conv_bn_eval(self.fusing.conv, self.fusing.bn)
        if self.conv is None:  # the constant has no place to go
            self.fusing.conv, self.fusing.bn = folded, nn.Identity()  # type: ignore[assignment]
            return
        halves = folded.weight.detach().flatten(1).split(self.norm.normalized_shape[0], dim=1)
        last: Any = self.conv.reduce.conv
        with torch.no_grad():
            if self.dct is not None:
                self.dct.proj.weight.copy_(halves[0] @ self.dct.proj.weight)
                self.dct.proj.bias.copy_(halves[0] @ self.dct.proj.bias)
            last.weight.copy_((halves[-1] @ last.weight.flatten(1))[..., None, None])
            last.bias.copy_(halves[-1] @ last.bias + folded.bias)
        self.fusing = None


# --- the model ----------------------------------------------------------------------------------


class DctHistoTransformer(Staged):
    """The network: a stem of stride 8, three stages at strides 8, 16 and 32, mean pooling, LN, classifier.

    Args:
        img_size: side or (H, W) of the images; the transforms (and positions of frequencies) are made for it.
        dims, depths, num_heads, keep: channels, blocks, heads and share of frequencies kept along each axis, by stage.
        domain: what the tokens of the attention are (`DctAttention`).
        branches: "both", or one alone.
        drop_path_rate: of the last block, rising from 0 at the first.

    Raises:
        BadInput: a value outside its range, lists of different lengths, or images that leave less than 8 x 8 positions
            behind the stem.
    """

    OPENS = "leanvit.anatomy.adapters.hybrid"

    LEVELS = "stages"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 2,
        global_pool: str = "avg",
        dims: Sequence[int] = (48, 96, 192),
        depths: Sequence[int] = (2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12),
        keep: Sequence[float] = (0.5, 0.5, 1.0),
        domain: str = "frequency",
        branches: str = "both",
        mlp_ratio: float = 2.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check_stages(dims, depths, num_heads, keep)
        check("domain", domain, Annotated[str, Choice(DOMAINS)])
        check("branches", branches, Annotated[str, Choice(BRANCHES)])
        check_pool(global_pool)
        self.img_size = checked_size(img_size)
        self.in_chans, self.num_classes, self.global_pool = in_chans, num_classes, global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = dims[-1]
        widths = (in_chans, dims[0] // 2, dims[0], dims[0])
        self.stem = nn.Sequential(*(ConvNormAct(a, b, 3, stride=2, act_layer=nn.SiLU) for a, b in pairwise(widths)))
        drops: Any = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        self.stages = nn.Sequential()
        self.feature_info: list[dict[str, Any]] = []
        for i, (dim, grid) in enumerate(zip(dims, _grids(self.img_size, len(dims)), strict=True)):
            blocks = [
                DctConvBlock(
                    dim,
                    None if branches == "conv" else DctAttention(dim, num_heads[i], grid, keep[i], domain),
                    None if branches == "dct" else MobileConv(dim, dim),
                    mlp_ratio,
                    next(drops),
                )
                for _ in range(depths[i])
            ]
            self.stages.append(Stage(MobileConv(dims[i - 1], dim, stride=2) if i else None, blocks))
            self.feature_info.append({"num_chs": dim, "reduction": 8 * 2**i, "module": f"stages.{i}"})
        self.norm = nn.LayerNorm(dims[-1])
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(dims[-1], num_classes) if num_classes > 0 else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normals of 0.02 for linears and positions, fan-out normals for convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
            elif isinstance(module, DctAttention) and module.pos_embed is not None:
                trunc_normal_(module.pos_embed, std=0.02)

    def stemmed(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> (B, H / 8, W / 8, C)."""
        return self.stem(self.sized(x)).permute(0, 2, 3, 1).contiguous()

    def accepts(self) -> tuple[int, tuple[int, int] | None, str]:
        height, width = self.img_size
        text = (
            f", the model's transforms are made for {height}x{width}; accepted: that size, or another after "
            "set_input_size(img_size, resize_pos=True), which interpolates the positions of frequencies"
        )
        return 1, (height, width), text

    def ended(self, x: Tensor) -> Tensor:
        """As it is: the norm comes behind the pooling."""
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Mean over the map, norm, dropout, classifier; `pre_logits`: without the classifier."""
        if self.global_pool == "avg":
            x = x.mean(dim=(1, 2))
        x = self.head_drop(self.norm(x))
        return x if pre_logits else self.head(x)

    def set_input_size(self, img_size: int | tuple[int, int], *, resize_pos: bool = False) -> None:
        """Make the transforms for another size of image; `resize_pos`: interpolate the positions of frequencies.

        Raises `BadInput` where those are tied to the old size and `resize_pos` is off; nothing has changed then.
        """
        size = checked_size(img_size)
        grids = _grids(size, len(self.feature_info))
        stages = zip(self.stages, grids, strict=False)
        found = [(m, grid) for stage, grid in stages for m in stage.modules() if isinstance(m, DctAttention)]
        for attention, grid in found:
            if not resize_pos:
                attention.require_positions(grid)
        for attention, grid in found:
            attention.set_grid(grid)
        self.img_size = size

    def resized_table(self, name: str, table: Tensor, was: nn.Module) -> Tensor | None:
        """Positions of frequencies at this model's size (`recipe.rebuilt`); None for another table."""
        own = self.state_dict().get(name)
        if own is None or not name.endswith(".pos_embed") or own.shape == table.shape or table.dim() != 4:
            return None
        return resized_positions(table, (own.shape[1], own.shape[2]))

    def no_weight_decay(self) -> set[str]:
        """Positions; biases and norms are left out by their shape."""
        return {name for name, _ in self.named_parameters() if name.endswith(".pos_embed")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise learning rates: by stage (`coarse`) or by block."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def fuse(self) -> DctHistoTransformer:
        """For deployment, in place: norms folded into convolutions, the fusing ones into the branches.

        The outputs are the same up to rounding; names in the state dict are not. Raises `Refused` in training mode.
        """
        if self.training:
            raise Refused("fuse() is for deployment: call eval() first, batch norms still learn in training mode")
        for module in self.modules():
            if isinstance(module, ConvNormAct) and isinstance(module.bn, nn.BatchNorm2d):
                act = module.bn.act
                module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), act
        for module in self.modules():
            if isinstance(module, DctConvBlock):
                module.fuse()
        return self


def _grids(img_size: tuple[int, int], stages: int) -> list[tuple[int, int]]:
    """(H, W) of the map in each stage. Raises `BadInput` where the first is smaller than 8 x 8."""
    first = (-(-img_size[0] // 8), -(-img_size[1] // 8))
    if min(first) < LEAST_GRID:
        raise BadInput(
            f"img_size is {img_size[0]}x{img_size[1]}, which leaves {first[0]}x{first[1]} positions behind the stem; "
            f"accepted: sides that leave {LEAST_GRID} or more (from {8 * LEAST_GRID - 7} pixels)"
        )
    return [(-(-first[0] // 2**i), -(-first[1] // 2**i)) for i in range(stages)]


def _check_stages(dims: Sequence[int], depths: Sequence[int], num_heads: Sequence[int], keep: Sequence[float]) -> None:
    check_lengths(dims=dims, depths=depths, num_heads=num_heads, keep=keep)
    check_each(Counts, dims=dims, depths=depths, num_heads=num_heads)
    check("keep", keep, tuple[Share, ...])
    for i, (dim, heads) in enumerate(zip(dims, num_heads, strict=True)):
        if dim % heads:
            raise BadInput(f"num_heads[{i}] is {heads} for {dim} channels; accepted: heads that divide them")
