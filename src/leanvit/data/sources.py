"""`open_dataset`: what a spec names, which splits it holds, and which of them is meant."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from leanvit.data import keyed
from leanvit.data.dataset import Dataset
from leanvit.errors import BadInput, nearest, unknown

VAL_FRACTION = 0.1  # share of the keys held out when a source has a single split
SPLITS = ("train", "val")
_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_ACCEPTED = (
    "accepted: 'digits', a folder of class folders (or of train/ and val/), a parquet file or a folder of "
    "<split>.parquet files, or hf:NAME[:CONFIG]"
)


@dataclass(frozen=True)
class Source:
    """What a spec holds: a way to open each split, by "train", "val", "test", or "all" for an unnamed one."""

    spec: str
    splits: dict[str, Callable[[], Dataset]]


def open_dataset(
    spec: str | os.PathLike[str], split: str | None = None, *, seed: int = 0, limit: int | None = None
) -> Dataset:
    """Open a data set of images with one class each.

    spec: "digits" (embedded); a folder in ImageFolder layout (`train/` and `val/` or `test/` with a folder a class, or
    just the class folders); a parquet file or a folder of `<split>.parquet` in the layout of HF `datasets`;
    `hf:NAME[:CONFIG]`, read by HF `datasets`.

    split: "train" or "val". Where there is no val, test is used; where there is a single split called train or nothing,
    the keys whose hash falls in the lowest tenth are val and the others train; `note` then says so. None is the whole
    of a source with one split, and train of any other. The split depends on neither `seed` nor the other keys.

    limit: keep that many samples, even over the classes, chosen by (seed, key).

    Raises BadInput for an unknown spec, path or split, MissingExtra where an optional package is needed.
    """
    if split is not None and split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if limit is not None and limit < 1:
        raise BadInput(f"limit={limit}: accepted: a number of samples >= 1")
    dataset = _selected(_source(os.fspath(spec)), split)
    return dataset if limit is None else dataset.limited(limit, seed=seed)


def canonical_split(name: str) -> str | None:
    """The usual spellings of "train", "val" and "test", shard suffix (`-00000-of-00002`) or not; None for others."""
    return _SPLIT_NAMES.get(re.sub(r"-\d+-of-\d+$", "", name).lower())


def _source(spec: str) -> Source:
    # Each kind of source imports what only it needs (scikit-learn, pyarrow, datasets).
    if spec == "digits":
        from leanvit.data.digits import digits_source

        return digits_source()
    if spec.startswith("hf:"):
        from leanvit.data.hub import hub_source

        return hub_source(spec)
    path = Path(spec).expanduser()
    if path.is_dir() and not _holds_parquet(path):
        from leanvit.data.imagefolder import imagefolder_source

        return imagefolder_source(spec, path)
    if path.is_dir() or (path.is_file() and path.suffix == ".parquet"):
        from leanvit.data.parquet import parquet_source

        return parquet_source(spec, path)
    if path.is_file():
        raise BadInput(f"data {spec!r} is a {path.suffix or 'plain'} file; {_ACCEPTED}")
    raise BadInput(f"data {spec!r} does not exist{_near(path)}; {_ACCEPTED}")


def _holds_parquet(path: Path) -> bool:
    return any(path.glob("*.parquet")) or any(path.glob("data/*.parquet"))


def _near(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    shown = [name for name in siblings if not name.startswith(".")]
    hint = nearest(path.name, ["digits", *shown]).split("Known:")[0].strip()
    return f" ({hint})" if hint else ""


def _selected(source: Source, split: str | None) -> Dataset:
    held = source.splits
    if split is None:
        split = "train" if len(held) > 1 else next(iter(held))
        return _named(source, split, split)
    if split == "val" and "val" in held:
        return _named(source, "val", "val")
    if split == "val" and "test" in held:
        return _named(source, "test", "val", note="val is the test split: there is no val split")
    whole = "train" if "train" in held else "all"
    if whole not in held:
        raise BadInput(f"split='train': {source.spec!r} has no training split, only {', '.join(sorted(held))}")
    if len(held) > 1:
        return _named(source, whole, "train")
    return _hash_split(_named(source, whole, split), split)


def _named(source: Source, held: str, split: str, *, note: str = "") -> Dataset:
    if held not in source.splits:
        raise BadInput(f"split={held!r}: {source.spec!r} has only {', '.join(sorted(source.splits))}")
    dataset = source.splits[held]()
    if not len(dataset):
        raise BadInput(f"data {source.spec!r}, split {held!r}: there is no image in it")
    return replace(dataset, split=split, note="; ".join(filter(None, (note, dataset.note))))


def _hash_split(dataset: Dataset, split: str) -> Dataset:
    if len(dataset) < 2:
        raise BadInput(f"data {dataset.spec!r} holds one image: too few to split into train and val")
    value = keyed.ranks(dataset.key_hashes, "split")
    is_val = value < np.uint64(int(VAL_FRACTION * 2**64))
    if not is_val.any() or is_val.all():  # tiny sets only
        is_val = value == value.min()
    note = f"one split only: the {VAL_FRACTION:.0%} of the keys with the lowest hash are val, the others train"
    chosen = np.flatnonzero(is_val if split == "val" else ~is_val)
    return replace(dataset.take(chosen), note="; ".join(filter(None, (dataset.note, note))))
