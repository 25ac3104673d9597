"""Small models of parts whose outputs are no classes of images, for the tests of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

import leanvit as lv
from leanvit.anatomy.composite import Composite, OpenPart, Wiring, part, wiring
from leanvit.tasks import Classification, Heads, Segmentation

PREPROCESS = lv.Preprocess((1, 16, 16), mean=(0.5,), std=(0.5,), interpolation="bicubic", crop_pct=1.0)
KINDS = ("none", "faint", "full")
SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2, "in_chans": 1, "num_classes": 0}


@part("task_models_conv")
class Conv(OpenPart):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, classes, 1)
        nn.init.normal_(self.proj.weight)

    def forward(self, x: Any) -> Any:
        return self.ops.conv("proj", self.proj, x)


@wiring("task_models_pixels")
@dataclass(frozen=True)
class Pixels(Wiring):
    """Logits (B, classes, 4, 4) of images (B, 1, 16, 16)."""

    keeps: ClassVar[Mapping[str, frozenset[str]]] = {"backbone": frozenset({"maps", "width"})}
    classifies: ClassVar[bool] = False

    def run(self, model: Composite, images: Any, **context: Any) -> Any:
        maps, state = model.main_part.trace_maps(images, norm=True, **context)
        return model.parts["head"](maps[-1]), state

    def outputs(self, parts: Mapping[str, Any]) -> int:
        return int(parts["head"].proj.out_channels)


@wiring("task_models_heads")
@dataclass(frozen=True)
class TwoHeads(Pixels):
    """`kind`: logits (B, 4) of the image; `pixels`: logits (B, 3, 4, 4)."""

    def run(self, model: Composite, images: Any, **context: Any) -> Any:
        maps, state = model.main_part.trace_maps(images, norm=True, **context)
        kind = model.parts["kind"](maps[-1]).mean(dim=(2, 3))
        return {"kind": kind, "pixels": model.parts["head"](maps[-1])}, state

    def outputs(self, parts: Mapping[str, Any]) -> int:
        return 0


def pixels(*, task: bool = True) -> Any:
    """A model of three classes of pixels."""
    torch.manual_seed(0)
    head = lv.Root("task_models_conv", {"channels": 12, "classes": 3})
    model = lv.compose(Pixels(), {"backbone": lv.Root("vit_tiny_patch16_224", SIZES), "head": head}).eval()
    model.task = Segmentation(classes=KINDS) if task else None
    return model


def two_heads() -> Any:
    """A model of four kinds of images and three classes of pixels."""
    torch.manual_seed(0)
    parts = {
        "backbone": lv.Root("vit_tiny_patch16_224", SIZES),
        "head": lv.Root("task_models_conv", {"channels": 12, "classes": 3}),
        "kind": lv.Root("task_models_conv", {"channels": 12, "classes": 4}),
    }
    model = lv.compose(TwoHeads(), parts).eval()
    model.task = Heads({"kind": Classification(classes=("a", "b", "c", "d")), "pixels": Segmentation(classes=KINDS)})
    return model
