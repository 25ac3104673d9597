"""STViT: the method. `plain.py` and `swin.py` know where semantic tokens are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from leanvit.anatomy import OpenModel
from leanvit.anatomy.parts.cross import CrossAttention
from leanvit.data import keyed
from leanvit.errors import BadInput, is_whole, unknown
from leanvit.recipe.equal_macs import nearest_setting
from leanvit.recipe.protocol import Structure
from leanvit.recipe.registry import method
from leanvit.recipe.structure import StructureModel
from leanvit.tokens.stvit import plain, swin
from leanvit.tokens.stvit.blocks import CentredGeneration

PREFIX = ("drop", "keep")
MAKES = ("attention", "average")
_ON = {False: plain, True: swin}  # where semantic tokens are made, by whether the model is hierarchical


class _Structure(StructureModel):
    samples: int
    after: int | None = None  # of a plain ViT, with window
    window: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    stage: int | None = None  # of a Swin, with units
    units: int | None = None

    @model_validator(mode="after")
    def _of_one_family(self) -> _Structure:
        if {*self.model_fields_set} - {"samples"} not in ({"after", "window"}, {"stage", "units"}):
            raise ValueError("accepted: after and window, or of a Swin stage and units, each with samples")
        return self


@method("stvit")
@dataclass(frozen=True)
class STViT:
    """Knobs of the method. The defaults are the paper's, as far as they are known."""

    after: int | None = None  # blocks before the generation; None: a third of the depth; the whole depth: no generation
    samples: int | None = None  # semantic tokens a side of each window; None: 2, and 3 on Swin
    window: int | None = None  # side of a window of patches; None: half of the grid, or the whole of an odd one
    use_global: bool | None = None  # a learned centre for each semantic token; None: yes, and no on Swin
    shortcut: bool | None = None  # pooled tokens stay in the first generation's sum; None: yes, and no on Swin
    prefix: str = "drop"  # class, distillation and register tokens: they end, or "keep" beside the semantic tokens
    stage: int | None = None  # of Swin: which one gets units, from 0; None: the deepest
    units: int | None = None  # of Swin: units of six blocks at the stage's end; None: all of its blocks
    generation: str = "attention"  # or "average", the control: windows are averaged and nothing is generated
    seed: int = 0  # of the centres' initial values

    structure_model: ClassVar[type[StructureModel]] = _Structure
    requires: ClassVar[frozenset[str]] = frozenset({"float", "full_grid", "token_blocks"})
    destroys: ClassVar[frozenset[str]] = frozenset({"class_token", "full_grid", "token_blocks"})
    dials: ClassVar[tuple[str, ...]] = ("after", "window", "samples")

    def __post_init__(self) -> None:
        for name, least in (("after", 0), ("samples", 1), ("window", 1), ("stage", 0), ("units", 1)):
            value = getattr(self, name)
            if value is not None and not is_whole(value, least=least):
                raise BadInput(f"{name} is {value!r}; accepted: a whole number, {least} or more, or none")
        if not is_whole(self.seed, least=0):
            raise BadInput(f"seed is {self.seed!r}; accepted: a whole number, 0 or more")
        for name in ("use_global", "shortcut"):
            if not isinstance(getattr(self, name), bool | None):
                raise BadInput(f"{name} is {getattr(self, name)!r}; accepted: true, false or none")
        if self.prefix not in PREFIX:
            raise unknown("prefix", str(self.prefix), PREFIX)
        if self.generation not in MAKES:
            raise unknown("generation", str(self.generation), MAKES)
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
        asked = cls(**knobs)
        made = replace(asked, generation="attention")
        settings = [replace(made, **setting) for setting in _ON[model.hierarchical].settings(model)]
        return replace(nearest_setting(model, settings, share), generation=asked.generation)

    def achieved(self, model: OpenModel, structure: Structure) -> dict[str, Any]:
        """{"patch_tokens": patch or semantic tokens in each block's MLP, counted in a run of the model}."""
        return {"patch_tokens": model.patch_tokens()}

    def check(self, model: OpenModel, structure: Structure) -> list[str]:
        """Blocks in whose MLP other than the planned number of semantic tokens are, counted in a run of the model."""
        counts = model.patch_tokens()
        planned = _ON[model.hierarchical].semantic_counts(model, structure)
        return [f"block {i}: asked {n} semantic tokens, has {counts[i]}" for i, n in planned.items() if counts[i] != n]
