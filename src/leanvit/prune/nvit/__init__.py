"""NViT: global structural pruning with Hessian-aware saliency (Yang et al., CVPR 2023, arXiv 2110.04869).

Embedding channels, heads, q/k dims, v dims and MLP units of all blocks are ranked together by what the loss loses and
the figure gains with them. Between steps of training the worst groups are closed, until a target in MACs, parameters
or measured latency is met; then the model is cut to what is left.

Departures: the channels of the residual stream are scored over as many blocks as the model has (published: 12); gains
are relative to the dense model, so that `eta` means the same for every target (published: seconds of one V100); the
last pruning step stops at the target, unit by unit (at a latency only where no whole group fits); the task loss is
cross-entropy, and the teacher the dense root (published: DeiT's hard distillation from a RegNet, and the dense model).
The attention scale stays that of the original head width.

**ReViT** (section 4.3) is a vision transformer with the widths that this pruning leads to, `revit_tiny` and
`revit_small`: few heads and narrow q and k, a wide MLP in the middle, many heads at both ends; one rule from the
embedding width. The family is DeiT's distilled one: a class and a distillation token, two heads. Importing this module
registers the models with timm; `leanvit` does so whenever one is named. There are no pretrained weights.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg
from timm.models.deit import VisionTransformerDistilled

from leanvit.models.registration import pretrained_cfg, register
from leanvit.prune.nvit.method import NViT
from leanvit.prune.nvit.revit import build_revit

__all__ = ["NViT"]

default_cfgs = {
    name: pretrained_cfg(fixed_input_size=True, classifier=("head", "head_dist"))
    for name in ("revit_tiny", "revit_small")
}


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], *, embed: int) -> VisionTransformerDistilled:
    given = {"embed_dim": embed, "patch_size": 16, **kwargs}
    features = {"out_indices": 3, "feature_cls": "getter"}  # as timm's: the last three blocks
    model: VisionTransformerDistilled = build_model_with_cfg(
        build_revit, variant, pretrained, feature_cfg=features, **given
    )
    return model


@register
def revit_tiny(pretrained: bool = False, **kwargs: Any) -> VisionTransformerDistilled:
    """ReViT-T: 176 channels, 5.34 M parameters, 1.14 GMACs at 224x224."""
    return _create("revit_tiny", pretrained, kwargs, embed=176)


@register
def revit_small(pretrained: bool = False, **kwargs: Any) -> VisionTransformerDistilled:
    """ReViT-S: 384 channels, 23.12 M parameters, 4.71 GMACs at 224x224."""
    return _create("revit_small", pretrained, kwargs, embed=384)
