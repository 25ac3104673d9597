"""Which units to close: units in groups by rank, one threshold over the groups of all lists (arXiv 2110.04869).

Within a list units are sorted by score and cut into groups of equal size; a group's score is the sum of its units'. The
group with the highest score of a list is never closed, so no list runs empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from leanvit.prune.nvit.units import Layout

GROUP_SIZES = {"embed": 16, "head": 2, "qk": 8, "v": 8, "mlp": 16}


@dataclass(frozen=True)
class Group:
    """Units of one list, worst first. `last`: the best group of its list, which stays."""

    units: str  # name of the list
    members: Tensor  # (n,) int64 numbers of units within the list
    score: float
    last: bool


def clamped(sizes: Mapping[str, int], layout: Layout) -> dict[str, int]:
    """Group sizes by kind, made smaller where a list would not have two whole ones: 3 heads go one by one."""
    out = dict(sizes)
    for units in layout.lists:
        out[units.kind] = max(1, min(out[units.kind], units.size // 2))
    return out


def groups(layout: Layout, scores: Tensor, gates: Tensor, sizes: Mapping[str, int]) -> list[Group]:
    """All groups of all lists.

    scores: (total,) saliencies, latency term included. gates: (total,) bool, open units; closed ones sort first, so
    that the group that stays holds open units. sizes: units in a group by kind; the last one of a list may be smaller.
    """
    values, is_open = layout.split(scores.double().cpu()), layout.split(gates.cpu())
    out = []
    for units in layout.lists:
        ranked = _ascending(values[units.name], is_open[units.name])
        chunks = ranked.split(sizes[units.kind])
        for i, members in enumerate(chunks):
            score = float(values[units.name][members].sum())
            out.append(Group(units.name, members, score, last=i == len(chunks) - 1))
    return out


def _ascending(values: Tensor, is_open: Tensor) -> Tensor:
    """Numbers of units, closed ones first, then by score; ties in order."""
    by_score = values.argsort(stable=True)
    return by_score[is_open[by_score].long().argsort(stable=True)]


def due(step: int, per_step: int, total: int) -> int:
    """Groups to have closed after pruning step `step` (from 0): 1, then `step` x `per_step`, up to all of them."""
    return max(0, min(total - 1, step * per_step - 1)) + 1


def threshold(all_groups: Iterable[Group], count: int) -> float:
    """The `count`-th smallest score of a group."""
    ranked = sorted(group.score for group in all_groups)
    return ranked[min(count, len(ranked)) - 1]


def closed_below(
    layout: Layout,
    all_groups: Iterable[Group],
    gates: Tensor,
    limit: float,
    least: Mapping[str, int] | None = None,
) -> Tensor:
    """Gates (total,) bool after every group with a score up to `limit` is closed, except the last one of each list.

    least: units that lists keep in any case, by name.
    """
    new = gates.clone()
    views = layout.split(new)
    for group in all_groups:
        if group.score > limit or group.last:
            continue
        view = views[group.units]
        if int(view.sum() - view[group.members].sum()) >= (least or {}).get(group.units, 1):
            view[group.members] = False
    return new


def open_counts(layout: Layout, gates: Tensor) -> dict[str, int]:
    """Open units of each list."""
    return {name: int(view.sum()) for name, view in layout.split(gates).items()}


def least_counts(layout: Layout, sizes: Mapping[str, int]) -> dict[str, int]:
    """Units that each list keeps at least: its last group."""
    return {units.name: (units.size - 1) % sizes[units.kind] + 1 for units in layout.lists}


def all_open(layout: Layout) -> Tensor:
    return torch.ones(layout.total, dtype=torch.bool)
