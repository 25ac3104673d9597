"""A method that calibrates in units, as a paper's would: each block's MLP is scaled by what the blocks before give."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from leanvit.anatomy import OpenModel
from leanvit.recipe import Data, Kept, register

SEEN: list[str] = []  # units that were worked on in this process


@register("test_scales", title="Scales", summary="scales each MLP by the spread of what it gives")
@dataclass(frozen=True)
class Scales:
    """Knobs of the method."""

    images: int = 20

    needs_data: ClassVar[bool] = True
    resumable: ClassVar[bool] = True

    def learn(self, model: OpenModel, data: Data) -> dict[str, Any]:
        scales = []
        images = torch.cat(list(data.images(self.images)))
        names = [f"blocks.{i}" for i in range(len(model.blocks))]
        for name, kept in data.units("scale", names, lambda name: measured(model, name, images)):
            fc2 = model.get_submodule(name).mlp.fc2
            with torch.no_grad():
                fc2.weight.mul_(kept.tensors["scale"])  # what comes next sees it
            scales.append(kept.facts["spread"])
        return {"scales": scales}

    def shape(self, model: OpenModel, structure: Mapping[str, Any]) -> None:
        """Nothing is built: the weights are scaled."""


@torch.no_grad()
def measured(model: OpenModel, name: str, images: Tensor) -> Kept:
    SEEN.append(name)
    if os.environ.get("TEST_DIES") == f"inside {name}":
        os.kill(os.getpid(), signal.SIGKILL)
    spread = model(images).std(dim=0)
    return Kept({"scale": spread.mean()}, {"spread": spread.mean().item()})
