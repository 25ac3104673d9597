"""The splits that a source holds, how they are spelt, and which of them is meant by "train" and "val"."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from leanvit.data import keyed
from leanvit.data.stream import AnyDataset, Stream
from leanvit.errors import BadInput, NoTrainingSplit

COUNTED_TOGETHER = "what is left out is counted for both together"
VAL_FRACTION = 0.1  # share of the keys held out when a source has a single split
SPLITS = ("train", "val")
_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """What a spec holds: a way to open each split, by "train", "val", "test", or "all" for an unnamed one."""

    spec: str
    splits: Mapping[str, Callable[[], AnyDataset]]
    form: str = ""  # in words: "image folder", "webdataset shards", ...


def canonical_split(name: str) -> str | None:
    """The usual spellings of "train", "val" and "test", shard suffix (`-00000-of-00002`) or not; None for others."""
    return _SPLIT_NAMES.get(re.sub(r"-\d+-of-\d+$", "", name).lower())


def chosen_split(source: Source, split: str | None) -> AnyDataset:
    """The split "train" or "val" of a source, as `open_dataset` says it. Raises BadInput, NoTrainingSplit."""
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
        raise NoTrainingSplit(f"split='train': {source.spec!r} has no training split, only {', '.join(sorted(held))}")
    if len(held) > 1:
        return _named(source, whole, "train")
    return _hash_split(_named(source, whole, split), split)


def _named(source: Source, held: str, split: str, *, note: str = "") -> AnyDataset:
    if held not in source.splits:
        raise BadInput(f"split={held!r}: {source.spec!r} has only {', '.join(sorted(source.splits))}")
    dataset = source.splits[held]()
    if not len(dataset):
        raise BadInput(f"data {source.spec!r}, split {held!r}: there is no image in it")
    return replace(dataset, split=split, note="; ".join(filter(None, (note, dataset.note))))


def _hash_split(dataset: AnyDataset, split: str) -> AnyDataset:
    if isinstance(dataset, Stream):
        if split == "train":
            return dataset
        raise BadInput(
            f"split={split!r}: data {dataset.spec!r} is a stream with one split, which cannot be cut in two; accepted: "
            "wds:PATTERN?val=PATTERN, or an hf data set with a val or test split"
        )
    if len(dataset) < 2:
        raise BadInput(f"data {dataset.spec!r} holds one image: too few to split into train and val")
    value = keyed.ranks(dataset.key_hashes, "split")
    is_val = value < np.uint64(int(VAL_FRACTION * 2**64))
    if not is_val.any() or is_val.all():  # tiny sets only
        is_val = value == value.min()
    note = f"no val split: a hash of their names holds out {VAL_FRACTION:.0%} of the images"
    note += f" ({COUNTED_TOGETHER})" if dataset.left_out else ""
    chosen = np.flatnonzero(is_val if split == "val" else ~is_val)
    return replace(dataset.take(chosen), note="; ".join(filter(None, (dataset.note, note))))
