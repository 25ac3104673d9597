from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from leanvit.recipe import compress


class NoiseData:
    """Calibration images without a data set: noise at the model's size. Nothing can train on it."""

    dataset = SimpleNamespace(multi_label=False)
    seed = 0

    def __init__(self, size: tuple[int, int, int] = (3, 32, 32)) -> None:
        self.size = size

    def images(self, count: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1)
        for start in range(0, count, 16):
            yield torch.randn(min(16, count - start), *self.size, generator=generator)


@pytest.fixture
def noise() -> NoiseData:
    return NoiseData()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="session")
def compressed(tiny: Callable[..., nn.Module]) -> nn.Module:
    """A small model with EViT, then int8."""
    from leanvit.quantize.int8 import Int8
    from leanvit.tokens.evit import EViT

    return compress(tiny(), [EViT(keep_rate=0.5, blocks=(1, 2)), Int8()], NoiseData())


@pytest.fixture
def lean(compressed: nn.Module) -> nn.Module:
    """A copy of it, to change."""
    return copy.deepcopy(compressed)
