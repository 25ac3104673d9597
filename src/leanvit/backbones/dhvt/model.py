"""The network of DHVT."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from timm.layers import calculate_drop_path_rates, register_notrace_function, trunc_normal_
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from leanvit.backbones.dhvt.parts import EPS, WIDTHS, DHVTBlock, HeadTokenAttention, OverlappingPatchEmbed
from leanvit.errors import BadInput
from leanvit.knobs import Choice, Count, check, check_each
from leanvit.models.sizes import checked_size

NORMS = {"bn": nn.BatchNorm2d, "syncbn": nn.SyncBatchNorm}


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

    OPENS = "leanvit.anatomy.adapters.hybrid"

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
        _check(patch_size, embed_dim, num_heads, norm, global_pool)
        self.img_size = checked_size(img_size, patch_size)
        self.in_chans, self.num_classes, self.global_pool = in_chans, num_classes, global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_prefix_tokens = 1
        self.grad_checkpointing = False
        self.patch_embed = OverlappingPatchEmbed(patch_size, in_chans, embed_dim, NORMS[norm])
        self.patch_embed.img_size = self.img_size
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
        grid = grid_of(x)
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

    # --- what timm needs of a model ---------------------------------------------

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


@register_notrace_function
def grid_of(x: Tensor) -> tuple[int, int]:
    """(H, W) of a map (..., H, W). One step where `torch.fx` traces."""
    return int(x.shape[-2]), int(x.shape[-1])


class _on_grid:
    """A block with its grid: one tensor in, one out, as `checkpoint_seq` calls it."""

    def __init__(self, block: nn.Module, grid: tuple[int, int]) -> None:
        self.block, self.grid = block, grid

    def __call__(self, x: Tensor) -> Tensor:
        return self.block(x, self.grid)


def _check(patch_size: Any, embed_dim: Any, num_heads: Any, norm: Any, global_pool: str) -> None:
    if patch_size not in WIDTHS:
        raise BadInput(f"patch_size is {patch_size!r}; accepted: {', '.join(map(str, sorted(WIDTHS)))}")
    check_each(Count, embed_dim=embed_dim, num_heads=num_heads)
    shares = {"heads": num_heads, "4 (DAFF's gate)": 4, "the stem's first convolution": WIDTHS[patch_size][0]}
    for what, share in shares.items():
        if embed_dim % share:
            raise BadInput(f"embed_dim is {embed_dim!r}; accepted: multiples of {share}, for {what}")
    check("norm", norm, Annotated[str, Choice(NORMS)])
    _check_pool(global_pool)


def _check_pool(global_pool: str) -> None:
    if global_pool not in ("", "token"):
        raise BadInput(f"global_pool is {global_pool!r}; accepted: 'token', or '' for all tokens")
