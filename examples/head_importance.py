"""Head pruning by importance: a method of one's own (Michel et al., "Are Sixteen Heads Really Better than One?",
NeurIPS 2019, arXiv 1905.10650).

A head's importance is how much the loss would change without it, to first order: |output · gradient|, summed over the
head's output for an image, averaged over images (equation 2), normed per block. The least important heads go.
Departure: heads are cut out, not masked, in one step; one stays in every block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from leanvit.anatomy import OpenModel
from leanvit.anatomy.surgery.widths import set_attention_widths
from leanvit.data import loader
from leanvit.errors import Refused
from leanvit.knobs import Count, check_fields, knob
from leanvit.recipe import Data, register


@register(
    "head_importance",
    title="Are Sixteen Heads Really Better than One?",
    arxiv="1905.10650",
    venue="NeurIPS 2019",
    summary="cuts the attention heads whose removal changes the loss least, to first order",
)
@dataclass(frozen=True)
class HeadImportance:
    """Knobs of the method."""

    ratio: Annotated[float, Ge(0), Lt(1)] = knob(0.25, "part of all heads to cut")
    images: Count = knob(256, "that importance is averaged over")

    requires: ClassVar[frozenset[str]] = frozenset({"float"})
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def learn(self, model: OpenModel, data: Data) -> dict[str, Any]:
        """Which heads of each block stay."""
        attns = [block.attn for block in model.blocks]
        if not model.isotropic or any(a.gate or a.norm.state_dict() or a.qk_dim != a.v_dim for a in attns):
            raise Refused("head_importance knows plain ViTs only, with nothing in their attention but q, k, v and proj")
        seen = loader(data.dataset.limited(self.images, seed=data.seed), data.preprocess, batch_size=data.batch_size)
        kept = kept_heads(importance(model, seen), self.ratio)
        return {"heads": kept}

    def shape(self, model: OpenModel, structure: dict[str, Any]) -> None:
        """Build the narrower attentions, empty: this runs again when the model is loaded."""
        for block, heads in zip(model.blocks, structure["heads"], strict=True):
            set_attention_widths(block.attn, heads=len(heads))

    def fold(self, model: OpenModel, structure: dict[str, Any], before: Mapping[str, Tensor]) -> None:
        """Move in the values that stay: rows of qkv, columns of proj. `before`: the state dict of the uncut model."""
        for i, (block, heads) in enumerate(zip(model.blocks, structure["heads"], strict=True)):
            attn, at = block.attn, f"blocks.{i}.attn."
            old = {name.removeprefix(at): t for name, t in before.items() if name.startswith(at)}
            indices = torch.arange(old["proj.weight"].shape[1]).unflatten(0, (-1, attn.v_dim))
            columns = indices[heads].flatten()  # (heads * v_dim,)
            rows = torch.cat([columns + part * indices.numel() for part in range(3)])  # q, k, v
            kept = {n: t[rows] if n.startswith("qkv.") else t for n, t in old.items()}
            attn.load_state_dict(kept | {"proj.weight": old["proj.weight"][:, columns]})

    def achieved(self, model: OpenModel, structure: dict[str, Any]) -> dict[str, Any]:
        return {"heads": [block.attn.heads for block in model.blocks]}


def importance(model: OpenModel, batches: Any) -> list[Tensor]:
    """One score a head, (heads,) for each block."""
    outs: list[Tensor] = []  # what goes into each proj: the heads' outputs side by side (B, N, heads * v_dim)
    hooks = [b.attn.proj.register_forward_pre_hook(lambda _, given: outs.append(given[0])) for b in model.blocks]
    scores, images = [torch.zeros(block.attn.heads) for block in model.blocks], 0
    for batch in batches:
        outs.clear()
        loss = cross_entropy(model(batch.images), batch.targets, reduction="sum")
        for score, out, slope in zip(scores, outs, torch.autograd.grad(loss, outs), strict=True):
            score += (out * slope).detach().unflatten(-1, (len(score), -1)).sum(dim=(1, 3)).abs().sum(dim=0)
        images += len(batch.targets)
    for hook in hooks:
        hook.remove()
    return [score / images for score in scores]


def kept_heads(scores: list[Tensor], ratio: float) -> list[list[int]]:
    """The heads that stay in each block when the least important `ratio` of all goes."""
    ranked = sorted((float(s), b, h) for b, row in enumerate(scores) for h, s in enumerate(normalize(row, dim=0)))
    kept = [set(range(len(row))) for row in scores]
    for _, block, head in ranked[: int(ratio * len(ranked))]:
        kept[block] -= {head} if len(kept[block]) > 1 else set()
    return [sorted(heads) for heads in kept]
