"""A method with temporary modules, as a paper's would be: a learned gate on each channel that goes into the MLP, there
for the recovery alone, folded into the MLP's first linear when it is over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from leanvit.anatomy import OpenModel
from leanvit.data import open_dataset
from leanvit.errors import BadInput
from leanvit.recipe import Data, register
from leanvit.training import FitConfig, fit


class Gated(nn.Module):
    """An MLP whose input channels are each multiplied by a gate; gates of ones change no bit."""

    def __init__(self, mlp: Any, width: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.gate = nn.Parameter(torch.ones(width, device=mlp.fc1.weight.device))

    def forward(self, x: Any, state: Any) -> tuple[Any, Any]:
        return self.mlp(state.ops.param(f"{self.mlp.name}.gate", self.gate, x) * x, state)


@register("test_gates", title="Gates that fold away", summary="learns a gate on each channel before each MLP")
@dataclass(frozen=True)
class Gates:
    """Knobs of the method."""

    first: int = 0  # block from which on there are gates
    epochs: int = 0  # of its own training, before the recovery
    target: float = 0.0  # how far the mean gate should be from 1 at least

    trains: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.first < 0:
            raise BadInput(f"first is {self.first!r}; accepted: 0 or more")

    def prepare(self, model: OpenModel) -> None:
        for block in model.blocks[self.first :]:
            block.mlp = Gated(block.mlp, block.mlp.fc1.in_features).train(model.training)

    def learn(self, model: OpenModel, data: Data) -> dict[str, Any]:
        if self.epochs:
            fit(
                model,
                data.dataset,
                preprocess=data.preprocess,
                config=FitConfig(epochs=self.epochs, batch_size=10, lr=0.01, seed=data.seed, save_every=1),
                out=data.out,
                resume=data.resume,
                callbacks=data.callbacks,
                convert=True,
            )
        return {"first": self.first}

    def shape(self, model: OpenModel, structure: dict[str, Any]) -> None:
        """Nothing stays of it."""

    def finish(self, model: OpenModel, structure: dict[str, Any]) -> None:
        for block in model.blocks[structure["first"] :]:
            gated = block.mlp
            gated.mlp.fc1.weight.mul_(gated.gate)
            block.mlp = gated.mlp

    def check(self, model: OpenModel, structure: Mapping[str, Any]) -> list[str]:
        return [] if self.target == 0 else [f"asked {self.target}, reached 0"]


def gates_of(model: OpenModel) -> list[Tensor]:
    return [p for name, p in model.named_parameters() if name.endswith(".gate")]


def digits(limit: int = 40) -> Any:
    return open_dataset("digits", "train", limit=limit)
