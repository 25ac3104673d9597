"""A folder of images with a folder a class: `root/<class>/...` or `root/<split>/<class>/...`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from leanvit.data.dataset import Dataset, probe
from leanvit.data.decode import EXTENSIONS, decode
from leanvit.data.labels import sorted_names
from leanvit.data.sources import Source, canonical_split
from leanvit.errors import BadInput


def imagefolder_source(spec: str, path: Path) -> Source:
    """The splits of a folder; the key of an image is its path below the split's folder, `cat/0012.jpg`.

    Classes are the names of the training split's folders, sorted. Raises BadInput when there are no class folders, no
    images, or a class that the training split does not have.
    """
    folders = _split_folders(spec, path)
    classes = _class_names(folders.get("train") or next(iter(folders.values())))
    if not classes:
        raise BadInput(
            f"data {spec!r} holds no class folders; expected <class>/<image> or train/<class>/<image>, images with "
            f"one of the endings {' '.join(sorted(EXTENSIONS))}"
        )
    opened: dict[str, Callable[[], Dataset]] = {
        split: partial(_open, spec, path.resolve().name, split, folder, classes) for split, folder in folders.items()
    }
    return Source(spec, opened, "image folder")


@dataclass(frozen=True)
class _Files:
    folder: Path
    keys: tuple[str, ...]

    def encoded(self, row: int) -> Path:
        return self.folder / self.keys[row]

    def __getitem__(self, row: int, /) -> Image.Image:
        return decode(self.encoded(row), key=self.keys[row])


def _split_folders(spec: str, path: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in _subfolders(path):
        split = canonical_split(folder.name)
        if split is None:
            continue
        if split in found:
            raise BadInput(f"data {spec!r} holds two {split} splits: {found[split].name}/ and {folder.name}/")
        found[split] = folder
    return found or {"all": path}


def _open(spec: str, name: str, split: str, folder: Path, classes: list[str]) -> Dataset:
    extra = sorted(set(_class_names(folder)) - set(classes))
    if extra:
        raise BadInput(f"data {spec!r}: {folder.name}/ has classes that train/ has not: {', '.join(extra[:10])}")
    keys, targets = [], []
    for target, label in enumerate(classes):
        of_class = _image_keys(folder, label)
        keys += of_class
        targets += [target] * len(of_class)
    if not keys:
        raise BadInput(f"data {spec!r}: no images below {folder.name}/; endings: {' '.join(sorted(EXTENSIONS))}")
    images = _Files(folder, tuple(keys))
    channels, image_size = probe(images, len(keys))
    return Dataset(
        name=name,
        spec=spec,
        split=split,
        classes=classes,
        keys=images.keys,
        targets=np.array(targets, dtype=np.int64),
        rows=np.arange(len(keys)),
        images=images,
        channels=channels,
        image_size=image_size,
    )


def _subfolders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _class_names(folder: Path) -> list[str]:
    return sorted_names(entry.name for entry in _subfolders(folder))


def _image_keys(folder: Path, label: str) -> list[str]:
    files = (folder / label).rglob("*")
    return sorted(
        file.relative_to(folder).as_posix()
        for file in files
        if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".")
    )
