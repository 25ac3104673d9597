"""GMM and ELM: masks that multiply attention scores, learned for training on little data (arXiv 2309.05375).

"Toward a Deeper Understanding: RetNet Viewed through Convolution", Pattern Recognition 2024. softmax(M * S): in every
layer the scaled scores of patches are multiplied by a mask of how far apart they are on the grid. A Gaussian mixture
mask has 2 x kernels x heads parameters a layer and goes with a model to other image sizes; an element-wise mask has
one for every pair of patches, shared by all heads, and is tied to its grid. Scores of prefix tokens stay as they are;
in windows the grid is the window. Multiplying before the softmax takes the explicit attention instead of the fused
kernel: a mask costs time, and hardly any parameters or multiply-accumulates.

With the default init nothing changes until the model is trained: the first Gaussian is 1 everywhere, the others weigh
nothing. `init=paper` is for training from scratch: it makes of a trained model an untrained one.

**Built with a mask** from the start are small vision transformers, by name: a host with the mask in front
(`gmm_vit_cifar`, `elm_cait_cifar`, ...); `mask="none"` builds the host without one. Of the hosts, ViT is held to the
official code by values, the others by their exact number of parameters: their details are a reconstruction from the
paper's description and the architectures that it names. Importing this module registers the models with timm; `leanvit`
does so whenever one is named. There are no pretrained weights.

Departures: a Gaussian is one exponential here; the official power of exp(-d²) underflows to 0 in float32 on grids
larger than 8x8, where far patches then have no factor at all. After token reduction (unknown to the paper) a kept token
keeps its place, a merged one has its receiver's. The published ViT also gives up its class token, which is part of its
gain; that is the model's choice, not this method's (`gmm_vit_cifar` has none). Of a model that reads its class token
alone, the mask of the last block changes no logit. The official ELM never reached Swin and the depth studies (a flag is
not passed on); here it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from timm.models import build_model_with_cfg
from torch import nn

from leanvit.backbones.gmm_mask.hosts import cait, masks_of, pit, swin, t2t, vit
from leanvit.backbones.gmm_mask.method import GmmMask
from leanvit.backbones.gmm_mask.official import checkpoint_filter_fn
from leanvit.models.registration import pretrained_cfg, register

__all__ = ["GmmMask", "checkpoint_filter_fn", "fuse"]

CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616), "crop_pct": 1.0}
SIZES = {  # data set: image side, classes, how many times larger a patch is than at 32 pixels
    "cifar": (32, 10, 1),
    "tiny_imagenet": (64, 200, 2),
}
HOSTS: dict[str, tuple[Callable[..., nn.Module], int, dict[str, Any]]] = {  # host: how, patch at 32 pixels, widths
    "vit": (vit, 4, {}),
    "vit_base": (vit, 2, {"embed_dim": 256, "depth": 8, "num_heads": 4}),
    "vit_heat": (vit, 2, {"embed_dim": 192, "depth": 8, "num_heads": 6}),
    "vit_d6": (vit, 4, {"embed_dim": 252, "depth": 6}),
    "vit_d15": (vit, 4, {"embed_dim": 144, "depth": 15}),
    "vit_d30": (vit, 4, {"embed_dim": 72, "depth": 30}),
    "vit_d60": (vit, 4, {"embed_dim": 72, "depth": 60}),
    "cait": (cait, 4, {}),
    "pit": (pit, 2, {}),
    "swin": (swin, 2, {}),
    "t2t": (t2t, 4, {}),
}
FIRST = {"pit": "patch_embed.conv", "t2t": "patch_embed.cells.0.attn.qkv"}  # where the first weights are
STUDIES = ("vit_base", "vit_heat", "vit_d6", "vit_d15", "vit_d30", "vit_d60")  # of CIFAR alone
NAMES = {
    f"{mask}_{host}_{data}": (mask, host, data)
    for mask in ("gmm", "elm")
    for host in HOSTS
    for data in SIZES
    if data == "cifar" or host not in STUDIES
}


def _cfg(host: str, data: str) -> dict[str, Any]:
    side, classes, larger = SIZES[data]
    last = side // (4 * HOSTS[host][1] * larger) if host in ("pit", "swin") else None  # behind two mergings
    return pretrained_cfg(
        pool_size=None if last is None else (last, last),
        num_classes=classes,
        input_size=(3, side, side),
        fixed_input_size=True,
        first_conv=FIRST.get(host, "patch_embed.proj"),
        classifier="head.fc" if host == "swin" else "head",
        origin_url="https://github.com/CatworldLee/Gaussian-Mixture-Mask-Attention",
        paper_ids="arXiv:2309.05375",
        **(CIFAR if data == "cifar" else {"crop_pct": 1.0}),
    )


default_cfgs = {name: _cfg(host, data) for name, (_, host, data) in NAMES.items()}


def _entry(name: str, mask: str, host: str, data: str) -> Callable[..., nn.Module]:
    build, patch, widths = HOSTS[host]
    side, _, larger = SIZES[data]
    usual = {"mask": mask, "img_size": side, "patch_size": patch * larger, **widths}

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        features = {"out_indices": 3, "feature_cls": "getter"}
        model: nn.Module = build_model_with_cfg(
            build,
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg=features,
            **{**usual, **kwargs},
        )
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"The host {host} with a mask of kind {mask}, built for {side}x{side} images."
    return create


ENTRIES: Mapping[str, Callable[..., nn.Module]] = {name: register(_entry(name, *what)) for name, what in NAMES.items()}


def fuse(model: nn.Module) -> nn.Module:
    """Keep every mask of a model as a constant, for inference; returns the model, in eval mode.

    A mask follows its values again once its model is put into training mode.
    """
    model.eval()
    for mask in masks_of(model):
        mask.fuse()
    return model
