"""DHVT: a columnar vision transformer for small data sets (Lu et al., NeurIPS 2022, arXiv 2210.05958).

Three parts give it the bias of a convolutional network. A stem of strided convolutions makes the tokens (SOPE). The
feed-forward part runs a depthwise convolution over the grid of patches, and gates the class token by channel (DAFF). In
each block every head adds a token of its own to the sequence (HI-MHSA). There is no position embedding: the padding of
the convolutions gives tokens their position, so a model takes images of any size that its patches divide.

Names, parameters and numbers are those of the official code (ArieSeirack/DHVT, Apache-2.0), which released no weights.
Its ways that end in an error are not kept: a model without DHVT's parts, distillation, other patch sizes. Importing
this module registers the models with timm; `leanvit` does so whenever one is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import build_model_with_cfg
from torch import Tensor, nn

from leanvit.backbones.dhvt.model import DHVT
from leanvit.models.registration import pretrained_cfg, register, renamed

__all__ = ["DHVT", "checkpoint_filter_fn"]


def _cfg(side: int, classes: int) -> dict[str, Any]:
    crop = 1.0 if side <= 32 else 0.875
    return pretrained_cfg(
        input_size=(3, side, side),
        num_classes=classes,
        crop_pct=crop,
        first_conv="patch_embed.proj.0.0",
        origin_url="https://github.com/ArieSeirack/DHVT",
        license="apache-2.0",
        paper_ids="arXiv:2210.05958",
    )


default_cfgs = {
    **{f"dhvt_{size}_cifar_patch{patch}": _cfg(32, 100) for size in ("tiny", "small") for patch in (4, 2)},
    **{f"dhvt_{size}_domain_patch16": _cfg(224, 345) for size in ("tiny", "small")},
    **{f"dhvt_{size}_imagenet_patch16": _cfg(224, 1000) for size in ("tiny", "small")},
}


def checkpoint_filter_fn(state: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint of the official code: the names are the same. Raises `ValueError` for that of another model."""
    return renamed(state, model, lambda name: name)


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **published: Any) -> DHVT:
    model: DHVT = build_model_with_cfg(
        DHVT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},  # as timm's ViT: the last three blocks
        **{**published, **kwargs},
    )
    return model


@register
def dhvt_tiny_cifar_patch4(pretrained: bool = False, **kwargs: Any) -> DHVT:
    """DHVT-T for 32x32 images in patches of 4: 6.01 M parameters, 0.39 GMACs."""
    given = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "num_heads": 4}
    return _create("dhvt_tiny_cifar_patch4", pretrained, kwargs, **given)


@register
def dhvt_small_cifar_patch4(pretrained: bool = False, **kwargs: Any) -> DHVT:
    """DHVT-S for 32x32 images in patches of 4: 23.4 M parameters, 1.54 GMACs."""
    given = {"img_size": 32, "patch_size": 4, "embed_dim": 384, "num_heads": 8}
    return _create("dhvt_small_cifar_patch4", pretrained, kwargs, **given)


@register
def dhvt_tiny_cifar_patch2(pretrained: bool = False, **kwargs: Any) -> DHVT:
    """DHVT-T for 32x32 images in patches of 2: 5.85 M parameters, 1.72 GMACs."""
    given = {"img_size": 32, "patch_size": 2, "embed_dim": 192, "num_heads": 4}
    return _create("dhvt_tiny_cifar_patch2", pretrained, kwargs, **given)


@register
def dhvt_small_cifar_patch2(pretrained: bool = False, **kwargs: Any) -> DHVT:
    """DHVT-S for 32x32 images in patches of 2: 22.8 M parameters, 6.23 GMACs."""
    given = {"img_size": 32, "patch_size": 2, "embed_dim": 384, "num_heads": 8}
    return _create("dhvt_small_cifar_patch2", pretrained, kwargs, **given)


@register
def dhvt_tiny_domain_patch16(pretrained: bool = False, **kwargs: Any) -> DHVT:
    """DHVT-T as trained on DomainNet (345 classes): 6.11 M parameters, 1.37 GMACs at 224x224."""
    return _create("dhvt_tiny_domain_patch16", pretrained, kwargs, embed_dim=192, num_heads=4)


@register
def dhvt_small_domain_patch16(pretrained: bool = False, **kwargs: Any) -> DHVT:
    """DHVT-S as trained on DomainNet (345 classes): 23.8 M parameters, 5.06 GMACs at 224x224."""
    return _create("dhvt_small_domain_patch16", pretrained, kwargs, embed_dim=384, num_heads=6)


@register
def dhvt_tiny_imagenet_patch16(pretrained: bool = False, **kwargs: Any) -> DHVT:
    """DHVT-T as trained on ImageNet-1k: 6.27 M parameters, 1.37 GMACs at 224x224."""
    return _create("dhvt_tiny_imagenet_patch16", pretrained, kwargs, embed_dim=192, num_heads=3)


@register
def dhvt_small_imagenet_patch16(pretrained: bool = False, **kwargs: Any) -> DHVT:
    """DHVT-S as trained on ImageNet-1k: 24.0 M parameters, 5.06 GMACs at 224x224."""
    return _create("dhvt_small_imagenet_patch16", pretrained, kwargs, embed_dim=384, num_heads=6)
