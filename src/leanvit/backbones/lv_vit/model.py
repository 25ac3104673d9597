"""The network of LV-ViT: the stem of convolutions and the model, dense or slimmed between its stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any

from timm.layers import PatchEmbed, register_notrace_module
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from leanvit.anatomy.parts.scaled import ScaledBlock
from leanvit.anatomy.parts.slimming import TokenSlimming
from leanvit.errors import BadInput
from leanvit.knobs import Choice, Count, Counts, Positive, Share, check, check_each
from leanvit.models.sizes import checked_size

STEMS = ("4c", "6c", "naive")
STRIDE = 16


@register_notrace_module
class ConvStem(nn.Module):
    """Patch embedding of 3x3 convolutions without bias, batch norm behind each and GELU between: (B, C, H, W) ->
    (B, H/16 · W/16, D). Widths D/8, D/4, D/2, D at stride 2; `extra` convolutions of stride 1 stand behind the first.
    """

    def __init__(
        self, img_size: int | tuple[int, int] = 224, in_chans: int = 3, embed_dim: int = 384, *, extra: int = 0
    ) -> None:
        super().__init__()
        self.img_size = checked_size(img_size, STRIDE)
        if embed_dim % 8:
            raise BadInput(f"embed_dim is {embed_dim}; accepted: multiples of 8, the stem begins with an eighth")
        self.in_chans, self.patch_size = in_chans, (STRIDE, STRIDE)
        self.grid_size = (self.img_size[0] // STRIDE, self.img_size[1] // STRIDE)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.strict_img_size, self.dynamic_img_pad = True, False
        self.act = nn.GELU()
        narrow = embed_dim // 8
        widths = [narrow, *[narrow] * extra, embed_dim // 4, embed_dim // 2, embed_dim]
        strides = [2, *[1] * extra, 2, 2, 2]
        self.depth = len(widths)
        for i, (before, width, stride) in enumerate(zip([in_chans, *widths], widths, strides, strict=False), start=1):
            self.add_module(f"conv{i}", nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(width))

    def layers(self) -> Iterator[tuple[int, nn.Module, nn.Module]]:
        """(number from 1, convolution, norm), in their order."""
        for i in range(1, self.depth + 1):
            yield i, self.get_submodule(f"conv{i}"), self.get_submodule(f"bn{i}")

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        return STRIDE if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        return img_size[0] // STRIDE, img_size[1] // STRIDE

    def forward(self, x: Tensor) -> Tensor:
        """Raises `BadInput` for another image size than the model's."""
        if tuple(x.shape[-2:]) != self.img_size:
            raise BadInput(f"images are {x.shape[-2]}x{x.shape[-1]}, the model takes {self.img_size} (img_size)")
        for i, conv, norm in self.layers():
            x = norm(conv(x if i == 1 else self.act(x)))
        return x.flatten(2).transpose(1, 2)


class LVViT(VisionTransformer):
    """The model, dense or slimmed between its stages.

    Args:
        stem: "4c" or "6c" (convolutions, stride 16 in all), or "naive", one convolution of stride `patch_size`.
        skip_lam: what every branch is divided by.
        stage_blocks: blocks of each stage; a token slimming module follows each stage but the last. None: dense.
        keep_rate: of all patches, int(patches · keep_rate ** s) tokens are in stage s.
        slim_hidden: width inside of a slimming module, as a share of the model's.
        kwargs: of timm's `VisionTransformer`.

    Raises:
        BadInput: an argument that is not accepted (named).
    """

    OPENS = "leanvit.backbones.lv_vit.opened"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = STRIDE,
        *,
        embed_dim: int = 384,
        depth: int = 16,
        num_heads: int = 6,
        mlp_ratio: float = 3.0,
        stem: str = "4c",
        skip_lam: float = 2.0,
        stage_blocks: Sequence[int] | None = None,
        keep_rate: float = 0.5,
        slim_hidden: float = 0.5,
        qkv_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        _check(embed_dim, depth, num_heads, stem, skip_lam, stage_blocks, keep_rate, slim_hidden)
        if stem != "naive" and (patch_size != STRIDE or kwargs.get("dynamic_img_size")):
            raise BadInput(
                f"stem {stem!r} has stride {STRIDE} and one img_size; give stem='naive' for another patch_size"
            )
        super().__init__(
            img_size,
            patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            embed_layer=PatchEmbed if stem == "naive" else _conv_stem(stem),
            block_fn=partial(ScaledBlock, branch_scale=1 / skip_lam),  # type: ignore[arg-type]
            norm_layer=partial(nn.LayerNorm, eps=1e-5),
            **kwargs,
        )
        for block in self.blocks:
            block.prefix = self.num_prefix_tokens  # type: ignore[union-attr, assignment]
        patches, end = int(self.patch_embed.num_patches), 0  # type: ignore[arg-type]
        for stage, blocks in enumerate((stage_blocks or ())[:-1], start=1):
            end += blocks
            slots = int(patches * keep_rate**stage)
            if slots < 1:
                raise BadInput(f"keep_rate is {keep_rate}, which leaves none of {patches} patches in stage {stage}")
            self._slim(end - 1, slots, max(1, int(embed_dim * slim_hidden)))

    def _slim(self, index: int, slots: int, hidden: int) -> None:
        block: Any = self.blocks[index]
        step = TokenSlimming(f"blocks.{index}.after.0", width=self.embed_dim, slots=slots, hidden=hidden)
        step.reset_parameters()
        block.after.append(step)
        if len(self.feature_info) > index:
            self.feature_info = self.feature_info[:index]  # what comes later has no grid

    def forward_intermediates(  # type: ignore[override]
        self, x: Tensor, indices: int | list[int] | None = None, **kwargs: Any
    ) -> Any:
        """timm's; of the blocks before the first slimming, as later tokens have no position in a grid."""
        return super().forward_intermediates(x, self._take(indices), **kwargs)

    def prune_intermediate_layers(self, indices: int | list[int] = 1, *args: Any, **kwargs: Any) -> list[int]:
        """timm's, likewise."""
        return super().prune_intermediate_layers(self._take(indices), *args, **kwargs)

    def _take(self, indices: int | list[int] | None) -> list[int]:
        full = next((i for i, block in enumerate(self.blocks) if len(block.after)), len(self.blocks))  # type: ignore[arg-type]
        if not full:
            raise BadInput("tokens are slimmed behind the first block: no block gives a map of features")
        return feature_take_indices(full, indices)[0]


def _conv_stem(stem: str) -> Any:
    extra = 2 if stem == "6c" else 0

    def build(img_size: Any, patch_size: int, in_chans: int, embed_dim: int, **unused: Any) -> ConvStem:
        return ConvStem(img_size, in_chans, embed_dim, extra=extra)

    return build


def _check(
    embed_dim: int,
    depth: int,
    num_heads: int,
    stem: str,
    skip_lam: float,
    stage_blocks: Sequence[int] | None,
    keep_rate: float,
    slim_hidden: float,
) -> None:
    check_each(Count, embed_dim=embed_dim, depth=depth, num_heads=num_heads)
    if embed_dim % num_heads:
        raise BadInput(f"num_heads is {num_heads}, which does not divide embed_dim {embed_dim}")
    check("stem", stem, Annotated[str, Choice(STEMS)])
    check("skip_lam", skip_lam, Positive)
    check_each(Share, keep_rate=keep_rate, slim_hidden=slim_hidden)
    check("stage_blocks", stage_blocks, Counts | None)
    if stage_blocks is not None and sum(stage_blocks) != depth:
        raise BadInput(
            f"stage_blocks is {stage_blocks!r}, {sum(stage_blocks)} blocks in all; accepted: {depth} (depth)"
        )
