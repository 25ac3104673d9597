"""The network of DualToken-ViT."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Annotated, Any

import torch
from timm.layers import calculate_drop_path_rates, trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from leanvit.backbones.dualtoken_vit.lightvit import LightViTStem, ResidualMerge
from leanvit.backbones.dualtoken_vit.parts import EPS, DualTokenBlock, DualTokenStage, GlobalTokens, Shrink
from leanvit.errors import BadInput
from leanvit.knobs import Choice, Count, Fraction, Positive, check, check_each
from leanvit.models.sizes import checked_size, of_size
from leanvit.models.stages import check_pool

STRIDES = (8, 16, 32)
SIDE = 7  # of the grid of global tokens
G_MLPS = ("mix", "normal")
LONG = 1.5  # sides that differ more: the square grid of global tokens distorts what it gathers


class DualTokenViT(nn.Module):
    """(B, in_chans, H, W) -> (B, num_classes); H and W multiples of 32.

    Args:
        img_size: side, or (H, W), that the model is meant for: from it follows in how many steps maps are shrunk. It
            takes other sizes too.
        dims, depths, num_heads, ffn_ratios: one value a stage.
        token_side: global tokens are a grid of this side: 7, or one that every stage's map comes to by halving.
        g_mlp: the global tokens' MLP, "mix" or "normal".
        conv_ratio: width of the conv encoder's MLP. conv_encoder: without it local tokens are as they come (an
            ablation).
        fuse_alpha: share of what a block gathers in its global tokens, 0 to 1; the rest is what they were.
        step_wise: shrink maps in steps, with convolutions between, or at once.
        global_branch: without it the model is convolutional (an ablation).
        neck_dim: width of a layer before the classifier, as LightViT has (1280); None for none.

    Raises:
        BadInput: an argument that is not accepted, named.
    """

    OPENS = "leanvit.anatomy.adapters.hybrid"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: tuple[int, ...] = (64, 128, 256),
        depths: tuple[int, ...] = (2, 6, 6),
        num_heads: tuple[int, ...] = (2, 4, 8),
        ffn_ratios: tuple[float, ...] = (8.0, 4.0, 4.0),
        token_side: int = SIDE,
        g_mlp: str = "mix",
        conv_ratio: float = 2.0,
        conv_encoder: bool = True,
        fuse_alpha: float = 0.5,
        step_wise: bool = True,
        global_branch: bool = True,
        neck_dim: int | None = None,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check_widths(dims, depths, num_heads, ffn_ratios)
        _check_choices(g_mlp, conv_ratio, fuse_alpha, neck_dim, global_pool)
        self.img_size = _checked_size(img_size)
        _check_side(token_side, self.img_size)
        self.in_chans, self.num_classes, self.global_pool = in_chans, num_classes, global_pool
        self.embed_dim = self.num_features = dims[-1]
        self.head_hidden_size = neck_dim or dims[-1]
        self.patch_embed = LightViTStem(in_chans, dims[0])
        self.patch_embed.img_size = self.img_size
        tokens = torch.zeros(1, token_side**2, dims[0])
        self.global_tokens = nn.Parameter(tokens) if global_branch else None
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)

        def block(stage: int, path: float) -> DualTokenBlock:
            dim, branch = dims[stage], None
            if global_branch:
                shrink = Shrink(dim, token_side, _halvings(self.img_size, stage, token_side), step_wise=step_wise)
                branch = GlobalTokens(
                    dim,
                    num_heads[stage],
                    shrink,
                    g_mlp=g_mlp,
                    alpha=fuse_alpha,
                    attn_drop=attn_drop_rate,
                    proj_drop=proj_drop_rate,
                )
            return DualTokenBlock(
                dim,
                conv_ratio=conv_ratio if conv_encoder else None,
                branch=branch,
                ffn_ratio=ffn_ratios[stage],
                proj_drop=proj_drop_rate,
                path=path,
            )

        merges = [None, *(ResidualMerge(a, b, global_tokens=global_branch) for a, b in pairwise(dims))]
        self.stages = nn.ModuleList(
            DualTokenStage(merge, [block(i, path) for path in rates[i]]) for i, merge in enumerate(merges)
        )
        self.feature_info: list[dict[str, Any]] = [
            {"module": f"stages.{i}", "num_chs": dim, "reduction": stride}
            for i, (dim, stride) in enumerate(zip(dims, STRIDES, strict=True))
        ]
        self.norm: nn.Module = nn.LayerNorm(dims[-1], eps=EPS)
        self.neck: nn.Module = nn.Identity()
        if neck_dim is not None:
            self.neck = nn.Sequential(nn.Linear(dims[-1], neck_dim), nn.LayerNorm(neck_dim, eps=EPS), nn.GELU())
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Linear(self.head_hidden_size, num_classes) if num_classes > 0 else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Linears, global tokens: truncated normal of deviation 0.02; biases zero; convolutions as torch makes them."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.global_tokens is not None:
            trunc_normal_(self.global_tokens, std=0.02)

    # --- running -----------------------------------------------------------------

    def embed(self, x: Tensor) -> tuple[Tensor, Any]:
        """(B, C, H, W) -> map (B, H / 8, W / 8, D) and the learned global tokens (B, T, D). Raises `BadInput`."""
        x = of_size(x, STRIDES[-1], None, f"; accepted: sides that are multiples of {STRIDES[-1]}")
        tokens = None if self.global_tokens is None else self.global_tokens.expand(x.shape[0], -1, -1)
        return self.patch_embed(x), tokens

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the last map, normalised, (B, H / 32, W / 32, D)."""
        x, tokens = self.embed(x)
        for stage in self.stages:
            x, tokens = stage(x, tokens)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, h, w, D) -> logits (B, classes), or what the classifier sees."""
        if self.global_pool == "avg":
            x = x.flatten(1, 2).mean(dim=1)
        x = self.head_drop(self.neck(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps of chosen stages: (final map (B, h, w, D), [maps]), or the maps alone.

        Args:
            indices: the last n for a number, all for None, else the stages.
            norm: put the final norm on the last stage's map; the others have no norm of their own.
            stop_early: no stage after the last one asked for is run.
            output_fmt: "NCHW" or "NHWC".
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise BadInput(f"output_fmt is {output_fmt!r}; accepted: NCHW, NHWC")
        taken, last = feature_take_indices(len(self.stages), indices)
        final = len(self.stages) - 1
        x, tokens = self.embed(x)
        maps = []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x, tokens = stage(x, tokens)
            if i in taken:
                y = self.norm(x) if norm and i == final else x
                maps.append(y if output_fmt == "NHWC" else y.permute(0, 3, 1, 2).contiguous())
        return maps if intermediates_only else (self.norm(x), maps)

    def fuse(self) -> DualTokenViT:
        """Fold the stem's batch norms into its convolutions, for deployment: the same outputs to 1e-5.

        Raises `BadInput` in train mode, where batch norms have no fixed numbers.
        """
        if self.training:
            raise BadInput("fuse() folds running statistics: call model.eval() first")
        self.patch_embed.fuse()
        return self

    # --- what timm needs of a model ---------------------------------------------

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Take away what the chosen stages do not need; their indices, counted from the first."""
        taken, last = feature_take_indices(len(self.stages), indices)
        cut = last < len(self.stages) - 1  # norm and head have the width of the last stage
        self.stages = self.stages[: last + 1]
        if prune_norm or cut:
            self.norm = nn.Identity()
        if prune_head or cut:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.neck = nn.Identity()
            self.reset_classifier(0)
        return taken

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier, drawn anew; 0 classes: none."""
        if global_pool is not None:
            check_pool(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = self.patch_embed.proj.weight
        head = nn.Linear(self.head_hidden_size, num_classes) if num_classes > 0 else nn.Identity()
        self.head = head.to(device=like.device, dtype=like.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def no_weight_decay(self) -> set[str]:
        return {"global_tokens"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's patterns of parameter names by layer."""
        fine: Any = [(r"^stages\.(\d+)\.merge", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^global_tokens|patch_embed", "blocks": r"^stages\.(\d+)" if coarse else fine}


def _halvings(img_size: tuple[int, int], stage: int, side: int) -> int:
    """How often a stage's map is halved on its way to `side`: as long as it is even and stays as large."""
    height, width = (length // STRIDES[stage] for length in img_size)
    count = 0
    while height % 2 == width % 2 == 0 and min(height, width) // 2 >= side:
        height, width, count = height // 2, width // 2, count + 1
    return count


# --- what is accepted ---------------------------------------------------------------


def _checked_size(img_size: Any) -> tuple[int, int]:
    height, width = checked_size(img_size, STRIDES[-1])
    if max(height, width) > LONG * min(height, width):
        warnings.warn(
            f"images of {height}x{width}: the square grid of global tokens distorts maps this long", stacklevel=4
        )
    return height, width


def _check_side(side: Any, img_size: tuple[int, int]) -> None:
    """7 is the paper's, and any map is averaged to it; another side must be what halving comes to in the last stage."""
    height, width = (length // STRIDES[-1] for length in img_size)
    reached = {SIDE}
    if height == width:
        reached |= {height // 2**n for n in range(height.bit_length()) if height % 2**n == 0}
    if side not in reached:
        raise BadInput(
            f"token_side is {side!r}; accepted for images of {img_size[0]}x{img_size[1]}: "
            f"{', '.join(map(str, sorted(reached)))}"
        )


def _check_widths(dims: Any, depths: Any, num_heads: Any, ffn_ratios: Any) -> None:
    check_each(tuple[Count, Count, Count], dims=dims, depths=depths, num_heads=num_heads)
    check("ffn_ratios", ffn_ratios, tuple[Positive, Positive, Positive])
    for dim, heads in zip(dims, num_heads, strict=True):
        if dim % heads or dim % 4:
            raise BadInput(f"dims is {dims!r}; accepted: multiples of 4 and of the stage's heads, {num_heads!r}")


def _check_choices(g_mlp: Any, conv_ratio: Any, fuse_alpha: Any, neck_dim: Any, global_pool: str) -> None:
    check("g_mlp", g_mlp, Annotated[str, Choice(G_MLPS)])
    check("conv_ratio", conv_ratio, Positive)
    check("fuse_alpha", fuse_alpha, Fraction)
    check("neck_dim", neck_dim, Count | None)
    check_pool(global_pool)
