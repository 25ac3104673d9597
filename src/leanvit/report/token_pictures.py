"""Token maps as drawings: the image, veiled where patches were fused or dropped, tinted where they share a token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from leanvit.runs.thumbnails import data_uri
from leanvit.runs.token_maps import NO_CLASS, TokenMaps

PATCH = 10  # units of the drawing a patch side
FUSED_SHARE = 8  # a token that holds more than 1/8 of the patches is drawn as fused: veiled
GOLDEN_ANGLE = 137.508  # degrees of hue between neighbours, so that they never look alike

Owners = Sequence[int]
Run = tuple[int, int, int]  # a straight run of edges or cells: x, y, length in patches


@dataclass(frozen=True)
class Group:
    """The patches that share one token."""

    border: str  # SVG path data
    area: str
    hue: int
    size: int  # patches


@dataclass(frozen=True)
class Drawing:
    """One image after one reducing block, as SVG parts, and how its patches fared."""

    block: int
    tokens: int  # patch tokens that are left
    veil: str  # path data of fused and dropped patches
    groups: tuple[Group, ...]
    alone: int  # patches that are tokens of their own
    merged: int  # patches that share a token with few others
    fused: int  # patches that went into a token with more than 1/8 of the image
    dropped: int


@dataclass(frozen=True)
class Stack:
    """One image through all blocks that reduced tokens."""

    key: str
    target: str  # "" where there is no label
    answer: str
    right: bool | None  # None where label or answer is no class
    source: str  # data URI
    drawings: tuple[Drawing, ...]


def stacks(maps: TokenMaps, classes: Sequence[str]) -> list[Stack]:
    """One stack an image; class names where they are known."""
    return [
        Stack(
            key=picture.key,
            target="" if picture.target == NO_CLASS else class_name(picture.target, classes),
            answer=class_name(picture.answer, classes),
            right=None if NO_CLASS in (picture.target, picture.answer) else picture.target == picture.answer,
            source=data_uri(picture.image),
            drawings=tuple(
                draw(r.owners[i], maps.grid, block=r.block, tokens=r.tokens - maps.num_prefix) for r in maps.reductions
            ),
        )
        for i, picture in enumerate(maps.pictures)
    ]


def draw(owners: Owners, grid: tuple[int, int], *, block: int, tokens: int) -> Drawing:
    """The parts of one drawing from the token of each patch."""
    by_token: dict[int, list[int]] = defaultdict(list)
    for patch, owner in enumerate(owners):
        by_token[owner].append(patch)
    dropped = by_token.pop(-1, [])
    shared = [group for group in by_token.values() if len(group) > 1]
    fused = [group for group in shared if len(group) * FUSED_SHARE > len(owners)]
    # One fused token is the overlay itself; several are distinguished by their borders.
    drawn = [group for group in shared if group not in fused or len(fused) > 1]
    in_fused = [patch for group in fused for patch in group]
    return Drawing(
        block=block,
        tokens=tokens,
        veil=_area([*dropped, *in_fused], grid),
        groups=tuple(_group(group, grid, tinted=group not in fused) for group in drawn),
        alone=sum(len(group) == 1 for group in by_token.values()),
        merged=sum(map(len, shared)) - len(in_fused),
        fused=len(in_fused),
        dropped=len(dropped),
    )


def class_name(index: int, classes: Sequence[str]) -> str:
    """The name of a class, or its number where it has none."""
    return classes[index] if 0 <= index < len(classes) else str(index)


def _group(patches: Sequence[int], grid: tuple[int, int], *, tinted: bool) -> Group:
    hue = round(patches[0] * GOLDEN_ANGLE) % 360
    return Group(_border(patches, grid), _area(patches, grid) if tinted else "", hue, len(patches))


def _border(patches: Sequence[int], grid: tuple[int, int]) -> str:
    """The edges between the patches of a group and everything else, straight ones joined."""
    _, columns = grid
    cells = {divmod(patch, columns) for patch in patches}
    across = {
        (column, row + below) for row, column in cells for below in (0, 1) if (row + 2 * below - 1, column) not in cells
    }
    down = {
        (row, column + beside)
        for row, column in cells
        for beside in (0, 1)
        if (row, column + 2 * beside - 1) not in cells
    }
    flat = "".join(f"M{PATCH * x} {PATCH * y}h{PATCH * n}" for x, y, n in _runs(across))
    upright = "".join(f"M{PATCH * x} {PATCH * y}v{PATCH * n}" for y, x, n in _runs(down))
    return flat + upright


def _area(patches: Sequence[int], grid: tuple[int, int]) -> str:
    """Cells as rectangles one patch high, neighbours joined."""
    cells = {(patch % grid[1], patch // grid[1]) for patch in patches}
    return "".join(f"M{PATCH * x} {PATCH * y}h{PATCH * n}v{PATCH}h-{PATCH * n}z" for x, y, n in _runs(cells))


def _runs(cells: set[tuple[int, int]]) -> list[Run]:
    """Places (along, line) that follow one another on a line, joined: (start, line, length)."""
    found: list[Run] = []
    for along, line in sorted(cells, key=lambda place: (place[1], place[0])):
        if found and found[-1][1] == line and sum(found[-1][::2]) == along:
            start, _, length = found.pop()
            found.append((start, line, length + 1))
        else:
            found.append((along, line, 1))
    return found
