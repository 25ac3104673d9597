"""STViT on plain and windowed transformers: where semantic tokens are made, and the method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from leanvit.anatomy import OpenModel
from leanvit.anatomy.families.swin import OpenSwin
from leanvit.anatomy.families.vit import OpenViT
from leanvit.anatomy.parts.blocks import Attention, Block
from leanvit.anatomy.parts.cross import CrossAttention
from leanvit.backbones.t2t_vit.opened import OpenT2TViT
from leanvit.data import keyed
from leanvit.errors import BadInput, Refused, is_whole
from leanvit.knobs import Choice, Count, Index, check_fields, knob
from leanvit.recipe.equal_macs import nearest_setting
from leanvit.recipe.protocol import Structure
from leanvit.recipe.registry import method
from leanvit.tokens.stvit import swin
from leanvit.tokens.stvit.blocks import AveragedBlock, CentredGeneration, PooledGeneration, children

PREFIX = ("drop", "keep")
MAKES = ("attention", "average")
GENERATIONS = 2  # blocks
SAMPLES = 2  # of a plain ViT; Swin has its own


@dataclass(frozen=True)
class _Structure:
    samples: Count
    after: Index | None = None  # of a plain ViT, with window
    window: tuple[Count, Count] | None = None
    stage: Index | None = None  # of a Swin, with units
    units: Count | None = None

    def __post_init__(self) -> None:
        given = {name for name in ("after", "window", "stage", "units") if getattr(self, name) is not None}
        if given not in ({"after", "window"}, {"stage", "units"}):
            raise BadInput("accepted: after and window, or of a Swin stage and units, each with samples")


@method("stvit")
@dataclass(frozen=True)
class STViT:
    """Knobs of the method. The defaults are the paper's, as far as they are known."""

    after: Index | None = knob(
        None, "blocks before the generation; null: a third of the depth; the whole depth: no generation", example=4
    )
    samples: Count | None = knob(None, "semantic tokens a side of each window; null: 2, and 3 on Swin", example=2)
    window: Count | None = knob(
        None, "side of a window of patches; null: half of the grid, or the whole of an odd one", example=7
    )
    use_global: bool | None = knob(
        None, "a learned centre for each semantic token; null: yes, and no on Swin", example=True
    )
    shortcut: bool | None = knob(
        None, "pooled tokens stay in the first generation's sum; null: yes, and no on Swin", example=True
    )
    prefix: Annotated[str, Choice(PREFIX)] = knob(
        "drop", "class, distillation and register tokens: they end, or stay beside the semantic tokens"
    )
    stage: Index | None = knob(None, "of Swin: which one gets units, from 0; null: the deepest", example=2)
    units: Count | None = knob(
        None, "of Swin: units of six blocks at the stage's end; null: all of its blocks", example=1
    )
    generation: Annotated[str, Choice(MAKES)] = knob(
        "attention", "control: average, windows are averaged and nothing is generated"
    )
    seed: Index = knob(0, "of the centres' initial values")

    structure_model: ClassVar[type] = _Structure
    requires: ClassVar[frozenset[str]] = frozenset({"float", "full_grid", "token_blocks"})
    destroys: ClassVar[frozenset[str]] = frozenset({"class_token", "full_grid", "token_blocks"})
    dials: ClassVar[tuple[str, ...]] = ("after", "window", "samples")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.prefix == "keep" and self.shortcut is False:
            raise BadInput("prefix=keep with shortcut=false: kept tokens would lose their own sum; give one of the two")
        if self.window is not None and self.samples is not None and self.samples > self.window:
            raise BadInput(f"samples is {self.samples!r}; accepted: 1 to {self.window}, the side of a window")

    def learn(self, model: OpenModel, data: object = None) -> Structure:
        """Where and how: {"after": int, "window": [rows, columns], "samples": int}; of Swin {"stage", "units",
        "samples"}.

        Raises:
            BadInput: a number that does not fit the model. Refused: a model that it cannot work on (the reason named).
        """
        self._check_family(model)
        if isinstance(model, OpenSwin):
            return swin.plan(model, stage=self.stage, units=self.units, samples=self.samples)
        depth = len(model.blocks)
        if depth < GENERATIONS:
            raise Refused(f"stvit replaces {GENERATIONS} blocks, the model has {depth}")
        after = depth // 3 if self.after is None else self.after
        if after != depth and after > depth - GENERATIONS:
            raise BadInput(
                f"after is {after}; accepted: 0 to {depth - GENERATIONS}, which leaves {GENERATIONS} of {depth} blocks "
                f"for the generation, or {depth} for none"
            )
        _check_model(model, after)
        grid = _grid(model)
        window = [self.window or (side if side % 2 else side // 2) for side in grid]
        structure = {"after": after, "window": window, "samples": SAMPLES if self.samples is None else self.samples}
        _check_windows(grid, structure)
        return structure

    def _check_family(self, model: OpenModel) -> None:
        """Raise `BadInput` for knobs that the model's family does not have."""
        on_swin = isinstance(model, OpenSwin)
        plain = {"after": None, "window": None, "prefix": "drop", "generation": "attention"}
        others = plain if on_swin else {"stage": None, "units": None}
        for name, default in others.items():
            if getattr(self, name) != default:
                family = "a plain ViT, this model is a Swin" if on_swin else "a Swin, this model is none"
                raise BadInput(f"{name} is {getattr(self, name)!r}: the knob is of {family}")

    def shape(self, model: OpenModel, structure: Structure) -> None:
        """Put the generation blocks in the place of the model's own, with empty linears for q and for k and v."""
        if isinstance(model, OpenSwin):
            return swin.put(model, structure, use_global=bool(self.use_global), shortcut=bool(self.shortcut))
        after, depth = structure["after"], len(model.blocks)
        if after > depth or after == depth - 1:
            raise BadInput(f"the plan generates after {after!r} blocks; accepted: 0 to {depth - GENERATIONS}, {depth}")
        if after == depth:
            return
        _check_model(model, after)
        model.keep_all_patches()
        grid = _grid(model)
        rows, columns = _check_windows(grid, structure)
        window, samples = (rows, columns), structure["samples"]
        if self.generation == "average":
            block = model.blocks[after]
            averaged = AveragedBlock(
                window=window, samples=samples, prefix=self.prefix, attn=block.attn, **children(block)
            )
            model.blocks[after] = averaged.train(model.training)
            return self._read_the_mean(model)
        first, second = (
            {"attn": CrossAttention.like(block.attn), **children(block)}
            for block in model.blocks[after : after + GENERATIONS]
        )
        shortcut, use_global = self.shortcut is not False, self.use_global is not False
        pooled = PooledGeneration(window=window, samples=samples, prefix=self.prefix, shortcut=shortcut, **first)
        tokens = (grid[0] // rows) * (grid[1] // columns) * samples**2
        centred = CentredGeneration(tokens=tokens, use_global=use_global, **second)
        for i, block in enumerate((pooled, centred)):
            model.blocks[after + i] = block.train(model.training)
        self._read_the_mean(model)

    def _read_the_mean(self, model: OpenModel) -> None:
        """Where the class token ended, the classifier reads the mean."""
        if self.prefix == "drop" and model.global_pool == "token":
            model.global_pool = "avg"  # type: ignore[assignment]

    def fold(self, model: OpenModel, structure: Structure, before: Mapping[str, Tensor]) -> None:
        """The weights of q and of k and v from the linear that gave all three; the centres drawn by the seed."""
        for block in model.blocks:
            for attn in block.attentions():
                if isinstance(attn, CrossAttention):
                    attn.take(before)
            if isinstance(block, CentredGeneration) and block.centres is not None:
                drawn = torch.randn(block.centres.shape, generator=keyed.generator(self.seed, "stvit", block.name))
                block.centres.copy_(0.02 * drawn)

    @classmethod
    def at_macs(cls, model: OpenModel, share: float, knobs: Mapping[str, Any]) -> STViT:
        """With the place of the generation, and the number of semantic tokens, that leave this share of the MACs.

        The control gets what the generation would get, and costs less.
        """
        asked, depth = cls(**knobs), len(model.blocks)
        made = replace(asked, generation="attention")
        if isinstance(model, OpenSwin):
            raise Refused("stvit on a Swin has no knob that sets its MACs to a share: its units follow from the stages")
        grid = _grid(model)
        found: dict[int, STViT] = {}  # tokens that blocks get, in sum -> the setting
        for after in range(depth - GENERATIONS, -1, -1):
            for window in sorted({side for side in range(1, min(grid) + 1) if not any(n % side for n in grid)}):
                for samples in range(1, window + 1):
                    kept = (grid[0] // window) * (grid[1] // window) * samples**2
                    if kept * 2 <= grid[0] * grid[1]:  # else the generation costs more than it saves
                        tokens = after * grid[0] * grid[1] + (depth - after) * kept
                        found.setdefault(tokens, replace(made, after=after, window=window, samples=samples))
        if not found:
            raise Refused(
                f"stvit generates in {GENERATIONS} blocks, and halves the tokens at least: this model has {depth} "
                f"{'block' if depth == 1 else 'blocks'} and a grid of {grid[0]}x{grid[1]} patches"
            )
        nearest = nearest_setting(model, [found[tokens] for tokens in sorted(found, reverse=True)], share)
        return replace(nearest, generation=asked.generation)

    def achieved(self, model: OpenModel) -> dict[str, Any]:
        """{"patch_tokens": patch or semantic tokens in each block's MLP, counted in a run of the model}."""
        return {"patch_tokens": model.patch_tokens()}

    def check(self, model: OpenModel, structure: Structure) -> list[str]:
        """Blocks in whose MLP other than the planned number of semantic tokens are, counted in a run of the model."""
        counts = model.patch_tokens()
        if isinstance(model, OpenSwin):
            planned = swin.semantic_counts(model, structure)
        else:
            grid, (rows, columns), samples = _grid(model), structure["window"], structure["samples"]
            tokens = (grid[0] // rows) * (grid[1] // columns) * samples**2
            planned = dict.fromkeys(range(structure["after"], len(counts)), tokens)
        return [f"block {i}: asked {n} semantic tokens, has {counts[i]}" for i, n in planned.items() if counts[i] != n]


def _grid(model: OpenModel) -> tuple[int, int]:
    _, height, width = model.probe_size()
    grid: tuple[int, int] = model._grid(height, width)  # type: ignore[operator]
    return grid


# --- checks ----------------------------------------------------------------------


def _check_model(model: OpenModel, after: int) -> None:
    """Raise `Refused`, naming why, unless semantic tokens can run through the blocks from `after` on."""
    if type(model) not in (OpenViT, OpenT2TViT):
        raise Refused(
            f"stvit needs a plain vision transformer or a Swin, this model is {type(model).__name__}: its blocks read "
            "where tokens are"
        )
    for i, block in enumerate(model.blocks[after:]):
        if i < GENERATIONS and (type(block) is not Block or type(block.attn) is not Attention):
            kind = type(block).__name__ if type(block) is not Block else type(block.attn).__name__
            raise Refused(f"{block.name} is a {kind}: stvit generates in pre-norm blocks with plain attention")
        if i < GENERATIONS and list(block.steps()):
            raise Refused(f"{block.name} holds steps of another method: stvit puts a block of its own in its place")
        if i < GENERATIONS and block.attn.terms:
            raise Refused(f"{block.attn.name} holds score terms of another method: stvit gives it other keys")
        for attn in block.attentions():
            if attn.rotary is not None or any(getattr(term, "positional", False) for term in attn.terms):
                raise Refused(f"{attn.name} scores by where tokens are; semantic tokens have no place")


def _check_windows(grid: tuple[int, int], structure: Structure) -> tuple[int, int]:
    """The window (rows, columns) of a plan. Raises `BadInput` where it does not fit the grid."""
    window, samples = structure["window"], structure["samples"]
    if any(side % size for side, size in zip(grid, window, strict=True)):
        raise BadInput(
            f"window is {window[0]}x{window[1]}; accepted: sides that divide the grid of {grid[0]}x{grid[1]} patches"
        )
    if not is_whole(samples, least=1, most=min(window)):
        raise BadInput(f"samples is {samples!r}; accepted: 1 to {min(window)}, the side of a window")
    return window[0], window[1]
