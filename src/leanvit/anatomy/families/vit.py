"""The plain vision transformer, written once: embedding, blocks (`parts/blocks.py`), head, and what timm offers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from timm.layers import PatchDropout, PatchDropoutWithIndices, resample_abs_pos_embed
from timm.layers.patch_dropout import patch_dropout_forward
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from leanvit.anatomy.model import OpenModel
from leanvit.anatomy.parts.blocks import Block, apply_norm
from leanvit.anatomy.parts.maps import EMBED, Flow, as_map
from leanvit.anatomy.parts.pooling import AttentionPool
from leanvit.anatomy.parts.tokens import new_indices, with_prefix
from leanvit.anatomy.state import State
from leanvit.errors import BadInput, Refused


class OpenViT(OpenModel):
    """A vision transformer of the plain family."""

    family = "vit"
    isotropic = True
    PLAIN = True
    POOLS: ClassVar[tuple[str, ...]] = ("", "avg", "avgmax", "max", "token", "map")
    SETTINGS = ("global_pool", "num_prefix_tokens", "no_embed_class", "dynamic_img_size", "pool_include_prefix")
    JOINS_ALONE: ClassVar[bool] = True  # without positions, patches are copied even where no token joins: other strides
    POOL_READS_PREFIX: ClassVar[bool] = False  # whether attention pooling reads the prefix tokens too
    STEM: ClassVar[str] = "patch_embed"  # name of the child that makes the tokens
    STEM_PROJECTION: ClassVar[str] = "patch_embed.proj"  # the convolution or linear that gives them their width
    STEM_NORM: ClassVar[str] = "patch_embed.norm"  # the norm behind it; "": none
    patch_embed: Any
    cls_token: nn.Parameter | None
    pos_embed: Tensor | None  # a parameter, or a buffer where the table is fixed
    norm_pre: nn.Module
    pos_drop: nn.Module
    patch_drop: nn.Module
    norm: nn.Module
    attn_pool: AttentionPool | None
    fc_norm: nn.Module
    head_drop: nn.Module
    head: nn.Module
    head_dist: nn.Module
    embed_dim: int
    num_features: int
    head_hidden_size: int
    no_embed_class: bool
    dynamic_img_size: bool
    pool_include_prefix: bool
    distilled_training: bool
    global_pool: str

    def __init__(
        self,
        *,
        patch_embed: nn.Module,
        blocks: Iterable[Block],
        norm: nn.Module,
        heads: dict[str, nn.Module | None],
        tokens: dict[str, nn.Parameter | None],
        pos_embed: Tensor | None,
        extras: dict[str, nn.Module | None],
        attributes: dict[str, Any],
        source: nn.Module | None = None,
    ) -> None:
        """All parts come from an adapter, under the names that they have in timm.

        Args:
            heads: attn_pool (or None), fc_norm, head_drop, head and, when distilled, head_dist.
            tokens: cls_token, dist_token, reg_token, in the order of the sequence.
            extras: pos_drop, patch_drop, norm_pre, and what a subclass has besides (rope).
        """
        super().__init__(attributes=attributes, source=source)
        for key, token in {"cls_token": None, **tokens}.items():
            self.register_parameter(key, token)
        self.token_names = tuple(key for key, token in tokens.items() if token is not None)
        if pos_embed is None or isinstance(pos_embed, nn.Parameter):
            self.register_parameter("pos_embed", pos_embed)
        else:
            self.register_buffer("pos_embed", pos_embed)
        self.add_module(self.STEM, patch_embed)
        for key, part in extras.items():
            self.add_module(key, part)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        for key, part in heads.items():
            self.add_module(key, part)

    # --- running -----------------------------------------------------------------

    def start(self, images: Any, **context: Any) -> State:
        """The state at the door. Raises `BadInput` if the image does not fit the model."""
        ops = context.pop("ops", None) or self.ops
        height, width = ops.shape(images)[-2:]
        context.setdefault("positional", self.positional)
        return State(ops=ops, grid=self._grid(height, width), num_prefix=self.num_prefix_tokens, **context)

    def embed(self, images: Any, state: State) -> tuple[Any, State]:
        """Images to tokens: (B, C, H, W) -> (B, num_prefix + h w, D)."""
        ops, pe = state.ops, self.patch_embed
        images = self._padded(images, state)
        x = ops.conv("patch_embed.proj", pe.proj, images)  # (B, D, h, w)
        x = ops.rearrange("patch_embed.flatten", x, _flatten_grid)  # (B, h w, D)
        return self._with_positions(apply_norm(ops, "patch_embed.norm", pe.norm, x), state)

    def _with_positions(self, x: Any, state: State) -> tuple[Any, State]:
        """Patch tokens (B, h w, D) with the prefix tokens in front and positions added."""
        ops = state.ops
        table = self._position_table(state)
        if table is not None and self.no_embed_class:
            x = ops.add("pos_add", x, ops.param("pos_embed", table, x))
        if self.token_names or (table is None and self.JOINS_ALONE):
            x = ops.cat("tokens", [*(ops.expand(t, getattr(self, t), x) for t in self.token_names), x])
        if table is not None and not self.no_embed_class:
            x = ops.add("pos_add", x, ops.param("pos_embed", table, x))
        x, state = self._dropped(x, state, placed=table is not None)
        return apply_norm(ops, "norm_pre", self.norm_pre, x), state

    def _dropped(self, x: Any, state: State, *, placed: bool) -> tuple[Any, State]:
        """Dropout and patch dropout after the positions (`placed`: there is a table of them)."""
        if placed:
            x = state.ops.drop(self.pos_drop, x)
        drop = self.patch_drop
        if not isinstance(drop, PatchDropout | PatchDropoutWithIndices) or not drop.training:
            return state.ops.drop(drop, x), state
        whole, prefix = x, drop.num_prefix_tokens
        x, kept = patch_dropout_forward(x, drop.prob, prefix, drop.ordered, drop.training)
        if kept is None:  # (B, K) int64 positions of the patches that stay, None at rate 0
            return x, state
        if state.trace:
            state = state.with_(owner=new_indices(with_prefix(kept, prefix), whole.shape[1])[:, prefix:])
        return x, state.taken(kept).tapped(EMBED, whole)

    def run(self, x: Any, state: State, start: int = 0, stop: int | None = None) -> tuple[Any, State]:
        """Blocks `start` to `stop` (exclusive, default: all), like a slice."""
        for block in self.blocks[start:stop]:
            if self.grad_checkpointing and self.training and torch.is_grad_enabled():
                x, state = checkpoint(block, x, state, use_reentrant=False)
            else:
                x, state = block(x, state)
        return x, state

    def classify(self, x: Any, state: State) -> tuple[Any, State]:
        """Tokens after the last block to logits, (B, N, D) -> (B, classes). The seam after the last block."""
        x = apply_norm(state.ops, "norm", self.norm, x)
        return self._logits(x, state), state

    def trace_maps(
        self, images: Any, indices: int | Sequence[int] | None = None, *, norm: bool = False, **context: Any
    ) -> tuple[tuple[Any, ...], State]:
        taken, maps = self._taken_maps(indices), []
        flow = Flow.begin(self, images, **context)
        for i in range(taken[-1] + 1):
            flow = flow.through(self, i)
            if i in taken:
                x, state = flow.patches(f"maps.{i}.patches"), flow.state
                maps.append(as_map(state, f"maps.{i}", self._normed(x, state) if norm else x))
        return tuple(maps), flow.state

    def _map_levels(self) -> list[tuple[int, tuple[int, int]]]:
        rows, columns = self.patch_embed.patch_size
        return [(self.width_of(i), (rows, columns)) for i in range(len(self.blocks))]

    def _logits(self, x: Any, state: State, pre_logits: bool = False) -> Any:
        ops = state.ops
        if "dist_token" in self.token_names:
            return self._logits_distilled(x, state, pre_logits)
        x = self._pool(x, state)
        x = apply_norm(ops, "fc_norm", self.fc_norm, x)
        x = ops.drop(self.head_drop, x)
        return x if pre_logits or isinstance(self.head, nn.Identity) else ops.linear("head", self.head, x)

    def _logits_distilled(self, x: Any, state: State, pre_logits: bool) -> Any:
        """Two classifiers on two tokens; on the mean, both, where these tokens ended before (`drops_prefix`)."""
        ops = state.ops
        if self.global_pool == "avg":
            cls = dist = ops.drop(self.head_drop, self._pool(x, state))
        else:
            cls, dist = (ops.drop(self.head_drop, ops.rearrange(f"pool.{i}", x, _token_cut(i))) for i in (0, 1))
        if not pre_logits and not isinstance(self.head, nn.Identity):
            cls, dist = ops.linear("head", self.head, cls), ops.linear("head_dist", self.head_dist, dist)
            if self.distilled_training and self.training:
                return cls, dist
        return ops.scale("head_mean", ops.add("head_add", cls, dist), 0.5)

    def _pool(self, x: Any, state: State) -> Any:
        ops = state.ops
        if self.global_pool == "":
            return x
        if self.global_pool == "token":
            return ops.rearrange("pool", x, lambda t: t[:, 0])
        size = state.size
        if not (self.pool_include_prefix or (self.attn_pool is not None and self.POOL_READS_PREFIX)):
            first = state.num_prefix
            x = ops.rearrange("pool.patches", x, lambda t: t[:, first:])
            size = None if size is None else size[:, first:]
        if self.attn_pool is not None:
            return self.attn_pool(x, state, size)
        if self.global_pool == "avg":
            return ops.mean("pool", x, weights=size)
        if self.global_pool == "max":
            return ops.amax("pool", x)
        both = ops.add("pool.add", ops.amax("pool.max", x), ops.mean("pool.mean", x, weights=size))
        return ops.scale("pool", both, 0.5)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        pe = self.patch_embed
        (ph, pw), size = pe.patch_size, pe.img_size
        fixed = size is not None and getattr(pe, "strict_img_size", True)
        if fixed and (height, width) != tuple(size):
            raise BadInput(f"images are {height}x{width}, the model takes {size[0]}x{size[1]} (img_size of its root)")
        if pe.dynamic_img_pad:
            return -(-height // ph), -(-width // pw)
        if size is not None and not fixed and (height % ph or width % pw):
            raise BadInput(f"images are {height}x{width}: both sides must be multiples of the patch size {ph}x{pw}")
        return height // ph, width // pw

    def _padded(self, images: Any, state: State) -> Any:
        if not self.patch_embed.dynamic_img_pad:
            return images
        (ph, pw), (h, w) = self.patch_embed.patch_size, state.grid
        height, width = state.ops.shape(images)[-2:]
        return F.pad(images, (0, w * pw - width, 0, h * ph - height))

    def _position_table(self, state: State) -> Tensor | None:
        if self.pos_embed is None or not self.dynamic_img_size:
            return self.pos_embed
        prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        return resample_abs_pos_embed(
            self.pos_embed,
            new_size=list(state.grid),
            old_size=list(self.patch_embed.grid_size),
            num_prefix_tokens=prefix,
        )

    # --- what a timm model offers ------------------------------------------------

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens after the final norm, unpooled: (B, N, D)."""
        state = self.start(images)
        x, state = self.run(*self.embed(images, state))
        return apply_norm(state.ops, "norm", self.norm, x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """Pool and classify the result of `forward_features`."""
        if self.reduces_tokens and self.global_pool not in ("token", ""):
            raise Refused("forward_head cannot weigh merged tokens without the state of the run: call the model itself")
        state = State(ops=self.ops, grid=self.patch_embed.grid_size, num_prefix=self.num_prefix_tokens)
        return self._logits(x, state, pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Features of some blocks, as timm defines them; on the full grid also where tokens were reduced (see `maps`).

        Raises `Refused` for a block behind which that cannot be had.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise BadInput(f"output_fmt is {output_fmt!r}; accepted: 'NCHW', 'NLC'")
        take, last = feature_take_indices(len(self.blocks), indices)
        flow, maps, prefix = Flow.begin(self, x), [], []
        for i in range(last + 1 if stop_early else len(self.blocks)):
            flow = flow.through(self, i)
            if i in take:
                found = flow.patches(f"maps.{i}.patches"), flow.x[:, : self.num_prefix_tokens]
                patches, front = (self._normed(part, flow.state) if norm else part for part in found)
                maps.append(as_map(flow.state, f"maps.{i}", patches) if output_fmt == "NCHW" else patches)
                prefix.append(front)
        if output_dict:
            named: dict[str, Any] = {"image_intermediates": maps}
            if return_prefix_tokens and self.num_prefix_tokens:
                named["image_intermediates_prefix"] = prefix
            if not intermediates_only:
                named["image_features"] = self._normed(flow.x, flow.state)
            return named
        both = list(zip(maps, prefix, strict=True)) if return_prefix_tokens and self.num_prefix_tokens else maps
        return both if intermediates_only else (self._normed(flow.x, flow.state), both)

    def _normed(self, x: Any, state: State) -> Any:
        return apply_norm(state.ops, "norm", self.norm, x)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what features of these blocks do not need; returns their indices."""
        take, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, "" if "dist_token" not in self.token_names else None)
        return take

    def get_classifier(self) -> Any:
        return (self.head, self.head_dist) if "dist_token" in self.token_names else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new, randomly initialised classifier; 0 classes: none."""
        distilled = "dist_token" in self.token_names
        accepted = ("", "token") if distilled else self.POOLS
        accepted = tuple(p for p in accepted if p != "map" or self.attn_pool is not None)
        if global_pool is not None:
            if global_pool not in accepted or (global_pool == "token" and "class_token" not in self.traits()):
                raise BadInput(f"global_pool is {global_pool!r}; this model accepts {', '.join(map(repr, accepted))}")
            self.global_pool = global_pool
            if global_pool != "map":
                self.attn_pool = None
        self.num_classes = num_classes
        self.classes = ()
        for name in ("head", "head_dist") if distilled else ("head",):
            like = self.pos_embed if self.pos_embed is not None else self.patch_embed.proj.weight
            new = nn.Linear(self.embed_dim, num_classes) if num_classes > 0 else nn.Identity()
            setattr(self, name, new.to(device=like.device, dtype=like.dtype).train(self.training))

    def set_distilled_training(self, enable: bool = True) -> None:
        self.distilled_training = enable

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token", "reg_token", "dist_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates, as timm's."""
        return {
            "stem": r"^cls_token|dist_token|reg_token|pos_embed|patch_embed|norm_pre",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    # --- what methods and the recipe use -----------------------------------------

    def width_refusal(self) -> str:
        if not self.plain:
            return "it is not of the plain family"
        if not all(block.plain for block in self.blocks):
            return "its norms stand behind attention and MLP"
        return "its attention pooling is as wide as the stream" if self.attn_pool is not None else ""

    def width_of(self, block: int) -> int:
        self.block(block)
        return int(self.embed_dim)

    def classified_tokens(self) -> tuple[int, ...]:
        if "dist_token" in self.token_names:
            return (0, 1)
        return (0,) if self.global_pool == "token" and self.cls_token is not None else ()

    def input_size(self) -> tuple[int, int, int]:
        pe = self.patch_embed
        if pe.img_size is None:
            raise BadInput("the model has no fixed img_size: give the input size")
        return (pe.proj.in_channels, *pe.img_size)

    def probe_size(self) -> tuple[int, int, int]:
        pe = self.patch_embed
        height, width = pe.img_size or [8 * side for side in pe.patch_size]
        return pe.proj.in_channels, height, width

    def make(self) -> dict[str, Any]:
        pe = self.patch_embed
        sizes: dict[str, Any] = {
            f"{self.STEM}.patch_size": tuple(pe.patch_size),
            f"{self.STEM}.img_size": pe.img_size and tuple(pe.img_size),
        }
        if self.attn_pool is not None:
            sizes["attn_pool"] = (self.attn_pool.heads, self.attn_pool.scale, self.attn_pool.pool)
        return super().make() | sizes


def _flatten_grid(t: Tensor) -> Tensor:
    return t.flatten(2).transpose(1, 2)


def _token_cut(i: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t[:, i]
