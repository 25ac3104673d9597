"""A folder of images with a folder a class: `root/<class>/...` or `root/<split>/<class>/...`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from leanvit.data import foldertree
from leanvit.data.dataset import Dataset, probe
from leanvit.data.decode import decode
from leanvit.data.folderlayout import LAYOUTS, Layout, layout_of
from leanvit.data.foldertree import LeftOut, some
from leanvit.data.labels import sorted_names
from leanvit.data.splits import Source
from leanvit.errors import BadInput, printable, unknown


def imagefolder_source(spec: str, path: Path, layout: str | None = None) -> Source:
    """The splits of a folder; the key of an image is its path below the split's folder, `cat/0012.jpg`.

    Classes are the folders of the training split, in the order of `sorted_names`; a folder that holds no image in any
    split is none. `layout` says what the folders directly below are, "classes" or "splits"; None finds out
    (`folderlayout.layout_of`), and the data sets' `note` says what was taken where there was a choice.

    Raises BadInput when there are no class folders, no images, a class that the training split does not have, or a
    folder that cannot be listed.
    """
    if layout not in (None, *LAYOUTS):
        raise unknown(f"layout of data {spec!r}", layout, LAYOUTS)
    with folders_listed(spec):
        found = layout_of(spec, path, layout)
        classes = _class_names(found)
    require_text(spec, classes)
    opened: dict[str, Callable[[], Dataset]] = {
        split: partial(_open, spec, path.resolve().name, found, split, classes) for split in found.splits
    }
    return Source(spec, opened, "image folder")


@dataclass(frozen=True)
class ImagesBelow:
    """Images by their paths below a folder: `rows` of a `Dataset`."""

    folder: Path
    keys: tuple[str, ...]

    def encoded(self, row: int) -> Path:
        return self.folder / self.keys[row]

    def __getitem__(self, row: int, /) -> Image.Image:
        return decode(self.encoded(row), key=self.keys[row])


def _class_names(layout: Layout) -> list[str]:
    """The classes of the training split; without one, those of all splits.

    A folder of the training split that is empty there is a class where another split has images of it.
    """
    held = {split: {folder.name for folder in one.classes} for split, one in layout.splits.items()}
    train = layout.splits.get("train")
    if train is None:
        return sorted_names(set().union(*held.values()))
    elsewhere = set().union(*(names for split, names in held.items() if split != "train"))
    return sorted_names(held["train"] | (elsewhere & {folder.name for folder in train.without}))


def _open(spec: str, name: str, layout: Layout, split: str, classes: list[str]) -> Dataset:
    place = layout.splits[split]
    extra = sorted({folder.name for folder in place.classes} - set(classes))
    if extra:
        raise BadInput(
            f"data {spec!r}: {place.path.name}/ has classes that train/ has not: {some(map(printable, extra), 10)}"
        )
    with folders_listed(spec):
        keys, targets, linked, left_out = _samples(layout, split, classes)
    require_text(spec, keys)
    if not keys:
        raise BadInput(f"data {spec!r}: there is no image in {place.path.name}/ any more")
    images = ImagesBelow(place.path, tuple(keys))
    channels, image_size = probe(images, len(keys))
    links = f"{linked} images are reached through links" if linked else ""
    note = "; ".join(filter(None, (layout.note, _inner_folders(spec, layout, keys), links)))
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
        note=note,
        left_out=left_out.reasons(),
    )


def _samples(layout: Layout, split: str, classes: list[str]) -> tuple[list[str], list[int], int, LeftOut]:
    """(keys, targets, images that are reached through links, what is left out) of one split."""
    place = layout.splits[split]
    where = "" if place.path == layout.root else f"{place.path.name}/"
    folders = {folder.name: folder for folder in (*place.classes, *place.without)}
    keys: list[str] = []
    targets: list[int] = []
    linked, left_out = 0, LeftOut()
    left_out.add(place.loose)
    for label, folder in folders.items():
        if label not in classes:
            below = foldertree.survey(folder, layout.around, where=f"{where}{label}/")
            left_out.add(below.left_out)
            if below.left_out.files:
                left_out.name(foldertree.NO_IMAGE, printable(where + label))
    for target, label in enumerate(classes):
        if label not in folders:
            continue
        below = foldertree.survey(folders[label], layout.around, where=f"{where}{label}/")
        keys += [f"{label}/{image}" for image in below.images]
        targets += [target] * len(below.images)
        linked += below.linked
        left_out.add(below.left_out)
    if split == next(iter(layout.splits)):  # what lies beside the splits is counted once
        for folder, reason in layout.beside:
            below = foldertree.survey(folder, layout.around, where=f"{folder.name}/")
            if below.images:
                left_out.files[reason] += len(below.images)
            left_out.add(below.left_out)
        left_out.add(layout.loose)
    return keys, targets, linked, left_out


def _inner_folders(spec: str, layout: Layout, keys: list[str]) -> str:
    """What is said where class folders hold folders: another level may have been meant."""
    inner: dict[str, set[str]] = {}
    loose = False
    for key in keys:
        label, _, rest = key.partition("/")
        folder, slash, _ = rest.partition("/")
        inner.setdefault(label, set()).update({folder} if slash else ())
        loose |= not slash
    example = next((f"{label}/{min(names)}" for label, names in inner.items() if names), None)
    if example is None:
        return ""
    first = next(iter(inner.values()))
    note = f"folders inside class folders belong to the class, like {printable(example)}/"
    if loose or len(first) < 2 or any(names != first for names in inner.values()):
        return note
    names = some(f"{printable(name)}/" for name in sorted(first))
    if len(inner) == 1:
        return f"{note} (where {names} are the classes or splits, open {printable(next(iter(inner)))}/ itself)"
    return note if layout.note else f"{note} (where {names} are the classes, name the outer folders train/ and val/)"


def require_text(spec: str, names: Iterable[str]) -> None:
    """Raises BadInput for a name of bytes that are no UTF-8: it could be neither hashed nor written down."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise BadInput(f"data {spec!r} holds a name that is not UTF-8 text: {name!a}; rename it") from None


@contextmanager
def folders_listed(spec: str) -> Iterator[None]:
    """Raises BadInput for a folder that cannot be listed."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"data {spec!r} cannot be read: {error.strerror or error}: {error.filename!r}") from error
