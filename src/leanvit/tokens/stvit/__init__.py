"""STViT: image tokens become a few semantic tokens, on which the rest of the model runs (arXiv 2303.08685).

"Making Vision Transformers Efficient from A Token Sparsification View", CVPR 2023. After the first blocks (4 of 12),
windows of the grid are max-pooled to a few tokens each (2x2 of every 7x7: 16 of 196), and two generation blocks turn
these into cluster centres: first the pooled tokens attend to the image tokens, then, with a learned global centre added
to each, to one another and to the image tokens. All later blocks have the semantic tokens alone, and the classifier
reads their mean. DeiT-Tiny / -Small / -Base without class token then take 0.522 / 1.907 / 7.263 GMACs, 58 % less.

**A reconstruction.** The code of STViT on DeiT was never released. Made here from paper and the authors' answers, and
not verified: windows of 7x7 with 2x2 tokens each, no window for the keys, where the global centres enter, and that the
class token ends. The generation blocks are the model's own blocks: their linear of q, k and v is cut in two, their
other weights stay. So a trained model is compressed, and its accuracy comes back with training, a recovery by
distillation. From scratch: compress a fresh model, then train that run (recipe `stvit_deit_small`).

**On Swin** it is STViT-R, whose code was released: units of six blocks in the deepest stage compute on 3x3 semantic
tokens of each window and then recover the image tokens, so later stages, patch merging and maps of features stay as
they were. All weights of the blocks are carried over but the tables of relative positions of five blocks in six. Swin's
blocks have no layer scale, and unlike the published models, trained from scratch, these get none. The published models
themselves are `stvit_r_swin_tiny`, `_small` and `_base`.

Departures: prefix tokens (class, distillation, registers) are keys like image tokens, and end with the generation;
both heads of a distilled model read the mean. `prefix=keep` lets them go on beside the semantic tokens, with the head
as it was. Patch dropout is taken out: windows are pooled of the whole grid. Semantic tokens have no position in the
grid, so models whose later blocks read positions are refused, and of plain models maps of features after the
generation. `generation=average` is a control without attention: the windows' means go through the model's own blocks.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg

from leanvit.models.registration import pretrained_cfg, register
from leanvit.tokens.stvit.method import STViT
from leanvit.tokens.stvit.model import STViTR
from leanvit.tokens.stvit.official import checkpoint_filter_fn

__all__ = ["STViT", "STViTR", "checkpoint_filter_fn"]

_PAPER = {
    "license": "mit",
    "origin_url": "https://github.com/changsn/STViT-R",
    "paper_name": "Making Vision Transformers Efficient from A Token Sparsification View",
    "paper_ids": "arXiv:2303.08685",
    "first_conv": "patch_embed.conv1",
    "pool_size": (7, 7),
}
default_cfgs = {f"stvit_r_swin_{size}": pretrained_cfg(**_PAPER) for size in ("tiny", "small", "base")}


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **published: Any) -> STViTR:
    model: STViTR = build_model_with_cfg(
        STViTR,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**published, **kwargs},
    )
    return model


@register
def stvit_r_swin_tiny(pretrained: bool = False, **kwargs: Any) -> STViTR:
    """STViT-R-Swin-T: 28.32 M parameters, 3.60 GMACs at 224x224."""
    sizes = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
    return _create("stvit_r_swin_tiny", pretrained, kwargs, **sizes)


@register
def stvit_r_swin_small(pretrained: bool = False, **kwargs: Any) -> STViTR:
    """STViT-R-Swin-S: 49.63 M parameters, 5.80 GMACs at 224x224."""
    sizes = {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)}
    return _create("stvit_r_swin_small", pretrained, kwargs, **sizes)


@register
def stvit_r_swin_base(pretrained: bool = False, **kwargs: Any) -> STViTR:
    """STViT-R-Swin-B: 87.81 M parameters, 10.23 GMACs at 224x224."""
    sizes = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
    return _create("stvit_r_swin_base", pretrained, kwargs, **sizes)
