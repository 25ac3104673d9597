"""T2T-ViT: a vision transformer that learns how to make its tokens (arXiv 2101.11986, ICCV 2021).

In place of one convolution, three overlapping soft splits with a small attention behind each of the first two make the
tokens; a deep and narrow transformer follows. That is what lets it train from scratch on ImageNet-1k. Importing this
module registers the published models with timm; `leanvit` does so whenever one is named. There are no pretrained
weights to download: official checkpoints load by their own names.

    timm.create_model("t2t_vit_14", pretrained=True, pretrained_cfg_overlay={"file": "81.5_T2T_ViT_14.pth"})

Inside, the plain ones are plain vision transformers, so every method for their blocks runs on them; those with gated
channels (`_se`), ghost features and dense connections open as traced graphs.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg

from leanvit.backbones.t2t_vit.model import T2TViT
from leanvit.backbones.t2t_vit.official import checkpoint_filter_fn
from leanvit.backbones.t2t_vit.trunks import T2TViTDense, T2TViTGhost, T2TViTSE
from leanvit.models.registration import pretrained_cfg, register

__all__ = ["T2TViT", "T2TViTDense", "T2TViTGhost", "T2TViTSE", "checkpoint_filter_fn"]

_PERFORMER, _TRANSFORMER = "tokens_to_token.attention1.kqv", "tokens_to_token.attention1.attn.qkv"


def _cfg(first: str = _PERFORMER) -> dict[str, Any]:
    return pretrained_cfg(
        fixed_input_size=True,
        first_conv=first,
        origin_url="https://github.com/yitu-opensource/T2T-ViT",
        license="bsd-3-clause-clear",
        paper_ids="arXiv:2101.11986",
        paper_name="Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet",
    )


default_cfgs = {
    **{f"t2t_vit_{n}": _cfg() for n in (7, 10, 12, 14, 19, 24)},
    **{f"t2t_vit_t_{n}": _cfg(_TRANSFORMER) for n in (14, 19, 24)},
    **{f"t2t_vit_{n}": _cfg() for n in ("14_resnext", "14_wide", "14_se", "16_ghost", "dense")},
}


def _create(
    variant: str, pretrained: bool, kwargs: dict[str, Any], kind: type[T2TViT] = T2TViT, **given: Any
) -> T2TViT:
    model: T2TViT = build_model_with_cfg(
        kind,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},  # as timm's: the last three blocks
        **{**given, **kwargs},
    )
    return model


_SMALL: dict[str, Any] = {"embed_dim": 256, "num_heads": 4, "mlp_ratio": 2.0}
_14: dict[str, Any] = {"embed_dim": 384, "depth": 14, "num_heads": 6}
_19: dict[str, Any] = {"embed_dim": 448, "depth": 19, "num_heads": 7}
_24: dict[str, Any] = {"embed_dim": 512, "depth": 24, "num_heads": 8}


@register
def t2t_vit_7(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-7: 256 channels, 4.26 M parameters, 1.16 GMACs at 224x224."""
    return _create("t2t_vit_7", pretrained, kwargs, **_SMALL, depth=7)


@register
def t2t_vit_10(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-10: 256 channels, 5.83 M parameters, 1.53 GMACs at 224x224."""
    return _create("t2t_vit_10", pretrained, kwargs, **_SMALL, depth=10)


@register
def t2t_vit_12(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-12: 256 channels, 6.89 M parameters, 1.77 GMACs at 224x224."""
    return _create("t2t_vit_12", pretrained, kwargs, **_SMALL, depth=12)


@register
def t2t_vit_14(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-14: 384 channels, 21.47 M parameters, 4.80 GMACs at 224x224."""
    return _create("t2t_vit_14", pretrained, kwargs, **_14)


@register
def t2t_vit_19(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-19: 448 channels, 39.09 M parameters, 8.50 GMACs at 224x224."""
    return _create("t2t_vit_19", pretrained, kwargs, **_19)


@register
def t2t_vit_24(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-24: 512 channels, 64.00 M parameters, 13.69 GMACs at 224x224."""
    return _create("t2t_vit_24", pretrained, kwargs, **_24)


@register
def t2t_vit_t_14(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT_t-14, softmax attention in its tokenizer: 21.47 M parameters, 6.11 GMACs at 224x224."""
    return _create("t2t_vit_t_14", pretrained, kwargs, **_14, tokens_type="transformer")


@register
def t2t_vit_t_19(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT_t-19, softmax attention in its tokenizer: 39.08 M parameters, 9.81 GMACs at 224x224."""
    return _create("t2t_vit_t_19", pretrained, kwargs, **_19, tokens_type="transformer")


@register
def t2t_vit_t_24(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT_t-24, softmax attention in its tokenizer: 64.00 M parameters, 15.00 GMACs at 224x224."""
    return _create("t2t_vit_t_24", pretrained, kwargs, **_24, tokens_type="transformer")


@register
def t2t_vit_14_resnext(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-14 with 32 heads: 21.47 M parameters, 4.80 GMACs at 224x224."""
    return _create("t2t_vit_14_resnext", pretrained, kwargs, **(_14 | {"num_heads": 32}))


@register
def t2t_vit_14_wide(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """Four blocks of 768 channels in place of fourteen: 25.00 M parameters, 5.24 GMACs at 224x224."""
    return _create("t2t_vit_14_wide", pretrained, kwargs, embed_dim=768, depth=4, num_heads=12)


@register
def t2t_vit_14_se(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-14 with gated channels: 21.72 M parameters."""
    return _create("t2t_vit_14_se", pretrained, kwargs, kind=T2TViTSE, **_14)


@register
def t2t_vit_16_ghost(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """Sixteen blocks of ghost features, 384 channels: 16.17 M parameters."""
    return _create("t2t_vit_16_ghost", pretrained, kwargs, kind=T2TViTGhost, **(_14 | {"depth": 16}))


@register
def t2t_vit_dense(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """Nineteen densely connected blocks, 128 to 584 channels: 23.62 M parameters."""
    return _create("t2t_vit_dense", pretrained, kwargs, kind=T2TViTDense, embed_dim=128, num_heads=8, mlp_ratio=2.0)
