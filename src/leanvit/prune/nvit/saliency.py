"""Hessian-aware saliency of units (NViT, arXiv 2110.04869, section 3.2), on tensors alone.

The score of a unit S is the squared first-order Taylor term of the loss, (sum over w in S of w dL/dw / divisor)²: by
Fisher's identity an estimate of the second-order change when S goes, with the coupling inside S kept. The sum is signed
and squared last; |w g| summed, or (w g)² summed, ranks differently. No Hessian is formed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from leanvit.prune.nvit.units import Layout

MOMENTUM = 0.9  # of the average across pruning steps


def divisors(depth: int) -> dict[str, float]:
    """How many tensors a unit's sum is taken over, roughly, so that kinds compare: the channels of the stream reach
    every block. Heads: 12 is what the published code comes to (6, and 2 once more)."""
    return {"embed": float(depth), "head": 12.0, "qk": 2.0, "v": 2.0, "mlp": 1.0}


def scores(
    layout: Layout, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], divisor: Mapping[str, float]
) -> Tensor:
    """Scores of all units, (total,) float32 (float64 of a float64 model), in the order of `layout.lists`.

    weights, gradients: by the names of the state dict; a tensor without a gradient adds nothing. Sums that are not
    finite count as 0.
    """
    like = next(iter(weights.values()))
    wide = torch.promote_types(like.dtype, torch.float32)
    sums = {units.name: torch.zeros(units.size, device=like.device, dtype=wide) for units in layout.lists}
    kinds = {units.name: units.kind for units in layout.lists}
    for part in layout.parts:
        gradient = gradients.get(part.tensor)
        if gradient is None or not any(kinds.get(axis) in part.scored for axis in part.axes):
            continue
        product = part.of(weights[part.tensor].detach().to(wide) * gradient.detach().to(wide))
        for along, axis in enumerate(part.axes):
            if axis in sums and kinds[axis] in part.scored:
                sums[axis] += _summed_but(product, along)
    flat = torch.cat([sums[units.name] / divisor[units.kind] for units in layout.lists])
    return torch.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0).square()


def smoothed(average: Tensor, new: Tensor, pruned: int) -> Tensor:
    """The average across pruning steps once `pruned` of them are done: the first takes `new` as it is.

    After the first step the average starts from 0: scores are a tenth of their size in the second (as published).
    """
    if pruned == 0:
        return new
    before = torch.zeros_like(new) if pruned == 1 else average
    return MOMENTUM * before + (1 - MOMENTUM) * new


def _summed_but(product: Tensor, axis: int) -> Tensor:
    others = [a for a in range(product.ndim) if a != axis]
    return product.sum(dim=others) if others else product
