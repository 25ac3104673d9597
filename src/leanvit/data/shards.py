"""`wds:PATTERN`: webdataset tar shards, `key.jpg` and `key.cls` (or `.json`, `.txt`) side by side.

Shards may come from anyone. Of their members only images and `cls`, `json`, `txt` labels are read, here, without
webdataset's automatic decoders; a shard that holds pickles, or is cut short, is refused (`tars.py`). Only local files
are opened: webdataset hands other addresses to a shell.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from leanvit.data import labels as labelling
from leanvit.data import tars
from leanvit.data.arrow import require
from leanvit.data.labels import RowLocations
from leanvit.data.specs import Spec
from leanvit.data.splits import Source, canonical_split
from leanvit.data.stream import Encoded, Stream, in_epochs, probe_stream
from leanvit.data.tars import IMAGES, LABELS
from leanvit.errors import BadInput

_FIELDS = ("label", "labels", "cls", "class", "target")  # of a json member
Label = str | tuple[str, ...]  # of one sample


@dataclass(frozen=True)
class _Scan:
    """What the headers and labels of one shard hold."""

    path: Path
    keys: tuple[str, ...]
    labels: tuple[Label, ...]
    left_out: Mapping[str, int]
    other_labels: frozenset[str] = frozenset()  # endings of members that could be labels, too

    @property
    def locations(self) -> RowLocations:
        return RowLocations(f"shard {self.path.name},", lambda row: f"sample {self.keys[row]!r}")


@dataclass(frozen=True)
class Shard:
    """One tar file; iterating reads it from front to back."""

    path: Path
    label: str | None  # None: without labels
    classes: tuple[str, ...]
    multi_label: bool
    prefix: str = ""  # put in front of keys that other shards have, too

    @property
    def name(self) -> str:
        return self.path.name

    def __iter__(self) -> Iterator[Encoded]:
        known: dict[Label, int | np.ndarray] = {}
        for sample in _samples(self.path):
            image = next((sample[ending] for ending in sample if ending in IMAGES), None)
            if image is not None and self.label is None:
                yield Encoded(image, None, self.prefix + sample["__key__"])
            if image is None or self.label is None:
                continue
            member = self.label.split(".")[0]
            if member not in sample:
                continue
            locations = _locations(self.path, sample["__key__"])
            label = _label(sample[member], self.label, locations, 0)
            if label not in known:
                known[label] = self._target(label, locations)
            target = known[label]
            yield Encoded(image, target if isinstance(target, int) else target.copy(), self.prefix + sample["__key__"])

    def _target(self, label: Label, locations: RowLocations) -> int | np.ndarray:
        if self.multi_label:
            return labelling.label_vectors([[label] if isinstance(label, str) else label], self.classes, locations)[0]
        return int(labelling.class_targets([str(label)], self.classes, locations)[0])


def shards_source(spec: Spec) -> Source:
    """The splits of a pattern of tar files: `train`, and `val` where `val=PATTERN` names its shards.

    The headers and labels of all shards are read once, which gives the number of samples, the classes and the keys.
    Options: `resampled`, `epoch=N` (samples an epoch, of train), `buffer=N` (samples shuffled among),
    `label=cls|json|txt` or `label=json.FIELD`; `labels=none`.

    Raises BadInput for patterns without files, shards without labelled images, with pickles, or that are damaged or
    cut short; MissingExtra without webdataset.
    """
    require("webdataset")
    patterns = {"all": spec.where}
    if "val" in spec.options:
        patterns = {"train": spec.where, "val": spec.options["val"]}
    elif (named := canonical_split(re.split(r"[-_.{*\[]", Path(spec.where).name)[0])) is not None:
        patterns = {named: spec.where}
    files = {split: _files(spec, pattern) for split, pattern in patterns.items()}
    label = _chosen_label(spec, next(iter(files.values()))) if spec.labelled else None
    scans = {split: [_scan(path, label) for path in paths] for split, paths in files.items()}
    every = [scan for of_split in scans.values() for scan in of_split]
    multi = any(not isinstance(one, str) for scan in every for one in scan.labels)
    classes = [] if label is None else _classes(spec, every, label)
    opened = {
        split: partial(_open, spec, split, tuple(of_split), label, classes, multi) for split, of_split in scans.items()
    }
    return Source(spec.text, opened, "webdataset shards")


def _open(
    spec: Spec, split: str, scans: tuple[_Scan, ...], label: str | None, classes: list[str], multi: bool
) -> Stream:
    keys = Counter(key for scan in scans for key in scan.keys)
    twice = len(keys) < sum(keys.values())
    others = sorted(set().union(*(scan.other_labels for scan in scans)))
    prefixes = _prefixes([scan.path for scan in scans]) if twice else [""] * len(scans)
    parts = tuple(
        Shard(scan.path, label, tuple(classes), multi, prefix) for scan, prefix in zip(scans, prefixes, strict=True)
    )
    given = [label for scan in scans for label in scan.labels]
    every = len(classes) > 1 and all(not isinstance(one, str) and len(one) == len(classes) for one in given)
    notes = (
        "every image has every label: a list names the labels of an image, it is no vector of 0 and 1" if every else "",
        f"labels are those of {label}, not of {', '.join(others)} (label=… takes another)" if others and label else "",
        "keys are not unique over the shards: each has its shard's name in front" if twice else "",
        "compressed shards are unpacked in every pass" if any(tars.is_compressed(one.path) for one in scans) else "",
    )
    left_out: Counter[str] = Counter()
    for scan in scans:
        left_out.update(scan.left_out)
        left_out.update({} if scan.keys else {"shards without a sample": 1})
    held = sum(keys.values())
    if not held:
        what = "no image" if label is None else f"no image with a {label} label"
        raise BadInput(f"data {spec.text!r}, {split}: its {len(scans)} shards hold {what}")
    channels, image_size = probe_stream(parts)
    whole = Stream(
        name=re.split(r"[-_.]?[{*\[\d]", Path(spec.where).name)[0] or "shards",
        spec=spec.text,
        split=split,
        classes=classes,
        parts=parts,
        length=held,
        channels=channels,
        image_size=image_size,
        multi_label=multi,
        note="; ".join(filter(None, notes)),
        left_out=dict(left_out),
        labelled=label is not None,
    )
    return in_epochs(whole, spec)


def _files(spec: Spec, pattern: str) -> list[Path]:
    if re.match(r"(\w[\w+.-]*:|-$)", pattern):
        raise BadInput(f"data {spec.text!r}: {pattern!r} is no local path; accepted: tar files that are mounted here")
    from webdataset.shardlists import expand_urls

    if (count := tars.count_braces(pattern)) > tars.MOST_SHARDS:
        raise BadInput(f"data {spec.text!r}: {pattern!r} names {count} shards; accepted: up to {tars.MOST_SHARDS}")
    try:
        names = expand_urls(str(Path(pattern).expanduser()))
    except ValueError as error:
        raise BadInput(f"data {spec.text!r}: {pattern!r} is no pattern of shards: {error}") from None
    found: list[Path] = []
    for name in names:
        matches = sorted(glob(name)) if any(mark in name for mark in "*[") and not Path(name).exists() else [name]
        found += map(Path, matches)
    missing = [path.name for path in found if not path.is_file()]
    if missing or not found:
        what = f"{len(missing)} of its {len(found)} shards do not exist: {', '.join(missing[:5])}" if found else "none"
        raise BadInput(
            f"data {spec.text!r}: {pattern!r}: {what}; accepted: tar files, as in shards/train-{{000..009}}.tar or "
            "shards/train-*.tar"
        )
    if len(set(found)) < len(found):
        raise BadInput(f"data {spec.text!r}: {pattern!r} names a shard twice")
    return found


def _prefixes(paths: Sequence[Path]) -> list[str]:
    """What keeps the keys of shards apart: their names, with folders where two have one name."""
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems):
        root = os.path.commonpath([path.resolve().parent for path in paths])
        stems = [path.resolve().relative_to(root).with_suffix("").as_posix() for path in paths]
    return [f"{stem}/" for stem in stems]


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    """Samples of a shard in webdataset's terms: `__key__`, and the bytes of its members by their ending."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with tars.damage(path), path.open("rb") as stream:
        members = tar_file_expander(
            iter([{"url": str(path), "stream": stream}]),
            select_files=lambda name: tars.ending_of(name) in (*IMAGES, *LABELS),
            rename_files=tars.normal_name,
        )
        yield from group_by_keys(members)


def _scan(path: Path, label: str | None) -> _Scan:
    """Keys and labels of a shard; seeks over the images. Raises BadInput for pickles and unlabelled images."""
    left_out: Counter[str] = Counter()
    keys: list[str] = []
    labels: list[Label] = []
    without: list[str] = []
    locations = RowLocations(f"shard {path.name},", lambda row: f"sample {keys[row]!r}")
    ending = "" if label is None else label.split(".")[0]
    others: set[str] = set()
    for key, members in tars.samples(path, left_out):
        keys.append(key)
        others |= {one for one in members if one in LABELS and one != ending}
        left_out["further images of a sample, of which the first is taken"] += sum(one in IMAGES for one in members) - 1
        if label is None:
            continue
        if ending not in members:
            without.append(key)
            continue
        labels.append(_label(_read(members, ending, locations, len(keys) - 1), label, locations, len(keys) - 1))
    if without:
        links = f" ({left_out['links']} members are links, which are not followed)" if left_out["links"] else ""
        raise BadInput(
            f"shard {path.name}: {len(without)} of {len(keys)} images have no {ending} member, {without[0]!r} the "
            f"first{links}; ?labels=none opens all without labels"
        )
    return _Scan(path, tuple(keys), tuple(labels), dict(+left_out), frozenset(others))


def _locations(path: Path, key: str) -> RowLocations:
    return RowLocations(f"shard {path.name},", lambda _: f"sample {key!r}")


def _read(members: tars.Members, ending: str, locations: RowLocations, row: int) -> bytes:
    """A label's bytes. Raises BadInput where there are too many; those were not read."""
    member = members[ending]
    if member.content is None:
        raise BadInput(
            f"{locations(row)}: its {ending} member has {member.size} bytes: too large for a label; accepted: up to "
            f"{tars.LABEL_BYTES}"
        )
    return member.content


def _chosen_label(spec: Spec, paths: Sequence[Path]) -> str:
    """Which member holds the label: `label=`, else the first of cls, json, txt that the first image has."""
    given = spec.options.get("label")
    if given is not None:
        if given.split(".")[0] not in LABELS:
            raise BadInput(f"data {spec.text!r}: label={given!r}; accepted: {', '.join(LABELS)} or json.FIELD")
        return given
    for path, key, members in ((one, *sample) for one in paths for sample in tars.samples(one, Counter())):
        locations = _locations(path, key)
        if "cls" in members:
            return "cls"
        if "json" in members and (field := _field_of(_read(members, "json", locations, 0))):
            return f"json.{field}"
        if "txt" in members:
            return "txt"
        raise BadInput(
            f"shard {path.name}: sample {key!r} has no label (it has {', '.join(members)}); accepted: a cls or txt "
            f"member, or json with one of {', '.join(_FIELDS)}; ?labels=none opens the images without labels"
        )
    names = paths[0].name + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    raise BadInput(f"shard {names} holds no image; accepted endings: {' '.join(sorted(IMAGES))}")


def _field_of(encoded: bytes) -> str | None:
    try:
        value = json.loads(encoded)
    except (ValueError, RecursionError):
        return None
    return next((name for name in _FIELDS if isinstance(value, dict) and name in value), None)


def _label(encoded: bytes, label: str, locations: RowLocations, row: int) -> Label:
    """The label's text, or a tuple of texts for a JSON list. Raises BadInput naming shard and sample."""
    ending, _, name = label.partition(".")
    try:
        text = encoded.decode("utf-8")
        value = json.loads(text) if ending == "json" else text
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{locations(row)}: its {ending} member cannot be read: {error}") from None
    if ending == "json" and isinstance(value, dict):
        name = name or next((field for field in _FIELDS if field in value), "")
        value = value.get(name)
    try:
        if not isinstance(value, list):
            return labelling.label_text(value)
        names = tuple(map(labelling.label_text, value))
    except BadInput as error:
        raise BadInput(f"{locations(row)}: {error}") from None
    if len(set(names)) < len(names):
        raise BadInput(
            f"{locations(row)}: its {ending} member lists a label twice, {value!r:.60}: is it a vector of 0 and 1? "
            "Accepted: the labels of the image, each once"
        )
    return names


def _classes(spec: Spec, scans: Sequence[_Scan], label: str) -> list[str]:
    classes = labelling.names_of((scan.labels, scan.locations) for scan in scans)
    held = sum(len(scan.labels) for scan in scans)
    if label == "txt" and len(classes) > 50 and len(classes) > held // 2:
        raise BadInput(
            f"data {spec.text!r}: the txt members hold {len(classes)} different texts for {held} images: captions, not "
            "classes; accepted: a cls member, or label=json.FIELD"
        )
    return classes
