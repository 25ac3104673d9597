"""Batches whose order and augmentation depend on (seed, epoch, key) only: never on workers, processes or history.

With `on_bad="skip"` a batch is still the same slice of the order: an image that cannot be read is left out of its
batch, which is then shorter, and no other batch changes. So neither workers nor a resume can change what is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torch.utils.data import DataLoader

from leanvit.data import keyed
from leanvit.data.augment import Augment
from leanvit.data.dataset import NO_FIELDS, Dataset, Sample
from leanvit.data.decode import BadImage, UnreadableImage
from leanvit.data.fields import LABEL, check_augment
from leanvit.data.joint import JointTransform
from leanvit.data.label_kinds import KINDS
from leanvit.data.preprocess import Preprocess
from leanvit.data.specs import check_on_bad
from leanvit.data.stream import AnyDataset, Stream
from leanvit.errors import BadInput, LeanvitError, unknown
from leanvit.knobs import Count, Index, check_each

ROUND = 256  # an epoch of repeated views is a multiple of it
PAIRINGS = ("reversed", "neighbours")  # of a batch's images i and count - 1 - i, or 2i and 2i + 1


@dataclass(frozen=True)
class Batch:
    """images (B, C, H, W) float32, normalised; targets (B,) int64; keys, B of them.

    Of multi-label data, targets are (B, classes) float32 of 0 and 1; of data without labels None. `bad`: what was left
    out of the batch. `fields`: the values of the data set's fields by name, in the form that each kind has in a batch
    (`leanvit.data.fields`). `draws`, `views`: what the augmentation was drawn by, beside the keys.

    `rows`: where the images stand among those that the loader was to give. In a training step, where the first
    len(rows) images stand in the batch that all processes share, `of` images that could be read (None: there is one
    process); further ones only stand in for what cannot be read.
    `clean`: the batch before it was mixed, for an objective that asks for it.
    """

    images: torch.Tensor
    targets: Any  # a tensor; None without labels
    keys: list[str]
    bad: tuple[BadImage, ...] = ()
    rows: tuple[int, ...] | None = None
    of: int | None = None
    clean: Batch | None = None
    fields: Mapping[str, Any] = field(default_factory=lambda: NO_FIELDS)
    draws: tuple[int, int] = (0, 0)  # (seed, epoch)
    views: tuple[int, ...] = ()  # of each sample, how often the epoch came to it before; empty: all for the first time
    blanks: Mapping[str, Any] = field(default_factory=lambda: NO_FIELDS)  # of an empty batch: values for `stand_in`
    scales: tuple[
        float, ...
    ] = ()  # of a step whose loss is a sum of means over different things: see `Objective.terms`

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, name: str) -> Any:
        """A field by its name; "label" is `targets`. Raises BadInput for one that the batch has not."""
        if name == LABEL and self.targets is not None:
            return self.targets
        if name not in self.fields:
            raise unknown("field of a batch", name, (*((LABEL,) if self.targets is not None else ()), *self.fields))
        return self.fields[name]

    @property
    def epoch(self) -> int:
        """The epoch that the batch is of."""
        return self.draws[1]

    @property
    def seeds(self) -> list[int]:
        """Of each sample the seed of its augmentation, in [0, 2**64), that of (seed, epoch, key, view).

        `keyed.set_global(seed)` inside `keyed.global_rng`, and then `Preprocess.train_transform`, gives the view again.
        """
        views = self.views or (0,) * len(self)
        return [keyed.seed_of(*view_parts(*self.draws, *of)) for of in zip(self.keys, views, strict=True)]

    def standing(self) -> tuple[int, list[int]]:
        """(images that all processes share, the place of each image here among them); 0 for one that stands in."""
        if self.of is None or self.rows is None:
            return len(self), list(range(len(self)))
        return self.of, [*self.rows, *[0] * (len(self) - len(self.rows))]

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on `device`."""
        targets = None if self.targets is None else self.targets.to(device)
        fields = {name: _on(value, device) for name, value in self.fields.items()} if self.fields else self.fields
        return replace(self, images=self.images.to(device), targets=targets, fields=fields)

    def take(self, places: Sequence[int]) -> Batch:
        """The batch of the images at these places, 0 to B - 1; a place may come more than once."""
        chosen = list(places)
        return replace(
            self,
            images=self.images[chosen],
            targets=None if self.targets is None else self.targets[chosen],
            keys=[self.keys[place] for place in chosen],
            fields={name: _at(value, chosen) for name, value in self.fields.items()} if self.fields else self.fields,
            views=tuple(self.views[place] for place in chosen) if self.views else (),
            rows=None if self.rows is None else tuple(self.rows[p] for p in chosen if p < len(self.rows)),
            clean=None if self.clean is None else self.clean.take(chosen),
        )

    def first(self, count: int) -> Batch:
        """The first images; their tensors are views."""
        return replace(
            self,
            images=self.images[:count],
            targets=None if self.targets is None else self.targets[:count],
            keys=self.keys[:count],
            fields={name: value[:count] for name, value in self.fields.items()} if self.fields else self.fields,
            views=self.views[:count],
            rows=None if self.rows is None else self.rows[:count],
            clean=None if self.clean is None else self.clean.first(count),
        )

    def stand_in(self) -> Batch:
        """Of an empty batch: two black images with targets and fields of zeros, for a process that has no image."""
        return replace(
            self,
            images=_zeros(self.images),
            targets=None if self.targets is None else _zeros(self.targets),
            keys=["", ""],
            fields={name: _zeros(value, self.blanks.get(name)) for name, value in self.fields.items()},
            views=(),
        )


def _on(value: Any, device: torch.device | str) -> Any:
    """A field's value with the tensors in it on a device; texts and numbers as they are."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _on(one, device) for name, one in value.items()}
    return [_on(one, device) for one in value] if isinstance(value, list) else value


def _at(value: Any, places: list[int]) -> Any:
    return value[places] if isinstance(value, torch.Tensor) else [value[place] for place in places]


def _zeros(value: Any, blank: Any = None) -> Any:
    return value.new_zeros(2, *value.shape[1:]) if isinstance(value, torch.Tensor) else [blank, blank]


class Batches(Protocol):
    """What the batches of an epoch are made of, in order: (index, view) of a `Dataset`, samples of a `Stream`."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...


@dataclass(frozen=True)
class Loader:
    """One epoch of batches; iterating again gives the same batches again."""

    dataset: AnyDataset
    batches: Batches
    preprocess: Preprocess
    augment: Augment | None
    draws: tuple[int, int]  # (seed, epoch) of the augmentation
    workers: int = 0
    on_bad: str = "error"
    train: bool = False
    share: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        if not len(self.batches):
            return
        loading: DataLoader[Any] = DataLoader(
            _Fetch.of(self),  # type: ignore[arg-type]
            sampler=self.batches,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            generator=torch.Generator(),  # else torch draws a seed from the global generator
        )
        for fetched in loading:
            if isinstance(fetched, LeanvitError):
                raise fetched
            self._note(fetched.bad)
            if len(fetched) or (self.train and self.share[1] > 1):  # the other processes may have images
                yield fetched
            elif self.train:
                raise no_image_left(fetched.bad)

    def _note(self, bad: tuple[BadImage, ...]) -> None:
        """Add to the data set's `bad` what is not there yet; each epoch meets the same images."""
        known = {one.key for one in self.dataset.bad} if bad else set()
        self.dataset.bad.extend(one for one in bad if one.key not in known)


def loader(
    dataset: AnyDataset,
    preprocess: Preprocess,
    *,
    batch_size: int,
    seed: int = 0,
    epoch: int = 0,
    train: bool = False,
    augment: Augment | str | None = None,
    repeats: int = 1,
    workers: int = 0,
    drop_last: bool = False,
    skip: int = 0,
    on_bad: str | None = None,
    share: tuple[int, int] = (0, 1),
    pairing: str = "reversed",
) -> Loader:
    """One epoch of `Batch`es, the images through `preprocess`.

    With `train` the order is a permutation keyed by (seed, epoch) and each key, and `augment` (None, "light", "randaug"
    or an `Augment`) is drawn by (seed, epoch, key). With `repeats` an image comes that many times in a row, each view
    drawn by (seed, epoch, key, view), and the epoch ends after `epoch_length` of them. Flips are left out where
    `dataset.mirror` is false. Without `train`, the data set's own order and no augmentation. `workers` processes decode
    (0: this one). `skip` leaves out the first batches of the epoch, for resuming, without reading them (streamed data
    and compressed shards are read over, without decoding).

    `on_bad`: "error" raises for an image that cannot be read; "skip" leaves it out of its batch, and adds it to
    `dataset.bad`; None is the data set's own choice. While training, a batch without any image left raises.

    `share` = (n, of) decodes the `share_rows` of each batch only: one of several processes, which together hold the
    batches that one process has; `pairing` says which images stay together. While training, a share without any image
    left is an empty batch.

    Fields of the data set move with their images: masks, depth, boxes and clips by the very draws (`data.fields`).

    Raises BadInput for arguments outside their range, and for augmentation that would part an image from its fields;
    iteration raises it for an image or field that cannot be read.
    """
    check_each(Count, batch_size=batch_size, repeats=repeats)
    check_each(Index, epoch=epoch, workers=workers, skip=skip)
    chosen = Augment.of(augment)
    for name, requested in (("augment", chosen is not None), ("repeats", repeats > 1)):
        if requested and not train:
            raise BadInput(f"{name} is for training: give train=True with it, or leave it out")
    check_augment(chosen, dataset.fields)
    if chosen is not None and not dataset.mirror:
        chosen = replace(chosen, hflip=0.0)
    views = epoch_length(dataset, repeats)
    count = views // batch_size if drop_last else -(-views // batch_size)
    if skip > count:
        raise BadInput(f"skip is {skip}; accepted: 0 to {count}, the batches of an epoch")
    batches: Batches
    if isinstance(dataset, Stream):
        batches = _Cuts(
            dataset, (seed, epoch) if train else None, batch_size, skip, count - skip, repeats, share, pairing
        )
    else:
        order = epoch_order(dataset, seed=seed, epoch=epoch) if train else np.arange(len(dataset))
        order = np.stack([np.repeat(order, repeats), np.tile(np.arange(repeats), len(order))], axis=1)[:views]
        whole = (order[batch_size * n : batch_size * (n + 1)] for n in range(skip, count))
        batches = tuple(batch[share_rows(len(batch), *share, pairing)] for batch in whole)
    on_bad = dataset.on_bad if on_bad is None else check_on_bad(on_bad)
    return Loader(dataset, batches, preprocess, chosen, (seed, epoch), workers, on_bad, train, share)


def share_rows(count: int, number: int, of: int, pairing: str = "reversed") -> np.ndarray:
    """Which images of a batch of `count` process `number` `of` several takes: int64 positions, ascending.

    Where 2 `of` divides the batch, the two images of a pair go to one process, so that every share mixes as the whole
    batch does. Pairs are, "reversed", i and count - 1 - i (timm mixes a batch with its reverse); "neighbours", 2i and
    2i + 1 (TinyViT mixes them).
    """
    if count % (2 * of):
        return np.arange(number, count, of)
    if pairing == "neighbours":
        return np.arange(number * count // of, (number + 1) * count // of)
    ahead = np.arange(number * count // (2 * of), (number + 1) * count // (2 * of))
    return np.concatenate((ahead, count - 1 - ahead[::-1]))


def no_image_left(bad: Sequence[BadImage]) -> BadInput:
    """The error for a step without an image."""
    return BadInput(f"no image of a whole batch can be read: {'; '.join(b.reason for b in bad[:3])}")


def epoch_length(dataset: AnyDataset, repeats: int = 1) -> int:
    """Images of an epoch, each view counted: all of them, or with `repeats` as many, down to a multiple of 256.

    So with 3 views an epoch meets a third of the images (Hoffer et al., arXiv 1901.09335; length as DeiT's).
    """
    images = len(dataset)
    return images if repeats == 1 or images < ROUND else images // ROUND * ROUND


def epoch_order(dataset: Dataset, *, seed: int, epoch: int) -> np.ndarray:
    """(N,) int64 permutation: samples sorted by a value of (seed, epoch, key), so it is the same in every format."""
    return np.argsort(keyed.ranks(dataset.key_hashes, "order", seed, epoch), kind="stable")


def augment_parts(seed: int, epoch: int, key: str) -> tuple[str, int, int, str]:
    """What keys the augmentation of one sample: `train_transform` inside `keyed.global_rng(*parts)` draws the same."""
    return "augment", seed, epoch, key


def view_parts(seed: int, epoch: int, key: str, view: int) -> tuple[int | str, ...]:
    """`augment_parts` of a view: of a sample that an epoch comes to more than once, each time is one."""
    parts = augment_parts(seed, epoch, key)
    return (*parts, view) if view else parts


@dataclass(frozen=True)
class _Cuts:
    """The batches of a stream as lists of encoded samples, or of their places: decoded where they are sent."""

    stream: Stream
    order: tuple[int, int] | None  # (seed, epoch) of training; None is the stored order
    size: int
    skip: int
    count: int
    repeats: int = 1
    share: tuple[int, int] = (0, 1)
    pairing: str = "reversed"

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        epoch = self.stream.passing(self.order)
        views = range(self.repeats)
        items = islice(((item, view) for item in epoch.items for view in views), self.skip * self.size, None)
        for _ in range(self.count):
            batch = list(islice(items, self.size))
            own = [batch[row] for row in share_rows(len(batch), *self.share, self.pairing)]
            samples = epoch.made([item for item, _ in own])
            yield [
                sample._replace(visit=sample.visit * self.repeats + view)
                for sample, (_, view) in zip(samples, own, strict=True)
            ]


@dataclass(frozen=True)
class _Fetch:
    """Makes a batch of its indices or samples, for a torch DataLoader.

    An error travels as a value, so that its text stays clean.
    """

    loader: Loader
    pixels: Callable[[Image.Image], np.ndarray]
    erasing: tuple[RandomErasing, ...]
    joint: JointTransform | None = None  # where fields move with their images

    @staticmethod
    def of(loader: Loader) -> _Fetch:
        augment, preprocess = loader.augment, loader.preprocess
        erasing = augment.erasing() if augment else ()
        spatial = any(one.spatial for one in loader.dataset.fields.values())
        joint = JointTransform.of(preprocess, augment) if spatial else None
        if isinstance(loader.dataset, Stream):  # what a worker is sent: samples come to it one by one
            loader = replace(loader, dataset=replace(loader.dataset, parts=()), batches=())
        return _Fetch(loader, preprocess.u8_transform(augment), erasing, joint)

    def __getitem__(self, items: Any) -> Batch | LeanvitError:
        try:
            if self.loader.augment is None:
                return self._batch(items)
            with keyed.global_rng(cuda=False):  # saved and restored once a batch, seeded anew for each sample
                return self._batch(items)
        except LeanvitError as error:
            return error

    def _batch(self, items: Any) -> Batch:
        made: list[Any] = []  # of each sample its pixels, or with erasing its normalised image
        samples: list[Sample] = []
        views: list[int] = []
        bad: list[BadImage] = []
        rows: list[int] = []
        for row, item in enumerate(items):
            try:
                sample, visit = self._sample(item)
                if self.joint is not None:
                    pixels, sample = self._moved(sample, visit)
                    made.append(pixels)
                else:
                    made.append(self._erased(sample, visit) if self.erasing else self._seeded(sample, visit))
            except UnreadableImage as error:
                if self.loader.on_bad == "error":
                    raise
                bad.append(BadImage(error.key, str(error)))
            else:
                samples.append(sample)
                views.append(visit)
                rows.append(row)
        targets = self._targets([sample.target for sample in samples])
        if not samples:
            images = torch.empty(0, *self.loader.preprocess.input_size)
        elif self.erasing:
            images = torch.stack(made)
        else:  # the whole batch is normalised at once: several times faster for small images, bit-identical
            images = self.loader.preprocess.normalize(np.stack(made))
        keys = [sample.key for sample in samples]
        batch = Batch(
            images,
            targets,
            keys,
            tuple(bad),
            tuple(rows),
            draws=self.loader.draws,
            views=tuple(views) if any(views) else (),
        )
        return self._with_fields(batch, samples) if self.loader.dataset.fields else batch

    def _sample(self, item: Any) -> tuple[Sample, int]:
        """A sample, and how often the epoch came to it before. Raises UnreadableImage."""
        dataset = self.loader.dataset
        if isinstance(dataset, Stream):
            return dataset.read(item), item.visit
        index, view = item
        return dataset[int(index)], int(view)

    def _targets(self, targets: list[Any]) -> torch.Tensor | None:
        dataset = self.loader.dataset
        return KINDS[dataset.label_kind].batched(targets, len(dataset.classes)) if dataset.labelled else None

    def _with_fields(self, batch: Batch, samples: list[Sample]) -> Batch:
        preprocess, kinds = self.loader.preprocess, self.loader.dataset.fields
        if samples:
            found = {name: k.batched([s.fields[name] for s in samples], preprocess) for name, k in kinds.items()}
            return replace(batch, fields=found)
        blanks = {name: kind.blank(preprocess) for name, kind in kinds.items()}
        empty = {name: kind.batched([blanks[name]], preprocess)[:0] for name, kind in kinds.items()}
        return replace(batch, fields=empty, blanks=blanks)

    def _moved(self, sample: Sample, visit: int) -> tuple[np.ndarray, Sample]:
        """The pixels of an image, and the sample with its fields moved alike."""
        assert self.joint is not None
        pixels, geometry = self._seeded(sample, visit, self.joint)
        preprocess, kinds = self.loader.preprocess, self.loader.dataset.fields
        try:
            moved = {name: kinds[name].moved(value, geometry, preprocess) for name, value in sample.fields.items()}
        except BadInput as error:
            raise UnreadableImage.of(sample.key, f"has a field that is not accepted: {error}") from None
        return pixels, Sample.of(sample.image, sample.target, sample.key, moved)

    def _seeded(self, sample: Sample, visit: int, transform: Callable[[Image.Image], Any] | None = None) -> Any:
        if self.loader.augment is not None:
            keyed.seed_global(*view_parts(*self.loader.draws, sample.key, visit))
        try:
            return (transform or self.pixels)(sample.image)
        except BadInput as error:
            raise UnreadableImage.of(sample.key, f"is not accepted: {error}") from None

    def _erased(self, sample: Sample, visit: int) -> torch.Tensor:
        image = self.loader.preprocess.normalize(self._seeded(sample, visit))
        for erase in self.erasing:
            image = erase(image)
        return image


def _as_it_is(fetched: Any) -> Any:
    return fetched
