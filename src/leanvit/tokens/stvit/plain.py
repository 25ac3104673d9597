"""STViT on a plain vision transformer: two blocks generate semantic tokens, on which the blocks behind them run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import Ge, Le

from leanvit.anatomy import OpenModel
from leanvit.anatomy.parts.cross import CrossAttention
from leanvit.errors import BadInput, Refused, is_whole
from leanvit.knobs import check
from leanvit.recipe.protocol import Structure
from leanvit.tokens.stvit.blocks import AveragedBlock, CentredGeneration, PooledGeneration, children

GENERATIONS = 2  # blocks
SAMPLES = 2
FOREIGN = {"stage": None, "units": None}  # knobs that have no meaning here, at their defaults
FOREIGN_TO = "a Swin, this model is none"


def plan(model: OpenModel, knobs: Mapping[str, Any]) -> Structure:
    """Where and how: {"after": int, "window": [rows, columns], "samples": int}. Raises `BadInput` or `Refused`.

    knobs: those of `STViT` by their names, here and below.
    """
    depth = len(model.blocks)
    if depth < GENERATIONS:
        raise Refused(f"stvit replaces {GENERATIONS} blocks, the model has {depth}")
    after = depth // 3 if knobs["after"] is None else knobs["after"]
    if after != depth and after > depth - GENERATIONS:
        raise BadInput(
            f"after is {after}; accepted: 0 to {depth - GENERATIONS}, which leaves {GENERATIONS} of {depth} blocks "
            f"for the generation, or {depth} for none"
        )
    _check_model(model, after)
    grid = model.grid()
    window = [knobs["window"] or (side if side % 2 else side // 2) for side in grid]
    samples = SAMPLES if knobs["samples"] is None else knobs["samples"]
    structure = {"after": after, "window": window, "samples": samples}
    _check_windows(grid, structure)
    return structure


def put(model: OpenModel, structure: Structure, knobs: Mapping[str, Any]) -> None:
    """Put the generation in the place of the model's own blocks. Linears of cross attention are empty."""
    after, depth = structure["after"], len(model.blocks)
    if not is_whole(after, least=0, most=depth) or after == depth - 1:
        raise BadInput(f"the plan generates after {after!r} blocks; accepted: 0 to {depth - GENERATIONS}, {depth}")
    if after == depth:
        return
    _check_model(model, after)
    model.keep_all_patches()
    window = _check_windows(model.grid(), structure)
    cut = {"window": window, "samples": structure["samples"], "prefix": knobs["prefix"]}
    if knobs["generation"] == "average":
        block = model.blocks[after]
        made: list[Any] = [AveragedBlock(attn=block.attn, **cut, **children(block))]
    else:
        first, second = (
            {"attn": CrossAttention.like(block.attn), **children(block)}
            for block in model.blocks[after : after + GENERATIONS]
        )
        made = [
            PooledGeneration(shortcut=knobs["shortcut"] is not False, **cut, **first),
            CentredGeneration(
                tokens=_tokens(model, window, structure["samples"]),
                use_global=knobs["use_global"] is not False,
                **second,
            ),
        ]
    for i, block in enumerate(made):
        model.blocks[after + i] = block.train(model.training)
    if knobs["prefix"] == "drop" and model.global_pool == "token":  # the class token ended: the mean is read
        model.global_pool = "avg"  # type: ignore[assignment]


def semantic_counts(model: OpenModel, structure: Structure) -> dict[int, int]:
    """Semantic tokens by block of the model, where there are some."""
    rows, columns = structure["window"]
    tokens = _tokens(model, (rows, columns), structure["samples"])
    return dict.fromkeys(range(structure["after"], len(model.blocks)), tokens)


def settings(model: OpenModel) -> list[dict[str, int]]:
    """Knobs (after, window, samples) whose models differ in cost, the dearest first, and halve the tokens at least.

    Raises `Refused` where there are none.
    """
    grid, depth = model.grid(), len(model.blocks)
    found: dict[int, dict[str, int]] = {}  # by the tokens that blocks get, in sum
    for after in range(depth - GENERATIONS, -1, -1):
        for window in sorted({side for side in range(1, min(grid) + 1) if not any(n % side for n in grid)}):
            for samples in range(1, window + 1):
                kept = _tokens(model, (window, window), samples)
                if kept * 2 <= grid[0] * grid[1]:  # else the generation costs more than it saves
                    tokens = after * grid[0] * grid[1] + (depth - after) * kept
                    found.setdefault(tokens, {"after": after, "window": window, "samples": samples})
    if not found:
        raise Refused(
            f"stvit generates in {GENERATIONS} blocks, and halves the tokens at least: this model has {depth} "
            f"{'block' if depth == 1 else 'blocks'} and a grid of {grid[0]}x{grid[1]} patches"
        )
    return [found[tokens] for tokens in sorted(found, reverse=True)]


def _tokens(model: OpenModel, window: tuple[int, int], samples: int) -> int:
    """Semantic tokens of an image of the model's own size."""
    (rows, columns), (down, across) = model.grid(), window
    return (rows // down) * (columns // across) * samples**2


def _check_model(model: OpenModel, after: int) -> None:
    """Raise `Refused`, naming why, unless semantic tokens can run through the blocks from `after` on."""
    if not model.plain:
        raise Refused(
            f"stvit needs a plain vision transformer or a Swin, this model is {type(model).__name__}: its blocks read "
            "where tokens are"
        )
    for i, block in enumerate(model.blocks[after:]):
        if i < GENERATIONS and not (block.plain and block.attn.plain):
            kind = type(block.attn if block.plain else block).__name__
            raise Refused(f"{block.name} is a {kind}: stvit generates in pre-norm blocks with plain attention")
        if i < GENERATIONS and list(block.steps()):
            raise Refused(f"{block.name} holds steps of another method: stvit puts a block of its own in its place")
        if i < GENERATIONS and block.attn.terms:
            raise Refused(f"{block.attn.name} holds score terms of another method: stvit gives it other keys")
        for attn in block.attentions():
            if attn.reads_positions:
                raise Refused(f"{attn.name} scores by where tokens are; semantic tokens have no place")


def _check_windows(grid: tuple[int, int], structure: Structure) -> tuple[int, int]:
    """The window (rows, columns) of a plan. Raises `BadInput` where it does not fit the grid."""
    window, samples = structure["window"], structure["samples"]
    if any(side % size for side, size in zip(grid, window, strict=True)):
        raise BadInput(
            f"window is {window[0]}x{window[1]}; accepted: sides that divide the grid of {grid[0]}x{grid[1]} patches"
        )
    check("samples", samples, Annotated[int, Ge(1), Le(min(window))])
    return window[0], window[1]
