"""The embedded data set: 1,797 handwritten digits, 8x8 grey.

UCI Optical Recognition of Handwritten Digits (Alpaydin, Kaynak 1998; the test part), as it comes with scikit-learn.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from leanvit.data import keyed
from leanvit.data.dataset import Dataset
from leanvit.data.label_kinds import rank_within
from leanvit.data.splits import Source

VAL_SHARE = 0.2  # of every class; 359 images, so that an accuracy is known to about 2 points


def digits_source() -> Source:
    """Splits "train" (1,438) and "val" (359), stratified by class; the same images everywhere and for every seed."""
    return Source("digits", {"train": lambda: _split("train"), "val": lambda: _split("val")}, "embedded")


@dataclass(frozen=True)
class _Pixels:
    values: np.ndarray  # (N, 8, 8) uint8

    def __getitem__(self, row: int, /) -> Image.Image:
        return Image.fromarray(self.values[row])


def _split(split: str) -> Dataset:
    values, targets = _load()
    is_val = _validation()
    whole = Dataset(
        name="digits",
        spec="digits",
        split=split,
        classes=[str(digit) for digit in range(10)],
        keys=_keys(len(targets)),
        targets=targets,
        rows=np.arange(len(targets)),
        images=_Pixels(values),
        channels=1,
        image_size=(8, 8),
        mirror=False,
    )
    return whole.take(np.flatnonzero(is_val if split == "val" else ~is_val))


def _keys(count: int) -> tuple[str, ...]:
    return tuple(f"digits/{row:04d}" for row in range(count))


@lru_cache(maxsize=1)
def _validation() -> np.ndarray:
    """(N,) bool: the images that are held out."""
    _, targets = _load()
    rank = rank_within(targets, keyed.ranks(keyed.hashes(_keys(len(targets))), "split"))
    return rank < np.round(VAL_SHARE * np.bincount(targets))[targets]


@lru_cache(maxsize=1)
def _load() -> tuple[np.ndarray, np.ndarray]:
    table = _table()  # (N, 65): 8x8 pixels of 17 grey levels, 0 to 16, and the digit
    values = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return values, table[:, -1].astype(np.int64)


def _table() -> np.ndarray:
    """scikit-learn's table, read from its file: importing scikit-learn takes longer than measuring a small model."""
    package = find_spec("sklearn")
    for folder in (package.submodule_search_locations or ()) if package else ():
        file = Path(folder) / "datasets/data/digits.csv.gz"
        if file.is_file():
            with gzip.open(file, "rt") as text:
                return np.loadtxt(text, delimiter=",", dtype=np.float64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
