"""Images without labels: files, folders, patterns, lists, PIL images, and data sets whose labels are ignored."""

from __future__ import annotations

import csv
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from leanvit.data.dataset import Dataset
from leanvit.data.decode import EXTENSIONS, UnreadableImage, decode
from leanvit.data.depth import PixelRange
from leanvit.data.imagefiles import survey, unlabelled
from leanvit.data.imagefolder import folders_listed
from leanvit.data.sources import open_dataset, source_of
from leanvit.data.specs import parse_spec
from leanvit.data.splits import SPLITS
from leanvit.data.stream import AnyDataset, Stream
from leanvit.errors import BadInput, nearest, unknown

ACCEPTED = (
    "an image, a folder (searched to its bottom), a pattern like 'photos/*.jpg', a .txt file with a path a line, PIL "
    "images, or a data spec (leanvit data --help)"
)
_LISTS = (".txt", ".csv", ".tsv")  # files that name images; tables of one column


@dataclass(frozen=True)
class Found:
    """What the arguments name, in parts that are read one after another."""

    parts: tuple[AnyDataset, ...]  # images that cannot be read are left out by their loaders; labels mean nothing
    left_out: Mapping[str, int] = field(default_factory=dict)  # ending -> how many files are no images by it

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)


def find_images(given: Any, *, channels: int, pixel_range: PixelRange | None = None, split: str | None = None) -> Found:
    """The images that one argument or several name, sorted within each folder or pattern; each file comes once.

    Keys are the paths below a folder that is given, else the paths as they are given; of several folders, with the
    folder before them. PIL images are called `0`, `1`, ... by their place.

    Args:
        given: a path, text, PIL image or data set, or a sequence of them.
        channels: of the model. Images are read in colour for it, however few of them are: nothing is judged by others.
        pixel_range: of the model: the values of black and white of images with more than 8 bits; a data spec that says
            its own (`?range=`) keeps it.
        split: "train" or "val" of data specs; None: all of them, in folders, lists and tables every image.

    Raises:
        BadInput: nothing there, no image in it, or an argument of another kind; before any image is decoded.
    """
    if split is not None and split not in SPLITS:
        raise unknown("split", str(split), SPLITS)
    several = [given] if isinstance(given, str | os.PathLike | Image.Image | Dataset | Stream) else _listed(given)
    if not several:
        raise BadInput(f"images is empty; accepted: {ACCEPTED}")
    sets, files, left_out = [], _Files(), Counter[str]()
    folders = [one for one in several if isinstance(one, str | os.PathLike) and _is_folder(one)]
    for place, one in enumerate(several):
        if isinstance(one, Dataset | Stream):
            sets.append(_alone(replace(one, on_bad="skip", bad=[])))
        elif isinstance(one, Image.Image):
            files.add(str(place), one)
        elif not isinstance(one, str | os.PathLike):
            raise BadInput(f"images holds a {type(one).__name__}; accepted: {ACCEPTED}")
        elif split is not None or not _add_files(os.fspath(one), files, left_out, prefixed=len(folders) > 1):
            sets += [_alone(_in_range(part, pixel_range)) for part in _of_spec(os.fspath(one), split)]
    own = [replace(_dataset(files, channels), pixel_range=pixel_range)] if files.images else []
    return Found((*own, *sets), dict(left_out))


@dataclass
class _Files:
    """Keys, and where each image lies."""

    keys: list[str] = field(default_factory=list)
    images: list[Path | Image.Image] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
    _known: set[str] = field(default_factory=set)
    repeated: int = 0

    def add(self, key: str, image: Path | Image.Image) -> None:
        if isinstance(image, Path):
            place = os.path.abspath(image)
            if place in self._seen:
                self.repeated += 1
                return
            self._seen.add(place)
        if key in self._known:  # of two lists, say
            key = os.path.abspath(image) if isinstance(image, Path) else f"image {key}"
        self._known.add(key)
        self.keys.append(key)
        self.images.append(image)


@dataclass(frozen=True)
class _Images:
    """Rows of a `Dataset`."""

    keys: tuple[str, ...]
    held: tuple[Path | Image.Image, ...]

    def encoded(self, row: int) -> Path | None:
        image = self.held[row]
        if isinstance(image, Image.Image):
            return None
        if not image.is_file():  # a pipe or a device would be waited for
            raise UnreadableImage.of(self.keys[row], "cannot be decoded: there is no such file")
        return image

    def __getitem__(self, row: int, /) -> Image.Image:
        image = self.held[row]
        return image if isinstance(image, Image.Image) else decode(image, key=self.keys[row])


def _dataset(files: _Files, channels: int) -> Dataset:
    note = f"{files.repeated} files that are named twice are taken once" if files.repeated else ""
    return unlabelled(
        name="images",
        spec="images",
        split="all",
        keys=tuple(files.keys),
        images=_Images(tuple(files.keys), tuple(files.images)),
        channels=max(3, channels),  # grey is the same in three channels, colour in one is not
        image_size=(0, 0),
        note=note,
        on_bad="skip",
    )


def _listed(given: Any) -> list[Any]:
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise BadInput(f"images is a {type(given).__name__}; accepted: {ACCEPTED}, or a list of these")
    return list(given)


def _is_folder(given: str | os.PathLike[str]) -> bool:
    try:
        return Path(given).is_dir()
    except (OSError, ValueError):
        return False


def _add_files(text: str, files: _Files, left_out: Counter[str], *, prefixed: bool) -> bool:
    """Add the images of a folder, file, pattern or list; False where the text is a data spec of another kind."""
    if not text.strip() or text == "-":
        raise BadInput(f"images is {text!r}; accepted: {ACCEPTED}")
    path = Path(text).expanduser()
    try:
        there = path.exists()
    except (OSError, ValueError) as error:
        raise BadInput(f"images {text!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if path.is_dir():
        if parse_spec(text).kind != "folder":  # parquet
            return False
        _add_folder(path, files, left_out, prefix=text if prefixed else "")
    elif there and path.suffix.lower() in _LISTS:
        return _add_list(path, text, files)
    elif there and path.suffix.lower() in (".parquet", ".tar"):
        return False
    elif there:
        files.add(text, path)
    elif glob.has_magic(text) and not _is_spec(text):
        found = [p for p in sorted(glob.glob(str(path), recursive=True)) if _is_image(Path(p), left_out)]
        if not found:
            raise BadInput(f"images {text!r}: the pattern meets no image; endings: {' '.join(sorted(EXTENSIONS))}")
        for match in found:
            files.add(match, Path(match))
    elif _is_spec(text):
        return False
    else:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise BadInput(f"images {text!r}: there is no such file or folder: {nearest(path.name, siblings)}")
    return True


def _is_spec(text: str) -> bool:
    """Whether a text that is no path can only be a data spec: `digits`, `hf:NAME`, `photos?classes=cat`."""
    where, _, options = text.partition("?")
    return text == "digits" or bool(re.match(r"(list|wds|hf):|digits\?", text)) or ("=" in options and _exists(where))


def _exists(where: str) -> bool:
    return Path(where).expanduser().exists()


def _add_folder(path: Path, files: _Files, left_out: Counter[str], *, prefix: str) -> None:
    with folders_listed(str(path)):
        below = survey(path)
    endings = {reason.removeprefix("with the ending "): count for reason, count in below.left_out.files.items()}
    left_out.update({name: n for name, n in endings.items() if name.startswith(".") or name == "without an ending"})
    if not below.images:
        other = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise BadInput(
            f"images {str(path)!r}: no image in this folder{f' ({other})' if other else ''}; endings: "
            f"{' '.join(sorted(EXTENSIONS))}"
        )
    for name in below.images:
        files.add(os.path.join(prefix, name), path / name)


def _is_image(file: Path, left_out: Counter[str]) -> bool:
    """Whether a file of a folder is an image by its ending; counts what is none."""
    if file.is_dir() or file.name.startswith("."):
        return False
    if file.suffix.lower() in EXTENSIONS:
        return True
    left_out[file.suffix.lower() or "without an ending"] += 1
    return False


def _add_list(path: Path, text: str, files: _Files) -> bool:
    """Add the paths of a list; False for a table of several columns, which is a data spec."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"images {text!r} is no UTF-8 text file: {error}") from None
    if path.suffix.lower() != ".txt":
        rows = list(csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
        if any(len(row) > 1 for row in rows):
            return False
        lines = [cell for row in rows for cell in row]
        first = path.parent / lines[0] if lines else path
        lines = lines if first.is_file() else lines[1:]  # the column's name
    paths = [line.strip() for line in lines if line.strip()]
    if not paths:
        raise BadInput(f"images {text!r}: there is no path in it")
    if not any((path.parent / one).is_file() for one in paths):
        raise BadInput(
            f"images {text!r}: none of its {len(paths)} lines is a file beside it (the first: {paths[0][:80]!r}); "
            f"accepted: a path a line; lines with a label behind the path are list:{path.name}"
        )
    for one in paths:
        files.add(one, path.parent / one)
    return True


def _of_spec(text: str, split: str | None) -> Sequence[AnyDataset]:
    """The splits of a data spec. Where there are several, keys begin with the split's name."""
    if split is not None:
        return [open_dataset(text, split, on_bad="skip")]
    source = source_of(parse_spec(text))
    if len(source.splits) == 1 or "?" in text:  # options are about one split
        return [open_dataset(text, on_bad="skip")]
    return [_named(opened(), name) for name, opened in source.splits.items()]


def _alone(dataset: AnyDataset) -> AnyDataset:
    """The images without their fields: one with a mask that cannot be read is an image all the same."""
    return replace(dataset, fields={})


def _in_range(dataset: AnyDataset, pixel_range: PixelRange | None) -> AnyDataset:
    if pixel_range is None or "range" in parse_spec(dataset.spec).options:
        return dataset
    return replace(dataset, pixel_range=pixel_range)


def _named(dataset: AnyDataset, split: str) -> AnyDataset:
    if isinstance(dataset, Stream):
        return replace(dataset, split=split, on_bad="skip")
    keys = tuple(f"{split}/{key}" for key in dataset.keys)
    return replace(dataset, split=split, on_bad="skip", keys=keys)
