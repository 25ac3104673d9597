"""What identifies a data set when work on it goes on later: its classes, keys, labels, and some of its pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image

from leanvit.data.dataset import Dataset, Sample
from leanvit.data.decode import UnreadableImage
from leanvit.data.stream import AnyDataset

LOOKS = 8  # images whose pixels are looked at: the start of a training must stay quick
_SUMS = {
    "classes": "its classes (names, or their order) changed",
    "keys": "its keys (the images, or their order) changed",
    "labels": "its labels changed",
    "parts": "its shards changed",
    "samples": "its keys or labels changed",
}


def identity(dataset: AnyDataset) -> dict[str, Any]:
    """What identifies a data set (JSON): spec, split, number of images, sha256 of classes, keys and labels, and by key
    the sha256 of the decoded pixels of a few images, evenly spread in the order of the set.

    Of a stream: the names of its parts in place of keys and labels, and its first images (with their labels). Of
    fields, by name, the sha256 of their kind, row numbers and the values of those few samples.
    """
    payload = {"spec": dataset.spec, "split": dataset.split, "images": len(dataset), "classes": _of(dataset.classes)}
    if dataset.fields:
        payload["fields"] = {name: _field(dataset, name) for name in sorted(dataset.fields)}
    if isinstance(dataset, Dataset):
        payload |= {"keys": _of(dataset.keys), **_labels(dataset)}
        reads = zip(_looked_at(len(dataset)), _reads(dataset), strict=True)
        return {**payload, "pixels": {dataset.keys[i]: _looked(read) for i, read in reads}}
    payload["parts"] = _of([part.name for part in dataset.parts])
    first = islice(dataset.pass_over(), min(LOOKS, len(dataset)))
    return {**payload, "pixels": {item.key: _looked(partial(dataset.read, item), labels=True) for item in first}}


def _labels(dataset: Dataset) -> dict[str, str]:
    if dataset.targets is None:
        return {}
    labels = np.ascontiguousarray(dataset.targets)
    return {
        "labels": hashlib.sha256(f"{labels.dtype} {labels.shape}".encode() + labels.tobytes()).hexdigest(),
        "samples": hashlib.sha256(_joined(dataset.keys) + labels.tobytes()).hexdigest(),  # all that 0.1 looked at
    }


def _field(dataset: AnyDataset, name: str) -> str:
    field = dataset.fields[name]
    found = hashlib.sha256(field.settings().encode())
    if field.rows is not None and field.keys is None:  # by key, it does not matter where a value lies
        found.update(np.ascontiguousarray(field.rows).tobytes())
    for read in _reads(dataset):
        try:
            value = read().fields[name]
        except UnreadableImage:
            value = "unreadable"
        found.update(_bytes(value))
    return found.hexdigest()


def _bytes(value: Any) -> bytes:
    """A field's value, with what tells two of them apart."""
    if isinstance(value, Mapping):
        return b"".join(str(key).encode() + _bytes(one) for key, one in value.items())
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, Image.Image):
        return f"{value.mode} {value.size}".encode() + value.tobytes()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    if isinstance(value, list | tuple):
        return f"{len(value)} ".encode() + b"".join(map(_bytes, value))
    return repr(value).encode()


def _reads(dataset: AnyDataset) -> Iterator[Callable[[], Sample]]:
    """Each reads one of the few samples that are looked at."""
    if isinstance(dataset, Dataset):
        for index in _looked_at(len(dataset)):
            yield partial(dataset.__getitem__, int(index))
    else:
        for item in islice(dataset.pass_over(), min(LOOKS, len(dataset))):
            yield partial(dataset.read, item)


def _looked_at(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(LOOKS, count)).astype(int))


def changes(was: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[str]:
    """In words, what of `identity` changed; what the older one does not say is not compared."""
    if not was or not now:
        return []
    return list(_changes(was, now))


def _changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in ("spec", "split", "images"):
        if key in was and was[key] != now.get(key):
            yield f"data.{key} was {was[key]!r} and is now {now.get(key)!r}"
    changed = [key for key in _SUMS if key in was and was[key] != now.get(key)]
    for key in changed:
        if key != "samples" or not {"keys", "labels"} & {*changed}:  # which of both is said already
            yield f"data: {_SUMS[key]}"
    before, after = was.get("fields", {}), now.get("fields", {})  # there were none before they could be stated
    others = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if others:
        yield f"data: the fields changed: {', '.join(others)}"
    before, after = was.get("pixels", {}), now.get("pixels", {})
    both = [key for key in before if key in after and before[key] != after[key]]
    if both:
        yield f"data: the pixels changed of {', '.join(map(repr, both))} ({len(before)} images were compared)"
    elif "pixels" in was and {*before} != {*after} and not changed:
        yield "data: its images come in another order"


def _of(names: Any) -> str:
    return hashlib.sha256(_joined(names)).hexdigest()


def _joined(names: Any) -> bytes:
    return "\n".join(names).encode(errors="surrogateescape")


def _looked(read: Callable[[], Sample], *, labels: bool = False) -> str:
    """sha256 of an image's mode, size and pixels (and its label); a word for one that cannot be read."""
    try:
        image, target, _ = read()
    except UnreadableImage:
        return "unreadable"
    label = f" {np.asarray(target).tolist()}" if labels else ""
    return hashlib.sha256(f"{image.mode} {image.size}{label}".encode() + image.tobytes()).hexdigest()
