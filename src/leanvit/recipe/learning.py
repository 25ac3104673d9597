"""What a method may look at while it learns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from leanvit.data import AnyDataset, Preprocess


@dataclass(frozen=True)
class Data:
    """What a method may look at while it learns: the training split and how images are prepared."""

    dataset: AnyDataset
    preprocess: Preprocess
    seed: int = 0
    batch_size: int = 32
    teacher: nn.Module | None = None  # the dense root with its original weights, or the user's; `compress` gives it
    out: Path | None = None  # where a method that trains keeps its resumable state; None: nowhere
    callbacks: tuple[object, ...] = ()  # of the training that a method does (progress); see `leanvit.training`

    @property
    def resume(self) -> bool:
        """Whether `out` holds the state of an interrupted `fit`: `fit(out=data.out, resume=data.resume)` goes on."""
        from leanvit.training.checkpoint import STATE

        return self.out is not None and (self.out / STATE).is_file()

    def images(self, count: int) -> Iterator[Tensor]:
        """Batches of `count` training images in all, drawn by the seed, prepared as for evaluation."""
        from leanvit.data import loader

        left = count
        batches = loader(
            self.dataset, self.preprocess, batch_size=self.batch_size, seed=self.seed, train=True, augment=None
        )
        for batch in batches:
            yield batch.images[:left]
            left -= len(batch.images)
            if left <= 0:
                return
