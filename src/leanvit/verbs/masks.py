"""Answers that are maps, as palette pictures in a folder beside the file of answers."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from leanvit.errors import BadInput
from leanvit.runs.thumbnails import colour
from leanvit.tasks import Task
from leanvit.verbs.answers import Answer

LONGEST = 120  # characters of a picture's name; files have room for the number of a second one, and the ending


def masks_folder(file: Path) -> Path:
    """`answers-masks` beside `answers.csv`."""
    return file.with_name(f"{file.stem}-masks")


def check_masks_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise `BadInput` unless pictures may be written there; what is replaced holds nothing but pictures."""
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise BadInput(f"{folder} exists, where masks would be written: give another --out, or --overwrite")
    if folder.is_symlink() or not folder.is_dir() or any(one.suffix != ".png" for one in folder.iterdir()):
        raise BadInput(f"{folder} is no folder of masks, so it is not overwritten: give another --out")


class Masks:
    """Writes the map of each answer, at the size that the model saw."""

    def __init__(self, folder: Path, task: Task, size: Sequence[int]) -> None:
        """folder: to be, with `place`. size: (height, width)."""
        self.folder, self.task, self.size = folder, task, tuple(size)
        self.count = 0
        self._taken: set[str] = set()
        self._made: Path | None = None

    def kept(self, answer: Answer) -> Answer:
        """The answer with the path of its picture, from the file of answers, in place of the map; others unchanged."""
        picture = None if answer.error else self.task.picture(answer.answer)
        if picture is None:
            return replace(answer, answer=None)
        if self._made is None:
            self._made = Path(tempfile.mkdtemp(dir=self.folder.parent, prefix=f".{self.folder.name}-"))
        name = self._name(answer.image)
        picture_of(picture, self.size, answer.image).save(self._made / name)
        self.count += 1
        return replace(answer, answer=None, mask=f"{self.folder.name}/{name}")

    def place(self) -> None:
        """Put the pictures where they belong, all at once; those that were there go."""
        if self._made is None:
            return
        self._made.chmod(0o755)
        if self.folder.exists():
            old = Path(tempfile.mkdtemp(dir=self.folder.parent, prefix=f".{self.folder.name}-old-"))
            self.folder.rename(old / self.folder.name)
            self._made.rename(self.folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            self._made.rename(self.folder)
        self._made = None

    def discard(self) -> None:
        """Remove what was not placed."""
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)

    def _name(self, key: str) -> str:
        """A file name of an image's key: plain characters, and of no other key, not even where case is ignored."""
        path = PurePosixPath(key)
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", str(path.with_suffix("")) if path.suffix else key)
        plain = plain.strip("._")[-LONGEST:] or "image"
        name, number = plain, 2
        while name.lower() in self._taken:
            name, number = f"{plain}-{number}", number + 1
        self._taken.add(name.lower())
        return f"{name}.png"


@contextmanager
def masks_beside(file: Path, task: Task, size: Sequence[int]) -> Iterator[Masks]:
    """Masks of the answers in a file; nothing of them is left where it is not completed."""
    masks = Masks(masks_folder(file), task, size)
    try:
        yield masks
    finally:
        masks.discard()


def picture_of(answer: np.ndarray, size: Sequence[int], key: str) -> Image.Image:
    """A map (h, w) of whole numbers as a picture whose values they are, resized to (height, width) without mixing.

    Up to 255 with a palette, beyond in 16 bits of grey. Raises `BadInput` for a map of anything else.
    """
    values = np.asarray(answer)
    if values.ndim != 2 or values.dtype.kind not in "iub" or values.min() < 0 or values.max() > 65535:
        what = f"{values.dtype} {values.shape}" + (f", {values.min()} to {values.max()}" if values.size else "")
        raise BadInput(f"the map of {key!r} is {what}; accepted: (h, w) whole numbers from 0 to 65535")
    rows, columns = (
        (np.arange(wanted) * 2 + 1) * own // (2 * wanted) for wanted, own in zip(size, values.shape, strict=True)
    )
    values = values[rows][:, columns]
    if values.max() > 255:
        return Image.fromarray(values.astype(np.uint16))
    picture = Image.fromarray(values.astype(np.uint8)).convert("L")
    picture.putpalette(bytes.fromhex("".join(colour(number)[1:] for number in range(256))))
    return picture
