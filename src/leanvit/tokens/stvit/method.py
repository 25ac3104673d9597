"""STViT: the method. `plain.py` and `swin.py` know where semantic tokens are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from leanvit.anatomy import OpenModel
from leanvit.anatomy.parts.cross import CrossAttention
from leanvit.data import keyed
from leanvit.errors import BadInput
from leanvit.knobs import Choice, Count, Index, check_fields, knob
from leanvit.recipe.equal_macs import nearest_setting
from leanvit.recipe.protocol import Structure
from leanvit.recipe.registry import method
from leanvit.tokens.stvit import plain, swin
from leanvit.tokens.stvit.blocks import CentredGeneration

PREFIX = ("drop", "keep")
MAKES = ("attention", "average")
_ON = {False: plain, True: swin}  # where semantic tokens are made, by whether the model is hierarchical


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
        kind = _ON[model.hierarchical]
        for name, default in kind.FOREIGN.items():
            if getattr(self, name) != default:
                raise BadInput(f"{name} is {getattr(self, name)!r}: the knob is of {kind.FOREIGN_TO}")
        return kind.plan(model, asdict(self))

    def shape(self, model: OpenModel, structure: Structure) -> None:
        """Put blocks that generate in the place of the model's own, with empty linears for q and for k and v."""
        _ON[model.hierarchical].put(model, structure, asdict(self))

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
        given = cls(**knobs)
        made = replace(given, generation="attention")
        settings = [replace(made, **setting) for setting in _ON[model.hierarchical].settings(model)]
        return replace(nearest_setting(model, settings, share), generation=given.generation)

    def tied_to(self, structure: Structure) -> dict[str, str]:
        """The grid: windows and semantic tokens were laid out on it."""
        return {"grid": "its semantic tokens were laid out on it"}

    def achieved(self, model: OpenModel, structure: Structure) -> dict[str, Any]:
        """{"patch_tokens": patch or semantic tokens in each block's MLP, counted in a run of the model}."""
        return {"patch_tokens": model.patch_tokens()}

    def check(self, model: OpenModel, structure: Structure) -> list[str]:
        """Blocks in whose MLP other than the planned number of semantic tokens are, counted in a run of the model."""
        counts = model.patch_tokens()
        planned = _ON[model.hierarchical].semantic_counts(model, structure)
        return [
            f"block {i}: requested {n} semantic tokens, has {counts[i]}" for i, n in planned.items() if counts[i] != n
        ]
