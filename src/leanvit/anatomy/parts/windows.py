"""Attention in windows of a grid of tokens (`arithmetic/partition.py` cuts the grid and puts it back).

Grids that the windows do not divide are padded at the bottom and on the right. Where the padding enters, and whether it
is attended to, is a fact of the family, named by `PADDINGS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from leanvit.anatomy.arithmetic.partition import Windows
from leanvit.anatomy.arithmetic.score import Phases
from leanvit.anatomy.parts.blocks import Attention
from leanvit.anatomy.state import State
from leanvit.errors import Refused, unknown

PADDINGS = {
    "tokens": "zero tokens before the projection, so padded keys are its bias; attended to (Swin, EfficientTAM)",
    "projections": "zero queries, keys and values after the projection; attended to (ViT-CoMer)",
    "masked": "padding that nothing attends to",
}


class WindowAttention(Attention):
    """Attention among the tokens of a window: (B, rows columns, C) -> the same, with `state.grid` (rows, columns).

    Inside, sequences are windows: score terms, `keys` and the op set see (B windows, heads, area, d), and
    `state.windows` describes how they were cut.
    """

    PLAIN = True
    PRUNABLE = True
    PLACED = True
    windowed = True
    shift_mask: Tensor

    def __init__(
        self,
        *,
        window: tuple[int, int],
        shift: tuple[int, int] = (0, 0),
        padding: str = "tokens",
        grid: tuple[int, int] | None = None,
        **parts: Any,
    ) -> None:
        """`parts` are those of `Attention`.

        Args:
            window, shift: (rows, columns); a shift moves the grid towards the top left before it is cut.
            padding: one of `PADDINGS`.
            grid: the grid that the model is built for, whose shift mask is kept; other grids get theirs as they come.
        """
        super().__init__(**parts)
        if padding not in PADDINGS:
            raise unknown("padding", padding, PADDINGS)
        self.window, self.shift, self.padding = window, shift, padding
        self.grid = grid
        weight = self.proj.weight
        self.keep("shift_mask", torch.zeros(0, dtype=weight.dtype, device="cpu"))
        if grid is not None and any(shift):
            self.keep("shift_mask", self.cut(grid).shift_mask(self.shift_mask.device, weight.dtype))

    def keep(self, name: str, constant: Tensor) -> None:
        """A constant that moves with the module and is in no state dict, so never on the meta device: none fills it."""
        weight = self.proj.weight
        self.register_buffer(name, constant if weight.is_meta else constant.to(weight.device), persistent=False)

    def cut(self, grid: tuple[int, int], images: int = 1) -> Windows:
        return Windows(grid, self.window, self.shift, images)

    def forward(self, x: Any, state: State, needs: frozenset[str] = frozenset()) -> tuple[Any, State]:
        ops, at = state.ops, self.name
        images, tokens = ops.shape(x)[:2]
        self._check(tokens, state, needs)
        windows = self.cut(state.grid, images)
        state = state.with_(windows=windows)
        if self.padding == "projections":  # `weigh` cuts and puts back
            x, state = super().forward(x, state, needs)
        else:
            x = ops.rearrange(f"{at}.partition", x, windows.partition)
            x, state = super().forward(x, state, needs)
            x = ops.rearrange(f"{at}.reverse", x, windows.reverse)
        return x, state if "keys" in needs else state.with_(windows=None)

    def weigh(
        self, q: Any, k: Any, v: Any, state: State, needs: frozenset[str], dropout: nn.Module | None = None
    ) -> tuple[Any, State]:
        if self.padding != "projections":
            return super().weigh(q, k, v, state, needs, dropout)
        ops, at, windows = state.ops, self.name, state.windows
        assert windows is not None
        q, k, v = (
            ops.rearrange(f"{at}.{letter}_partition", t, _for_heads(windows.partition))
            for letter, t in zip("qkv", (q, k, v), strict=True)
        )
        x, state = super().weigh(q, k, v, state, needs, dropout)
        return ops.rearrange(f"{at}.reverse", x, _for_heads(windows.reverse)), state

    def own_phases(self, state: State) -> Phases:
        """The shift mask, additive as in Swin, and the mask of padding where it is masked."""
        windows, phases = state.windows, Phases()
        assert windows is not None
        if any(self.shift):
            kept = self.shift_mask
            apart = kept if state.grid == self.grid else windows.shift_mask(kept.device, kept.dtype)
            phases = phases.with_(bias=apart.unsqueeze(1).repeat(windows.images, 1, 1, 1))  # (B n, 1, area, area)
        if self.padding == "masked" and any(windows.padding):  # every window holds a token: no row of scores is empty
            inside = windows.inside(self.shift_mask.device)[:, None, None]
            phases = phases.with_(mask=inside.repeat(windows.images, 1, 1, 1))
        return phases

    def _check(self, tokens: int, state: State, needs: frozenset[str]) -> None:
        if "cls_attn" in needs:
            raise Refused(f"{self.name} attends in windows: there is no class token to give the attention of")
        if state.num_prefix or tokens != state.grid[0] * state.grid[1]:
            raise Refused(
                f"{self.name} attends in windows and needs the full grid of {state.grid[0]}x{state.grid[1]} tokens and "
                f"no others; it was given {tokens}, {state.num_prefix} of them prefix tokens"
            )


def _for_heads(move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A move of (B, N, C) for (B, heads, N, d)."""

    def moved(t: Tensor) -> Tensor:
        heads = t.shape[1]
        return move(t.transpose(1, 2).flatten(2)).unflatten(2, (heads, -1)).transpose(1, 2)

    return moved
