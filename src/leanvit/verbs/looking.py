"""`look`: what a data set holds, found out by opening it and reading some or all of its images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from leanvit.data import AnyDataset, BadImage, Dataset, Stream, UnreadableImage, keyed, open_dataset
from leanvit.data.dataset import as_sample_image
from leanvit.data.decode import decode, header
from leanvit.data.label_kinds import KINDS
from leanvit.data.preprocess import own_settings
from leanvit.data.sources import source_of
from leanvit.data.specs import parse_spec
from leanvit.errors import BadInput
from leanvit.knobs import Count, check
from leanvit.verbs.field_contents import Contents
from leanvit.verbs.fitting import require_fit
from leanvit.verbs.looked import Leak, Looked, SplitFound
from leanvit.verbs.models import Log, load_model, silent
from leanvit.verbs.picture_grid import write_grid

LEAK_LIMIT = 20_000  # training images that are compared with those of val, unless all are asked for


def look(
    spec: str,
    *,
    model: str | Path | None = None,
    grid: str | Path | None = None,
    every: bool = False,
    sample: int = 256,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
    overwrite: bool = False,
    log: Log = silent,
) -> Looked:
    """Open a data set, read `sample` images of each split (`every`: all) and report what is there.

    Args:
        spec: data spec, see `leanvit.data.open_dataset`.
        model: timm name or run folder: whether it fits the data, and if not, why.
        grid: `.png` file that gets a few images of each class; of data without labels, a few of all. Masks and boxes
            are drawn over them.
        seed: which images are read and shown.
        mean, std, crop_pct, interpolation: preprocessing of a timm name as `model`; see `train`.

    Raises:
        BadInput: a spec that cannot be opened, or a grid that cannot be written, before images are read.
    """
    check("sample", sample, Count)
    settings = own_settings(mean, std, crop_pct, interpolation)
    if settings and model is None:
        raise BadInput(f"{', '.join(settings)} are of a model: give one too (--model MODEL)")
    grid = _checked_grid(grid, overwrite=overwrite)
    parsed = parse_spec(spec)
    held = source_of(parsed)
    names: list[str | None] = ["train", "val"] if len(held.splits) > 1 else [None]
    if not held.splits.keys() & {"train", "all"}:
        names = ["val"]
    splits = [_opened(spec, name, seed) for name in names]
    first = splits[0]
    fit = None if model is None else _fit(model, first, settings)
    count = None if every else sample
    looks = [_look(dataset, count, seed, log) for dataset in splits]
    leak = _leak(splits[0], splits[1], count, seed, log) if len(splits) == 2 else None
    if grid is not None:
        write_grid(grid, first, seed=seed)
    return Looked(
        spec=spec,
        form=held.form,
        classes=tuple(first.classes),
        label_kind=first.label_kind,
        channels=first.channels,
        splits=tuple(looks),
        leak=leak,
        fit=fit,
        grid=grid,
        sampled=not every,
    )


# --- one split --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Item:
    """An image as it is stored (None where it is not stored encoded), with its key and target."""

    key: str
    target: Any
    encoded: bytes | Path | None
    index: int
    given: Mapping[str, Any] = field(default_factory=dict)  # values of fields that come with a stream


def _opened(spec: str, split: str | None, seed: int) -> AnyDataset:
    return open_dataset(spec, split, seed=seed)


def _items(dataset: AnyDataset, count: int | None, seed: int) -> Iterator[_Item]:
    """`count` images chosen by the seed (of a stream the first), all for None."""
    if isinstance(dataset, Stream):
        for index, item in enumerate(islice(dataset.pass_over(), count)):
            yield _Item(item.key, item.target, item.encoded, index, item.fields)
        return
    chosen = np.arange(len(dataset))
    if count is not None and count < len(dataset):
        value = keyed.ranks(dataset.key_hashes, "look", seed)
        chosen = np.sort(np.argsort(value, kind="stable")[:count])
    for index in map(int, chosen):
        target = None if dataset.targets is None else dataset.targets[index]
        yield _Item(dataset.keys[index], target, dataset.encoded(index), index)


def _look(dataset: AnyDataset, count: int | None, seed: int, log: Log) -> SplitFound:
    log(f"{dataset.split}: reading {min(count or len(dataset), len(dataset))} of {len(dataset)} images")
    formats, modes, sizes, bad = Counter[str](), Counter[str](), [], []
    rotated = animated = constant = read = 0
    seen: dict[bytes, str] = {}
    duplicates, targets = [], []
    contents = {name: Contents(kind) for name, kind in dataset.fields.items()}
    for item in _items(dataset, count, seed):
        read += 1
        targets.append(item.target)
        if item.encoded is None and isinstance(dataset, Dataset):
            image = dataset[item.index].image
            formats["pixels"] += 1
            modes[image.mode] += 1
            sizes.append(image.size)
            constant += _is_constant(image)
            continue
        try:
            head = header(item.encoded or b"", key=item.key, max_pixels=dataset.max_pixels)
            image = decode(item.encoded or b"", key=item.key, max_pixels=dataset.max_pixels)
            image = as_sample_image(image, dataset.channels, key=item.key, pixel_range=dataset.pixel_range)
            values = _values(dataset, item, image)
            constant += _is_constant(image)
        except UnreadableImage as error:
            bad.append(BadImage(item.key, str(error)))
            continue
        for name, value in values.items():
            contents[name].add(value)
        formats[head.format] += 1
        modes[head.mode] += 1
        sizes.append(head.size)
        rotated += head.rotated
        animated += head.frames > 1
        before = seen.setdefault(_digest(item.encoded or b""), item.key)
        if before != item.key:
            duplicates.append((before, item.key))
    per_class, unlabelled = _balance(dataset, targets)
    widths, heights = ([size[side] for size in sizes] for side in (0, 1))
    return SplitFound(
        split=dataset.split,
        images=len(dataset),
        note=dataset.note,
        left_out=dict(dataset.left_out),
        counted=read if isinstance(dataset, Stream) else len(dataset),
        per_class=per_class,
        unlabelled=unlabelled,
        read=read,
        formats=dict(formats.most_common()),
        modes=dict(modes.most_common()),
        widths=_spread(widths),
        heights=_spread(heights),
        rotated=rotated,
        animated=animated,
        constant=constant,
        bad=tuple(bad),
        duplicates=tuple(duplicates),
        fields={name: one.found() for name, one in contents.items()},
    )


def _values(dataset: AnyDataset, item: _Item, image: Image.Image) -> dict[str, Any]:
    """The checked values of a sample's fields. Raises UnreadableImage."""
    size, row = (image.height, image.width), item.index if isinstance(dataset, Dataset) else None
    return {
        name: one.read(name, item.key, size, index=row, given=item.given.get(name))
        for name, one in dataset.fields.items()
    }


def _is_constant(image: Image.Image) -> bool:
    return all(low == high for low, high in np.reshape(image.getextrema(), (-1, 2)))


def _balance(dataset: AnyDataset, seen: list[Any]) -> tuple[dict[str, int], int]:
    """(images a class, images without one): of all rows of a data set, of the samples that were read of a stream."""
    if not dataset.labelled:
        return {}, 0
    targets: Any = dataset.targets if isinstance(dataset, Dataset) else np.array(seen)
    kind = KINDS[dataset.label_kind]
    counts = kind.counted(targets, len(dataset.classes))
    return dict(zip(dataset.classes, map(int, counts), strict=True)), kind.without(targets)


def _spread(values: list[int]) -> tuple[int, int, int]:
    return (min(values), int(np.median(values)), max(values)) if values else (0, 0, 0)


# --- two splits, a model, a grid --------------------------------------------------------------------------------------


def _leak(train: AnyDataset, val: AnyDataset, count: int | None, seed: int, log: Log) -> Leak:
    """Content of val's images looked for among train's (at most `LEAK_LIMIT` of them, unless all are asked for)."""
    wanted: dict[bytes, str] = {}
    compared_val = 0
    for digest, key in _digests(val, count, seed):
        compared_val += 1
        wanted.setdefault(digest, key)
    log(f"leaks: comparing {compared_val} images of {val.split} with {train.split}")
    compared, pairs = 0, []
    for digest, key in _digests(train, None if count is None else LEAK_LIMIT, seed):
        compared += 1
        if digest in wanted:
            pairs.append((key, wanted[digest]))
    return Leak(compared, compared_val, tuple(pairs))


def _digests(dataset: AnyDataset, count: int | None, seed: int) -> Iterator[tuple[bytes, str]]:
    for item in _items(dataset, count, seed):
        encoded = item.encoded
        if encoded is None and isinstance(dataset, Dataset):
            encoded = dataset[item.index].image.tobytes()
        try:
            yield _digest(encoded or b""), item.key
        except OSError:
            continue  # named among the bad images


def _digest(encoded: bytes | Path) -> bytes:
    content = encoded.read_bytes() if isinstance(encoded, Path) else encoded
    return hashlib.blake2b(content, digest_size=16).digest()


def _fit(model: str | Path, dataset: AnyDataset, settings: Mapping[str, Any]) -> str:
    loaded = load_model(model, preprocess_settings=settings)
    try:
        require_fit(loaded, dataset)
    except BadInput as error:
        return str(error)
    size = "x".join(map(str, loaded.preprocess.input_size))
    return f"{model} fits: input {size}, " + (f"{len(dataset.classes)} classes" if dataset.labelled else "no labels")


def _checked_grid(grid: str | Path | None, *, overwrite: bool) -> Path | None:
    if grid is None:
        return None
    path = Path(grid)
    if path.suffix.lower() != ".png":
        raise BadInput(f"--grid {path}: accepted: a path that ends in .png")
    if not path.parent.is_dir():
        raise BadInput(f"--grid {path}: there is no folder {path.parent}")
    if path.exists() and not overwrite:
        raise BadInput(f"--grid {path} exists: give another path, or --overwrite")
    return path
