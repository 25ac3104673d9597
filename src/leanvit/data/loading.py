"""Batches whose order and augmentation depend on (seed, epoch, key) only: never on workers, processes or history."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torch.utils.data import DataLoader

from leanvit.data import keyed
from leanvit.data.augment import Augment
from leanvit.data.dataset import Dataset, Sample
from leanvit.data.preprocess import Preprocess
from leanvit.errors import BadInput, LeanvitError


@dataclass(frozen=True)
class Batch:
    """images (B, C, H, W) float32, normalised; targets (B,) int64; keys, B of them."""

    images: torch.Tensor
    targets: torch.Tensor
    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on `device`."""
        return replace(self, images=self.images.to(device), targets=self.targets.to(device))


@dataclass(frozen=True)
class Loader:
    """One epoch of batches; iterating again gives the same batches again."""

    dataset: Dataset
    batches: tuple[np.ndarray, ...]  # indices into `dataset`, one array a batch
    preprocess: Preprocess
    augment: Augment | None
    draws: tuple[int, int]  # (seed, epoch) of the augmentation
    workers: int = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        if not self.batches:
            return
        loading: DataLoader[Any] = DataLoader(
            _Fetch.of(self),  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            generator=torch.Generator(),  # else torch draws a seed from the global generator
        )
        for fetched in loading:
            if isinstance(fetched, LeanvitError):
                raise fetched
            yield fetched


def loader(
    dataset: Dataset,
    preprocess: Preprocess,
    *,
    batch_size: int,
    seed: int = 0,
    epoch: int = 0,
    train: bool = False,
    augment: Augment | str | None = None,
    workers: int = 0,
    drop_last: bool = False,
    skip: int = 0,
) -> Loader:
    """One epoch of `Batch`es, the images through `preprocess`.

    With `train` the order is a permutation keyed by (seed, epoch) and each key, and `augment` (None, "light", "randaug"
    or an `Augment`) is drawn by (seed, epoch, key); flips are left out where `dataset.mirror` is false. Without, the
    data set's own order and no augmentation. `workers` processes decode (0: this one). `skip` leaves out the first
    batches of the epoch, for resuming, without reading them.

    Raises BadInput for arguments outside their range; iteration raises it for an image that cannot be decoded.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("epoch", epoch, 0),
        ("workers", workers, 0),
        ("skip", skip, 0),
    ):
        if value < least:
            raise BadInput(f"{name}={value}: accepted: an integer >= {least}")
    chosen = Augment.of(augment)
    if chosen is not None and not train:
        raise BadInput("augment is for training: give train=True with it, or leave it out")
    if chosen is not None and not dataset.mirror:
        chosen = replace(chosen, hflip=0.0)
    order = epoch_order(dataset, seed=seed, epoch=epoch) if train else np.arange(len(dataset))
    batches = _cut(order, batch_size, drop_last=drop_last)
    if skip > len(batches):
        raise BadInput(f"skip={skip}: accepted: 0 to {len(batches)}, the batches of an epoch")
    return Loader(dataset, batches[skip:], preprocess, chosen, (seed, epoch), workers)


def epoch_order(dataset: Dataset, *, seed: int, epoch: int) -> np.ndarray:
    """(N,) int64 permutation: samples sorted by a value of (seed, epoch, key), so it is the same in every format."""
    return np.argsort(keyed.ranks(dataset.key_hashes, "order", seed, epoch), kind="stable")


def augment_parts(seed: int, epoch: int, key: str) -> tuple[str, int, int, str]:
    """What keys the augmentation of one sample: `train_transform` inside `keyed.global_rng(*parts)` draws the same."""
    return "augment", seed, epoch, key


def _cut(order: np.ndarray, size: int, *, drop_last: bool) -> tuple[np.ndarray, ...]:
    end = len(order) - len(order) % size if drop_last else len(order)
    return tuple(order[start : start + size] for start in range(0, end, size))


@dataclass(frozen=True)
class _Fetch:
    """Whole batches by number, for a torch DataLoader; an error travels as a value, so that its text stays clean."""

    loader: Loader
    pixels: Callable[[Image.Image], np.ndarray]
    erasing: tuple[RandomErasing, ...]

    @staticmethod
    def of(loader: Loader) -> _Fetch:
        augment = loader.augment
        erasing = augment.erasing() if augment else ()
        return _Fetch(loader, loader.preprocess.u8_transform(augment), erasing)

    def __len__(self) -> int:
        return len(self.loader.batches)

    def __getitem__(self, number: int) -> Batch | LeanvitError:
        try:
            if self.loader.augment is None:
                return self._batch(number)
            with keyed.global_rng(cuda=False):  # saved and restored once a batch, seeded anew for each sample
                return self._batch(number)
        except LeanvitError as error:
            return error

    def _batch(self, number: int) -> Batch:
        samples = [self.loader.dataset[int(index)] for index in self.loader.batches[number]]
        keys = [sample.key for sample in samples]
        targets = torch.tensor([sample.target for sample in samples], dtype=torch.int64)
        if self.erasing:
            images = torch.stack([self._erased(sample) for sample in samples])
        else:  # the whole batch is normalised at once: several times faster for small images, the same bits
            images = self.loader.preprocess.normalize(np.stack([self._seeded(sample) for sample in samples]))
        return Batch(images, targets, keys)

    def _seeded(self, sample: Sample) -> np.ndarray:
        if self.loader.augment is not None:
            keyed.seed_global(*augment_parts(*self.loader.draws, sample.key))
        return self.pixels(sample.image)

    def _erased(self, sample: Sample) -> torch.Tensor:
        image = self.loader.preprocess.normalize(self._seeded(sample))
        for erase in self.erasing:
            image = erase(image)
        return image


def _as_it_is(fetched: Any) -> Any:
    return fetched
