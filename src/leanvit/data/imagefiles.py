"""Images of a folder without labels: all that lies below it, or below its `train/` and `val/`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from leanvit.data import foldertree
from leanvit.data.dataset import Dataset, Images, probe
from leanvit.data.folderlayout import LAYOUTS
from leanvit.data.foldertree import Survey
from leanvit.data.imagefolder import ImagesBelow, folders_listed, require_text
from leanvit.data.splits import Source, canonical_split
from leanvit.errors import BadInput, printable, unknown


def unlabelled_folder_source(spec: str, path: Path, layout: str | None = None) -> Source:
    """The splits of a folder of images without labels; the key of an image is its path below its split's folder.

    Where all images lie in folders named like splits, one of them the training split, they are the splits; else all
    images below the folder, whatever its folders are called, are one set. `layout`: "splits", or "classes" for one set.

    Raises BadInput for a folder without images, that cannot be listed, or whose splits come twice.
    """
    if layout not in (None, *LAYOUTS):
        raise unknown(f"layout of data {spec!r}", layout, LAYOUTS)
    with folders_listed(spec):
        folders = {"all": path} if layout == "classes" else _splits(spec, path, wanted=layout == "splits")
        found = {split: survey(folder) for split, folder in folders.items()}
    empty = next((split for split, below in found.items() if not below.images), None)
    if empty is not None:
        raise BadInput(f"data {spec!r} {nothing_below(folders[empty], found[empty])}")
    for below in found.values():
        require_text(spec, below.images)
    name = path.resolve().name
    opened = {split: partial(_open, spec, name, split, folders[split], below) for split, below in found.items()}
    return Source(spec, opened, "images without labels")


def survey(folder: Path) -> Survey:
    """All images below a folder, by their paths below it, sorted, and what is left out. Raises OSError."""
    return foldertree.survey(foldertree.root(folder), foldertree.around(folder), where="")


def nothing_below(folder: Path, below: Survey) -> str:
    """What is said of a folder without an image."""
    there = ", ".join(f"{count} {reason}" for reason, count in below.left_out.reasons().items())
    endings = " ".join(sorted(foldertree.EXTENSIONS))
    return f"has no images below {folder.resolve().name}/{f' (there are {there})' if there else ''}; endings: {endings}"


def unlabelled(
    *,
    name: str,
    spec: str,
    split: str,
    keys: tuple[str, ...],
    images: Images,
    channels: int,
    image_size: tuple[int, int],
    note: str = "",
    on_bad: str = "error",
    left_out: Mapping[str, int] | None = None,
) -> Dataset:
    """A data set without labels, row i of `images` being that of key i."""
    return Dataset(
        name=name,
        spec=spec,
        split=split,
        classes=[],
        keys=keys,
        targets=None,
        rows=np.arange(len(keys)),
        images=images,
        channels=channels,
        image_size=image_size,
        note=note,
        on_bad=on_bad,
        left_out=dict(left_out or {}),
    )


def _splits(spec: str, path: Path, *, wanted: bool) -> dict[str, Path]:
    outer = foldertree.around(path)
    found = foldertree.listing(path, outer)
    held = [sub for sub in found.folders if foldertree.holds_image(sub, outer)]
    named = [(canonical_split(sub.name), sub) for sub in held]
    splits: dict[str, Path] = {}
    for split, sub in named:
        if split in splits:
            raise BadInput(f"data {spec!r} holds two {split} splits: {splits[split].name}/ and {sub.name}/")
        if split is not None:
            splits[split] = sub.path
    if "train" in splits and (wanted or not (found.images or len(splits) < len(held))):
        return {split: splits[split] for split in ("train", "val", "test") if split in splits}
    if wanted:
        raise BadInput(f"data {spec!r}: layout=splits, but no folder named train has images in it")
    return {"all": path}


def _open(spec: str, name: str, split: str, folder: Path, below: Survey) -> Dataset:
    images = ImagesBelow(folder, below.images)
    channels, image_size = probe(images, len(below.images))
    parts = "" if split == "all" else f"{printable(folder.name)}/ is taken as a split (?layout=classes: all as one set)"
    links = f"{below.linked} images are reached through links" if below.linked else ""
    return unlabelled(
        name=name,
        spec=spec,
        split=split,
        keys=below.images,
        images=images,
        channels=channels,
        image_size=image_size,
        note="; ".join(filter(None, (parts, links))),
        left_out=below.left_out.reasons(),
    )
