"""Token maps as drawings: the image, veiled where patches were fused or dropped, outlined where they share a token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from leanvit.report.token_maps import Reduction, TokenMaps

PATCH = 10  # units of the drawing a patch side
SHOWN = 6  # drawings a row; more reducing blocks are thinned out evenly, the last kept
FUSED_SHARE = 8  # a token that holds more than 1/8 of the patches is drawn as fused: veiled

Owners = Sequence[int]
Edge = tuple[int, int, int, int]  # x0, y0, x1, y1 in patches


@dataclass(frozen=True)
class Outline:
    """The border of the patches that share one token."""

    path: str  # SVG path data
    hue: int
    size: int  # patches


@dataclass(frozen=True)
class Drawing:
    """One image after one reducing block, as SVG parts."""

    block: int
    tokens: int  # patch tokens that are left
    veil: str  # path data of fused and dropped patches
    outlines: tuple[Outline, ...]
    alone: int  # patches that are tokens of their own


@dataclass(frozen=True)
class Strip:
    """One image through the blocks."""

    key: str
    target: str
    answer: str
    right: bool
    png: str
    drawings: tuple[Drawing, ...]


def strips(maps: TokenMaps, classes: Sequence[str]) -> list[Strip]:
    """One strip an image; class names where they are known."""
    chosen = thinned(maps.reductions, SHOWN)
    return [
        Strip(
            key=picture.key,
            target=_class(picture.target, classes),
            answer=_class(picture.answer, classes),
            right=picture.target == picture.answer,
            png=picture.png,
            drawings=tuple(
                draw(r.owners[i], maps.grid, block=r.block, tokens=r.tokens - maps.num_prefix) for r in chosen
            ),
        )
        for i, picture in enumerate(maps.pictures)
    ]


def thinned(reductions: Sequence[Reduction], most: int) -> list[Reduction]:
    """At most `most` of them, evenly spread, first and last among them."""
    if len(reductions) <= most:
        return list(reductions)
    last = len(reductions) - 1
    return [reductions[round(k * last / (most - 1))] for k in range(most)]


def draw(owners: Owners, grid: tuple[int, int], *, block: int, tokens: int) -> Drawing:
    """The parts of one drawing from the token of each patch."""
    groups: dict[int, list[int]] = defaultdict(list)
    for patch, owner in enumerate(owners):
        groups[owner].append(patch)
    dropped = groups.pop(-1, [])
    fused = [g for g in groups.values() if len(g) > 1 and len(g) * FUSED_SHARE > len(owners)]
    outlined = [g for g in groups.values() if len(g) > 1 and (g not in fused or len(fused) > 1)]
    outlines = tuple(Outline(_path(_border(g, grid)), hue=round(g[0] * 137.508) % 360, size=len(g)) for g in outlined)
    alone = sum(len(group) == 1 for group in groups.values())
    return Drawing(block, tokens, _squares([*dropped, *(p for g in fused for p in g)], grid), outlines, alone)


def _border(patches: Sequence[int], grid: tuple[int, int]) -> list[Edge]:
    """Edges between the patches of a group and everything else."""
    _, columns = grid
    inside = set(patches)
    edges = []
    for patch in patches:
        row, column = divmod(patch, columns)
        for beside, edge in (
            ((row - 1, column), (column, row, column + 1, row)),
            ((row + 1, column), (column, row + 1, column + 1, row + 1)),
            ((row, column - 1), (column, row, column, row + 1)),
            ((row, column + 1), (column + 1, row, column + 1, row + 1)),
        ):
            out_of_row = not 0 <= beside[1] < columns
            if out_of_row or beside[0] < 0 or beside[0] * columns + beside[1] not in inside:
                edges.append(edge)
    return edges


def _path(edges: Sequence[Edge]) -> str:
    return "".join(f"M{PATCH * x0} {PATCH * y0}L{PATCH * x1} {PATCH * y1}" for x0, y0, x1, y1 in edges)


def _squares(patches: Sequence[int], grid: tuple[int, int]) -> str:
    cells = (divmod(patch, grid[1]) for patch in sorted(patches))
    return "".join(f"M{PATCH * c} {PATCH * r}h{PATCH}v{PATCH}h-{PATCH}z" for r, c in cells)


def _class(index: int, classes: Sequence[str]) -> str:
    return classes[index] if 0 <= index < len(classes) else str(index)
