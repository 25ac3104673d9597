"""GMM and ELM as a method: knobs, and where masks are put."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from timm.layers import PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn

from leanvit.anatomy import OpenModel
from leanvit.anatomy.parts.masks import INITS, KERNELS, MASKS, ScoreMask, make_mask
from leanvit.data import keyed
from leanvit.errors import Refused
from leanvit.knobs import RISING, Blocks, Choice, Count, Index, check_fields, knob
from leanvit.recipe.protocol import Structure
from leanvit.recipe.registry import method


@dataclass(frozen=True)
class _Structure:
    blocks: Annotated[tuple[Index, ...], RISING]


@method("gmm_mask")
@dataclass(frozen=True)
class GmmMask:
    """Knobs of the method. Kernels and initial values of `init=paper` are the paper's."""

    mask: Annotated[str, Choice(MASKS)] = knob(
        "gmm", "gmm, a mixture of Gaussians of the distance, or elm, a factor for every pair of patches"
    )
    num_kernels: Count = knob(KERNELS, "Gaussians for each head, of gmm")
    blocks: Blocks | None = knob(None, "where; null: in every block", example=(0, 1, 2))
    init: Annotated[str, Choice(INITS)] = knob(
        "identity", "identity changes nothing until it is trained; paper is for training from scratch"
    )
    weight_decay: bool = knob(True, "whether the optimiser decays the masks' values too, as the official code does")
    seed: Index = knob(0, "of the initial values")

    structure_model: ClassVar[type] = _Structure
    requires: ClassVar[frozenset[str]] = frozenset({"float", "places", "token_blocks"})
    destroys: ClassVar[frozenset[str]] = frozenset({"free_attention"})

    def __post_init__(self) -> None:
        check_fields(self)

    def learn(self, model: OpenModel, data: object = None) -> Structure:
        """Where: {"blocks": [int, ...]}. Raises `BadInput` for a block that the model does not have."""
        depth = len(model.blocks)
        chosen = range(depth) if self.blocks is None else sorted(self.blocks)
        for index in chosen:
            model.block(index)
        return {"blocks": list(chosen)}

    def shape(self, model: OpenModel, structure: Structure) -> None:
        """Put the masks in, by their grids.

        Raises:
            BadInput: a plan that names a block that is not there. Refused: a block that is masked already, or a model
            without a grid of its own.
        """
        for block in [model.block(index) for index in structure["blocks"]]:
            for attn in block.attentions():
                holder: Any = attn if isinstance(attn, nn.Module) else block
                if any(isinstance(term, ScoreMask) for term in attn.terms):
                    raise Refused(f"{attn.name} has a mask on its scores already: give gmm_mask other blocks")
                holder.hold(self._made(attn, _grid(model, attn), _like(holder)).train(model.training))
        drop = getattr(model, "patch_drop", None)
        if structure["blocks"] and type(drop) is PatchDropout:  # masks must know which patches stay
            kept = PatchDropoutWithIndices(drop.prob, drop.num_prefix_tokens, drop.ordered)
            model.patch_drop = kept.train(drop.training)

    def fold(self, model: OpenModel, structure: Structure, before: dict[str, Tensor]) -> None:
        """Initial values, drawn by the seed and the attention's name."""
        for index in structure["blocks"]:
            for attn in model.blocks[index].attentions():
                for mask in (term for term in attn.terms if isinstance(term, ScoreMask)):
                    mask.reset(self.init, keyed.generator(self.seed, "gmm_mask", attn.name))

    def tied_to(self, structure: Structure) -> dict[str, str]:
        """The grid, with elm: a Gaussian mixture knows distances in units of any grid."""
        tied = self.mask == "elm" and structure["blocks"]
        return {"grid": "elm has a value for each pair of patches"} if tied else {}

    def achieved(self, model: OpenModel, structure: Structure) -> dict[str, Any]:
        """{"mask_parameters": parameters of all masks}."""
        masks = [module for module in model.modules() if isinstance(module, ScoreMask)]
        return {"mask_parameters": sum(p.numel() for mask in masks for p in mask.parameters())}

    def _made(self, attn: Any, grid: tuple[int, int], like: Tensor) -> ScoreMask:
        return make_mask(
            self.mask, attn.maps, grid, kernels=self.num_kernels, like=like, weight_decay=self.weight_decay
        )


def _grid(model: OpenModel, attn: Any) -> tuple[int, int]:
    """(rows, columns) of what attends in an attention: its windows, or the patches of an image of the model's size."""
    if attn.windowed:
        window: tuple[int, int] = attn.window
        return window
    if model.hierarchical:
        raise Refused(f"{attn.name} attends globally in a hierarchical model: gmm_mask knows the grids of windows")
    return model.grid()


def _like(holder: nn.Module) -> Tensor:
    return next(p for p in holder.parameters() if p.is_floating_point())
