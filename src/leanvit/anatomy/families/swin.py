"""Swin and Swin V2 opened: stages of window attention with patch merging between, and what timm offers of them.

Tokens travel as (B, N, C) with `state.grid` (rows, columns) of the stage, so a step in a slot acts as on a plain ViT.
The parts are in `anatomy/families/swin_parts.py` and `anatomy/parts/windows.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leanvit.anatomy.families.swin_parts import PlacedPatchEmbed, Stage
from leanvit.anatomy.model import OpenModel
from leanvit.anatomy.parts.blocks import Block, apply_norm
from leanvit.anatomy.parts.maps import as_map
from leanvit.anatomy.state import State
from leanvit.errors import BadInput, Refused

POOLS = ("", "avg", "avgmax", "max")


class OpenSwin(OpenModel):
    """A vision transformer of the Swin family.

    `blocks` is the flat sequence of blocks over all stages; they live in `layers.<stage>.blocks`. A stage begins with
    its patch merging, which `run` does before the stage's first block.
    """

    family = "swin"
    hierarchical = True
    SETTINGS = ("global_pool", "dynamic_img_size")
    no_decay: ClassVar[tuple[str, ...]] = ("relative_position_bias_table", "cpb_mlp", "logit_scale")
    patch_embed: Any
    layers: Any
    norm: nn.Module
    head: Any
    global_pool: str
    embed_dim: Any
    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]

    def __init__(
        self,
        *,
        patch_embed: nn.Module,
        layers: Iterable[Stage],
        norm: nn.Module,
        head: nn.Module,
        attributes: dict[str, Any],
        source: nn.Module | None = None,
    ) -> None:
        """All parts come from an adapter, under the names that they have in timm."""
        super().__init__(attributes={"num_prefix_tokens": 0, "cls_token": None, **attributes}, source=source)
        self.patch_embed = patch_embed
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = head

    @property
    def reads_positions(self) -> bool:
        return True

    # --- running -----------------------------------------------------------------

    @property
    def blocks(self) -> list[Block]:  # type: ignore[override]
        return [block for stage in self.layers for block in stage.blocks]

    def start(self, images: Any, **context: Any) -> State:
        ops = context.pop("ops", None) or self.ops
        height, width = ops.shape(images)[-2:]
        return State(ops=ops, grid=self._grid(height, width), num_prefix=0, **context)

    def embed(self, images: Any, state: State) -> tuple[Any, State]:
        """Images to tokens: (B, C, H, W) -> (B, h w, D)."""
        ops, pe = state.ops, self.patch_embed
        x = ops.conv("patch_embed.proj", pe.proj, images)  # (B, D, h, w)
        x = ops.rearrange("patch_embed.flatten", x, lambda t: t.flatten(2).transpose(1, 2))
        x = apply_norm(ops, "patch_embed.norm", pe.norm, x)
        if isinstance(pe, PlacedPatchEmbed):
            x = ops.add("pos_add", x, ops.param("patch_embed.pos_embed", pe.pos_embed, x))
        return x, state

    def run(self, x: Any, state: State, start: int = 0, stop: int | None = None) -> tuple[Any, State]:
        """Blocks `start` to `stop` (exclusive, default: all), like a slice; a stage's first block merges patches."""
        blocks, merging = self.blocks, self._merging()
        for i in range(len(blocks))[start:stop]:
            if i in merging:
                x, state = merging[i](x, state)
            if self.grad_checkpointing and self.training and torch.is_grad_enabled():
                x, state = checkpoint(blocks[i], x, state, use_reentrant=False)
            else:
                x, state = blocks[i](x, state)
        return x, state

    def classify(self, x: Any, state: State) -> tuple[Any, State]:
        """Tokens after the last block to logits, (B, N, C) -> (B, classes). The seam after the last block."""
        x = apply_norm(state.ops, "norm", self.norm, x)
        return self._logits(x, state), state

    def trace_maps(
        self, images: Any, indices: int | Sequence[int] | None = None, *, norm: bool = False, **context: Any
    ) -> tuple[tuple[Any, ...], State]:
        taken, ends = self._taken_maps(indices), [0, *self.stage_ends()]
        state = self.start(images, **context)
        x, state = self.embed(images, state)
        maps = []
        for i in range(taken[-1] + 1):
            x, state = self.run(x, state, ends[i], ends[i + 1])
            if i in taken:
                normed = norm and i == len(self.layers) - 1
                y = apply_norm(state.ops, "norm", self.norm, x) if normed else x
                maps.append(as_map(state, f"maps.{i}", y))
        return tuple(maps), state

    def map_refusal(self) -> str:
        reduced = [block.name for block in self.blocks if block.reduces_tokens]
        reason = f"steps take tokens away in {reduced[0]}, and a stage needs its full grid" if reduced else ""
        return super().map_refusal() or reason

    def _map_levels(self) -> list[tuple[int, tuple[int, int]]]:
        (rows, columns), levels = self.patch_embed.patch_size, []
        for stage, end in zip(self.layers, self.stage_ends(), strict=True):
            if not isinstance(stage.downsample, nn.Identity):
                rows, columns = 2 * rows, 2 * columns
            levels.append((self.width_of(end - 1), (rows, columns)))
        return levels

    def stage_ends(self) -> list[int]:
        """Blocks up to the end of each stage: `run(x, state, 0, stage_ends()[i])` gives the output of stage i."""
        ends, total = [], 0
        for stage in self.layers:
            total += len(stage.blocks)
            ends.append(total)
        return ends

    def _merging(self) -> dict[int, Any]:
        """Patch mergings by the index of the block that they precede."""
        starts = [0, *self.stage_ends()[:-1]]
        return {
            i: stage.downsample
            for i, stage in zip(starts, self.layers, strict=True)
            if not isinstance(stage.downsample, nn.Identity)
        }

    def _logits(self, x: Any, state: State, pre_logits: bool = False) -> Any:
        ops, head = state.ops, self.head
        x = ops.drop(head.drop, self._pool(x, state))
        return x if pre_logits or isinstance(head.fc, nn.Identity) else ops.linear("head.fc", head.fc, x)

    def _pool(self, x: Any, state: State) -> Any:
        ops, at = state.ops, "head.global_pool"
        if self.global_pool == "":
            return ops.rearrange(at, x, lambda t: t.unflatten(1, state.grid))  # NHWC, as timm's
        if self.global_pool == "avg":
            return ops.mean(at, x, weights=state.size)
        if self.global_pool == "max":
            return ops.amax(at, x)
        mean = ops.scale(f"{at}.half_mean", ops.mean(f"{at}.mean", x, weights=state.size), 0.5)
        return ops.add(at, mean, ops.scale(f"{at}.half_max", ops.amax(f"{at}.max", x), 0.5))

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        pe = self.patch_embed
        (ph, pw), size = pe.patch_size, pe.img_size
        if pe.strict_img_size and (height, width) != tuple(size):
            raise BadInput(f"images are {height}x{width}, the model takes {size[0]}x{size[1]} (img_size of its root)")
        if height % ph or width % pw:
            raise BadInput(f"images are {height}x{width}: both sides must be multiples of the patch size {ph}x{pw}")
        return height // ph, width // pw

    # --- what a timm model offers ------------------------------------------------

    def forward_features(self, images: Tensor) -> Tensor:
        """The last stage's tokens after the final norm, as a map: (B, h, w, C)."""
        state = self.start(images)
        x, state = self.run(*self.embed(images, state))
        return apply_norm(state.ops, "norm", self.norm, x).unflatten(1, state.grid)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """Pool and classify the result of `forward_features`, (B, h, w, C)."""
        state = State(ops=self.ops, grid=(x.shape[1], x.shape[2]), num_prefix=0)
        return self._logits(x.flatten(1, 2), state, pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Outputs of some stages as (B, C, h, w), as timm defines them; `norm` concerns the last stage only."""
        if output_fmt != "NCHW":
            raise BadInput(f"output_fmt is {output_fmt!r}; accepted: 'NCHW'")
        take, last = feature_take_indices(len(self.layers), indices)
        ends, final = self.stage_ends(), len(self.layers) - 1
        state = self.start(x)
        tokens, state = self.embed(x, state)
        maps, begin = [], 0
        for i, end in enumerate(ends[: last + 1] if stop_early else ends):
            tokens, state = self.run(tokens, state, begin, end)
            begin = end
            done = apply_norm(state.ops, "norm", self.norm, tokens) if i == final else tokens
            if i in take:
                self._refuse_lost_grid(i, tokens, state)
                taken = done if norm else tokens
                maps.append(taken.unflatten(1, state.grid).permute(0, 3, 1, 2).contiguous())
        return maps if intermediates_only else (done.unflatten(1, state.grid), maps)

    def _refuse_lost_grid(self, i: int, tokens: Tensor, state: State) -> None:
        if tokens.shape[1] != state.num_patches:
            raise Refused(
                f"stage {i} gives {tokens.shape[1]} tokens, not {state.num_patches}: a step left no full grid for "
                "forward_intermediates"
            )

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what features of these stages do not need; returns their indices."""
        take, last = feature_take_indices(len(self.layers), indices)
        shorter = last < len(self.layers) - 1
        self.layers = self.layers[: last + 1]
        if prune_norm or shorter:
            self.norm = nn.Identity()
        if shorter:
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or shorter:
            self.reset_classifier(0, "")
        return take

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new, randomly initialised classifier; 0 classes: none."""
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in POOLS:
            raise BadInput(f"global_pool is {pool!r}; this model accepts {', '.join(map(repr, POOLS))}")
        if pool == "" and num_classes:
            raise BadInput(f"global_pool is '' with {num_classes} classes: unpooled maps go with 0 classes")
        like = self.layers[0].blocks[0].norm1.weight
        self.head.in_features = self.num_features
        self.head.reset(num_classes, pool_type=global_pool)
        self.head.to(device=like.device, dtype=like.dtype).train(self.training)
        self.num_classes, self.global_pool, self.classes = num_classes, pool, ()
        self.head_hidden_size = self.head.num_features

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if any(key in name for key in self.no_decay)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates, as timm's."""
        fine = [
            (r"^layers\.(\d+).downsample", (0,)),
            (r"^layers\.(\d+)\.\w+\.(\d+)", None),
            (r"^norm", (99999,)),
        ]
        return {"stem": r"^patch_embed", "blocks": r"^layers\.(\d+)" if coarse else fine}

    # --- what methods and the recipe use -----------------------------------------

    def width_refusal(self) -> str:
        return "its width changes from stage to stage through the patch mergings"

    def grids(self) -> list[tuple[int, int]]:
        """(rows, columns) of tokens in each block, at the size that the model was built for."""
        grid, grids = tuple(self.patch_embed.grid_size), []
        for stage in self.layers:
            if not isinstance(stage.downsample, nn.Identity):
                grid = (grid[0] + 1) // 2, (grid[1] + 1) // 2
            grids += [grid] * len(stage.blocks)
        return grids

    def input_size(self) -> tuple[int, int, int]:
        pe = self.patch_embed
        return (pe.proj.in_channels, *pe.img_size)

    def make(self) -> dict[str, Any]:
        pe = self.patch_embed
        made = super().make()
        made |= {"patch_embed.patch_size": tuple(pe.patch_size), "patch_embed.img_size": tuple(pe.img_size)}
        for block in self.blocks:
            made[f"{block.attn.name} (windows)"] = (block.attn.window, block.attn.shift, block.attn.padding)
        return made
