"""The network of LITv2: its parts beside HiLo, and the model. Maps are (B, H, W, C)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, calculate_drop_path_rates, register_notrace_module, trunc_normal_
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from leanvit.errors import BadInput, Refused
from leanvit.knobs import Counts, Fraction, check
from leanvit.models.hilo import HiLoAttention, check_heads
from leanvit.models.sizes import checked_size
from leanvit.models.stages import Stage, Staged, check_lengths, check_pool

# --- the other parts ----------------------------------------------------------------------------


@register_notrace_module
class ConvMlp(nn.Module):
    """An MLP with a depthwise 3x3 convolution before its activation, which tells tokens where they are."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.dwconv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = self.drop1(self.act(x))
        x = self.drop2(self.fc2(x))
        return x


class Block(nn.Module):
    """x + HiLo(LN(x)) where the block has attention, then x + MLP(LN(x))."""

    def __init__(self, dim: int, mlp: ConvMlp, attn: HiLoAttention | None, drop_path: float) -> None:
        super().__init__()
        self.attn = attn
        if attn is not None:
            self.norm1 = nn.LayerNorm(dim)
            self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if self.attn is not None:
            x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


def displaced(x: Tensor, offset: Tensor) -> Tensor:
    """A map read at displaced points, between four neighbours, zero outside (arXiv 1703.06211, equation 3).

    Args:
        x: (B, C, H, W).
        offset: (B, 8, h, w), in pixels: (dy, dx) of the four kernel positions, row by row, of each 2x2 patch.

    Returns:
        (B, C, 2h, 2w), of x's dtype. Places are computed in float32 (float64 for float64) whatever that is.
    """
    batch, _, h, w = offset.shape
    shift = offset if offset.dtype == torch.float64 else offset.float()
    shift = shift.reshape(batch, 2, 2, 2, h, w).permute(0, 4, 1, 5, 2, 3).reshape(batch, 2 * h, 2 * w, 2)
    rows = torch.arange(2 * h, device=x.device, dtype=shift.dtype).unsqueeze(1)
    columns = torch.arange(2 * w, device=x.device, dtype=shift.dtype)
    # `grid_sample` counts from -1 to 1: pixel p's middle is at (2p + 1 - size) / size
    down = (2 * (shift[..., 0] + rows) + (1 - x.shape[2])) / x.shape[2]
    across = (2 * (shift[..., 1] + columns) + (1 - x.shape[3])) / x.shape[3]
    points = torch.stack([across, down], dim=-1)
    read = F.grid_sample(x.to(shift.dtype), points, mode="bilinear", padding_mode="zeros", align_corners=False)
    return read.to(x.dtype)


@register_notrace_module
class DeformableMerging(nn.Module):
    """Halves a map's sides: 2x2 convolution of stride 2 at displaced points, batch norm, GELU (section 3.3).

    The offsets start at zero, where it is an ordinary convolution; `deform=False` leaves them out.
    """

    def __init__(self, dim: int, out_dim: int, *, deform: bool = True) -> None:
        super().__init__()
        self.offset = nn.Conv2d(dim, 8, 2, stride=2) if deform else None
        self.conv = nn.Conv2d(dim, out_dim, 2, stride=2)
        self.norm = nn.BatchNorm2d(out_dim)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C'); an odd side gets a row or column of zeros."""
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.permute(0, 3, 1, 2)
        if self.offset is not None:
            x = displaced(x, self.offset(x))
        return self.act(self.norm(self.conv(x))).permute(0, 2, 3, 1).contiguous()  # blocks add to it as it lies

    def fuse(self) -> None:
        """Fold the norm into the convolution, and leave out offsets that are zero everywhere, in place."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()  # type: ignore[assignment]
        if self.offset is not None and not any(p.count_nonzero() for p in self.offset.parameters()):
            self.offset = None


@register_notrace_module
class PatchEmbed(nn.Module):
    """Patches to tokens: a convolution as large as its stride, then LN."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h, w, D); sides that patches do not fill are padded with zeros."""
        height, width = x.shape[2:]
        patch = self.proj.stride[0]
        down, right = -height % patch, -width % patch
        if down or right:
            x = F.pad(x, (0, right, 0, down))
        out: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return out


# --- the model ----------------------------------------------------------------------------------


class LITv2(Staged):
    """The LITv2 backbone and classifier.

    Args:
        img_size: side or (H, W) of the images it is meant for. Nothing in it is tied to a size.
        embed_dim: channels of the first stage; each next one has twice as many.
        depths, num_heads, local_ws, has_msa: blocks, heads, side of HiLo's windows, and whether blocks have attention,
            by stage. Stages without attention read neither heads nor window.
        alpha: share of Lo-Fi heads (`HiLoAttention`).
        deform: displaced merging; False: plain 2x2 convolutions.
        drop_path_rate: of the last block, rising from 0 at the first.
        strict_img_size: refuse images whose sides patches and mergings do not divide (32 for four stages of patches
            of 4); False: each step pads with zeros what it does not divide.

    Raises:
        BadInput: a value outside its range, or lists of different lengths.
    """

    OPENS = "leanvit.anatomy.adapters.hybrid"

    LEVELS = "layers"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        alpha: float = 0.9,
        local_ws: Sequence[int] = (0, 0, 2, 1),
        has_msa: Sequence[int] = (0, 0, 1, 1),
        deform: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        strict_img_size: bool = True,
    ) -> None:
        super().__init__()
        check_lengths(depths=depths, num_heads=num_heads, local_ws=local_ws, has_msa=has_msa)
        check("depths", depths, Counts)
        check("alpha", alpha, Fraction)
        check_pool(global_pool)
        height, width = checked_size(img_size)
        self.img_size, self.strict_img_size = (height, width), strict_img_size
        self.reduction = patch_size * 2 ** (len(depths) - 1)
        self._check_size(height, width)
        self.num_classes, self.global_pool, self.in_chans = num_classes, global_pool, in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim * 2 ** (len(depths) - 1)
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size)
        dims = [embed_dim * 2**i for i in range(len(depths))]
        drops: Any = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        self.layers = nn.Sequential()
        self.feature_info: list[dict[str, Any]] = []
        for i, dim in enumerate(dims):
            if has_msa[i]:
                check_heads(f"the channels of stage {i},", dim, f"num_heads[{i}]", num_heads[i])
            blocks = [
                Block(
                    dim,
                    ConvMlp(dim, int(dim * mlp_ratio), proj_drop_rate),
                    HiLoAttention(dim, num_heads[i], window_size=local_ws[i], alpha=alpha, qkv_bias=qkv_bias)
                    if has_msa[i]
                    else None,
                    next(drops),
                )
                for _ in range(depths[i])
            ]
            merging = DeformableMerging(dims[i - 1], dim, deform=deform) if i else None
            self.layers.append(Stage(merging, blocks))
            self.feature_info.append({"num_chs": dim, "reduction": patch_size * 2**i, "module": f"layers.{i}"})
        self.norm = nn.LayerNorm(self.num_features)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """As the paper's code: normal by fan-out for convolutions, 0.02 for linears; offsets start at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, DeformableMerging):
                module.conv.reset_parameters()  # uniform by fan-in, as deformable convolutions are
                nn.init.zeros_(module.conv.bias)  # type: ignore[arg-type]
                if module.offset is not None:
                    nn.init.zeros_(module.offset.weight)
                    nn.init.zeros_(module.offset.bias)  # type: ignore[arg-type]

    def stemmed(self, x: Tensor) -> Tensor:
        """Raises `BadInput` for sides that `strict_img_size` refuses."""
        out: Tensor = self.patch_embed(self.sized(x))
        return out

    def accepts(self) -> tuple[int, tuple[int, int] | None, str]:
        text = f"; accepted: sides divisible by {self.reduction}, or any with strict_img_size=False, which pads"
        return self.reduction if self.strict_img_size else 1, None, text

    def no_weight_decay(self) -> set[str]:
        """None by name: biases and norms are left out by their shape."""
        return set()

    def lr_scales(self) -> dict[str, float]:
        """Parameters that learn slower: offsets, at a hundredth of the rate (the paper's code)."""
        return {name: 0.01 for name, _ in self.named_parameters() if ".downsample.offset." in name}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise learning rates: by stage (`coarse`) or by block."""
        fine = [(r"^layers\.(\d+)\.downsample", (0,)), (r"^layers\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^patch_embed", "blocks": r"^layers\.(\d+)" if coarse else fine}

    def fuse(self) -> LITv2:
        """For deployment, in place: norms folded into mergings, projections joined, idle offsets left out.

        The outputs are the same up to rounding; names in the state dict are not. Raises `Refused` in training mode.
        """
        if self.training:
            raise Refused("fuse() is for deployment: call eval() first, batch norms still learn in training mode")
        for module in self.modules():
            if isinstance(module, HiLoAttention | DeformableMerging):
                module.fuse()
        return self

    def _check_size(self, height: Any, width: Any) -> None:
        multiple, _, accepted = self.accepts()
        if height % multiple or width % multiple:
            raise BadInput(f"images are {height}x{width}{accepted}")
