"""Heads of exits: local perception (LPH), global aggregation (GAH), and a plain linear one (arXiv 2308.00255, 3.2).

A head takes the tokens after a block, not normalised, (B, N, C), and gives logits (B, classes) and its features
(B, n, C'), whose mean over tokens is added to the class token. Pooled models have no class token to add; Swin's heads
normalise the features before the mean. Everything runs through the op set, so quantizers see the heads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanvit.anatomy import Attention, OpenModel, Ops, State
from leanvit.errors import BadInput, Refused
from leanvit.knobs import Choice, Rule, Words

HEADS = 8  # of a global head's attention, whatever the width (published)
LOCAL = ("lph_dw", "lph_pw")
_GLOBAL = re.compile(r"gah([1-9]\d?)")
KINDS = (*LOCAL, "gah1", "gah2", "gah3", "linear")


# --- maps of features ------------------------------------------------------------


class LocalMap(nn.Module):
    """LPH: conv1x1, GELU, norm; in the deep form a depthwise 3x3, GELU, norm; conv1x1, norm; plus what came in.

    Activation comes before the norm; nothing is expanded.
    """

    def __init__(self, name: str, width: int, *, depthwise: bool) -> None:
        super().__init__()
        self.name = name
        self.conv1, self.norm1 = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)
        self.conv_dw = nn.Conv2d(width, width, 3, padding=1, groups=width) if depthwise else None
        self.norm_dw = nn.BatchNorm2d(width) if depthwise else None
        self.conv2, self.norm2 = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)
        self.act = nn.GELU()

    def forward(self, x: Any, state: State) -> Any:
        """Patch tokens (B, h w, C) -> (B, h w, C)."""
        ops, at = state.ops, self.name
        x, shortcut = ops.clone(f"{at}.clone", ops.rearrange(f"{at}.grid", x, _as_grid(state.grid)))
        x = ops.act(f"{at}.act1", self.act, ops.conv(f"{at}.conv1", self.conv1, x))
        x = ops.norm(f"{at}.norm1", self.norm1, x)
        if self.conv_dw is not None and self.norm_dw is not None:
            x = ops.act(f"{at}.act_dw", self.act, ops.conv(f"{at}.conv_dw", self.conv_dw, x))
            x = ops.norm(f"{at}.norm_dw", self.norm_dw, x)
        x = ops.norm(f"{at}.norm2", self.norm2, ops.conv(f"{at}.conv2", self.conv2, x))
        return ops.rearrange(f"{at}.flat", ops.add(f"{at}.add", shortcut, x), _as_tokens)


class FoldedLocalMap(nn.Module):
    """A `LocalMap` in eval mode whose norms are in its convolutions: three convolutions and two activations.

    The norm before the depthwise convolution stands before its zero padding, so what its shift gives differs at the
    border: a constant (C, h, w) takes the place of the bias.
    """

    def __init__(self, source: LocalMap, grid: tuple[int, int]) -> None:
        super().__init__()
        self.name, self.act = source.name, source.act
        self.conv1 = source.conv1
        scale, shift = _affine(source.norm1)
        self.conv_dw: nn.Conv2d | None = None
        self.bias_dw: Tensor | None
        self.register_buffer("bias_dw", None)
        if source.conv_dw is not None and source.norm_dw is not None:
            width = len(scale)
            dw = source.conv_dw
            bias = dw.bias if dw.bias is not None else torch.zeros_like(shift)
            constant = shift[:, None, None].expand(1, width, *grid)
            self.bias_dw = F.conv2d(constant, dw.weight, bias, padding=1, groups=width)
            self.conv_dw = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
            self.conv_dw.weight = nn.Parameter(dw.weight * scale[:, None, None, None], requires_grad=False)
            scale, shift = _affine(source.norm_dw)
        self.conv2 = _folded_conv(source.conv2, scale, shift, *_affine(source.norm2))

    def forward(self, x: Any, state: State) -> Any:
        """Patch tokens (B, h w, C) -> (B, h w, C)."""
        ops, at = state.ops, self.name
        x = shortcut = ops.rearrange(f"{at}.grid", x, _as_grid(state.grid))
        x = ops.act(f"{at}.act1", self.act, ops.conv(f"{at}.conv1", self.conv1, x))
        if self.conv_dw is not None:
            x = ops.add(f"{at}.bias_dw", ops.conv(f"{at}.conv_dw", self.conv_dw, x), self.bias_dw)
            x = ops.act(f"{at}.act_dw", self.act, x)
        x = ops.conv(f"{at}.conv2", self.conv2, x)
        return ops.rearrange(f"{at}.flat", ops.add(f"{at}.add", shortcut, x), _as_tokens)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a batch norm does in eval mode: scale and shift, (C,) each."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale.detach(), (norm.bias - norm.running_mean * scale).detach()


@torch.no_grad()
def _folded_conv(conv: nn.Conv2d, scale: Tensor, shift: Tensor, after: Tensor, plus: Tensor) -> nn.Conv2d:
    """A 1x1 convolution between a norm (scale, shift) on its input and one (after, plus) on its output, as one."""
    new = nn.Conv2d(conv.in_channels, conv.out_channels, 1).to(conv.weight)
    bias = conv.bias if conv.bias is not None else torch.zeros_like(plus)
    new.weight.copy_(conv.weight * scale[None, :, None, None] * after[:, None, None, None])
    new.bias = nn.Parameter((conv.weight[:, :, 0, 0] @ shift + bias) * after + plus)
    return new.requires_grad_(False)


class GlobalMap(Attention):
    """GAH(s): plain attention among every s-th row and column of the grid; no residual, no norm.

    Tokens are picked, not averaged (published: average pooling with a kernel of 1).
    """

    def __init__(self, name: str, width: int, *, stride: int) -> None:
        if width % HEADS:
            raise Refused(f"a global head has {HEADS} heads: the width {width} is not divisible by them")
        super().__init__(
            name=name,
            qkv=nn.Linear(width, 3 * width, bias=False),
            proj=nn.Linear(width, width),
            heads=HEADS,
            qk_dim=width // HEADS,
            v_dim=width // HEADS,
            scale=(width // HEADS) ** -0.5,
        )
        self.stride = stride

    def forward(self, x: Any, state: State, needs: frozenset[str] = frozenset()) -> Any:
        """Patch tokens (B, h w, C) -> (B, ⌈h/s⌉ ⌈w/s⌉, C)."""
        if self.stride > 1:
            x = state.ops.rearrange(f"{self.name}.picked", x, picked(state.grid, self.stride))
        return super().forward(x, state, needs)[0]


def picked(grid: tuple[int, int], stride: int) -> Callable[[Tensor], Tensor]:
    """Every stride-th row and column, from the first: (B, h w, C) -> (B, ⌈h/s⌉ ⌈w/s⌉, C)."""
    return lambda t: t.unflatten(1, grid)[:, ::stride, ::stride].flatten(1, 2)


def _as_grid(grid: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    return lambda t: t.transpose(1, 2).unflatten(2, grid)


def _as_tokens(t: Tensor) -> Tensor:
    return t.flatten(2).transpose(1, 2)


def build_map(name: str, kind: str, width: int) -> nn.Module | None:
    """The map of a kind of head; None for a linear one."""
    if kind in LOCAL:
        return LocalMap(name, width, depthwise=kind == "lph_dw")
    stride = stride_of(kind)
    return GlobalMap(name, width, stride=stride) if stride else None


def stride_of(kind: str) -> int:
    """The stride of a global head, 0 of others."""
    found = _GLOBAL.fullmatch(kind)
    return int(found[1]) if found else 0


_GlobalKind = Annotated[str, Rule(lambda kind: stride_of(kind) > 0)]
HeadKind = Annotated[Annotated[str, Choice(KINDS)] | _GlobalKind, Words("lph_dw, lph_pw, gah<stride> or linear")]


# --- heads -----------------------------------------------------------------------


class ExitHead(nn.Module):
    """A map of features with the classifiers of one exit.

    `tokens`: positions of the tokens that are classified, each with a classifier of its own; their logits are averaged.
    Empty: one classifier on the mean of the features alone.
    """

    def __init__(
        self, name: str, kind: str, width: int, classes: int, *, tokens: Sequence[int], norm: bool = False
    ) -> None:
        super().__init__()
        self.name, self.kind, self.tokens = name, kind, tuple(tokens)
        self.map = build_map(f"{name}.map", kind, width)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.classifiers = nn.ModuleList(nn.Linear(width, classes) for _ in range(max(len(self.tokens), 1)))

    def forward(self, x: Any, state: State) -> tuple[Any, Any]:
        """Tokens (B, N, C) -> logits (B, classes) and features (B, n, C), those of a linear head None."""
        ops, at = state.ops, self.name
        first = state.num_prefix
        patches = ops.rearrange(f"{at}.patches", x, lambda t: t[:, first:]) if first else x
        features = None if self.map is None else self.map(patches, state)
        pooled = None
        if features is not None or not self.tokens:
            spread = patches if features is None else features
            if not isinstance(self.norm, nn.Identity):
                spread = ops.norm(f"{at}.norm", self.norm, spread)
            pooled = ops.mean(f"{at}.pool", spread)
        return self._logits(x, pooled, ops), features

    def _logits(self, x: Any, pooled: Any, ops: Ops) -> Any:
        at, found = self.name, []
        for i, classifier in enumerate(self.classifiers):
            token = pooled
            if self.tokens:
                token = ops.rearrange(f"{at}.token{i}", x, _cut(self.tokens[i]))
                token = token if pooled is None else ops.add(f"{at}.add{i}", pooled, token)
            found.append(ops.linear(f"{at}.classifiers.{i}", classifier, token))
        if len(found) == 1:
            return found[0]
        return ops.scale(f"{at}.mean", ops.add(f"{at}.sum", *found), 1 / len(found))

    @torch.no_grad()
    def folded(self, grid: tuple[int, int]) -> nn.Module:
        """The same head with its norms in its convolutions, for tokens of this grid; shares all other weights."""
        if not isinstance(self.map, LocalMap):
            return self
        new = ExitHead.__new__(ExitHead)
        nn.Module.__init__(new)
        new.name, new.kind, new.tokens = self.name, self.kind, self.tokens
        new.map, new.norm, new.classifiers = FoldedLocalMap(self.map, grid), self.norm, self.classifiers
        return new.train(self.training)


def _cut(place: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t[:, place]


def build_heads(model: OpenModel, rows: Sequence[tuple[int, str]]) -> list[ExitHead]:
    """Heads for (blocks passed, kind) on a model, with fresh weights.

    Raises `Refused` for a model that has no such exits (named with the reason).
    """
    check_model(model)
    like = next(p for p in model.parameters() if p.is_floating_point())
    with torch.device(like.device):
        heads = [
            ExitHead(
                f"exits.heads.{i}",
                kind,
                model.width_of(layer - 1),
                model.num_classes,
                tokens=model.classified_tokens(),
                norm=model.hierarchical,  # there the tokens of a stage have passed no norm
            )
            for i, (layer, kind) in enumerate(rows)
        ]
    return [head.to(like.dtype) for head in heads]


def check_model(model: OpenModel) -> None:
    """Raise `Refused` unless exits can be put into this model."""
    if not len(model.blocks):
        raise Refused(f"lgvit puts exits into plain ViTs and Swins, not into the family {model.family}")
    if not model.num_classes:
        raise Refused("lgvit classifies at its exits, and this model has no classes")
    if model.global_pool == "":
        raise Refused("lgvit needs logits (B, classes), and this model does not pool (global_pool '')")


def parse_rows(exits: Sequence[int], heads: Sequence[str], depth: int) -> list[tuple[int, str]]:
    """(blocks passed, kind of head) of each exit. Raises `BadInput` where they do not rise, or leave the depth."""
    if len(exits) != len(heads):
        raise BadInput(f"there are {len(heads)} heads for {len(exits)} exits; accepted: one an exit")
    for before, layer in zip((0, *exits), exits, strict=False):
        if layer <= before:
            raise BadInput(f"exits is {tuple(exits)!r}; accepted: blocks passed, from 1, each more than the last")
    if exits and exits[-1] >= depth:
        raise BadInput(f"exits holds {exits[-1]}; accepted: 1 to {depth - 1} (the model has {depth} blocks)")
    return list(zip(exits, heads, strict=True))
