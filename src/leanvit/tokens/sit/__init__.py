"""SiT: self-slimmed vision transformer (Zong et al., ECCV 2022, arXiv 2111.12624).

After each stage of blocks a small module (TSM) turns all patch tokens into fewer ones, each a learned weighted mean of
all: half of them by default, then a quarter and an eighth. Prefix tokens pass. Counts are static, so exported graphs
are plain matrix products. A new module knows nothing: **off the shelf, without training, the model is useless**; give
`compress` a recovery.

The recovery learns by feature recalibration distillation (FRD), with the dense model as teacher: cross-entropy,
`token_weight` times the mean over all blocks of the squared distance between the teacher's patch tokens and the
student's, and `logit_weight` times the divergence of the logits. A reverse module (RTSM) for each slimmed block makes
as many tokens as the teacher has. It belongs to the objective: it is trained along at `lr_scale` times the rate,
resumes with the training, and is in no saved model. Distances are of residual streams as they are, without a norm: deep
blocks weigh more, as published.

Slots stand for no patches: no other token reduction may follow in later blocks (in earlier ones it may), and models
whose attention reads where tokens are (rotary positions, relative biases, windows) are refused. A mean over the patches
is one over the slots. Token maps show for each patch the slot that weighs it most. The TSM takes any number of patches
and gives as many tokens as before; another image size in the distillation is refused.

The published models are built by name: LV-ViTs with the same modules between their stages, so that 196 patches become
98, 49 and 24. Importing this module registers them with timm; `leanvit` does so whenever one is named. There are no
pretrained weights to download: checkpoints of SiT's authors load by their own names.

    timm.create_model("sit_small", pretrained=True, pretrained_cfg_overlay={"file": "sit_small.pth"})

Departures: the published models slim LV-ViTs late (`sit_small`: after 9, 12 and 14 of 16 blocks); the default of the
method is at the quarters of any plain ViT, which costs half of the MACs. There is no second, convolutional teacher: its
official code does not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from leanvit.models.registration import pretrained_cfg, register
from leanvit.models.registry import build, checkpoint_filter
from leanvit.tokens.sit.distillation import FeatureRecalibration, ReverseSlimming
from leanvit.tokens.sit.method import SiT

__all__ = ["FeatureRecalibration", "ReverseSlimming", "SiT", "checkpoint_filter_fn"]


def _cfg(size: int = 224) -> dict[str, Any]:
    return pretrained_cfg(
        input_size=(3, size, size),
        crop_pct=0.875,
        fixed_input_size=True,
        first_conv="patch_embed.conv1",
        origin_url="https://github.com/Sense-X/SiT",
        license="apache-2.0",
        paper_ids="arXiv:2111.12624",
        paper_name="Self-slimmed Vision Transformer",
    )


default_cfgs = {
    **{f"sit_{size}": _cfg() for size in ("tiny", "xsmall", "small", "medium")},
    "sit_large": _cfg(288),
}


def checkpoint_filter_fn(state: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """An official checkpoint for `model`: LV-ViT's filter, which knows the names of slimming modules too.

    Raises:
        ValueError: tensors that are left over on either side (the first are named).
    """
    theirs: Any = checkpoint_filter("lvvit_small")
    found: dict[str, Tensor] = theirs(state, model)
    return found


def _create(
    variant: str, dense: str, pretrained: bool, kwargs: dict[str, Any], stage_blocks: tuple[int, ...]
) -> nn.Module:
    return build(dense, pretrained, **{"variant": variant, "stage_blocks": stage_blocks, **kwargs})


@register
def sit_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SiT-T (official sit_lvvit_tiny), slimmed after blocks 1, 2 and 3 of 14: 15.55 M parameters, 0.99 GMACs."""
    return _create("sit_tiny", "lvvit_tiny", pretrained, kwargs, (1, 1, 1, 11))


@register
def sit_xsmall(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SiT-XS (official sit_lvvit_xsmall), slimmed after blocks 1, 2 and 3 of 16: 25.24 M parameters, 1.48 GMACs."""
    return _create("sit_xsmall", "lvvit_small", pretrained, kwargs, (1, 1, 1, 13))


@register
def sit_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SiT-S (official sit_lvvit_small), slimmed after blocks 9, 12 and 14 of 16: 25.24 M parameters, 4.02 GMACs."""
    return _create("sit_small", "lvvit_small", pretrained, kwargs, (9, 3, 2, 2))


@register
def sit_medium(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SiT-M (official sit_lvvit_medium), slimmed after blocks 10, 14 and 17 of 20: 55.13 M parameters, 8.02 GMACs."""
    return _create("sit_medium", "lvvit_medium", pretrained, kwargs, (10, 4, 3, 3))


@register
def sit_large(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SiT-L (official sit_lvvit_large), slimmed after blocks 10, 14 and 17 of 24: 147.40 M parameters, 34.31 GMACs."""
    return _create("sit_large", "lvvit_large", pretrained, kwargs, (10, 4, 3, 7))
