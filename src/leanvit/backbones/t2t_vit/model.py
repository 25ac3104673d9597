"""T2T-ViT: a deep and narrow vision transformer behind a tokens-to-token module."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from timm.layers import calculate_drop_path_rates, global_pool_nlc
from timm.layers import trunc_normal_ as trunc_normal
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from leanvit.backbones.t2t_vit.tokenizer import STRIDE, TokensToToken
from leanvit.errors import BadInput
from leanvit.knobs import BelowOne, Choice, Count, Index, Positive, check, check_each
from leanvit.models.sizes import checked_size

POOLS = ("", "token", "avg")
RESIZES = ("interpolate", "sinusoid")
LayerNorm = partial(nn.LayerNorm, eps=1e-5)


class T2TViT(nn.Module):
    """The plain model: blocks of timm's `Block`, without biases of q, k, v.

    Positions are a fixed table of sines over the raster index (`sinusoid`), a buffer, as are the performer's random
    features; both are in the state dict under their official names.

    Args:
        img_size: one side or (H, W), multiples of 16.
        global_pool: "token" (published), "avg" over the patches, or "" for none; always behind the norm.
        tokens_type, token_dim: of the tokens-to-token module: "performer" or "transformer", and its width.
        drop_rate: before the classifier. `pos_drop_rate`, `proj_drop_rate`, `attn_drop_rate`: timm's.
        fp32_tokenizer, stable_exp: precision of the performer's features (`tokenizer.PerformerCell`).
        resize_positions: what becomes of the table of a checkpoint of another image size: "interpolate" its grid
            (bicubic, the class token's row is kept), or "sinusoid", the table that a training at this size has.

    Raises:
        BadInput: an argument that is not accepted (named).
    """

    OPENS = "leanvit.backbones.t2t_vit.opened"

    attention: ClassVar[type[nn.Module]] = Attention  # of each block
    pos_embed: Tensor

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        *,
        tokens_type: str = "performer",
        token_dim: int = 64,
        embed_dim: int = 384,
        depth: int = 14,
        num_heads: int = 6,
        mlp_ratio: float = 3.0,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        fp32_tokenizer: bool = True,
        stable_exp: bool = False,
        resize_positions: str = "interpolate",
    ) -> None:
        super().__init__()
        check_each(Count, in_chans=in_chans, token_dim=token_dim, embed_dim=embed_dim, depth=depth, num_heads=num_heads)
        check_each(
            BelowOne,
            drop_rate=drop_rate,
            pos_drop_rate=pos_drop_rate,
            proj_drop_rate=proj_drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
        )
        check("global_pool", global_pool, Annotated[str, Choice(POOLS)])
        check("resize_positions", resize_positions, Annotated[str, Choice(RESIZES)])
        check_each(bool, fp32_tokenizer=fp32_tokenizer, stable_exp=stable_exp)
        check("mlp_ratio", mlp_ratio, Positive)
        check("num_classes", num_classes, Index)
        self.num_classes, self.in_chans, self.global_pool = num_classes, in_chans, global_pool
        self.num_prefix_tokens, self.embed_dim = 1, embed_dim
        self.grad_checkpointing = False
        self.ends_alone = False  # whether `forward` runs the last block for the class token alone
        self.tokens_to_token = TokensToToken(
            checked_size(img_size, STRIDE),
            in_chans,
            embed_dim,
            tokens_type=tokens_type,
            token_dim=token_dim,
            fp32=fp32_tokenizer,
            stable_exp=stable_exp,
        )
        self.tokens_to_token.resize_positions = resize_positions  # there, so that an opened model has it too
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.register_buffer("pos_embed", sinusoid(self.tokens_to_token.num_patches + 1, embed_dim))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        drops = {"proj_drop": proj_drop_rate, "attn_drop": attn_drop_rate}
        self.blocks, widths = self.trunk(depth, num_heads, mlp_ratio, drops, drop_path_rate)
        self.feature_info: list[dict[str, Any]] = [
            {"module": f"blocks.{i}", "num_chs": width, "reduction": STRIDE} for i, width in enumerate(widths)
        ]
        self.num_features = self.head_hidden_size = widths[-1]
        self.norm: nn.Module = LayerNorm(widths[-1])
        self.fc_norm: nn.Module = nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(widths[-1], num_classes) if num_classes > 0 else nn.Identity()
        trunc_normal(self.cls_token, std=0.02)
        self.apply(_init_linear)

    def trunk(
        self, depth: int, num_heads: int, mlp_ratio: float, drops: dict[str, float], drop_path_rate: float
    ) -> tuple[nn.Sequential, list[int]]:
        """The blocks, and the width behind each."""
        rates: Any = calculate_drop_path_rates(drop_path_rate, depth)
        blocks = [self.block(self.embed_dim, num_heads, mlp_ratio, drop_path=rate, **drops) for rate in rates]
        return nn.Sequential(*blocks), [self.embed_dim] * depth

    def block(self, dim: int, num_heads: int, mlp_ratio: float, **drops: float) -> nn.Module:
        """One block. Raises `BadInput` if the heads do not divide its width."""
        return plain_block(dim, num_heads, mlp_ratio, self.attention, drops)

    # --- running -----------------------------------------------------------------

    def embed(self, x: Tensor) -> Tensor:
        """Images to tokens with the class token first and positions added: (B, C, H, W) -> (B, 1 + N, D)."""
        x = self.tokens_to_token(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.pos_drop(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Tokens behind the final norm, (B, 1 + N, D)."""
        x = self.embed(x)
        x = checkpoint_seq(self.blocks, x) if self._checkpoints() else self.blocks(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify the result of `forward_features`."""
        if self.global_pool:
            x = global_pool_nlc(x, pool_type=self.global_pool, num_prefix_tokens=1)
        x = self.head_drop(self.fc_norm(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes)."""
        if self.ends_alone and self.global_pool == "token" and not self.training:
            x = class_token_alone(self.blocks[-1], self.blocks[:-1](self.embed(x)))
            return self.forward_head(self.norm(x))
        return self.forward_head(self.forward_features(x))

    def _checkpoints(self) -> bool:
        return self.grad_checkpointing and torch.is_grad_enabled() and not torch.jit.is_scripting()

    # --- features ----------------------------------------------------------------

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
        """Patch tokens behind some blocks, as timm's vision transformers give them (all at 1/16 of the image)."""
        check("output_fmt", output_fmt, Annotated[str, Choice(("NCHW", "NLC"))])
        take, last = feature_take_indices(len(self.blocks), indices)
        grid = self.tokens_to_token.grid_size
        x = self.embed(x)
        found = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = checkpoint(block, x, use_reentrant=False) if self._checkpoints() else block(x)
            if i in take:
                found.append(self.normed(x) if norm else x)
        maps: list[Any] = [t[:, 1:] for t in found]
        if output_fmt == "NCHW":
            maps = [t.transpose(1, 2).unflatten(2, grid).contiguous() for t in maps]
        if return_prefix_tokens:
            maps = [(one, t[:, :1]) for one, t in zip(maps, found, strict=True)]
        return maps if intermediates_only else (self.normed(x), maps)

    def normed(self, x: Tensor) -> Tensor:
        """`x` behind the final norm. Raises `BadInput` for tokens of another width than that of the last block."""
        if isinstance(self.norm, nn.LayerNorm) and x.shape[-1] != self.norm.normalized_shape[0]:
            raise BadInput(f"norm=True: tokens of {x.shape[-1]} channels have no norm; only those of the last block do")
        return self.norm(x)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what features of these blocks do not need; returns their indices."""
        take, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        width = self.feature_info[last]["num_chs"]
        if prune_norm or width != self.num_features:
            self.norm = nn.Identity()
        self.num_features = self.head_hidden_size = width
        if prune_head:
            self.reset_classifier(0, "")
        return take

    # --- what timm needs --------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new, randomly initialised classifier; 0 classes: none."""
        if global_pool is not None:
            check("global_pool", global_pool, Annotated[str, Choice(POOLS)])
            self.global_pool = global_pool
        self.num_classes = num_classes
        new = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.head = new.to(device=self.cls_token.device, dtype=self.cls_token.dtype).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def resized_table(self, name: str, table: Tensor, was: nn.Module) -> Tensor | None:
        """With `resize_positions="sinusoid"` the table of this model's size (`recipe.rebuilt`); None: interpolated."""
        if name != "pos_embed" or table.shape == self.pos_embed.shape:
            return None
        regenerated = self.tokens_to_token.resize_positions == "sinusoid"
        return sinusoid(self.pos_embed.shape[1], table.shape[2]).to(table) if regenerated else None

    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates."""
        return {
            "stem": r"^cls_token|tokens_to_token",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def fuse(self) -> T2TViT:
        """For deployment, in place: the same logits from fewer operations (eval mode only).

        The last soft split and the projection behind it become one convolution. Where the class token alone is
        classified and the blocks are plain ones, `forward` runs the last block for it alone: its query, its
        projection, its MLP. `forward_features` and `forward_intermediates` give all tokens as before.

        Raises:
            BadInput: the model is in training mode.
        """
        if self.training:
            raise BadInput("fuse() is for inference: call model.eval() first")
        self.tokens_to_token.fuse()
        self.ends_alone = isinstance(self.blocks[-1], Block) and type(self.blocks[-1].attn) is Attention
        return self


def class_token_alone(block: Any, x: Tensor) -> Tensor:
    """What a plain block makes of the class token, (B, N, C) -> (B, 1, C), and nothing else. Eval mode."""
    attn, normed = block.attn, block.norm1(x)
    weight, width, heads = attn.qkv.weight, attn.qkv.in_features, attn.num_heads  # plain numbers where fx traces
    q = F.linear(normed[:, :1], weight[:width]).unflatten(-1, (heads, -1)).transpose(1, 2)
    k, v = F.linear(normed, weight[width:]).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v, scale=attn.scale)
    x = x[:, :1] + attn.proj(y.transpose(1, 2).flatten(2))
    return x + block.mlp(block.norm2(x))


def sinusoid(positions: int, dim: int) -> Tensor:
    """Table of sines and cosines, (1, positions, dim) float32.

    Channel j of position p holds the sine (j even) or cosine (j odd) of p / 10000 ** (2 ⌊j/2⌋ / dim); positions count
    tokens in rows, the class token first.
    """
    channel = torch.arange(dim, dtype=torch.float64)
    rate = 10000 ** (-2 * (channel // 2) / dim)
    angle = torch.arange(positions, dtype=torch.float64).unsqueeze(1) * rate
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float().unsqueeze(0)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def plain_block(
    dim: int, num_heads: int, mlp_ratio: float, attention: type[nn.Module], drops: Mapping[str, float]
) -> Block:
    """timm's block without biases of q, k, v. Raises `BadInput` if the heads do not divide its width."""
    check_heads(dim, num_heads)
    parts: dict[str, Any] = {"norm_layer": LayerNorm, "attn_layer": attention, **drops}
    return Block(dim, num_heads, mlp_ratio, qkv_bias=False, **parts)


def check_heads(dim: int, num_heads: int) -> None:
    """Raise `BadInput` if a width is not that of whole heads."""
    if dim % num_heads:
        raise BadInput(f"num_heads is {num_heads}, which does not divide the width {dim}")
