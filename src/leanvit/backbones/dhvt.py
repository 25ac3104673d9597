"""DHVT: a columnar vision transformer for small data sets (Lu et al., NeurIPS 2022, arXiv 2210.05958).

Three parts give it the bias of a convolutional network. A stem of strided convolutions makes the tokens (SOPE). The
feed-forward part runs a depthwise convolution over the grid of patches, and gates the class token by channel (DAFF). In
each block every head adds a token of its own to the sequence (HI-MHSA). There is no position embedding: the padding of
the convolutions tells tokens where they are, so a model takes images of any size that its patches divide.

Names, parameters and numbers are those of the official code (ArieSeirack/DHVT, Apache-2.0), which released no weights.
Its ways that end in an error are not kept: a model without DHVT's parts, distillation, other patch sizes. Importing
this module registers the models with timm; `leanvit` does so whenever one is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.layers import DropPath, calculate_drop_path_rates, to_2tuple, trunc_normal_, use_fused_attn
from timm.models import build_model_with_cfg, checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from leanvit.backbones.registration import pretrained_cfg, register, renamed
from leanvit.errors import BadInput, is_whole

WIDTHS = {16: (8, 4, 2, 1), 4: (2, 1), 2: (1,)}  # patch size -> by what each convolution of the stem divides the width
NORMS = {"bn": nn.BatchNorm2d, "syncbn": nn.SyncBatchNorm}
EPS = 1e-6  # of the block norms; head tokens have torch's 1e-5


def _cfg(side: int, classes: int) -> dict[str, Any]:
    crop = 1.0 if side <= 32 else 0.875
    return pretrained_cfg(
        input_size=(3, side, side),
        num_classes=classes,
        crop_pct=crop,
        first_conv="patch_embed.proj.0.0",
        origin_url="https://github.com/ArieSeirack/DHVT",
        license="apache-2.0",
        paper_ids="arXiv:2210.05958",
    )


default_cfgs = {
    **{f"dhvt_{size}_cifar_patch{patch}": _cfg(32, 100) for size in ("tiny", "small") for patch in (4, 2)},
    **{f"dhvt_{size}_domain_patch16": _cfg(224, 345) for size in ("tiny", "small")},
    **{f"dhvt_{size}_imagenet_patch16": _cfg(224, 1000) for size in ("tiny", "small")},
}


class Affine(nn.Module):
    """A learned scale and shift of each channel, (B, C, H, W) -> the same; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.alpha + self.beta


class OverlappingPatchEmbed(nn.Module):
    """Sequential overlapping patch embedding (SOPE): (B, C, H, W) -> grid (B, D, H / patch, W / patch).

    3x3 convolutions of stride 2 without bias, each with a batch norm, GELU between them, between two affine layers. The
    one convolution of patch 2 has its GELU behind it.
    """

    strict_img_size = False  # nothing in it depends on the image's size
    dynamic_img_pad = False

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.pre_affine = Affine(in_chans)
        channels = [in_chans, *(embed_dim // share for share in WIDTHS[patch_size])]
        parts: list[nn.Module] = []
        for before, after in pairwise(channels):
            conv = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            parts += [nn.Sequential(conv, norm(after)), nn.GELU()]
        self.proj = nn.Sequential(*(parts if patch_size == 2 else parts[:-1]))
        self.post_affine: nn.Module = Affine(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        side = self.patch_size[0]
        if height % side or width % side:
            raise BadInput(f"images are {height}x{width}; accepted: sides that are multiples of {side}, the patch size")
        return self.post_affine(self.proj(self.pre_affine(x)))

    def fuse(self) -> OverlappingPatchEmbed:
        """Fold norms, and the affine layer where no GELU stands before it, into the convolutions. Eval mode only."""
        for part in self.proj:
            if isinstance(part, nn.Sequential):
                part[0], part[1] = _folded(part[0], part[1]), nn.Identity()
        last = self.proj[-1]
        if isinstance(last, nn.Sequential) and isinstance(self.post_affine, Affine):
            conv: Any = last[0]
            alpha, beta = self.post_affine.alpha.flatten(), self.post_affine.beta.flatten()
            conv.weight = nn.Parameter((conv.weight * alpha[:, None, None, None]).detach())
            conv.bias = nn.Parameter((conv.bias * alpha + beta).detach())
            self.post_affine = nn.Identity()
        return self


class HeadTokenAttention(nn.Module):
    """Head-interacted multi-head self-attention (HI-MHSA): (B, 1 + patches, C) -> the same.

    Each head makes one token out of the mean of its channels over the sequence; these join the sequence for the
    attention, and leave it in the class token, as their mean. `head_tokens=False` is plain attention.
    """

    def __init__(self, dim: int, heads: int, *, head_tokens: bool, attn_drop: float, proj_drop: float) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.scale = self.head_dim**-0.5
        self.has_head_tokens = head_tokens
        self.fused_attn = use_fused_attn()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        if head_tokens:
            self.ht_proj = nn.Linear(self.head_dim, dim)
            self.ht_norm = nn.LayerNorm(self.head_dim)
            self.ht_act = nn.GELU()
            self.pos_embed = nn.Parameter(torch.zeros(1, heads, dim))  # says which head a token is of

    def head_tokens(self, x: Tensor) -> Tensor:
        """(B, N, C) -> one token a head, (B, heads, C)."""
        means = x.mean(dim=1).unflatten(-1, (self.num_heads, self.head_dim))
        tokens = self.ht_proj(means).unflatten(-1, (self.num_heads, self.head_dim))
        return self.ht_act(self.ht_norm(tokens)).flatten(2) + self.pos_embed

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        if self.has_head_tokens:
            x = self.attend(torch.cat([x, self.head_tokens(x)], dim=1))
            cls = x[:, :1] + x[:, tokens:].mean(dim=1, keepdim=True)
            x = torch.cat([cls, x[:, 1:tokens]], dim=1)
        else:
            x = self.attend(x)
        return self.proj_drop(x)

    def attend(self, x: Tensor) -> Tensor:
        """Multi-head self-attention with its projection, (B, N, C) -> (B, N, C)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused_attn:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        else:
            weights = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)
            out = self.attn_drop(weights) @ v
        return self.proj(out.transpose(1, 2).flatten(2))


class AggregationFeedForward(nn.Module):
    """Dynamic aggregation feed-forward (DAFF): (B, 1 + H W, C) and the grid (H, W) -> (B, 1 + H W, C).

    Patches go through an inverted bottleneck with a depthwise convolution. Their mean, squeezed and widened again,
    multiplies the class token, which meets no other layer here; the gate has no sigmoid.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, dim, 1)
        self.bn3 = nn.BatchNorm2d(dim)
        self.act = nn.GELU()
        self.compress = nn.Linear(dim, dim // 4)
        self.excitation = nn.Linear(dim // 4, dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        cls, patches = x[:, :1], x[:, 1:]
        u = patches.transpose(1, 2).unflatten(2, grid)  # (B, C, H, W), channels last in memory: nothing is copied
        u = self.act(self.bn1(self.conv1(u)))
        u = u + self.act(self.bn2(self.conv2(u)))
        patches = self.bn3(self.conv3(u)).flatten(2).transpose(1, 2)
        gate = self.excitation(self.act(self.compress(patches.mean(dim=1, keepdim=True))))
        return torch.cat([cls * gate, patches], dim=1)

    def fuse(self) -> AggregationFeedForward:
        """Fold the norms into the convolutions. Eval mode only."""
        for i in (1, 2, 3):
            setattr(self, f"conv{i}", _folded(getattr(self, f"conv{i}"), getattr(self, f"bn{i}")))
            setattr(self, f"bn{i}", nn.Identity())
        return self


class DHVTBlock(nn.Module):
    """Pre-norm block: (B, 1 + H W, C) and the grid (H, W) -> (B, 1 + H W, C)."""

    def __init__(
        self, dim: int, heads: int, hidden: int, *, head_tokens: bool, attn_drop: float, proj_drop: float, path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = HeadTokenAttention(dim, heads, head_tokens=head_tokens, attn_drop=attn_drop, proj_drop=proj_drop)
        self.drop_path1 = DropPath(path) if path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = AggregationFeedForward(dim, hidden)
        self.drop_path2 = DropPath(path) if path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x), grid))


class DHVT(nn.Module):
    """Dynamic hybrid vision transformer: (B, in_chans, H, W) -> (B, num_classes); H and W multiples of the patch.

    Args:
        img_size: side, or (H, W), that the model is meant for; it takes others too.
        patch_size: 2, 4 or 16; each has its own stem.
        head_tokens: without them attention is plain (an ablation of the paper).
        norm: of the stem, "bn" or "syncbn" (the official one, which trains on GPUs only). Same state dict.
        drop_rate: dropout before the classifier. proj_drop_rate, attn_drop_rate: in attention; DAFF has none.

    Raises:
        BadInput: a size, patch or width that does not fit; names the argument.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        head_tokens: bool = True,
        norm: str = "bn",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check(img_size, patch_size, embed_dim, num_heads, norm, global_pool)
        self.img_size = to_2tuple(img_size)
        self.in_chans, self.num_classes, self.global_pool = in_chans, num_classes, global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 1
        self.grad_checkpointing = False
        self.patch_embed = OverlappingPatchEmbed(patch_size, in_chans, embed_dim, NORMS[norm])
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        rates: Any = calculate_drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.ModuleList(
            DHVTBlock(
                embed_dim,
                num_heads,
                int(embed_dim * mlp_ratio),
                head_tokens=head_tokens,
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
                path=rate,
            )
            for rate in rates
        )
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": embed_dim, "reduction": patch_size} for i in range(depth)
        ]
        self.norm: nn.Module = nn.LayerNorm(embed_dim, eps=EPS)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Linear(embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Linears and tokens truncated normal of deviation 0.02, biases zero; convolutions as torch makes them."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, HeadTokenAttention) and module.has_head_tokens:
                trunc_normal_(module.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)

    # --- running -----------------------------------------------------------------

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, C, H, W) -> class token and patches, (B, 1 + h w, D), and the grid (h, w)."""
        x = self.patch_embed(x)
        grid = (int(x.shape[-2]), int(x.shape[-1]))
        x = x.flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1), grid

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> normalised tokens (B, 1 + h w, D), the class token first."""
        x, grid = self.embed(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq([_on_grid(block, grid) for block in self.blocks], x)
        else:
            for block in self.blocks:
                x = block(x, grid)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, N, D) -> logits (B, classes), or the class token (B, D)."""
        x = self.head_drop(x[:, 0] if self.global_pool == "token" else x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps of chosen blocks: (final tokens, [maps]), or the maps alone.

        Args:
            indices: the last n for a number, all for None, else the blocks.
            return_prefix_tokens: each map comes as (map, class token (B, 1, D)).
            norm: put the final norm on each map. stop_early: no block after the last one asked for is run.
            output_fmt: "NCHW", maps (B, D, h, w), or "NLC", patches (B, h w, D).
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise BadInput(f"output_fmt is {output_fmt!r}; accepted: NCHW, NLC")
        taken, last = feature_take_indices(len(self.blocks), indices)
        x, grid = self.embed(x)
        maps = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = block(x, grid)
            if i in taken:
                y = self.norm(x) if norm else x
                patches = y[:, 1:]
                if output_fmt == "NCHW":
                    patches = patches.transpose(1, 2).unflatten(2, grid).contiguous()
                maps.append((patches, y[:, :1]) if return_prefix_tokens else patches)
        return maps if intermediates_only else (self.norm(x), maps)

    def fuse(self) -> DHVT:
        """Fold every batch norm into its convolution, for deployment: the same outputs to 1e-5, other state-dict keys.

        Raises `BadInput` in train mode, where batch norms have no fixed numbers.
        """
        if self.training:
            raise BadInput("fuse() folds running statistics: call model.eval() first")
        self.patch_embed.fuse()
        for block in self.blocks:
            block.mlp.fuse()  # type: ignore[operator, union-attr]
        return self

    # --- what timm asks of a model -----------------------------------------------

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Take away what the chosen blocks do not need; their indices, counted from the first."""
        taken, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return taken

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier, drawn anew; 0 classes: none."""
        if global_pool is not None:
            _check_pool(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = self.cls_token
        head = nn.Linear(self.embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self.head = head.to(device=like.device, dtype=like.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """As the official code: the class token alone (head-token embeddings and affine layers decay)."""
        return {"cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's patterns of parameter names by layer."""
        blocks: Any = r"^blocks\.(\d+)" if coarse else [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^cls_token|patch_embed", "blocks": blocks}


class _on_grid:
    """A block with its grid: one tensor in, one out, as `checkpoint_seq` calls it."""

    def __init__(self, block: nn.Module, grid: tuple[int, int]) -> None:
        self.block, self.grid = block, grid

    def __call__(self, x: Tensor) -> Tensor:
        return self.block(x, self.grid)


def _folded(conv: Any, norm: Any) -> nn.Module:
    """One convolution that does what both did; as it was where the norm is folded already."""
    return conv if isinstance(norm, nn.Identity) else fuse_conv_bn_eval(conv, norm)


def _check(img_size: Any, patch_size: Any, embed_dim: Any, num_heads: Any, norm: Any, global_pool: str) -> None:
    if patch_size not in WIDTHS:
        raise BadInput(f"patch_size is {patch_size!r}; accepted: {', '.join(map(str, sorted(WIDTHS)))}")
    sides = img_size if isinstance(img_size, Sequence) else (img_size,)
    if len(sides) > 2 or not all(is_whole(s, least=patch_size) and s % patch_size == 0 for s in sides):
        raise BadInput(f"img_size is {img_size!r}; accepted: a side or (H, W), multiples of the patch, {patch_size}")
    if not is_whole(num_heads, least=1):
        raise BadInput(f"num_heads is {num_heads!r}; accepted: a whole number, 1 or more")
    shares = {"heads": num_heads, "4 (DAFF's gate)": 4, "the stem's first convolution": WIDTHS[patch_size][0]}
    for what, share in shares.items():
        if not is_whole(embed_dim, least=1) or embed_dim % share:
            raise BadInput(f"embed_dim is {embed_dim!r}; accepted: multiples of {share}, for {what}")
    if norm not in NORMS:
        raise BadInput(f"norm is {norm!r}; accepted: {', '.join(NORMS)}")
    _check_pool(global_pool)


def _check_pool(global_pool: str) -> None:
    if global_pool not in ("", "token"):
        raise BadInput(f"global_pool is {global_pool!r}; accepted: 'token', or '' for all tokens")


def checkpoint_filter_fn(state: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint of the official code: the names are the same. Raises `ValueError` for that of another model."""
    return renamed(state, model, lambda name: name)


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **published: Any) -> DHVT:
    model: DHVT = build_model_with_cfg(
        DHVT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},  # as timm's ViT: the last three blocks
        **{**published, **kwargs},
    )
    return model


@register
def dhvt_tiny_cifar_patch4(pretrained: bool = False, **kwargs: Any) -> DHVT:
    """DHVT-T for 32x32 images in patches of 4: 6.01 M parameters, 0.39 GMACs."""
    given = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "num_heads": 4}
    return _create("dhvt_tiny_cifar_patch4", pretrained, kwargs, **given)


@register
def dhvt_small_cifar_patch4(pretrained: bool = False, **kwargs: Any) -> DHVT:
    """DHVT-S for 32x32 images in patches of 4: 23.4 M parameters, 1.54 GMACs."""
    given = {"img_size": 32, "patch_size": 4, "embed_dim": 384, "num_heads": 8}
    return _create("dhvt_small_cifar_patch4", pretrained, kwargs, **given)


@register
def dhvt_tiny_cifar_patch2(pretrained: bool = False, **kwargs: Any) -> DHVT:
    """DHVT-T for 32x32 images in patches of 2: 5.85 M parameters, 1.72 GMACs."""
    given = {"img_size": 32, "patch_size": 2, "embed_dim": 192, "num_heads": 4}
    return _create("dhvt_tiny_cifar_patch2", pretrained, kwargs, **given)


@register
def dhvt_small_cifar_patch2(pretrained: bool = False, **kwargs: Any) -> DHVT:
    """DHVT-S for 32x32 images in patches of 2: 22.8 M parameters, 6.23 GMACs."""
    given = {"img_size": 32, "patch_size": 2, "embed_dim": 384, "num_heads": 8}
    return _create("dhvt_small_cifar_patch2", pretrained, kwargs, **given)


@register
def dhvt_tiny_domain_patch16(pretrained: bool = False, **kwargs: Any) -> DHVT:
    """DHVT-T as trained on DomainNet (345 classes): 6.11 M parameters, 1.37 GMACs at 224x224."""
    return _create("dhvt_tiny_domain_patch16", pretrained, kwargs, embed_dim=192, num_heads=4)


@register
def dhvt_small_domain_patch16(pretrained: bool = False, **kwargs: Any) -> DHVT:
    """DHVT-S as trained on DomainNet (345 classes): 23.8 M parameters, 5.06 GMACs at 224x224."""
    return _create("dhvt_small_domain_patch16", pretrained, kwargs, embed_dim=384, num_heads=6)


@register
def dhvt_tiny_imagenet_patch16(pretrained: bool = False, **kwargs: Any) -> DHVT:
    """DHVT-T as trained on ImageNet-1k: 6.27 M parameters, 1.37 GMACs at 224x224."""
    return _create("dhvt_tiny_imagenet_patch16", pretrained, kwargs, embed_dim=192, num_heads=3)


@register
def dhvt_small_imagenet_patch16(pretrained: bool = False, **kwargs: Any) -> DHVT:
    """DHVT-S as trained on ImageNet-1k: 24.0 M parameters, 5.06 GMACs at 224x224."""
    return _create("dhvt_small_imagenet_patch16", pretrained, kwargs, embed_dim=384, num_heads=6)
