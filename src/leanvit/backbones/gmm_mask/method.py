"""GMM and ELM as a method: knobs, and where masks are put."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from timm.layers import PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn

from leanvit.anatomy import OpenModel
from leanvit.anatomy.families.swin import OpenSwin
from leanvit.anatomy.parts.masks import INITS, KERNELS, MASKS, ScoreMask, make_mask
from leanvit.anatomy.parts.windows import WindowAttention
from leanvit.data import keyed
from leanvit.errors import BadInput, Refused, is_whole, unknown
from leanvit.recipe.protocol import Structure
from leanvit.recipe.registry import method
from leanvit.recipe.structure import Index, Rising, StructureModel


class _Structure(StructureModel):
    blocks: Annotated[list[Index], Rising]


@method("gmm_mask")
@dataclass(frozen=True)
class GmmMask:
    """Knobs of the method. Kernels and initial values of `init=paper` are the paper's."""

    mask: str = "gmm"  # "gmm", a mixture of Gaussians of the distance, or "elm", a factor for every pair of patches
    num_kernels: int = KERNELS  # Gaussians for each head, of gmm
    blocks: tuple[int, ...] | None = None  # where, from 0; None: in every block
    init: str = "identity"  # "identity" changes nothing until it is trained; "paper" is for training from scratch
    weight_decay: bool = True  # whether the optimiser decays the masks' values too, as the official code does
    seed: int = 0  # of the initial values

    structure_model: ClassVar[type[StructureModel]] = _Structure
    requires: ClassVar[frozenset[str]] = frozenset({"float", "places", "token_blocks"})
    destroys: ClassVar[frozenset[str]] = frozenset({"free_attention"})

    def __post_init__(self) -> None:
        if self.mask not in MASKS:
            raise unknown("mask", str(self.mask), MASKS)
        if self.init not in INITS:
            raise unknown("init", str(self.init), INITS)
        if not is_whole(self.num_kernels, least=1):
            raise BadInput(f"num_kernels is {self.num_kernels!r}; accepted: a whole number, 1 or more")
        if not is_whole(self.seed, least=0):
            raise BadInput(f"seed is {self.seed!r}; accepted: a whole number, 0 or more")
        if not isinstance(self.weight_decay, bool):
            raise BadInput(f"weight_decay is {self.weight_decay!r}; accepted: true or false")
        if isinstance(self.blocks, list):
            object.__setattr__(self, "blocks", tuple(self.blocks))
        if self.blocks is not None:
            _check_blocks(self.blocks)

    def learn(self, model: OpenModel, data: object = None) -> Structure:
        """Where: {"blocks": [int, ...]}. Raises `BadInput` for a block that the model does not have."""
        depth = len(model.blocks)
        chosen = range(depth) if self.blocks is None else sorted(self.blocks)
        for index in chosen:
            if index >= depth:
                raise BadInput(f"blocks names {index}; accepted: 0 to {depth - 1}")
        return {"blocks": list(chosen)}

    def shape(self, model: OpenModel, structure: Structure) -> None:
        """Put the masks in, by their grids.

        Raises:
            BadInput: a plan that names a block that is not there. Refused: a block that is masked already, or a model
            without a grid of its own.
        """
        _check_blocks(structure["blocks"])
        for index in structure["blocks"]:
            if index >= len(model.blocks):
                raise BadInput(f"the plan masks block {index}; accepted: 0 to {len(model.blocks) - 1}")
            block = model.blocks[index]
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

    def achieved(self, model: OpenModel) -> dict[str, Any]:
        """{"mask_parameters": parameters of all masks}."""
        masks = [module for module in model.modules() if isinstance(module, ScoreMask)]
        return {"mask_parameters": sum(p.numel() for mask in masks for p in mask.parameters())}

    def _made(self, attn: Any, grid: tuple[int, int], like: Tensor) -> ScoreMask:
        return make_mask(
            self.mask, attn.maps, grid, kernels=self.num_kernels, like=like, weight_decay=self.weight_decay
        )


def _grid(model: Any, attn: Any) -> tuple[int, int]:
    """(rows, columns) of what attends in an attention: its windows, or the patches of an image of the model's size."""
    if isinstance(attn, WindowAttention):
        return attn.window
    if isinstance(model, OpenSwin):
        raise Refused(f"{attn.name} attends globally in a hierarchical model: gmm_mask knows the grids of windows")
    _, height, width = model.probe_size()
    grid: tuple[int, int] = model._grid(height, width)
    return grid


def _like(holder: nn.Module) -> Tensor:
    return next(p for p in holder.parameters() if p.is_floating_point())


def _check_blocks(blocks: Any) -> None:
    accepted = "accepted: different block numbers, from 0"
    if not isinstance(blocks, tuple | list) or not all(is_whole(b, least=0) for b in blocks):
        raise BadInput(f"blocks is {blocks!r}; {accepted}")
    if len(set(blocks)) != len(blocks):
        raise BadInput(f"blocks is {blocks!r}, with a number twice; {accepted}")
