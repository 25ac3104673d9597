"""Adapter for hybrids of convolution and attention, opened as a traced graph (`anatomy/traced/model.py`).

The classes named here are those for which opening was proven (`tests/anatomy/test_traced.py`); what their forwards may
hold is whitelisted by module and by function in `anatomy/traced/rules.py`. Read from timm 1.0.31.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from leanvit.anatomy.adapters.parts import check_untouched, opens_itself
from leanvit.anatomy.traced.model import OpenTraced
from leanvit.anatomy.traced.rules import CACHES
from leanvit.errors import Refused

SUPPORTED = (
    "hybrids and hierarchies of timm as a traced graph (mobilevit_*, mobilevitv2_*, efficientformer_*, "
    "efficientformerv2_*, tiny_vit_*, levit_*, fastvit_*, repvit_*, edgenext_*, efficientvit_*, maxvit_*, coatnet_*, "
    "pvt_v2_*, davit_*, nextvit_*, poolformer_*, caformer_*, shvit_*, nest_*, gcvit_*, visformer_*, iformer_*, pit_*, "
    "cait_*, swinv2_cr_*, botnet*)"
)

CLASSES = {  # module of timm: classes
    "byobnet": ("ByobNet",),
    "cait": ("Cait",),
    "davit": ("DaVit",),
    "edgenext": ("EdgeNeXt",),
    "efficientformer": ("EfficientFormer",),
    "efficientformer_v2": ("EfficientFormerV2",),
    "efficientvit_mit": ("EfficientVit", "EfficientVitLarge"),
    "efficientvit_msra": ("EfficientVitMsra",),
    "fastvit": ("FastVit",),
    "gcvit": ("GlobalContextVit",),
    "iformer": ("IFormer",),
    "levit": ("Levit", "LevitDistilled"),
    "maxxvit": ("MaxxVit",),
    "metaformer": ("MetaFormer",),
    "nest": ("Nest",),
    "nextvit": ("NextViT",),
    "pit": ("PoolingVisionTransformer",),
    "pvt_v2": ("PyramidVisionTransformerV2",),
    "repvit": ("RepVit",),
    "shvit": ("SHViT",),
    "swin_transformer_v2_cr": ("SwinTransformerV2Cr",),
    "tiny_vit": ("TinyVit",),
    "visformer": ("Visformer",),
}
_HOME = "timm.models."
_ATTENDING = ("MobileVitBlock", "MobileVitV2Block", "BottleneckAttn")  # else a ByobNet is only convolutions


def understands(model: nn.Module) -> bool:
    home, name = type(model).__module__, type(model).__name__
    if opens_itself(type(model)) == __name__:
        return True
    if not home.startswith(_HOME) or name not in CLASSES.get(home.rpartition(".")[2], ()):
        return False
    return name != "ByobNet" or any(type(m).__name__ in _ATTENDING for m in model.modules())


def open_family(model: Any) -> OpenTraced:
    """Record the model's forward and open it. Raises `Refused`, naming what is not understood."""
    check_untouched(model)
    for name, module in model.named_modules():
        if getattr(module, "grad_checkpointing", False):
            raise Refused(f"{name or 'the model'} has gradient checkpointing on: a traced model has no blocks for it")
    _forget(model)
    opened = OpenTraced(source=model, size=_size_of(model))
    opened.sites()  # records the graph, and refuses what it cannot follow
    return opened


def close_family(opened: OpenTraced, source: Any) -> nn.Module:
    """The timm model, with the children, tensors and settings of the opened one."""
    _forget(source)
    return opened.synchronised()


def _forget(model: nn.Module) -> None:
    """Empty what timm keeps of its parameters in eval mode: it would not follow when they change."""
    for module in model.modules():
        for cache in CACHES:
            if cache in vars(module):
                setattr(module, cache, {})


def _size_of(model: Any) -> tuple[int, int, int]:
    """(C, H, W): the channels of the first convolution and the size that the model was built or trained for."""
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), None) or model.in_chans
    built = getattr(model, "_model_args", {}).get("img_size") or getattr(model, "img_size", None)
    side = built or model.pretrained_cfg["input_size"][-2:]
    height, width = (side, side) if isinstance(side, int) else side
    return channels, int(height), int(width)
