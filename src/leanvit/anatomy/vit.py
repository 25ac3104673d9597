"""The plain vision transformer, written once against the operations of `anatomy/ops.py`.

Parts are given, not built: an adapter hands over the children of a timm model under their own names, so state-dict
keys stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, cast

import torch
from timm.layers import resample_abs_pos_embed
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from leanvit.anatomy.ops import TORCH, Ops
from leanvit.anatomy.score import NO_PHASES, Term, attend, score_rows
from leanvit.anatomy.state import State
from leanvit.errors import BadInput, Refused


class Step(nn.Module):
    """Something a method puts into a slot of a block: `(x (B, N, C), state) -> (x, state)`.

    `needs` names what the attention of the block must leave in the state for it (`"cls_attn"`, `"keys"`);
    `reduces` says that fewer tokens come out than go in; `source` is the slug of the method that put it there.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    reduces: ClassVar[bool] = False
    source: ClassVar[str] = ""


class Attention(nn.Module):
    """Multi-head self-attention whose number of heads and whose q/k and v widths are its own.

    `qkv` gives [q (heads x qk_dim), k (heads x qk_dim), v (heads x v_dim)]. `scale` is stored: it does not follow
    the width when the attention is pruned.
    """

    qkv: Any
    proj: Any
    gate: Any

    def __init__(
        self,
        *,
        name: str,
        qkv: nn.Module,
        proj: nn.Module,
        heads: int,
        qk_dim: int,
        v_dim: int,
        scale: float,
        fused: bool = True,
        scale_on_q: bool = True,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        norm: nn.Module | None = None,
        gate: nn.Module | None = None,
        attn_drop: nn.Module | None = None,
        proj_drop: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.heads, self.qk_dim, self.v_dim, self.scale = heads, qk_dim, v_dim, scale
        self.fused, self.scale_on_q = fused, scale_on_q
        self.terms: tuple[Term, ...] = ()
        self.qkv = qkv
        self.q_norm = q_norm or nn.Identity()
        self.k_norm = k_norm or nn.Identity()
        self.attn_drop = attn_drop or nn.Identity()
        self.norm = norm or nn.Identity()
        self.gate = gate
        self.proj = proj
        self.proj_drop = proj_drop or nn.Identity()

    def forward(self, x: Any, state: State, needs: frozenset[str] = frozenset()) -> tuple[Any, State]:
        """(B, N, C) -> (B, N, C); leaves what `needs` asks for in the state."""
        ops, at = state.ops, self.name
        gate = None
        if self.gate is not None:
            gate = ops.sigmoid(f"{at}.gate_act", ops.linear(f"{at}.gate", self.gate, x))
        qkv = ops.linear(f"{at}.qkv", self.qkv, x)
        q, k, v = self.split_heads(ops, qkv)
        q, k = _norm(ops, f"{at}.q_norm", self.q_norm, q), _norm(ops, f"{at}.k_norm", self.k_norm, k)

        phases = NO_PHASES
        for term in self.terms:
            phases = term(phases, state)
        out, weights = attend(
            ops,
            at,
            q,
            k,
            v,
            scale=self.scale,
            phases=phases,
            fused=self.fused,
            scale_on_q=self.scale_on_q,
            dropout=self.attn_drop if isinstance(self.attn_drop, nn.Dropout) else None,
        )
        if "cls_attn" in needs:
            first = slice(0, 1)
            if weights is None or ops.rows_apart:
                row = score_rows(q[:, :, first], k, scale=self.scale, phases=phases.rows(first))
            else:
                row = weights[:, :, first]
            state = state.with_(cls_attn=row[:, :, 0, state.num_prefix :].mean(dim=1))  # (B, N - prefix)
        if "keys" in needs:
            state = state.with_(keys=k)

        x = ops.rearrange(f"{at}.merge", out, merge_heads)  # (B, H, N, d) -> (B, N, H d)
        x = _norm(ops, f"{at}.norm", self.norm, x)
        if gate is not None:
            x = ops.mul(f"{at}.gated", x, gate)
        x = ops.linear(f"{at}.proj", self.proj, x)
        return ops.drop(self.proj_drop, x), state

    def split_heads(self, ops: Ops, qkv: Any) -> tuple[Any, Any, Any]:
        """(B, N, heads (2 qk_dim + v_dim)) -> q, k (B, heads, N, qk_dim) and v (B, heads, N, v_dim)."""
        qk = self.heads * self.qk_dim
        cuts = ((0, qk, self.qk_dim), (qk, 2 * qk, self.qk_dim), (2 * qk, None, self.v_dim))
        q, k, v = (
            ops.rearrange(f"{self.name}.{letter}", qkv, _head_cut(start, stop, self.heads, width))
            for letter, (start, stop, width) in zip("qkv", cuts, strict=True)
        )
        return q, k, v


def _head_cut(start: int, stop: int | None, heads: int, width: int) -> Callable[[Tensor], Tensor]:
    def cut(t: Tensor) -> Tensor:
        return t[..., start:stop].unflatten(-1, (heads, width)).transpose(1, 2)

    return cut


def merge_heads(t: Tensor) -> Tensor:
    return t.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Two linears with an activation between: `(x (B, N, C), state) -> (x, state)`."""

    fc1: Any
    fc1_g: Any
    fc1_x: Any
    act: nn.Module
    drop1: nn.Module
    norm: nn.Module
    fc2: Any
    drop2: nn.Module

    def __init__(self, *, name: str, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.name = name
        for key, part in parts.items():  # fc1, act, drop1, norm, fc2, drop2
            self.add_module(key, part)

    def forward(self, x: Any, state: State) -> tuple[Any, State]:
        x = self.hidden(x, state)
        ops, at = state.ops, self.name
        x = ops.drop(self.drop1, x)
        x = _norm(ops, f"{at}.norm", self.norm, x)
        x = ops.linear(f"{at}.fc2", self.fc2, x)
        return ops.drop(self.drop2, x), state

    def hidden(self, x: Any, state: State) -> Any:
        ops, at = state.ops, self.name
        return ops.act(f"{at}.act", self.act, ops.linear(f"{at}.fc1", self.fc1, x))


class PackedGluMlp(Mlp):
    """Gated MLP whose first linear gives value and gate in one tensor (timm's `GluMlp`, `SwiGLUPacked`)."""

    def __init__(self, *, name: str, parts: dict[str, nn.Module], gate_last: bool) -> None:
        super().__init__(name=name, parts=parts)
        self.gate_last = gate_last

    def hidden(self, x: Any, state: State) -> Any:
        ops, at = state.ops, self.name
        both = ops.linear(f"{at}.fc1", self.fc1, x)
        first = ops.rearrange(f"{at}.first", both, lambda t: t.chunk(2, dim=-1)[0])
        second = ops.rearrange(f"{at}.second", both, lambda t: t.chunk(2, dim=-1)[1])
        if self.gate_last:
            return ops.mul(f"{at}.gated", first, ops.act(f"{at}.act", self.act, second))
        return ops.mul(f"{at}.gated", ops.act(f"{at}.act", self.act, first), second)


class SplitGluMlp(Mlp):
    """Gated MLP with two first linears, `fc1_g` and `fc1_x` (timm's `SwiGLU`)."""

    def hidden(self, x: Any, state: State) -> Any:
        ops, at = state.ops, self.name
        gate = ops.act(f"{at}.act", self.act, ops.linear(f"{at}.fc1_g", self.fc1_g, x))
        return ops.mul(f"{at}.gated", gate, ops.linear(f"{at}.fc1_x", self.fc1_x, x))


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP, each on a residual branch, and three slots for steps."""

    def __init__(
        self,
        *,
        name: str,
        norm1: nn.Module,
        attn: Attention,
        norm2: nn.Module,
        mlp: nn.Module,
        ls1: nn.Module | None = None,
        ls2: nn.Module | None = None,
        drop_path1: nn.Module | None = None,
        drop_path2: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.norm1, self.attn = norm1, attn
        self.ls1, self.drop_path1 = ls1 or nn.Identity(), drop_path1 or nn.Identity()
        self.norm2, self.mlp = norm2, mlp
        self.ls2, self.drop_path2 = ls2 or nn.Identity(), drop_path2 or nn.Identity()
        self.before, self.between, self.after = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()

    def forward(self, x: Any, state: State | None = None) -> tuple[Any, State]:
        if state is None:
            raise BadInput(f"{self.name} was called without a state: use model.run(x, state) or model(images)")
        ops, at = state.ops, self.name
        needs = self.needs
        x, state = _take(self.before, x, state)

        branch, shortcut = ops.clone(f"{at}.clone1", x)
        branch = _norm(ops, f"{at}.norm1", self.norm1, branch)
        branch, state = self.attn(branch, state, needs)
        branch = _layer_scale(ops, f"{at}.ls1", self.ls1, branch)
        x = ops.add(f"{at}.add1", shortcut, ops.drop(self.drop_path1, branch))

        x, state = _take(self.between, x, state)
        if needs:
            state = state.with_(cls_attn=None, keys=None)

        branch, shortcut = ops.clone(f"{at}.clone2", x)
        branch = _norm(ops, f"{at}.norm2", self.norm2, branch)
        state = state.with_(tokens=(*state.tokens, ops.shape(branch)[1]))
        branch, state = self.mlp(branch, state)
        branch = _layer_scale(ops, f"{at}.ls2", self.ls2, branch)
        x = ops.add(f"{at}.add2", shortcut, ops.drop(self.drop_path2, branch))

        x, state = _take(self.after, x, state)
        return x, state.tapped(at, x)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(step.needs for step in self.steps()))

    def steps(self) -> Iterable[Step]:
        for slot in (self.before, self.between, self.after):
            yield from cast("Iterable[Step]", slot)


def _take(slot: nn.ModuleList, x: Any, state: State) -> tuple[Any, State]:
    for step in slot:
        x, state = step(x, state)
    return x, state


def _norm(ops: Ops, site: str, module: nn.Module, x: Any) -> Any:
    return x if isinstance(module, nn.Identity) else ops.norm(site, module, x)


def _layer_scale(ops: Ops, site: str, module: nn.Module, x: Any) -> Any:
    return x if isinstance(module, nn.Identity) else ops.mul(site, x, module.gamma)


class OpenViT(nn.Module):
    """A vision transformer of the plain family whose inside can be reached.

    Made by `leanvit.anatomy.open_model`. Children and parameters carry the names that they have in timm.
    `history` is set by the recipe once methods were applied.
    """

    family = "vit"
    ops: Any  # an `Ops`; one that is an nn.Module is a child
    blocks: Any  # nn.ModuleList of `Block`
    patch_embed: Any
    cls_token: nn.Parameter | None
    pos_embed: nn.Parameter | None
    norm_pre: nn.Module
    pos_drop: nn.Module
    patch_drop: nn.Module
    norm: nn.Module
    fc_norm: nn.Module
    head_drop: nn.Module
    head: nn.Module
    head_dist: nn.Module
    embed_dim: int
    num_features: int
    head_hidden_size: int
    num_prefix_tokens: int
    num_classes: int
    no_embed_class: bool
    dynamic_img_size: bool
    pool_include_prefix: bool
    distilled_training: bool
    grad_checkpointing: bool
    global_pool: str

    def __init__(
        self,
        *,
        patch_embed: nn.Module,
        blocks: Iterable[Block],
        norm: nn.Module,
        heads: dict[str, nn.Module],
        tokens: dict[str, nn.Parameter | None],
        pos_embed: nn.Parameter | None,
        extras: dict[str, nn.Module],
        attributes: dict[str, Any],
        source: nn.Module | None = None,
    ) -> None:
        """All parts come from an adapter, under the names that they have in timm.

        Args:
            heads: fc_norm, head_drop, head and, when distilled, head_dist.
            tokens: cls_token, dist_token, reg_token, in the order of the sequence.
            extras: pos_drop, patch_drop, norm_pre.
            attributes: timm's public attributes.
            source: the timm model, for `close_model`.
        """
        super().__init__()
        for key, token in {"cls_token": None, **tokens}.items():
            self.register_parameter(key, token)
        self.token_names = tuple(key for key, token in tokens.items() if token is not None)
        self.register_parameter("pos_embed", pos_embed)
        self.patch_embed = patch_embed
        for key, part in extras.items():
            self.add_module(key, part)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        for key, part in heads.items():
            self.add_module(key, part)
        for key, value in attributes.items():
            setattr(self, key, value)
        self.ops = TORCH
        self.history: Any = None
        self._source = (source,)  # in a tuple, so that the closed model is not a child of the opened one

    # --- running -----------------------------------------------------------------

    def forward(self, images: Any, **context: Any) -> Any:
        """(B, C, H, W) -> logits (B, classes). `context` are the context fields of `State` (keep_rate, task, ...)."""
        return self.trace(images, **context)[0]

    def trace(self, images: Any, **context: Any) -> tuple[Any, State]:
        """Logits and the final state of one run."""
        state = self.start(images, **context)
        x, state = self.embed(images, state)
        x, state = self.run(x, state)
        return self.classify(x, state)

    def start(self, images: Any, **context: Any) -> State:
        """The state at the door. Raises `BadInput` if the image does not fit the model."""
        ops = context.pop("ops", None) or self.ops
        height, width = ops.shape(images)[-2:]
        return State(ops=ops, grid=self._grid(height, width), num_prefix=self.num_prefix_tokens, **context)

    def embed(self, images: Any, state: State) -> tuple[Any, State]:
        """Images to tokens: (B, C, H, W) -> (B, num_prefix + h w, D)."""
        ops, pe = state.ops, self.patch_embed
        images = self._padded(images, state)
        x = ops.conv("patch_embed.proj", pe.proj, images)  # (B, D, h, w)
        x = ops.rearrange("patch_embed.flatten", x, _flatten_grid)  # (B, h w, D)
        x = _norm(ops, "patch_embed.norm", pe.norm, x)
        table = self._position_table(state)
        if table is not None and self.no_embed_class:
            x = ops.add("pos_add", x, ops.param("pos_embed", table, x))
        if self.token_names:
            x = ops.cat("tokens", [*(ops.expand(t, getattr(self, t), x) for t in self.token_names), x])
        if table is not None and not self.no_embed_class:
            x = ops.add("pos_add", x, ops.param("pos_embed", table, x))
        if table is not None:
            x = ops.drop(self.pos_drop, x)
        x = ops.drop(self.patch_drop, x)
        return _norm(ops, "norm_pre", self.norm_pre, x), state

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
        x = _norm(state.ops, "norm", self.norm, x)
        return self._logits(x, state), state

    def _logits(self, x: Any, state: State, pre_logits: bool = False) -> Any:
        ops = state.ops
        if "dist_token" in self.token_names:
            return self._logits_distilled(x, ops, pre_logits)
        x = self._pool(x, state)
        x = _norm(ops, "fc_norm", self.fc_norm, x)
        x = ops.drop(self.head_drop, x)
        return x if pre_logits or isinstance(self.head, nn.Identity) else ops.linear("head", self.head, x)

    def _logits_distilled(self, x: Any, ops: Ops, pre_logits: bool) -> Any:
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
        if not self.pool_include_prefix:
            first = state.num_prefix
            x = ops.rearrange("pool.patches", x, lambda t: t[:, first:])
            size = None if size is None else size[:, first:]
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
        return _norm(state.ops, "norm", self.norm, x)

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
        """Features of some blocks, as timm defines them. Refused where tokens were removed: the grid is then lost."""
        if output_fmt not in ("NCHW", "NLC"):
            raise BadInput(f"output_fmt is {output_fmt!r}; accepted: 'NCHW', 'NLC'")
        take, last = feature_take_indices(len(self.blocks), indices)
        state = self.start(x)
        tokens, state = self.embed(x, state)
        maps = []
        for i in range(last + 1 if stop_early else len(self.blocks)):
            tokens, state = self.run(tokens, state, i, i + 1)
            if i in take:
                self._refuse_lost_grid(i, tokens, state)
                maps.append(_norm(state.ops, "norm", self.norm, tokens) if norm else tokens)
        prefix = [m[:, : self.num_prefix_tokens] for m in maps]
        maps = [m[:, self.num_prefix_tokens :] for m in maps]
        if output_fmt == "NCHW":
            maps = [m.unflatten(1, state.grid).permute(0, 3, 1, 2).contiguous() for m in maps]
        if output_dict:
            named: dict[str, Any] = {"image_intermediates": maps}
            if return_prefix_tokens and self.num_prefix_tokens:
                named["image_intermediates_prefix"] = prefix
            if not intermediates_only:
                named["image_features"] = _norm(state.ops, "norm", self.norm, tokens)
            return named
        found = list(zip(maps, prefix, strict=True)) if return_prefix_tokens and self.num_prefix_tokens else maps
        return found if intermediates_only else (_norm(state.ops, "norm", self.norm, tokens), found)

    def _refuse_lost_grid(self, i: int, tokens: Tensor, state: State) -> None:
        expected = state.num_prefix + state.num_patches
        if tokens.shape[1] != expected:
            raise Refused(
                f"block {i} gives {tokens.shape[1]} tokens, not {expected}: token reduction left no full grid for "
                "forward_intermediates; ask for earlier blocks, or use the dense root"
            )

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
        accepted = ("", "token") if distilled else ("", "avg", "avgmax", "max", "token")
        if global_pool is not None:
            if global_pool not in accepted or (global_pool == "token" and self.cls_token is None):
                raise BadInput(f"global_pool is {global_pool!r}; this model accepts {', '.join(map(repr, accepted))}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        for name in ("head", "head_dist") if distilled else ("head",):
            like = self.pos_embed if self.pos_embed is not None else self.patch_embed.proj.weight
            new = nn.Linear(self.embed_dim, num_classes) if num_classes > 0 else nn.Identity()
            setattr(self, name, new.to(device=like.device, dtype=like.dtype).train(self.training))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

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

    # --- what methods and the recipe ask -----------------------------------------

    @property
    def reduces_tokens(self) -> bool:
        return any(step.reduces for block in self.blocks for step in cast(Block, block).steps())

    def traits(self) -> frozenset[str]:
        """What this model offers to the next method (see `recipe/compat.py`)."""
        has = {
            "class_token": self.cls_token is not None,
            "full_grid": not self.reduces_tokens,
            "float": self.ops.float_weights,
            "static_tokens": True,
        }
        return frozenset(name for name, true in has.items() if true)

    @torch.no_grad()
    def patch_tokens(self) -> list[int]:
        """Patch tokens (fused and merged ones too) in each block's MLP, run on one image of the model's own size."""
        like = next(self.parameters())
        _, state = self.trace(torch.zeros(1, *self.input_size(), device=like.device, dtype=like.dtype))
        return [n - self.num_prefix_tokens for n in state.tokens]

    @property
    def precision(self) -> str | None:
        """How the op set computes, where that is not what the tensors' dtypes say."""
        return self.ops.precision

    def set_ops(self, ops: Ops) -> None:
        """Install an op set for every later run; one that is a module becomes part of the state dict, as `ops`."""
        del self.ops
        self.ops = ops

    def sites(self) -> dict[str, nn.Module]:
        """Every convolution and linear that the text runs, by site."""
        return {
            name: module
            for name, module in self.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and not name.startswith("ops.")
        }

    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W) that the model was built for."""
        pe = self.patch_embed
        if pe.img_size is None:
            raise BadInput("the model has no fixed img_size: give the input size")
        return (pe.proj.in_channels, *pe.img_size)


def _flatten_grid(t: Tensor) -> Tensor:
    return t.flatten(2).transpose(1, 2)


def _token_cut(i: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t[:, i]
