"""A method that prunes weights to zeros, as a paper's would: a share of the entries of some parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from leanvit.anatomy import OpenModel
from leanvit.recipe import register

NAMES = ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight")


@register("test_zeros", title="Zeros by magnitude", summary="sets the smallest entries of some parameters to zero")
@dataclass(frozen=True)
class Zeros:
    """Knobs of the method."""

    share: float = 0.5  # of each parameter's entries that become zeros
    names: tuple[str, ...] = NAMES

    requires: ClassVar[frozenset[str]] = frozenset({"float", "whole_weights"})
    destroys: ClassVar[frozenset[str]] = frozenset({"whole_weights"})

    def learn(self, model: OpenModel, data: Any) -> dict[str, Any]:
        return {"names": list(self.names), "share": self.share}

    def shape(self, model: OpenModel, structure: dict[str, Any]) -> None:
        model.sparse = (*model.sparse, *structure["names"])

    def fold(self, model: OpenModel, structure: dict[str, Any], before: Mapping[str, Tensor]) -> None:
        zero_smallest(model, structure["names"], structure["share"])

    def tied_to(self, structure: dict[str, Any]) -> dict[str, str]:
        return {}


@torch.no_grad()
def zero_smallest(model: Any, names: Any, share: float = 0.5) -> None:
    parameters = dict(model.named_parameters())
    for name in names:
        flat = parameters[name].view(-1)
        flat[flat.abs().argsort()[: round(share * len(flat))]] = 0.0


def zeros_of(model: Any) -> dict[str, Tensor]:
    """Where the sparse parameters of a model are zero: bool tensors by name."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach() == 0 for name in model.sparse}
