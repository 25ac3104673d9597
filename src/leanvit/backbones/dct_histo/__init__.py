"""DCT-HistoTransformer: a light hybrid for histology, attention to low frequencies beside a convolution.

A reconstruction: of arXiv 2410.19166 (ICBME 2024) neither code nor full text was available. The paper gives the two
branches (attention behind a DCT and a low-pass filter that shortens the sequence; a mobile convolution) and its
results; normalisation, widths, depths, fusing and the network around the branches are ours, and nothing here claims the
published accuracy.

A block transforms its map to frequencies (`dct.py`), keeps the lowest ones, attends among them, and transforms
back; beside it runs an inverted residual. Both meet in a 1x1 convolution. Inside, maps are (B, H, W, C).

Data of patients: a random split by image puts the same patient on both sides. Split by patient, and report the split.
Importing this module registers the models with timm; `leanvit` does so whenever one is named. There are no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import build_model_with_cfg
from torch import Tensor, nn

from leanvit.backbones.dct_histo.model import DctHistoTransformer, resized_positions
from leanvit.models.registration import pretrained_cfg, register, renamed, weights_of

__all__ = ["DctHistoTransformer", "checkpoint_filter_fn"]

default_cfgs = {
    name: pretrained_cfg(
        num_classes=2,  # benign and malignant
        fixed_input_size=True,
        pool_size=(7, 7),
        first_conv="stem.0.conv",
        paper_name="DCT-HistoTransformer: Efficient Lightweight Vision Transformer with DCT Integration",
        paper_ids="arXiv:2410.19166",
    )
    for name in ("dct_histo_tiny", "dct_histo_small")
}


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint of this model, also of another image size: positions of frequencies are interpolated.

    Raises `ValueError` for one of another model, by its first names.
    """
    state = renamed(weights_of(state_dict), model, lambda name: name)
    own = model.state_dict()
    for name, tensor in state.items():
        if name.endswith(".pos_embed") and tensor.shape != own[name].shape and tensor.dim() == 4:
            state[name] = resized_positions(tensor, (own[name].shape[1], own[name].shape[2]))
    return state


def _create(variant: str, pretrained: bool, **kwargs: Any) -> DctHistoTransformer:
    model: DctHistoTransformer = build_model_with_cfg(
        DctHistoTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
        **kwargs,
    )
    return model


@register
def dct_histo_tiny(pretrained: bool = False, **kwargs: Any) -> DctHistoTransformer:
    """Widths of 48, 96, 192: 1.54 M parameters, 0.22 GMACs at 224x224 (a reconstruction)."""
    sizes = {"dims": (48, 96, 192), "depths": (2, 2, 2), "num_heads": (3, 6, 12)}
    return _create("dct_histo_tiny", pretrained, **{**sizes, **kwargs})


@register
def dct_histo_small(pretrained: bool = False, **kwargs: Any) -> DctHistoTransformer:
    """Widths of 64, 128, 256: 3.18 M parameters, 0.44 GMACs at 224x224 (a reconstruction)."""
    sizes = {"dims": (64, 128, 256), "depths": (2, 4, 2), "num_heads": (4, 8, 16)}
    return _create("dct_histo_small", pretrained, **{**sizes, **kwargs})
