"""ToMe in windows: merge for the MLP, un-merge after it, so that the grid stays full (Swin, Swin V2).

ToMe (Bolya et al., arXiv 2210.09461) shortens the sequence for good, which windows and patch merging cannot bear: they
need the grid. So the r most similar pairs of each window, by the keys of its attention, merge for the MLP alone, and
every token then adds the branch of the token that it was merged into to its own residual, as in ToMe for Stable
Diffusion (Bolya and Hoffman, arXiv 2303.17604).

What is saved: r of the area's MLP applications in each window, 2 r C hidden MACs a window; attention and patch merging
keep their cost, and the matching adds area^2/4 d. Sizes never outlive a block, so attention stays what it was and is
not made proportional.

Tokens of one window that only a cyclic shift brought together may merge. The shift mask forbids them to attend to each
other, because a window's positions mean nothing across the seam; merging compares what tokens hold, whatever their
place, as ToMe does over a whole image, and each token keeps its residual. Padding of a window weighs nothing in a mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from leanvit.anatomy import OpenModel, State, Step
from leanvit.anatomy.arithmetic.partition import Windows
from leanvit.anatomy.parts.tokens import take_tokens
from leanvit.anatomy.surgery.steps import insert_step
from leanvit.errors import BadInput, Refused
from leanvit.tokens.tome.matching import match, merge, shares, summed_keys

NOTHING = 1e-9  # weight of padding in a mean: not 0, or a mean of padding alone would be 0/0


@dataclass(frozen=True)
class Merged:
    """What `MergeInWindows` leaves for `UnmergeInWindows` of the same block."""

    x: Any  # (B, N, C) the tokens before
    merged: Any  # (B, n (area - r), C) what went into the MLP's residual branch
    indices: Tensor  # (B n, area) int64: which token of its window's rest stands for each place
    windows: Windows


class MergeInWindows(Step):
    """Merges r pairs in each window; nothing where padding makes the windows longer than the grid that they cover."""

    needs: ClassVar[frozenset[str]] = frozenset({"keys"})
    reduces: ClassVar[bool] = True
    source: ClassVar[str] = "tome"

    def __init__(self, name: str, *, r: int) -> None:
        super().__init__()
        self.name, self.r = name, r

    def forward(self, x: Any, state: State) -> tuple[Any, State]:
        windows, keys, ops = state.windows, state.keys, state.ops
        if windows is None or keys is None:
            raise BadInput(f"{self.name}: no windows in the state; the step belongs into `between` of their block")
        if not saves(windows, self.r):
            return x, state
        size = torch.where(windows.inside(keys.device), 1.0, NOTHING).repeat(windows.images, 1)  # (B n, area)
        matching = match(summed_keys(keys), self.r, keep_order=False)
        share, _ = shares(matching, size)
        cut = ops.rearrange(f"{self.name}.windows", x, windows.partition)
        merged = ops.mix(f"{self.name}.merge", cut, lambda t: merge(t, matching, share))  # (B n, area - r, C)
        merged = ops.rearrange(f"{self.name}.row", merged, lambda t: t.unflatten(0, (-1, windows.number)).flatten(1, 2))
        carried = Merged(x, merged, matching.indices(), windows)
        state = state.with_(extra={**state.extra, self.name: carried}).tapped(f"{self.name}.merged", matching.source)
        if state.trace:
            state = state.tapped(f"{self.name}.owner", owners(carried))
        return merged, state


class UnmergeInWindows(Step):
    """Gives each token the MLP's branch of the token that stood for it."""

    restores: ClassVar[bool] = True
    source: ClassVar[str] = "tome"

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Any, state: State) -> tuple[Any, State]:
        carried: Merged | None = state.extra.get(self.name)
        if carried is None:
            return x, state
        ops, windows = state.ops, carried.windows
        branch = ops.add(f"{self.name}.branch", x, ops.scale(f"{self.name}.less", carried.merged, -1.0))
        branch = ops.rearrange(f"{self.name}.unmerge", branch, lambda t: restored(t, carried.indices, windows))
        x = ops.add(f"{self.name}.restored", carried.x, branch)
        rest = {key: value for key, value in state.extra.items() if key != self.name}
        return x, state.with_(extra=rest)


def saves(windows: Windows, r: int) -> bool:
    """Whether the windows' rests are fewer tokens than the grid has."""
    return windows.number * (windows.area - r) < windows.grid[0] * windows.grid[1]


def restored(x: Tensor, indices: Tensor, windows: Windows) -> Tensor:
    """(B, n rest, C) by indices (B n, area) -> (B, rows columns, C): each token the one that stands for it."""
    rests = x.unflatten(1, (windows.number, -1)).flatten(0, 1)  # (B n, rest, C)
    return windows.reverse(take_tokens(rests, indices))


def owners(carried: Merged) -> Tensor:
    """(B, N) int64: which token of the MLP's sequence stands for each token of the grid."""
    windows = carried.windows
    rest = carried.merged.shape[1] // windows.number
    first = torch.arange(windows.number, device=carried.indices.device).repeat(windows.images).unsqueeze(1) * rest
    return windows.reverse((carried.indices + first).unsqueeze(-1))[..., 0]


def put(model: OpenModel, rows: Sequence[tuple[int, int]], *, prop_attn: bool) -> None:
    """Put both steps into the blocks of `rows`, (block, r). Sizes reach no attention, so `prop_attn` changes nothing.

    Raises:
        BadInput: more pairs than a window holds, or so few that a padded grid would cost more than it saves.
        Refused: a block that attends globally, or that merges already.
    """
    for index, r in rows:
        if r:
            block = model.blocks[index]
            _check(block, r)
            insert_step(model, index, "between", MergeInWindows(block.name, r=r))
            insert_step(model, index, "after", UnmergeInWindows(block.name), first=True)


def misses(model: OpenModel, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Nothing: how many tokens merge in a window depends on how the grid is cut."""
    return []


def _check(block: Any, r: int) -> None:
    attn = block.attn
    if not attn.windowed:
        raise Refused(f"{block.name} attends globally and others in windows: tome merges in one of the two ways")
    (high, wide), most = attn.window, attn.window[0] * attn.window[1] // 2
    if r > most:
        raise BadInput(f"r of {block.name} is {r}; accepted: 0 to {most}, half of its window of {high}x{wide}")
    if attn.grid is None:
        return
    windows = attn.cut(attn.grid)
    if not saves(windows, r):
        rows, columns = attn.grid
        least = windows.area - (rows * columns - 1) // windows.number
        accepted = f"accepted: {least} to {most}, or 0" if least <= most else "accepted: 0"
        raise BadInput(
            f"r of {block.name} is {r}, which saves nothing: its grid of {rows}x{columns} is padded to "
            f"{windows.number} windows of {high}x{wide}; {accepted}"
        )
