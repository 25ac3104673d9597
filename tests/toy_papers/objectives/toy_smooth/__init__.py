"""A toy of a way to train: an objective of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from leanvit.recipe.registry import method
from leanvit.training import CrossEntropy, FitConfig


@method("toy_smooth")
@dataclass(frozen=True)
class ToySmooth:
    """Knobs of the objective."""

    smoothing: float = 0.1  # 0 to 1

    def objective(self, model: Any, data: Any, config: FitConfig) -> CrossEntropy:
        return CrossEntropy(label_smoothing=self.smoothing)
