"""Closing units until a figure is met: the target, whether it can be reached, and the last, exact pruning step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from leanvit.errors import Refused
from leanvit.prune.nvit.cost import Figure, gains
from leanvit.prune.nvit.groups import (
    Group,
    all_open,
    closed_below,
    groups,
    least_counts,
    open_counts,
    threshold,
)
from leanvit.prune.nvit.units import Layout

TOLERANCE = 0.01  # a target is met when the figure is at most that, and less than this share of it below


@dataclass(frozen=True)
class Target:
    """A figure, as a share of the dense model's, and how units are ranked on the way to it."""

    kind: str  # "macs", "params" or "latency"
    ratio: float  # asked for, of the dense model
    figure: Figure
    units: Layout
    sizes: Mapping[str, int]  # units in a group, by kind
    eta: float
    kept: Mapping[str, int] = field(default_factory=dict)  # units that lists keep in any case: what a table covers

    @property
    def least(self) -> dict[str, int]:
        """Units that each list keeps at least: its last group, or what a latency table covers."""
        return {name: max(n, self.kept.get(name, 1)) for name, n in least_counts(self.units, self.sizes).items()}

    @property
    def dense(self) -> float:
        return self.figure.total(self.units.dims())

    def reached(self, gates: Tensor) -> float:
        """The figure with `gates` (total,) bool open, as a share of the dense model's."""
        return self.figure.total(open_counts(self.units, gates)) / self.dense

    def lowered(self, scores: Tensor, gates: Tensor) -> Tensor:
        """(total,) float64: scores minus `eta` times what a unit saves at the present widths."""
        saved = gains(self.units, self.figure, open_counts(self.units, gates), self.dense, self.kept)
        return scores.double().cpu() - self.eta * saved


def pruning_step(target: Target, scores: Tensor, gates: Tensor, count: int, goal: float) -> tuple[Tensor, bool]:
    """Close the `count` worst groups, or as much of them as the goal takes.

    goal: share of the dense figure to reach. Returns the gates and whether the goal is reached.
    """
    lowered = target.lowered(scores, gates)
    ranked = groups(target.units, lowered, gates, target.sizes)
    closed = closed_below(target.units, ranked, gates, threshold(ranked, count), target.kept)
    if target.reached(closed) > goal:
        return closed, False
    return reach(target, lowered, gates, goal), True


def reach(target: Target, lowered: Tensor, gates: Tensor, goal: float) -> Tensor:
    """Close groups from the worst on, and single units where a group is too much, until the goal is just met.

    For a latency single units come last, when no whole group fits any more: runtimes favour round widths.
    The result is at most `goal` and at least `goal (1 - TOLERANCE)`, where the model's units are fine enough.
    """
    gates, dims, dense = gates.clone(), open_counts(target.units, gates), target.dense
    views = target.units.split(gates)
    low, high = goal * (1 - TOLERANCE) * dense, goal * dense

    def close(units: str, members: Tensor) -> bool:
        """Close these unless the figure would fall below the goal; whether it is met now."""
        still = members[views[units][members]]
        less = {**dims, units: dims[units] - len(still)}
        enough = less[units] >= target.kept.get(units, 1)
        if len(still) and enough and target.figure.total(less) >= low:
            views[units][still] = False
            dims.update(less)
        return target.figure.total(dims) <= high

    if target.figure.total(dims) <= high:
        return gates
    ranked = sorted(groups(target.units, lowered, gates, target.sizes), key=lambda g: g.score)
    candidates = _in_order([g for g in ranked if not g.last], whole_first=target.kind == "latency")
    for units, members in candidates:
        if close(units, members):
            break
    return gates


def _in_order(ranked: Sequence[Group], *, whole_first: bool) -> Iterator[tuple[str, Tensor]]:
    """List and members of what may be closed next: each group, then its single units; or all groups before them."""
    if whole_first:
        yield from ((group.units, group.members) for group in ranked)
    for group in ranked:
        yield group.units, group.members
        yield from ((group.units, unit[None]) for unit in group.members)


def check_reachable(target: Target) -> None:
    """Raise `Refused`, with what can be reached, for a target below it, or finer than the model's units allow."""
    least = target.figure.total({**target.units.dims(), **target.least}) / target.dense
    if least > target.ratio:
        shown = math.ceil(least * 1000) / 1000
        raise Refused(
            f"{target.kind} is {target.ratio}, but this model can be cut to {shown:g} at the least: each list keeps "
            "one group of its units, or what its latency table covers. Give that or more, other kinds or smaller groups"
        )
    gates = all_open(target.units)
    rehearsed = target.reached(reach(target, torch.zeros(target.units.total), gates, target.ratio))
    if abs(rehearsed / target.ratio - 1) > TOLERANCE:
        raise Refused(
            f"{target.kind} is {target.ratio}, but units of this model are too coarse to meet it within "
            f"{TOLERANCE:.0%}: {rehearsed:.3f} can be reached. Give that, or let nvit cut MLP units too"
        )


def pace(target: Target, pruning_steps: int) -> int:
    """Groups to close at each pruning step so that the last of them is nearly due when the target is met."""
    counts = {units.name: -(-units.size // target.sizes[units.kind]) for units in target.units.lists}
    least = target.least

    def share(kept: float) -> float:
        return target.figure.total({u.name: max(least[u.name], round(kept * u.size)) for u in target.units.lists})

    kept = _bisected(share, target.ratio * target.dense)
    return max(1, math.ceil((1 - kept) * sum(counts.values()) / max(1, pruning_steps - 1)))


def _bisected(figure: Callable[[float], float], goal: float) -> float:
    """The share of units at which a rising figure meets the goal."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if figure(middle) > goal else (middle, high)
    return low
