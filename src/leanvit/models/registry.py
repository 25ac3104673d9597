"""Models that leanvit builds itself: registered with timm by the module that has them, when one is first named."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import timm
from torch import nn

from leanvit.errors import BadInput, unknown

_MASKED = (  # hosts of a mask on their scores
    *(f"{host}_{data}" for host in ("vit", "cait", "pit", "swin", "t2t") for data in ("cifar", "tiny_imagenet")),
    *(f"vit_{study}_cifar" for study in ("base", "heat", "d6", "d15", "d30", "d60")),
)
MODULES = {  # folder of a paper -> the names that it registers
    "dct_histo": ("dct_histo_tiny", "dct_histo_small"),
    "dhvt": tuple(
        f"dhvt_{size}_{kind}"
        for size in ("tiny", "small")
        for kind in ("cifar_patch4", "cifar_patch2", "domain_patch16", "imagenet_patch16")
    ),
    "dualtoken_vit": ("dualtoken_vit_tiny_mix", "dualtoken_vit_small_mix", "dualtoken_vit_small"),
    "gmm_mask": tuple(f"{mask}_{host}" for mask in ("gmm", "elm") for host in _MASKED),
    "nvit": ("revit_tiny", "revit_small"),
    "litv2": ("litv2_small", "litv2_medium", "litv2_base", "litv2_base_384"),
    "lv_vit": tuple(f"lvvit_{size}" for size in ("tiny", "small", "medium", "large")),
    "sit": tuple(f"sit_{size}" for size in ("tiny", "xsmall", "small", "medium", "large")),
    "stvit": ("stvit_r_swin_tiny", "stvit_r_swin_small", "stvit_r_swin_base"),
    "t2t_vit": (
        *(f"t2t_vit_{n}" for n in (7, 10, 12, 14, 19, 24)),
        *(f"t2t_vit_t_{n}" for n in (14, 19, 24)),
        *("t2t_vit_14_resnext", "t2t_vit_14_wide", "t2t_vit_14_se", "t2t_vit_16_ghost", "t2t_vit_dense"),
    ),
}
_FAMILIES = {"nvit": "prune", "sit": "tokens", "stvit": "tokens"}  # of papers that are no backbones
HOMES = {module: f"leanvit.{_FAMILIES.get(module, 'backbones')}.{module}" for module in MODULES}
BUILDERS = {name: HOMES[module] for module, names in MODULES.items() for name in names}

ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model")  # of training checkpoints: an average first, as timm


def require_model(name: str, *, kind: str = "timm model") -> None:
    """Raise `BadInput`, with the nearest names, unless timm or leanvit can build a model of this name."""
    base = name.split(".")[0]
    if base in BUILDERS:
        import_module(BUILDERS[base])
    if base in MODULES and not timm.is_model(base):
        raise BadInput(f"{kind} {name!r} is an architecture; accepted: {', '.join(MODULES[base])}")
    if not timm.is_model(base):
        raise unknown(kind, name, {*timm.list_models(), *BUILDERS})


def checkpoint_filter(name: str) -> Callable[..., dict[str, Any]] | None:
    """What brings an official checkpoint of one of leanvit's own models to its names; None for any other name."""
    module = BUILDERS.get(name.split(".")[0])
    return None if module is None else getattr(import_module(module), "checkpoint_filter_fn", None)


def build(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """One of leanvit's own models by its name, for a paper whose models are variants of another paper's.

    Args:
        name: one of `BUILDERS`.
        kwargs: arguments of the model. `variant`, where the entry takes it: the name that timm knows the model by.
    """
    model: nn.Module = getattr(import_module(BUILDERS[name]), name)(pretrained, **kwargs)
    return model
