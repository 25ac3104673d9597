"""A toy of a way to train: an objective of its own, with a parameter, and a callback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from leanvit.data import Batch
from leanvit.recipe.registry import method
from leanvit.training import CrossEntropy, FitConfig, Loss, Objective, Run


@method("toy_smooth")
@dataclass(frozen=True)
class ToySmooth:
    """Knobs of the objective."""

    smoothing: float = 0.1  # 0 to 1
    until: int = 1000  # steps, after which the labels are taken as they are

    def objective(self, model: Any, data: Any, config: FitConfig) -> Objective:
        return _Smooth(self.smoothing)

    def callbacks(self, model: Any) -> list[object]:
        return [_Until(self.until)]


class _Smooth(Objective):
    """Cross-entropy of logits times a number that is learned, with smoothed labels."""

    multi_label = False

    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(()) + 0.5)
        self.usual = CrossEntropy(label_smoothing=smoothing)

    def forward(self, model: nn.Module, batch: Batch, step: int, context: Mapping[str, Any]) -> Loss:
        return Loss(self.usual.of(self.scale * model(batch.images, **context), batch.targets))


@dataclass(frozen=True)
class _Until:
    step: int

    def before_forward(self, run: Run) -> None:
        if run.step >= self.step:
            objective: Any = run.objective
            objective.usual.label_smoothing = 0.0
