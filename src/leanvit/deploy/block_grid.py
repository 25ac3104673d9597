"""Where a latency table is measured: nodes in each dimension, and the graphs that have to be timed for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from leanvit.errors import BadInput
from leanvit.knobs import check_fields
from leanvit.measure.latency_table import Ascending, BlockShape


@dataclass(frozen=True)
class Nodes:
    """Where a table is measured: ascending whole numbers for each dimension. Between them it is linear."""

    tokens: Ascending
    embed: Ascending
    heads: Ascending
    width: Ascending  # of one head: q·k and v
    mlp: Ascending

    def __post_init__(self) -> None:
        check_fields(self, "Nodes.")

    @classmethod
    def of(cls, shapes: list[BlockShape], embed: int) -> Nodes:
        """Nodes that cover pruning down to 1 head, widths of 8 and a quarter of the residual stream.

        Sequence lengths are those that occur; of more than three, the least, the middle one and the most.
        """
        lengths = sorted({n for s in shapes for n in (s.tokens, s.attn_tokens) if n})
        if len(lengths) > 3:
            lengths = [lengths[0], lengths[len(lengths) // 2], lengths[-1]]
        most = {name: max(getattr(s, name) for s in shapes) for name in ("heads", "qk", "v", "mlp")}
        return cls(
            tokens=tuple(lengths),
            embed=_spread(embed, (0.25, 0.5)),
            heads=tuple(sorted({1, most["heads"], *([most["heads"] // 2] if most["heads"] > 3 else [])})),
            width=_spread(max(most["qk"], most["v"]), (0, 0.25, 0.5, 0.75)),
            mlp=_spread(most["mlp"], (0, 0.25, 0.5, 0.75)),
        )

    def require(self, shapes: list[BlockShape], embed: int) -> None:
        """Raises `BadInput` unless the nodes cover these blocks; the dimension is named."""
        requested = {
            "embed": {embed},
            "tokens": {n for s in shapes for n in (s.tokens, s.attn_tokens) if n},
            "heads": {s.heads for s in shapes},
            "width": {n for s in shapes for n in (s.qk, s.v)},
            "mlp": {s.mlp for s in shapes},
        }
        for name, values in requested.items():
            nodes = getattr(self, name)
            outside = sorted(value for value in values if not nodes[0] <= value <= nodes[-1])
            if outside:
                raise BadInput(
                    f"Nodes.{name} covers {nodes[0]} to {nodes[-1]}; the model itself has {outside[0]}, and what its "
                    "token steps cost is separated from its own time"
                )


def _spread(most: int, shares: tuple[float, ...]) -> tuple[int, ...]:
    """Nodes at these shares of a width and at the width itself, on multiples of 8 where kernels change.

    The least is 8 (2 of a width below 32): NViT prunes no further, and OpenVINO's int8 fails on heads of width 1.
    """
    step = 8 if most >= 32 else 1
    least = 8 if most >= 32 else 2
    return tuple(sorted({min(most, max(least, round(most * share / step) * step)) for share in shares} | {most}))


@dataclass(frozen=True)
class Entry:
    """One graph to time. `kind`: attention or mlp (half-blocks), empty (their call alone), fixed (no blocks)."""

    kind: str
    embed: int
    tokens: int = 0
    heads: int = 0
    qk: int = 0
    v: int = 0
    mlp: int = 0

    @property
    def key(self) -> str:
        return f"{self.kind} {' '.join(str(v) for k, v in asdict(self).items() if k != 'kind')}"


def entries(nodes: Nodes) -> list[Entry]:
    """All entries of a table; the first is the anchor."""
    found = [
        *(Entry("attention", e, n, h, d, d) for n, e, h, d in product(nodes, "tokens", "embed", "heads", "width")),
        *(
            Entry("attention", nodes.embed[-1], n, h, *pair)
            for n, h in product(nodes, "tokens", "heads")
            for wide, narrow in unequal_pairs(nodes.width)
            for pair in ((wide, narrow), (narrow, wide))
        ),
        *(Entry("mlp", e, n, mlp=m) for n, e, m in product(nodes, "tokens", "embed", "mlp")),
        *(Entry("empty", e, n) for n, e in product(nodes, "tokens", "embed")),
        *(Entry("fixed", e) for e in nodes.embed),
    ]
    anchor = anchor_of(nodes)
    return [anchor, *(entry for entry in found if entry != anchor)]


def anchor_of(nodes: Nodes) -> Entry:
    """The attention half at the most of everything."""
    width = nodes.width[-1]
    return Entry("attention", nodes.embed[-1], nodes.tokens[-1], nodes.heads[-1], width, width)


def product(nodes: Nodes, *axes: str) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(getattr(nodes, axis) for axis in axes))


def unequal_pairs(width: tuple[int, ...]) -> list[tuple[int, int]]:
    """Pairs (wide, narrow) at which the kernel of unequal widths is measured: a small one and a large one."""
    middle = len(width) // 2
    pairs = {(width[-1], width[middle]), (width[middle], width[middle // 2])}
    if len(width) == 2:
        pairs = {(width[1], width[0])}
    return sorted((pair for pair in pairs if pair[0] > pair[1]), key=sum)
