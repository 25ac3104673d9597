"""Small batches and predictions for the tests of this room."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from leanvit.measure import Predictions


@dataclass
class TestBatch:
    images: Tensor
    targets: Tensor
    keys: list[str]

    __test__ = False


@pytest.fixture
def batches() -> list[TestBatch]:
    """23 images (3, 4, 4) of 5 classes, in batches of 8."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(23, 3, 4, 4, generator=generator)
    targets = torch.randint(0, 5, (23,), generator=generator)
    keys = [f"image-{i:02d}" for i in range(23)]
    return [TestBatch(images[i : i + 8], targets[i : i + 8], keys[i : i + 8]) for i in range(0, 23, 8)]


def answers(given: list[int], targets: list[int], *, classes: int = 3, keys: list[str] | None = None) -> Predictions:
    """Predictions whose largest logit is at the given class."""
    logits = torch.nn.functional.one_hot(torch.tensor(given), classes).float()
    return Predictions(logits, torch.tensor(targets), tuple(keys or (f"k{i}" for i in range(len(given)))))
