"""STViT-R as a method: dumbbell units in the place of blocks of a trained Swin (section 3.3; built so: `model.py`).

The weights of the blocks stay, but for what has no use: the tables of relative positions of those that attend to
semantic tokens. Swin has no layer scale, and none is put in: it would undo what the weights learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le

from leanvit.anatomy.parts.blocks import Attention, Block, apply_norm, layer_scale
from leanvit.anatomy.parts.cross import PARTS, CrossAttention
from leanvit.anatomy.state import State
from leanvit.errors import BadInput, Refused, is_whole
from leanvit.knobs import check
from leanvit.tokens.stvit.blocks import IMAGE, CentredGeneration, Generation, children, cuts, waiting
from leanvit.tokens.stvit.semantic import adaptive_max, neighbourhoods, starts

UNIT = 6  # blocks: one of Swin, two generations, two of semantic tokens, the recovery
KEY_MARGIN = 3  # image tokens that the windows of keys are larger a side
SAMPLES = 3
FOREIGN = {"after": None, "window": None, "prefix": "drop", "generation": "attention"}  # knobs without meaning here
FOREIGN_TO = "a plain ViT, this model is a Swin"


class WindowGeneration(Generation):
    """The first: each window's pooled tokens attend to themselves and to a larger window of image tokens."""

    reduces_tokens: ClassVar[bool] = False  # the unit gives all image tokens back

    def __init__(self, *, window: tuple[int, int], samples: int, shortcut: bool, **parts: Any) -> None:
        super().__init__(**parts)
        self.window, self.samples, self.shortcut = window, samples, shortcut

    def attended(self, x: Any, state: State, needs: frozenset[str]) -> tuple[Any, State]:
        ops, at, grid = state.ops, self.name, state.grid
        if ops.shape(x)[1] != state.num_patches:
            raise Refused(f"{at} pools windows of the full grid of {grid[0]}x{grid[1]} tokens")
        windows, semantic = cuts(grid, self.window, self.samples)
        side = self.window[0] + KEY_MARGIN
        rows, columns = (starts(n, size, side) for n, size in zip(grid, self.window, strict=True))
        cut = ops.rearrange(f"{at}.partition", x, windows.partition)
        pooled = ops.pick(f"{at}.pool", cut, lambda t: adaptive_max(t.unflatten(1, self.window), self.samples))
        near = ops.rearrange(f"{at}.near", x, lambda t: neighbourhoods(t.unflatten(1, grid), rows, columns, side))
        keys = ops.cat(f"{at}.keys", [pooled, near])
        tokens, state = self.met(pooled, keys, state, shortcut=self.shortcut)
        tokens = ops.rearrange(f"{at}.reverse", tokens, semantic.reverse)
        return tokens, state.with_(extra={**state.extra, IMAGE: x})


class UnitCentredGeneration(CentredGeneration):
    """The second; the image tokens go on waiting."""

    reduces_tokens: ClassVar[bool] = False


class SemanticBlock(Block):
    """A block on semantic tokens: in the windows that they were pooled from, or among all of them."""

    source: ClassVar[str] = "stvit"

    def __init__(self, *, window: tuple[int, int], samples: int, local: bool, **parts: Any) -> None:
        super().__init__(**parts)
        self.window, self.samples, self.local = window, samples, local

    def attended(self, x: Any, state: State, needs: frozenset[str]) -> tuple[Any, State]:
        if not self.local:
            return super().attended(x, state, needs)
        ops, at = state.ops, self.name
        semantic = cuts(state.grid, self.window, self.samples)[1]
        branch, shortcut = ops.clone(f"{at}.clone1", x)
        branch = apply_norm(ops, f"{at}.norm1", self.norm1, branch)
        branch = ops.rearrange(f"{at}.partition", branch, semantic.partition)
        branch, state = self.attn(branch, state, needs)
        branch = ops.rearrange(f"{at}.reverse", branch, semantic.reverse)
        branch = layer_scale(ops, f"{at}.ls1", self.ls1, branch, self._parameters.get("gamma_1"))
        return ops.add(f"{at}.add1", shortcut, ops.drop(self.drop_path1, branch)), state


class Recovery(Generation):
    """The last: image tokens, which waited since the unit's first block, attend to semantic tokens."""

    reduces_tokens: ClassVar[bool] = False

    def attended(self, x: Any, state: State, needs: frozenset[str]) -> tuple[Any, State]:
        image, state = waiting(self.name, state)
        return self.met(image, x, state)


# --- in a model ------------------------------------------------------------------


def plan(model: Any, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Where: {"stage": int, "units": int, "samples": int}; the units are the last of their stage.

    Default: as many units as fit into the deepest stage. Raises `BadInput` or `Refused`.

    model: a Swin. knobs: those of `STViT` by their names. Here and below.
    """
    units, samples = knobs["units"], knobs["samples"]
    depths = [len(level.blocks) for level in model.layers]
    stage = depths.index(max(depths)) if knobs["stage"] is None else knobs["stage"]
    check("stage", stage, Annotated[int, Ge(0), Le(len(depths) - 1)])
    most = depths[stage] // UNIT
    if units is None and (not most or depths[stage] % UNIT):
        raise Refused(
            f"stage {stage} has {depths[stage]} blocks; accepted: a multiple of {UNIT}, the blocks of a unit, or "
            "units=, how many units its last blocks become"
        )
    units = most if units is None else units
    if not 1 <= units <= most:
        raise BadInput(f"units is {units}; accepted for the {depths[stage]} blocks of stage {stage}: 1 to {most}")
    structure = {"stage": stage, "units": units, "samples": SAMPLES if samples is None else samples}
    checked(model, structure)
    return structure


def checked(model: Any, structure: Mapping[str, Any]) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """The first block of the units in the stage, its grid and window. Raises `BadInput` or `Refused`."""
    stage, units, samples = structure["stage"], structure["units"], structure["samples"]
    if not is_whole(stage, least=0, most=len(model.layers) - 1):
        raise BadInput(f"the plan names stage {stage!r}; accepted: 0 to {len(model.layers) - 1}")
    blocks = model.layers[stage].blocks
    if not is_whole(units, least=1, most=len(blocks) // UNIT):
        raise BadInput(f"the plan makes {units!r} units of stage {stage}; accepted: 1 to {len(blocks) // UNIT}")
    first = len(blocks) - UNIT * units
    for block in blocks[first:]:
        if not (block.plain and block.attn.plain and block.attn.windowed):
            kind = type(block.attn if block.plain else block).__name__
            raise Refused(f"{block.name} is a {kind}: units are made of the blocks of Swin (not V2, nor others)")
        if list(block.steps()) or block.attn.terms:
            raise Refused(f"{block.name} holds steps or score terms of another method: stvit replaces the block")
    window: tuple[int, int] = blocks[first].attn.window
    grid = model.grids()[model.stage_ends()[stage] - 1]
    if grid[0] != grid[1] or window[0] != window[1]:
        raise Refused(
            f"stage {stage} has {grid[0]}x{grid[1]} tokens in windows of {window[0]}x{window[1]}; accepted: square ones"
        )
    check("samples", samples, Annotated[int, Ge(1), Le(window[0])])
    try:
        starts(grid[0], window[0], window[0] + KEY_MARGIN)
    except BadInput as error:
        raise Refused(f"stage {stage} has {error}; stvit_r_swin_tiny with padded=true takes any size") from None
    return first, grid, window


def put(model: Any, structure: Mapping[str, Any], knobs: Mapping[str, Any]) -> None:
    """Put the units in the place of the blocks. The linears of cross attention are empty; `fold` fills them."""
    first, grid, window = checked(model, structure)
    blocks, samples = model.layers[structure["stage"]].blocks, structure["samples"]
    cut = {"window": window, "samples": samples}
    tokens = (grid[0] // window[0]) * (grid[1] // window[1]) * samples**2
    for unit in range(structure["units"]):
        at = first + UNIT * unit
        kept = blocks[at].attn  # without shift, as in the paper
        kept.shift, kept.grid = (0, 0), grid
        made: list[Block] = [
            WindowGeneration(shortcut=bool(knobs["shortcut"]), **cut, **_across(blocks[at + 1])),
            UnitCentredGeneration(
                tokens=tokens,
                use_global=bool(knobs["use_global"]) and unit == 0,
                keeps_image=True,
                **_across(blocks[at + 2]),
            ),
            SemanticBlock(local=True, **cut, **_plain(blocks[at + 3])),
            SemanticBlock(local=False, **cut, **_plain(blocks[at + 4])),
            Recovery(**_across(blocks[at + 5])),
        ]
        for i, block in enumerate(made):
            blocks[at + 1 + i] = block.train(model.training)


def _across(block: Block) -> dict[str, Any]:
    return {"attn": CrossAttention.like(block.attn), **children(block)}


def _plain(block: Block) -> dict[str, Any]:
    """With an attention among the tokens that it is given, wherever they are."""
    parts = {key: getattr(block.attn, key) for key in ("qkv", *PARTS)}
    return {"attn": Attention(**parts), **children(block)}


def semantic_counts(model: Any, structure: Mapping[str, Any]) -> dict[int, int]:
    """Semantic tokens by block of the model, where there are some."""
    first = model.stage_ends()[structure["stage"]] - UNIT * structure["units"]
    grid, window = model.grids()[first], model.blocks[first].attn.window
    tokens = (grid[0] // window[0]) * (grid[1] // window[1]) * structure["samples"] ** 2
    return {first + UNIT * unit + i: tokens for unit in range(structure["units"]) for i in range(1, UNIT - 1)}


def settings(model: Any) -> list[dict[str, int]]:
    """Raises `Refused`."""
    raise Refused("stvit on a Swin has no knob that sets its MACs to a share: its units follow from the stages")
